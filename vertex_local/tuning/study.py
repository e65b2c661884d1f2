"""A study: a HyperparameterTuningJob in the form of `gcloud ai hp-tuning-jobs create --config`, read and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..job import job_file, times
from ..job.job_file import JobFile
from .parameters import DOUBLE, Metric, Parameter, has_default, read_metrics, read_parameters, walk

ALGORITHMS = {"bayesian": "ALGORITHM_UNSPECIFIED", "random-search": "RANDOM_SEARCH", "grid-search": "GRID_SEARCH"}
_NOT_IMITATED = {
    "decayCurveStoppingSpec": "no trial is stopped early",
    "convexAutomatedStoppingSpec": "no trial is stopped early",
    "observationNoise": "the search knows no noise level",
}


@dataclass(frozen=True)
class Study:
    """A checked tuning job; all its properties come from `job`, the message."""

    job: JobFile
    metrics: tuple[Metric, ...]
    parameters: tuple[Parameter, ...]

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.job.name

    @property
    def message(self) -> Any:
        """The HyperparameterTuningJob."""
        return self.job.message

    @property
    def spec(self) -> Any:
        """The StudySpec."""
        return self.job.message.study_spec

    @property
    def objectives(self) -> tuple[Metric, ...]:
        """The metrics that are optimised."""
        return tuple(metric for metric in self.metrics if metric.threshold is None)

    @property
    def max_trials(self) -> int:
        """How many trials there are; as with gcloud, 1 if the count is missing or 0."""
        return self.message.max_trial_count or 1

    @property
    def parallel(self) -> int:
        """How many trials run at a time."""
        return self.message.parallel_trial_count or 1

    @property
    def max_failed(self) -> int:
        """How many failed trials end the job; with 0 the first one does."""
        return self.message.max_failed_trial_count

    @property
    def algorithm(self) -> str:
        """The search algorithm, by the API's name."""
        return type(self.spec).Algorithm.Name(self.spec.algorithm)

    @property
    def best_measurement(self) -> bool:
        """Whether a trial's best measurement counts, instead of its last."""
        return type(self.spec).MeasurementSelectionType.Name(self.spec.measurement_selection_type) == "BEST_MEASUREMENT"

    @property
    def median_stopping(self) -> bool:
        """Whether trials that do worse than the median are stopped."""
        return self.spec.HasField("median_automated_stopping_spec")

    @property
    def by_elapsed(self) -> bool:
        """Whether that rule compares trials at equal times, instead of equal steps."""
        return self.spec.median_automated_stopping_spec.use_elapsed_duration

    @property
    def stopping(self) -> dict[str, Any]:
        """studyStoppingConfig with durations in seconds and times in seconds since 1970."""
        return _stopping(self.spec.study_stopping_config)

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each thing that a local run does not imitate or does differently."""
        return tuple(_notes(self))


def load(path: str | Path, given: Mapping[str, str] | None = None) -> Study:
    """Read a tuning file; `given` are settings from flags."""
    return of(job_file.read(path, given, (job_file.TUNING,)))


def loads(text: str, name: str) -> Study:
    """Read a study from text; `name` stands for the file in messages.

    Raises:
        SpecError: the service would refuse it, or it cannot be searched; the message names file and line.
    """
    return of(job_file.parse(text, name, (job_file.TUNING,)))


def of(job: JobFile) -> Study:
    """Return the study of a HyperparameterTuningJob; raise a SpecError for the first rule that it breaks."""
    for field, key in (("study_spec", "studySpec"), ("trial_job_spec", "trialJobSpec")):
        if not getattr(job.message, field).ByteSize():
            raise job.error((key,), "is required.")
    spec = job.message.study_spec
    metrics, parameters = read_metrics(job, spec.metrics), read_parameters(job, spec.parameters)
    _check_counts(job)
    _check_stopping(job, spec.study_stopping_config)
    study = Study(job, metrics, parameters)
    doubles = [parameter.id for parameter in walk(parameters) if parameter.kind == DOUBLE]
    if study.algorithm == "GRID_SEARCH" and doubles:
        problem = f"GRID_SEARCH takes no doubleValueSpec, which {', '.join(doubles)} would need; write discreteValueSpec."
        raise job.error(("studySpec", "algorithm"), problem)
    return study


def _check_counts(job: JobFile) -> None:
    message = job.message
    for field in ("max_trial_count", "parallel_trial_count", "max_failed_trial_count"):
        if getattr(message, field) < 0:
            key = message.DESCRIPTOR.fields_by_name[field].json_name
            raise job.error((key,), f"takes a whole number from 0 on; got {getattr(message, field)}.")
    trials, failed = message.max_trial_count or 1, message.max_failed_trial_count
    if failed > trials:
        raise job.error(("maxFailedTrialCount",), f"must be at most maxTrialCount, {trials}; got {failed}.")


def _check_stopping(job: JobFile, config: Any) -> None:
    at = ("studySpec", "studyStoppingConfig")
    for field, value in config.ListFields():
        if field.name in ("min_num_trials", "max_num_trials", "max_num_trials_no_progress") and value.value < 1:
            raise job.error((*at, field.json_name), f"takes a whole number from 1 on; got {value.value}.")
        if field.name.endswith("_runtime_constraint") and not value.WhichOneof("constraint"):
            raise job.error((*at, field.json_name), "needs maxDuration or endTime.")


def _stopping(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, value in config.ListFields():
        if field.name.endswith("_runtime_constraint"):
            kind = value.WhichOneof("constraint")
            limit = times.duration(value.max_duration) if kind == "max_duration" else times.seconds(value.end_time)
            found[field.json_name] = {"maxDuration" if kind == "max_duration" else "endTime": limit}
        elif field.name == "max_duration_no_progress":
            found[field.json_name] = times.duration(value)
        else:
            found[field.json_name] = value.value
    return found


def _notes(study: Study) -> Iterator[str]:
    given = {field.json_name for field, _ in study.spec.ListFields()}
    for key, effect in _NOT_IMITATED.items():
        if key in given:
            yield f"{key} is not imitated here: {effect}"
    if len(study.objectives) > 1:
        yield f"several metrics are optimised together: {', '.join(metric.id for metric in study.objectives)}"
        if study.median_stopping:
            yield "medianAutomatedStoppingSpec needs a single metric: no trial is stopped early"
    for metric in study.metrics:
        if metric.threshold is not None:
            side = "at least" if metric.maximize else "at most"
            yield f"{metric.id} is not optimised: trials are to keep it {side} {metric.threshold:g}"
    if any(has_default(raw) for raw in study.spec.parameters):
        yield "defaultValue is for Vizier only: the search does not start from it"
