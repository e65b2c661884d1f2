"""All patches of kfp and of Google's components: `for_runner` for the process of a pipeline, `for_step` for that of a step.

KFP's local runner orders and starts the steps. It is patched where it does less than the service, and only in this file.
Before that, every patched function is checked: a release that lacks it, or in which it takes other arguments, is refused with
a message that says so. Runs in the pipelines' environment.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..job import buckets

if TYPE_CHECKING:
    from .run import PipelineRun

TRIED = {"kfp": "2.17.3", "google-cloud-pipeline-components": "2.22.0", "google-cloud-aiplatform": "2.7.0"}
POLL_SECONDS = 0.3  # between a launcher's requests for its job's state; 20 in the cloud

_DAG = "kfp.local.orchestrator.enhanced_dag_orchestrator"
_SCOPE = "task_name task_spec pipeline_resource_name components executors io_store pipeline_root runner unique_pipeline_id fail_stack"
_PLACEHOLDER = "element executor_input_dict pipeline_resource_name task_resource_name pipeline_root pipeline_job_id pipeline_task_id"
# The functions of kfp.local that are patched or called: module, name, parameters.
_RUNNER = (
    (_DAG, "run_enhanced_dag", "pipeline_resource_name dag_component_spec executors components dag_arguments pipeline_root runner "
     "unique_pipeline_id fail_stack parent_io_store"),
    (_DAG, "execute_task", _SCOPE),
    (_DAG, "_run_parallel_for_task", f"{_SCOPE} parallel_executor"),
    ("kfp.local.orchestrator.task_spec_utils", "build_nested_dag_arguments", "task_name task_spec component_spec io_store"),
    ("kfp.local.orchestrator.orchestrator_utils", "OrchestratorUtils.make_task_arguments", "task_inputs_spec io_store"),
    ("kfp.local.orchestrator.orchestrator_utils", "OrchestratorUtils.get_dag_output_artifacts", "dag_outputs_spec io_store"),
    ("kfp.local.orchestrator.task_executor", "execute_single_task", _SCOPE),
    ("kfp.local.io", "IOStore", "parent"),
    ("kfp.local.cache", "get_local_cache", ""),
    ("kfp.local.cache", "LocalCache._serialize_artifact", "artifact"),
    ("kfp.local.cache", "LocalCache._deserialize_artifact", "data"),
    ("kfp.local.importer_handler", "run_importer", "pipeline_resource_name component_name component_spec executor_spec arguments "
     "pipeline_root unique_pipeline_id"),
    ("kfp.local.executor_input_utils", "get_local_task_resource_name", "component_name"),
    ("kfp.local.executor_input_utils", "construct_local_task_root", "pipeline_root pipeline_resource_name task_resource_name"),
    ("kfp.local.executor_input_utils", "construct_executor_input", "component_spec arguments task_root block_input_artifact"),
    ("kfp.local.executor_input_utils", "executor_input_to_dict", "executor_input component_spec"),
    ("kfp.local.executor_output_utils", "add_type_to_executor_output", "executor_input executor_output"),
    ("kfp.local.executor_output_utils", "pb2_value_to_python", "value"),
    ("kfp.local.executor_output_utils", "runtime_artifact_to_dsl_artifact", "runtime_artifact"),
    ("kfp.local.placeholder_utils", "resolve_individual_placeholder", _PLACEHOLDER),
    ("kfp.local.placeholder_utils", "recursively_resolve_json_dict_placeholders", _PLACEHOLDER.replace("element", "obj")),
    ("kfp.local.placeholder_utils", "resolve_self_references_in_executor_input", _PLACEHOLDER.replace("element ", "")),
    ("kfp.local.subprocess_task_handler", "SubprocessTaskHandler", "image full_command pipeline_root runner env_vars"),
    ("kfp.local.subprocess_task_handler", "SubprocessTaskHandler.run", "self"),
    ("kfp.local.subprocess_task_handler", "SubprocessTaskHandler.validate_image", "self image"),
    ("kfp.local.subprocess_task_handler", "SubprocessTaskHandler.validate_not_container_component", "self full_command"),
    ("kfp.local.subprocess_task_handler", "SubprocessTaskHandler.validate_not_containerized_python_component", "self full_command"),
)  # fmt: skip
_LAUNCHERS = "google_cloud_pipeline_components.container.v1"
_POLLERS = (  # modules with _POLLING_INTERVAL_IN_SECONDS
    f"{_LAUNCHERS}.gcp_launcher.job_remote_runner", f"{_LAUNCHERS}.gcp_launcher.lro_remote_runner",
    "google_cloud_pipeline_components.container.preview.gcp_launcher.job_remote_runner",
)  # fmt: skip
_API = re.compile(r"https://(?:[a-z0-9-]+-)?aiplatform\.googleapis\.com(?=/|$)")


class PatchError(UserError):
    """The installed release of kfp or of Google's components cannot be patched."""


