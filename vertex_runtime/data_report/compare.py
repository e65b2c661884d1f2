"""What two parts of the data have in common, how their columns differ, and the plots of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import sketches
from .parts import FEW, PLACES, Part, shown

BINS, SHOWN = 10, 30  # of the drift, by quantiles; of a plot, of equal width


def common(later: Part, earlier: Part) -> dict[str, Any] | None:
    """Return which rows of one part are in another: equal ones, and ones with the same inputs and another label."""
    if not (later.rows and earlier.rows):
        return None
    halvings = max(later.hashes.halvings, earlier.hashes.halvings)
    own, other = later.hashes.within(halvings), earlier.hashes.within(halvings)
    scale, rows = 1 << halvings, max(1, int(own.counts.sum()))
    found: dict[str, Any] = {"of": later.name, "among": earlier.name}
    ordered = np.argsort(other.rows)
    equal, twins = _find(own.rows, other.rows[ordered])
    torn, alike = _find(own.inputs, other.inputs)
    for name, mask, matches in (("equal", equal, ordered[twins] if len(ordered) else twins), ("conflicts", torn & ~equal, alike)):
        places = np.flatnonzero(mask)
        places = places[np.argsort(own.first[places])][:PLACES]
        count = int(own.counts[mask].sum())
        examples = [[later.place(own.first[i]), earlier.place(other.first[matches[i]])] for i in places]
        found[name] = {"count": count * scale, "share": count / rows, "exact": scale == 1, "first": examples}
    return found


def _find(values: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which values are among sorted ones, and where: both [values], the places of the others without meaning."""
    places = np.minimum(np.searchsorted(among, values), max(0, len(among) - 1))
    return (among[places] == values if len(among) else np.zeros(len(values), bool)), places


def columns_of(read: Mapping[str, Part]) -> dict[str, dict[str, Any]]:
    """Return what the report says of each column: figures, plot, drift."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for part in read.values() for name in part.columns):
        there = {part.name: part for part in read.values() if name in part.columns}
        first = next(iter(there.values()))
        column = first.columns[name]
        said: dict[str, Any] = {"kind": column.kind, "role": first.role(name)}
        if column.shape:
            said["shape"] = column.shape
        said["parts"] = {other: part.columns[name].described(part.sample.column(name)) for other, part in there.items()}
        said["plot"] = _bars(there, name) if column.is_counted else _histogram(there, name)
        said["drift"] = {other: _drift(first, part, name) for other, part in there.items() if part is not first}
        found[name] = said
    return found


def _drift(first: Part, second: Part, name: str) -> dict[str, Any] | None:
    """Return the Jensen-Shannon distance of a column between two parts, and what chance alone explains; None without numbers."""
    a, b = first.columns[name], second.columns[name]
    if a.is_counted:
        keys = list(dict.fromkeys([*a.counts.values, *b.counts.values]))
        # Of a column that turned out to have many values in the other part nothing but their number is known.
        rest = [side.counts.others + (part.rows - side.missing) * (side.counts.full and not side.counts.keep)
                for part, side in ((first, a), (second, b))]  # fmt: skip
        counts = [[side.counts.values.get(key, (0, 0))[1] for key in keys] for side in (a, b)]
        histograms = [np.array([*row, more, side.missing], float) for row, more, side in zip(counts, rest, (a, b))]
    else:
        one, two = first.sample.column(name), second.sample.column(name)
        given = one[~np.isnan(one)]
        bins = min(BINS, max(2, min(len(one), len(two)) // 5))
        if not len(given):
            return None
        edges = np.unique(np.quantile(given, np.linspace(0, 1, bins + 1)[1:-1]))
        histograms = [
            np.r_[np.bincount(np.searchsorted(edges, part[~np.isnan(part)], side="left"), minlength=len(edges) + 1), np.isnan(part).sum()]
            for part in (one, two)
        ]
    return sketches.drift(*histograms)


# ------------------------------------------------------------------ plots


def _bars(parts: Mapping[str, Part], name: str) -> dict[str, Any]:
    """Return the shares of the most frequent values: {"values", "shares": {part: [...]}}, numbers in their order."""
    total: dict[int, float] = {}
    values: dict[int, Any] = {}
    for part in parts.values():
        for key, (value, count) in part.columns[name].counts.values.items():
            total[key] = total.get(key, 0.0) + count / max(1, part.rows)
            values[key] = value
    keys = sorted(total, key=lambda key: (-total[key], key))[:FEW]
    if all(isinstance(values[key], (float, np.number)) for key in keys):
        keys.sort(key=lambda key: values[key])
    shares = {}
    for other, part in parts.items():
        counts, rows = part.columns[name].counts, max(1, part.rows - part.columns[name].missing)
        shares[other] = [counts.values.get(key, (0, 0))[1] / rows for key in keys]
        if len(total) > len(keys) or counts.others:
            shares[other].append(max(0.0, 1 - sum(shares[other])))
    most = max(map(len, shares.values()), default=0)
    labels = [shown(values[key]) for key in keys] + ["all others"] * (most > len(keys))
    return {"values": labels, "shares": {other: row + [0.0] * (most - len(row)) for other, row in shares.items()}}


def _histogram(parts: Mapping[str, Part], name: str) -> dict[str, Any] | None:
    """Return {"edges", "shares": {part: [...]}} of the samples; the first and last bin hold what lies beyond, too."""
    samples = {other: part.sample.column(name) for other, part in parts.items()}
    given = {other: values[~np.isnan(values)] for other, values in samples.items()}
    together = np.concatenate(list(given.values()))
    if not len(together):
        return None
    low, high = sketches.usual_range(together)
    shares = {other: sketches.shares(values, low, high, SHOWN).tolist() for other, values in given.items()}
    return {"edges": np.linspace(low, high, SHOWN + 1).tolist(), "shares": shares}
