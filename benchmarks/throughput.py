#!/usr/bin/env python3
"""How fast the taxifare trainer trains, starts and checkpoints, and what memory it takes, beside a named baseline.

The trainer runs as its users start it, with default callbacks, checkpoints and evaluation; the baseline is
`baseline.py`. Fresh processes take turns. Every ratio is of two figures of the same run. All of it, about an hour:

    python benchmarks/throughput.py --folder /tmp/taxi-benchmark --json throughput.json
"""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from processes import ROOT, Run, Spread, measure_chosen, parser, print_table, run, trainer, windows
from startup import measure_startup
from taxi_rows import generate

LAB = ("--features=lab", "--nbuckets", 10, "--nnsize", "32 8", "--lr", 0.001)
REQUIRED = {32: (2.5, 8), 256: (8, 25), 1024: (18, 45), 4096: (45, 100)}  # batch size: (at least, worth reaching for)
TINY_ROWS = 20_000


def train_ours(args: Namespace, rows: int, batch_size: int, examples: int, evaluations: int, flags: Sequence[object]) -> Run:
    """Run the trainer in a fresh output directory, which is removed afterwards."""
    train, valid = generate(args.folder, rows)
    output = args.folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    command = trainer(
        "taxifare", "--train_data_path", train, "--eval_data_path", valid, "--output_dir", output, "--batch_size", batch_size,
        "--num_examples_to_train_on", examples, "--num_evals", evaluations, *flags,
    )  # fmt: skip
    finished = run(command, args.folder / "logs")
    shutil.rmtree(output)
    return finished


def train_baseline(args: Namespace, batch_size: int, *flags: object) -> Run:
    train, valid = generate(args.folder, args.rows)
    words = ("--train", train, "--valid", valid, "--batch_size", batch_size, "--columns", args.columns, *flags)
    return run([sys.executable, str(ROOT / "benchmarks" / "baseline.py"), *map(str, words)], args.folder / "logs")


def steady(args: Namespace) -> dict[str, Any]:
    """Examples/s between evaluations, the first window dropped: the lab's network, and at 1024 what else there is."""
    rates: dict[tuple[int, str], list[float]] = {}
    notes: list[dict[str, Any]] = []
    for repeat in range(args.repeats):
        for batch_size in args.batches:
            arms = {"baseline": None, "lab": LAB}
            if not args.no_jit:
                arms |= {"lab --jit_compile=yes": (*LAB, "--jit_compile=yes")}
            if batch_size == 1024:
                arms |= {"lab --in_memory=no": (*LAB, "--in_memory=no"), "default network": ()}
            for name, flags in arms.items():
                found, extra = one_steady(args, batch_size, flags)
                rates.setdefault((batch_size, name), []).append(Spread(found).median)
                notes.append({"repeat": repeat, "batch": batch_size, "arm": name, "windows": found, **extra})
                rate = f"{rates[batch_size, name][-1]:,.0f} examples/s"
                print(f"  {batch_size:5d} {name}: {rate}, foreign CPU {extra['foreign']:.2f}", file=sys.stderr)
    table, ratios = [], {}
    for (batch_size, name), values in rates.items():
        base = rates[batch_size, "baseline"]
        ratio = Spread([mine / theirs for mine, theirs in zip(values, base)])
        goal = REQUIRED.get(batch_size, ("", ""))
        goal = (9, "") if "in_memory" in name else (8, "") if "default" in name else goal if name != "baseline" else ("", "")
        table.append((batch_size, name, f"{Spread(values):,.0f}", f"{ratio:.1f}", *goal))
        ratios[f"{batch_size} {name}"] = {"examples_per_second": values, "ratio": ratio.values}
    header = ("batch", "arm", "examples/s, median [range]", "x baseline", "at least", "worth reaching for")
    print_table(f"Steady state, {args.rows:,} rows, {args.repeats} fresh processes each", header, table)
    return {"arms": ratios, "runs": notes}


def one_steady(args: Namespace, batch_size: int, flags: Sequence[object] | None) -> tuple[list[float], dict[str, Any]]:
    """Return examples/s of each window but the first of one fresh process, and what else is known of it."""
    count = args.windows + 1
    if flags is None:
        steps = max(1, round(min(75_000, 900 * batch_size) * args.window_seconds / batch_size))
        finished = train_baseline(args, batch_size, "--steps", steps, "--windows", count)
        return finished.last_line()["examples_per_second"][1:], {"foreign": finished.foreign, "peak": finished.peak_bytes}
    steps = max(2, round(min(3_000_000, 6000 * batch_size) * args.window_seconds / batch_size))
    finished = train_ours(args, args.rows, batch_size, steps * count * batch_size, count, flags)
    training, whole = windows(finished.events, batch_size)
    extra = {"foreign": finished.foreign, "peak": finished.peak_bytes, "with_evaluation": whole}
    return training, extra


