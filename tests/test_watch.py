"""What an endpoint is asked is kept and compared with its model's training rows: the real service, SDK and command."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys

import forked
import numpy as np
import pytest
from conftest import ROOT
from test_cloud_support import call
from test_local_support import environ, wait_for
from test_pipeline_support import compiled, kfp_python  # noqa: F401 - a fixture
from test_serve_support import Service, echo_service, lead_sdk, write_object

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")

from google.cloud import aiplatform  # noqa: E402

from vertex_local.__main__ import main  # noqa: E402
from vertex_local.serve import samples, watch  # noqa: E402
from vertex_runtime import columns, profile  # noqa: E402

SERVING = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
PLACES = ("pickup_longitude", "pickup_latitude", "dropoff_longitude", "dropoff_latitude")


def rides() -> list[dict]:
    """The rows of taxifare's sample data as requests hold them."""
    with open(ROOT / "taxifare" / "tests" / "data" / "taxi-train.csv", newline="") as file:
        rows = list(csv.DictReader(file, fieldnames=["fare_amount", "pickup_datetime", *PLACES, "passenger_count", "key"]))
    return [
        {"pickup_datetime": row["pickup_datetime"], **{name: float(row[name]) for name in (*PLACES, "passenger_count")}} for row in rows
    ]  # fmt: skip


def moved(rows: list[dict], by: float = 0.2) -> list[dict]:
    return [{**row, "pickup_longitude": row["pickup_longitude"] + by} for row in rows]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = echo_service(tmp_path_factory.mktemp("watch"))
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def sdk(service, monkeypatch):
    lead_sdk(service, monkeypatch)


@pytest.fixture
def model(service, request) -> aiplatform.Model:
    """A model with the profile of the sample data's rows."""
    rows = rides()
    chunk = {name: np.array([row[name] for row in rows], np.float32) for name in (*PLACES, "passenger_count")}
    chunk["pickup_datetime"] = np.array([row["pickup_datetime"].encode() for row in rows], object)
    made = profile.profile_of([chunk], [columns.Date("pickup_datetime", time=True), *map(columns.Number, (*PLACES, "passenger_count"))])
    folder = f"watch-bucket/{request.node.name}"
    write_object(service, f"{folder}/assets.extra/{profile.NAME}", json.dumps(made))
    uri = write_object(service, f"{folder}/saved_model.pb", "x").rpartition("/")[0]
    return aiplatform.Model.upload(display_name="taxi", artifact_uri=uri, serving_container_image_uri=SERVING)


def deployed(model: aiplatform.Model, name: str, **options) -> aiplatform.Endpoint:
    endpoint = aiplatform.Endpoint.create(display_name=name, **options)
    model.deploy(endpoint=endpoint, machine_type="n1-standard-2")
    return endpoint


def look(service: Service, *flags: object, code: int = 0) -> subprocess.CompletedProcess:
    return call(main, "watch", f"--state_dir={service.state}", *flags, cwd=service.folder, code=code)


def distances(text: str) -> dict[str, float]:
    """Return the numbers of the columns that a look printed."""
    lines = [line.split() for line in text.splitlines() if line.startswith("  ") and "by chance" not in line]
    return {words[0]: float(words[1]) for words in lines}


def test_requests_like_the_training_rows_do_not_drift(service, model):
    endpoint = deployed(model, "alike")
    assert "no request of its deployed models is kept yet" in look(service, "alike").stdout
    for start in range(0, 900, 300):
        endpoint.predict(rides()[start : start + 300])
    done = look(service, "alike")
    assert ": 900 instances" in done.stdout and "drifts" not in done.stdout and not done.stderr
    found = distances(done.stdout)
    assert set(found) == {"pickup_datetime", *PLACES, "passenger_count"} and max(found.values()) < 0.1


