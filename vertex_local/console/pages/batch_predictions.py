"""A batch prediction job: its figures, where the predictions lie, what went wrong."""

from __future__ import annotations

from typing import Any

from ..app import Visit
from .files import address
from .job_pages import job_page
from .jobs import logs
from .pipeline_jobs import resource


@job_page("batchPredictionJobs", "batch_prediction.html")
def shown(visit: Visit, job: dict[str, Any], number: str) -> dict[str, Any]:
    """Show a batch prediction job."""
    inputs, made = job.get("inputConfig", {}), job.get("outputInfo", {})
    uris = inputs.get("gcsSource", {}).get("uris") or [inputs.get("bigquerySource", {}).get("inputUri", "")]
    output = made.get("gcsOutputDirectory") or ".".join(filter(None, map(made.get, ("bigqueryOutputDataset", "bigqueryOutputTable"))))
    model = f"{job.get('model', '').partition('@')[0]}@{job.get('modelVersionId', '')}"
    return {
        "model": resource(model), "inputs": [(uri, address(visit, uri)) for uri in uris], "output": output,
        "output_link": address(visit, output), "logs": logs(visit.local.state / "jobs" / number),
    }  # fmt: skip
