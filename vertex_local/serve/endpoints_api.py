"""endpoints: deploying a model starts a process that holds it; predictions come from the exported model itself."""

from __future__ import annotations

import random
import re
from typing import Any

from ..job import images
from . import models_api
from .local import Local
from .operations import done, new_name, start
from .rest import ApiError, Request, checked, required, stamp, unsupported

LARGEST_REQUEST = 1_500_000  # bytes: what a shared public endpoint takes
_SERVES_SAVED_MODELS = re.compile(r"(?:.*/)?(?:tensorflow/serving|tf[-_]?serving|tensorflow-serving)[\w.-]*(?:[:@].*)?")


def create(local: Local, request: Request, project: str, location: str) -> dict[str, Any]:
    """Keep an endpoint; the operation is done at once."""
    parent = f"projects/{project}/locations/{location}"
    body = checked(request.json(), "Endpoint")
    required(body, "displayName")
    unsupported(body, ("network", "enablePrivateServiceConnect", "privateServiceConnectConfig", "dedicatedEndpointEnabled"))
    wish = request.query.get("endpointId", "")
    if wish and not re.fullmatch("[a-z0-9][a-z0-9-]{0,61}[a-z0-9]|[a-z0-9]", wish):
        raise ApiError("INVALID_ARGUMENT", f"endpointId has up to 63 small letters, digits and '-'; got {wish!r}.", "endpointId")
    name = f"{parent}/endpoints/{wish}" if wish else new_name(local.records, parent, "endpoints")
    body = {key: value for key, value in body.items() if key not in ("deployedModels", "trafficSplit")}
    local.records.add(name, "endpoints", {**body, "name": name, "createTime": stamp(), "updateTime": stamp()})
    return done(local.records, parent, "CreateEndpointOperationMetadata", ("Endpoint", local.records.get(name)))


