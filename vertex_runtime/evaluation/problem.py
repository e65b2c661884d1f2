"""What kind of problem a model answers, told by its answers and the labels; and how a row's answer is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import sources
from ..contract import Contract, mentions
from ..data import Chunk, UnknownLabel
from ..errors import UserError
from ..reporting import log
from ..rows import rows_of

REGRESSION, BINARY, MULTICLASS, MULTILABEL, OTHER = "regression", "binary", "multiclass", "multilabel", "other"
SQUARED, ABSOLUTE, LOG, ZERO_ONE = "squared error", "absolute error", "log loss", "0/1 error"
# Other names of the metrics that are computed here, such as Keras's.
ALIASES = {
    "root_mean_squared_error": "rmse", "mean_squared_error": "mse", "mean_absolute_error": "mae", "r2_score": "r2", "acc": "accuracy",
    "binary_accuracy": "accuracy", "categorical_accuracy": "accuracy", "sparse_categorical_accuracy": "accuracy", "roc_auc": "auc",
    "auc_pr": "pr_auc", "prc": "pr_auc", "f1_score": "f1", "crossentropy": "log_loss", "binary_crossentropy": "log_loss",
    "categorical_crossentropy": "log_loss", "sparse_categorical_crossentropy": "log_loss",
}  # fmt: skip
OF_CLASSES = {"accuracy", "auc", "pr_auc", "precision", "recall", "f1", "log_loss"}
TINY = 1e-7  # a score of 0 does not cost an infinite loss; as Keras does it

Judged = dict[str, np.ndarray]  # by name: [rows]; weight and loss always


@dataclass(frozen=True)
class Problem:
    """What is judged.

    Args:
        kind: one of the constants above.
        label: the column to predict, for messages and pages.
        output: the output that is judged; empty where none can be, which is of the kind "other".
        classes: their names, in the order of the labels' numbers.
        objective: the metric that the trainer goes by, by its name here.
        loss: of a row, by which slices and models are compared.
    """

    kind: str
    label: str
    output: str = ""
    classes: tuple[str, ...] = ()
    objective: str = "loss"
    maximize: bool = False
    loss: str = SQUARED


# ------------------------------------------------------------------ labels and weights


class Labels:
    """The labels and weights of raw rows, as numbers: by the trainer's own code where it can go without what training learnt."""

    def __init__(self, contract: Contract, hp: Any, classes: Mapping[str, Sequence[str]]):
        """Prepare for rows; `classes` are those of each label that has any."""
        named = dict(classes) if len(contract.labels) > 1 else next(iter(classes.values()), None)
        self.contract, self.hp, self.facts = contract, hp, {"class_names": named} if named else {}
        self.classes, self.warned = classes, False
        self.own = "encode_labels" in contract.given

    def of(self, chunk: Chunk) -> Any:
        """Return the labels, [rows, ...], or a dict of them by label.

        Raises:
            UnknownLabel: a text that is none of the classes.
        """
        if sources.LABEL in chunk or any(name.startswith(f"{sources.LABEL}/") for name in chunk):
            return sources.dataset_labels(chunk, self.facts)
        if self.own:
            try:
                return self.contract.encode_labels(chunk, self.facts)
            except UserError as error:
                self.own = False
                log("WARNING", f"encode_labels needs what training learnt, so labels are taken as they are ({str(error)[:160]})")
        found = {name: self._numbers(name, chunk[name]) for name in self.contract.labels}
        return found if len(found) > 1 else next(iter(found.values()))

    def _numbers(self, label: str, values: np.ndarray) -> np.ndarray:
        if values.dtype != object:
            return values
        if not self.classes.get(label):
            return np.full(len(values), np.nan)  # the model does not say what its classes are
        names, places = np.unique(values.astype(bytes), return_inverse=True)
        known = {name: i for i, name in enumerate(self.classes[label])}
        texts = [name.decode("utf-8", "replace") for name in names]
        if unknown := [text for text in texts if text not in known]:
            raise UnknownLabel(unknown[0])
        return np.array([known[text] for text in texts], np.int64)[places]

    def weights(self, chunk: Chunk) -> np.ndarray:
        """Return each row's weight, float64 [rows]."""
        if sources.WEIGHT in chunk:
            return chunk[sources.WEIGHT].astype(np.float64)
        try:
            found = self.contract.weigh(chunk, self.hp, self.facts)
        except UserError as error:
            if not self.warned:
                log("WARNING", f"weigh needs what training learnt, so all rows count alike ({str(error)[:160]})")
            found, self.warned = None, True
        return np.ones(rows_of(chunk)) if found is None else np.asarray(found, np.float64)


