"""From a model back to its rows: what runs leave in run.json, in Experiments and in ML Metadata, and the commands that read it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_local_support import call, command, environ, said, wait_for, write_job
from test_serve_support import ENDED, Service

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("cryptography", reason="without cryptography the service has no TLS")

from google.cloud import aiplatform  # noqa: E402
from google.cloud.aiplatform.metadata import metadata as sdk_metadata  # noqa: E402

from vertex_local.local.environment import number_of  # noqa: E402
from vertex_local.local.store import Store  # noqa: E402
from vertex_local.metadata import event_files, lineage, nodes  # noqa: E402
from vertex_runtime import checksums  # noqa: E402
from vertex_runtime.environment import Environment, uri_of  # noqa: E402
from vertex_runtime.tracking import experiment  # noqa: E402
from vertex_runtime.tracking import nodes as run_nodes

LOCATION = "projects/my-project/locations/us-central1"
STORE = f"{LOCATION}/metadataStores/default"
SERVING = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
DATA = ROOT / "taxifare" / "tests" / "data"
QUICK = ("--num_evals=2", "--epochs=2")


# ------------------------------------------------------------------ a run by itself


@pytest.fixture(scope="module")
def outputs(run_trainer, tmp_path_factory) -> Path:
    """A folder with two runs on a copy of the sample data, `one` and `other`."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(DATA, folder / "data")
    data = ("--train_data_path=data/taxi-train.csv", "--eval_data_path=data/taxi-valid.csv")
    run_trainer("taxifare", "--output_dir=one", *data, *QUICK, cwd=folder)
    run_trainer("taxifare", "--output_dir=other", *data, *QUICK, "--lr=0.01", "--seed=3", cwd=folder)
    return folder


def test_run_json_says_what_the_run_was(outputs):
    record = json.loads((outputs / "one" / "run.json").read_text())
    assert record["state"] == "finished" and record["seed"] == 0 and record["trainer"] == "taxifare"
    by_part = {part: file for file in record["data"] for part in file["parts"]}
    for part, name in (("training", "taxi-train.csv"), ("evaluation", "taxi-valid.csv")):
        file = by_part[part]
        assert file["uri"] == str(outputs / "data" / name) and file["bytes"] == os.path.getsize(file["uri"])
        assert file["checksum"] == checksums.of_local(file["uri"], "sha256")
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert record["code"]["commit"] == head.stdout.strip() and record["code"]["changed"] in (True, False)
    assert len(record["code"]["source_sha256"]) == 64 and record["machine"]["devices"] and record["versions"]["tensorflow"]
    assert [each["step"] for each in record["evaluations"]] and record["metrics"] == {
        name: value for name, value in json.loads((outputs / "one" / "metrics.json").read_text()).items() if name in record["metrics"]
    }
    model = record["model"]
    assert model["checksum"] == checksums.of_folder(str(outputs / "one" / "model")) and model["uri"] == str(outputs / "one" / "model")
    assert model["signature"]["inputs"]["pickup_datetime"]["dtype"] == "string" and model["signature"]["outputs"]
    assert {"data", "build", "step", "evaluation"} <= record["phase_seconds"].keys()


def test_a_resumed_run_is_the_same_run(outputs, run_trainer):
    before = json.loads((outputs / "one" / "run.json").read_text())
    data = ("--train_data_path=data/taxi-train.csv", "--eval_data_path=data/taxi-valid.csv")
    run_trainer("taxifare", "--output_dir=one", *data, *QUICK, cwd=outputs)
    after = json.loads((outputs / "one" / "run.json").read_text())
    assert after["id"] == before["id"] and after["starts"] == before["starts"] + 1
    assert after["evaluations"] == before["evaluations"], "none is counted twice"


