"""A study's metrics and parameters, read from its message and checked by rules that the API's types do not express."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import quoted
from ..job.job_file import JobFile

DOUBLE, INTEGER, DISCRETE, CATEGORICAL = KINDS = ("double", "integer", "discrete", "categorical")
LINEAR, LOG, REVERSE_LOG = (f"UNIT_{name}_SCALE" for name in ("LINEAR", "LOG", "REVERSE_LOG"))
NO_SCALE = "SCALE_TYPE_UNSPECIFIED"
_FLAG = re.compile(r"[A-Za-z_][\w.-]*")
_APART = 1e-10  # the smallest distance of two discrete values on the service


@dataclass(frozen=True)
class Metric:
    """A metric that trials report; one with a `threshold` is not optimised, but must stay on the right side of it."""

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
    place: tuple[str | int, ...] = ()  # of its id in the file

    def active(self, value: Any) -> Iterator[Parameter]:
        """Yield the children that this parameter's `value` makes active."""
        for values, child in self.children:
            if value in values or any(isinstance(value, float) and abs(value - other) <= _APART for other in values):
                yield child


def walk(parameters: tuple[Parameter, ...]) -> Iterator[Parameter]:
    """Yield every parameter of a tree, parents before children."""
    for parameter in parameters:
        yield parameter
        yield from walk(tuple(child for _, child in parameter.children))


def read_metrics(job: JobFile, raw: Any) -> tuple[Metric, ...]:
    """Return the metrics of a StudySpec."""
    at, found = ("studySpec", "metrics"), []
    for i, item in enumerate(raw):
        name = item.metric_id
        if not name or re.search(r"\s", name):
            problem = f"takes the tag that the trainer reports, without whitespace; got {quoted(name)}."
            raise job.error((*at, i, "metricId"), problem)
        if name in [metric.id for metric in found]:
            raise job.error((*at, i, "metricId"), f"{quoted(name)} appears twice; keep one.")
        threshold = item.safety_config.safety_threshold if item.HasField("safety_config") else None
        found.append(Metric(name, item.GoalType.Name(item.goal) != "MINIMIZE", threshold))  # unspecified means maximise
    if not any(metric.threshold is None for metric in found):
        raise job.error(at, "needs at least one metric to optimise, which is one without safetyConfig.")
    return tuple(found)


def read_parameters(job: JobFile, raw: Any) -> tuple[Parameter, ...]:
    """Return the parameters of a StudySpec."""
    at, seen = ("studySpec", "parameters"), set()
    found = tuple(_parameter(job, item, (*at, i), seen) for i, item in enumerate(raw))
    if not found:
        raise job.error(at, "needs at least one parameter.")
    return found


def _parameter(job: JobFile, raw: Any, path: tuple, seen: set[str]) -> Parameter:
    name, kind = raw.parameter_id, (raw.WhichOneof("parameter_value_spec") or "").removesuffix("_value_spec")
    if not _FLAG.fullmatch(name):
        problem = f"takes the name of the trainer's flag without '--', such as lr; got {quoted(name)}."
        raise job.error((*path, "parameterId"), problem)
    if name in seen:
        raise job.error((*path, "parameterId"), f"{quoted(name)} appears twice; rename one: every id is one flag.")
    seen.add(name)
    if not kind:
        raise job.error(path, f"{name} needs one of {', '.join(f'{kind}ValueSpec' for kind in KINDS)}.")
    low, high, choices = _range(job, getattr(raw, f"{kind}_value_spec"), kind, (*path, f"{kind}ValueSpec"))
    parameter = Parameter(name, kind, raw.ScaleType.Name(raw.scale_type), low, high, choices, place=(*path, "parameterId"))
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


def has_default(raw: Any) -> bool:
    """Tell whether a parameter or one of its children names a default."""
    kind = raw.WhichOneof("parameter_value_spec")
    return getattr(raw, kind).HasField("default_value") or any(has_default(c.parameter_spec) for c in raw.conditional_parameter_specs)
