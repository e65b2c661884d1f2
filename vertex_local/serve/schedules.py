"""Schedules of pipeline jobs: when a cron expression is due next, and the clock that starts runs while the service runs."""

from __future__ import annotations

import datetime
import threading
import time
import zoneinfo
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..job import times
from ..local import job_record
from . import messages
from .local import Local
from .rest import ApiError

if TYPE_CHECKING:
    from google.protobuf.message import Message

KIND = "schedules"
ACTIVE, PAUSED, COMPLETED = "ACTIVE", "PAUSED", "COMPLETED"
_LOOK = 1.0  # seconds between two checks of what is due
_MISSED = 60.0  # seconds: when the service starts, runs that were due longer ago are left out

# Creates a pipeline job: PipelineService.create_pipeline_job.
Create = Callable[["Message"], Any]


def next_time(cron: str, after: float) -> float | None:
    """Return when a cron expression is due next after `after`, in seconds since 1970; None if never.

    Args:
        cron: five fields, minute to day of the week; in UTC, or in the ZONE of `TZ=ZONE` or `CRON_TZ=ZONE` before them.

    Raises:
        ApiError: the text is not a cron expression.
    """
    try:
        from cronsim import CronSim, CronSimError
    except ImportError:
        raise ApiError("FAILED_PRECONDITION", "schedules need the package cronsim where the service runs: pip install cronsim.") from None
    fields, zone = cron.split(), "UTC"
    if fields and fields[0].partition("=")[0] in ("TZ", "CRON_TZ"):
        zone = fields.pop(0).partition("=")[2]
    try:
        if len(fields) != 5:
            raise CronSimError(f"{len(fields)} fields")
        start = datetime.datetime.fromtimestamp(after, zoneinfo.ZoneInfo(zone))
        return next(CronSim(" ".join(fields), start)).timestamp()
    except StopIteration:
        return None
    except (CronSimError, zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        text = "takes five fields, minute to day of the week, as '0 3 * * *' or 'TZ=Europe/Berlin 0 3 * * 1'"
        raise ApiError("INVALID_ARGUMENT", f"schedule.cron {text}; got {cron[:100]!r} ({error}).", "schedule.cron") from None


def advance(document: dict[str, Any], after: float) -> None:
    """Set a schedule's next run to the first time after `after`; a schedule without further runs becomes COMPLETED."""
    start, end = document.get("startTime"), document.get("endTime")
    due = next_time(document["cron"], max(after, times.seconds(start) - 1 if start else after))
    done = int(document.get("maxRunCount", 0)) and int(document["startedRunCount"]) >= int(document["maxRunCount"])
    if done or due is None or (end and due > times.seconds(end)):
        document.pop("nextRunTime", None)
        document["state"] = COMPLETED
    else:
        document["nextRunTime"] = times.text(due)


class Clock:
    """Starts the runs that are due, in a thread of its own, from `start` to `stop`."""

    def __init__(self, local: Local, create: Create):
        self._local, self._create = local, create
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schedules", daemon=True)

    def start(self) -> None:
        """Begin to start runs; those that were due while no service ran are left out, unless the schedule catches up."""
        for document in self._active():
            if times.seconds(document["nextRunTime"]) < time.time() - _MISSED and not document.get("catchUp"):
                job_record.update(self._local.records, document["name"], lambda each: advance(each, time.time()))
        self._thread.start()

    def stop(self) -> None:
        """Start no more runs."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _active(self) -> list[dict[str, Any]]:
        return [each for each in self._local.records.list(KIND) if each["state"] == ACTIVE and "nextRunTime" in each]

    def _run(self) -> None:
        while not self._over.wait(_LOOK):
            self.look(time.time())

    def look(self, now: float) -> None:
        """Start the runs that are due at `now`, one of each schedule."""
        for document in self._active():
            due = times.seconds(document["nextRunTime"])
            if due > now:
                continue
            most = int(document.get("maxConcurrentActiveRunCount", 0))
            if most and self._under_way(document["name"]) >= most:
                if not document.get("allowQueueing"):  # else it stays due until there is room
                    job_record.update(self._local.records, document["name"], lambda each: advance(each, now))
                continue
            self._start(document, due, now)

    def _under_way(self, schedule: str) -> int:
        jobs = self._local.records.list("pipelineJobs", schedule.rpartition(f"/{KIND}/")[0])
        return sum(job.get("scheduleName") == schedule and not job_record.is_over(job) for job in jobs)

    def _start(self, document: dict[str, Any], due: float, now: float) -> None:
        """Create a schedule's pipeline job and record the result."""
        request = messages.read(document["createPipelineJobRequest"], "CreatePipelineJobRequest")
        try:
            response = self._create(request).name
            self._local.records.change(response, lambda job: job.update(scheduleName=document["name"]))
        except ApiError as error:
            response = f"{error.status}: {error.message}"
        except Exception as error:  # a bug of ours fails this run, and not all schedules
            response = f"INTERNAL: {type(error).__name__}: {error}"
        backfill = document.get("catchUp")

        def change(each: dict[str, Any]) -> None:
            each["startedRunCount"] = str(int(each["startedRunCount"]) + 1)
            each["lastScheduledRunResponse"] = {"scheduledRunTime": times.text(due), "runResponse": response}
            if each["state"] == ACTIVE:
                advance(each, due if backfill else max(due, now))

        job_record.update(self._local.records, document["name"], change)
        self._local.say(f"{document['name']}: started {response}")
