"""The search behind a study: Optuna's samplers and pruner, with the trials in an SQLite file in the job's folder.

All calls must come from one thread. A trial's number is Optuna's; its id on the service is one more.
"""

from __future__ import annotations

import itertools
import math
import sqlite3
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .measurements import excess, seconds, value_of
from .parameters import CATEGORICAL, DISCRETE, INTEGER, LINEAR, LOG, REVERSE_LOG, Parameter
from .study import Study

STARTUP = 8  # trials drawn at random before the model is used
_PER_DOUBLING = 8  # points at which the pruner compares trials, for each doubling of steps or seconds


def import_optuna() -> Any:
    """Return the package, with its log messages below errors switched off; raise a UserError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"tuning needs the package optuna: pip install '.[tune]' ({error}).") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Search:
    """One study's trials, including those of earlier runs."""

    def __init__(self, study: Study, folder: Path, seed: int):
        self.optuna, self.study, self.seed = import_optuna(), study, seed
        # A function makes the connection, because SQLAlchemy's URLs cannot express every path.
        engine = {"creator": lambda: _connect(folder / "study.db")}
        self.storage = self.optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs=engine)
        directions = ["maximize" if metric.maximize else "minimize" for metric in study.objectives]
        self.inner = self.optuna.create_study(
            storage=self.storage, study_name="study", directions=directions, load_if_exists=True,
            pruner=self.optuna.pruners.MedianPruner(),
        )  # fmt: skip
        self.open: dict[int, Any] = {}
        self.told: dict[int, tuple[int, float]] = {}

    def close(self) -> None:
        self.storage.remove_session()
        self.storage.engine.dispose()

    def check(self, asked: Mapping[str, Any], name: str) -> None:
        """Raise a UserError, whose message begins with `name`, if the study was begun with values other than `asked`."""
        before = self.inner.user_attrs.get("asked")
        if before is None:
            self.inner.set_user_attr("asked", dict(asked))
        elif changed := [name for name in asked if asked[name] != before.get(name)]:
            raise UserError(f"{name} was begun with other {' and '.join(changed)}; choose another --job_id.")

    def trials(self) -> list[dict[str, Any]]:
        """Return every trial that was saved, in the API's form."""
        return [trial.user_attrs["trial"] for trial in self._all() if "trial" in trial.user_attrs]

    def cut(self) -> list[int]:
        """Return the numbers of the trials that were under way when an earlier run ended."""
        running = self.optuna.trial.TrialState.RUNNING
        return [trial.number for trial in self._all() if trial.state == running and trial.number not in self.open]

    def next(self) -> int | None:
        """Begin a trial and return its number; None if the grid has no more points."""
        trials = self._all()
        waiting = [trial for trial in trials if trial.state == self.optuna.trial.TrialState.WAITING]
        if self.study.algorithm == "GRID_SEARCH" and not waiting:
            point = next(itertools.islice(grid(self.study.parameters), len(trials), None), None)
            if point is None:
                return None
            self.inner.enqueue_trial(point)
        # Every trial has a sampler of its own, so that a continued study draws the same values as an uninterrupted one.
        self.inner.sampler = self._sampler(waiting[0].number if waiting else len(trials))
        trial = self.inner.ask()
        self.open[trial.number] = trial
        return trial.number

    def values(self, number: int) -> dict[str, Any]:
        """Return the trial's parameters; they are drawn at the first call and stay the same."""
        if number not in self.open:
            frozen = self._all()[number]
            self.inner.sampler = self._sampler(number)
            self.open[number] = self.optuna.trial.Trial(self.inner, frozen._trial_id)
            if frozen.intermediate_values:
                self.told[number] = max(frozen.intermediate_values.items())
        return draw(self.open[number], self.study.parameters)

    def save(self, number: int, trial: Mapping[str, Any]) -> None:
        """Keep a trial's API form."""
        self.open[number].set_user_attr("trial", dict(trial))

    def should_stop(self, number: int, measurements: Sequence[Mapping[str, Any]]) -> bool:
        """Tell the pruner a trial's measurements and return its verdict.

        Optuna compares trials only at equal steps, but trials report at different steps, or seconds. So each trial is
        compared at fixed points, ever further apart, with the newest value that it had at each point.
        """
        trial, metric, reported = self.open[number], self.study.objectives[0].id, False
        for index, measurement in enumerate(measurements, 1):
            value = value_of(measurement).get(metric)
            at = seconds(measurement) if self.study.by_elapsed else int(measurement["stepCount"]) or index
            point = int(_PER_DOUBLING * math.log2(max(1.0, at)))
            last, before = self.told.get(number, (point - 1, value))
            if value is None or point <= last:
                continue
            for each in range(last + 1, point):
                trial.report(before, each)
            trial.report(value, point)
            self.told[number], reported = (point, value), True
        return reported and trial.should_prune()

    def tell(self, number: int, values: Mapping[str, float] | None, pruned: bool) -> None:
        """End a trial with its final values; None for an infeasible one."""
        states = self.optuna.trial.TrialState
        trial = self.open.pop(number)
        for metric in self.study.metrics if values else ():
            if metric.threshold is not None:
                trial.set_constraint(metric.id, excess(metric, values))
        if values is None:
            self.inner.tell(trial, state=states.FAIL)
        elif pruned and len(self.study.objectives) == 1:
            self.inner.tell(trial, state=states.PRUNED)
        else:
            self.inner.tell(trial, [values[metric.id] for metric in self.study.objectives])

    def _all(self) -> list[Any]:
        return self.inner.get_trials(deepcopy=False)

    def _sampler(self, number: int) -> Any:
        seed = zlib.crc32(f"{self.seed}/{number}".encode())  # the first draws of neighbouring seeds are alike
        samplers = self.optuna.samplers
        if self.study.algorithm in ("RANDOM_SEARCH", "GRID_SEARCH"):
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            return samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=self.study.parallel > 1
            )  # fmt: skip


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    for setting in ("journal_mode=WAL", "synchronous=NORMAL"):  # safe from kill -9, and ten times as fast
        connection.execute(f"PRAGMA {setting}")
    return connection


