"""The instances of a batch prediction: read one by one from its files, and put into the form that the model takes."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

FORMATS = ("jsonl", "csv", "tf-record", "tf-record-gzip", "file-list")
TYPES = ("", "object", "array")
_LARGEST = 1 << 30  # bytes of a TFRecord's record; a greater length means a damaged file
_LONGEST_ROW = 16 << 20  # characters of CSV
# A cell of CSV: in quotes, with quotes in it doubled; or without quotes.
_CELL = re.compile(r'"([^"]*(?:""[^"]*)*)"|([^",]*)')
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class Unreadable(Exception):
    """A file or an instance cannot be read: what is wrong with it."""


@dataclass
class Instance:
    """One instance: as the file has it, where that is, and how many bytes it takes there.

    Attributes:
        problem: why it cannot be read, if it cannot.
        row: of a table, with cells of the table's own types.
    """

    content: Any
    where: str
    size: int
    problem: str = ""
    row: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Config:
    """How instances become the model's input: the API's InstanceConfig."""

    instance_type: str = ""
    key_field: str = ""
    included: Sequence[str] = field(default_factory=tuple)
    excluded: Sequence[str] = field(default_factory=tuple)

    @property
    def names_fields(self) -> bool:
        """Whether it is about the fields of objects."""
        return bool(self.key_field or self.included or self.excluded)

    def asked(self, content: Any) -> Any:
        """Return the model's input for an instance.

        Raises:
            Unreadable: the instance lacks a field that is wanted, or is no object.
        """
        if not isinstance(content, Mapping):
            if self.names_fields or self.instance_type == "object":
                raise Unreadable(f"must be an object, because instanceConfig names fields; got {json.dumps(content)[:80]}")
            return content
        missing = [name for name in (*self.included, self.key_field) if name and name not in content]
        if missing:
            raise Unreadable(f"lacks the field {missing[0]}, which instanceConfig names")
        names = [name for name in self.included or content if name not in (*self.excluded, self.key_field)]
        return [content[name] for name in names] if self.instance_type == "array" else {name: content[name] for name in names}

    def shown(self, content: Any) -> dict[str, Any]:
        """Return what the output shows of an instance: its key if there is one, else the instance."""
        if self.key_field and isinstance(content, Mapping) and self.key_field in content:
            return {"key": content[self.key_field]}
        as_asked = self.instance_type == "array" and isinstance(content, Mapping) and not (self.included or self.excluded)
        return {"instance": list(content.values()) if as_asked else content}


def read(path: Path, uri: str, form: str, resolve: Callable[[str], str]) -> Iterator[Instance]:
    """Yield the instances of one file, in bounded memory.

    Args:
        form: one of FORMATS. Rows of CSV are objects here, by the names of the header.
        resolve: returns the path of a `gs://…` in a file list.

    Raises:
        Unreadable: the rest of the file cannot be read.
    """
    try:
        if form.startswith("tf-record"):
            with gzip.open(path, "rb") if form == "tf-record-gzip" else open(path, "rb") as file:
                yield from _records(file, uri)
            return
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:  # bad bytes are reported line by line
            if form == "csv":
                yield from _rows(text, uri)
            else:
                yield from _lines(text, uri, _json if form == "jsonl" else partial(_file, resolve))
    except OSError as error:
        raise Unreadable(f"{uri}: cannot be read: {error.strerror or error}") from None


def _lines(file: IO[str], uri: str, content_of: Callable[[str], tuple[Any, int]]) -> Iterator[Instance]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield _instance(line, f"{uri}:{number}", content_of)


def _instance(text: str, where: str, content_of: Callable[[str], tuple[Any, int]]) -> Instance:
    """Return the instance of a line or a row; `content_of` returns its content and size, or raises Unreadable."""
    try:
        text.encode()
        content, size = content_of(text)
        return Instance(content, where, size)
    except UnicodeEncodeError:  # surrogates, in place of bytes that could not be decoded
        problem = "is not UTF-8: write the file in that encoding"
    except Unreadable as error:
        problem = str(error)
    return Instance(text.rstrip("\r\n"), where, len(text), problem)


def _json(line: str) -> tuple[Any, int]:
    try:
        return json.loads(line), len(line)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"is not JSON: {error}") from None


def _file(resolve: Callable[[str], str], line: str) -> tuple[Any, int]:
    try:
        content = Path(resolve(line.strip())).read_bytes()
    except (OSError, ValueError) as error:
        raise Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return _base64(content), len(content)


def _base64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


# ------------------------------------------------------------------ CSV


def _rows(file: IO[str], uri: str) -> Iterator[Instance]:
    header: list[str] = []

    def row(text: str) -> tuple[Any, int]:
        cells = _cells(text, _typed)
        if len(cells) != len(header):
            raise Unreadable(f"has {len(cells)} cells, the header {len(header)}")
        return dict(zip(header, cells)), len(text)

    for number, text in _logical_lines(file, uri):
        where = f"{uri}:{number}"
        if header:
            yield _instance(text, where, row)
            continue
        with contextlib.suppress(Unreadable):
            header = _cells(text, str)
        if not header or not all(header) or len(set(header)) < len(header):
            raise Unreadable(f"{where}: the first line must name the columns, each once; got {text.strip()[:80]!r}")


def _logical_lines(file: IO[str], uri: str) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each row; quoted cells may span several lines, and the number is that of the first."""
    held, start, is_open, size = list[str](), 1, False, 0
    for number, line in enumerate(file, 1):
        if not held and not line.strip():
            continue
        start = start if held else number
        held.append(line)
        is_open ^= line.count('"') % 2 == 1
        size += len(line)
        if size > _LONGEST_ROW:
            raise Unreadable(f"{uri}:{start}: a quotation mark is not closed within {_LONGEST_ROW:,} characters")
        if not is_open:
            yield start, "".join(held)
            held, size = [], 0
    if held:
        yield start, "".join(held)


