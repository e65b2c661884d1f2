"""Writing objects: uploads in one request (media, multipart) or in pieces (resumable), copies, and composed objects.

Unfinished content lies in the folder uploads/ of the service: the file `KEY` is content; `KEY.json` beside it marks a
resumable upload, which outlives the service and expires after a week without a request, as on Cloud Storage.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from . import storage_files as files
from .local import Local
from .rest import Answer, ApiError, Request
from .storage_conditions import Conditions
from .storage_files import Bucket, Content, Stored
from .storage_multipart import Body

EXPIRY = 7 * 24 * 3600.0  # seconds without a request
MOST_SESSIONS = 1000  # resumable uploads at once
_MOST_FINISHED = 1000  # finished uploads whose answer can be asked for again
_UPLOAD_ID = re.compile("[0-9a-f]{32}")
_RANGE = re.compile(r"bytes (?:([0-9]{1,15})-([0-9]{1,15})|\*)/([0-9]{1,15}|\*)")
_LONGEST_METADATA = 1 << 20
_HASHES = {"crc32c": "crc32c", "md5": "md5Hash"}  # names in the header X-Goog-Hash
# Settings of an object that are refused.
_UNSUPPORTED = {
    "acl": "Access control lists", "predefinedAcl": "Access control lists", "destinationPredefinedAcl": "Access control lists",
    "kmsKeyName": "Encryption keys", "destinationKmsKeyName": "Encryption keys", "retention": "Retention", "temporaryHold": "Holds",
    "eventBasedHold": "Holds", "contexts": "Object contexts",
}  # fmt: skip


def described(request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata and checksums that a client gives for an object.

    Raises:
        ApiError: UNIMPLEMENTED for a feature that is not imitated, INVALID_ARGUMENT for wrong metadata.
    """
    for key, feature in _UNSUPPORTED.items():
        if body.get(key) or request.query.get(key):
            raise ApiError("UNIMPLEMENTED", f"{feature} are not imitated by the local service: leave {key} out.", key)
    if request.headers.get("X-Goog-Encryption-Key") or request.headers.get("X-Goog-Encryption-Algorithm"):
        raise ApiError("UNIMPLEMENTED", "Customer-supplied encryption keys are not imitated by the local service: leave them out.")
    return {**files.settable(dict(body)), **_checksums_given(request.headers), **{
        key: body[key] for key in files.CHECKSUMS if isinstance(body.get(key), str)
    }}  # fmt: skip


def _checksums_given(headers: Mapping[str, str]) -> dict[str, str]:
    words = (word.strip().partition("=") for word in headers.get("X-Goog-Hash", "").split(","))
    return {_HASHES[name.lower()]: value for name, _, value in words if name.lower() in _HASHES}


# ------------------------------------------------------------------ copies


