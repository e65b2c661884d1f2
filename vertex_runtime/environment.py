"""What the service says about this process: `AIP_*`, `CLUSTER_SPEC`, `TF_CONFIG` and `CLOUD_ML_*`, parsed once.

The forms are those of Vertex AI custom training ("Distributed training" and `CustomJobSpec.baseOutputDirectory` in its
documentation); Kubernetes' TFJob sends the same `TF_CONFIG`. Nothing here is read at import and nothing needs TensorFlow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import UserError

ROLES = {"workerpool0": "chief", "workerpool1": "worker", "workerpool2": "ps", "workerpool3": "evaluator"}
TPU_VARIABLES = ("TPU_CONFIG", "TPU_NODE_NAME", "TPU_ACCELERATOR_TYPE")
DATA_FORMATS = ("csv", "jsonl", "bigquery")


@dataclass(frozen=True)
class Environment:
    """One replica's view of its job. A field is None (or empty) where the service said nothing."""

    model_dir: str | None = None
    checkpoint_dir: str | None = None
    tensorboard_dir: str | None = None
    data_format: str | None = None
    training_data: str | None = None
    validation_data: str | None = None
    test_data: str | None = None
    role: str = "chief"
    index: int = 0
    cluster: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reduction_servers: int = 0
    trial: str | None = None
    metric_file: str | None = None
    in_job: bool = False
    tpu: bool = False

    @classmethod
    def from_mapping(cls, variables: Mapping[str, str]) -> Environment:
        """Parse the service's variables.

        Raises:
            UserError: a variable is malformed; the message names it, its value and the remedy.
        """
        pools = _json_object(variables, "CLUSTER_SPEC")
        config = _json_object(variables, "TF_CONFIG")
        name = "TF_CONFIG" if config.get("cluster") else "CLUSTER_SPEC"
        cluster, role, index = _cluster(name, config if config.get("cluster") else pools)
        if role == "chief" and not cluster and config.get("task"):
            role, index = _task("TF_CONFIG", config["task"])
        data_format = variables.get("AIP_DATA_FORMAT") or None
        if data_format is not None and data_format not in DATA_FORMATS:
            raise UserError(f"AIP_DATA_FORMAT must be one of {', '.join(DATA_FORMATS)}; got {data_format!r}.")
        task = pools.get("task") if isinstance(pools.get("task"), dict) else {}
        other = config.get("task") if isinstance(config.get("task"), dict) else {}
        trial = variables.get("CLOUD_ML_TRIAL_ID") or task.get("trial") or other.get("trial")
        if trial is not None and (not str(trial) or "/" in str(trial) or str(trial).startswith(".")):
            raise UserError(f"CLOUD_ML_TRIAL_ID (or `trial` in the task) must be a plain id such as 1; got {trial!r}.")
        reducers = len(cluster.pop("ps", ()))
        return cls(
            model_dir=variables.get("AIP_MODEL_DIR") or None,
            checkpoint_dir=variables.get("AIP_CHECKPOINT_DIR") or None,
            tensorboard_dir=variables.get("AIP_TENSORBOARD_LOG_DIR") or None,
            data_format=data_format,
            training_data=variables.get("AIP_TRAINING_DATA_URI") or None,
            validation_data=variables.get("AIP_VALIDATION_DATA_URI") or None,
            test_data=variables.get("AIP_TEST_DATA_URI") or None,
            role=role,
            index=index,
            cluster=cluster,
            reduction_servers=reducers,
            trial=None if trial is None else str(trial),
            metric_file=variables.get("CLOUD_ML_HP_METRIC_FILE") or None,
            in_job=any(
                value and (name in ("CLUSTER_SPEC", "TF_CONFIG") or name.startswith(("CLOUD_ML_", "AIP_")))
                for name, value in variables.items()
            ),
            tpu=any(variables.get(name) for name in TPU_VARIABLES),
        )

    @property
    def workers(self) -> tuple[str, ...]:
        """Addresses of the replicas that train together, the chief first: its id is 0, worker i's is i + 1."""
        return (*self.cluster.get("chief", ()), *self.cluster.get("worker", ()))

    @property
    def worker_count(self) -> int:
        return max(1, len(self.workers))

    @property
    def worker_index(self) -> int:
        return self.index + (len(self.cluster.get("chief", ())) if self.role == "worker" else 0)

    @property
    def is_chief(self) -> bool:
        """True for the one replica that writes models, logs, metrics and reports."""
        return self.role in ("chief", "worker") and self.worker_index == 0

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"

    def tf_config(self) -> str | None:
        """The `TF_CONFIG` to train under: chief and workers only, None for a replica that trains alone.

        A `ps` pool is left out: it is the Reduction Server, and TensorFlow would take it for the coordinator and wait.
        """
        if self.role not in ("chief", "worker") or self.worker_count == 1:
            return None
        cluster = {role: list(self.cluster[role]) for role in ("chief", "worker") if self.cluster.get(role)}
        return json.dumps({"cluster": cluster, "task": {"type": self.role, "index": self.index}})


def _json_object(variables: Mapping[str, str], name: str) -> dict[str, Any]:
    text = variables.get(name) or "{}"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{name} is not JSON ({error}); got {text[:120]!r}. Unset it to train alone.") from None
    if not isinstance(value, dict):
        raise UserError(f"{name} must be a JSON object with `cluster` and `task`; got {text[:120]!r}.")
    return value


def _task(name: str, task: Any) -> tuple[str, int]:
    if not isinstance(task, dict):
        raise UserError(f"{name}: `task` must be an object with `type` and `index`; got {task!r}.")
    kind, index = task.get("type", "chief"), task.get("index", 0)
    role = ROLES.get(kind, "chief" if kind == "master" else kind)
    if role not in ROLES.values():
        raise UserError(f"{name}: task type must be one of {', '.join(ROLES.values())}, master; got {kind!r}.")
    try:
        return role, int(index)
    except (TypeError, ValueError):
        raise UserError(f"{name}: task index must be a whole number; got {index!r}.") from None


def _cluster(name: str, config: Mapping[str, Any]) -> tuple[dict[str, tuple[str, ...]], str, int]:
    """Return (addresses per role, this replica's role, its index)."""
    raw = config.get("cluster") or {}
    if not isinstance(raw, dict):
        raise UserError(f"{name}: `cluster` must map pools to lists of host:port; got {raw!r}.")
    cluster: dict[str, tuple[str, ...]] = {}
    for pool, hosts in raw.items():
        role = ROLES.get(pool, "chief" if pool == "master" else pool)
        if role not in ROLES.values():
            raise UserError(f"{name}: unknown pool {pool!r} in `cluster`; known are {', '.join((*ROLES, *ROLES.values()))}.")
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
            raise UserError(f"{name}: pool {pool!r} must be a list of host:port strings; got {hosts!r}.")
        cluster[role] = tuple(hosts)
    role, index = _task(name, config.get("task") or {}) if cluster else ("chief", 0)
    members = cluster.get(role, ())
    if cluster and role != "evaluator" and not 0 <= index < len(members):
        raise UserError(f"{name}: task {role} {index} is not in the cluster, which has {len(members)} of that kind.")
    return cluster, role, index


def resolve_uri(path: str, variables: Mapping[str, str] | None = None) -> str:
    """Return the path to open for `path`: under `vertex_local` a bucket is a folder, elsewhere it is left alone."""
    root = (os.environ if variables is None else variables).get("VERTEX_LOCAL_BUCKET_ROOT")
    for prefix in ("gs://", "/gcs/"):
        if root and path.startswith(prefix):
            return os.path.join(root, path[len(prefix) :])
    return path
