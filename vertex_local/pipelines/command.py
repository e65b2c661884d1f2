"""Run a compiled pipeline on this machine, with its training steps as jobs of the local service.

    python -m vertex_local pipeline pipeline.yaml --parameter epochs=3 --parameter 'columns=["fare", "hour"]'

It uses the service that runs with the same --state_dir; if none does, it starts one for this run alone. The pipeline's outputs
go below --pipeline_root in a bucket. Exit codes: 0 the pipeline succeeded, 1 it failed, 2 it cannot be started, 128 + signal
it was cancelled.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from .. import cli
from ..errors import UserError, quoted
from ..job import buckets, pipeline_spec, settings, times
from ..local import job_record
from ..local.store import Store
from . import python, spec
from .service import Answer, Service
from .tasks import OVER, log_name

_PAUSE = 0.2  # seconds between two looks at the pipeline
_START = 120.0  # seconds for a service to be ready
_STOP = 60.0
_GROUPS = ("system.DagExecution", "system.Run")  # tasks that only hold others
PROJECT, REGION = "your-project", "us-central1"  # where no settings name others


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(
        prog="python -m vertex_local pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", help="compiled pipeline, YAML or JSON")
    parser.add_argument(
        "--parameter", metavar="NAME=VALUE", type=cli.pair, action="append", default=[],
        help="value of one of the pipeline's parameters; lists and objects in JSON; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--pipeline_root", metavar="GS_URI", help="folder for the pipeline's outputs (default: the spec's, or gs://BUCKET/pipelines)"
    )
    parser.add_argument("--no_caching", action="store_true", help="run every step, even if it ran before with the same inputs")
    parser.add_argument(
        "--failure_policy", choices=pipeline_spec.FAILURE_POLICIES, default="slow",
        help="slow (the default) goes on with what does not need a failed step, fast starts nothing more",
    )  # fmt: skip
    parser.add_argument("--job_id", metavar="ID", help="name of this run, must be new (default: the pipeline's name and the time)")
    parser.add_argument("--label", metavar="NAME=VALUE", type=cli.pair, action="append", default=[], help="label of this run; repeatable")
    parser.add_argument("--service_account", metavar="NAME", help="for steps that ask for it; nothing runs under it here")
    cli.add_place_flags(parser)
    settings.add_flags(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one pipeline and return its exit code."""
    args = build_parser().parse_args(argv)
    return cli.supervised(lambda cancel: _run(args, cancel))


def _run(args: argparse.Namespace, cancel: threading.Event) -> int:
    pipeline = pipeline_spec.read(args.spec)
    try:
        spec.check(pipeline.spec)
    except spec.PipelineError as error:
        raise UserError(f"{args.spec}: {error}") from None
    for warning in pipeline_spec.warnings(pipeline, date.today()):
        print(f"warning: {warning}", file=sys.stderr)
    known = settings.load(Path(args.project_dir, "jobs"), settings.from_flags(args))
    places = _of_settings(pipeline, known)
    values = {**places, **pipeline.values(args.parameter, places)}
    job_id = args.job_id or _new_id(pipeline.name)
    if not pipeline_spec.JOB_ID.fullmatch(job_id):
        raise UserError(f"--job_id: has up to 128 small letters, digits and '-' and begins with a letter; got {quoted(job_id)}.")
    body = _body(args, pipeline, values, known)
    python.find(Path(os.path.abspath(args.project_dir)))  # said before a service is started
    with _service(args, "google" if spec.uses_google(pipeline.spec) else "kfp", cancel) as service:
        parent = f"projects/{known.get('project', PROJECT)}/locations/{known.get('region', REGION)}"
        run = _Run(service, parent, job_id, Path(args.state_dir))
        run.create(body, rename=not args.job_id)
        return run.see(body, cancel)


def _of_settings(pipeline: pipeline_spec.Pipeline, known: Mapping[str, str]) -> dict[str, str]:
    """Return where the steps work, for a pipeline with the parameters `project` and `location`, as submitting fills them in, too."""
    given = {"project": known.get("project", PROJECT), "location": known.get("region", REGION)}
    return {name: value for name, value in given.items() if name in pipeline.parameters}


