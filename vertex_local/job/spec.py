"""Job files as `gcloud ai custom-jobs create --config` takes them: a CustomJobSpec, or the whole CustomJob around one.

gcloud sends unknown fields and misspelt enums on and the server answers minutes later; here they are errors at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import buckets, settings
from .schema import SpecError, Tree, parse, top_keys

ROLES = ("chief", "worker", "ps", "evaluator")
DATA_FLAGS = ("--train_data_path", "--eval_data_path", "--test_data_path")
DEFAULT_TIMEOUT = 604800.0  # seconds: the service's seven days


@dataclass(frozen=True)
class Pool:
    """One worker pool; `replicas` is 0 for the unused pool `{}`. `module` is set for a Python package only."""

    replicas: int = 0
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    module: str | None = None
    package_uris: tuple[str, ...] = ()
    machine: str = ""
    is_reduction_server: bool = False


@dataclass(frozen=True)
class JobSpec:
    """What a job file says, as far as this machine can follow it; `text` is the file, `message` the checked spec."""

    name: str
    text: str
    message: dict[str, Any]
    pools: tuple[Pool, ...]
    output: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    restart_together: bool = False
    disable_retries: bool = False
    data: dict[str, Any] | None = None  # a training pipeline's inputDataConfig

    def with_args(self, args: Sequence[str]) -> JobSpec:
        """Return the job with `args` after every pool's own: the later of two equal flags wins, as for a trial."""
        pools = (
            dataclasses.replace(pool, args=(*pool.args, *args)) if pool.replicas and not pool.is_reduction_server else pool
            for pool in self.pools
        )
        return dataclasses.replace(self, pools=tuple(pools))

    def without_data(self) -> JobSpec:
        """Return the job without the arguments that name data, which would win over a managed data set."""
        pools = (dataclasses.replace(pool, args=tuple(without_data_flags(pool.args))) for pool in self.pools)
        return dataclasses.replace(self, pools=tuple(pools))

    def with_output(self, prefix: str) -> JobSpec:
        """Return the job with another `baseOutputDirectory`."""
        return dataclasses.replace(self, output=prefix)


def without_data_flags(arguments: Sequence[str]) -> list[str]:
    """Return a trainer's arguments without those that name data."""
    kept, skipping = [], False
    for argument in arguments:
        if argument.startswith("--"):
            skipping = argument.partition("=")[0].replace("-", "_").replace("__", "--", 1) in DATA_FLAGS
        if not skipping:
            kept.append(argument)
    return kept


def load(
    path: str | Path, overrides: Sequence[str] = (), given: Mapping[str, str] | None = None, pipelines: bool = False
) -> JobSpec:  # fmt: skip
    """Read a job file; `overrides` are appended to every pool's arguments, `given` are settings that flags gave."""
    return loads(read(path, given), str(path), overrides, pipelines)


def read(path: str | Path, given: Mapping[str, str] | None = None) -> str:
    """Return a job file's text with its settings filled in (see `settings.render`)."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}. Job files lie in jobs/.") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text: {error}. Save it as UTF-8.") from None
    return settings.render(text, str(path), given)


def loads(text: str, name: str, overrides: Sequence[str] = (), pipelines: bool = False) -> JobSpec:
    """Read a job from text; `name` stands for the file in messages. With `pipelines`, a TrainingPipeline's job, too."""
    keys = top_keys(text, name)
    if "trainingTaskInputs" in keys:
        if not pipelines:
            raise SpecError(f"{name}:1: this is a TrainingPipeline, for `run` and `check`; give a CustomJobSpec or a CustomJob.")
        tree = pipeline(text, name)
        job = _job(tree, tree.message["trainingTaskInputs"], ("trainingTaskInputs",), text).with_args(overrides)
        return dataclasses.replace(job, data=tree.message.get("inputDataConfig"))
    if "studySpec" in keys or "trialJobSpec" in keys:
        raise SpecError(f"{name}:1: this is a HyperparameterTuningJob, for `tune`; give a CustomJobSpec or a CustomJob.")
    if "jobSpec" in keys:
        tree = parse(text, name, "CustomJob")
        return _job(tree, tree.message.get("jobSpec", {}), ("jobSpec",), text).with_args(overrides)
    tree = parse(text, name, "CustomJobSpec")
    return _job(tree, tree.message, (), text).with_args(overrides)


