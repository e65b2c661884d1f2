"""What people see of a study: a line for each change of a trial; on a terminal, a live table with the best on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..job import times
from . import measurements, trials
from .parameters import walk
from .study import Study
from .trials import Trial


def table(study: Study, everyone: Sequence[Trial], room: int) -> Any:
    """Return rich's table with at most `room` rows: the best trials on top, and always those that run."""
    from rich.table import Table

    names = [parameter.id for parameter in walk(study.parameters)]
    grid = Table("trial", "state", *(metric.id for metric in study.metrics), "step", "time", *names)
    over, active = ranked(study, everyone), [trial for trial in everyone if "endTime" not in trial]
    best = {trial["id"] for trial in measurements.best(study, everyone)}
    kept = over if len(over) + len(active) <= room else over[: max(1, room - len(active) - 1)]
    styles = {trials.SUCCEEDED: None, trials.INFEASIBLE: "red"}
    for trial in kept:
        grid.add_row(*_row(study, trial, names), style="bold green" if trial["id"] in best else styles.get(trial["state"]))
    if len(kept) < len(over):
        grid.add_row("…", f"{len(over) - len(kept)} more")
    for trial in active:
        grid.add_row(*_row(study, trial, names), style="cyan")
    return grid


def _row(study: Study, trial: Trial, names: Sequence[str]) -> list[str]:
    values, step = _newest(trial)
    drawn = trials.parameters(trial)
    shown = [f"{values[metric.id]:.5g}" if metric.id in values else "" for metric in study.metrics]
    parameters = [_short(drawn[name]) if name in drawn else "-" for name in names]
    return [trial["id"], trial["state"], *shown, step, f"{times.spent(trial):.1f} s", *parameters]


def ranked(study: Study, everyone: Sequence[Trial]) -> list[Trial]:
    """Return the trials that are over: the best first, infeasible ones last."""
    first = {trial["id"]: place for place, trial in enumerate(measurements.best(study, everyone))}
    metric = study.objectives[0]

    def order(trial: Trial) -> tuple:
        values = trials.final_values(trial)
        if values is None:
            return (2, 0.0, int(trial["id"]))
        return (0 if trial["id"] in first else 1, -values[metric.id] if metric.maximize else values[metric.id], int(trial["id"]))

    return sorted((trial for trial in everyone if "endTime" in trial), key=order)


def describe(study: Study, trial: Trial, everyone: Sequence[Trial]) -> str:
    """Return one line about a trial's state."""
    head = f"trial {trial['id']} {trial['state']}"
    if trial["state"] == trials.INFEASIBLE:
        return f"{head}: {trial['infeasibleReason']} (job {trial['customJob']})"
    if trial["state"] != trials.SUCCEEDED:
        return f"{head}: {', '.join(f'{name} {_short(value)}' for name, value in trials.parameters(trial).items())}"
    values, step = _newest(trial)
    text = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
    is_best = trial["id"] in [other["id"] for other in measurements.best(study, everyone)]
    return f"{head}: {text} at step {step}, {times.spent(trial):.1f} s{' (best so far)' if is_best else ''}"


def _newest(trial: Trial) -> tuple[dict[str, float], str]:
    measured = trial.get("finalMeasurement") or (trial["measurements"][-1] if trial["measurements"] else None)
    return (measurements.value_of(measured), measured["stepCount"]) if measured else ({}, "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
