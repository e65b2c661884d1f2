"""HyperparameterTuningJob files as `gcloud ai hp-tuning-jobs create --config` takes them: what a study looks for, and where."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..job import spec
from ..job.schema import SpecError, Tree, parse, top_keys

DOUBLE, INTEGER, DISCRETE, CATEGORICAL = KINDS = ("double", "integer", "discrete", "categorical")
LINEAR, LOG, REVERSE_LOG = (f"UNIT_{name}_SCALE" for name in ("LINEAR", "LOG", "REVERSE_LOG"))
_NOT_IMITATED = {
    "decayCurveStoppingSpec": "no trial is stopped early",
    "convexAutomatedStoppingSpec": "no trial is stopped early",
    "observationNoise": "the search knows no noise level",
}
_FLAG = re.compile(r"[A-Za-z_][\w.-]*")
_APART = 1e-10  # the service's least distance of two discrete values
_RULES = ("minNumTrials", "maxNumTrials", "maxNumTrialsNoProgress")


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
    """What a tuning file says; `message` is the whole checked job, `notes` name what a local run does not imitate."""

    name: str
    text: str
    message: dict[str, Any]
    job: spec.JobSpec
    metrics: tuple[Metric, ...]
    parameters: tuple[Parameter, ...]
    max_trials: int
    parallel: int
    max_failed: int
    algorithm: str
    best_measurement: bool
    median_stopping: bool
    by_elapsed: bool
    stopping: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def objectives(self) -> tuple[Metric, ...]:
        """The metrics that are optimised."""
        return tuple(metric for metric in self.metrics if metric.threshold is None)


def load(path: str | Path, given: Mapping[str, str] | None = None) -> Study:
    """Read a tuning file; `given` are settings that flags gave."""
    return loads(spec.read(path, given), str(path))


def loads(text: str, name: str) -> Study:
    """Read a study from text; `name` stands for the file in messages.

    Raises:
        SpecError: file and line of what the service would refuse, or what cannot be searched.
    """
    keys = top_keys(text, name)
    if "workerPoolSpecs" in keys or "jobSpec" in keys:
        raise SpecError(f"{name}:1: this is a custom job, for `run`; give a HyperparameterTuningJob, with studySpec and trialJobSpec.")
    tree = parse(text, name, "HyperparameterTuningJob")
    message = tree.message
    for key in ("studySpec", "trialJobSpec"):
        if not message.get(key):
            raise tree.error((key,), "is required.")
    study = message["studySpec"]
    metrics = _metrics(tree, study.get("metrics", []))
    seen: set[str] = set()
    parameters = tuple(
        _parameter(tree, raw, ("studySpec", "parameters", i), seen) for i, raw in enumerate(study.get("parameters", []))
    )
    if not parameters:
        raise tree.error(("studySpec", "parameters"), "needs at least one parameter.")
    algorithm = study.get("algorithm", "ALGORITHM_UNSPECIFIED")
    median = study.get("medianAutomatedStoppingSpec")
    return Study(
        name, text, message, spec.trial_job(tree, text), metrics, parameters, **_counts(tree),
        algorithm=check_algorithm(algorithm, parameters, lambda problem: tree.error(("studySpec", "algorithm"), problem)),
        best_measurement=study.get("measurementSelectionType") == "BEST_MEASUREMENT",
        median_stopping=median is not None,
        by_elapsed=bool(median and median.get("useElapsedDuration")),
        stopping=_stopping(tree, study.get("studyStoppingConfig", {})),
        notes=tuple(_notes(study, metrics, parameters, median is not None)),
    )  # fmt: skip


def walk(parameters: tuple[Parameter, ...]) -> Iterator[Parameter]:
    """Yield every parameter of a tree, parents before children."""
    for parameter in parameters:
        yield parameter
        yield from walk(tuple(child for _, child in parameter.children))


def check_algorithm(name: str, parameters: tuple[Parameter, ...], error: Any) -> str:
    """Return the algorithm's name if it can search `parameters`; else raise what `error` makes of the problem."""
    doubles = [parameter.id for parameter in walk(parameters) if parameter.kind == DOUBLE]
    if name == "GRID_SEARCH" and doubles:
        raise error(f"GRID_SEARCH takes no doubleValueSpec, which {', '.join(doubles)} would need; write discreteValueSpec.")
    return name


