"""Send job files to Vertex AI by the SDK: `scripts/submit_job` and `scripts/submit_tuning`.

The file is read once, with its settings filled in. Flags and what comes after `--` edit that message, which is then kept
under `.vertex_local/submitted`, checked there, and sent. (gcloud's own --args would replace the arguments of every pool.)
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence

from vertex_local import cli
from vertex_local.job import settings

from . import cloud, image_build, jobs, sdk, submission

SCRIPTS = {"job": ("scripts/submit_job", jobs.CUSTOM), "tuning": ("scripts/submit_tuning", jobs.TUNING)}
TRIAL_COUNTS = {
    "max_trial_count": "trials in all",
    "parallel_trial_count": "trials at a time",
    "max_failed_trial_count": "failed trials that end the job; 0: the first one",
}


def build_parser(which: str) -> argparse.ArgumentParser:
    """Return the parser of `scripts/submit_job` or `scripts/submit_tuning`."""
    script, kind = SCRIPTS[which]
    parser = cli.Parser(
        prog=script,
        description=f"Send a {kind.title}'s file to Vertex AI; returns at once, unless --wait is given.\n"
        "Arguments after -- are appended to the trainer's.",
    )  # fmt: skip
    parser.add_argument("spec", help=f"the {kind.title}'s file, as gcloud's --config takes it")
    parser.add_argument("--display_name", metavar="NAME", help="the job's name in lists (default: the file's)")
    parser.add_argument("--labels", metavar="KEY=VALUE,…", type=cloud.labels, default={}, help="labels of the job")
    cloud.add_job_flags(parser)
    if kind is jobs.CUSTOM:
        parser.add_argument(
            "--autopackage", action="store_true",
            help="let gcloud build and push the image from this checkout (local-package-path), and send the job; needs Docker",
        )  # fmt: skip
        parser.add_argument("--base", metavar="IMAGE", help="for --autopackage: the image to build on (default: the Dockerfile's)")
    else:
        for name, what in TRIAL_COUNTS.items():
            parser.add_argument(f"--{name}", metavar="N", type=cli.whole(0), help=f"{what} (default: the file's)")
    cloud.add_wait_flags(parser)
    sdk.add_flags(parser)
    cloud.add_flags(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Submit what `argv` says, `job` or `tuning` first, and return the exit code."""
    which, own, extra = argv[0], *cli.split(argv[1:])
    args = build_parser(which).parse_args(own)
    return cli.supervised(lambda cancel: _submit(SCRIPTS[which][1], args, extra, cancel))


def _submit(kind: jobs.Kind, args: argparse.Namespace, extra: Sequence[str], cancel: threading.Event) -> int:
    job = load(kind, args, extra)
    values = submission.load_settings(job, args, ("project", "region"))
    if getattr(args, "autopackage", False):
        job.flags = image_build.autopackage(job, args.base, values)
    if args.dry_run or args.no_check:  # the check has them, too
        submission.warn_about_images({pool.image for pool in job.pools})
    if args.dry_run:
        return submission.show(job, args, sdk.connect(values, args))
    path, service = submission.keep_and_connect(job, args, values)
    return submission.send(job, args, service, path, cancel)[0]


def load(kind: jobs.Kind, args: argparse.Namespace, extra: Sequence[str]) -> jobs.Job:
    """Return the file's job as the flags have it, and `extra` after the arguments of every pool that runs the trainer."""
    job = jobs.read(kind, args.spec, settings.from_flags(args))
    jobs.append_arguments(job, extra)
    jobs.set_output(job, args.base_output_dir)
    job.message.display_name = args.display_name or job.message.display_name
    job.message.labels.update(args.labels)
    if kind is jobs.TUNING:
        jobs.set_trial_counts(job, {name: getattr(args, name) for name in TRIAL_COUNTS})
    return job


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
