"""Blocks of plain CSV files by their place in bytes, so that training starts before the files have been read.

The rows of large files are needed in an order of their own from the first step on. What that takes is where each block of
rows begins, and the line breaks tell it at the speed of reading; parsing and preparing are left to the first epoch, which
fills the cache as it goes.
"""

from __future__ import annotations

import contextlib
import os
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .ahead import in_threads
from .columns import Column
from .data import Chunk, rows_of
from .errors import UserError
from .formats import csv, partition_of

READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Segment:
    """Bytes of a file that hold whole rows."""

    path: str
    start: int
    end: int


@dataclass
class Index:
    """Where the blocks of some files begin.

    Args:
        blocks: the bytes of each block, in as many files as it lies in.
        count: rows in all.
    """

    block_rows: int
    blocks: list[list[Segment]] = field(default_factory=list)
    count: int = 0

    def rows(self, block: int) -> int:
        """Return how many rows a block has: all as many but for the last."""
        return min(self.block_rows, self.count - block * self.block_rows)


def index(paths: Sequence[str], headers: Sequence[bool], block_rows: int, beat: Callable[[], None]) -> Index | None:
    """Find the blocks of `block_rows` rows, numbered through all files; None where a line may be something else than a row.

    Quotes may hold line breaks, blank lines are no rows, and old line ends are neither: such files are read in order.

    Args:
        headers: whether the first line of each file names the columns.
        beat: called as the reading moves on.
    """
    found = Index(block_rows)
    for path, header in zip(paths, headers):
        if not _add(found, path, header, beat):
            return None
    return found


def _add(found: Index, path: str, header: bool, beat: Callable[[], None]) -> bool:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = len(BOM_UTF8) if file.read(3) == BOM_UTF8 else 0
        file.seek(start)
        if header:
            line = file.readline(READ_BYTES)
            if not line.strip() or line.count(b'"') % 2 or line.count(b"\r") > line.endswith(b"\r\n"):
                return False
            start += len(line)
        at = row = start
        while block := file.read(READ_BYTES):
            beat()
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + (at + 1)
            returns = b"\r" in block
            # The shortest row is one character and the line's end.
            if b'"' in block or (len(ends) and np.diff(ends, prepend=row).min() < 2 + returns):
                return False
            if returns and block.count(b"\r") != block.count(b"\r\n") + block.endswith(b"\r"):
                return False
            row = int(ends[-1]) if len(ends) else row
            at += len(block)
            start = _cut(found, path, start, ends)
        if at != size:
            return False  # it changes while it is read
        if at > start:
            _cut(found, path, start, np.array([at]))  # the last line has no end
    return True


def _cut(found: Index, path: str, start: int, ends: np.ndarray) -> int:
    """Deal rows that end at `ends` out to blocks; return where the first row begins that is in no segment yet."""
    taken = 0
    while taken < len(ends):
        missing = found.block_rows - found.count % found.block_rows
        rows = min(missing, len(ends) - taken)
        if found.count % found.block_rows == 0:
            found.blocks.append([])
        end = int(ends[taken + rows - 1])
        _extend(found, path, start, end)
        found.count, taken, start = found.count + rows, taken + rows, end
    return start


def _extend(found: Index, path: str, start: int, end: int) -> None:
    segments = found.blocks[-1]
    if segments and segments[-1].path == path and segments[-1].end == start:
        segments[-1] = Segment(path, segments[-1].start, end)
    elif start < end:
        segments.append(Segment(path, start, end))


class CsvBlocks:
    """Reads and prepares blocks of CSV files in any order.

    Args:
        parse: turns bytes of whole rows into a chunk; raises where a row is bad.
        prepare: turns a chunk into prepared rows, as a flat list of arrays.
        rows: how many rows to prepare at a time, about.
    """

    def __init__(self, found: Index, parse: Callable[[bytes, int], Chunk], prepare: Callable[[Chunk], list[np.ndarray]], rows: int):
        self.index, self.parse, self.prepare = found, parse, prepare
        self.together = max(1, rows // found.block_rows)

    def prepared(self, blocks: Sequence[int]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yield (block, its prepared rows) for the blocks asked for, in their order, some of them ahead in threads."""
        parts = [blocks[i : i + self.together] for i in range(0, len(blocks), self.together)]
        for part, values in zip(parts, in_threads(self._prepared, parts)):
            start = 0
            for block in part:
                end = start + self.index.rows(block)
                yield block, [column[start:end] for column in values]
                start = end

    def _prepared(self, blocks: Sequence[int]) -> list[np.ndarray]:
        return self.prepare(self.raw(blocks))

    def raw(self, blocks: Sequence[int]) -> Chunk:
        """Return the raw rows of some blocks."""
        texts: list[bytes] = []
        for block in blocks:
            for segment in self.index.blocks[block]:
                text = b""
                with contextlib.suppress(OSError), open(segment.path, "rb", buffering=0) as file:  # `parse` says that it is gone
                    text = os.pread(file.fileno(), segment.end - segment.start, segment.start)
                texts += [text] if text.endswith(b"\n") else [text, b"\n"]
        return self.parse(b"".join(texts), sum(map(self.index.rows, blocks)))


def csv_blocks(
    paths: Sequence[str],
    columns: Sequence[Column],
    block_rows: int,
    rows: int,
    prepare: Callable[[Chunk], list[np.ndarray]],
    name_fault: Callable[[], None],
    beat: Callable[[], None],
) -> CsvBlocks | None:
    """Return the blocks of some CSV files; None where they must be read in order.

    Args:
        rows: how many to prepare at a time, about.
        name_fault: raises what is wrong with the files, after a row was found to be bad.
    """
    layouts = [csv.layout(path, columns) for path in paths]
    if None in layouts or len({tuple(names) for names, _ in layouts}) > 1:
        return None
    found = index(paths, [header for _, header in layouts], block_rows, beat)
    if found is None or not found.count:
        return None

    def parse(text: bytes, count: int) -> Chunk:
        chunk = csv.parse(text, layouts[0][0], columns)
        if chunk is None or rows_of(chunk) != count:
            name_fault()
            raise UserError(f"{paths[0]}: a line of it, or of a file beside it, is not one row.")
        return chunk

    return CsvBlocks(found, parse, prepare, rows)


def is_plain_csv(path: str) -> bool:
    """Tell whether a path is a local CSV file, not compressed, that holds all of its columns itself."""
    return "://" not in path and os.path.isfile(path) and path.lower().endswith(".csv") and not partition_of(path)
