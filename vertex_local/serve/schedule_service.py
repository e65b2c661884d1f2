"""google.cloud.aiplatform.v1.ScheduleService: pipeline jobs that are repeated at the times of a cron expression."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..job import times
from ..local import job_record
from . import filters, jobs, messages, pipeline_jobs, schedules
from .local import Local, location_of
from .operations import OperationPool
from .rest import ApiError
from .schedules import ACTIVE, KIND, PAUSED
from .standard_methods import Resources

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.protobuf import empty_pb2
    from google.protobuf.message import Message

CheckJob = Callable[[Local, str, "Message", str], Any]  # (local, location, job, the job's id)
_CHANGEABLE = (
    "display_name", "cron", "start_time", "end_time", "max_run_count", "max_concurrent_run_count", "max_concurrent_active_run_count",
    "allow_queueing", "create_pipeline_job_request",
)  # fmt: skip
_OUTPUT_ONLY = (
    "name", "state", "createTime", "updateTime", "nextRunTime", "lastPauseTime", "lastResumeTime", "startedRunCount", "catchUp",
    "lastScheduledRunResponse",
)  # fmt: skip


class ScheduleService:
    """Schedules of pipeline jobs; `schedules.Clock` starts their runs."""

    def __init__(self, local: Local, operations: OperationPool, check_job: CheckJob = pipeline_jobs.checked):
        self._local, self._check_job = local, check_job  # which refuses a pipeline job that could not run
        self._schedules = Resources(local, operations, "Schedule", KIND)
        self._schedules.add_to(self, "get", "list", "delete")

    def create_schedule(self, request: types.CreateScheduleRequest) -> types.Schedule:
        """Check and record a new schedule; its first run is due at the next time of its cron expression."""
        schedule = request.schedule
        self._check(schedule, request.parent)
        name, now = self._local.new_name(request.parent, KIND), job_record.now()
        given = {key: value for key, value in messages.to_json(schedule).items() if key not in _OUTPUT_ONLY}
        document = {**given, "name": name, "state": ACTIVE, "createTime": now, "updateTime": now, "startedRunCount": "0"}
        schedules.advance(document, time.time())
        return messages.read(self._local.records.add(name, KIND, document), "Schedule")

    def update_schedule(self, request: types.UpdateScheduleRequest) -> types.Schedule:
        """Change a schedule; its next run is the first of its times from now on."""
        changed = messages.changes(request.schedule, request.update_mask, _CHANGEABLE)
        wanted = self._local.known(request.schedule.name)
        messages.apply(wanted, changed)
        # Before the transaction: the check of a pipeline takes a while, and locks of its own.
        self._check(messages.read(wanted, "Schedule"), location_of(wanted["name"]))

        def change(document: dict[str, Any]) -> None:
            messages.apply(document, changed)
            if document["state"] == ACTIVE:
                schedules.advance(document, time.time())

        return messages.read(self._schedules.change(request.schedule.name, change), "Schedule")

    def pause_schedule(self, request: types.PauseScheduleRequest) -> empty_pb2.Empty:
        """Start no more runs; those under way go on."""
        return self._switch(request.name, PAUSED, lambda document: document.update(lastPauseTime=job_record.now()))

    def resume_schedule(self, request: types.ResumeScheduleRequest) -> empty_pb2.Empty:
        """Start runs again; with `catch_up`, also those that were due meanwhile."""

        def change(document: dict[str, Any]) -> None:
            document.update(catchUp=request.catch_up, lastResumeTime=job_record.now())
            if not request.catch_up:
                schedules.advance(document, time.time())

        return self._switch(request.name, ACTIVE, change)

    def _check(self, schedule: Message, parent: str) -> None:
        """Refuse a schedule that could not run, or whose pipeline job could not."""
        _check(schedule, parent)
        job = messages.new("PipelineJob")
        job.CopyFrom(schedule.create_pipeline_job_request.pipeline_job)  # checking gives it a name
        self._check_job(self._local, parent, job, "")

    def _switch(self, name: str, state: str, change: Callable[[dict[str, Any]], None]) -> empty_pb2.Empty:
        """Let `change` alter a schedule that is in another state than `state`, and put it into that."""
        from google.protobuf import empty_pb2

        def switch(document: dict[str, Any]) -> None:
            before = PAUSED if state == ACTIVE else ACTIVE
            if document["state"] != before:
                raise ApiError("FAILED_PRECONDITION", f"{document['name']} is {document['state']}; it must be {before}.")
            document["state"] = state
            change(document)

        self._schedules.change(name, switch)
        return empty_pb2.Empty()


def _check(schedule: Message, parent: str) -> None:
    """Refuse a schedule that could not run."""
    where = "schedule."
    messages.unsupported(schedule, ("create_notebook_execution_job_request",), where=where)
    messages.required(schedule, "display_name", "cron", "create_pipeline_job_request.parent", where=where)
    messages.required(schedule, "create_pipeline_job_request.pipeline_job", where=where)
    jobs.check_length_of_name(schedule, where)
    schedules.next_time(schedule.cron, time.time())
    field = f"{where}createPipelineJobRequest.parent"
    if schedule.create_pipeline_job_request.parent != parent:
        text = f"{field} takes the schedule's own location, {parent}; got {schedule.create_pipeline_job_request.parent[:200]!r}."
        raise ApiError("INVALID_ARGUMENT", text, field)
    for name, least in (("max_concurrent_run_count", 1), ("max_run_count", 0), ("max_concurrent_active_run_count", 0)):
        if (count := getattr(schedule, name)) < least:
            field = filters.camel(f"{where}{name}")
            raise ApiError("INVALID_ARGUMENT", f"{field} takes {least} or more; got {count}.", field)
    if schedule.HasField("end_time"):
        first = times.seconds(schedule.start_time) if schedule.HasField("start_time") else 0.0
        if times.seconds(schedule.end_time) <= max(first, time.time()):
            raise ApiError("INVALID_ARGUMENT", f"{where}endTime must be after startTime and in the future.", f"{where}endTime")
