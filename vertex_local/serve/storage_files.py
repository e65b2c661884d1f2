"""Cloud Storage's objects as files: names, generations, metadata, checksums, and how an object is replaced or removed.

Every file is an object, so a file that a job writes is an object at once. Its generation is the file's modification time in
microseconds. The store keeps an object's type, metadata and checksums for one generation only. A folder is an object only if
a client has written the placeholder `folder/`, which has no content.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c  # comes with google-cloud-storage

from ..job import buckets, times
from .local import Local
from .rest import ApiError
from .storage_conditions import Conditions

PIECE = 1 << 20  # bytes that are read at a time
SETTABLE = (
    "contentType", "contentEncoding", "contentDisposition", "contentLanguage", "cacheControl", "metadata", "customTime", "storageClass",
)  # fmt: skip
CHECKSUMS = {"crc32c": "crc32c", "md5Hash": "md5"}  # their names in metadata, and in the header X-Goog-Hash
_DIGESTS: dict[str, Any] = {"crc32c": google_crc32c.Checksum, "md5Hash": partial(hashlib.md5, usedforsecurity=False)}
_PLACEHOLDER = 0  # a placeholder's generation in the store: a folder's modification time changes with its content
_PART = re.compile(r"\.[0-9a-f]{32}\.part")  # a file that is being copied from another disk
_writing = threading.Lock()  # for this process; a lock on the bucket's folder excludes other processes


def is_name(name: str) -> bool:
    """Return whether an object can have that name: of 1 to 1024 bytes, and a plain path below its bucket."""
    parts = name.removesuffix("/").split("/")
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return False
    plain = not any(part in ("", ".", "..") for part in parts) and not re.search("[\0\r\n]", name)
    return plain and max(sizes) <= 255 and len(name.encode()) <= 1024


def checked_name(name: Any) -> str:
    """Return an object's name; raise an ApiError if it is not a plain path below its bucket."""
    if not isinstance(name, str) or not is_name(name):
        text = f"object name {str(name)[:80]!a}: here it must be a file's path of 1 to 1024 bytes, without empty parts, '.' or '..'."
        raise ApiError("INVALID_ARGUMENT", text)
    return name


def is_object(name: str) -> bool:
    """Return whether a file of that path can be an object, or a folder of that path can hold objects."""
    return is_name(name) and not _PART.fullmatch(name.rpartition("/")[2])


@dataclass(frozen=True)
class Stored:
    """An object that exists; `kept` is what the store has of this generation (type, metadata, checksums)."""

    bucket: str
    name: str
    path: Path
    size: int  # bytes
    generation: int
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def metageneration(self) -> int:
        return self.kept.get("metageneration", 1)

    @property
    def etag(self) -> str:
        return f"{self.generation}-{self.metageneration}"

    def pieces(self) -> Iterator[bytes]:
        """Yield the content of this very generation.

        Raises:
            Replaced: it is no longer there.
        """
        left = self.size
        try:
            file = open(self.path, "rb") if left else io.BytesIO()
        except (FileNotFoundError, NotADirectoryError):
            raise Replaced(self) from None
        with file:
            while left:
                piece = file.read(min(left, PIECE))
                # After the first piece, because a job may write to its file at any time: small objects are then of one generation.
                replaced = left == self.size and generation_of(os.fstat(file.fileno())) != self.generation
                if replaced or not piece:
                    raise Replaced(self)
                left -= len(piece)
                yield piece

    def resource(self, base: str) -> dict[str, Any]:
        """Return the object in the API's form, with checksums if they are known; `base` is the beginning of its links."""
        path = f"storage/v1/b/{self.bucket}/o/{urllib.parse.quote(self.name, safe='')}"
        created = times.text(self.generation / 1e6)
        known = {key: value for key, value in self.kept.items() if key in (*SETTABLE, *CHECKSUMS, "componentCount")}
        return {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "selfLink": f"{base}/{path}",
            "mediaLink": f"{base}/download/{path}?generation={self.generation}&alt=media",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            **known,
            "size": str(self.size),
            "etag": self.etag,
            "timeCreated": created,
            "updated": self.kept.get("updated", created),
            "timeStorageClassUpdated": created,
        }


class Replaced(ApiError):
    """An object was replaced after its generation was read and before its content was."""

    def __init__(self, stored: Stored):
        super().__init__("UNAVAILABLE", f"{stored.bucket}/{stored.name} was replaced while it was read; try again.")


