"""Send a compiled pipeline to Vertex AI: `scripts/submit_pipeline`.

The file is what KFP's compiler writes, such as that of `python -m pipelines.kfp.compile`. Its parameters are checked before
anything is sent; `project` and `location`, where it has them and they are not given, are those of the settings. With
--schedule it is run again and again, from the service's own clock.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from vertex_local import cli
from vertex_local.job import pipeline_spec, schema, settings
from vertex_local.job.pipeline_spec import PipelineError

from . import checkout, cloud, jobs, sdk, submission


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(prog="scripts/submit_pipeline", description=__doc__)
    parser.add_argument("spec", help="the compiled pipeline, YAML or JSON")
    parser.add_argument("--parameter", metavar="NAME=VALUE", type=cli.pair, action="append", default=[], help="of the pipeline; repeatable")
    parser.add_argument("--display_name", metavar="NAME", help="its name in lists (default: the pipeline's name)")
    parser.add_argument("--job_id", metavar="ID", type=_job_id, help="(default: the pipeline's name and the time)")
    parser.add_argument("--labels", metavar="KEY=VALUE,…", type=cloud.labels, default={}, help="labels of the pipeline job")
    root = "for what steps leave (default: in the settings' bucket)"
    parser.add_argument("--pipeline_root", metavar="gs://…", type=cloud.folder, help=root)
    caching = parser.add_mutually_exclusive_group()
    caching.add_argument("--enable_caching", dest="caching", action="store_true", default=None, help="take what equal steps left earlier")
    caching.add_argument("--no_caching", dest="caching", action="store_false", default=None, help="run every step (default: as compiled)")
    after = "after a failed step start nothing more, or what does not need it"
    parser.add_argument("--failure_policy", choices=pipeline_spec.FAILURE_POLICIES, help=after)
    parser.add_argument("--service_account", metavar="MAIL", help="what the steps act as")
    parser.add_argument("--network", metavar="NAME", help="the VPC network that the steps are peered with")
    _add_schedule_flags(parser)
    parser.add_argument("--local", action="store_true", help="send it to the service that runs on this machine, in --state_dir")
    cloud.add_wait_flags(parser)
    sdk.add_flags(parser)
    cloud.add_flags(parser)
    return parser


def _add_schedule_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule")
    group.add_argument("--schedule", metavar="CRON", type=_cron, help="when to run it, as '0 3 * * *' or 'TZ=Europe/Berlin 0 3 * * 1'")
    group.add_argument("--max_runs", metavar="N", type=cli.whole(1), help="end the schedule after so many (default: none)")
    group.add_argument("--max_concurrent_runs", metavar="N", type=cli.whole(1), help="at the same time (default: 1)")


def _job_id(text: str) -> str:
    if not pipeline_spec.JOB_ID.fullmatch(text):
        problem = "takes a small letter, then small letters, digits and '-', 128 at most"
        raise argparse.ArgumentTypeError(f"{problem}; got {text[:150]!r}.")
    return text


def _cron(text: str) -> str:
    if not re.fullmatch(r"((CRON_)?TZ=\S+ +)?(\S+ +){4}\S+", text.strip()):
        raise argparse.ArgumentTypeError(f"takes five fields, minute to day of the week, as '0 3 * * *'; got {text[:100]!r}.")
    return text.strip()


def main(argv: Sequence[str]) -> int:
    """Submit one pipeline and return the exit code."""
    args = build_parser().parse_args(argv)
    return cli.supervised(lambda cancel: _submit(args, cancel))


def _submit(args: argparse.Namespace, cancel: threading.Event) -> int:
    refuse_contradictions(args)
    pipeline = pipeline_spec.read(args.spec)
    if args.local:
        _use_local(args)
    folder = Path(args.spec).parent
    folder = folder if (folder / "settings.yaml").is_file() else checkout.SETTINGS
    stays_here = submission.stays_here(args)
    values = cloud.load_settings(folder, settings.from_flags(args), ("project", "region", "bucket"), stays_here)
    job = build(pipeline, args, values)
    for warning in pipeline_spec.warnings(pipeline, date.today()):
        print(f"warning: {warning}", file=sys.stderr)
    if not stays_here:
        jobs.refuse_placeholders(job, "compile it again with your own settings")
    service = sdk.connect(values, args)
    if args.schedule:
        job = scheduled(job, args, service)
    job_id = args.job_id or f"{_plain(pipeline.name)}-{time.strftime('%Y%m%d%H%M%S')}"
    options = {} if args.schedule else {"pipeline_job_id": job_id}
    if args.dry_run:
        return submission.show(job, args, service, options, _without_spec(job, args.caching))
    return submission.send(job, args, service, cloud.keep(*job.file(), args.state_dir), cancel, options)[0]


def _without_spec(job: jobs.Job, caching: bool | None) -> str:
    """Return what would be sent, but for the spec, which is the user's file."""
    document = json.loads(job.file()[0])
    inner = document.get("createPipelineJobRequest", {}).get("pipelineJob", document)
    inner["pipelineSpec"] = f"what {job.path} says" + ("" if caching is None else f", caching {'on' if caching else 'off'}")
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def refuse_contradictions(args: argparse.Namespace) -> None:
    """Raise a PipelineError for flags that say nothing together."""
    if args.local and args.api_endpoint and args.api_endpoint != cloud.gcloud_endpoint():
        raise PipelineError("--local: leave --api_endpoint out; the service's address is read from --state_dir.")
    for name in ("max_runs", "max_concurrent_runs"):
        if getattr(args, name) and not args.schedule:
            raise PipelineError(f"--{name}: is about a schedule; give --schedule.")
    for name in ("wait", "job_id"):
        if args.schedule and getattr(args, name):
            raise PipelineError(f"--{name}: is about one run; leave it or --schedule out.")


