"""What is called and changed inside kfp and Google's components, which are no public interfaces of theirs.

A release that lacks a function which a pipeline's process calls, or in which it takes other arguments, is refused with a
message that says so. The process of a step is patched: it asks the local service instead of the cloud. Runs in the pipelines'
environment.
"""

from __future__ import annotations

import importlib
import inspect
import operator
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UserError

TRIED = {"kfp": "2.17.3", "google-cloud-pipeline-components": "2.22.0", "google-cloud-aiplatform": "2.7.0"}
POLL_SECONDS = 0.3  # between a launcher's requests for its job's state; 20 in the cloud

_PLACEHOLDER = "element executor_input_dict pipeline_resource_name task_resource_name pipeline_root pipeline_job_id pipeline_task_id"
# The functions of kfp.local that are called: module, name, parameters.
_RUNNER = (
    ("kfp.local.orchestrator.orchestrator_utils", "OrchestratorUtils.make_task_arguments", "task_inputs_spec io_store"),
    ("kfp.local.orchestrator.orchestrator_utils", "OrchestratorUtils.get_dag_output_parameters", "dag_outputs_spec io_store"),
    ("kfp.local.graph_utils", "topological_sort_tasks", "tasks"),
    ("kfp.local.utils", "struct_to_executor_spec", "struct"),
    ("kfp.local.io", "IOStore", "parent"),
    ("kfp.local.cache", "LocalCache", "cache_root"),
    ("kfp.local.cache", "LocalCache.compute_key", "self component_name image full_command arguments env_vars custom_cache_key"),
    ("kfp.local.cache", "LocalCache.get", "self key"),
    ("kfp.local.cache", "LocalCache.put", "self key outputs"),
    ("kfp.local.importer_handler", "run_importer", "pipeline_resource_name component_name component_spec executor_spec arguments "
     "pipeline_root unique_pipeline_id"),
    ("kfp.local.executor_input_utils", "construct_executor_input", "component_spec arguments task_root block_input_artifact"),
    ("kfp.local.executor_input_utils", "executor_input_to_dict", "executor_input component_spec"),
    ("kfp.local.executor_output_utils", "load_executor_output", "executor_output_path"),
    ("kfp.local.executor_output_utils", "get_outputs_from_executor_output", "executor_output executor_input component_spec"),
    ("kfp.local.executor_output_utils", "pb2_value_to_python", "value"),
    ("kfp.local.placeholder_utils", "get_provided_inputs", "executor_input_dict"),
    ("kfp.local.placeholder_utils", "flatten_list", "l"),
    ("kfp.local.placeholder_utils", "resolve_struct_placeholders", "placeholder provided_inputs"),
    ("kfp.local.placeholder_utils", "resolve_individual_placeholder", _PLACEHOLDER),
)  # fmt: skip
_LAUNCHERS = "google_cloud_pipeline_components.container.v1"
_POLLERS = (  # modules with _POLLING_INTERVAL_IN_SECONDS
    f"{_LAUNCHERS}.gcp_launcher.job_remote_runner", f"{_LAUNCHERS}.gcp_launcher.lro_remote_runner",
    "google_cloud_pipeline_components.container.preview.gcp_launcher.job_remote_runner",
)  # fmt: skip
_API = re.compile(r"https://(?:[a-z0-9-]+-)?aiplatform\.googleapis\.com(?=/|$)")


class PatchError(UserError):
    """The installed release of kfp or of Google's components is another one inside."""


def check_runner() -> None:
    """Raise a PatchError if a function of kfp.local that is called differs from the version in TRIED."""
    for module, name, parameters in _RUNNER:
        try:
            found = operator.attrgetter(name)(importlib.import_module(module))
        except (ImportError, AttributeError):
            raise _unfit("kfp", f"{module}.{name} is not there") from None
        wanted, got = parameters.split(), [*inspect.signature(found).parameters]
        if got[: len(wanted)] != wanted:
            raise _unfit("kfp", f"{module}.{name} takes {', '.join(got) or 'nothing'}, not {', '.join(wanted)}")


def _unfit(package: str, what: str) -> PatchError:
    from importlib import metadata

    remedy = f"pipelines run here with {package} {TRIED[package]}: run scripts/setup_kfp"
    return PatchError(f"{package} {metadata.version(package)}: {what}; {remedy}.")


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
