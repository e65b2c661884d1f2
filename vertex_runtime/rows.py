"""Training and evaluation rows as the loop takes them: prepared once, in memory or on disk, or prepared as they are needed.

Whichever it is, the rows of a step are the same: see order.py.
"""

from __future__ import annotations

import collections
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from .ahead import CORES, in_threads
from .arguments import RunOptions
from .blocks import CsvBlocks
from .cache import Cache
from .columns import Image
from .contract import Contract, blame
from .data import PATH, BadRows, Chunk, concatenate, rows_of, take
from .errors import UserError, cause
from .order import WINDOW_BLOCKS, Order
from .reporting import log
from .shares import Part, complete
from .sources import DatasetSource, FolderSource, IndexedSource

Rows = tuple  # prepared rows: (features, labels) or (features, labels, weights), nests of tensors [rows, ...]
BLOCK_ROWS = 512  # prepared at a time where rows are prepared as needed: enough for all cores, little to wait for


@dataclass(frozen=True)
class Share:
    """Which part of every batch a worker takes: the `worker`-th of `workers` equal runs of its columns."""

    worker: int = 0
    workers: int = 1

    def columns(self, order: np.ndarray) -> np.ndarray:
        """Return this worker's columns of [steps, global batch]."""
        size = order.shape[1] // self.workers
        return order[:, self.worker * size : (self.worker + 1) * size]