def _use_local(args: argparse.Namespace) -> None:
    """Set what `python -m vertex_local env` says of the service in --state_dir, for the flags and for the libraries that send."""
    words = [sys.executable, "-m", "vertex_local", "env", f"--state_dir={args.state_dir}"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing."])[-1].removeprefix("error: ")
        raise PipelineError(f"--local: {reason}")
    found = dict(word.partition("=")[::2] for line in done.stdout.splitlines() for word in shlex.split(line)[1:])
    os.environ.update(found)
    args.api_endpoint = cloud.gcloud_endpoint().rstrip("/")
    args.token_file = found.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE")
    args.project, args.region = args.project or found["CLOUDSDK_CORE_PROJECT"], args.region or found["CLOUDSDK_AI_REGION"]


def build(pipeline: pipeline_spec.Pipeline, args: argparse.Namespace, values: Mapping[str, str]) -> jobs.Job:
    """Return the pipeline job that flags and settings make of a compiled pipeline."""
    fallback = {"project": values["project"], "location": values["region"]}
    given = list(args.parameter)
    if "location" in pipeline.parameters and "location" not in dict(given):
        given.append(("location", values["region"]))  # whatever was compiled: the steps' region is the job's
    root = args.pipeline_root or pipeline.spec.get("defaultPipelineRoot") or f"gs://{values['bucket']}/pipelines/{_plain(pipeline.name)}"
    runtime: dict[str, Any] = {"gcsOutputDirectory": root, "parameterValues": pipeline.values(given, fallback)}
    if args.failure_policy:
        runtime["failurePolicy"] = pipeline_spec.FAILURE_POLICIES[args.failure_policy]
    document = {
        "displayName": args.display_name or pipeline.name,
        "pipelineSpec": pipeline.spec if args.caching is None else pipeline.with_caching(args.caching),
        "labels": args.labels,
        "runtimeConfig": runtime,
        "serviceAccount": args.service_account or "",
        "network": args.network or "",
    }
    return jobs.Job(jobs.PIPELINE_JOB, pipeline.path, pipeline.text, schema.to_message(document, jobs.PIPELINE_JOB.type))


def scheduled(job: jobs.Job, args: argparse.Namespace, service: sdk.Service) -> jobs.Job:
    """Return the schedule that runs a pipeline job."""
    document = {
        "displayName": job.message.display_name,
        "cron": args.schedule,
        "maxConcurrentRunCount": args.max_concurrent_runs or 1,
        "createPipelineJobRequest": {"parent": service.parent, "pipelineJob": schema.to_fields(job.message)},
    }
    if args.max_runs:
        document["maxRunCount"] = args.max_runs
    return jobs.Job(jobs.SCHEDULE, job.path, job.text, schema.to_message(document, jobs.SCHEDULE.type))


def _plain(name: str) -> str:
    return re.sub("[^-0-9a-z]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