def _metrics(tree: Tree, raw: list[dict[str, Any]]) -> tuple[Metric, ...]:
    at, found = ("studySpec", "metrics"), []
    for i, item in enumerate(raw):
        name = item.get("metricId", "")
        if not name or re.search(r"\s", name):
            raise tree.error((*at, i, "metricId"), f"takes the tag that the trainer reports, without whitespace; got {name!r}.")
        if name in [metric.id for metric in found]:
            raise tree.error((*at, i, "metricId"), f"{name!r} is there twice; keep one.")
        safety = item.get("safetyConfig")
        threshold = None if safety is None else float(safety.get("safetyThreshold", 0))
        found.append(Metric(name, item.get("goal") != "MINIMIZE", threshold))  # unspecified means maximise
    if not any(metric.threshold is None for metric in found):
        raise tree.error(at, "needs at least one metric to optimise, which is one without safetyConfig.")
    return tuple(found)


def _parameter(tree: Tree, raw: dict[str, Any], path: tuple, seen: set[str]) -> Parameter:
    name = raw.get("parameterId", "")
    if not _FLAG.fullmatch(name):
        raise tree.error((*path, "parameterId"), f"takes the name of the trainer's flag without '--', such as lr; got {name!r}.")
    if name in seen:
        raise tree.error((*path, "parameterId"), f"{name!r} is there twice; every id is one flag.")
    seen.add(name)
    kind = next((kind for kind in KINDS if f"{kind}ValueSpec" in raw), None)
    if kind is None:
        raise tree.error(path, f"{name} needs one of {', '.join(f'{kind}ValueSpec' for kind in KINDS)}.")
    values, at, scale = raw[f"{kind}ValueSpec"], (*path, f"{kind}ValueSpec"), raw.get("scaleType", "SCALE_TYPE_UNSPECIFIED")
    if kind in (DOUBLE, INTEGER):
        low, high = values.get("minValue", 0), values.get("maxValue", 0)
        if not low <= high or not math.isfinite(high - low):
            raise tree.error((*at, "minValue"), f"must be at most maxValue, both finite; got {low} and {high}.")
        choices: tuple[Any, ...] = ()
    else:
        choices = (_discrete if kind == DISCRETE else _categories)(tree, values.get("values", []), (*at, "values"))
        low, high = (choices[0], choices[-1]) if kind == DISCRETE else (0, 0)
    if kind == CATEGORICAL and scale != "SCALE_TYPE_UNSPECIFIED":
        raise tree.error((*path, "scaleType"), f"{name} is categorical, which has no scale; leave it out.")
    if scale in (LOG, REVERSE_LOG) and low <= 0:
        raise tree.error((*path, "scaleType"), f"{scale} takes strictly positive values; the smallest of {name} is {low}.")
    children = tuple(
        _child(tree, child, (*path, "conditionalParameterSpecs", i), Parameter(name, kind, scale, low, high, choices), seen)
        for i, child in enumerate(raw.get("conditionalParameterSpecs", []))
    )
    return Parameter(name, kind, scale, low, high, choices, children)


def _discrete(tree: Tree, values: list[float], path: tuple) -> tuple[float, ...]:
    if not 1 <= len(values) <= 1000:
        raise tree.error(path, f"takes 1 to 1000 numbers; got {len(values)}.")
    for a, b in zip(values, values[1:] + [math.inf]):
        if not b - a >= _APART:
            raise tree.error(path, f"must be finite and ascend, at least {_APART:g} apart; got {a} before {b}.")
    return tuple(map(float, values))


def _categories(tree: Tree, values: list[str], path: tuple) -> tuple[str, ...]:
    if not values or len(set(values)) < len(values):
        raise tree.error(path, f"takes one or more different texts; got {values}.")
    return tuple(values)


