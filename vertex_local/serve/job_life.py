"""A job's states, from its record's creation to its end, and what becomes of it when the service ends first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .executor import Stopped
from .local import Local
from .rest import ApiError, stamp

STOPPED = "the local service was stopped while the job was under way; create the job again"
KINDS = ("customJobs", "hyperparameterTuningJobs", "trainingPipelines")


def settle(local: Local) -> int:
    """Mark as failed what a service that was killed left unfinished; return how many that were."""
    count = 0
    for kind in KINDS:
        for document in local.records.list(kind):
            if "endTime" not in document:
                hint = f" (or continue it: python -m vertex_local tune --job_id {document['name'].rpartition('/')[2]})"
                message = STOPPED + hint * (kind == "hyperparameterTuningJobs")
                update(local, document["name"], lambda job: _close(job, "FAILED", {"code": 14, "message": message}))
                count += 1
    return count


def update(local: Local, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a job's record, and its time."""

    def touched(document: dict[str, Any]) -> None:
        change(document)
        document["updateTime"] = stamp()

    local.records.change(name, touched)


def started(local: Local, name: str) -> None:
    """Note that a job runs, unless it is being cancelled already."""

    def change(document: dict[str, Any]) -> None:
        prefix = document["state"].partition("_STATE_")[0]
        document.setdefault("startTime", stamp())
        if document["state"].endswith("_PENDING"):
            document["state"] = f"{prefix}_STATE_RUNNING"

    update(local, name, change)


def end(local: Local, name: str, state: str, error: dict[str, Any] | None) -> None:
    """Note how a job ended."""
    update(local, name, lambda document: _close(document, state, error))
    local.say(f"{name}: {state}{': ' + error['message'] if error else ''}")


def _close(document: dict[str, Any], state: str, error: dict[str, Any] | None) -> None:
    prefix = document["state"].partition("_STATE_")[0]
    document.update(state=f"{prefix}_STATE_{state}", endTime=stamp())
    if error:
        document["error"] = error


def run(local: Local, name: str, work: Any, cancel: threading.Event) -> None:
    """See a job to its end and write down how it went; whatever happens, it does not stay RUNNING."""
    try:
        local.executor.take_turn(cancel)
        try:
            state, error = work(name, cancel)
        finally:
            local.executor.end_turn()
    except Stopped:
        state, error = "CANCELLED", None
    except ApiError as failure:
        state, error = "FAILED", failure.rpc
    except Exception as failure:  # a job that cannot be started, or a fault of ours: the job has failed, not the service
        code = 3 if isinstance(failure, ValueError) else 13
        state, error = "FAILED", {"code": code, "message": str(failure) or type(failure).__name__}
    end(local, name, *wish(local, state, error))


def wish(local: Local, state: str, error: dict[str, Any] | None) -> tuple[str, dict[str, Any] | None]:
    """Return the end of a job as its user sees it: only what a user cancelled is CANCELLED."""
    if state != "CANCELLED":
        return state, error
    if local.executor.stopping.is_set():
        return "FAILED", {"code": 14, "message": STOPPED}
    return state, {"code": 1, "message": "CANCELED"}
