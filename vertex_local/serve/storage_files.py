"""Objects as files: names that stay within their bucket's folder, metadata, sums, conditions."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..job import buckets
from .local import Local
from .rest import ApiError, Request, stamp

PIECE = 1 << 20
one_at_a_time = threading.Lock()  # between the look at a generation and the change that depends on it
SETTABLE = (
    "contentType", "contentEncoding", "contentDisposition", "contentLanguage", "cacheControl", "metadata", "customTime", "storageClass",
)  # fmt: skip


def bucket_folder(local: Local, name: str) -> Path:
    """Return a bucket's folder, or answer that there is none."""
    name = urllib.parse.unquote(name)
    try:
        folder = Path(buckets.to_path(f"gs://{name}", local.buckets))
    except buckets.BucketError as error:
        raise ApiError("INVALID_ARGUMENT", str(error)) from None
    if not folder.is_dir() or folder.is_symlink():
        raise ApiError("NOT_FOUND", f"The specified bucket does not exist: {name} (create it, or make the folder {folder}).")
    return folder


def object_name(quoted: str) -> str:
    """Return the object's name that stands in a URL's path."""
    return checked_name(urllib.parse.unquote(quoted, errors="surrogateescape"))


def checked_name(name: str) -> str:
    """Return an object's name; one that is no plain path below its bucket is refused."""
    parts = name.removesuffix("/").split("/")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= 1024 or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts) or re.search("[\0\r\n]", name):
        text = f"object name {name[:80]!a}: here it is a file's path of 1 to 1024 bytes, without empty parts, '.' or '..'."
        raise ApiError("INVALID_ARGUMENT", text)
    return name


def place(folder: Path, name: str) -> Path:
    """Return an object's file; a link that leads out of the bucket, or a folder in a file's place, is refused."""
    target = folder / name
    real = Path(os.path.realpath(target))
    if real != folder and folder not in real.parents or target.is_symlink():
        raise ApiError("PERMISSION_DENIED", f"{name} is a link, or leads out of its bucket; only files below {folder} are served.")
    return real


def resource(local: Local, request: Request, folder: Path, name: str, path: Path | None = None) -> dict[str, Any]:
    """Return an object's metadata with its sums, computed once for each generation."""
    path = path or place(folder, name)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ApiError("NOT_FOUND", f"No such object: {folder.name}/{name}") from None
    if path.is_dir() != name.endswith("/"):
        raise ApiError("NOT_FOUND", f"No such object: {folder.name}/{name}")
    generation = status.st_mtime_ns // 1000
    kept = local.records.object(folder.name, name, generation)
    if kept.get("size") != status.st_size or "md5Hash" not in kept:
        kept = {**kept, "size": status.st_size, **sums_of(path)}
        local.records.set_object(folder.name, name, generation, kept)
    own = f"{request.base}/storage/v1/b/{folder.name}/o/{urllib.parse.quote(name, safe='')}"
    media = f"{request.base}/download/storage/v1/b/{folder.name}/o/{urllib.parse.quote(name, safe='')}"
    when = stamp(status.st_mtime)
    return {
        "kind": "storage#object", "id": f"{folder.name}/{name}/{generation}", "selfLink": own,
        "mediaLink": f"{media}?generation={generation}&alt=media", "name": name, "bucket": folder.name,
        "generation": str(generation), "metageneration": "1", "contentType": "application/octet-stream", "storageClass": "STANDARD",
        **kept, "size": str(kept["size"]), "etag": str(generation), "timeCreated": when, "updated": when, "timeStorageClassUpdated": when,
    }  # fmt: skip


def sums_of(path: Path) -> dict[str, str]:
    """Return MD5 and, where its package is, CRC32C, as clients compare them."""
    md5, crc = hashlib.md5(usedforsecurity=False), _crc32c()
    for piece in pieces_of(path):
        md5.update(piece)
        if crc:
            crc.update(piece)
    sums = {"md5Hash": base64.b64encode(md5.digest()).decode()}
    return {**sums, "crc32c": base64.b64encode(crc.digest()).decode()} if crc else sums


def _crc32c() -> Any:
    try:
        import google_crc32c
    except ImportError:  # comes with google-cloud-storage; clients check MD5 then
        return None
    return google_crc32c.Checksum()


def pieces_of(path: Path) -> Iterator[bytes]:
    if path.is_dir():
        return
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            yield piece


def check_conditions(request: Request, folder: Path, name: str, prefix: str = "") -> None:
    """Apply ifGenerationMatch and ifGenerationNotMatch; 0 stands for an object that is not there."""
    path = place(folder, name)
    now = path.stat().st_mtime_ns // 1000 if path.is_file() else 0
    for key, wanted in ((f"{prefix}GenerationMatch", True), (f"{prefix}GenerationNotMatch", False)):
        key = key if prefix else "if" + key
        if key in request.query and (request.query[key] == str(now)) != wanted:
            raise ApiError("FAILED_PRECONDITION", f"{key}={request.query[key]}, but {folder.name}/{name} is generation {now}.", code=412)
    given = request.query.get("generation")
    if given and given != str(now):
        raise ApiError("NOT_FOUND", f"No such object: {folder.name}/{name}#{given}")


def settable(body: dict[str, Any]) -> dict[str, Any]:
    kept = {key: body[key] for key in SETTABLE if key in body}
    for key, value in kept.items():
        if value is None:
            continue
        parts = list(value.values()) if key == "metadata" and isinstance(value, dict) else [value]
        if not all(isinstance(part, str) and not set("\r\n") & set(part) for part in parts):  # they become headers
            raise ApiError("INVALID_ARGUMENT", f"{key} takes {'lines of text by name' if key == 'metadata' else 'one line of text'}.", key)
    return kept
