"""Machine types of training jobs and the accelerators they take: what can be told of a pair without asking the service.

From the documents on training's compute resources and on Compute Engine's GPU machine types, August 2026; a type that is
not in them may be newer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# These machines come with their GPUs: type -> (accelerator, how many, vCPUs).
FIXED = {
    **{f"a2-highgpu-{n}g": ("NVIDIA_TESLA_A100", n, 12 * n) for n in (1, 2, 4, 8)},
    "a2-megagpu-16g": ("NVIDIA_TESLA_A100", 16, 96),
    **{f"a2-ultragpu-{n}g": ("NVIDIA_A100_80GB", n, 12 * n) for n in (1, 2, 4, 8)},
    **{f"a3-highgpu-{n}g": ("NVIDIA_H100_80GB", n, 26 * n) for n in (1, 2, 4, 8)},
    "a3-edgegpu-8g": ("NVIDIA_H100_80GB", 8, 208),
    "a3-megagpu-8g": ("NVIDIA_H100_MEGA_80GB", 8, 208),
    "a3-ultragpu-8g": ("NVIDIA_H200_141GB", 8, 224),
    "a4-highgpu-8g": ("NVIDIA_B200", 8, 224),
    "a4x-highgpu-4g": ("NVIDIA_GB200", 4, 140),
    **{f"g2-standard-{n}": ("NVIDIA_L4", {24: 2, 48: 4, 96: 8}.get(n, 1), n) for n in (4, 8, 12, 16, 24, 32, 48, 96)},
    **{f"g4-standard-{n}": ("NVIDIA_RTX_PRO_6000", n // 48, n) for n in (48, 96, 192, 384)},
}
# GPUs that n1 machines may have: accelerator -> {how many: most vCPUs of the machine}.
ON_N1 = {
    "NVIDIA_TESLA_T4": {1: 48, 2: 48, 4: 96},
    "NVIDIA_TESLA_P4": {1: 24, 2: 48, 4: 96},
    "NVIDIA_TESLA_P100": {1: 16, 2: 32, 4: 96},
    "NVIDIA_TESLA_V100": {1: 12, 2: 24, 4: 48, 8: 96},
}
# TPU machines that name a topology: type -> the smallest one; only those of four chips make larger slices.
TPUS = {
    f"{family}-{chips}t": shape for family in ("ct5lp-hightpu", "ct6e-standard") for chips, shape in ((1, "1x1"), (4, "2x2"), (8, "2x4"))
}
TPUS["tpu7x-standard-4t"] = "2x2x1"
FLEXIBLE = ("NVIDIA_L4", "NVIDIA_TESLA_A100", "NVIDIA_A100_80GB", "NVIDIA_H100", "NVIDIA_H200", "NVIDIA_B200")  # for FLEX_START
_PLAIN = re.compile(r"(n1|n2|n2d|n4|e2|c2|c2d|c3|c3d|c4|m1|m3)-(standard|highmem|highcpu|ultramem|megamem)-(\d+)")
_TOPOLOGY = re.compile(r"\d+x\d+(x\d+)?")


def kind(machine: Mapping[str, Any]) -> str:
    """Return cpu, gpu or tpu."""
    name = machine.get("machineType", "")
    if name in TPUS or name == "cloud-tpu" or re.match(r"(ct\d|tpu)", name):
        return "tpu"
    return "gpu" if machine.get("acceleratorCount") or name in FIXED else "cpu"


def family(machine: Mapping[str, Any]) -> str:
    """Return the family of a machine's type, such as n1 or ct5lp."""
    return machine.get("machineType", "").partition("-")[0]


def vcpus(machine: Mapping[str, Any]) -> int | None:
    """Return how many vCPUs a machine has; None where that is not known here."""
    name = machine.get("machineType", "")
    match = _PLAIN.fullmatch(name)
    return int(match[3]) if match else FIXED[name][2] if name in FIXED else None


def devices(machine: Mapping[str, Any]) -> int:
    """Return how many accelerators the trainer will find, or 1 for the CPU alone."""
    if _TOPOLOGY.fullmatch(machine.get("tpuTopology", "")):
        return math.prod(map(int, machine["tpuTopology"].split("x")))
    return machine.get("acceleratorCount") or 1