def test_a_column_that_drifts_is_warned_of(service, model):
    endpoint = deployed(model, "far")
    endpoint.predict(rides()[:300])
    endpoint.predict(moved(rides()[300:900]))
    done = look(service, endpoint.name, code=watch.DRIFTS)
    found = distances(done.stdout)
    assert found["pickup_longitude"] == max(found.values()) > 0.3
    assert done.stderr == (
        f"warning: what taxi is asked is not what it was trained on: pickup_longitude {found['pickup_longitude']:.3f} "
        "(threshold 0.1): train on newer rows\n"
    )
    assert [line.split()[0] for line in done.stdout.splitlines() if line.endswith("drifts")] == ["pickup_longitude"]
    look(service, endpoint.resource_name, "--threshold=0.95")
    assert distances(look(service, "far", "--last=600", code=3).stdout)["pickup_longitude"] > found["pickup_longitude"], "the newest only"


def test_what_a_drift_starts(service, model, tmp_path):
    endpoint = deployed(model, "started")
    endpoint.predict(rides()[:400])
    mark = tmp_path / "mark"
    command = f'echo "$WATCH_COLUMNS $WATCH_ENDPOINT" >> {mark}'
    look(service, "started", f"--run={command}")
    assert not mark.exists(), "nothing drifts yet"
    endpoint.predict(moved(rides()[:400], 0.5))
    done = look(service, "started", f"--run={command}", code=3)
    assert mark.read_text() == f"pickup_longitude {endpoint.resource_name}\n" and "it ended with 0" in done.stdout
    assert "error: --run: it ended with 7." in look(service, "started", "--run=exit 7", code=1).stderr