def pipeline(text: str, name: str) -> Tree:
    """Return a TrainingPipeline whose task is a custom job, checked with its inputs."""
    tree = parse(text, name, "TrainingPipeline", {"trainingTaskInputs": "CustomJobSpec"})
    task = tree.message.get("trainingTaskDefinition", "")
    if not task.endswith("/custom_task_1.0.0.yaml"):
        problem = f"takes gs://google-cloud-aiplatform/schema/trainingjob/definition/custom_task_1.0.0.yaml; got {task!r}."
        raise tree.error(("trainingTaskDefinition",), problem)
    return tree


def trial_job(tree: Tree, text: str) -> JobSpec:
    """Return the job that every trial of a checked HyperparameterTuningJob runs."""
    return _job(tree, tree.message.get("trialJobSpec", {}), ("trialJobSpec",), text)


def _job(tree: Tree, message: dict[str, Any], top: tuple, text: str) -> JobSpec:
    """Check what the proto types cannot say, and keep what a local run needs."""
    at, raw = (*top, "workerPoolSpecs"), message.get("workerPoolSpecs", [])
    if not raw or not raw[0]:
        raise tree.error(at, "the first pool holds the chief; it must be there and not be empty.")
    if len(raw) > len(ROLES):
        raise tree.error((*at, len(ROLES)), f"at most {len(ROLES)} pools ({', '.join(ROLES)}); got {len(raw)}.")
    pools = tuple(_pool(tree, pool, (*at, i), ROLES[i]) for i, pool in enumerate(raw))
    if pools[0].replicas != 1:
        problem = f"the chief's pool has 1 replica; got {pools[0].replicas}: the others belong in the second pool."
        raise tree.error((*at, 0, "replicaCount"), problem)
    scheduling = message.get("scheduling", {})
    disabled = scheduling.get("disableRetries", False)
    return JobSpec(
        name=tree.name,
        text=text,
        message=message,
        pools=pools,
        output=_output(tree, message, top),
        timeout=float(scheduling.get("timeout", "0s")[:-1]) or DEFAULT_TIMEOUT,
        restart_together=scheduling.get("restartJobOnWorkerRestart", False) and not disabled,
        disable_retries=disabled,
    )


def _output(tree: Tree, message: dict[str, Any], top: tuple) -> str | None:
    output = message.get("baseOutputDirectory", {}).get("outputUriPrefix")
    if output is None:
        return None
    where = (*top, "baseOutputDirectory", "outputUriPrefix")
    if not output.startswith("gs://"):
        raise tree.error(where, f"takes gs://bucket/folder; got {output!r}.")
    try:
        buckets.check_name(output[len("gs://") :].partition("/")[0])
    except buckets.BucketError as error:
        raise tree.error(where, str(error)) from None
    return output


def _pool(tree: Tree, pool: dict[str, Any], path: tuple, role: str) -> Pool:
    if not pool:
        return Pool()
    key = "containerSpec" if "containerSpec" in pool else "pythonPackageSpec"
    if key not in pool:
        raise tree.error(path, "needs containerSpec or pythonPackageSpec; an unused pool is written {}.")
    task, replicas = pool[key], pool.get("replicaCount", 1)
    for name in ("imageUri",) if key == "containerSpec" else ("packageUris", "pythonModule"):
        if not task.get(name):
            raise tree.error((*path, key, name), "is required and must not be empty.")
    if len(task.get("env", [])) > 100:
        raise tree.error((*path, key, "env"), f"at most 100 variables; got {len(task['env'])}.")
    for i, variable in enumerate(task.get("env", [])):
        if not variable.get("name") or "=" in variable["name"]:
            raise tree.error((*path, key, "env", i), f"needs a name without '='; got {variable.get('name', '')!r}.")
    if sum(map(len, task.get("args", []))) > 100_000:
        raise tree.error((*path, key, "args"), "at most 100,000 characters in all.")
    if replicas < 1:
        raise tree.error((*path, "replicaCount"), f"takes 1 or more; got {replicas}: an unused pool is written {{}}.")
    return Pool(
        replicas=replicas,
        image=task.get("imageUri") or task.get("executorImageUri", ""),
        command=tuple(task.get("command", ())),
        args=tuple(task.get("args", ())),
        env=tuple((item["name"], item.get("value", "")) for item in task.get("env", ())),
        module=task.get("pythonModule"),
        package_uris=tuple(task.get("packageUris", ())),
        machine=pool.get("machineSpec", {}).get("machineType", ""),
        is_reduction_server=role == "ps" and "reductionserver" in task.get("imageUri", ""),
    )
