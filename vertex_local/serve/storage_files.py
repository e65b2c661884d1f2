"""Objects as files: names that stay within their bucket, generations, metadata, checksums, and the one way to replace or remove one.

An object is a file, so a file that a job wrote is an object at once. Its generation is the file's time of change in
microseconds; what the store keeps of an object (type, metadata, checksums) holds for one generation only. A folder is no
object, unless a client wrote the placeholder `folder/`, which has no content.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..job import buckets
from .local import Local
from .rest import ApiError, stamp
from .storage_conditions import NONE, Conditions

PIECE = 1 << 20  # bytes that are read at once
SETTABLE = (
    "contentType", "contentEncoding", "contentDisposition", "contentLanguage", "cacheControl", "metadata", "customTime", "storageClass",
)  # fmt: skip
CHECKSUMS = ("crc32c", "md5Hash")
_PLACEHOLDER = 0  # the generation under which the store keeps a folder's placeholder: a folder's time changes with its content
_PART = re.compile(r"\.[0-9a-f]{32}\.part")  # a file that is on its way from another disk
_writing = threading.Lock()  # of this process; over processes a lock on the bucket's folder


def checked_name(name: Any) -> str:
    """Return an object's name; one that is no plain path below its bucket is refused."""
    name = "" if name is None else str(name)
    parts = name.removesuffix("/").split("/")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= 1024 or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts) or re.search("[\0\r\n]", name):
        text = f"object name {name[:80]!a}: here it must be a file's path of 1 to 1024 bytes, without empty parts, '.' or '..'."
        raise ApiError("INVALID_ARGUMENT", text)
    return name


def object_name(quoted: str) -> str:
    """Return the object's name that stands in a URL's path."""
    return checked_name(urllib.parse.unquote(quoted, errors="surrogateescape"))


def is_object(file_name: str) -> bool:
    """Return whether a file, or a folder, of that name can be an object, or hold some."""
    return _is_text(file_name) and not _PART.fullmatch(file_name)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\n" not in name and "\r" not in name


@dataclass(frozen=True)
class Stored:
    """An object as it lies there now; `kept` is what the store holds of this generation."""

    bucket: str
    name: str
    path: Path
    size: int  # bytes
    generation: int
    modified: float  # seconds since 1970
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def metageneration(self) -> int:
        return self.kept.get("metageneration", 1)

    @property
    def etag(self) -> str:
        return f"{self.generation}-{self.metageneration}"

    def resource(self, base: str) -> dict[str, Any]:
        """Return the object as the API describes it; `base` begins its links. Checksums are among it if they are known."""
        path = f"storage/v1/b/{self.bucket}/o/{urllib.parse.quote(self.name, safe='')}"
        created = stamp(self.modified)
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


