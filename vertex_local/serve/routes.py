"""The paths that the local service answers."""

from __future__ import annotations

from functools import partial

from . import rpc, storage_api, storage_upload
from .dataset_service import DatasetService
from .endpoint_service import EndpointService
from .job_service import JobService
from .local import Local
from .logging_api import LogReader
from .model_service import ModelService
from .operations import OperationPool, Operations
from .pipeline_service import PipelineService
from .prediction_service import PredictionService
from .rest import Answer
from .server import Route, route
from .transcoding import PREFIXES, Rest


def methods(local: Local, operations: OperationPool) -> list[rpc.Method]:
    """Return every RPC of the platform's API that is answered here."""
    services = (
        JobService(local, operations), PipelineService(local, operations), DatasetService(local, operations),
        ModelService(local, operations), EndpointService(local, operations), PredictionService(local), Operations(local, operations),
    )  # fmt: skip
    return list(rpc.methods(services))


def table(local: Local, methods: list[rpc.Method]) -> list[Route]:
    """Return every route of the service."""
    api = Rest(methods)
    found = [
        route(verb, f"/{prefix}/projects/{{rest*}}", api.handle)
        for verb in ("GET", "POST", "PATCH", "DELETE", "PUT")
        for prefix in PREFIXES
    ]
    return [*found, *_storage(local), *_others(local)]


def _storage(local: Local) -> list[Route]:
    bucket, name = "/storage/v1/b/{bucket}", "/storage/v1/b/{bucket}/o/{object*}"
    found = [
        route("GET", "/storage/v1/b", partial(storage_api.list_buckets, local)),
        route("POST", "/storage/v1/b", partial(storage_api.create_bucket, local)),
        route("GET", bucket, partial(storage_api.get_bucket, local)),
        route("GET", f"{bucket}/storageLayout", partial(storage_api.storage_layout, local)),
        route("GET", f"{bucket}/o", partial(storage_api.list_objects, local)),
        route("POST", f"{name}/compose", partial(storage_upload.compose, local)),
        route("GET", name, partial(storage_api.get_object, local)),
        route("GET", "/download" + name, partial(storage_api.get_object, local)),
        route("PATCH", name, partial(storage_api.patch_object, local)),
        route("DELETE", name, partial(storage_api.delete_object, local)),
    ]
    for verb in ("copyTo", "rewriteTo"):
        path = f"/storage/v1/b/{{bucket}}/o/{{object*}}/{verb}/b/{{target_bucket}}/o/{{target*}}"
        found.append(route("POST", path, partial(storage_upload.copy_object, local, verb=verb)))
    for prefix in ("", "/resumable"):  # gcloud's and the Python client's paths
        path = f"{prefix}/upload/storage/v1/b/{{bucket}}/o"
        found += [
            route("POST", path, partial(storage_upload.upload, local)),
            route("PUT", path, partial(storage_upload.resume, local)),
            route("DELETE", path, partial(storage_upload.cancel_upload, local)),
        ]
    return found


def _others(local: Local) -> list[Route]:
    return [
        route("POST", "/v2/entries:list", LogReader(local).entries),
        route("GET", "/", lambda request: Answer(content={"service": "vertex_local"})),
    ]
