"""HyperparameterTuningJobs as `gcloud ai hp-tuning-jobs create --config` takes them: what a study looks for, and where."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import quoted
from ..job import job_file, times
from ..job.job_file import JobFile

DOUBLE, INTEGER, DISCRETE, CATEGORICAL = KINDS = ("double", "integer", "discrete", "categorical")
LINEAR, LOG, REVERSE_LOG = (f"UNIT_{name}_SCALE" for name in ("LINEAR", "LOG", "REVERSE_LOG"))
NO_SCALE = "SCALE_TYPE_UNSPECIFIED"
ALGORITHMS = {"bayesian": "ALGORITHM_UNSPECIFIED", "random-search": "RANDOM_SEARCH", "grid-search": "GRID_SEARCH"}
_NOT_IMITATED = {
    "decayCurveStoppingSpec": "no trial is stopped early",
    "convexAutomatedStoppingSpec": "no trial is stopped early",
    "observationNoise": "the search knows no noise level",
}
_FLAG = re.compile(r"[A-Za-z_][\w.-]*")
_APART = 1e-10  # the service's least distance of two discrete values


@dataclass(frozen=True)
class Metric:
    """What trials report; one with a `threshold` must stay on its good side and is not optimised."""

    id: str
    maximize: bool
    threshold: float | None = None


@dataclass(frozen=True)
class Parameter:
    """One parameter, whose id is the trainer's flag; each of `children` is active for some of its values only."""

    id: str
    kind: str
    scale: str
    low: float = 0
    high: float = 0
    values: tuple[Any, ...] = ()
    children: tuple[tuple[tuple[Any, ...], Parameter], ...] = ()

    def active(self, value: Any) -> Iterator[Parameter]:
        """Yield the children that this parameter's `value` makes active."""
        for values, child in self.children:
            if value in values or any(isinstance(value, float) and abs(value - other) <= _APART for other in values):
                yield child


@dataclass(frozen=True)
class Study:
    """A checked tuning job: all of it is read from `job`, its message; `metrics` and `parameters` are that message's own."""

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
        """How many trials there are; a count that is missing or 0 is what gcloud sends then."""
        return self.message.max_trial_count or 1

    @property
    def parallel(self) -> int:
        """How many of them run at a time."""
        return self.message.parallel_trial_count or 1

    @property
    def max_failed(self) -> int:
        """How many failed trials end the job; at 0 the first one does."""
        return self.message.max_failed_trial_count

    @property
    def algorithm(self) -> str:
        """How it searches."""
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
        """What a local run does not imitate, a line each."""
        return tuple(_notes(self))

    def edited(self, **fields: Any) -> Study:
        """Return a study with other counts, such as max_trial_count, or another `algorithm` or `output`; checked again."""

        def edit(job: JobFile) -> None:
            for name, value in fields.items():
                if name == "algorithm":
                    job.message.study_spec.algorithm = type(job.message.study_spec).Algorithm.Value(value)
                elif name == "output":
                    job.spec.base_output_directory.output_uri_prefix = value
                else:
                    setattr(job.message, name, value)

        return of(self.job.edited(edit))

    def with_args(self, args: Any) -> Study:
        """Return a study whose trials get `args` after their own arguments."""
        return dataclasses.replace(self, job=self.job.with_args(args))


def load(path: str | Path, given: Mapping[str, str] | None = None) -> Study:
    """Read a tuning file; `given` are settings that flags gave."""
    return of(job_file.read(path, given, (job_file.TUNING,)))


def loads(text: str, name: str) -> Study:
    """Read a study from text; `name` stands for the file in messages.

    Raises:
        SpecError: file and line of what the service would refuse, or what cannot be searched.
    """
    return of(job_file.parse(text, name, (job_file.TUNING,)))


def of(job: JobFile) -> Study:
    """Return the study of a HyperparameterTuningJob; raise a SpecError for the first of the study's rules that it breaks."""
    for field, key in (("study_spec", "studySpec"), ("trial_job_spec", "trialJobSpec")):
        if not getattr(job.message, field).ByteSize():
            raise job.error((key,), "is required.")
    spec = job.message.study_spec
    metrics, seen = _metrics(job, spec.metrics), set()
    parameters = tuple(_parameter(job, raw, ("studySpec", "parameters", i), seen) for i, raw in enumerate(spec.parameters))
    if not parameters:
        raise job.error(("studySpec", "parameters"), "needs at least one parameter.")
    _check_counts(job)
    _check_stopping(job, spec.study_stopping_config)
    study = Study(job, metrics, parameters)
    doubles = [parameter.id for parameter in walk(parameters) if parameter.kind == DOUBLE]
    if study.algorithm == "GRID_SEARCH" and doubles:
        problem = f"GRID_SEARCH takes no doubleValueSpec, which {', '.join(doubles)} would need; write discreteValueSpec."
        raise job.error(("studySpec", "algorithm"), problem)
    return study


def walk(parameters: tuple[Parameter, ...]) -> Iterator[Parameter]:
    """Yield every parameter of a tree, parents before children."""
    for parameter in parameters:
        yield parameter
        yield from walk(tuple(child for _, child in parameter.children))


