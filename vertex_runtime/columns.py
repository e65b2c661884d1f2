"""The columns of a trainer's rows: what a cell may hold, said once for the files that are read and the requests that are served.

A missing cell (an empty one in a file, `null` in a request) travels as NaN in numbers and as an empty text elsewhere, until
the column's own rule is applied: `missing=None` is an error, any other value takes the cell's place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# RE2, Python's `re` with re.ASCII and TensorFlow's regular expressions read these alike.
_DAY = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
_TIME = r"[ T]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?( ?UTC|Z|[+]00:00)?"


@dataclass(frozen=True)
class Column:
    """What all columns have.

    Args:
        name: the column's name in files, chunks and requests.
        missing: what stands for a missing cell; None: a missing cell is an error.
        default: what stands for one in a request, where files must have it: what the model answers to nothing at all.
        required: False for columns that a file may have and nobody reads (keys, comments).
    """

    name: str
    missing: Any = None
    default: Any = None
    required: bool = True

    is_text = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"a column's name must be a text; got {self.name!r}")
        for field in ("missing", "default"):
            value = getattr(self, field)
            if value is not None and isinstance(value, str) != self.is_text:
                raise TypeError(f"column {self.name}: {field}= must be a {'text' if self.is_text else 'number'}; got {value!r}")

    @property
    def must_be(self) -> str:
        """What a good cell holds, for messages: `fare must be a number in 0..100`."""
        return f"{self.name} must be given"

    @property
    def pattern(self) -> str | None:
        """The regular expression that a text matches whole; None: any text but an empty one."""
        return None

    @property
    def answered(self) -> Any:
        """What stands for a missing cell in a request; None: nothing does."""
        return self.default if self.missing is None else self.missing

    def spec(self) -> Any:
        """Return the `tf.TensorSpec` of the column's input in a request: [rows]."""
        import tensorflow as tf

        return tf.TensorSpec([None], tf.string if self.is_text else tf.float32, self.name)

    def check(self, values: Any) -> tuple[Any, np.ndarray]:
        """Turn the cells of a file into what a chunk holds.

        Args:
            values: an Arrow array [rows] of texts (binary or string) or of a type of its own; null and an empty text are
                missing cells.

        Returns:
            (binary array without nulls, missing cells filled in; which cells are good, [rows] bool). What stands in the
            place of a bad cell says nothing.

        Raises:
            TypeError: the array's type can hold no such column, such as a list.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        if pa.types.is_dictionary(values.type):
            return self._check_distinct(values)
        texts, valid = _valid_texts(_as_texts(values))
        given = pc.greater(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False)
        good = valid.copy()
        if (matching := self._matching(texts)) is not None:
            good &= matching.to_numpy(zero_copy_only=False)
        if self.missing is None:
            return texts.view(pa.binary()), good & given
        if self.missing and not given.all():
            texts = pc.if_else(pa.array(given), texts, pa.scalar(str(self.missing), pa.string()))
        return texts.view(pa.binary()), good | (valid & ~given)

    def _check_distinct(self, values: Any) -> tuple[Any, np.ndarray]:
        """Check each distinct text of a dictionary array once."""
        import pyarrow as pa

        distinct = values.dictionary
        texts, good = self.check(pa.concat_arrays([distinct, pa.nulls(1, distinct.type)]))
        places = values.indices.cast(pa.int32()).fill_null(len(distinct))
        return texts.take(places), good[places.to_numpy(zero_copy_only=False)]

    def _matching(self, texts: Any) -> Any:
        """Return which texts match the pattern whole, an Arrow array [rows]; None: there is no pattern."""
        import pyarrow.compute as pc

        return None if self.pattern is None else pc.match_substring_regex(texts, pattern=rf"\A(?:{self.pattern})\z")

    def reason(self, cell: Any) -> str:
        """Return what is wrong with a bad cell, for messages."""
        if isinstance(cell, bytes):
            try:
                cell.decode()
            except UnicodeDecodeError:
                return f"{self.name} is not UTF-8"
        return self.must_be

    def guard(self, values: Any) -> tuple[Any, Any]:
        """Apply the column's rule in a graph: return (values with missing cells filled in, which of them are good)."""
        import tensorflow as tf

        absent = tf.equal(tf.strings.length(values), 0)
        good = tf.logical_not(absent) if self.pattern is None else tf.strings.regex_full_match(values, self.pattern)
        if self.answered is None:
            return values, good
        return tf.where(absent, tf.constant(str(self.answered)), values), good | absent


