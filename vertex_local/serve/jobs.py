"""What custom jobs, tuning jobs, batch predictions and training pipelines share: they are created, queued, cancelled and forgotten."""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..local import job_record
from ..local import jobs as local_jobs
from . import messages
from .executor import Stopped
from .local import Local, location_of
from .rest import ApiError
from .standard_methods import Resources

if TYPE_CHECKING:
    from google.protobuf import empty_pb2
    from google.protobuf.message import Message


STOPPED = "the local service was stopped while the job was under way; create the job again"
CANCELED = {"code": 1, "message": "CANCELED"}
LONGEST_NAME = 128
# Fields that only the service sets.
_OUTPUT_ONLY = (
    "name", "state", "createTime", "startTime", "endTime", "updateTime", "error", "trials", "webAccessUris", "trainingTaskMetadata",
    "satisfiesPzs", "satisfiesPzi", "modelVersionId", "outputInfo", "completionStats", "partialFailures", "resourcesConsumed",
    "jobDetail", "templateMetadata",
)  # fmt: skip

# How a job ended: its state, and the error of one that failed.
End = tuple[str, "dict[str, Any] | None"]
# Runs a checked job under its name, until it ends or the event is set.
Work = Callable[[str, threading.Event], End]


def check_name(job: Message) -> None:
    """Refuse a job without a display name, or with one that is too long."""
    messages.required(job, "display_name")
    check_length_of_name(job)


def check_length_of_name(resource: Message, where: str = "") -> None:
    """Refuse a resource whose display name is too long; `where` comes before the field's name in the error."""
    if (length := len(resource.display_name)) > LONGEST_NAME:
        field = f"{where}displayName"
        raise ApiError("INVALID_ARGUMENT", f"{field} may have {LONGEST_NAME} characters at most; got {length:,}.", field)


def create(local: Local, parent: str, kind: str, job: Message, work: Work, job_id: str = "", **more: Any) -> dict[str, Any]:
    """Record a new, checked job with `more` fields, put it into the queue, and return its record.

    Args:
        job_id: the last part of its name, if the client chooses it.

    Raises:
        ApiError: too many jobs wait already, or the service is ending.
    """
    name = f"{parent}/{kind}/{job_id}" if job_id else local.new_name(parent, kind)
    document = job_record.add(local.records, name, kind, {**kept(job), **more})

    def run(cancel: threading.Event) -> None:
        _run(local, name, work, cancel)

    def drop() -> None:
        _end(local, name, "CANCELLED", None)

    try:
        local.executor_of(kind).start(name, run, drop)
    except ApiError:
        local.records.remove(name)
        raise
    local.say(f"{name}: {document['displayName']}")
    return document


def kept(job: Message) -> dict[str, Any]:
    """Return the fields of a new job's message that its record keeps."""
    return {key: value for key, value in messages.to_json(job).items() if key not in _OUTPUT_ONLY}


def _run(local: Local, name: str, work: Work, cancel: threading.Event) -> End:
    """Do a job's work, and record and return how it ended; whatever happens, the job does not stay RUNNING."""
    with contextlib.ExitStack() as stack:  # until the end is recorded: no other process takes the job for one that was killed
        try:
            if cancel.is_set():
                raise Stopped
            stack.enter_context(job_record.held(local_jobs.folder_of(local.state, name.rpartition("/")[2])))
            state, error = work(name, cancel)
        except Stopped:
            state, error = "CANCELLED", None
        except ApiError as failure:
            state, error = "FAILED", failure.rpc
        except Exception as failure:  # a job that cannot be started, or a bug of ours, fails the job and not the service
            code = 3 if isinstance(failure, ValueError) else 13
            state, error = "FAILED", {"code": code, "message": str(failure) or type(failure).__name__}
        return _end(local, name, state, error)


def _end(local: Local, name: str, state: str, error: dict[str, Any] | None) -> End:
    """Record and return the end of a job as its user sees it: CANCELLED only if the user cancelled it, else FAILED with the reason."""
    if state == "CANCELLED":
        state, error = ("FAILED", {"code": 14, "message": STOPPED}) if local.stopping else (state, CANCELED)
    job_record.end(local.records, name, state, error)
    local.say(f"{name}: {state}{': ' + error['message'] if error else ''}")
    return state, error


def run_backing(local: Local, name: str, kind: str, job: Message, work: Work, cancel: threading.Event) -> tuple[str, End]:
    """Run the job of the pipeline `name` in the pipeline's own thread; return the job's name and how it ended."""
    backing = local.new_name(location_of(name), kind)
    job_record.add(local.records, backing, kind, kept(job))
    key = "backingCustomJob" if kind == "customJobs" else "backingHyperparameterTuningJob"
    job_record.update(local.records, name, lambda pipeline: pipeline.update(trainingTaskMetadata={key: backing}))
    local.executor.share(name, backing)
    state, error = _run(local, backing, work, cancel)
    return backing, (state, None if state == "CANCELLED" else error)


def cancel(local: Local, name: str) -> None:
    """Ask a job to end; its state shows when it has."""
    check_under_way(local, name)
    if not local.executor_of(name.split("/")[-2]).cancel(name):
        raise ApiError("FAILED_PRECONDITION", f"{name} is run by another process than the service; end it there.")
    job_record.cancelling(local.records, name)


def forget(local: Local, name: str) -> None:
    """Remove the record of a job that is over; its files stay."""
    ended(local, name)
    local.records.remove(name)


def check_under_way(local: Local, name: str) -> None:
    """Refuse to cancel a job that is over."""
    document = local.known(name)
    if job_record.is_over(document):
        raise ApiError("FAILED_PRECONDITION", f"{name} is over ({document['state']}); there is nothing to cancel.")


def ended(local: Local, name: str) -> dict[str, Any]:
    """Return the record of a job that is over, so that it may be forgotten; refuse another."""
    document = local.known(name)
    if not job_record.is_over(document):
        raise ApiError("FAILED_PRECONDITION", f"{name} is in {document['state']}; cancel it first.")
    return document


class JobResources(Resources):
    """The standard methods of a kind of job, and how it is cancelled."""

    def cancel(self, request: Message) -> empty_pb2.Empty:
        """Ask a job to end; its state shows when it has."""
        from google.protobuf import empty_pb2

        cancel(self._local, request.name)
        return empty_pb2.Empty()

    def forget(self, name: str) -> None:
        """Remove the record of a job that is over; what it made and all files stay."""
        forget(self._local, name)


def settle(local: Local) -> int:
    """Record as failed the jobs that a killed service, or a killed run, left unfinished; return how many there were."""
    return len(job_record.settle(local.records, local.state, lambda document: _hint(local.state, document), queued=True))


def _hint(state: Path, document: Mapping[str, Any]) -> str:
    number = document["name"].rpartition("/")[2]
    hint = ": the job was stopped before its end; create it again"
    spec = state / "jobs" / number / "spec.yaml"
    if "studySpec" in document and spec.exists():
        command = ["python", "-m", "vertex_local", "tune", str(spec), f"--job_id={number}", f"--state_dir={state}"]
        hint += f", or continue it: {shlex.join(command)}"
    return hint