@dataclass(frozen=True)
class Bucket:
    """A bucket's folder, and the operations on its objects."""

    local: Local
    folder: Path

    @classmethod
    def open(cls, local: Local, name: str) -> Bucket:
        """Return the bucket of that name; raise an ApiError if there is none."""
        try:
            folder = Path(os.path.realpath(local.buckets), buckets.check_name(name))
        except buckets.BucketError as error:
            raise ApiError("INVALID_ARGUMENT", str(error)) from None
        if folder.is_symlink():
            raise ApiError("INVALID_ARGUMENT", f"bucket {name} is a link; only folders below {local.buckets} are served: make it one.")
        if not folder.is_dir():
            raise ApiError("NOT_FOUND", f"The specified bucket does not exist: {name} (create it, or make the folder {folder}).")
        return cls(local, folder)

    @property
    def name(self) -> str:
        return self.folder.name

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep others, in this process or another, from changing an object between the check of a condition and the change."""
        with _writing:
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with contextlib.suppress(OSError):  # some network disks cannot lock folders; within this process `_writing` is enough
                    fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)

    # ------------------------------------------------------------------ what is there

    def path(self, name: str) -> Path:
        """Return an object's file, which need not exist; raise an ApiError for a link, or a path that a link leads out of the bucket."""
        target = self.folder / name
        real = Path(os.path.realpath(target))
        if (real != self.folder and self.folder not in real.parents) or target.is_symlink():
            text = f"{name} is a link, or leads out of its bucket; only files below {self.folder} are served."
            raise ApiError("PERMISSION_DENIED", text)
        return real

    def find(self, name: str) -> Stored | None:
        """Return the object of that name; None if there is none."""
        path = self.path(name)
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if name.endswith("/"):
            kept = self.local.records.object(self.name, name, _PLACEHOLDER) if stat.S_ISDIR(status.st_mode) else {}
            return Stored(self.name, name, path, 0, kept["generation"], kept) if kept else None
        if not stat.S_ISREG(status.st_mode):
            return None  # a folder, or what has no content of its own, such as a pipe
        generation = generation_of(status)
        kept = self.local.records.object(self.name, name, generation)
        if kept.get("size") != status.st_size:
            kept = {}  # a job has written to it meanwhile, within one tick of the clock
        return Stored(self.name, name, path, status.st_size, generation, kept)

    def get(self, name: str, conditions: Conditions | None = None) -> Stored:
        """Return the object of that name; raise an ApiError if there is none, or if it does not meet the conditions."""
        found = self.find(name)
        if conditions:
            conditions.check(f"{self.name}/{name}", found)
        if found is None:
            raise ApiError("NOT_FOUND", f"No such object: {self.name}/{name}")
        return found

    def with_checksums(self, stored: Stored, *wanted: str) -> Stored:
        """Return the object with these checksums in `kept`; they are computed once for each generation of a job's file."""
        if all(key in stored.kept for key in wanted):
            return stored
        try:
            checksums = checksums_of(pieces_of(stored.path, stored.size), wanted)
            status = stored.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise ApiError("NOT_FOUND", f"No such object: {self.name}/{stored.name}") from None
        kept = {**stored.kept, "size": stored.size, **checksums}
        if (generation_of(status), status.st_size) == (stored.generation, stored.size) and not _is_new(status.st_mtime):
            self.keep(stored.name, stored.generation, kept)
        return replace(stored, kept=kept)

    def keep(self, name: str, generation: int, kept: Mapping[str, Any]) -> None:
        """Store the type, metadata and checksums of one generation of an object."""
        self.local.records.set_object(self.name, name, _PLACEHOLDER if name.endswith("/") else generation, kept)

    # ------------------------------------------------------------------ changes

    def publish(
        self, name: str, file: Path, checksums: Mapping[str, str], given: Mapping[str, Any], conditions: Conditions
    ) -> Stored:  # fmt: skip
        """Make a temporary file the object of that name, in one step, if the object there meets the conditions.

        Args:
            checksums: of the file's content.
            given: metadata and checksums from the client.

        Raises:
            ApiError: INVALID_ARGUMENT if the content has other checksums; others by the conditions.
        """
        size = file.stat().st_size
        _compare(given, checksums)
        kept = {key: given[key] for key in (*SETTABLE, "componentCount") if given.get(key) is not None}
        kept |= {"size": size, **checksums}
        path = self.path(name)
        near = _on_the_disk_of(path, file)
        try:
            with self.lock():
                found = self.find(name)
                conditions.check(f"{self.name}/{name}", found)
                kept["generation"] = generation = _next_generation(found)
                os.utime(near, ns=(generation * 1000, generation * 1000))
                self._put(name, path, near)
                self.keep(name, generation, kept)
                return Stored(self.name, name, path, size, generation, kept)
        finally:
            if near != file:
                near.unlink(missing_ok=True)

    def _put(self, name: str, path: Path, near: Path) -> None:
        try:
            if name.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
                return
            if path.exists() and not path.is_file():
                raise FileExistsError
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(near, path)
        except (FileExistsError, NotADirectoryError):
            text = f"{name}: a file and a folder cannot have one name here ({path} is in the way); choose another object name."
            raise ApiError("INVALID_ARGUMENT", text, "name") from None

    def remove(self, name: str, conditions: Conditions) -> None:
        """Remove an object and the folders that become empty, if the bucket root belongs to the service."""
        self.check_removable()
        with self.lock():
            stored = self.get(name, conditions)
            if name.endswith("/"):
                with contextlib.suppress(OSError):  # it holds objects
                    stored.path.rmdir()
            else:
                stored.path.unlink(missing_ok=True)
            self.local.records.remove_object(self.name, name)
            self._remove_empty(stored.path.parent)

    def _remove_empty(self, folder: Path) -> None:
        """Remove a folder and its parents as far as they are empty; otherwise no object could get their names."""
        while folder != self.folder and not self.find(f"{folder.relative_to(self.folder)}/"):
            try:
                folder.rmdir()  # fails if a job has put a file into it meanwhile
            except OSError:
                return
            folder = folder.parent

    def check_removable(self) -> None:
        """Refuse to remove anything unless the bucket root lies in the service's own state folder."""
        if self.local.state not in self.folder.parents:
            where = f"the bucket root {self.local.buckets} lies outside of the service's own folder {self.local.state}"
            raise ApiError("PERMISSION_DENIED", f"{where}: nothing in it is removed.")