# ------------------------------------------------------------------ the kind


def understand(contract: Contract, classes: Mapping[str, Sequence[str]], outputs: Mapping[str, np.ndarray], labels: Any) -> Problem:
    """Return the problem that some answers and labels show; of several labels, the one that the objective is of is judged."""
    objective = contract.objective.removeprefix("val_")
    name = contract.labels[0] if contract.labels else "label"
    if isinstance(labels, Mapping):
        name = next((each for each in labels if objective.startswith(f"{each}_")), next(iter(labels)))
        labels, objective = labels[name], objective.removeprefix(f"{name}_")
        outputs = {key: values for key, values in outputs.items() if key == name or key.startswith(f"{name}_")} or outputs
    labels, names, objective = np.asarray(labels), classes.get(name, ()), ALIASES.get(objective, objective)
    numbers = {key: values for key, values in outputs.items() if values.dtype.kind in "fiu"}
    of_classes = objective in OF_CLASSES or any(mentions(contract, word) for word in ("binary_crossentropy", "binary_focal_crossentropy"))
    kind, output = _kind(name, labels, numbers, len(names), of_classes)
    return _problem(contract, name, kind, output, numbers, names, objective)


def _problem(
    contract: Contract, name: str, kind: str, output: str, numbers: Mapping[str, np.ndarray], classes: Sequence[str], objective: str
) -> Problem:
    if kind in (BINARY, MULTICLASS):
        count = numbers[output].shape[-1] if numbers[output].ndim == 2 and numbers[output].shape[-1] > 1 else 2
        classes = list(classes) if len(classes) == count else [str(i) for i in range(count)]
    loss = {REGRESSION: SQUARED, BINARY: LOG, MULTICLASS: LOG, MULTILABEL: LOG}.get(kind, SQUARED)
    loss = ABSOLUTE if kind == REGRESSION and objective == "mae" else ZERO_ONE if kind == MULTICLASS and objective == "accuracy" else loss
    return Problem(kind, name, output, tuple(classes) if kind != REGRESSION else (), objective, contract.maximize, loss)


def _kind(name: str, labels: np.ndarray, outputs: Mapping[str, np.ndarray], classes: int, of_classes: bool) -> tuple[str, str]:
    """Return (kind, the output that is judged); `of_classes` where the trainer's source speaks of such."""
    if labels.dtype.kind not in "biuf" or np.isnan(labels).any():
        return OTHER, ""
    wide = {key: values for key, values in outputs.items() if values.ndim == 2 and values.shape[1] > 1}
    single = {key: values for key, values in outputs.items() if values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)}
    if labels.ndim == 2 and labels.shape[1] > 1:
        fitting = [key for key, values in wide.items() if values.shape == labels.shape]
        if not fitting or not np.isin(labels, (0, 1)).all():
            return OTHER, _chosen(fitting, name) if fitting else ""
        return (MULTICLASS if (labels.sum(1) == 1).all() else MULTILABEL), _chosen(fitting, name)
    whole = bool((labels == np.round(labels)).all() and (labels >= 0).all())
    fitting = [key for key, values in wide.items() if whole and labels.max(initial=0) < values.shape[1]]
    if fitting and name not in single:
        output = _chosen(fitting, name)
        return (BINARY if wide[output].shape[1] == 2 else MULTICLASS), output
    if not single or classes > 2:
        return OTHER, ""
    output = _chosen(list(single), name)
    within = bool((single[output] >= 0).all() and (single[output] <= 1).all())
    two = bool(np.isin(labels, (0, 1)).all())
    return (BINARY if classes == 2 or (two and (within or of_classes)) else REGRESSION), output


def _chosen(names: Sequence[str], label: str) -> str:
    """Return the output that is most likely the answer: named as the label, or as scores are."""
    words = ("score", "prob")
    return min(names, key=lambda name: (name != label, not any(word in name.lower() for word in words), names.index(name)))


