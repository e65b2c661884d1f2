"""What the SDK's training classes are told: a job file's fields and the scripts' flags as arguments of constructor and `run`."""

from __future__ import annotations

import argparse
import base64
import copy
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from vertex_local.job import schema, spec

from . import checkout, package

# What the file says, and what the SDK calls it.
JOB_FIELDS = {
    "serviceAccount": "service_account", "network": "network", "tensorboard": "tensorboard", "enableWebAccess": "enable_web_access",
    "enableDashboardAccess": "enable_dashboard_access", "persistentResourceId": "persistent_resource_id",
}  # fmt: skip
MACHINE_FIELDS = {
    "machineType": "machine_type", "acceleratorType": "accelerator_type", "acceleratorCount": "accelerator_count",
    "tpuTopology": "tpu_topology",
}  # fmt: skip
AFFINITY_FIELDS = {"reservationAffinityType": "type", "key": "key", "values": "values"}
DISK_FIELDS = {"bootDiskType": "boot_disk_type", "bootDiskSizeGb": "boot_disk_size_gb"}
SCHEDULING_FIELDS = {"restartJobOnWorkerRestart": "restart_job_on_worker_restart", "disableRetries": "disable_retries"}
SECONDS_FIELDS = {"timeout": "timeout", "maxWaitDuration": "max_wait_duration"}
ONE_FILE = """\
\"\"\"{trainer} in one file, made by scripts/submit_training_pipeline for the SDK's CustomTrainingJob.\"\"\"
import base64, io, runpy, sys, tarfile, tempfile

folder = tempfile.mkdtemp(prefix="{trainer}-")
with tarfile.open(fileobj=io.BytesIO(base64.b64decode(\"\"\"
{archive}\"\"\"))) as packed:
    packed.extractall(folder)
sys.path.insert(0, folder + "/{root}")
if __name__ == "__main__":
    runpy.run_module("{trainer}.trainer.task", run_name="__main__", alter_sys=True)
"""


class PipelineError(ValueError):
    """A job file or flags that no training pipeline can be made of, and the remedy."""


def one_file(trainer: str) -> tuple[str, list[str]]:
    """Return a trainer with all it needs of this project as one Python file, and what that file requires of others."""
    with tempfile.TemporaryDirectory() as scratch:
        path = package.sdist(Path(scratch), trainer)
        with tarfile.open(path) as packed:
            root = packed.getnames()[0].partition("/")[0]
            listed = next(name for name in packed.getnames() if name.endswith(".egg-info/requires.txt"))
            text = packed.extractfile(listed).read().decode()  # type: ignore[union-attr]
        archive = base64.encodebytes(path.read_bytes()).decode()
    required = [line.strip() for line in text.partition("\n[")[0].splitlines() if line.strip()]
    return ONE_FILE.format(trainer=trainer, root=root, archive=archive), required


def own_arguments(job: spec.JobSpec, managed: bool) -> list[str]:
    """Return the trainer's arguments, without those that name data where a managed dataset brings it."""
    arguments = job.pools[0].args
    return spec.without_data_flags(arguments) if managed else list(arguments)


def run_options(job: spec.JobSpec) -> dict[str, Any]:
    """Return the arguments of the SDK's `run` that say what the job file says.

    Raises:
        PipelineError: the file has something that the SDK's training classes cannot say.
    """
    message = copy.deepcopy(job.message)
    raw = message.pop("workerPoolSpecs")
    options: dict[str, Any] = {new: message.pop(old) for old, new in JOB_FIELDS.items() if old in message}
    if "baseOutputDirectory" in message:
        options["base_output_dir"] = message.pop("baseOutputDirectory")["outputUriPrefix"]
    scheduling = message.pop("scheduling", {})
    options |= {new: scheduling.pop(old) for old, new in SCHEDULING_FIELDS.items() if old in scheduling}
    options |= {new: int(float(scheduling.pop(old)[:-1])) for old, new in SECONDS_FIELDS.items() if old in scheduling}
    if "strategy" in scheduling:
        options["scheduling_strategy"] = schema.api_types().Scheduling.Strategy[scheduling.pop("strategy")]
    options |= _pools(job, raw)
    left = [*message, *(f"scheduling.{name}" for name in scheduling)]
    if left:
        raise PipelineError(f"{job.name}: {left[0]}: the SDK's training pipelines cannot say it; use scripts/submit_job.")
    return options