@dataclass(frozen=True)
class Bucket:
    """A bucket's folder, with what is done to the objects in it."""

    local: Local
    folder: Path

    @classmethod
    def open(cls, local: Local, quoted: str) -> Bucket:
        """Return the bucket that a URL's path names, or answer that there is none."""
        name = urllib.parse.unquote(quoted)
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
        """Let nobody else, in this process or in another service, change an object between a condition and what depends on it."""
        with _writing:
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with contextlib.suppress(OSError):  # some network disks lock no folders; this process is one at a time anyway
                    fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)

    # ------------------------------------------------------------------ what is there

    def path(self, name: str) -> Path:
        """Return an object's file, also of one to be; a link, or what leads out of the bucket over one, is refused."""
        target = self.folder / name
        real = Path(os.path.realpath(target))
        if (real != self.folder and self.folder not in real.parents) or target.is_symlink():
            text = f"{name} is a link, or leads out of its bucket; only files below {self.folder} are served."
            raise ApiError("PERMISSION_DENIED", text)
        return real

    def find(self, name: str) -> Stored | None:
        """Return the object of that name, None where there is none."""
        path = self.path(name)
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if path.is_dir() != name.endswith("/"):
            return None
        if path.is_dir():
            kept = self.local.records.object(self.name, name, _PLACEHOLDER)
            return Stored(self.name, name, path, 0, kept["generation"], kept["generation"] / 1e6, kept) if kept else None
        generation = generation_of(status)
        kept = self.local.records.object(self.name, name, generation)
        if kept.get("size") != status.st_size:
            kept = {}  # a job has written to it since, within one tick of the clock
        return Stored(self.name, name, path, status.st_size, generation, status.st_mtime, kept)

    def get(self, name: str, conditions: Conditions = NONE) -> Stored:
        """Return the object of that name if it is as `conditions` want it; answer NOT_FOUND where there is none."""
        found = self.find(name)
        conditions.check(f"{self.name}/{name}", found)
        if found is None:
            raise ApiError("NOT_FOUND", f"No such object: {self.name}/{name}")
        return found

    def with_checksums(self, stored: Stored, *wanted: str) -> Stored:
        """Return the object with these checksums among what is kept: computed once for each generation of a job's file."""
        if all(key in stored.kept for key in wanted) or stored.name.endswith("/"):
            return stored
        try:
            checksums = checksums_of(stored.path, stored.size, wanted)
            status = stored.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise ApiError("NOT_FOUND", f"No such object: {self.name}/{stored.name}") from None
        kept = {**stored.kept, "size": stored.size, **checksums}
        if (generation_of(status), status.st_size) == (stored.generation, stored.size) and not _is_new(status.st_mtime):
            self.keep(stored.name, stored.generation, kept)
        return replace(stored, kept=kept)

    def keep(self, name: str, generation: int, kept: Mapping[str, Any]) -> None:
        """Keep what belongs to one generation of an object beside its content."""
        self.local.records.set_object(self.name, name, generation, kept)

    # ------------------------------------------------------------------ changes

    def publish(self, name: str, content: Content, conditions: Conditions) -> Stored:
        """Put finished content in an object's place, in one step, if what is there is as `conditions` want it."""
        content.compare_checksums()
        path = self.path(name)
        near = _on_the_disk_of(path, content.file)
        try:
            with self.lock():
                found = self.find(name)
                conditions.check(f"{self.name}/{name}", found)
                generation = _next_generation(found)
                kept = {**content.about(), "size": content.size, **content.checksums}
                if name.endswith("/"):
                    kept["generation"], key = generation, _PLACEHOLDER
                else:
                    os.utime(near, ns=(generation * 1000, generation * 1000))
                    key = generation
                self._put(name, path, near)
                self.keep(name, key, kept)
                return Stored(self.name, name, path, content.size, generation, generation / 1e6, kept)
        finally:
            if near != content.file:
                near.unlink(missing_ok=True)

    def _put(self, name: str, path: Path, near: Path) -> None:
        try:
            if name.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
                return
            if path.is_dir():
                raise FileExistsError
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(near, path)
        except (FileExistsError, NotADirectoryError):
            text = f"{name}: a file and a folder cannot have one name here ({path} is in the way); choose another object name."
            raise ApiError("INVALID_ARGUMENT", text, "name") from None

    def remove(self, name: str, conditions: Conditions) -> None:
        """Remove an object and the folders that are empty without it, if the bucket root is the service's own."""
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
        """Remove a folder and those above it that hold nothing: else no object could have their names any more."""
        while folder != self.folder and not self.find(f"{folder.relative_to(self.folder)}/"):
            try:
                folder.rmdir()  # fails for one that a job has put something in meanwhile
            except OSError:
                return
            folder = folder.parent

    def check_removable(self) -> None:
        """Refuse to remove anything unless the bucket root lies in the service's own state folder."""
        if self.local.state not in self.folder.parents:
            where = f"the bucket root {self.local.buckets} lies outside of the service's own folder {self.local.state}"
            raise ApiError("PERMISSION_DENIED", f"{where}: nothing in it is removed.")


