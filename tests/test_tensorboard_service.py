"""TensorBoard instances of the local service, asked by the real Python SDK, and the jobs that fill them."""

from __future__ import annotations

import math
import struct

import pytest
from conftest import ROOT
from test_event_file_support import scalar, write
from test_local_support import wait_for
from test_serve_support import job_spec

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("cryptography", reason="without cryptography the service has no TLS")

from google.api_core import exceptions  # noqa: E402
from google.cloud import aiplatform  # noqa: E402
from google.cloud.aiplatform_v1.types import tensorboard_service as messages  # noqa: E402
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # noqa: E402
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # noqa: E402

from vertex_local.metadata.event_files import LogReader, Scalar  # noqa: E402
from vertex_local.testing import service, service_process  # noqa: E402, F401 - fixtures

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
DOUBLE, STRING = 2, 7


@pytest.fixture
def sdk(service):  # noqa: F811
    """The SDK, led to an empty service."""
    aiplatform.init(**service.init_arguments)
    return aiplatform


@pytest.fixture
def board(sdk):
    return sdk.Tensorboard.create("board")


# ------------------------------------------------------------------ event files


def test_scalars_are_read_however_they_are_written(tmp_path):
    path = tmp_path / "train" / "events.out.tfevents.1.host"
    write(path, scalar("loss", 2.0), Summary.Value(tag="old", simple_value=0.5), step=1)
    packed = TensorProto(dtype=DOUBLE, tensor_content=struct.pack("<d", 0.25))
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    write(path, scalar("loss", 1.0, plugin=""), Summary.Value(tag="packed", metadata=metadata, tensor=packed), step=2)
    write(path, scalar("picture", 3.0, plugin="images"), Summary.Value(tag="text", tensor=TensorProto(dtype=STRING, string_val=[b"x"])))
    write(tmp_path / "events.out.tfevents.2.host", scalar("loss", math.nan), step=7)
    (tmp_path / "notes.txt").write_text("no event file")
    found = list(LogReader(tmp_path).scalars())
    assert found[1:] == [
        Scalar("train", "loss", 1, 1001.0, 2.0), Scalar("train", "old", 1, 1001.0, 0.5), Scalar("train", "loss", 2, 1002.0, 1.0),
        Scalar("train", "packed", 2, 1002.0, 0.25),
    ]  # fmt: skip
    assert found[0].run == "" and found[0].step == 7 and math.isnan(found[0].value)


