"""The body of a multipart upload (RFC 2387): metadata in JSON, then content; read once from front to back, in pieces."""

from __future__ import annotations

import http.client
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from .rest import ApiError, Stream
from .storage_files import PIECE

_BOUNDARY = re.compile(r"""boundary=(?:"([^"]{1,72})"|([^\s";,]{1,72}))""")  # 70 characters by RFC 2046, and gcloud's quotes
_MOST_EMPTY_LINES = 100
LONGEST_METADATA = 1 << 20
_TRAILING = b"\r\n" * 3  # line ends that clients send after the closing boundary


def parts(stream: Stream, content_type: str) -> tuple[dict[str, Any], Iterator[bytes]]:
    """Return the two parts of a body: the metadata, with the second part's Content-Type if it has none, and pieces of the content.

    Raises:
        ApiError: INVALID_ARGUMENT if the header Content-Type names no boundary, or the body is not as that says.
    """
    found = _BOUNDARY.search(content_type)
    if not found:
        raise ApiError("INVALID_ARGUMENT", "a multipart upload needs Content-Type: multipart/related; boundary=….")
    boundary = b"--" + (found[1] or found[2]).strip("'").encode()
    body = io.BufferedReader(_Raw(stream), PIECE)
    lines = (body.readline(LONGEST_METADATA) for _ in range(_MOST_EMPTY_LINES))
    first = next((line for line in lines if line.strip()), b"")  # clients may begin with an empty line
    if first.rstrip() != boundary:
        raise _malformed("it does not begin with its boundary")
    _headers(body)
    about = _metadata(body, boundary)
    kind = _headers(body)["Content-Type"]
    newline = b"\r\n" if first.endswith(b"\r\n") else b"\n"  # the line end of this client
    return {"contentType": kind, **about} if kind else about, _content(body, newline + boundary + b"--")


class _Raw(io.RawIOBase):
    """A request's stream as a file that io can buffer."""

    def __init__(self, stream: Stream):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _headers(body: io.BufferedReader[Any]) -> Any:
    """Return the headers of a part, by name in any case; None for one that is missing."""
    try:
        return http.client.parse_headers(body)
    except http.client.HTTPException as error:  # too many, or one that is too long
        raise _malformed(str(error)) from None


def _metadata(body: io.BufferedReader[Any], boundary: bytes) -> dict[str, Any]:
    text = bytearray()
    while (line := body.readline(LONGEST_METADATA)).rstrip() != boundary:
        if not line:
            raise _malformed("the content is missing")
        text += line
        if len(text) > LONGEST_METADATA:
            raise ApiError("INVALID_ARGUMENT", "an object's metadata has at most 1 MiB.", code=413)
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ApiError("INVALID_ARGUMENT", f"the first part must be JSON: {error}.") from None
    if not isinstance(about, dict):
        raise ApiError("INVALID_ARGUMENT", "the first part must be a JSON object.")
    return about


def _content(body: io.BufferedReader[Any], end: bytes) -> Iterator[bytes]:
    """Yield the content in pieces; only the body's last boundary ends it, because the content may contain others."""
    held, keep = b"", len(end) + len(_TRAILING)
    while piece := body.read1(PIECE):
        held += piece
        yield held[:-keep]
        held = held[-keep:]
    at = held.rfind(end)
    if at < 0 or held[at + len(end) :].strip():
        raise _malformed("it does not end with its closing boundary")
    yield held[:at]


def _malformed(what: str) -> ApiError:
    return ApiError("INVALID_ARGUMENT", f"a multipart upload takes two parts, metadata in JSON, then the content: {what}.")
