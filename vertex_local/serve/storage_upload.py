"""Writing objects: uploads in one request (media, multipart) or in pieces (resumable), copies, and composed objects.

Unfinished content lies in the folder uploads/ of the service: the file `KEY` is content; `KEY.json` beside it marks a
resumable upload, which outlives the service and expires after a week without a request, as on Cloud Storage.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import quoted
from . import storage_files as files
from . import storage_missing
from .local import Local
from .rest import Answer, ApiError, Request
from .storage_conditions import Conditions
from .storage_files import CHECKSUMS, SETTABLE, Bucket, Stored
from .storage_multipart import LONGEST_METADATA, parts

EXPIRY = 7 * 24 * 3600.0  # seconds without a request
MOST_SESSIONS = 1000  # resumable uploads at once
_MOST_FINISHED = 1000  # finished uploads whose answer can be asked for again
_RANGE = re.compile(r"bytes (?:([0-9]{1,15})-([0-9]{1,15})|\*)/([0-9]{1,15}|\*)")
_NOT_OF_A_LINE = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")  # what no header can hold


def settable(body: Any) -> dict[str, Any]:
    """Return the fields of an object's metadata that a client may set.

    Raises:
        ApiError: UNIMPLEMENTED for a feature that is not imitated, INVALID_ARGUMENT for values that cannot be headers.
    """
    if not isinstance(body, dict):
        raise ApiError("INVALID_ARGUMENT", f"an object's metadata must be a JSON object; got {type(body).__name__}.")
    storage_missing.refuse(body, storage_missing.OF_OBJECTS)
    given = {key: body[key] for key in SETTABLE if key in body}
    for key, value in given.items():
        if key == "metadata":
            wanted, right = "lines of text by name", value is None or (isinstance(value, dict) and all(map(_is_line, value.values())))
        else:
            wanted, right = "one line of text", _is_line(value)
        if not right:
            raise ApiError("INVALID_ARGUMENT", f"{key} takes {wanted}; got {quoted(value)}.", key)
    return given


def _is_line(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not _NOT_OF_A_LINE.search(value))


def _described(request: Request, body: Any) -> dict[str, Any]:
    """Return the metadata and checksums that a client gives for an object's content; errors as of `settable`."""
    given = {**settable(body), **_checksums_given(request.headers)}
    return given | {key: body[key] for key in CHECKSUMS if isinstance(body.get(key), str)}


def _checksums_given(headers: Mapping[str, str]) -> dict[str, str]:
    words = dict(word.strip().partition("=")[::2] for word in headers.get("X-Goog-Hash", "").split(","))
    return {key: words[name] for key, name in CHECKSUMS.items() if name in words}


# ------------------------------------------------------------------ copies


