"""Writing objects: uploads in one request (media, multipart) and in pieces (resumable), copies, and what is put together."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import storage_files as files
from .local import Local
from .rest import Answer, ApiError, Request

_UPLOAD_ID = re.compile("[0-9a-f]{32}")
_RANGE = re.compile(r"bytes (?:(\d{1,15})-(\d{1,15})|\*)/(\d{1,15}|\*)")


def copy_object(local: Local, request: Request, bucket: str, object: str, target_bucket: str, target: str, verb: str) -> dict[str, Any]:  # noqa: A002
    """Copy an object (copyTo, or rewriteTo in a single step)."""
    source, name = files.bucket_folder(local, bucket), files.object_name(object)
    resource = files.resource(local, request, source, name)
    folder, new = files.bucket_folder(local, target_bucket), files.object_name(target)
    about = files.settable({**{key: resource[key] for key in files.SETTABLE if key in resource}, **request.json()})
    result = _write(local, request, folder, new, files.pieces_of(files.place(source, name)), about)
    if verb == "copyTo":
        return result
    size = resource["size"]
    return {"kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size, "done": True, "resource": result}


def compose(local: Local, request: Request, bucket: str, object: str) -> dict[str, Any]:  # noqa: A002
    """Make one object of the parts that a parallel upload left."""
    folder, name, body = files.bucket_folder(local, bucket), files.object_name(object), request.json()
    sources = body.get("sourceObjects", [])
    if not isinstance(sources, list) or not 1 <= len(sources) <= 32 or not all(isinstance(each, dict) for each in sources):
        raise ApiError("INVALID_ARGUMENT", "sourceObjects takes 1 to 32 objects.", "sourceObjects")
    paths = [files.place(folder, files.checked_name(str(each.get("name", "")))) for each in sources]
    for path in paths:
        if not path.is_file():
            raise ApiError("NOT_FOUND", f"No such object: {folder.name}/{path.relative_to(folder)}")
    pieces = (piece for path in paths for piece in files.pieces_of(path))
    return _write(local, request, folder, name, pieces, files.settable(body.get("destination", {})))


def _write(local: Local, request: Request, folder: Path, name: str, pieces: Iterator[bytes], about: dict[str, Any]) -> dict[str, Any]:
    """Write an object beside its place and put it there in one step."""
    scratch = _scratch(local) / secrets.token_hex(16)
    try:
        with open(scratch, "xb") as file:
            for piece in pieces:
                file.write(piece)
        return _publish(local, request, folder, name, scratch, about)
    finally:
        scratch.unlink(missing_ok=True)


def _scratch(local: Local) -> Path:
    """Return the folder of unfinished uploads."""
    folder = local.state / "serve" / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _publish(local: Local, request: Request, folder: Path, name: str, scratch: Path, about: dict[str, Any]) -> dict[str, Any]:
    sums = files.sums_of(scratch)
    for key in ("md5Hash", "crc32c"):
        if about.get(key) and key in sums and about[key] != sums[key]:
            text = f"{key}: the client says {about[key]}, what arrived has {sums[key]}; send it again."
            raise ApiError("INVALID_ARGUMENT", text, key)
    path = files.place(folder, name)
    with files.one_at_a_time:
        return _replace(local, request, folder, name, path, scratch, about, sums)


def _replace(
    local: Local, request: Request, folder: Path, name: str, path: Path, scratch: Path, about: dict[str, Any], sums: dict[str, str]
) -> dict[str, Any]:
    """Put an object in its place if its generation there is as asked for."""
    files.check_conditions(request, folder, name)
    try:
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        elif path.is_dir():
            raise FileExistsError
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _move(scratch, path)
    except (FileExistsError, NotADirectoryError):
        text = f"{name}: a file and a folder cannot have one name here; choose another object name."
        raise ApiError("INVALID_ARGUMENT", text, "name") from None
    status = path.stat()
    kept = {**{key: value for key, value in about.items() if key in files.SETTABLE and value is not None}, "size": status.st_size, **sums}
    local.records.set_object(folder.name, name, status.st_mtime_ns // 1000, kept)
    return files.resource(local, request, folder, name, path)


def _move(scratch: Path, path: Path) -> None:
    """Put a finished upload in its place in one step, also from one disk to another."""
    try:
        os.replace(scratch, path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        near = path.with_name(f".{secrets.token_hex(8)}.part")
        shutil.copyfile(scratch, near)
        os.replace(near, path)


def upload(local: Local, request: Request, bucket: str) -> Any:
    """Take an object in one request (media, multipart), or begin a resumable upload."""
    folder, way = files.bucket_folder(local, bucket), request.query.get("uploadType")
    if way == "media":
        name = files.checked_name(request.query.get("name", ""))
        return _write(local, request, folder, name, _body(request), {"contentType": request.headers.get("Content-Type")})
    if way == "multipart":
        return _multipart(local, request, folder)
    if way != "resumable":
        raise ApiError("INVALID_ARGUMENT", f"uploadType takes media, multipart or resumable; got {way!r}.", "uploadType")
    if request.length > files.PIECE:
        raise ApiError("INVALID_ARGUMENT", "an object's metadata has at most 1 MiB.", code=413)
    about = {**request.json()}
    name = files.checked_name(str(about.get("name") or request.query.get("name", "")))
    about.setdefault("contentType", request.headers.get("X-Upload-Content-Type"))
    kept = {**files.settable(about), **{key: about[key] for key in ("md5Hash", "crc32c") if isinstance(about.get(key), str)}}
    files.check_conditions(request, folder, name)
    key = secrets.token_hex(16)
    conditions = {key: value for key, value in request.query.items() if key.startswith("if")}
    session = {"bucket": folder.name, "name": name, "about": kept, "query": conditions}
    (_scratch(local) / f"{key}.json").write_text(json.dumps(session))
    (_scratch(local) / key).touch()
    where = f"{request.base}/upload/storage/v1/b/{folder.name}/o?uploadType=resumable&upload_id={key}"
    return Answer(200, b"", {"Location": where, "X-GUploader-UploadID": key})


def _body(request: Request) -> Iterator[bytes]:
    while piece := request.stream.read(files.PIECE):
        yield piece


def _multipart(local: Local, request: Request, folder: Path) -> dict[str, Any]:
    """Take metadata and content in one body; its two parts are read without holding the second one in memory."""
    boundary = re.search(r'boundary="?([^";]{1,200})"?', request.headers.get("Content-Type", ""))
    if not boundary:
        raise ApiError("INVALID_ARGUMENT", "a multipart upload needs Content-Type: multipart/related; boundary=….")
    mark = b"--" + boundary[1].strip("'").encode()
    about, part_head, newline, content = _first_part(request, mark)
    try:
        about = json.loads(about)
    except ValueError as error:
        raise ApiError("INVALID_ARGUMENT", f"the first part is not JSON: {error}") from None
    if not isinstance(about, dict):
        raise ApiError("INVALID_ARGUMENT", "the first part must be a JSON object.")
    kind = re.search(rb"(?im)^content-type:[ \t]*([^\r\n]+)", part_head)
    about.setdefault("contentType", kind and kind[1].decode("latin-1"))
    name = files.checked_name(str(about.get("name") or request.query.get("name", "")))
    kept = {**files.settable(about), **{key: about[key] for key in ("md5Hash", "crc32c") if isinstance(about.get(key), str)}}
    return _write(local, request, folder, name, _until(request, content, mark, newline), kept)


def _first_part(request: Request, mark: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return the metadata's text, the second part's headers, the line end in use, and what has been read of the content."""
    head = b""
    form = rb"(?s)\s*MARK[ \t]*(\r?\n)(?:[^\r\n]+\1)*\1(.*?)\1MARK[ \t]*\1((?:[^\r\n]+\1)*)\1(.*)"
    while not (parts := re.fullmatch(form.replace(b"MARK", re.escape(mark)), head)):
        piece = request.stream.read(files.PIECE)
        head += piece
        if not piece or len(head) > 8 * files.PIECE:
            raise ApiError("INVALID_ARGUMENT", "a multipart upload has two parts: metadata in JSON, then the content.")
    return parts[2], parts[3], parts[1], parts[4]


