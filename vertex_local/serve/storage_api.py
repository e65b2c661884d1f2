"""Cloud Storage's JSON API for the bucket root: jobs see folders and files, clients see them as buckets and objects.

No link is followed out of a bucket's folder. Nothing is removed unless the bucket root belongs to the service.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..job import buckets
from . import storage_files as files
from . import storage_list
from .local import Local
from .rest import Answer, ApiError, Request, stamp
from .storage_conditions import Conditions, NotModified
from .storage_files import Bucket, Stored
from .storage_upload import described

_MOST_LISTED = 1000
# Bytes that one list may read to compute checksums that were not asked for by name: some seconds' worth. Further objects are
# listed without checksums, as Cloud Storage lists composite objects without MD5; `fields` with crc32c, or a get, returns them.
_MOST_READ = 8 << 30
_MOST_TRIES = 10
_RANGE = re.compile(r"bytes=(?!-$)([0-9]{0,15})-([0-9]{0,15})")
_SENT = {  # the header of a download for each field of an object's metadata
    "contentType": "Content-Type", "contentDisposition": "Content-Disposition", "contentEncoding": "Content-Encoding",
    "contentLanguage": "Content-Language", "cacheControl": "Cache-Control",
}  # fmt: skip
_NOT_IMITATED = {  # settings of a bucket that are refused, with the feature's name
    "versioning": "Object versioning", "softDeletePolicy": "Soft delete", "lifecycle": "Object lifecycle management",
    "retentionPolicy": "Bucket Lock", "objectRetention": "Retention", "hierarchicalNamespace": "Hierarchical namespaces",
    "encryption": "Encryption keys", "autoclass": "Autoclass", "logging": "Usage logs", "website": "Static websites", "cors": "CORS",
    "billing": "Requester pays", "acl": "Access control lists", "defaultObjectAcl": "Access control lists",
    "defaultEventBasedHold": "Holds", "rpo": "Turbo replication", "customPlacementConfig": "Dual regions", "ipFilter": "IP filters",
}  # fmt: skip
_KEPT_OF_BUCKETS = ("location", "storageClass", "labels")
_OWN = ""  # the object name under which the store keeps a bucket's own settings


def not_imitated(feature: str, field: str | None = None) -> ApiError:
    """Return the error for a feature of Cloud Storage that is missing here."""
    return ApiError("UNIMPLEMENTED", f"{feature}: not imitated by the local service.", field)


# ------------------------------------------------------------------ buckets


def _bucket_resource(local: Local, request: Request, folder: Path) -> dict[str, Any]:
    when = stamp(folder.stat().st_mtime)
    kept = local.records.object(folder.name, _OWN, 0)
    metageneration = str(kept.pop("metageneration", 1))
    return {
        "kind": "storage#bucket",
        "id": folder.name,
        "name": folder.name,
        "selfLink": f"{request.base}/storage/v1/b/{folder.name}",
        "projectNumber": "123456789012",
        "location": "US",
        "locationType": "region",
        "storageClass": "STANDARD",
        **kept,
        "metageneration": metageneration,
        "timeCreated": when,
        "updated": when,
        "etag": metageneration,
        "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}},
    }


def _settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a bucket that are recorded; refuse those that would need a missing feature."""
    for key, feature in _NOT_IMITATED.items():
        value = body.get(key)
        if value and value != {"enabled": False} and value != {"retentionDurationSeconds": "0"}:
            raise not_imitated(feature, key)
    kept = {key: body[key] for key in _KEPT_OF_BUCKETS if body.get(key) is not None}
    labels = kept.get("labels", {})
    if not isinstance(labels, dict) or not all(value is None or isinstance(value, str) for value in labels.values()):
        raise ApiError("INVALID_ARGUMENT", "labels takes texts by name.", "labels")
    if not all(isinstance(kept.get(key, ""), str) for key in ("location", "storageClass")):
        raise ApiError("INVALID_ARGUMENT", "location and storageClass take one word each.")
    return kept