def _compare(given: Mapping[str, Any], own: Mapping[str, str]) -> None:
    """Refuse content whose checksums differ from those that the client gave."""
    for key in CHECKSUMS:
        if (said := given.get(key)) and said != own[key]:
            raise ApiError("INVALID_ARGUMENT", f"{key}: the client says {said}, what arrived has {own[key]}; send it again.", key)


def generation_of(status: os.stat_result) -> int:
    """Return an object's generation from its file's state; at least 1, because 0 means that there is no object."""
    return max(1, status.st_mtime_ns // 1000)


def _next_generation(found: Stored | None) -> int:
    """Return a new generation: the file system's clock is too coarse to tell two writes apart."""
    global _newest
    _newest = max(time.time_ns() // 1000, _newest + 1)
    return max(_newest, found.generation + 1 if found else 0)


_newest = 0


def _is_new(modified: float) -> bool:
    """Return whether a file is so new that another write might leave its modification time unchanged."""
    return abs(time.time() - modified) < 0.1


def _on_the_disk_of(path: Path, file: Path) -> Path:
    """Return `file`, or a copy of it near `path` if that is on another disk, so that a rename can put it in place."""
    near = next(folder for folder in path.parents if folder.is_dir())
    if near.stat().st_dev == file.stat().st_dev:
        return file
    copy = near / f".{secrets.token_hex(16)}.part"
    try:
        shutil.copyfile(file, copy)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise
    return copy


# ------------------------------------------------------------------ content


def checksums_of(pieces: Iterable[bytes], wanted: Iterable[str] = tuple(CHECKSUMS)) -> dict[str, str]:
    """Return checksums of content by the API's names, in base64."""
    digests = {key: _DIGESTS[key]() for key in wanted}
    for piece in pieces:
        for digest in digests.values():
            digest.update(piece)
    return {key: base64.b64encode(digest.digest()).decode() for key, digest in digests.items()}


def pieces_of(path: Path, size: int) -> Iterator[bytes]:
    """Yield a file's first `size` bytes: a job may be appending to it."""
    with open(path, "rb") as file:
        while size and (piece := file.read(min(size, PIECE))):
            size -= len(piece)
            yield piece


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn the error for a full disk into one that tells the client so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        text = f"the disk of {where} is full ({error.strerror}): make room there, then send it again."
        raise ApiError("RESOURCE_EXHAUSTED", text, code=507) from None