@pytest.mark.kfp
def test_a_drift_runs_a_pipeline(service, model, request, monkeypatch):
    monkeypatch.setenv("KFP_PYTHON", kfp_python())
    spec = request.getfixturevalue("compiled") / "branches.yaml"
    endpoint = deployed(model, "pipelined")
    endpoint.predict(moved(rides()[:400]))
    parameters = ("--parameter=side=tails", "--parameter=n=1")
    done = subprocess.run(
        [sys.executable, "-m", "vertex_local", "watch", "pipelined", f"--state_dir={service.state}", f"--pipeline={spec}", *parameters],
        cwd=service.folder, env=environ(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == watch.DRIFTS, done.stdout + done.stderr
    assert "it ended with 0" in done.stdout and "start: -m vertex_local pipeline" in done.stdout
    path = "/v1/projects/your-project/locations/us-central1"
    (job,) = service.call("GET", "/pipelineJobs", base=path)["pipelineJobs"]
    assert job["state"] == "PIPELINE_STATE_SUCCEEDED" and job["runtimeConfig"]["parameterValues"]["side"] == "tails"


@pytest.mark.slow
def test_followed_it_starts_the_command_once_for_a_drift(service, model, tmp_path):
    endpoint = deployed(model, "followed")
    mark = tmp_path / "mark"
    words = ["watch", "followed", f"--state_dir={service.state}", "--follow", "--every=1", f"--run=echo x >> {mark}", "--last=200"]
    command = [forked.python("local"), "-m", "vertex_local", *words]
    with subprocess.Popen(command, env=environ(), stdout=subprocess.PIPE, text=True) as process:
        try:
            endpoint.predict(rides()[:200])
            assert wait_for(lambda: process.stdout.readline()).startswith("taxi (deployed model ")
            assert not mark.exists()
            endpoint.predict(moved(rides()[:200]))
            wait_for(mark.exists)
            endpoint.predict(moved(rides()[200:400]))  # as far as before
            endpoint.predict(rides()[:200])
            lines = []
            wait_for(lambda: lines.append(process.stdout.readline()) or lines[-1].startswith("taxi (") and "start" in "".join(lines))
            endpoint.predict(moved(rides()[:200]))
            wait_for(lambda: mark.read_text() == "x\nx\n")
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT


def test_the_rate_is_the_endpoints_own(service, model):
    """As the SDK sets it; without it everything is kept, switched off nothing is."""
    kept = lambda endpoint: len(list(samples.read(service.state, endpoint.resource_name)))  # noqa: E731
    half = deployed(model, "half", enable_request_response_logging=True, request_response_logging_sampling_rate=0.5)
    for _ in range(60):
        half.predict([1.0])
    assert 8 < kept(half) < 52, "further off in one of a hundred million runs"
    path = "/v1/" + half.resource_name
    body = {"predictRequestResponseLoggingConfig": {"enabled": False}}
    service.call("PATCH", "?updateMask=predictRequestResponseLoggingConfig", body, base=path)
    before = kept(half)
    for _ in range(5):
        half.predict([1.0])
    assert kept(half) == before
    wrong = {"predictRequestResponseLoggingConfig": {"enabled": True, "samplingRate": 1.5}}
    error = service.call("PATCH", "?updateMask=predictRequestResponseLoggingConfig", wrong, 400, base=path)["error"]
    assert "samplingRate takes a share above 0 and up to 1; got 1.5" in error["message"]
    service.call("POST", "/endpoints", {"displayName": "x", **wrong}, 400, base="/v1/projects/p/locations/us-central1")
    paths = samples.paths(service.state, half.resource_name)
    assert paths[0].exists() and paths[0].parent.stat().st_mode & 0o077 == 0, "for its owner only"
    half.delete(force=True)
    assert not any(each.exists() for each in paths), "forgotten with the endpoint"


def test_the_sample_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "MOST_BYTES", 10_000)
    kept, endpoint = samples.Samples(tmp_path), {"name": "projects/p/locations/l/endpoints/1"}
    for number in range(2_000):
        kept.add(endpoint, "d", [number], [0])
    newest, before = samples.paths(tmp_path, endpoint["name"])
    assert before.stat().st_size < 10_200 and (not newest.exists() or newest.stat().st_size < 10_200)
    found = [each["instance"] for each in samples.read(tmp_path, endpoint["name"])]
    assert found == list(range(2_000 - len(found), 2_000)), "the newest, in their order"
    with open(before, "a") as file:
        file.write('{"half a li')
    assert len(list(samples.read(tmp_path, endpoint["name"]))) == len(found)


@pytest.mark.parametrize("flags, text", [
    (["x", "--state_dir=nowhere"], "--state_dir: no service has run in nowhere"), (["gone"], "ENDPOINT: there is no endpoint 'gone'"),
    (["x", "--threshold=2"], "takes a distance from 0 to 1; got '2'"), (["x", "--run=a", "--pipeline=b"], "--run: give it or --pipeline"),
    (["x", "--parameter=a=b"], "--parameter: is for --pipeline"), (["x", "--pipeline=gone.yaml"], "--pipeline: there is no file gone.yaml"),
    (["x", "--python=/no/such"], "--python: /no/such is not a program that can be run. Name an interpreter."),
])  # fmt: skip
def test_mistakes_are_one_line(service, flags, text):
    done = look(service, *flags, code=2)
    assert text in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_models_and_endpoints_that_cannot_be_compared(service):
    uri = write_object(service, "watch-bucket/bare/saved_model.pb", "x").rpartition("/")[0]
    bare = aiplatform.Model.upload(display_name="bare", artifact_uri=uri, serving_container_image_uri=SERVING)
    endpoint = deployed(bare, "bare")
    endpoint.predict([1])
    done = look(service, "bare", code=2)
    assert "cannot be compared" in done.stderr and "has no training_profile.json" in done.stderr and done.stderr.count("\n") == 1
    endpoint.undeploy_all()
    assert "has no deployed model" in look(service, "bare", code=2).stderr


@pytest.mark.slow
def test_with_a_trained_model(tmp_path, run_trainer, monkeypatch):
    """The profile that a run exports, behind the process that serves the model."""
    run_trainer("taxifare", "--num_evals=1", "--num_examples_to_train_on=480", "--output_dir=out", cwd=tmp_path)
    started = Service(tmp_path / "out", f"--project_dir={ROOT}")
    try:
        for name, value in started.endpoint.environment().items():
            monkeypatch.setenv(name, value)
        aiplatform.init(**started.init_arguments)
        shutil.copytree(tmp_path / "out" / "model", started.state / "buckets" / "watch-bucket" / "model")
        uri = "gs://watch-bucket/model"
        model = aiplatform.Model.upload(display_name="taxi", artifact_uri=uri, serving_container_image_uri=SERVING)
        endpoint = deployed(model, "real")
        for start in (0, 500):
            endpoint.predict(rides()[start : start + 500])
        assert max(distances(look(started, "real").stdout).values()) < 0.1
        for start in (0, 500):
            endpoint.predict(moved(rides()[start : start + 500]))
        assert "pickup_longitude" in look(started, "real", code=watch.DRIFTS).stderr
    finally:
        started.stop()
