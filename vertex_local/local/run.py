"""Run a custom job's file on this machine, without Docker and network.

    python -m vertex_local run jobs/taxifare-2-workers.yaml -- --num_evals=2
    python -m vertex_local run jobs/taxifare.yaml --dataset jobs/datasets/taxifare.yaml

It runs what the file says, with your own rights. What comes after `--` is appended to every pool's arguments. Exit codes:
0 the job succeeded, 1 it failed, 2 it cannot be started, 128 + signal it was cancelled.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import cli
from ..datasets import flags
from ..datasets.dataset import Stopped
from ..errors import UserError, quoted
from ..job import job_file, settings
from ..job.job_file import JobFile
from . import cluster, debugging, drill, jobs, kills, report
from .plan import GRACE, RunOptions


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    run = cli.Parser(prog="python -m vertex_local run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run.add_argument("spec", help="job file as gcloud's --config takes it, or a whole CustomJob; YAML or JSON")
    cli.add_place_flags(run)
    run.add_argument("--job_id", metavar="ID", help="name of the job, must be new (default: a number made of the time)")
    run.add_argument("--announce", metavar="POOL", action="append", default=[], help="pool in the cluster, but not started")
    run.add_argument(
        "--grace", metavar="SECONDS", type=_seconds, default=GRACE, help="for the others when the chief is done (default: %(default)g)"
    )
    run.add_argument(
        "--kill", metavar="REPLICA@PLACE=N[,signal=S]", type=_flag(kills.parse), action="append", default=[],
        help="end a replica's first attempt, such as workerpool1-0@step=40,signal=KILL; places: step, checkpoint, "
        "evaluation, export (n-th; by our trainers), seconds (any program); repeatable",
    )  # fmt: skip
    run.add_argument(
        "--debug", metavar="REPLICA[:PORT]", type=_flag(debugging.parse),
        help="start that replica, such as workerpool1-0, under debugpy; it waits on 127.0.0.1:PORT until an editor attaches",
    )  # fmt: skip
    run.add_argument("--drill", metavar="N", type=cli.whole(1), help="run once unbroken, then N times with kills drawn by --seed")
    run.add_argument("--seed", type=int, default=0, help="for --drill (default: %(default)s)")
    flags.add_flags(run)
    settings.add_flags(run)
    return run


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"takes seconds such as {GRACE:g}; got {quoted(text)}.")
    return float(text)


def _flag(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return the type of a flag whose text `parse` reads."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def main(argv: Sequence[str]) -> int:
    """Run one job and return its exit code."""
    own, extra = cli.split(argv)
    parser = build_parser()
    args = parser.parse_args(own)
    if args.drill and args.kill:
        parser.error("--drill draws its own kills; give it or --kill.")
    if args.drill and args.debug:
        parser.error("--drill runs by itself; give it or --debug.")
    return cli.supervised(lambda cancel: _run(args, extra, cancel))


def _run(args: argparse.Namespace, extra: Sequence[str], cancel: threading.Event) -> int:
    given = settings.from_flags(args)
    job = job_file.read(args.spec, given, (job_file.CUSTOM, job_file.PIPELINE))
    managed = flags.wanted(job, args)
    job = (job.without_data() if managed else job).with_args(extra)
    options = cli.run_options(args, announce=args.announce, grace=args.grace, job_id=args.job_id, record=True).known_under(job, given)
    if managed:
        options = dataclasses.replace(options, variables=_exported(job, args, options.paths().buckets, cancel))
    if args.drill:
        return _drill(job, args, options, cancel)
    result = cluster.run(job, options, kills=args.kill, debug=args.debug, report=report.for_terminal(report.of_replicas), cancel=cancel)
    _summary(result)
    return 0 if result.succeeded else 1


def _drill(job: JobFile, args: argparse.Namespace, options: RunOptions, cancel: threading.Event) -> int:
    shown = report.for_terminal(report.of_replicas)
    drills = list(drill.run(job, args.drill, args.seed, job_id=args.job_id, report=shown, options=options, cancel=cancel))
    for each in drills:
        shown.say(f"{'ok  ' if each.passed else 'FAIL'} {each}")
    passed = sum(each.passed for each in drills[1:])
    print(f"{passed} of {args.drill} drills passed.")
    return 0 if passed == args.drill else 1


def _exported(job: JobFile, args: argparse.Namespace, root: Path, cancel: threading.Event) -> dict[str, str]:
    """Export the job's managed data set and return the variables that say where it is."""
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
