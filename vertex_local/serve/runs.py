"""How the service runs a custom job or a tuning job on this machine, with its TensorBoard instance and its lineage."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from ..job import buckets, job_file
from ..job.job_file import JobFile
from ..job.schema import SpecError
from ..local import cluster, job_record, report
from ..local.plan import RunOptions
from ..metadata import lineage
from . import messages, tensorboards
from .jobs import End, Work
from .local import Local
from .rest import ApiError


def custom(local: Local, job: Message, field: str, variables: Mapping[str, str] | None = None) -> Work:
    """Check a CustomJobSpec and return the function that runs it.

    Args:
        field: the request's field that holds the spec, for errors.
        variables: a training pipeline's, for every replica.

    Raises:
        ApiError: the spec breaks a rule.
    """
    messages.required(job, "worker_pool_specs", where=f"{field}.")
    with _errors_of(field, "jobSpec"):
        checked = job_file.of_message(_completed(job, {}), "job")

    def work(name: str, cancel: threading.Event) -> End:
        options = _options(local, name)
        log = Log(local.state / "jobs" / str(options.job_id), lambda: job_record.running(local.records, name))
        with _tracked(local, name, checked, log.say):
            result = cluster.run(checked, options, variables=variables, report=log, cancel=cancel)
        log.say(f"job {result.job_id}: {result.state}")
        return _end(result)

    return work


def tuning(local: Local, job: Message, field: str = "", variables: Mapping[str, str] | None = None) -> Work:
    """Check a HyperparameterTuningJob and return the function that runs it; arguments and errors as for `custom`."""
    from ..tuning import runner, study

    where = f"{field}." if field else ""
    messages.required(job, "study_spec", "trial_job_spec.worker_pool_specs", where=where)
    with _errors_of(field, ""):
        search = study.of(job_file.of_message(_completed(job, variables or {}), "job"))

    def work(name: str, cancel: threading.Event) -> End:
        def on_trial(trial: Mapping[str, Any]) -> None:
            job_record.running(local.records, name)
            job_record.update(local.records, name, lambda kept: kept.update(trials=_with(kept.get("trials", []), _shown(trial))))

        with _tracked(local, name, search.job, local.say):
            result = runner.run(search, _options(local, name), cancel=cancel, on_trial=on_trial)
        trials = [_shown(trial) for trial in result.trials]
        job_record.update(local.records, name, lambda kept: kept.update(trials=trials))
        return _end(result)

    return work


@contextlib.contextmanager
def _tracked(local: Local, name: str, job: JobFile, say: Callable[[str], None]) -> Iterator[None]:
    """Fill the job's TensorBoard instance, if it has one, while the block runs; at its end, record what the job has left."""
    output, title = job.output, local.known(name).get("displayName", "")
    follower = _follower(local, name, job, title, say) if job.spec.tensorboard and output else None
    with tensorboards.followed(follower, say), lineage.kept(local.records, name, title, output, local.buckets, say):
        yield


def _follower(local: Local, name: str, job: JobFile, title: str, say: Callable[[str], None]) -> tensorboards.Follower | None:
    """Return the follower that copies the event files of the job, or of its trials, into its TensorBoard instance."""
    tensorboard = tensorboards.find(local.records, job.spec.tensorboard)
    if tensorboard is None:
        say(f"note: {job.spec.tensorboard} is not a TensorBoard instance of this service: it gets nothing from this job.")
        return None
    base = Path(buckets.to_path(job.output or "", local.buckets))

    def folders() -> dict[str, Path]:
        if job.kind == job_file.TUNING:
            return {path.parent.name: path for path in base.glob("*/logs")}
        return {"": base / "logs"}

    return tensorboards.Follower(local.records, tensorboard, name, title, folders)


def _options(local: Local, name: str) -> RunOptions:
    """Return the options for the job of that name: with its project and region; the service itself records it in the store."""
    _, project, _, region, *_, number = name.split("/")
    return dataclasses.replace(local.options, job_id=number, google_project=project, region=region)


def _completed(job: Message, variables: Mapping[str, str]) -> Message:
    """Return a copy whose used pools see `variables` and, where they have no number of replicas, have one.

    An explicit 0 was refused when the request was read.
    """
    copy = type(job)()
    copy.CopyFrom(job)
    for pool in getattr(copy, "trial_job_spec", copy).worker_pool_specs:
        if task := pool.WhichOneof("task"):
            pool.replica_count = pool.replica_count or 1
            for name, value in variables.items():
                getattr(pool, task).env.add(name=name, value=value)
    return copy


def _shown(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial without the name of its job: here that is a folder, and no customJob that a client could get."""
    return {key: value for key, value in trial.items() if key != "customJob"}


def _with(trials: list[dict[str, Any]], trial: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted([*(other for other in trials if other["id"] != trial["id"]), trial], key=lambda each: int(each["id"]))


def _end(result: Any) -> End:
    state = job_record.plain_state({"state": result.state})
    return state, {"code": 3, "message": result.error or "the job failed"} if state == "FAILED" else None


@contextlib.contextmanager
def _errors_of(field: str, own: str) -> Iterator[None]:
    """Turn the error for a broken rule into the API's error, with the request's field.

    Args:
        field: the request's field that holds the message; "" if the message is the request's own.
        own: the beginning of the rule's field that the request does not have, such as jobSpec.
    """
    try:
        yield
    except SpecError as error:
        path = re.sub(rf"^{own}(\.|$)", "", error.field) if own else error.field
        where = ".".join(filter(None, (field, path)))
        text = f"{where}: {error.problem}" if where else error.problem
        if "${" in text:
            text += " A request is taken as it is; scripts/submit_job fills in jobs/settings.yaml."
        raise ApiError("INVALID_ARGUMENT", text, where) from None


class Log(report.Quiet):
    """Writes lines about the whole job to a log beside its replicas' logs; calls `started` at the first update, when they run."""

    def __init__(self, folder: Path, started: Callable[[], None]):
        self.folder, self.started = folder, started

    def say(self, text: str) -> None:
        for name in ("logs", "lines"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        data = (text.replace("\n", " ") + "\n").encode("utf-8", "replace")
        with open(self.folder / "logs" / "service.log", "ab") as log, open(self.folder / "lines" / "service.log", "a") as lines:
            log.write(data)
            lines.write(f"{time.time():.6f} out {len(data)}\n")

    def update(self, replicas: Any) -> None:
        if self.started:
            started, self.started = self.started, None
            started()
