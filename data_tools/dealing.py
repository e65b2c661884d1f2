"""Deal rows out to shards: in turn, or in a random order of more rows than fit into memory.

The random order is a sort by a key that depends only on the seed and the row's number; the format of the input and the
memory do not matter. Rows are dealt to buckets on disk, one for each range of keys, and each bucket is sorted in memory. A
bucket that is too large is dealt again by the key's next bits.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

BUCKET_BYTES = 64 << 20  # rows that are sorted, or wait to be written, at a time
BITS = 7  # a deal makes 2 ** BITS buckets; each is an open file
_KEY = "\0key"


def in_turn(batches: Iterable[pa.RecordBatch], shards: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (shard, rows), with row i in shard i % shards, and a shard's rows in their original order."""
    waiting: list[pa.RecordBatch] = []
    size = first = 0
    for batch in batches:
        waiting.append(batch)
        size += batch.nbytes
        if size >= BUCKET_BYTES // 2:
            yield from _pieces(waiting, first, shards)
            first += sum(batch.num_rows for batch in waiting)
            waiting, size = [], 0
    if waiting:
        yield from _pieces(waiting, first, shards)


def _pieces(batches: list[pa.RecordBatch], first: int, shards: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    rows = _joined(batches)
    for shard in range(shards):
        start = (shard - first) % shards
        if start < rows.num_rows:
            yield shard, rows.take(pa.array(np.arange(start, rows.num_rows, shards)))


def keys(seed: int, first: int, count: int) -> np.ndarray:
    """Return the keys of `count` rows from row `first` on: uint64 [count]."""
    return np.random.PCG64(seed & (2**64 - 1)).advance(first).random_raw(count)


def shuffled(batches: Iterable[pa.RecordBatch], shards: int, seed: int, folder: str) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (shard, rows) in a random order, one shard after the other; their sizes differ by one row at most.

    Args:
        folder: where the buckets' files go; each is removed once it has been read.
    """
    bucket, total = _Bucket(folder, "", 64), 0
    for batch in batches:
        bucket.add(batch.append_column(_KEY, pa.array(keys(seed, total, batch.num_rows))))
        total += batch.num_rows
    done, ends = 0, [total * (i + 1) // shards for i in range(shards)]
    for batch in bucket.sorted():
        start = 0
        while start < batch.num_rows:
            shard = bisect.bisect_right(ends, done)
            count = min(batch.num_rows - start, ends[shard] - done)
            yield shard, batch.slice(start, count)
            start, done = start + count, done + count


class _Bucket:
    """Rows in a range of keys: in memory while they are few, then dealt to buckets of smaller ranges on disk.

    Args:
        name: a unique part of the files' names.
        shift: how many low bits of its rows' keys may differ.
    """

    def __init__(self, folder: str, name: str, shift: int):
        self.folder, self.name, self.shift = folder, name, shift
        self.waiting: list[pa.RecordBatch] = []
        self.size = 0
        self.files: dict[int, tuple[str, pa.OSFile, pa.RecordBatchFileWriter]] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        self.waiting.append(batch)
        self.size += batch.nbytes
        if self.size >= BUCKET_BYTES and self.shift > 0:
            self._deal()

    def _sorted(self) -> pa.RecordBatch:
        """Take the rows that are in memory, of which there must be some, in the order of their keys."""
        rows = _joined(self.waiting)
        self.waiting, self.size = [], 0
        # Stable, so that rows with equal keys keep their order.
        return rows.take(pa.array(np.argsort(_keys_of(rows), kind="stable")))

    def _deal(self) -> None:
        rows = self._sorted()
        shift = max(self.shift - BITS, 0)
        place = (_keys_of(rows) >> np.uint64(shift)) & np.uint64((1 << (self.shift - shift)) - 1)
        for part in np.unique(place).tolist():
            start, end = np.searchsorted(place, [part, part + 1]).tolist()
            if part not in self.files:
                path = os.path.join(self.folder, f"bucket{self.name}-{part}.arrow")
                file = pa.OSFile(path, "wb")
                self.files[part] = (path, file, pa.ipc.new_stream(file, rows.schema))
            self.files[part][2].write_batch(rows.slice(start, end - start))

    def sorted(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in the order of their keys, without the keys, and remove the files."""
        if not self.files:
            if self.waiting:
                rows = self._sorted()
                yield rows.select([name for name in rows.schema.names if name != _KEY])
            return
        if self.waiting:
            self._deal()
        for _, file, writer in self.files.values():
            writer.close()
            file.close()
        for part in sorted(self.files):
            path = self.files[part][0]
            inner = _Bucket(self.folder, f"{self.name}-{part}", max(self.shift - BITS, 0))
            with pa.OSFile(path) as file:
                for batch in pa.ipc.open_stream(file):
                    inner.add(batch)
            os.remove(path)
            yield from inner.sorted()


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _keys_of(rows: pa.RecordBatch) -> np.ndarray:
    return rows.column(rows.schema.names.index(_KEY)).to_numpy()
