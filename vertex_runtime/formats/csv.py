"""CSV files, with a header or without. Arrow splits them into cells; the cells are checked as those of any other format.

Where Arrow cannot go on (a quote that is never closed, a row larger than a block), Python's csv module splits the rest
into the same cells. It also finds the line of a row that a message is about.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
import itertools
import json
import sys
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import csv as pacsv

from .. import data
from ..columns import Column, Number
from ..data import KEPT, BadRows, Chunk
from ..errors import UserError
from . import Fault, Raw, Reading, in_blocks, partition_of
from ._streams import Stream

NAMES = ("csv",)
SUFFIXES = (".csv",)
PRECEDENCE = -1  # nearly any text may be CSV
LARGEST_ROW = 1 << 30
_HEAD_LIMIT = 64 << 20
_NUL = "\ufffe"  # stands for NUL where the csv module refuses it (Python 3.10); no byte decodes to it


def recognises(head: bytes) -> bool:
    """Tell whether a file that starts so may be CSV: text that is no JSON."""
    first = head.removeprefix(BOM_UTF8).lstrip()
    if not first or b"\0" in head:
        return False
    try:
        return not isinstance(json.loads(first.splitlines()[0]), dict)
    except ValueError:
        return True


def read(path: str, columns: Sequence[Column], bad: BadRows, reading: Reading) -> Iterator[Raw]:
    """Yield blocks of about 4 MiB, cells as binary.

    Raises:
        UserError: the file is not of these columns, or (policy "error") a row has more or fewer cells than there are columns.
    """
    with Stream(path) as stream:
        found = _layout(path, stream, columns)
        if found is None:
            return
        names, header = found
        wanted = [column for column in columns if column.required and column.name in names]
        table = _Table(path, bad, header, len(names), [names.index(column.name) for column in wanted], [c.name for c in wanted])
        yield from table.read(stream)


def layout(path: str, columns: Sequence[Column]) -> tuple[list[str], bool] | None:
    """Return the names of the file's columns in their order and whether its first row is a header; None where it has no row.

    Raises:
        UserError: the file is not of these columns.
    """
    with Stream(path) as stream:
        return _layout(path, stream, [column.in_files() for column in columns])


def parse(text: bytes, names: Sequence[str], columns: Sequence[Column]) -> Chunk | None:
    """Return the rows of some whole lines; None where one of them is bad.

    Args:
        names: the columns that the lines hold, in their order.
    """
    wanted = [column for column in columns if column.required]
    try:
        table = pacsv.read_csv(
            pa.BufferReader(b"\n" + text),  # so that a byte-order mark is a cell's own
            read_options=pacsv.ReadOptions(use_threads=False, column_names=list(names), block_size=len(text) + 2),
            convert_options=_as_binary(names, [column.in_files().name for column in wanted]),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError):
        return None
    found: Chunk = {}
    for column, cells in zip(wanted, (column.combine_chunks() for column in table.columns)):
        values, good = column.check(cells)
        if not good.all():
            return None
        found[column.name] = values.to_numpy(zero_copy_only=False)
    return found


def _as_binary(names: Sequence[str], wanted: Sequence[str]) -> Any:
    """Return Arrow's options for cells as they are."""
    types = {name: pa.binary() for name in names}
    return pacsv.ConvertOptions(
        check_utf8=False, column_types=types, include_columns=list(wanted), null_values=[], strings_can_be_null=False
    )


def line_of(path: str, text: str) -> int | None:
    """Return the line of the first row with a cell that is this text; None: there is none."""
    with Stream(path) as stream:
        return next((line for line, cells in _rows(stream) if any(_readable(cell) == text for cell in cells)), None)


