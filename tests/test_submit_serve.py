"""The submitting scripts and the local service, both real: what is kept is what runs, and the printed line does the same."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from test_cloud_support import REAL, call, gcloud_variables, needs_gcloud, plain, serving
from test_cloud_support import Service as StandIn
from test_local_support import environ
from test_serve_support import Service

from vertex_local.job import schema
from vertex_submit import jobs, pipeline, submit

QUICK = ("--no_check", "--wait", "--poll=0.1")
PARENT = "/v1/projects/your-project/locations/us-central1"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("serve"), f"--project_dir={ROOT}")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def exported(service) -> dict[str, str]:
    """What `python -m vertex_local env` exports."""
    return service.endpoint.environment()


def write_job(folder: Path, source: str, empty_pool: bool = False, **fields) -> str:
    """Write a job file with a chief, and an evaluator behind an empty pool if asked."""
    container = {"imageUri": "host/any:1", "command": ["python", "-c", source], "args": ["--of=file"]}
    pool = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "containerSpec": container}
    pools = [pool, {}, {}, pool] if empty_pool else [pool]
    (folder / "job.yaml").write_text(yaml.safe_dump({"workerPoolSpecs": pools, **fields}))
    settings = {"project": "your-project", "region": "us-central1", "bucket": "your-bucket", "serving": "h/s:1"}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    return "job.yaml"


def kept_in(folder: Path) -> dict:
    (path,) = (folder / ".vertex_local" / "submitted").iterdir()
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("empty_pool", [False, True])
def test_a_custom_job_runs_as_it_is_kept(tmp_path, service, exported, empty_pool):
    file = write_job(tmp_path, "import sys; print(sys.argv[1:])", empty_pool, scheduling={"timeout": "600s"})
    flags = (*QUICK, f"--api_endpoint={service.endpoint.url}", "--labels=a=b", "--base_output_dir=gs://your-bucket/x")
    done = call(submit.main, "job", file, *flags, "--", "--of=flag", cwd=tmp_path, env=exported)
    number = re.search(r"submitted custom job \S+/customJobs/(\d+)\n", done.stdout)[1]
    assert re.search(r"^succeeded, \d+ s$", done.stdout, re.MULTILINE)
    job = service.call("GET", f"/customJobs/{number}", base=PARENT)
    kept = kept_in(tmp_path)
    assert plain(job["jobSpec"]) == (kept["jobSpec"] if empty_pool else kept)
    assert job["labels"] == {"a": "b"} and job["displayName"] == "job"
    assert job["jobSpec"]["baseOutputDirectory"] == {"outputUriPrefix": "gs://your-bucket/x"}
    replicas = ("workerpool0-0", "workerpool3-0") if empty_pool else ("workerpool0-0",)
    assert [service.log(number, name) for name in replicas] == ["['--of=file', '--of=flag']\n"] * len(replicas)


def test_a_job_that_fails_and_one_that_is_wrong(tmp_path, service, exported):
    file = write_job(tmp_path, "raise SystemExit('no luck')", scheduling={"disableRetries": True})
    done = call(submit.main, "job", file, *QUICK, cwd=tmp_path, env=exported, code=1)
    assert "failed, " in done.stdout and "error: the job ended as FAILED: " in done.stderr and "no luck" in done.stderr
    wrong = {**exported, "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(tmp_path / "token")}
    (tmp_path / "token").write_text("another")
    done = call(submit.main, "job", file, *QUICK, cwd=tmp_path, env=wrong, code=1)
    assert done.stderr.startswith("error: the service refuses the credentials") and done.stderr.count("\n") == 1


def test_a_tuning_job_is_followed_trial_by_trial(tmp_path, service, exported):
    source = (
        "import hypertune, sys\n"
        "hypertune.HyperTune().report_hyperparameter_tuning_metric('loss', float(sys.argv[-1].partition('=')[2]), 1)"
    )  # fmt: skip
    inner = yaml.safe_load((tmp_path / write_job(tmp_path, source)).read_text())
    parameter = {"parameterId": "x", "scaleType": "UNIT_LINEAR_SCALE", "doubleValueSpec": {"minValue": -1, "maxValue": 1}}
    study = {"metrics": [{"metricId": "loss", "goal": "MINIMIZE"}], "parameters": [parameter], "algorithm": "RANDOM_SEARCH"}
    tuning = {"studySpec": study, "trialJobSpec": inner, "maxTrialCount": 9, "maxFailedTrialCount": 9}
    (tmp_path / "job.yaml").write_text(json.dumps(tuning))
    flags = (*QUICK, "--max_trial_count=2", "--base_output_dir=gs://your-bucket/hp", "--display_name=hp")
    done = call(submit.main, "tuning", "job.yaml", *flags, cwd=tmp_path, env=exported)
    assert "2 of 2 trials" in done.stdout
    number = re.search(r"submitted hyperparameter tuning job \S+/(\d+)\n", done.stdout)[1]
    job, kept = service.call("GET", f"/hyperparameterTuningJobs/{number}", base=PARENT), kept_in(tmp_path)
    assert plain({name: job[name] for name in kept}) == kept and kept["maxFailedTrialCount"] == 2 and kept["displayName"] == "hp"


def test_a_training_pipeline_runs_any_job_file(tmp_path, service, exported):
    """With an evaluator behind an empty pool, and a data set made of CSV files, whose number is written into the kept file."""
    bucket = service.state / "buckets" / "your-bucket"
    bucket.mkdir(parents=True, exist_ok=True)
    (bucket / "rows.csv").write_text("a,b\n" + "1,2\n" * 20)
    source = "import os; print(os.environ['AIP_DATA_FORMAT'], os.environ['AIP_TEST_DATA_URI'])"
    flags = (*QUICK, "--no_model", "--dataset_csv", "gs://your-bucket/rows.csv", "--split=0.5,0.25,0.25")
    done = call(pipeline.main, write_job(tmp_path, source, empty_pool=True), *flags, cwd=tmp_path, env=exported)
    number = re.search(r"submitted training pipeline \S+/(\d+)\n", done.stdout)[1]
    found, kept = service.call("GET", f"/trainingPipelines/{number}", base=PARENT), kept_in(tmp_path)
    dataset = re.search(r"^dataset \S+/datasets/(\d+)$", done.stdout, re.MULTILINE)[1]
    assert kept["inputDataConfig"]["datasetId"] == dataset == found["inputDataConfig"]["datasetId"]
    assert kept["inputDataConfig"]["gcsDestination"]["outputUriPrefix"].startswith("gs://your-bucket/aiplatform-custom-training-")
    assert plain(found["trainingTaskInputs"]) == kept["trainingTaskInputs"]
    log = service.log(found["trainingTaskMetadata"]["backingCustomJob"].rpartition("/")[2], "workerpool3-0")
    assert log.startswith("csv ") and "succeeded" in done.stdout


@needs_gcloud
@pytest.mark.parametrize(
    "which, name",
    [("job", "taxifare-reduction-server"), pytest.param("tuning", "stackoverflow-tuning-2-workers", marks=pytest.mark.slow)],
)
def test_the_printed_gcloud_line_sends_the_same(tmp_path, which, name):
    kind = jobs.CUSTOM if which == "job" else jobs.TUNING
    flags = (*REAL, "--no_check", "--labels=team=fares,stage=try", "--display_name=a name")
    with serving() as stand_in:
        env = gcloud_variables(stand_in.url, tmp_path)
        done = call(submit.main, which, ROOT / "jobs" / f"{name}.yaml", *flags, "--", "--lr=0.1", cwd=tmp_path, env=env)
        words = shlex.split(done.stdout.splitlines()[0].removeprefix("$ "))
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "check": True, "timeout": 120}
        subprocess.run(words, cwd=tmp_path, env=environ(**env), **options)
        ours, theirs = posted(stand_in, kind)
    assert ours == theirs and ours["displayName"] == "a name"


def posted(stand_in: StandIn, kind: jobs.Kind) -> list[dict]:
    return [schema.to_fields(schema.to_message(body, kind.type)) for method, _, body in stand_in.requests if method == "POST"]


@pytest.mark.parametrize("kind", [jobs.CUSTOM, jobs.PIPELINE], ids=lambda kind: kind.type)
def test_the_printed_curl_line_sends_the_same(tmp_path, kind):
    (tmp_path / "gcloud").write_text("#!/bin/sh\necho a-token\n")
    (tmp_path / "gcloud").chmod(0o755)
    main = (submit.main, "job") if kind is jobs.CUSTOM else (pipeline.main,)
    with serving() as stand_in:
        env = gcloud_variables(stand_in.url, tmp_path / "config")
        done = call(*main, ROOT / "jobs" / "taxifare-evaluator.yaml", *REAL, "--no_check", cwd=tmp_path, env=env)
        line = next(line for line in done.stdout.splitlines() if line.startswith("$ curl "))
        variables = environ(PATH=os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
        subprocess.run(["sh", "-c", line.removeprefix("$ ")], cwd=tmp_path, env=variables, check=True, timeout=60)
        ours, theirs = posted(stand_in, kind)
    assert ours == theirs