# ------------------------------------------------------------------ judging


def gives_logits(problem: Problem, outputs: Mapping[str, np.ndarray]) -> bool:
    """Tell by some answers whether a model's scores are logits: they are not all within 0 and 1."""
    values = outputs[problem.output] if problem.kind in (BINARY, MULTICLASS, MULTILABEL) else np.zeros(1)
    return not ((values >= -1e-6).all() and (values <= 1 + 1e-6).all())


def judge(
    problem: Problem, outputs: Mapping[str, np.ndarray], labels: Any, weights: np.ndarray, logits: bool = False,
    order: np.ndarray | None = None,
) -> Judged:  # fmt: skip
    """Return what is to be said of each answer, [rows] each: weight, loss, and by kind:

    regression: label, prediction, error; binary: label, score (of the second class), predicted, confidence, hit; multiclass: label,
    predicted, confidence, hit, rank (of the true class, from 0); multilabel: labels and scores, [rows, classes];
    other, of several numbers a row: absolute (error).

    Args:
        logits: whether scores are none of probability; see `gives_logits`.
        order: for each class of the problem its place among the model's own, -1 where that has no such class; None: the same.
    """
    if not problem.output:
        return {"weight": weights, "loss": np.full(len(weights), np.nan)}
    if isinstance(labels, Mapping):
        labels = labels[problem.label]
    if problem.kind == OTHER:  # several numbers a row
        error = (outputs[problem.output].astype(np.float64) - labels).reshape(len(weights), -1)
        return {"weight": weights, "loss": (error**2).mean(1), "absolute": np.abs(error).mean(1)}
    labels, values = np.asarray(labels), outputs[problem.output].astype(np.float64)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if problem.kind == REGRESSION:
        error = values - labels
        loss = np.abs(error) if problem.loss == ABSOLUTE else error**2
        return {"weight": weights, "loss": loss, "label": labels.astype(np.float64), "prediction": values, "error": error}
    if problem.kind == MULTILABEL:
        scores = _within(values, logits)
        return {"weight": weights, "loss": _log_loss(labels, scores).mean(1), "labels": labels.astype(np.int8), "scores": scores}
    labels = labels.argmax(1) if labels.ndim == 2 else labels.astype(np.int64)
    scores = _probabilities(values, logits)
    if order is not None:
        scores = np.where(order >= 0, scores[:, order], 0.0)
    return _of_classes(problem, labels, scores, weights)


def _of_classes(problem: Problem, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> Judged:
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= scores.shape[1]:
        worst = labels[(labels < 0) | (labels >= scores.shape[1])][0]
        raise UserError(
            f"the label {worst} of {problem.label} is none of the classes, which are numbered 0..{scores.shape[1] - 1}. Mend the row."
        )
    rows = np.arange(len(labels))
    predicted, truth = scores.argmax(1), scores[rows, labels]
    found = {"weight": weights, "label": labels, "predicted": predicted, "confidence": scores[rows, predicted]}
    found["hit"] = (predicted == labels).astype(np.float64)
    found["log_loss"] = -np.log(np.clip(truth, TINY, 1.0))
    found["loss"] = 1.0 - found["hit"] if problem.loss == ZERO_ONE else found["log_loss"]
    if problem.kind == BINARY:
        return found | {"score": scores[:, 1]}
    ahead = (scores > truth[:, None]).sum(1) + ((scores == truth[:, None]) & (np.arange(scores.shape[1]) < labels[:, None])).sum(1)
    return found | {"rank": ahead}


def _within(values: np.ndarray, logits: bool) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500))) if logits else np.clip(values, 0.0, 1.0)


def _probabilities(values: np.ndarray, logits: bool) -> np.ndarray:
    """Return scores of classes that sum to 1, [rows, classes], of those of all classes or of the second of two."""
    if values.ndim == 1:
        second = _within(values, logits)
        return np.stack([1 - second, second], 1)
    if logits:
        powers = np.exp(values - values.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)
    values = np.clip(values, 0.0, 1.0)
    return values / np.maximum(values.sum(1, keepdims=True), TINY)


def _log_loss(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    scores = np.clip(scores, TINY, 1 - TINY)
    return -np.where(labels > 0, np.log(scores), np.log(1 - scores))
