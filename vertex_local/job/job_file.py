"""A job in its one form, the API's message: read from a file or taken from a request, checked, and edited.

    job = job_file.read("jobs/taxifare.yaml").with_args(["--epochs=3"])

Files are what `gcloud ai custom-jobs create --config` takes, or a whole CustomJob, HyperparameterTuningJob or
TrainingPipeline. gcloud sends unknown fields and misspelt enums on and the server answers minutes later; here they are
errors at once.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import quoted
from . import rules, schema, settings
from .pools import Pool
from .schema import Source, SpecError

CUSTOM, TUNING, PIPELINE = "CustomJob", "HyperparameterTuningJob", "TrainingPipeline"
COLLECTIONS = {CUSTOM: "customJobs", TUNING: "hyperparameterTuningJobs", PIPELINE: "trainingPipelines"}
DATA_FLAGS = ("--train_data_path", "--eval_data_path", "--test_data_path")
DEFAULT_TIMEOUT = 604800.0  # seconds: the service's seven days
_TOPS = {CUSTOM: ("jobSpec",), TUNING: ("trialJobSpec",), PIPELINE: ("trainingTaskInputs",)}


class _Dumper(yaml.SafeDumper):
    """Writes characters that YAML takes for the end of a line, or drops, as escapes: `yaml` itself writes them as they are."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _SPECIAL.search(text) else None)


_SPECIAL = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")
_Dumper.add_representer(str, _Dumper.represent_str)


@dataclass(frozen=True)
class JobFile(Source):
    """A checked job: `message` is a CustomJob, HyperparameterTuningJob or TrainingPipeline, `name` its file's.

    Messages are not changed in place: what edits one returns another JobFile. `task` is a training pipeline's own
    CustomJobSpec, for which the API's type has no more than a JSON value. A `bare` file holds a CustomJobSpec alone.
    """

    message: Any
    task: Any = None
    bare: bool = False

    @property
    def kind(self) -> str:
        """CustomJob, HyperparameterTuningJob or TrainingPipeline."""
        return self.message.DESCRIPTOR.name

    @property
    def spec(self) -> Any:
        """The CustomJobSpec that is run: a study's is that of each trial."""
        if self.task is not None:
            return self.task
        return self.message.trial_job_spec if self.kind == TUNING else self.message.job_spec

    @property
    def top(self) -> tuple:
        """Where the file has the CustomJobSpec."""
        return () if self.bare else _TOPS[self.kind]

    def spec_error(self, path: tuple, problem: str) -> SpecError:
        """Return the error for a field of the CustomJobSpec."""
        return self.error((*self.top, *path), problem)

    # ------------------------------------------------------------------ what it says

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Its worker pools."""
        return tuple(Pool(message, index) for index, message in enumerate(self.spec.worker_pool_specs))

    @property
    def output(self) -> str | None:
        """baseOutputDirectory, as `gs://bucket/folder`."""
        return self.spec.base_output_directory.output_uri_prefix or None

    @property
    def timeout(self) -> float:
        """How long it may take, in seconds."""
        timeout = self.spec.scheduling.timeout
        return timeout.seconds + timeout.nanos / 1e9 or DEFAULT_TIMEOUT

    @property
    def disable_retries(self) -> bool:
        """Whether the first replica that is lost ends it."""
        return self.spec.scheduling.disable_retries

    @property
    def restart_together(self) -> bool:
        """Whether all replicas start again where one is lost."""
        return self.spec.scheduling.restart_job_on_worker_restart and not self.disable_retries

    @property
    def strategy(self) -> str:
        """How machines are provided: STANDARD, SPOT, FLEX_START …"""
        scheduling = self.spec.scheduling
        return scheduling.Strategy.Name(scheduling.strategy) if scheduling.strategy else "STANDARD"

    @property
    def data(self) -> dict[str, Any] | None:
        """A training pipeline's inputDataConfig in JSON form."""
        has_data = self.kind == PIPELINE and self.message.HasField("input_data_config")
        return schema.to_fields(self.message.input_data_config) if has_data else None

    @property
    def display_name(self) -> str:
        """The job's name in lists: its own, else that of its file."""
        return self.message.display_name or Path(self.name).stem

    def spec_fields(self) -> dict[str, Any]:
        """Return the CustomJobSpec in JSON form."""
        return schema.to_fields(self.spec)

    def fields(self) -> dict[str, Any]:
        """Return the whole message in JSON form."""
        found = schema.to_fields(self.message)
        if self.task is not None:
            found["trainingTaskInputs"] = self.spec_fields()
        return found

    def text(self) -> str:
        """Return it as a file that means the same when it is read again."""
        fields = self.spec_fields() if self.bare else self.fields()
        return settings.escape(yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000))

    # ------------------------------------------------------------------ edited

    def copied(self) -> JobFile:
        """Return a copy with messages of its own, to be changed; what is made of them is not checked again."""
        return dataclasses.replace(self, message=copy.deepcopy(self.message), task=copy.deepcopy(self.task))

    def with_args(self, args: Sequence[str] | Callable[[Pool], Sequence[str]]) -> JobFile:
        """Return the job with `args` after the arguments of every pool that trains: the later of two equal flags wins."""
        new = self.copied()
        for pool in new.pools:
            if pool.trains:
                pool.task.args.extend(args(pool) if callable(args) else args)
        return new

    def without_data(self) -> JobFile:
        """Return the job without the arguments that name data, which would win over a managed data set."""
        new = self.copied()
        for pool in new.pools:
            if pool.task is not None:
                pool.task.args[:] = without_data_flags(pool.args)
        return new

    def with_output(self, prefix: str) -> JobFile:
        """Return the job with another `baseOutputDirectory`."""
        new = self.copied()
        new.spec.base_output_directory.output_uri_prefix = prefix
        return new