def list_buckets(local: Local, request: Request) -> dict[str, Any]:
    """Return the folders of the bucket root that have valid bucket names."""
    prefix, after = request.query.get("prefix", ""), storage_list.decoded(request.query.get("pageToken", "")).decode(errors="replace")
    names = []
    for entry in os.scandir(local.buckets) if local.buckets.is_dir() else ():
        with contextlib.suppress(buckets.BucketError):
            if entry.is_dir(follow_symlinks=False) and buckets.check_name(entry.name).startswith(prefix) and entry.name > after:
                names.append(entry.name)
    size = request.number("maxResults", _MOST_LISTED, _MOST_LISTED)
    found, token = storage_list.page(map(storage_list.Entry, sorted(names)), size)
    items = [_bucket_resource(local, request, local.buckets / entry.name) for entry in found]
    return {"kind": "storage#buckets", "items": items, **({"nextPageToken": token} if token else {})}


def create_bucket(local: Local, request: Request) -> dict[str, Any]:
    """Make a bucket's folder."""
    body = request.json()
    name = body.get("name")
    if not isinstance(name, str):
        raise ApiError("INVALID_ARGUMENT", f"name is required; got {str(name)[:100]!r}.", "name")
    kept = _settings(body)
    try:
        folder = local.buckets / buckets.check_name(name)
        folder.mkdir(parents=True)
    except buckets.BucketError as error:
        raise ApiError("INVALID_ARGUMENT", str(error), "name") from None
    except FileExistsError:
        raise ApiError("ALREADY_EXISTS", f"bucket {name} exists already.") from None
    local.records.set_object(name, _OWN, 0, kept)
    return _bucket_resource(local, request, folder)


def get_bucket(local: Local, request: Request, bucket: str) -> dict[str, Any]:
    """Return a bucket."""
    return _bucket_resource(local, request, Bucket.open(local, bucket).folder)


def patch_bucket(local: Local, request: Request, bucket: str) -> dict[str, Any]:
    """Change a bucket's labels and storage class."""
    found, given = Bucket.open(local, bucket), _settings(request.json())
    with found.lock():
        kept = local.records.object(found.name, _OWN, 0)
        labels = {**kept.get("labels", {}), **given.pop("labels", {})}
        kept.update(given, labels={key: value for key, value in labels.items() if value is not None})
        local.records.set_object(found.name, _OWN, 0, {**kept, "metageneration": kept.get("metageneration", 1) + 1})
    return _bucket_resource(local, request, found.folder)


