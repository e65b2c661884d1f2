"""Pipelines of Google's components for the tests of `vertex_local pipeline`, as kfp_pipelines.py has those of kfp alone.

    python tests/kfp_google_pipelines.py FOLDER
"""

import sys
from pathlib import Path

from google_cloud_pipeline_components.types import artifact_types
from google_cloud_pipeline_components.v1.batch_predict_job import ModelBatchPredictOp
from google_cloud_pipeline_components.v1.custom_job import CustomTrainingJobOp
from google_cloud_pipeline_components.v1.endpoint import EndpointCreateOp, EndpointDeleteOp, ModelDeployOp, ModelUndeployOp
from google_cloud_pipeline_components.v1.hyperparameter_tuning_job import (
    HyperparameterTuningJobRunOp,
    serialize_metrics,
    serialize_parameters,
)
from google_cloud_pipeline_components.v1.model import ModelGetOp, ModelUploadOp
from kfp import compiler, dsl
from kfp.dsl import Artifact, Input

PYTHON = "python:3.11"
SERVING = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
MACHINE = {"machine_spec": {"machine_type": "n1-standard-4"}, "replica_count": 1}
TRIAL = (
    "import sys, hypertune\n"
    "rate = float(sys.argv[1].partition('=')[2])\n"
    "hypertune.HyperTune().report_hyperparameter_tuning_metric('rmse', rate * 2, 1)\n"
)


@dsl.component(base_image=PYTHON)
def ask(endpoint: Input[Artifact], project: str, location: str) -> str:
    """Ask the deployed model, by the SDK as anybody would write it for the cloud."""
    from google.cloud import aiplatform

    aiplatform.init(project=project, location=location)
    row = {
        "pickup_datetime": "2010-03-23 06:49:00+00:00", "pickup_longitude": -73.98, "pickup_latitude": 40.75, "dropoff_longitude": -73.96,
        "dropoff_latitude": 40.78, "passenger_count": 1,
    }  # fmt: skip
    return str(aiplatform.Endpoint(endpoint.metadata["resourceName"]).predict([row]).predictions[0])


@dsl.component(base_image=PYTHON)
def trials(gcp_resources: str) -> int:
    import json
    import re

    from google.cloud import aiplatform

    name = re.sub("^https://.*?/v1/", "", json.loads(gcp_resources)["resources"][0]["resourceUri"])
    client = aiplatform.gapic.JobServiceClient(client_options={"api_endpoint": f"{name.split('/')[3]}-aiplatform.googleapis.com"})
    return len(client.get_hyperparameter_tuning_job(name=name).trials)


@dsl.pipeline(name="job-cancelled")
def job_cancelled(project: str, location: str):
    pool = {**MACHINE, "container_spec": {"image_uri": "host/any:1", "command": ["python3", "-c", "import time; time.sleep(600)"]}}
    CustomTrainingJobOp(display_name="sleeps", project=project, location=location, worker_pool_specs=[pool])


@dsl.pipeline(name="job-fails")
def job_fails(project: str, location: str):
    pool = {**MACHINE, "container_spec": {"image_uri": "host/any:1", "command": ["python3", "-c", "raise KeyError('no such column')"]}}
    CustomTrainingJobOp(display_name="fails", project=project, location=location, worker_pool_specs=[pool])


@dsl.pipeline(name="tune")
def tune(project: str, location: str):
    from google.cloud.aiplatform import hyperparameter_tuning as hpt

    pool = {**MACHINE, "container_spec": {"image_uri": "host/any:1", "command": ["python3", "-c", TRIAL]}}
    study = HyperparameterTuningJobRunOp(
        display_name="study", project=project, location=location, base_output_directory="gs://bucket/study", worker_pool_specs=[pool],
        study_spec_metrics=serialize_metrics({"rmse": "minimize"}), max_trial_count=2, parallel_trial_count=2,
        study_spec_parameters=serialize_parameters({"rate": hpt.DoubleParameterSpec(min=0.1, max=1, scale="log")}),
    )  # fmt: skip
    trials(gcp_resources=study.outputs["gcp_resources"])


@dsl.pipeline(name="train-and-serve")
def train_and_serve(project: str, location: str, folder: str, examples: int, out: str):
    flags = [
        f"--train_data_path={folder}/taxi-train.csv", f"--eval_data_path={folder}/taxi-valid.csv", "--num_evals=1",
        f"--num_examples_to_train_on={examples}",
    ]  # fmt: skip
    pools = [{**MACHINE, "container_spec": {"image_uri": "host/repo/taxifare:v1", "args": flags}}]
    where = {"project": project, "location": location}
    job = CustomTrainingJobOp(display_name="taxifare", worker_pool_specs=pools, base_output_directory=out, **where)
    trained = dsl.importer(
        artifact_uri="gs://bucket/taxifare/model", artifact_class=artifact_types.UnmanagedContainerModel,
        metadata={"containerSpec": {"imageUri": SERVING}},
    ).after(job)  # fmt: skip
    model = ModelUploadOp(display_name="taxifare", unmanaged_container_model=trained.output, version_aliases=["fresh"], **where)
    endpoint = EndpointCreateOp(display_name="taxifare", **where)
    deployed = ModelDeployOp(
        model=model.outputs["model"], endpoint=endpoint.outputs["endpoint"], dedicated_resources_machine_type="n1-standard-2",
        dedicated_resources_min_replica_count=1, traffic_split={"0": 100},
    )  # fmt: skip
    asked = ask(endpoint=endpoint.outputs["endpoint"], **where).after(deployed)
    undeployed = ModelUndeployOp(model=model.outputs["model"], endpoint=endpoint.outputs["endpoint"]).after(asked)
    EndpointDeleteOp(endpoint=endpoint.outputs["endpoint"]).after(undeployed)


@dsl.pipeline(name="get-model")
def get_model(project: str, location: str, model: str):
    found = ModelGetOp(model_name=model, project=project, location=location)
    ModelBatchPredictOp(
        job_display_name="again", model=found.outputs["model"], gcs_source_uris=["gs://bucket/in/rows.jsonl"], project=project,
        location=location, gcs_destination_output_uri_prefix="gs://bucket/predicted",
    )  # fmt: skip


if __name__ == "__main__":
    for pipeline in (job_cancelled, job_fails, tune, train_and_serve, get_model):
        compiler.Compiler().compile(pipeline, str(Path(sys.argv[1], f"{pipeline.name}.yaml")))
