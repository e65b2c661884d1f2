"""A training pipeline: the data's export, the job, the model that came of it."""

from __future__ import annotations

from typing import Any

from ...local.job_record import is_over, plain_state
from ..app import Visit, href
from ..text import last_part
from .job_pages import job_page

_BACKING = {"backingCustomJob": "customJobs", "backingHyperparameterTuningJob": "hyperparameterTuningJobs"}


@job_page("trainingPipelines", "pipeline.html", "pipeline", "job, model and files")
def shown(visit: Visit, job: dict[str, Any], number: str) -> dict[str, Any]:
    """Show a training pipeline."""
    spec = {key: value for key, value in job.items() if key in ("inputDataConfig", "trainingTaskDefinition", "trainingTaskInputs")}
    return {"steps": list(_steps(visit, job)), "spec": spec}


def _steps(visit: Visit, job: dict[str, Any]) -> Any:
    """Yield what the pipeline consists of, with the state of each step."""
    state, metadata = plain_state(job), job.get("trainingTaskMetadata", {})
    backing = next(((kind, metadata[key]) for key, kind in _BACKING.items() if key in metadata), None)
    if "inputDataConfig" in job:
        dataset = job["inputDataConfig"].get("datasetId", "")
        done = "SUCCEEDED" if backing else ("RUNNING" if state == "RUNNING" else state)
        yield {"title": "Export of the data set", "state": done, "what": dataset, "href": href(f"/datasets/{dataset}") if dataset else ""}
    if backing:
        kind, name = backing
        record = visit.local.records.get(name) or {}
        job_state = plain_state(record) or state
        yield {"title": "Training", "state": job_state, "what": last_part(name), "href": href(f"/{kind}/{last_part(name)}")}
    else:
        yield {"title": "Training", "state": "PENDING" if state in ("PENDING", "RUNNING") else state, "what": "", "href": ""}
    if model := job.get("modelToUpload"):
        name = model.get("name", "")
        link = href(f"/models/{last_part(name)}", version=model.get("versionId")) if name else ""
        done = "SUCCEEDED" if name else ("PENDING" if not is_over(job) else state)
        yield {"title": "Upload of the model", "state": done, "what": model.get("displayName", ""), "href": link}
