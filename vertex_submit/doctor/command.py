"""Look for what would keep your first job from being sent: on this machine and, with your credentials, in the project.

    python -m vertex_local doctor                          # with the settings of jobs/settings.yaml
    python -m vertex_local doctor jobs/taxifare.yaml       # that job's images and quotas, too

Nothing is changed, made or sent. Each line is ok, warning, missing or not looked at, with the command that mends it after
`->`. The exit code is 1 if a job could not be sent.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vertex_local import cli
from vertex_local.errors import UserError

from . import machine
from .findings import MISSING, OK, SKIPPED, WARNING, Check, Finding, look

if TYPE_CHECKING:
    from .. import jobs

SECONDS = 40  # for each look
CHECK = "A job can be sent. What it would do and cost: python -m vertex_local check FILE"
SETTINGS = ("project", "region", "bucket", "repository")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(prog="python -m vertex_local doctor", description=__doc__)
    parser.add_argument("job", nargs="?", metavar="FILE", help="a custom or tuning job's file (default: only jobs/settings.yaml is read)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--offline", action="store_true", help="look at this machine only, ask nobody")
    parser.add_argument("--seconds", metavar="N", type=cli.whole(1), default=SECONDS, help="most for each look (default: %(default)s)")
    for name in SETTINGS:
        parser.add_argument(f"--{name}", metavar="NAME", help="another than the settings say")
    return parser


def main(argv: Sequence[str]) -> int:
    """Look, print, and return the exit code: 0 if a job can be sent, 1 if not, 2 for a mistake in the command."""
    args = build_parser().parse_args(argv)
    return cli.supervised(lambda cancel: _run(args, cancel))


def _run(args: argparse.Namespace, cancel: threading.Event) -> int:
    found = []
    for finding in _look(args, cancel):
        if cancel.is_set():
            return 1
        found.append(finding)
        if not args.json:
            print(finding, flush=True)
    missing = sum(finding.level == MISSING for finding in found)
    if args.json:
        print(json.dumps({"findings": [dataclasses.asdict(finding) for finding in found], "can_send": not missing}, indent=1))
        return 1 if missing else 0
    counts = ", ".join(f"{sum(finding.level == level for finding in found)} {level}" for level in (MISSING, WARNING, SKIPPED))
    print(f"{counts}. {'A job could not be sent yet.' if missing else CHECK}")
    return 1 if missing else 0


def _look(args: argparse.Namespace, cancel: threading.Event) -> Iterator[Finding]:
    """Yield what is found, the settings first: what is asked for later depends on them."""
    packages = machine.packages()
    if any(finding.level == MISSING for finding in packages):  # settings are YAML, and the project is asked by Google's packages
        yield from look(machine.checks(None), args.seconds, cancel)
        yield Finding(SKIPPED, "project", "settings and project need the extra [cloud]")
        return
    values, found = _settings(args)
    yield from look(machine.checks(values.get("region")), args.seconds, cancel)
    yield from found
    job, found = _job(args)
    yield from found
    if args.offline:
        yield Finding(SKIPPED, "project", "--offline was given")
    elif not {"project", "region", "bucket"} <= values.keys():
        yield Finding(SKIPPED, "project", "it needs project, region and bucket")
    else:
        yield from _project(args, values, job, cancel)


def _settings(args: argparse.Namespace) -> tuple[dict[str, str], list[Finding]]:
    """Return the settings that can be used, and what is to be said of all."""
    from vertex_local.job import settings

    from .. import cloud

    folder = Path(args.job).parent if args.job else Path("jobs")
    path = folder / "settings.yaml"
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name)}
    try:
        values = settings.load(folder, given)
    except UserError as error:
        return {}, [Finding(MISSING, "settings", str(error))]
    local = cloud.is_local(cloud.gcloud_endpoint())
    lacking = [name for name in ("project", "region", "bucket") if name not in values]
    left = [name for name, value in values.items() if value in settings.PLACEHOLDERS and not local]
    problems = {name: "is not set" for name in lacking} | {name: f"is the placeholder {values[name]}" for name in left}
    found = [
        Finding(MISSING, "settings", f"{name} {problem}", f"put your own into {path}, or give --{name}")
        for name, problem in problems.items()
    ]  # fmt: skip
    text = ", ".join(f"{name} {values[name]}" for name in SETTINGS if name in values)
    return {name: value for name, value in values.items() if name not in left}, found or [Finding(OK, "settings", f"{path}: {text}")]


def _job(args: argparse.Namespace) -> tuple[jobs.Job | None, list[Finding]]:
    """Return the job of the file, if one was given and can be read."""
    if not args.job:
        return None, [Finding(SKIPPED, "job", "its images and quotas", "give a job's file, such as jobs/taxifare.yaml")]
    from vertex_local.job import job_file, schema

    from .. import jobs

    given: Mapping[str, str] = {name: getattr(args, name) for name in SETTINGS if getattr(args, name)}
    try:
        keys = schema.top_keys(job_file.read_text(args.job, given), args.job)
        kind = jobs.TUNING if "trialJobSpec" in keys else jobs.CUSTOM
        return jobs.read(kind, args.job, given), []
    except (UserError, OSError) as error:
        return None, [Finding(MISSING, "job", str(error))]


def _project(
    args: argparse.Namespace, values: Mapping[str, str], job: jobs.Job | None, cancel: threading.Event
) -> Iterator[Finding]:  # fmt: skip
    """Yield what is found with the user's credentials, and with none that there are none."""
    from .google_api import Google
    from .project import Project

    who: list[Any] = []
    found = list(look([Check("credentials", lambda: _credentials(who), vital=True)], args.seconds, cancel))
    yield from found
    if who:
        yield from look(Project(Google(who[0], values["region"]), values, job).checks(), args.seconds, cancel)
    else:
        yield Finding(SKIPPED, "project", "there are no credentials to look at it with")


def _credentials(who: list[Any]) -> Finding:
    """Put the credentials that a job would be sent with into `who`, once they are seen to give a token."""
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    from .. import cloud, sdk

    token_file = os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE")
    try:
        found = sdk.credentials(token_file, local=cloud.is_local(cloud.gcloud_endpoint()))
        if isinstance(found, AnonymousCredentials):
            text = "none are sent, as the service on this machine wants none"
        else:
            if not found.token:
                found.refresh(Request())
            owner = f"the token in {token_file}" if token_file else "a user's"
            text = f"found: {getattr(found, 'service_account_email', None) or owner}"
    except (cloud.CloudError, UserError) as error:
        text = str(error).partition(": run `")[0].partition(". ")[0]  # the remedy stands behind it
        return Finding(MISSING, "credentials", text, "gcloud auth application-default login")
    except GoogleAuthError as error:
        return Finding(MISSING, "credentials", f"they give no token: {sdk.reason(error)[:300]}", "gcloud auth application-default login")
    who.append(found)
    return Finding(OK, "credentials", text)
