"""An endpoint: what is deployed, how the traffic is split, and a form made of the signature that asks the model."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...serve.rest import Answer, ApiError
from .. import charts, saved_models, traffic
from ..app import View, Visit, page, redirect
from ..text import last_part
from .models import artifacts

_BARS = 20  # shares of an answer that are drawn
_OPERATIONS = 200  # the latest ones, among which deployments are looked for: the page is made anew every few seconds


@page("GET", "/endpoints/{number}")
def show(visit: Visit, number: str) -> View:
    """Show an endpoint."""
    return _view(visit, visit.call("GetEndpoint", name=visit.name("endpoints", number)))


@page("POST", "/endpoints/{number}")
def predict(visit: Visit, number: str) -> View:
    """Ask the model for one prediction and show it, with what it rests on where the form asks for that."""
    endpoint = visit.call("GetEndpoint", name=visit.name("endpoints", number))
    deployed = _deployed(visit, endpoint)
    signature, _ = _signature(visit, deployed)
    if signature is None:
        raise ApiError("FAILED_PRECONDITION", "no model with a signature is deployed here: deploy one first.")
    instance = {tensor.name: _value(visit, tensor) for tensor in signature.inputs}
    content = next(iter(instance.values())) if len(instance) == 1 else instance
    rpc = "Explain" if visit.form.get("explain") else "Predict"
    said = visit.call(rpc, endpoint=endpoint["name"], instances=[content])
    answer, version = said["predictions"][0], {each["id"]: each["modelVersionId"] for each in deployed}[said["deployedModelId"]]
    return _view(
        visit, endpoint, answer=answer, answered_by=version, chart=charts.bars(_shares(answer)), attribution=_attribution(said),
        given={tensor.name: visit.form.fields.get(f"input.{tensor.name}", "") for tensor in signature.inputs},
    )  # fmt: skip


@page("POST", "/endpoints/{number}/undeploy")
def undeploy(visit: Visit, number: str) -> Answer:
    """Take a model off the endpoint; what it got of the traffic goes to the others in proportion."""
    name, gone = visit.name("endpoints", number), visit.form.get("deployed")
    before = visit.call("GetEndpoint", name=name).get("trafficSplit", {})
    rest = {key: share for key, share in before.items() if key != gone and share}
    split = traffic.scaled(rest, 100) if before.get(gone) and rest else {}
    visit.call("UndeployModel", endpoint=name, deployedModelId=gone, trafficSplit=split)
    return redirect(f"/endpoints/{number}", "The model is no longer deployed.")


@page("POST", "/endpoints/{number}/traffic")
def split(visit: Visit, number: str) -> Answer:
    """Change how the traffic is split."""
    given = [name.removeprefix("share.") for name in visit.form.fields if name.startswith("share.")]
    shares = {deployed: traffic.percent(visit.form.get(f"share.{deployed}")) for deployed in given}
    new = {"name": visit.name("endpoints", number), "trafficSplit": shares}
    visit.call("UpdateEndpoint", endpoint=new, updateMask="trafficSplit")
    return redirect(f"/endpoints/{number}", "The traffic is split anew.")


@page("POST", "/endpoints/{number}/delete")
def delete(visit: Visit, number: str) -> Answer:
    """Delete an endpoint without models."""
    visit.call("DeleteEndpoint", name=visit.name("endpoints", number))
    return redirect("/endpoints", f"Endpoint {number} is deleted.")


def _attribution(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first attribution of an explained answer: its figures, and `shares` of the inputs, the largest first."""
    explanations = answer.get("explanations") or [{}]
    found = (explanations[0].get("attributions") or [{}])[0]
    shares: dict[str, float] = {}
    for name, value in (found.get("featureAttributions") or {}).items():
        parts = list(_numbers(value))
        for i, part in enumerate(parts):
            shares[f"{name} {i + 1}" if len(parts) > 1 else name] = part
    ordered = sorted(shares.items(), key=lambda pair: -abs(pair[1]))[:_BARS]
    return {**found, "shares": charts.bars(dict(ordered))} if ordered else {}


