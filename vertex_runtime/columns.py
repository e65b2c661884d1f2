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

    def problem(self, cell: str) -> bool:
        """Tell whether the text of a cell that is not missing is bad."""
        return self.pattern is not None and not re.fullmatch(self.pattern, cell, re.ASCII)

    def parse(self, cell: str) -> Any:
        """Turn the text of a good cell into the value that a chunk holds."""
        return str(self.missing).encode() if not cell else cell.encode()

    def good_values(self, values: Any) -> np.ndarray:
        """Return which of an Arrow array's values are good: [rows] bool."""
        import pyarrow.compute as pc

        given = pc.greater(pc.binary_length(values), 0)
        good = given if self.pattern is None else pc.match_substring_regex(values, pattern=f"^(?:{self.pattern})$")
        if self.missing is not None:
            good = pc.or_(good, pc.invert(given))
        return good.to_numpy(zero_copy_only=False)

    def to_numpy(self, values: Any) -> np.ndarray:
        """Return an Arrow array as a chunk holds it, missing cells filled in: [rows]."""
        import pyarrow as pa

        if pa.types.is_string(values.type):
            values = values.cast(pa.binary())
        found = values.to_numpy(zero_copy_only=False)
        if self.missing:
            found = found.copy()
            found[found == b""] = str(self.missing).encode()
        return found

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

    def problem(self, cell: str) -> bool:
        try:
            number = float(cell)
        except ValueError:
            return True
        low, high = self._limits()
        return not (math.isfinite(number) and low <= number <= high)

    def parse(self, cell: str) -> Any:
        return float(self.missing if not cell else cell)

    def good_values(self, values: Any) -> np.ndarray:
        numbers = values.to_numpy(zero_copy_only=False)
        low, high = (np.float32(limit) for limit in self._limits())
        good = np.isfinite(numbers) & (numbers >= low) & (numbers <= high)
        if self.missing is not None and values.null_count:
            good |= values.is_null().to_numpy(zero_copy_only=False)
        return good

    def to_numpy(self, values: Any) -> np.ndarray:
        if self.missing is not None and values.null_count and not math.isnan(self.missing):
            values = values.fill_null(float(self.missing))
        return values.to_numpy(zero_copy_only=False)

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
