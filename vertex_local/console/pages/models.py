"""A model: versions, aliases, signature, evaluations; deploy a version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import UserError
from ...job import buckets
from ...metadata import sources
from ...serve.rest import Answer, ApiError
from .. import saved_models, traffic
from ..app import View, Visit, href, page, redirect
from ..text import last_part
from ..text import number as short
from .files import address


@page("GET", "/models/{number}")
def show(visit: Visit, number: str) -> View:
    """Show a model and one of its versions, by default the default one."""
    base = visit.name("models", number)
    wanted = visit.query.get("version", "")
    model = visit.call("GetModel", name=f"{base}@{wanted}" if wanted else base)
    versions = visit.call("ListModelVersions", name=base).get("models", [])
    folder = artifacts(visit, model)
    return View("model.html", {
        "active": "models", "model": model, "number": number, "signature": saved_models.signature(folder) if folder else None,
        "versions": [{**each, "metrics": _metrics(visit, f"{base}@{each['versionId']}")} for each in versions],
        "artifacts": address(visit, model.get("artifactUri", "")), "evaluations": _evaluations(visit, f"{base}@{model['versionId']}"),
        "endpoints": visit.call("ListEndpoints", parent=visit.parent).get("endpoints", []), "pipeline": _pipeline(model),
    })  # fmt: skip


@page("GET", "/models/{number}/lineage")
def lineage(visit: Visit, number: str) -> View:
    """Follow a version back to its run and its data; every file is looked at again, which may take a while."""
    local, version = visit.console.local, visit.query.get("version", "")
    name = f"{visit.name('models', number)}@{version}" if version else visit.name("models", number)
    try:
        found = sources.origin(local.records, local.buckets, sources.find(local.records, local.buckets, name)).json()
    except UserError as error:
        raise ApiError("NOT_FOUND", str(error)) from None
    job = (found["job"] or {}).get("name", "")
    kind = job.split("/")[-2] if "/" in job else ""
    files = [{**each, "link": address(visit, each["uri"])} for each in found["data"]]
    return View("lineage.html", {
        "active": "models", "number": number, "version": version, "found": found, "files": files,
        "job_link": href(f"/{kind}/{last_part(job)}") if kind else "",
    })  # fmt: skip


@page("POST", "/models/{number}/alias")
def change_aliases(visit: Visit, number: str) -> Answer:
    """Give a version aliases, and take those with a leading '-'."""
    given = [alias for alias in visit.form.get("aliases").replace(",", " ").split() if alias]
    version = visit.form.get("version")
    visit.call("MergeVersionAliases", name=f"{visit.name('models', number)}@{version}", versionAliases=given)
    return redirect(f"/models/{number}", f"Changed: {' '.join(given)}.", version=version)


@page("POST", "/models/{number}/deploy")
def deploy(visit: Visit, number: str) -> Answer:
    """Deploy a version, on an endpoint that is there or a new one; the endpoint's page shows when it answers."""
    version, share = visit.form.get("version"), traffic.percent(visit.form.get("share") or "100")
    model = visit.call("GetModel", name=f"{visit.name('models', number)}@{version}")
    chosen, new = visit.form.get("endpoint"), {"displayName": model["displayName"]}
    endpoint = chosen or visit.call("CreateEndpoint", parent=visit.parent, endpoint=new)["response"]["name"]
    deployed = {
        "model": f"{model['name']}@{version}", "displayName": model["displayName"],
        "dedicatedResources": {"machineSpec": {"machineType": "n1-standard-4"}, "minReplicaCount": 1, "maxReplicaCount": 1},
    }  # fmt: skip
    before = visit.call("GetEndpoint", name=endpoint).get("trafficSplit")
    split = {**traffic.scaled(before, 100 - share), "0": share} if before else {"0": 100}  # "0" is the new one
    try:
        visit.call("DeployModel", endpoint=endpoint, deployedModel=deployed, trafficSplit=split)
    except ApiError:
        if not chosen:
            visit.call("DeleteEndpoint", name=endpoint)
        raise
    return redirect(f"/endpoints/{last_part(endpoint)}", f"Version {version} is being deployed.")


def artifacts(visit: Visit, model: dict[str, Any]) -> Path | None:
    """Return the folder of a version's files here."""
    try:
        return Path(buckets.to_path(model.get("artifactUri", ""), visit.local.buckets))
    except (buckets.BucketError, ValueError):
        return None


def _evaluations(visit: Visit, name: str) -> list[dict[str, Any]]:
    found = visit.call("ListModelEvaluations", parent=name).get("modelEvaluations", [])
    return [{**each, "pairs": _numbers(each.get("metrics") or {})} for each in found]


def _metrics(visit: Visit, name: str) -> str:
    pairs = [pair for each in _evaluations(visit, name)[:1] for pair in each["pairs"]]
    return ", ".join(f"{metric} {value}" for metric, value in pairs[:3])


def _numbers(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, short(value)) for name, value in metrics.items() if isinstance(value, (int, float))]


def _pipeline(model: dict[str, Any]) -> str:
    name = model.get("trainingPipeline", "")
    return href(f"/trainingPipelines/{last_part(name)}") if name else ""
