"""Metrics of judged rows, by the kind of problem, weights respected; and the curves and tables that say where they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .problem import BINARY, MULTICLASS, MULTILABEL, OTHER, REGRESSION, Judged, Problem

BINS = 15  # of the calibration, of equal width
CLASSES = 1000  # up to which a confusion matrix is counted
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def metrics_of(problem: Problem, rows: Judged) -> dict[str, float]:
    """Return the metrics of some judged rows, by name; `loss` is the mean of the rows' losses.

    regression: rmse, mse, mae, r2, bias, median_absolute_error, absolute_error_90/99. binary: accuracy, auc, pr_auc, log_loss,
    brier, ece, and precision, recall, f1 of the second class at 0.5. multiclass: accuracy, top_N_accuracy, log_loss, ece, and
    precision, recall, f1 as the mean over classes (macro_) and over rows (micro_). multilabel: accuracy over all labels, log_loss,
    macro_ and micro_ of the same. other, of several numbers a row: rmse, mse, mae.
    """
    weight = rows["weight"]
    if not weight.sum() > 0:
        return {}
    found = {REGRESSION: _regression, BINARY: _binary, MULTICLASS: _multiclass, MULTILABEL: _multilabel, OTHER: _other}[problem.kind]
    metrics = found(problem, rows, weight) if problem.output else {}
    loss = _mean(rows["loss"], weight)
    return metrics | ({"loss": loss} if math.isfinite(loss) else {})


def _mean(values: np.ndarray, weight: np.ndarray) -> float:
    return float((values * weight).sum() / weight.sum())


def quantile(values: np.ndarray, weight: np.ndarray, share: float) -> float:
    """Return the smallest value that so much of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order])
    return float(values[order][min(len(values) - 1, int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12))))])


def _regression(problem: Problem, rows: Judged, weight: np.ndarray) -> dict[str, float]:
    error, label = rows["error"], rows["label"]
    size = np.abs(error)
    mse, spread = _mean(error**2, weight), _mean((label - _mean(label, weight)) ** 2, weight)
    found = {"rmse": math.sqrt(mse), "mse": mse, "mae": _mean(size, weight), "bias": _mean(error, weight)}
    if spread > 0:
        found["r2"] = 1 - mse / spread
    names = {"median_absolute_error": 0.5, "absolute_error_90": 0.9, "absolute_error_99": 0.99}
    return found | {name: quantile(size, weight, share) for name, share in names.items()}


def _other(problem: Problem, rows: Judged, weight: np.ndarray) -> dict[str, float]:
    mse = _mean(rows["loss"], weight)
    return {"rmse": math.sqrt(mse), "mse": mse, "mae": _mean(rows["absolute"], weight)}


def _binary(problem: Problem, rows: Judged, weight: np.ndarray) -> dict[str, float]:
    label, score = rows["label"], rows["score"]
    found = {
        "accuracy": _mean(rows["hit"], weight), "log_loss": _mean(rows["log_loss"], weight), "brier": _mean((score - label) ** 2, weight),
        "ece": calibration(rows)["ece"],
    }  # fmt: skip
    found |= _rates(*(float(weight[mask].sum()) for mask in _cells(label == 1, rows["predicted"] == 1)))
    if 0 < weight[label == 1].sum() < weight.sum():
        _, positives, negatives = curve(label, score, weight)
        area = float((np.diff(negatives) * (positives[1:] + positives[:-1]) / 2).sum())
        found["auc"] = area / float(positives[-1] * negatives[-1])
        precision = positives[1:] / (positives[1:] + negatives[1:])
        found["pr_auc"] = float((np.diff(positives) * precision).sum() / positives[-1])
    return found


