#!/usr/bin/env python3
"""Data larger than memory: rates of the first and second epoch, memory, the first step, and how good the shuffle is.

Every ratio is of two fresh processes that took turns in the same run: rows from a cache on disk beside rows in memory, a
sorted file beside the same rows in random order. All of it takes about half an hour and 8 GB of disk:

    python benchmarks/large_data.py --folder /tmp/taxi-benchmark --json large_data.json
"""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from processes import ROOT, Run, Spread, measure_chosen, parser, print_table, run, trainer
from taxi_rows import generate

LAB = ("--features=lab", "--nbuckets=10", "--nnsize=32 8", "--lr=0.001", "--batch_size=1024")


def train(args: Namespace, name: str, *flags: object) -> tuple[Run, dict[str, float]]:
    """Train in a fresh output directory, which is removed afterwards; return the process and the metrics."""
    output = args.folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    finished = run(trainer(name, f"--output_dir={output}", *flags), args.folder / "logs")
    metrics = json.loads((output / "metrics.json").read_text())
    shutil.rmtree(output)
    return finished, metrics


def epochs(finished: Run, batch_size: int) -> list[float]:
    """Return examples/s of each stretch that ended with an evaluation, from its first finished call to that evaluation."""
    found, first = [], None
    for event in finished.events:
        if event["phase"] == "step" and first is None:
            first = event
        elif event["phase"] == "evaluation" and first is not None:
            found.append((event["step"] - first["step"]) * batch_size / (event["time"] - first["time"]))
            first = None
    return found


def compare(args: Namespace, title: str, name: str, batch_size: int, flags: Sequence[object], limit: float) -> dict[str, Any]:
    """Train two epochs with the rows in memory and in a cache on disk, in turn; print rates, ratios and peak memory."""
    kinds = {"in memory": "yes", "on disk": "no"}
    rates: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    peaks: dict[str, list[float]] = {kind: [] for kind in kinds}
    scores: dict[str, set[str]] = {kind: set() for kind in kinds}
    for _ in range(args.repeats):
        for kind, memory in kinds.items():
            finished, metrics = train(args, name, *flags, "--epochs=2", "--num_evals=2", f"--in_memory={memory}")
            rates[kind].append(epochs(finished, batch_size))
            peaks[kind].append(finished.peak_bytes / 2**20)
            scores[kind].add(json.dumps({k: v for k, v in metrics.items() if k.startswith("val_")}))
            listed = ", ".join(f"{rate:,.0f}" for rate in rates[kind][-1])
            print(f"  {name} {kind}: {listed} examples/s, foreign CPU {finished.foreign:.2f}", file=sys.stderr)
    table = []
    for i, (epoch, goal) in enumerate((("first", 0.5), ("second", 0.8))):
        ratio = Spread([disk[i] / memory[i] for disk, memory in zip(rates["on disk"], rates["in memory"])])
        cells = [f"{Spread([each[i] for each in rates[kind]]):,.0f}" for kind in kinds]
        table.append((epoch, *cells, f"{ratio:.2f}", goal))
    table.append(("peak MiB", *(f"{Spread(peaks[kind]):,.0f}" for kind in kinds), "", f"at most {limit:,.0f}"))
    print_table(title, ("epoch", "in memory, examples/s", "on disk, examples/s", "ratio", "at least"), table)
    same = scores["in memory"] == scores["on disk"]
    print(f"\nmetrics of both: {'the same to the last digit' if same else 'DIFFERENT'}")
    return {"rates": rates, "peaks": peaks, "same": same}


def taxi(args: Namespace) -> dict[str, Any]:
    """Twenty million trips, the lab's network: the fastest there is, so that reading shows most."""
    rows, valid = generate(args.folder, args.rows)
    flags = (*LAB, f"--train_data_path={rows}", f"--eval_data_path={valid}")
    return compare(args, f"taxifare, {args.rows:,} rows, batch 1024", "taxifare", 1024, flags, 1536)


def titles(args: Namespace) -> dict[str, Any]:
    """A million titles, made of real ones where those are at hand."""
    folder = args.folder / f"titles-{args.titles}"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = args.source or ROOT / "stackoverflow/tests/data/train.csv"
        lines = [line for line in source.read_text().splitlines()[1:] if line and line.count('"') % 2 == 0]
        with open(folder / "train.csv", "w") as file:
            file.write("text,label\n")
            for i in range(args.titles):
                line = lines[i % len(lines)]
                file.write((f'"{i} ' + line[1:] if line.startswith('"') else f"{i} {line}") + "\n")
        with open(folder / "valid.csv", "w") as file:
            file.write("\n".join(["text,label", *lines[:2000]]) + "\n")
        (folder / "done").touch()
    flags = (f"--train_data_path={folder}/train.csv", f"--eval_data_path={folder}/valid.csv", "--batch_size=60")
    title = f"stackoverflow, {args.titles:,} titles, batch 60"
    return compare(args, title, "stackoverflow", 60, flags, 10_000)


def start(args: Namespace) -> dict[str, Any]:
    """Seconds to the first finished step of many rows and of few."""
    seconds: dict[int, list[float]] = {args.rows: [], 20_000: []}
    for _ in range(args.repeats):
        for rows, found in seconds.items():
            files, valid = generate(args.folder, rows)
            flags = (*LAB, f"--train_data_path={files}", f"--eval_data_path={valid}", "--num_examples_to_train_on=10240", "--num_evals=1")
            found.append(train(args, "taxifare", *flags)[0].until("step"))
    more = Spread([many - few for many, few in zip(*seconds.values())])
    table = [(f"{rows:,}", f"{Spread(found):.2f}") for rows, found in seconds.items()]
    print_table("Seconds to the first finished step", ("rows", "seconds"), table)
    print(f"\ndifference: {more:.2f} s (at most 5)")
    return {str(rows): found for rows, found in seconds.items()}


def sorted_file(args: Namespace) -> dict[str, Any]:
    """The same rows sorted by label and in random order, one epoch: the validation metric tells how good the shuffle is."""
    import pyarrow as pa
    from pyarrow import csv

    files, valid = generate(args.folder, args.sorted_rows)
    target = args.folder / f"taxi-{args.sorted_rows}-sorted.csv"
    if not target.exists():
        paths = sorted(Path(files).parent.glob(Path(files).name))
        table = pa.concat_tables([csv.read_csv(path) for path in paths]).sort_by("fare_amount")
        csv.write_csv(table, target, csv.WriteOptions(quoting_style="none"))
    found: dict[str, list[float]] = {"random order": [], "sorted by fare": []}
    for seed in range(args.repeats):
        for name, path in (("random order", files), ("sorted by fare", target)):
            flags = (*LAB, f"--train_data_path={path}", f"--eval_data_path={valid}", "--epochs=1", "--num_evals=1", f"--seed={seed}")
            found[name].append(train(args, "taxifare", *flags, "--in_memory=no")[1]["val_rmse"])
    table = [(name, f"{Spread(values):.4f}") for name, values in found.items()]
    print_table(f"val_rmse after one epoch of {args.sorted_rows:,} rows, {args.repeats} seeds", ("file", "val_rmse"), table)
    return found


def main() -> None:
    """Measure what `--arms` names and print a table for each."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=20_000_000, help="trips")
    made.add_argument("--titles", type=int, default=1_000_000)
    made.add_argument("--sorted_rows", type=int, default=10_000_000)
    made.add_argument("--source", type=Path, help="a file of real titles: text,label")
    measure_chosen(made, {"taxi": taxi, "titles": titles, "start": start, "sorted": sorted_file})


if __name__ == "__main__":
    main()