def test_what_is_half_written_comes_with_the_next_look(tmp_path):
    path = tmp_path / "events.out.tfevents.1"
    write(path, scalar("loss", 2.0), step=1)
    first = path.read_bytes()
    write(path, scalar("loss", 1.0), step=2)
    whole, reader = path.read_bytes(), LogReader(tmp_path)
    for end in (len(first), len(first) + 5, len(first) + 13, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert [each.step for each in reader.scalars()] == ([1] if end == len(first) else [])
    path.write_bytes(whole)
    assert [each.step for each in reader.scalars()] == [2] and list(reader.scalars()) == []
    path.write_bytes(b"\xff" * 100)
    assert list(LogReader(tmp_path).scalars()) == [], "no length, no record"


# ------------------------------------------------------------------ what clients write


def test_instances_come_and_go(sdk, board):
    board.update(display_name="new", labels={"a": "b"}, description="told")
    found = sdk.Tensorboard(board.resource_name)
    assert (found.display_name, found.labels, found.gca_resource.description) == ("new", {"a": "b"}, "told")
    default = sdk.Tensorboard.create("default", is_default=True)
    other = sdk.Tensorboard.create("other", is_default=True)
    assert [each.name for each in sdk.Tensorboard.list(filter="is_default=true")] == [other.name], "one is the default one"
    assert [each.display_name for each in sdk.Tensorboard.list(order_by="display_name")] == ["default", "new", "other"]
    experiment = sdk.TensorboardExperiment.create("e-1", tensorboard_name=default.resource_name)
    default.delete()
    with pytest.raises(exceptions.NotFound):
        sdk.TensorboardExperiment(experiment.resource_name)


def test_runs_and_their_series(sdk, board):
    experiment = sdk.TensorboardExperiment.create("e-1", tensorboard_name=board.resource_name, display_name="first")
    run = sdk.TensorboardRun.create("r-1", tensorboard_experiment_name=experiment.resource_name, display_name="train")
    for name in ("loss", "accuracy"):
        sdk.TensorboardTimeSeries.create(name, tensorboard_run_name=run.resource_name)
    run._sync_time_series_display_name_to_id_mapping()
    for step in (1, 2, 2, 3):
        run.write_tensorboard_scalar_data({"loss": 1 / step, "accuracy": float(step)}, step=step)
    read = {name: [(v.step, v.scalar.value) for v in data.values] for name, data in run.read_time_series_data().items()}
    assert read == {"loss": [(1, 1.0), (2, 0.5), (3, 1 / 3)], "accuracy": [(1, 1.0), (2, 2.0), (3, 3.0)]}, "a step has one value"
    series = sdk.TensorboardTimeSeries.list(tensorboard_run_name=run.resource_name)
    assert {each.display_name: each.gca_resource.metadata.max_step for each in series} == {"loss": 3, "accuracy": 3}
    with pytest.raises(exceptions.Conflict, match="displayName 'train' already"):
        sdk.TensorboardRun.create("r-2", tensorboard_experiment_name=experiment.resource_name, display_name="train")
    assert [each.name for each in sdk.TensorboardExperiment.list(tensorboard_name=board.resource_name)] == ["e-1"]
    run.delete()
    assert sdk.TensorboardRun.list(experiment.resource_name) == []


@pytest.fixture
def api(board):
    """The API's own client, an experiment, and a run with one series of 2,500 points."""
    client = board.api_client
    experiment = client.create_tensorboard_experiment(parent=board.resource_name, tensorboard_experiment={}, tensorboard_experiment_id="e")
    requests = [{"tensorboard_run": {"display_name": f"run {i}"}, "tensorboard_run_id": f"r{i}"} for i in range(2)]
    runs = client.batch_create_tensorboard_runs(parent=experiment.name, requests=requests).tensorboard_runs
    wanted = [{"parent": run.name, "tensorboard_time_series": {"display_name": "loss", "value_type": "SCALAR"}} for run in runs]
    made = client.batch_create_tensorboard_time_series(parent=experiment.name, requests=wanted).tensorboard_time_series
    points = [{"step": i, "scalar": {"value": i / 2}, "wall_time": {"seconds": 1000 + i}} for i in range(2500)]
    number = made[0].name.rpartition("/")[2]
    data = {"tensorboard_time_series_id": number, "value_type": "SCALAR", "values": points}
    client.write_tensorboard_experiment_data(
        tensorboard_experiment=experiment.name, write_run_data_requests=[{"tensorboard_run": runs[0].name, "time_series_data": [data]}]
    )
    return client, experiment.name, [each.name for each in runs], [each.name for each in made]


def test_many_points_are_drawn_evenly_and_exported_whole(api, board):
    client, _, _, series = api
    read = client.read_tensorboard_time_series_data(tensorboard_time_series=series[0]).time_series_data.values
    assert len(read) == 1000 and (read[0].step, read[-1].step) == (0, 2499)
    request = messages.ReadTensorboardTimeSeriesDataRequest(
        tensorboard_time_series=series[0], max_data_points=3, filter="step > 100 AND step <= 300"
    )
    assert [each.step for each in client.read_tensorboard_time_series_data(request).time_series_data.values] == [101, 201, 300]
    both = client.batch_read_tensorboard_time_series_data(
        messages.BatchReadTensorboardTimeSeriesDataRequest(tensorboard=board.resource_name, time_series=series)
    ).time_series_data
    assert [len(each.values) for each in both] == [1000, 0], "each of two parameters of one name counts"
    request = messages.ExportTensorboardTimeSeriesDataRequest(tensorboard_time_series=series[0], page_size=999)
    exported = [each.step for each in client.export_tensorboard_time_series_data(request)]
    assert exported == list(range(2500))
    request.order_by = "step desc"
    assert next(iter(client.export_tensorboard_time_series_data(request))).step == 2499
    assert client.get_tensorboard_time_series(name=series[0]).metadata.max_wall_time.timestamp() == 1000 + 2499


def test_what_cannot_be_is_refused(api, board):
    client, experiment, runs, series = api
    number, last = (name.rpartition("/")[2] for name in series)
    for ask, error, says in (
        (lambda: client.create_tensorboard_experiment(parent=board.resource_name, tensorboard_experiment_id="No_Id"),
         exceptions.BadRequest, "tensorboardExperimentId has 1 to 128"),
        (lambda: client.create_tensorboard_run(parent=f"{experiment}x", tensorboard_run={"display_name": "a"}, tensorboard_run_id="a"),
         exceptions.NotFound, "does not exist"),
        (lambda: client.create_tensorboard_time_series(
            parent=runs[0], tensorboard_time_series={"display_name": "b", "value_type": "BLOB_SEQUENCE"}),
         exceptions.MethodNotImplemented, "sequences of blobs are not kept"),
        (lambda: client.write_tensorboard_run_data(tensorboard_run=runs[0], time_series_data=[
            {"tensorboard_time_series_id": number, "value_type": "TENSOR", "values": [{"step": 1}]}]),
         exceptions.BadRequest, "loss takes SCALAR; got TENSOR"),
        (lambda: client.write_tensorboard_run_data(tensorboard_run=runs[1], time_series_data=[
            {"tensorboard_time_series_id": number, "value_type": "SCALAR", "values": [{"step": 1}]}]),
         exceptions.NotFound, "does not exist"),
        (lambda: client.write_tensorboard_experiment_data(tensorboard_experiment=experiment, write_run_data_requests=[
            {"tensorboard_run": run, "time_series_data": [
                {"tensorboard_time_series_id": last, "value_type": "SCALAR", "values": [{"step": 1}]}]} for run in reversed(runs)]),
         exceptions.NotFound, "does not exist"),
        (lambda: client.create_tensorboard_experiment(parent=board.resource_name),
         exceptions.BadRequest, "tensorboardExperimentId is required"),
        (lambda: client.update_tensorboard_run(tensorboard_run={"name": runs[0], "display_name": "x", "etag": "old"}),
         exceptions.BadRequest, "has been changed since it was read"),
        (lambda: client.read_tensorboard_time_series_data(
            messages.ReadTensorboardTimeSeriesDataRequest(tensorboard_time_series=series[0], filter="step >")),
         exceptions.BadRequest, "filter"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            ask()
    assert len(client.read_tensorboard_time_series_data(tensorboard_time_series=series[1]).time_series_data.values) == 0


# ------------------------------------------------------------------ what jobs write


WRITER = """
import os, sys, time
sys.path.insert(0, os.environ["TESTS"])
from test_event_file_support import scalar, write
from pathlib import Path
logs = Path(os.environ["AIP_TENSORBOARD_LOG_DIR"])
for step in range(3):
    write(logs / "train" / "events.out.tfevents.1", scalar("loss", 1.0 / (step + 1)), step=step)
write(logs / "events.out.tfevents.2", scalar("whole", float("inf")), step=9)
while not os.path.exists(os.environ["GO"]): time.sleep(0.05)
write(logs / "train" / "events.out.tfevents.1", scalar("loss", 0.125), step=3)
"""


def job(service, tensorboard: str, folder, **fields) -> dict:  # noqa: F811
    """Return the request for a job that writes event files, waits for a file, and writes one more value."""
    spec = job_spec(WRITER, tensorboard=tensorboard, baseOutputDirectory={"outputUriPrefix": "gs://bucket/out"})
    spec["workerPoolSpecs"][0]["containerSpec"]["env"] = [
        {"name": "TESTS", "value": str(ROOT / "tests")}, {"name": "GO", "value": str(folder / "go")}
    ]
    return {"displayName": "writes", "jobSpec": spec, **fields}


def test_a_job_fills_its_instance_while_it_runs(sdk, service, board, tmp_path):  # noqa: F811
    location = board.resource_name.rpartition("/tensorboards/")[0]
    by_number = board.resource_name.replace(f"projects/{board.project}/", "projects/123456789012/")
    name = service.request("POST", f"/v1/{location}/customJobs", job(service, by_number, tmp_path))["name"]
    experiment = f"{board.resource_name}/experiments/{name.rpartition('/')[2]}"

    def points(run: str) -> dict:
        try:
            read = sdk.TensorboardRun(f"{experiment}/runs/{run}").read_time_series_data()
        except exceptions.NotFound:
            return {}
        return {tag: [(v.step, v.scalar.value) for v in data.values] for tag, data in read.items()}

    assert wait_for(lambda: points("train"), 90) == {"loss": [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]}
    assert wait_for(lambda: points("default"), 90) == {"whole": [(9, math.inf)]}
    assert service.request("GET", f"/v1/{name}")["state"] == "JOB_STATE_RUNNING"
    (tmp_path / "go").touch()
    ended = wait_for(lambda: (found := service.request("GET", f"/v1/{name}"))["state"].endswith(ENDED) and found, 90)
    assert ended["state"] == "JOB_STATE_SUCCEEDED"
    assert points("train")["loss"][-1] == (3, 0.125), "the last value is there when the job has ended"
    assert sdk.TensorboardExperiment(experiment).display_name == "writes"
    context = sdk.Context(f"{name.rpartition('/')[2]}-train")  # where the SDK ends the job's runs
    assert context.schema_title == "system.ExperimentRun"
    assert sdk.Experiment.list() == [], "the experiment of a job's instance is none of Vertex AI Experiments"


def test_a_job_of_an_instance_elsewhere_runs_and_says_so(sdk, service):  # noqa: F811
    """A job file for the cloud names an instance of the cloud."""
    location = f"projects/{service.endpoint.project}/locations/{service.endpoint.region}"
    spec = job_spec("pass", tensorboard=f"{location}/tensorboards/77", baseOutputDirectory={"outputUriPrefix": "gs://bucket/out"})
    name = service.request("POST", f"/v1/{location}/customJobs", {"displayName": "x", "jobSpec": spec})["name"]
    ended = wait_for(lambda: (found := service.request("GET", f"/v1/{name}"))["state"].endswith(ENDED) and found, 90)
    log = service.state / "jobs" / name.rpartition("/")[2] / "logs" / "service.log"
    assert ended["state"] == "JOB_STATE_SUCCEEDED" and "tensorboards/77 is not a TensorBoard instance of this service" in log.read_text()


TRIAL = """
import hypertune, os, sys
sys.path.insert(0, os.environ["TESTS"])
from test_event_file_support import scalar, write
from pathlib import Path
value = float(sys.argv[-1].partition("=")[2])
write(Path(os.environ["AIP_TENSORBOARD_LOG_DIR"]) / "train" / "events.out.tfevents.1", scalar("x", value), step=1)
hypertune.HyperTune().report_hyperparameter_tuning_metric("loss", value, 1)
"""


@pytest.mark.slow
def test_a_study_fills_its_instance_by_trials(sdk, service, board):  # noqa: F811
    location = board.resource_name.rpartition("/tensorboards/")[0]
    spec = job_spec(TRIAL, tensorboard=board.resource_name, baseOutputDirectory={"outputUriPrefix": "gs://bucket/study"})
    spec["workerPoolSpecs"][0]["containerSpec"]["env"] = [{"name": "TESTS", "value": str(ROOT / "tests")}]
    parameter = {"parameterId": "x", "discreteValueSpec": {"values": [1, 2]}}
    body = {
        "displayName": "study", "maxTrialCount": 2, "parallelTrialCount": 1, "trialJobSpec": spec,
        "studySpec": {"metrics": [{"metricId": "loss", "goal": "MINIMIZE"}], "parameters": [parameter], "algorithm": "GRID_SEARCH"},
    }  # fmt: skip
    name = service.request("POST", f"/v1/{location}/hyperparameterTuningJobs", body)["name"]
    ended = wait_for(lambda: (found := service.request("GET", f"/v1/{name}"))["state"].endswith(ENDED) and found, 120)
    assert ended["state"] == "JOB_STATE_SUCCEEDED", ended
    runs = sdk.TensorboardRun.list(f"{board.resource_name}/experiments/{name.rpartition('/')[2]}")
    read = {run.display_name: run.read_time_series_data() for run in runs}
    assert {"1", "2"} <= read.keys() and all("loss" in read[number] for number in ("1", "2")), "what the study itself writes of a trial"
    values = {name: data["x"].values[0].scalar.value for name, data in read.items() if name.endswith("/train")}
    assert values == {f"{trial['id']}/train": trial["parameters"][0]["value"] for trial in ended["trials"]}