def _cells(truth: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return truth & said, ~truth & said, truth & ~said


def _rates(right: float, wrong: float, missed: float) -> dict[str, float]:
    """Return precision, recall and f1, 0 where there is nothing to divide by."""
    precision, recall = right / max(right + wrong, 1e-300), right / max(right + missed, 1e-300)
    return {"precision": precision, "recall": recall, "f1": 2 * right / max(2 * right + wrong + missed, 1e-300)}


def curve(label: np.ndarray, score: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (thresholds, weight of positives, of negatives) from each different score up, from none to all: [scores + 1]."""
    order = np.argsort(-score, kind="stable")
    score, weight, positive = score[order], weight[order], label[order] == 1
    ends = np.r_[np.flatnonzero(np.diff(score)), len(score) - 1]
    rising, falling = np.cumsum(weight * positive)[ends], np.cumsum(weight * ~positive)[ends]
    return np.r_[math.inf, score[ends]], np.r_[0.0, rising], np.r_[0.0, falling]


def _multiclass(problem: Problem, rows: Judged, weight: np.ndarray) -> dict[str, float]:
    accuracy = _mean(rows["hit"], weight)
    found = {"accuracy": accuracy, "log_loss": _mean(rows["log_loss"], weight), "ece": calibration(rows)["ece"]}
    top = 5 if len(problem.classes) > 5 else 3 if len(problem.classes) > 3 else 2
    found[f"top_{top}_accuracy"] = _mean((rows["rank"] < top).astype(float), weight)
    table = by_class(problem, rows)
    there = [row for row in table if row["weight"] > 0 or row["predicted"] > 0]
    found |= {f"macro_{name}": sum(row[name] for row in there) / len(there) for name in ("precision", "recall", "f1")}
    return found | {f"micro_{name}": accuracy for name in ("precision", "recall", "f1")}


def by_class(problem: Problem, rows: Judged) -> list[dict[str, Any]]:
    """Return for each class its weight, how much was taken for it, precision, recall and f1."""
    count, weight = len(problem.classes), rows["weight"]
    of, taken = (np.bincount(rows[name], weight, count) for name in ("label", "predicted"))
    right = np.bincount(rows["label"], weight * rows["hit"], count)
    return [
        {"class": name, "weight": float(of[i]), "predicted": float(taken[i]), **_rates(right[i], taken[i] - right[i], of[i] - right[i])}
        for i, name in enumerate(problem.classes)
    ]


def confusion(problem: Problem, rows: Judged) -> np.ndarray:
    """Return the weight of rows by true class and predicted class: [classes, classes]."""
    count = len(problem.classes)
    return np.bincount(rows["label"] * count + rows["predicted"], rows["weight"], count * count).reshape(count, count)


def calibration(rows: Judged) -> dict[str, Any]:
    """Return how often answers of some confidence are right: {"ece", "bins": [{"low", "high", "weight", "confidence", "accuracy"}]}.

    Of two classes it is the score of the second, and how often that one is true. `ece` is the mean distance of both, by weight.
    """
    weight, said = rows["weight"], rows.get("score", rows["confidence"])
    true = (rows["label"] == 1).astype(float) if "score" in rows else rows["hit"]
    places = np.minimum((said * BINS).astype(int), BINS - 1)
    sums = [np.bincount(places, values, BINS) for values in (weight, weight * said, weight * true)]
    bins = [
        {"low": i / BINS, "high": (i + 1) / BINS, "weight": float(w), "confidence": float(c / w), "accuracy": float(a / w)}
        for i, (w, c, a) in enumerate(zip(*sums))
        if w > 0
    ]
    return {"ece": float(np.abs(sums[1] - sums[2]).sum() / weight.sum()), "bins": bins}


def thresholds(rows: Judged) -> list[dict[str, float]]:
    """Return what deciding for the second class from a score on means: threshold, share decided for, precision, recall, f1, …"""
    weight, truth = rows["weight"], rows["label"] == 1
    found = []
    for threshold in THRESHOLDS:
        right, wrong, missed = (float(weight[mask].sum()) for mask in _cells(truth, rows["score"] >= threshold))
        negatives = max(float(weight[~truth].sum()), 1e-300)
        accuracy = 1 - (wrong + missed) / weight.sum()
        share = (right + wrong) / weight.sum()
        rates = _rates(right, wrong, missed)
        found.append({"threshold": threshold, "share": float(share), **rates, "false_positives": wrong / negatives, "accuracy": accuracy})
    return found


def _multilabel(problem: Problem, rows: Judged, weight: np.ndarray) -> dict[str, float]:
    truth, said = rows["labels"] == 1, rows["scores"] >= 0.5
    cells = [(mask * weight[:, None]).sum(0) for mask in _cells(truth, said)]
    each = [_rates(*map(float, three)) for three in zip(*cells)]
    found = {"accuracy": _mean((truth == said).mean(1), weight), "log_loss": _mean(rows["loss"], weight)}
    found |= {f"macro_{name}": sum(one[name] for one in each) / len(each) for name in each[0]}
    return found | {f"micro_{name}": value for name, value in _rates(*(float(cell.sum()) for cell in cells)).items()}


# ------------------------------------------------------------------ sums over all rows, where only some are kept


class Sums:
    """Weighted sums over all rows, for the metrics that need no more."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def add(self, rows: Judged) -> None:
        """Take rows in."""
        weight, values = rows["weight"], {"": np.ones(len(rows["weight"]))}
        names = ("loss", "hit", "log_loss", "error", "label", "absolute")
        values |= {name: rows[name] for name in names if name in rows and rows[name].ndim == 1}
        if "error" in rows:
            values |= {"squared": rows["error"] ** 2, "size": np.abs(rows["error"]), "label squared": rows["label"] ** 2}
        for name, column in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float((weight * column).sum())

    def metrics(self, problem: Problem) -> dict[str, float]:
        """Return the metrics that are sums, over all rows."""
        means = {name: total / self.sums[""] for name, total in self.sums.items()}
        names: Mapping[str, str] = {"loss": "loss", "hit": "accuracy", "log_loss": "log_loss"}
        found = {name: means[key] for key, name in names.items() if key in means and math.isfinite(means[key])}
        if problem.kind == OTHER and "absolute" in means:
            found |= {"rmse": math.sqrt(means["loss"]), "mse": means["loss"], "mae": means["absolute"]}
        if problem.kind == REGRESSION:
            spread = means["label squared"] - means["label"] ** 2
            found |= {"rmse": math.sqrt(means["squared"]), "mse": means["squared"], "mae": means["size"], "bias": means["error"]}
            found |= {"r2": 1 - means["squared"] / spread} if spread > 0 else {}
        return found
