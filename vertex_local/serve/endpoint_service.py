"""google.cloud.aiplatform.v1.EndpointService: endpoints, and models deployed to them, each in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..local import job_record
from . import explanations, lists, messages, models, samples
from .local import Local, location_of
from .operations import OperationPool
from .rest import ApiError

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2
    from google.protobuf.message import Message

_CHANGEABLE = ("display_name", "description", "labels", "traffic_split", "predict_request_response_logging_config")
_OUTPUT_ONLY = ("deployedModels", "trafficSplit", "dedicatedEndpointDns")
_ID = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DEPLOYED_ID = re.compile("[a-zA-Z0-9_-]{1,128}")
_PRIVATE = ("network", "enable_private_service_connect", "private_service_connect_config")


class EndpointService:
    """Endpoints and the models deployed to them."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._operations = local, operations

    def create_endpoint(self, request: types.CreateEndpointRequest) -> operations_pb2.Operation:
        """Record an endpoint; the operation is done at once."""
        messages.required(request.endpoint, "display_name")
        messages.unsupported(request.endpoint, _PRIVATE)
        wanted = request.endpoint_id
        if wanted and not _ID.fullmatch(wanted):
            text = f"endpointId has up to 63 small letters, digits and '-'; got {wanted[:80]!r}."
            raise ApiError("INVALID_ARGUMENT", text, "endpointId")
        name = f"{request.parent}/endpoints/{wanted}" if wanted else self._local.new_name(request.parent, "endpoints")
        given = messages.to_json(request.endpoint)
        kept = {key: value for key, value in given.items() if key not in _OUTPUT_ONLY}
        samples.check_config(kept)
        now = job_record.now()
        document = self._local.records.add(name, "endpoints", {**kept, "name": name, "createTime": now, "updateTime": now})
        return self._operations.finished(request.parent, "CreateEndpointOperationMetadata", ("Endpoint", self._shown(document)))

    def get_endpoint(self, request: types.GetEndpointRequest) -> types.Endpoint:
        """Return an endpoint."""
        return messages.read(self._shown(self._local.known(request.name)), "Endpoint")

    def list_endpoints(self, request: types.ListEndpointsRequest) -> types.ListEndpointsResponse:
        """Return one page of endpoints."""
        records, token = lists.page(self._local.records, "endpoints", request)
        found = [messages.read(self._shown(record), "Endpoint") for record in records]
        return messages.new("ListEndpointsResponse", endpoints=found, next_page_token=token)

    def update_endpoint(self, request: types.UpdateEndpointRequest) -> types.Endpoint:
        """Change an endpoint's texts, labels and traffic split."""
        changed = messages.changes(request.endpoint, request.update_mask, _CHANGEABLE)
        samples.check_config(changed)

        def change(document: dict[str, Any]) -> None:
            if changed.get("trafficSplit"):
                _check_split(changed["trafficSplit"], _ids(document))
            messages.apply(document, changed)

        return messages.read(self._shown(self._changed(request.endpoint.name, change)), "Endpoint")

    def delete_endpoint(self, request: types.DeleteEndpointRequest) -> operations_pb2.Operation:
        """Forget an endpoint without deployed models, and the samples of its requests."""
        endpoint = self._local.known(request.name)
        if endpoint.get("deployedModels"):
            raise ApiError("FAILED_PRECONDITION", f"{endpoint['name']} has deployed models; undeploy them first.")
        self._local.records.remove(endpoint["name"])
        samples.Samples(self._local.state).forget(endpoint["name"])
        return self._operations.finished(location_of(endpoint["name"]), "DeleteOperationMetadata", None)

    def deploy_model(self, request: types.DeployModelRequest) -> operations_pb2.Operation:
        """Start a model's process; the operation is done once the process is ready for requests."""
        endpoint = self._local.known(request.endpoint)
        messages.required(request, "deployed_model.model")
        if request.deployed_model.HasField("explanation_spec"):
            explanations.check(request.deployed_model.explanation_spec, "deployedModel.explanationSpec")
        parent = location_of(request.endpoint)
        model = models.version(self._local, models.full_name(parent, request.deployed_model.model))
        models.check_image(model["containerSpec"]["imageUri"])
        deployed = self._deployed(request.deployed_model, endpoint["name"], model)
        split = {deployed["id"] if key == "0" else key: share for key, share in request.traffic_split.items()}
        _check_deployment(endpoint, deployed["id"], split)
        key = f"{endpoint['name']}/deployedModels/{deployed['id']}"

        def work() -> tuple[str, dict[str, Any]]:
            self._local.predictors.ready(key, str(models.folder(self._local, model)))
            try:
                self._changed(endpoint["name"], lambda document: _add(document, deployed, split))
            except ApiError as error:  # deleted meanwhile, or another deployment was faster
                if error.status != "ALREADY_EXISTS":  # the process is the other deployment's then
                    self._local.predictors.stop(key)
                raise
            return "DeployModelResponse", {"deployedModel": deployed}

        return self._operations.begin(parent, "DeployModelOperationMetadata", work, endpoint["name"])

    def undeploy_model(self, request: types.UndeployModelRequest) -> operations_pb2.Operation:
        """End a deployed model's process."""
        messages.required(request, "deployed_model_id")
        wanted = dict(request.traffic_split)
        endpoint = self._changed(request.endpoint, lambda document: _remove(document, request.deployed_model_id, wanted))
        self._local.predictors.stop(f"{endpoint['name']}/deployedModels/{request.deployed_model_id}")
        parent = location_of(endpoint["name"])
        return self._operations.finished(parent, "UndeployModelOperationMetadata", ("UndeployModelResponse", {}))

    def _deployed(self, wanted: Message, endpoint: str, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return a deployed model as the API shows it."""
        number = wanted.id or self._local.new_name(endpoint, "deployedModels").rpartition("/")[2]
        if not _DEPLOYED_ID.fullmatch(number):
            text = f"an id has up to 128 letters, digits, '-' and '_'; got {number[:140]!r}."
            raise ApiError("INVALID_ARGUMENT", text, "deployedModel.id")
        return {
            **messages.to_json(wanted), "id": number, "model": model["name"], "modelVersionId": model["versionId"],
            "createTime": job_record.now(), "displayName": wanted.display_name or model["displayName"],
        }  # fmt: skip

    def _shown(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return an endpoint as the API shows it; a dedicated one has the service's present address."""
        return {**document, **({"dedicatedEndpointDns": self._local.address} if document.get("dedicatedEndpointEnabled") else {})}

    def _changed(self, name: str, change: Any) -> dict[str, Any]:
        """Let `change` alter an endpoint's record in one transaction, so that two changes at once are both kept; return it."""
        document = job_record.update(self._local.records, name, change)
        return document or self._local.known(name)


def _ids(endpoint: Mapping[str, Any]) -> list[str]:
    return [deployed["id"] for deployed in endpoint.get("deployedModels", [])]


def _check_deployment(endpoint: Mapping[str, Any], number: str, split: Mapping[str, int]) -> None:
    known = _ids(endpoint)
    if number in known:
        raise ApiError("ALREADY_EXISTS", f"a deployed model {number} exists already on {endpoint['name']}.")
    if split:
        _check_split(split, [*known, number])


def _check_split(split: Mapping[str, int], ids: list[str]) -> None:
    unknown = sorted(set(split) - set(ids))
    if unknown or sum(split.values()) != 100 or min(split.values()) < 0:
        text = f"trafficSplit gives each deployed model ({', '.join(ids)}; 0 is the new one) a share, 100 in all; got {dict(split)}."
        raise ApiError("INVALID_ARGUMENT", text[:1000], "trafficSplit")


def _add(endpoint: dict[str, Any], deployed: dict[str, Any], split: Mapping[str, int]) -> None:
    """Add a deployed model; without a split it gets no traffic until an update gives it some."""
    _check_deployment(endpoint, deployed["id"], split)
    endpoint["deployedModels"] = [*endpoint.get("deployedModels", []), deployed]
    if split:
        endpoint["trafficSplit"] = dict(split)


def _remove(endpoint: dict[str, Any], number: str, wanted: Mapping[str, int]) -> None:
    left = [deployed for deployed in endpoint.get("deployedModels", []) if deployed["id"] != number]
    if len(left) == len(endpoint.get("deployedModels", [])):
        raise ApiError("NOT_FOUND", f"{endpoint['name']} has no deployed model {number[:140]!r}.", "deployedModelId")
    before = endpoint.get("trafficSplit", {})
    split = dict(wanted) or {key: share for key, share in before.items() if key != number}
    ids = [deployed["id"] for deployed in left]
    if wanted:
        _check_split(split, ids)
    elif left and before.get(number):
        text = f"{number} still gets traffic; give a trafficSplit for those that stay ({', '.join(ids)})."
        raise ApiError("FAILED_PRECONDITION", text, "trafficSplit")
    endpoint["deployedModels"], endpoint["trafficSplit"] = left, split
