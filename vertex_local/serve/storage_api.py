"""Cloud Storage's JSON API for the bucket root: jobs see folders and files, clients see them as buckets and objects.

No link is followed out of a bucket's folder. Nothing is removed unless the bucket root belongs to the service.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from ..job import buckets, times
from . import storage_files as files
from . import storage_list, storage_missing
from .local import Local
from .rest import Answer, ApiError, Request
from .storage_conditions import Conditions, NotModified
from .storage_files import CHECKSUMS, SETTABLE, Bucket, Replaced, Stored
from .storage_upload import settable

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
_KEPT_OF_BUCKETS = ("location", "storageClass", "labels")
_OWN = ""  # the object name under which the store keeps a bucket's own settings


# ------------------------------------------------------------------ buckets


def get_bucket(request: Request, bucket: Bucket) -> dict[str, Any]:
    """Return a bucket."""
    when = times.text(bucket.folder.stat().st_mtime)
    kept = bucket.local.records.object(bucket.name, _OWN, 0)
    metageneration = str(kept.pop("metageneration", 1))
    return {
        "kind": "storage#bucket",
        "id": bucket.name,
        "name": bucket.name,
        "selfLink": f"{request.base}/storage/v1/b/{bucket.name}",
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
    storage_missing.refuse(body, storage_missing.OF_BUCKETS)
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
    items = [get_bucket(request, Bucket(local, local.buckets / entry.name)) for entry in found]
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
    return get_bucket(request, Bucket(local, folder))


def patch_bucket(request: Request, bucket: Bucket) -> dict[str, Any]:
    """Change a bucket's labels and storage class."""
    given, records = _settings(request.json()), bucket.local.records
    with bucket.lock():
        kept = records.object(bucket.name, _OWN, 0)
        labels = {**kept.get("labels", {}), **given.pop("labels", {})}
        kept.update(given, labels=_without_nulls(labels))
        records.set_object(bucket.name, _OWN, 0, {**kept, "metageneration": kept.get("metageneration", 1) + 1})
    return get_bucket(request, bucket)


