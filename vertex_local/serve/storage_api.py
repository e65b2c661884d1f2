"""Cloud Storage's JSON API over the bucket root: what jobs see as folders, clients see as buckets and objects.

An object is a file, so a file that a job wrote is an object at once. Its generation is the file's time in microseconds.
Nothing is followed out of a bucket's folder, and nothing is removed unless the bucket root belongs to the service.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..job import buckets
from . import storage_files as files
from .local import Local
from .rest import Answer, ApiError, Request, stamp

_MOST_LISTED = 1000


# ------------------------------------------------------------------ buckets


def _bucket_resource(request: Request, folder: Path) -> dict[str, Any]:
    when = stamp(folder.stat().st_mtime)
    return {
        "kind": "storage#bucket", "id": folder.name, "name": folder.name, "selfLink": f"{request.base}/storage/v1/b/{folder.name}",
        "projectNumber": "123456789012", "location": "US", "locationType": "region", "storageClass": "STANDARD", "metageneration": "1",
        "timeCreated": when, "updated": when, "etag": "1", "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}},
    }  # fmt: skip


def list_buckets(local: Local, request: Request) -> dict[str, Any]:
    """Return the bucket root's folders whose names are those of buckets."""
    found, prefix = [], request.query.get("prefix", "")
    for entry in sorted(local.buckets.iterdir()) if local.buckets.is_dir() else ():
        with contextlib.suppress(buckets.BucketError):
            if entry.is_dir() and not entry.is_symlink() and buckets.check_name(entry.name).startswith(prefix):
                found.append(_bucket_resource(request, entry))
    return {"kind": "storage#buckets", "items": found}


def create_bucket(local: Local, request: Request) -> dict[str, Any]:
    """Make a bucket's folder."""
    name = request.json().get("name")
    if not isinstance(name, str):
        raise ApiError("INVALID_ARGUMENT", f"name is required; got {name!r}.", "name")
    try:
        folder = local.buckets / buckets.check_name(name)
        folder.mkdir(parents=True)
    except buckets.BucketError as error:
        raise ApiError("INVALID_ARGUMENT", str(error), "name") from None
    except FileExistsError:
        raise ApiError("ALREADY_EXISTS", f"bucket {name} exists already.") from None
    return _bucket_resource(request, folder)


def get_bucket(local: Local, request: Request, bucket: str) -> dict[str, Any]:
    """Return a bucket."""
    return _bucket_resource(request, files.bucket_folder(local, bucket))


def storage_layout(local: Local, request: Request, bucket: str) -> dict[str, Any]:
    """Return that a bucket is a flat one, which gcloud asks before it copies."""
    folder = files.bucket_folder(local, bucket)
    flat = {"hierarchicalNamespace": {"enabled": False}}
    return {"kind": "storage#storageLayout", "bucket": folder.name, "location": "US", "locationType": "region", **flat}


# ------------------------------------------------------------------ objects


def list_objects(local: Local, request: Request, bucket: str) -> dict[str, Any]:
    """Return one page of objects and, with a delimiter, of prefixes, in the order of their names."""
    folder, query = files.bucket_folder(local, bucket), request.query
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    start, end, after = query.get("startOffset", ""), query.get("endOffset", ""), query.get("pageToken", "")
    entries: dict[str, bool] = {}
    for name in _names(folder, prefix):
        if name < start or (end and name >= end):
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        entries.setdefault(name if cut < 0 else name[: cut + len(delimiter)], cut >= 0)
    ordered = [name for name in sorted(entries, key=str.encode) if not after or name.encode() > _decoded(after)]
    size = request.number("maxResults", _MOST_LISTED, _MOST_LISTED)
    now, rest = ordered[:size], ordered[size:]
    items = []
    for name in now:
        if not entries[name]:
            with contextlib.suppress(ApiError):  # gone since
                items.append(files.resource(local, request, folder, name))
    answer: dict[str, Any] = {"kind": "storage#objects", "items": items, "prefixes": [name for name in now if entries[name]]}
    answer = {key: value for key, value in answer.items() if value}
    if rest:
        answer["nextPageToken"] = base64.urlsafe_b64encode(now[-1].encode()).decode()
    return answer


