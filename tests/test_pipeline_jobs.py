"""The local service's pipeline jobs, asked by the SDK's PipelineJob and over REST: tasks, states, artefacts, errors, ends."""

from __future__ import annotations

import signal
import subprocess

import pytest
import yaml
from conftest import ROOT
from test_local_support import alive, wait_for
from test_pipeline_support import BUCKET, compiled, kfp_python, pipelines, states  # noqa: F401 - fixtures
from test_serve_support import Service

from vertex_local.__main__ import main
from vertex_local.local.environment import PROJECT

pytestmark = pytest.mark.kfp
kfp_python()
pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")

from google.api_core import exceptions  # noqa: E402
from google.cloud import aiplatform  # noqa: E402
from google.cloud.aiplatform.utils import resource_manager_utils  # noqa: E402

BASE = "/v1/projects/my-project/locations/us-central1"
ROOT_URI = f"gs://{BUCKET}/root"
STATE = aiplatform.gapic.PipelineTaskDetail.State


@pytest.fixture
def sdk(pipelines, monkeypatch):  # noqa: F811 - the fixture above
    for name, value in pipelines.endpoint.environment().items():
        monkeypatch.setenv(name, value)
    # Without a network the SDK waits a minute for Google's Resource Manager, which it asks whose the bucket is.
    monkeypatch.setattr(resource_manager_utils, "get_project_number", lambda *_, **__: PROJECT)
    aiplatform.init(**pipelines.endpoint.init_arguments())


@pytest.fixture
def body(compiled):  # noqa: F811 - the fixture above
    """Return a function that makes a request's body of a compiled pipeline."""

    def make(name: str, **values) -> dict:
        spec = yaml.safe_load((compiled / f"{name}.yaml").read_text())
        return {"displayName": name, "pipelineSpec": spec, "runtimeConfig": {"gcsOutputDirectory": ROOT_URI, "parameterValues": values}}

    return make


def create(service: Service, body: dict, code: int = 200, job_id: str = "") -> dict:
    return service.call("POST", f"/pipelineJobs{f'?pipelineJobId={job_id}' * bool(job_id)}", body, code, BASE)


def ended(service: Service, job: dict) -> dict:
    return wait_for(lambda: (found := get(service, job))["state"].endswith(("SUCCEEDED", "FAILED", "CANCELLED")) and found, 120)


def get(service: Service, job: dict) -> dict:
    return service.call("GET", "", base=f"/v1/{job['name']}")


def test_the_sdk_runs_a_pipeline_and_reads_its_tasks(sdk, compiled):  # noqa: F811
    job = aiplatform.PipelineJob(
        display_name="chain", template_path=str(compiled / "chain.yaml"), pipeline_root=ROOT_URI, enable_caching=False,
        parameter_values={"text": "by the SDK", "n": 5}, labels={"team": "fares"}, failure_policy="fast",
    )  # fmt: skip
    job.submit(service_account="trainer@my-project.iam.gserviceaccount.com")
    assert not job.done() or job.state
    job.wait()
    assert job.state.name == "PIPELINE_STATE_SUCCEEDED" and dict(job.labels) == {"team": "fares"} and not job.has_failed
    found = {task.task_name: task for task in job.task_details}
    root = found.pop(job.job_id)
    assert set(found) == {"write", "read", "add"} and all(task.state == STATE.SUCCEEDED for task in found.values())
    assert {task.parent_task_id for task in found.values()} == {root.task_id}, "the pipeline itself is a task, as on the service"
    artifact = found["write"].outputs["out"].artifacts[0]
    assert artifact.uri == f"{ROOT_URI}/{PROJECT}/{job.job_id}/write_{found['write'].task_id}/out"
    assert (artifact.schema_title, dict(artifact.metadata)) == ("system.Dataset", {"rows": 3.0})
    assert found["read"].inputs["data"].artifacts[0].name == artifact.name, "one artefact, made by one task and read by the next"
    assert found["read"].execution.metadata["output:Output"] == "by the SDK" and found["add"].execution.metadata["input:a"] == 5
    assert found["write"].start_time <= found["write"].end_time <= root.end_time
    assert [each.state.name for each in found["write"].pipeline_task_status] == ["RUNNING", "SUCCEEDED"]
    assert root.execution.metadata["output:Output"] == 9 and job.gca_resource.service_account.startswith("trainer@")
    again = aiplatform.PipelineJob.get(job.resource_name)
    assert again.task_details == job.task_details and again.gca_resource.job_detail.pipeline_run_context.display_name == job.job_id
    assert job.resource_name in [each.resource_name for each in aiplatform.PipelineJob.list(filter="labels.team=fares")]
    job.delete()
    with pytest.raises(exceptions.NotFound):
        aiplatform.PipelineJob.get(job.resource_name)


