"""Run a hyperparameter tuning job's file on this machine, without Docker and network.

    python -m vertex_local tune jobs/taxifare-tuning.yaml --max_trial_count 8 -- --num_evals=4

Trials are local jobs, searched by Optuna. What comes after `--` is appended to every pool's arguments, before the
trial's own. The same --job_id again continues a study that was cut. Exit codes: 0 the job succeeded, 1 it failed,
2 it cannot be started, 128 + signal it was cancelled.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import threading
from collections.abc import Sequence

from .. import cli
from ..job import buckets, settings
from ..job.schema import SpecError
from . import runner as tuning
from . import study, tuning_report

ALGORITHMS = {"bayesian": "ALGORITHM_UNSPECIFIED", "random-search": "RANDOM_SEARCH", "grid-search": "GRID_SEARCH"}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    tune = cli.Parser(
        prog="python -m vertex_local tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tune.add_argument("spec", help="HyperparameterTuningJob file as gcloud's --config takes it; YAML or JSON")
    group = tune.add_argument_group("instead of what the file says")
    group.add_argument("--max_trial_count", metavar="N", type=cli.whole(1), help="trials in all")
    group.add_argument("--parallel_trial_count", metavar="N", type=cli.whole(1), help="trials at a time")
    group.add_argument("--algorithm", choices=ALGORITHMS, help="how to search")
    group.add_argument("--output", metavar="gs://BUCKET/X", help="baseOutputDirectory: trial 1 writes to X/1")
    group = tune.add_argument_group("where and how to run")
    cli.add_place_flags(group)
    group.add_argument("--job_id", metavar="ID", help="name of the job; an earlier one's continues it (default: made of the time)")
    group.add_argument("--seed", type=int, default=0, help="of the search (default: %(default)s)")
    settings.add_flags(tune)
    return tune


def main(argv: Sequence[str]) -> int:
    """Run one study and return its exit code."""
    own, extra = cli.split(argv)
    args = build_parser().parse_args(own)
    return cli.supervised(lambda cancel: _run(args, extra, cancel))


def read(args: argparse.Namespace, extra: Sequence[str]) -> study.Study:
    """Return the file's study with what flags say instead, and with `extra` arguments for the trainer."""
    read = study.load(args.spec, settings.from_flags(args))
    job, changes = read.job.with_args(extra), {}
    if args.output:
        if not args.output.startswith("gs://"):
            raise ValueError(f"--output takes gs://bucket/folder; got {args.output!r}.")
        buckets.check_name(args.output[len("gs://") :].partition("/")[0])
        job = job.with_output(args.output)
    if args.max_trial_count:
        changes["max_trials"] = args.max_trial_count
    if args.parallel_trial_count:
        changes["parallel"] = args.parallel_trial_count
    if args.algorithm:
        name = ALGORITHMS[args.algorithm]
        changes["algorithm"] = study.check_algorithm(name, read.parameters, lambda problem: SpecError(f"--algorithm: {problem}"))
    read = dataclasses.replace(read, job=job, **changes)
    if read.max_failed <= read.max_trials:
        return read
    note = f"maxFailedTrialCount {read.max_failed} is taken for {read.max_trials}: the service wants it at most maxTrialCount"
    return dataclasses.replace(read, max_failed=read.max_trials, notes=(*read.notes, note))


def _run(args: argparse.Namespace, extra: Sequence[str], cancel: threading.Event) -> int:
    wanted = read(args, extra)
    names = ("bucket_root", "state_dir", "project_dir", "job_id", "python", "with_index", "seed")
    options = {name: getattr(args, name) for name in names}
    result = tuning.run(wanted, report=tuning_report.for_terminal(wanted), cancel=cancel, **options)
    _summary(wanted, result)
    return 0 if result.succeeded else 1


def _summary(wanted: study.Study, result: tuning.Result) -> None:
    states = [trial["state"] for trial in result.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trials"
    print(f"{result.state} after {result.end - result.start:.1f} s: {counts}; see {result.folder}")
    for trial in (trial for trial in result.trials if trial["id"] in result.best):
        values = ", ".join(f"{item['metricId']} {item['value']:.5g}" for item in trial["finalMeasurement"]["metrics"])
        print(f"best: trial {trial['id']}, {values}\n  {result.commands[trial['id']]}")
    if result.page:
        print(f"report: {result.page}")
    if result.best:
        print(f"tensorboard --logdir {result.log_dir}")
    sys.stdout.flush()
    if result.error:
        print(f"error: {result.error}", file=sys.stderr)