class _Table:
    """One file whose columns are known.

    Args:
        header: whether the first row is one.
        width: how many cells a row must have.
        places, names: which cells of a row are wanted, and what their columns are called.
    """

    def __init__(self, path: str, bad: BadRows, header: bool, width: int, places: Sequence[int], names: Sequence[str]):
        self.path, self.bad, self.header, self.width = path, bad, header, width
        self.places, self.names = places, names
        self.rows = 0  # of the right width, so far
        self.odd: Counter[str] = Counter()  # rows of another width, as Arrow met them: it may be some blocks ahead
        self.odd_rows: list[tuple[str, str]] = []  # the first of them: (reason, text)

    def read(self, stream: Stream) -> Iterator[Raw]:
        """Yield the rows after the header, where the stream stands."""
        first_odd: tuple[int, Fault] | None = None
        batches = self._by_arrow(stream)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowInvalid, _NotUtf8):
                # About 0.5 million rows/s, but rarely needed.
                yield from in_blocks(self._left(), self.names, self.bad)
                return
            if self.odd and self.bad.policy == "error":
                first_odd = first_odd or self._first_odd()
                if first_odd and (batch is None or self.rows + batch.num_rows >= first_odd[0]):
                    # What stands before it comes first, for it may be bad as well.
                    if batch is not None:
                        yield self._raw(batch.slice(0, first_odd[0] - self.rows))
                    self.bad.add(first_odd[1].place, first_odd[1].reason, first_odd[1].value)
            if batch is None:
                self._count_odd()
                return
            yield self._raw(batch)

    def _by_arrow(self, stream: Stream) -> Iterator[pa.RecordBatch]:
        def set_aside(row: Any) -> str:
            reason = _width_reason(row.actual_columns, self.width)
            self.odd[reason] += 1
            if len(self.odd_rows) < KEPT:
                self.odd_rows.append((reason, row.text[:80]))
            return "skip"

        every, wanted = [str(i) for i in range(self.width)], [str(i) for i in self.places]
        start = stream.read(len(BOM_UTF8))
        if not start:
            return
        # Arrow would drop a mark that is a cell of the first row; it ignores the blank line before it.
        stream.unread(b"\n" + start if start == BOM_UTF8 else start)
        yield from pacsv.open_csv(
            pa.PythonFile(_Utf8(stream), mode="r"),
            read_options=pacsv.ReadOptions(column_names=every, block_size=data.BLOCK_BYTES),
            # Without newlines_in_values Arrow takes a quoted line break at the edge of a block for the end of a row.
            parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=set_aside),
            convert_options=_as_binary(every, wanted),
        )

    def _count_odd(self) -> None:
        """Hand over the rows of another width; where they stand Arrow does not say."""
        for reason, text in self.odd_rows if self.bad.policy == "collect" else ():
            self.bad.add(self.path, reason, text)
            self.odd[reason] -= 1
        for reason, count in self.odd.items():
            if count:
                self.bad.add(lambda: self.path, reason, "", count)

    def _raw(self, batch: pa.RecordBatch) -> Raw:
        first = self.rows
        self.rows += batch.num_rows
        return Raw(pa.RecordBatch.from_arrays(batch.columns, self.names), functools.partial(self._place, first))

    def _place(self, first: int, i: int) -> str:
        lines = (line for line, cells in self._split() if len(cells) == self.width)
        return f"{self.path}, line {next(itertools.islice(lines, first + i, None))}"

    def _split(self) -> Iterator[tuple[int, list[str]]]:
        """Split the file from its start: yield (last line, cells) of the rows after the header."""
        with Stream(self.path) as stream:
            yield from itertools.islice(_rows(stream), int(self.header), None)

    def _first_odd(self) -> tuple[int, Fault] | None:
        """Return (rows of the right width before it, what is wrong with it) of the first row of another width."""
        rows = enumerate(self._split())
        return next(((before, self._odd(line, cells)) for before, (line, cells) in rows if len(cells) != self.width), None)

    def _odd(self, line: int, cells: Sequence[str]) -> Fault:
        return Fault(f"{self.path}, line {line}", _width_reason(len(cells), self.width), _readable(",".join(cells)))

    def _left(self) -> Iterator[tuple[str, list[bytes]] | Fault]:
        """Yield the rows that Arrow left, and all of another width: where those stand that it has met, it did not say."""
        self.odd.clear()
        self.odd_rows.clear()
        skip = self.rows
        for line, cells in self._split():
            if len(cells) != self.width:
                yield self._odd(line, cells)
            elif skip:
                skip -= 1
            else:
                yield f"{self.path}, line {line}", [_as_bytes(cells[place]) for place in self.places]


class _NotUtf8(Exception):
    """What Arrow is to read is not UTF-8."""