def test_a_failed_step_is_the_jobs_error(sdk, compiled, tmp_path):  # noqa: F811
    job = aiplatform.PipelineJob(
        display_name="exits", template_path=str(compiled / "exits.yaml"), pipeline_root=ROOT_URI,
        parameter_values={"counter": str(tmp_path / "counter")},
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="exit-handler-1.condition-2.fails: ValueError: as it should"):
        job.run()
    assert job.has_failed and job.gca_resource.error.code == 9
    failed = next(task for task in job.task_details if task.task_name == "fails")
    assert failed.state == STATE.FAILED and failed.error.message == "ValueError: as it should"
    assert failed.task_unique_name == "exit-handler-1.condition-2.fails"


def test_what_is_wrong_with_a_request_is_said_with_its_field(pipelines, body):  # noqa: F811
    wrong = body("chain")
    wrong["runtimeConfig"]["gcsOutputDirectory"] = "/somewhere"
    unknown, bare, old = body("chain"), body("chain"), body("chain")
    unknown["pipelineSpec"]["deploymentSpec"]["executors"]["exec-add"]["container"] = {
        "image": "x", "command": ["python3", "-u", "-m", "google_cloud_pipeline_components.container.v1.dataflow.flex_template.launcher"],
    }  # fmt: skip
    del bare["pipelineSpec"]
    old["runtimeConfig"]["parameters"] = {"n": {"intValue": "1"}}
    for sent, code, told in (
        (wrong, 400, "pipelineJob.runtimeConfig.gcsOutputDirectory: takes gs://bucket/folder; got '/somewhere'"),
        (body("chain", m=1), 400, "parameter 'm': the pipeline has none of that name; it has n, text"),
        (body("chain", n="many"), 400, "parameter n: takes a whole number; got 'many'"), (body("exits"), 400, "parameter counter: has no"),
        (unknown, 501, "task add: Google's component v1.dataflow.flex_template asks for a service that is not imitated"),
        (bare, 400, "pipelineJob.pipelineSpec is required"), ({"templateUri": "https://x/y.yaml"}, 501, "templateUri is not fetched"),
        (old, 501, "pipelineJob.runtimeConfig.parameters is not supported"),
        (body("chain") | {"displayName": "x" * 129}, 400, "displayName may have 128 characters"),
    ):  # fmt: skip
        assert told in create(pipelines, sent, code)["error"]["message"]
    assert "begins with a letter" in create(pipelines, body("chain"), 400, "Job-1")["error"]["message"]
    schedule = {"displayName": "s", "cron": "0 3 * * *", "maxConcurrentRunCount": 1}
    schedule["createPipelineJobRequest"] = {"parent": BASE.removeprefix("/v1/"), "pipelineJob": body("chain", n="many")}
    told = pipelines.call("POST", "/schedules", schedule, 400, BASE)["error"]["message"]
    assert "parameter n: takes a whole number" in told, "it is said when the schedule is made"


def test_the_sdk_schedules_a_pipeline(sdk, pipelines, compiled):  # noqa: F811
    job = aiplatform.PipelineJob(
        display_name="chain", template_path=str(compiled / "chain.yaml"), pipeline_root=ROOT_URI, parameter_values={"text": "due", "n": 2}
    )
    schedule = job.create_schedule(display_name="every minute", cron="* * * * *", max_run_count=1)
    assert schedule.state.name == "ACTIVE" and schedule.cron == "* * * * *"
    schedule.pause()
    schedule.resume()
    schedule.wait()  # a minute at most, and the run is started: then it is COMPLETED
    (run,) = [each for each in schedule.list_jobs()]
    run.wait()
    assert run.state.name == "PIPELINE_STATE_SUCCEEDED"
    assert [each.display_name for each in aiplatform.PipelineJobSchedule.list()] == ["every minute"]
    schedule.delete()
    assert not aiplatform.PipelineJobSchedule.list()


def test_an_id_is_taken_once(pipelines, body):  # noqa: F811
    job = create(pipelines, body("chain"), job_id="taken")
    assert create(pipelines, body("chain"), 409, "taken")["error"]["status"] == "ALREADY_EXISTS"
    ended(pipelines, job)


