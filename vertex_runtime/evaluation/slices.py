"""Parts of the evaluated rows, by the values of one column each, with the worst first.

The order is by what is certain of a slice: the lower end of the 95 % interval of its mean loss. So a few unlucky rows are not
taken for a weakness, and slices of fewer than `FEW` rows come last, whatever they say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .kept import Kept, KeptColumn
from .metrics import metrics_of
from .problem import Judged, Problem

BUCKETS, TOLD_APART = 8, 12  # of a column of numbers: as many buckets of equal rows; up to so many values are told one by one
CATEGORIES = 20  # values of a category, the most frequent ones
FEW = 30  # rows below which a slice's mean says nothing
NORMAL = 1.959964  # deviations of a 95 % interval
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAY, HOUR = 86400, 3600


@dataclass(frozen=True)
class Bucketing:
    """A column's buckets in their own order: names, and for each row the place of its bucket, -1 for none."""

    column: str
    names: list[str]
    places: np.ndarray
    ordered: bool  # whether the order of the buckets means something, as that of numbers does


def bucketings(kept: Kept, problem: Problem) -> list[Bucketing]:
    """Return the buckets of every column that has two or more; a date's by hour, weekday and month."""
    found = []
    for name, column in kept.columns.items():
        numbers = kept.column(name)
        if column.kind == "date":
            found += list(_of_dates(name, numbers))
        elif column.kind == "category":
            found.append(_of_categories(name, column, numbers))
        else:
            unit = {"text": " (bytes)", "image": " (pixels)"}.get(column.kind, "")
            found.append(_of_numbers(f"{name}{unit}", numbers))
    if problem.kind in ("binary", "multiclass") and problem.label not in kept.columns:
        labels = kept.judged["label"]
        found.append(Bucketing(problem.label, list(problem.classes), labels.astype(int), False))
    return [each for each in found if each is not None and len(np.unique(each.places[each.places >= 0])) > 1]


def _of_numbers(name: str, numbers: np.ndarray) -> Bucketing | None:
    given = numbers[np.isfinite(numbers)]
    if not len(given):
        return None
    values = np.unique(given)
    if len(values) <= TOLD_APART:
        names, places = [f"{value:.6g}" for value in values], np.searchsorted(values, numbers)
    else:
        edges = np.unique(np.quantile(given, np.linspace(0, 1, BUCKETS + 1)))
        places = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
        digits = _digits(edges)
        names = [f"{low:.{digits}g} to {high:.{digits}g}" for low, high in zip(edges, edges[1:])]
    places = np.where(np.isfinite(numbers), places, len(names))
    return Bucketing(name, [*names, "missing"], places, True)


def _digits(edges: np.ndarray) -> int:
    """Return how many digits tell all edges apart."""
    return next((digits for digits in range(3, 10) if len({f"{edge:.{digits}g}" for edge in edges}) == len(edges)), 10)


def _of_categories(name: str, column: KeptColumn, numbers: np.ndarray) -> Bucketing | None:
    codes = np.where(np.isnan(numbers), -2, numbers).astype(int)
    values, counts = np.unique(codes, return_counts=True)
    ranked = [int(value) for value in values[np.argsort(-counts, kind="stable")] if value >= 0]
    shown = ranked[:CATEGORIES]
    table = np.full(len(column.names) + 2, len(shown))  # all others
    table[[value + 2 for value in shown]] = np.arange(len(shown))
    table[0] = len(shown) + 1
    return Bucketing(name, [*(column.names[value] for value in shown), "all others", "missing"], table[codes + 2], False)


