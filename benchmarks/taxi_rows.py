"""Generates taxi trips for the benchmarks: the columns and spellings of the real files, values by rule of thumb."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HEADER = (
    "fare_amount", "pickup_datetime", "pickup_longitude", "pickup_latitude", "dropoff_longitude", "dropoff_latitude",
    "passenger_count", "key",
)
SHARDS = 8
EVALUATION_ROWS = 20_000


def generate(folder: Path, rows: int, seed: int = 0) -> tuple[str, str]:
    """Write `rows` rows in 8 CSV files and 20,000 for evaluation, unless they are there already.

    Returns:
        The wildcard of the training files and the path of the evaluation file.
    """
    target = folder / f"taxi-{rows}-{seed}"
    if not (target / "done").exists():
        target.mkdir(parents=True, exist_ok=True)
        for shard in range(SHARDS):
            count = rows // SHARDS + (shard < rows % SHARDS)
            _write(target / f"train-{shard}.csv", count, np.random.default_rng([seed, rows, shard]))
        _write(target / "valid.csv", EVALUATION_ROWS, np.random.default_rng([seed, rows, SHARDS]))
        (target / "done").touch()
    return str(target / "train-*.csv"), str(target / "valid.csv")


def _write(path: Path, rows: int, random: np.random.Generator) -> None:
    import pyarrow as pa
    from pyarrow import csv

    days = np.datetime64("2009-01-01T00:00:00") + random.integers(0, 6 * 365 * 86_400, 20_000).astype("timedelta64[s]")
    stamps = pa.array([f"{str(day).replace('T', ' ')} UTC" for day in days])
    places = np.array([-73.98, 40.755, -73.98, 40.755]) + random.normal(0, [0.03, 0.025, 0.04, 0.03], (rows, 4))
    places = np.round(np.clip(places, [-74.5, 40.3, -74.5, 40.3], [-73.4, 41.2, -73.4, 41.2]), 6)
    kilometres = np.hypot((places[:, 2] - places[:, 0]) * 84.3, (places[:, 3] - places[:, 1]) * 111.2)
    fares = np.round(np.maximum(2.5, 2.5 + 2.1 * kilometres + random.normal(0, 1.5, rows)), 1)
    columns = [
        fares, stamps.take(pa.array(random.integers(0, len(stamps), rows))), *places.T,
        random.choice(6, rows, p=[0.69, 0.15, 0.04, 0.02, 0.06, 0.04]) + 1, np.arange(rows),
    ]
    table = pa.table([pa.array(column) for column in columns], names=list(HEADER))
    csv.write_csv(table, path, csv.WriteOptions(include_header=True, quoting_style="none"))