def delete_bucket(request: Request, bucket: Bucket) -> Answer:
    """Remove a bucket without objects, and the empty folders in it."""
    bucket.check_removable()
    with bucket.lock():
        if any(storage_list.Listing().entries(bucket)):
            raise ApiError("ALREADY_EXISTS", f"The bucket {bucket.name} is not empty: remove its objects first.")
        for folder, _, _ in os.walk(bucket.folder, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                text = f"The folder of bucket {bucket.name} has files that are not objects ({folder}): remove them there."
                raise ApiError("ALREADY_EXISTS", text) from None
        bucket.local.records.remove_object(bucket.name, _OWN)
    return Answer(204)


def managed_folders(request: Request, bucket: Bucket) -> dict[str, Any]:
    """Return an empty list of managed folders; gcloud asks for it before it removes a bucket."""
    return {"kind": "storage#managedFolders"}


def storage_layout(request: Request, bucket: Bucket) -> dict[str, Any]:
    """Return that a bucket has no hierarchical namespace; gcloud asks for this before it copies."""
    flat = {"hierarchicalNamespace": {"enabled": False}}
    return {"kind": "storage#storageLayout", "bucket": bucket.name, "location": "US", "locationType": "region", **flat}


# ------------------------------------------------------------------ objects


def list_objects(request: Request, bucket: Bucket) -> dict[str, Any]:
    """Return one page of objects and, with a delimiter, of prefixes, in the order of their names.

    Without `fields`, objects come with CRC32C only: MD5 takes fifty times as long to compute. For an object that a client has
    written or read, both are known already.
    """
    query = request.query
    size = request.number("maxResults", _MOST_LISTED, _MOST_LISTED)
    entries, token = storage_list.page(storage_list.Listing.of(query).entries(bucket), size)
    named = _checksums_in(query)
    wanted, left = (("crc32c",), _MOST_READ) if named is None else (named, math.inf)
    items = []
    for entry in entries:
        if entry.is_prefix:
            continue
        with contextlib.suppress(ApiError):  # removed meanwhile
            stored = bucket.get(entry.name)
            if stored.size <= left and not stored.kept.keys() >= set(wanted):
                left -= stored.size
                stored = bucket.with_checksums(stored, *wanted)
            items.append(stored.resource(request.base))
    answer = {"items": items, "prefixes": [entry.name for entry in entries if entry.is_prefix], "nextPageToken": token}
    return {"kind": "storage#objects", **{key: value for key, value in answer.items() if value}}


def _checksums_in(query: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the checksums that the parameter `fields` names; None if it asks for whole objects."""
    fields = query.get("fields", "")
    named = set(re.split(r"[^\w*]+", fields))
    if "*" in named or named <= {"", "kind", "items", "nextPageToken", "prefixes"}:
        return None
    return tuple(key for key in CHECKSUMS if key in named)


def get_object(request: Request, bucket: Bucket, name: str) -> Any:
    """Return an object's metadata; with alt=media its content, or the part of it in a Range header."""
    conditions = Conditions.of(request.query, request.headers)
    for _ in range(_MOST_TRIES):
        try:
            stored = bucket.get(name, conditions)
        except NotModified:
            return Answer(304, b"")
        if request.query.get("alt") != "media":
            named = _checksums_in(request.query)
            return bucket.with_checksums(stored, *(CHECKSUMS if named is None else named)).resource(request.base)
        with contextlib.suppress(Replaced):
            return _content(bucket.with_checksums(stored, *CHECKSUMS), request.headers.get("Range"))
    raise Replaced(stored)


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
        return Answer(code, b"".join(stored.pieces())[slice(*part)], headers)
    return Answer(code, b"", headers, stored.path, part)


def _headers_of(stored: Stored) -> dict[str, str]:
    return {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": "attachment",  # so that no browser shows it
        "Accept-Ranges": "bytes",
        "ETag": f'"{stored.etag}"',
        "X-Goog-Generation": str(stored.generation),
        "X-Goog-Metageneration": str(stored.metageneration),
        "X-Goog-Hash": ",".join(f"{name}={stored.kept[key]}" for key, name in CHECKSUMS.items()),
        "X-Goog-Stored-Content-Length": str(stored.size),
        "X-Goog-Stored-Content-Encoding": stored.kept.get("contentEncoding", "identity"),
        "X-Goog-Storage-Class": stored.kept.get("storageClass", "STANDARD"),
        # As UTF-8: Starlette writes headers in Latin-1.
        **{header: stored.kept[key].encode().decode("latin-1") for key, header in _SENT.items() if key in stored.kept},
    }


def _part(first: str, last: str, size: int) -> tuple[int, int] | None:
    """Return (begin, end) of the bytes that a Range header asks for; None if the object has none of them."""
    if first:
        start, end = int(first), min(size, int(last) + 1) if last else size
    else:
        start, end = max(0, size - int(last)), size
    return (start, end) if start < end else None


def delete_object(request: Request, bucket: Bucket, name: str) -> Answer:
    """Remove an object's file, if the bucket root lies in the service's own state folder."""
    bucket.remove(name, Conditions.of(request.query))
    return Answer(204)


def change_object(request: Request, bucket: Bucket, name: str) -> dict[str, Any]:
    """Change an object's metadata: PATCH the fields that are in the body, where null removes a field; PUT all of it."""
    given = settable(request.json())
    stored = bucket.with_checksums(bucket.get(name), *CHECKSUMS)  # before the lock, because it may take long
    with bucket.lock():
        now = bucket.get(name, Conditions.of(request.query))
        kept = {**(stored.kept if now.generation == stored.generation else {}), **now.kept, "size": now.size}
        if request.method == "PUT":
            kept = {key: value for key, value in kept.items() if key not in SETTABLE}
        if given.get("metadata") is not None:
            given["metadata"] = _without_nulls({**kept.get("metadata", {}), **given["metadata"]})
        kept = _without_nulls({**kept, **given}) | {"metageneration": now.metageneration + 1, "updated": times.now()}
        bucket.keep(name, now.generation, kept)
    return bucket.get(name).resource(request.base)


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
