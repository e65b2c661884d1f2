"""The variables that the service gives to each replica: `CLUSTER_SPEC`, `TF_CONFIG`, `AIP_*` and `CLOUD_ML_*`.

Not imitated, for want of the thing itself: the profiler's ports and the prebuilt images' `KMP_*` tuning. Where the
service's documents leave a form open, the one seen in its jobs is used.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from ..job.spec import ROLES, JobSpec, Pool

PROJECT = "123456789012"  # stands in for the submitter's project number
TENANT = "local-tp"  # and this for the Google-owned project that code runs in
_OURS = re.compile("(AIP_|CLOUD_ML_|TRAINER_|VERTEX_LOCAL_).*|TF_CONFIG|CLUSTER_SPEC|TPU_(NODE_NAME|CONFIG)")


@dataclass(frozen=True)
class Member:
    """One replica's place in the cluster."""

    pool: int
    index: int
    address: str
    open_port: int

    @property
    def name(self) -> str:
        return f"workerpool{self.pool}-{self.index}"

    @property
    def role(self) -> str:
        return ROLES[self.pool]


def inherited(variables: Mapping[str, str]) -> dict[str, str]:
    """Return `variables` without those that only the service or `vertex_local` may set."""
    return {name: value for name, value in variables.items() if not _OURS.fullmatch(name)}


def service_variables(
    job: JobSpec, members: list[Member], member: Member, job_id: str, output: str | None, trial: str | None = None
) -> dict[str, str]:
    """Return what the service sets for `member`. `output` is baseOutputDirectory as the replica shall see it."""
    pool = job.pools[member.pool]
    variables = {
        "CLUSTER_SPEC": json.dumps(cluster_spec(members, member, pool, trial)),
        "CLOUD_ML_PROJECT_ID": PROJECT,
        # The service's ids are numbers; a name chosen here becomes one that stays the same.
        "CLOUD_ML_JOB_ID": job_id if job_id.isdecimal() else str(zlib.crc32(job_id.encode())),
        "CLOUD_ML_JOB": json.dumps(_task(pool)),
        **_directories(output, trial),
    }
    if any(other.pool for other in members):
        variables["TF_CONFIG"] = json.dumps(tf_config(members, member, pool, trial))
    if trial is not None:
        variables["CLOUD_ML_TRIAL_ID"] = trial
    tensorboard = job.message.get("tensorboard", "")
    if tensorboard:
        location = (re.findall("locations/([^/]+)", tensorboard) or ["us-central1"])[0]
        variables["AIP_TENSORBOARD_RESOURCE_NAME"] = tensorboard
        variables["AIP_TENSORBOARD_API_URI"] = f"https://{location}-aiplatform.googleapis.com"
    for field, name in (("experiment", "AIP_EXPERIMENT_NAME"), ("experimentRun", "AIP_EXPERIMENT_RUN_NAME")):
        if job.message.get(field):
            variables[name] = job.message[field]
    if pool.machine == "cloud-tpu":
        variables["TPU_NODE_NAME"] = "local-tpu"
        variables["TPU_CONFIG"] = json.dumps({"project": TENANT, "zone": "local", "tpu_node_name": "local-tpu"})
    return variables


def cluster_spec(members: list[Member], member: Member, pool: Pool, trial: str | None) -> dict:
    """Return the value of `CLUSTER_SPEC`: every pool under the service's own names."""
    cluster: dict[str, list[str]] = {}
    for other in members:
        cluster.setdefault(f"workerpool{other.pool}", []).append(other.address)
    task = {"type": f"workerpool{member.pool}", "index": member.index, **_trial(trial)}
    ports = {"open_ports": [member.open_port]} if len(members) > 1 else {}
    return {"cluster": cluster, "environment": "cloud", **ports, "task": task, "job": json.dumps(_task(pool))}


def tf_config(members: list[Member], member: Member, pool: Pool, trial: str | None) -> dict:
    """Return the value of `TF_CONFIG`: a Reduction Server pool is `ps` in it, evaluators are not in the cluster."""
    cluster: dict[str, list[str]] = {}
    for other in members:
        if other.role != "evaluator":
            cluster.setdefault(other.role, []).append(other.address)
    task = {"type": member.role, "index": member.index, **_trial(trial), "cloud": TENANT}
    return {"cluster": cluster, "task": task, "job": _task(pool), "environment": "cloud"}


def _trial(trial: str | None) -> dict[str, str]:
    return {} if trial is None else {"trial": trial}


def _task(pool: Pool) -> dict:
    """Return the `job` part; the service leaves it empty for containers."""
    args = list(pool.args) if pool.module else []
    return {"python_module": pool.module or "", "package_uris": list(pool.package_uris), "job_args": args}


def _directories(output: str | None, trial: str | None) -> dict[str, str]:
    if output is None:
        return {}
    base = output.rstrip("/") + ("" if trial is None else f"/{trial}")
    names = {"AIP_MODEL_DIR": "model", "AIP_CHECKPOINT_DIR": "checkpoints", "AIP_TENSORBOARD_LOG_DIR": "logs"}
    return {name: f"{base}/{folder}/" for name, folder in names.items()}
