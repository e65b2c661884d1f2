"""Rows that come in streams and in no order of their own, read and sorted by several processes with a common folder.

Each stream is read by one process, which deals its rows to buckets by their hash; each bucket is then sorted by one process.
What all read in the end are the buckets one after the other: the order of `_by_content.in_order`, whoever did what.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from ..ahead import CORES
from ..shares import Claims, Part
from ._by_content import HASH, bucket_of, in_buckets, in_order

GROUP_BYTES = 64 << 20  # dealt to buckets at a time
BUCKET_BYTES = 64 << 20  # of a bucket, about
MOST_BITS = 8
SESSION, BUCKETS = 1 << 40, 1 << 20  # claims: of the session, and of the first bucket; streams count from 0


def in_shares(
    folder: str,
    part: Part,
    begin: Callable[[], dict[str, Any]],
    read: Callable[[dict[str, Any], int], Iterator[pa.RecordBatch]],
    size: int,
    limit: int,
    stop: threading.Event,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all streams, sorted by their hash, ties by the cells, without the hash.

    Args:
        folder: where the rows are kept, for later runs as well; it belongs to these very rows.
        begin: opens a session, of which all processes then know `streams`, a list, and `expires`, seconds since 1970 or 0.
        read: yields the rows of stream i of a session, the last column being `HASH`.
        size: bytes of all rows, about; equal in all processes.
        limit: bytes that are sorted in memory.
        stop: set where this ends before its time, for `read` to see.

    Raises:
        OSError: the folder cannot be written to.
    """
    bits, buckets = _buckets(folder, size)
    if not _all_there(buckets):
        os.makedirs(folder, exist_ok=True)
        with contextlib.closing(Claims(os.path.join(folder, "claims"))) as claims:
            work = _Work(claims, part, stop, lambda: _all_there(buckets))
            session = work.session(folder, begin)
            streams = [os.path.join(folder, f"{session['name']}-{i:05}.arrow") for i in range(len(session["streams"]))]
            work.each_once(streams, 0, lambda i, path: _write(path, _dealt(read(session, i), bits)), -(-len(streams) // part.workers))
            work.each_once(buckets, BUCKETS, lambda i, path: _sort(path, streams, i, bits, limit), 1 if size > limit else CORES)
        for path in streams:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    yield from kept(folder, size)


def kept(folder: str, size: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a folder that `in_shares` has filled."""
    for path in _buckets(folder, size)[1]:
        yield from _batches(path)


def _buckets(folder: str, size: int) -> tuple[int, list[str]]:
    """Return by how many bits of their hash rows are dealt, and the buckets' files."""
    bits = min(MOST_BITS, max(0, (size // BUCKET_BYTES).bit_length()))
    return bits, [os.path.join(folder, f"sorted-{bits}-{i:03}.arrow") for i in range(1 << bits)]


def _all_there(paths: Sequence[str]) -> bool:
    return all(map(os.path.exists, paths))


class _Work:
    """Files that are each made once, by whichever process takes them."""

    def __init__(self, claims: Claims, part: Part, stop: threading.Event, finished: Callable[[], bool]):
        self.claims, self.part, self.stop, self.finished = claims, part, stop, finished

    def session(self, folder: str, begin: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the session that all use; one process opens it, anew where it has expired."""
        path = os.path.join(folder, "session.json")
        while True:
            with contextlib.suppress(OSError, ValueError), open(path) as file:
                said = json.load(file)
                if not said["expires"] or said["expires"] > time.time() + 60:
                    return said
            if not self.claims.take(SESSION):
                self.part.wait()
                continue
            handle, new = tempfile.mkstemp(".json", "session-", folder)
            said = begin() | {"name": os.path.basename(new).removesuffix(".json")}
            with open(handle, "w") as file:
                json.dump(said, file)
            os.replace(new, path)
            self.claims.give_back(SESSION)
            return said

    def each_once(self, paths: Sequence[str], first: int, make: Callable[[int, str], None], threads: int) -> None:
        """See that all files are there; make those that nobody else makes.

        Args:
            first: the claim of the first of them.
            make: makes file i at a path that it is given.
            threads: how many to make at a time.
        """
        start = self.part.worker * len(paths) // self.part.workers
        order = [*range(start, len(paths)), *range(start)]

        def run(_: int) -> None:
            try:
                while left := [i for i in order if not os.path.exists(paths[i])]:
                    if self.stop.is_set() or self.finished():
                        return
                    if not [i for i in left if self._make(paths[i], first + i, lambda path, i=i: make(i, path))]:
                        self.part.wait()
            except BaseException:
                self.stop.set()
                raise

        with ThreadPoolExecutor(max(1, threads)) as pool:
            list(pool.map(run, range(max(1, threads))))

    def _make(self, path: str, claim: int, make: Callable[[str], None]) -> bool:
        if self.stop.is_set() or os.path.exists(path) or not self.claims.take(claim):
            return False
        try:
            if os.path.exists(path) or self.finished():  # whoever had it before has made it
                return False
            handle, new = tempfile.mkstemp(".part", f"{os.path.basename(path)}-", os.path.dirname(path))
            os.close(handle)
            try:
                make(new)
                if self.stop.is_set():  # it may be half of the file
                    return False
                os.replace(new, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new)
            return True
        finally:
            self.claims.give_back(claim)


def _write(path: str, batches: Iterable[pa.RecordBatch]) -> None:
    """Write batches as an Arrow IPC file, an empty file where there are none, and see that it is on the disk."""
    with open(path, "wb") as file:
        writer = None
        for batch in batches:
            writer = writer or pa.ipc.new_file(file, batch.schema)
            writer.write_batch(batch)
        if writer is not None:
            writer.close()
        file.flush()
        os.fsync(file.fileno())


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    if os.path.getsize(path):
        with pa.memory_map(path) as file:
            reader = pa.ipc.open_file(file)
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)


def _dealt(rows: Iterator[pa.RecordBatch], bits: int) -> Iterator[pa.RecordBatch]:
    """Yield rows so that no batch has rows of two buckets."""
    for _, part in in_buckets(rows, GROUP_BYTES, 0, bits):
        yield from part.to_batches()


def _sort(path: str, streams: Sequence[str], bucket: int, bits: int, limit: int) -> None:
    def rows() -> Iterator[pa.RecordBatch]:
        for stream in streams:
            for batch in _batches(stream):
                if bucket_of(batch.column(HASH)[:1].to_numpy(), 0, bits)[0] == bucket:
                    yield batch

    _write(path, in_order(rows(), limit, bits))
