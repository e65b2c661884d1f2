"""Schedules of pipeline jobs: when runs are due, paused, resumed, caught up with and over; the clock is turned by the test."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("cronsim", reason="cronsim is not installed")

from test_serve_rpc import PARENT, House, house, refused  # noqa: E402, F401

from vertex_local.job import times  # noqa: E402
from vertex_local.local import job_record  # noqa: E402
from vertex_local.serve import messages, rpc, schedule_service, schedules  # noqa: E402
from vertex_local.serve.rest import ApiError  # noqa: E402

HOUR = 3600.0
MINUTE = (time.gmtime().tm_min + 30) % 60  # half an hour away, so that no run is due while tests run
PIPELINE = {"parent": PARENT, "pipelineJob": {"displayName": "p", "runtimeConfig": {"gcsOutputDirectory": "gs://bucket/root"}}}
SCHEDULE = {"displayName": "s", "cron": f"{MINUTE} * * * *", "maxConcurrentRunCount": 1, "createPipelineJobRequest": PIPELINE}


class Schedules:
    """The service's schedules, with pipeline jobs that are records of their own."""

    def __init__(self, house: House):  # noqa: F811
        self.house, self.problem = house, None
        self.service = schedule_service.ScheduleService(house.local, house.pool, self._check_job)
        self.methods = {each.name: each for each in rpc.methods([self.service])}
        self.clock = schedules.Clock(house.local, self._create_pipeline_job)

    def _check_job(self, local, parent, job, job_id) -> None:
        if not job.runtime_config.gcs_output_directory:
            raise ApiError("INVALID_ARGUMENT", "it takes a folder.", "pipelineJob.runtimeConfig.gcsOutputDirectory")

    def _create_pipeline_job(self, request):
        if self.problem:
            raise self.problem
        name = self.house.local.new_name(request.parent, "pipelineJobs")
        document = job_record.add(self.house.local.records, name, "pipelineJobs", messages.to_json(request.pipeline_job))
        return messages.read(document, "PipelineJob")

    def call(self, method: str, **fields):
        return self.methods[method].call(self.methods[method].request(**fields))

    def make(self, **fields):
        return self.call("CreateSchedule", parent=PARENT, schedule=messages.parse({**SCHEDULE, **fields}, messages.new("Schedule")))

    def get(self, schedule):
        return self.call("GetSchedule", name=schedule.name)

    def next_of(self, schedule) -> float:
        return times.seconds(self.get(schedule).next_run_time)

    def runs(self, schedule) -> int:
        return sum(job.get("scheduleName") == schedule.name for job in self.house.local.records.list("pipelineJobs"))


@pytest.fixture
def scheduled(house):  # noqa: F811
    return Schedules(house)


def test_a_run_is_started_when_it_is_due(scheduled):
    made = scheduled.make()
    due = scheduled.next_of(made)
    assert due % HOUR == 60 * MINUTE and 0 < due - times.seconds(made.create_time) <= HOUR and made.state == 1
    scheduled.clock.look(due - 1)
    assert scheduled.runs(made) == 0
    scheduled.clock.look(due + 1)
    scheduled.clock.look(due + 2)
    found = scheduled.get(made)
    assert scheduled.runs(made) == found.started_run_count == 1 and scheduled.next_of(made) == due + HOUR
    assert "/pipelineJobs/" in found.last_scheduled_run_response.run_response
    assert times.seconds(found.last_scheduled_run_response.scheduled_run_time) == due


def test_it_is_over_after_so_many_runs_or_at_its_end(scheduled):
    made = scheduled.make(maxRunCount=2)
    for _ in range(2):
        scheduled.clock.look(scheduled.next_of(made))
    assert scheduled.get(made).state == 3 and not scheduled.get(made).HasField("next_run_time"), "COMPLETED"
    refused(lambda: scheduled.call("PauseSchedule", name=made.name), "FAILED_PRECONDITION")
    ending = scheduled.make(endTime=times.text(time.time() + HOUR))
    scheduled.clock.look(scheduled.next_of(ending))
    assert scheduled.get(ending).state == 3


def test_a_pause_leaves_runs_out_unless_they_are_caught_up_with(scheduled):
    made = scheduled.make()
    due = scheduled.next_of(made)
    scheduled.call("PauseSchedule", name=made.name)
    scheduled.clock.look(due + 2 * HOUR)
    assert scheduled.runs(made) == 0 and scheduled.get(made).state == 2
    scheduled.call("ResumeSchedule", name=made.name, catch_up=True)
    for _ in range(5):
        scheduled.clock.look(due + 2 * HOUR)
    assert scheduled.runs(made) == 3 and scheduled.next_of(made) == due + 3 * HOUR
    scheduled.call("PauseSchedule", name=made.name)
    scheduled.call("ResumeSchedule", name=made.name)
    assert scheduled.next_of(made) == due, "from now on"


