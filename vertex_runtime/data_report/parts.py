"""What is kept of each part of the data while it is read once, column by column and row by row."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..columns import Category, Column, Date, Image, Number, Text
from ..data import PATH, ROW, BadRows, Chunk
from . import sketches

PLACES = 5  # examples of each kind of equal rows
FEW = 20  # values of a number up to which they are counted one by one instead of put into bins
_SHIFT = 40  # bits of a place that hold the row
_SAMPLE_CELLS = 4_000_000


@dataclass(frozen=True)
class Limits:
    """How much is kept, and how long a part is read (seconds; None: to its end)."""

    rows: int = sketches.MOST_ROWS
    values: int = sketches.MOST_VALUES
    sample: int = sketches.SAMPLE_ROWS
    seconds: float | None = None


def shown(value: Any) -> str:
    """Return a cell's value as a report shows it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")[:80]
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    return f"{value:g}" if isinstance(value, float) else str(value)[:80]


# ------------------------------------------------------------------ one part


class ColumnPart:
    """One column in one part. `kind`: number, category, text, date, image or array."""

    def __init__(self, column: Column | None, values: np.ndarray, is_label: bool, limits: Limits):
        self.kind, self.shape, self.is_label = kind_of(column, values, is_label), list(values.shape[1:]), is_label
        self.missing = self.infinite = 0
        self.moments = sketches.Moments()
        self.counts = sketches.Counts(limits.values, keep=self.kind in ("category", "image"))

    def add(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take cells in; return them as numbers, float64 [rows] (NaN for missing, all NaN for categories), and as hashes [rows]."""
        hashes = sketches.hash_cells(values)
        numbers, absent = self._numbers(values)
        if self.kind == "date":  # which is the same however it is spelt
            whole = np.isfinite(numbers) & (values.astype("S20").view(np.uint8).reshape(len(values), 20)[:, 19] != ord("."))
            hashes = np.where(whole, sketches.hash_cells(numbers), hashes)
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
            step = max(1, (1 << 20) // max(1, values[0].size))  # rows at a time: as float64 a chunk of images would be large
            measured = [self._measure(values[start : start + step]) for start in range(0, len(values), step)]
            means, absent = (np.concatenate(part) for part in zip(*measured))
            return means, absent
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

    def _measure(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take numbers in; return the mean of each row's (NaN where that is not finite), and which rows hold none, both [rows]."""
        rows = values.astype(np.float64).reshape(len(values), -1)
        self.infinite += int(np.isinf(rows).sum())
        self.moments.add(rows[np.isfinite(rows)])
        means = rows[:, 0] if rows.shape[1] == 1 else rows.mean(axis=1) if rows.shape[1] else np.zeros(len(rows))
        absent = np.asarray(np.isnan(rows).all(axis=1)) if rows.shape[1] else np.zeros(len(rows), bool)
        return np.where(np.isfinite(means), means, np.nan), absent

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
            found["values"] = [[shown(value), count] for value, count in self.counts.ranked()[: None if self.is_label else 50]]
            found["exact"] = not self.counts.others
        return found


def day(seconds: float) -> str:
    """Return seconds since 1970 as a date."""
    return str(np.datetime64(int(seconds), "s")).replace("T", " ")


def kind_of(column: Column | None, values: np.ndarray, is_label: bool) -> str:
    """Return what a column holds: number, category, text, date, image or array."""
    if is_label and values.ndim == 1 and values.dtype.kind != "f" and not isinstance(column, (Number, Date)):
        return "category"
    for kind, name in ((Number, "number"), (Category, "category"), (Date, "date"), (Image, "image"), (Text, "text")):
        if isinstance(column, kind):
            return name
    if values.ndim > 1:
        return "array"
    return "text" if values.dtype.kind in "OSU" else "number"


class Part:
    """What is kept of one part while it is read."""

    def __init__(self, name: str, columns: Sequence[Column], labels: Sequence[str], weight: str | None, seed: int, limits: Limits):
        self.name, self.known, self.labels, self.weight, self.limits = name, {c.name: c for c in columns}, labels, weight, limits
        self.rows, self.complete, self.paths = 0, True, []
        self.columns: dict[str, ColumnPart] = {}
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
                break
        self.hashes.settle()

    def role(self, name: str) -> str:
        """Return what a column is to the model: label, weight or input."""
        if name in self.labels or name.partition("/")[0] == "_label":
            return "label"
        return "weight" if name == self.weight else "input"

    def _add(self, chunk: Chunk, names: Sequence[str]) -> None:
        rows = len(chunk[names[0]])
        if not self.columns:  # 16 bytes a cell: of very many columns fewer rows are held
            self.sample.size = min(self.limits.sample, max(1000, _SAMPLE_CELLS // len(names)))
        inputs, labels = np.zeros(rows, np.uint64), np.zeros(rows, np.uint64)
        sampled: dict[str, np.ndarray] = {}
        for name in names:
            values = chunk[name]
            if name not in self.columns:
                self.columns[name] = ColumnPart(self.known.get(name), values, self.role(name) == "label", self.limits)
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


def sorted_places(part: Part, first: int, second: int) -> list[str]:
    """Return two places in the order of the data."""
    return [part.place(number) for number in sorted((int(first), int(second)))]
