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


@dataclass
class Index:
    """Where the blocks of some files begin.

    Args:
        files: the path of each file, where its first row begins, and where its last one ends.
        blocks: the number of the file and the byte in it at which each block begins.
        count: rows in all.
    """

    block_rows: int
    files: list[tuple[str, int, int]] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    count: int = 0

    def rows(self, block: int) -> int:
        """Return how many rows a block has: all as many but for the last."""
        return min(self.block_rows, self.count - block * self.block_rows)

    def pieces(self, block: int) -> Iterator[tuple[str, int, int]]:
        """Yield (path, start, end) of the bytes that hold the rows of a block."""
        first, start = self.blocks[block]
        last, end = self.blocks[block + 1] if block + 1 < len(self.blocks) else (len(self.files) - 1, self.files[-1][2])
        for file in range(first, last + 1):
            path, rows_start, rows_end = self.files[file]
            low, high = start if file == first else rows_start, end if file == last else rows_end
            if low < high:
                yield path, low, high


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
    def note(ends: np.ndarray) -> None:
        """Note where blocks begin among rows of which the first one begins at `row`, and which end at `ends`."""
        begins = np.append(row, ends[:-1])[-found.count % found.block_rows :: found.block_rows]
        found.blocks += [(len(found.files), begin) for begin in begins.tolist()]
        found.count += len(ends)

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
            at += len(block)
            if len(ends):
                note(ends)
                row = int(ends[-1])
        if at != size:
            return False  # it changes while it is read
        if at > row:
            note(np.array([at]))  # the last line has no end
        found.files.append((path, start, at))
    return True


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
            for path, start, end in self.index.pieces(block):
                text = b""
                with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:  # `parse` says that it is gone
                    text = os.pread(file.fileno(), end - start, start)
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
