"""A run of a compiled pipeline: its graph, its tasks with what went in and came out, and the jobs that steps made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...serve.rest import Answer
from .. import graph
from ..app import Visit, href, page, redirect
from ..text import duration, last_part
from .files import address
from .job_pages import job_page

_LONGEST = 160  # letters of a parameter's value that are shown
# Of the console's own pages, by the kind in a resource's name.
_PAGES = ("customJobs", "hyperparameterTuningJobs", "models", "endpoints", "batchPredictionJobs", "datasets")


@job_page("pipelineJobs", "pipeline_job.html", "pipeline")
def shown(visit: Visit, job: dict[str, Any], number: str) -> dict[str, Any]:
    """Show a pipeline job."""
    details = (visit.local.records.get(job["name"]) or job).get("jobDetail", {}).get("taskDetails", [])
    spec = job.get("pipelineSpec", {})
    known, nodes = graph.states(details), graph.nodes(spec) if spec.get("root") else []
    folder = visit.local.state / "jobs" / number / "logs"
    return {
        "graph": graph.drawn(nodes, known), "titles": {node.name: node.title for node in nodes},
        "tasks": [_task(visit, number, each) for each in details if each.get("componentName") != "root"],
        "parameters": job.get("runtimeConfig", {}).get("parameterValues", {}), "root": job.get("runtimeConfig", {}),
        "root_link": address(visit, job.get("runtimeConfig", {}).get("gcsOutputDirectory", "")),
        "runner_log": href(f"/logs/{number}/kfp") if (folder / "kfp.log").exists() else "",
        "spec": {key: value for key, value in job.items() if key in ("runtimeConfig", "pipelineSpec", "serviceAccount")},
    }  # fmt: skip


@page("POST", "/pipelineJobs/{number}/rerun")
def rerun(visit: Visit, number: str) -> Answer:
    """Run the same pipeline once more; steps whose inputs are the same are taken from the cache."""
    job = visit.call("GetPipelineJob", name=visit.name("pipelineJobs", number))
    kept = ("displayName", "pipelineSpec", "runtimeConfig", "labels", "serviceAccount", "network")
    made = visit.call("CreatePipelineJob", parent=visit.parent, pipelineJob={key: job[key] for key in kept if key in job})
    return redirect(f"/pipelineJobs/{last_part(made['name'])}", "The pipeline was started again.")


def _task(visit: Visit, number: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    name = detail.get("taskUniqueName", detail["taskName"])
    values = detail.get("execution", {}).get("metadata", {})
    return {
        "name": name, "state": detail["state"], "duration": duration(detail), "error": detail.get("error", {}).get("message", ""),
        "attempts": sum(each["state"] == "RUNNING" for each in detail.get("pipelineTaskStatus", [])),
        "log": href(f"/logs/{number}/{last_part(detail['log']).removesuffix('.log')}") if detail.get("log") else "",
        "job": resource(detail.get("executorDetail", {}).get("containerDetail", {}).get("mainJob", "")),
        "artifacts": [
            (way, key, each.get("schemaTitle", "").rpartition(".")[2], *linked(visit, each))
            for way in ("inputs", "outputs")
            for key, found in detail.get(way, {}).items()
            for each in found.get("artifacts", [])
        ],
        "parameters": [(key, str(value)[:_LONGEST]) for key, value in values.items()],
    }  # fmt: skip


def linked(visit: Visit, artifact: Mapping[str, Any]) -> tuple[str, str]:
    """Return what an artefact is called and the page that shows it."""
    name = str((artifact.get("metadata") or {}).get("resourceName", ""))
    uri = artifact.get("uri", "")
    return (name or uri), (resource(name)[1] or address(visit, uri))


def resource(name: str) -> tuple[str, str]:
    """Return a resource's id and its page; two empty texts for none."""
    parts = name.split("/")
    if len(parts) < 2 or parts[-2] not in _PAGES:
        return "", ""
    number, _, version = parts[-1].partition("@")
    return number, href(f"/{parts[-2]}/{number}", version=version)