# ------------------------------------------------------------------ parameters as Optuna's


def draw(trial: Any, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Return the values of all active parameters, parents first."""
    values: dict[str, Any] = {}
    for parameter in parameters:
        values[parameter.id] = value = _suggest(trial, parameter)
        values |= draw(trial, tuple(parameter.active(value)))
    return values


def _suggest(trial: Any, parameter: Parameter) -> Any:
    """Draw one value, uniformly on the parameter's scale."""
    name, low, high, log = parameter.id, parameter.low, parameter.high, parameter.scale in (LOG, REVERSE_LOG)
    if parameter.kind == CATEGORICAL:
        return trial.suggest_categorical(name, parameter.values)
    if parameter.kind == DISCRETE:
        places = _places(parameter)
        if places is None:
            return parameter.values[trial.suggest_int(name, 0, len(parameter.values) - 1)]
        # Half a gap beyond both ends, so that the first and the last value get as much room as the others.
        first, last = (places[0] - (places[1] - places[0]) / 2, places[-1] + (places[-1] - places[-2]) / 2)
        drawn = trial.suggest_float(name, first, last)
        return parameter.values[min(range(len(places)), key=lambda i: abs(places[i] - drawn))]
    suggest = trial.suggest_int if parameter.kind == INTEGER else trial.suggest_float
    drawn = suggest(name, low, high, log=log)
    # The logarithmic scale reversed: fine near `high`, coarse near `low`.
    return min(max(low + high - drawn, low), high) if parameter.scale == REVERSE_LOG else drawn


def _places(parameter: Parameter) -> list[float] | None:
    """Return where the values of a discrete parameter lie on its scale; None without a scale: then all are equally likely."""
    values, ends = parameter.values, parameter.low + parameter.high
    if len(values) == 1 or parameter.scale not in (LINEAR, LOG, REVERSE_LOG):
        return None
    scales: dict[str, Callable[[Any], float]] = {LINEAR: float, LOG: math.log, REVERSE_LOG: lambda value: -math.log(ends - value)}
    return [scales[parameter.scale](value) for value in values]


def _on_axis(parameter: Parameter, value: Any) -> Any:
    """Return what `_suggest` must draw for `value`."""
    if parameter.kind == DISCRETE:
        places, index = _places(parameter), parameter.values.index(value)
        return index if places is None else places[index]
    return parameter.low + parameter.high - value if parameter.scale == REVERSE_LOG else value


def grid(parameters: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    """Yield every combination of active parameters as Optuna's values, the last parameter changing fastest."""
    if not parameters:
        yield {}
        return
    first, rest = parameters[0], parameters[1:]
    values = first.values or range(int(first.low), int(first.high) + 1)
    for value in values:
        for inner in grid(tuple(first.active(value))):
            for others in grid(rest):
                yield {first.id: _on_axis(first, value), **inner, **others}


def grid_size(parameters: Sequence[Parameter]) -> int:
    """Return how many combinations the grid has."""
    total = 1
    for parameter in parameters:
        count = len(parameter.values) or int(parameter.high) - int(parameter.low) + 1
        if parameter.children:
            values = parameter.values or range(int(parameter.low), int(parameter.high) + 1)
            count = sum(grid_size(tuple(parameter.active(value))) for value in values)
        total *= count
    return total
