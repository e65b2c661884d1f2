"""Pipelines for the tests of `vertex_local pipeline`: a program for the pipelines' environment, which compiles each into FOLDER.

    python tests/kfp_pipelines.py FOLDER
"""

import sys
from pathlib import Path
from typing import NamedTuple, Optional

from google_cloud_pipeline_components.types import artifact_types
from google_cloud_pipeline_components.v1.custom_job import CustomTrainingJobOp
from google_cloud_pipeline_components.v1.endpoint import EndpointCreateOp, EndpointDeleteOp, ModelDeployOp, ModelUndeployOp
from google_cloud_pipeline_components.v1.hyperparameter_tuning_job import (
    HyperparameterTuningJobRunOp,
    serialize_metrics,
    serialize_parameters,
)
from google_cloud_pipeline_components.v1.model import ModelGetOp, ModelUploadOp
from kfp import compiler, dsl
from kfp.dsl import Artifact, Dataset, Input, Output

PYTHON = "python:3.11"
SERVING = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
MACHINE = {"machine_spec": {"machine_type": "n1-standard-4"}, "replica_count": 1}
TRIAL = (
    "import sys, hypertune\n"
    "rate = float(sys.argv[1].partition('=')[2])\n"
    "hypertune.HyperTune().report_hyperparameter_tuning_metric('rmse', rate * 2, 1)\n"
)


@dsl.component(base_image=PYTHON)
def nothing():
    pass


@dsl.component(base_image=PYTHON)
def add(a: int, b: int = 2) -> int:
    print(f"adding {a!r} and {b!r}")
    return a + b


@dsl.component(base_image=PYTHON)
def same(text: str) -> str:
    return text


@dsl.component(base_image=PYTHON)
def show(value: list) -> str:
    return repr(value)


@dsl.component(base_image=PYTHON)
def show_or(text: Optional[str] = "nothing was given") -> str:  # noqa: UP045 - as kfp reads annotations
    return repr(text)


@dsl.component(base_image=PYTHON)
def write(text: str, out: Output[Dataset]):
    out.metadata["rows"] = 3
    with open(out.path, "w") as file:
        file.write(text)


@dsl.component(base_image=PYTHON)
def read(data: Input[Artifact]) -> str:
    return open(data.path).read()


@dsl.component(base_image=PYTHON)
def numbers() -> NamedTuple("Numbers", [("items", list), ("n", int), ("share", float)]):
    return [1, 2, 3], 7, float("nan")


@dsl.component(base_image=PYTHON)
def flaky(counter: str) -> int:
    """Fail until the third attempt."""
    with open(counter, "a+") as file:
        file.write("x")
        file.seek(0)
        tries = len(file.read())
    if tries < 3:
        raise RuntimeError(f"attempt {tries} is not enough")
    return tries


@dsl.component(base_image=PYTHON)
def fails(text: str):
    print("before the end")
    raise ValueError(text)


@dsl.component(base_image=PYTHON)
def last(status: dsl.PipelineTaskFinalStatus) -> str:
    return f"{status.state} | {status.error_message} | {status.pipeline_job_resource_name}"


@dsl.component(base_image=PYTHON)
def sleeps():
    import time

    print("asleep", flush=True)
    time.sleep(600)


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


@dsl.container_component
def shell(text: str, out: dsl.OutputPath(str), made: Output[Artifact]):
    script = 'printf "%s by $(basename $(command -v python))" "$0" > "$1"; mkdir -p "$(dirname "$2")"; printf made > "$2"'
    return dsl.ContainerSpec(image="busybox", command=["sh", "-c", script], args=[text, out, made.path])


@dsl.pipeline
def add_and_read(x: int, data: Input[Artifact]) -> int:
    read(data=data)
    return add(a=x).output


@dsl.pipeline
def only_read(data: Input[Artifact]) -> str:
    return read(data=data).output


@dsl.pipeline
def read_each(items: Input[list[Dataset]]):
    with dsl.ParallelFor(items) as each:
        read(data=each)


@dsl.pipeline(name="five")
def five():
    step = nothing()
    for _ in range(4):
        step = nothing().after(step)


@dsl.pipeline(name="chain")
def chain(text: str = "first", n: int = 3) -> int:
    data = write(text=text).set_caching_options(True)
    read(data=data.output)
    return add(a=n, b=4).output


@dsl.pipeline(name="branches")
def branches(side: str = "heads", n: int = 3, maybe: Optional[str] = None):  # noqa: UP045
    thrown = same(text=side)
    with dsl.If(thrown.output == "heads"):
        a = write(text="it's heads")
    with dsl.Elif(thrown.output == "tails"):
        b = write(text="it's tails")
    with dsl.Else():
        c = write(text="it's neither")
    one = dsl.OneOf(a.outputs["out"], b.outputs["out"], c.outputs["out"])
    only_read(data=one)
    add_and_read(x=n, data=one)
    many = numbers()
    with dsl.If(n > 2):
        with dsl.If(many.outputs["n"] < 3):
            nothing()
        nothing()
    show_or(text=maybe)


@dsl.pipeline(name="loops")
def loops():
    many = numbers()
    with dsl.ParallelFor(many.outputs["items"]) as item:
        total = add(a=item, b=many.outputs["n"])
        made = write(text="a row")
    show(value=dsl.Collected(total.output))
    with dsl.ParallelFor([{"a": 1, "b": 2}, {"a": 3, "b": 4}]) as pair:
        add(a=pair.a, b=pair.b)
    read_each(items=dsl.Collected(made.outputs["out"]))


@dsl.pipeline(name="containers")
def containers(file: str = "gs://bucket/in/file.txt"):
    done = shell(text="written")
    same(text=done.outputs["out"])
    read(data=done.outputs["made"])
    read(data=dsl.importer(artifact_uri=file, artifact_class=Dataset, reimport=True).output)


@dsl.pipeline(name="exits")
def exits(counter: str, fail: bool = True):
    with dsl.ExitHandler(last()):
        flaky(counter=counter).set_retry(3, backoff_duration="0s")
        with dsl.If(fail == True):  # noqa: E712 - compiled, not compared
            nothing().after(fails(text="as it should"))
        same(text="untouched")


@dsl.pipeline(name="sleepy")
def sleepy():
    sleeps()


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
def train_and_serve(project: str, location: str, args: list, out: str):
    pools = [{**MACHINE, "container_spec": {"image_uri": "host/repo/taxifare:v1", "args": args}}]
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
    ModelGetOp(model_name=model, project=project, location=location)


if __name__ == "__main__":
    made = [
        five, chain, branches, loops, containers, exits, sleepy, job_cancelled, job_fails, tune, train_and_serve, get_model,
    ]  # fmt: skip
    for pipeline in made:
        compiler.Compiler().compile(pipeline, str(Path(sys.argv[1], f"{pipeline.name}.yaml")))