def test_cancelled_by_the_api_by_stop_and_in_batches(pipelines, body):  # noqa: F811
    jobs = [create(pipelines, body("sleepy")) for _ in range(3)]
    for job in jobs:
        wait_for(lambda job=job: states(get(pipelines, job)) == {"sleeps": "RUNNING"}, 120)
    assert "cancel it first" in pipelines.call("DELETE", "", code=400, base=f"/v1/{jobs[0]['name']}")["error"]["message"]
    pipelines.call("POST", ":cancel", {}, base=f"/v1/{jobs[0]['name']}")
    assert main(["stop", jobs[1]["name"], f"--state_dir={pipelines.state}"]) == 0
    operation = pipelines.call("POST", "/pipelineJobs:batchCancel", {"names": [jobs[2]["name"]]}, base=BASE)
    assert operation["done"] and operation["response"]["pipelineJobs"][0]["name"] == jobs[2]["name"]
    for job in jobs:
        found = ended(pipelines, job)
        assert found["state"] == "PIPELINE_STATE_CANCELLED" and states(found) == {"sleeps": "CANCELLED"}
    names = [job["name"] for job in jobs]
    pipelines.call("POST", "/pipelineJobs:batchDelete", {"names": [*names, f"{names[0]}-not"]}, 404, BASE)
    assert pipelines.call("POST", "/pipelineJobs:batchDelete", {"names": names}, base=BASE)["done"]
    assert not [job for job in pipelines.call("GET", "/pipelineJobs", base=BASE)["pipelineJobs"] if job["name"] in names]


def test_a_dependent_of_what_was_not_triggered_is_not_triggered(pipelines, body):  # noqa: F811
    """kfp compiles no such dependency, but the service has a rule for it."""
    sent = body("chain", n=21)
    tasks = sent["pipelineSpec"]["root"]["dag"]["tasks"]
    tasks["write"]["triggerPolicy"] = {"condition": "inputs.parameter_values['text'] == 'never'"}
    tasks["add"]["dependentTasks"], tasks["add"]["triggerPolicy"] = ["read"], {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    found = ended(pipelines, create(pipelines, sent))
    assert found["state"] == "PIPELINE_STATE_SUCCEEDED", found
    assert states(found) == {"write": "NOT_TRIGGERED", "read": "NOT_TRIGGERED", "add": "SUCCEEDED"}
    tasks["add"]["triggerPolicy"] = {}
    found = ended(pipelines, create(pipelines, sent))
    assert found["state"] == "PIPELINE_STATE_FAILED" and "output 'Output' from task 'add'" in found["error"]["message"]
    tasks["write"]["triggerPolicy"] = {"condition": "inputs.parameter_values['other'] == 'never'"}
    found = ended(pipelines, create(pipelines, sent))
    assert found["state"] == "PIPELINE_STATE_FAILED" and "cannot be evaluated: there is no input other" in found["error"]["message"]


@pytest.mark.slow
def test_a_killed_service_leaves_nothing_running(tmp_path, body):
    flags = (f"--project_dir={ROOT}", "--project=my-project")
    service = Service(tmp_path, *flags, fresh=True, KFP_PYTHON=kfp_python())
    job = create(service, body("sleepy"), job_id="lost")
    log = service.state / "jobs" / "lost" / "logs" / "sleeps.log"
    wait_for(lambda: log.exists() and "asleep" in log.read_text(), 120)
    before = descendants(service.process.pid)
    assert len(before) >= 4, "the server, the runner, the step and who watches them"
    service.stop(signal.SIGKILL)
    wait_for(lambda: not any(map(alive, before)), 60)
    service = Service(tmp_path, *flags, fresh=True, KFP_PYTHON=kfp_python())
    found = get(service, job)
    assert found["state"] == "PIPELINE_STATE_FAILED" and "was killed" in found["error"]["message"]
    assert states(found) == {"sleeps": "FAILED"}
    other = create(service, body("sleepy"), job_id="stopped")
    wait_for(lambda: states(get(service, other)) == {"sleeps": "RUNNING"}, 120)
    assert service.stop() == 0
    service = Service(tmp_path, *flags, fresh=True, KFP_PYTHON=kfp_python())
    found = get(service, other)
    assert "the local service was stopped" in found["error"]["message"] and states(found)["sleeps"] in ("CANCELLED", "FAILED")
    service.stop()


def descendants(pid: int) -> list[int]:
    """The processes below a process."""
    table = [list(map(int, line.split())) for line in subprocess.check_output(["ps", "-eo", "pid=,ppid="], text=True).splitlines()]
    found, new = [], [pid]
    while new:
        new = [child for child, parent in table if parent in new]
        found += new
    return found
