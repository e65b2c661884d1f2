"""The cells of files, whole columns at a time: Arrow arrays of whatever type made numbers or texts (see columns.py)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

_SLICE = 8192  # rows whose letters stay in the processor's cache, in memory that need not be asked of the system each time


def is_text(kind: Any) -> bool:
    """Tell whether an Arrow type is text or bytes, dictionaries of such included."""
    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(is_kind(kind) for is_kind in (types.is_binary, types.is_string, types.is_large_binary, types.is_large_string))


def plain(values: Any) -> Any:
    """Return an array without dictionary, nor 64-bit offsets of texts."""
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if types.is_large_binary(values.type) or types.is_large_string(values.type):
        values = values.cast(pa.large_binary()).cast(pa.binary())
    return values


def as_floats(values: Any) -> Any:
    """Return an array of numbers as float64, one of float32 as it is; nulls kept.

    Raises:
        TypeError: the array holds no numbers.
    """
    values = plain(values)
    kind = values.type
    if types.is_float16(kind):
        values = values.cast(pa.float32())
    elif not (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind) or types.is_null(kind)):
        raise TypeError(f"{kind} holds no numbers")
    if types.is_boolean(kind):
        values = values.cast(pa.int8())
    return values if types.is_float32(values.type) else values.cast(pa.float64(), safe=False)


# What Arrow reads as a number and Python's float does as well, to the last bit.
_PLAIN_NUMBER = r"\A-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\z"


def parse_numbers(values: Any) -> Any:
    """Return texts as float64: null where the cell is missing, NaN where it is no number."""
    texts = plain(values).view(pa.string())
    given = pc.greater(pc.binary_length(texts), 0)
    cells = texts if pc.all(given, min_count=0).as_py() and not texts.null_count else pc.if_else(given, texts, pa.scalar(None, pa.string()))
    try:
        return cells.cast(pa.float64())
    except pa.ArrowInvalid:
        pass
    cells = cells.view(pa.binary())
    written = pc.match_substring_regex(cells, pattern=_PLAIN_NUMBER)
    numbers = pc.if_else(written, cells, pa.scalar(None, pa.binary())).view(pa.string()).cast(pa.float64())
    odd = np.flatnonzero(pc.invert(written).fill_null(False).to_numpy(zero_copy_only=False))
    if not len(odd):
        return numbers
    found = numbers.to_numpy(zero_copy_only=False).copy()
    found[odd] = [_float(cell) for cell in cells.take(pa.array(odd)).to_pylist()]
    return pa.array(found, mask=pc.is_null(cells).to_numpy(zero_copy_only=False))


def _float(cell: bytes) -> float:
    try:
        return float(cell.decode())
    except ValueError:  # of which UnicodeDecodeError is one
        return math.nan


def as_texts(values: Any) -> Any:
    """Return an array as binary, without nulls.

    Raises:
        TypeError: its type is nested.
    """
    values = plain(values)
    kind = values.type
    if types.is_nested(kind):
        raise TypeError(f"{kind} holds no texts")
    if types.is_timestamp(kind):
        # As BigQuery exports it; a fraction of a second only where there is one.
        whole = values.cast(pa.timestamp("s", kind.tz), safe=False)
        exact = pc.all(pc.equal(whole.cast(kind), values), min_count=0).as_py()
        naive = (whole if exact else values).cast(pa.timestamp("s" if exact else kind.unit))
        values = pc.binary_join_element_wise(naive.cast(pa.string()), pa.scalar("UTC"), " ")
    elif not is_text(kind):
        values = values.cast(pa.string())
    values = values.view(pa.binary())
    return values.fill_null(b"") if values.null_count else values


def offsets_of(texts: Any) -> np.ndarray:
    """Return where the cells of a string or binary array start in its bytes, and where the last one ends: [rows + 1] int32."""
    if not len(texts):  # such an array may have no buffers
        return np.zeros(1, np.int32)
    return np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, 4 * texts.offset)


_TWO_DIGITS = np.array([[5, 1, 12], [8, 1, 31], [11, 0, 23], [14, 0, 59], [17, 0, 59]])  # of a date: place, least, most
_DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])  # of a month


def dates_like(texts: Any, first: str) -> np.ndarray | None:
    """Return which texts are dates in the spelling of the first, itself one: [rows] bool; None: they are not all of its length.

    Up to the seconds each digit may be another one, in its bounds; everything else, and all after them, must be the same.
    """
    length, count = len(first), len(texts)
    offsets = offsets_of(texts)
    parts = range(0, count, _SLICE)
    if not all((np.diff(offsets[start : start + _SLICE + 1]) == length).all() for start in parts):
        return None
    octets = np.frombuffer(texts.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(count, length)
    digit = np.array([letter.isdigit() and place < 19 for place, letter in enumerate(first)])
    lowest = np.where(digit, ord("0"), np.frombuffer(first.encode(), np.uint8)).astype(np.uint8)[:, None]
    spread = np.where(digit, 9, 0).astype(np.uint8)[:, None]
    places, least, most = (column[:, None].astype(np.uint8) for column in _TWO_DIGITS[: 2 if length < 19 else None].T)
    good = np.empty(count, bool)
    for start in parts:
        steps = np.ascontiguousarray(octets[start : start + _SLICE].T) - lowest
        numbers = 10 * steps[places[:, 0]] + steps[places[:, 0] + 1] - least  # what is less than the least is large then
        part = (steps <= spread).all(0) & (numbers <= most - least).all(0)
        late = np.flatnonzero(part & (numbers[1] >= 28))  # the 29th to the 31st, which not every month has
        part[late] = _has_day(steps[:4, late], numbers[0, late], numbers[1, late])
        good[start : start + _SLICE] = part
    return good


def _has_day(digits: np.ndarray, months: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Return which months have a day: [dates] bool.

    Args:
        digits: of the years, [4, dates].
        months: counted from 0, as `days` are: [dates].
    """
    years = np.array([1000, 100, 10, 1]) @ digits
    leap = (years % 4 == 0) & ((years % 100 != 0) | (years % 400 == 0))
    return days < _DAYS[months] + ((months == 1) & leap)


def _is_ascii(values: Any) -> bool:
    """Tell whether all cells of a binary array without nulls are ASCII."""
    offsets, content = offsets_of(values), values.buffers()[2]
    if content is None or offsets[0] == offsets[-1]:
        return True
    return bool(np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]].max() < 128)


def valid_texts(values: Any) -> tuple[Any, np.ndarray]:
    """Return (binary cells as texts, which of them are UTF-8, [rows] bool); the others are replaced by an empty text."""
    good = np.ones(len(values), bool)
    if _is_ascii(values):  # Arrow looks at cell by cell, which takes ten times as long
        return values.view(pa.string()), good
    try:
        return values.cast(pa.string()), good
    except pa.ArrowInvalid:
        pass
    for i, cell in enumerate(values.to_pylist()):
        try:
            cell.decode()
        except UnicodeDecodeError:
            good[i] = False
    return pc.if_else(pa.array(good), values, pa.scalar(b"", pa.binary())).cast(pa.string()), good
