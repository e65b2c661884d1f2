"""A tuning job: its trials, best on top, and pictures of the search."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...job import job_file, times
from ...job.schema import SpecError
from ...serve import messages
from .. import charts
from ..app import Visit, href
from ..text import number as short
from .job_pages import job_page
from .jobs import read_result

_MOST_TRIALS = 12  # whose curves are drawn over one another


@job_page("hyperparameterTuningJobs", "study.html", "tuning job")
def shown(visit: Visit, job: dict[str, Any], number: str) -> dict[str, Any]:
    """Show a tuning job."""
    trials, study = job.get("trials", []), job["studySpec"]
    metrics = [metric["metricId"] for metric in study["metrics"]]
    signs = [1 if metric.get("goal") == "MINIMIZE" else -1 for metric in study["metrics"]]
    ranked = sorted(trials, key=lambda trial: (_values(trial).get(metrics[0]) is None, signs[0] * _values(trial).get(metrics[0], 0.0)))
    best = {ranked[0]["id"]} if ranked and metrics[0] in _values(ranked[0]) and len(metrics) == 1 else set()
    parameters = list(dict.fromkeys(each["parameterId"] for trial in trials for each in trial.get("parameters", [])))
    jobs = visit.local.state / "jobs"
    return {
        "done": sum("endTime" in trial for trial in trials), "metrics": metrics, "parameters": parameters,
        "goal": ", ".join(f"{metric.get('goal', '').lower()} {metric['metricId']}" for metric in study["metrics"]),
        "trials": [_row(trial, metrics, parameters, best, jobs, number) for trial in ranked],
        "charts": list(_charts(job, metrics, parameters, best)), "curves": _curves(visit, jobs, number, ranked),
        "spec": {"studySpec": study, "trialJobSpec": job["trialJobSpec"]},
    }  # fmt: skip


def _values(trial: Mapping[str, Any]) -> dict[str, float]:
    measured = trial.get("finalMeasurement", {}).get("metrics", [])
    return {each["metricId"]: each.get("value", 0.0) for each in measured}  # the API's JSON leaves a nought out


def _drawn(trial: Mapping[str, Any]) -> dict[str, Any]:
    return {each["parameterId"]: each.get("value") for each in trial.get("parameters", [])}


def _row(
    trial: Mapping[str, Any], metrics: Sequence[str], parameters: Sequence[str], best: set[str], jobs: Path, number: str
) -> dict[str, Any]:  # fmt: skip
    values, drawn, final = _values(trial), _drawn(trial), trial.get("finalMeasurement", {})
    own, spent = f"{number}-trial-{trial['id']}", ""
    if "startTime" in trial and "endTime" in trial:
        spent = times.describe(times.seconds(trial["endTime"]) - times.seconds(trial["startTime"]))
    return {
        "id": trial["id"], "state": trial["state"], "best": trial["id"] in best, "step": final.get("stepCount", ""), "duration": spent,
        "metrics": [short(values[name]) if name in values else "" for name in metrics],
        "parameters": [short(drawn[name]) if name in drawn else "" for name in parameters],
        "why": trial.get("infeasibleReason", ""),
        "log": href(f"/logs/{own}/workerpool0-0") if (jobs / own / "logs" / "workerpool0-0.log").exists() else "",
    }  # fmt: skip


def _charts(job: Mapping[str, Any], metrics: Sequence[str], parameters: Sequence[str], best: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the search's history, the trials over parallel coordinates, and the parameters' importance."""
    study, done = job["studySpec"], [trial for trial in job.get("trials", []) if metrics[0] in _values(trial)]
    values = [(int(trial["id"]), _values(trial)[metrics[0]]) for trial in done]
    sign = min if study["metrics"][0].get("goal") == "MINIMIZE" else max
    reached = [(number, sign(value for _, value in values[: i + 1])) for i, (number, value) in enumerate(values)]
    if values:
        yield f"History of {metrics[0]}", charts.lines([charts.Series("best so far", reached), charts.Series("trial", values)], "trial")
    if len(done) > 1 and parameters:
        logs = {each["parameterId"] for each in study.get("parameters", []) if each.get("scaleType") in ("UNIT_LOG_SCALE",)}
        axes = [charts.Coordinate(name, [_drawn(trial).get(name) for trial in done], name in logs) for name in parameters]
        axes += [charts.Coordinate(name, [_values(trial).get(name) for trial in done]) for name in metrics]
        marked = {i for i, trial in enumerate(done) if trial["id"] in best}
        yield "Parameters and metrics of each trial", charts.parallel(axes, [f"trial {trial['id']}" for trial in done], marked)
    if shares := _importance(job):
        yield f"Importance of the parameters for {metrics[0]}", charts.bars(shares)


def _importance(job: Mapping[str, Any]) -> dict[str, float]:
    from ...tuning import importance, study  # Optuna, which the other pages do not need

    done = [trial for trial in job.get("trials", []) if trial["state"] == "SUCCEEDED"]
    with contextlib.suppress(SpecError):  # of a record that an older version kept
        return importance.of(study.of(job_file.of_message(messages.read(job, "HyperparameterTuningJob"), "job")), done)
    return {}


def _curves(visit: Visit, jobs: Path, number: str, ranked: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Return charts in which the trials' validation curves lie over one another, those of the best trials."""
    series: dict[str, list[charts.Series]] = {}
    for trial in ranked[:_MOST_TRIALS]:
        result = read_result(jobs / f"{number}-trial-{trial['id']}")
        folder = Path(result.get("outputs", {}).get("AIP_TENSORBOARD_LOG_DIR") or "/nonexistent")
        for tag, runs in visit.console.curves.of(folder).items():
            curve = runs.get("validation")
            if curve and len(curve.steps) > 1:
                series.setdefault(tag, []).append(charts.Series(f"trial {trial['id']}", list(zip(curve.steps, curve.values))))
    return [(f"validation {tag}", charts.lines(found)) for tag, found in sorted(series.items())]
