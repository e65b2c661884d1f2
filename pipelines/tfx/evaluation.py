"""When a model is good enough to be pushed: TFMA's configuration for a trainer's label."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow_model_analysis as tfma

from data_tools.convert import contract_of
from vertex_runtime.columns import Number
from vertex_runtime.errors import UserError

# Metrics of numbers that TFMA has under Keras's names. A class is compared by its name.
OF_NUMBERS = {
    "rmse": "RootMeanSquaredError", "mae": "MeanAbsoluteError", "mse": "MeanSquaredError", "accuracy": "BinaryAccuracy", "auc": "AUC",
}  # fmt: skip
MORE_IS_BETTER = ("accuracy", "auc")


@dataclass(frozen=True)
class Goal:
    """What Evaluator measures of a trainer's models.

    Attributes:
        label: the label's column in files.
        weight: the column of weights in files; "" if there is none.
        metric: accuracy for classes; for a number the trainer's objective, or rmse.
        by_class: whether the label is a class, by which the metric is also told.
    """

    trainer: str
    label: str
    weight: str
    metric: str
    by_class: bool

    @property
    def maximize(self) -> bool:
        """Tell whether more of the metric is better."""
        return self.metric in MORE_IS_BETTER


def goal_of(trainer: str) -> Goal:
    """Return what to measure of a trainer's models.

    Raises:
        UserError: there is no such trainer, or its rows have no one label that can be compared.
    """
    contract = contract_of(trainer)
    if not contract.columns or len(contract.labels) != 1:
        raise UserError(f"the pipeline takes trainers with COLUMNS and one LABEL; {trainer} has {len(contract.labels)} labels.")
    names = {column.name: column.header or column.name for column in contract.columns}
    label = next(column for column in contract.columns if column.name == contract.labels[0])
    objective = contract.objective.removeprefix("val_")
    by_class = not isinstance(label, Number)
    metric = "accuracy" if by_class else objective if objective in OF_NUMBERS else "rmse"
    return Goal(trainer, names[label.name], names.get(contract.weight or "", ""), metric, by_class)


def eval_config(goal: Goal, threshold: float, tolerance: float, slice_by: tuple[str, ...]) -> tfma.EvalConfig:
    """Return the configuration of Evaluator.

    Args:
        threshold: what the metric must reach on the whole evaluation split.
        tolerance: by how much it may be worse than that of the newest blessed model.
        slice_by: columns by whose values the metric is told, too.
    """
    bound = {"lower_bound" if goal.maximize else "upper_bound": {"value": threshold}}
    direction = tfma.MetricDirection.HIGHER_IS_BETTER if goal.maximize else tfma.MetricDirection.LOWER_IS_BETTER
    change = {"direction": direction, "absolute": {"value": -tolerance if goal.maximize else tolerance}}
    # On all rows together: a threshold of the metric's own would have to be reached by each slice.
    limits = {"slicing_specs": [tfma.SlicingSpec()], "threshold": tfma.MetricThreshold(value_threshold=bound, change_threshold=change)}
    kind = "ExactMatch" if goal.by_class else OF_NUMBERS[goal.metric]
    measured = tfma.MetricConfig(class_name=kind, config=f'"name": "{goal.metric}"', per_slice_thresholds=[limits])
    spec = tfma.ModelSpec(signature_name=goal.trainer, model_type=tfma.TF_GENERIC, label_key=goal.label, example_weight_key=goal.weight)
    return tfma.EvalConfig(
        model_specs=[spec],
        slicing_specs=[tfma.SlicingSpec(), *(tfma.SlicingSpec(feature_keys=[name]) for name in slice_by)],
        metrics_specs=[tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="ExampleCount"), measured])],
    )
