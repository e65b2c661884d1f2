"""The instances of a batch prediction: read one by one from its files, and put into the form that the model takes."""

from __future__ import annotations

import base64
import gzip
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

FORMATS = ("jsonl", "csv", "tf-record", "tf-record-gzip", "file-list")
TYPES = ("", "object", "array")
_LARGEST = 1 << 30  # bytes of a TFRecord's record; a greater length means a damaged file
_NO_TEXT = "is not UTF-8: write the file in that encoding"
_LONGEST_ROW = 16 << 20  # characters of CSV
# A cell of CSV: in quotes, with quotes in it doubled; or without quotes.
_CELL = re.compile(r'"((?:[^"]|"")*)"|([^",]*)')
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

    def asked(self, content: Any) -> Any:
        """Return the model's input for an instance.

        Raises:
            Unreadable: the instance lacks a field that is wanted, or is no object.
        """
        if not (self.key_field or self.included or self.excluded or self.instance_type):
            return content
        if not isinstance(content, Mapping):
            if self.instance_type == "array" and not (self.key_field or self.included or self.excluded):
                return content
            raise Unreadable(f"must be an object, because instanceConfig names fields; got {json.dumps(content)[:80]}")
        missing = [name for name in (*self.included, self.key_field) if name and name not in content]
        if missing:
            raise Unreadable(f"lacks the field {missing[0]}, which instanceConfig names")
        gone = {*self.excluded, self.key_field}
        names = self.included or [name for name in content if name not in gone]
        names = [name for name in names if name != self.key_field]
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
        OSError: the file cannot be opened.
    """
    if form.startswith("tf-record"):
        with gzip.open(path, "rb") if form == "tf-record-gzip" else open(path, "rb") as file:
            yield from _records(file, uri)
        return
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:  # bad bytes are reported line by line
        if form == "file-list":
            yield from _listed(file, uri, resolve)
        else:
            yield from _rows(file, uri) if form == "csv" else _lines(file, uri)


def _lines(file: IO[str], uri: str) -> Iterator[Instance]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{uri}:{number}"
        if not _is_text(line):
            yield Instance(line.rstrip("\r\n"), where, len(line), _NO_TEXT)
            continue
        try:
            yield Instance(json.loads(line), where, len(line))
        except (ValueError, RecursionError) as error:
            yield Instance(line.rstrip("\r\n"), where, len(line), f"is not JSON: {error}")


def _is_text(line: str) -> bool:
    """Tell whether all of a line was UTF-8."""
    if line.isascii():
        return True
    try:
        line.encode()
    except UnicodeEncodeError:  # surrogates, in place of bytes that could not be decoded
        return False
    return True


def _listed(file: IO[str], uri: str, resolve: Callable[[str], str]) -> Iterator[Instance]:
    for number, line in enumerate(file, 1):
        name, where = line.strip(), f"{uri}:{number}"
        if not name:
            continue
        try:
            content = Path(resolve(name)).read_bytes()
        except (OSError, ValueError) as error:
            yield Instance(name, where, len(line), f"cannot be read: {getattr(error, 'strerror', None) or error}")
        else:
            yield Instance({"b64": base64.b64encode(content).decode()}, where, len(content))


# ------------------------------------------------------------------ CSV


def _rows(file: IO[str], uri: str) -> Iterator[Instance]:
    header: list[str] = []
    for number, text in _logical_lines(file, uri):
        cells = _cells(text)
        if not header:
            header = [str(cell) if cell is not None else "" for cell in cells or [""]]
            if not all(header) or len(set(header)) < len(header):
                raise Unreadable(f"{uri}:{number}: the first line must name the columns, each once; got {text.strip()[:80]!r}")
            continue
        where = f"{uri}:{number}"
        if not _is_text(text):
            yield Instance(text.rstrip("\r\n"), where, len(text), _NO_TEXT)
        elif cells is None:
            yield Instance(text.rstrip("\r\n"), where, len(text), "has a quotation mark within a cell that is not quoted")
        elif len(cells) != len(header):
            yield Instance(text.rstrip("\r\n"), where, len(text), f"has {len(cells)} cells, the header {len(header)}")
        else:
            yield Instance(dict(zip(header, cells)), where, len(text))


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


def _cells(text: str) -> list[Any] | None:
    """Return a row's cells, None if it is not CSV: a quoted cell is text, an empty one None, any other a number if it reads as one."""
    text, place, found = text.rstrip("\r\n"), 0, []
    while True:
        match = _CELL.match(text, place)
        quoted, plain = match.groups() if match else (None, "")
        found.append(quoted.replace('""', '"') if quoted is not None else _plain(plain))
        place = match.end() if match else place
        if place == len(text):
            return found
        if text[place] != ",":
            return None
        place += 1


def _plain(text: str) -> Any:
    if not text:
        return None
    if not _NUMBER.fullmatch(text.strip()):
        return text
    number = float(text)
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
            yield Instance({"b64": base64.b64encode(content).decode()}, where, length)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise Unreadable(f"{uri}: record {number + 1} cannot be read: {error}") from None


def _masked(data: bytes) -> bytes:
    """Return the masked CRC32C that the format puts after lengths and contents."""
    import google_crc32c  # comes with google-cloud-storage

    value = google_crc32c.value(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)
