"""An endpoint: what is deployed, how the traffic is split, and a form made of the signature that asks the model."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from ...serve import messages
from ...serve.rest import ApiError
from .. import charts, saved_models
from ..app import Redirect, View, Visit, href, message, page
from .jobs import named
from .models import artifacts


@page("GET", "/endpoints/{number}")
def show(visit: Visit, number: str) -> View:
    """Show an endpoint."""
    return _view(visit, number, {}, None, "")


@page("POST", "/endpoints/{number}")
def predict(visit: Visit, number: str) -> View:
    """Ask the model for one prediction and show it."""
    endpoint = visit.call("GetEndpoint", name=named(visit, "endpoints", number))
    found = _signature(visit, endpoint)
    if found is None:
        raise ApiError("FAILED_PRECONDITION", "no model with a signature is deployed here.")
    instance = {tensor.name: _value(visit, tensor) for tensor in found.inputs}
    content = next(iter(instance.values())) if len(instance) == 1 else instance
    answer = visit.call("Predict", endpoint=endpoint["name"], instances=[messages.value(content)])
    given = {tensor.name: visit.form.fields.get(f"input.{tensor.name}", "") for tensor in found.inputs}
    return _view(visit, number, given, answer["predictions"][0], answer.get("modelVersionId", ""))


@page("POST", "/endpoints/{number}/undeploy")
def undeploy(visit: Visit, number: str) -> Redirect:
    """Take a model off the endpoint; what it got of the traffic goes to the others in proportion."""
    name, gone = named(visit, "endpoints", number), visit.form.get("deployed")
    before = visit.call("GetEndpoint", name=name).get("trafficSplit", {})
    rest = {key: share for key, share in before.items() if key != gone and share}
    split = {}
    if before.get(gone) and rest:
        total = sum(rest.values())
        split = {key: share * 100 // total for key, share in rest.items()}
        split[next(iter(split))] += 100 - sum(split.values())
    visit.call("UndeployModel", endpoint=name, deployed_model_id=gone, traffic_split=split)
    return Redirect(href(f"/endpoints/{number}"), "The model is no longer deployed.")


@page("POST", "/endpoints/{number}/traffic")
def split(visit: Visit, number: str) -> Redirect:
    """Change how the traffic is split."""
    shares = {key.removeprefix("share."): value.strip() for key, value in visit.form.fields.items() if key.startswith("share.")}
    for value in shares.values():
        if not value.isdecimal() or int(value) > 100:
            raise ApiError("INVALID_ARGUMENT", f"a share takes 0 to 100 percent; got {value[:20]!r}.")
    traffic = {key: int(value) for key, value in shares.items()}
    new = message("Endpoint", {"name": named(visit, "endpoints", number), "trafficSplit": traffic})
    visit.call("UpdateEndpoint", endpoint=new, update_mask={"paths": ["traffic_split"]})
    return Redirect(href(f"/endpoints/{number}"), "The traffic is split anew.")


@page("POST", "/endpoints/{number}/delete")
def delete(visit: Visit, number: str) -> Redirect:
    """Delete an endpoint without models."""
    visit.call("DeleteEndpoint", name=named(visit, "endpoints", number))
    return Redirect(href("/endpoints"), f"Endpoint {number} is deleted.")


def _view(visit: Visit, number: str, given: Mapping[str, str], answer: Any, version: str) -> View:
    endpoint = visit.call("GetEndpoint", name=named(visit, "endpoints", number))
    shares = endpoint.get("trafficSplit", {})
    deployed = [{**each, "share": shares.get(each["id"], 0)} for each in endpoint.get("deployedModels", [])]
    found = _signature(visit, endpoint)
    under_way, failure = _deployments(visit, endpoint["name"])
    names = [tensor.name for tensor in found.inputs] if found else []
    return View("endpoint.html", {
        "active": "endpoints", "endpoint": endpoint, "number": number, "deployed": deployed, "signature": found,
        "under_way": under_way, "failure": failure, "given": {name: given.get(name, "") for name in names}, "answer": answer,
        "answered_by": version, "chart": charts.bars(_shares(answer)),
    })  # fmt: skip


def _signature(visit: Visit, endpoint: Mapping[str, Any]) -> saved_models.Signature | None:
    """Return the signature of the model that gets most of the traffic."""
    shares = endpoint.get("trafficSplit", {})
    for each in sorted(endpoint.get("deployedModels", []), key=lambda each: -shares.get(each["id"], 0)):
        model = visit.call("GetModel", name=f"{each['model'].partition('@')[0]}@{each['modelVersionId']}")
        folder = artifacts(visit, model)
        if folder and (found := saved_models.signature(folder)):
            return found
    return None


def _deployments(visit: Visit, endpoint: str) -> tuple[bool, str]:
    """Return whether a model is being deployed, and why the last deployment failed; "" if it did not."""
    operations = [each for each in visit.console.local.records.list("operations") if each.get("resource") == endpoint]
    last = operations[-1] if operations else {}
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
    except ValueError:
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
