"""Training pipelines: the data's export, the job, the model's upload."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from typing import Any

from . import datasets_api, job_kinds, job_life, models_api
from .local import Local
from .operations import new_name
from .rest import ApiError, checked, required, stamp

_DEFINITION = re.compile(r"gs://google-cloud-aiplatform/schema/trainingjob/definition/(custom|hyperparameter_tuning)_task_1\.0\.0\.yaml")


def check(local: Local, parent: str, body: dict[str, Any]) -> job_kinds.Work:
    """Check a TrainingPipeline and return what runs it: the data's export, the job, the model's upload."""
    required(body, "trainingTaskDefinition", "trainingTaskInputs")
    task = _DEFINITION.fullmatch(body["trainingTaskDefinition"])
    if not task:
        known_tasks = "custom_task_1.0.0.yaml and hyperparameter_tuning_task_1.0.0.yaml"
        text = f"the local service runs {known_tasks}; got {body['trainingTaskDefinition']!r}."
        raise ApiError("UNIMPLEMENTED", text, "trainingTaskDefinition")
    if not isinstance(body["trainingTaskInputs"], Mapping):
        raise ApiError("INVALID_ARGUMENT", "trainingTaskInputs takes an object.", "trainingTaskInputs")
    tuned = task[1] == "hyperparameter_tuning"
    kind = "hyperparameterTuningJobs" if tuned else "customJobs"
    if tuned:
        task_inputs = {**body["trainingTaskInputs"], "displayName": body["displayName"]}
        job = inputs = checked(task_inputs, "HyperparameterTuningJob", "trainingTaskInputs")
        job_kinds.tuning_job(local, parent, job, "trainingTaskInputs")
    else:
        inputs = checked(body["trainingTaskInputs"], "CustomJobSpec", "trainingTaskInputs")
        job = {"displayName": body["displayName"], "jobSpec": inputs}
        job_kinds.custom(local, parent, job, "trainingTaskInputs")
    output = (inputs.get("trialJobSpec", {}) if tuned else inputs).get("baseOutputDirectory", {}).get("outputUriPrefix")
    export = datasets_api.plan(local, parent, body["inputDataConfig"]) if "inputDataConfig" in body else None
    if "modelToUpload" in body:
        models_api.check_upload(local, parent, body["modelToUpload"], body.get("modelId"), body.get("parentModel"))
        if not output and not body["modelToUpload"].get("artifactUri"):
            text = "modelToUpload needs baseOutputDirectory in the task's inputs, or an artifactUri."
            raise ApiError("INVALID_ARGUMENT", text, "trainingTaskInputs.baseOutputDirectory")

    def work(name: str, cancel: threading.Event) -> tuple[str, Any]:
        job_life.started(local, name)
        variables = export(cancel) if export else {}
        backing = new_name(local.records, parent, kind, local.state / "jobs")
        now = stamp()
        local.records.add(backing, kind, {"name": backing, **job, "state": "JOB_STATE_PENDING", "createTime": now, "updateTime": now})
        key = "backingHyperparameterTuningJob" if tuned else "backingCustomJob"
        job_life.update(local, name, lambda pipeline: pipeline.update(trainingTaskMetadata={key: backing}))
        local.executor.share(backing, cancel)
        state, error = _backing(local, parent, backing, job, tuned, variables, cancel)
        if state == "SUCCEEDED" and "modelToUpload" in body:
            _upload(local, parent, name, body, _model_folder(local, backing, output, tuned))
        return state, error

    return work


def _backing(
    local: Local, parent: str, backing: str, job: dict[str, Any], tuned: bool, variables: Mapping[str, str], cancel: threading.Event
) -> tuple[str, Any]:
    """Run a pipeline's own job and write down how it went."""
    try:
        if tuned:
            state, error = job_kinds.tuning_job(local, parent, _with_env(job, variables))(backing, cancel)
        else:
            state, error = job_kinds.custom(local, parent, job, variables=variables)(backing, cancel)
    except Exception as failure:  # as for any other job, see job_life.run
        state, error = "FAILED", {"code": 3, "message": str(failure) or type(failure).__name__}
    state, error = job_life.wish(local, state, error)
    job_life.end(local, backing, state, error)
    return ("CANCELLED", None) if state == "CANCELLED" else (state, error)


def _with_env(job: dict[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Return a tuning job whose trials see `variables`."""
    job = json.loads(json.dumps(job))
    for pool in job["trialJobSpec"]["workerPoolSpecs"]:
        for task in (pool[key] for key in ("containerSpec", "pythonPackageSpec") if key in pool):
            task["env"] = [*task.get("env", []), *({"name": name, "value": value} for name, value in variables.items())]
    return job


def _model_folder(local: Local, backing: str, output: str | None, tuned: bool) -> str:
    """Return where the trained model lies: AIP_MODEL_DIR, in a study that of the best trial."""
    base = (output or "").rstrip("/")
    if not tuned:
        return f"{base}/model"
    document = local.known(backing)
    metric = document["studySpec"]["metrics"][0]
    sign = 1 if metric.get("goal") == "MINIMIZE" else -1
    values = {}
    for trial in document.get("trials", []):
        for measured in trial.get("finalMeasurement", {}).get("metrics", []):
            if measured["metricId"] == metric["metricId"] and trial["state"] == "SUCCEEDED":
                values[trial["id"]] = sign * measured.get("value", 0.0)
    if not values:
        raise ApiError("FAILED_PRECONDITION", "no trial succeeded with a measurement; there is no model to upload.")
    return f"{base}/{min(values, key=values.__getitem__)}/model"


def _upload(local: Local, parent: str, name: str, body: dict[str, Any], folder: str) -> None:
    model = {**body["modelToUpload"]}
    model.setdefault("artifactUri", folder)
    model["trainingPipeline"] = name
    uploaded = models_api.upload(local, parent, model, body.get("modelId"), body.get("parentModel"))
    job_life.update(local, name, lambda pipeline: pipeline.update(modelToUpload=uploaded))