def _cells(text: str, plain: Callable[[str], Any]) -> list[Any]:
    """Return a row's cells: a quoted one is text, any other is what `plain` makes of it; raise Unreadable if it is not CSV."""
    text, place, found = text.rstrip("\r\n"), 0, []
    while True:
        match = _CELL.match(text, place)
        quoted, bare = match.groups()
        found.append(plain(bare) if quoted is None else quoted.replace('""', '"'))
        place = match.end()
        if place == len(text):
            return found
        if text[place] != ",":
            raise Unreadable("has a quotation mark within a cell that is not quoted")
        place += 1


def _typed(text: str) -> Any:
    """Return a cell without quotation marks: a number if it reads as one, None if it is empty, else the text."""
    number = float(text) if _NUMBER.fullmatch(text.strip()) else math.nan
    if not math.isfinite(number):  # so is one that no float can hold
        return text or None
    return int(text) if text.strip().lstrip("+-").isdigit() else number


# ------------------------------------------------------------------ TFRecord


def _records(file: BinaryIO | gzip.GzipFile, uri: str) -> Iterator[Instance]:
    number = 0
    try:
        while head := file.read(12):
            number += 1
            where = f"{uri}: record {number}"
            (length,) = struct.unpack("<Q", head[:8]) if len(head) == 12 else (0,)
            if len(head) < 12 or _masked(head[:8]) != head[8:] or length > _LARGEST:
                raise Unreadable(f"{where} does not begin with a length: it is not a TFRecord file, or damaged")
            content, checksum = file.read(length), file.read(4)
            if len(content) < length or _masked(content) != checksum:
                raise Unreadable(f"{where} ends too early, or its checksum is wrong")
            yield Instance(_base64(content), where, length)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise Unreadable(f"{uri}: record {number + 1} cannot be read: {error}") from None


def _masked(data: bytes) -> bytes:
    """Return the masked CRC32C that the format puts after lengths and contents."""
    import google_crc32c  # comes with google-cloud-storage

    value = google_crc32c.value(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)
