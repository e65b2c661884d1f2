"""The paths that the local service answers."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import datasets_api, endpoints_api, job_life, jobs_api, logging_api, models_api, operations, storage_api, storage_upload
from .local import Local
from .rest import Answer
from .server import Route, route

_PARENT = "/{version}/projects/{project}/locations/{location}"


def table(local: Local) -> list[Route]:
    """Return every route of the service."""
    return [*_jobs(local), *_datasets(local), *_models(local), *_endpoints(local), *_operations(local), *_storage(local), *_others(local)]


def _api(method: str, path: str, handler: Any) -> Route:
    """Return a route of the platform's API, whose version the request itself knows."""

    def handle(request: Any, version: str, **names: str) -> Any:
        return handler(request, **names)

    method, regex, _ = route(method, _PARENT + path, handle)
    return method, regex, handle


def _kept(local: Local, kind: str) -> list[Route]:
    """Return the routes to the records of a kind and to one of them, as they are kept."""
    return [
        _api("GET", f"/{kind}", partial(jobs_api.listing, local, kind=kind)),
        _api("GET", f"/{kind}/{{id}}", partial(jobs_api.get, local, kind=kind)),
    ]


def _jobs(local: Local) -> list[Route]:
    found = []
    for kind in job_life.KINDS:
        found += [
            _api("POST", f"/{kind}", partial(jobs_api.create, local, kind=kind)),
            *_kept(local, kind),
            _api("DELETE", f"/{kind}/{{id}}", partial(jobs_api.delete, local, kind=kind)),
            _api("POST", f"/{kind}/{{id}}:cancel", partial(jobs_api.cancel, local, kind=kind)),
        ]
    return found


def _datasets(local: Local) -> list[Route]:
    return [
        _api("POST", "/datasets", partial(datasets_api.create, local)),
        *_kept(local, "datasets"),
        _api("PATCH", "/datasets/{id}", partial(datasets_api.patch, local)),
        _api("DELETE", "/datasets/{id}", partial(datasets_api.delete, local)),
        _api("POST", "/datasets/{id}:import", partial(datasets_api.import_data, local)),
        _api("POST", "/datasets/{id}:export", partial(datasets_api.export_data, local)),
    ]


def _models(local: Local) -> list[Route]:
    return [
        _api("POST", "/models:upload", partial(models_api.upload_route, local)),
        _api("GET", "/models", partial(models_api.list_models, local)),
        _api("GET", "/models/{id}", partial(models_api.get_model, local)),
        _api("PATCH", "/models/{id}", partial(models_api.patch_model, local)),
        _api("DELETE", "/models/{id}", partial(models_api.delete_model, local)),
        _api("GET", "/models/{id}:listVersions", partial(models_api.list_versions, local)),
        _api("DELETE", "/models/{id}:deleteVersion", partial(models_api.delete_version, local)),
        _api("POST", "/models/{id}:mergeVersionAliases", partial(models_api.merge_aliases, local)),
    ]


def _endpoints(local: Local) -> list[Route]:
    return [
        _api("POST", "/endpoints", partial(endpoints_api.create, local)),
        *_kept(local, "endpoints"),
        _api("PATCH", "/endpoints/{id}", partial(endpoints_api.patch, local)),
        _api("DELETE", "/endpoints/{id}", partial(endpoints_api.delete, local)),
        _api("POST", "/endpoints/{id}:deployModel", partial(endpoints_api.deploy, local)),
        _api("POST", "/endpoints/{id}:undeployModel", partial(endpoints_api.undeploy, local)),
        _api("POST", "/endpoints/{id}:predict", partial(endpoints_api.predict, local)),
    ]


def _operations(local: Local) -> list[Route]:
    def owned(handler: Any) -> Any:
        return lambda request, owner, number, **names: handler(request, **names)

    found = []
    for method, path, handler in (
        ("GET", "/operations/{id}", operations.get),
        ("POST", "/operations/{id}:wait", operations.wait),
        ("DELETE", "/operations/{id}", operations.delete),
    ):
        bound = partial(handler, local.records)
        found += [_api(method, path, bound), _api(method, f"/{{owner}}/{{number}}{path}", owned(bound))]
    return [*found, _api("GET", "/operations", partial(operations.listing, local.records))]


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
        route("POST", "/v2/entries:list", partial(logging_api.entries, local)),
        route("GET", "/", lambda request: Answer(content={"service": "vertex_local"})),
    ]
