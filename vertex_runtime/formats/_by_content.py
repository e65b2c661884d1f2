"""An order of rows that only their cells decide, for sources that have none: sorted by a hash, in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..hashing import mix
from ..reporting import log

BLOCK_BYTES = 4 << 20
BUCKET_BITS = 6
HASH = ""  # the name of the column of hashes: no column of a table has it


def in_order(batches: Iterable[pa.RecordBatch], limit: int, used: int = 0) -> Iterator[pa.RecordBatch]:
    """Yield rows sorted by their hash, ties by the cells, without the hash.

    Args:
        batches: rows whose last column is `HASH`.
        limit: bytes that are sorted in memory; more are dealt to files by the next bits of the hash, each sorted by itself.
        used: bits of the hash that are equal in all rows, or were dealt by.
    """
    batches = iter(batches)
    held = list(_up_to(batches, limit))
    rest = next(batches, None)
    if rest is None:
        if held:
            yield from _blocks(_sorted(held))
        return
    if not used:
        log("INFO", f"more than {limit >> 20} MiB of rows: they are sorted by way of files in {tempfile.gettempdir()}")
    with tempfile.TemporaryDirectory(prefix="rows-") as folder:
        rows = itertools.chain(held, [rest], batches)
        del held, rest
        for file, alike in _deal(rows, folder, limit, used):
            if alike:  # one row, over and over: it has no order, and more dealing would not part it
                yield from (batch.select(batch.schema.names[:-1]) for batch in _spilled(file))
            else:
                yield from in_order(_spilled(file), limit, used + BUCKET_BITS)
            os.remove(file)


def _up_to(batches: Iterator[pa.RecordBatch], limit: int) -> Iterator[pa.RecordBatch]:
    """Yield batches until they are `limit` bytes; at least one."""
    size = 0
    while size < limit and (batch := next(batches, None)) is not None:
        size += batch.nbytes
        yield batch


def _sorted(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    table = pa.Table.from_batches(batches)
    keys = [(name, "ascending") for name in (HASH, *table.column_names[:-1])]
    return table.take(pc.sort_indices(table, sort_keys=keys)).drop_columns([HASH])


def _blocks(table: pa.Table) -> Iterator[pa.RecordBatch]:
    rows = max(1, table.num_rows * BLOCK_BYTES // max(1, table.nbytes))
    yield from table.combine_chunks().to_batches(max_chunksize=rows)


def in_buckets(batches: Iterable[pa.RecordBatch], size: int, used: int, bits: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield (bucket, some of its rows): about `size` bytes of rows at a time, dealt by `bits` bits of their hash after the first `used`."""
    batches = iter(batches)
    while held := list(_up_to(batches, size)):
        table = pa.Table.from_batches(held)
        buckets = bucket_of(table.column(HASH).to_numpy(), used, bits)
        order = np.argsort(buckets, kind="stable")
        table, buckets = table.take(order).combine_chunks(), buckets[order]
        edges = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(buckets)]
        for start, end in itertools.pairwise(edges):
            yield int(buckets[start]), table.slice(start, end - start)


def bucket_of(hashes: np.ndarray, used: int, bits: int) -> np.ndarray:
    """Return the number that `bits` bits of each hash after the first `used` make: [rows] int64."""
    shift = np.uint64(max(0, min(63, 64 - bits - used)))
    return ((hashes >> shift) & np.uint64((1 << bits) - 1)).astype(np.int64)


def _deal(rows: Iterator[pa.RecordBatch], folder: str, limit: int, used: int) -> list[tuple[str, bool]]:
    """Write rows to a file per bucket; return (file, whether all its hashes are equal) in the order of hashes."""
    lows, highs, dealt, said = {}, {}, 0, time.monotonic()
    with contextlib.ExitStack() as stack:
        writers: dict[int, Any] = {}
        for bucket, part in in_buckets(rows, max(1, limit // 4), used, BUCKET_BITS):
            if bucket not in writers:
                file = stack.enter_context(pa.OSFile(os.path.join(folder, f"{bucket:02}"), "wb"))
                writers[bucket] = stack.enter_context(pa.ipc.new_stream(file, part.schema))
            writers[bucket].write_table(part)
            hashes = part.column(HASH).to_numpy()
            lows[bucket] = min(lows.get(bucket, hashes[0]), hashes.min())
            highs[bucket] = max(highs.get(bucket, hashes[0]), hashes.max())
            dealt += len(hashes)
            if time.monotonic() - said > 10:
                log("INFO", f"{dealt:,} rows are in files, to be sorted")
                said = time.monotonic()
    return [(os.path.join(folder, f"{bucket:02}"), lows[bucket] == highs[bucket]) for bucket in sorted(lows)]


def _spilled(file: str) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(file, "rb") as source, pa.ipc.open_stream(source) as reader:
        yield from reader


def hash_cells(values: pa.Array) -> np.ndarray:
    """Return a hash of each cell, [rows] uint64: of its bits alone, so that no version or machine changes it."""
    if pa.types.is_floating(values.type):
        numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
        found = np.where(np.isnan(numbers), np.nan, numbers).view(np.uint64)
    else:
        found = _text_hashes(values.cast(pa.binary()).fill_null(b""))
    return np.where(values.is_null().to_numpy(zero_copy_only=False), np.uint64(0x9E3779B97F4A7C15), mix(found))


def _text_hashes(values: pa.Array) -> np.ndarray:
    """Return a polynomial of each cell's bytes, modulo 2**64, about a MiB of cells at a time."""
    _, edges, content = values.buffers()
    edges = np.frombuffer(edges, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    letters = np.frombuffer(content or b"", np.uint8)
    found = np.zeros(len(values), np.uint64)
    lengths = np.diff(edges)
    powers = np.full(int(lengths.max(initial=0)), 0x5851F42D4C957F2D, np.uint64).cumprod(dtype=np.uint64)
    start = 0
    while start < len(values):
        end = max(start + 1, int(np.searchsorted(edges, edges[start] + (1 << 20), "right")) - 1)
        low, high = edges[start], edges[end]
        position = np.arange(low, high) - np.repeat(edges[start:end], lengths[start:end])
        terms = (letters[low:high].astype(np.uint64) + np.uint64(1)) * powers[position]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        found[start:end] = sums[edges[start + 1 : end + 1] - low] - sums[edges[start:end] - low]
        start = end
    return found
