"""google.cloud.aiplatform.v1.PredictionService: predictions come from the exported model itself."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from . import messages, models, samples
from .local import Local
from .rest import ApiError

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types

LARGEST_REQUEST = 1_500_000  # bytes: what a shared public endpoint takes


class PredictionService:
    """Predictions of deployed models."""

    def __init__(self, local: Local):
        self._local, self._samples = local, samples.Samples(local.state)

    def predict(self, request: types.PredictRequest) -> types.PredictResponse:
        """Answer instances with the deployed model that the traffic split draws."""
        endpoint = self._local.known(request.endpoint)
        size = request.ByteSize()
        if size > LARGEST_REQUEST:
            raise ApiError("INVALID_ARGUMENT", f"a request may have {LARGEST_REQUEST:,} bytes; got {size:,}: send fewer instances.")
        if not request.instances:
            raise ApiError("INVALID_ARGUMENT", "instances takes a list with at least one instance.", "instances")
        if messages.plain(request.parameters):
            raise ApiError("UNIMPLEMENTED", "parameters are not supported: the exported model takes none.", "parameters")
        deployed = {each["id"]: each for each in endpoint.get("deployedModels", [])}
        shares = {key: share for key, share in endpoint.get("trafficSplit", {}).items() if key in deployed and share}
        if not shares:
            text = f"{endpoint['name']} has no deployed model that gets traffic; deploy one with a trafficSplit, or update that."
            raise ApiError("FAILED_PRECONDITION", text)
        chosen = deployed[random.choices(list(shares), list(shares.values()))[0]]
        model = models.version(self._local, f"{chosen['model']}@{chosen['modelVersionId']}")
        instances = [messages.plain(each) for each in request.instances]
        key = f"{endpoint['name']}/deployedModels/{chosen['id']}"
        predictions = self._local.predictors.ask(key, str(models.folder(self._local, model)), instances)
        self._samples.add(endpoint, chosen["id"], instances, predictions)
        return messages.new(
            "PredictResponse", predictions=[messages.value(each) for each in predictions], deployed_model_id=chosen["id"],
            model=chosen["model"], model_display_name=model["displayName"], model_version_id=chosen["modelVersionId"],
        )  # fmt: skip
