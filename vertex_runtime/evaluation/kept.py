"""What is kept of the evaluated rows: up to a million of them as numbers, all where there are no more, and some rows whole.

Columns are kept as numbers, too: dates as seconds, texts by their length, categories by the place of the value. Beyond the
limit the rows are a seeded sample, each as likely as any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..columns import Column
from ..data import PATH, Chunk, concatenate, take
from ..data_report import sketches
from ..data_report.parts import kind_of
from ..rows import rows_of

ROWS, CELLS = 1_000_000, 24_000_000  # rows, and numbers, that are kept at most
LEAST = 10_000  # rows that are kept however many numbers each is
VALUES = 1000  # different values of a category that are told apart
EXAMPLES = 24  # rows that are kept whole for each reason


@dataclass
class KeptColumn:
    """A column as numbers. `kind`: number, date, text, image or category; `names` are a category's values by their places."""

    kind: str
    names: list[str] = field(default_factory=list)
    places: dict[bytes, int] = field(default_factory=dict)

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """Return cells as float64 [rows]: NaN for a missing one; of a category its place, -1 for a value beyond those told apart."""
        if self.kind == "number":
            flat = values.reshape(len(values), -1)
            return flat[:, 0].astype(np.float64) if flat.shape[1] else np.full(len(values), np.nan)
        texts = sketches.as_bytes(values)
        if self.kind == "date":
            return sketches.seconds_of(texts)
        if self.kind == "text":
            lengths = np.fromiter(map(len, texts), np.float64, len(texts))
            return np.where(lengths > 0, lengths, np.nan)
        if self.kind == "image":
            sizes = [sketches.image_size(content) for content in texts]
            return np.array([float(size[0] * size[1]) if size else np.nan for size in sizes])
        return self._places(texts)

    def _places(self, texts: np.ndarray) -> np.ndarray:
        found, inverse = np.unique(texts.astype(bytes), return_inverse=True)
        numbers = np.full(len(found), -1.0)
        for i, value in enumerate(found.tolist()):
            if not value:
                numbers[i] = np.nan
                continue
            if value not in self.places and len(self.names) < VALUES:
                self.places[value] = len(self.names)
                self.names.append(value.decode("utf-8", "replace"))
            numbers[i] = self.places.get(value, -1)
        return numbers[inverse]


class Kept:
    """Keeps judged rows with their columns as they pass."""

    def __init__(self, columns: Sequence[Column], seed: int):
        self.known = {column.name: column for column in columns}
        self.columns: dict[str, KeptColumn] = {}
        self.sample = sketches.RowSample(seed, ROWS)
        self.rows = 0

    def add(self, chunk: Mapping[str, np.ndarray], judged: Mapping[str, np.ndarray]) -> None:
        """Take rows in: their columns [rows, ...], raw and derived ones, and what was judged [rows] or [rows, n]."""
        count = rows_of(chunk)
        columns = {name: values for name, values in chunk.items() if not name.startswith("_") and self._column(name, values)}
        numbers = {f"column {name}": self.columns[name].numbers(values) for name, values in columns.items()}
        if not self.rows:
            cells = len(numbers) + sum(values[0].size for values in judged.values())
            self.sample.size = max(LEAST, min(ROWS, CELLS // max(1, cells)))
        self.rows += count
        self.sample.add({**numbers, **judged})

    def _column(self, name: str, values: np.ndarray) -> bool:
        if name not in self.columns:
            kind = kind_of(self.known.get(name), values, False)
            if kind == "text" and values.dtype.kind in "OSU" and self.known.get(name) is None:
                kind = "category"  # a derived quantity
            self.columns[name] = KeptColumn("number" if kind == "array" and values.size == len(values) else kind)
        return self.columns[name].kind != "array"

    def column(self, name: str) -> np.ndarray:
        """Return a column of the rows kept, as numbers, or what was judged of them."""
        return self.sample.column(f"column {name}" if name in self.columns else name)

    @property
    def judged(self) -> dict[str, np.ndarray]:
        """What was judged of the rows kept, by name."""
        return {name: values for name, values in self.sample.rows.items() if name and not name.startswith("column ")}

    @property
    def whole(self) -> bool:
        """Tell whether all rows are kept."""
        return self.rows == len(self.sample.column(""))


class Examples:
    """Keeps the rows with the largest of some numbers, raw, with what was judged of them."""

    def __init__(self, most: int = EXAMPLES):
        self.most = most
        self.ranks, self.rows, self.judged = np.empty(0), {}, {}

    def add(self, ranks: np.ndarray, chunk: Chunk, judged: Mapping[str, np.ndarray]) -> None:
        """Offer rows, by their ranks [rows]: those of NaN are not meant."""
        meant = np.flatnonzero(~np.isnan(ranks))
        if len(self.ranks) == self.most:
            meant = meant[ranks[meant] > self.ranks.min()]
        if not len(meant):
            return
        best = meant[np.argsort(-ranks[meant], kind="stable")[: self.most]]
        chunk = {name: values for name, values in chunk.items() if not name.startswith("_") or name == PATH}
        parts = [(self.ranks, self.rows, self.judged)] if len(self.ranks) else []
        parts.append((ranks[best], take(chunk, best), take(dict(judged), best)))
        joined = np.concatenate([part[0] for part in parts])
        rows, judged = concatenate(part[1] for part in parts), concatenate(part[2] for part in parts)
        keep = np.argsort(-joined, kind="stable")[: self.most]
        self.ranks, self.rows, self.judged = joined[keep], take(rows, keep), take(judged, keep)

    def listed(self) -> list[dict[str, Any]]:
        """Return the rows in their order: {"row": {column: cell}, "judged": {name: number}}."""

        def of(i: int, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
            return {name: values[i] for name, values in columns.items()}

        return [{"row": of(i, self.rows), "judged": of(i, self.judged)} for i in range(len(self.ranks))]