def check_runner() -> None:
    """Raise a PatchError if a patched function of kfp's local runner differs from the version in TRIED."""
    for module, name, wanted in _RUNNER:
        _check("kfp", module, name, wanted.split())


def _check(package: str, module: str, name: str, wanted: list[str]) -> Any:
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        raise _unfit(package, f"{module}.{name} is not there") from None
    if wanted or callable(found):
        got = [each for each in inspect.signature(found).parameters if each != "self" or "self" in wanted]
        if got[: len(wanted)] != wanted or (not wanted and got):
            raise _unfit(package, f"{module}.{name} takes {', '.join(got) or 'nothing'}, not {', '.join(wanted) or 'nothing'}")
    return found


def _unfit(package: str, what: str) -> PatchError:
    from importlib import metadata

    remedy = f"pipelines run here with {package} {TRIED[package]}: run scripts/setup_kfp"
    return PatchError(f"{package} {metadata.version(package)}: {what}; {remedy}.")


# ------------------------------------------------------------------ the process that runs a pipeline


def for_runner(run: PipelineRun) -> None:
    """Patch kfp's local runner so that it runs the steps of `run`, one pipeline in this process."""
    check_runner()
    from kfp.local import cache, executor_input_utils, executor_output_utils, importer_handler, io, placeholder_utils
    from kfp.local.orchestrator import enhanced_dag_orchestrator, orchestrator_utils, task_executor, task_spec_utils

    dag, utils = enhanced_dag_orchestrator, orchestrator_utils.OrchestratorUtils
    # kfp orders the tasks; PipelineRun decides whether a task is triggered, and keeps its parent and its end.
    dag.execute_task = _around(dag.execute_task, run.execute_task)
    dag._run_parallel_for_task = _around(dag._run_parallel_for_task, run.run_loop)
    io.IOStore = _scopes(io.IOStore, run)
    task_executor.time = types.SimpleNamespace(sleep=run.sleep)  # a cancellation ends this sleep
    cache.get_local_cache = lambda: run.cache
    cache.LocalCache._serialize_artifact = staticmethod(_cached(cache.LocalCache._serialize_artifact))
    cache.LocalCache._deserialize_artifact = staticmethod(_from_cache(cache.LocalCache._deserialize_artifact))
    # A nested pipeline gets the arguments of its task, including artefacts from other tasks.
    task_spec_utils.build_nested_dag_arguments = _nested_arguments(utils)
    utils.get_dag_output_artifacts = classmethod(_output_artifacts)
    utils.make_task_arguments = classmethod(_around(utils.make_task_arguments.__func__, run.arguments))
    # The service's layout of outputs: below the pipeline root in a bucket, a folder for each task.
    executor_input_utils.get_local_task_resource_name = lambda component_name: run.current.name
    executor_input_utils.construct_local_task_root = lambda **names: run.new_root()
    executor_input_utils.construct_executor_input = _around(executor_input_utils.construct_executor_input, run.executor_input)
    # JSON has one kind of number; the service writes whole ones without a fraction, also inside lists and objects.
    executor_input_utils.executor_input_to_dict = _with_whole_numbers(executor_input_utils.executor_input_to_dict)
    executor_output_utils.pb2_value_to_python = _value(executor_output_utils.pb2_value_to_python)
    # Artefacts of container components exist, though no program reports them; Google's artefact types are kept.
    executor_output_utils.add_type_to_executor_output = _around(executor_output_utils.add_type_to_executor_output, run.executor_output)
    executor_output_utils.runtime_artifact_to_dsl_artifact = _typed(executor_output_utils.runtime_artifact_to_dsl_artifact)
    importer_handler.run_importer = _typed_import(importer_handler.run_importer)
    placeholder_utils.resolve_individual_placeholder = _around(placeholder_utils.resolve_individual_placeholder, run.resolve)
    # Values inside lists and objects, such as the flags of a worker pool, may refer to other arguments.
    placeholder_utils.resolve_self_references_in_executor_input = _at_any_depth(placeholder_utils)
    _take_any_container(run)


def _take_any_container(run: PipelineRun) -> None:
    """Let steps of any kind start, by `run.step`."""
    from kfp.local import status, subprocess_task_handler

    handler = subprocess_task_handler.SubprocessTaskHandler
    for name in ("image", "not_container_component", "not_containerized_python_component"):
        setattr(handler, f"validate_{name}", lambda self, value: None)

    def start(self: Any) -> Any:
        return status.Status.FAILURE if run.step(self.full_command, self.env_vars) else status.Status.SUCCESS

    handler.run = start


