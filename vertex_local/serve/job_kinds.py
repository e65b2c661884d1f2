"""Custom jobs and tuning jobs: checked, and run by the local cluster."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..job import spec
from ..local import cluster, report
from . import job_life
from .local import Local
from .rest import ApiError, required

# Runs a checked job under its name until the event is set; returns its state and error.
Work = Callable[[str, threading.Event], "tuple[str, dict[str, Any] | None]"]


class _Log(report.Quiet):
    """Keeps what is said about the job as a whole beside its replicas' logs; the first update means that they run."""

    def __init__(self, folder: Path, started: Any):
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


def custom(
    local: Local, parent: str, body: dict[str, Any], field: str = "jobSpec", variables: Mapping[str, str] | None = None
) -> Work:  # fmt: skip
    """Check a CustomJob and return what runs it; `field` is where a request has the spec, `variables` its replicas' own."""
    required({field: body.get("jobSpec", {})}, f"{field}.workerPoolSpecs")
    with _field(field, "job"):
        job = spec.loads(_text(body["jobSpec"]), "job")

    def work(name: str, cancel: threading.Event) -> tuple[str, Any]:
        log = _Log(local.state / "jobs" / name.rpartition("/")[2], lambda: job_life.started(local, name))
        result = cluster.run(
            job, state_dir=local.state, bucket_root=local.buckets, project_dir=local.project_dir, python=local.python,
            job_id=name.rpartition("/")[2], with_index=local.with_index, variables=variables,
            report=log, cancel=cancel,
        )  # fmt: skip
        log.say(f"job {result.job_id}: {result.state}")
        return _outcome(result)

    return work


def tuning_job(local: Local, parent: str, body: dict[str, Any], field: str = "") -> Work:
    """Check a HyperparameterTuningJob and return what runs it; `field` is where a request has it."""
    from ..tuning import runner as tuning
    from ..tuning import study

    required(body, "studySpec", "trialJobSpec.workerPoolSpecs")
    with _field(field, "job"):
        search = study.loads(_text(body), "job")

    def work(name: str, cancel: threading.Event) -> tuple[str, Any]:
        def on_trial(trial: Mapping[str, Any]) -> None:
            job_life.started(local, name)
            job_life.update(local, name, lambda job: job.update(trials=_with(job.get("trials", []), _shown(trial))))

        result = tuning.run(
            search, state_dir=local.state, bucket_root=local.buckets, project_dir=local.project_dir, python=local.python,
            job_id=name.rpartition("/")[2], with_index=local.with_index, cancel=cancel, on_trial=on_trial,
        )  # fmt: skip
        trials = [_shown(trial) for trial in result.trials]
        job_life.update(local, name, lambda job: job.update(trials=trials))
        return _outcome(result)

    return work


def _shown(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial without the name of its job, which is a folder here and no customJob that could be asked for."""
    return {key: value for key, value in trial.items() if key != "customJob"}


def _with(trials: list[dict[str, Any]], trial: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted([*(other for other in trials if other["id"] != trial["id"]), trial], key=lambda each: int(each["id"]))


def _outcome(result: Any) -> tuple[str, dict[str, Any] | None]:
    state = result.state.removeprefix("JOB_STATE_")
    return state, {"code": 3, "message": result.error or "the job failed"} if state == "FAILED" else None


@contextlib.contextmanager
def _field(field: str, name: str) -> Iterator[None]:
    """Turn the error of a job file's reader, which begins with `name` and a line, into the API's with its field."""
    try:
        yield
    except ValueError as error:
        text = re.sub(rf"^{re.escape(name)}(:\d+)?: ", "", str(error))
        path = re.match(r"([\w.\[\]]+): ", text)
        where = ".".join(filter(None, (field, path[1] if path else "")))
        raise ApiError("INVALID_ARGUMENT", f"{field}: {text}" if field else text, where) from None


def _text(message: Mapping[str, Any]) -> str:
    return json.dumps(message, indent=1, ensure_ascii=False)