class _Utf8:
    """A stream for Arrow that ends with `_NotUtf8` where it is not UTF-8.

    Arrow hands a row of the wrong width over as a text, and prints a traceback where that is impossible.
    """

    closed = False

    def __init__(self, stream: Stream):
        self.stream, self.decoder = stream, codecs.getincrementaldecoder("utf-8")()

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        try:
            if not data.isascii() or self.decoder.getstate()[0]:
                self.decoder.decode(data)
        except UnicodeDecodeError:
            raise _NotUtf8 from None
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def _width_reason(found: int, width: int) -> str:
    return f"has {found} columns, not {width}"


def _rows(stream: Stream) -> Iterator[tuple[int, list[str]]]:
    """Split a file from its start with Python's csv module: yield (last line, cells), byte for byte a letter each."""
    stream.skip(BOM_UTF8)
    csv.field_size_limit(LARGEST_ROW)
    reader = csv.reader(_lines(stream))
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{stream.path}, line {reader.line_num}: {error}. Mend the row.") from None


def _lines(stream: Stream) -> Iterator[str]:
    return _without_nul(io.TextIOWrapper(io.BufferedReader(stream, 1 << 18), encoding="latin-1", newline=""))


def _without_nul(lines: Iterable[str]) -> Iterator[str]:
    return iter(lines) if sys.version_info >= (3, 11) else (line.replace("\0", _NUL) for line in lines)


def _as_bytes(cell: str) -> bytes:
    try:
        return cell.encode("latin-1")
    except UnicodeEncodeError:
        return cell.replace(_NUL, "\0").encode("latin-1")


def _readable(cell: str) -> str:
    return _as_bytes(cell[:400]).decode("utf-8", "replace")


# ------------------------------------------------------------------ the first row


def _layout(path: str, stream: Stream, columns: Sequence[Column]) -> tuple[list[str], bool] | None:
    """Return the names of the file's columns in their order and whether its first row is a header, past which the stream stands.

    None: there is no row at all.

    Raises:
        UserError: the file is not of these columns.
    """
    first = _first_row(stream)
    if first is None:
        return None
    cells, content, end, line = first
    cells = [cell.strip() for cell in cells]
    where = f"{path}, line {line}"
    partition = partition_of(path)
    own = [column for column in columns if column.name not in partition]
    known = [column.name for column in columns]
    if set(cells) & set(known):
        if missing := [column.name for column in own if column.required and column.name not in cells]:
            raise UserError(f"{where}: the header lacks {', '.join(missing)}; it has {', '.join(cells)[:200]}.")
        stream.unread(content[end:])
        return cells, True
    required = [column.name for column in own if column.required]
    numbers = [i for i, column in enumerate(own[: len(cells)]) if column.required and isinstance(column, Number)]
    if numbers and len(cells) >= len(required) and not any(_is_number(cells[i]) for i in numbers):
        raise UserError(f"{where}: a header with unknown names ({', '.join(cells)[:80]}); known are {', '.join(known)}.")
    if len(cells) < len(required) or len(cells) > len(own):
        raise UserError(f"{where}: has {len(cells)} columns; needed are {', '.join(required)} in this order, or a header.")
    stream.unread(content)
    return [column.name for column in own[: len(cells)]], False


def _first_row(stream: Stream) -> tuple[list[str], bytes, int, int] | None:
    """Return (cells of the first row, what was read after the byte-order mark, where in it the row ends, its last line)."""
    content, size, ended = b"", 1 << 16, False
    while not ended:
        more = stream.read(size - len(content))
        content, ended = content + more, len(more) < size - len(content) or size >= _HEAD_LIMIT
        plain = content.removeprefix(BOM_UTF8)
        taken = 0

        def lines(text: Iterable[str]) -> Iterator[str]:
            nonlocal taken
            for line in text:
                taken += len(line)
                yield line

        csv.field_size_limit(LARGEST_ROW)
        reader = csv.reader(_without_nul(lines(io.StringIO(plain.decode("latin-1"), newline=""))))
        row = next((cells for cells in reader if cells), None)
        if row is not None and (ended or taken < len(plain)):
            return [_as_bytes(cell).decode("utf-8", "replace") for cell in row], plain, taken, reader.line_num
        size *= 4
    return None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
