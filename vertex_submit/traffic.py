"""The traffic of an endpoint between the versions of one model: a version is deployed first, then the traffic moves in one step."""

from __future__ import annotations

import concurrent.futures
from typing import Any

from google.protobuf import field_mask_pb2

from vertex_local.errors import UserError

from . import sdk
from .cloud import CloudError

DEPLOY_SECONDS = 3600.0  # for which a deployment is waited for
MACHINE = "n1-standard-2"  # where no version is deployed whose machines could be taken


class Traffic(sdk.Named):
    """An endpoint, as far as it serves one model.

    Args:
        model: the model's full name.
        machine_type: for a version that is deployed, in place of that of the version which serves.
    """

    def __init__(self, service: sdk.Service, endpoint: str, model: str, machine_type: str | None = None):
        super().__init__(service, "endpoint", endpoint, "--endpoint")
        self.model, self.machine_type = model, machine_type

    def read(self) -> Any:
        """Return the endpoint as it is now."""
        return self.ask("get_endpoint", name=self.name)

    def deployed(self, version: str, endpoint: Any = None) -> str | None:
        """Return the id under which a version is deployed; None if it is not."""
        found = [each for each in self._own(endpoint or self.read()) if each.model_version_id == version]
        return found[0].id if found else None

    def wanted_split(self, endpoint: Any, number: str) -> dict[str, int]:
        """Return the split that gives a deployed model all that the model's versions get, and leaves other models their shares."""
        own, split = {each.id for each in self._own(endpoint)}, dict(endpoint.traffic_split)
        others = {each: share for each, share in split.items() if each not in own and share}
        if sum(others.values()) == 100:
            raise UserError(f"--endpoint: {self.name} gives all its traffic to other models than {self.model}; move it by hand.")
        return {**others, number: 100 - sum(others.values())}

    def idle(self, version: str) -> list[str]:
        """Return the ids of the model's other versions, which get no traffic any more and cost money until they are undeployed."""
        endpoint = self.read()
        others = [each.id for each in self._own(endpoint) if each.model_version_id != version]
        return [number for number in others if not endpoint.traffic_split.get(number)]

    def _own(self, endpoint: Any) -> list[Any]:
        """Return the deployed models that are versions of the model, those with the most traffic first."""
        # The service answers with the project's number where it was asked with the id.
        number = self.model.rpartition("/")[2]
        own = [each for each in endpoint.deployed_models if each.model.partition("@")[0].rpartition("/")[2] == number]
        return sorted(own, key=lambda each: -endpoint.traffic_split.get(each.id, 0))

    # ------------------------------------------------------------------ changes

    def deploy(self, version: str) -> None:
        """Deploy a version on the machines of the one that serves; it gets traffic only where nothing is deployed yet."""
        from google.cloud.aiplatform_v1 import types

        endpoint = self.read()
        self.wanted_split(endpoint, "0")  # refused before ten minutes of deploying
        made = types.DeployedModel()
        own = self._own(endpoint)
        if own:
            made = types.DeployedModel(own[0])
            for field in ("id", "create_time", "model_version_id", "private_endpoints", "status"):
                made._pb.ClearField(field)
        else:
            made.dedicated_resources = types.DedicatedResources(
                machine_spec={"machine_type": MACHINE}, min_replica_count=1, max_replica_count=1
            )  # fmt: skip
        if self.machine_type:
            made.dedicated_resources.machine_spec.machine_type = self.machine_type
        made.model = f"{self.model}@{version}"
        split = {} if endpoint.deployed_models else {"0": 100}
        operation = self.ask("deploy_model", endpoint=self.name, deployed_model=made, traffic_split=split)
        with sdk.errors(self.service.project):
            try:
                operation.result(timeout=DEPLOY_SECONDS)
            except concurrent.futures.TimeoutError:
                raise CloudError(
                    f"the deployment was not done after {DEPLOY_SECONDS / 60:.0f} minutes; it may still end well: "
                    "see `gcloud ai endpoints describe`."
                ) from None

    def move(self, version: str) -> None:
        """Give a deployed version all of the model's traffic, in one step; refused if the endpoint was changed meanwhile."""
        from google.cloud.aiplatform_v1 import types

        endpoint = self.read()
        number = self.deployed(version, endpoint)
        if number is None:
            raise CloudError(
                f"version {version} is not deployed on {self.name} any more: somebody else changes it, too. See what there is, "
                "then start again."
            )
        changed = types.Endpoint(name=self.name, traffic_split=self.wanted_split(endpoint, number), etag=endpoint.etag)
        self.ask("update_endpoint", endpoint=changed, update_mask=field_mask_pb2.FieldMask(paths=["traffic_split"]))