def test_tensorboard_shows_what_the_run_goes_by(outputs):
    from tensorboard.compat.proto.event_pb2 import Event

    (path,) = (outputs / "other" / "logs").glob("*tfevents*")
    with open(path, "rb") as file:
        values = [value for content in event_files.records_of(file) for value in Event.FromString(content).summary.value]
    (text,) = [value.tensor.string_val[0].decode() for value in values if value.tag == "run"]
    about = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
    assert about["seed"] == 3 and {file["uri"] for file in about["data"]} == {
        str(outputs / "data" / name) for name in ("taxi-train.csv", "taxi-valid.csv")
    }


def test_lineage_of_a_folder_looks_at_every_file_again(outputs):
    text = said(outputs, "lineage", "one")
    assert "as they were made" in text and text.count("same: ") == 2 and "lr=0.02" in text and "taxifare, finished" in text
    found = json.loads(said(outputs, "lineage", "one/model", "--json"))
    assert found["model"]["now"] == "same" and [file["now"] for file in found["data"]] == ["same", "same"]
    assert found["parameters"]["lr"] == 0.02 and found["code"]["source_sha256"] and found["run"]["metrics"]["val_rmse"] > 0


def test_lineage_says_what_has_changed(outputs, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(outputs, folder)
    record = folder / "one" / "run.json"
    record.write_text(record.read_text().replace(f"{outputs}/", f"{folder}/"))
    with open(folder / "data" / "taxi-train.csv", "a") as file:
        file.write("\n")
    (folder / "data" / "taxi-valid.csv").unlink()
    (folder / "one" / "model" / "assets.extra" / "mine.txt").write_text("added")
    text = said(folder, "lineage", "one")
    assert "CHANGED since they were made" in text and f"CHANGED: {folder}/data/taxi-train.csv" in text and "MISSING: " in text


def test_compare_shows_what_differs_and_what_is_the_same(outputs):
    text = said(outputs, "compare", "one", "other")
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "0.02" in rows["parameters.lr"] and "0.01" in rows["parameters.lr"] and "parameters.batch_size" not in rows
    assert rows["parameters.seed"].split()[1:] == ["0", "3"]
    assert rows["data"].split()[1:] == ["the", "same"] * 2 and "evaluations)" in rows["val_rmse"]
    assert "code.commit" not in rows and "environment.python" not in rows


def test_trials_are_compared_as_one(outputs, tmp_path):
    for number, name in (("1", "one"), ("2", "other")):
        (tmp_path / "study" / number / "checkpoints").mkdir(parents=True)
        shutil.copy(outputs / name / "run.json", tmp_path / "study" / number / "checkpoints")
    rows = {line.split("  ")[0]: line for line in said(outputs, "compare", tmp_path / "study", "one").splitlines()}
    assert "2 values over the trials" in rows["parameters.lr"] and "parameters.batch_size" not in rows
    assert "2 trials)" in rows["val_rmse"] and "2 evaluations)" in rows["val_rmse"]


@pytest.mark.parametrize(
    "words, says",
    [
        (("lineage", "nothing"), "MODEL: 'nothing' is neither a folder nor a gs://"),
        (("lineage", "data"), "has no saved_model.pb"),
        (("lineage", "gs://bucket/none"), "has no saved_model.pb"),
        (("compare", "one", "data"), "RUN: 'data' holds no run.json"),
        (("compare", "one", "gs://bucket/none"), "holds no run.json"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(outputs, words, says):
    done = command(outputs, *words)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_unreachable_service_costs_a_line_and_not_the_run(run_trainer, tmp_path):
    with socket.socket() as closed:  # bound and not listening: nobody answers there
        closed.bind(("127.0.0.1", 0))
        env = {"CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": f"https://127.0.0.1:{closed.getsockname()[1]}/"}
        done = run_trainer("taxifare", "--output_dir=out", "--experiment=mine", *QUICK, cwd=tmp_path, env=env)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "experiment" in line]
    assert len(lines) == 1 and "kept in run.json only" in lines[0] and "cannot be reached" in lines[0]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["state"] == "finished" and record["experiment"]["name"] == "mine"


# ------------------------------------------------------------------ parts


def test_how_a_run_of_an_experiment_is_called():
    def called(given="", **fields):
        found = experiment.names(given, Environment(**fields), "taxifare", "1234")
        return found and (found["name"], found["run"])

    full = f"{STORE}/contexts/exp"
    assert called() is None and called("exp") == ("exp", "taxifare-1234") and called(experiment="a") == ("a", "taxifare-1234")
    assert called("exp", experiment="other", job="77") == ("exp", "77") and called("exp", job="77", trial="3") == ("exp", "77-3")
    assert called(experiment=full, experiment_run=f"{full}-run-1") == (full, "run-1")
    assert called(experiment=full, experiment_run="Run_2", trial="1") == (full, "run-2-1")


def test_addresses_are_those_of_the_bucket(tmp_path):
    variables = {"VERTEX_LOCAL_BUCKET_ROOT": str(tmp_path)}
    assert uri_of(f"{tmp_path}/bucket/x", variables) == "gs://bucket/x" and uri_of("/elsewhere/x", variables) == "/elsewhere/x"
    assert uri_of("gs://b/x", {}) == "gs://b/x" and uri_of("/gcs/b/x", {}) == "gs://b/x" and uri_of("x", {}) == os.path.abspath("x")


def test_checksums_are_of_content_and_names(tmp_path):
    for name, text in (("a/x", "1"), ("a/y/z", "22"), ("b/x", "1"), ("b/y/z", "22"), ("c/x", "22"), ("c/y/z", "1")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    a, b, c = (checksums.of_folder(str(tmp_path / name)) for name in "abc")
    assert a == b != c and a.startswith("sha256:")
    (tmp_path / "large").write_bytes(b"a" * (3 << 20))
    ends = checksums.of_local(str(tmp_path / "large"), checksums.ENDS)
    with open(tmp_path / "large", "r+b") as file:
        file.seek(3 << 19)
        file.write(b"b")
    assert checksums.of_local(str(tmp_path / "large"), checksums.ENDS) == ends, "only the ends count"
    assert checksums.of_local(str(tmp_path / "large"), checksums.WHOLE) != ends
    assert checksums.of_local(f"{tmp_path}/large:part", checksums.WHOLE) == checksums.of_local(f"{tmp_path}/large", checksums.WHOLE)
    assert checksums.of_local(str(tmp_path / "none"), checksums.WHOLE) is None


def test_many_files_are_one_artifact_of_each_part(outputs):
    record = json.loads((outputs / "one" / "run.json").read_text())
    few = run_nodes.of_run(record)
    assert [node["metadata"]["files"] for node in few["inputs"]] == [1, 1]
    file = record["data"][0]
    record["data"] = [{**file, "uri": f"gs://b/rows/part-{i}.csv", "checksum": f"sha256:{i}"} for i in range(60)]
    (many,) = run_nodes.of_run(record)["inputs"]
    assert many["uri"] == "gs://b/rows/" and many["metadata"]["files"] == 60 and many["metadata"]["bytes"] == 60 * file["bytes"]
    record["data"][7]["checksum"] = "sha256:other"
    assert run_nodes.of_run(record)["inputs"][0]["id"] != many["id"], "another file, another artifact"


def test_an_execution_is_recorded_without_a_service(tmp_path):
    records = Store(tmp_path)
    rows = lineage.artifact("gs://b/rows.csv", "system.Dataset", checksum="sha256:1", rows=10)
    context = lineage.record_context(records, LOCATION, "pipeline-1", "system.PipelineRun")
    first = lineage.record_execution(
        records, LOCATION, "convert-1", state="RUNNING", metadata={"a": 1}, inputs=[lineage.artifact("gs://b/raw.csv")]
    )
    made = lineage.record_execution(records, LOCATION, "convert-1", metadata={"b": 2}, outputs=[rows], contexts=[context])
    train = lineage.record_execution(records, LOCATION, "train-1", inputs=[{"name": made.outputs[0]}], outputs=[lineage.artifact("gs://b/m")])
    assert first.execution == made.execution and train.inputs == made.outputs
    kept = records.get(made.execution)
    assert kept["metadata"] == {"a": 1, "b": 2} and kept["state"] == "COMPLETE"
    executions, read = lineage.above(records, train.outputs[0])
    assert [each["name"] for each in executions] == [train.execution, made.execution]
    assert [each["uri"] for each in read] == ["gs://b/rows.csv", "gs://b/raw.csv"]
    assert set(nodes.of_context(records, context).executions) == {made.execution}
    with pytest.raises(nodes.BadId):
        lineage.record_execution(records, LOCATION, "No_Id")
    records.close()


def test_a_deployed_model_and_names_that_are_several_models(tmp_path):
    folder = tmp_path / ".vertex_local" / "buckets" / "bucket" / "m"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_text("x")
    records = Store(tmp_path / ".vertex_local")
    for number, title in (("1", "taxi"), ("2", "taxi"), ("3", "other")):
        name = f"{LOCATION}/models/{number}"
        version = {"name": name, "versionId": "1", "versionAliases": ["default"], "displayName": title, "artifactUri": "gs://bucket/m"}
        records.add(name, "models", {"name": name, "versions": {"1": version}, "createTime": number})
        lineage.record_upload(records, version, folder)
    deployed = [{"model": f"{LOCATION}/models/3", "modelVersionId": "1"}]
    records.add(f"{LOCATION}/endpoints/9", "endpoints", {"name": f"{LOCATION}/endpoints/9", "deployedModels": deployed})
    records.add(f"{LOCATION}/endpoints/8", "endpoints", {"name": f"{LOCATION}/endpoints/8"})
    records.close()
    text = said(tmp_path, "lineage", "endpoints/9")
    assert f"{LOCATION}/models/3@1" in text and "as they were made" in text and "not recorded" in text
    assert f"{LOCATION}/models/3@1" in said(tmp_path, "lineage", f"{LOCATION}/endpoints/9")
    for asked, says in (("taxi", "several models have that name"), ("endpoints/8", "no model"), ("endpoints/7", "no such endpoint")):
        done = command(tmp_path, "lineage", asked)
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_job_without_the_service_is_recorded(tmp_path):
    """Of a program that is no trainer of ours, the model alone; of one of ours that broke off, that it failed."""
    script = "import os, pathlib; f = pathlib.Path(os.environ['AIP_MODEL_DIR']); f.mkdir(parents=True); (f / 'saved_model.pb').touch()"
    (tmp_path / "train.py").write_text(script)
    write_job(tmp_path, [("train.py", 1)], baseOutputDirectory={"outputUriPrefix": "gs://bucket/out"})
    done = call(tmp_path, "job.yaml", "--job_id=12")
    assert done.returncode == 0, done.stderr
    found = json.loads(said(tmp_path, "lineage", "gs://bucket/out/model", "--json"))
    assert found["job"]["name"].endswith("customJobs/12") and found["model"]["now"] == "same" and found["run"] is None
    assert [each["schemaTitle"] for each in found["executions"]] == ["system.CustomJobExecution"]


def test_a_run_that_broke_off_in_a_job_has_failed(outputs, tmp_path):
    base = tmp_path / "buckets" / "bucket" / "out"
    shutil.copytree(outputs / "one", base)
    record = json.loads((base / "run.json").read_text())
    record |= {"state": "running", "job": {"id": "12", "trial": None}}
    (base / "run.json").write_text(json.dumps(record))
    records = Store(tmp_path)
    job = f"{LOCATION}/customJobs/12"
    (made,) = lineage.record_job(records, job, "x", "gs://bucket/out", tmp_path / "buckets")
    assert records.get(made.execution)["state"] == "FAILED"
    assert lineage.record_job(records, f"{LOCATION}/customJobs/13", "y", "gs://bucket/other", tmp_path / "buckets") == []
    record["job"] = {"id": number_of("20-trial-3-2"), "trial": "3"}  # a trial that a continued study ran again
    assert lineage.is_of_job(record, "20") and not lineage.is_of_job(record, "21")
    records.close()


# ------------------------------------------------------------------ under the service


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("lineage"), f"--project_dir={ROOT}", "--project=my-project", "--region=us-central1")
    yield started
    started.stop()


@pytest.fixture
def sdk(service, monkeypatch):
    for name, value in service.endpoint.environment().items():
        monkeypatch.setenv(name, value)
    sdk_metadata._experiment_tracker.reset()
    aiplatform.init(**service.endpoint.init_arguments())
    return aiplatform


@pytest.fixture(scope="module")
def job(service) -> dict:
    """A job that has trained taxifare, with a TensorBoard instance and in an experiment that the trainer makes."""
    shutil.copytree(DATA, service.state / "buckets" / "bucket" / "data")
    board = service.call("POST", "/tensorboards", {"displayName": "board"}, base=f"/v1/{LOCATION}")["response"]["name"]
    args = ["--train_data_path=gs://bucket/data/taxi-train.csv", "--eval_data_path=gs://bucket/data/taxi-valid.csv", *QUICK]
    task = {"imageUri": "host/any:1", "command": ["python", "-m", "taxifare.trainer.task"], "args": args,
            "env": [{"name": "PYTHONPATH", "value": str(ROOT)}]}  # fmt: skip
    spec = {
        "workerPoolSpecs": [{"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "containerSpec": task}],
        "baseOutputDirectory": {"outputUriPrefix": "gs://bucket/out"}, "tensorboard": board, "experiment": f"{STORE}/contexts/exp",
    }  # fmt: skip
    made = service.call("POST", "/customJobs", {"displayName": "train", "jobSpec": spec}, base=f"/v1/{LOCATION}")
    number = made["name"].rpartition("/")[2]

    def ended() -> dict | bool:
        found = service.call("GET", f"/customJobs/{number}", base=f"/v1/{LOCATION}")
        return found["state"].endswith(ENDED) and found

    ended = wait_for(ended, 300)
    assert ended["state"] == "JOB_STATE_SUCCEEDED", service.log(number)
    return {**ended, "id": number, "board": board, "log": service.log(number)}


def test_the_trainer_keeps_its_run_in_the_experiment(sdk, job):
    assert "experiment exp: this is its run" in job["log"], job["log"]
    run = sdk.ExperimentRun(job["id"], "exp")
    assert run.get_state() == "COMPLETE" and run.get_params()["lr"] == 0.02 and run.get_params()["nnsize"] == "64"
    assert run.get_metrics()["val_rmse"] > 0
    series = run.get_time_series_data_frame()
    assert len(series) == 2 and series["val_rmse"].iloc[-1] > 0
    (execution,) = run.get_executions()
    assert execution.schema_title == "system.CustomJobExecution" and execution.state.name == "COMPLETE"
    assert sorted(each.uri for each in execution.get_input_artifacts()) == ["gs://bucket/data/taxi-train.csv", "gs://bucket/data/taxi-valid.csv"]
    assert [each.uri for each in execution.get_output_artifacts()] == ["gs://bucket/out/model"]
    assert execution.metadata["job_name"] == job["name"] and execution.metadata["parameters"]["lr"] == 0.02


def test_the_instance_holds_the_curves(sdk, job):
    names = {each.display_name for each in sdk.TensorboardRun.list(f"{job['board']}/experiments/{job['id']}")}
    assert {"train", "validation"} <= names


def test_a_model_is_followed_back_from_any_of_its_names(sdk, service, job):
    model = sdk.Model.upload(
        display_name="taxi", artifact_uri="gs://bucket/out/model", serving_container_image_uri=SERVING, version_aliases=["champion"]
    )
    for name in (model.resource_name, model.name, f"{model.name}@champion", "taxi", "gs://bucket/out/model", f"models/{model.name}@1"):
        found = json.loads(said(service.folder, "lineage", name, "--json"))
        assert found["job"]["name"] == job["name"] and found["run"]["experiment"] == {"name": f"{STORE}/contexts/exp", "run": job["id"]}
        assert {(file["uri"], file["now"]) for file in found["data"]} == {
            ("gs://bucket/data/taxi-train.csv", "same"), ("gs://bucket/data/taxi-valid.csv", "same")
        }  # fmt: skip
    text = said(service.folder, "lineage", f"{model.name}@champion")
    assert f"experiment exp/{job['id']}" in text and "JOB_STATE_SUCCEEDED" in text and "default, champion" in text
    (artifact,) = sdk.Artifact.list(filter='schema_title="google.VertexModel"')
    assert artifact.metadata["resourceName"] == f"{model.resource_name}@1"
    assert "there is no such model" in command(service.folder, "lineage", "unknown").stderr
    assert "has no version 'nobody'" in command(service.folder, "lineage", f"{model.name}@nobody").stderr


def test_a_model_of_a_run_elsewhere_is_linked_by_the_record_beside_it(sdk, service, outputs):
    shutil.copytree(outputs / "other", service.state / "buckets" / "bucket" / "copied")
    model = sdk.Model.upload(display_name="copy", artifact_uri="gs://bucket/copied/model", serving_container_image_uri=SERVING)
    found = json.loads(said(service.folder, "lineage", model.name, "--json"))
    record = json.loads((outputs / "other" / "run.json").read_text())
    assert found["run"]["id"] == record["id"] and found["parameters"]["seed"] == 3 and found["job"] is None
    kinds = [each["schemaTitle"] for each in found["executions"]]
    assert kinds == ["system.ContainerExecution"] * 2, "the upload, and the run"


@pytest.mark.slow
def test_a_run_outside_a_job_is_kept_by_the_service_that_env_leads_to(sdk, service, run_trainer, tmp_path):
    done = run_trainer("taxifare", "--output_dir=out", "--experiment=laptop", *QUICK, cwd=tmp_path, env=service.endpoint.environment())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["experiment"] == {"name": "laptop", "run": f"taxifare-{record['id']}"}, done.stdout + done.stderr
    run = sdk.ExperimentRun(record["experiment"]["run"], "laptop")
    assert run.get_state() == "COMPLETE" and run.get_metrics()["val_rmse"] == pytest.approx(record["metrics"]["val_rmse"])
    (execution,) = run.get_executions()
    assert execution.schema_title == "system.ContainerExecution" and execution.metadata["run"] == record["id"]


@pytest.mark.slow
def test_a_run_that_is_interrupted_or_fails_says_so(sdk, service, tmp_path):
    env = environ(**service.endpoint.environment())
    command = [sys.executable, "-m", "taxifare.trainer.task", "--experiment=ends", "--output_dir"]
    with subprocess.Popen([*command, "stopped", "--epochs=30000"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert any("this is its run" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
    done = subprocess.run([*command, "broken", "--lr=1e38"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "the loss is not finite" in done.stderr

    def state(name: str) -> str:
        record = json.loads((tmp_path / name / "run.json").read_text())
        return sdk.ExperimentRun(record["experiment"]["run"], "ends").get_state()

    assert state("broken") == "FAILED"
    assert wait_for(lambda: state("stopped") == "CANCELLED", 60), "the process that tells it goes on for a moment"


def test_an_experiments_run_is_compared_with_a_job_and_a_folder(service, job, outputs):
    text = said(service.folder, "compare", f"exp/{job['id']}", outputs / "other")
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "0.02" in rows["parameters.lr"] and "0.01" in rows["parameters.lr"] and "taxi-train.csv" in rows["data taxi-train.csv"]
    text = said(service.folder, "compare", job["id"], f"exp/{job['id']}")
    assert "jobSpec.workerPoolSpecs[0].machineSpec.machineType" in text and "parameters.lr" not in text
    done = command(service.folder, "compare", job["id"], "exp/nobody")
    assert done.returncode == 2 and "there is no run 'nobody' of an experiment 'exp' here; there are" in done.stderr
