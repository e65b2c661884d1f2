"""The API's splits: which rows train, validate and test. Every export splits the same rows the same way.

The API leaves some cases open. Here, fractions with a sum below 1 are scaled up, an empty filter matches nothing, as `-`
does, and the default is 0.8, 0.1 and 0.1, whatever `ml_use` an item has.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

from ..errors import quoted
from ..serve import filters
from .dataset import ML_USE, SETS, TABULAR, DatasetError
from .rows import Row

KINDS = ("fractionSplit", "filterSplit", "predefinedSplit", "timestampSplit", "stratifiedSplit")
_RFC_3339 = "time in RFC 3339 such as 1985-04-12T23:20:50.52Z"
DEFAULT = (0.8, 0.1, 0.1)
# The API's names, and those of the tabular AutoML documents.
PREDEFINED = {"training": 0, "validation": 1, "test": 2, "TRAIN": 0, "VALIDATE": 1, "TEST": 2, "TRAINING": 0, "VALIDATION": 1}
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?\s?([Zz]|UTC|[+-]\d\d:\d\d)")
# For a stratified split: most classes and fewest rows of a class by the API's rules; most values by ours, to limit memory.
_CLASSES, _FEWEST, _MOST_VALUES = 500, 3, 1_000_000
Assign = Callable[[Row], "int | None"]
Rows = Callable[[], Iterable[Row]]  # each call reads the source from its beginning


class Remarks:
    """Counts rows by remark, such as "left out: …", and keeps an example of each remark."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, str]] = {}

    def add(self, remark: str, row: Row, value: object) -> None:
        """Count one row; `value` is the value that could not be used."""
        count, first = self.found.get(remark, (0, ""))
        self.found[remark] = (count + 1, first or f"{row.place} has {str(value)[:80]!r}")

    def lines(self) -> list[str]:
        """Return a line for each remark."""
        return [f"{count:,} row(s) {remark}; the first, {first}." for remark, (count, first) in self.found.items()]


Plan = Callable[[Rows], Assign]


def plan(config: Mapping[str, Any], source: Any, kind: str, remarks: Remarks) -> Plan:
    """Check the split of an `inputDataConfig` against its source; return a function that makes the assignment of rows to sets.

    Args:
        remarks: gets what there is to say of rows that are left out.

    Raises:
        DatasetError: two splits, a split of another kind of data set, an unknown column, or impossible fractions.
    """
    given = [name for name in KINDS if name in config]
    if len(given) > 1:
        raise DatasetError(f"takes one split; got {' and '.join(given)}.", given[1])
    split = given[0] if given else "fractionSplit"
    wish = config.get(split, {})
    if split == "filterSplit":
        if kind == TABULAR:
            text = "filterSplit is for data sets of text and images; a tabular one takes fractionSplit, predefinedSplit or timestampSplit."
            raise DatasetError(text, split)
        return _by_filter(wish)
    if split == "predefinedSplit":
        return partial(_by_value, source, _key(split, wish, source, kind), remarks)
    fractions = _fractions(wish, split)
    if split == "fractionSplit":
        return lambda rows: lambda row: _place(_share(row.content), fractions)
    key = _key(split, wish, source, kind)
    if split == "stratifiedSplit":
        return partial(_stratified, source, key, fractions)
    return partial(_by_time, source, key, fractions, remarks)


def _key(split: str, wish: Mapping[str, Any], source: Any, kind: str) -> str:
    """Return the column, or for text the label, by which rows are split."""
    key = wish.get("key", "")
    if kind == TABULAR:
        if key not in source.columns:
            raise DatasetError(f"{split}.key must be one of the columns {', '.join(source.columns)}; got {quoted(key)}.", f"{split}.key")
        return key
    if split != "predefinedSplit" or key not in (ML_USE, "ml_use", f"labels.{ML_USE}"):
        text = f"a data set of text takes fractionSplit, filterSplit, or predefinedSplit by {ML_USE}; got {split} by {quoted(key)}."
        raise DatasetError(text, split)
    return ML_USE


def _fractions(wish: Mapping[str, Any], split: str) -> Sequence[float]:
    values = tuple(float(wish.get(f"{name}Fraction", 0.0)) for name in SETS)
    if not any(values):
        return DEFAULT
    total = sum(values)
    if min(values) < 0 or not total <= 1 + 1e-6:
        shown = ", ".join(f"{value:g}" for value in values)
        raise DatasetError(f"{split}: fractions are from 0 on and sum up to at most 1; got {shown}, which is {total:g}.", split)
    return tuple(value / total for value in values)


def _share(content: str) -> float:
    """Return a pseudo-random number from 0 to 1 that depends only on the content."""
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def _place(share: float, weights: Sequence[float]) -> int:
    """Return the set that a share from 0 to 1 falls into; each set is as wide as its weight."""
    ends = list(itertools.accumulate(weights))
    return min(bisect.bisect_right(ends, share * ends[-1]), len(ends) - 1)  # beyond the last end by rounding only


