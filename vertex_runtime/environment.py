"""What the service says about this process: `AIP_*`, `CLUSTER_SPEC`, `TF_CONFIG` and `CLOUD_ML_*`, parsed once.

The forms are those of Vertex AI custom training ("Distributed training" and `CustomJobSpec.baseOutputDirectory` in its
documentation); Kubernetes' TFJob sends the same `TF_CONFIG`. Nothing here is read at import and nothing needs TensorFlow.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import UserError

ROLES = {"workerpool0": "chief", "workerpool1": "worker", "workerpool2": "ps", "workerpool3": "evaluator"}
TPU_VARIABLES = ("TPU_CONFIG", "TPU_NODE_NAME", "TPU_ACCELERATOR_TYPE")
DATA_FORMATS = ("csv", "jsonl", "bigquery", "tfrecord", "parquet")
HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[0-9A-Za-z_.-]+)?\]|[^\s\[\]:/]{1,253}):([0-9]{1,5})")
QUOTED = 120  # characters of a value that a message shows
LARGEST_INDEX = 2**31 - 1


def quoted(value: object) -> str:
    """Return `value` as a message shows it: on one line, of at most `QUOTED` characters."""
    try:
        text = repr(value[:QUOTED] if isinstance(value, str) else value)
    except (RecursionError, ValueError):  # nested too deeply, or a number with more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if len(text) <= QUOTED else text[: QUOTED - 1] + "…"


def variable(name: str) -> Any:
    """A field of `Environment` that holds a variable of the service as it is."""
    return field(default=None, metadata={"variable": name})


@dataclass(frozen=True)
class Environment:
    """One replica's view of its job. A field is None (or empty) where the service said nothing."""

    model_dir: str | None = variable("AIP_MODEL_DIR")
    checkpoint_dir: str | None = variable("AIP_CHECKPOINT_DIR")
    tensorboard_dir: str | None = variable("AIP_TENSORBOARD_LOG_DIR")
    data_format: str | None = variable("AIP_DATA_FORMAT")
    training_data: str | None = variable("AIP_TRAINING_DATA_URI")
    validation_data: str | None = variable("AIP_VALIDATION_DATA_URI")
    test_data: str | None = variable("AIP_TEST_DATA_URI")
    role: str = "chief"
    index: int = 0
    cluster: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reduction_servers: int = 0
    job: str | None = variable("CLOUD_ML_JOB_ID")
    trial: str | None = None
    metric_file: str | None = variable("CLOUD_ML_HP_METRIC_FILE")
    in_job: bool = False
    tpu: bool = False
    experiment: str | None = variable("AIP_EXPERIMENT_NAME")
    experiment_run: str | None = variable("AIP_EXPERIMENT_RUN_NAME")
    tensorboard: str | None = variable("AIP_TENSORBOARD_RESOURCE_NAME")
    pipeline: str | None = variable("TRAINER_PIPELINE_JOB")  # ours: a pipeline's step tells its trainer which pipeline it is
    debugged: str | None = variable("TRAINER_DEBUG")  # ours: the replica that somebody debugs, so that it may take its time

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
        texts = {each.name: _text(variables, each.metadata["variable"]) for each in fields(cls) if each.metadata}
        if texts["data_format"] not in (None, *DATA_FORMATS):
            raise UserError(f"AIP_DATA_FORMAT must be one of {', '.join(DATA_FORMATS)}; got {quoted(texts['data_format'])}.")
        return cls(
            **texts,
            role=role,
            index=index,
            reduction_servers=len(cluster.pop("ps", ())),
            cluster=cluster,
            trial=_trial(variables.get("CLOUD_ML_TRIAL_ID"), pools.get("task"), config.get("task")),
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


def _text(variables: Mapping[str, str], name: str) -> str | None:
    """Return a variable, or None where it is not set or empty."""
    text = variables.get(name) or None
    try:
        (text or "").encode()
    except UnicodeEncodeError:  # TensorFlow opens no such path
        raise UserError(f"{name} must be UTF-8 text; got {quoted(text)}. Set it to a path without stray bytes.") from None
    return text


def _json_object(variables: Mapping[str, str], name: str) -> dict[str, Any]:
    text = variables.get(name) or "{}"
    try:
        value = json.loads(text)
    except (RecursionError, ValueError) as error:
        reason: object = error
        if isinstance(error, RecursionError):
            reason = "it is nested too deeply"
        elif not isinstance(error, json.JSONDecodeError):
            reason = "a number in it has too many digits"
        raise UserError(f"{name} is not JSON that can be read ({reason}); got {quoted(text)}. Unset it to train alone.") from None
    if not isinstance(value, dict):
        raise UserError(f"{name} must be a JSON object with `cluster` and `task`; got {quoted(text)}. Unset it to train alone.")
    return value


def _trial(variable: str | None, *tasks: Any) -> str | None:
    """Return the id of the tuning trial: from its variable, else from a task. It becomes a folder's name."""
    for trial in (variable, *(task.get("trial") for task in tasks if isinstance(task, dict))):
        if trial is None or trial == "":
            continue
        text = str(trial) if isinstance(trial, (str, int)) and not isinstance(trial, bool) else ""
        if not 0 < len(text) <= QUOTED or not text.isprintable() or "/" in text or text.startswith("."):
            raise UserError(f"CLOUD_ML_TRIAL_ID (or `trial` in the task) must be a plain id such as 1; got {quoted(trial)}.")
        return text
    return None


def _task(name: str, task: Any) -> tuple[str, int]:
    if not isinstance(task, dict):
        raise UserError(f"{name}: `task` must be an object with `type` and `index`; got {quoted(task)}.")
    kind, index = task.get("type", "chief"), task.get("index", 0)
    role = _role(kind) if isinstance(kind, str) else None
    if role is None:
        raise UserError(f"{name}: task type must be one of {', '.join((*ROLES, *ROLES.values()))}, master; got {quoted(kind)}.")
    try:
        whole = int(index)
        if isinstance(index, bool) or (isinstance(index, float) and index != whole) or not 0 <= whole <= LARGEST_INDEX:
            raise ValueError
    except (OverflowError, TypeError, ValueError):
        raise UserError(f"{name}: task index must be a whole number from 0 to {LARGEST_INDEX}; got {quoted(index)}.") from None
    return role, whole


def _role(pool: str) -> str | None:
    """Return what a pool's replicas do, None for an unknown pool."""
    role = ROLES.get(pool, "chief" if pool == "master" else pool)
    return role if role in ROLES.values() else None


def _cluster(name: str, config: Mapping[str, Any]) -> tuple[dict[str, tuple[str, ...]], str, int]:
    """Return (addresses per role, this replica's role, its index)."""
    raw = config.get("cluster") or {}
    if not isinstance(raw, dict):
        raise UserError(f"{name}: `cluster` must map pools to lists of host:port; got {quoted(raw)}.")
    cluster: dict[str, tuple[str, ...]] = {}
    for pool, hosts in raw.items():
        role = _role(pool)
        if role is None:
            raise UserError(f"{name}: unknown pool {quoted(pool)} in `cluster`; known are {', '.join((*ROLES, *ROLES.values()))}.")
        if role in cluster:
            raise UserError(f"{name}: `cluster` has two pools for the {role}, one of them {quoted(pool)}. Remove one.")
        if not isinstance(hosts, list):
            raise UserError(f"{name}: pool {quoted(pool)} must be a list of host:port strings; got {quoted(hosts)}.")
        for i, host in enumerate(hosts):
            if not isinstance(host, str) or not _is_address(host):
                what = f"{name}: host {i} of pool {quoted(pool)} must be host:port with a whole port from 1 to 65535"
                raise UserError(f"{what}, such as 10.0.0.2:2222 or [::1]:2222; got {quoted(host)}.")
        cluster[role] = tuple(hosts)
    if not cluster:
        return cluster, "chief", 0
    task = config.get("task")
    role, index = _task(name, {} if task is None else task)
    members = cluster.get(role, ())
    if role != "evaluator" and not 0 <= index < len(members):
        raise UserError(f"{name}: task {role} {index} is not in the cluster, which has {len(members)} of that kind. Mend one of them.")
    return cluster, role, index


def _is_address(text: str) -> bool:
    """Tell whether `text` is a host that can be looked up, and a port."""
    found = HOST_PORT.fullmatch(text)
    try:
        return bool(found) and found[1].isprintable() and bool(found[1].encode("idna")) and 1 <= int(found[2]) <= 65535
    except UnicodeError:  # raised again by each lookup: a label that is empty or too long
        return False


def uri_of(path: str, variables: Mapping[str, str] | None = None) -> str:
    """Return what to call a path elsewhere: `gs://…` for a bucket's file, under `vertex_local` too; else the absolute path."""
    root = (os.environ if variables is None else variables).get("VERTEX_LOCAL_BUCKET_ROOT")
    if path.startswith("/gcs/") and not root:
        return f"gs://{path[len('/gcs/') :]}"
    if "://" in path:
        return path
    path = os.path.abspath(path)
    return f"gs://{path[len(root) + 1 :]}" if root and path.startswith(root.rstrip("/") + "/") else path


def resolve_uri(path: str, variables: Mapping[str, str] | None = None) -> str:
    """Return the path to open for `path`: under `vertex_local` a bucket is a folder, elsewhere it is left alone."""
    root = (os.environ if variables is None else variables).get("VERTEX_LOCAL_BUCKET_ROOT")
    for prefix in ("gs://", "/gcs/"):
        if root and path.startswith(prefix):
            return os.path.join(root, path[len(prefix) :])
    return path
