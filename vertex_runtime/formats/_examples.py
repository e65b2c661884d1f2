"""`tf.train.Example` records into columns of cells.

Most records of a file were written alike: same features in the same order, texts of the same length. Those are read at
once, by comparing everything but the values with one record that was taken apart. What is left is parsed by TensorFlow, and
what that does not parse record by record, to name the record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..columns import Column
from ..data import BadRows
from . import Fault, Raw, in_blocks, present

ALIKE = 256  # records of one length from which it pays to look for a common layout
LAYOUTS = 8  # of records of one length
_WORD = 8
_SLICE = 1024  # records that are compared at a time: in the processor's cache, in memory that need not be asked of the system
_TYPES = {"float_list": pa.float32(), "int64_list": pa.int64(), "bytes_list": pa.binary()}
_LISTS = {1: "bytes_list", 2: "float_list", 3: "int64_list"}


class Parser:
    """Parses the records of one file.

    Args:
        first: a record, which says what kind of values each feature holds.

    Raises:
        UserError: that record lacks a required column, and COLUMNS do not say what stands for a missing cell.
    """

    def __init__(self, path: str, columns: Sequence[Column], first: bytes):
        import tensorflow as tf

        self.path = path
        try:
            features = tf.train.Example.FromString(first).features.feature
        except Exception:  # google.protobuf's DecodeError, wherever TensorFlow has it from; the record is named when it is read
            features = {}
        optional = [column.name for column in columns if column.missing is not None]
        self.columns = present(path, columns, [*features, *optional] if features else [column.name for column in columns])
        self.kinds = {
            column.name: (features[column.name].WhichOneof("kind") if column.name in features else None)
            or ("bytes_list" if column.is_text else "float_list")
            for column in self.columns
        }

    def parse(self, block: Any) -> pa.RecordBatch | None:
        """Return the rows of a `tfrecord.Block`; None where they have to be looked at `one_by_one`. Any thread may call it."""
        import tensorflow as tf

        pieces: list[tuple[np.ndarray, pa.RecordBatch]] = []
        rest = [np.arange(0)]
        order = np.argsort(block.lengths, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(block.lengths[order])) + 1):
            if len(rows) >= ALIKE:
                found, rows = self._alike(block, rows)
                pieces += found
            rest.append(rows)
        others = np.sort(np.concatenate(rest))
        if len(others):
            try:
                pieces.append((others, self._parsed([block.record(i) for i in others])))
            except (tf.errors.InvalidArgumentError, ValueError):
                return None
        return _joined(pieces)

    def _alike(self, block: Any, rows: np.ndarray) -> tuple[list[tuple[np.ndarray, pa.RecordBatch]], np.ndarray]:
        """Return ((rows, their cells) for each layout that was found among rows of one length, the rows that have none of them)."""
        found = []
        octets = np.frombuffer(block.content, np.uint8)
        for _ in range(LAYOUTS):
            if len(rows) < ALIKE:
                break
            layout = _take_apart(block.record(rows[0]), self.kinds)
            if layout is None:
                break
            match = layout.matches(octets, block.starts[rows])
            same = rows if match.all() else rows[match]
            found.append((same, layout.cells(octets, block.starts[same], self.kinds)))
            rows = rows[~match]
        return found, rows

    def _parsed(self, records: Sequence[bytes]) -> pa.RecordBatch:
        """Return the cells of records by TensorFlow.

        Raises:
            ValueError: a feature holds several values.
            tf.errors.InvalidArgumentError: a record is no Example, or a feature is of another kind than in the first.
        """
        import tensorflow as tf

        kinds = {"float_list": tf.float32, "int64_list": tf.int64, "bytes_list": tf.string}
        spec = {name: tf.io.RaggedFeature(kinds[kind], row_splits_dtype=tf.int64) for name, kind in self.kinds.items()}
        serialized = np.empty(len(records), object)
        serialized[:] = records
        parsed = tf.io.parse_example(tf.constant(serialized, tf.string), spec)
        arrays = []
        for name, kind in self.kinds.items():
            values, splits = parsed[name].values.numpy(), parsed[name].row_splits.numpy()
            counts = np.diff(splits)
            if (counts > 1).any():
                raise ValueError(f"{name} holds several values")
            array = pa.array(values, _TYPES[kind])
            if (counts == 0).any():
                array = array.take(pa.array(splits[:-1], mask=counts == 0))
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, list(self.kinds))

    def one_by_one(self, block: Any, first: int, bad: BadRows) -> Iterator[Raw]:
        """Yield the rows of a block that TensorFlow refuses, cells as texts; slow, but it names the record.

        Args:
            first: which record of the file (from 0) the block's first one is.
        """
        import tensorflow as tf

        def rows() -> Iterator[tuple[str, list[bytes | None]] | Fault]:
            for i in range(len(block)):
                place = f"{self.path}, row {first + i + 1}"
                try:
                    features = tf.train.Example.FromString(block.record(i)).features.feature
                    yield place, [_cell(features, name) for name in self.kinds]
                except _Several as error:
                    yield Fault(place, f"{error} holds several values", "")
                except Exception:  # DecodeError, see above
                    yield Fault(place, "is no tf.train.Example", repr(block.record(i)[:16]))

        return in_blocks(rows(), list(self.kinds), bad)


class _Several(Exception):
    """A feature holds several values."""


def _cell(features: Any, name: str) -> bytes | None:
    kind = features[name].WhichOneof("kind") if name in features else None
    values = getattr(features[name], kind).value if kind else ()
    if len(values) > 1:
        raise _Several(name)
    if not len(values):
        return None
    return values[0] if isinstance(values[0], bytes) else repr(values[0]).encode()


def _joined(pieces: Sequence[tuple[np.ndarray, pa.RecordBatch]]) -> pa.RecordBatch:
    """Return the pieces of a block as one batch, in the records' order."""
    if len(pieces) == 1:
        rows, batch = pieces[0]
        return batch if (np.diff(rows) > 0).all() else batch.take(pa.array(np.argsort(rows)))
    pieces = sorted(pieces, key=lambda piece: int(piece[0][0]))
    rows = np.concatenate([rows for rows, _ in pieces])
    table = pa.Table.from_batches([batch for _, batch in pieces]).combine_chunks()
    if not (np.diff(rows) > 0).all():
        table = table.take(pa.array(np.argsort(rows))).combine_chunks()
    return table.to_batches()[0]


