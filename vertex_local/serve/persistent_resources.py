"""Persistent resources as records: pools of machines that jobs may use, and the rules by which a job fits them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..job import schema
from ..local import job_record
from . import jobs, messages
from .local import Local
from .rest import ApiError

if TYPE_CHECKING:
    from google.protobuf.message import Message

KIND = "persistentResources"
_ID = re.compile("[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_JOBS = ("customJobs", "hyperparameterTuningJobs")
_MACHINE = ("machineType", "acceleratorType", "acceleratorCount", "tpuTopology", "reservationAffinity")
_DISK = "pd-ssd"  # the default


def check(resource: Message, resource_id: str) -> None:
    """Refuse a resource that cannot be made."""
    if not _ID.fullmatch(resource_id):
        text = f"takes up to 63 small letters, digits and '-', a letter first and no '-' at the end; got {resource_id[:80]!r}"
        raise ApiError("INVALID_ARGUMENT", f"persistentResourceId {text}.", "persistentResourceId")
    jobs.check_length_of_name(resource, "persistentResource.")
    messages.unsupported(resource.resource_runtime_spec, ("ray_spec",), where="persistentResource.resourceRuntimeSpec.")
    messages.required(resource, "resource_pools", where="persistentResource.")
    for index, pool in enumerate(resource.resource_pools):
        check_pool(pool, f"persistentResource.resourcePools[{index}]")


def check_pool(pool: Message, path: str) -> None:
    """Refuse a pool without machines, or with a number outside the limits of its autoscaling."""
    messages.required(pool, "machine_spec.machine_type", where=f"{path}.")
    scaling = pool.autoscaling_spec
    least, most = scaling.min_replica_count, scaling.max_replica_count
    if pool.HasField("autoscaling_spec"):
        if not 1 <= least < most or (pool.HasField("replica_count") and not least <= pool.replica_count <= most):
            text = "takes 1 <= minReplicaCount < maxReplicaCount, with replicaCount between them"
            text += f"; got {least}, {most}, {pool.replica_count}"
            raise ApiError("INVALID_ARGUMENT", f"{path}.autoscalingSpec {text}.", f"{path}.autoscalingSpec")
    elif pool.replica_count < 1:
        text = f"{path}.replicaCount takes 1 or more, unless autoscalingSpec is given; got {pool.replica_count}."
        raise ApiError("INVALID_ARGUMENT", text, f"{path}.replicaCount")


def with_ids(pools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pools, with an id for each that has none; raise an ApiError if two have the same id."""
    taken = {pool.get("id") for pool in pools}
    free = (name for number in itertools.count() if (name := f"pool-{number}") not in taken)
    found = [pool if pool.get("id") else {**pool, "id": next(free)} for pool in pools]
    if len({pool["id"] for pool in found}) < len(found):
        raise ApiError("INVALID_ARGUMENT", "resourcePools: two pools have one id; rename one.", "persistentResource.resourcePools")
    return found


def jobs_on(local: Local, resource: str) -> list[dict[str, Any]]:
    """Return the jobs that run on a resource or wait for it."""
    parent, _, number = resource.rpartition(f"/{KIND}/")
    found = []
    for kind in _JOBS:
        for document in local.records.list(kind, parent):
            spec = document.get("jobSpec") or document.get("trialJobSpec") or {}
            if spec.get("persistentResourceId") == number and not job_record.is_over(document):
                found.append(document)
    return found


def shown(local: Local, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resource as the API shows it, with the number of machines that running jobs use."""
    used: dict[str, int] = {}
    for job in jobs_on(local, document["name"]):
        if job_record.plain_state(job) == "RUNNING":
            spec = messages.read(job.get("jobSpec") or job["trialJobSpec"], "CustomJobSpec")
            for _, place, pool in _matched(document, spec):
                if place is not None:
                    used[place["id"]] = used.get(place["id"], 0) + (pool.replica_count or 1)
    pools = [{**pool, "usedReplicaCount": str(used.get(pool["id"], 0))} for pool in document["resourcePools"]]
    return {**document, "resourcePools": pools}


# ------------------------------------------------------------------ a job that names one


def check_job(local: Local, parent: str, spec: Message, field: str) -> None:
    """Refuse a CustomJobSpec whose persistent resource does not exist, does not run, or lacks such machines.

    Args:
        parent: `projects/P/locations/L` of the job.
        field: the request's field that holds the spec, for errors.
    """
    if not spec.persistent_resource_id:
        return
    name, where = f"{parent}/{KIND}/{spec.persistent_resource_id}", f"{field}.persistentResourceId"
    document = local.records.get(name)
    if document is None:
        text = f"{where}: {name[:200]} does not exist here; create it, or take the field out."
        raise ApiError("NOT_FOUND", text, where)
    if document["state"] != "RUNNING":
        raise ApiError("FAILED_PRECONDITION", f"{where}: {name} is {document['state']}, not RUNNING; wait until it is.", where)
    wanted: dict[str, int] = {}
    for index, place, pool in _matched(document, spec):
        path = f"{field}.workerPoolSpecs[{index}]"
        if place is None:
            known = ", ".join(_machine_text(each) for each in document["resourcePools"])
            text = f"{path}.machineSpec: {spec.persistent_resource_id} has no pool of {_machine_text(_fields(pool))}; it has {known}."
            raise ApiError("INVALID_ARGUMENT", text, f"{path}.machineSpec")
        wanted[place["id"]] = wanted.get(place["id"], 0) + (pool.replica_count or 1)
        if wanted[place["id"]] > most(place):
            text = f"{path}.replicaCount: the job needs {wanted[place['id']]} machines of pool {place['id']}, which has {most(place)}."
            raise ApiError("INVALID_ARGUMENT", text, f"{path}.replicaCount")


def most(pool: Mapping[str, Any]) -> int:
    """Return how many machines a pool has, or may grow to."""
    return max(int(pool.get("replicaCount", 0)), int(pool.get("autoscalingSpec", {}).get("maxReplicaCount", 0)))


def _matched(document: Mapping[str, Any], spec: Message) -> Iterator[tuple[int, dict[str, Any] | None, Message]]:
    """Yield (index, the resource's pool of the same machines or None, the job's pool) for each of a job's pools with replicas."""
    for index, pool in enumerate(spec.worker_pool_specs):
        if pool.WhichOneof("task"):
            wanted = _machine(_fields(pool))
            yield index, next((each for each in document["resourcePools"] if _machine(each) == wanted), None), pool


def _fields(pool: Message) -> dict[str, Any]:
    return {"machineSpec": schema.to_fields(pool.machine_spec), "diskSpec": schema.to_fields(pool.disk_spec)}


def _machine(pool: Mapping[str, Any]) -> tuple[Any, ...]:
    spec = pool.get("machineSpec", {})
    return (*(str(spec.get(name, "")) for name in _MACHINE), pool.get("diskSpec", {}).get("bootDiskType") or _DISK)


def _machine_text(pool: Mapping[str, Any]) -> str:
    kind, accelerator, count, *_, disk = _machine(pool)
    return f"{kind}{f' with {count} {accelerator}' if accelerator else ''} ({disk})"
