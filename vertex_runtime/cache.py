"""Prepared rows on a local disk: Arrow IPC messages, one for each block of rows, in whatever order the blocks came.

A cache without a name has no file name either, so that it goes with the process, however that ends. A named one
(`--cache_dir`) is complete once its index is there, and serves every later run whose rows have the same key.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import mmap
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from .errors import UserError
from .reporting import log

SPARE_BYTES = 256 << 20  # left free on the disk
FORMAT = 1  # raised when an older cache is not to be read any more


@dataclass(frozen=True)
class Layout:
    """The tensors of a prepared row: the structure that holds them, and each one's type and shape without the rows."""

    structure: Any
    types: tuple[tf.DType, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, rows: Any) -> Layout:
        """Return the layout of some prepared rows."""
        flat = tf.nest.flatten(rows)
        return cls(tf.nest.map_structure(lambda _: 0, rows), tuple(t.dtype for t in flat), tuple(tuple(t.shape[1:]) for t in flat))

    def bytes_of(self, i: int) -> int:
        """Return the bytes of a row in tensor i, which is no text."""
        return math.prod(self.shapes[i]) * self.types[i].size

    def schema(self) -> pa.Schema:
        """Return the Arrow types of the columns: a row of numbers is one value of fixed size."""
        return pa.schema([(str(i), self._kind(i)) for i in range(len(self.types))])

    def _kind(self, i: int) -> pa.DataType:
        if self.types[i] != tf.string:
            return pa.binary(max(1, self.bytes_of(i)))
        return pa.list_(pa.large_binary(), math.prod(self.shapes[i])) if self.shapes[i] else pa.large_binary()

    def batch(self, values: Sequence[np.ndarray]) -> pa.RecordBatch:
        """Return rows, one array [rows, ...] for each tensor, as an Arrow record batch."""
        arrays = []
        for i, column in enumerate(values):
            if self.types[i] == tf.string:
                texts = pa.array(column.ravel().tolist(), pa.large_binary())
                arrays.append(pa.FixedSizeListArray.from_arrays(texts, type=self._kind(i)) if self.shapes[i] else texts)
                continue
            raw = np.ascontiguousarray(column) if self.bytes_of(i) else np.zeros(len(column), np.uint8)
            arrays.append(pa.Array.from_buffers(self._kind(i), len(column), [None, pa.py_buffer(raw)]))
        return pa.record_batch(arrays, schema=self.schema())

    def values(self, batch: pa.RecordBatch, i: int) -> np.ndarray:
        """Return tensor i of a record batch, without a copy where it holds numbers: [rows, ...]."""
        column = batch.column(i)
        if self.types[i] == tf.string:
            texts = (column.values if self.shapes[i] else column).to_pylist()
            found = np.empty(len(texts), object)
            found[:] = texts
            return found.reshape(len(batch), *self.shapes[i])
        kind = self.types[i].as_numpy_dtype
        return np.frombuffer(column.buffers()[1], kind, len(batch) * math.prod(self.shapes[i])).reshape(len(batch), *self.shapes[i])

    def empty(self, rows: int) -> list[np.ndarray]:
        """Return an array to fill for each tensor: [rows, ...]. Numbers lie in mapped memory, aligned as TensorFlow wants it."""
        found = []
        for i, (kind, shape) in enumerate(zip(self.types, self.shapes)):
            if kind == tf.string:
                found.append(np.full((rows, *shape), b"", object))
                continue
            memory = mmap.mmap(-1, max(rows * self.bytes_of(i), mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            # Large pages: to be given small ones, one by one, takes longer than the reading. Not every kernel has them.
            with contextlib.suppress(AttributeError, OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
            found.append(np.frombuffer(memory, kind.as_numpy_dtype, rows * math.prod(shape)).reshape(rows, *shape))
        return found


class Cache:
    """Blocks of prepared rows in one file, by number."""

    def __init__(self, layout: Layout, folder: str, name: str | None = None):
        """Open a new cache: in a file of its own that nobody else sees until `finish`, or in one without a name.

        Raises:
            UserError: the folder cannot be written to.
        """
        self.layout, self.schema, self.folder, self.name = layout, layout.schema(), folder, name
        self.places: dict[int, tuple[int, int]] = {}  # block -> (offset, bytes)
        self.rows: dict[int, int] = {}
        self.end = 0
        try:
            self.file, self.path = tempfile.mkstemp(".arrow", "rows-", folder)
        except OSError as error:
            raise _not_writable(folder, error) from None
        if name is None:
            os.unlink(self.path)
        self._append(self.schema.serialize())

    @classmethod
    def open(cls, layout: Layout, folder: str, name: str) -> Cache | None:
        """Return the finished cache of that name; None where there is none, or one that is not whole."""
        index = os.path.join(folder, f"{name}.json")
        try:
            with open(index) as file:
                said = json.load(file)
            handle = os.open(os.path.join(folder, f"{name}.arrow"), os.O_RDONLY)
        except (OSError, ValueError):
            return None
        if said.get("format") != FORMAT or os.fstat(handle).st_size != said["bytes"]:
            os.close(handle)
            return None
        found = cls.__new__(cls)
        found.layout, found.schema, found.folder, found.name = layout, layout.schema(), folder, name
        found.places = {block: (offset, size) for block, offset, size, _ in said["blocks"]}
        found.rows = {block: rows for block, _, _, rows in said["blocks"]}
        found.file, found.end, found.path = handle, said["bytes"], ""
        os.utime(index)  # tells which caches are still in use
        return found

    def __contains__(self, block: int) -> bool:
        return block in self.places

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(self.rows.values())

    def write(self, block: int, values: Sequence[np.ndarray]) -> None:
        """Keep a block: one array for each tensor of the layout, [rows, ...].

        Raises:
            UserError: the disk is full.
        """
        message = self.layout.batch(values).serialize()
        offset = self._append(message)
        self.places[block], self.rows[block] = (offset, message.size), len(values[0])

    def _append(self, message: pa.Buffer) -> int:
        offset, view = self.end, memoryview(message)
        try:
            while view:
                written = os.pwrite(self.file, view, self.end)
                self.end, view = self.end + written, view[written:]
        except OSError as error:
            text = f"cannot keep prepared rows in {self.folder}: {error.strerror} after {self.end:,} bytes"
            raise UserError(f"{text}. Name a folder with room: --cache_dir.") from None
        return offset

    def read(self, blocks: Sequence[int], columns: Sequence[np.ndarray], start: int) -> None:
        """Read blocks one after the other into arrays, from row `start` on.

        Raises:
            UserError: the file is not whole any more.
        """
        for block in map(int, blocks):
            offset, size = self.places[block]
            found = os.pread(self.file, size, offset)
            if len(found) < size:
                raise UserError(f"the cache in {self.folder} was cut short by somebody. Remove it, or name another --cache_dir.")
            batch = pa.ipc.read_record_batch(pa.py_buffer(found), self.schema)
            end = start + len(batch)
            for i, column in enumerate(columns):
                column[start:end] = self.layout.values(batch, i)
            start = end

    def finish(self) -> None:
        """Give a named cache its name and its index, the index last, so that half a cache is never taken for one."""
        if self.name is None:
            return
        self._append(pa.py_buffer(b"\xff\xff\xff\xff\0\0\0\0"))  # the end of an Arrow IPC stream
        os.fsync(self.file)
        blocks = [[block, *self.places[block], self.rows[block]] for block in self.places]
        said = {"format": FORMAT, "bytes": self.end, "rows": self.count, "blocks": blocks}
        index = os.path.join(self.folder, f"{self.name}.json")
        os.rename(self.path, os.path.join(self.folder, f"{self.name}.arrow"))
        with open(f"{self.path}.json", "w") as file:
            json.dump(said, file)
        os.rename(f"{self.path}.json", index)
        self.path = ""

    def close(self) -> None:
        """Give back the disk, where the cache has no name or is not finished."""
        os.close(self.file)
        if self.name is not None and self.path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


def room(folder: str) -> int:
    """Return how many bytes of prepared rows the disk of a folder, which need not exist yet, has room for."""
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder or ".").free - SPARE_BYTES


@contextlib.contextmanager
def only_one(folder: str, name: str, beat: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time make the cache of a name; the others wait, and find it made. A killed one holds nobody up."""
    with _lock_file(folder, name) as lock:
        said = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    log("INFO", f"cache: another process prepares the same rows in {folder}; waiting for it")
                    said = True
                beat()
                time.sleep(0.2)
        yield


def _lock_file(folder: str, name: str) -> IO[str]:
    try:
        os.makedirs(folder, exist_ok=True)
        return open(os.path.join(folder, f"{name}.lock"), "w")
    except OSError as error:
        raise _not_writable(folder, error) from None


def _not_writable(folder: str, error: OSError) -> UserError:
    return UserError(f"--cache_dir: cannot write to {folder}: {error.strerror}. Name a folder on a local disk with room.")


def content_key(value: Any) -> str:
    """Hash what `learn` returned: numbers, texts, arrays, and dicts and lists of them; anything else is like nothing else."""
    if isinstance(value, Mapping):
        return hashlib.sha256(json.dumps([[str(k), content_key(value[k])] for k in sorted(value, key=str)]).encode()).hexdigest()
    if isinstance(value, (list, tuple)):
        return hashlib.sha256(json.dumps([content_key(part) for part in value]).encode()).hexdigest()
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        return hashlib.sha256(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()).hexdigest()
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.ndarray)):
        return hashlib.sha256(repr(value.tolist() if isinstance(value, np.ndarray) else value).encode()).hexdigest()
    return uuid.uuid4().hex