def _child(tree: Tree, raw: dict[str, Any], path: tuple, parent: Parameter, seen: set[str]) -> tuple[tuple, Parameter]:
    keys = {INTEGER: "parentIntValues", DISCRETE: "parentDiscreteValues", CATEGORICAL: "parentCategoricalValues"}
    key = keys.get(parent.kind)
    if key is None:
        raise tree.error(path, f"{parent.id} is a double, whose values cannot be named; the parent takes another kind.")
    given = [other for other in keys.values() if other in raw]
    if given != [key]:
        raise tree.error(path, f"needs {key}, since {parent.id} is {parent.kind}; got {given[0] if given else 'none'}.")
    values = tuple(raw[key].get("values", ()))
    if not values:
        raise tree.error((*path, key), f"needs the values of {parent.id} for which the parameter is active.")
    for value in values:
        if parent.kind == INTEGER:
            possible = parent.low <= value <= parent.high
        else:
            possible = any(value == other or parent.kind == DISCRETE and abs(value - other) <= _APART for other in parent.values)
        if not possible:
            raise tree.error((*path, key, "values"), f"{parent.id} never takes {value!r}.")
    if not raw.get("parameterSpec"):
        raise tree.error(path, "needs parameterSpec.")
    return values, _parameter(tree, raw["parameterSpec"], (*path, "parameterSpec"), seen)


def _counts(tree: Tree) -> dict[str, int]:
    """Return the counts; one that is missing or 0 is what gcloud sends then."""
    raw = tree.message
    for key in ("maxTrialCount", "parallelTrialCount", "maxFailedTrialCount"):
        if raw.get(key, 0) < 0:
            raise tree.error((key,), f"takes a whole number from 0 on; got {raw[key]}.")
    trials, failed = raw.get("maxTrialCount") or 1, raw.get("maxFailedTrialCount", 0)
    if failed > trials:
        raise tree.error(("maxFailedTrialCount",), f"must be at most maxTrialCount, {trials}; got {failed}.")
    return {"max_trials": trials, "parallel": raw.get("parallelTrialCount") or 1, "max_failed": failed}


def _stopping(tree: Tree, raw: dict[str, Any]) -> dict[str, Any]:
    """Return studyStoppingConfig with durations in seconds and times in seconds since 1970."""
    at, found = ("studySpec", "studyStoppingConfig"), dict(raw)
    for key in _RULES:
        if key in raw and (isinstance(raw[key], bool) or not isinstance(raw[key], int) or raw[key] < 1):
            raise tree.error((*at, key), f"takes a whole number from 1 on; got {raw[key]!r}.")
    if not isinstance(raw.get("shouldStopAsap", False), bool):
        raise tree.error((*at, "shouldStopAsap"), f"takes true or false; got {raw['shouldStopAsap']!r}.")
    if "maxDurationNoProgress" in raw:
        found["maxDurationNoProgress"] = float(raw["maxDurationNoProgress"][:-1])
    for key in ("minimumRuntimeConstraint", "maximumRuntimeConstraint"):
        if key not in raw:
            continue
        if not raw[key]:
            raise tree.error((*at, key), "needs maxDuration or endTime.")
        if "maxDuration" in raw[key]:
            found[key] = {"maxDuration": float(raw[key]["maxDuration"][:-1])}
        else:
            found[key] = {"endTime": to_seconds(raw[key]["endTime"])}
    return found


def to_seconds(time: str) -> float:
    """Return a time of the API's in seconds since 1970."""
    # Before 3.11 fromisoformat knows no Z, nor more than six digits of a second.
    text = re.sub(r"(\.\d{6})\d+", r"\1", time).replace("Z", "+00:00")
    return datetime.datetime.fromisoformat(text).timestamp()


def _notes(study: dict[str, Any], metrics: tuple[Metric, ...], parameters: tuple[Parameter, ...], median: bool) -> Iterator[str]:
    for key, effect in _NOT_IMITATED.items():
        if key in study and study[key] != "OBSERVATION_NOISE_UNSPECIFIED":
            yield f"{key} is not imitated here: {effect}"
    optimised = [metric for metric in metrics if metric.threshold is None]
    if len(optimised) > 1:
        yield f"several metrics are optimised together: {', '.join(metric.id for metric in optimised)}"
        if median:
            yield "medianAutomatedStoppingSpec needs a single metric: no trial is stopped early"
    for metric in metrics:
        if metric.threshold is not None:
            side = "at least" if metric.maximize else "at most"
            yield f"{metric.id} is not optimised: trials are to keep it {side} {metric.threshold:g}"
    if '"defaultValue"' in json.dumps(study.get("parameters")):
        yield "defaultValue is for Vizier only: the search does not start from it"