def copy_object(request: Request, bucket: Bucket, name: str, target_bucket: Bucket, target: str) -> dict[str, Any]:
    """Copy an object (copyTo, or rewriteTo in a single step)."""
    source = bucket.get(name, Conditions.of(request.query, source=True))
    about = {key: source.kept[key] for key in SETTABLE if key in source.kept}
    about.update(_described(request, request.json()))
    made = _write(target_bucket, target, source.pieces(), about, request)
    if "/rewriteTo/b/" not in request.path:
        return made
    size = str(source.size)
    return {"kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size, "done": True, "resource": made}


def compose(request: Request, bucket: Bucket, name: str) -> dict[str, Any]:
    """Join objects, such as the parts of a parallel upload, into one."""
    body = request.json()
    sources = body.get("sourceObjects", [])
    if not isinstance(sources, list) or not 1 <= len(sources) <= 32 or not all(isinstance(each, dict) for each in sources):
        raise ApiError("INVALID_ARGUMENT", "sourceObjects takes 1 to 32 objects.", "sourceObjects")
    joined = [_part_of(bucket, each) for each in sources]
    about = _described(request, body.get("destination") or {})
    about["componentCount"] = sum(part.kept.get("componentCount", 1) for part in joined)
    return _write(bucket, name, itertools.chain.from_iterable(part.pieces() for part in joined), about, request)


def _part_of(bucket: Bucket, source: dict[str, Any]) -> Stored:
    demands = source.get("objectPreconditions") or {}
    query = {"generation": str(source.get("generation") or "")}
    if isinstance(demands, dict) and "ifGenerationMatch" in demands:
        query["ifGenerationMatch"] = str(demands["ifGenerationMatch"])
    return bucket.get(files.checked_name(source.get("name")), Conditions.of(query))


def _write(bucket: Bucket, name: str, pieces: Iterator[bytes], about: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Write an object to a temporary file, put it in place in one step, on the request's conditions, and return its resource."""
    conditions = Conditions.of(request.query)
    scratch = uploads(bucket.local) / secrets.token_hex(16)
    try:
        with files.disk_errors(scratch.parent):
            with open(scratch, "xb") as file:
                checksums = files.checksums_of(_written(file, pieces))
            return bucket.publish(name, scratch, checksums, about, conditions).resource(request.base)
    finally:
        scratch.unlink(missing_ok=True)


def _written(file: BinaryIO, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        file.write(piece)
        yield piece


# ------------------------------------------------------------------ uploads


def upload(request: Request, bucket: Bucket) -> Any:
    """Take an object in one request (media, multipart), or begin a resumable upload."""
    way = request.query.get("uploadType")
    if way == "resumable":
        return _begin(request, bucket)
    if way == "media":
        about, pieces = {"contentType": request.headers.get("Content-Type")}, _body(request)
    elif way == "multipart":
        about, pieces = parts(request.stream, request.headers.get("Content-Type", ""))
    else:
        raise ApiError("INVALID_ARGUMENT", f"uploadType takes media, multipart or resumable; got {str(way)[:100]!r}.", "uploadType")
    return _write(bucket, _named(request, about), pieces, _described(request, about), request)


def _named(request: Request, about: Mapping[str, Any]) -> str:
    return files.checked_name(about.get("name") or request.query.get("name"))


def _body(request: Request) -> Iterator[bytes]:
    while piece := request.stream.read(files.PIECE):
        yield piece


def uploads(local: Local) -> Path:
    """Return the folder of unfinished uploads."""
    folder = local.state / "serve" / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clear_uploads(folder: Path) -> None:
    """Remove what no client can continue: half objects of a killed service, and expired uploads.

    It must be called while nothing is being uploaded: at the service's start.
    """
    for file in folder.iterdir():
        if not file.with_suffix(".json").exists():
            file.unlink()
    _expire(folder)


def _expire(folder: Path) -> int:
    """Remove resumable uploads without a request for a week; return how many are left."""
    left = 0
    for about in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # finished meanwhile
            both = [*folder.glob(f"{about.stem}*")]
            if time.time() - max(path.stat().st_mtime for path in both) < EXPIRY:
                left += 1
                continue
            for path in both:
                path.unlink()
    return left


# ------------------------------------------------------------------ resumable uploads

_beginning = threading.Lock()
_finished: dict[str, Stored] = {}  # the latest objects from resumable uploads, by the upload's key


@dataclass(frozen=True)
class Session:
    """A resumable upload: the file of its content so far, and a file about the object beside it."""

    key: str
    content: Path

    @classmethod
    def begin(cls, local: Local, about: Mapping[str, Any]) -> Session:
        """Begin an upload; raise an ApiError if too many are open."""
        key = secrets.token_hex(16)
        session = cls(key, uploads(local) / key)
        with _beginning:
            if _expire(session.content.parent) >= MOST_SESSIONS:
                text = f"{MOST_SESSIONS} resumable uploads are open, no more are taken: finish or cancel some (uploads/ holds them)."
                raise ApiError("RESOURCE_EXHAUSTED", text)
            with files.disk_errors(session.content.parent):
                session.about_file.write_text(json.dumps(about))
                session.content.touch()
        return session

    @classmethod
    def find(cls, local: Local, request: Request) -> Session:
        """Return the upload that a request names, which may have ended."""
        key = request.query.get("upload_id", "")
        if not re.fullmatch("[0-9a-f]{32}", key):
            raise _no_such_upload()
        return cls(key, uploads(local) / key)

    @property
    def about_file(self) -> Path:
        return self.content.with_suffix(".json")

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the content so far, for one request at a time."""
        try:
            file = open(self.content, "r+b")
        except FileNotFoundError:
            raise _no_such_upload() from None
        with file, files.disk_errors(self.content.parent):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ApiError("UNAVAILABLE", "another request is sending to this upload; try again when it has ended.") from None
            if not self.content.exists():
                raise ApiError("NOT_FOUND", "this upload has just ended.")
            yield file

    def forget(self) -> None:
        """Remove what is left of the upload."""
        self.content.unlink(missing_ok=True)
        self.about_file.unlink(missing_ok=True)


def _no_such_upload() -> ApiError:
    return ApiError("NOT_FOUND", "there is no such upload; begin it again.")


def _begin(request: Request, bucket: Bucket) -> Answer:
    if request.length > LONGEST_METADATA:
        raise ApiError("INVALID_ARGUMENT", "an object's metadata has at most 1 MiB.", code=413)
    about = {"contentType": request.headers.get("X-Upload-Content-Type"), **request.json()}
    name, conditions = _named(request, about), Conditions.of(request.query)
    about = _described(request, about)
    conditions.check(f"{bucket.name}/{name}", bucket.find(name))
    wanted = {"bucket": bucket.name, "name": name, "about": about, "conditions": conditions.parameters}
    session = Session.begin(bucket.local, wanted)
    where = f"{request.base}/upload/storage/v1/b/{bucket.name}/o?uploadType=resumable&upload_id={session.key}"
    return Answer(200, b"", {"Location": where, "X-GUploader-UploadID": session.key})


def resume(request: Request, bucket: Bucket) -> Any:
    """Take a piece of a resumable upload, or say how many bytes have arrived (308); the last piece makes the object."""
    session = Session.find(bucket.local, request)
    if session.key in _finished:  # the client did not get the answer
        return _finished[session.key].resource(request.base)
    header = request.headers.get("Content-Range") or f"bytes 0-{request.length - 1}/{request.length}"
    match = _RANGE.fullmatch(header if request.length or header.startswith("bytes *") else "bytes */0")
    if not match:
        text = f"Content-Range takes 'bytes 0-99/100', 'bytes 0-99/*' or 'bytes */100'; got {header[:100]!r}."
        raise ApiError("INVALID_ARGUMENT", text)
    with session.open() as file:
        have = file.seek(0, os.SEEK_END)
        if match[1] is not None:
            have = _append(request, file, have, int(match[1]), int(match[2]))
        if match[3] == "*" or have < int(match[3]):
            return Answer(308, headers={"Range": f"bytes=0-{have - 1}"} if have else {})
        if have > int(match[3]):
            raise ApiError("INVALID_ARGUMENT", f"the object has {match[3]} bytes, but {have} arrived; send the rest.")
        file.flush()
        return _finish(bucket.local, request, session).resource(request.base)


def _append(request: Request, file: BinaryIO, have: int, first: int, last: int) -> int:
    """Write a piece at its offset, which must not be beyond the `have` bytes; replace what follows; return the new size in bytes."""
    if last - first + 1 != request.length or first > have:
        text = f"bytes {first}-{last} in {request.length} bytes of body must follow the {have} bytes that are here."
        raise ApiError("INVALID_ARGUMENT", text)
    file.seek(first)
    file.truncate()
    file.writelines(_body(request))
    return file.tell()


def _finish(local: Local, request: Request, session: Session) -> Stored:
    wanted = json.loads(session.about_file.read_text())
    given = {**wanted["about"], **_checksums_given(request.headers)}
    into = Bucket.open(local, wanted["bucket"])
    try:
        checksums = files.checksums_of(files.pieces_of(session.content, session.content.stat().st_size))
        made = into.publish(wanted["name"], session.content, checksums, given, Conditions(wanted["conditions"]))
    except ApiError as error:
        if error.code < 500:
            session.forget()  # the checksums differ, or the object may not be replaced: the client must begin again
        raise
    session.forget()
    _finished[session.key] = made
    if len(_finished) > _MOST_FINISHED:
        del _finished[next(iter(_finished))]
    return made


def cancel_upload(request: Request, bucket: Bucket) -> Answer:
    """Remove a resumable upload and its content so far."""
    session = Session.find(bucket.local, request)
    with session.open():
        session.forget()
    return Answer(499, ApiError("CANCELLED", "the upload is cancelled.").body())
