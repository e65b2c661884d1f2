"""Kill replicas of a local cluster, drawn by chance, and show that each job ends as if nothing had happened.

    scripts/drill [--drills 20] [--replicas 3] [--seed 0] [--trainer taxifare]

Every drill is a job of its own that `vertex_local` runs from the trainer's job file. It passes when the job succeeds, the
rows that all replicas fed are those of the unbroken job, step by step, and the final weights are the same bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from vertex_local import cluster, kills, spec
from vertex_local.report import Quiet, places

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
FLAGS = ("--batch_size=60", "--epochs=2", "--num_evals=3", "--checkpoint_steps=6")


def write_job(folder: Path, trainer: str, replicas: int) -> Path:
    """Write the trainer's two-worker job file for so many replicas."""
    import yaml

    job = yaml.safe_load(spec.read(ROOT / "jobs" / f"{trainer}-2-workers.yaml"))
    job["workerPoolSpecs"][1]["replicaCount"] = replicas - 1
    path = folder / "job.json"
    path.write_text(json.dumps(job, indent=1))
    return path


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Return the model's and the optimizer's variables in the newest checkpoint."""
    import tensorflow as tf

    newest = sorted(folder.glob("checkpoints/ckpt-*.index"))[-1]
    reader = tf.train.load_checkpoint(str(newest)[: -len(".index")])
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if name.startswith(("model/", "optimizer/"))}


def fed_rows(ledger: Path) -> dict[tuple[str, int], list[str]]:
    """Return the rows that each replica fed in each step, of its last attempt."""
    lines = sorted((json.loads(line) for line in ledger.read_text().splitlines()), key=lambda line: line["attempt"])
    return {(line["replica"], line["step"]): line["rows"] for line in lines}


def largest_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Return the largest difference of any weight; infinity where the sets of weights differ."""
    if one.keys() != other.keys():
        return float("inf")
    return max(float(np.max(np.abs(one[name].astype(np.float64) - other[name]), initial=0.0)) for name in one)


def run_job(folder: Path, job: Path, name: str, drawn: list[kills.Kill]) -> tuple[cluster.jobs.Result, Path, Path]:
    """Run one job; return its result, its output folder and its ledger."""
    ledger = folder / f"{name}.ledger"
    loaded = spec.load(job, [*FLAGS, f"--ledger={ledger}"]).with_output(f"gs://drills/{name}")
    places = {"state_dir": folder / "state", "bucket_root": folder / "buckets", "project_dir": ROOT}
    result = cluster.run(loaded, job_id=name, kills=drawn, report=Quiet(), **places)
    return result, folder / "buckets" / "drills" / name, ledger


def main() -> int:
    """Run the unbroken job and the drills; print a table; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="scripts/drill", description=__doc__.splitlines()[0])
    parser.add_argument("--drills", type=int, default=20)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trainer", default="taxifare", choices=("taxifare", "stackoverflow"))
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    job = write_job(folder, args.trainer, args.replicas)
    first, output, ledger = run_job(folder, job, "unbroken", [])
    if not first.succeeded:
        print(f"the unbroken job failed: {first.error}; its logs are in {first.folder}", file=sys.stderr)
        return 1
    seen = {}
    for name, replica in first.replicas.items():
        seconds = replica["attempts"][-1]["end"] - replica["attempts"][0]["start"]
        seen[name] = {**places(first.folder / "events" / f"{name}.jsonl"), "seconds": seconds}
    expected, rows, failed = weights(output), fed_rows(ledger), 0
    print(f"{args.trainer}, {args.replicas} replicas; unbroken: {first.end - first.start:.1f} s; files in {folder}")
    for number, drawn in enumerate(kills.draw(seen, args.drills, args.seed), 1):
        result, output, ledger = run_job(folder, job, f"drill-{number:02d}", drawn)
        hit = any(result.kills.values())
        same = result.succeeded and fed_rows(ledger) == rows
        gap = largest_difference(weights(output), expected) if result.succeeded else float("inf")
        passed = result.succeeded and hit and same and gap == 0.0
        failed += not passed
        state = result.state.removeprefix("JOB_STATE_")
        print(
            f"{'ok  ' if passed else 'FAIL'} {number:2d}  {', '.join(map(str, drawn)):45s} {state:10s} {result.restarts} restarts "
            f"{result.end - result.start:5.1f} s  ledger {'equal' if same else 'DIFFERS'}  weights differ by {gap:g}",
            flush=True,
        )
    print(f"{args.drills - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
