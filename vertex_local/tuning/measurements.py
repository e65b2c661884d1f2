"""What trials report, as the API's measurements; the final measurement of a trial, and the best trials."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..job import times
from ..local.events import Follower
from .parameters import Metric
from .study import Study

_OTHER = {"global_step", "timestamp", "trial", "checkpoint_path"}


class Reports:
    """A trial's reports, read as they come from the supervisor's copy: hypertune's own file keeps only the newest 100."""

    def __init__(self, metric_file: Path):
        self.lost = False
        self._follower, self._seen = Follower(metric_file.with_name(f"{metric_file.name}.all")), set()

    def new(self) -> list[dict[str, Any]]:
        """Return the reports that came since the last call, each as {step, time, values}."""
        found = []
        for entry in self._follower.new():
            text = json.dumps(entry, sort_keys=True)
            if text not in self._seen:  # a restarted replica continues the file of its earlier attempt
                self._seen.add(text)
                self.lost |= "lost" in entry
                found += filter(None, [_parse(entry)])
        return found


def _parse(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return one report; None for an entry that hypertune would not write."""
    try:
        values = {name: float(value) for name, value in entry.items() if name not in _OTHER}
        return {"step": int(float(entry.get("global_step") or 0)), "time": float(entry["timestamp"]), "values": values}
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def merge(
    measurements: Sequence[dict[str, Any]], reports: Sequence[dict[str, Any]], metrics: Sequence[Metric], start: float
) -> list[dict[str, Any]]:
    """Return a trial's measurements with further reports: one for each step, the newest report of a step wins.

    Without steps, every report that repeats a metric is a measurement of its own.

    Args:
        start: when the trial began, in seconds since 1970.
    """
    known, found = {metric.id for metric in metrics}, [dict(item) for item in measurements]
    by_step = {int(item["stepCount"]): item for item in found}
    for report in reports:
        values = {name: value for name, value in report["values"].items() if name in known and math.isfinite(value)}
        if not values:
            continue
        step = report["step"]
        item = by_step.get(step)
        if item is None or not step and values.keys() & value_of(item).keys():
            item = by_step[step] = {"stepCount": str(step), "metrics": []}
            found.append(item)
        item["elapsedDuration"] = f"{max(0.0, report['time'] - start):.3f}s"
        values = {**value_of(item), **values}
        item["metrics"] = [{"metricId": metric.id, "value": values[metric.id]} for metric in metrics if metric.id in values]
    return sorted(found, key=lambda item: (int(item["stepCount"]), seconds(item)))


def value_of(measurement: Mapping[str, Any]) -> dict[str, float]:
    """Return a measurement's values by metric."""
    return {item["metricId"]: item.get("value", 0.0) for item in measurement.get("metrics", ())}  # JSON leaves a nought out


def seconds(measurement: Mapping[str, Any]) -> float:
    """Return when it was taken, in seconds since the trial's start."""
    return times.duration(measurement["elapsedDuration"])


def final(study: Study, measurements: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return a trial's final measurement: the last that holds every metric, or the best; None if there is none.

    If several metrics are optimised, the first one decides which is the best.
    """
    names = {metric.id for metric in study.metrics}
    complete = [item for item in measurements if names <= value_of(item).keys()]
    if not complete and measurements:  # metrics that are reported at steps of their own
        newest = {name: value for item in measurements for name, value in value_of(item).items()}
        if names <= newest.keys():
            return {**measurements[-1], "metrics": [{"metricId": m.id, "value": newest[m.id]} for m in study.metrics]}
    if not complete:
        return None
    if not study.best_measurement:
        return complete[-1]
    return min(complete, key=lambda item: _cost(study.objectives[0], value_of(item)))


def best(study: Study, trials: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the best trials: one, or with several metrics the Pareto front.

    Trials on the wrong side of a metric's threshold count only if every trial is.
    """
    done = [trial for trial in trials if trial["state"] == "SUCCEEDED"]
    safe = [trial for trial in done if _is_safe(study, trial)] or done
    costs = [[_cost(metric, value_of(trial["finalMeasurement"])) for metric in study.objectives] for trial in safe]
    if len(study.objectives) == 1:
        return [safe[costs.index(min(costs))]] if safe else []
    return [
        trial for trial, mine in zip(safe, costs) if not any(other != mine and all(a <= b for a, b in zip(other, mine)) for other in costs)
    ]


def excess(metric: Metric, values: Mapping[str, float]) -> float:
    """Return by how much a value is on the wrong side of its metric's threshold; at most 0 if it is not."""
    gap = values[metric.id] - (metric.threshold or 0.0)
    return -gap if metric.maximize else gap


def _is_safe(study: Study, trial: dict[str, Any]) -> bool:
    values = value_of(trial["finalMeasurement"])
    return all(excess(metric, values) <= 0 for metric in study.metrics if metric.threshold is not None)


def _cost(metric: Metric, values: dict[str, float]) -> float:
    return -values[metric.id] if metric.maximize else values[metric.id]
