"""`scripts/submit_pipeline` with a compiled pipeline: parameters checked before, what is sent, schedules, the local service."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from test_cloud_support import REAL, Service, call, gcloud_variables, script, serving

from vertex_submit import pipeline_job

ROOT_URL = "/v1/projects/real-project-1/locations/europe-west4"
PARAMETERS = {
    "project": {"parameterType": "STRING"},
    "location": {"parameterType": "STRING", "defaultValue": "us-central1"},
    "threshold": {"parameterType": "NUMBER_DOUBLE", "isOptional": True},
    "traffic": {"parameterType": "NUMBER_INTEGER", "defaultValue": 100},
    "fast": {"parameterType": "BOOLEAN", "defaultValue": False},
    "stop_on": {"parameterType": "LIST", "defaultValue": ["leaks"]},
    "labels": {"parameterType": "STRUCT", "defaultValue": {}},
}
SPEC = {
    "components": {"comp-say": {"executorLabel": "exec-say"}},
    "deploymentSpec": {"executors": {"exec-say": {"container": {"image": "python:3.11", "command": ["true"]}}}},
    "pipelineInfo": {"name": "Fares_pipeline"},
    "root": {
        "dag": {"tasks": {"say": {"componentRef": {"name": "comp-say"}, "cachingOptions": {"enableCache": True}}}},
        "inputDefinitions": {"parameters": PARAMETERS},
    },
    "schemaVersion": "2.1.0",
    "sdkVersion": "kfp-2.17.3",
}


@pytest.fixture(scope="module")
def service():
    with serving() as found:
        yield found


@pytest.fixture
def env(service: Service, tmp_path) -> dict[str, str]:
    service.requests.clear()
    service.states, service.refusal = ["PIPELINE_STATE_PENDING"], None
    return gcloud_variables(service.url, tmp_path)


def write(folder: Path, spec: object = None, name: str = "pipeline.yaml") -> str:
    (folder / name).write_text(yaml.safe_dump(SPEC if spec is None else spec))
    return name


def submit(folder: Path, env: dict[str, str], *flags: str, code: int = 0, spec: object = None):
    return call(pipeline_job.main, write(folder, spec), *REAL, *flags, cwd=folder, env=env, code=code)


def error_of(folder: Path, env: dict[str, str], *flags: str, spec: object = None) -> str:
    done = submit(folder, env, *flags, spec=spec, code=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_what_is_sent_is_what_the_flags_say(tmp_path, service, env):
    flags = ("--parameter=threshold=3.5", "--parameter=traffic=50", "--parameter=fast=true", '--parameter=stop_on=["drift"]',
             '--parameter=labels={"a": 1}', "--labels=team=fares", "--service_account=runs@real-project-1.iam.gserviceaccount.com",
             "--network=projects/1/global/networks/default", "--failure_policy=fast", "--job_id=fares-1")  # fmt: skip
    done = submit(tmp_path, env, *flags)
    ((_, path, _),) = service.requests
    assert path.partition("?")[0] == f"{ROOT_URL}/pipelineJobs" and "pipelineJobId=fares-1" in path
    sent = service.posted()
    assert sent["displayName"] == "Fares_pipeline" and sent["labels"] == {"team": "fares"}
    assert sent["pipelineSpec"] == SPEC
    assert sent["serviceAccount"] == "runs@real-project-1.iam.gserviceaccount.com"
    assert sent["network"] == "projects/1/global/networks/default"
    runtime = sent["runtimeConfig"]
    assert runtime["gcsOutputDirectory"] == "gs://real-bucket-1/pipelines/fares-pipeline"
    assert runtime["failurePolicy"] in (2, "PIPELINE_FAILURE_POLICY_FAIL_FAST")
    assert runtime["parameterValues"] == {
        "project": "real-project-1", "location": "europe-west4", "threshold": 3.5, "traffic": 50, "fast": True, "stop_on": ["drift"],
        "labels": {"a": 1},
    }  # fmt: skip
    assert f"submitted pipeline job {ROOT_URL.removeprefix('/v1/')}/pipelineJobs/4711" in done.stdout and ":cancel" in done.stdout
    (kept,) = (tmp_path / ".vertex_local" / "submitted").iterdir()
    assert json.loads(kept.read_text())["runtimeConfig"]["parameterValues"]["threshold"] == 3.5


@pytest.mark.parametrize("flag, expected", [("--no_caching", {}), ("--enable_caching", {"enableCache": True})])
def test_caching_of_every_step_is_switched(tmp_path, service, env, flag, expected):
    submit(tmp_path, env, flag)
    assert service.posted()["pipelineSpec"]["root"]["dag"]["tasks"]["say"]["cachingOptions"] == expected


def test_a_dry_run_sends_and_writes_nothing(tmp_path, service, env):
    done = submit(tmp_path, env, "--dry_run", "--parameter=threshold=1")
    assert '"threshold": 1' in done.stdout and "what pipeline.yaml says" in done.stdout and "$ curl" in done.stdout
    assert "pipelineJobs?pipelineJobId=fares-pipeline-" in done.stdout
    assert not service.requests and not (tmp_path / ".vertex_local").exists()


def test_a_schedule_holds_the_request(tmp_path, service, env):
    service.states = ["ACTIVE"]
    done = submit(tmp_path, env, "--schedule=TZ=Europe/Berlin 0 3 * * 1", "--max_runs=4", "--parameter=threshold=2")
    ((_, path, sent),) = service.requests
    assert path.partition("?")[0] == f"{ROOT_URL}/schedules"
    assert sent["cron"] == "TZ=Europe/Berlin 0 3 * * 1" and int(sent["maxRunCount"]) == 4 and int(sent["maxConcurrentRunCount"]) == 1
    request = sent["createPipelineJobRequest"]
    assert request["parent"] == ROOT_URL.removeprefix("/v1/")
    assert request["pipelineJob"]["runtimeConfig"]["parameterValues"]["threshold"] == 2
    assert "submitted schedule" in done.stdout and ":pause" in done.stdout


def test_following_shows_the_steps_and_the_error(tmp_path, service, env):
    service.states = ["PIPELINE_STATE_RUNNING", "PIPELINE_STATE_FAILED"]
    done = submit(tmp_path, env, "--wait", "--poll=0.01", code=1)
    assert re.search(r"^running, \d+ s$", done.stdout, re.MULTILINE)
    assert "error: the job ended as FAILED: it broke in two lines" in done.stderr


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--parameter=treshold=3"], "--parameter: pipeline.yaml has no parameter 'treshold'; the nearest is threshold."),
        (["--parameter=threshold=low"], "--parameter: threshold: takes a number; got 'low'."),
        (["--parameter=threshold=NaN"], "--parameter: threshold: takes a number; got 'NaN'."),
        (["--parameter=traffic=1.5"], "--parameter: traffic: takes a whole number; got '1.5'."),
        (["--parameter=fast=yes"], "--parameter: fast: takes true or false; got 'yes'."),
        (["--parameter=stop_on=leaks"], "--parameter: stop_on: takes a list in JSON"),
        (["--parameter=labels=[1]"], "--parameter: labels: takes an object in JSON"),
        (["--parameter=traffic=1", "--parameter=traffic=2"], "--parameter: traffic is given twice; keep one."),
        (["--parameter", "traffic"], "argument --parameter: takes NAME=VALUE; got 'traffic'."),
        (["--schedule=daily"], "argument --schedule: takes five fields"),
        (["--schedule=0 3 * * *", "--wait"], "--wait: is about one run; leave it or --schedule out."),
        (["--max_runs=3"], "--max_runs: is about a schedule; give --schedule."),
        (["--job_id=Fares"], "argument --job_id: takes a small letter"),
        (["--no_caching", "--enable_caching"], "not allowed with argument"),
        (["--pipeline_root=bucket/x"], "argument --pipeline_root: takes gs://bucket/folder"),
        (["--local"], "no service runs in .vertex_local; start it with: python -m vertex_local serve"),
    ],
)
def test_wrong_flags_are_one_line_and_nothing_is_sent(tmp_path, service, env, flags, expected):
    assert expected in error_of(tmp_path, {} if flags == ["--local"] else env, *flags)
    assert not service.requests


def without(name: str) -> dict:
    return {key: value for key, value in SPEC.items() if key != name}


@pytest.mark.parametrize(
    "spec, expected",
    [
        ({"workerPoolSpecs": []}, "pipeline.yaml: is a job's file, no compiled pipeline; give it to scripts/submit_job"),
        (without("deploymentSpec"), "pipeline.yaml: is no compiled pipeline: deploymentSpec is required and must be an object; compile"),
        ([1, 2], "pipeline.yaml: is no compiled pipeline, which is an object with `root`"),
        ({**SPEC, "schemaVersion": "1.0"}, "pipeline.yaml: is no compiled pipeline: schemaVersion '1.0': takes 2.x"),
        ({**SPEC, "pipelineInfo": {}}, "pipeline.yaml: is no compiled pipeline: pipelineInfo.name is required"),
    ],
)
def test_a_file_that_is_no_pipeline(tmp_path, service, env, spec, expected):
    assert expected in error_of(tmp_path, env, spec=spec)
    assert not service.requests


def test_a_missing_parameter_and_a_missing_file(tmp_path, service, env):
    needs = {**SPEC, "root": {**SPEC["root"], "inputDefinitions": {"parameters": {"city": {"parameterType": "STRING"}}}}}
    assert "--parameter: city is missing, and has no default: give --parameter city=…, text." in error_of(tmp_path, env, spec=needs)
    done = call(pipeline_job.main, "absent.yaml", *REAL, cwd=tmp_path, env=env, code=2)
    assert done.stderr.startswith("error: absent.yaml: cannot be read: No such file or directory; compile one with")
    (tmp_path / "broken.yaml").write_text("a: [1")
    done = call(pipeline_job.main, "broken.yaml", *REAL, cwd=tmp_path, env=env, code=2)
    assert done.stderr.startswith("error: broken.yaml: is neither YAML nor JSON") and done.stderr.count("\n") == 1


def test_explanations_are_warned_of_before_anything_is_sent(tmp_path, service, env):
    inputs = {"parameters": {"explanation_metadata": {"runtimeValue": {"constant": '{"inputs": {}}'}}}}
    tasks = {"up": {"componentRef": {"name": "comp-say"}, "inputs": inputs}}
    done = submit(tmp_path, env, "--dry_run", spec={**SPEC, "root": {**SPEC["root"], "dag": {"tasks": tasks}}})
    said = "warning: pipeline.yaml: up.explanation_metadata: Vertex AI has deprecated explanations since 2026-03-16 and "
    assert done.stderr.startswith(said) and "2027-03-16" in done.stderr and not service.requests


def test_placeholders_never_leave_this_machine(tmp_path):
    spec = {**SPEC, "deploymentSpec": {"executors": {"exec-say": {"container": {"image": "host/your-project/x:1"}}}}}
    done = call(pipeline_job.main, write(tmp_path, spec), *REAL, cwd=tmp_path, code=2)
    assert re.match(r"error: pipeline.yaml:\d+: your-project is a placeholder: compile it again with your own settings", done.stderr)


def test_the_script_itself(tmp_path):
    done = script("submit_pipeline", write(tmp_path), *REAL, "--dry_run", cwd=tmp_path)
    assert '"displayName": "Fares_pipeline"' in done.stdout
