"""What can be kept of a column, or of rows, in memory that does not grow with them: counts, moments, a sample, hashes.

Everything is a function of the rows in their order and a seed. Two parts of the data are compared by what was kept of each.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..hashing import mix

MOST_ROWS = 1 << 20  # different rows of a part that are held as hashes (40 bytes each); beyond that a share of them is
MOST_VALUES = 1000  # different values of a column that are counted one by one
SAMPLE_ROWS = 10_000  # rows of a part that quantiles, plots and drift go by
DRIFT = 0.1  # the distance from which a difference between parts is a warning: a normal distribution moved by 0.25 deviations
SHORT = 64  # bytes of a text up to which texts are hashed all at once

Array = np.ndarray


# ------------------------------------------------------------------ hashes


def combine(first: Array, second: Array) -> Array:
    """Return a hash of two hashes in their order, [n] uint64."""
    return mix(first * np.uint64(0x9E3779B97F4A7C15) + second)


def hash_cells(values: Array) -> Array:
    """Return a 64-bit hash of each cell: [n, ...] -> [n] uint64, the same in every process; all NaNs are alike, so are 0.0 and -0.0."""
    cells = values.reshape(len(values), -1)
    one = _hash_texts if values.dtype.kind in "OSU" else _hash_numbers
    if cells.shape[1] > 16 and one is _hash_numbers:
        return _digests(row.tobytes() for row in cells)
    total = one(cells[:, 0]) if cells.shape[1] else np.zeros(len(values), np.uint64)
    for i in range(1, cells.shape[1]):
        total = combine(total, one(cells[:, i]))
    return total


def _hash_numbers(values: Array) -> Array:
    if values.dtype.kind != "f":
        return mix(values.astype(np.int64).view(np.uint64))
    wide = values.astype(np.float64) + 0.0
    wide[np.isnan(wide)] = np.nan
    return mix(wide.view(np.uint64))


def _hash_texts(values: Array) -> Array:
    values = as_bytes(values)
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    total = mix(lengths.view(np.uint64))
    short = lengths <= SHORT
    few = values if short.all() else values[short]
    if len(few):
        width = -(-max(1, int(lengths[short].max())) // 8) * 8
        words = few.astype(f"S{width}").view(np.uint64).reshape(len(few), -1)
        hashed, sizes = total[short], lengths[short]
        for i in range(words.shape[1]):
            mixed = combine(hashed, words[:, i])
            # The width is that of the chunk's longest text, of which a text's hash must know nothing.
            hashed = mixed if i == 0 else np.where(sizes > 8 * i, mixed, hashed)
        total[short] = hashed
    if len(few) < len(values):
        total[~short] = _digests(values[~short])
    return total


def _digests(contents: Any) -> Array:
    return np.frombuffer(b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents), np.uint64).copy()


def as_bytes(values: Array) -> Array:
    """Return texts as objects of bytes: [n]; a reader of one's own may give str."""
    if set(map(type, values)) <= {bytes}:
        return values if values.dtype == object else values.astype(object)
    found = np.empty(len(values), object)
    found[:] = [value if isinstance(value, bytes) else str(value).encode() for value in values]
    return found


# ------------------------------------------------------------------ columns


