"""google.cloud.aiplatform.v1.ScheduleService: pipeline jobs that are repeated at the times of a cron expression."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..job import times
from ..local import job_record
from . import jobs, lists, messages, pipeline_jobs, schedules
from .local import Local, location_of
from .operations import OperationPool
from .rest import ApiError
from .schedules import ACTIVE, KIND, PAUSED

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2
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
        self._local, self._operations = local, operations
        self._check_job = check_job  # refuses a pipeline job that could not run

    def create_schedule(self, request: types.CreateScheduleRequest) -> types.Schedule:
        """Check and record a new schedule; its first run is due at the next time of its cron expression."""
        schedule = request.schedule
        self._check(schedule, request.parent)
        name, now = self._local.new_name(request.parent, KIND), job_record.now()
        given = {key: value for key, value in messages.to_json(schedule).items() if key not in _OUTPUT_ONLY}
        document = {**given, "name": name, "state": ACTIVE, "createTime": now, "updateTime": now, "startedRunCount": "0"}
        schedules.advance(document, time.time())
        return messages.read(self._local.records.add(name, KIND, document), "Schedule")

    def get_schedule(self, request: types.GetScheduleRequest) -> types.Schedule:
        """Return a schedule."""
        return messages.read(self._local.known(request.name), "Schedule")

    def list_schedules(self, request: types.ListSchedulesRequest) -> types.ListSchedulesResponse:
        """Return one page of schedules."""
        return lists.answer(self._local.records, KIND, request, "Schedule", "schedules")

    def update_schedule(self, request: types.UpdateScheduleRequest) -> types.Schedule:
        """Change a schedule; its next run is the first of its times from now on."""
        changed = messages.changes(request.schedule, request.update_mask, _CHANGEABLE)

        def change(document: dict[str, Any]) -> None:
            messages.apply(document, changed)
            self._check(messages.read(document, "Schedule"), location_of(document["name"]))
            if document["state"] == ACTIVE:
                schedules.advance(document, time.time())

        return self._changed(request.schedule.name, change)

    def pause_schedule(self, request: types.PauseScheduleRequest) -> empty_pb2.Empty:
        """Start no more runs; those under way go on."""

        def change(document: dict[str, Any]) -> None:
            _expect(document, ACTIVE)
            document.update(state=PAUSED, lastPauseTime=job_record.now())

        return self._empty(request.name, change)

    def resume_schedule(self, request: types.ResumeScheduleRequest) -> empty_pb2.Empty:
        """Start runs again; with `catch_up`, also those that were due meanwhile."""

        def change(document: dict[str, Any]) -> None:
            _expect(document, PAUSED)
            document.update(state=ACTIVE, catchUp=request.catch_up, lastResumeTime=job_record.now())
            if not request.catch_up:
                schedules.advance(document, time.time())

        return self._empty(request.name, change)

    def delete_schedule(self, request: types.DeleteScheduleRequest) -> operations_pb2.Operation:
        """Forget a schedule; its pipeline jobs stay."""
        name = self._local.known(request.name)["name"]
        self._local.records.remove(name)
        return self._operations.finished(location_of(name), "DeleteOperationMetadata", None)

    def _check(self, schedule: Message, parent: str) -> None:
        """Refuse a schedule that could not run, or whose pipeline job could not."""
        _check(schedule, parent)
        job = messages.new("PipelineJob")
        job.CopyFrom(schedule.create_pipeline_job_request.pipeline_job)  # checking gives it a name
        self._check_job(self._local, parent, job, "")

    def _changed(self, name: str, change: Any) -> types.Schedule:
        document = job_record.update(self._local.records, name, change) or self._local.known(name)
        return messages.read(document, "Schedule")

    def _empty(self, name: str, change: Any) -> empty_pb2.Empty:
        from google.protobuf import empty_pb2

        self._changed(name, change)
        return empty_pb2.Empty()


def _expect(document: dict[str, Any], state: str) -> None:
    if document["state"] != state:
        raise ApiError("FAILED_PRECONDITION", f"{document['name']} is {document['state']}; it must be {state}.")


def _check(schedule: Message, parent: str) -> None:
    """Refuse a schedule that could not run."""
    where = "schedule."
    messages.unsupported(schedule, ("create_notebook_execution_job_request",), where=where)
    messages.required(schedule, "display_name", "cron", "create_pipeline_job_request.parent", where=where)
    messages.required(schedule, "create_pipeline_job_request.pipeline_job", where=where)
    if len(schedule.display_name) > jobs.LONGEST_NAME:
        raise ApiError("INVALID_ARGUMENT", f"schedule.displayName may have {jobs.LONGEST_NAME} characters at most.", f"{where}displayName")
    schedules.next_time(schedule.cron, time.time())
    field = f"{where}createPipelineJobRequest.parent"
    if schedule.create_pipeline_job_request.parent != parent:
        text = f"{field} takes the schedule's own location, {parent}; got {schedule.create_pipeline_job_request.parent[:200]!r}."
        raise ApiError("INVALID_ARGUMENT", text, field)
    if schedule.max_concurrent_run_count < 1:
        text = f"{where}maxConcurrentRunCount takes 1 or more; got {schedule.max_concurrent_run_count}."
        raise ApiError("INVALID_ARGUMENT", text, f"{where}maxConcurrentRunCount")
    for name in ("max_run_count", "max_concurrent_active_run_count"):
        if getattr(schedule, name) < 0:
            raise ApiError("INVALID_ARGUMENT", f"{where}{name} takes 0 or more; got {getattr(schedule, name)}.", f"{where}{name}")
    if schedule.HasField("end_time"):
        first = times.seconds(schedule.start_time) if schedule.HasField("start_time") else 0.0
        if times.seconds(schedule.end_time) <= max(first, time.time()):
            raise ApiError("INVALID_ARGUMENT", f"{where}endTime must be after startTime and in the future.", f"{where}endTime")
