"""Whether one model is better than another on the same rows: Student's t test of the differences of their losses, row by row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from .slices import mean_and_error


def paired(first: np.ndarray, second: np.ndarray, weight: np.ndarray, loss: str) -> dict[str, Any] | None:
    """Compare two models' losses of the same rows, [rows] each; None for fewer than two rows.

    Returns:
        {"difference": weighted mean of the first's loss minus the second's, "interval": [low, high] at 95 %, "p_value": of both
        sides, "rows", "loss", "test"}.
    """
    difference = first - second
    rows = int((weight > 0).sum())
    if rows < 2 or not np.isfinite(difference).all():
        return None
    mean, error = mean_and_error(difference, weight)
    reach = t_quantile(0.975, rows - 1) * error
    p_value = t_two_sided(mean / error, rows - 1) if error > 0 else (1.0 if mean == 0 else 0.0)
    return {
        "difference": mean, "interval": [mean - reach, mean + reach], "p_value": p_value, "rows": rows, "loss": loss, "test": "paired t",
    }  # fmt: skip


def t_two_sided(t: float, freedom: int) -> float:
    """Return how likely Student's t is to be as far from 0."""
    x = np.float64(freedom / (freedom + t * t))
    return float(tf.math.betainc(np.float64(freedom / 2), np.float64(0.5), x))


def t_quantile(share: float, freedom: int) -> float:
    """Return the value of Student's t that `share`, above a half, of it stays below."""
    low, high = 0.0, 1.0
    while t_two_sided(high, freedom) > 2 * (1 - share):
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, freedom) > 2 * (1 - share) else (low, middle)
    return (low + high) / 2 if math.isfinite(high) else math.inf
