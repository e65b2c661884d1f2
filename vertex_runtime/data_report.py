"""What the rows of a run hold, in one pass over each part: ranges, missing cells, balance, equal rows, drift between the parts.

Memory is bounded whatever the number of rows (see data_sketches.py): moments, counts and missing cells are exact, as long as a
column has no more than `MOST_VALUES` values to count; quantiles, plots and the drift of numbers go by a seeded sample; equal rows
are found by 64-bit hashes, beyond `MOST_ROWS` different rows exactly among a share of them, and then it says so.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import data_sketches as sketches
from .columns import Category, Column, Date, Image, Number, Text
from .data import PATH, ROW, BadRows, Chunk

DRIFT = 0.1  # the distance from which a difference between parts is a warning: a normal distribution moved by 0.25 deviations
PLACES = 5  # examples of each kind of equal rows
FEW = 20  # values of a number up to which they are counted one by one instead of put into bins
BINS, SHOWN = 10, 30  # of the drift, by quantiles; of a plot, of equal width
KIND = "vertex_runtime data report"  # by which a file is known to be ours
_SHIFT = 40  # bits of a place that hold the row


@dataclass(frozen=True)
class Limits:
    """How much is kept, and how long a part is read (seconds; None: to its end)."""

    rows: int = sketches.MOST_ROWS
    values: int = sketches.MOST_VALUES
    sample: int = sketches.SAMPLE_ROWS
    seconds: float | None = None


@dataclass(frozen=True)
class Finding:
    """One line of judgement: level is warning or note; check is what was looked at, such as leaks or drift."""

    level: str
    check: str
    message: str


@dataclass
class Report:
    """What was found, as JSON holds it.

    Args:
        parts: by name (training first): rows, whether all were read, bad rows, duplicates, conflicts.
        columns: by name: kind, role, figures by part, plot, and drift against training by part.
        pairs: what two parts have in common.
    """

    parts: dict[str, dict[str, Any]]
    columns: dict[str, dict[str, Any]]
    pairs: list[dict[str, Any]]
    findings: list[Finding] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "warning"]

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values; numbers that are not finite become null."""
        return {"kind": KIND, **_plain(dataclasses.asdict(self))}