@pytest.mark.parametrize("queue, next_run", [(False, HOUR), (True, 0)])
def test_runs_wait_for_room_or_are_left_out(scheduled, queue, next_run):
    made = scheduled.make(maxConcurrentActiveRunCount=1, allowQueueing=queue)
    scheduled.clock.look(scheduled.next_of(made))
    due = scheduled.next_of(made)
    scheduled.clock.look(due)
    assert scheduled.runs(made) == 1 and scheduled.next_of(made) == due + next_run
    (job,) = scheduled.house.local.records.list("pipelineJobs")
    job_record.end(scheduled.house.local.records, job["name"], "SUCCEEDED")
    scheduled.clock.look(scheduled.next_of(made))
    assert scheduled.runs(made) == 2


def test_a_run_that_cannot_be_started_is_noted(scheduled):
    made = scheduled.make()
    scheduled.problem = ApiError("INVALID_ARGUMENT", "pipelineSpec is empty.")
    scheduled.clock.look(scheduled.next_of(made))
    found = scheduled.get(made)
    assert found.last_scheduled_run_response.run_response == "INVALID_ARGUMENT: pipelineSpec is empty." and found.state == 1


def test_a_fault_in_one_run_ends_no_other_schedule(scheduled):
    broken = scheduled.make()
    scheduled.problem = OSError("the disk is full")
    scheduled.clock.look(scheduled.next_of(broken))
    assert scheduled.get(broken).last_scheduled_run_response.run_response == "INTERNAL: OSError: the disk is full"
    scheduled.problem = None
    scheduled.clock.look(scheduled.next_of(broken))
    assert scheduled.runs(broken) == 1


def test_an_update_holds_no_other_request_up_while_it_is_checked(scheduled):
    """The check of a pipeline makes names; whoever makes one at the same time looks into the records, so neither would go on."""
    made, names = scheduled.make(), []

    def check(local, parent, job, job_id) -> None:
        maker = threading.Thread(target=lambda: names.append(local.new_name(parent, "pipelineJobs")))
        maker.start()
        maker.join(5)

    scheduled.service._check_job = check
    changed = {"name": made.name, "display_name": "t"}
    scheduled.call("UpdateSchedule", schedule=changed, update_mask={"paths": ["display_name"]})
    assert names, "another request had to wait for the update"


def test_what_a_service_that_was_away_has_missed_is_left_out(scheduled):
    made = scheduled.make()
    due, records = scheduled.next_of(made), scheduled.house.local.records
    records.change(made.name, lambda document: document.update(nextRunTime=times.text(time.time() - 5 * HOUR)))
    scheduled.clock.start()
    scheduled.clock.stop()
    assert scheduled.runs(made) == 0 and scheduled.next_of(made) in (due, due + HOUR), "the full hour may pass meanwhile"


def test_an_update_counts_from_now_on(scheduled):
    made = scheduled.make()
    changed = {"name": made.name, "cron": "TZ=America/New_York 30 3 * * 1", "display_name": "t"}
    scheduled.call("UpdateSchedule", schedule=changed, update_mask={"paths": ["cron", "display_name"]})
    when = time.gmtime(scheduled.next_of(made))
    assert when.tm_min == 30 and when.tm_hour in (7, 8) and when.tm_wday == 0 and scheduled.get(made).display_name == "t"
    bad = {"name": made.name, "cron": "x"}
    refused(lambda: scheduled.call("UpdateSchedule", schedule=bad, update_mask={"paths": ["cron"]}), "INVALID_ARGUMENT", "schedule.cron")
    assert scheduled.get(made).cron.startswith("TZ="), "it stays as it was"
    assert [each.name for each in scheduled.call("ListSchedules", parent=PARENT).schedules] == [made.name]
    assert not scheduled.call("DeleteSchedule", name=made.name).HasField("error")
    refused(lambda: scheduled.get(made), "NOT_FOUND")


@pytest.mark.parametrize(
    "fields, field",
    [
        ({"displayName": ""}, "schedule.displayName"), ({"cron": "daily"}, "schedule.cron"), ({"cron": "0 3 * * * *"}, "schedule.cron"),
        ({"cron": "TZ=Mars/Base 0 3 * * *"}, "schedule.cron"), ({"maxConcurrentRunCount": 0}, "schedule.maxConcurrentRunCount"),
        ({"createPipelineJobRequest": {"parent": "projects/q/locations/us-central1", "pipelineJob": {"displayName": "p"}}},
         "schedule.createPipelineJobRequest.parent"),
        ({"createPipelineJobRequest": {"parent": PARENT, "pipelineJob": {"displayName": "p"}}},
         "pipelineJob.runtimeConfig.gcsOutputDirectory"),
        ({"maxRunCount": -1}, "schedule.maxRunCount"),
        ({"endTime": "2020-01-01T00:00:00Z"}, "schedule.endTime"),
    ],
)  # fmt: skip
def test_what_could_not_run_is_refused(scheduled, fields, field):
    refused(lambda: scheduled.make(**fields), "INVALID_ARGUMENT", field)


def test_the_clock_of_a_service_runs(scheduled, monkeypatch):
    """The thread looks by itself: a schedule whose time is now is started."""
    from test_local_support import wait_for

    made = scheduled.make()
    monkeypatch.setattr(schedules, "_LOOK", 0.01)
    scheduled.clock.start()
    scheduled.house.local.records.change(made.name, lambda document: document.update(nextRunTime=times.text(time.time() - 1)))
    wait_for(lambda: scheduled.runs(made) == 1)
    scheduled.clock.stop()