def _new_id(name: str) -> str:
    plain = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:100]
    return f"{plain if plain[0].isalpha() else f'pipeline-{plain}'}-{time.strftime('%Y%m%d%H%M%S')}"


def _body(
    args: argparse.Namespace, pipeline: pipeline_spec.Pipeline, values: dict[str, Any], known: Mapping[str, str]
) -> dict[str, Any]:
    """Return the PipelineJob in JSON form."""
    root = args.pipeline_root or pipeline.spec.get("defaultPipelineRoot") or f"gs://{known.get('bucket', 'your-bucket')}/pipelines"
    try:
        buckets.check_folder(root)
    except buckets.BucketError as error:
        raise UserError(f"--pipeline_root: {error}") from None
    return {
        "displayName": pipeline.name, "labels": dict(args.label),
        "pipelineSpec": pipeline.with_caching(False) if args.no_caching else pipeline.spec,
        "runtimeConfig": {
            "gcsOutputDirectory": root, "parameterValues": values, "failurePolicy": pipeline_spec.FAILURE_POLICIES[args.failure_policy],
        },
        **({"serviceAccount": args.service_account} if args.service_account else {}),
    }  # fmt: skip


# ------------------------------------------------------------------ the service


@contextlib.contextmanager
def _service(args: argparse.Namespace, needed: str, cancel: threading.Event) -> Iterator[Service]:
    """Yield the service of the state folder; start one, for as long as the context lasts, if none runs.

    Args:
        needed: the flag --pipelines of a service that is started.
    """
    from ..serve import endpoint

    state = Path(os.path.abspath(args.state_dir))
    if job_record.service_runs(state):
        yield Service.of(endpoint.find(state, wait=_START))
        return
    state.mkdir(parents=True, exist_ok=True)
    log = state / "pipeline-service.log"
    flags = ["--port=0", f"--state_dir={state}", f"--pipelines={needed}", *_passed_on(args)]
    command = [sys.executable, "-m", "vertex_local", "serve", *flags]
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        yield Service.of(_ready(process, state, log, cancel))
        _wait_for_others(state, cancel)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_others(state: Path, cancel: threading.Event) -> None:
    """Keep the service running until jobs that other clients have started meanwhile have ended."""
    told = False
    with contextlib.closing(Store(state)) as store:
        while not cancel.is_set() and (under_way := _under_way(store)):
            if not told:
                told = True
                print(f"the service goes on for {', '.join(under_way)}; Ctrl-C ends it, and them", flush=True)
            cancel.wait(_PAUSE)


def _under_way(store: Store) -> list[str]:
    documents = [each for kind in job_record.KINDS for each in store.list(kind)]
    return [each["name"].rpartition("/")[2] for each in documents if not job_record.is_over(each)]


def _passed_on(args: argparse.Namespace) -> list[str]:
    """Return the flags that this command passes on to a service."""
    flags = [f"--{name}={value}" for name in ("bucket_root", "project_dir", "python", "containers") if (value := getattr(args, name))]
    flags += [f"--{name}" for name in ("with_index", "cloud_credentials") if getattr(args, name)]
    flags += [f"--build_arg={name}={value}" for name, value in args.build_arg]
    return flags + [f"--{name}={value}" for name in ("project", "region") if (value := getattr(args, name))]


def _ready(process: subprocess.Popen, state: Path, log: Path, cancel: threading.Event) -> Any:
    from ..serve import endpoint

    end = time.monotonic() + _START
    while time.monotonic() < end and process.poll() is None and not cancel.wait(_PAUSE):
        with contextlib.suppress(endpoint.EndpointError):
            return endpoint.find(state)
    if cancel.is_set():
        raise KeyboardInterrupt
    said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    raise UserError(f"the local service did not start: {said[-1].removeprefix('error: ')}; see all of it in {log}.")


# ------------------------------------------------------------------ one run