@dataclass(frozen=True)
class Number(Column):
    """A finite number, float32, in [low, high]."""

    low: float | None = None
    high: float | None = None

    is_text = False

    @property
    def must_be(self) -> str:
        if self.low is None and self.high is None:
            return f"{self.name} must be a number"
        low, high = (f"{limit:g}" if limit is not None else "" for limit in (self.low, self.high))
        return f"{self.name} must be a number in {low}..{high}"

    def _limits(self) -> tuple[float, float]:
        return (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)

    def check(self, values: Any) -> tuple[Any, np.ndarray]:
        """See `Column.check`; the array is float32 without nulls. Texts are read as Python's `float` reads them."""
        import pyarrow as pa

        texts = _is_text(values.type)
        wide = _parse_numbers(values) if texts else _as_floats(values)
        # NaN in an array of numbers is a missing cell, as in a request; as a text it is no number.
        absent = wide.is_null(nan_is_null=not texts).to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            numbers = wide.to_numpy(zero_copy_only=False).astype(np.float32)
        low, high = (np.float32(limit) for limit in self._limits())
        good = np.isfinite(numbers) & (numbers >= low) & (numbers <= high)
        if self.missing is not None and absent.any():
            numbers[absent] = self.missing
            good |= absent
        return pa.array(numbers, pa.float32()), good

    def guard(self, values: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        absent = tf.math.is_nan(values)
        low, high = (np.float32(limit) for limit in self._limits())
        good = tf.math.is_finite(values) & (values >= low) & (values <= high)
        if self.answered is None:
            return values, good
        return tf.where(absent, np.float32(self.answered), values), good | absent


@dataclass(frozen=True)
class Category(Column):
    """One of some texts; without `values` whatever the training rows hold."""

    values: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "values", tuple(self.values))

    @property
    def must_be(self) -> str:
        if not self.values:
            return super().must_be
        return f"{self.name} must be one of {', '.join(self.values[:10])}{' …' if len(self.values) > 10 else ''}"

    @property
    def pattern(self) -> str | None:
        return "|".join(re.escape(value) for value in self.values) if self.values else None

    def _matching(self, texts: Any) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        return pc.is_in(texts, pa.array(self.values, pa.string())) if self.values else None


@dataclass(frozen=True)
class Text(Column):
    """Any text but an empty one; with `like`, one that this regular expression (RE2's syntax) matches whole."""

    like: str | None = None

    @property
    def pattern(self) -> str | None:
        return self.like

    @property
    def must_be(self) -> str:
        return super().must_be if self.like is None else f"{self.name} must match {self.like[:60]}"


@dataclass(frozen=True)
class Date(Column):
    """A date such as 2011-01-28, in UTC, with a time of day where `time` is True (`2011-01-28 20:42:59 UTC`), else with or without."""

    time: bool = False

    @property
    def pattern(self) -> str | None:
        return _DAY + (_TIME if self.time else f"({_TIME})?")

    @property
    def must_be(self) -> str:
        return f"{self.name} must be a date such as 2011-01-28{' 20:42:59 UTC' if self.time else ''}"

    def _matching(self, texts: Any) -> Any:
        """See `Column._matching`. Dates that are spelt as the first one is are looked at all at once; the pattern judges the others."""
        import pyarrow as pa

        first = texts[0].as_py() if len(texts) else ""
        like_first = _dates_like(texts, first) if re.fullmatch(self.pattern, first, re.ASCII) else None
        if like_first is None:
            return super()._matching(texts)
        if len(others := np.flatnonzero(~like_first)):
            like_first[others] = super()._matching(texts.take(pa.array(others))).to_numpy(zero_copy_only=False)
        return pa.array(like_first)


