#!/usr/bin/env python3
"""Does tuning help on the real taxi data? A local study on a part split off the training rows, then one look at the rest.

The last fifth of the training rows, by a hash of each, is what the trials are judged by. `taxi-valid.csv` is read once,
at the end, for the default flags and for the winner, three seeds each. About five minutes:

    python benchmarks/tuning.py --json tuning.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from processes import ROOT, keep, machine, mean_and_range, print_table, real_files, run, trainer

SPEC = ROOT / "jobs" / "taxifare-tuning.yaml"
SHARE = 5  # one row in so many is split off


def split(source: Path, folder: Path) -> tuple[Path, Path]:
    """Write the rows to tune-train.csv and tune-valid.csv: a row's hash decides, so that doubles stay together."""
    lines = source.read_text().splitlines()
    head = [lines.pop(0)] if lines[0].startswith("fare_amount") else []
    parts: tuple[list[str], list[str]] = ([], [])
    for line in lines:
        parts[int(hashlib.sha256(line.encode()).hexdigest(), 16) % SHARE == SHARE - 1].append(line)
    paths = (folder / "tune-train.csv", folder / "tune-valid.csv")
    for path, part in zip(paths, parts):
        path.write_text("\n".join([*head, *part]) + "\n")
    return paths


def study_file(folder: Path, rows: tuple[Path, Path], evaluations: int) -> Path:
    """Write the project's own tuning file with these rows to train on."""
    spec = yaml.safe_load(SPEC.read_text().replace("${BUCKET}", "tuning").replace("${IMAGES}", "host").replace("${TAG}", "1"))
    flags = [f"--train_data_path={rows[0]}", f"--eval_data_path={rows[1]}", f"--num_evals={evaluations}"]
    spec["trialJobSpec"]["workerPoolSpecs"][0]["containerSpec"] = {
        "imageUri": "host/taxifare:1", "command": ["python", "-m", "taxifare.trainer.task"], "args": flags,
    }  # fmt: skip
    path = folder / "taxifare-tuning.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def tune(folder: Path, path: Path, trials: int, parallel: int, seed: int) -> dict[str, Any]:
    """Run the study by its command line and return its result.json."""
    command = [
        sys.executable, "-m", "vertex_local", "tune", str(path), "--state_dir", str(folder / "state"), "--job_id", "study",
        "--project_dir", str(ROOT), f"--max_trial_count={trials}", f"--parallel_trial_count={parallel}", f"--seed={seed}",
    ]  # fmt: skip
    print(f"$ {shlex.join(command)}", flush=True)
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    return json.loads((folder / "state" / "jobs" / "study" / "result.json").read_text())


def score(folder: Path, train: Path, valid: Path, flags: list[str], seed: int) -> float:
    """Train in a fresh directory and return the validation's RMSE."""
    output = Path(tempfile.mkdtemp(dir=folder))
    paths = ("--train_data_path", train, "--eval_data_path", valid)
    run(trainer("taxifare", "--output_dir", output / "out", *paths, "--seed", seed, *flags), output / "logs")
    return json.loads((output / "out" / "metrics.json").read_text())["val_rmse"]


def main() -> None:
    """Tune, compare, and print whether the winner should become the default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with taxifare/; SHARED_DATA or ../shared/data if not given")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings that are compared at the end")
    parser.add_argument("--search_seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=5, help="of each trial")
    parser.add_argument("--json", type=Path, help="write every score to this file")
    parser.add_argument("--keep", type=Path, help="folder for the study, its report.html among it; not removed")
    args = parser.parse_args()
    train_file, valid_file = real_files(args.data, "taxifare/taxi-train.csv", "taxifare/taxi-valid.csv")
    print(f"machine: {machine()}")
    with tempfile.TemporaryDirectory() as name:
        folder = args.keep.resolve() if args.keep else Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        rows = split(train_file, folder)
        print(f"rows: {', '.join(f'{len(path.read_text().splitlines())} in {path.name}' for path in rows)}")
        found = tune(folder, study_file(folder, rows, args.evaluations), args.trials, args.parallel, args.search_seed)
        winner = next(trial for trial in found["trials"] if trial["id"] == found["best"][0])
        flags = [f"--{item['parameterId']}={item['value']}" for item in winner["parameters"]]
        table, results = [], {"machine": machine(), "winner": flags, "trials": found["trials"]}
        for what, train, valid in (("the part split off", *rows), ("taxi-valid.csv", train_file, valid_file)):
            own = {"default": [], "winner": flags}
            scores = {who: [score(folder, train, valid, own[who], seed) for seed in args.seeds] for who in own}
            results[what] = scores
            better = mean(scores["winner"]) < mean(scores["default"])
            table.append((what, *(mean_and_range(values, 4) for values in scores.values()), "yes" if better else "no"))
    print(f"\nwinner: trial {winner['id']}, {' '.join(flags)}")
    print_table(f"taxifare: {args.trials} trials, {len(args.seeds)} seeds each", ("RMSE on", "default flags", "winner", "better"), table)
    both = all(row[-1] == "yes" for row in table)
    print(f"\nthe winner {'improves both: it may become the default' if both else 'does not improve both: the default stays'}")
    keep(args.json, results)


if __name__ == "__main__":
    main()
