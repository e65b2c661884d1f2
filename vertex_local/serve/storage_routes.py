"""The paths of Cloud Storage's JSON API that the local service answers, and those of features that it lacks."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from functools import partial
from typing import Any

from . import storage_api, storage_missing, storage_upload
from .local import Local
from .rest import Request
from .server import METHODS, Route, route
from .storage_files import Bucket, checked_name

_BUCKETS, _BUCKET = "/storage/v1/b", "/storage/v1/b/{bucket}"
_OBJECTS, _OBJECT = f"{_BUCKET}/o", f"{_BUCKET}/o/{{name*}}"  # clients write slashes in an object's name as %2F
_TO = "b/{target_bucket}/o/{target*}"
_UPLOADS = (f"/upload{_OBJECTS}", f"/resumable/upload{_OBJECTS}")  # of the Python client, of gcloud
_ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("GET", _BUCKET, storage_api.get_bucket),
    ("PATCH", _BUCKET, storage_api.patch_bucket),
    ("DELETE", _BUCKET, storage_api.delete_bucket),
    ("GET", f"{_BUCKET}/storageLayout", storage_api.storage_layout),
    ("GET", f"{_BUCKET}/managedFolders", storage_api.managed_folders),
    ("GET", _OBJECTS, storage_api.list_objects),
    ("POST", f"{_OBJECT}/compose", storage_upload.compose),
    ("POST", f"{_OBJECT}/copyTo/{_TO}", storage_upload.copy_object),
    ("POST", f"{_OBJECT}/rewriteTo/{_TO}", storage_upload.copy_object),
    ("GET", _OBJECT, storage_api.get_object),
    ("GET", f"/download{_OBJECT}", storage_api.get_object),
    ("PATCH", _OBJECT, storage_api.change_object),
    ("PUT", _OBJECT, storage_api.change_object),
    ("DELETE", _OBJECT, storage_api.delete_object),
    *(("POST", path, storage_upload.upload) for path in _UPLOADS),
    *(("PUT", path, storage_upload.resume) for path in _UPLOADS),
    *(("DELETE", path, storage_upload.cancel_upload) for path in _UPLOADS),
)
# Paths of features that are missing. Those below an object come before its own route, which would take the rest for its name.
_MISSING_OF_OBJECTS = (
    (("GET", "POST"), f"{_OBJECT}/acl", "Access control lists"),
    (("GET", "PUT"), f"{_OBJECT}/iam", "IAM policies"),
    (("POST",), f"{_OBJECT}/moveTo/o/{{target*}}", "Moving objects (copy, then delete)"),
    (("POST",), f"{_OBJECT}/restore", "Soft delete"),
)
_MISSING = (
    (METHODS, f"{_BUCKET}/{{word}}", ""),
    (METHODS, f"{_BUCKET}/{{word}}/{{rest*}}", ""),
    (METHODS, "/batch/storage/v1", "Batch requests"),
    (METHODS, "/storage/v1/projects/{rest*}", "HMAC keys and service accounts"),
)


def table(local: Local) -> list[Route]:
    """Return the routes of Cloud Storage; if two match, the first one answers."""
    return [
        *_missing(_MISSING_OF_OBJECTS),
        route("GET", _BUCKETS, lambda request: storage_api.list_buckets(local, request)),
        route("POST", _BUCKETS, lambda request: storage_api.create_bucket(local, request)),
        *(route(method, path, _opened(local, handler)) for method, path, handler in _ROUTES),
        *_missing(_MISSING),
    ]


def _opened(local: Local, handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler that gets the buckets of the path, which must exist, and the objects' names, which must be possible."""

    def handle(request: Request, **path: str) -> Any:
        storage_missing.refuse(request.query, storage_missing.OF_QUERIES)
        storage_missing.refuse(request.headers, storage_missing.OF_HEADERS)
        found = {}
        for part, text in path.items():
            text = urllib.parse.unquote(text, errors="surrogateescape")
            found[part] = Bucket.open(local, text) if part.endswith("bucket") else checked_name(text)
        return handler(request, **found)

    return handle


def _missing(paths: Any) -> list[Route]:
    """Return routes that refuse a feature by its name; one without a name goes by the word after its bucket's."""

    def refuse(request: Request, feature: str, word: str = "", **_: str) -> Any:
        raise storage_missing.not_imitated(feature or storage_missing.OF_PATHS.get(word, f"{request.method} of {request.path[:100]}"))

    return [route(method, path, partial(refuse, feature=feature)) for methods, path, feature in paths for method in methods]