def describe(machine: Mapping[str, Any]) -> str:
    """Return a machine in words, such as "n1-standard-4 with 1 NVIDIA_TESLA_T4"."""
    name, count = machine.get("machineType", "no machine type"), machine.get("acceleratorCount")
    if machine.get("tpuTopology"):
        return f"{name} of topology {machine['tpuTopology']}"
    return f"{name} with {count} {machine.get('acceleratorType')}" if count else name


def problem(machine: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (field, what is wrong and the remedy) where a machine cannot be had as written."""
    name, accelerator, count = machine.get("machineType", ""), machine.get("acceleratorType"), machine.get("acceleratorCount", 0)
    if not name:
        return "machineType", "is required, such as n1-standard-4."
    if kind(machine) == "tpu":
        return _tpu_problem(name, accelerator, count, machine.get("tpuTopology"))
    if machine.get("tpuTopology"):
        return "tpuTopology", f"{name} is no TPU machine; got {machine['tpuTopology']!r}: leave it out."
    if accelerator and count < 1:
        return "acceleratorCount", f"{accelerator} needs how many of it, such as 1; got {count}."
    if count and not accelerator:
        return "acceleratorType", f"acceleratorCount is {count}, but of what is not said; name it, such as NVIDIA_TESLA_T4."
    if name in FIXED:
        wanted = FIXED[name]
        if (accelerator, count) != wanted[:2]:
            got = f"{count} {accelerator}" if accelerator else "none"
            return "acceleratorType", f"{name} comes with {wanted[1]} {wanted[0]}, and the job must say so; got {got}."
    elif accelerator:
        return _n1_problem(name, accelerator, count)
    return None


def _n1_problem(name: str, accelerator: str, count: int) -> tuple[str, str] | None:
    if accelerator == "NVIDIA_TESLA_K80":
        return "acceleratorType", "NVIDIA_TESLA_K80 is past its end of support; take NVIDIA_TESLA_T4."
    homes = [machine for machine, (own, number, _) in FIXED.items() if own == accelerator and number == count]
    homes = homes or [machine for machine, (own, *_) in FIXED.items() if own == accelerator]
    if homes:
        return "acceleratorType", f"{accelerator} comes with machines of its own only; got {name}: take {homes[0]}."
    if accelerator not in ON_N1:
        return "acceleratorType", f"{accelerator} does not go with {name}; n1 machines take {', '.join(ON_N1)}."
    if not name.startswith("n1-"):
        return "acceleratorType", f"{accelerator} goes with n1 machines only; got {name}: take one such as n1-standard-8."
    counts, size = ON_N1[accelerator], vcpus({"machineType": name}) or 0
    if count not in counts:
        return "acceleratorCount", f"{accelerator} comes in {', '.join(map(str, counts))}; got {count}."
    if size > counts[count]:
        enough = " or ".join(str(n) for n, limit in counts.items() if size <= limit)
        return "acceleratorCount", f"{name} has more vCPUs than {count} {accelerator} serve ({counts[count]}): take {enough} of them."
    return None


def _tpu_problem(name: str, accelerator: str | None, count: int, topology: str | None) -> tuple[str, str] | None:
    if name == "cloud-tpu":
        if accelerator not in ("TPU_V2", "TPU_V3") or topology:
            return "acceleratorType", f"cloud-tpu takes TPU_V2 or TPU_V3 and no tpuTopology; got {accelerator} and {topology}."
        if count != 8 and (count < 32 or count & (count - 1)):
            return "acceleratorCount", f"{accelerator} comes in 8 cores, or pods of 32, 64, 128 and so on; got {count}."
        return None
    if name not in TPUS:
        return "machineType", f"{name} is not among the TPU machines known here: {', '.join(TPUS)}, cloud-tpu."
    if name.startswith("tpu7x"):
        return "machineType", f"{name} runs JAX only, not TensorFlow; take one such as ct5lp-hightpu-4t."
    if accelerator or count:
        return "acceleratorType", f"{name} takes no acceleratorType and acceleratorCount; its size is tpuTopology; got {accelerator}."
    least = TPUS[name]
    several = name.endswith("-4t") and topology and _TOPOLOGY.fullmatch(topology) and devices({"tpuTopology": topology}) % 4 == 0
    if topology != least and not several:
        more = " or a larger slice such as 4x4" if name.endswith("-4t") else ""
        return "tpuTopology", f"{name} takes {least}{more}; got {topology!r}."
    return None
