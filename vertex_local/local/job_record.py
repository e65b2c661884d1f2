"""A job's record from its creation to its end: the one state machine of custom jobs, tuning jobs and pipelines.

    PENDING -> RUNNING -> SUCCEEDED | FAILED | CANCELLED, with CANCELLING before the end if somebody cancels the job

The process that runs a job holds a lock on its folder. The kernel frees the lock when the process ends, in whatever way.
A job whose record says RUNNING while nobody holds its lock was therefore killed; `settle` records it as failed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..job.times import now
from .store import Store, private_folder, replace_text

KINDS = ("customJobs", "hyperparameterTuningJobs", "batchPredictionJobs", "trainingPipelines", "pipelineJobs")
SUCCEEDED, FAILED, CANCELLED = ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
LOCK = ".lock"
SERVICE_LOCK = "serve/lock"  # held by a state folder's service, in whose queue the PENDING jobs wait
KILLED = "the process that ran it was killed"


class InUse(Exception):
    """Another process holds this folder; `process` is its number, as text."""

    def __init__(self, folder: Path, process: str):
        super().__init__(f"{folder} is held by process {process}")
        self.process = process


def prefix(kind: str) -> str:
    """Return what a kind's states begin with: JOB_STATE_ or PIPELINE_STATE_."""
    return "PIPELINE_STATE_" if kind in ("trainingPipelines", "pipelineJobs") else "JOB_STATE_"


def plain_state(document: Mapping[str, Any]) -> str:
    """Return a record's state without its prefix, such as RUNNING."""
    return re.sub("^(JOB|PIPELINE)_STATE_", "", document.get("state", ""))


def is_over(document: Mapping[str, Any]) -> bool:
    """Tell whether a job has ended."""
    return plain_state(document) in ENDED


def add(store: Store, name: str, kind: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Keep a new job as PENDING and return its record; raise `store.Taken` if there is one of that name."""
    when = now()
    return store.add(name, kind, {"name": name, **document, "state": f"{prefix(kind)}PENDING", "createTime": when, "updateTime": when})


def update(store: Store, name: str, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any] | None:
    """Let `change` alter a job's record, set its updateTime, and return it; None if there is no such record."""

    def touched(document: dict[str, Any]) -> None:
        change(document)
        document["updateTime"] = now()

    return store.change(name, touched)


def running(store: Store, name: str) -> None:
    """Note that a job runs, unless it is being cancelled or is over."""

    def change(document: dict[str, Any]) -> None:
        document.setdefault("startTime", now())
        if plain_state(document) == "PENDING":
            _set_state(document, "RUNNING")

    update(store, name, change)


def cancelling(store: Store, name: str) -> None:
    """Note that a job has been asked to end, unless it is over."""

    def change(document: dict[str, Any]) -> None:
        if not is_over(document):
            _set_state(document, "CANCELLING")

    update(store, name, change)


def end(store: Store, name: str, state: str, error: Mapping[str, Any] | None = None) -> None:
    """Note how a job ended; the first end counts.

    Args:
        error: a google.rpc.Status: {"code": …, "message": …}.
    """

    def change(document: dict[str, Any]) -> None:
        if is_over(document):
            return
        _set_state(document, state)
        document["endTime"] = now()
        if error:
            document["error"] = dict(error)
        _end_tasks(document, state, error)

    update(store, name, change)


def _end_tasks(document: dict[str, Any], state: str, error: Mapping[str, Any] | None) -> None:
    """Note that the tasks of a pipeline that were still under way have ended with it."""
    for task in document.get("jobDetail", {}).get("taskDetails", []):
        if "endTime" not in task:
            task.update(state=state, endTime=document["endTime"])
            task.setdefault("pipelineTaskStatus", []).append({"updateTime": document["endTime"], "state": state})
            if error:
                task["error"] = dict(error)


def _set_state(document: dict[str, Any], state: str) -> None:
    before = document["state"]
    document["state"] = before[: len(before) - len(plain_state(document))] + state


# ------------------------------------------------------------------ who runs it


_ours: set[Path] = set()  # folders that this process holds


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of the job with this folder as long as the context lasts; raise InUse if another process holds it.

    If this process holds it already, the outer context keeps it.
    """
    if is_ours(folder):
        yield
        return
    private_folder(folder)
    with locked(folder / LOCK):
        _ours.add(folder.resolve())
        try:
            yield
        finally:
            _ours.discard(folder.resolve())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file and write this process's number into it; the kernel frees the lock if the process dies.

    Raises:
        InUse: another process holds it; the error has that process's number.
    """
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InUse(path.parent, file.read().strip()) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_ours(folder: Path) -> bool:
    """Tell whether this process holds the job of this folder."""
    return folder.resolve() in _ours


def reopen(store: Store, name: str, document: Mapping[str, Any]) -> None:
    """Note that a job which has ended runs again, with the fields of `document`: a study is continued."""

    def change(kept: dict[str, Any]) -> None:
        for field in ("endTime", "error"):
            kept.pop(field, None)
        kept.update(document)
        _set_state(kept, "RUNNING")

    update(store, name, change)


def is_held(folder: Path) -> bool:
    """Tell whether a process runs the job of this folder."""
    return _is_locked(folder / LOCK)


def service_runs(state_dir: Path) -> bool:
    """Tell whether a job service runs with this state folder."""
    return _is_locked(state_dir / SERVICE_LOCK)


def _is_locked(path: Path) -> bool:
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def settle(
    store: Store, state_dir: Path, hint: Callable[[Mapping[str, Any]], str] = lambda document: "", queued: bool = False
) -> list[str]:  # fmt: skip
    """Record jobs whose process is gone as failed, in the store and in `result.json`; return their names.

    Args:
        hint: what to add to the message of a record, such as how to go on with a study.
        queued: record jobs that wait in a service's queue as failed, too: a service that has just started has an empty queue.
    """
    lost = []
    has_queue = not queued and service_runs(state_dir)
    for kind in KINDS:
        for document in store.list(kind):
            folder = state_dir / "jobs" / document["name"].rpartition("/")[2]
            if is_over(document) or is_held(folder) or (has_queue and plain_state(document) == "PENDING"):
                continue
            message = KILLED + hint(document)
            end(store, document["name"], FAILED, {"code": 14, "message": message})
            for path in (folder, *folder.parent.glob(f"{folder.name}-trial-*")):
                _settle_result(path / "result.json", message)
            lost.append(document["name"])
    return lost


def _settle_result(path: Path, message: str) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError):  # there is none, or it is not ours
        result = json.loads(path.read_text())
        if result["state"] == "JOB_STATE_RUNNING":
            replace_text(path, json.dumps({**result, "state": "JOB_STATE_FAILED", "error": message}, indent=1) + "\n")
