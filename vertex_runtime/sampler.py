"""The sample of evaluation rows, drawn as they are read, that the exported model is asked before it is published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .data import Chunk, concatenate, take

GATE_ROWS = 10_000
GATE_BYTES = 64 << 20  # images are fewer


class Sampler:
    """Draws a seeded sample of raw rows as they pass, at most GATE_ROWS, the awkward ones of each chunk included."""

    def __init__(self, seed: int, inputs: Mapping[str, Any]):
        self.random, self.columns = np.random.default_rng(seed), list(inputs)
        self.kept: list[tuple[np.ndarray, Chunk]] = []
        self.most = GATE_ROWS

    def add(self, chunk: Chunk) -> None:
        """Look at a chunk. Each row gets a random rank (awkward rows the best); the lowest ranks stay."""
        count = len(chunk[self.columns[0]])
        size = sum(bytes_of(chunk[name]) for name in self.columns) / max(1, count)
        self.most = max(1, min(self.most, int(GATE_BYTES / max(1, size))))
        ranks = self.random.random(count)
        for name in self.columns:
            values = chunk[name]
            if values.ndim > 1:
                continue  # an array has no awkward end
            keys = np.array([len(v) for v in values]) if values.dtype == object else values
            ranks[[int(np.argmin(keys)), int(np.argmax(keys))]] = -1.0
            if values.dtype.kind == "f":
                ranks[np.flatnonzero(np.isnan(values))[:100]] = -1.0
            if values.dtype == object and not name.endswith("_bytes"):
                ranks[[i for i, v in enumerate(values[:GATE_ROWS]) if not v.isascii()][:100]] = -1.0
        keep = np.argsort(ranks, kind="stable")[: self.most]
        self.kept.append((ranks[keep], take(chunk, keep)))
        if len(self.kept) > 8:
            self.kept = [self._merged()]

    def _merged(self) -> tuple[np.ndarray, Chunk]:
        ranks, rows = np.concatenate([r for r, _ in self.kept]), concatenate(c for _, c in self.kept)
        keep = np.sort(np.argsort(ranks, kind="stable")[: self.most])
        return ranks[keep], take(rows, keep)

    def sample(self) -> Chunk:
        """Return the rows that were drawn, in the order in which they passed."""
        return self._merged()[1]


def bytes_of(values: np.ndarray) -> int:
    """Return the bytes of a raw column's cells."""
    return sum(map(len, values)) if values.dtype == object and values.ndim == 1 else values.nbytes