def _of_dates(name: str, seconds: np.ndarray) -> Iterator[Bucketing]:
    known = np.isfinite(seconds)
    whole = np.where(known, seconds, 0).astype(np.int64)
    hours = whole % DAY // HOUR
    if len(np.unique(hours[known])) > 1:
        yield Bucketing(f"{name}: hour", [f"{hour:02d}" for hour in range(24)], np.where(known, hours, -1), True)
    yield Bucketing(f"{name}: weekday", list(DAYS), np.where(known, (whole // DAY + 3) % 7, -1), True)
    months = (whole * known).astype("datetime64[s]").astype("datetime64[M]")
    unit, text = (months, 7) if len(np.unique(months[known])) <= 24 else (months.astype("datetime64[Y]"), 4)
    names, places = np.unique(unit[known], return_inverse=True)
    found = np.full(len(seconds), -1)
    found[known] = places
    yield Bucketing(f"{name}: {'month' if text == 7 else 'year'}", [str(each)[:text] for each in names], found, True)


# ------------------------------------------------------------------ figures


def slices_of(problem: Problem, rows: Judged, buckets: list[Bucketing]) -> list[dict[str, Any]]:
    """Return the slices, the worst first: {"column", "value", "rows", "metrics", "interval"}.

    `interval` is that of the mean loss, [low, high], at 95 %; `few` stands where there are fewer than 30 rows.
    """
    if not problem.output:
        return []
    found = [said for each in buckets for said in by_bucket(problem, rows, each)]
    return sorted(found, key=lambda said: (said["few"], -said["interval"][0]))


def by_bucket(problem: Problem, rows: Judged, buckets: Bucketing) -> list[dict[str, Any]]:
    """Return the slices of one column, in the order of its buckets; empty ones are left out."""
    order = np.argsort(buckets.places, kind="stable")
    starts = np.searchsorted(buckets.places[order], np.arange(len(buckets.names) + 1))
    found = []
    for name, start, end in zip(buckets.names, starts, starts[1:]):
        if end > start:
            part = {key: values[order[start:end]] for key, values in rows.items()}
            found.append({"column": buckets.column, "value": name, **_slice(problem, part)})
    return found


def _slice(problem: Problem, rows: Judged) -> dict[str, Any]:
    count = len(rows["loss"])
    low, high = interval(rows["loss"], rows["weight"])
    return {"rows": count, "metrics": metrics_of(problem, rows), "interval": [low, high], "few": count < FEW}


def interval(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a weighted mean: by the normal distribution, of a share (values of 0 and 1) that of Wilson (1927)."""
    mean, error = mean_and_error(values, weight)
    if not np.isin(values, (0.0, 1.0)).all() or not math.isfinite(mean):
        return mean - NORMAL * error, mean + NORMAL * error
    count = float(weight.sum() ** 2 / (weight**2).sum())  # rows alike that say as much
    middle = (mean + NORMAL**2 / (2 * count)) / (1 + NORMAL**2 / count)
    reach = NORMAL * math.sqrt(mean * (1 - mean) / count + (NORMAL / (2 * count)) ** 2) / (1 + NORMAL**2 / count)
    return middle - reach, middle + reach


def mean_and_error(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Return a weighted mean and its standard error: that of the mean of n values, where all weigh alike."""
    total = float(weight.sum())
    if not total > 0:
        return math.nan, math.nan
    mean, count = float((values * weight).sum() / total), int((weight > 0).sum())
    if count < 2:
        return mean, 0.0
    squares = float((weight**2 * (values - mean) ** 2).sum()) / total**2
    return mean, math.sqrt(squares * count / (count - 1))


def changes(rows: Judged, other: Judged, buckets: list[Bucketing]) -> list[dict[str, Any]]:
    """Return where one model differs from another for certain: slices whose mean difference of losses has an interval without 0.

    Each: {"column", "value", "rows", "difference", "interval"}, what got worse first.
    """
    difference, weight = rows["loss"] - other["loss"], rows["weight"]
    found: list[dict[str, Any]] = []
    for each in buckets:
        for place, name in enumerate(each.names):
            mask = each.places == place
            if mask.sum() < FEW:
                continue
            mean, error = mean_and_error(difference[mask], weight[mask])
            if abs(mean) > NORMAL * error and math.isfinite(error):
                ends = [mean - NORMAL * error, mean + NORMAL * error]
                found.append({"column": each.column, "value": name, "rows": int(mask.sum()), "difference": mean, "interval": ends})
    return sorted(found, key=lambda said: -said["interval"][0])
