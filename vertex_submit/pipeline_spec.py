"""A compiled pipeline, as KFP writes it: read from its file, and its parameters from flags, checked before anything is sent."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vertex_local.errors import UserError, quoted

_TAKES = {
    "STRING": "text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "LIST": 'a list in JSON, such as \'["a", "b"]\'',
    "STRUCT": "an object in JSON, such as '{\"a\": 1}'",
}
_COMPILE = "compile one with `python -m pipelines.kfp.compile --help`, or by kfp's own compiler"


class PipelineError(UserError):
    """A file or parameters that no pipeline job can be made of, and the remedy."""


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
        return self.spec["root"].get("inputDefinitions", {}).get("parameters", {})

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
            found[name] = _typed(name, text, self.parameters[name].get("parameterType", "STRING"))
        for name, about in self.parameters.items():
            if name in found or "defaultValue" in about or about.get("isOptional"):
                continue
            if name not in fallback:
                kind = _TAKES.get(about.get("parameterType"), "a value")
                raise PipelineError(f"--parameter: {name} is missing, and has no default: give --parameter {name}=…, {kind}.")
            found[name] = fallback[name]
        return found

    def with_caching(self, enabled: bool) -> dict[str, Any]:
        """Return the spec with every task's caching switched on or off, whatever it was compiled with."""
        spec = json.loads(json.dumps(self.spec))
        for component in (spec["root"], *spec.get("components", {}).values()):
            for task in component.get("dag", {}).get("tasks", {}).values():
                task["cachingOptions"] = {"enableCache": True} if enabled else {}
        return spec


def read(path: str) -> Pipeline:
    """Read a compiled pipeline, YAML or JSON; of a PipelineJob its `pipelineSpec`.

    Raises:
        PipelineError: it cannot be read, or is no compiled pipeline.
    """
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
        raise PipelineError(f"{path}: is a job's file; send it by scripts/submit_job or scripts/submit_tuning.")
    for part in ("pipelineInfo", "root", "deploymentSpec"):
        if not isinstance(spec, dict) or not isinstance(spec.get(part), dict):
            raise PipelineError(f"{path}: is no compiled pipeline, it has no {part}; {_COMPILE}.")
    if not str(spec.get("schemaVersion", "")).startswith("2."):
        raise PipelineError(f"{path}: schemaVersion: takes 2.…; got {quoted(spec.get('schemaVersion'))}: compile it by kfp 2.")
    if not isinstance(spec["pipelineInfo"].get("name"), str):
        raise PipelineError(f"{path}: pipelineInfo.name: is missing; {_COMPILE}.")
    return Pipeline(path, text, spec)


def _typed(name: str, text: str, kind: str) -> Any:
    """Return a parameter's value as its type has it."""
    if kind == "STRING":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    fits = {
        "NUMBER_INTEGER": is_number and float(value).is_integer(),
        "NUMBER_DOUBLE": is_number,
        "BOOLEAN": isinstance(value, bool),
        "LIST": isinstance(value, list),
        "STRUCT": isinstance(value, dict),
    }
    if not fits.get(kind, value is not None):
        raise PipelineError(f"--parameter: {name}: takes {_TAKES.get(kind, kind)}; got {quoted(text)}.")
    return int(value) if kind == "NUMBER_INTEGER" else value