def _until(request: Request, data: bytes, mark: bytes, newline: bytes) -> Iterator[bytes]:
    """Yield the content of the last part, which ends where the closing mark begins."""
    end, keep = newline + mark + b"--", len(newline + mark) + 8
    while True:
        piece = request.stream.read(files.PIECE)
        data += piece
        if not piece:
            break
        yield data[:-keep]
        data = data[-keep:]
    place = data.rfind(end)
    if place < 0:
        raise ApiError("INVALID_ARGUMENT", "the multipart body does not end with its closing boundary.")
    yield data[:place]


def resume(local: Local, request: Request, bucket: str) -> Any:
    """Take a piece of a resumable upload, or say how far it has come (308); the last piece makes the object."""
    key = request.query.get("upload_id", "")
    file = _scratch(local) / key
    if not _UPLOAD_ID.fullmatch(key) or not file.is_file():
        raise ApiError("NOT_FOUND", "there is no such upload; begin it again.")
    session = json.loads((file.parent / f"{key}.json").read_text())
    header = request.headers.get("Content-Range") or f"bytes 0-{request.length - 1}/{request.length}"
    match = _RANGE.fullmatch(header if request.length or header.startswith("bytes *") else "bytes */0")
    if not match:
        raise ApiError("INVALID_ARGUMENT", f"Content-Range takes 'bytes 0-99/100', 'bytes 0-99/*' or 'bytes */100'; got {header!r}.")
    with open(file, "r+b") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        have = out.seek(0, os.SEEK_END)
        if match[1] is not None:
            first, last = int(match[1]), int(match[2])
            if last - first + 1 != request.length or first > have:
                raise ApiError("INVALID_ARGUMENT", f"{header} with {request.length} bytes does not follow the {have} bytes that are here.")
            out.seek(first)
            for piece in _body(request):
                out.write(piece)
            have = out.tell()
    if match[3] == "*" or have < int(match[3]):
        return Answer(308, headers={"Range": f"bytes=0-{have - 1}"} if have else {})
    if have > int(match[3]):
        raise ApiError("INVALID_ARGUMENT", f"the object has {match[3]} bytes, but {have} arrived.")
    request.query = session["query"]
    answer = _publish(local, request, files.bucket_folder(local, session["bucket"]), session["name"], file, session["about"])
    for path in (file, file.parent / f"{key}.json"):
        path.unlink(missing_ok=True)
    return answer


def cancel_upload(local: Local, request: Request, bucket: str) -> Answer:
    """Forget a resumable upload and what came of it so far."""
    key = request.query.get("upload_id", "")
    if not _UPLOAD_ID.fullmatch(key) or not (_scratch(local) / key).is_file():
        raise ApiError("NOT_FOUND", "there is no such upload.")
    for path in (_scratch(local) / key, _scratch(local) / f"{key}.json"):
        path.unlink(missing_ok=True)
    return Answer(499, ApiError("CANCELLED", "the upload is cancelled.").body())
