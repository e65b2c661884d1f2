"""A job on its way to the service: one message of the API, read from a file once; flags edit it, and it is what is sent.

This is the only module here that reads job files.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vertex_local.job import job_file, schema, settings
from vertex_local.job.pools import Pool
from vertex_local.tuning import study


@dataclass(frozen=True)
class Kind:
    """A kind of job: its name for people, the API's type, collection and service, the console's page, and gcloud's group of
    commands, if there is one."""

    title: str
    type: str
    collection: str
    service: str
    page: str
    group: str = ""

    @property
    def field(self) -> str:
        """The type's name in requests, such as custom_job."""
        return re.sub("(?<!^)([A-Z])", r"_\1", self.type).lower()


_TRAINING, _PIPELINES = "agent-platform/locations/{}/training/{}", "vertex-ai/pipelines/locations/{}"
CUSTOM = Kind("custom job", "CustomJob", "customJobs", "JobService", _TRAINING, "custom-jobs")
TUNING = Kind(
    "hyperparameter tuning job", "HyperparameterTuningJob", "hyperparameterTuningJobs", "JobService", _TRAINING, "hp-tuning-jobs"
)  # fmt: skip
PIPELINE = Kind("training pipeline", "TrainingPipeline", "trainingPipelines", "PipelineService", _TRAINING)
PIPELINE_JOB = Kind("pipeline job", "PipelineJob", "pipelineJobs", "PipelineService", f"{_PIPELINES}/runs/{{}}")
SCHEDULE = Kind("schedule", "Schedule", "schedules", "ScheduleService", f"{_PIPELINES}/schedules/{{}}")


@dataclass
class Job:
    """A job of one kind; `path` is the user's file, `text` what it says with its settings filled in, `message` the API's.

    With `flags`, gcloud builds the image and sends the job itself: they replace its pools.
    """

    kind: Kind
    path: str
    text: str
    message: Any
    flags: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.path).stem

    @property
    def spec(self) -> Any:
        """The CustomJobSpec, of a tuning job that of its trials; a training pipeline holds it as plain JSON only."""
        return self.message.trial_job_spec if self.kind is TUNING else self.message.job_spec

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Its worker pools."""
        return tuple(Pool(message, index) for index, message in enumerate(self.spec.worker_pool_specs))

    @property
    def trainer_pools(self) -> tuple[Pool, ...]:
        """The pools that run the trainer: those in use, without a Reduction Server."""
        return tuple(pool for pool in self.pools if pool.trains)

    @property
    def gcloud_takes_it(self) -> bool:
        """Whether gcloud can send the job: it has no command for training pipelines, and --config refuses an empty pool."""
        return bool(self.kind.group) and (bool(self.flags) or all(pool.replicas for pool in self.pools))

    def file(self) -> tuple[str, str]:
        """Return the text by which the job can be sent by hand, and its file's name: gcloud's --config, or a request's body."""
        if self.gcloud_takes_it:
            document = schema.to_fields(self.message if self.kind is TUNING else self.spec)
            return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000), f"{self.name}.yaml"
        document = schema.to_fields(self.message)
        if self.kind is PIPELINE:  # plain JSON in the message: in the order of its own type's fields, numbers as they were
            document["trainingTaskInputs"] = schema.to_fields(schema.to_message(document["trainingTaskInputs"], "CustomJobSpec"))
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n", f"{self.name}.json"


def read(kind: Kind, path: str, given: Mapping[str, str]) -> Job:
    """Read a custom job's or a tuning job's file; `given` are settings that flags gave.

    Raises:
        UserError: the file is no such job: file, line, field and remedy.
    """
    text = job_file.read_text(path, given)
    found = study.loads(text, path).job if kind is TUNING else job_file.parse(text, path, (kind.type,))
    job = Job(kind, path, text, found.message)
    job.message.display_name = job.message.display_name or job.name
    return job


def wrap(job: Job) -> Any:
    """Return the job's message as the SDK's clients take it."""
    return getattr(schema.api_types(), job.kind.type).wrap(job.message)


# ------------------------------------------------------------------ what flags change


def append_arguments(job: Job, arguments: Sequence[str]) -> None:
    """Put `arguments` after those of every pool that runs the trainer: the later of two equal flags wins."""
    for pool in job.trainer_pools:
        pool.task.args.extend(arguments)


def drop_data_arguments(job: Job) -> None:
    """Take out the trainer's arguments that name data, which would win over a managed dataset."""
    for pool in job.trainer_pools:
        pool.task.args[:] = job_file.without_data_flags(pool.args)


def set_output(job: Job, prefix: str | None) -> None:
    """Set where the job's outputs go, if given."""
    if prefix:
        job.spec.base_output_directory.output_uri_prefix = prefix


def set_trial_counts(job: Job, counts: Mapping[str, int | None]) -> None:
    """Set a tuning job's counts of trials where they are given, by the names of their fields.

    The service takes no more failed trials than trials: where that number is not given, it is lowered with the others.
    """
    for field, count in counts.items():
        if count is not None:
            setattr(job.message, field, count)
    if counts["max_failed_trial_count"] is None:
        job.message.max_failed_trial_count = min(job.message.max_failed_trial_count, job.message.max_trial_count or 1)


def refuse_placeholders(job: Job, remedy: str = "") -> None:
    """Raise a SettingsError if what is to be sent still holds a placeholder of the project's settings."""
    sent, _ = job.file()
    for placeholder in settings.PLACEHOLDERS:
        if placeholder in sent:
            numbers = [n for n, line in enumerate(job.text.splitlines(), 1) if placeholder in line and not line.lstrip().startswith("#")]
            where = f"{job.path}:{numbers[0]}" if numbers else job.path
            remedy = remedy or f"put your own into {Path(job.path).parent / 'settings.yaml'}, or into the file"
            raise settings.SettingsError(f"{where}: {placeholder} is a placeholder: {remedy}.")


# ------------------------------------------------------------------ by hand


def gcloud_command(job: Job, file: str | Path, project: str, region: str) -> list[str]:
    """Return the gcloud command that sends a job whose `file()` is kept in `file`."""
    words = ["gcloud", "ai", job.kind.group, "create", f"--project={project}", f"--region={region}"]
    words += [f"--display-name={job.message.display_name}", f"--config={file}"]
    if job.message.labels:
        words.append("--labels=" + ",".join(f"{key}={value}" for key, value in sorted(job.message.labels.items())))
    if key := job.message.encryption_spec.kms_key_name:
        words.append(f"--kms-key={key}")
    return [*words, *job.flags]


def curl_command(url: str, file: str | Path | None = None) -> str:
    """Return the shell's line that posts to the service; the token is that of gcloud's login."""
    body = f" -H 'Content-Type: application/json' -d @{shlex.quote(str(file))}" if file else ""
    return f'curl -H "Authorization: Bearer $(gcloud auth print-access-token)"{body} -X POST {shlex.quote(url)}'
