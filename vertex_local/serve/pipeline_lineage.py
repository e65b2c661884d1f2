"""Pipelines in ML Metadata: each ended task is an execution with its input and output artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..local.store import Store
from ..metadata import lineage, nodes


def begin(records: Store, job: str, title: str) -> dict[str, Any]:
    """Record the contexts of a pipeline and of this run of it, and return the pipeline job's detail, which has them.

    Args:
        job: the pipeline job's full name.
        title: the pipeline's own name.
    """
    location, _, number = job.partition("/pipelineJobs/")
    pipeline = lineage.record_context(records, location, title, "system.Pipeline", job=job)
    run = lineage.record_context(records, location, number, "system.PipelineRun", job=job)
    nodes.add_children(records, pipeline, [run])
    shown = {field: nodes.shown(records, records.get(name)) for field, name in (("pipelineContext", pipeline), ("pipelineRunContext", run))}
    return {**shown, "taskDetails": []}


def renamed(detail: dict[str, Any]) -> dict[str, Any]:
    """Return a task's detail with the same artifact for a model's version in every task: the one that its upload has made."""
    for artifact in _artifacts(detail, "inputs", "outputs"):
        version = str(artifact.get("metadata", {}).get("resourceName", ""))
        if artifact.get("schemaTitle") == lineage.VERTEX_MODEL and "/models/" in version and "@" in version:
            artifact["name"] = f"{artifact['name'].rpartition('/')[0]}/{lineage.vertex_model_id(version)}"
    return detail


def ended(records: Store, job: str, contexts: Mapping[str, Any], detail: Mapping[str, Any]) -> None:
    """Record a task that has ended.

    Args:
        contexts: the pipeline job's detail, which names the contexts of pipeline and run.
        detail: the task's detail in the API's form.
    """
    execution = detail["execution"]
    if execution["state"] == "NEW":  # it never ran
        return
    made = detail.get("executorDetail", {}).get("containerDetail", {}).get("mainJob", "")
    given = {"task": detail["taskUniqueName"], "pipeline_job": job, "resource": made}
    metadata = {**execution.get("metadata", {}), **{key: value for key, value in given.items() if value}}
    lineage.record_execution(
        records, job.partition("/pipelineJobs/")[0], _id(execution["name"]), schema=execution["schemaTitle"],
        display_name=execution["displayName"], state=execution["state"], metadata=metadata,
        inputs=[_node(each) for each in _artifacts(detail, "inputs")], outputs=[_node(each) for each in _artifacts(detail, "outputs")],
        contexts=[contexts["pipelineRunContext"]["name"], contexts["pipelineContext"]["name"]],
    )  # fmt: skip


def _artifacts(detail: Mapping[str, Any], *ways: str) -> Iterator[dict[str, Any]]:
    for way in ways:
        for found in detail.get(way, {}).values():
            yield from found.get("artifacts", [])


def _node(artifact: Mapping[str, Any]) -> lineage.Node:
    kept = {key: artifact[key] for key in ("displayName", "uri", "schemaTitle", "schemaVersion", "metadata") if key in artifact}
    return {"id": _id(artifact["name"]), **kept}


def _id(name: str) -> str:
    return name.rpartition("/")[2]
