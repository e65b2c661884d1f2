"""A training pipeline: the data's export, the job, the model that came of it."""

from __future__ import annotations

from collections.abc import Iterator
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


def _steps(visit: Visit, job: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yield what the pipeline consists of, with the state of each step."""
    state, metadata = plain_state(job), job.get("trainingTaskMetadata", {})
    unreached = state if is_over(job) else "PENDING"
    kind, backing = next(((kind, metadata[key]) for key, kind in _BACKING.items() if key in metadata), ("", ""))
    if "inputDataConfig" in job:
        dataset = job["inputDataConfig"]["datasetId"]
        exported = "SUCCEEDED" if backing else state
        yield {"title": "Export of the data set", "state": exported, "what": dataset, "href": href(f"/datasets/{dataset}")}
    if backing:
        trained = plain_state(visit.local.records.get(backing) or {}) or state
        yield {"title": "Training", "state": trained, "what": last_part(backing), "href": href(f"/{kind}/{last_part(backing)}")}
    else:
        yield {"title": "Training", "state": unreached}
    if model := job.get("modelToUpload"):
        step = {"title": "Upload of the model", "what": model["displayName"], "state": unreached}
        if name := model.get("name"):
            step |= {"state": "SUCCEEDED", "href": href(f"/models/{last_part(name)}", version=model.get("versionId"))}
        yield step
