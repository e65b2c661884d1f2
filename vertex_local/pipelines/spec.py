"""A compiled pipeline: reads its file, checks its parameters, and refuses what cannot run here before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, quoted

PIPELINE_ID = re.compile("[a-z][-a-z0-9]{0,127}")
_NAME = re.compile("[a-z0-9][a-z0-9-]{0,127}")  # of a pipeline, as kfp writes it
_COMPONENTS = "google_cloud_pipeline_components.container."
# The launchers of Google's components whose requests the local service answers.
LAUNCHERS = {
    f"{_COMPONENTS}{name}"
    for name in (
        "v1.custom_job.launcher", "preview.custom_job.launcher", "v1.hyperparameter_tuning_job.launcher", "v1.model.upload_model.launcher",
        "v1.model.delete_model.launcher", "v1.model.get_model.launcher", "_implementation.model.get_model.get_model",
        "v1.endpoint.create_endpoint.launcher", "v1.endpoint.deploy_model.launcher", "v1.endpoint.undeploy_model.launcher",
        "v1.endpoint.delete_endpoint.launcher", "v1.batch_prediction_job.launcher",
    )
}  # fmt: skip
_KINDS = {
    "NUMBER_INTEGER": "a whole number", "NUMBER_DOUBLE": "a number", "STRING": "text", "BOOLEAN": "true or false",
    "LIST": "a list in JSON", "STRUCT": "an object in JSON", "TASK_FINAL_STATUS": "a status",
}  # fmt: skip
_BOOLEANS = {"true": True, "false": False}


class PipelineError(UserError):
    """A pipeline cannot run as asked: `field` is the API's field at fault; `unsupported` means that it would run in the cloud."""

    def __init__(self, message: str, field: str = "pipelineSpec", unsupported: bool = False):
        super().__init__(message)
        self.field, self.unsupported = field, unsupported


def read(path: str) -> dict[str, Any]:
    """Return the pipeline spec in a compiled file, YAML or JSON, or in the `pipelineSpec` of a PipelineJob.

    Raises:
        UserError: there is no such file, or it does not contain a pipeline that can run here.
    """
    import yaml

    if path.endswith(".py"):
        raise UserError(f"{path} is a program; compile it first (kfp dsl compile --py {path} --output pipeline.yaml) and give the YAML.")
    try:
        documents = list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())[:200]}.") from None
    document = documents[0] if documents else None
    if isinstance(document, Mapping) and "pipelineSpec" in document:
        document = document["pipelineSpec"]
    if not isinstance(document, Mapping) or "root" not in document:
        raise UserError(f"{path}: is not a compiled pipeline with `root`, `components` and `deploymentSpec`; compile it with kfp 2.")
    try:
        check(document)
    except PipelineError as error:
        raise UserError(f"{path}: {error}") from None
    return dict(document)


# ------------------------------------------------------------------ parameters


def inputs(spec: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the pipeline's parameters by name, as the spec describes them."""
    return dict(spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {}))


