"""Prepared rows on a local disk: Arrow IPC messages, one for each block of rows, in whatever order the blocks came.

A cache without a name has no file name either, so that it goes with the process, however that ends. A named one
(`--cache_dir`) is filled by all processes that need rows of the same key, at the same time or one after the other: what a
killed one had finished is kept. Once its index is there, it serves every later run.
"""

from __future__ import annotations

import contextlib
import errno
import glob
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
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from . import data
from .errors import UserError
from .formats import partition_of
from .reporting import log
from .shares import Claims

SPARE_BYTES = 256 << 20  # left free on the disk
FORMAT = 2  # raised when an older cache is not to be read any more


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
    """Blocks of prepared rows in files, by number.

    One without a name is a file that nobody else sees. A named one is filled by any number of processes: each writes a file of
    its own, and says beside it (`.blocks`) what is in it, once that is on the disk. The index (`.json`) comes when all is there.
    """

    def __init__(self, layout: Layout, folder: str, name: str | None = None):
        """Open a new cache, or one that others fill or have left unfinished.

        Raises:
            UserError: the folder cannot be written to.
        """
        self.layout, self.schema, self.folder, self.name = layout, layout.schema(), folder, name
        self.places: dict[int, tuple[str, int, int]] = {}  # block -> (file, offset, bytes)
        self.rows: dict[int, int] = {}
        self.files: dict[str, int] = {}
        self.heard: dict[str, int] = {}  # how much of what others said was read
        self.untold: list[int] = []  # blocks in our own file that nobody has heard of
        self.own, self.end, self.finished = "", 0, False
        self.indexed: set[str] = set()  # the files that the index names
        if name is None:
            self._start_file()
            self.claims = Claims(self._path(self.own))
            os.unlink(self._path(self.own))
            return
        try:
            os.makedirs(folder, exist_ok=True)
            self.claims = Claims(self._path(f"{name}.claims"))
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise _not_writable(folder, error) from None
        self.refresh()

    @classmethod
    def open(cls, layout: Layout, folder: str, name: str) -> Cache | None:
        """Return the finished cache of that name; None where there is none, or one that is not whole."""
        if not os.path.exists(os.path.join(folder, f"{name}.json")):
            return None
        found = cls(layout, folder, name)
        if found.finished:
            os.utime(found._path(f"{name}.json"))  # tells which caches are still in use
            return found
        found.close()
        return None

    def _path(self, file: str) -> str:
        return os.path.join(self.folder, file)

    def __contains__(self, block: int) -> bool:
        return block in self.places

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(self.rows.values())

    @property
    def bytes(self) -> int:
        """How many bytes the blocks take."""
        return sum(size for _, _, size in self.places.values())

    # -------------------------------------------------------------- what others have done

    def refresh(self) -> None:
        """Find the blocks that others have finished meanwhile, or left behind."""
        if self.name is None or self.finished or self._take_index():
            return
        for path in sorted(glob.glob(os.path.join(glob.escape(self.folder), f"{self.name}.*.blocks"))):
            file = os.path.basename(path).removesuffix(".blocks")
            if file == self.own:
                continue
            try:
                with open(path, "rb") as said:
                    said.seek(self.heard.get(file, 0))
                    lines = said.read()
                lines = lines[: lines.rfind(b"\n") + 1]
                blocks = [json.loads(line) for line in lines.splitlines()]
                size = os.fstat(self._handle(file)).st_size
            except FileNotFoundError:  # all is there, and the index says where
                self._take_index()
                return
            except ValueError:  # damaged: what it says of is prepared anew
                continue
            self.heard[file] = self.heard.get(file, 0) + len(lines)
            for block, offset, length, rows in blocks:
                if offset + length <= size and block not in self.places:
                    self.places[block], self.rows[block] = (file, offset, length), rows

    def _take_index(self) -> bool:
        index = self._path(f"{self.name}.json")
        try:
            with open(index) as file:
                said = json.load(file)
        except FileNotFoundError:  # not to be removed: another process may write it at this moment
            return False
        except (OSError, ValueError):
            said = {}
        try:
            files = said["files"]
            whole = said["format"] == FORMAT and all(os.fstat(self._handle(name)).st_size >= size for name, size in files)
        except (OSError, ValueError, KeyError, TypeError):  # it is damaged, or a file that it names
            whole = False
        if not whole:
            with contextlib.suppress(OSError):
                os.unlink(index)
            return False
        for block, file, offset, size, rows in said["blocks"]:
            self.places.setdefault(block, (files[file][0], offset, size))
            self.rows[block] = rows
        self.indexed, self.finished = {name for name, _ in files}, True
        return True

    def _handle(self, file: str) -> int:
        if file not in self.files:
            self.files[file] = os.open(self._path(file), os.O_RDONLY)
        return self.files[file]

    # -------------------------------------------------------------- our own

    def _start_file(self) -> None:
        try:
            handle, path = tempfile.mkstemp(".arrow", f"{self.name}." if self.name else "rows-", self.folder)
        except OSError as error:
            raise _not_writable(self.folder, error) from None
        self.own = os.path.basename(path)
        self.files[self.own] = handle
        self._append(self.schema.serialize())

    def write(self, block: int, values: Sequence[np.ndarray]) -> None:
        """Keep a block: one array for each tensor of the layout, [rows, ...].

        Raises:
            UserError: the disk is full.
        """
        if not self.own:
            self._start_file()
        message = self.layout.batch(values).serialize()
        offset = self._append(message)
        self.places[block], self.rows[block] = (self.own, offset, message.size), len(values[0])
        self.untold.append(block)

    def _append(self, message: pa.Buffer) -> int:
        offset, view = self.end, memoryview(message)
        try:
            while view:
                written = os.pwrite(self.files[self.own], view, self.end)
                self.end, view = self.end + written, view[written:]
        except OSError as error:
            text = f"cannot keep prepared rows in {self.folder}: {error.strerror} after {self.end:,} bytes"
            raise UserError(f"{text}. Name a folder with room: --cache_dir.") from None
        return offset

    def publish(self) -> None:
        """Tell others of the blocks that were written since, which are on the disk by then."""
        if self.name is not None and self.untold:
            os.fsync(self.files[self.own])
            said = [json.dumps([block, *self.places[block][1:], self.rows[block]]) + "\n" for block in self.untold]
            with open(self._path(f"{self.own}.blocks"), "ab", buffering=0) as file:
                file.write("".join(said).encode())
                os.fsync(file.fileno())
        self.untold.clear()

    def read(self, blocks: Sequence[int], columns: Sequence[np.ndarray], start: int) -> None:
        """Read blocks one after the other into arrays, from row `start` on.

        Raises:
            UserError: the file is not whole any more.
        """
        for block in map(int, blocks):
            file, offset, size = self.places[block]
            found = os.pread(self.files[file], size, offset)
            if len(found) < size:
                raise UserError(f"the cache in {self.folder} was cut short by somebody. Remove it, or name another --cache_dir.")
            batch = pa.ipc.read_record_batch(pa.py_buffer(found), self.schema)
            end = start + len(batch)
            for i, column in enumerate(columns):
                column[start:end] = self.layout.values(batch, i)
            start = end

    def finish(self) -> None:
        """Write the index of a named cache in which all blocks are, unless another process has done that."""
        if self.name is None:
            return
        if not self.finished:
            self.publish()
            self.refresh()
        if self.finished:  # by another process, which may have swept before this one told of its last blocks
            self._sweep(self.indexed)
            return
        files = sorted({file for file, _, _ in self.places.values()})
        if self.own in files:
            self._append(pa.py_buffer(b"\xff\xff\xff\xff\0\0\0\0"))  # the end of an Arrow IPC stream
            os.fsync(self.files[self.own])
        blocks = [[block, files.index(file), offset, size, self.rows[block]] for block, (file, offset, size) in self.places.items()]
        sizes = [[file, os.fstat(self._handle(file)).st_size] for file in files]
        handle, part = tempfile.mkstemp(".part", f"{self.name}.", self.folder)
        with open(handle, "w") as file:
            json.dump({"format": FORMAT, "files": sizes, "rows": self.count, "blocks": blocks}, file)
        try:
            os.link(part, self._path(f"{self.name}.json"))  # fails where it is there: then that one's files count
        except FileExistsError:
            os.unlink(part)
        except OSError:  # no links on this file system
            os.replace(part, self._path(f"{self.name}.json"))
        else:
            os.unlink(part)
            self._sweep(set(files))
        self.indexed, self.finished = set(files), True

    def _sweep(self, used: set[str]) -> None:
        """Remove what the index makes superfluous; whoever still reads there has the files open, or looks at the index first."""
        pattern = os.path.join(glob.escape(self.folder), f"{glob.escape(self.name or '')}.*")
        for path in glob.glob(f"{pattern}.blocks") + [path for path in glob.glob(f"{pattern}.arrow") if os.path.basename(path) not in used]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def close(self) -> None:
        """Close the files, and remove our own where nobody else can use it."""
        for handle in self.files.values():
            os.close(handle)
        self.claims.close()
        said = f"{self.own}.blocks"
        if self.name is None or not self.own or self.own in self.indexed or (os.path.exists(self._path(said)) and not self.finished):
            return
        for file in (self.own, said):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(file))


