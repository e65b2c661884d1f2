"""Job files in the form in which Google's components take them: worker pools, scheduling, accounts and networks.

Nothing is written down twice: all of it is read from the file that `scripts/submit_job` sends. What a component has no
input for is an error for the training job, for which it would be another job than the file says, and a note for trials.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from vertex_local.errors import UserError, quoted
from vertex_local.job import job_file, settings
from vertex_local.job.job_file import DATA_FLAGS, JobFile
from vertex_local.local.commands import trainer_in, trainers
from vertex_local.tuning import study

# What CustomTrainingJobOp has an input for, besides pools and output directory.
_SPEC = ("service_account", "tensorboard", "enable_web_access", "network", "persistent_resource_id")
_PASSED = {*_SPEC, "worker_pool_specs", "base_output_directory", "scheduling", "reserved_ip_ranges", "psc_interface_config"}
_SCHEDULING = {"timeout", "restart_job_on_worker_restart", "strategy", "max_wait_duration"}
_TRIALS = {"worker_pool_specs", "base_output_directory", "service_account", "network"}
_STUDY = {"metrics", "parameters", "algorithm", "measurement_selection_type"}
_UNUSED_POOL = {"replica_count": "0"}  # an empty one would be dropped by the launcher, and those after it would move up


@dataclass(frozen=True)
class TrainingJob:
    """What a custom job's file says.

    Attributes:
        trainer: the trainer that it runs, by its image or module.
        pools: worker pools without the flags that name data, in the API's own names.
        data: what those flags say, by name without the dashes: paths with blanks between them.
        options: the other inputs of CustomTrainingJobOp.
        output: `gs://bucket/folder`, "" if the file names none.
    """

    trainer: str
    pools: list[dict[str, Any]]
    data: dict[str, str]
    options: dict[str, Any]
    output: str


@dataclass(frozen=True)
class TuningJob:
    """What a tuning job's file says: `options` are inputs of HyperparameterTuningJobRunOp, `notes` what it has no input for."""

    trainer: str
    pools: list[dict[str, Any]]
    options: dict[str, Any]
    notes: list[str]


def training_job(path: str | Path, given: Mapping[str, str], root: Path) -> TrainingJob:
    """Read a custom job's file; `given` are settings that flags gave, `root` is the checkout with the trainers.

    Raises:
        UserError: it is no custom job's file, or says what CustomTrainingJobOp cannot pass on: file, line, field, remedy.
    """
    job = job_file.read(path, given)
    spec, scheduling = job.spec, job.spec.scheduling
    for message, known, place in ((spec, _PASSED, ()), (scheduling, _SCHEDULING, ("scheduling",))):
        for field, _ in message.ListFields():
            if field.name not in known:
                remedy = "CustomTrainingJobOp has no such input: take it out, or send the job by scripts/submit_job."
                raise job.spec_error((*place, field.json_name), remedy)
    options = {
        **{name: getattr(spec, name) for name in _SPEC},
        "timeout": scheduling.timeout.ToJsonString() if scheduling.HasField("timeout") else f"{job_file.DEFAULT_TIMEOUT:.0f}s",
        "restart_job_on_worker_restart": scheduling.restart_job_on_worker_restart,
        "strategy": job.strategy,
        "reserved_ip_ranges": list(spec.reserved_ip_ranges),
        "psc_interface_config": _fields(spec.psc_interface_config),
        "labels": dict(job.message.labels),
        "encryption_spec_key_name": job.message.encryption_spec.kms_key_name,
    }
    if scheduling.HasField("max_wait_duration"):
        options["max_wait_duration"] = scheduling.max_wait_duration.ToJsonString()
    return TrainingJob(_trainer(job, root), _pools(job), _data(job), options, (job.output or "").rstrip("/"))


def tuning_job(path: str | Path, given: Mapping[str, str], root: Path) -> TuningJob:
    """Read a tuning job's file; see `training_job`."""
    found = study.loads(job_file.read_text(path, given), str(path))
    spec, message, job = found.spec, found.message, found.job
    notes = [("studySpec", field) for field, _ in spec.ListFields() if field.name not in _STUDY]
    notes += [("trialJobSpec", field) for field, _ in job.spec.ListFields() if field.name not in _TRIALS]
    options = {
        "study_spec_metrics": [_fields(metric) for metric in spec.metrics],
        "study_spec_parameters": [_fields(parameter) for parameter in spec.parameters],
        "study_spec_algorithm": found.algorithm,
        "study_spec_measurement_selection_type": "BEST_MEASUREMENT" if found.best_measurement else "LAST_MEASUREMENT",
        "max_trial_count": found.max_trials,
        "parallel_trial_count": found.parallel,
        "max_failed_trial_count": found.max_failed,
        "service_account": job.spec.service_account,
        "network": job.spec.network,
        "encryption_spec_key_name": message.encryption_spec.kms_key_name,
    }
    told = [
        f"{job.error((part, field.json_name), 'HyperparameterTuningJobRunOp has no input for it: the pipeline goes without.')}"
        for part, field in notes
    ]
    return TuningJob(_trainer(job, root), _pools(job), options, told)


def serving_image(path: str | Path, given: Mapping[str, str]) -> str:
    """Return the image that serves the model, a setting of the job file's folder.

    Raises:
        SettingsError: there is none.
    """
    values = settings.load(Path(path).parent, given)
    if "serving" not in values:
        raise settings.SettingsError(f"--serving: not set: give it, or put it into {Path(path).parent / 'settings.yaml'}.")
    return values["serving"]


# ------------------------------------------------------------------ parts of a file


def _trainer(job: JobFile, root: Path) -> str:
    pool, known = job.pools[0], trainers(root)
    found = trainer_in(pool.module.partition(".")[0] if pool.module else pool.image, known)
    if found is None:
        raise UserError(f"{job.name}: {(pool.module or pool.image)[:100]} names none of the trainers here: give one of {', '.join(known)}.")
    return found


def _pools(job: JobFile) -> list[dict[str, Any]]:
    """Return the job's worker pools without the arguments that name data, which are parameters of the pipeline."""
    return [_fields(pool.message) if pool.task is not None else _UNUSED_POOL for pool in job.without_data().pools]


def _fields(message: Any) -> dict[str, Any]:
    """Return a message by the API's own names, whole numbers of 64 bits as text, as which they pass through any JSON."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _data(job: JobFile) -> dict[str, str]:
    """Return the paths that the first pool's arguments name, by flag."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in DATA_FLAGS:
        parser.add_argument(flag, flag.replace("_", "-"), nargs="*", default=[])
    found, _ = parser.parse_known_args(job.pools[0].args)
    return {name: _joined(job, name, paths) for name, paths in vars(found).items()}


def _joined(job: JobFile, name: str, paths: Sequence[str]) -> str:
    for path in paths:
        if " " in path:
            raise UserError(f"{job.name}: --{name}: {quoted(path)}: a path with a blank cannot be a pipeline's parameter; rename it.")
    return " ".join(paths)