class _Run:
    """One run as its user sees it: a line when a task starts or ends, and a summary at the end."""

    def __init__(self, service: Service, parent: str, job_id: str, state_dir: Path):
        self.service, self.parent, self.job_id, self.state_dir = service, parent, job_id, state_dir
        self.shown: dict[str, str] = {}

    @property
    def name(self) -> str:
        return f"{self.parent}/pipelineJobs/{self.job_id}"

    def create(self, body: dict[str, Any], rename: bool) -> None:
        """Create the pipeline job.

        Args:
            rename: take the next free name if another run has this one, as two runs that start within a second would.
        """
        wanted = self.job_id
        for number in itertools.count(2):
            answer = self.service.ask("POST", f"{self.parent}/pipelineJobs?pipelineJobId={self.job_id}", body)
            if not (rename and answer.exists):
                break
            self.job_id = f"{wanted}-{number}"
        if answer.error:
            raise UserError(answer.error)

    def see(self, body: dict[str, Any], cancel: threading.Event) -> int:
        """Follow the pipeline job to its end and return the exit code."""
        print(f"pipeline {self.job_id}: {body['displayName']}, outputs in {body['runtimeConfig']['gcsOutputDirectory']}", flush=True)
        asked = False
        while True:
            job = self._shown()
            if job_record.is_over(job):
                return self._summary(job)
            if cancel.wait(_PAUSE) and not asked:
                asked = True
                print("cancelling: the steps that run are asked to end", flush=True)
                self.service.ask("POST", f"{self.name}:cancel", {})
            elif asked:
                time.sleep(_PAUSE)

    def _shown(self) -> dict[str, Any]:
        """Return the present job, after printing the tasks whose state has changed."""
        answer: Answer = self.service.ask("GET", self.name)
        if answer.error:
            raise UserError(f"the pipeline {self.job_id} is lost: {answer.error}; run it again.")
        for task in answer.content.get("jobDetail", {}).get("taskDetails", []):
            state = task.get("state", "")
            if self.shown.get(task["taskId"]) != state and not _is_group(task):
                self.shown[task["taskId"]] = state
                print(_line(task), flush=True)
        return answer.content

    def _summary(self, job: dict[str, Any]) -> int:
        steps = [task for task in job.get("jobDetail", {}).get("taskDetails", []) if not _is_group(task)]
        counts = {state: sum(task.get("state") == state for task in steps) for state in OVER}
        told = ", ".join(f"{count} {state.lower().replace('_', ' ')}" for state, count in counts.items() if count) or "no step"
        state, folder = job_record.plain_state(job), self.state_dir / "jobs" / self.job_id
        print(f"{state} after {times.describe(_seconds(job))}: {told.replace('skipped', 'as before')}; see {folder}", flush=True)
        if state == "FAILED":
            print(f"error: {job.get('error', {}).get('message', 'it failed')}", file=sys.stderr)
            failed = next((task for task in steps if task.get("state") == "FAILED"), None)
            if failed:
                where = "" if str(self.state_dir) == ".vertex_local" else f" --state_dir={self.state_dir}"
                print(f"its log: python -m vertex_local logs {self.job_id}{where} --replica {_log_name(failed)}", file=sys.stderr)
        return int(state != "SUCCEEDED")


def _is_group(task: Mapping[str, Any]) -> bool:
    return task["execution"]["schemaTitle"] in _GROUPS and task.get("state") != "NOT_TRIGGERED"


def _log_name(task: Mapping[str, Any]) -> str:
    attempts = sum(status["state"] == "RUNNING" for status in task["pipelineTaskStatus"])
    return log_name(task["taskUniqueName"], attempts)


def _line(task: Mapping[str, Any]) -> str:
    state, name, title = task.get("state", ""), task["taskUniqueName"], task["execution"]["displayName"]
    name += f" ({title})" if title != task["taskName"] else ""
    spent = f" {times.describe(_seconds(task))}" if state in OVER and "startTime" in task and state != "SKIPPED" else ""
    as_before = " (as before)" if state == "SKIPPED" else ""
    error = f": {task['error']['message']}" if state == "FAILED" and task.get("error", {}).get("message") else ""
    return f"{time.strftime('%H:%M:%S')} {state:13s} {name}{spent}{as_before}{error}"


def _seconds(each: Mapping[str, Any]) -> float:
    start = each.get("startTime") or each.get("createTime")
    return times.seconds(each["endTime"]) - times.seconds(start) if start and "endTime" in each else 0.0
