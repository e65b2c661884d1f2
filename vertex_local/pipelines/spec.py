"""Compiled pipelines on this machine: which values their parameters take, and what cannot run here, named before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import quoted
from ..job.pipeline_spec import TAKES, PipelineError, check_form, fits, inputs, missing, tasks, type_of

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


def check_parameters(spec: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise a PipelineError for a value of an unknown parameter or of the wrong type, and for a missing value."""
    known, field = inputs(spec), "runtimeConfig.parameterValues"
    for name, value in values.items():
        if name not in known:
            raise PipelineError(f"parameter {quoted(name)}: the pipeline has none of that name; it has {_names(known)}.", field)
        kind = type_of(known[name])
        if value is not None and not fits(value, kind):
            raise PipelineError(f"parameter {name}: takes {TAKES.get(kind, kind)}; got {quoted(value)}.", f"{field}.{name}")
    if lost := missing(known, values):
        raise PipelineError(f"parameter {lost[0]}: has no default and got no value (missing: {', '.join(lost)}); give one.", field)


def _names(known: Mapping[str, Any]) -> str:
    return ", ".join(sorted(known)) or "none at all"


# ------------------------------------------------------------------ what can run here


def check(spec: Mapping[str, Any]) -> None:
    """Raise a PipelineError for a spec that no service takes, and for one with a step that is not imitated here."""
    check_form(spec)
    title = spec["pipelineInfo"]["name"]
    if not _NAME.fullmatch(title):
        text = f"pipelineInfo.name {quoted(title)}: has up to 128 small letters, digits and '-' and does not begin with '-'."
        raise PipelineError(text, "pipelineSpec.pipelineInfo.name")
    executors = spec["deploymentSpec"].get("executors", {})
    for scope, name, task in tasks(spec):
        component = spec["components"].get(task.get("componentRef", {}).get("name"))
        if component is None:
            raise PipelineError(
                f"task {name} of {scope}: its component {quoted(task.get('componentRef'))} is not in the spec; compile it again."
            )
        if "executorLabel" in component:
            _check_executor(name, executors.get(component["executorLabel"]))
        elif "dag" not in component:
            raise PipelineError(f"task {name} of {scope}: its component has neither an executor nor a dag; compile it again.")


def _check_executor(name: str, executor: Any) -> None:
    if not isinstance(executor, Mapping) or not {"container", "importer"} & set(executor):
        kinds = ", ".join(executor) if isinstance(executor, Mapping) else "none"
        raise PipelineError(
            f"task {name}: runs containers and importers here; its executor is of the kind {kinds}; leave it out.", unsupported=True
        )
    container = executor.get("container", {})
    words = [*container.get("command", []), *container.get("args", [])]
    module = launcher(words)
    if module and module not in LAUNCHERS:
        what = module.removeprefix(_COMPONENTS).removesuffix(".launcher")
        raise PipelineError(
            f"task {name}: Google's component {what} asks for a service that is not imitated here; leave it out.", unsupported=True
        )
    if "container" in executor and (not words or words[:3] == ["python3", "-m", "kfp.dsl.executor_main"]):
        what = "is a containerized Python component" if words else "gives no command"
        image = quoted(container.get("image"))
        raise PipelineError(f"task {name}: {what}, and the image {image} is not started here; give command and args.", unsupported=True)


def launcher(command: Sequence[str]) -> str | None:
    """Return the module that a command starts if it is one of Google's components; None for another command."""
    at = command.index("-m") + 1 if "-m" in command else len(command)
    return command[at] if at < len(command) and command[at].startswith(_COMPONENTS) else None


def uses_google(spec: Mapping[str, Any]) -> bool:
    """Tell whether a step starts one of Google's components, or has code that imports Vertex AI's SDK."""
    return imports_google(json.dumps(spec["deploymentSpec"]))


def imports_google(source: str) -> bool:
    """Tell whether a component's code names Google's components or Vertex AI's SDK."""
    return "google_cloud_pipeline_components" in source or "aiplatform" in source
