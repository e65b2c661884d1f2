"""A tuning job: its trials, best on top, and pictures of the search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...job import job_file, times
from ...job.schema import SpecError
from ...serve import messages
from ...serve.rest import ApiError
from ...tuning import importance, measurements, study, trials, tuning_report
from ...tuning.parameters import LOG, walk
from ...tuning.study import Study
from ...tuning.trials import Trial
from .. import charts
from ..app import Visit, href
from ..text import number as short
from .job_pages import job_page
from .jobs import log_dir

_MOST_TRIALS = 12  # whose curves are drawn over one another


@job_page("hyperparameterTuningJobs", "study.html", "tuning job")
def shown(visit: Visit, job: dict[str, Any], number: str) -> dict[str, Any]:
    """Show a tuning job."""
    try:
        asked = study.of(job_file.of_message(messages.read(job, "HyperparameterTuningJob"), "job"))
    except SpecError as error:  # of a record that an older version kept
        raise ApiError("FAILED_PRECONDITION", f"{str(error).rstrip('.')}; create the job again, by today's rules.") from None
    everyone, folder = job.get("trials", []), visit.local.state / "jobs"
    ranked = [*tuning_report.ranked(asked, everyone), *(trial for trial in everyone if "endTime" not in trial)]
    best = {trial["id"] for trial in measurements.best(asked, everyone)}
    parameters = [parameter.id for parameter in walk(asked.parameters)]
    return {
        "done": sum("endTime" in trial for trial in everyone), "metrics": [metric.id for metric in asked.metrics],
        "goal": ", ".join(f"{'maximize' if metric.maximize else 'minimize'} {metric.id}" for metric in asked.objectives),
        "parameters": parameters,
        "trials": [_row(asked, trial, parameters, best, folder / f"{number}-trial-{trial['id']}") for trial in ranked],
        "charts": list(_charts(asked, everyone, parameters, best)), "curves": _curves(visit, folder, number, ranked),
        "spec": {"studySpec": job["studySpec"], "trialJobSpec": job["trialJobSpec"]},
    }  # fmt: skip


def _row(asked: Study, trial: Trial, parameters: Sequence[str], best: set[str], folder: Path) -> dict[str, Any]:
    final, drawn = trial.get("finalMeasurement", {}), trials.parameters(trial)
    values, spent = measurements.value_of(final), ""
    if "startTime" in trial and "endTime" in trial:
        spent = times.describe(times.seconds(trial["endTime"]) - times.seconds(trial["startTime"]))
    return {
        "id": trial["id"], "state": trial["state"], "best": trial["id"] in best, "step": final.get("stepCount", ""), "duration": spent,
        "metrics": [short(values[metric.id]) if metric.id in values else "" for metric in asked.metrics],
        "parameters": [short(drawn[name]) if name in drawn else "" for name in parameters],
        "why": trial.get("infeasibleReason", ""),
        "log": href(f"/logs/{folder.name}/workerpool0-0") if (folder / "logs" / "workerpool0-0.log").exists() else "",
    }  # fmt: skip


def _charts(asked: Study, everyone: Sequence[Trial], parameters: Sequence[str], best: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the search's history, the trials over parallel coordinates, and the parameters' importance."""
    metric, done = asked.objectives[0], [trial for trial in everyone if trial["state"] == trials.SUCCEEDED]
    found = [measurements.value_of(trial["finalMeasurement"]) for trial in done]
    values = [(int(trial["id"]), each[metric.id]) for trial, each in zip(done, found)]
    better = max if metric.maximize else min
    reached = [(number, better(value for _, value in values[: i + 1])) for i, (number, _) in enumerate(values)]
    if values:
        yield f"History of {metric.id}", charts.lines([charts.Series("best so far", reached), charts.Series("trial", values)], "trial")
    if len(done) > 1 and parameters:
        drawn = [trials.parameters(trial) for trial in done]
        axes = [charts.Coordinate(each.id, [row.get(each.id) for row in drawn], each.scale == LOG) for each in walk(asked.parameters)]
        axes += [charts.Coordinate(each.id, [row.get(each.id) for row in found]) for each in asked.metrics]
        marked = {i for i, trial in enumerate(done) if trial["id"] in best}
        yield "Parameters and metrics of each trial", charts.parallel(axes, [f"trial {trial['id']}" for trial in done], marked)
    if shares := importance.of(asked, done):
        yield f"Importance of the parameters for {metric.id}", charts.bars(shares)


def _curves(visit: Visit, jobs: Path, number: str, ranked: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Return charts in which the trials' validation curves lie over one another, those of the best trials."""
    series: dict[str, list[charts.Series]] = {}
    for trial in ranked[:_MOST_TRIALS]:
        for tag, runs in visit.console.curves.of(log_dir(jobs / f"{number}-trial-{trial['id']}")).items():
            curve = runs.get("validation")
            if curve and len(curve.steps) > 1:
                series.setdefault(tag, []).append(charts.Series(f"trial {trial['id']}", list(zip(curve.steps, curve.values))))
    return [(f"validation {tag}", charts.lines(found)) for tag, found in sorted(series.items())]
