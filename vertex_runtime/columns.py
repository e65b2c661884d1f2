"""The columns of a trainer's rows: what a cell may hold, said once for the files that are read and the requests that are served.

A missing cell (an empty one in a file, `null` in a request) travels as NaN in numbers and as an empty text elsewhere, until
the column's own rule is applied: `missing=None` is an error, any other value takes the cell's place.
"""

from __future__ import annotations

import dataclasses
import keyword
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .cells import as_floats, as_texts, dates_like, is_text, offsets_of, parse_numbers, valid_texts
from .environment import quoted

# RE2, Python's `re` with re.ASCII and TensorFlow's regular expressions read these alike.
_LEAP_YEAR = r"(\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DAY = (
    r"(\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
    rf"|{_LEAP_YEAR}-02-29)"
)
_TIME = r"[ T]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?( ?UTC|Z|[+]00:00)?"
_LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Column:
    """What all columns have.

    Args:
        name: the column's name in chunks and requests, and in files where `header` says nothing else.
        missing: what stands for a missing cell; None: a missing cell is an error.
        default: what stands for one in a request, where files must have it: what the model answers to nothing at all.
        required: False for columns that a file may have and nobody reads (keys, comments).
        header: the column's name in files, where that is no plain identifier, which an input's name must be: "Age (years)".
    """

    name: str
    missing: Any = None
    default: Any = None
    required: bool = True
    header: str = dataclasses.field(default="", kw_only=True)

    is_text = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"a column's name must be a text; got {quoted(self.name)}")
        if not isinstance(self.header, str):
            raise TypeError(f"column {self.name}: header= must be a text, the column's name in files; got {quoted(self.header)}")
        for field in ("missing", "default"):
            value = getattr(self, field)
            if value is not None and isinstance(value, str) != self.is_text:
                raise TypeError(f"column {self.name}: {field}= must be a {'text' if self.is_text else 'number'}; got {quoted(value)}")

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

    def in_files(self) -> Column:
        """Return the column by the name that it has in files."""
        return dataclasses.replace(self, name=self.header, header="") if self.header else self

    def keeping_gaps(self) -> Column:
        """Return a column whose missing cells stay what they are, NaN or an empty text, whatever takes their place otherwise."""
        if self.missing is None:
            return self
        return dataclasses.replace(self, missing="" if self.is_text else math.nan)

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
        if pa.types.is_dictionary(values.type):
            return self._check_distinct(values)
        texts, valid = valid_texts(as_texts(values))
        offsets = offsets_of(texts)
        given = offsets[1:] > offsets[:-1]
        matching = self._matching(texts)
        good = valid if matching is None else valid & matching
        if self.missing is None:
            return texts.view(pa.binary()), good & given
        if self.missing and not given.all():
            texts = pc.if_else(pa.array(given), texts, pa.scalar(str(self.missing), pa.string()))
        return texts.view(pa.binary()), good | (valid & ~given)

    def _check_distinct(self, values: Any) -> tuple[Any, np.ndarray]:
        """Check each distinct text of a dictionary array once."""
        distinct = values.dictionary
        texts, good = self.check(pa.concat_arrays([distinct, pa.nulls(1, distinct.type)]))
        places = values.indices.cast(pa.int32()).fill_null(len(distinct))
        return texts.take(places), good[places.to_numpy(zero_copy_only=False)]

    def _matching(self, texts: Any) -> np.ndarray | None:
        """Return which texts match the pattern whole, [rows] bool; None: there is no pattern."""
        if self.pattern is None:
            return None
        return pc.match_substring_regex(texts, pattern=rf"\A(?:{self.pattern})\z").to_numpy(zero_copy_only=False)

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
        texts = is_text(values.type)
        wide = parse_numbers(values) if texts else as_floats(values)
        numbers = wide.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
        low, high = (np.float32(limit) for limit in self._limits())
        # Within the largest numbers there is nothing infinite, and a comparison with NaN is False.
        good = numbers >= np.maximum(low, -_LARGEST)
        good &= numbers <= np.minimum(high, _LARGEST)
        if self.missing is not None and not good.all():
            # NaN in an array of numbers is a missing cell, as in a request; as a text it is no number.
            absent = wide.is_null(nan_is_null=not texts).to_numpy(zero_copy_only=False)
            numbers = np.where(absent, np.float32(self.missing), numbers)
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

    def _matching(self, texts: Any) -> np.ndarray | None:
        return pc.is_in(texts, pa.array(self.values, pa.string())).to_numpy(zero_copy_only=False) if self.values else None


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

    def _matching(self, texts: Any) -> np.ndarray | None:
        """See `Column._matching`. Dates that are spelt as the first one is are looked at all at once; the pattern judges the others."""
        first = texts[0].as_py() if len(texts) else ""
        like_first = dates_like(texts, first) if re.fullmatch(self.pattern, first, re.ASCII) else None
        if like_first is None:
            return super()._matching(texts)
        if len(others := np.flatnonzero(~like_first)):
            like_first[others] = super()._matching(texts.take(pa.array(others)))
        return like_first


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
        images = values.cast(pa.binary()).fill_null(b"")
        good = [not self.problem_bytes(content.as_buffer().to_pybytes()) for content in images]
        return images, np.array(good, bool)

    def reason(self, cell: Any) -> str:
        return self.must_be


def is_input_name(name: str) -> bool:
    """Tell whether an input of a served model may have this name."""
    return bool(re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name)) and not keyword.iskeyword(name) and name != "self"


def guard(raw: dict[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    """Apply the columns' rules to a request in a graph: missing cells are filled in, a bad one ends the request.

    Args:
        raw: the request's inputs by name; inputs that no column describes pass as they are.

    Returns:
        The inputs as training has them. A bad cell raises InvalidArgumentError, whose text says
        `instance 3: fare must be a number; got nothing` (instances count from 0).
    """
    import tensorflow as tf

    filled, checks = dict(raw), []
    for column in (column for column in columns if column.name in raw):
        filled[column.name], good = column.guard(raw[column.name])

        def text(column: Column = column, good: Any = good) -> Any:
            place = tf.argmin(tf.cast(good, tf.int32))
            value = raw[column.name][place]
            if column.is_text:
                absent = tf.equal(tf.strings.length(value), 0)
                shown = "something else" if isinstance(column, Image) else tf.strings.join(["'", tf.strings.substr(value, 0, 80), "'"])
            else:
                absent, shown = tf.math.is_nan(value), tf.strings.as_string(value)
            shown = tf.where(absent, "nothing", shown)
            return tf.strings.join(["instance ", tf.strings.as_string(place), f": {column.must_be}; got ", shown])

        fine = tf.reduce_all(good)
        checks.append(tf.debugging.Assert(fine, [tf.cond(fine, lambda: tf.constant(""), text)]))
    with tf.control_dependencies(checks):
        return {name: tf.identity(value) for name, value in filled.items()}