def _by_filter(wish: Mapping[str, Any]) -> Plan:
    accepts = []
    for name in SETS:
        text = wish.get(f"{name}Filter", "-").strip()
        try:
            accepts.append(None if text in ("", "-") else filters.parse(text, _label))
        except filters.FilterError as error:
            raise DatasetError(f"filterSplit.{name}Filter: {error}", f"filterSplit.{name}Filter") from None

    def assign(row: Row) -> int | None:
        return next((place for place, accept in enumerate(accepts) if accept and accept(row.value)), None)

    return lambda rows: assign


def _label(item: Mapping[str, Any], name: str) -> Any:
    """Return the value of `labels.KEY` in a filter; KEY itself may contain dots."""
    if not name.startswith("labels."):
        raise DatasetError(
            f"filterSplit: on this machine a filter is about labels, such as labels.{ML_USE}=training; got {quoted(name)}.", "filterSplit"
        )
    return item["dataItemResourceLabels"].get(name.removeprefix("labels."))


def _by_value(source: Any, key: str, remarks: Remarks, rows: Rows) -> Assign:
    def assign(row: Row) -> int | None:
        value = source.value(row, key)
        place = PREDEFINED.get((value or "").strip())
        if place is None:
            remarks.add(f"left out: {key} is none of training, validation and test", row, value)
        return place

    return assign


def _stratified(source: Any, key: str, fractions: Sequence[float], rows: Rows) -> Assign:
    """Split each value's rows by the fractions; rows of rare values are split at random, as the API says."""
    counts: Counter[str] = Counter()
    for row in rows():
        counts[source.value(row, key) or ""] += 1
        if len(counts) > _MOST_VALUES:
            text = f"stratifiedSplit.key: column {key!r} has more than {_MOST_VALUES:,} values; take one with categories."
            raise DatasetError(text, "stratifiedSplit.key")
    quotas = {}
    for value, count in counts.most_common(_CLASSES):
        if count >= _FEWEST:
            ends = [round(count * math.fsum(fractions[: i + 1])) for i in range(3)]
            quotas[value] = [ends[0], ends[1] - ends[0], ends[2] - ends[1]]

    def assign(row: Row) -> int | None:
        left = quotas.get(source.value(row, key) or "")
        if left is None:
            return _place(_share(row.content), fractions)
        # Drawn without replacement; the sum makes rows of the same content differ.
        place = _place(_share(f"{row.content}\x1e{sum(left)}"), left)
        left[place] -= 1
        return place

    return assign


def _by_time(source: Any, key: str, fractions: Sequence[float], remarks: Remarks, rows: Rows) -> Assign:
    """Train on the newest rows and test on the oldest, as the API's reference says; leave out rows without a time."""
    times, wrong = array("q"), ""
    for row in rows():
        when = parse_time(source.value(row, key))
        if when is not None:
            times.append(when)
        else:
            wrong = wrong or f"{row.place} has {quoted(source.value(row, key))}"
    if not times:
        text = f"timestampSplit.key: column {key!r} has no {_RFC_3339}; {wrong or 'there is no row'}."
        raise DatasetError(text, "timestampSplit.key")
    ends = [_boundary(times, round(len(times) * math.fsum(fractions[: i + 1]))) for i in range(2)]
    del times

    def assign(row: Row) -> int | None:
        when = parse_time(source.value(row, key))
        if when is None:
            remarks.add(f"left out: {key} is not a {_RFC_3339}", row, source.value(row, key))
            return None
        found = 2
        for place in (1, 0):
            time, ties = ends[place]
            if when > time or when == time and ties > 0:
                found = place
            if when == time:
                ends[place] = (time, ties - 1)
        return found

    return assign


def _boundary(times: array, count: int) -> tuple[int, int]:
    """Return the time of the `count`-th newest row, and how many rows with exactly that time are among the `count` newest."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if count < 1:
        return 2**63 - 1, 0
    values = pa.Array.from_buffers(pa.int64(), len(times), [None, pa.py_buffer(times)])
    place = len(times) - count
    time = values[pc.partition_nth_indices(values, pivot=place)[place].as_py()].as_py()
    younger = pc.sum(pc.greater(values, time)).as_py() or 0
    return time, count - younger


def parse_time(text: str | None) -> int | None:
    """Return the microseconds since 1970 of a time in RFC 3339, or in BigQuery's form for TIMESTAMP in CSV; None for other text."""
    found = _TIME.fullmatch((text or "").strip())
    if not found:
        return None
    zone = "+00:00" if found[4] in ("Z", "z", "UTC") else found[4]
    try:
        when = datetime.fromisoformat(f"{found[1]}T{found[2]}.{(found[3] or '')[:6]:0<6}{zone}")
    except ValueError:
        return None
    return (when - _EPOCH) // _MICROSECOND


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = datetime.resolution
