#!/usr/bin/env python3
"""Measure what docs/measured.md and the trainers' READMEs say and write it there: speed beside a baseline, seconds of an epoch, quality.

Run it on a quiet machine; about twenty minutes. `docs/measured.json` keeps every figure, from which `--render` writes the pages anew:

    python benchmarks/measured.py --folder /tmp/taxi-benchmark
    python benchmarks/measured.py --render
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from processes import ROOT, Spread, lines, mean_and_range, real_files

PAGE, FIGURES = ROOT / "docs" / "measured.md", ROOT / "docs" / "measured.json"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
BATCHES = (32, 256, 1024, 4096)
NETWORKS = {"baseline": "baseline", "lab": "lab", "lab --in_memory=no": "lab, rows on disk", "default network": "default"}
QUALITY = {
    "taxifare": ("validation RMSE", ", dollars, of seeds", 3, "7,333 trips, validated on 4,706 others"),
    "stackoverflow": ("accuracy", ", of splits", 4, "12,788 titles of 20 tags, validated on 3,197 others"),
}  # by trainer: the metric, what a README says more of it, its digits, the data
QUIET = 0.5  # load average above which figures would not be those of this project


def render(figures: Mapping[str, Any]) -> str:
    """Return the measured part of the page."""
    machine = figures["machine"]
    parts = [
        f"{machine['cpu']}, {machine['cpus']} cores, no GPU; Python {machine['python']}, TensorFlow {machine['tensorflow']}, "
        f"Keras {machine['keras']}; {figures['day']}, load average {machine['load']:.1f} before the start.",
        _speed(figures["steady"]), _epoch(figures["epoch"]), _quality(figures["quality"]),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _speed(arms: Mapping[str, Any]) -> str:
    rows = []
    for batch in BATCHES:
        base = arms[f"{batch} baseline"]["examples_per_second"]
        for name in NETWORKS:
            if name != "baseline" and (found := arms.get(f"{batch} {name}")):
                ours = found["examples_per_second"]
                spreads = [f"{Spread(each):,.0f}" for each in (base, ours, [mine / theirs for mine, theirs in zip(ours, base)])]
                best = statistics.median(ours) / max(base)
                rows.append((f"{batch:,}", NETWORKS[name], *spreads[:2], f"**{best:.0f}**", spreads[2]))
    repeats = len(arms[f"{BATCHES[0]} baseline"]["examples_per_second"])
    header = ("batch", "network", "baseline, examples/s", "this trainer, examples/s", "times the baseline's best", "times, pair by pair")
    return (
        f"Steady training of taxifare on a million rows: medians and [ranges] of {repeats} fresh processes each, in turn. The baseline is\n"
        "`make_csv_dataset` with Keras `fit` of the same features as layers (`benchmarks/baseline.py`).\n\n" + _table(header, rows)
    )


def _epoch(seconds: Mapping[str, Sequence[float]]) -> str:
    base = seconds["baseline"]
    rows = [
        (NETWORKS[name], f"{Spread(values):,.1f}", f"{min(base) / statistics.median(values):.1f}" if name != "baseline" else "")
        for name, values in seconds.items()
    ]
    header = ("network", "seconds", "times the baseline's best")
    return "One epoch at batch 1,024 from the start of the process to metrics and exported model:\n\n" + _table(header, rows)


def _quality(quality: Mapping[str, Any]) -> str:
    rows = [
        (name, metric, _mean(scores["valid"], digits), f"{Spread(scores['seconds']):,.1f}")
        for trainer, (metric, _, digits, _) in QUALITY.items()
        for name, scores in quality[trainer].items()
    ]
    header = ("model", "metric", "mean [range]", "seconds of training")
    return "Real data, default flags, beside scikit-learn's models (`benchmarks/quality.py`):\n\n" + _table(header, rows)


def results(trainer: str, figures: Mapping[str, Any]) -> str:
    """Return the measured part of a trainer's README."""
    scores = figures["quality"][trainer][f"{trainer}, defaults"]
    metric, more, digits, data = QUALITY[trainer]
    row = (data, _mean(scores["valid"], digits), f"{Spread(scores['seconds']):,.1f} s, {figures['machine']['cpus']} cores")
    return _table(("real data, default flags", metric + more, "training"), [row])


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{mean_and_range(values, digits)} of {len(values)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return lines([header, ["---"] * len(header), *rows])


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Run the benchmarks and return their figures.

    Raises:
        SystemExit: the real data is not here.
    """
    real_files(None, *QUALITY)
    load = os.getloadavg()[0]
    if load > QUIET:
        print(f"note: the load average is {load:.1f}; the figures will say so", file=sys.stderr)
    batches = list(map(str, BATCHES))
    found = _run(folder, "throughput.py", "--folder", str(folder), "--arms", "steady", "epoch", "--batches", *batches,
                 "--repeats", str(repeats), "--no_jit")  # fmt: skip
    quality = _run(folder, "quality.py", "--no_lab")
    machine = {**found["machine"], "cpu": _cpu(), "load": load}
    arms = {name: {"examples_per_second": arm["examples_per_second"]} for name, arm in found["steady"]["arms"].items()}
    kept = {trainer: quality[trainer] for trainer in QUALITY}
    return {"day": time.strftime("%Y-%m-%d"), "machine": machine, "steady": arms, "epoch": found["epoch"], "quality": kept}


def _run(folder: Path, name: str, *flags: str) -> Any:
    """Run a benchmark and return what it writes."""
    report = folder / "report.json"
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / name), *flags, "--json", str(report)], check=True)
    return json.loads(report.read_text())


def _cpu() -> str:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition("@")[0].strip() if names else "unknown CPU"


def _rounded(value: Any) -> Any:
    """Return figures to six digits: what is kept is read by people, too."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def pages(figures: Mapping[str, Any]) -> dict[Path, str]:
    """Return what each page says when its measured part is rendered from figures."""
    parts = {PAGE: render(figures), **{ROOT / trainer / "README.md": results(trainer, figures) for trainer in QUALITY}}
    return {path: page(path.read_text(encoding="utf-8"), part) for path, part in parts.items()}


def page(text: str, part: str) -> str:
    """Return a page with another measured part.

    Raises:
        ValueError: the page has no place for them.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{part}\n{END}{after}"


def main() -> None:
    """Measure, unless --render is given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--folder", type=Path, help="working directory: generated data (kept), logs, outputs")
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes of each kind, taking turns")
    parser.add_argument("--render", action="store_true", help="write the page from docs/measured.json, measure nothing")
    args = parser.parse_args()
    if not args.render:
        if not args.folder:
            parser.error("--folder: where the generated data go; got none.")
        args.folder.mkdir(parents=True, exist_ok=True)
        FIGURES.write_text(json.dumps(_rounded(measure(args.folder.resolve(), args.repeats)), indent=1) + "\n")
    for path, text in pages(json.loads(FIGURES.read_text())).items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
