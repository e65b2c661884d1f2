"""Everything that this project's users ask of the SDK, as one program for the cloud: of the service only `start` knows.

    python tests/sdk_program.py rest|grpc INIT.json FOLDER PIPELINE.yaml

Args:
    INIT.json: the arguments of `aiplatform.init`, with the token in place of credentials.
    FOLDER: for the files that the program writes itself.
    PIPELINE.yaml: the pipeline `chain` of kfp_pipelines.py, compiled.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google.oauth2.credentials
from google.cloud import aiplatform, storage
from google.cloud.aiplatform import explain
from google.cloud.aiplatform import hyperparameter_tuning as hpt
from google.cloud.aiplatform_v1 import ExplainRequest
from google.protobuf import json_format, struct_pb2

ROOT = Path(__file__).resolve().parents[1]
SERVING = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
TRAINING = "us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-17.py310:latest"
POOL = {"machine_spec": {"machine_type": "n1-standard-4"}, "replica_count": 1}
RIDE = {
    "pickup_datetime": "2010-03-23 06:49:00+00:00", "pickup_longitude": -73.98, "pickup_latitude": 40.75, "dropoff_longitude": -73.96,
    "dropoff_latitude": 40.78, "passenger_count": 1,
}  # fmt: skip
TASK = """
import glob, os, pathlib, sys
names = ("TRAINING", "VALIDATION", "TEST")
rows = {name: sum(len(open(file).readlines()) - 1 for file in glob.glob(os.environ[f"AIP_{name}_DATA_URI"])) for name in names}
folder = pathlib.Path(os.environ["AIP_MODEL_DIR"])
folder.mkdir(parents=True)
(folder / "saved_model.pb").write_text(repr((rows, sys.argv[1:], os.environ["AIP_DATA_FORMAT"], os.environ.get("MINE"))))
"""
REPORT = """
import hypertune, sys
value = float(sys.argv[-1].partition("=")[2])
hypertune.HyperTune().report_hyperparameter_tuning_metric("loss", (value - 1.5) ** 2, 1)
"""


class Project:
    """What one step leaves for the next: names, models, an endpoint; every run has its own."""

    def __init__(self, folder: Path, pipeline: Path):
        self.folder, self.pipeline, self.id = folder, pipeline, uuid.uuid4().hex[:6]
        self.bucket, self.project = f"sdk-{self.id}", ""
        self.storage: Any = None
        self.board: Any = None
        self.dataset: Any = None
        self.model: Any = None
        self.endpoint: Any = None
        self.fares: list[float] = []

    def name(self, text: str) -> str:
        """Return a display name that no other run has."""
        return f"{text}-{self.id}"

    def read(self, name: str) -> str:
        """Return an object of the bucket as text."""
        return self.storage.bucket(self.bucket).blob(name).download_as_text()


def start(transport: str, init: dict[str, Any], project: Project) -> None:
    """Lead the SDK to the service: for the cloud this is `aiplatform.init(project=…, location=…, staging_bucket=…)`."""
    from google.cloud.aiplatform.utils import resource_manager_utils

    credentials, project.project = google.oauth2.credentials.Credentials(init.pop("token")), init["project"]
    project.storage = storage.Client(init["project"], credentials=credentials)
    project.storage.create_bucket(project.bucket)
    aiplatform.init(**{**init, "staging_bucket": f"gs://{project.bucket}"}, credentials=credentials, api_transport=transport)
    # Without a network PipelineJob waits a minute for Google's Resource Manager, which it asks whose the bucket is.
    resource_manager_utils.get_project_number = lambda *_, **__: "123456789012"


def custom_jobs(project: Project) -> str:
    """CustomJob: one that succeeds, one that fails and says why, and one of a local script."""

    def job(name: str, source: str) -> aiplatform.CustomJob:
        container = {"image_uri": "host/any:1", "command": ["python", "-c", source]}
        return aiplatform.CustomJob(display_name=project.name(name), worker_pool_specs=[{**POOL, "container_spec": container}])

    script = project.folder / "local.py"
    script.write_text("import os, sys; assert sys.argv[1:] == ['--lr=0.1'] and 'aiplatform-custom-job-' in os.environ['AIP_MODEL_DIR']")
    local = aiplatform.CustomJob.from_local_script(project.name("local"), str(script), TRAINING, args=["--lr=0.1"])
    good, bad = job("good", "import os; assert os.environ['AIP_MODEL_DIR']"), job("bad", "raise SystemExit('no luck')")
    for each in (good, bad, local):
        each.run(sync=False)
    for each in (good, local):
        each.wait_for_resource_creation()
        each.wait()
        assert each.state.name == "JOB_STATE_SUCCEEDED", each.error
    try:
        bad.wait_for_resource_creation()
        bad.wait()
    except RuntimeError as error:
        assert "no luck" in str(error), error
    assert bad.state.name == "JOB_STATE_FAILED"
    where = f'display_name="{project.name("good")}" AND (state=JOB_STATE_FAILED OR state=JOB_STATE_SUCCEEDED)'
    assert [each.resource_name for each in aiplatform.CustomJob.list(filter=where)] == [good.resource_name]
    good.delete()
    assert not aiplatform.CustomJob.list(filter=where)
    return "one succeeded, one failed with its reason, a local script was packed and run"


def tuning(project: Project) -> str:
    """HyperparameterTuningJob."""
    container = {"image_uri": "host/any:1", "command": ["python", "-c", REPORT]}
    trial = aiplatform.CustomJob(display_name=project.name("trial"), worker_pool_specs=[{**POOL, "container_spec": container}])
    job = aiplatform.HyperparameterTuningJob(
        display_name=project.name("tuning"), custom_job=trial, metric_spec={"loss": "minimize"}, max_trial_count=4,
        parallel_trial_count=2, parameter_spec={"x": hpt.DoubleParameterSpec(min=1, max=2, scale="linear")}, search_algorithm="random",
    )  # fmt: skip
    job.run()
    drawn = {float(each.parameters[0].value): each.final_measurement.metrics[0].value for each in job.trials}
    assert len(drawn) == 4 and all(abs(value - (x - 1.5) ** 2) < 1e-9 and 1 <= x <= 2 for x, value in drawn.items()), drawn
    return f"4 trials, the best loss {min(drawn.values()):.4f}"


def data(project: Project) -> str:
    """TabularDataset."""
    rows = (ROOT / "jobs/datasets/taxifare-columns.csv").read_text() + (ROOT / "taxifare/tests/data/taxi-train.csv").read_text()
    project.storage.bucket(project.bucket).blob("data/rides.csv").upload_from_string(rows)
    project.dataset = aiplatform.TabularDataset.create(project.name("rides"), gcs_source=[f"gs://{project.bucket}/data/rides.csv"])
    assert {"fare_amount", "pickup_longitude"} <= set(project.dataset.column_names), project.dataset.column_names
    return f"{len(project.dataset.column_names)} columns"


def tensorboards(project: Project) -> str:
    """Tensorboard, with a run that the client writes itself; the training jobs below write into it, too."""
    project.board = aiplatform.Tensorboard.create(project.name("board"))
    experiment = aiplatform.TensorboardExperiment.create(f"e-{project.id}", tensorboard_name=project.board.resource_name)
    run = aiplatform.TensorboardRun.create("r", tensorboard_experiment_name=experiment.resource_name, display_name="train")
    aiplatform.TensorboardTimeSeries.create("loss", tensorboard_run_name=run.resource_name)
    run._sync_time_series_display_name_to_id_mapping()
    for number in (1, 2, 3):
        run.write_tensorboard_scalar_data({"loss": 1 / number}, step=number)
    found = [(each.step, each.scalar.value) for each in run.read_time_series_data()["loss"].values]
    assert found == [(1, 1.0), (2, 0.5), (3, 1 / 3)], found
    return "3 points written and read"


def training_classes(project: Project) -> str:
    """CustomTrainingJob, CustomPythonPackageTrainingJob and CustomContainerTrainingJob with the data set, of which the last trains."""
    script, package = project.folder / "task.py", project.folder / "package"
    (package / "own").mkdir(parents=True)
    for path in (script, package / "own" / "task.py"):
        path.write_text(TASK)
    (package / "own" / "__init__.py").touch()
    (package / "setup.py").write_text("from setuptools import setup; setup(name='own', version='1', packages=['own'])")
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=package, check=True, capture_output=True)
    project.storage.bucket(project.bucket).blob("own-1.tar.gz").upload_from_filename(str(next((package / "dist").iterdir())))
    serving = {"model_serving_container_image_uri": SERVING}
    jobs = {
        "script": aiplatform.CustomTrainingJob(project.name("script"), script_path=str(script), container_uri=TRAINING, **serving),
        "package": aiplatform.CustomPythonPackageTrainingJob(
            project.name("package"), python_package_gcs_uri=f"gs://{project.bucket}/own-1.tar.gz", python_module_name="own.task",
            container_uri=TRAINING, **serving,
        ),
        "container": aiplatform.CustomContainerTrainingJob(project.name("container"), container_uri="host/repo/taxifare:v1", **serving),
    }  # fmt: skip
    args = {"script": ["--n=1"], "package": ["--n=1"], "container": ["--num_evals=1"]}
    board = {"tensorboard": project.board.resource_name, "service_account": "trainer@my-project.iam.gserviceaccount.com"}
    models = {
        name: job.run(
            dataset=project.dataset, model_display_name=project.name(name), base_output_dir=f"gs://{project.bucket}/{name}",
            args=args[name], environment_variables={"MINE": name}, training_fraction_split=0.5, validation_fraction_split=0.3,
            test_fraction_split=0.2, model_version_aliases=["fresh"], machine_type="n1-standard-4", sync=False,
            **(board if name == "container" else {}),
        )
        for name, job in jobs.items()
    }  # fmt: skip
    for name, model in models.items():
        model.wait()
        assert jobs[name].state.name == "PIPELINE_STATE_SUCCEEDED"
        assert model.uri == f"gs://{project.bucket}/{name}/model" and model.version_aliases == ["default", "fresh"]
    for name in ("script", "package"):
        counts, words, form, mine = eval(project.read(f"{name}/model/saved_model.pb"))  # repr of what it saw
        assert sum(counts.values()) == 1600 and all(counts.values()) and words == ["--n=1"] and (form, mine) == ("csv", name)
    project.model = models["container"]
    written = [each.display_name for each in aiplatform.TensorboardExperiment.list(tensorboard_name=project.board.resource_name)]
    assert len(written) == 2, written
    return "three models, one of them trained, its curves in the Tensorboard"


def upload(project: Project) -> str:
    """Model.upload as a version, with an ExplanationSpec, aliases."""
    spec = json.loads(project.read("container/model/assets.extra/explanation.json"))
    trained = project.model
    project.model = aiplatform.Model.upload(
        display_name=project.name("taxi"), artifact_uri=trained.uri, serving_container_image_uri=SERVING,
        parent_model=trained.resource_name, version_aliases=["newest"],
        explanation_metadata=explain.ExplanationMetadata.from_json(json.dumps(spec["metadata"])),
        explanation_parameters=explain.ExplanationParameters.from_json(json.dumps(spec["parameters"])),
    )  # fmt: skip
    assert project.model.version_id == "2" and aiplatform.Model(f"{trained.resource_name}@newest").version_id == "2"
    assert len(project.model.versioning_registry.list_versions()) == 2
    return "version 2 of what was trained"


def deploy(project: Project) -> str:
    """Model.deploy and Endpoint.predict."""
    project.endpoint = project.model.deploy(machine_type="n1-standard-2")
    answer = project.endpoint.predict([RIDE, {**RIDE, "passenger_count": 4}])
    project.fares = list(answer.predictions)
    assert len(project.fares) == 2 and 1 < project.fares[0] < 100
    assert (answer.model_resource_name, answer.model_version_id) == (project.model.resource_name, "2")
    assert list(project.endpoint.traffic_split.values()) == [100]
    try:
        project.endpoint.predict([{"pickup_longitude": 1}])
    except Exception as error:
        assert "lacks dropoff_latitude" in str(error), error
    else:
        raise AssertionError("a row without its columns was answered")
    return f"a ride costs {project.fares[0]:.6f}"


def raw_predict(project: Project) -> str:
    """Endpoint.raw_predict of a dedicated endpoint."""
    dedicated = aiplatform.Endpoint.create(project.name("dedicated"), dedicated_endpoint_enabled=True)
    project.model.deploy(dedicated, machine_type="n1-standard-2")
    body = {"inputs": {name: [value] for name, value in RIDE.items()}}
    found = dedicated.raw_predict(json.dumps(body).encode(), {"Content-Type": "application/json"}).json()
    assert abs(found["outputs"][0] - project.fares[0]) < 1e-4, found
    dedicated.delete(force=True)
    return "the same fare"


def explanations(project: Project) -> str:
    """Endpoint.explain, by sampled Shapley, which the model has, and by integrated gradients, which one request asks for."""
    shapley = project.endpoint.explain([RIDE])
    parameters = {"integrated_gradients_attribution": {"step_count": 50}}
    request = ExplainRequest(endpoint=project.endpoint.resource_name, explanation_spec_override={"parameters": parameters})
    request.instances.extend([json_format.ParseDict(RIDE, struct_pb2.Value())])
    gradients = project.endpoint._prediction_client.explain(request)
    for answer, columns in ((shapley, set(RIDE)), (gradients, set(RIDE) - {"pickup_datetime"})):
        (found,) = answer.explanations[0].attributions
        assert set(found.feature_attributions) == columns and abs(found.instance_output_value - project.fares[0]) < 1e-4
    (found,) = shapley.explanations[0].attributions
    gap = found.instance_output_value - found.baseline_output_value
    assert abs(sum(found.feature_attributions.values()) - gap) < 1e-6
    return "by both methods"


def batch_predict(project: Project) -> str:
    """Model.batch_predict."""
    rides = [{**RIDE, "passenger_count": 1 + i % 6} for i in range(600)]
    lines = "".join(f"{json.dumps(each)}\n" for each in rides)
    project.storage.bucket(project.bucket).blob("in/a.jsonl").upload_from_string(lines)
    job = project.model.batch_predict(
        job_display_name=project.name("batch"), gcs_source=f"gs://{project.bucket}/in/*.jsonl",
        gcs_destination_prefix=f"gs://{project.bucket}/out", machine_type="n1-standard-4",
    )  # fmt: skip
    assert job.state.name == "JOB_STATE_SUCCEEDED" and job.completion_stats.successful_count == 600 and not job.partial_failures
    blobs = {blob.name.rpartition("/")[2]: blob for blob in job.iter_outputs()}
    found = [json.loads(line) for line in blobs["prediction.results-00000-of-00001"].download_as_text().splitlines()]
    assert [each["instance"] for each in found] == rides
    assert abs(found[0]["prediction"] - project.fares[0]) < 1e-4 and abs(found[3]["prediction"] - project.fares[1]) < 1e-4
    return "600 rides, the endpoint's fares"


def experiments(project: Project) -> str:
    """init(experiment=…), runs with parameters, metrics and curves, executions and artifacts; resumed, read and deleted."""
    name = f"exp-{project.id}"
    # Without the project, `init` would go over to REST.
    aiplatform.init(project=project.project, experiment=name, experiment_tensorboard=project.board.resource_name)
    aiplatform.start_run("run-1")
    aiplatform.log_params({"lr": 0.1, "layers": "32 8"})
    aiplatform.log_metrics({"rmse": 3.5})
    for loss in (3.0, 2.0, 1.0):
        aiplatform.log_time_series_metrics({"loss": loss, "accuracy": 1 / loss})
    aiplatform.log_classification_metrics(labels=["a", "b"], matrix=[[1, 2], [3, 4]], display_name="confusion")
    rows = aiplatform.Artifact.create("system.Dataset", uri=f"gs://{project.bucket}/rows.csv", display_name="rows")
    with aiplatform.start_execution(schema_title="system.ContainerExecution", display_name="train") as execution:
        execution.assign_input_artifacts([rows])
        execution.assign_output_artifacts([aiplatform.Artifact.create("system.Model", uri="gs://b/model", display_name="model")])
    aiplatform.end_run()
    aiplatform.start_run("run-1", resume=True)
    aiplatform.log_metrics({"rmse": 3.25})
    aiplatform.end_run()
    aiplatform.start_run("run-2")
    aiplatform.log_params({"lr": 0.2})
    aiplatform.end_run(state=aiplatform.gapic.Execution.State.FAILED)
    run = aiplatform.ExperimentRun("run-1", name)
    frame, series = aiplatform.get_experiment_df(name).set_index("run_name"), run.get_time_series_data_frame()
    assert (run.get_params(), run.get_metrics(), run.get_state()) == ({"lr": 0.1, "layers": "32 8"}, {"rmse": 3.25}, "COMPLETE")
    assert run.get_classification_metrics()[0]["matrix"] == [[1, 2], [3, 4]]
    assert (series["step"].tolist(), series["loss"].tolist()) == ([1, 2, 3], [3.0, 2.0, 1.0])
    assert frame["param.lr"].to_dict() == {"run-1": 0.1, "run-2": 0.2}
    assert frame["state"].to_dict() == {"run-1": "COMPLETE", "run-2": "FAILED"} and frame["time_series_metric.loss"]["run-1"] == 1.0
    assert [each.uri for each in execution.get_input_artifacts()] == [f"gs://{project.bucket}/rows.csv"]
    assert [each.uri for each in execution.get_output_artifacts()] == ["gs://b/model"]
    assert [each.name for each in run.get_executions()] == [execution.name]
    assert "model" in [each.display_name for each in run.get_artifacts()]
    assert sorted(each.name for each in aiplatform.ExperimentRun.list(experiment=name)) == ["run-1", "run-2"]
    aiplatform.Experiment(name).delete(delete_backing_tensorboard_runs=True)
    assert name not in [each.name for each in aiplatform.Experiment.list()]
    assert not aiplatform.TensorboardRun.list(f"{project.board.resource_name}/experiments/{name}")
    return "two runs, compared"


def pipelines(project: Project) -> str:
    """PipelineJob, and once more from the cache."""
    for state in ("SUCCEEDED", "SKIPPED"):
        job = aiplatform.PipelineJob(
            display_name=project.name("chain"), template_path=str(project.pipeline), pipeline_root=f"gs://{project.bucket}/root",
            enable_caching=True, parameter_values={"text": project.id, "n": 5}, job_id=project.name(f"chain-{state.lower()}"),
        )  # fmt: skip
        job.submit()
        job.wait()
        assert job.state.name == "PIPELINE_STATE_SUCCEEDED"
        tasks = {task.task_name: task for task in job.task_details}
        assert tasks["write"].state.name == state and tasks["read"].execution.metadata["output:Output"] == project.id
    return "three steps, the second time from the cache"


def clean(project: Project) -> str:
    """Undeploy, and delete what was made."""
    project.endpoint.undeploy_all()
    project.endpoint.delete()
    project.model.delete()
    project.dataset.delete()
    project.board.delete()
    assert not aiplatform.Model.list(filter=f'display_name="{project.name("container")}"')
    assert project.storage.bucket(project.bucket).blob("container/model/saved_model.pb").exists(), "files stay"
    return "nothing but files is left"


STEPS: list[Callable[[Project], str]] = [
    custom_jobs, tuning, data, tensorboards, training_classes, upload, deploy, raw_predict, explanations, batch_predict, experiments,
    pipelines, clean,
]  # fmt: skip


def main(argv: list[str]) -> None:
    """Run every step, a line each; the first one that is wrong ends the program."""
    warnings.simplefilter("ignore")  # the SDK calls explanations deprecated
    transport, init, folder, pipeline = argv
    project = Project(Path(folder), Path(pipeline))
    start(transport, json.loads(Path(init).read_text()), project)
    for step in STEPS:
        begun = time.perf_counter()
        said = step(project)
        print(f"ok {step.__name__}: {said} ({time.perf_counter() - begun:.1f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
