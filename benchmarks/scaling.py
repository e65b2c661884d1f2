#!/usr/bin/env python3
"""Predict a step's time, examples per second and cost on more workers than one machine can run.

    python benchmarks/scaling.py            # prints the tables of docs/scaling.md, which explains them

The measured figures below are those of two cores of an AMD EPYC with TensorFlow 2.21, from `benchmarks/cluster.py --arms
collective` and from trainers run alone without XLA, as they are on several workers. Nothing here was run on a cluster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WORKERS = (1, 8, 64, 512)
# Measured between two processes that share the two cores: milliseconds until one number has been summed (two hops of the
# ring) and until one table row of each has reached the other (three gathers of one hop), and bytes per millisecond of
# sums and gathers of 8 to 17 MB. The last is what TensorFlow's collectives over gRPC move with one core each.
HOP, GATHER_HOP, BYTES = 0.892 / 2, 1.955 / 3, 0.43e6
TRAVEL_BYTES = 256 << 10  # as in vertex_runtime/sparse.py: a worker's rows that travel in the sum of the dense gradients
# n1-standard-8, the page "Network bandwidth" of Compute Engine's documentation: 16 Gbps. It is not the limit.
NETWORK = 16e9 / 8 / 1e3
# n1-standard-4 in us-central1, USD an hour; vertex_local/check/prices.yaml has the source and its date.
PRICE = 0.21849885


@dataclass(frozen=True)
class Trainer:
    """What one step of a trainer costs and sends.

    Attributes:
        milliseconds: of one process alone, by its batch; measured.
        dense: floats summed over the workers in each step.
        row_floats: floats of an example's share of a table's gradient, row numbers included; 0: no sparse gradient.
    """

    name: str
    default_batch: int
    milliseconds: dict[int, float]
    dense: int
    row_floats: int

    def compute(self, batch: float) -> float:
        """Return the milliseconds of a step on one machine: between two measurements a straight line, beyond them its slope."""
        sizes = sorted(self.milliseconds)
        upper = next((i for i in range(1, len(sizes)) if batch <= sizes[i]), len(sizes) - 1)
        a, b = sizes[upper - 1], sizes[upper]
        slope = (self.milliseconds[b] - self.milliseconds[a]) / (b - a)
        return self.milliseconds[a] + slope * (max(batch, sizes[0]) - a)

    def step(self, workers: int, batch: int) -> tuple[float, float]:
        """Return milliseconds of computing and of collectives in a step of `batch` examples over all workers."""
        if workers == 1:
            return self.compute(batch), 0.0
        rate = min(BYTES, NETWORK)
        travel = 4 * batch / workers * self.row_floats <= TRAVEL_BYTES
        floats = self.dense + (batch * self.row_floats if travel else 0)
        summed = 2 * (workers - 1) * HOP + 2 * (workers - 1) / workers * 4 * floats / rate if floats else 0.0
        gathered = 0.0
        if self.row_floats and not travel:  # every worker gets all others' rows, the values and their numbers one after the other
            gathered = 3 * (workers - 1) * GATHER_HOP + (workers - 1) / workers * 4 * batch * self.row_floats / rate
        return self.compute(batch / workers), summed + gathered


TRAINERS = (
    # 43 x 256 + 256 + 4 x 64 + 4 weights, and the row of one of 14,641 pairs of cells for each example.
    Trainer("taxifare", 240, {8: 0.31, 60: 0.33, 240: 0.50, 1024: 1.35, 4096: 4.50}, 11_524, 2),
    # 165 n-grams of a title, each a row of 20 classes.
    Trainer("stackoverflow", 60, {8: 0.37, 60: 0.94, 240: 4.6, 1024: 22.8}, 0, 165 * 21),
)


def rows(trainer: Trainer, batches: Sequence[int]) -> list[str]:
    """Return the table rows of a trainer for each number of workers and the global batch that goes with it."""
    lines = []
    for workers, batch in zip(WORKERS, batches):
        compute, collective = trainer.step(workers, batch)
        total = compute + collective
        rate = 1000 * batch / total
        seconds = workers * 1e6 / rate
        cells = (
            workers, f"{batch:,}", f"{compute:.2f}", f"{collective:,.1f}", f"{rate:,.0f}",
            f"{seconds:,.1f}", f"{seconds / 3600 * PRICE:,.4f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def tables() -> list[str]:
    """Return the tables of docs/scaling.md, line by line."""
    lines = []
    header = "workers | global batch | computing, ms | collectives, ms | examples/s | machine-seconds per million | USD per million"
    for trainer in TRAINERS:
        fixed = [math.ceil(trainer.default_batch / n) * n for n in WORKERS]
        share = 4096 if trainer.name == "taxifare" else 240
        for title, batches in (
            (f"{trainer.name}, predicted, the default batch of {trainer.default_batch} split over the workers", fixed),
            (f"{trainer.name}, predicted, {share} examples per worker", [share * n for n in WORKERS]),
        ):
            lines += [f"**{title}:**", "", f"| {header} |", "|" + "---|" * 7, *rows(trainer, batches), ""]
    return lines


if __name__ == "__main__":
    print("\n".join(tables()))
