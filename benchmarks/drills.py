"""Kill replicas of a local cluster, drawn by chance, and show that each job ends as if nothing had happened.

    scripts/drill [--drills 20] [--replicas 3] [--seed 0] [--trainer taxifare]

Every drill is a job of its own that `vertex_local` runs from the trainer's job file. It passes when the job succeeds, the
rows that all replicas fed are those of the unbroken job, step by step, and the final weights are the same bit for bit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from vertex_local import cli
from vertex_local.job import job_file
from vertex_local.local.commands import trainers
from vertex_local.local.drill import run
from vertex_local.local.jobs import Result
from vertex_local.local.report import Quiet
from vertex_runtime.strategy import import_tensorflow

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ("--batch_size=60", "--epochs=2", "--num_evals=3", "--checkpoint_steps=6")


def write_job(folder: Path, trainer: str, replicas: int) -> Path:
    """Write the trainer's two-worker job file for so many replicas."""
    import yaml

    job = yaml.safe_load(job_file.read_text(ROOT / "jobs" / f"{trainer}-2-workers.yaml"))
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


def main() -> int:
    """Drill as the command line says; print a table; return 1 if a drill failed."""
    parser = cli.Parser(prog="scripts/drill", description=__doc__.splitlines()[0])
    parser.add_argument("--drills", metavar="N", type=cli.whole(1), default=20, help="jobs with kills (default: %(default)s)")
    parser.add_argument("--replicas", metavar="N", type=cli.whole(2), default=3, help="chief and workers (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the kills (default: %(default)s)")
    parser.add_argument("--trainer", default="taxifare", choices=trainers(ROOT), help="(default: %(default)s)")
    args = parser.parse_args()
    return cli.supervised(lambda cancel: drill(args, cancel))


def drill(args: argparse.Namespace, cancel: threading.Event) -> int:
    """Run the unbroken job and the drills until `cancel` is set."""
    import_tensorflow()  # quietly; it reads the checkpoints
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    job = job_file.read(write_job(folder, args.trainer, args.replicas)).with_args(FLAGS).with_output("gs://drills")
    jobs = run(
        job, args.drills, args.seed, job_id=args.trainer, report=Quiet(), flags=lambda job_id: [f"--ledger={folder / job_id}.ledger"],
        cancel=cancel, state_dir=folder / "state", bucket_root=folder / "buckets", project_dir=ROOT,
    )  # fmt: skip

    def found(result: Result) -> tuple[dict[str, np.ndarray], dict[tuple[str, int], list[str]]]:
        return weights(folder / "buckets" / "drills" / result.job_id), fed_rows(folder / f"{result.job_id}.ledger")

    unbroken = next(jobs).result
    if not unbroken.succeeded:
        print(f"the unbroken job failed: {unbroken.error}; its logs are in {unbroken.folder}", file=sys.stderr)
        return 1
    (expected, rows), passed = found(unbroken), 0
    print(f"{unbroken.job_id}, {args.replicas} replicas: {unbroken.end - unbroken.start:.1f} s; files in {folder}", flush=True)
    for each in jobs:
        good, compared = False, f"{each.result.error}; its logs are in {each.result.folder}"
        if each.result.succeeded:
            reached, fed = found(each.result)
            gap = largest_difference(reached, expected)
            good = each.passed and fed == rows and gap == 0.0
            compared = f"ledger {'equal' if fed == rows else 'DIFFERS'}, weights differ by {gap:g}"
        passed += good
        print(f"{'ok  ' if good else 'FAIL'} {each}; {compared}", flush=True)
    print(f"{passed} of {args.drills} drills passed.")
    return int(passed < args.drills)


if __name__ == "__main__":
    sys.exit(main())
