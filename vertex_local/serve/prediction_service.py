"""google.cloud.aiplatform.v1.PredictionService: predictions come from the exported model itself."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import messages, models, raw, samples
from .local import Local
from .rest import ApiError
from .rpc import WithHeaders

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types

LARGEST_REQUEST = 1_500_000  # bytes: what a shared public endpoint takes
LARGEST_DEDICATED = 10_000_000  # and what a dedicated one does


@dataclass(frozen=True)
class _Answered:
    """What a deployed model answered, with its record and that of the model's version."""

    predictions: list[Any]
    deployed: Mapping[str, Any]
    model: Mapping[str, Any]


class PredictionService:
    """Predictions of deployed models."""

    def __init__(self, local: Local):
        self._local, self._samples = local, samples.Samples(local.state)

    def predict(self, request: types.PredictRequest) -> types.PredictResponse:
        """Answer instances with the deployed model that the traffic split draws."""
        endpoint = self._local.known(request.endpoint)
        _check_size(request.ByteSize(), endpoint)
        if not request.instances:
            raise ApiError("INVALID_ARGUMENT", "instances takes a list with at least one instance.", "instances")
        if messages.plain(request.parameters):
            raise ApiError("UNIMPLEMENTED", "parameters are not supported: the exported model takes none.", "parameters")
        found = self._ask(endpoint, [messages.plain(each) for each in request.instances])
        return messages.new(
            "PredictResponse", predictions=[messages.value(each) for each in found.predictions], deployed_model_id=found.deployed["id"],
            model=found.deployed["model"], model_display_name=found.model["displayName"],
            model_version_id=found.deployed["modelVersionId"],
        )  # fmt: skip

    def raw_predict(self, request: types.RawPredictRequest) -> WithHeaders:
        """Answer a body in the form of the model's container, a TensorFlow serving one, with that container's answer."""
        from google.api import httpbody_pb2

        endpoint = self._local.known(request.endpoint)
        _check_size(len(request.http_body.data), endpoint)
        body = raw.read(request.http_body.data, request.http_body.content_type)
        found = self._ask(endpoint, body.instances)
        answer = httpbody_pb2.HttpBody(content_type=raw.JSON, data=body.answer(found.predictions))
        return WithHeaders(answer, {
            "X-Vertex-AI-Endpoint-Id": endpoint["name"].rpartition("/")[2],
            "X-Vertex-AI-Deployed-Model-Id": found.deployed["id"],
            "X-Vertex-AI-Model": found.deployed["model"],
            "X-Vertex-AI-Model-Version-Id": found.deployed["modelVersionId"],
        })  # fmt: skip

    def stream_raw_predict(self, request: types.StreamRawPredictRequest) -> WithHeaders:
        """Answer as `raw_predict`, in a stream of one message: such a container answers all at once."""
        return self.raw_predict(request)

    def _ask(self, endpoint: Mapping[str, Any], instances: list[Any]) -> _Answered:
        deployed = {each["id"]: each for each in endpoint.get("deployedModels", [])}
        shares = {key: share for key, share in endpoint.get("trafficSplit", {}).items() if key in deployed and share}
        if not shares:
            text = f"{endpoint['name']} has no deployed model that gets traffic; deploy one with a trafficSplit, or update that."
            raise ApiError("FAILED_PRECONDITION", text)
        chosen = deployed[random.choices(list(shares), list(shares.values()))[0]]
        model = models.version(self._local, f"{chosen['model']}@{chosen['modelVersionId']}")
        key = f"{endpoint['name']}/deployedModels/{chosen['id']}"
        predictions = self._local.predictors.ask(key, str(models.folder(self._local, model)), instances)
        self._samples.add(endpoint, chosen["id"], instances, predictions)
        return _Answered(predictions, chosen, model)


def _check_size(size: int, endpoint: Mapping[str, Any]) -> None:
    most = LARGEST_DEDICATED if endpoint.get("dedicatedEndpointEnabled") else LARGEST_REQUEST
    if size > most:
        raise ApiError("INVALID_ARGUMENT", f"a request may have {most:,} bytes; got {size:,}: send fewer instances.")