@dataclass
class Moments:
    """Count, extremes, mean and deviation, one chunk after the other (Chan, Golub and LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: Array) -> None:
        """Take finite values in, float64 of any shape."""
        if not values.size:
            return
        mean, both = float(values.mean()), self.count + values.size
        gap = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + gap * gap * self.count * values.size / both
        self.mean += gap * values.size / both
        self.count = both
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else math.nan


@dataclass
class Counts:
    """How often each value occurs. Beyond `most` values the rarest go into `others`: a count is then a lower bound.

    With `keep=False` nothing is kept of a column that has more values than that.
    """

    most: int = MOST_VALUES
    keep: bool = True
    values: dict[int, list[Any]] = field(default_factory=dict)  # hash -> [value, count]
    others: int = 0
    full: bool = False

    def add(self, hashes: Array, values: Array) -> None:
        """Count cells, [n], by their hashes."""
        if self.full and not self.keep:
            return
        found, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        if not self.keep and len(found) > self.most:
            self.values, self.full = {}, True
            return
        for key, place, count in zip(found.tolist(), first.tolist(), counts.tolist()):
            if key in self.values:
                self.values[key][1] += count
            else:
                self.values[key] = [values[place], count]
        if len(self.values) > self.most:
            self.full = True
            ranked = sorted(self.values.items(), key=lambda entry: (-entry[1][1], entry[0]))
            self.others += sum(count for _, (_, count) in ranked[self.most :]) if self.keep else 0
            self.values = dict(ranked[: self.most]) if self.keep else {}

    def ranked(self) -> list[tuple[Any, int]]:
        """Return (value, count), the most frequent first."""
        return [(value, count) for _, (value, count) in sorted(self.values.items(), key=lambda entry: (-entry[1][1], entry[0]))]


@dataclass
class RowSample:
    """Up to `size` rows, each as likely as any other: those with the smallest of seeded random keys (bottom-k sampling)."""

    seed: int
    size: int = SAMPLE_ROWS
    limit: float = 1.0
    held: dict[str, Array] = field(default_factory=dict)
    waiting: list[dict[str, Array]] = field(default_factory=list)
    waits: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def add(self, rows: dict[str, Array]) -> None:
        """Offer rows: columns [n]."""
        self.offer(len(next(iter(rows.values()))), lambda taken: {name: values[taken] for name, values in rows.items()})

    def offer(self, count: int, take: Callable[[Array], dict[str, Array]]) -> None:
        """Offer `count` rows, of which `take` returns those at some places: columns [places]."""
        keys = self.random.random(count)
        taken = np.flatnonzero(keys < self.limit)
        if not len(taken):
            return
        self.waiting.append({"": keys[taken], **take(taken)})
        self.waits += len(taken)
        if self.waits > self.size // 4:  # a large sample is not copied for each few rows
            self._settle()

    def _settle(self) -> None:
        parts = [self.held, *self.waiting] if self.held else self.waiting
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else dict(*parts)
        if parts and len(joined[""]) > self.size:
            kept = np.sort(np.argpartition(joined[""], self.size - 1)[: self.size])
            joined = {name: values[kept] for name, values in joined.items()}
            self.limit = float(joined[""].max())
        self.held, self.waiting, self.waits = joined, [], 0

    @property
    def rows(self) -> dict[str, Array]:
        """The rows so far, with their keys under an empty name: columns [n]."""
        if self.waiting:
            self._settle()
        return self.held

    def column(self, name: str) -> Array:
        return self.rows.get(name, np.empty(0))


# ------------------------------------------------------------------ rows


@dataclass
class RowHashes:
    """The different rows of a part as hashes, with how often and where each occurs.

    Beyond `most` different rows only those are held whose inputs' hash is below a bound, halved as often as needed: all rows
    with the same inputs stay or go together, so that what is said of the rest of the rows is exact.
    """

    most: int = MOST_ROWS
    halvings: int = 0
    inputs: Array = field(default_factory=lambda: np.empty(0, np.uint64))
    rows: Array = field(default_factory=lambda: np.empty(0, np.uint64))
    counts: Array = field(default_factory=lambda: np.empty(0, np.int64))
    first: Array = field(default_factory=lambda: np.empty(0, np.int64))  # where each occurs first
    last: Array = field(default_factory=lambda: np.empty(0, np.int64))
    waiting: list[tuple[Array, Array, Array]] = field(default_factory=list)
    waits: int = 0

    def add(self, inputs: Array, rows: Array, places: Array) -> None:
        """Take rows in: the hash of their inputs, that of inputs and labels, and where they are, each [n]."""
        kept = _below(inputs, self.halvings)
        self.waiting.append((inputs[kept], rows[kept], places[kept]))
        self.waits += int(kept.sum())
        if self.waits >= self.most:
            self.settle()

    def settle(self) -> None:
        """Bring equal rows together, and halve the bound while there are too many different ones."""
        parts = [(self.inputs, self.rows, self.counts, self.first, self.last)]
        parts += [(inputs, rows, np.ones(len(rows), np.int64), places, places) for inputs, rows, places in self.waiting]
        inputs, rows, counts, first, last = (np.concatenate(columns) for columns in zip(*parts))
        self.waiting, self.waits = [], 0
        order = np.argsort(inputs)
        again = np.r_[False, inputs[order[1:]] == inputs[order[:-1]]][: len(inputs)]
        tied = order[again | np.r_[again[1:], False]]  # most often few: to sort all by both hashes would take twice the time
        order[again | np.r_[again[1:], False]] = tied[np.lexsort((rows[tied], inputs[tied]))]
        inputs, rows = inputs[order], rows[order]
        starts = np.flatnonzero(np.r_[True, (inputs[1:] != inputs[:-1]) | (rows[1:] != rows[:-1])][: len(inputs)])
        if len(starts):
            self.inputs, self.rows = inputs[starts], rows[starts]
            self.counts = np.add.reduceat(counts[order], starts)
            self.first, self.last = np.minimum.reduceat(first[order], starts), np.maximum.reduceat(last[order], starts)
        while len(self.inputs) > self.most:
            self.halvings += 1
            self._keep(_below(self.inputs, self.halvings))

    def _keep(self, mask: Array) -> None:
        for name in ("inputs", "rows", "counts", "first", "last"):
            setattr(self, name, getattr(self, name)[mask])

    def within(self, halvings: int) -> RowHashes:
        """Return what is held, once settled, below a bound that was halved so often, in the order of the inputs' hashes."""
        found = RowHashes(self.most, halvings, self.inputs, self.rows, self.counts, self.first, self.last)
        found._keep(_below(self.inputs, halvings))
        return found


