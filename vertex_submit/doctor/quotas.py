"""The service's own quotas that a job draws on, which are apart from Compute Engine's, and how much of each it needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from vertex_local.job import machines

SERVICE = "aiplatform.googleapis.com"
# The last part of a quota's name, where the accelerator's type does not give it.
GPUS = {
    "NVIDIA_H100_80GB": "nvidia_h100_gpus",
    "NVIDIA_H100_MEGA_80GB": "nvidia_h100_mega_gpus",
    "NVIDIA_H200_141GB": "nvidia_h200_gpus",
}
TPUS = {"ct5lp": "tpu_v5e"}  # of other TPU machines the quota's name is not known here


def needed(pools: Iterable[tuple[Mapping[str, Any], int]], preemptible: bool) -> tuple[dict[str, int], list[str]]:
    """Return how much of each quota a job needs at once, and the machine types whose quotas are not known.

    Args:
        pools: (machineSpec, replicas) of each.
        preemptible: Spot and FLEX_START draw on quotas of their own.
    """
    prefix = f"custom_model_training_{'preemptible_' if preemptible else ''}"
    sums: Counter[str] = Counter()
    unknown = []
    for machine, replicas in pools:
        name, kind = machine.get("machineType", ""), machines.kind(machine)
        family, cpus = machines.family(machine), machines.vcpus(machine)
        if kind == "tpu":
            if family not in TPUS:
                unknown.append(name)
                continue
            sums[prefix + TPUS[family]] += machines.devices(machine) * replicas
        elif cpus is None:
            unknown.append(name)
        else:
            sums[prefix + ("cpus" if family in ("n1", "e2") else f"{family}_cpus")] += cpus * replicas
        if kind == "gpu":
            accelerator = machine.get("acceleratorType") or machines.FIXED[name][0]
            plain = accelerator.replace("NVIDIA_TESLA_", "NVIDIA_").lower() + "_gpus"
            sums[prefix + GPUS.get(accelerator, plain)] += machines.devices(machine) * replicas
    return dict(sums), list(dict.fromkeys(unknown))


def limit(metric: Mapping[str, Any], region: str) -> int | None:
    """Return a quota's limit in a region out of Service Usage's answer, -1 for none; None where it does not say.

    A bucket of the region wins over the one without dimensions; a limit of 0 is left out of the answer.
    """
    buckets = [bucket for limits in metric.get("consumerQuotaLimits", ()) for bucket in limits.get("quotaBuckets", ())]
    own = [bucket for bucket in buckets if bucket.get("dimensions", {}).get("region") == region]
    plain = [bucket for bucket in buckets if not bucket.get("dimensions")]
    found = [int(bucket.get("effectiveLimit", 0)) for bucket in own or plain]
    return min(found, key=lambda value: float("inf") if value < 0 else value) if found else None