def _decoded(token: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(token)
    except ValueError:
        raise ApiError("INVALID_ARGUMENT", f"pageToken {token!r} is not one of this list's.", "pageToken") from None


def _names(folder: Path, prefix: str) -> Iterator[str]:
    """Yield the names of a bucket's files that start with `prefix`; links are none of them."""
    head = prefix.rpartition("/")[0]
    if any(part in ("", ".", "..") for part in head.split("/")) and head:
        return
    top = files.place(folder, head) if head else folder
    for parent, _, found in os.walk(top):
        base = os.path.relpath(parent, folder)
        for file in found:
            name = file if base == "." else f"{base}/{file}"
            if name.startswith(prefix) and not os.path.islink(os.path.join(parent, file)) and _is_text(name):
                yield name


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\n" not in name and "\r" not in name


def get_object(local: Local, request: Request, bucket: str, object: str) -> Any:  # noqa: A002
    """Return an object's metadata, or with alt=media its content, whole or the part that a Range header names."""
    folder, name = files.bucket_folder(local, bucket), files.object_name(object)
    files.check_conditions(request, folder, name)
    resource = files.resource(local, request, folder, name)
    if request.query.get("alt") != "media":
        return resource
    size = int(resource["size"])
    sums = ",".join(f"{key}={resource[long]}" for key, long in (("crc32c", "crc32c"), ("md5", "md5Hash")) if long in resource)
    headers = {
        "Content-Type": resource["contentType"], "Content-Disposition": "attachment", "X-Goog-Hash": sums, "Accept-Ranges": "bytes",
        "X-Goog-Generation": resource["generation"], "X-Goog-Metageneration": "1", "X-Goog-Stored-Content-Length": str(size),
        "X-Goog-Stored-Content-Encoding": "identity", "X-Goog-Storage-Class": "STANDARD", "ETag": f'"{resource["etag"]}"',
    }  # fmt: skip
    part = _part(request.headers.get("Range"), size)
    code = 200
    if part is None:
        error = ApiError("INVALID_ARGUMENT", "the range lies beyond the object's end.", code=416)
        return Answer(416, error.body(), {"Content-Range": f"bytes */{size}"})
    if part != (0, size):
        code, headers["Content-Range"] = 206, f"bytes {part[0]}-{part[1] - 1}/{size}"
    if name.endswith("/") or not size:
        return Answer(code, b"", headers)
    return Answer(code, b"", headers, files.place(folder, name), part)


def _part(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first and last place of a Range header's bytes; None for one beyond the end."""
    match = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", header or "")
    if not match or match[0] == "bytes=-":
        return 0, size
    if not match[1]:
        return max(0, size - int(match[2])), size
    start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
    return (start, end) if start < end else (0, 0) if size == 0 else None


def delete_object(local: Local, request: Request, bucket: str, object: str) -> Answer:  # noqa: A002
    """Remove an object's file, if the bucket root lies in the service's own state folder."""
    folder, name = files.bucket_folder(local, bucket), files.object_name(object)
    if local.state not in folder.parents:
        text = f"the bucket root {local.buckets} lies outside of the service's own folder {local.state}: nothing in it is removed."
        raise ApiError("PERMISSION_DENIED", text)
    path = files.place(folder, name)
    with files.one_at_a_time:
        files.check_conditions(request, folder, name)
        if not path.is_file():
            raise ApiError("NOT_FOUND", f"No such object: {folder.name}/{name}")
        path.unlink()
    return Answer(204)


def patch_object(local: Local, request: Request, bucket: str, object: str) -> dict[str, Any]:  # noqa: A002
    """Change what is kept of an object beside its content."""
    folder, name = files.bucket_folder(local, bucket), files.object_name(object)
    resource, body = files.resource(local, request, folder, name), request.json()
    generation = int(resource["generation"])
    kept = {**local.records.object(folder.name, name, generation), **files.settable(body)}
    local.records.set_object(folder.name, name, generation, {key: value for key, value in kept.items() if value is not None})
    return files.resource(local, request, folder, name)
