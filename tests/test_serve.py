"""The local job service over plain HTTP: jobs, pipelines with datasets, models, endpoints, storage, logs, restarts."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import stat
import time

import pytest
import yaml
from conftest import ROOT
from test_local_support import wait_for
from test_serve_support import PARENT, Service, gone, job_spec, mark_of, pool, write_object

from vertex_local.job import job_file
from vertex_local.serve import filters
from vertex_local.serve.command import main

SLEEP = "import os,time; print(os.getpid(), flush=True); time.sleep(300)"
CUSTOM = "gs://google-cloud-aiplatform/schema/trainingjob/definition/custom_task_1.0.0.yaml"
TUNED = "gs://google-cloud-aiplatform/schema/trainingjob/definition/hyperparameter_tuning_task_1.0.0.yaml"
IMAGE = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
# Leaves what a trainer leaves, as far as an upload looks at it.
TRAINER = (
    "import os,pathlib,sys\n"
    "folder = pathlib.Path(os.environ['AIP_MODEL_DIR']); folder.mkdir(parents=True, exist_ok=True)\n"
    "(folder / 'saved_model.pb').write_text('x'.join(sys.argv))\n"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("serve"), "--parallel_jobs=3", fresh=True)
    yield started
    started.stop()


# ------------------------------------------------------------------ custom jobs


def test_a_job_from_its_creation_to_its_end(service):
    spec = job_spec("import os; print('id', os.environ['CLOUD_ML_JOB_ID'], os.environ['AIP_MODEL_DIR'])", "--x=1")
    spec["baseOutputDirectory"] = {"outputUriPrefix": "gs://out-bucket/run"}
    made = service.call("POST", "/customJobs", {"displayName": "one", "jobSpec": spec, "labels": {"stage": "dev"}})
    assert made["name"].startswith("projects/p/locations/us-central1/customJobs/") and made["state"] == "JOB_STATE_PENDING"
    number = made["name"].rpartition("/")[2]
    job = service.ended(number)
    assert job["state"] == "JOB_STATE_SUCCEEDED" and "error" not in job
    assert job["createTime"] <= job["startTime"] <= job["endTime"] <= job["updateTime"]
    assert job["jobSpec"]["workerPoolSpecs"][0]["replicaCount"] == "1", "64-bit numbers are text, as in REST answers"
    assert f"id {number} {service.state}/buckets/out-bucket/run/model/" in service.log(number)
    wait_for(lambda: f"{made['name']}: SUCCEEDED" in "\n".join(service.out))  # it is printed after it is recorded


def test_a_failed_job_says_why(service):
    job = service.ended(service.create("raise RuntimeError('no luck')"))
    assert job["state"] == "JOB_STATE_FAILED" and job["error"]["code"] == 3
    assert "workerpool0-0" in job["error"]["message"] and "no luck" in job["error"]["message"]


def test_a_job_that_cannot_be_started_fails_and_says_why(service):
    spec = {"workerPoolSpecs": [{"machineSpec": {"machineType": "n1-standard-4"}, "pythonPackageSpec": {
        "executorImageUri": "i", "packageUris": ["gs://out-bucket/none.tar.gz"], "pythonModule": "m"}}]}  # fmt: skip
    number = service.call("POST", "/customJobs", {"displayName": "x", "jobSpec": spec})["name"].rpartition("/")[2]
    job = service.ended(number)
    assert job["state"] == "JOB_STATE_FAILED" and "none.tar.gz" in job["error"]["message"]


def test_cancel_ends_the_processes(service):
    number = service.create(SLEEP)
    pid = int(wait_for(lambda: service.log(number).strip()))
    assert service.call("POST", f"/customJobs/{number}:cancel", {}) == {}
    job = service.ended(number)
    assert job["state"] == "JOB_STATE_CANCELLED" and job["error"] == {"code": 1, "message": "CANCELED"}
    gone(pid)
    again = service.call("POST", f"/customJobs/{number}:cancel", {}, code=400)
    assert again["error"]["status"] == "FAILED_PRECONDITION" and "JOB_STATE_CANCELLED" in again["error"]["message"]


def test_jobs_run_beside_each_other_and_wait_for_a_place(service, tmp_path):
    meet = "import pathlib,sys,time\npathlib.Path(sys.argv[1]).touch()\nwhile not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.05)"
    first, second = tmp_path / "first", tmp_path / "second"
    specs = [job_spec(meet, str(first), str(second)), job_spec(meet, str(second), str(first)), job_spec(SLEEP)]
    jobs = [service.call("POST", "/customJobs", {"displayName": "j", "jobSpec": spec})["name"].rpartition("/")[2] for spec in specs]
    waiting = service.create("print('my turn')")
    assert [service.ended(number)["state"] for number in (*jobs[:2], waiting)] == ["JOB_STATE_SUCCEEDED"] * 3
    more = [service.create(SLEEP) for _ in range(2)]
    for number in more:
        service.reach(number, "RUNNING")
    late = service.create(SLEEP)
    time.sleep(0.5)
    assert service.call("GET", f"/customJobs/{late}")["state"] == "JOB_STATE_PENDING", "three run already"
    for number in (late, *more, jobs[2]):
        service.call("POST", f"/customJobs/{number}:cancel", {})
        assert service.ended(number)["state"] == "JOB_STATE_CANCELLED"
    assert not service.log(late), "what was cancelled before its turn never started"


def test_several_replicas_see_each_other(service):
    source = "import os,json; print(sorted(json.loads(os.environ['CLUSTER_SPEC'])['cluster']))"
    spec = {"workerPoolSpecs": [pool(source), pool(source, replicas=2)]}
    number = service.call("POST", "/customJobs", {"displayName": "two", "jobSpec": spec})["name"].rpartition("/")[2]
    assert service.ended(number)["state"] == "JOB_STATE_SUCCEEDED"
    for replica in ("workerpool0-0", "workerpool1-0", "workerpool1-1"):
        assert "['workerpool0', 'workerpool1']" in service.log(number, replica)


def test_lists_have_pages_filters_and_an_order(service):
    for i in range(5):
        service.create("pass", f"listed-{i}", labels={"batch": "pages"})
    numbers, token = [], ""
    while True:
        page = service.call("GET", f"/customJobs?pageSize=2&pageToken={token}&filter=labels.batch%3D%22pages%22")
        numbers += [job["displayName"] for job in page["customJobs"]]
        token = page.get("nextPageToken")
        if not token:
            break
        assert len(page["customJobs"]) == 2
    assert numbers == [f"listed-{i}" for i in (4, 3, 2, 1, 0)], "the newest first"
    for number in [job["name"].rpartition("/")[2] for job in service.call("GET", "/customJobs")["customJobs"]]:
        service.ended(number)
    found = service.call("GET", "/customJobs?filter=display_name%3D%22listed-3%22%20AND%20state%3D%22JOB_STATE_SUCCEEDED%22")
    assert [job["displayName"] for job in found["customJobs"]] == ["listed-3"]
    for i in (2, 0, 1):
        service.call("POST", f"/endpoints?endpointId=sorted-{i}", {"displayName": f"sorted-{i}"})
    found = service.call("GET", "/endpoints?orderBy=display_name&filter=display_name:sorted")
    assert [each["displayName"] for each in found["endpoints"]] == [f"sorted-{i}" for i in range(3)]
    for i in range(3):
        service.call("DELETE", f"/endpoints/sorted-{i}")
    assert service.call("GET", "/customJobs", base="/v1/projects/other/locations/us-central1") == {}
    for query in ("filter=state%3D", "pageToken=nobody", "pageSize=-1", "pageSize=%D9%A3", "orderBy=x", "noSuch=1"):
        error = service.call("GET", f"/endpoints?{query}", code=400)["error"]
        assert error["details"][0]["fieldViolations"][0]["field"] == query.partition("=")[0]


def test_delete_removes_the_record_and_nothing_else(service):
    number = service.create("print('kept')")
    service.ended(number)
    operation = service.call("DELETE", f"/customJobs/{number}")
    assert operation["done"] and operation["response"]["@type"].endswith("Empty")
    assert service.call("GET", f"/customJobs/{number}", code=404)["error"]["status"] == "NOT_FOUND"
    assert service.log(number) == "kept\n"
    running = service.create(SLEEP)
    assert "cancel it first" in service.call("DELETE", f"/customJobs/{running}", code=400)["error"]["message"]
    service.call("POST", f"/customJobs/{running}:cancel", {})
    service.ended(running)


GOOD = {"displayName": "x", "jobSpec": job_spec("pass")}


@pytest.mark.parametrize(
    "change, field, says",
    [
        ({"displayName": ""}, "displayName", "required"),
        ({"displayName": "x" * 129}, "displayName", "128"),
        ({"unknown": 1}, "unknown", 'no field named "unknown"'),
        ({"jobSpec": {}}, "jobSpec.workerPoolSpecs", "required"),
        ({"jobSpec": {**job_spec("pass"), "nope": 1}}, "jobSpec.nope", 'no field named "nope"'),
        ({"jobSpec": {"workerPoolSpecs": [pool("pass", replicas=2)]}}, "jobSpec.workerPoolSpecs[0].replicaCount", "1 replica"),
        ({"jobSpec": {"workerPoolSpecs": [{"replicaCount": 1}]}}, "jobSpec.workerPoolSpecs[0]", "containerSpec"),
        ({"jobSpec": {"workerPoolSpecs": [pool("pass", replicas=0)]}}, "jobSpec.workerPoolSpecs[0].replicaCount", "takes 1 or more; got 0"),
        ({"jobSpec": {"workerPoolSpecs": "all"}}, "jobSpec.workerPoolSpecs", ""),
        ({"jobSpec": {**job_spec("pass"), "scheduling": {"strategy": "CHEAP"}}}, "jobSpec.scheduling.strategy", "CHEAP"),
        ({"jobSpec": {**job_spec("pass"), "scheduling": {"timeout": "1h"}}}, "jobSpec.scheduling.timeout", "1h"),
        (
            {"jobSpec": {**job_spec("pass"), "baseOutputDirectory": {"outputUriPrefix": "gs://Upper/x"}}},
            "jobSpec.baseOutputDirectory.outputUriPrefix",
            "lower-case",
        ),
    ],
)
def test_a_wrong_job_is_refused_with_its_field(service, change, field, says):
    error = service.call("POST", "/customJobs", {**GOOD, **change}, code=400)["error"]
    assert error["status"] == "INVALID_ARGUMENT" and error["code"] == 400 and says in error["message"]
    (detail,) = error["details"]
    assert detail["@type"] == "type.googleapis.com/google.rpc.BadRequest" and detail["fieldViolations"][0]["field"] == field


def test_what_is_not_there_and_what_is_not_supported(service):
    assert service.call("GET", "/customJobs/12345", code=404)["error"]["status"] == "NOT_FOUND"
    assert service.call("GET", "/nothings", code=501)["error"]["status"] == "UNIMPLEMENTED"
    assert service.call("POST", "/endpoints/1:directPredict", {"inputs": []}, code=501)["error"]["status"] == "UNIMPLEMENTED"
    assert service.call("GET", "/nothing", code=404, base="/v3")["error"]["status"] == "NOT_FOUND"
    assert service.call("PATCH", "/customJobs/1", {}, code=501)["error"]["status"] == "UNIMPLEMENTED"
    for body in (b"{", b"[]", b'{"a": ' * 100_000):
        code, _, text = service.raw(
            "POST", f"{PARENT}/customJobs", body, {"Authorization": f"Bearer {service.token}", "Content-Type": "application/json"}
        )  # fmt: skip
        assert code == 400 and json.loads(text)["error"]["status"] == "INVALID_ARGUMENT"


@pytest.mark.slow
def test_every_job_file_of_ours_is_taken(tmp_path):
    """All of them wait behind a job that holds the only place: taken and checked, but not run."""
    given = {"project": "my-project", "region": "us-central1", "bucket": "my-bucket", "repository": "repo", "tag": "v1"}
    service = Service(tmp_path, "--parallel_jobs=1", f"--project_dir={ROOT}")
    try:
        service.reach(service.create(SLEEP), "RUNNING")
        taken = 0
        for path in sorted((ROOT / "jobs").glob("*.yaml")):
            body = yaml.safe_load(job_file.read_text(path, given))
            if "studySpec" in body:
                kind, body = "hyperparameterTuningJobs", {**body, "displayName": path.stem}
            elif "workerPoolSpecs" in body:
                kind, body = "customJobs", {"displayName": path.stem, "jobSpec": body}
            elif "jobSpec" in body:
                kind, body = "customJobs", {**body, "displayName": path.stem}
            else:
                continue  # settings, a TFJob
            body.get("jobSpec", {}).pop("tensorboard", None)  # an instance that only its reader has
            assert service.call("POST", f"/{kind}", body)["state"] == "JOB_STATE_PENDING", path.name
            taken += 1
        assert taken >= 4
    finally:
        assert service.stop() == 0


# ------------------------------------------------------------------ tuning jobs


def study(**fields) -> dict:
    parameter = {"parameterId": "x", "scaleType": "UNIT_LINEAR_SCALE", "doubleValueSpec": {"minValue": -1, "maxValue": 1}}
    report = (
        "import hypertune,os,sys\nx = float(sys.argv[-1].partition('=')[2])\nprint('x is', x)\n"
        "hypertune.HyperTune().report_hyperparameter_tuning_metric('loss', x * x, 1)\n"
    )
    return {
        "studySpec": {"metrics": [{"metricId": "loss", "goal": "MINIMIZE"}], "parameters": [parameter], "algorithm": "RANDOM_SEARCH"},
        "maxTrialCount": 3, "parallelTrialCount": 2,
        "trialJobSpec": {**job_spec(report + TRAINER), "baseOutputDirectory": {"outputUriPrefix": "gs://out-bucket/study"}}, **fields,
    }  # fmt: skip


def test_a_tuning_job_shows_its_trials(service):
    made = service.call("POST", "/hyperparameterTuningJobs", {"displayName": "hp", **study()})
    number = made["name"].rpartition("/")[2]
    job = service.ended(number, "hyperparameterTuningJobs")
    assert job["state"] == "JOB_STATE_SUCCEEDED", job
    assert [(trial["id"], trial["state"]) for trial in job["trials"]] == [(str(i), "SUCCEEDED") for i in (1, 2, 3)]
    for trial in job["trials"]:
        x, loss = trial["parameters"][0]["value"], trial["finalMeasurement"]["metrics"][0]["value"]
        assert trial["parameters"][0]["parameterId"] == "x" and loss == pytest.approx(x * x, rel=1e-3)
    query = f'resource.type="ml_job" AND resource.labels.job_id="{number}" AND resource.labels.task_name="workerpool0-0"'
    entries = service.call("POST", "/v2/entries:list", {"resourceNames": ["projects/p"], "filter": query}, base="")["entries"]
    said = {entry["labels"]["ml.googleapis.com/trial_id"] for entry in entries if entry["jsonPayload"]["message"].startswith("x is")}
    assert said == {"1", "2", "3"}
    error = service.call("POST", "/hyperparameterTuningJobs", {"displayName": "hp", **study(studySpec={"metrics": []})}, code=400)["error"]
    assert error["status"] == "INVALID_ARGUMENT"


# ------------------------------------------------------------------ pipelines and datasets

ROWS = [f"{i},{i * 2},2020-01-{1 + i % 28:02d}T00:00:00Z,{('TRAIN', 'validation', 'TEST', 'other')[i % 4]}" for i in range(200)]
SHOW = (
    "import glob,os,json\n"
    "print('AIP_DATA_FORMAT', os.environ['AIP_DATA_FORMAT'])\n"
    "for name in ('TRAINING', 'VALIDATION', 'TEST'):\n"
    "    files = glob.glob(os.environ[f'AIP_{name}_DATA_URI'])\n"
    "    lines = [line for file in files for line in open(file).read().splitlines()]\n"
    "    print(name, len(files), json.dumps(lines))\n"
)


@pytest.fixture(scope="module")
def dataset(service):
    header = "a,b,when,use\n"
    write_object(service, "data-bucket/rows/1.csv", header + "\n".join(ROWS[:120]) + "\n")
    write_object(service, "data-bucket/rows/2.csv", header + "\n".join(ROWS[120:]) + "\n")
    body = {
        "displayName": "rows", "metadataSchemaUri": "gs://google-cloud-aiplatform/schema/dataset/metadata/tabular_1.0.0.yaml",
        "metadata": {"inputConfig": {"gcsSource": {"uri": ["gs://data-bucket/rows/*.csv"]}}},
    }  # fmt: skip
    operation = service.call("POST", "/datasets", body)
    assert operation["done"] and operation["response"]["@type"] == "type.googleapis.com/google.cloud.aiplatform.v1.Dataset"
    return operation["response"]["name"].rpartition("/")[2]


def pipeline(source: str, **fields) -> dict:
    inputs = {**job_spec(source), "baseOutputDirectory": {"outputUriPrefix": "gs://out-bucket/pipe"}}
    return {"displayName": "pipe", "trainingTaskDefinition": CUSTOM, "trainingTaskInputs": inputs, **fields}


def exported(service, dataset, **split) -> dict[str, list[str]]:
    config = {"datasetId": dataset, "gcsDestination": {"outputUriPrefix": "gs://out-bucket/exports"}, **split}
    made = service.call("POST", "/trainingPipelines", pipeline(SHOW, inputDataConfig=config))
    done = service.ended(made["name"].rpartition("/")[2], "trainingPipelines")
    assert done["state"] == "PIPELINE_STATE_SUCCEEDED", done
    backing = done["trainingTaskMetadata"]["backingCustomJob"].rpartition("/")[2]
    assert service.call("GET", f"/customJobs/{backing}")["state"] == "JOB_STATE_SUCCEEDED"
    lines = service.log(backing).splitlines()
    assert lines[0] == "AIP_DATA_FORMAT csv"
    found = {}
    for line in lines[1:4]:
        name, files, rows = line.split(" ", 2)
        rows = json.loads(rows)
        assert int(files) == (1 if rows else 0) and rows[:1] == ["a,b,when,use"] * bool(rows)
        found[name] = rows[1:]
    return found


def test_rows_are_split_by_fractions(service, dataset):
    sets = exported(service, dataset)
    assert sorted(sum(sets.values(), [])) == sorted(ROWS), "each row is in one set"
    assert 130 <= len(sets["TRAINING"]) <= 190 and sets["VALIDATION"] and sets["TEST"]
    assert exported(service, dataset) == sets, "and in the same one each time"
    half = exported(service, dataset, fractionSplit={"trainingFraction": 0.5, "validationFraction": 0.5})
    assert not half["TEST"] and 70 <= len(half["TRAINING"]) <= 130


def test_rows_are_split_by_a_column(service, dataset):
    sets = exported(service, dataset, predefinedSplit={"key": "use"})
    assert sets == {"TRAINING": ROWS[0::4], "VALIDATION": ROWS[1::4], "TEST": ROWS[2::4]}, "what is none of the three is left out"
    fractions = {"trainingFraction": 0.6, "validationFraction": 0.2, "testFraction": 0.2}
    sets = exported(service, dataset, timestampSplit={"key": "when", **fractions})
    assert [len(sets[name]) for name in sets] == [120, 40, 40]
    times = {name: [row.split(",")[2] for row in rows] for name, rows in sets.items()}
    assert min(times["TRAINING"]) >= max(times["VALIDATION"]) and min(times["VALIDATION"]) >= max(times["TEST"])
    sets = exported(service, dataset, stratifiedSplit={"key": "use", **fractions})
    assert [[row.split(",")[3] for row in sets["TRAINING"]].count(use) for use in ("TRAIN", "TEST")] == [30, 30]


@pytest.mark.parametrize(
    "change, code, status, says",
    [
        ({"filterSplit": {"trainingFilter": "-"}}, 400, "INVALID_ARGUMENT", "tabular"),
        ({"predefinedSplit": {"key": "c"}}, 400, "INVALID_ARGUMENT", "a, b, when, use"),
        ({"fractionSplit": {"trainingFraction": 0.9, "testFraction": 0.2}}, 400, "INVALID_ARGUMENT", "sum"),
        ({"datasetId": "77"}, 404, "NOT_FOUND", "datasets/77"),
        ({"bigqueryDestination": {"outputUri": "bq://my-project"}, "gcsDestination": None}, 400, "INVALID_ARGUMENT", "bigqueryDestination"),
        ({"gcsDestination": {"outputUriPrefix": "gs://b/../x"}}, 400, "INVALID_ARGUMENT", "bucket name"),
        ({"gcsDestination": {"outputUriPrefix": "gs://out-bucket/../../x"}}, 400, "INVALID_ARGUMENT", "leaves"),
    ],
)
def test_a_wrong_split_is_refused(service, dataset, change, code, status, says):
    config = {"datasetId": dataset, "gcsDestination": {"outputUriPrefix": "gs://out-bucket/exports"}, **change}
    body = pipeline("pass", inputDataConfig={key: value for key, value in config.items() if value})
    error = service.call("POST", "/trainingPipelines", body, code=code)["error"]
    assert error["status"] == status and says in error["message"]


def test_a_dataset_is_kept_changed_and_forgotten(service, dataset):
    got = service.call("GET", f"/datasets/{dataset}")
    assert got["labels"]["aiplatform.googleapis.com/dataset_metadata_schema"] == "TABULAR"
    assert service.call("PATCH", f"/datasets/{dataset}?updateMask=display_name", {"displayName": "other"})["displayName"] == "other"
    assert dataset in str(service.call("GET", "/datasets?filter=display_name%3Dother"))
    body = {key: got[key] for key in ("displayName", "metadataSchemaUri", "metadata")}
    second = service.call("POST", "/datasets", body)["response"]["name"].rpartition("/")[2]
    service.call("DELETE", f"/datasets/{second}")
    service.call("GET", f"/datasets/{second}", code=404)
    missing = {"inputConfig": {"gcsSource": {"uri": ["gs://data-bucket/none.csv"]}}}
    assert "gs://data-bucket/none.csv" in service.call("POST", "/datasets", {**body, "metadata": missing}, code=404)["error"]["message"]
    table = {"inputConfig": {"bigquerySource": {"uri": "bq://p.d.t"}}}
    assert service.call("POST", "/datasets", {**body, "metadata": table}, code=501)["error"]["status"] == "UNIMPLEMENTED"
    image = body["metadataSchemaUri"].replace("tabular", "image")
    assert service.call("POST", "/datasets", {**body, "metadataSchemaUri": image}, code=501)["error"]["status"] == "UNIMPLEMENTED"


def test_a_pipeline_uploads_its_model_as_a_version(service):
    model = {"displayName": "m", "containerSpec": {"imageUri": IMAGE}, "versionAliases": ["good"]}
    made = service.call("POST", "/trainingPipelines", pipeline(TRAINER, modelToUpload=model, modelId="from_pipe"))
    done = service.ended(made["name"].rpartition("/")[2], "trainingPipelines")
    assert done["state"] == "PIPELINE_STATE_SUCCEEDED", done
    uploaded = done["modelToUpload"]
    assert uploaded["name"].endswith("/models/from_pipe") and uploaded["artifactUri"] == "gs://out-bucket/pipe/model"
    assert uploaded["versionId"] == "1" and uploaded["versionAliases"] == ["default", "good"]
    assert uploaded["trainingPipeline"] == done["name"]
    again = service.call("POST", "/trainingPipelines", pipeline(TRAINER, modelToUpload=model, parentModel=uploaded["name"]))
    second = service.ended(again["name"].rpartition("/")[2], "trainingPipelines")["modelToUpload"]
    assert second["versionId"] == "2" and second["versionAliases"] == ["good"]
    assert service.call("GET", "/models/from_pipe@1")["versionAliases"] == ["default"], "an alias belongs to one version"


def test_a_pipeline_without_a_model_fails_and_says_where_it_looked(service):
    model = {"displayName": "m", "containerSpec": {"imageUri": IMAGE}}
    body = pipeline("pass", modelToUpload=model)
    body["trainingTaskInputs"]["baseOutputDirectory"]["outputUriPrefix"] = "gs://out-bucket/nothing"
    done = service.ended(service.call("POST", "/trainingPipelines", body)["name"].rpartition("/")[2], "trainingPipelines")
    assert done["state"] == "PIPELINE_STATE_FAILED" and "gs://out-bucket/nothing/model" in done["error"]["message"]
    failed = service.call("POST", "/trainingPipelines", pipeline("raise SystemExit('bad day')"))
    done = service.ended(failed["name"].rpartition("/")[2], "trainingPipelines")
    assert done["state"] == "PIPELINE_STATE_FAILED" and "bad day" in done["error"]["message"]


def test_a_cancelled_pipeline_cancels_its_job(service):
    number = service.call("POST", "/trainingPipelines", pipeline(SLEEP))["name"].rpartition("/")[2]
    metadata = wait_for(lambda: service.call("GET", f"/trainingPipelines/{number}").get("trainingTaskMetadata"))
    backing = metadata["backingCustomJob"].rpartition("/")[2]
    pid = int(wait_for(lambda: service.log(backing).strip()))
    service.call("POST", f"/trainingPipelines/{number}:cancel", {})
    assert service.ended(number, "trainingPipelines")["state"] == "PIPELINE_STATE_CANCELLED"
    assert service.call("GET", f"/customJobs/{backing}")["state"] == "JOB_STATE_CANCELLED"
    gone(pid)


def test_a_tuning_pipeline_uploads_the_best_trials_model(service, dataset):
    model = {"displayName": "best", "containerSpec": {"imageUri": IMAGE}}
    inputs = study()
    inputs["trialJobSpec"]["baseOutputDirectory"] = {"outputUriPrefix": "gs://out-bucket/tuned"}
    command = inputs["trialJobSpec"]["workerPoolSpecs"][0]["containerSpec"]["command"]
    command[-1] += "import glob,os; print(len(glob.glob(os.environ['AIP_TRAINING_DATA_URI'])))\n"
    config = {"datasetId": dataset, "gcsDestination": {"outputUriPrefix": "gs://out-bucket/exports"}}
    body = {"displayName": "t", "trainingTaskDefinition": TUNED, "trainingTaskInputs": inputs, "modelToUpload": model}
    body["inputDataConfig"] = config
    done = service.ended(service.call("POST", "/trainingPipelines", body)["name"].rpartition("/")[2], "trainingPipelines")
    assert done["state"] == "PIPELINE_STATE_SUCCEEDED", done
    backing = done["trainingTaskMetadata"]["backingHyperparameterTuningJob"].rpartition("/")[2]
    tuned = service.call("GET", f"/hyperparameterTuningJobs/{backing}")
    assert service.log(f"{backing}-trial-1").endswith("\n1\n"), "the trial found the exported file"
    best = min(tuned["trials"], key=lambda trial: trial["finalMeasurement"]["metrics"][0]["value"])
    assert done["modelToUpload"]["artifactUri"] == f"gs://out-bucket/tuned/{best['id']}/model"


@pytest.mark.parametrize(
    "change, code, says",
    [
        ({"trainingTaskDefinition": "gs://google-cloud-aiplatform/schema/trainingjob/definition/automl_tables_1.0.0.yaml"}, 501, "automl"),
        ({"trainingTaskInputs": {"workerPoolSpecs": [{"x": 1}]}}, 400, '"x"'),
        ({"modelToUpload": {"displayName": "m"}}, 400, "model.containerSpec.imageUri"),
        ({"modelToUpload": {"displayName": "m", "containerSpec": {"imageUri": IMAGE}}, "parentModel": "none"}, 404, "models/none"),
        ({"modelToUpload": {"displayName": "m", "containerSpec": {"imageUri": IMAGE}, "versionAliases": ["No"]}}, 400, "'No'"),
        ({"displayName": ""}, 400, "displayName"),
    ],
)
def test_a_wrong_pipeline_is_refused(service, change, code, says):
    assert says in service.call("POST", "/trainingPipelines", {**pipeline("pass"), **change}, code=code)["error"]["message"]


# ------------------------------------------------------------------ models and endpoints


def upload(service, code: int = 200, name: str = "out-bucket/loose/saved_model.pb", **fields) -> dict:
    uri = write_object(service, name, "not really one").rpartition("/")[0]
    model = {"displayName": "loose", "artifactUri": uri, "containerSpec": {"imageUri": IMAGE}, **fields.pop("model", {})}
    return service.call("POST", "/models:upload", {"model": model, **fields}, code=code)


def test_versions_and_aliases_of_a_model(service):
    first = upload(service, modelId="versions")["response"]
    assert first["modelVersionId"] == "1" and first["@type"].endswith(".v1.UploadModelResponse")
    assert upload(service, 409, modelId="versions")["error"]["status"] == "ALREADY_EXISTS"
    upload(service, parentModel=first["model"], model={"versionAliases": ["beta", "default"]})
    assert service.call("GET", "/models/versions")["versionId"] == "2", "default has moved"
    merged = service.call("POST", "/models/versions@1:mergeVersionAliases", {"versionAliases": ["old", "default"]})
    assert merged["versionAliases"] == ["old", "default"]
    assert service.call("GET", "/models/versions%40beta")["versionAliases"] == ["beta"]
    assert [each["versionId"] for each in service.call("GET", "/models/versions:listVersions")["models"]] == ["2", "1"]
    assert service.call("DELETE", "/models/versions@1:deleteVersion", code=400)["error"]["status"] == "FAILED_PRECONDITION"
    assert service.call("DELETE", "/models/versions@2:deleteVersion")["done"]
    service.call("GET", "/models/versions@2", code=404)
    assert upload(service, parentModel=first["model"])["response"]["modelVersionId"] == "3", "a number is not given twice"
    assert service.call("PATCH", "/models/versions?updateMask=labels", {"labels": {"a": "b"}})["labels"] == {"a": "b"}
    assert "versions" in str(service.call("GET", "/models?filter=labels.a%3Db"))
    service.call("DELETE", "/models/versions")
    service.call("GET", "/models/versions", code=404)
    assert (service.state / "buckets/out-bucket/loose/saved_model.pb").exists()


def test_a_model_that_cannot_be_served_is_refused(service):
    assert upload(service, 400, model={"artifactUri": "gs://out-bucket/nothing"})["error"]["status"] == "FAILED_PRECONDITION"
    assert "model.artifactUri" in str(upload(service, 400, model={"artifactUri": ""}))
    assert upload(service, 400, modelId="Upper")["error"]["details"][0]["fieldViolations"][0]["field"] == "modelId"
    assert upload(service, 501, model={"explanationSpec": {"parameters": {"topK": 1}}})["error"]["status"] == "UNIMPLEMENTED"


def test_an_endpoint_and_what_is_wrong_with_it(service):
    made = service.call("POST", "/endpoints?endpointId=mine", {"displayName": "e"})["response"]["name"]
    assert made.endswith("/endpoints/mine")
    assert service.call("POST", "/endpoints?endpointId=mine", {"displayName": "e"}, code=409)["error"]["status"] == "ALREADY_EXISTS"
    error = service.call("POST", "/endpoints/mine:predict", {"instances": [1]}, code=400)["error"]
    assert error["status"] == "FAILED_PRECONDITION" and "deploy" in error["message"]
    for body, field in (({}, "instances"), ({"instances": []}, "instances"), ({"instance": [1]}, "instance")):
        error = service.call("POST", "/endpoints/mine:predict", body, code=400)["error"]
        assert error["details"][0]["fieldViolations"][0]["field"] == field
    service.call("POST", "/endpoints/mine:predict", {"instances": ["x" * 1_600_000]}, code=400)
    broken = upload(service)["response"]["model"]
    operation = service.operation(service.call("POST", "/endpoints/mine:deployModel", {"deployedModel": {"model": broken}}))
    assert operation["error"]["code"] == 9 and "model's process ended" in operation["error"]["message"]
    split = {"deployedModel": {"model": broken}, "trafficSplit": {"0": 50}}
    assert "100 in all" in service.call("POST", "/endpoints/mine:deployModel", split, code=400)["error"]["message"]
    strange = {"deployedModel": {"model": broken, "id": "../x"}}
    assert "deployedModel.id" in str(service.call("POST", "/endpoints/mine:deployModel", strange, code=400))
    own = upload(service, model={"containerSpec": {"imageUri": "host/own-server:1"}})["response"]["model"]
    error = service.call("POST", "/endpoints/mine:deployModel", {"deployedModel": {"model": own}}, code=501)["error"]
    assert error["status"] == "UNIMPLEMENTED" and "host/own-server:1" in error["message"]
    assert service.call("POST", "/endpoints/mine:deployModel", {"deployedModel": {"model": "none"}}, code=404)
    assert service.call("DELETE", "/endpoints/mine")["done"] and service.call("GET", "/endpoints") == {}


def test_operations_speak_the_clients_version(service):
    made = service.call("POST", "/endpoints", {"displayName": "op"}, base="/v1beta1/projects/p/locations/us-central1")
    number = made["name"].rpartition("/")[2]
    beta = service.call("GET", f"/operations/{number}", base="/v1beta1/projects/p/locations/us-central1")
    assert beta["response"]["@type"].endswith(".v1beta1.Endpoint") and ".v1beta1." in beta["metadata"]["@type"]
    assert service.call("POST", f"/operations/{number}:wait", {"timeout": "1s"})["done"]
    assert number in str(service.call("GET", "/operations"))
    assert service.call("DELETE", f"/operations/{number}") == {}
    service.call("GET", f"/operations/{number}", code=404)


# ------------------------------------------------------------------ logs


def test_log_entries_have_severities_times_and_pages(service):
    source = (
        "import json,sys\nprint('plain')\nprint('to stderr', file=sys.stderr)\n"
        "print(json.dumps({'severity': 'WARNING', 'message': 'careful', 'step': 3}))\n"
        "print(json.dumps({'message': 'dated', 'timestampSeconds': 1500000000, 'timestampNanos': 5000}))\n"
    )
    number = service.create(source)
    service.ended(number)
    base = f'resource.type="ml_job" AND resource.labels.job_id="{number}" AND resource.labels.task_name="workerpool0-0"'

    def ask(more: str = "", **fields) -> dict:
        return service.call("POST", "/v2/entries:list", {"resourceNames": ["projects/p"], "filter": base + more, **fields}, base="")

    entries = ask(orderBy="timestamp asc", pageSize=1000)["entries"]
    seen = {entry["jsonPayload"]["message"]: entry for entry in entries}
    assert {text: entry["severity"] for text, entry in seen.items()} == {
        "plain": "INFO", "to stderr": "ERROR", "careful": "WARNING", "dated": "DEFAULT",
    }  # fmt: skip
    assert seen["careful"]["jsonPayload"]["step"] == 3 and seen["dated"]["timestamp"] == "2017-07-14T02:40:00.000005Z"
    assert entries == sorted(entries, key=lambda entry: entry["timestamp"])
    when, place = seen["plain"]["timestamp"], seen["plain"]["insertId"]
    bound = f' AND ((timestamp="{when}" AND insertId>"{place}") OR timestamp>"{when}")'
    assert "plain" not in str(ask(bound)) and "careful" in str(ask(bound)), "the form in which gcloud asks for what is new"
    assert [entry["jsonPayload"]["message"] for entry in ask(" AND severity>=WARNING", orderBy="timestamp desc")["entries"]] in (
        ["to stderr", "careful"], ["careful", "to stderr"],
    )  # fmt: skip
    texts, token = [], ""
    while token is not None:
        page = ask(pageSize=3, pageToken=token)
        texts += [entry["jsonPayload"]["message"] for entry in page["entries"]]
        token = page.get("nextPageToken")
    assert texts == [entry["jsonPayload"]["message"] for entry in entries]
    assert ask(' AND timestamp<"1980-01-01T00:00:00Z"') == {}
    other = {"resourceNames": ["projects/other"], "filter": base}
    assert service.call("POST", "/v2/entries:list", other, base="") == {}
    for body in ({"filter": "a=("}, {"orderBy": "x"}, {"pageSize": 0.5}, {"pageToken": "x"}, {"resourceNames": ["p"]}):
        assert service.call("POST", "/v2/entries:list", body, code=400, base="")["error"]["status"] == "INVALID_ARGUMENT"


def test_the_filter_language():
    item = {"displayName": "x y", "state": "GOOD", "labels": {"a": "b"}, "n": 7}

    def accepts(text: str) -> bool:
        return filters.parse(text, lambda one, name: one.get(filters.camel(name), one["labels"].get(name.partition(".")[2])))(item)

    for text in (
        "", 'display_name="x y"', "state=GOOD AND n>=7", "state=BAD OR (n<8 AND NOT state=BAD)", "labels.a:*", "n!=6 n>6",
        'display_name:"X"',
    ):  # fmt: skip
        assert accepts(text), text
    for text in ("state=BAD", "NOT state=GOOD", "labels.c:*", "n<7", "state=GOOD AND n>70"):
        assert not accepts(text), text
    for text in ("state", "state=", "(state=GOOD", "state=GOOD)", "=x", 'a="', "(" * 200 + "a=b" + ")" * 200, "a=b AND"):
        with pytest.raises(filters.FilterError):
            accepts(text)


# ------------------------------------------------------------------ storage


def test_uploads_of_all_three_kinds(service):
    service.storage("POST", "/storage/v1/b?project=p", b'{"name": "store-one"}', Content_Type="application/json")
    path = "/upload/storage/v1/b/store-one/o"
    content = os.urandom(3_000_000)
    _, text = service.storage("POST", f"{path}?uploadType=media&name=media%2Fa.bin", content, Content_Type="text/plain")
    made = json.loads(text)
    assert made["md5Hash"] == base64.b64encode(hashlib.md5(content).digest()).decode() and made["contentType"] == "text/plain"
    assert made["size"] == "3000000" and int(made["generation"]) > 10**15
    tricky = content[:1000] + b"\r\n--mark--\r\nnot the end\r\n--mar"
    about = b'--mark\r\nContent-Type: application/json\r\n\r\n{"name": "multi.bin", "metadata": {"k": "v"}}\r\n'
    body = about + b"--mark\r\nContent-Type: a/b\r\n\r\n" + tricky + b"\r\n--mark--\r\n"
    _, text = service.storage("POST", f"{path}?uploadType=multipart", body, Content_Type="multipart/related; boundary=mark")
    assert json.loads(text)["metadata"] == {"k": "v"} and json.loads(text)["contentType"] == "a/b"
    assert (service.state / "buckets/store-one/multi.bin").read_bytes() == tricky
    headers, _ = service.storage("POST", f"{path}?uploadType=resumable", b'{"name": "resumed"}', Content_Type="application/json")
    session = headers["Location"].partition(f":{service.port}")[2]
    headers, _ = service.storage("PUT", session, content[:1_000_000], 308, Content_Range="bytes 0-999999/*")
    assert headers["Range"] == "bytes=0-999999"
    headers, _ = service.storage("PUT", session, b"", 308, Content_Range="bytes */*")
    assert headers["Range"] == "bytes=0-999999", "how far it has come"
    service.storage("PUT", session, content[2_000_000:], 400, Content_Range="bytes 2000000-2999999/3000000")
    assert not (service.state / "buckets/store-one/resumed").exists()
    _, text = service.storage("PUT", session, content[1_000_000:], Content_Range="bytes 1000000-2999999/3000000")
    assert json.loads(text)["md5Hash"] == made["md5Hash"]
    assert not list((service.state / "serve/uploads").iterdir()), "nothing unfinished is left"


def test_downloads_lists_copies_and_conditions(service):
    for name in ("a.txt", "dir/b.txt", "dir/sub/c.txt", "dir/ü.txt"):
        write_object(service, f"store-two/{name}", f"content of {name}")
    base = "/storage/v1/b/store-two/o"

    def ask(query: str) -> dict:
        return json.loads(service.storage("GET", f"{base}?{query}")[1])

    assert [item["name"] for item in ask("")["items"]] == ["a.txt", "dir/b.txt", "dir/sub/c.txt", "dir/ü.txt"], "what a job wrote is there"
    found = ask("prefix=dir/&delimiter=/")
    assert [item["name"] for item in found["items"]] == ["dir/b.txt", "dir/ü.txt"] and found["prefixes"] == ["dir/sub/"]
    assert ask("prefix=../") == {"kind": "storage#objects"} and ask("prefix=nothing") == {"kind": "storage#objects"}
    page = ask("maxResults=3")
    assert [item["name"] for item in ask(f"pageToken={page['nextPageToken']}")["items"]] == ["dir/ü.txt"] and len(page["items"]) == 3
    headers, data = service.storage("GET", "/download/storage/v1/b/store-two/o/dir%2Fb.txt?alt=media")
    assert data == b"content of dir/b.txt" and "md5=" in headers["X-Goog-Hash"]
    headers, data = service.storage("GET", f"{base}/dir%2Fb.txt?alt=media", code=206, Range="bytes=3-6")
    assert data == b"tent" and headers["Content-Range"] == "bytes 3-6/20"
    service.storage("GET", f"{base}/dir%2Fb.txt?alt=media", code=416, Range="bytes=99-")
    json_type = {"Content_Type": "application/json"}
    done = json.loads(service.storage("POST", f"{base}/a.txt/rewriteTo/b/store-two/o/new%2Fa.txt", b"{}", **json_type)[1])
    assert done["done"] and done["resource"]["name"] == "new/a.txt"
    parts = json.dumps({"sourceObjects": [{"name": "a.txt"}, {"name": "dir/b.txt"}]}).encode()
    service.storage("POST", f"{base}/both/compose", parts, **json_type)
    assert service.storage("GET", f"{base}/both?alt=media")[1] == b"content of a.txtcontent of dir/b.txt"
    upload = "/upload/storage/v1/b/store-two/o?uploadType=media&name=a.txt"
    service.storage("POST", f"{upload}&ifGenerationMatch=0", b"x", 412, Content_Type="text/plain")
    now = json.loads(service.storage("GET", f"{base}/a.txt")[1])["generation"]
    service.storage("POST", f"{upload}&ifGenerationMatch={now}", b"new", Content_Type="text/plain")
    assert service.storage("GET", f"{base}/a.txt?alt=media")[1] == b"new"
    service.storage("DELETE", f"{base}/a.txt", code=204)
    _, text = service.storage("GET", f"{base}/a.txt", code=404)
    assert json.loads(text)["error"]["errors"][0]["reason"] == "notFound"


def test_a_sum_that_does_not_match_is_refused(service):
    service.storage("POST", "/storage/v1/b?project=p", b'{"name": "store-three"}', Content_Type="application/json")
    body = b'--m\r\nContent-Type: application/json\r\n\r\n{"name": "x", "md5Hash": "AAAAAAAAAAAAAAAAAAAAAA=="}\r\n--m\r\n\r\nabc\r\n--m--'
    path = "/upload/storage/v1/b/store-three/o?uploadType=multipart"
    _, text = service.storage("POST", path, body, 400, Content_Type='multipart/related; boundary="m"')
    assert "md5Hash" in json.loads(text)["error"]["message"] and not (service.state / "buckets/store-three/x").exists()
    service.storage("POST", "/upload/storage/v1/b/no-such-bucket/o?uploadType=media&name=x", b"", 404)
    service.storage("POST", "/storage/v1/b", b'{"name": "store-three"}', 409, Content_Type="application/json")
    service.storage("POST", "/storage/v1/b", b'{"name": "GOOGLE"}', 400, Content_Type="application/json")


def test_nothing_is_removed_from_a_bucket_root_of_somebody_elses(tmp_path):
    (tmp_path / "mine" / "some-bucket").mkdir(parents=True)
    (tmp_path / "mine" / "some-bucket" / "x").write_text("kept")
    service = Service(tmp_path, f"--bucket_root={tmp_path / 'mine'}")
    try:
        _, text = service.storage("DELETE", "/storage/v1/b/some-bucket/o/x", code=403)
        assert "nothing in it is removed" in json.loads(text)["error"]["message"]
        assert (tmp_path / "mine/some-bucket/x").read_text() == "kept"
    finally:
        service.stop()


# ------------------------------------------------------------------ starting, ending, starting again


def test_killed_and_started_again_it_keeps_what_it_knows(tmp_path):
    first = Service(tmp_path, fresh=True)
    done, running = first.create("print('done')"), first.create(SLEEP)
    first.ended(done)
    pid = int(wait_for(lambda: first.log(running).strip()))
    old = first.token
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    gone(pid)
    second = Service(tmp_path)
    try:
        assert second.token != old
        assert second.call("GET", f"/customJobs/{done}")["state"] == "JOB_STATE_SUCCEEDED"
        job = second.call("GET", f"/customJobs/{running}")
        assert job["state"] == "JOB_STATE_FAILED" and "stopped" in job["error"]["message"] and job["endTime"]
        assert "1 job(s)" in "\n".join(second.out)
        assert len(second.call("GET", "/customJobs")["customJobs"]) == 2
    finally:
        second.stop()


@pytest.mark.slow
def test_a_deployed_model_outlives_the_service_but_its_process_does_not(tmp_path):
    """Trained by the real trainer, deployed, the service killed: no process is left; started again, it answers the same."""
    first = Service(tmp_path, f"--project_dir={ROOT}", fresh=True)
    data = ROOT / "taxifare" / "tests" / "data"
    args = [f"--train_data_path={data}/taxi-train.csv", f"--eval_data_path={data}/taxi-valid.csv", "--num_evals=1"]
    body = pipeline("", modelToUpload={"displayName": "m", "containerSpec": {"imageUri": IMAGE}}, modelId="taxi")
    body["trainingTaskInputs"]["workerPoolSpecs"][0]["containerSpec"] = {"imageUri": "host/taxifare:1", "args": args}
    number = first.call("POST", "/trainingPipelines", body)["name"].rpartition("/")[2]
    assert first.ended(number, "trainingPipelines", 120)["state"] == "PIPELINE_STATE_SUCCEEDED"
    first.call("POST", "/endpoints?endpointId=e", {"displayName": "e"})
    request = {"deployedModel": {"model": "taxi"}, "trafficSplit": {"0": 100}}
    deployed = first.operation(first.call("POST", "/endpoints/e:deployModel", request))
    assert "error" not in deployed and len(mark_of(first.process)) == 1
    instance = {"pickup_datetime": "2010-03-23 06:49:00+00:00", "passenger_count": 1, "pickup_longitude": -73.98, "pickup_latitude": 40.75}
    request = {"instances": [{**instance, "dropoff_longitude": -73.96, "dropoff_latitude": 40.78}]}
    answer = first.call("POST", "/endpoints/e:predict", request)
    assert isinstance(answer["predictions"][0], float) and answer["model"].endswith("/models/taxi") and answer["modelVersionId"] == "1"
    (pid,) = mark_of(first.process)
    first.stop(signal.SIGKILL)
    gone(pid)
    second = Service(tmp_path, f"--project_dir={ROOT}", fresh=True)
    assert second.call("POST", "/endpoints/e:predict", request) == answer
    (pid,) = mark_of(second.process)
    os.kill(pid, signal.SIGKILL)
    assert second.call("POST", "/endpoints/e:predict", request) == answer, "a process that died is started again"
    assert second.call("DELETE", "/models/taxi", code=400)["error"]["status"] == "FAILED_PRECONDITION"
    (pid,) = mark_of(second.process)
    second.stop()
    gone(pid)


def test_an_upload_goes_on_after_a_restart(tmp_path):
    first = Service(tmp_path, fresh=True)
    (first.state / "buckets" / "half-way").mkdir(parents=True)
    begin = "/upload/storage/v1/b/half-way/o?uploadType=resumable"
    headers, _ = first.storage("POST", begin, b'{"name": "x"}', Content_Type="application/json")
    session = headers["Location"].partition(f":{first.port}")[2]
    first.storage("PUT", session, b"abc", 308, Content_Range="bytes 0-2/*")
    (first.state / "serve" / "uploads" / "0123").write_text("left by a write that was cut")
    first.stop(signal.SIGKILL)
    second = Service(tmp_path)
    try:
        assert not (second.state / "serve" / "uploads" / "0123").exists()
        second.storage("PUT", session, b"def", Content_Range="bytes 3-5/6")
        assert (second.state / "buckets" / "half-way" / "x").read_text() == "abcdef"
    finally:
        second.stop()


def test_its_end_ends_the_jobs_in_order(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os,signal,sys,time\nsignal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(1)))\n"
        "print(os.getpid(), flush=True)\ntime.sleep(300)\n"
    )
    service = Service(tmp_path, fresh=True)
    number = service.create("exec(open('slow.py').read())")
    pid = int(wait_for(lambda: service.log(number).strip()))
    assert service.stop(signal.SIGINT) == 0
    gone(pid)
    assert not mark_of(service.process) and "saved" in service.log(number), "SIGTERM came first"
    wait_for(lambda: any("FAILED" in line and "stopped" in line for line in service.out))
    assert not (service.state / "serve/token").exists()


def test_what_it_keeps_is_its_owners_alone(service):
    for name, mode in (("serve", 0o700), ("serve/token", 0o600), ("serve/key.pem", 0o600), ("serve/endpoint.json", 0o600)):
        assert stat.S_IMODE((service.state / name).stat().st_mode) == mode
    text = "\n".join(service.out)
    assert service.token not in text, "the token is in its file only"
    for line in ('eval "$(python -m vertex_local env)"', "aiplatform.init("):
        assert line in text


def test_a_start_that_cannot_be_is_one_line(service, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for flags, says in (
        ([f"--state_dir={service.state}"], f"process {service.process.pid}"),
        ([f"--port={service.port}"], f"127.0.0.1:{service.port}"),
        (["--port=0", f"--grpc_port={service.endpoint.grpc.rpartition(':')[2]}"], f"--grpc_port: {service.endpoint.grpc} cannot be used"),
        (["--project_dir=none"], "--project_dir"),
        (["--python=no-such-python"], "--python"),
        (["--state_dir=file"], "--state_dir"),
    ):
        assert main(flags) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and says in error and error.count("\n") == 1
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "records.sqlite").write_text("not a database, but long enough to look like a file that is one" * 9)
    assert main(["--state_dir=state"]) == 2
    error = capsys.readouterr().err
    assert "records.sqlite" in error and error.count("\n") == 1
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "serve").symlink_to(tmp_path)
    assert main(["--state_dir=linked"]) == 2 and "not a link" in capsys.readouterr().err
    for flag in ("--port=99999", "--parallel_jobs=0"):
        with pytest.raises(SystemExit) as end:
            main([flag])
        assert end.value.code == 2
