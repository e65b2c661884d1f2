"""A replica's variables: the service's `CLUSTER_SPEC`, `TF_CONFIG`, `AIP_*` and `CLOUD_ML_*`, and addresses for cloud clients.

Not imitated, because they do not exist here: the profiler's ports and the prebuilt images' `KMP_*` tuning. Where the
service's documents do not say what a value looks like, it looks as in the service's jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..job.job_file import JobFile
from ..job.pools import ROLES, Pool
from . import job_record
from .store import private_folder

PROJECT = "123456789012"  # the submitter's project, if no settings give one
REGION = "us-central1"
TENANT = "local-tp"  # in place of the Google-owned project in which the service runs code
SERVICE_FILE = Path("serve", "environment.json")  # in the state folder: variables for clients of the running service
REFUSES = "127.0.0.1:9"  # the port for discarded data, where nothing listens
DIRECTORIES = {"AIP_MODEL_DIR": "model", "AIP_CHECKPOINT_DIR": "checkpoints", "AIP_TENSORBOARD_LOG_DIR": "logs"}  # in a job's output
_ROOT = Path(__file__).resolve().parents[2]
_OURS = re.compile("(AIP_|CLOUD_ML_|TRAINER_|VERTEX_LOCAL_).*|TF_CONFIG|CLUSTER_SPEC|TPU_(NODE_NAME|CONFIG)")
_CLOUD = re.compile("CLOUDSDK_.*|GOOGLE_(APPLICATION_CREDENTIALS|(CLOUD|API|OAUTH|AUTH)_.*)|GCE_METADATA_.*|GCLOUD_PROJECT|BOTO_CONFIG")
# These name a file of trusted certificates. The service's file includes those that its starter trusted, so it may replace the caller's.
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
_EMULATORS = ("STORAGE_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST")


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


@dataclass(frozen=True)
class Identity:
    """Which job the replicas belong to; `output` is its baseOutputDirectory as they see it."""

    job_id: str
    output: str | None = None
    trial: str | None = None
    project: str = PROJECT
    region: str = REGION


# ------------------------------------------------------------------ the caller's


def inherited(variables: Mapping[str, str], cloud_credentials: bool = False) -> dict[str, str]:
    """Return `variables` without those that only the service or `vertex_local` may set.

    Without `cloud_credentials`, those that let the caller's programs reach the cloud are left out, too.
    """
    kept = {name: value for name, value in variables.items() if not _OURS.fullmatch(name)}
    if cloud_credentials:
        return kept
    return {
        name: value for name, value in kept.items()
        if not _CLOUD.fullmatch(name) and not (name in _EMULATORS and "googleapis.com" in value)
    }  # fmt: skip


def client_variables(state: Path, folder: Path) -> dict[str, str]:
    """Return the variables that keep clients of storage, BigQuery and the API on this machine.

    They point to the job service if one runs with this state folder; otherwise to addresses that refuse connections.
    Clients look for credentials in an empty folder, made in `folder`, and not at a metadata server.
    """
    empty = private_folder(folder / "no-credentials")
    return {
        "CLOUDSDK_CONFIG": str(empty),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_HOST": REFUSES,
        "GCE_METADATA_IP": REFUSES,
        "STORAGE_EMULATOR_HOST": f"http://{REFUSES}",
        "BIGQUERY_EMULATOR_HOST": f"http://{REFUSES}",
        "BIGQUERY_STORAGE_EMULATOR_HOST": REFUSES,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": f"http://{REFUSES}/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"http://{REFUSES}/storage/v1/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_BIGQUERY": f"http://{REFUSES}/bigquery/v2/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_LOGGING": f"http://{REFUSES}/",
        **_of_service(state),
    }


def _of_service(state: Path) -> dict[str, str]:
    """Return the variables for clients of the job service with this state folder; none if no service runs."""
    with contextlib.suppress(OSError, ValueError):
        if job_record.service_runs(state):
            given: dict[str, Any] = json.loads((state / SERVICE_FILE).read_text(encoding="utf-8"))
            return {name: str(value) for name, value in given.items()}
    return {}


def service_files(variables: Mapping[str, str], state: Path) -> list[Path]:
    """Return the job service's files that `variables` name and a client must be able to read: certificates and token."""
    own = state / SERVICE_FILE.parent
    named = {Path(value) for value in variables.values() if value.startswith(f"{own}/")}
    return sorted(path for path in named if path.is_file())


def importing_this(variables: Mapping[str, str]) -> dict[str, str]:
    """Return `variables` with this checkout first on PYTHONPATH, for a Python that need not have the package installed."""
    return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), variables.get("PYTHONPATH"))))}


# ------------------------------------------------------------------ the service's


def service_variables(job: JobFile, members: Sequence[Member], member: Member, of: Identity) -> dict[str, str]:
    """Return what the service sets for `member`."""
    pool, spec = job.pools[member.pool], job.spec
    variables = {
        "CLUSTER_SPEC": json.dumps(cluster_spec(members, member, pool, of.trial)),
        "CLOUD_ML_PROJECT_ID": of.project,
        "CLOUD_ML_REGION": of.region,
        "CLOUD_ML_JOB_ID": number_of(of.job_id),
        "CLOUD_ML_JOB": json.dumps(_task(pool)),
        **_directories(of),
    }
    if any(other.pool for other in members):
        variables["TF_CONFIG"] = json.dumps(tf_config(members, member, pool, of.trial))
    if of.trial is not None:
        variables["CLOUD_ML_TRIAL_ID"] = of.trial
    if spec.tensorboard:
        location = (re.findall("locations/([^/]+)", spec.tensorboard) or [REGION])[0]
        variables["AIP_TENSORBOARD_RESOURCE_NAME"] = spec.tensorboard
        variables["AIP_TENSORBOARD_API_URI"] = f"https://{location}-aiplatform.googleapis.com"
    for value, name in ((spec.experiment, "AIP_EXPERIMENT_NAME"), (spec.experiment_run, "AIP_EXPERIMENT_RUN_NAME")):
        if value:
            variables[name] = value
    if pool.machine == "cloud-tpu":
        variables["TPU_NODE_NAME"] = "local-tpu"
        variables["TPU_CONFIG"] = json.dumps({"project": TENANT, "zone": "local", "tpu_node_name": "local-tpu"})
    return variables


def number_of(job_id: str) -> str:
    """Return a job's id as replicas see it: always a number, as the service's ids are; the same name gives the same number."""
    return job_id if job_id.isdecimal() else str(zlib.crc32(job_id.encode()))


def cluster_spec(members: Sequence[Member], member: Member, pool: Pool, trial: str | None) -> dict:
    """Return the value of `CLUSTER_SPEC`: every pool under the service's own names."""
    cluster: dict[str, list[str]] = {}
    for other in members:
        cluster.setdefault(f"workerpool{other.pool}", []).append(other.address)
    task = {"type": f"workerpool{member.pool}", "index": member.index, **_trial(trial)}
    ports = {"open_ports": [member.open_port]} if len(members) > 1 else {}
    return {"cluster": cluster, "environment": "cloud", **ports, "task": task, "job": json.dumps(_task(pool))}


def tf_config(members: Sequence[Member], member: Member, pool: Pool, trial: str | None) -> dict:
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


def _directories(of: Identity) -> dict[str, str]:
    if of.output is None:
        return {}
    base = of.output.rstrip("/") + ("" if of.trial is None else f"/{of.trial}")
    return {name: f"{base}/{folder}/" for name, folder in DIRECTORIES.items()}