def copy_object(local: Local, request: Request, bucket: str, object: str, target_bucket: str, target: str, verb: str) -> dict[str, Any]:  # noqa: A002
    """Copy an object (copyTo, or rewriteTo in a single step)."""
    source = Bucket.open(local, bucket).get(files.object_name(object), Conditions.of(request.query, source=True))
    about = {key: source.kept[key] for key in files.SETTABLE if key in source.kept}
    about.update(described(request, request.json()))
    into = Bucket.open(local, target_bucket)
    content = files.pieces_of(source.path, source.size)
    made = _write(into, files.object_name(target), content, about, Conditions.of(request.query)).resource(request.base)
    if verb == "copyTo":
        return made
    size = str(source.size)
    return {"kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size, "done": True, "resource": made}


def compose(local: Local, request: Request, bucket: str, object: str) -> dict[str, Any]:  # noqa: A002
    """Join objects, such as the parts of a parallel upload, into one."""
    into, name, body = Bucket.open(local, bucket), files.object_name(object), request.json()
    sources = body.get("sourceObjects", [])
    if not isinstance(sources, list) or not 1 <= len(sources) <= 32 or not all(isinstance(each, dict) for each in sources):
        raise ApiError("INVALID_ARGUMENT", "sourceObjects takes 1 to 32 objects.", "sourceObjects")
    parts = [_part_of(into, each) for each in sources]
    about = described(request, body.get("destination") or {})
    about["componentCount"] = sum(part.kept.get("componentCount", 1) for part in parts)
    pieces = (piece for part in parts for piece in files.pieces_of(part.path, part.size))
    return _write(into, name, pieces, about, Conditions.of(request.query)).resource(request.base)


def _part_of(bucket: Bucket, source: dict[str, Any]) -> Stored:
    demands = source.get("objectPreconditions") or {}
    query = {"generation": str(source.get("generation") or "")}
    if isinstance(demands, dict) and "ifGenerationMatch" in demands:
        query["ifGenerationMatch"] = str(demands["ifGenerationMatch"])
    return bucket.get(files.checked_name(source.get("name")), Conditions.of(query))


def _write(bucket: Bucket, name: str, pieces: Iterator[bytes], about: Mapping[str, Any], conditions: Conditions) -> Stored:
    """Write an object to a temporary file, compute its checksums meanwhile, and put it in place in one step."""
    scratch, digest, size = uploads(bucket.local) / secrets.token_hex(16), files.Digest(), 0
    try:
        with files.disk_errors(scratch.parent):
            with open(scratch, "xb") as file:
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                    size += len(piece)
            return bucket.publish(name, Content(scratch, about, size, digest.result()), conditions)
    finally:
        scratch.unlink(missing_ok=True)


# ------------------------------------------------------------------ uploads


def upload(local: Local, request: Request, bucket: str) -> Any:
    """Take an object in one request (media, multipart), or begin a resumable upload."""
    into, way = Bucket.open(local, bucket), request.query.get("uploadType")
    conditions = Conditions.of(request.query)
    if way == "media":
        name = files.checked_name(request.query.get("name"))
        about = described(request, {"contentType": request.headers.get("Content-Type")})
        return _write(into, name, _body(request), about, conditions).resource(request.base)
    if way == "multipart":
        body = Body(request.stream, request.headers.get("Content-Type", ""))
        about = body.metadata()
        name = files.checked_name(about.get("name") or request.query.get("name"))
        return _write(into, name, body.content(), described(request, about), conditions).resource(request.base)
    if way != "resumable":
        raise ApiError("INVALID_ARGUMENT", f"uploadType takes media, multipart or resumable; got {str(way)[:100]!r}.", "uploadType")
    if request.length > _LONGEST_METADATA:
        raise ApiError("INVALID_ARGUMENT", "an object's metadata has at most 1 MiB.", code=413)
    about = {"contentType": request.headers.get("X-Upload-Content-Type"), **request.json()}
    name = files.checked_name(about.get("name") or request.query.get("name"))
    about = described(request, about)
    conditions.check(f"{into.name}/{name}", into.find(name))
    session = Session.begin(local, {"bucket": into.name, "name": name, "about": about, "conditions": conditions.to_json()})
    where = f"{request.base}/upload/storage/v1/b/{into.name}/o?uploadType=resumable&upload_id={session.key}"
    return Answer(200, b"", {"Location": where, "X-GUploader-UploadID": session.key})


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
            content = about.with_suffix("")
            last = max(path.stat().st_mtime for path in (about, content) if path is about or path.exists())
            if time.time() - last < EXPIRY:
                left += 1
                continue
            content.unlink(missing_ok=True)
            about.unlink(missing_ok=True)
    return left


# ------------------------------------------------------------------ resumable uploads

_beginning = threading.Lock()
_finished: OrderedDict[str, Stored] = OrderedDict()  # the latest objects from resumable uploads, by the upload's key


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
        if not _UPLOAD_ID.fullmatch(key):
            raise ApiError("NOT_FOUND", "there is no such upload; begin it again.")
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
            raise ApiError("NOT_FOUND", "there is no such upload; begin it again.") from None
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


def resume(local: Local, request: Request, bucket: str) -> Any:
    """Take a piece of a resumable upload, or say how many bytes have arrived (308); the last piece makes the object."""
    session = Session.find(local, request)
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
            have = _append(request, file, int(match[1]), int(match[2]))
        if match[3] == "*" or have < int(match[3]):
            return Answer(308, headers={"Range": f"bytes=0-{have - 1}"} if have else {})
        if have > int(match[3]):
            raise ApiError("INVALID_ARGUMENT", f"the object has {match[3]} bytes, but {have} arrived; send the rest.")
        file.flush()
        return _finish(local, request, session).resource(request.base)


def _append(request: Request, file: BinaryIO, first: int, last: int) -> int:
    """Write a piece at its offset, which must not be beyond the end; replace what follows; return the new size in bytes."""
    have = file.seek(0, os.SEEK_END)
    if last - first + 1 != request.length or first > have:
        text = f"bytes {first}-{last} in {request.length} bytes of body must follow the {have} bytes that are here."
        raise ApiError("INVALID_ARGUMENT", text)
    file.seek(first)
    file.truncate()
    for piece in _body(request):
        file.write(piece)
    return file.tell()


def _finish(local: Local, request: Request, session: Session) -> Stored:
    about = json.loads(session.about_file.read_text())
    given = {**about["about"], **_checksums_given(request.headers)}
    into = Bucket.open(local, about["bucket"])
    try:
        made = into.publish(about["name"], Content.of(session.content, given), Conditions(about.get("conditions", {})))
    except ApiError as error:
        if error.code < 500:
            session.forget()  # the checksums differ, or the object may not be replaced: the client must begin again
        raise
    session.forget()
    _finished[session.key] = made
    while len(_finished) > _MOST_FINISHED:
        _finished.popitem(last=False)
    return made


def cancel_upload(local: Local, request: Request, bucket: str) -> Answer:
    """Remove a resumable upload and its content so far."""
    session = Session.find(local, request)
    with session.open():
        session.forget()
    return Answer(499, ApiError("CANCELLED", "the upload is cancelled.").body())
