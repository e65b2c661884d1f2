"""Run a hyperparameter tuning job's file on this machine, without Docker and network.

    python -m vertex_local tune jobs/taxifare-tuning.yaml --max_trial_count 8 -- --num_evals=4

Trials are local jobs; Optuna chooses their parameters. What comes after `--` is appended to every pool's arguments, before
the trial's own. The same --job_id again, with the file or without, continues an interrupted study. Exit codes: 0 the job
succeeded, 1 it failed, 2 it cannot be started, 128 + signal it was cancelled.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import cli
from ..errors import UserError
from ..job import buckets, settings
from ..job.schema import SpecError
from ..local import jobs, records, report
from ..local.plan import RunOptions
from . import runner as tuning
from . import study, tuning_report
from .study import Study


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    tune = cli.Parser(prog="python -m vertex_local tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tune.add_argument(
        "spec", metavar="FILE", nargs="?",
        help="HyperparameterTuningJob file as gcloud's --config takes it; YAML or JSON (default: that of the job --job_id names)",
    )  # fmt: skip
    group = tune.add_argument_group("instead of what the file says")
    group.add_argument("--max_trial_count", metavar="N", type=cli.whole(1), help="trials in all")
    group.add_argument("--parallel_trial_count", metavar="N", type=cli.whole(1), help="trials at a time")
    group.add_argument("--algorithm", choices=study.ALGORITHMS, help="how to search")
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


def read(args: argparse.Namespace, extra: Sequence[str]) -> Study:
    """Return the file's study, changed by the flags and with `extra` arguments for the trainer."""
    job = study.load(_file(args), settings.from_flags(args)).job.with_args(extra)
    _edit(job.message, args)
    try:
        return study.of(job.with_output(buckets.check_folder(args.output)) if args.output else job)
    except buckets.BucketError as error:
        raise UserError(f"--output {error}") from None
    except SpecError as error:
        raise UserError(f"--algorithm: {error.problem}" if error.field == "studySpec.algorithm" else str(error)) from None


def _edit(message: Any, args: argparse.Namespace) -> None:
    """Change in a HyperparameterTuningJob what flags give."""
    for name in ("max_trial_count", "parallel_trial_count"):
        if count := getattr(args, name):
            setattr(message, name, count)
    if args.algorithm:
        message.study_spec.algorithm = type(message.study_spec).Algorithm.Value(study.ALGORITHMS[args.algorithm])
    trials, failed = message.max_trial_count or 1, message.max_failed_trial_count
    if failed > trials:
        message.max_failed_trial_count = trials
        print(f"note: maxFailedTrialCount is lowered from {failed} to {trials}: the service allows at most maxTrialCount", flush=True)


def _file(args: argparse.Namespace) -> Path:
    """Return the study's file: the one given, else the spec of the job to continue."""
    if args.spec:
        return Path(args.spec)
    if args.job_id is None:
        raise SpecError("give the study's FILE, or the --job_id of one to continue.")
    path = jobs.folder_of(Path(args.state_dir), args.job_id) / "spec.yaml"
    if not path.is_file():
        raise SpecError(f"--job_id: there is no study {args.job_id} in {args.state_dir} to continue; give its FILE.")
    return path


def _run(args: argparse.Namespace, extra: Sequence[str], cancel: threading.Event) -> int:
    wanted = read(args, extra)
    shown = report.for_terminal(functools.partial(tuning_report.table, wanted))
    result = tuning.run(wanted, _options(args, wanted), seed=args.seed, report=shown, cancel=cancel)
    _summary(wanted, result)
    return 0 if result.succeeded else 1


def _options(args: argparse.Namespace, wanted: Study) -> RunOptions:
    """Return the options of the run; a study continued without its file, and so without settings, keeps project and region."""
    options = cli.run_options(args, job_id=args.job_id, record=True)
    if args.spec:
        return options.known_under(wanted.job, settings.from_flags(args))
    with contextlib.suppress(UserError), records.opened(args.state_dir) as found:
        _, project, _, region, *_ = found.get(args.job_id).document["name"].split("/")
        return dataclasses.replace(options, google_project=project, region=region)
    return options


def _summary(wanted: Study, result: tuning.Result) -> None:
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