def _pools(job: spec.JobSpec, raw: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the SDK makes its pools of: one machine type for chief and workers, and a Reduction Server."""
    pools, options = job.pools, {}
    first, *others = raw
    machine, disk = first.pop("machineSpec", {}), first.pop("diskSpec", {})
    options |= {new: machine.pop(old) for old, new in MACHINE_FIELDS.items() if old in machine}
    affinity = machine.pop("reservationAffinity", {})
    options |= {f"reservation_affinity_{new}": affinity.pop(old) for old, new in AFFINITY_FIELDS.items() if old in affinity}
    options |= {new: disk.pop(old) for old, new in DISK_FIELDS.items() if old in disk}
    if pools[0].env:
        options["environment_variables"] = dict(pools[0].env)
    unsaid = [name for name in first if name not in ("replicaCount", "containerSpec", "pythonPackageSpec")] + [*machine, *disk, *affinity]
    if unsaid:
        raise PipelineError(f"{job.name}: {unsaid[0]}: the SDK's training pipelines cannot say it; use scripts/submit_job.")
    for pool, index in zip(pools[1:], range(1, len(pools))):
        if not pool.replicas:
            continue
        if index == 1:
            again = {key: value for key, value in others[0].items() if key != "replicaCount"}
            chief = {key: value for key, value in job.message["workerPoolSpecs"][0].items() if key != "replicaCount"}
            if again != chief or pool.args != pools[0].args:
                problem = "the SDK gives chief and workers the same machines, image and arguments"
                raise PipelineError(f"{job.name}: {problem}; use scripts/submit_job.")
            options["replica_count"] = 1 + pool.replicas
        elif pool.is_reduction_server:
            options["reduction_server_replica_count"] = pool.replicas
            options["reduction_server_machine_type"] = pool.machine
            options["reduction_server_container_uri"] = pool.image
        else:
            problem = f"pool {index} ({spec.ROLES[index]}): the SDK's training pipelines have none"
            raise PipelineError(f"{job.name}: {problem}; use scripts/submit_job.")
    return options


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `run` about the managed dataset's splits.

    Raises:
        PipelineError: there is no dataset to split, or two kinds of split.
    """
    wishes = {name: getattr(args, name) for name in ("predefined_split", "filter_split", "timestamp_split", "split")}
    asked = [name for name, value in wishes.items() if value]
    if args.dataset and args.dataset_csv:
        raise PipelineError("--dataset_csv: makes a dataset; leave --dataset out.")
    extras = [name for name in ("annotation_schema", "bigquery_destination") if getattr(args, name)]
    if asked + extras and not (args.dataset or args.dataset_csv):
        raise PipelineError(f"--{(asked + extras)[0]}: is about a managed dataset; give --dataset or --dataset_csv.")
    if len(asked) > 1 and asked != ["timestamp_split", "split"]:
        raise PipelineError(f"--{asked[1]}: cannot stand beside --{asked[0]}; keep one of them.")
    if args.timestamp_split and not args.split:
        raise PipelineError("--timestamp_split: needs the fractions, too: --split=0.8,0.1,0.1.")
    options: dict[str, Any] = {"annotation_schema_uri": args.annotation_schema, "bigquery_destination": args.bigquery_destination}
    options |= {"predefined_split_column_name": args.predefined_split, "timestamp_split_column_name": args.timestamp_split}
    parts = ("training", "validation", "test")
    options |= {f"{part}_fraction_split": value for part, value in zip(parts, args.split or ())}
    options |= {f"{part}_filter_split": value for part, value in zip(parts, args.filter_split or ())}
    return {name: value for name, value in options.items() if value is not None}


def model_options(args: argparse.Namespace, job: spec.JobSpec) -> dict[str, Any]:
    """Return the arguments of `run` about the model that is registered when the job has succeeded."""
    asked = [name for name in ("model_display_name", "parent_model", "version_aliases", "version_description") if getattr(args, name)]
    if args.no_model:
        if asked:
            raise PipelineError(f"--{asked[0]}: there will be no model; leave --no_model out.")
        return {}
    options = {
        "model_display_name": args.model_display_name or checkout.trainer_of(job.pools[0], job.name),
        "parent_model": args.parent_model,
        "is_default_version": not args.not_default,
        "model_version_aliases": args.version_aliases,
        "model_version_description": args.version_description,
    }
    return {name: value for name, value in options.items() if value is not None}