@dataclass
class Content:
    """Finished content in a file of its own, on its way to an object; `given` is what the client says of the object."""

    file: Path
    given: Mapping[str, Any]
    size: int
    checksums: dict[str, str]

    @classmethod
    def of(cls, file: Path, given: Mapping[str, Any]) -> Content:
        """Return the content that lies in `file`, which is read for its checksums."""
        size = file.stat().st_size
        return cls(file, given, size, checksums_of(file, size, CHECKSUMS))

    def about(self) -> dict[str, Any]:
        """Return what is kept of the object beside its content."""
        return {key: self.given[key] for key in (*SETTABLE, "componentCount") if self.given.get(key) is not None}

    def compare_checksums(self) -> None:
        """Refuse content that is not what the client sent by the checksums that it gave."""
        for key in CHECKSUMS:
            given, own = self.given.get(key), self.checksums.get(key)
            if given and own and given != own:
                raise ApiError("INVALID_ARGUMENT", f"{key}: the client says {given}, what arrived has {own}; send it again.", key)


def settable(body: Any) -> dict[str, Any]:
    """Return what a client may set of an object out of its metadata; values that cannot be headers are refused."""
    if not isinstance(body, dict):
        raise ApiError("INVALID_ARGUMENT", f"an object's metadata must be a JSON object; got {type(body).__name__}.")
    given = {key: body[key] for key in SETTABLE if key in body}
    for key, value in given.items():
        if value is None:
            continue
        parts = list(value.values()) if key == "metadata" and isinstance(value, dict) else [value]
        if not all(part is None or (isinstance(part, str) and not set("\r\n") & set(part)) for part in parts):
            raise ApiError("INVALID_ARGUMENT", f"{key} takes {'lines of text by name' if key == 'metadata' else 'one line of text'}.", key)
    return given


def generation_of(status: os.stat_result) -> int:
    """Return the generation of an object whose file is in that state; 0 stands for an object that is not there."""
    return max(1, status.st_mtime_ns // 1000)


def _next_generation(found: Stored | None) -> int:
    """Return a generation that no object has had: the file system's own clock ticks too slowly to tell two writes apart."""
    global _newest
    _newest = max(time.time_ns() // 1000, _newest + 1)
    return max(_newest, found.generation + 1 if found else 0)


_newest = 0


def _is_new(modified: float) -> bool:
    """Return whether a file may be written to again without getting another time of change."""
    return abs(time.time() - modified) < 0.1


def _on_the_disk_of(path: Path, file: Path) -> Path:
    """Return `file`, or a copy near `path` where that is another disk, so that it can be put in its place in one step."""
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


class Digest:
    """The checksums of content, as clients compare them, while it goes by."""

    def __init__(self, wanted: tuple[str, ...] = CHECKSUMS):
        self._parts: dict[str, Any] = {}
        if "md5Hash" in wanted:
            self._parts["md5Hash"] = hashlib.md5(usedforsecurity=False)
        with contextlib.suppress(ImportError):  # comes with google-cloud-storage; clients check MD5 without it
            import google_crc32c

            if "crc32c" in wanted:
                self._parts["crc32c"] = google_crc32c.Checksum()

    def update(self, piece: bytes) -> None:
        for part in self._parts.values():
            part.update(piece)

    def result(self) -> dict[str, str]:
        """Return the checksums by the API's names, in base64."""
        return {key: base64.b64encode(part.digest()).decode() for key, part in self._parts.items()}


def checksums_of(path: Path, size: int, wanted: tuple[str, ...]) -> dict[str, str]:
    """Return checksums of a file's first `size` bytes: a job may be appending to it."""
    digest = Digest(wanted)
    for piece in pieces_of(path, size):
        digest.update(piece)
    return digest.result()


def pieces_of(path: Path, size: int) -> Iterator[bytes]:
    """Yield a file's first `size` bytes."""
    if not size:
        return
    with open(path, "rb") as file:
        while size and (piece := file.read(min(size, PIECE))):
            size -= len(piece)
            yield piece


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Tell a client that the disk is full, instead of an internal error."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        text = f"the disk of {where} takes no more ({error.strerror}): make room there, then send it again."
        raise ApiError("RESOURCE_EXHAUSTED", text, code=507) from None