class Preparer:
    """Turns chunks of raw rows into what a model trains on, in the very graph that is exported, some chunks ahead in threads."""

    def __init__(self, contract: Contract, hp: Any, facts: Any, bad: BadRows | None = None):
        self.contract, self.hp, self.facts, self.bad = contract, hp, facts, bad or BadRows()
        self.names = list(contract.inputs)
        self.class_weight = contract.class_weight(hp, facts)

        @tf.function(input_signature=[[contract.inputs[name] for name in self.names]], autograph=False)
        def run(raw: list[tf.Tensor]) -> Any:
            return contract.preprocess(dict(zip(self.names, raw)), hp, facts)

        self.run = run.get_concrete_function()
        for tensor in tf.nest.flatten(self.run.structured_outputs):
            if not isinstance(tensor, (tf.Tensor, tf.TensorSpec)):
                remedy = "Pad a ragged one: to_tensor(shape=[None, n])"
                raise UserError(f"preprocess must return dense tensors; got {type(tensor).__name__}. {remedy}.")
            if None in tensor.shape[1:]:
                remedy = "Set it: tf.ensure_shape"
                raise UserError(f"preprocess must return tensors of fixed shape but for the rows; got {tensor.shape}. {remedy}.")

    def __call__(self, chunk: Chunk, training: bool = False) -> Rows:
        """Return (features, labels) of the rows, with a third member, float32 weights, where the trainer has any."""
        with tf.device("/cpu:0"):
            try:
                features = self._features(chunk)
            except tf.errors.InvalidArgumentError as error:
                chunk = self._without_bad_rows(chunk, error)
                features = self._features(chunk)
            labels = self.contract.encode_labels(chunk, self.facts)
            weights = self.contract.weigh(chunk, self.hp, self.facts)
            self._check_rows(chunk, preprocess=features, encode_labels=labels, weigh=[] if weights is None else np.asarray(weights))
            if self.class_weight is not None:
                weights = self._class_weights(labels, weights, training)
            labels = tf.nest.map_structure(tf.convert_to_tensor, labels)
            return (features, labels) if weights is None else (features, labels, tf.constant(weights, tf.float32))

    def _features(self, chunk: Chunk) -> Any:
        with blame(self.contract.module, "preprocess", but=(tf.errors.InvalidArgumentError,)):  # those tell of single rows
            return self.run([tf.convert_to_tensor(chunk[name], self.contract.inputs[name].dtype) for name in self.names])

    def _check_rows(self, chunk: Chunk, **found: Any) -> None:
        """Refuse what a part of the trainer made of a chunk, if it is not row by row: rows would be trained on with others' values."""
        count = rows_of(chunk)
        for part, values in found.items():
            for each in tf.nest.flatten(values):
                shape = tuple(np.shape(each))
                if not shape or shape[0] != count:
                    raise UserError(
                        f"{part} must return a value for each row, [{count}, ...] for these {count} rows; got the shape {shape}. "
                        f"Correct it in {os.path.relpath(self.contract.module.__file__ or '')}."
                    )

    def _class_weights(self, labels: Any, weights: Any, training: bool) -> np.ndarray:
        if isinstance(labels, Mapping) or np.ndim(labels) != 1:
            raise UserError("class_weight needs one label a row that is a class's number. Use weigh(chunk, hp, facts) for anything else.")
        weights = np.ones(len(labels), np.float32) if weights is None else weights
        if not training:
            return weights
        return weights * np.array([self.class_weight.get(int(label), 1.0) for label in np.asarray(labels)], np.float32)

    def _without_bad_rows(self, chunk: Chunk, error: Exception) -> Chunk:
        """Find the rows that `preprocess` cannot take, such as images that do not decode, and treat them by --bad_rows."""
        count, good = rows_of(chunk), []
        for i in range(count):
            try:
                self._features(take(chunk, slice(i, i + 1)))
                good.append(i)
            except tf.errors.InvalidArgumentError as fault:
                text = cause(fault, 120)
                where = os.fsdecode(chunk[PATH][i]) if PATH in chunk else "a row"
                self.bad.add(
                    where, f"preprocess cannot take it ({text})", {name: chunk[name][i : i + 1].tolist()[0] for name in self.names}
                )
        if not good or len(good) == count:
            raise UserError(f"preprocess cannot take rows of the training data: {cause(error, 200)}. Correct preprocess in model.py.")
        return take(chunk, good)

    def ahead(self, chunks: Iterable[Chunk], training: bool = False, whole: bool = False) -> Iterator[Rows]:
        """Prepare chunk after chunk, in order, in as many threads as there are cores: decoding images is most of their training.

        Unless chunks are to stay `whole`, one of images is cut into parts, so that all threads have work at once.
        """
        parts = (part for chunk in chunks for part in ([chunk] if whole else self._parts(chunk, CORES)))
        yield from in_threads(lambda part: self(part, training), parts)

    def _parts(self, chunk: Chunk, parts: int) -> Iterator[Chunk]:
        if not any(isinstance(column, Image) for column in self.contract.columns):
            yield chunk
            return
        size = max(1, -(-rows_of(chunk) // parts))
        for start in range(0, rows_of(chunk), size):
            yield take(chunk, slice(start, start + size))


def count_rows(rows: Rows) -> int:
    """Return how many rows some prepared rows are."""
    return int(tf.nest.flatten(rows)[0].shape[0])


def flat(rows: Rows) -> list[np.ndarray]:
    """Return prepared rows as a flat list of arrays, [rows, ...] each."""
    return [tensor.numpy() for tensor in tf.nest.flatten(rows)]


def prepared_bytes(rows: Rows) -> int:
    """Return the memory that prepared rows take."""
    total = 0
    for tensor in tf.nest.flatten(rows):
        if tensor.dtype == tf.string:
            total += int(tf.reduce_sum(tf.strings.length(tensor))) + 24 * int(tf.size(tensor))
        else:
            total += int(tf.size(tensor)) * tensor.dtype.size
    return total


class MemoryRows:
    """All rows prepared once and held in memory."""

    def __init__(self, prepared: Iterable[Rows], row_bytes: float):
        self.row_bytes = row_bytes
        columns: list[Growing] | None = None
        structure: Any = None
        for rows in prepared:
            if columns is None:
                structure, columns = rows, [Growing() for _ in tf.nest.flatten(rows)]
            for column, values in zip(columns, tf.nest.flatten(rows)):
                column.append(values.numpy())
        if columns is None or not columns[0].rows:
            raise UserError("the data has no rows. Name files with rows.")
        self.tensors: Rows = tf.nest.pack_sequence_as(structure, [column.tensor() for column in columns])
        self.count = columns[0].rows

    def feed(self, batch_size: int, seed: int, step: int, share: Share) -> Iterator[tuple[Rows, np.ndarray]]:
        """Yield (tensors, order): order [steps, own part of the batch] int32, the rows of each next step, from `step` on."""
        for order in Order.of(seed, self.count, self.row_bytes).steps(batch_size, step):
            yield self.tensors, share.columns(order)

    def chunks(self) -> Iterator[Rows]:
        """Yield all rows as they came: here in one piece."""
        yield self.tensors


class IndexedRows:
    """Rows of a source with random access, prepared as they are needed: the batches are those of `MemoryRows`."""

    def __init__(self, source: IndexedSource | FolderSource, places: np.ndarray, prepare: Preparer, row_bytes: float):
        self.source, self.places, self.prepare, self.count, self.row_bytes = source, places, prepare, len(places), row_bytes

    def feed(self, batch_size: int, seed: int, step: int, share: Share) -> Iterator[tuple[Rows, np.ndarray]]:
        """As `MemoryRows.feed`, in blocks of some thousand rows that are prepared ahead."""
        steps = max(1, BLOCK_ROWS // batch_size)

        def own() -> Iterator[np.ndarray]:
            for order in Order.of(seed, self.count, self.row_bytes).steps(batch_size, step):
                for start in range(0, len(order), steps):
                    yield share.columns(order[start : start + steps])

        shapes: collections.deque = collections.deque()

        def chunks() -> Iterator[Chunk]:
            for order in own():
                shapes.append(order.shape)
                yield self.source.take(self.places[order.ravel()])

        for rows in self.prepare.ahead(chunks(), True, whole=True):
            shape = shapes.popleft()
            if count_rows(rows) != shape[0] * shape[1]:
                raise UserError("--bad_rows=skip: rows that preprocess cannot take are left out only with --in_memory=yes.")
            yield rows, np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)

    def chunks(self) -> Iterator[Rows]:
        """Yield all rows as they came, prepared some at a time."""
        size = 1024
        blocks = (self.places[start : start + size] for start in range(0, self.count, size))
        yield from self.prepare.ahead(self.source.take(block) for block in blocks)


class DatasetRows:
    """The examples of a `tf.data.Dataset` in its own order, epoch after epoch."""

    def __init__(self, source: DatasetSource, prepare: Preparer):
        self.source, self.prepare, self.count = source, prepare, source.count

    def feed(self, batch_size: int, seed: int, step: int, share: Share) -> Iterator[tuple[Rows, np.ndarray]]:
        """As `MemoryRows.feed`; a resumed run skips what was trained on, which runs the dataset through that far."""
        epoch, skip = divmod(step * batch_size, self.count)
        steps = max(1, min(BLOCK_ROWS, self.count) // batch_size)
        if skip:
            log("INFO", f"dataset: skipping {skip} examples of epoch {epoch}, which runs the dataset that far without training")
        held: list[Chunk] = []
        size = 0
        while True:
            seen = skip
            for chunk in self.source.chunks(epoch, skip):
                held.append(chunk)
                size += rows_of(chunk)
                seen += rows_of(chunk)
                while size >= steps * batch_size:
                    joined = concatenate(held)
                    own = share.columns(np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size))
                    yield self.prepare(take(joined, own.ravel()), True), np.arange(own.size, dtype=np.int32).reshape(own.shape)
                    held, size = [take(joined, slice(steps * batch_size, None))], size - steps * batch_size
            if seen != self.count:
                found = f"{seen} examples in epoch {epoch}, and {self.count} in epoch 0"
                raise UserError(f"dataset(files, hp, epoch) returned {found}. Return as many for each: a resumed run goes by their number.")
            epoch, skip = epoch + 1, 0

    def chunks(self) -> Iterator[Rows]:
        """Yield all examples as they come."""
        for chunk in self.source.chunks():
            yield self.prepare(chunk)


class Growing:
    """A column that grows in place: TensorFlow keeps memory it has freed, so joining tensors would take twice the data.

    The memory is mapped, hence aligned as TensorFlow wants it, and pages that no row has touched cost nothing.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.memory: mmap.mmap | None = None  # until the first row tells type and shape
        self.texts: list[np.ndarray] = []  # texts lie elsewhere: their array would hold addresses

    def append(self, values: np.ndarray) -> None:
        """Add rows [n, ...]; all calls must agree in type and shape but for n."""
        if values.dtype == object:
            self.texts.append(values)
            self.rows += len(values)
            return
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
        return as_tensor(np.concatenate(self.texts) if self.texts else self._array(self.rows))


def as_tensor(array: np.ndarray) -> tf.Tensor:
    """Return an array in memory that is aligned as TensorFlow wants it as a tensor, without a copy where that is possible."""
    if array.dtype.kind not in "fiu" or array.dtype.name == "bfloat16":  # what DLPack does not know is copied
        return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


class CachedRows:
    """Rows kept on disk, read window by window of the order: the batches are those of `MemoryRows`.

    Args:
        cache: the blocks that are there already.
        source: prepares blocks that are not; None where all are.
        see: called at every window; raises where the files have changed since they were read.
        part: this process's part in preparing blocks, where others look into the same folder.
    """

    def __init__(
        self, cache: Cache, count: int, row_bytes: float, source: CsvBlocks | None = None, see: Callable[[], None] = lambda: None,
        part: Part | None = None,
    ):  # fmt: skip
        self.cache, self.count, self.row_bytes = cache, count, row_bytes
        self.source, self.see, self.part = source, see, part or Part()

    def feed(self, batch_size: int, seed: int, step: int, share: Share) -> Iterator[tuple[Rows, np.ndarray]]:
        """As `MemoryRows.feed`, with the tensors of a window at a time."""
        left: list[np.ndarray] | None = None  # the rows of a window that did not fill a batch
        order = Order.of(seed, self.count, self.row_bytes)
        room = order.window_rows + batch_size  # one size for all windows, since XLA compiles anew for another
        for window in order.from_position(step * batch_size):
            columns = self._read(window.blocks, left, room)
            waiting = len(left[0]) if left else 0
            places = np.concatenate([np.arange(waiting, dtype=np.int32), waiting + window.order])
            steps = len(places) // batch_size
            left = [column[places[steps * batch_size :]] for column in columns]
            if steps:
                yield self._tensors(columns), share.columns(places[: steps * batch_size].reshape(steps, batch_size))

    def chunks(self) -> Iterator[Rows]:
        """Yield all rows as they came."""
        blocks = np.arange(Order.of(0, self.count, self.row_bytes).blocks)
        for part in np.array_split(blocks, -(-len(blocks) // max(1, WINDOW_BLOCKS // 4))):
            yield self._tensors(self._read(part))

    def _read(self, blocks: np.ndarray, first: list[np.ndarray] | None = None, room: int = 0) -> list[np.ndarray]:
        """Return the rows of some blocks, those of `first` before them, tensor by tensor: [rows, or `room`, ...]."""
        self.see()
        if self.source is not None and not self.cache.finished:
            complete(self.cache, [int(block) for block in blocks], self.source.prepared, self.part)
            if len(self.cache.places) == Order.of(0, self.count, self.row_bytes).blocks:
                self.cache.finish()
        waiting = len(first[0]) if first else 0
        rows = waiting + sum(self.cache.rows[int(block)] for block in blocks)
        columns = self.cache.layout.empty(max(rows, room))
        for column, values in zip(columns, first or ()):
            column[:waiting] = values
        self.cache.read(blocks.tolist(), columns, waiting)
        return columns

    def _tensors(self, columns: Sequence[np.ndarray]) -> Rows:
        return tf.nest.pack_sequence_as(self.cache.layout.structure, [as_tensor(column) for column in columns])


AnyRows = MemoryRows | IndexedRows | DatasetRows | CachedRows


def fill(cache: Cache, prepared: Iterable[Rows], block_rows: int) -> None:
    """Write prepared rows into an empty cache, in blocks of `block_rows` but for the last."""
    left: list[np.ndarray] = []
    block = 0
    for rows in prepared:
        values = flat(rows)
        values = [np.concatenate(pair) for pair in zip(left, values)] if left else values
        whole = len(values[0]) // block_rows * block_rows
        for start in range(0, whole, block_rows):
            cache.write(block, [column[start : start + block_rows] for column in values])
            block += 1
        left = [column[whole:] for column in values]
    if left and len(left[0]):
        cache.write(block, left)


def each_worker(workers: int, options: RunOptions, tables: bool, kind: type, random_access: bool) -> list[str]:
    """Return what each of several workers reads and keeps, in a line or two.

    Args:
        tables: whether rows come from tables rather than from files.
        kind: the class that holds the training rows.
        random_access: whether they come from a source with random access, or a folder of images.
    """
    each, folder = f"each of {workers} workers", options.cache_dir
    sees = f"{each} that sees {folder}"
    found = []
    if tables:
        whole = f"{each} reads all of the table: --cache_dir, a folder that all of them see, lets each read a share of its streams"
        found.append(f"{sees} reads a share of the streams of the table, and all rows from there" if folder else whole)
    if kind is DatasetRows:
        found.append(f"{each} runs through the whole dataset, of which it keeps nothing")
    elif kind is IndexedRows:
        found.append(f"{each} reads and prepares its own rows of each batch, as they are needed, and keeps nothing")
    elif kind is MemoryRows:
        found.append(f"{each} reads and prepares all rows, and keeps them in memory")
    elif not folder:
        found.append(f"{each} reads and prepares all rows, and keeps them in a temporary file: --cache_dir lets workers share that")
    elif options.bad_rows == "skip":
        found.append(f"one worker of those that see {folder} reads and prepares all rows, which the others read from there")
    else:
        reads = "reads and prepares" if random_access else "prepares"
        found.append(f"{sees} {reads} a share of the rows there, and reads the rest of them from there; one that does not, all rows")
    return found