@dataclass(frozen=True)
class Image(Column):
    """The bytes of a PNG or JPEG file, in a folder per label; in a request `{"b64": …}`, hence a name that ends in `_bytes`."""

    suffixes = (".png", ".jpg", ".jpeg")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name.endswith("_bytes"):
            raise TypeError(f"column {self.name}: the name of an image column must end in _bytes, so that the service decodes its base64")

    @property
    def must_be(self) -> str:
        return f"{self.name} must be a whole PNG or JPEG file"

    def problem_bytes(self, content: bytes) -> bool:
        """Tell by its ends whether content is no whole PNG or JPEG file."""
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            return b"IEND" not in content[-16:]
        return not (content.startswith(b"\xff\xd8\xff") and content.rstrip(b"\0").endswith(b"\xff\xd9"))

    def guard(self, values: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        # The decoder in `preprocess` would end the request as well, but not say which instance it was.
        head = tf.strings.substr(values, 0, 3)
        return values, tf.equal(head, b"\x89PN") | tf.equal(head, b"\xff\xd8\xff")

    def check(self, values: Any) -> tuple[Any, np.ndarray]:
        import pyarrow as pa

        images = values.cast(pa.binary()).fill_null(b"")
        good = [not self.problem_bytes(content.as_buffer().to_pybytes()) for content in images]
        return images, np.array(good, bool)

    def reason(self, cell: Any) -> str:
        return self.must_be


# ------------------------------------------------------------------ cells of files, whole columns at a time


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(is_kind(kind) for is_kind in (types.is_binary, types.is_string, types.is_large_binary, types.is_large_string))


def _plain(values: Any) -> Any:
    """Return an array without dictionary, nor 64-bit offsets of texts."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if types.is_large_binary(values.type) or types.is_large_string(values.type):
        values = values.cast(pa.large_binary()).cast(pa.binary())
    return values


def _as_floats(values: Any) -> Any:
    """Return an array of numbers as float64, nulls kept.

    Raises:
        TypeError: the array holds no numbers.
    """
    import pyarrow as pa
    from pyarrow import types

    values = _plain(values)
    kind = values.type
    if types.is_float16(kind):
        values = values.cast(pa.float32())
    elif not (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind) or types.is_null(kind)):
        raise TypeError(f"{kind} holds no numbers")
    if types.is_boolean(kind):
        values = values.cast(pa.int8())
    return values.cast(pa.float64(), safe=False)


# What Arrow reads as a number and Python's float does as well, to the last bit.
_PLAIN_NUMBER = r"\A-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\z"


def _parse_numbers(values: Any) -> Any:
    """Return texts as float64: null where the cell is missing, NaN where it is no number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = _plain(values).view(pa.string())
    given = pc.greater(pc.binary_length(texts), 0)
    cells = texts if pc.all(given, min_count=0).as_py() and not texts.null_count else pc.if_else(given, texts, pa.scalar(None, pa.string()))
    try:
        return cells.cast(pa.float64())
    except pa.ArrowInvalid:
        pass
    cells = cells.view(pa.binary())
    plain = pc.match_substring_regex(cells, pattern=_PLAIN_NUMBER)
    numbers = pc.if_else(plain, cells, pa.scalar(None, pa.binary())).view(pa.string()).cast(pa.float64())
    odd = np.flatnonzero(pc.invert(plain).fill_null(False).to_numpy(zero_copy_only=False))
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


def _as_texts(values: Any) -> Any:
    """Return an array as binary, without nulls.

    Raises:
        TypeError: its type is nested.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    values = _plain(values)
    kind = values.type
    if types.is_nested(kind):
        raise TypeError(f"{kind} holds no texts")
    if types.is_timestamp(kind):
        # As BigQuery exports it; a fraction of a second only where there is one.
        whole = values.cast(pa.timestamp("s", kind.tz), safe=False)
        exact = pc.all(pc.equal(whole.cast(kind), values), min_count=0).as_py()
        naive = (whole if exact else values).cast(pa.timestamp("s" if exact else kind.unit))
        values = pc.binary_join_element_wise(naive.cast(pa.string()), pa.scalar("UTC"), " ")
    elif not _is_text(kind):
        values = values.cast(pa.string())
    values = values.view(pa.binary())
    return values.fill_null(b"") if values.null_count else values


def _dates_like(texts: Any, first: str) -> np.ndarray | None:
    """Return which texts are dates in the spelling of the first, itself one: [rows] bool; None: they are not all of its length.

    Up to the seconds each digit may be another one, in its bounds; everything else, and all after them, must be the same.
    """
    length, count = len(first), len(texts)
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + count + 1]
    if not (np.diff(offsets) == length).all():
        return None
    octets = np.frombuffer(texts.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    letters = np.ascontiguousarray(octets.reshape(count, length).T)
    digit = np.array([letter.isdigit() and place < 19 for place, letter in enumerate(first)])
    steps = letters - np.where(digit, ord("0"), np.frombuffer(first.encode(), np.uint8)).astype(np.uint8)[:, None]
    good = (steps <= np.where(digit, 9, 0).astype(np.uint8)[:, None]).all(0)
    limits = ((5, 1, 12), (8, 1, 31), (11, 0, 23), (14, 0, 59), (17, 0, 59))  # place, least, most
    for place, least, most in limits[: 2 if length < 19 else None]:
        number = 10 * steps[place] + steps[place + 1]
        good &= (number >= least) & (number <= most)
    return good


def _valid_texts(values: Any) -> tuple[Any, np.ndarray]:
    """Return (binary cells as texts, which of them are UTF-8, [rows] bool); the others are replaced by an empty text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    good = np.ones(len(values), bool)
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


def guard(raw: dict[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    """Apply the columns' rules to a request in a graph: missing cells are filled in, a bad one ends the request.

    Args:
        raw: the request's inputs by name; inputs that no column describes pass as they are.

    Returns:
        The inputs as training has them. A bad cell raises InvalidArgumentError, whose text says
        `instance 3: fare must be a number; got nothing` (instances count from 0).
    """
    import tensorflow as tf

    described = [column for column in columns if column.name in raw]
    filled, checks = dict(raw), []
    for column in described:
        filled[column.name], good = column.guard(raw[column.name])

        def text(column: Column = column, good: Any = good) -> Any:
            place = tf.argmin(tf.cast(good, tf.int32))
            value = raw[column.name][place]
            shown = tf.strings.join(["'", tf.strings.substr(value, 0, 80), "'"]) if column.is_text else tf.strings.as_string(value)
            absent = tf.equal(tf.strings.length(value), 0) if column.is_text else tf.math.is_nan(value)
            if isinstance(column, Image):
                shown = tf.constant("something else")
            shown = tf.where(absent, "nothing", shown)
            return tf.strings.join(["instance ", tf.strings.as_string(place), f": {column.must_be}; got ", shown])

        fine = tf.reduce_all(good)
        message = tf.cond(fine, lambda: tf.constant(""), text)
        checks.append(tf.debugging.Assert(fine, [message]))
    with tf.control_dependencies([check for check in checks if check is not None]):
        return {name: tf.identity(value) for name, value in filled.items()}
