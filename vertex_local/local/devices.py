"""This machine's CPUs and GPUs, shared out among trials that run at once; and what a job asks for that this machine does not have."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence

from ..job.job_file import JobFile

VISIBLE = "CUDA_VISIBLE_DEVICES"
# Fields of a CustomJobSpec that say something about the service's own machines and network.
_OF_THE_SERVICE = {
    "network": "the VPC network",
    "psc_interface_config": "the private service connection",
    "service_account": "the service account: replicas run as you",
    "enable_web_access": "the interactive shell",
    "persistent_resource_id": "the persistent resource",
    "reserved_ip_ranges": "the reserved addresses",
}


def cpus() -> int:
    """Return how many CPUs programs here may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Return the numbers of the NVIDIA GPUs that programs here may use, as in CUDA_VISIBLE_DEVICES."""
    if VISIBLE in os.environ:
        return [part.strip() for part in os.environ[VISIBLE].split(",") if part.strip() not in ("", "-1")]
    return sorted((re.sub(r"\D", "", name) for name in glob.glob("/dev/nvidia[0-9]*")), key=int)


def dealt(slot: int, slots: int, devices: Sequence[str]) -> dict[str, str]:
    """Return the variable that gives a trial GPUs of its own, or one that it shares if there are fewer GPUs than trials.

    Args:
        slot: the trial's place among the `slots` that run at once, from 0 on.
    """
    if slots < 2 or not devices:
        return {}
    own = list(devices[slot::slots]) or [devices[slot % len(devices)]]
    return {VISIBLE: ",".join(own)}


def not_imitated(job: JobFile) -> Iterator[str]:
    """Yield what the job asks of the service's machines and does not get on this one, one thing a line."""
    here = len(gpus())
    for pool in filter(lambda pool: pool.replicas, job.pools):
        machine, name = pool.machine_fields, f"workerpool{pool.index}"
        count, kind = machine.get("acceleratorCount", 0), machine.get("acceleratorType", "accelerator")
        if count * pool.replicas > here:
            yield f"{name}: {count} x {kind} for each of {pool.replicas}; this machine has {here or 'no'} GPU(s)"
        if pool.machine == "cloud-tpu":
            yield f"{name}: a TPU"
        if pool.message.disk_spec.boot_disk_size_gb or pool.message.disk_spec.boot_disk_type:
            yield f"{name}: the boot disk's kind and size: replicas share this machine's disks"
    given = {field.name for field, _ in job.spec.ListFields()}
    yield from (what for field, what in _OF_THE_SERVICE.items() if field in given)
