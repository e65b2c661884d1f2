"""The body of a multipart upload (RFC 2387): metadata in JSON, then content; read once from front to back, in pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from .rest import ApiError, Stream
from .storage_files import PIECE

_BOUNDARY = re.compile(r"""boundary=(?:"([^"]{1,72})"|([^\s";,]{1,72}))""")  # 70 characters by RFC 2046, and gcloud's quotes
_LONGEST_LINE, _MOST_HEADERS = 16 << 10, 100
_LONGEST_METADATA = 1 << 20
_TRAILING = b"\r\n" * 3  # line ends that clients send after the closing boundary


class Body:
    """The two parts of a body; `metadata` must be called first, then `content`."""

    def __init__(self, stream: Stream, content_type: str):
        """Open a body whose header Content-Type names the boundary between its parts.

        Raises:
            ApiError: INVALID_ARGUMENT if it does not.
        """
        found = _BOUNDARY.search(content_type)
        if not found:
            raise ApiError("INVALID_ARGUMENT", "a multipart upload needs Content-Type: multipart/related; boundary=….")
        self._stream, self._ahead = stream, b""
        self._boundary = b"--" + (found[1] or found[2]).strip("'").encode()
        self._newline = b"\r\n"

    def metadata(self) -> dict[str, Any]:
        """Return the first part; the second part's Content-Type is added if the metadata has none."""
        line = self._line()
        for _ in range(_MOST_HEADERS):
            if line.strip():
                break
            line = self._line()  # clients may begin with an empty line
        if line.rstrip() != self._boundary:
            raise _malformed("it does not begin with its boundary")
        self._newline = b"\r\n" if line.endswith(b"\r\n") else b"\n"  # the line end of this client
        self._headers()
        text, size = [], 0
        for piece in self._until(self._newline + self._boundary):
            text.append(piece)
            size += len(piece)
            if size > _LONGEST_METADATA:
                raise ApiError("INVALID_ARGUMENT", "an object's metadata has at most 1 MiB.", code=413)
        if self._line().strip():
            raise _malformed("the content is missing")
        try:
            about = json.loads(b"".join(text))
        except (ValueError, RecursionError) as error:
            raise ApiError("INVALID_ARGUMENT", f"the first part must be JSON: {error}.") from None
        if not isinstance(about, dict):
            raise ApiError("INVALID_ARGUMENT", "the first part must be a JSON object.")
        kind = self._headers().get("content-type")
        return {"contentType": kind, **about} if kind else about

    def content(self) -> Iterator[bytes]:
        """Yield the second part in pieces; only the body's last boundary ends it, because the content may contain others."""
        end = self._newline + self._boundary + b"--"
        keep = len(end) + len(_TRAILING)
        while self._fill():
            piece, self._ahead = self._ahead[:-keep], self._ahead[-keep:]
            yield piece
        at = self._ahead.rfind(end)
        if at < 0 or self._ahead[at + len(end) :].strip():
            raise _malformed("it does not end with its closing boundary")
        yield self._ahead[:at]

    def _headers(self) -> dict[str, str]:
        headers = {}
        for _ in range(_MOST_HEADERS):
            line = self._line()
            if not line.strip():
                return headers
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        raise _malformed(f"a part has more than {_MOST_HEADERS} headers")

    def _line(self) -> bytes:
        while b"\n" not in self._ahead[:_LONGEST_LINE]:
            if len(self._ahead) > _LONGEST_LINE:
                raise _malformed("a header is too long")
            if not self._fill():
                break
        line, newline, self._ahead = self._ahead.partition(b"\n")
        return line + newline

    def _until(self, end: bytes) -> Iterator[bytes]:
        """Yield everything before `end`, and skip `end`."""
        while (at := self._ahead.find(end)) < 0:
            cut = max(0, len(self._ahead) - len(end) + 1)  # `end` may begin in this piece and end in the next
            piece, self._ahead = self._ahead[:cut], self._ahead[cut:]
            yield piece
            if not self._fill():
                raise _malformed("it does not end with its boundary")
        piece, self._ahead = self._ahead[:at], self._ahead[at + len(end) :]
        yield piece

    def _fill(self) -> bool:
        piece = self._stream.read(PIECE)
        self._ahead += piece
        return bool(piece)


def _malformed(what: str) -> ApiError:
    return ApiError("INVALID_ARGUMENT", f"a multipart upload takes two parts, metadata in JSON, then the content: {what}.")
