"""customJobs, hyperparameterTuningJobs and trainingPipelines: what the API does with each of them."""

from __future__ import annotations

from typing import Any

from ..job import settings
from . import job_kinds, job_life, training_pipelines
from .local import Local
from .operations import done, new_name
from .rest import ApiError, Request, checked, page, required, stamp

_OUTPUT_ONLY = (
    "name", "state", "createTime", "startTime", "endTime", "updateTime", "error", "trials", "webAccessUris", "trainingTaskMetadata",
    "satisfiesPzs", "satisfiesPzi",
)  # fmt: skip
_MESSAGES = {"customJobs": "CustomJob", "hyperparameterTuningJobs": "HyperparameterTuningJob", "trainingPipelines": "TrainingPipeline"}
_CHECKS = {"customJobs": job_kinds.custom, "hyperparameterTuningJobs": job_kinds.tuning_job, "trainingPipelines": training_pipelines.check}


def create(local: Local, request: Request, kind: str, project: str, location: str) -> dict[str, Any]:
    """Check and keep a new job, and start it."""
    parent = f"projects/{project}/locations/{location}"
    sent = request.json()
    try:
        filled = settings.fill(sent, local.project_dir / "jobs", {"project": project, "region": location})
    except settings.SettingsError as error:
        raise ApiError("INVALID_ARGUMENT", str(error)) from None
    body = checked(filled, _MESSAGES[kind])
    body = {name: value for name, value in body.items() if name not in _OUTPUT_ONLY}
    required(body, "displayName")
    if len(body["displayName"]) > 128:
        raise ApiError("INVALID_ARGUMENT", "displayName may have 128 characters at most.", "displayName")
    work = _CHECKS[kind](local, parent, body)
    name = new_name(local.records, parent, kind, local.state / "jobs")
    state = "PIPELINE_STATE_PENDING" if kind == "trainingPipelines" else "JOB_STATE_PENDING"
    now = stamp()
    document = local.records.add(name, kind, {"name": name, **body, "state": state, "createTime": now, "updateTime": now})
    local.say(f"{name}: {body['displayName']}")
    if filled != sent:
        local.say("note: its ${…} were filled in from jobs/settings.yaml; on Vertex AI scripts/submit_job has to do that")
    local.executor.start(name, lambda cancel: job_life.run(local, name, work, cancel))
    return document


def get(local: Local, request: Request, kind: str, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Return a record of any kind as it is kept."""
    return local.known(f"projects/{project}/locations/{location}/{kind}/{id}")


def listing(local: Local, request: Request, kind: str, project: str, location: str) -> dict[str, Any]:
    """Return one page of the records of a kind."""
    return page(local.records.list(kind, f"projects/{project}/locations/{location}"), request, kind)


def cancel(local: Local, request: Request, kind: str, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Ask a job to end; its state tells when it has."""
    document = get(local, request, kind, project, location, id)
    if "endTime" in document or not local.executor.cancel(document["name"]):
        raise ApiError("FAILED_PRECONDITION", f"{document['name']} is over ({document['state']}); there is nothing to cancel.")
    prefix = document["state"].partition("_STATE_")[0]
    job_life.update(local, document["name"], lambda job: job.get("endTime") or job.update(state=f"{prefix}_STATE_CANCELLING"))
    return {}


def delete(local: Local, request: Request, kind: str, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Forget the record of a job that is over; its files stay."""
    document = get(local, request, kind, project, location, id)
    if "endTime" not in document:
        raise ApiError("FAILED_PRECONDITION", f"{document['name']} is in {document['state']}; cancel it first.")
    local.records.remove(document["name"])
    return done(local.records, document["name"].rpartition(f"/{kind}/")[0], "DeleteOperationMetadata", None)