def room(folder: str) -> int:
    """Return how many bytes of prepared rows the disk of a folder, which need not exist yet, has room for."""
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder or ".").free - SPARE_BYTES


@contextlib.contextmanager
def only_one(folder: str, name: str, beat: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time make the cache of a name; the others wait, and find it made. A killed one holds nobody up."""
    try:
        os.makedirs(folder, exist_ok=True)
        claims = Claims(os.path.join(folder, f"{name}.lock"))
    except OSError as error:
        raise _not_writable(folder, error) from None
    with contextlib.closing(claims):
        said = False
        while not claims.take(0):
            if not said:
                log("INFO", f"cache: another process prepares the same rows in {folder}; waiting for it")
                said = True
            beat()
            time.sleep(0.2)
        yield


def _not_writable(folder: str, error: OSError) -> UserError:
    return UserError(f"--cache_dir: cannot write to {folder}: {error.strerror}. Name a folder on a local disk with room.")


def content_of(described: Mapping[str, Any], whole: bool, by_path: bool) -> list[Any]:
    """Return what tells the rows of a file (folder, table) from others, in JSON's types, wherever it lies.

    Args:
        described: as `data.fingerprint` returns it; `whole` tells whether it has seen all bytes.
        by_path: the path counts, too, as where a reader of the trainer's own may look at it.
    """
    path = described["path"]
    file, part = data.split_part(path)
    found = [described["bytes"], described["sha256"], part]
    if data.is_table(path):
        return found
    if data.is_folder(path):  # the names in it are labels
        found.append([name[len(path) :] for name in data.walk(path)])
    if by_path or partition_of(path):
        found.append(path)
    if not whole and tf.io.gfile.exists(file):  # bytes between its ends may have changed
        found += [path, tf.io.gfile.stat(file).mtime_nsec]
    return found


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
