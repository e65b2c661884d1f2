"""Work that processes with a common folder share among themselves, each taking what no other has taken.

Who works on what is told by locks on bytes of a file. The system lets go of a process's locks when the process ends, however
that happens, and others then take what it left: no clock is asked. A lock only saves work. Each piece of work has one result,
whoever does it, and none is seen before it is whole, so that a folder on which locks do not work costs time and nothing else.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .data import Chunk, rechunk, rows_of

if TYPE_CHECKING:
    from .cache import Cache


class Claims:
    """Numbered pieces of work, each of which one holder at a time has taken."""

    def __init__(self, path: str):
        """Use a file, which is made where it is not there, and is never written to.

        Raises:
            OSError: it cannot be made.
        """
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.held: set[int] = set()  # what other threads that use this object have taken: no lock keeps those apart
        self.lock = threading.Lock()

    def take(self, piece: int) -> bool:
        """Take a piece, unless somebody else has it, be it another thread."""
        with self.lock:
            if piece in self.held or not self._take(piece):
                return False
            self.held.add(piece)
            return True

    def _take(self, piece: int) -> bool:
        try:
            self._lock(fcntl.F_WRLCK, piece)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # no locks on this file system: the work is done more than once
            pass
        return True

    def give_back(self, piece: int) -> None:
        """Let others take a piece, if its result is not there."""
        with self.lock, contextlib.suppress(OSError):  # there may never have been a lock
            self.held.discard(piece)
            self._lock(fcntl.F_UNLCK, piece)

    def _lock(self, kind: int, piece: int) -> None:
        if hasattr(fcntl, "F_OFD_SETLK"):  # belongs to this open file, not to all of the process
            fcntl.fcntl(self.file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, piece, 1, 0))
        else:
            fcntl.lockf(self.file, fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB, 1, piece)

    def close(self) -> None:
        """Give everything back."""
        os.close(self.file)


@dataclass(frozen=True)
class Part:
    """Which of the processes that work together this one is: they begin in different places, so as to seldom meet."""

    worker: int = 0
    workers: int = 1
    wait: Callable[[], None] = lambda: None  # called where all that is left is in other hands


def complete(cache: Cache, blocks: Sequence[int], prepared: Callable[[Sequence[int]], Iterable[tuple[int, Any]]], part: Part) -> None:
    """See that blocks are in the cache: prepare those that nobody prepares, some at a time, and wait for the others.

    Args:
        prepared: yields (block, its arrays) for the blocks asked for, in any order.
    """
    missing = [block for block in blocks if block not in cache]
    while missing:
        cache.refresh()
        missing = [block for block in missing if block not in cache]
        size = max(1, len(missing) if part.workers == 1 else -(-len(missing) // (2 * part.workers)))
        start = part.worker * len(missing) // part.workers
        turned, worked = missing[start:] + missing[:start], False
        for i in range(0, len(turned), size):
            mine = [block for block in turned[i : i + size] if cache.claims.take(block)]
            try:
                if mine:
                    cache.refresh()  # whoever had one before may have finished it
                    for block, values in prepared(sorted(block for block in mine if block not in cache)):
                        cache.write(block, values)
                    cache.publish()
                    worked = True
            finally:
                for block in mine:
                    cache.claims.give_back(block)
        missing = [block for block in missing if block not in cache]
        if missing and not worked:
            part.wait()


class Filling:
    """Fills a cache with rows that are read in order, in pieces of many blocks, of which each process takes some.

    Args:
        cache: what is filled.
        rows: yields the raw rows from a given one on.
        prepare: turns raw chunks into prepared rows, flat lists of arrays, in their order.
        count: the rows there are; None where only reading tells, so that every process reads all of them.
        block, chunk, piece: rows of each; a chunk is some blocks, which are prepared together, and a piece is some chunks.
    """

    def __init__(
        self, cache: Cache, rows: Callable[[int], Iterator[Chunk]], prepare: Callable[[Iterable[Chunk]], Iterator[list[np.ndarray]]],
        count: int | None, block: int, chunk: int, piece: int, part: Part,
    ):  # fmt: skip
        self.cache, self.rows, self.prepare, self.count, self.part = cache, rows, prepare, count, part
        self.block, self.chunk, self.chunks = block, chunk, piece // chunk
        self.taken: set[int] = set()
        self.made = 0  # pieces that this process prepared

    @property
    def pieces(self) -> int:
        """How many pieces there are."""
        return -(-(self.count or 0) // (self.chunk * self.chunks))

    def run(self) -> int:
        """Fill the cache; return how many rows there are."""
        try:
            if self.count is None:
                self._read_on(0)
            while left := [piece for piece in range(self.pieces) if not self._is_there(piece)]:
                start = self.part.worker * self.pieces // self.part.workers
                turned = sorted(left, key=lambda piece: (piece < start, piece))
                piece = next(filter(self._take, turned), None)
                if piece is not None:
                    self._read_on(piece)
                elif any(not self._is_there(piece) for piece in left):
                    self.part.wait()
                self.cache.refresh()
        finally:
            for piece in list(self.taken):
                self._give_back(piece)
        return self.count or 0

    def _is_there(self, piece: int) -> bool:
        size = self.chunk * self.chunks
        end = (piece + 1) * size if self.count is None else min((piece + 1) * size, self.count)
        return all(block in self.cache for block in range(piece * size // self.block, -(-end // self.block)))

    def _take(self, piece: int) -> bool:
        """Take a piece that is not there, if nobody else has."""
        if piece in self.taken:
            return True
        if self._is_there(piece) or not self.cache.claims.take(piece):
            return False
        self.taken.add(piece)
        self.cache.refresh()
        if self._is_there(piece):  # whoever had it before has finished it
            self._give_back(piece)
            return False
        return True

    def _give_back(self, piece: int) -> None:
        self.taken.discard(piece)
        self.cache.claims.give_back(piece)

    def _read_on(self, piece: int) -> None:
        """Prepare a piece, and those after it as long as they are to be had."""
        numbers: collections.deque[int] = collections.deque()
        rows = self.rows(piece * self.chunk * self.chunks)
        done: int | None = None  # the piece that is being written
        for values in self.prepare(self._own_chunks(rows, piece, numbers)):
            number = numbers.popleft()
            if done is not None and done != number // self.chunks:
                self._end(done)
            done = number // self.chunks
            first = number * self.chunk // self.block
            for i, start in enumerate(range(0, len(values[0]), self.block)):
                self.cache.write(first + i, [column[start : start + self.block] for column in values])
        if done is not None:
            self._end(done)

    def _end(self, piece: int) -> None:
        self.cache.publish()
        self.made += 1
        self._give_back(piece)

    def _own_chunks(self, rows: Iterator[Chunk], piece: int, numbers: collections.deque[int]) -> Iterator[Chunk]:
        """Yield the raw chunks of the pieces that this process takes, noting their numbers."""
        number, mine, total = piece * self.chunks, False, piece * self.chunk * self.chunks
        for chunk in rechunk(rows, self.chunk):
            if number % self.chunks == 0:
                mine = self._take(number // self.chunks)
                if not mine and self.count is not None:
                    break
            if mine:
                numbers.append(number)
                yield chunk
            number, total = number + 1, total + rows_of(chunk)
        else:
            self.count = total if self.count is None else self.count
        if hasattr(rows, "close"):
            rows.close()
