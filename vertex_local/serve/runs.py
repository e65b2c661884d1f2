"""The two ways in which a job of the service runs on this machine; everything else asks for them here."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..job import spec
from ..local import cluster, job_record, report
from . import messages
from .jobs import End, Work
from .local import Local
from .rest import ApiError

if TYPE_CHECKING:
    from google.protobuf.message import Message

# What YAML takes for the end of a line, or drops, where it stands unescaped.
_SPECIAL = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")


def custom(local: Local, job: Message, field: str, variables: Mapping[str, str] | None = None) -> Work:
    """Check a CustomJobSpec and return what runs it.

    Args:
        field: where a request has the spec, for errors.
        variables: of a training pipeline, for every replica.
    """
    messages.required(job, "worker_pool_specs", where=f"{field}.")
    with _errors_of(field):
        parsed = spec.loads(_text(job), "job")

    def work(name: str, cancel: threading.Event) -> End:
        number = name.rpartition("/")[2]
        with contextlib.ExitStack() as stack:

            def started() -> None:
                stack.enter_context(job_record.held(log.folder))
                job_record.running(local.records, name)

            log = _Log(local.state / "jobs" / number, started)
            result = cluster.run(
                parsed, state_dir=local.state, bucket_root=local.buckets, project_dir=local.project_dir, python=local.python,
                job_id=number, with_index=local.with_index, variables=variables, report=log, cancel=cancel,
            )  # fmt: skip
        log.say(f"job {result.job_id}: {result.state}")
        return _end(result)

    return work


def tuning(local: Local, job: Message, field: str = "", variables: Mapping[str, str] | None = None) -> Work:
    """Check a HyperparameterTuningJob and return what runs it; arguments as for `custom`."""
    from ..tuning import runner, study

    where = f"{field}." if field else ""
    messages.required(job, "study_spec", "trial_job_spec.worker_pool_specs", where=where)
    with _errors_of(field):
        search = study.loads(_text(_with_env(job, variables or {})), "job")

    def work(name: str, cancel: threading.Event) -> End:
        def on_trial(trial: Mapping[str, Any]) -> None:
            job_record.running(local.records, name)
            job_record.update(local.records, name, lambda kept: kept.update(trials=_with(kept.get("trials", []), _shown(trial))))

        result = runner.run(
            search, state_dir=local.state, bucket_root=local.buckets, project_dir=local.project_dir, python=local.python,
            job_id=name.rpartition("/")[2], with_index=local.with_index, cancel=cancel, on_trial=on_trial,
        )  # fmt: skip
        trials = [_shown(trial) for trial in result.trials]
        job_record.update(local.records, name, lambda kept: kept.update(trials=trials))
        return _end(result)

    return work


def _with_env(job: Message, variables: Mapping[str, str]) -> Message:
    """Return a tuning job whose trials see `variables`."""
    copy = type(job)()
    copy.CopyFrom(job)
    for pool in copy.trial_job_spec.worker_pool_specs:
        task = pool.container_spec if pool.HasField("container_spec") else pool.python_package_spec
        if pool.WhichOneof("task"):
            for name, value in variables.items():
                task.env.add(name=name, value=value)
    return copy


def _shown(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial without the name of its job, which is a folder here and no customJob that could be asked for."""
    return {key: value for key, value in trial.items() if key != "customJob"}


def _with(trials: list[dict[str, Any]], trial: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted([*(other for other in trials if other["id"] != trial["id"]), trial], key=lambda each: int(each["id"]))


def _end(result: Any) -> End:
    state = job_record.plain_state({"state": result.state})
    return state, {"code": 3, "message": result.error or "the job failed"} if state == "FAILED" else None


@contextlib.contextmanager
def _errors_of(field: str) -> Iterator[None]:
    """Turn the error of a job file's reader, which begins with `job` and a line, into the API's with its field."""
    try:
        yield
    except ValueError as error:
        text = re.sub(r"^job(:\d+)?: ", "", str(error))
        path = re.match(r"([\w.\[\]]+): ", text)
        where = ".".join(filter(None, (field, path[1] if path else "")))
        if "${" in text:
            text += " A request is taken as it is; scripts/submit_job fills in jobs/settings.yaml."
        raise ApiError("INVALID_ARGUMENT", f"{field}: {text}" if field else text, where) from None


def _text(message: Message) -> str:
    """Return a message as the text of a job file, in which YAML finds what JSON holds."""
    text = json.dumps(messages.to_json(message), indent=1, ensure_ascii=False)
    return _SPECIAL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class _Log(report.Quiet):
    """Keeps what is said about the job as a whole beside its replicas' logs; the first update means that they run."""

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