def epoch(args: Namespace) -> dict[str, Any]:
    """One epoch at batch 1024 from the start of the process to metrics and exported model, both sides."""
    seconds: dict[str, list[float]] = {"baseline": [], "lab": [], "lab --in_memory=no": [], "default network": []}
    for _ in range(args.repeats):
        exported = args.folder / "exported"
        shutil.rmtree(exported, ignore_errors=True)
        finished = train_baseline(args, 1024, "--export", exported)
        seconds["baseline"].append(finished.last_line()["end"] - finished.start)
        for name, flags in (("lab", LAB), ("lab --in_memory=no", (*LAB, "--in_memory=no")), ("default network", ())):
            seconds[name].append(train_ours(args, args.rows, 1024, args.rows, 1, flags).until("end"))
    table = []
    for name, values in seconds.items():
        ratio = Spread([theirs / mine for mine, theirs in zip(values, seconds["baseline"])])
        table.append((name, f"{Spread(values):.2f}", f"{ratio:.2f}", 3 if name == "lab" else ""))
    header = ("arm", "seconds, median [range]", "x faster than baseline", "at least")
    print_table(f"One epoch of {args.rows:,} rows at batch 1024, from process start to metrics and export", header, table)
    return seconds


def memory(args: Namespace) -> dict[str, Any]:
    """Peak memory of one epoch at batch 1024 for three sizes of data."""
    table, found = [], {}
    arms = {"lab": (LAB, 120), "default network": ((), 250), "lab --in_memory=no": ((*LAB, "--in_memory=no"), None)}
    for name, (flags, limit) in arms.items():
        peaks = {}
        for rows in (TINY_ROWS, args.rows, args.more_rows):
            forced = flags if "--in_memory=no" in flags else (*flags, "--in_memory=yes")
            peaks[rows] = train_ours(args, rows, 1024, rows, 1, forced).peak_bytes
        tiny, some, more = peaks.values()
        pairs = (((tiny, TINY_ROWS), (some, args.rows)), ((some, args.rows), (more, args.more_rows)))
        per_row = [(high - low) / (rows - fewer) for (low, fewer), (high, rows) in pairs]
        goal = f"at most {limit} bytes/row" if limit else "at most 1.15 times"
        cells = [f"{peak / 2**20:,.0f}" for peak in peaks.values()] + [f"{value:.0f}" for value in per_row]
        table.append((name, *cells, f"{more / some:.3f}", goal))
        found[name] = {"peak_bytes": list(peaks.items()), "bytes_per_row": per_row}
    sizes = (TINY_ROWS, args.rows, args.more_rows)
    spans = [f"{low:,} to {high:,}" for low, high in zip(sizes, sizes[1:])]
    header = ("arm", *(f"MiB, {rows:,}" for rows in sizes), *(f"bytes/row, {span}" for span in spans), "largest : middle", "goal")
    print_table("Peak memory, one epoch at batch 1024", header, table)
    return found


def checkpoint(args: Namespace) -> dict[str, Any]:
    """How long a checkpoint of 100 MB of weights and 200 MB of Adam's moments holds training up."""
    script = str(ROOT / "benchmarks" / "checkpoint_stall.py")
    found = run([sys.executable, script, "--folder", str(args.folder)], args.folder / "logs").last_line()
    table = []
    blocking = Spread(entry["stall"] for entry in found["blocking"]).median
    for name in ("background", "blocking", "keras_blocking"):
        keys = ("call", "next_step", "usual_step", "stall", "durable")
        columns = [Spread([1000 * entry[key] for entry in found[name]]) for key in keys]
        goal = "at most 0.1" if name == "background" else ""
        table.append((name, *(f"{column:.0f}" for column in columns), f"{columns[3].median / 1000 / blocking:.3f}", goal))
    header = ("save", "call ms", "next step ms", "usual step ms", "stall ms", "durable after ms", "stall : blocking", "goal")
    print_table(f"Checkpoint of {found['state_bytes'] / 1e6:.0f} MB, median [range] of {len(found['blocking'])}", header, table)
    return found


def startup(args: Namespace) -> dict[str, Any]:
    """See `startup.py`."""
    return measure_startup(args.folder, max(5, args.repeats))


def main() -> None:
    """Measure what `--arms` names and print a table for each."""
    made = parser(__doc__)
    made.add_argument("--batches", nargs="+", type=int, default=list(REQUIRED), help="batch sizes of the steady arm")
    made.add_argument("--rows", type=int, default=1_000_000)
    made.add_argument("--more_rows", type=int, default=4_000_000, help="rows of the memory arm's largest data")
    made.add_argument("--windows", type=int, default=3, help="windows that count, of each process")
    made.add_argument("--window_seconds", type=float, default=2.0, help="about how long a window lasts")
    made.add_argument("--columns", choices=("used", "all"), default="used", help="columns that the baseline parses")
    made.add_argument("--no_jit", action="store_true", help="leave the arms with --jit_compile=yes out")
    measure_chosen(made, {"steady": steady, "epoch": epoch, "memory": memory, "startup": startup, "checkpoint": checkpoint})


if __name__ == "__main__":
    main()