def known(local: Local, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Return an endpoint, or answer NOT_FOUND."""
    return local.known(f"projects/{project}/locations/{location}/endpoints/{id}")


def patch(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Change an endpoint's texts, labels and traffic split."""
    endpoint = known(local, project, location, id)
    changes = models_api.changed(checked(request.json(), "Endpoint"), request)
    if changes.get("trafficSplit"):
        _check_split(changes["trafficSplit"], [deployed["id"] for deployed in endpoint.get("deployedModels", [])])
    local.records.change(endpoint["name"], lambda document: models_api.apply(document, changes))
    return known(local, project, location, id)


def delete(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Forget an endpoint on which nothing is deployed."""
    endpoint = known(local, project, location, id)
    if endpoint.get("deployedModels"):
        raise ApiError("FAILED_PRECONDITION", f"{endpoint['name']} has deployed models; undeploy them first.")
    local.records.remove(endpoint["name"])
    return done(local.records, f"projects/{project}/locations/{location}", "DeleteOperationMetadata", None)


def deploy(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Start a model's process; the operation is done once it has answered that it can be asked."""
    endpoint = known(local, project, location, id)
    body = checked(request.json(), "DeployModelRequest")
    required(body, "deployedModel.model")
    wish = body["deployedModel"]
    unsupported(wish, ("explanationSpec",), "deployedModel.")
    model = models_api.version_of(local, models_api.full_name(f"projects/{project}/locations/{location}", wish["model"]))
    image = model["containerSpec"]["imageUri"]
    row = images.find(image)
    if not (row and row.role == "serving") and not _SERVES_SAVED_MODELS.fullmatch(image):
        text = f"the local service answers with the SavedModel, as prebuilt TensorFlow serving images do; it cannot run {image!r}."
        raise ApiError("UNIMPLEMENTED", text, "model.containerSpec.imageUri")
    key = wish.get("id") or new_name(local.records, endpoint["name"], "deployedModels").rpartition("/")[2]
    if not re.fullmatch("[a-zA-Z0-9_-]{1,128}", key):
        raise ApiError("INVALID_ARGUMENT", f"an id has up to 128 letters, digits, '-' and '_'; got {key!r}.", "deployedModel.id")
    taken = [deployed["id"] for deployed in endpoint.get("deployedModels", [])]
    if key in taken:
        raise ApiError("ALREADY_EXISTS", f"a deployed model {key} exists already on {endpoint['name']}.")
    split = {key if name == "0" else name: share for name, share in body.get("trafficSplit", {}).items()}
    if split:
        _check_split(split, [*taken, key])
    elif not taken:
        split = {key: 100}
    deployed = {
        **wish, "id": key, "model": model["name"], "modelVersionId": model["versionId"], "createTime": stamp(),
        "displayName": wish.get("displayName") or model["displayName"],
    }  # fmt: skip

    def work() -> tuple[str, dict[str, Any]]:
        local.predictors.ready(_key(endpoint["name"], key), str(models_api.model_folder(local, model)))

        def add(document: dict[str, Any]) -> None:
            document["deployedModels"] = [*document.get("deployedModels", []), deployed]
            if split:
                document["trafficSplit"] = split
            document["updateTime"] = stamp()

        if local.records.change(endpoint["name"], add) is None:
            local.predictors.stop(_key(endpoint["name"], key))
            raise ApiError("NOT_FOUND", f"{endpoint['name']} has been deleted meanwhile.")
        return "DeployModelResponse", {"deployedModel": deployed}

    return start(local.records, f"projects/{project}/locations/{location}", "DeployModelOperationMetadata", work)


def _key(endpoint: str, deployed: str) -> str:
    return f"{endpoint}/deployedModels/{deployed}"


def _check_split(split: dict[str, int], ids: list[str]) -> None:
    unknown = sorted(set(split) - set(ids))
    if unknown or sum(split.values()) != 100 or min(split.values()) < 0:
        text = f"trafficSplit gives each deployed model ({', '.join(ids)}; 0 is the new one) a share, 100 in all; got {split}."
        raise ApiError("INVALID_ARGUMENT", text, "trafficSplit")


def undeploy(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """End a deployed model's process."""
    endpoint = known(local, project, location, id)
    body = checked(request.json(), "UndeployModelRequest")
    required(body, "deployedModelId")
    key = body["deployedModelId"]
    left = [deployed["id"] for deployed in endpoint.get("deployedModels", []) if deployed["id"] != key]
    if len(left) == len(endpoint.get("deployedModels", [])):
        raise ApiError("NOT_FOUND", f"{endpoint['name']} has no deployed model {key!r}.", "deployedModelId")
    split = body.get("trafficSplit") or {name: share for name, share in endpoint.get("trafficSplit", {}).items() if name != key}
    if body.get("trafficSplit"):
        _check_split(split, left)
    elif left and sum(split.values()) != 100:
        text = f"{key} still gets traffic; give a trafficSplit for those that stay ({', '.join(left)})."
        raise ApiError("FAILED_PRECONDITION", text, "trafficSplit")

    def remove(document: dict[str, Any]) -> None:
        document["deployedModels"] = [deployed for deployed in document["deployedModels"] if deployed["id"] != key]
        document["trafficSplit"] = split
        document["updateTime"] = stamp()

    local.records.change(endpoint["name"], remove)
    local.predictors.stop(_key(endpoint["name"], key))
    return done(local.records, f"projects/{project}/locations/{location}", "UndeployModelOperationMetadata", ("UndeployModelResponse", {}))


def predict(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Answer instances with the deployed model that the traffic split draws."""
    endpoint = known(local, project, location, id)
    if request.length > LARGEST_REQUEST:
        raise ApiError("INVALID_ARGUMENT", f"a request may have {LARGEST_REQUEST:,} bytes; got {request.length:,}: send fewer instances.")
    body = request.json()
    for name in body:
        if name not in ("instances", "parameters", "endpoint", "labels"):
            raise ApiError("INVALID_ARGUMENT", f"PredictRequest has no field {name!r}; it has instances and parameters.", name)
    instances = body.get("instances")
    if not isinstance(instances, list) or not instances:
        raise ApiError("INVALID_ARGUMENT", "instances takes a list with at least one instance.", "instances")
    if body.get("parameters"):
        raise ApiError("UNIMPLEMENTED", "parameters are not supported: the exported model takes none.", "parameters")
    deployed = {each["id"]: each for each in endpoint.get("deployedModels", [])}
    shares = {key: share for key, share in endpoint.get("trafficSplit", {}).items() if key in deployed and share}
    if not shares:
        raise ApiError("FAILED_PRECONDITION", f"{endpoint['name']} has no deployed model that gets traffic; deploy one.")
    chosen = deployed[random.choices(list(shares), list(shares.values()))[0]]
    model = models_api.version_of(local, f"{chosen['model']}@{chosen['modelVersionId']}")
    folder = models_api.model_folder(local, model)
    predictions = local.predictors.ask(_key(endpoint["name"], chosen["id"]), str(folder), instances)
    return {
        "predictions": predictions, "deployedModelId": chosen["id"], "model": chosen["model"],
        "modelDisplayName": model["displayName"], "modelVersionId": chosen["modelVersionId"],
    }  # fmt: skip
