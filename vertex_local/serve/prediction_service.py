"""google.cloud.aiplatform.v1.PredictionService: predictions by deployed models, and their explanations."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import explanations, messages, models, raw, samples
from .local import Local
from .rest import ApiError
from .rpc import WithHeaders

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.protobuf.message import Message

LARGEST_REQUEST = 1_500_000  # bytes of a request to a shared public endpoint
LARGEST_DEDICATED = 10_000_000  # bytes of a request to a dedicated one


@dataclass(frozen=True)
class _Deployed:
    """A deployed model: its endpoint, and the endpoint's record of it."""

    local: Local
    endpoint: Mapping[str, Any]
    deployed: Mapping[str, Any]

    @cached_property
    def model(self) -> dict[str, Any]:
        return models.version(self.local, f"{self.deployed['model']}@{self.deployed['modelVersionId']}")

    @property
    def key(self) -> str:
        """The key of its process."""
        return f"{self.endpoint['name']}/deployedModels/{self.deployed['id']}"

    @property
    def folder(self) -> Path:
        return models.folder(self.local, self.model)


class PredictionService:
    """Predictions by deployed models, and their explanations."""

    def __init__(self, local: Local):
        self._local, self._samples = local, samples.Samples(local.state)

    def predict(self, request: types.PredictRequest) -> types.PredictResponse:
        """Answer instances by a deployed model, chosen at random by the traffic split."""
        endpoint = self._local.known(request.endpoint)
        instances = _instances(request, endpoint)
        chosen = self._chosen(endpoint)
        predictions = self._ask(chosen, instances)
        return messages.new(
            "PredictResponse", predictions=[messages.value(each) for each in predictions], deployed_model_id=chosen.deployed["id"],
            model=chosen.deployed["model"], model_display_name=chosen.model["displayName"],
            model_version_id=chosen.deployed["modelVersionId"],
        )  # fmt: skip

    def raw_predict(self, request: types.RawPredictRequest) -> WithHeaders:
        """Answer a body in TensorFlow Serving's form, in that form."""
        from google.api import httpbody_pb2

        endpoint = self._local.known(request.endpoint)
        _check_size(len(request.http_body.data), endpoint)
        body = raw.read(request.http_body.data, request.http_body.content_type)
        chosen = self._chosen(endpoint)
        answer = httpbody_pb2.HttpBody(content_type=raw.JSON, data=body.answer(self._ask(chosen, body.instances)))
        return WithHeaders(answer, {
            "X-Vertex-AI-Endpoint-Id": endpoint["name"].rpartition("/")[2],
            "X-Vertex-AI-Deployed-Model-Id": chosen.deployed["id"],
            "X-Vertex-AI-Model": chosen.deployed["model"],
            "X-Vertex-AI-Model-Version-Id": chosen.deployed["modelVersionId"],
        })  # fmt: skip

    def stream_raw_predict(self, request: types.StreamRawPredictRequest) -> WithHeaders:
        """Answer as `raw_predict`, in a stream of one message, as TensorFlow Serving would."""
        return self.raw_predict(request)

    def explain(self, request: types.ExplainRequest) -> types.ExplainResponse:
        """Answer instances as `predict` does, with an explanation of each answer."""
        endpoint = self._local.known(request.endpoint)
        instances = _instances(request, endpoint)
        chosen = self._chosen(endpoint, request.deployed_model_id)
        spec = explanations.spec_of(chosen.deployed, chosen.model, chosen.folder)
        if request.HasField("explanation_spec_override"):
            spec = explanations.overridden(spec, request.explanation_spec_override)
        predictions, found = self._local.predictors.explain(chosen.key, str(chosen.folder), instances, spec)
        return messages.new(
            "ExplainResponse", predictions=[messages.value(each) for each in predictions], deployed_model_id=chosen.deployed["id"],
            explanations=[explanations.explanation(each) for each in found],
        )  # fmt: skip

    def _ask(self, chosen: _Deployed, instances: list[Any]) -> list[Any]:
        """Return the model's predictions; keep a sample of the requests."""
        predictions = self._local.predictors.ask(chosen.key, str(chosen.folder), instances)
        self._samples.add(chosen.endpoint, chosen.deployed["id"], instances, predictions)
        return predictions

    def _chosen(self, endpoint: Mapping[str, Any], wanted: str = "") -> _Deployed:
        """Return the deployed model of the id `wanted`, by default one chosen at random by the traffic split."""
        deployed = {each["id"]: each for each in endpoint.get("deployedModels", [])}
        if wanted and wanted not in deployed:
            text = f"{endpoint['name']} has no deployed model {wanted[:140]!r}; it has {', '.join(deployed) or 'none'}."
            raise ApiError("NOT_FOUND", text, "deployedModelId")
        shares = {wanted: 100} if wanted else {key: share for key, share in endpoint.get("trafficSplit", {}).items() if share}
        if not shares:
            text = f"{endpoint['name']} has no deployed model that gets traffic; deploy one with a trafficSplit, or update that."
            raise ApiError("FAILED_PRECONDITION", text)
        return _Deployed(self._local, endpoint, deployed[random.choices(list(shares), list(shares.values()))[0]])


def _instances(request: Message, endpoint: Mapping[str, Any]) -> list[Any]:
    """Return the instances of a request to predict or explain."""
    _check_size(request.ByteSize(), endpoint)
    if not request.instances:
        raise ApiError("INVALID_ARGUMENT", "instances takes a list with at least one instance.", "instances")
    if messages.plain(request.parameters):
        raise ApiError("UNIMPLEMENTED", "parameters are not supported: the exported model takes none.", "parameters")
    return [messages.plain(each) for each in request.instances]


def _check_size(size: int, endpoint: Mapping[str, Any]) -> None:
    most = LARGEST_DEDICATED if endpoint.get("dedicatedEndpointEnabled") else LARGEST_REQUEST
    if size > most:
        raise ApiError("INVALID_ARGUMENT", f"a request may have {most:,} bytes; got {size:,}: send fewer instances.")