def _metrics(job: JobFile, raw: Any) -> tuple[Metric, ...]:
    at, found = ("studySpec", "metrics"), []
    for i, item in enumerate(raw):
        name = item.metric_id
        if not name or re.search(r"\s", name):
            problem = f"takes the tag that the trainer reports, without whitespace; got {quoted(name)}."
            raise job.error((*at, i, "metricId"), problem)
        if name in [metric.id for metric in found]:
            raise job.error((*at, i, "metricId"), f"{quoted(name)} is there twice; keep one.")
        threshold = item.safety_config.safety_threshold if item.HasField("safety_config") else None
        found.append(Metric(name, item.GoalType.Name(item.goal) != "MINIMIZE", threshold))  # unspecified means maximise
    if not any(metric.threshold is None for metric in found):
        raise job.error(at, "needs at least one metric to optimise, which is one without safetyConfig.")
    return tuple(found)


def _parameter(job: JobFile, raw: Any, path: tuple, seen: set[str]) -> Parameter:
    name, kind = raw.parameter_id, (raw.WhichOneof("parameter_value_spec") or "").removesuffix("_value_spec")
    if not _FLAG.fullmatch(name):
        problem = f"takes the name of the trainer's flag without '--', such as lr; got {quoted(name)}."
        raise job.error((*path, "parameterId"), problem)
    if name in seen:
        raise job.error((*path, "parameterId"), f"{quoted(name)} is there twice; every id is one flag.")
    seen.add(name)
    if not kind:
        raise job.error(path, f"{name} needs one of {', '.join(f'{kind}ValueSpec' for kind in KINDS)}.")
    low, high, choices = _range(job, getattr(raw, f"{kind}_value_spec"), kind, (*path, f"{kind}ValueSpec"))
    parameter = Parameter(name, kind, raw.ScaleType.Name(raw.scale_type), low, high, choices)
    if kind == CATEGORICAL and parameter.scale != NO_SCALE:
        raise job.error((*path, "scaleType"), f"{name} is categorical, which has no scale; leave it out.")
    if parameter.scale in (LOG, REVERSE_LOG) and low <= 0:
        problem = f"{parameter.scale} takes strictly positive values; the smallest of {name} is {low}."
        raise job.error((*path, "scaleType"), problem)
    children = tuple(
        _child(job, child, (*path, "conditionalParameterSpecs", i), parameter, seen)
        for i, child in enumerate(raw.conditional_parameter_specs)
    )
    return dataclasses.replace(parameter, children=children)


def _range(job: JobFile, values: Any, kind: str, path: tuple) -> tuple[float, float, tuple[Any, ...]]:
    """Return (smallest, largest, listed values) of a parameter."""
    if kind in (DOUBLE, INTEGER):
        low, high = values.min_value, values.max_value
        if not low <= high or not math.isfinite(high - low):
            raise job.error((*path, "minValue"), f"must be at most maxValue, both finite; got {low} and {high}.")
        return low, high, ()
    path = (*path, "values")
    if kind == CATEGORICAL:
        texts = tuple(values.values)
        if not texts or len(set(texts)) < len(texts):
            raise job.error(path, f"takes one or more different texts; got {quoted(list(texts))}.")
        return 0, 0, texts
    numbers = tuple(values.values)
    if not 1 <= len(numbers) <= 1000:
        raise job.error(path, f"takes 1 to 1000 numbers; got {len(numbers)}.")
    for a, b in zip(numbers, (*numbers[1:], math.inf)):
        if not b - a >= _APART:
            raise job.error(path, f"must be finite and ascend, at least {_APART:g} apart; got {a} before {b}.")
    return numbers[0], numbers[-1], numbers


def _child(job: JobFile, raw: Any, path: tuple, parent: Parameter, seen: set[str]) -> tuple[tuple, Parameter]:
    keys = {INTEGER: "parentIntValues", DISCRETE: "parentDiscreteValues", CATEGORICAL: "parentCategoricalValues"}
    key = keys.get(parent.kind)
    if key is None:
        raise job.error(path, f"{parent.id} is a double, whose values cannot be named; the parent takes another kind.")
    field = raw.WhichOneof("parent_value_condition")
    given = raw.DESCRIPTOR.fields_by_name[field].json_name if field else "none"
    if given != key:
        raise job.error(path, f"needs {key}, since {parent.id} is {parent.kind}; got {given}.")
    values = tuple(getattr(raw, field).values)
    if not values:
        raise job.error((*path, key), f"needs the values of {parent.id} for which the parameter is active.")
    for value in values:
        if not _takes(parent, value):
            raise job.error((*path, key, "values"), f"{parent.id} never takes {quoted(value)}.")
    if not raw.parameter_spec.ByteSize():
        raise job.error(path, "needs parameterSpec.")
    return values, _parameter(job, raw.parameter_spec, (*path, "parameterSpec"), seen)


def _takes(parent: Parameter, value: Any) -> bool:
    if parent.kind == INTEGER:
        return parent.low <= value <= parent.high
    return any(value == other or parent.kind == DISCRETE and abs(value - other) <= _APART for other in parent.values)


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
    if any(_has_default(raw) for raw in study.spec.parameters):
        yield "defaultValue is for Vizier only: the search does not start from it"


def _has_default(raw: Any) -> bool:
    kind = raw.WhichOneof("parameter_value_spec")
    return getattr(raw, kind).HasField("default_value") or any(_has_default(c.parameter_spec) for c in raw.conditional_parameter_specs)
