"""A batch prediction job: its figures, where the predictions lie, what went wrong."""

from __future__ import annotations

from ...local.job_record import is_over
from ..app import View, Visit, page
from .files import address
from .jobs import logs, named
from .pipeline_jobs import resource

_KIND = "batchPredictionJobs"


@page("GET", f"/{_KIND}/{{number}}")
def show(visit: Visit, number: str) -> View:
    """Show a batch prediction job."""
    job = visit.call("GetBatchPredictionJob", name=named(visit, _KIND, number))
    inputs, made = job.get("inputConfig", {}), job.get("outputInfo", {})
    uris = inputs.get("gcsSource", {}).get("uris") or [inputs.get("bigquerySource", {}).get("inputUri", "")]
    output = made.get("gcsOutputDirectory") or ".".join(filter(None, map(made.get, ("bigqueryOutputDataset", "bigqueryOutputTable"))))
    model = f"{job.get('model', '').partition('@')[0]}@{job.get('modelVersionId', '')}"
    return View("batch_prediction.html", {
        "active": _KIND, "job": job, "number": number, "over": is_over(job), "model": resource(model),
        "inputs": [(uri, address(visit, uri)) for uri in uris],
        "output": output, "output_link": address(visit, output), "logs": logs(visit.console.local.state / "jobs" / number),
    })  # fmt: skip
