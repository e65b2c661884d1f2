"""How much each parameter of a study matters, over the ranges that it may take, for the tuning report and the console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import trials
from .parameters import CATEGORICAL, INTEGER, LOG, Parameter, walk
from .search import import_optuna
from .study import Study
from .trials import Trial

_LEAST = 4  # trials with a value, of which a share can be told


def of(study: Study, everyone: Sequence[Trial]) -> dict[str, float]:
    """Return the share of each parameter in the spread of the study's first metric, the largest first.

    Returns:
        Nothing where too few trials are done to tell, or all are alike.
    """
    optuna, shown = import_optuna(), as_optuna(study, everyone)
    if len(shown.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))) < _LEAST:
        return {}
    target = (lambda trial: trial.values[0]) if len(study.objectives) > 1 else None
    try:
        return dict(optuna.importance.get_param_importances(shown, evaluator=evaluator(), target=target))
    except (ValueError, RuntimeError):  # all trials are alike
        return {}


def evaluator() -> Any:
    """Return what works the shares out, as Optuna takes it."""
    return import_optuna().importance.PedAnovaImportanceEvaluator()


def as_optuna(study: Study, everyone: Sequence[Trial]) -> Any:
    """Return a study in memory with the values as the trials got them: the one searched has its own axes."""
    optuna = import_optuna()
    shown = optuna.create_study(directions=["maximize" if metric.maximize else "minimize" for metric in study.objectives])
    axes = {parameter.id: _distribution(optuna, parameter) for parameter in walk(study.parameters)}
    states = optuna.trial.TrialState
    for trial in everyone:
        values, drawn = trials.final_values(trial), trials.parameters(trial)
        shown.add_trial(
            optuna.trial.create_trial(
                state=states.FAIL if values is None else states.COMPLETE,
                values=None if values is None else [values[metric.id] for metric in study.objectives],
                params=drawn, distributions={name: axes[name] for name in drawn},
            )
        )  # fmt: skip
    return shown


def _distribution(optuna: Any, parameter: Parameter) -> Any:
    if parameter.kind == CATEGORICAL:
        return optuna.distributions.CategoricalDistribution(parameter.values)
    kind = optuna.distributions.IntDistribution if parameter.kind == INTEGER else optuna.distributions.FloatDistribution
    return kind(parameter.low, parameter.high, log=parameter.scale == LOG)