def delete_bucket(local: Local, request: Request, bucket: str) -> Answer:
    """Remove a bucket without objects, and the empty folders in it."""
    found = Bucket.open(local, bucket)
    found.check_removable()
    with found.lock():
        if next(storage_list.Listing().entries(found), None) is not None:
            raise ApiError("ALREADY_EXISTS", f"The bucket {found.name} is not empty: remove its objects first.")
        for folder, _, _ in os.walk(found.folder, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                text = f"The folder of bucket {found.name} has files that are not objects ({folder}): remove them there."
                raise ApiError("ALREADY_EXISTS", text) from None
        local.records.remove_object(found.name, _OWN)
    return Answer(204)


def managed_folders(local: Local, request: Request, bucket: str) -> dict[str, Any]:
    """Return an empty list of managed folders; gcloud asks for it before it removes a bucket."""
    Bucket.open(local, bucket)
    return {"kind": "storage#managedFolders"}


def storage_layout(local: Local, request: Request, bucket: str) -> dict[str, Any]:
    """Return that a bucket has no hierarchical namespace; gcloud asks for this before it copies."""
    name = Bucket.open(local, bucket).name
    flat = {"hierarchicalNamespace": {"enabled": False}}
    return {"kind": "storage#storageLayout", "bucket": name, "location": "US", "locationType": "region", **flat}


def unsupported(local: Local, request: Request, *, feature: str, **names: str) -> Answer:
    """Refuse a request for a feature that is missing here; the error names it."""
    raise not_imitated(feature)


# ------------------------------------------------------------------ objects


def list_objects(local: Local, request: Request, bucket: str) -> dict[str, Any]:
    """Return one page of objects and, with a delimiter, of prefixes, in the order of their names."""
    found, query = Bucket.open(local, bucket), request.query
    if query.get("softDeleted") == "true":
        raise not_imitated("Soft delete", "softDeleted")
    if query.get("matchGlob"):
        raise not_imitated("Lists by matchGlob (list by prefix and delimiter)", "matchGlob")
    size = request.number("maxResults", _MOST_LISTED, _MOST_LISTED)
    entries, token = storage_list.page(storage_list.Listing.of(query).entries(found), size)
    checksums = _Checksums(found, query.get("fields", ""))
    items = []
    for entry in entries:
        if not entry.is_prefix:
            with contextlib.suppress(ApiError):  # removed meanwhile
                items.append(checksums.added(found.get(entry.name)).resource(request.base))
    answer = {"items": items, "prefixes": [entry.name for entry in entries if entry.is_prefix], "nextPageToken": token}
    return {"kind": "storage#objects", **{key: value for key, value in answer.items() if value}}


class _Checksums:
    """Adds to listed objects the checksums that a client wants: those in `fields`, or CRC32C if `fields` is empty.

    MD5 takes fifty times as long to compute. For an object that a client has written or read, both are known already.
    """

    def __init__(self, bucket: Bucket, fields: str):
        named = set(re.split(r"[^\w*]+", fields))
        asked = [key for key in files.CHECKSUMS if key in named]
        every = not fields or "*" in named or named <= {"kind", "items", "nextPageToken", "prefixes"}
        self.bucket, self.left = bucket, _MOST_READ if every else float("inf")
        self.wanted = ("crc32c",) if every else tuple(asked)

    def added(self, stored: Stored) -> Stored:
        if all(key in stored.kept for key in self.wanted):
            return stored
        if stored.size > self.left:
            return stored
        self.left -= stored.size
        return self.bucket.with_checksums(stored, *self.wanted)


def _with_checksums(bucket: Bucket, stored: Stored, fields: str) -> Stored:
    """Return an object with the checksums that a request for this one object wants: both, unless `fields` leaves them out."""
    named = set(re.split(r"[^\w*]+", fields))
    wanted = files.CHECKSUMS if not fields or "*" in named else [key for key in files.CHECKSUMS if key in named]
    return bucket.with_checksums(stored, *wanted)


def get_object(local: Local, request: Request, bucket: str, object: str) -> Any:  # noqa: A002
    """Return an object's metadata; with alt=media its content, or the part of it in a Range header."""
    found, name = Bucket.open(local, bucket), files.object_name(object)
    if request.query.get("softDeleted") == "true":
        raise not_imitated("Soft delete", "softDeleted")
    if request.headers.get("X-Goog-Encryption-Key"):
        raise not_imitated("Customer-supplied encryption keys")
    conditions = Conditions.of(request.query, request.headers)
    for _ in range(_MOST_TRIES):
        try:
            stored = found.get(name, conditions)
        except NotModified:
            return Answer(304, b"")
        if request.query.get("alt") != "media":
            return _with_checksums(found, stored, request.query.get("fields", "")).resource(request.base)
        with contextlib.suppress(_Replaced):
            return _content(found.with_checksums(stored, *files.CHECKSUMS), request.headers.get("Range"))
    raise ApiError("UNAVAILABLE", f"{found.name}/{name} is replaced faster than it can be read; try again.")


class _Replaced(Exception):
    """An object was replaced after its generation was read and before its file was opened."""


def _content(stored: Stored, header: str | None) -> Answer:
    """Return a download; a Range header that cannot be parsed is ignored, as RFC 9110 demands.

    Small objects are read here, so that headers and content belong to the same generation: locks and manifests are replaced
    while others read them. Large objects are sent piece by piece from their files.
    """
    ranged = _RANGE.fullmatch(header or "")
    part = _part(ranged[1], ranged[2], stored.size) if ranged else (0, stored.size)
    if part is None:
        error = ApiError("INVALID_ARGUMENT", "the range must begin before the object's end.", code=416)
        return Answer(416, error.body(), {"Content-Range": f"bytes */{stored.size}"})
    code, headers = 200, _headers_of(stored)
    if ranged:
        code, headers["Content-Range"] = 206, f"bytes {part[0]}-{part[1] - 1}/{stored.size}"
    if stored.size <= files.PIECE:
        return Answer(code, _read(stored)[slice(*part)], headers)
    return Answer(code, b"", headers, stored.path, part)


def _read(stored: Stored) -> bytes:
    if not stored.size:
        return b""
    try:
        with open(stored.path, "rb") as file:
            content = file.read(stored.size)
            status = os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        raise _Replaced from None
    if files.generation_of(status) != stored.generation or len(content) < stored.size:
        raise _Replaced
    return content


def _headers_of(stored: Stored) -> dict[str, str]:
    names = (("crc32c", "crc32c"), ("md5", "md5Hash"))
    return {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": "attachment",  # so that no browser shows it
        "Accept-Ranges": "bytes",
        "ETag": f'"{stored.etag}"',
        "X-Goog-Generation": str(stored.generation),
        "X-Goog-Metageneration": str(stored.metageneration),
        "X-Goog-Hash": ",".join(f"{name}={stored.kept[key]}" for name, key in names if key in stored.kept),
        "X-Goog-Stored-Content-Length": str(stored.size),
        "X-Goog-Stored-Content-Encoding": stored.kept.get("contentEncoding", "identity"),
        "X-Goog-Storage-Class": stored.kept.get("storageClass", "STANDARD"),
        **{header: stored.kept[key] for key, header in _SENT.items() if key in stored.kept},
    }


def _part(first: str, last: str, size: int) -> tuple[int, int] | None:
    """Return (begin, end) of the bytes that a Range header asks for; None if the object has none of them."""
    if first:
        start, end = int(first), min(size, int(last) + 1) if last else size
    else:
        start, end = max(0, size - int(last)), size
    return (start, end) if start < end else None


def delete_object(local: Local, request: Request, bucket: str, object: str) -> Answer:  # noqa: A002
    """Remove an object's file, if the bucket root lies in the service's own state folder."""
    Bucket.open(local, bucket).remove(files.object_name(object), Conditions.of(request.query))
    return Answer(204)


def patch_object(local: Local, request: Request, bucket: str, object: str) -> dict[str, Any]:  # noqa: A002
    """Change the fields of an object's metadata that are in the body; null removes a field."""
    return _changed(local, request, bucket, object, replace=False)


def update_object(local: Local, request: Request, bucket: str, object: str) -> dict[str, Any]:  # noqa: A002
    """Replace an object's metadata."""
    return _changed(local, request, bucket, object, replace=True)


def _changed(local: Local, request: Request, bucket: str, object: str, *, replace: bool) -> dict[str, Any]:  # noqa: A002
    found, name, body = Bucket.open(local, bucket), files.object_name(object), request.json()
    given = described(request, body)
    stored = found.with_checksums(found.get(name), *files.CHECKSUMS)  # before the lock, because it may take long
    with found.lock():
        now = found.get(name, Conditions.of(request.query))
        kept = {**(stored.kept if now.generation == stored.generation else now.kept), **now.kept, "size": now.size}
        if replace:
            kept = {key: value for key, value in kept.items() if key not in files.SETTABLE}
        for key in files.SETTABLE:
            if key == "metadata" and isinstance(given.get(key), dict):
                entries = {**kept.get(key, {}), **given[key]}
                kept[key] = {name: value for name, value in entries.items() if value is not None}
            elif key in given:
                kept[key] = given[key]
        kept = {key: value for key, value in kept.items() if value is not None}
        kept.update(metageneration=now.metageneration + 1, updated=stamp())
        found.keep(name, 0 if name.endswith("/") else now.generation, kept)
    return found.get(name).resource(request.base)
