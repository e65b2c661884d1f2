"""The one way of every job to the service: its message is shown, kept in a file, checked there, sent by the SDK, followed."""

from __future__ import annotations

import argparse
import shlex
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from vertex_local.job import images, schema, settings

from . import cloud, jobs, sdk


def load_settings(job: jobs.Job, args: argparse.Namespace, needed: Sequence[str]) -> dict[str, str]:
    """Return the settings for a job; raise a SettingsError where something that leaves this machine holds a placeholder."""
    stays_here = args.dry_run or cloud.is_local(args.api_endpoint)
    values = cloud.load_settings(Path(job.path).parent, settings.from_flags(args), needed, stays_here)
    if not stays_here:
        jobs.refuse_placeholders(job)
    return values


def warn_about_images(addresses: set[str]) -> None:
    """Print a warning for each prebuilt image that is past its end, or soon will be."""
    for warning in sorted({images.warning(address, date.today()) for address in addresses} - {None}):
        print(f"warning: {warning}", file=sys.stderr)


def show(job: jobs.Job, args: argparse.Namespace, command: Callable[[Path], str]) -> None:
    """Print what a dry run would keep and send: the file, and the `command` that sends it by hand."""
    text, name = job.file()
    path = Path(args.state_dir) / "submitted" / f"TIME-{name}"
    print(f"# {path}\n{text}{command(path)}")


def keep_and_check(job: jobs.Job, args: argparse.Namespace, values: Mapping[str, str]) -> Path:
    """Write what is to be sent into a new file, have `python -m vertex_local check` look at that, and return its path."""
    path = cloud.keep(*job.file(), args.state_dir)
    if not args.no_check:
        cloud.check(path, values)
    return path


def by_hand(job: jobs.Job, service: sdk.Service, options: Mapping[str, str] | None = None) -> Callable[[Path], str]:
    """Return what makes, of a file, the line of the shell that sends it without this program; `options` are as `sdk.create` has them."""

    def command(path: Path) -> str:
        if job.gcloud_takes_it:
            return cloud.command(jobs.gcloud_command(job, path, service.project, service.region))
        reason = "it refuses the file's empty pool" if job.kind.group else f"it knows no {job.kind.title}s"
        query = "&".join(f"{schema.camel_case(name)}={value}" for name, value in (options or {}).items())
        url = f"{service.url}/v1/{service.parent}/{job.kind.collection}{'?' * bool(query)}{query}"
        return f"# gcloud cannot send it, for {reason}; by hand:\n$ {jobs.curl_command(url, path)}"

    return command


def send(
    job: jobs.Job, args: argparse.Namespace, service: sdk.Service, path: Path, options: Mapping[str, str] | None = None
) -> tuple[str, str]:  # fmt: skip
    """Print the line that does the same by hand, create the job, and return its resource name and state."""
    print(by_hand(job, service, options)(path), flush=True)
    created = sdk.create(service, job, options)
    return created.name, created.state.name


def report(job: jobs.Job, service: sdk.Service, name: str, state: str) -> None:
    """Print what was submitted under which name, where to see it, and the commands for its logs and its end."""
    number, where = name.rpartition("/")[2], f"--project={service.project} --region={service.region}"
    if job.kind.group:
        logs, stop = (f"gcloud ai {job.kind.group} {verb} {number} {where}" for verb in ("stream-logs", "cancel"))
    elif job.kind in (jobs.PIPELINE_JOB, jobs.SCHEDULE):
        return _report_pipeline(job, service, name, state)
    else:  # its custom job has its name, once it is there
        newest = f"gcloud ai custom-jobs list {where} --filter=displayName:{shlex.quote(job.message.display_name)}"
        newest += " --sort-by=~createTime --limit=1 --format='value(name)'"
        logs = f"gcloud ai custom-jobs stream-logs {where} $({newest})"
        stop = jobs.curl_command(f"{service.url}/v1/{name}:cancel")
    console = cloud.console({"project": service.project, "region": service.region}, number)
    print(f"submitted {job.kind.title} {name}")
    print(f"  state   {cloud.plain_state({'state': state})}\n  console {console}\n  logs    $ {logs}\n  cancel  $ {stop}", flush=True)


def _report_pipeline(job: jobs.Job, service: sdk.Service, name: str, state: str) -> None:
    """Print the same of a pipeline job, whose steps' logs are in the console, and of a schedule."""
    number, tab = name.rpartition("/")[2], "schedules" if job.kind is jobs.SCHEDULE else "runs"
    verb = "pause" if job.kind is jobs.SCHEDULE else "cancel"
    console = f"https://console.cloud.google.com/vertex-ai/pipelines/locations/{service.region}/{tab}/{number}?project={service.project}"
    print(f"submitted {job.kind.title} {name}\n  state   {cloud.plain_state({'state': state})}\n  console {console}")
    print(f"  {verb:7} $ {jobs.curl_command(f'{service.url}/v1/{name}:{verb}')}", flush=True)


def follow(job: jobs.Job, args: argparse.Namespace, service: sdk.Service, name: str, cancel: threading.Event) -> tuple[int, dict[str, Any]]:
    """Follow a job to its end; return the exit code, 0 if it succeeded, and the job as it was last."""
    last: dict[str, Any] = {}

    def get_job() -> Mapping[str, Any]:
        last.update(sdk.get(service, job.kind, name))
        return last

    return cloud.follow(get_job, args.poll, cancel, _detail), last


def _detail(job: Mapping[str, Any]) -> str:
    """Return how many trials have ended, of a tuning job; the steps that run, of a pipeline job; a training pipeline's own job."""
    if "maxTrialCount" in job:
        ended = [trial for trial in job.get("trials", []) if trial.get("state") in ("SUCCEEDED", "INFEASIBLE")]
        return f"{len(ended)} of {job['maxTrialCount']} trials"
    if "jobDetail" in job:
        tasks = job["jobDetail"].get("taskDetails", [])
        over = sum(task.get("state") in ("SUCCEEDED", "SKIPPED", "NOT_TRIGGERED") for task in tasks)
        whole = job.get("name", "").rpartition("/")[2]  # the pipeline is a task of its own
        running = [task.get("taskName", "?") for task in tasks if task.get("state") == "RUNNING" and task.get("taskName") != whole]
        return f"{over} steps done" + (f", now {', '.join(running[:3])}" if running else "")
    return job.get("trainingTaskMetadata", {}).get("backingCustomJob", "")
