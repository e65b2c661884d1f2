"""A compiled pipeline, as KFP writes it: read from its file, its form checked, its parameters typed where they came as text."""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, quoted
from . import deprecations

JOB_ID = re.compile("[a-z][-a-z0-9]{0,127}")  # of a pipeline job
FAILURE_POLICIES = {"slow": "PIPELINE_FAILURE_POLICY_FAIL_SLOW", "fast": "PIPELINE_FAILURE_POLICY_FAIL_FAST"}
TAKES = {
    "STRING": "text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "LIST": 'a list in JSON, such as \'["a", "b"]\'',
    "STRUCT": "an object in JSON, such as '{\"a\": 1}'",
    "TASK_FINAL_STATUS": "a status",
}
_COMPILE = "compile one with `python -m pipelines.kfp.compile --help`, or by kfp's own compiler"
_EMPTY = (None, False, "", "{}", {}, [])


class PipelineError(UserError):
    """A pipeline that cannot run as asked. `field` is where the API has what is wrong, `unsupported` that it would run in the cloud."""

    def __init__(self, message: str, field: str = "pipelineSpec", unsupported: bool = False):
        super().__init__(message)
        self.field, self.unsupported = field, unsupported


@dataclass(frozen=True)
class Pipeline:
    """A compiled pipeline: the file it came from, what that says, and the spec itself."""

    path: str
    text: str
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        """The pipeline's own name."""
        return self.spec["pipelineInfo"]["name"]

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """What it takes: by name, the type, and a default if there is one."""
        return inputs(self.spec)

    def values(self, given: Sequence[tuple[str, str]], fallback: Mapping[str, str]) -> dict[str, Any]:
        """Return the values of parameters that were given as text, each of its parameter's type.

        Args:
            fallback: values for parameters that are neither given nor have a default.

        Raises:
            PipelineError: a name that there is not, a value of another type, one that is missing.
        """
        found: dict[str, Any] = {}
        for name, text in given:
            if name in found:
                raise PipelineError(f"--parameter: {name} is given twice; keep one.")
            if name not in self.parameters:
                near = difflib.get_close_matches(name, self.parameters, 1, 0.5)
                hint = f"the nearest is {near[0]}" if near else f"it has {', '.join(self.parameters) or 'none'}"
                raise PipelineError(f"--parameter: {self.path} has no parameter {quoted(name)}; {hint}.")
            found[name] = _typed(name, text, type_of(self.parameters[name]))
        for name in missing(self.parameters, found):
            if name not in fallback:
                kind = TAKES.get(type_of(self.parameters[name]), "a value")
                raise PipelineError(f"--parameter: {name} is missing, and has no default: give --parameter {name}=…, {kind}.")
            found[name] = fallback[name]
        return found

    def with_caching(self, enabled: bool) -> dict[str, Any]:
        """Return the spec with every task's caching switched on or off, whatever it was compiled with."""
        spec = copy.deepcopy(self.spec)
        for _, _, task in tasks(spec):
            task["cachingOptions"] = {"enableCache": True} if enabled else {}
        return spec


def read(path: str) -> Pipeline:
    """Read a compiled pipeline, YAML or JSON; of a PipelineJob its `pipelineSpec`.

    Raises:
        PipelineError: it cannot be read, or is no compiled pipeline.
    """
    if path.endswith(".py"):
        remedy = f"compile it first (kfp dsl compile --py {path} --output pipeline.yaml) and give the YAML"
        raise PipelineError(f"{path}: is a program; {remedy}.")
    try:
        text = Path(path).read_text(encoding="utf-8")
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}; {_COMPILE}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise PipelineError(f"{path}: is neither YAML nor JSON ({' '.join(str(error).split())[:150]}); {_COMPILE}.") from None
    spec = documents[0] if documents else None
    if isinstance(spec, dict) and "pipelineSpec" in spec:
        spec = spec["pipelineSpec"]
    if isinstance(spec, dict) and ("workerPoolSpecs" in spec or "studySpec" in spec):
        remedy = "give it to scripts/submit_job, scripts/submit_tuning, or `run`"
        raise PipelineError(f"{path}: is a job's file, no compiled pipeline; {remedy}.")
    if not isinstance(spec, dict):
        raise PipelineError(f"{path}: is no compiled pipeline, which is an object with `root` and `deploymentSpec`; {_COMPILE}.")
    try:
        check_form(spec)
    except PipelineError as error:
        raise PipelineError(f"{path}: is no compiled pipeline: {error}", error.field) from None
    return Pipeline(path, text, spec)


def check_form(spec: Mapping[str, Any]) -> None:
    """Raise a PipelineError for a spec that no service takes."""
    for field in ("pipelineInfo", "root", "deploymentSpec", "components"):
        if not isinstance(spec.get(field), Mapping):
            raise PipelineError(f"{field} is required and must be an object; {_COMPILE}.", f"pipelineSpec.{field}")
    version = str(spec.get("schemaVersion", ""))
    if not version.startswith("2."):
        text = f"schemaVersion {quoted(version)}: takes 2.x, as kfp 2 compiles; compile it again."
        raise PipelineError(text, "pipelineSpec.schemaVersion")
    if not isinstance(spec["pipelineInfo"].get("name"), str):
        raise PipelineError(f"pipelineInfo.name is required and must be text; {_COMPILE}.", "pipelineSpec.pipelineInfo.name")


def tasks(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (component, task's name, task) for every task of the pipeline and of what is nested in it."""
    scopes = {"root": spec["root"], **spec.get("components", {})}
    for scope, component in scopes.items():
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            yield scope, name, task


def warnings(pipeline: Pipeline, today: date) -> Iterator[str]:
    """Yield a line for each step that asks for what the service ends: explanations, as Google's components take them."""
    for _, name, task in tasks(pipeline.spec):
        for parameter, value in task.get("inputs", {}).get("parameters", {}).items():
            constant = value.get("runtimeValue", {}).get("constant", ...)  # ...: it comes from elsewhere
            if re.match("(generate_)?explanation", parameter) and constant not in _EMPTY:
                yield f"{pipeline.path}: {name}.{parameter}: {deprecations.explanations(today)}"


# ------------------------------------------------------------------ parameters


def inputs(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the pipeline's parameters by name, as the spec describes them."""
    return dict(spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {}))


def type_of(description: Mapping[str, Any]) -> str:
    """Return a parameter's type, such as NUMBER_INTEGER."""
    return description.get("parameterType", "STRING")


def missing(known: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters that need a value and have none."""
    return [name for name, one in known.items() if name not in values and "defaultValue" not in one and not one.get("isOptional")]


def fits(value: Any, kind: str) -> bool:
    """Tell whether a value, as JSON has it, is of a parameter's type."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return {
        "NUMBER_INTEGER": is_number and float(value).is_integer(),
        "NUMBER_DOUBLE": is_number,
        "STRING": isinstance(value, str),
        "BOOLEAN": isinstance(value, bool),
        "LIST": isinstance(value, list),
        "STRUCT": isinstance(value, Mapping),
    }.get(kind, value is not None)


def _typed(name: str, text: str, kind: str) -> Any:
    """Return a parameter's value as its type has it."""
    if kind == "STRING":
        return text
    try:
        value = json.loads(text.lower() if kind == "BOOLEAN" else text)
    except (ValueError, RecursionError):
        value = None
    if not fits(value, kind):
        raise PipelineError(f"--parameter: {name}: takes {TAKES.get(kind, kind)}; got {quoted(text)}.")
    return int(value) if kind == "NUMBER_INTEGER" else value
