"""Files as streams of bytes: local or in a bucket, decompressed where they are gzip or Zstandard."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from ..data import open_binary, split_part
from ..errors import UserError

HEAD_BYTES = 1 << 16
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x78\x9c": "zlib", b"\x78\xda": "zlib"}
_ENDINGS = (".gz", ".gzip", ".zst", ".zstd")


def plain_name(path: str) -> str:
    """Return a path in lower case, without what says that the file is compressed."""
    name = path.lower()
    return next((name[: -len(ending)] for ending in _ENDINGS if name.endswith(ending) and not name.endswith(".tar" + ending)), name)


class Stream(io.RawIOBase):
    """A file's bytes, decompressed, with a way to hand some back.

    Raises (while reading):
        UserError: the compressed data is cut off or broken.
    """

    def __init__(self, path: str):
        super().__init__()
        self.path, self._kept = path, b""
        self._error: UserError | None = None  # what ended the data, once all before it is read
        self._file: BinaryIO = open_binary(path)
        start = self._file.read(4)
        codec = next((codec for magic, codec in _CODECS.items() if start.startswith(magic)), None)
        self.compressed = codec is not None
        if codec is None:
            self._kept = start
            self._source: Any = self._file
        elif codec in ("gzip", "zlib"):
            self._source = _Zlib(self._file, start)
        else:
            self._source = pa.CompressedInputStream(pa.PythonFile(_Joined(start, self._file), mode="r"), codec)

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes; fewer only at the end, or before what is broken."""
        parts = list(self._pieces(1 << 62 if size is None or size < 0 else size))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_after(self, start: bytes | memoryview, size: int) -> memoryview:
        """Return `start` with up to `size` bytes after it, fewer only as in `read`: a block, put together without copying it twice."""
        block = np.empty(len(start) + size, np.uint8).data
        block[: len(start)] = start
        end = len(start)
        if not self.compressed and hasattr(self._source, "readinto"):
            kept, self._kept = self._kept[:size], self._kept[size:]
            block[end : end + len(kept)] = kept
            end += len(kept)
            while end < len(block) and (count := self._source.readinto(block[end:])):
                end += count
            return block[:end]
        for piece in self._pieces(size):
            block[end : end + len(piece)] = piece
            end += len(piece)
        return block[:end]

    def _pieces(self, size: int) -> Iterator[bytes]:
        """Yield up to `size` bytes; where the data is broken, what is before it, and raise the next time."""
        missing = size
        if self._kept:
            piece, self._kept = self._kept[:size], self._kept[size:]
            missing -= len(piece)
            yield piece
        try:
            while missing and not self._error and (piece := self._source.read(min(missing, 1 << 20 if self.compressed else 1 << 26))):
                missing -= len(piece)
                yield piece
        except (OSError, EOFError, zlib.error) as error:
            if not self.compressed:
                raise
            reason = str(error).splitlines()[0]
            self._error = UserError(f"{self.path} is no whole compressed file: {reason}. Write or copy it again.")
        if self._error and missing == size:
            raise self._error

    @property
    def position(self) -> int:
        """How much of the file has been read."""
        return self._file.tell()

    def unread(self, data: bytes) -> None:
        """Hand back bytes, which the next `read` returns first."""
        self._kept = data + self._kept

    def skip(self, start: bytes) -> None:
        """Pass over what the rest starts with, if it does."""
        found = self.read(len(start))
        self.unread(b"" if found == start else found)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as the io module wants it; return how many bytes were there."""
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


class _Joined:
    """Bytes that were read already, then the rest of the file they came from."""

    closed = False

    def __init__(self, start: bytes, rest: BinaryIO):
        self.start, self.rest = start, rest

    def read(self, size: int = -1) -> bytes:
        start, self.start = self.start, b""
        return start or self.rest.read(size)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


class _Zlib:
    """Decompresses gzip and zlib data, also where several such files were joined; unlike Arrow it says when the end is missing."""

    def __init__(self, file: BinaryIO, start: bytes):
        self.file, self.waiting, self.inside = file, start, False
        self.decompressor = zlib.decompressobj(47)

    def read(self, size: int) -> bytes:
        while True:
            data = self.waiting or self.file.read(1 << 17)
            if not data:
                if self.inside:
                    raise EOFError("it is cut off")
                return b""
            if not self.inside:
                data = data.lstrip(b"\0")  # some writers pad between members
                if not data:
                    self.waiting = b""
                    continue
            self.inside = True
            found = self.decompressor.decompress(data, size)
            self.waiting = self.decompressor.unconsumed_tail
            if self.decompressor.eof:
                self.waiting, self.inside = self.decompressor.unused_data, False
                self.decompressor = zlib.decompressobj(47)
            if found:
                return found


def head(path: str, size: int = HEAD_BYTES) -> bytes:
    """Return the first bytes of a file, decompressed; where the compressed data is broken, none."""
    with Stream(path) as stream:
        try:
            return stream.read(size)
        except UserError:
            return b""


def compression(path: str) -> float:
    """Return how many bytes of a file hold a byte of its content, going by its start: 1 where it is not compressed."""
    with Stream(split_part(path)[0]) as stream:
        if not stream.compressed:
            return 1.0
        try:
            content = stream.read(8 << 20)
            return stream.position / max(1, len(content))
        except UserError:
            return 1.0
