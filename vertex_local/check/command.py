"""Look at a job before it costs something: file, package, flags, data, machines, images, outputs; then time and price.

    python -m vertex_local check jobs/taxifare.yaml

FILE is a custom job's or a hyperparameter tuning job's. What comes after `--` is appended to the trainers' arguments.
Nothing goes over the network, and nothing is written but temporary files. Exit codes: 0 no error was found, 1 some were,
2 the file cannot be read as a job.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import tempfile
import threading
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from .. import cli
from ..datasets import flags
from ..datasets.dataset import Stopped
from ..datasets.export import Export
from ..errors import UserError, quoted
from ..job import job_file, settings
from ..local.plan import RunOptions
from . import estimate, prices, requirements
from . import rules as checks
from .inspection import Inspection
from .rules import ERROR, OK, SKIPPED, WARNING, Finding

MOST_BYTES = 200_000_000  # of a managed data set: what is split within seconds


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(prog="python -m vertex_local check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", metavar="FILE", help="job file as gcloud's --config takes it, for custom or tuning jobs")
    cli.add_place_flags(parser, installs=False)
    parser.add_argument("--freeze", metavar="FILE", help="what the image has, as scripts/image_freeze writes it")
    parser.add_argument("--serving_python", metavar="PATH", help="interpreter with the serving image's TensorFlow: loads the model")
    parser.add_argument("--prices", metavar="FILE", help="table of prices (default: the one of vertex_local)")
    parser.add_argument("--file_only", action="store_true", help="look at the file alone: build nothing, start nothing")
    parser.add_argument("--no_measure", action="store_true", help="do not train for a moment to see how long the job takes")
    about = "for the dates of images, prices and features (default: today)"
    parser.add_argument("--today", metavar="DATE", type=_day, default=date.today(), help=about)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    flags.add_flags(parser)
    settings.add_flags(parser)
    return parser


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a day such as 2026-07-12; got {quoted(text)}.") from None


def main(argv: Sequence[str]) -> int:
    """Check one job and return the exit code."""
    own, extra = cli.split(argv)
    args = build_parser().parse_args(own)
    return cli.supervised(lambda cancel: _check(args, extra, cancel))


def _check(args: argparse.Namespace, extra: Sequence[str], cancel: threading.Event) -> int:
    table = prices.load(Path(args.prices) if args.prices else prices.TABLE)
    freeze = Path(args.freeze) if args.freeze else None
    requirements.constraints(None, freeze)  # a file that cannot be read is found at once
    case, found = _case(args, extra), []
    with tempfile.TemporaryDirectory(prefix="vertex-check-") as scratch:
        case, about_data = _with_dataset(case, args, extra, Path(scratch), cancel)
        unread = [finding for finding in about_data if finding.level in (ERROR, SKIPPED)]
        file_only, measures = args.file_only or bool(unread), not args.no_measure
        inspection = Inspection(case, Path(scratch), cancel, freeze, args.serving_python, file_only, measures)
        for finding in itertools.chain(about_data, inspection.findings()):
            if cancel.is_set():
                raise KeyboardInterrupt
            found.append(finding)
            if not args.json:
                print(f"{finding.level:13s} {finding.check:11s} {finding.message}", flush=True)
        estimated = list(estimate.report(case, inspection.plan, inspection.time, table))
    return _conclude(case.job.name, found, estimated, args.json)


def _case(args: argparse.Namespace, extra: Sequence[str]) -> checks.Case:
    if args.serving_python and shutil.which(args.serving_python) is None:
        raise UserError(f"--serving_python: {args.serving_python} is not a program that can be run. Name an interpreter with TensorFlow.")
    paths = RunOptions(args.state_dir, args.bucket_root, args.project_dir, args.python).paths()
    return checks.load(args.spec, settings.from_flags(args), extra, paths, args.today, bool(args.bucket_root))


def _with_dataset(
    case: checks.Case, args: argparse.Namespace, extra: Sequence[str], scratch: Path, cancel: threading.Event
) -> tuple[checks.Case, list[Finding]]:
    """Return the case with the variables of its managed data set, exported into `scratch`, and what there is to say of it."""
    if not flags.wanted(case.job, args):
        return case, []
    if case.study:
        raise UserError("--dataset: is for the files of custom jobs and training pipelines; this is a tuning job's. Leave it out.")
    read = job_file.read(args.spec, settings.from_flags(args), (job_file.CUSTOM, job_file.PIPELINE))
    job, lines = read.without_data().with_args(extra), []
    try:
        wanted = flags.plan(job, args, case.paths.buckets, scratch / "data", stop=cancel.is_set)
        if reason := _why_not_split(wanted):
            return case, [Finding(SKIPPED, "data set", f"{wanted.label}: {reason}")]
        wanted.say = lines.append
        variables = {} if args.file_only else wanted.run()
    except Stopped:
        raise KeyboardInterrupt from None
    except UserError as error:
        level = SKIPPED if getattr(error, "status", "") in ("UNIMPLEMENTED", "UNAVAILABLE") else ERROR
        return case, [Finding(level, "data set", str(error))]
    return dataclasses.replace(case, job=job, variables=variables), [_of_dataset(line) for line in lines]


def _why_not_split(wanted: Export) -> str | None:
    """Return why a managed data set is not split for a check, if it is not."""
    if wanted.project:
        return "an export to BigQuery would leave tables behind; give a split into files to have the data looked at."
    if wanted.source.bytes > MOST_BYTES:
        return f"{wanted.source.bytes:,} bytes are too much to split for a check (at most {MOST_BYTES:,})."
    return None


def _of_dataset(line: str) -> Finding:
    """Return what an export said as a finding, without the temporary folder that it wrote to."""
    level = WARNING if line.startswith("warning: ") else OK
    return Finding(level, "data set", line.removeprefix("warning: ").partition(" in /")[0])


def _conclude(name: str, found: Sequence[Finding], estimated: Sequence[tuple[str, str]], as_json: bool) -> int:
    """Print the estimate and the sum, and return the exit code."""
    errors = sum(finding.level == ERROR for finding in found)
    if as_json:
        print(json.dumps({"findings": [vars(finding) for finding in found], "errors": errors, "estimate": estimated}, indent=1))
        return 1 if errors else 0
    for what, line in estimated:
        print(f"{'estimate':13s} {what:11s} {line}")
    warnings = sum(finding.level == WARNING for finding in found)
    print(f"{name}: {errors} error(s), {warnings} warning(s).")
    return 1 if errors else 0