def trial(job: JobFile) -> JobFile:
    """Return the CustomJob that each trial of a HyperparameterTuningJob is."""
    return JobFile(job.name, job.lines, _custom_job(job.spec))


def without_data_flags(arguments: Sequence[str]) -> list[str]:
    """Return a trainer's arguments without those that name data."""
    kept, skipping = [], False
    for argument in arguments:
        if argument.startswith("--"):
            skipping = argument.partition("=")[0].replace("-", "_").replace("__", "--", 1) in DATA_FLAGS
        if not skipping:
            kept.append(argument)
    return kept


# ------------------------------------------------------------------ from files


def read_text(path: str | Path, given: Mapping[str, str] | None = None) -> str:
    """Return a job file's text with its settings filled in (see `settings.render`); `given` win over settings.yaml."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}. Name a job file, such as those in jobs/.") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text: {error}. Save it as UTF-8.") from None
    return settings.render(text, str(path), given)


def read(path: str | Path, given: Mapping[str, str] | None = None, kinds: Sequence[str] = (CUSTOM,)) -> JobFile:
    """Read and check a job's file; see `parse`."""
    return parse(read_text(path, given), str(path), kinds)


def parse(text: str, name: str, kinds: Sequence[str] = (CUSTOM,)) -> JobFile:
    """Return the job that a text holds, checked; `name` stands for the file in messages.

    Args:
        kinds: which of CUSTOM, TUNING and PIPELINE the caller can do something with.

    Raises:
        SpecError: file, line, field, value and remedy.
    """
    document = schema.opened(text, name)
    kind = _kind(document.keys, kinds)
    if kind not in kinds:
        raise SpecError(f"{name}:1: {_REFUSALS[kind]}")
    if kind == PIPELINE:
        job = _pipeline(document)
    else:
        bare = kind == CUSTOM and "jobSpec" not in document.keys
        form = "CustomJobSpec" if bare else kind
        fields = document.read(form)
        _default_replicas(fields)
        message = schema.to_message(fields, form)
        job = JobFile(name, document.lines, _custom_job(message) if bare else message, bare=bare)
    if kind != TUNING or job.message.HasField("trial_job_spec"):  # where there is none, the study's own rules say so
        rules.check(job.spec, job.spec_error)
    return job


def _kind(keys: Sequence[str], kinds: Sequence[str]) -> str:
    """Return what a file with these fields at its top is, or is meant to be where it has none that tells."""
    if "trainingTaskInputs" in keys:
        return PIPELINE
    if "studySpec" in keys or "trialJobSpec" in keys:
        return TUNING
    return CUSTOM if CUSTOM in kinds or "workerPoolSpecs" in keys or "jobSpec" in keys else kinds[0]


_REFUSALS = {
    PIPELINE: "this is a TrainingPipeline, for `run` and `check`; give a CustomJobSpec or a CustomJob.",
    TUNING: "this is a HyperparameterTuningJob, for `tune`; give a CustomJobSpec or a CustomJob.",
    CUSTOM: "this is a custom job, for `run`; give a HyperparameterTuningJob, with studySpec and trialJobSpec.",
}


def _custom_job(spec: Any) -> Any:
    """Return the CustomJob of a CustomJobSpec, of which it has a copy."""
    message = schema.api_types().CustomJob.pb()()
    message.job_spec.CopyFrom(spec)
    return message


def _pipeline(document: schema.Document) -> JobFile:
    """Return a TrainingPipeline whose task is a custom job."""
    fields = document.read(PIPELINE, {"trainingTaskInputs": "CustomJobSpec"})
    task = fields.get("trainingTaskDefinition", "")
    if not task.endswith(f"/{schema.TASK.rpartition('/')[2]}"):
        raise document.error(("trainingTaskDefinition",), f"takes {schema.TASK}; got {quoted(task)}.")
    inputs = fields.pop("trainingTaskInputs")
    _default_replicas(inputs)
    return JobFile(document.name, document.lines, schema.to_message(fields, PIPELINE), schema.to_message(inputs, "CustomJobSpec"))


def _default_replicas(fields: Mapping[str, Any]) -> None:
    """Give one replica to each pool in use that says no number, of a CustomJobSpec or of what holds one."""
    for pool in filter(None, fields.get("workerPoolSpecs", ())):
        pool.setdefault("replicaCount", 1)
    for key in {"jobSpec", "trialJobSpec"} & fields.keys():
        _default_replicas(fields[key])


# ------------------------------------------------------------------ from requests


def of_message(message: Any, name: str) -> JobFile:
    """Return a CustomJob, HyperparameterTuningJob or CustomJobSpec, as raw protobuf, checked; only the last is copied.

    Raises:
        SpecError: with the `field` of the message and the `problem`.
    """
    bare = message.DESCRIPTOR.name == "CustomJobSpec"
    job = JobFile(name, None, _custom_job(message) if bare else message, bare=bare)
    rules.check(job.spec, job.spec_error)
    return job