def _numbers(value: Any) -> Iterator[float]:
    """Yield an attribution's numbers: one, or those of words, of a picture's parts row by row, of a vector."""
    if isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    else:
        yield float(value)


def _view(visit: Visit, endpoint: Mapping[str, Any], **asked: Any) -> View:
    """Show an endpoint, and what the model has been asked and has said, if anything."""
    deployed = _deployed(visit, endpoint)
    signature, sample = _signature(visit, deployed)
    under_way, failure = _deployments(visit, endpoint["name"])
    return View("endpoint.html", {
        "active": "endpoints", "endpoint": endpoint, "number": last_part(endpoint["name"]), "deployed": deployed, "signature": signature,
        "under_way": under_way, "failure": failure, "given": sample,
        "explains": any("explanationSpec" in each or "explanationSpec" in each["version"] for each in deployed), **asked,
    })  # fmt: skip


def _deployed(visit: Visit, endpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is deployed, each with its `share` of the traffic and the `version` of the model that it is."""
    shares = endpoint.get("trafficSplit", {})
    return [
        {**each, "share": shares.get(each["id"], 0),
         "version": visit.call("GetModel", name=f"{each['model'].partition('@')[0]}@{each['modelVersionId']}")}
        for each in endpoint.get("deployedModels", [])
    ]  # fmt: skip


def _signature(visit: Visit, deployed: Sequence[Mapping[str, Any]]) -> tuple[saved_models.Signature | None, dict[str, str]]:
    """Return the signature of the model that gets most of the traffic, and an instance to begin with, as a form's fields."""
    for each in sorted(deployed, key=lambda each: -each["share"]):
        folder = artifacts(visit, each["version"])
        if folder and (found := saved_models.signature(folder)):
            return found, saved_models.sample(folder, found)
    return None, {}


def _deployments(visit: Visit, endpoint: str) -> tuple[bool, str]:
    """Return whether a model is being deployed, and why the last deployment failed; "" if it did not."""
    latest = visit.local.records.page("operations", visit.parent, _OPERATIONS).documents  # the newest first
    operations = [each for each in latest if each.get("resource") == endpoint]
    last = operations[0] if operations else {}
    return any(not each["done"] for each in operations), last.get("error", {}).get("message", "")


def _value(visit: Visit, tensor: saved_models.Tensor) -> Any:
    """Return what the form says of an input, as a request holds it."""
    field = f"input.{tensor.name}"
    if tensor.is_file:
        content = visit.form.files.get(field) or b""
        if not content:
            raise ApiError("INVALID_ARGUMENT", f"{tensor.name}: choose a file.", tensor.name)
        return {"b64": base64.b64encode(content).decode()}
    text = visit.form.get(field)
    if len(tensor.shape) > 1:
        return _parsed(text, tensor.name, list, "a list")
    if tensor.dtype == "string":
        return text
    if tensor.dtype == "bool":
        return _parsed(text.lower(), tensor.name, bool, "true or false")
    return _parsed(text, tensor.name, (int, float), "a number") if text else None  # a missing cell


def _parsed(text: str, name: str, kind: Any, what: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind) or (kind == (int, float) and isinstance(found, bool)):
        raise ApiError("INVALID_ARGUMENT", f"{name}: takes {what}; got {text[:80]!r}.", name)
    return found


def _shares(answer: Any) -> dict[str, float]:
    """Return what of an answer can be drawn as bars: probabilities by the names of the classes, or a list of numbers."""
    if isinstance(answer, Mapping):
        classes, values = answer.get("classes"), answer.get("probabilities", answer.get("scores"))
        if isinstance(classes, list) and isinstance(values, list) and len(classes) == len(values):
            return dict(sorted(zip(map(str, classes), values), key=lambda pair: -pair[1])[:20])
        return {}
    if isinstance(answer, list) and 1 < len(answer) <= 20 and all(isinstance(value, (int, float)) for value in answer):
        return {str(i): float(value) for i, value in enumerate(answer)}
    return {}
