"""google.cloud.aiplatform.v1.PredictionService: predictions, and explanations of them, come from the exported model itself."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import explanations, messages, models
from .local import Local
from .rest import ApiError

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.protobuf.message import Message

LARGEST_REQUEST = 1_500_000  # bytes: what a shared public endpoint takes


class PredictionService:
    """Predictions of deployed models, and what they rest on."""

    def __init__(self, local: Local):
        self._local = local

    def predict(self, request: types.PredictRequest) -> types.PredictResponse:
        """Answer instances with the deployed model that the traffic split draws."""
        endpoint = self._local.known(request.endpoint)
        _check(request)
        chosen = _drawn(endpoint)
        model = models.version(self._local, f"{chosen['model']}@{chosen['modelVersionId']}")
        predictions = self._local.predictors.ask(
            f"{endpoint['name']}/deployedModels/{chosen['id']}", str(models.folder(self._local, model)),
            [messages.plain(each) for each in request.instances],
        )  # fmt: skip
        return messages.new(
            "PredictResponse", predictions=[messages.value(each) for each in predictions], deployed_model_id=chosen["id"],
            model=chosen["model"], model_display_name=model["displayName"], model_version_id=chosen["modelVersionId"],
        )  # fmt: skip

    def explain(self, request: types.ExplainRequest) -> types.ExplainResponse:
        """Answer instances as `predict` does, and say what each answer rests on."""
        endpoint = self._local.known(request.endpoint)
        _check(request)
        chosen = _named(endpoint, request.deployed_model_id) if request.deployed_model_id else _drawn(endpoint)
        model = models.version(self._local, f"{chosen['model']}@{chosen['modelVersionId']}")
        folder = models.folder(self._local, model)
        spec = explanations.spec_of(chosen, model, folder)
        if request.HasField("explanation_spec_override"):
            spec = explanations.overridden(spec, request.explanation_spec_override)
        predictions, found = self._local.predictors.explain(
            f"{endpoint['name']}/deployedModels/{chosen['id']}", str(folder), [messages.plain(each) for each in request.instances], spec
        )
        return messages.new(
            "ExplainResponse", predictions=[messages.value(each) for each in predictions], deployed_model_id=chosen["id"],
            explanations=[explanations.explanation(each) for each in found],
        )  # fmt: skip


def _check(request: Message) -> None:
    size = request.ByteSize()
    if size > LARGEST_REQUEST:
        raise ApiError("INVALID_ARGUMENT", f"a request may have {LARGEST_REQUEST:,} bytes; got {size:,}: send fewer instances.")
    if not request.instances:
        raise ApiError("INVALID_ARGUMENT", "instances takes a list with at least one instance.", "instances")
    if messages.plain(request.parameters):
        raise ApiError("UNIMPLEMENTED", "parameters are not supported: the exported model takes none.", "parameters")


def _drawn(endpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the deployed model that the traffic split draws."""
    deployed = {each["id"]: each for each in endpoint.get("deployedModels", [])}
    shares = {key: share for key, share in endpoint.get("trafficSplit", {}).items() if key in deployed and share}
    if not shares:
        text = f"{endpoint['name']} has no deployed model that gets traffic; deploy one with a trafficSplit, or update that."
        raise ApiError("FAILED_PRECONDITION", text)
    return deployed[random.choices(list(shares), list(shares.values()))[0]]


def _named(endpoint: Mapping[str, Any], wanted: str) -> dict[str, Any]:
    deployed = {each["id"]: each for each in endpoint.get("deployedModels", [])}
    if wanted not in deployed:
        text = f"{endpoint['name']} has no deployed model {wanted[:140]!r}; it has {', '.join(deployed) or 'none'}."
        raise ApiError("NOT_FOUND", text, "deployedModelId")
    return deployed[wanted]
