"""google.cloud.aiplatform.v1.PersistentResourceService: records and rules only; jobs on them run on this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..local import job_record
from . import jobs, messages, persistent_resources
from .local import Local, location_of
from .operations import OperationPool
from .persistent_resources import KIND
from .rest import ApiError
from .standard_methods import Resources

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2

_CHANGEABLE = ("display_name", "labels", "resource_pools")
_OUTPUT_ONLY = ("name", "state", "error", "createTime", "startTime", "updateTime", "resourceRuntime")
_LOOK = 0.1  # seconds between two checks whether a resource's jobs have ended
_TYPE = "PersistentResource"


class _PersistentResources(Resources):
    def shown(self, document: dict[str, Any]) -> dict[str, Any]:
        return persistent_resources.shown(self._local, document)


class PersistentResourceService:
    """Persistent resources: RUNNING as soon as they are created, until they are deleted."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._operations = local, operations
        self._resources = _PersistentResources(local, operations, _TYPE, KIND)
        self._resources.add_to(self, "get", "list")

    def create_persistent_resource(self, request: types.CreatePersistentResourceRequest) -> operations_pb2.Operation:
        """Record a resource; it is RUNNING at once."""
        resource = request.persistent_resource
        persistent_resources.check(resource, request.persistent_resource_id)
        name, now = f"{request.parent}/{KIND}/{request.persistent_resource_id}", job_record.now()
        given = {key: value for key, value in messages.to_json(resource).items() if key not in _OUTPUT_ONLY}
        document = {
            **given, "name": name, "state": "RUNNING", "createTime": now, "startTime": now, "updateTime": now,
            "resourcePools": persistent_resources.with_ids(given["resourcePools"]),
        }  # fmt: skip
        self._local.records.add(name, KIND, document)
        return self._finished("Create", document)

    def update_persistent_resource(self, request: types.UpdatePersistentResourceRequest) -> operations_pb2.Operation:
        """Change a resource's display name, labels and numbers of machines; the kinds of machines cannot be changed."""
        changed = messages.changes(request.persistent_resource, request.update_mask, _CHANGEABLE)
        if "resourcePools" in changed:
            for index, pool in enumerate(request.persistent_resource.resource_pools):
                persistent_resources.check_pool(pool, f"persistentResource.resourcePools[{index}]")

        def change(document: dict[str, Any]) -> None:
            _check_running(document, "RUNNING")
            if "resourcePools" in changed:
                changed["resourcePools"] = _resized(document["resourcePools"], changed["resourcePools"] or [])
            messages.apply(document, changed)

        return self._finished("Update", self._resources.change(request.persistent_resource.name, change))

    def reboot_persistent_resource(self, request: types.RebootPersistentResourceRequest) -> operations_pb2.Operation:
        """Restart a resource on which no job runs."""
        name = self._local.known(request.name)["name"]
        if found := persistent_resources.jobs_on(self._local, name):
            text = f"{len(found)} job(s) run on {name} or wait for it, such as {found[0]['name']}; cancel them first."
            raise ApiError("FAILED_PRECONDITION", text)

        def change(document: dict[str, Any]) -> None:
            _check_running(document, "RUNNING", "ERROR")
            document["state"] = "RUNNING"
            document.pop("error", None)

        return self._finished("Reboot", self._resources.change(name, change))

    def delete_persistent_resource(self, request: types.DeletePersistentResourceRequest) -> operations_pb2.Operation:
        """Cancel the jobs on a resource, and forget it once they have ended."""
        name = self._resources.change(request.name, lambda document: document.update(state="STOPPING"))["name"]

        def work() -> None:
            for job in persistent_resources.jobs_on(self._local, name):
                try:
                    jobs.cancel(self._local, job["name"])
                except ApiError:
                    continue  # it has just ended by itself, or another process runs it
            while persistent_resources.jobs_on(self._local, name):
                if self._local.executor.stopping.is_set():
                    raise ApiError("UNAVAILABLE", "the local service is being stopped; delete the resource again.")
                time.sleep(_LOOK)
            self._local.records.remove(name)

        return self._operations.begin(location_of(name), "DeleteOperationMetadata", work, name)

    def _finished(self, verb: str, document: dict[str, Any]) -> operations_pb2.Operation:
        response = (_TYPE, self._resources.shown(document))
        return self._operations.finished(location_of(document["name"]), f"{verb}{_TYPE}OperationMetadata", response)


def _check_running(document: dict[str, Any], *states: str) -> None:
    if document["state"] not in states:
        raise ApiError("FAILED_PRECONDITION", f"{document['name']} is {document['state']}; it must be {' or '.join(states)}.")


def _resized(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pools with their new sizes; a pool is found by its id, or by its position if it has none."""
    field = "persistentResource.resourcePools"
    if len(before) != len(after):
        raise ApiError("INVALID_ARGUMENT", f"resourcePools takes the {len(before)} pools that there are; got {len(after)}.", field)
    sizes = {pool.get("id") or before[index]["id"]: pool for index, pool in enumerate(after)}
    found = []
    for pool in before:
        new = sizes.get(pool["id"])
        if new is None:
            raise ApiError("INVALID_ARGUMENT", f"resourcePools lacks the pool {pool['id']}; none can be taken out; add it.", field)
        for name in ("machineSpec", "diskSpec"):
            if new.get(name, {}) != pool.get(name, {}):
                text = f"{name} of pool {pool['id']} cannot be changed; create another resource."
                raise ApiError("INVALID_ARGUMENT", text, f"{field}.{name}")
        kept = {key: value for key, value in pool.items() if key not in ("replicaCount", "autoscalingSpec")}
        found.append({**kept, **{key: new[key] for key in ("replicaCount", "autoscalingSpec") if key in new}})
    return found
