"""The local job service asked by the real Python SDK over TLS: jobs, tuning, the three training classes, models, endpoints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_serve_support import Service

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")

from google.cloud import aiplatform, storage  # noqa: E402
from google.cloud.aiplatform import hyperparameter_tuning as hpt  # noqa: E402

BUCKET = "sdk-bucket"
SERVING = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
TRAINING = "us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-17.py310:latest"
POOL = {"machine_spec": {"machine_type": "n1-standard-4"}, "replica_count": 1}
SCRIPT = (
    "import glob,os,pathlib,sys\n"
    "names = ('TRAINING', 'VALIDATION', 'TEST')\n"
    "rows = {n: sum(len(open(f).readlines()) - 1 for f in glob.glob(os.environ[f'AIP_{n}_DATA_URI'])) for n in names}\n"
    "folder = pathlib.Path(os.environ['AIP_MODEL_DIR']); folder.mkdir(parents=True)\n"
    "(folder / 'saved_model.pb').write_text(repr((rows, sys.argv[1:], os.environ['AIP_DATA_FORMAT'], os.environ.get('MINE'))))\n"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("sdk"), f"--project_dir={ROOT}", "--project=my-project", "--region=us-central1")
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def sdk(service, monkeypatch):
    """Do what `serve` prints: export the lines of `env`, run the snippet."""
    for name, value in service.endpoint.environment().items():
        monkeypatch.setenv(name, value)
    text = "\n".join(service.out)
    snippet = text[text.index("import google.oauth2.credentials") : text.index("\n\nNot to be redirected")]
    exec(snippet.replace("gs://your-bucket", f"gs://{BUCKET}"), {})
    client = storage.Client("my-project", credentials=aiplatform.initializer.global_config.credentials)
    if client.lookup_bucket(BUCKET) is None:
        client.create_bucket(BUCKET)
    return client


def test_storage_with_sums_in_both_directions(service, sdk, tmp_path):
    bucket = sdk.bucket(BUCKET)
    (tmp_path / "big").write_bytes(b"0123456789" * 1_000_000)
    for chunk in (None, 1 << 20):  # in one request, and as a resumable upload in pieces
        blob = bucket.blob("folder/big", chunk_size=chunk)
        blob.upload_from_filename(str(tmp_path / "big"), checksum="crc32c")
        blob.reload()
        assert blob.size == 10_000_000 and blob.md5_hash and blob.crc32c
        assert blob.download_as_bytes(checksum="md5") == (tmp_path / "big").read_bytes()
    assert [blob.name for blob in sdk.list_blobs(BUCKET, prefix="folder/")] == ["folder/big"]
    bucket.copy_blob(blob, bucket, "copy")
    bucket.blob("copy").delete()
    assert not (service.state / "buckets" / BUCKET / "copy").exists()
    assert not bucket.blob("nothing").exists()


def test_custom_and_tuning_jobs(service, tmp_path):
    def job(name: str, source: str) -> aiplatform.CustomJob:
        container = {"image_uri": "host/any:1", "command": ["python", "-c", source]}
        return aiplatform.CustomJob(display_name=name, worker_pool_specs=[{**POOL, "container_spec": container}])

    good, bad = job("good", "import os; print(os.environ['AIP_MODEL_DIR'])"), job("bad", "raise SystemExit('no luck')")
    value = "float(sys.argv[-1].partition('=')[2])"
    report = f"import hypertune,sys; hypertune.HyperTune().report_hyperparameter_tuning_metric('loss', {value}, 1)"
    tuning = aiplatform.HyperparameterTuningJob(
        display_name="hp", custom_job=job("trials", report), metric_spec={"loss": "minimize"}, max_trial_count=2, parallel_trial_count=2,
        parameter_spec={"x": hpt.DoubleParameterSpec(min=1, max=2, scale="linear")}, search_algorithm="random",
    )  # fmt: skip
    for each in (good, bad, tuning):
        each.run(sync=False)
    for each in (good, bad, tuning):
        each.wait_for_resource_creation()
    good.wait()
    assert good.state.name == "JOB_STATE_SUCCEEDED"
    assert service.log(good.name).startswith(f"{service.state}/buckets/{BUCKET}/aiplatform-custom-job-")
    with pytest.raises(RuntimeError, match="no luck"):
        bad.wait()
    tuning.wait()
    assert [trial.state.name for trial in tuning.trials] == ["SUCCEEDED"] * 2
    assert all(1 <= trial.final_measurement.metrics[0].value <= 2 for trial in tuning.trials)
    found = aiplatform.CustomJob.list(filter='display_name="good"')
    assert [each.resource_name for each in found] == [good.resource_name]
    good.delete()
    assert not aiplatform.CustomJob.list(filter='display_name="good"')


def test_the_three_training_classes_with_a_tabular_dataset(service, sdk, tmp_path):
    (tmp_path / "task.py").write_text(SCRIPT)
    rows = "a,b\n" + "".join(f"{i},{i}\n" for i in range(100))
    sdk.bucket(BUCKET).blob("data/rows.csv").upload_from_string(rows)
    package = tmp_path / "package" / "own"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "task.py").write_text(SCRIPT)
    (package.parent / "setup.py").write_text("from setuptools import setup; setup(name='own', version='1', packages=['own'])")
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=package.parent, check=True, capture_output=True)
    sdk.bucket(BUCKET).blob("own-1.tar.gz").upload_from_filename(str(next((package.parent / "dist").iterdir())))
    dataset = aiplatform.TabularDataset.create(display_name="rows", gcs_source=[f"gs://{BUCKET}/data/rows.csv"])
    assert sorted(dataset.column_names) == ["a", "b"]
    serving = {"model_serving_container_image_uri": SERVING}
    jobs = {
        "script": aiplatform.CustomTrainingJob("script", script_path=str(tmp_path / "task.py"), container_uri=TRAINING, **serving),
        "package": aiplatform.CustomPythonPackageTrainingJob(
            "package", python_package_gcs_uri=f"gs://{BUCKET}/own-1.tar.gz", python_module_name="own.task",
            container_uri=TRAINING, **serving,
        ),
        "container": aiplatform.CustomContainerTrainingJob(
            "container", container_uri="host/any:1", command=["python", "-c", SCRIPT], **serving,
        ),
    }  # fmt: skip
    models = {
        name: job.run(
            dataset=dataset, model_display_name=f"model-{name}", base_output_dir=f"gs://{BUCKET}/{name}", args=["--n=1"], sync=False,
            environment_variables={"MINE": name}, training_fraction_split=0.5, validation_fraction_split=0.3, test_fraction_split=0.2,
            model_version_aliases=["fresh"], machine_type="n1-standard-4",
        )
        for name, job in jobs.items()
    }  # fmt: skip
    for name, model in models.items():
        model.wait()
        assert model.uri == f"gs://{BUCKET}/{name}/model" and model.version_aliases == ["default", "fresh"]
        wrote = (service.state / "buckets" / BUCKET / name / "model" / "saved_model.pb").read_text()
        counts, args, form, mine = eval(wrote)  # repr of what it saw
        assert sum(counts.values()) == 100 and all(counts.values()) and args == ["--n=1"] and (form, mine) == ("csv", name)
        assert jobs[name].state.name == "PIPELINE_STATE_SUCCEEDED"
    again = aiplatform.Model.upload(
        display_name="again", artifact_uri=models["script"].uri, serving_container_image_uri=SERVING,
        parent_model=models["script"].resource_name, version_aliases=["newest"],
    )  # fmt: skip
    assert again.version_id == "2" and aiplatform.Model(f"{again.resource_name}@newest").version_id == "2"
    assert len(again.versioning_registry.list_versions()) == 2
    dataset.delete()


@pytest.mark.slow
def test_taxifare_from_training_to_a_prediction(service, tmp_path):
    """The real trainer, its exported model, a process that serves it, and the same answer as scripts/predict's."""
    sample = ROOT / "taxifare" / "tests" / "data"
    job = aiplatform.CustomContainerTrainingJob(
        "taxifare", container_uri="host/repo/taxifare:v1", model_serving_container_image_uri=SERVING
    )
    model = job.run(
        args=[f"--train_data_path={sample / 'taxi-train.csv'}", f"--eval_data_path={sample / 'taxi-valid.csv'}", "--num_evals=1"],
        model_display_name="taxi", base_output_dir=f"gs://{BUCKET}/taxi",
    )  # fmt: skip
    endpoint = model.deploy(machine_type="n1-standard-2")
    instance = {
        "pickup_datetime": "2010-03-23 06:49:00+00:00", "pickup_longitude": -73.98, "pickup_latitude": 40.75, "dropoff_longitude": -73.96,
        "dropoff_latitude": 40.78, "passenger_count": 1,
    }  # fmt: skip
    folder = service.state / "buckets" / BUCKET / "taxi" / "model"
    command = [sys.executable, "-m", "vertex_runtime.predict", str(folder)]
    told = subprocess.run(command, cwd=ROOT, input=json.dumps(instance), capture_output=True, text=True, check=True)
    answer = endpoint.predict([instance, instance])
    assert answer.predictions == [pytest.approx(json.loads(told.stdout), rel=1e-6)] * 2
    assert answer.deployed_model_id and answer.model_resource_name == model.resource_name and answer.model_version_id == "1"
    with pytest.raises(Exception, match="lacks dropoff_latitude"):
        endpoint.predict([{"pickup_longitude": 1}])
    assert endpoint.predict([instance]).predictions, "a bad request does no harm"
    processes = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if _serves(path, folder)]
    assert len(processes) == 1
    endpoint.undeploy_all()
    assert not Path(f"/proc/{processes[0]}").exists(), "undeployed, its process is gone"
    endpoint.delete()
    model.delete()
    assert (folder / "saved_model.pb").exists()


def _serves(path: Path, folder: Path) -> bool:
    try:
        words = path.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return "--requests" in words and str(folder) in words


def test_openssl_agrees_on_the_certificate(service):
    """Made for localhost, by nobody else, and not for long."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["openssl", "x509", "-noout", "-text", "-in", str(service.state / "serve" / "cert.pem")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "DNS:localhost, IP Address:127.0.0.1" in text and "CN" in text
