"""Run a custom job's file on this machine, without Docker and network.

    python -m vertex_local run jobs/taxifare-2-workers.yaml -- --num_evals=2
    python -m vertex_local run jobs/taxifare.yaml --dataset jobs/datasets/taxifare.yaml

It runs what the file says, with the rights of whoever calls it. What comes after `--` is appended to every pool's
arguments. Exit codes: 0 the job succeeded, 1 it failed, 2 it cannot be started, 128 + signal it was cancelled.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from .. import cli
from ..datasets import flags
from ..datasets.dataset import Stopped
from ..job import settings, spec
from . import cluster, drill, jobs, kills, report
from .lifecycle import GRACE


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    run = cli.Parser(
        prog="python -m vertex_local run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    run.add_argument("spec", help="job file as gcloud's --config takes it, or a whole CustomJob; YAML or JSON")
    cli.add_place_flags(run)
    run.add_argument("--job_id", metavar="ID", help="name of the job, must be new (default: a number made of the time)")
    run.add_argument("--announce", metavar="POOL", action="append", default=[], help="pool in the cluster, but not started")
    run.add_argument(
        "--grace", metavar="SECONDS", type=float, default=GRACE, help="for the others when the chief is done (default: %(default)g)"
    )
    run.add_argument(
        "--kill", metavar="REPLICA@PLACE=N[,signal=S]", type=_kill, action="append", default=[],
        help="end a replica's first attempt, such as workerpool1-0@step=40,signal=KILL; places: step, checkpoint, "
        "evaluation, export (n-th; by our trainers), seconds (any program); repeatable",
    )  # fmt: skip
    run.add_argument("--drill", metavar="N", type=cli.whole(1), help="run once unbroken, then N times with kills drawn by --seed")
    run.add_argument("--seed", type=int, default=0, help="for --drill (default: %(default)s)")
    flags.add_flags(run)
    settings.add_flags(run)
    return run


def _kill(text: str) -> kills.Kill:
    try:
        return kills.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(argv: Sequence[str]) -> int:
    """Run one job and return its exit code."""
    own, extra = cli.split(argv)
    parser = build_parser()
    args = parser.parse_args(own)
    if args.drill and args.kill:
        parser.error("--drill draws its own kills; give it or --kill.")
    return cli.supervised(lambda cancel: _run(args, extra, cancel))


def _run(args: argparse.Namespace, extra: Sequence[str], cancel: threading.Event) -> int:
    job = spec.load(args.spec, (), settings.from_flags(args), pipelines=True)
    managed = flags.wanted(job, args)
    job = (job.without_data() if managed else job).with_args(extra)
    options = {
        name: getattr(args, name)
        for name in ("bucket_root", "state_dir", "project_dir", "job_id", "python", "with_index", "announce", "grace")
    }
    if managed:
        options["variables"] = _exported(job, args, cancel)
    if args.drill:
        shown = report.for_terminal()
        drills = list(drill.run(job, args.drill, args.seed, report=shown, cancel=cancel, **options))
        for each in drills:
            shown.say(f"{'ok  ' if each.passed else 'FAIL'} {each}")
        passed = sum(each.passed for each in drills[1:])
        print(f"{passed} of {args.drill} drills passed.")
        return 0 if passed == args.drill else 1
    result = cluster.run(job, kills=args.kill, report=report.for_terminal(), cancel=cancel, **options)
    _summary(result)
    return 0 if result.succeeded else 1


def _exported(job: spec.JobSpec, args: argparse.Namespace, cancel: threading.Event) -> dict[str, str]:
    """Export the job's managed data set and return the variables that say where it is."""
    root = Path(os.path.realpath(args.bucket_root or Path(args.state_dir) / "buckets"))
    try:
        return flags.plan(job, args, root, say=lambda text: print(text, flush=True), stop=cancel.is_set).run()
    except Stopped:
        raise KeyboardInterrupt from None


def _summary(result: jobs.Result) -> None:
    print(f"{result.state} after {result.end - result.start:.1f} s, {result.restarts} restarts; see {result.folder}")
    for name, path in result.outputs.items():
        print(f"  {name} {path}")
    sys.stdout.flush()
    if result.error:
        print(f"error: {result.error}", file=sys.stderr)