# ------------------------------------------------------------------ one record taken apart


@dataclass(frozen=True)
class _Layout:
    """Where the values of a record stand.

    Args:
        fixed, mask: the record with its values blanked out, and which bits those of another must share: [words] uint64, the first
            of which begins with some of the bytes before the record where it does not fill its words.
        values: (start, end) of each wanted feature's value; None where it has none.
    """

    fixed: np.ndarray
    mask: np.ndarray
    values: dict[str, tuple[int, int] | None]
    length: int

    def matches(self, octets: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return which records have this layout, [records] bool.

        Args:
            octets: a part of the file, uint8.
            places: where records of this one's length start in it, [records].
        """
        size = _WORD * len(self.fixed)
        windows = np.lib.stride_tricks.sliding_window_view(octets, size)
        places = places - (size - self.length)
        found = np.empty(len(places), bool)
        for start in range(0, len(places), _SLICE):
            words = windows[places[start : start + _SLICE]].view(np.uint64)
            words &= self.mask
            same = words == self.fixed
            found[start : start + _SLICE] = True if same.all() else same.all(1)
        return found

    def cells(self, octets: np.ndarray, places: np.ndarray, kinds: dict[str, str]) -> pa.RecordBatch:
        """Return the cells of records that have this layout; see `matches`."""
        arrays = []
        for name, kind in kinds.items():
            place = self.values.get(name)
            if place is None:
                arrays.append(pa.nulls(len(places), _TYPES[kind]))
                continue
            starts, width = places + place[0], place[1] - place[0]
            if kind == "float_list":
                arrays.append(pa.array(np.ndarray((len(octets) - 3,), "<f4", octets, 0, (1,))[starts]))
                continue
            part = np.lib.stride_tricks.sliding_window_view(octets, max(1, width))[starts]
            if kind == "int64_list":
                numbers = np.zeros(len(part), np.uint64)
                for i in range(width):
                    numbers |= (part[:, i] & 0x7F).astype(np.uint64) << np.uint64(7 * i)
                arrays.append(pa.array(numbers.view(np.int64)))
            else:
                ends = np.arange(len(part) + 1, dtype=np.int32) * width
                arrays.append(pa.Array.from_buffers(pa.binary(), len(part), [None, pa.py_buffer(ends), pa.py_buffer(part)]))
        return pa.RecordBatch.from_arrays(arrays, list(kinds))


def _take_apart(record: bytes, kinds: dict[str, str]) -> _Layout | None:
    """Return the layout of a record; None: it is not written as usual, or a wanted feature is of another kind or holds several values."""
    values: dict[str, tuple[int, int] | None] = {}
    mask = np.full(len(record), 0xFF, np.uint8)
    try:
        for _, start, end in _fields(record, 0, len(record), (1,)):
            for _, inner, inner_end in _fields(record, start, end, (1,)):
                (_, key, key_end), (_, value, value_end) = _fields(record, inner, inner_end, (1, 2))
                name = record[key:key_end].decode()
                if name in values:
                    return None
                values[name] = None
                for field, first, last in _fields(record, value, value_end, (1, 2, 3)):
                    for _, low, high in _fields(record, first, last, (1,)):
                        wanted = name in kinds
                        if wanted and (kinds[name] != _LISTS[field] or values[name] or not _is_single(record[low:high], field)):
                            return None
                        values[name] = (low, high) if wanted else None
                        # In numbers of variable length the highest bit says whether another byte follows.
                        mask[low:high] = 0x80 if wanted and field == 3 else 0
    except (ValueError, IndexError, UnicodeDecodeError):
        return None
    before = -len(record) % _WORD
    filled = np.zeros((2, before + len(record)), np.uint8)
    filled[:, before:] = np.frombuffer(record, np.uint8) & mask, mask
    words = filled.view(np.uint64)
    return _Layout(words[0], words[1], values, len(record))


def _is_single(value: bytes, field: int) -> bool:
    if field == 1:
        return True
    return len(value) == 4 if field == 2 else 0 < len(value) <= 10 and value[-1] < 0x80 and all(byte >= 0x80 for byte in value[:-1])


def _fields(record: bytes, start: int, end: int, allowed: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (number, start, end) of the fields in a part of a record, all of which must have a length.

    Raises:
        ValueError: one has none, or it is not allowed here.
    """
    found = []
    while start < end:
        tag = record[start]
        if tag & 7 != 2 or tag >> 3 not in allowed:
            raise ValueError("another field")
        start += 1
        length = shift = 0
        while True:
            byte = record[start]
            start += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if start + length > end:
            raise ValueError("it is cut off")
        found.append((tag >> 3, start, start + length))
        start += length
    return found
