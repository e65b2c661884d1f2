#!/usr/bin/env python3
"""Compare flags of a trainer on its training rows alone: repeated random splits, the same ones for each set of flags.

Choose by this, and look at the validation rows once, for what was chosen. Each `--` begins a set of flags to compare with the defaults:

    python benchmarks/cross_validation.py taxifare --data fares.csv -- --members=8 -- --lr=0.01 --epochs=20
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import math
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from processes import keep, print_table

from vertex_runtime.errors import UserError, run_as_program

Train = Callable[[list[str]], dict[str, float]]


def score(train: Train, data: str, fraction: float, seed: int, flags: Sequence[str]) -> dict[str, float]:
    """Train on the rows that `seed` does not hold out; return the metrics, `val_*` on those that it does."""
    split = [f"--train_data_path={data}", f"--eval_fraction={fraction}", f"--seed={seed}", "--num_evals=1"]
    with tempfile.TemporaryDirectory() as folder:
        return quietly(train, [f"--output_dir={folder}/run", *split, *flags])


def quietly(train: Train, flags: list[str]) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        return train(flags)


def compare(trainer: str, data: str, splits: int, metric: str | None, sets: Sequence[Sequence[str]]) -> tuple[str, dict[str, list[float]]]:
    """Return the metric's name and, by set of flags, its value on each split.

    Raises:
        UserError: there is no such trainer or metric, or the trainer refuses a flag or the data.
    """
    try:
        train: Train = importlib.import_module(f"{trainer}.trainer.task").main
    except ModuleNotFoundError as error:
        raise UserError(f"{trainer}: no {error.name} here. Name a folder that holds trainer/task.py, such as taxifare.") from None
    for flags in sets:  # before the first of them is trained for minutes
        quietly(train, ["--plan=flags", *flags])
    found: dict[str, list[float]] = {}
    for flags in sets:
        name = shlex.join(flags) or "defaults"
        for seed in range(splits):
            metrics = score(train, data, 1 / splits, seed, flags)
            metric = metric or importlib.import_module(f"{trainer}.trainer.model").OBJECTIVE
            if metric not in metrics:
                raise UserError(f"--metric: {trainer} has no {metric}; give one of {', '.join(metrics)}.")
            found.setdefault(name, []).append(metrics[metric])
        print(f"{name}: {spread(found[name])}", file=sys.stderr)
    return str(metric), found


def spread(values: Sequence[float]) -> str:
    """Return mean and standard error; the splits share rows, so that the true error is somewhat larger."""
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) / math.sqrt(len(values)):.4f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Train every set of flags on every split and print the table."""
    usage = "%(prog)s TRAINER --data DATA [--splits N] [--metric NAME] [--json FILE] -- FLAGS [-- FLAGS]"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage=usage)
    parser.add_argument("trainer", help="taxifare, stackoverflow or one of your own")
    parser.add_argument("--data", required=True, help="training rows: a file, wildcard, folder or table, as --train_data_path takes it")
    parser.add_argument("--splits", type=int, default=5, help="how many; each holds out one row in so many")
    parser.add_argument("--metric", help="default: the trainer's OBJECTIVE")
    parser.add_argument("--json", type=Path, help="write every score to this file")
    words = sys.argv[1:] if argv is None else argv
    own, *sets = [list(part) for dashes, part in itertools.groupby(words, "--".__eq__) if not dashes] or [[]]
    args = parser.parse_args(own)
    if args.splits < 2:
        raise UserError(f"--splits: needs 2 or more; got {args.splits}.")
    metric, found = compare(args.trainer, args.data, args.splits, args.metric, [[], *sets])
    first = found["defaults"]
    rows = [(name, spread(each), spread([a - b for a, b in zip(each, first)])) for name, each in found.items()]
    print_table(f"{args.trainer}: {args.splits} splits of {args.data}", ("flags", metric, "less the defaults"), rows)
    keep(args.json, found)


if __name__ == "__main__":
    run_as_program(main)
