"""Integrated gradients: an input's share of an answer is its way from the baseline, times the mean gradient along that way.

The way is a straight line, and its mean is taken by Gauss-Legendre quadrature. The shares add up to the answer less that to the
baseline, as nearly as so many steps tell; where the served graph has no gradient (buckets, hashes), what goes that way is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

if __package__:
    from . import predict
else:
    import predict  # type: ignore[no-redef]

STEPS, MOST_STEPS = 50, 100  # where a command says none; the API's bound
ROWS = 4096  # asked at a time
REMEDY = "use sampledShapleyAttribution, which asks for answers alone"


@dataclass(frozen=True)
class Shares:
    """What some answers rest on.

    Attributes:
        reached: the outputs at the instances, [instances, values].
        baseline: the outputs where the inputs have their baselines, [instances, values].
        index: of the value that is explained, the likeliest class, [instances].
        shares: by input, [instances, ...] as the input has them.
    """

    reached: np.ndarray
    baseline: np.ndarray
    index: np.ndarray
    shares: dict[str, np.ndarray]


def check(specs: Mapping[str, Any], baseline: Mapping[str, Any]) -> None:
    """Refuse inputs without a gradient.

    Args:
        specs: of the signature's inputs.
        baseline: of the inputs that are to have shares.

    Raises:
        ValueError: there is none, or one that has no gradient, or a baseline that is no number.
    """
    if not baseline:
        raise ValueError(f"0: none of the inputs {', '.join(sorted(specs))} is numeric, and integrated gradients need one: {REMEDY}")
    for name, value in baseline.items():
        if not specs[name].dtype.is_floating:
            what = f"{name} takes {specs[name].dtype.name}, along which there is no gradient"
            raise ValueError(f"0: {what}: leave it out of the explanation's metadata.inputs, or {REMEDY}")
        if not np.isfinite(np.asarray(value, np.float64)).all():
            raise ValueError(f"0: {name} has a baseline that is no number; give one")


def attribute(signature: Any, output: str, columns: Mapping[str, Sequence[Any]], baseline: Mapping[str, Any], steps: int) -> Shares:
    """Attribute answers to inputs.

    Args:
        columns: the instances by input, as `predict.columns_of` gives them.
        baseline: of the inputs that get shares; the others stay as the instances have them.
        steps: at how many places of the way the gradient is taken.

    Raises:
        ValueError: an instance lacks a number, or the output has no gradient; its text starts with the instance's place (from 0).
    """
    count = len(next(iter(columns.values())))
    for name in baseline:
        for place, value in enumerate(columns[name]):
            if not np.isfinite(np.asarray(value, np.float64)).all():
                raise ValueError(f"{place}: {name} is missing or no finite number, and a gradient needs one: fill it in, or {REMEDY}")
    each = max(1, ROWS // (steps + 2))
    parts = []
    for start in range(0, count, each):
        some = {name: values[start : start + each] for name, values in columns.items()}
        try:
            parts.append(_attribute(signature, output, some, baseline, steps))
        except ValueError as error:
            row, _, text = str(error).partition(": ")
            raise ValueError(f"{start + int(row) // (steps + 2)}: on the way from the baseline: {text}") from None
    reached, base, index = (np.concatenate([getattr(part, name) for part in parts]) for name in ("reached", "baseline", "index"))
    return Shares(reached, base, index, {name: np.concatenate([part.shares[name] for part in parts]) for name in baseline})


def _attribute(signature: Any, output: str, columns: Mapping[str, Sequence[Any]], baseline: Mapping[str, Any], steps: int) -> Shares:
    """Attribute a few answers at once: the rows of an instance are its baseline, itself, and the steps between them."""
    import tensorflow as tf

    specs = signature.structured_input_signature[1]
    places, weights = np.polynomial.legendre.leggauss(steps)
    places, weights = np.concatenate([[0.0, 1.0], (places + 1) / 2]), weights / 2
    count, rows = len(next(iter(columns.values()))), len(places)
    given: dict[str, Any] = {}
    gaps: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        if name not in baseline:
            given[name] = [value for value in values for _ in range(rows)]
            continue
        start = np.asarray(baseline[name], np.float64)
        gaps[name] = np.asarray(values, np.float64) - start
        at = places.reshape(rows, *[1] * (gaps[name].ndim - 1))
        way = start + at[None] * gaps[name][:, None]
        way[:, 1] = values  # as it is, whatever the sum rounds to
        given[name] = way.reshape(count * rows, *gaps[name].shape[1:])
    tensors = predict.tensors_of(specs, given)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for name in gaps:
            tape.watch(tensors[name])
        found = predict.call(signature, tensors)[output]
        found = tf.reshape(found, (count, rows, -1))
        index = tf.argmax(found[:, 1], -1)
        explained = tf.gather(found[:, 2:], index, axis=2, batch_dims=1)
    slopes = tape.gradient(explained, {name: tensors[name] for name in gaps})
    for name, slope in slopes.items():
        if slope is None:
            raise ValueError(f"0: {output} has no gradient along {name}: leave it out of the explanation's metadata.inputs, or {REMEDY}")
    shares = {}
    for name, gap in gaps.items():
        slope = tf.convert_to_tensor(slopes[name]).numpy().astype(np.float64).reshape(count, rows, *gap.shape[1:])
        shares[name] = gap * np.tensordot(slope[:, 2:], weights, axes=([1], [0]))
    values = found.numpy().astype(np.float64)
    return Shares(values[:, 1], values[:, 0], index.numpy(), shares)