def _around(original: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `instead` with the original function and all arguments by name."""
    signature = inspect.signature(original)

    def call(*args: Any, **names: Any) -> Any:
        return instead(original, **signature.bind(*args, **names).arguments)

    return call


def _scopes(base: type, run: PipelineRun) -> type:
    """Return kfp's class of a dag's values, extended by the dag's task and by its tasks that were not triggered."""

    class Scope(base):  # type: ignore[misc, valid-type]
        def __init__(self, parent: Any = None):
            super().__init__(parent=parent)
            self.owner = run.current
            self.untriggered: set[str] = set()
            self.reasons: dict[str, str] = {}

    return Scope


def _nested_arguments(utils: Any) -> Callable[..., dict[str, Any]]:
    def build(task_name: str, task_spec: Any, component_spec: Any, io_store: Any) -> dict[str, Any]:
        found = utils.make_task_arguments(task_spec.inputs, io_store)
        _, is_iteration, number = task_name.rpartition("-iteration-")
        for name in component_spec.input_definitions.artifacts:
            if is_iteration and name not in found:  # the item of a loop over artefacts; kfp keeps it under this name
                found[name] = io_store.get_parent_input(f"{name}-iteration-{number}")
        return found

    return build


def _output_artifacts(cls: Any, dag_outputs_spec: Any, io_store: Any) -> dict[str, Any]:
    """Return a dag's output artefacts; `dsl.OneOf` compiles to a selector for each branch, and only one branch has run."""
    outputs = {}
    for key, selectors in dag_outputs_spec.artifacts.items():
        found = []
        for selector in selectors.artifact_selectors:
            try:
                found.append(io_store.get_task_output(selector.producer_subtask, selector.output_artifact_key))
            except ValueError:  # of a branch that was not triggered
                continue
        if len(found) != 1:
            raise ValueError(f"the output {key} is that of one branch of several; {len(found)} of them gave it")
        outputs[key] = found[0]
    return outputs


def _at_any_depth(module: types.ModuleType) -> Callable[..., dict[str, Any]]:
    original = module.resolve_self_references_in_executor_input

    def resolve_all(executor_input_dict: dict[str, Any], **names: Any) -> dict[str, Any]:
        found = original(executor_input_dict=executor_input_dict, **names)
        values = found.get("inputs", {}).get("parameterValues", {})
        for name, value in values.items():
            if isinstance(value, (list, dict)):  # escapes are resolved later, when the value is put into a text
                held = json.loads(json.dumps(value).replace(_ESCAPE, _HELD))
                resolved = module.recursively_resolve_json_dict_placeholders(held, executor_input_dict=found, **names)
                values[name] = json.loads(json.dumps(resolved).replace(_HELD, _ESCAPE))
        return found

    return resolve_all


def _with_whole_numbers(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def call(executor_input: Any, component_spec: Any) -> dict[str, Any]:
        found = original(executor_input=executor_input, component_spec=component_spec)
        values = found.get("inputs", {}).get("parameterValues", {})
        values.update({name: whole(value) for name, value in values.items()})
        return found

    return call


def _value(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that reads a protobuf value; None if it is not set, as for a parameter without a default."""

    def read(value: Any) -> Any:
        return whole(original(value)) if value.WhichOneof("kind") else None

    return read


def whole(value: Any) -> Any:
    """Return a JSON value with whole numbers as int, at any depth."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    if isinstance(value, list):
        return [whole(each) for each in value]
    return {key: whole(each) for key, each in value.items()} if isinstance(value, dict) else value


def _typed(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(runtime_artifact: Any) -> Any:
        artifact = _with_type(original(runtime_artifact), runtime_artifact.type)
        artifact.metadata = whole(dict(artifact.metadata))
        return artifact

    return read


def _typed_import(original: Callable[..., Any]) -> Callable[..., Any]:
    def run_importer(executor_spec: Any, **names: Any) -> Any:
        outputs, state = original(executor_spec=executor_spec, **names)
        for artifact in outputs.values():
            _with_type(artifact, executor_spec.importer.type_schema)
        return outputs, state

    return run_importer


def _with_type(artifact: Any, schema: Any) -> Any:
    """Give an artefact the type that a message names, of which kfp keeps its own types only, and return it."""
    artifact.schema_title = schema.schema_title or artifact.schema_title
    artifact.schema_version = schema.schema_version or artifact.schema_version
    return artifact


def _cached(original: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    return lambda artifact: {**original(artifact), "schema_title": artifact.schema_title, "schema_version": artifact.schema_version}


def _from_cache(original: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda data: _with_type(original(data), types.SimpleNamespace(**data))


# ------------------------------------------------------------------ the process of one step


def for_step(service: Mapping[str, str]) -> None:
    """Send this process's requests to the cloud to the local service instead, and map artefacts' paths to the bucket root.

    Args:
        service: url, token, project and bucket_root.
    """
    import google.auth
    import google.oauth2.credentials
    import requests
    import wrapt
    from kfp.dsl.types import artifact_types

    if not hasattr(artifact_types, "_GCS_LOCAL_MOUNT_PREFIX"):
        raise _unfit("kfp", "artifacts' paths no longer begin with _GCS_LOCAL_MOUNT_PREFIX")
    artifact_types._GCS_LOCAL_MOUNT_PREFIX = service["bucket_root"].rstrip("/") + "/"

    def default(*args: Any, **names: Any) -> tuple[Any, str]:
        return google.oauth2.credentials.Credentials(service["token"] or "none"), service["project"]

    google.auth.default = default
    request = requests.Session.request

    def redirected(self: Any, method: str, url: Any, *args: Any, **names: Any) -> Any:
        return request(self, method, _API.sub(service["url"], str(url)), *args, **names)

    requests.Session.request = redirected
    for name in ("google.cloud.aiplatform_v1", "google.cloud.aiplatform_v1beta1"):
        wrapt.register_post_import_hook(_over_rest, name)


def for_launcher() -> None:
    """Let the launchers of Google's components poll more often."""
    for name in _POLLERS:
        module = importlib.import_module(name)
        if not hasattr(module, "_POLLING_INTERVAL_IN_SECONDS"):
            raise _unfit("google-cloud-pipeline-components", f"{name} has no _POLLING_INTERVAL_IN_SECONDS")
        module._POLLING_INTERVAL_IN_SECONDS = POLL_SECONDS


def _over_rest(module: types.ModuleType) -> None:
    """Let the API's clients use REST by default, because REST requests are redirected."""
    for name in dir(module):
        client = getattr(module, name, None)
        if name.endswith("ServiceClient") and inspect.isclass(client):
            client.__init__ = _with_transport(client.__init__)


def _with_transport(original: Callable[..., None]) -> Callable[..., None]:
    def create(self: Any, *, credentials: Any = None, transport: Any = None, **names: Any) -> None:
        original(self, credentials=credentials, transport="rest" if transport in (None, "grpc") else transport, **names)

    return create


# ------------------------------------------------------------------ placeholders


_ESCAPE, _HELD = "{{$.json_escape[", "{[$.json_escape["
_ESCAPED = re.compile(r"\{\{\$\.(?:inputs\.parameters\['?'?([^'\]]+)'?'?\]\.)?json_escape\[(\d)\]\}\}")
_PATHS = re.compile(r"\{\{\$\.(inputs|outputs)\.artifacts\['?'?([^'\]]+)'?'?\]\.path\}\}")


def _parameters(executor_input: Mapping[str, Any]) -> dict[str, Any]:
    return executor_input.get("inputs", {}).get("parameterValues", {})


def _without_escapes(executor_input: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input without parameters that contain the escaped input themselves, such as the pools of a custom job."""
    kept = {name: value for name, value in _parameters(executor_input).items() if not _ESCAPED.search(json.dumps(value))}
    return {**executor_input, "inputs": {**executor_input.get("inputs", {}), "parameterValues": kept}}


def resolve(element: str, executor_input: Mapping[str, Any], values: Mapping[str, str], bucket_root: str) -> str:
    """Fill in the placeholders of `element` that kfp's local runner does not know.

    Args:
        values: values of placeholders such as `{{$.pipeline_google_cloud_location}}`, by name.
        bucket_root: where buckets lie, for artefacts' paths.
    """
    for name, value in values.items():
        element = element.replace("{{$." + name + "}}", value)

    def escaped(match: re.Match[str]) -> str:
        value = _without_escapes(executor_input) if match[1] is None else _parameters(executor_input).get(match[1])
        text = value if isinstance(value, str) else json.dumps(value)
        for _ in range(int(match[2])):
            text = json.dumps(text)[1:-1]
        return text

    def path(match: re.Match[str]) -> str:
        found = executor_input.get(match[1], {}).get("artifacts", {}).get(match[2], {}).get("artifacts") or [{}]
        uri = found[0].get("uri", "")
        return buckets.to_path(uri, bucket_root) if uri.startswith("gs://") else uri

    return _PATHS.sub(path, _ESCAPED.sub(escaped, element))
