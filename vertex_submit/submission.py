"""The one way of every job to the service: its message is shown, kept in a file, checked there, sent by the SDK, followed."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from vertex_local.errors import quoted
from vertex_local.job import images, schema, settings

from . import cloud, jobs, sdk

NO_OPTIONS: Mapping[str, str] = {}


def stays_here(args: argparse.Namespace) -> bool:
    """Tell whether nothing leaves this machine: then the placeholders that the project comes with are good enough."""
    return args.dry_run or cloud.is_local(args.api_endpoint)


def load_settings(job: jobs.Job, args: argparse.Namespace, needed: Sequence[str]) -> dict[str, str]:
    """Return the settings for a job; raise a SettingsError where something that leaves this machine holds a placeholder."""
    values = cloud.load_settings(Path(job.path).parent, settings.from_flags(args), needed, stays_here(args))
    if not stays_here(args):
        jobs.refuse_placeholders(job)
    return values


def warn_about_images(addresses: set[str]) -> None:
    """Print a warning for each prebuilt image that is past its end, or soon will be."""
    for warning in sorted({images.warning(address, date.today()) for address in addresses} - {None}):
        print(f"warning: {warning}", file=sys.stderr)


def show(job: jobs.Job, args: argparse.Namespace, service: sdk.Service, options: Mapping[str, str] = NO_OPTIONS, text: str = "") -> int:
    """Print what a dry run would keep and send, the file, or `text` in its place, and the command that sends it by hand; return 0."""
    own, name = job.file()
    path = Path(args.state_dir) / "submitted" / f"TIME-{name}"
    print(f"# {path}\n{text or own}{by_hand(job, service, path, options)}")
    return 0


def keep_and_connect(job: jobs.Job, args: argparse.Namespace, values: Mapping[str, str]) -> tuple[Path, sdk.Service]:
    """Write what is to be sent into a new file, have it checked, and return its path and the service.

    The check comes before the credentials: who has none yet learns first whether the job is right. Without one, nothing is
    kept that cannot be sent.
    """
    if args.no_check:
        service = sdk.connect(values, args)
        return cloud.keep(*job.file(), args.state_dir), service
    path = cloud.keep(*job.file(), args.state_dir)
    cloud.check(path, values)
    return path, sdk.connect(values, args)


def by_hand(job: jobs.Job, service: sdk.Service, path: Path, options: Mapping[str, str] = NO_OPTIONS) -> str:
    """Return the line of the shell that sends a file without this program; `options` are as `sdk.create` has them."""
    if job.gcloud_takes_it:
        return cloud.command(jobs.gcloud_command(job, path, service.project, service.region))
    reason = "it refuses the file's empty pool" if job.kind.group else f"it knows no {job.kind.title}s"
    query = "&".join(f"{schema.camel_case(name)}={value}" for name, value in options.items())
    url = f"{service.url}/v1/{service.parent}/{job.kind.collection}{'?' * bool(query)}{query}"
    return f"# gcloud cannot send it, for {reason}; by hand:\n$ {jobs.curl_command(url, path)}"


def send(
    job: jobs.Job, args: argparse.Namespace, service: sdk.Service, path: Path, cancel: threading.Event,
    options: Mapping[str, str] = NO_OPTIONS,
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """Print the line that does the same by hand, create the job, print what there is of it, and follow it if --wait is given.

    Returns:
        The exit code, 0 unless the job that was waited for did not succeed, and the job as it was last, if it was.
    """
    if job.flags:
        words = jobs.gcloud_command(job, path, service.project, service.region)
        name, state = _created(cloud.run([*words, "--format=json"]))
    else:
        print(by_hand(job, service, path, options), flush=True)
        created = sdk.create(service, job, options)
        name, state = created.name, created.state.name
    report(job, service, name, state)
    return follow(job, args, service, name, cancel) if args.wait else (0, {})


def _created(said: str) -> tuple[str, str]:
    """Return the name and state of the job that gcloud created; in what it said, the lines of the image's build come first."""
    try:
        answer = json.loads(said[said.rfind("\n{") + 1 :])
        return answer["name"], answer.get("state", "PENDING")
    except (ValueError, KeyError):
        text = f"gcloud ended well and did not say what it created, but {quoted(said[-80:])}"
        raise cloud.CloudError(f"{text}: see `gcloud ai custom-jobs list` before you send it again.") from None


def report(job: jobs.Job, service: sdk.Service, name: str, state: str) -> None:
    """Print what was submitted under which name, where to see it, and the commands for its logs and its end."""
    number, where = name.rpartition("/")[2], f"--project={service.project} --region={service.region}"
    group, commands = job.kind.group, {}
    if group:
        commands = {"logs": f"gcloud ai {group} stream-logs {number} {where}", "cancel": f"gcloud ai {group} cancel {number} {where}"}
    else:
        if job.kind is jobs.PIPELINE:  # its custom job has its name, once it is there
            newest = f"gcloud ai custom-jobs list {where} --filter=displayName:{shlex.quote(job.message.display_name)}"
            newest += " --sort-by=~createTime --limit=1 --format='value(name)'"
            commands["logs"] = f"gcloud ai custom-jobs stream-logs {where} $({newest})"
        verb = "pause" if job.kind is jobs.SCHEDULE else "cancel"
        commands[verb] = jobs.curl_command(f"{service.url}/v1/{name}:{verb}")
    print(f"submitted {job.kind.title} {name}\n  state   {cloud.plain_state({'state': state})}")
    print(f"  console https://console.cloud.google.com/{job.kind.page.format(service.region, number)}?project={service.project}")
    print("\n".join(f"  {verb:7} $ {line}" for verb, line in commands.items()), flush=True)


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