def _below(hashes: Array, halvings: int) -> Array:
    return np.ones(len(hashes), bool) if not halvings else hashes < np.uint64((1 << (64 - min(halvings, 63))) - 1)


# ------------------------------------------------------------------ numbers of a distance


def js_distance(first: Array, second: Array) -> float:
    """Return the Jensen-Shannon distance of two histograms, 0 (alike) to 1 (nothing in common).

    It is the square root of the divergence in bits: J. Lin, Divergence measures based on the Shannon entropy (1991); that the
    root is a metric: Endres and Schindelin (2003).

    Args:
        first, second: counts over the same bins, [bins], each with a sum above 0.
    """
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2
    total = 0.0
    for part in (p, q):
        there = part > 0
        total += 0.5 * float((part[there] * np.log2(part[there] / middle[there])).sum())
    return math.sqrt(min(1.0, max(0.0, total)))


def chance_distance(first: int, second: int, bins: int) -> float:
    """Return the distance that two samples of one distribution exceed once in ten thousand times.

    For small differences the divergence in bits is (1 / first + 1 / second) / (8 ln 2) times a chi-squared variable with
    `bins` - 1 degrees of freedom, whose quantile is that of Wilson and Hilferty (1931).
    """
    freedom = max(1, bins - 1)
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    return min(1.0, math.sqrt((1 / first + 1 / second) * quantile / (8 * math.log(2))))


def drift(first: Array, second: Array) -> dict[str, Any] | None:
    """Return the Jensen-Shannon distance of two histograms, and what chance alone explains; None where one is empty.

    Args:
        first, second: rows over the same bins, [bins].

    Returns:
        {"distance", "chance", "drifts"}: the latter where the distance is above `DRIFT` and above chance.
    """
    sizes = int(first.sum()), int(second.sum())
    if not min(sizes):
        return None
    both = (first + second) / sum(sizes) * min(sizes)
    rare = both < 5  # too rare for the rule of chance, which counts on five rows and more: taken together
    pooled = [np.r_[histogram[~rare], histogram[rare].sum()] for histogram in (first, second)]
    bins = int(((pooled[0] + pooled[1]) > 0).sum())
    distance = js_distance(*pooled)
    chance = chance_distance(*sizes, bins) if bins > 1 else 0.0
    return {"distance": round(distance, 6), "chance": round(chance, 6), "drifts": distance >= DRIFT and distance > chance}


# ------------------------------------------------------------------ plots


def usual_range(values: Array) -> tuple[float, float]:
    """Return the range of all but one in two hundred values at each end, made wider where they are all the same."""
    low, high = (float(value) for value in np.quantile(values, (0.005, 0.995)))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def shares(values: Array, low: float, high: float, bins: int) -> Array:
    """Return the shares of values over bins of equal width, [bins]; the first and last one hold what lies beyond, too."""
    places = np.clip(((values - low) / (high - low) * bins).astype(int), 0, bins - 1)
    return np.bincount(places, minlength=bins) / max(1, len(values))


# ------------------------------------------------------------------ cells as numbers


def seconds_of(dates: Array) -> Array:
    """Return the seconds since 1970 of texts such as `2011-01-28 20:42:59 UTC`, NaN for what is none: [n] -> float64 [n]."""
    digits = dates.astype("S19").view(np.uint8).reshape(len(dates), 19) - np.uint8(ord("0"))

    def number(start: int, end: int) -> Array:
        total, good = np.zeros(len(dates), np.int32), np.ones(len(dates), bool)
        for place in range(start, end):
            total = total * 10 + digits[:, place]
            good &= digits[:, place] < 10
        return np.where(good, total, -1)

    year, month, day = number(0, 4), number(5, 7), number(8, 10)
    hour, minute, second = (np.maximum(number(start, start + 2), 0) for start in (11, 14, 17))
    good = (year >= 0) & (month >= 1) & (month <= 12) & (day >= 1)
    months = np.where(good, (year - 1970) * 12 + month - 1, 0)
    days = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) + day - 1
    return np.where(good, days * 86400.0 + hour * 3600 + minute * 60 + second, np.nan)


def image_size(content: bytes) -> tuple[int, int] | None:
    """Return (width, height) as the header of a PNG or JPEG file says; None where it does not."""
    if content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) >= 24:
        return struct.unpack(">II", content[16:24])
    place = 2
    while content.startswith(b"\xff\xd8") and place + 9 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame's header
            height, width = struct.unpack(">HH", content[place + 5 : place + 9])
            return width, height
        place += 2 + length
    return None
