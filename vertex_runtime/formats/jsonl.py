"""JSON lines: each line an object. Numbers may be JSON numbers or texts of numbers; null and what is absent are missing cells.

Arrow reads blocks of lines at once, with the types that the first object has. A block that it does not read as one object
a line is read by Python's json module, line by line, into texts that are checked as those of a CSV file.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .. import data
from ..ahead import THREADS, in_threads
from ..columns import Column, Image
from ..data import BadRows
from ..errors import UserError
from . import Fault, Raw, Reading, in_blocks, partition_of
from ._streams import Stream

NAMES = ("jsonl",)
SUFFIXES = (".jsonl", ".ndjson", ".json")
LARGEST_BLOCK = 1 << 30  # that Arrow reads at once
_PART = 1 << 17  # bytes
Convert = Callable[[dict[str, Any]], dict[str, Any]]  # a line's object -> its cells by the names of their columns


def recognises(head: bytes) -> bool:
    """Tell whether a file that starts so holds a JSON object in its first line."""
    return first_object(head) is not None


def first_object(head: bytes) -> dict[str, Any] | None:
    """Return the object in the first line of some text that is not blank; None: there is none, or it does not end."""
    lines = head.removeprefix(codecs.BOM_UTF8).lstrip().splitlines()
    try:
        value = json.loads(lines[0], parse_int=_Literal, parse_float=_Literal) if lines else None
    except (ValueError, RecursionError):
        # A first line longer than the head: a key is enough.
        return {} if len(lines) == 1 and lines[0].startswith(b'{"') else None
    return value if isinstance(value, dict) else None


class _Literal(str):
    """A JSON number as it is written."""


def read(path: str, columns: Sequence[Column], bad: BadRows, reading: Reading) -> Iterator[Raw]:
    """Yield blocks of about 4 MiB.

    Raises:
        UserError: (policy "error") a line is no JSON object.
    """
    with Stream(path) as stream:
        start = stream.read(1 << 16)
    first = first_object(start) or {}
    partition = partition_of(path)
    wanted = [column for column in columns if column.required and (column.name in first or column.name not in partition)]
    if images := [column.name for column in wanted if isinstance(column, Image)]:
        raise UserError(f"{path}: {images[0]} is an image, which JSON lines cannot hold. Name a folder of images per label.")
    schema = pa.schema([(column.name, _type(column, first.get(column.name))) for column in wanted])

    def cells(row: dict[str, Any]) -> dict[str, Any]:
        return {column.name: row.get(column.name) for column in wanted}

    yield from read_objects(path, schema, lambda batch: batch, cells, bad)


def line_of(path: str, text: str) -> int | None:
    """Return the first line that holds this text in quotes; None: there is none."""
    written = (json.dumps(text).encode(), json.dumps(text, ensure_ascii=False).encode("utf-8", "replace"))
    with Stream(path) as stream:
        lines = (line for block in _blocks(stream) for line in block.tobytes().splitlines())
        return next((i for i, line in enumerate(lines, 1) if any(value in line for value in written)), None)


def _type(column: Column, example: Any) -> pa.DataType:
    """Return what Arrow shall read a column as; where the file turns out to differ, the block is read by lines."""
    if isinstance(example, _Literal):
        return pa.int64() if column.is_text else pa.float64()
    return pa.string() if isinstance(example, str) or column.is_text else pa.float64()


def read_objects(
    path: str, schema: pa.Schema, flat: Callable[[pa.RecordBatch], pa.RecordBatch | None], cells: Convert, bad: BadRows
) -> Iterator[Raw]:
    """Yield the objects of a file of JSON lines, each block by the schema or, where Arrow does not read it so, as texts.

    Args:
        schema: what Arrow reads.
        flat: makes cells of that by the names of their columns; None sends the block to Python.
        cells: makes the same of one object, numbers as they are written: cells by name.
    """

    def read(block: memoryview) -> tuple[memoryview, int, pa.RecordBatch | None]:
        starts = _starts(block)
        found = _by_arrow(block, starts, schema)
        return block, len(starts), None if found is None else flat(found)

    line = 0
    with Stream(path) as stream:
        stream.skip(codecs.BOM_UTF8)
        # Whole blocks side by side: what Arrow does for one by itself keeps a core waiting at each block's ends.
        for block, lines, batch in in_threads(read, _blocks(stream), THREADS):
            if batch is not None:
                yield Raw(batch, lambda i, line=line: f"{path}, line {line + i + 1}")
            else:
                yield from in_blocks(_by_line(path, block, line, cells), list(cells({})), bad)
            line += lines


def _blocks(stream: Any) -> Iterator[memoryview]:
    """Yield whole lines, about 4 MiB at a time."""
    waiting: bytes | memoryview = b""
    while block := stream.read_after(waiting, max(data.BLOCK_BYTES, len(waiting))):
        end = _last_end(block)
        if len(block) == len(waiting):  # the last line has no end
            yield block
            return
        if end:
            yield block[:end]
        waiting = block[end:].tobytes() if end else block


def _last_end(block: memoryview) -> int:
    """Return where the last line of a block that has an end ends; 0: none has."""
    for end in range(len(block), 0, -_PART):
        start = max(0, end - _PART)
        if (place := block[start:end].tobytes().rfind(b"\n")) >= 0:
            return start + place + 1
    return 0


def _starts(block: memoryview) -> np.ndarray:
    """Return where the lines of a block start: [lines] int64."""
    octets = np.frombuffer(block, np.uint8)
    # Part by part, so that what is compared stays in the processor's cache.
    parts = range(0, len(octets), _PART)
    ends = [start + np.flatnonzero(octets[start : start + _PART] == ord("\n")) for start in parts]
    starts = np.append(0, np.concatenate(ends) + 1)
    return starts[:-1] if octets[-1] == ord("\n") else starts


def _by_arrow(block: memoryview, starts: np.ndarray, schema: pa.Schema) -> pa.RecordBatch | None:
    """Return the rows of some lines; None: Arrow does not read them, or not as one object a line.

    Args:
        starts: where the lines start.
    """
    from pyarrow import json as pajson

    if not schema or not (np.frombuffer(block, np.uint8)[starts] == ord("{")).all():
        return None
    try:
        table = pajson.read_json(
            pa.BufferReader(block),
            pajson.ReadOptions(use_threads=False, block_size=min(len(block) + 1, LARGEST_BLOCK)),
            pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if table.num_rows != len(starts):
        return None
    batches = table.combine_chunks().to_batches()
    return batches[0] if len(batches) == 1 else None


def _by_line(path: str, block: memoryview, before: int, cells: Convert) -> Iterator[tuple[str, list[bytes | None]] | Fault]:
    """Yield the rows of a block that `before` lines of the file precede."""
    for line, text in enumerate(block.tobytes().split(b"\n"), before + 1):
        if not text.strip():
            continue
        place, fault, row = f"{path}, line {line}", None, {}
        try:
            value = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
            row = cells(value) if isinstance(value, dict) else {}
            if not row:
                fault = "the line is no JSON object"
            elif nested := [name for name, cell in row.items() if isinstance(cell, (dict, list))]:
                fault = f"{nested[0]} is no text or number"
        except UnicodeDecodeError:
            fault = "the line is not UTF-8"
        except (ValueError, RecursionError):
            fault = "the line is no JSON object"
        yield Fault(place, fault, text[:100].decode("utf-8", "replace")) if fault else (place, [_text(cell) for cell in row.values()])


def _text(cell: Any) -> bytes | None:
    if cell is None:
        return None
    return (cell if isinstance(cell, str) else json.dumps(cell)).encode("utf-8", "surrogatepass")