def typed(spec: Mapping[str, Any], texts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Convert values given as text, such as `--parameter epochs=3`, to the types of the pipeline's parameters."""
    known, values = inputs(spec), {}
    for name, text in texts:
        if name in values:
            raise UserError(f"--parameter {name}: is given twice.")
        values[name] = _value(name, text, _type_of(known.get(name, {})))
    return values


def _value(name: str, text: str, kind: str) -> Any:
    if kind == "STRING":
        return text
    try:
        value = _BOOLEANS[text.lower()] if kind == "BOOLEAN" else json.loads(text)
    except (ValueError, KeyError):
        value = None
    if value is None or not _fits(value, kind):
        raise UserError(f"--parameter {name}: takes {_KINDS.get(kind, kind)}; got {quoted(text)}.")
    return value


def check_parameters(spec: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise a PipelineError for a value of an unknown parameter or of the wrong type, and for a missing value."""
    known, field = inputs(spec), "runtimeConfig.parameterValues"
    for name, value in values.items():
        if name not in known:
            raise PipelineError(f"parameter {quoted(name)}: the pipeline has none of that name; it has {_names(known)}.", field)
        kind = _type_of(known[name])
        if value is not None and not _fits(value, kind):
            raise PipelineError(f"parameter {name}: takes {_KINDS.get(kind, kind)}; got {quoted(value)}.", f"{field}.{name}")
    missing = [name for name, one in known.items() if name not in values and "defaultValue" not in one and not one.get("isOptional")]
    if missing:
        raise PipelineError(f"parameter {missing[0]}: has no default and got no value (missing: {', '.join(missing)}).", field)


def _type_of(description: Mapping[str, Any]) -> str:
    return description.get("parameterType", "STRING")


def _fits(value: Any, kind: str) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {
        "NUMBER_INTEGER": number and float(value).is_integer(), "NUMBER_DOUBLE": number, "STRING": isinstance(value, str),
        "BOOLEAN": isinstance(value, bool), "LIST": isinstance(value, list), "STRUCT": isinstance(value, Mapping),
    }.get(kind, True) if not number or abs(value) != float("inf") else False  # fmt: skip


def _names(known: Mapping[str, Any]) -> str:
    return ", ".join(sorted(known)) or "none at all"


# ------------------------------------------------------------------ what can run here


def check(spec: Mapping[str, Any]) -> None:
    """Raise a PipelineError for a spec that is not valid, or that has a step which is not imitated here."""
    version = str(spec.get("schemaVersion", ""))
    if not version.startswith("2."):
        text = f"schemaVersion {quoted(version)}: takes 2.x, as kfp 2 compiles; compile it again."
        raise PipelineError(text, "pipelineSpec.schemaVersion")
    for field in ("root", "components", "deploymentSpec", "pipelineInfo"):
        if not isinstance(spec.get(field), Mapping):
            raise PipelineError(f"{field} is required and must be an object; compile the pipeline with kfp 2.", f"pipelineSpec.{field}")
    title = spec["pipelineInfo"].get("name", "")
    if not _NAME.fullmatch(title):
        text = f"pipelineInfo.name {quoted(title)}: has up to 128 small letters, digits and '-' and does not begin with '-'."
        raise PipelineError(text, "pipelineSpec.pipelineInfo.name")
    executors = spec["deploymentSpec"].get("executors", {})
    for scope, name, task in tasks(spec):
        component = spec["components"].get(task.get("componentRef", {}).get("name"))
        if component is None:
            raise PipelineError(f"task {name} of {scope}: its component {quoted(task.get('componentRef'))} is not in the spec.")
        if "executorLabel" in component:
            _check_executor(name, executors.get(component["executorLabel"]))
        elif "dag" not in component:
            raise PipelineError(f"task {name} of {scope}: its component has neither an executor nor a dag.")


def tasks(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (component, task's name, task) for every task of the pipeline and of nested pipelines."""
    scopes = {"root": spec["root"], **spec.get("components", {})}
    for scope, component in scopes.items():
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            yield scope, name, task


def _check_executor(name: str, executor: Any) -> None:
    if not isinstance(executor, Mapping) or not {"container", "importer"} & set(executor):
        kinds = ", ".join(executor) if isinstance(executor, Mapping) else "none"
        raise PipelineError(f"task {name}: runs containers and importers here; its executor is of the kind {kinds}.", unsupported=True)
    module = launcher(executor.get("container", {}))
    if module and module not in LAUNCHERS:
        what = module.removeprefix(_COMPONENTS).removesuffix(".launcher")
        raise PipelineError(f"task {name}: Google's component {what} asks for a service that is not imitated here.", unsupported=True)
    command = [*executor.get("container", {}).get("command", []), *executor.get("container", {}).get("args", [])]
    if "container" in executor and (not command or command[:3] == ["python3", "-m", "kfp.dsl.executor_main"]):
        what = "is a containerized Python component" if command else "gives no command"
        image = quoted(executor["container"].get("image"))
        raise PipelineError(f"task {name}: {what}, and the image {image} is not started here; give command and args.", unsupported=True)


def launcher(container: Mapping[str, Any]) -> str | None:
    """Return the module that a step of Google's components starts; None for another step."""
    words = list(container.get("command", []))
    at = words.index("-m") + 1 if "-m" in words else len(words)
    return words[at] if at < len(words) and words[at].startswith(_COMPONENTS) else None


def uses_google(spec: Mapping[str, Any]) -> bool:
    """Tell whether a step starts one of Google's components, or has code that imports Vertex AI's SDK."""
    return "google_cloud_pipeline_components" in (text := json.dumps(spec["deploymentSpec"])) or "aiplatform" in text
