"""The paths of Cloud Storage's JSON API that the local service answers, and those of features that it lacks."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import storage_api, storage_upload
from .local import Local
from .rest import Request
from .server import Route, route

_BUCKET = "/storage/v1/b/{bucket}"
_OBJECT = "/storage/v1/b/{bucket}/o/{object*}"
_UPLOADS = ("/upload/storage/v1/b/{bucket}/o", "/resumable/upload/storage/v1/b/{bucket}/o")  # of the Python client, of gcloud
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_MISSING = {  # features of a bucket, by the word after its name in a path
    "acl": "Access control lists",
    "anywhereCaches": "Anywhere Cache",
    "defaultObjectAcl": "Access control lists",
    "folders": "Folders of hierarchical namespaces",
    "iam": "IAM policies",
    "lockRetentionPolicy": "Bucket Lock",
    "managedFolders": "Managed folders",
    "notificationConfigs": "Pub/Sub notifications",
    "operations": "Long-running operations of buckets",
    "relocate": "Bucket relocation",
    "restore": "Soft delete",
}
_MISSING_OF_OBJECTS = (
    ("GET", "acl", "Access control lists"),
    ("POST", "acl", "Access control lists"),
    ("GET", "iam", "IAM policies"),
    ("PUT", "iam", "IAM policies"),
    ("POST", "moveTo/o/{target*}", "Moving objects (copy, then delete)"),
    ("POST", "restore", "Soft delete"),
)


def table(local: Local) -> list[Route]:
    """Return the routes of Cloud Storage; if two match, the first one answers."""
    return [*_missing_of_objects(local), *_objects(local), *_buckets(local), *_missing(local)]


def _buckets(local: Local) -> list[Route]:
    return [
        route("GET", "/storage/v1/b", partial(storage_api.list_buckets, local)),
        route("POST", "/storage/v1/b", partial(storage_api.create_bucket, local)),
        route("GET", _BUCKET, partial(storage_api.get_bucket, local)),
        route("PATCH", _BUCKET, partial(storage_api.patch_bucket, local)),
        route("DELETE", _BUCKET, partial(storage_api.delete_bucket, local)),
        route("GET", f"{_BUCKET}/storageLayout", partial(storage_api.storage_layout, local)),
        route("GET", f"{_BUCKET}/managedFolders", partial(storage_api.managed_folders, local)),
    ]


def _objects(local: Local) -> list[Route]:
    found = [
        route("GET", f"{_BUCKET}/o", partial(storage_api.list_objects, local)),
        route("POST", f"{_OBJECT}/compose", partial(storage_upload.compose, local)),
        *_content_routes(local),
    ]
    for verb in ("copyTo", "rewriteTo"):
        path = f"{_OBJECT}/{verb}/b/{{target_bucket}}/o/{{target*}}"
        found.append(route("POST", path, partial(storage_upload.copy_object, local, verb=verb)))
    for path in _UPLOADS:
        found += [
            route("POST", path, partial(storage_upload.upload, local)),
            route("PUT", path, partial(storage_upload.resume, local)),
            route("DELETE", path, partial(storage_upload.cancel_upload, local)),
        ]
    return found


def _content_routes(local: Local) -> list[Route]:
    """Return the routes to one object; clients write slashes in its name as %2F."""
    handlers: list[tuple[str, str, Any]] = [
        ("GET", _OBJECT, storage_api.get_object),
        ("GET", f"/download{_OBJECT}", storage_api.get_object),
        ("PATCH", _OBJECT, storage_api.patch_object),
        ("PUT", _OBJECT, storage_api.update_object),
        ("DELETE", _OBJECT, storage_api.delete_object),
    ]
    return [route(method, path, partial(handler, local)) for method, path, handler in handlers]


def _missing_of_objects(local: Local) -> list[Route]:
    """Return the routes below an object; they must come before the object's own, which would take the rest for its name."""
    return [
        route(method, f"{_OBJECT}/{word}", partial(storage_api.unsupported, local, feature=feature))
        for method, word, feature in _MISSING_OF_OBJECTS
    ]


def _missing(local: Local) -> list[Route]:
    found = []
    for method in _METHODS:
        for path in (f"{_BUCKET}/{{word}}", f"{_BUCKET}/{{word}}/{{rest*}}"):
            found.append(route(method, path, partial(_of_a_bucket, local)))
        for path, feature in (("/batch/storage/v1", "Batch requests"), ("/storage/v1/projects/{rest*}", "HMAC keys and service accounts")):
            found.append(route(method, path, partial(storage_api.unsupported, local, feature=feature)))
    return found


def _of_a_bucket(local: Local, request: Request, bucket: str, word: str, rest: str = "") -> Any:
    raise storage_api.not_imitated(_MISSING.get(word, f"{request.method} of {request.path[:100]}"))
