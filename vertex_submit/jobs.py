"""A job on its way to the service: one message of the API, read from a file once; flags edit it, and it is what is sent.

This is the only module here that reads job files.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vertex_local.job import schema, settings, spec
from vertex_local.tuning import study


@dataclass(frozen=True)
class Kind:
    """A kind of job: its name for people, the API's type, its collection, and gcloud's group of commands, if there is one."""

    title: str
    type: str
    collection: str
    group: str = ""


CUSTOM = Kind("custom job", "CustomJob", "customJobs", "custom-jobs")
TUNING = Kind("hyperparameter tuning job", "HyperparameterTuningJob", "hyperparameterTuningJobs", "hp-tuning-jobs")
PIPELINE = Kind("training pipeline", "TrainingPipeline", "trainingPipelines")


@dataclass
class Job:
    """A job of one kind; `path` is the user's file, `text` what it says with its settings filled in, `message` the API's.

    An `autopackaged` job's pools are replaced by gcloud's flags, so that --config may say anything of them.
    """

    kind: Kind
    path: str
    text: str
    message: Any
    autopackaged: bool = False

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.path).stem

    @property
    def spec(self) -> Any:
        """The CustomJobSpec, of a tuning job that of its trials; a training pipeline holds it as plain JSON only."""
        return self.message.trial_job_spec if self.kind is TUNING else self.message.job_spec

    @property
    def gcloud_takes_it(self) -> bool:
        """Whether gcloud can send the job: it has no command for training pipelines, and --config refuses an empty pool."""
        return bool(self.kind.group) and (self.autopackaged or all(map(in_use, self.spec.worker_pool_specs)))

    def file(self) -> tuple[str, str]:
        """Return the text by which the job can be sent by hand, and its file's name: gcloud's --config, or a request's body."""
        if self.gcloud_takes_it:
            document = document_of(self.message if self.kind is TUNING else self.spec)
            return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000), f"{self.name}.yaml"
        document = document_of(self.message)
        if self.kind is PIPELINE:  # plain JSON in the message: in the order of its own type's fields, numbers as they were
            document["trainingTaskInputs"] = document_of(message_of("CustomJobSpec", document["trainingTaskInputs"]))
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n", f"{self.name}.json"


def read(kind: Kind, path: str, given: Mapping[str, str]) -> Job:
    """Read a custom job's or a tuning job's file; `given` are settings that flags gave.

    Raises:
        ValueError: the file is no such job: file, line, field and remedy.
    """
    text = spec.read(path, given)
    if kind is TUNING:
        found = study.loads(text, path).message
    elif "jobSpec" in schema.top_keys(text, path):
        spec.loads(text, path)
        found = schema.parse(text, path, kind.type).message
    else:
        found = {"jobSpec": spec.loads(text, path).message}
    job = Job(kind, path, text, message_of(kind.type, found))
    job.message.display_name = job.message.display_name or job.name
    return job


def message_of(type_name: str, document: Mapping[str, Any]) -> Any:
    """Return a document in the API's JSON form as a protobuf message of one of the API's types."""
    from google.protobuf import json_format

    return json_format.ParseDict(document, getattr(schema.api_types(), type_name).pb()())


def wrap(job: Job) -> Any:
    """Return the job's message as the SDK's clients take it."""
    return getattr(schema.api_types(), job.kind.type).wrap(job.message)


def document_of(message: Any) -> dict[str, Any]:
    """Return a message in the API's JSON form, with 64-bit numbers as numbers: gcloud's --config takes no text for them."""
    from google.protobuf import json_format

    document = json_format.MessageToDict(message)
    _numbers(document, message.DESCRIPTOR)
    return document


def _numbers(document: Any, descriptor: Any) -> None:
    if descriptor.full_name.startswith("google.protobuf.") or descriptor.GetOptions().map_entry:
        return
    for field in descriptor.fields:
        value = document.get(field.json_name)
        if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64) and value is not None:
            document[field.json_name] = list(map(int, value)) if isinstance(value, list) else int(value)
        elif field.message_type is not None and value is not None:
            for item in value if isinstance(value, list) else [value]:
                _numbers(item, field.message_type)


# ------------------------------------------------------------------ pools


def in_use(pool: Any) -> bool:
    """Tell whether a worker pool runs something: an unused one is written {}."""
    return pool.HasField("container_spec") or pool.HasField("python_package_spec")


def task_of(pool: Any) -> Any:
    """Return a pool's ContainerSpec or PythonPackageSpec: both have `args` and `env`."""
    return pool.container_spec if pool.HasField("container_spec") else pool.python_package_spec


def image_of(pool: Any) -> str:
    """Return the address of the image that a pool starts."""
    return pool.container_spec.image_uri or pool.python_package_spec.executor_image_uri


def module_of(pool: Any) -> str:
    """Return the Python module that a pool starts; empty for a container."""
    return pool.python_package_spec.python_module


def trainer_pools(job_spec: Any) -> Iterator[Any]:
    """Yield the pools that run the trainer: those in use, without a Reduction Server."""
    for index, pool in enumerate(job_spec.worker_pool_specs):
        if in_use(pool) and not is_reduction_server(index, pool):
            yield pool


def is_reduction_server(index: int, pool: Any) -> bool:
    """Tell whether a pool is a Reduction Server, which is the third pool and takes no arguments."""
    return index == 2 and "reductionserver" in pool.container_spec.image_uri


# ------------------------------------------------------------------ what flags change


def append_arguments(job: Job, arguments: Sequence[str]) -> None:
    """Put `arguments` after those of every pool that runs the trainer: the later of two equal flags wins."""
    for pool in trainer_pools(job.spec):
        task_of(pool).args.extend(arguments)


def drop_data_arguments(job: Job) -> None:
    """Take out the trainer's arguments that name data, which would win over a managed dataset."""
    for pool in trainer_pools(job.spec):
        task = task_of(pool)
        task.args[:] = spec.without_data_flags(list(task.args))


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


def refuse_placeholders(job: Job) -> None:
    """Raise a SettingsError if what is to be sent still holds a placeholder of the project's settings."""
    sent, _ = job.file()
    for placeholder in settings.PLACEHOLDERS:
        if placeholder in sent:
            numbers = [n for n, line in enumerate(job.text.splitlines(), 1) if placeholder in line and not line.lstrip().startswith("#")]
            where = f"{job.path}:{numbers[0]}" if numbers else job.path
            remedy = f"put your own into {Path(job.path).parent / 'settings.yaml'}, or into the file"
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
    return words


def curl_command(url: str, file: str | Path | None = None) -> str:
    """Return the shell's line that posts to the service; the token is that of gcloud's login."""
    body = f" -H 'Content-Type: application/json' -d @{shlex.quote(str(file))}" if file else ""
    return f'curl -H "Authorization: Bearer $(gcloud auth print-access-token)"{body} -X POST {shlex.quote(url)}'