def collect(
    parts: Mapping[str, Iterable[Chunk]], columns: Sequence[Column] = (), labels: Sequence[str] = (), *, weight: str | None = None,
    bad: Mapping[str, BadRows] | None = None, seed: int = 0, limits: Limits = Limits(),
) -> Report:  # fmt: skip
    """Read each part once and compare them.

    Args:
        parts: chunks by name, training first: columns [rows, ...]; `_path` and `_row` (see data.py) say where rows are. Columns
            whose names begin with `_label` are labels, other ones with `_` are not looked at.
        columns: what is known of the columns; of others the kind follows from the first chunk.
        bad: what the readers of the parts collect meanwhile.
        seed: of the samples.
        limits: see `Limits`.

    Returns:
        The report, with its findings.
    """
    from .data_findings import judge

    read = {name: _Part(name, columns, labels, weight, seed, limits) for name in parts}
    for name, chunks in parts.items():
        read[name].read(chunks)
    order = list(read)
    pairs = [_common(read[other], read[name]) for i, name in enumerate(order) for other in order[i + 1 :]]
    described = {name: part.described((bad or {}).get(name)) for name, part in read.items()}
    found = Report(described, _columns(read), [pair for pair in pairs if pair])
    found.findings = judge(found, next(iter(read.values())).sample if read else None)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(value: Any) -> str:
    """Return a cell's value as a report shows it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")[:80]
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    return f"{value:g}" if isinstance(value, float) else str(value)[:80]


# ------------------------------------------------------------------ one part


class _ColumnPart:
    """One column in one part. `kind`: number, category, text, date, image or array."""

    def __init__(self, column: Column | None, values: np.ndarray, is_label: bool, limits: Limits):
        self.kind, self.shape, self.missing, self.infinite = _kind(column, values, is_label), list(values.shape[1:]), 0, 0
        self.moments = sketches.Moments()
        self.counts = sketches.Counts(limits.values, keep=self.kind in ("category", "image"))

    def add(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take cells in; return them as numbers, float64 [rows] (NaN for missing, all NaN for categories), and as hashes [rows]."""
        hashes = sketches.hash_cells(values)
        numbers, absent = self._numbers(values)
        self.missing += int(absent.sum())
        if self.kind == "image":
            sizes = [sketches.image_size(content) for content in values]
            texts = np.array([f"{size[0]} x {size[1]}".encode() if size else b"unknown" for size in sizes], object)
            self.counts.add(sketches.hash_cells(texts), texts)
        elif self.kind != "array":
            self.counts.add(hashes[~absent], values[~absent])
        return numbers, hashes

    def _numbers(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.kind in ("number", "array") and values.dtype.kind not in "OSU":
            flat = values.astype(np.float64)
            finite = np.isfinite(flat)
            self.infinite += int(np.isinf(flat).sum())
            self.moments.add(flat[finite])
            rows = flat.reshape(len(flat), -1)
            absent = np.isnan(rows).all(axis=1) if rows.shape[1] else np.zeros(len(flat), bool)
            means = rows[:, 0] if rows.shape[1] == 1 else rows.mean(axis=1) if rows.shape[1] else np.zeros(len(flat))
            return np.where(np.isfinite(means), means, np.nan), absent
        if values.ndim > 1:
            return np.full(len(values), np.nan), np.zeros(len(values), bool)
        texts = sketches.as_bytes(values)
        lengths = np.fromiter(map(len, texts), np.float64, len(texts))
        absent = lengths == 0
        if self.kind == "category":
            return np.full(len(values), np.nan), absent
        numbers = sketches.seconds_of(texts) if self.kind == "date" else np.where(absent, np.nan, lengths)
        self.moments.add(numbers[np.isfinite(numbers)])
        return numbers, absent

    @property
    def is_counted(self) -> bool:
        """Tell whether its values are told apart one by one, not by their size."""
        few = FEW if self.kind == "number" else 50
        return self.kind in ("category", "image") or (self.kind != "date" and not self.counts.full and 0 < len(self.counts.values) <= few)

    def described(self, sample: np.ndarray) -> dict[str, Any]:
        """Return the column's figures; `sample` are the numbers of the part's sampled rows."""
        found: dict[str, Any] = {"missing": self.missing}
        if self.infinite:
            found["infinite"] = self.infinite
        if self.kind != "array":
            found["different"] = None if self.counts.full else len(self.counts.values)
        if self.moments.count and self.kind != "category":
            moments = self.moments
            found |= {"min": moments.low, "max": moments.high, "mean": moments.mean, "deviation": moments.deviation}
            given = sample[~np.isnan(sample)]
            if len(given):
                found["quantiles"] = dict(zip(("5%", "25%", "50%", "75%", "95%"), np.quantile(given, (0.05, 0.25, 0.5, 0.75, 0.95))))
        if self.kind == "date" and self.moments.count:
            for name in ("min", "max"):
                found[name] = day(found[name])
            del found["mean"], found["deviation"]
            found["quantiles"] = {name: day(value) for name, value in found["quantiles"].items()}
        if self.is_counted:
            found["values"] = [[shown(value), count] for value, count in self.counts.ranked()[:50]]
            found["exact"] = not self.counts.others
        return found


def day(seconds: float) -> str:
    """Return seconds since 1970 as a date."""
    return str(np.datetime64(int(seconds), "s")).replace("T", " ")


def _kind(column: Column | None, values: np.ndarray, is_label: bool) -> str:
    if is_label and values.ndim == 1 and values.dtype.kind != "f" and not isinstance(column, (Number, Date)):
        return "category"
    for kind, name in ((Number, "number"), (Category, "category"), (Date, "date"), (Image, "image"), (Text, "text")):
        if isinstance(column, kind):
            return name
    if values.ndim > 1:
        return "array"
    return "text" if values.dtype.kind in "OSU" else "number"


class _Part:
    """What is kept of one part while it is read."""

    def __init__(self, name: str, columns: Sequence[Column], labels: Sequence[str], weight: str | None, seed: int, limits: Limits):
        self.name, self.known, self.labels, self.weight, self.limits = name, {c.name: c for c in columns}, labels, weight, limits
        self.rows, self.complete, self.paths = 0, True, []
        self.columns: dict[str, _ColumnPart] = {}
        self.hashes, self.sample = sketches.RowHashes(limits.rows), sketches.RowSample(seed, limits.sample)

    def read(self, chunks: Iterable[Chunk]) -> None:
        end = None if self.limits.seconds is None else time.monotonic() + self.limits.seconds
        for chunk in chunks:
            names = [name for name in chunk if not name.startswith("_") or self.role(name) == "label"]
            if not names or not len(chunk[names[0]]):
                continue
            self._add(chunk, names)
            if end is not None and time.monotonic() > end:
                self.complete = False
                return

    def role(self, name: str) -> str:
        """Return what a column is to the model: label, weight or input."""
        if name in self.labels or name.partition("/")[0] == "_label":
            return "label"
        return "weight" if name == self.weight else "input"

    def _add(self, chunk: Chunk, names: Sequence[str]) -> None:
        rows = len(chunk[names[0]])
        inputs, labels = np.zeros(rows, np.uint64), np.zeros(rows, np.uint64)
        sampled: dict[str, np.ndarray] = {}
        for name in names:
            values = chunk[name]
            if name not in self.columns:
                self.columns[name] = _ColumnPart(self.known.get(name), values, self.role(name) == "label", self.limits)
            sampled[name], sampled[f"{name}#"] = self.columns[name].add(values)
        for name in sorted(names):  # whatever the order in which a part's chunks hold them
            if self.role(name) == "input":
                inputs = sketches.combine(inputs, sampled[f"{name}#"])
            elif self.role(name) == "label":
                labels = sketches.combine(labels, sampled[f"{name}#"])
        whole = sketches.combine(inputs, labels)
        self.hashes.add(inputs, whole, self._places(chunk, rows))
        self.sample.add(sampled | {"#": whole})
        self.rows += rows

    def _places(self, chunk: Chunk, rows: int) -> np.ndarray:
        """Return where the rows are, as numbers: the file's place in `paths`, and the row in it (0: the file is the row)."""
        if PATH in chunk and ROW not in chunk:
            first = len(self.paths)
            self.paths += [os.fsdecode(path) for path in chunk[PATH]]
            return np.arange(first, len(self.paths)) << _SHIFT
        path = os.fsdecode(chunk[PATH][0]) if PATH in chunk else self.name
        if not self.paths or self.paths[-1] != path:
            self.paths.append(path)
        numbers = chunk[ROW] if ROW in chunk else np.arange(self.rows + 1, self.rows + rows + 1)
        return ((len(self.paths) - 1) << _SHIFT) + numbers.astype(np.int64)

    def place(self, number: int) -> str:
        """Return "file, row" of a row."""
        path, row = self.paths[number >> _SHIFT], number & ((1 << _SHIFT) - 1)
        return f"{path}, row {row}" if row else path

    def described(self, bad: BadRows | None) -> dict[str, Any]:
        """Return the part's own figures."""
        self.hashes.settle()
        held, scale = self.hashes, 1 << self.hashes.halvings
        rows = max(1, int(held.counts.sum()))
        again = np.flatnonzero(held.counts > 1)
        again = again[np.argsort(held.first[again])]
        copies = int((held.counts[again] - 1).sum())
        examples = [[self.place(held.first[i]), self.place(held.last[i])] for i in again[:PLACES]]
        alike = held.inputs[1:] == held.inputs[:-1]
        pairs = np.flatnonzero(alike)
        pairs = pairs[np.argsort(np.minimum(held.first[pairs], held.first[pairs + 1]))]
        torn = int(held.counts[np.r_[False, alike] | np.r_[alike, False]].sum()) if len(alike) else 0
        reasons = bad.reasons.most_common() if bad else []
        return {
            "rows": self.rows, "complete": self.complete, "looked_at_for_equal_rows": rows if held.rows.size else 0,
            "bad_rows": {
                "count": sum(count for _, count in reasons), "reasons": dict(reasons),
                "first": [{"place": where, "reason": reason, "value": value} for where, reason, value in (bad.kept if bad else ())],
            },
            "duplicates": {"count": copies * scale, "share": copies / rows, "exact": scale == 1, "first": examples},
            "conflicts": {
                "count": torn * scale, "share": torn / rows, "exact": scale == 1,
                "first": [sorted_places(self, held.first[i], held.first[i + 1]) for i in pairs[:PLACES]],
            },
            "repeated": 1 - int((held.counts == 1).sum()) / rows,  # as likely is it that another row of the kind is among them
        }  # fmt: skip


def sorted_places(part: _Part, first: int, second: int) -> list[str]:
    """Return two places in the order of the data."""
    return [part.place(number) for number in sorted((int(first), int(second)))]


# ------------------------------------------------------------------ two parts


def _common(later: _Part, earlier: _Part) -> dict[str, Any] | None:
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


def _columns(read: Mapping[str, _Part]) -> dict[str, dict[str, Any]]:
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


def _drift(first: _Part, second: _Part, name: str) -> dict[str, Any] | None:
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
    sizes = [int(histogram.sum()) for histogram in histograms]
    if not min(sizes):
        return None
    both = (histograms[0] + histograms[1]) / sum(sizes) * min(sizes)
    rare = both < 5  # too rare for the rule of chance, which counts on five rows and more: taken together
    pooled = [np.r_[histogram[~rare], histogram[rare].sum()] for histogram in histograms]
    bins = int(((pooled[0] + pooled[1]) > 0).sum())
    distance = sketches.js_distance(*pooled)
    chance = sketches.chance_distance(*sizes, bins) if bins > 1 else 0.0
    return {"distance": round(distance, 6), "chance": round(chance, 6), "drifts": distance >= DRIFT and distance > chance}


# ------------------------------------------------------------------ plots


def _bars(parts: Mapping[str, _Part], name: str) -> dict[str, Any]:
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


def _histogram(parts: Mapping[str, _Part], name: str) -> dict[str, Any] | None:
    """Return {"edges", "shares": {part: [...]}} of the samples; the first and last bin hold what lies beyond, too."""
    samples = {other: part.sample.column(name) for other, part in parts.items()}
    given = {other: values[~np.isnan(values)] for other, values in samples.items()}
    together = np.concatenate(list(given.values()))
    if not len(together):
        return None
    low, high = np.quantile(together, (0.005, 0.995))
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, SHOWN + 1)
    shares = {}
    for other, values in given.items():
        places = np.clip(((values - low) / (high - low) * SHOWN).astype(int), 0, SHOWN - 1)
        shares[other] = np.bincount(places, minlength=SHOWN) / max(1, len(values))
    return {"edges": edges.tolist(), "shares": {other: values.tolist() for other, values in shares.items()}}
