"""Training and evaluation rows as the loop takes them: preprocessed features in memory, or a shuffled stream of them.

The order of rows is a pure function of seed, data and position: row p of the run is place p % N of epoch p // N, and a
batch is the next `batch_size` rows, across the end of an epoch too.
"""

from __future__ import annotations

import mmap
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from .data import Chunk, concatenate, take
from .errors import UserError

Tensors = tuple[dict[str, tf.Tensor], tf.Tensor]  # features by name [rows, ...] and labels [rows]
STREAM_ROWS = 131_072


@dataclass(frozen=True)
class Share:
    """Which part of every batch a worker takes: the `worker`-th of `workers` equal runs of its columns."""

    worker: int = 0
    workers: int = 1

    def columns(self, order: np.ndarray) -> np.ndarray:
        """Return this worker's columns of [steps, global batch]."""
        size = order.shape[1] // self.workers
        return order[:, self.worker * size : (self.worker + 1) * size]


def deal_files(counts: Sequence[int], batch_size: int, workers: int) -> tuple[list[list[int]], int]:
    """Deal files out: return (the files' places for each worker, the steps of an epoch, equal for all).

    The largest file goes first, always to the worker with the fewest rows so far.

    Raises:
        UserError: there are fewer files than workers.
    """
    if len(counts) < workers:
        raise UserError(f"--shard=files: {len(counts)} files cannot be dealt to {workers} workers. Use --shard=rows, or more files.")
    dealt: list[list[int]] = [[] for _ in range(workers)]
    rows = [0] * workers
    for i in sorted(range(len(counts)), key=lambda i: (-counts[i], i)):
        worker = min(range(workers), key=lambda w: (rows[w], len(dealt[w]), w))
        dealt[worker].append(i)
        rows[worker] += counts[i]
    return dealt, -(-max(rows) // (batch_size // workers))


class Preparer:
    """Runs a trainer's `preprocess` over chunks of raw rows, in the very graph that is exported."""

    def __init__(self, model: Any, hyperparameters: Any, facts: Any):
        self.model, self.facts = model, facts
        names = list(model.INPUTS)

        @tf.function(input_signature=[[model.INPUTS[name] for name in names]], autograph=False)
        def run(raw: list[tf.Tensor]) -> dict[str, tf.Tensor]:
            return model.preprocess(dict(zip(names, raw)), hyperparameters, facts)

        self.names, self.run = names, run

    def __call__(self, chunk: Chunk) -> Tensors:
        with tf.device("/cpu:0"):
            features = self.run([tf.convert_to_tensor(chunk[name]) for name in self.names])
            return features, tf.constant(self.model.encode_labels(chunk, self.facts))


class MemoryRows:
    """All rows preprocessed once and held in memory."""

    def __init__(self, chunks: Iterator[Chunk], prepare: Preparer):
        features: dict[str, _Growing] = {}
        labels = _Growing()
        for chunk in chunks:
            found, marks = prepare(chunk)
            for name, values in found.items():
                features.setdefault(name, _Growing()).append(values.numpy())
            labels.append(marks.numpy())
        if not labels.rows:
            raise UserError("the data has no rows.")
        self.tensors: Tensors = {name: column.tensor() for name, column in features.items()}, labels.tensor()
        self.count = labels.rows

    def feed(self, batch_size: int, seed: int, step: int, share: Share) -> Iterator[tuple[Tensors, np.ndarray]]:
        """Yield (tensors, order): order [steps, own part of the batch] int32, the rows of each next step, from `step` on."""
        epoch, start = divmod(step * batch_size, self.count)
        left = np.empty(0, np.int32)
        while True:
            order = np.concatenate([left, permutation(seed, epoch, self.count)[start:]])
            steps = len(order) // batch_size
            if steps:
                yield self.tensors, share.columns(order[: steps * batch_size].reshape(steps, batch_size))
            left, epoch, start = order[steps * batch_size :], epoch + 1, 0

    def chunks(self) -> Iterator[Tensors]:
        yield self.tensors


class _Growing:
    """A column that grows in place: TensorFlow keeps memory it has freed, so joining tensors would take twice the data.

    The memory is mapped, hence aligned as TensorFlow wants it, and pages that no row has touched cost nothing.
    """

    def __init__(self) -> None:
        self.rows, self.memory = 0, None

    def append(self, values: np.ndarray) -> None:
        """Add rows [n, ...]; all calls must agree in type and shape but for n."""
        if self.memory is None:
            self.kind, self.shape = values.dtype, values.shape[1:]
            self.memory = mmap.mmap(-1, max(values.nbytes, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        used = self._array(self.rows).nbytes
        if used + values.nbytes > len(self.memory):
            self._grow(max(used + values.nbytes, 2 * len(self.memory)))
        self.rows += len(values)
        self._array(self.rows)[self.rows - len(values) :] = values

    def _grow(self, size: int) -> None:
        try:
            self.memory.resize(size)
        except SystemError:  # no mremap on this system: copy
            larger = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            larger[: len(self.memory)] = self.memory[:]
            self.memory = larger

    def _array(self, rows: int) -> np.ndarray:
        count = rows * int(np.prod(self.shape))
        return np.frombuffer(self.memory, self.kind, count).reshape(rows, *self.shape)

    def tensor(self) -> tf.Tensor:
        """Return all rows without copying them."""
        return tf.experimental.dlpack.from_dlpack(self._array(self.rows).__dlpack__())


class StreamedRows:
    """Rows read from disk in every epoch: the files in a new order, shuffled within runs of about 131,072 rows.

    Dealt out by rows, every worker reads all files and prepares its part of each batch: the batches are those of one
    process. Dealt out by files, a worker reads its own only, and the batches differ from one process's.
    """

    def __init__(
        self, files: Sequence[str], counts: Sequence[int], read: Callable[[Sequence[str]], Iterator[Chunk]], prepare: Preparer,
        by_files: bool = False,
    ):
        self.files, self.counts, self.read, self.prepare, self.by_files = list(files), list(counts), read, prepare, by_files
        self.count = sum(counts)

    def feed(self, batch_size: int, seed: int, step: int, share: Share) -> Iterator[tuple[Tensors, np.ndarray]]:
        """As `MemoryRows.feed`; a run of rows always holds whole batches, so a step's place follows from its number."""
        if self.by_files:
            yield from self._feed_own_files(batch_size, seed, step, share)
            return
        steps = max(1, min(STREAM_ROWS, self.count) // batch_size)
        size = steps * batch_size
        part, skipped = divmod(step, steps)
        for chunk in self._runs(self.files, self.count, seed, part * size, size):
            own = share.columns(self._order(seed, part, size).reshape(steps, batch_size)[skipped:])
            yield self.prepare(take(chunk, own.ravel())), np.arange(own.size, dtype=np.int32).reshape(own.shape)
            part, skipped = part + 1, 0

    def _feed_own_files(self, batch_size: int, seed: int, step: int, share: Share) -> Iterator[tuple[Tensors, np.ndarray]]:
        """Each row of the worker's files once per epoch; places past its last row hold -1, of weight 0."""
        own, epoch_steps = deal_files(self.counts, batch_size, share.workers)
        files, count = [self.files[i] for i in own[share.worker]], sum(self.counts[i] for i in own[share.worker])
        local = batch_size // share.workers
        run_steps = max(1, min(STREAM_ROWS // local, epoch_steps))
        epoch, at = divmod(step, epoch_steps)
        tensors: Tensors | None = None
        while True:
            part, skipped = divmod(at, run_steps)
            runs = self._runs(files, count, seed + epoch, part * run_steps * local, run_steps * local, once=True)
            for run in range(part, -(-epoch_steps // run_steps)):
                steps = min(run_steps, epoch_steps - run * run_steps)
                chunk = next(runs, None)
                rows = 0 if chunk is None else min(steps * local, len(next(iter(chunk.values()))))
                tensors = self.prepare(chunk) if rows or tensors is None else tensors
                order = np.full(steps * local, -1, np.int32)
                order[:rows] = permutation(seed, (epoch << 32) + (share.worker << 16) + run, rows)
                yield tensors, order.reshape(steps, local)[skipped:]
                skipped = 0
            epoch, at = epoch + 1, 0

    def _order(self, seed: int, part: int, size: int) -> np.ndarray:
        """Return the order of a run's rows: shuffled, those of one epoch before those of the next."""
        first = part * size
        epoch_ends = range((first // self.count + 1) * self.count, first + size, self.count)
        edges = [0, *(end - first for end in epoch_ends), size]
        parts = [start + permutation(seed, (1 << 32) + first + start, end - start) for start, end in zip(edges, edges[1:])]
        return np.concatenate(parts)

    def _runs(
        self, files: Sequence[str], count: int, seed: int, first: int, rows: int, once: bool = False
    ) -> Iterator[Chunk]:
        """Yield raw chunks of exactly `rows` rows, from row `first` on, through epoch after epoch or `once`."""
        epoch, skip = divmod(first, count) if not once else (0, first)
        held: list[Chunk] = []
        size = 0
        while True:
            for chunk in self.read([files[i] for i in permutation(seed, epoch, len(files))]):
                length = len(next(iter(chunk.values())))
                if skip >= length:
                    skip -= length
                    continue
                held.append(take(chunk, slice(skip, None)))
                size, skip = size + length - skip, 0
                while size >= rows:
                    joined = concatenate(held)
                    yield take(joined, slice(0, rows))
                    held, size = [take(joined, slice(rows, None))], size - rows
            if once:
                if size:
                    yield concatenate(held)
                return
            epoch += 1

    def chunks(self) -> Iterator[Tensors]:
        for chunk in self.read(self.files):
            yield self.prepare(chunk)


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of `count` rows in an epoch: [count] int32."""
    generator = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), epoch]))
    return generator.permutation(count).astype(np.int32, copy=False)


def ahead(items: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """Iterate in a thread of its own, `depth` items ahead."""
    slots: queue.Queue = queue.Queue(depth)
    ended = threading.Event()

    def work() -> None:
        try:
            for item in items:
                if _put(slots, (item, None), ended):
                    return
            _put(slots, (None, StopIteration()), ended)
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            _put(slots, (None, error), ended)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = slots.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        ended.set()


def _put(slots: queue.Queue, item: Any, ended: threading.Event) -> bool:
    """Put an item; return True where nobody takes items any more."""
    while not ended.is_set():
        try:
            slots.put(item, timeout=0.1)
            return False
        except queue.Full:
            continue
    return True


