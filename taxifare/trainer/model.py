"""The taxi fare model: the files' columns, what a request holds, and the network. Edit this file.

`--features=city` (default) feeds several small networks with what `features.py` knows of a trip; `--features=lab` is
the network of the published course, kept for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vertex_runtime import data
from vertex_runtime.columns import Date, Number, Text
from vertex_runtime.sparse import Rows, RowSparseAdam

from .features import CELL_RANGE, COORDINATES, KM_PER_LAT, KM_PER_LON, MAX_CELL_PAIRS, Features, cell_pairs, city_features, lab_features
from .hyperparameters import Hyperparameters

NAME = "taxifare"
LABEL = "fare_amount"
OBJECTIVE, MAXIMIZE = "val_rmse", False  # what tuning and the best checkpoint go by
COLUMNS = (
    Number(LABEL, low=0.01, high=10_000),
    Date("pickup_datetime", time=True),
    # Real files hold zeros and swapped degrees; the bounds are those of the published course's map.
    *(Number(name, low=-78, high=-70) if "longitude" in name else Number(name, low=37, high=45) for name in COORDINATES),
    Number("passenger_count", low=0, high=255),
    Text("key", required=False),
)
LEARN_ROWS = 200_000  # enough for means and spreads
CLIP = 6.0  # for standardised features: rare extremes steer the fit, and absurd requests stay harmless
CROSS_SCALE = 0.1  # Adam moves a row by about `lr` however rare its cell, so rows must count for little


def jit_compile(hp: Hyperparameters, total_steps: int) -> bool:
    """Ask for XLA in runs long enough to repay its compilation, about half a second."""
    return total_steps >= 5_000 or total_steps * hp.batch_size >= 8_000_000


def score(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
    """Return the RMSE in dollars of served answers."""
    return float(np.sqrt(np.mean(np.square(outputs[LABEL] - labels, dtype=np.float64))))


def learn(chunks: Iterable[data.Chunk], hp: Hyperparameters) -> dict[str, np.ndarray]:
    """Return mean and spread of every feature and of the fare, over the first training rows."""
    count, first, second = 0, 0.0, 0.0
    for chunk in chunks:
        raw = {name: tf.convert_to_tensor(values) for name, values in chunk.items()}
        numbers = lab_features(raw) if hp.features == "lab" else city_features(raw)[0]
        columns = np.column_stack([numbers.numpy(), chunk[LABEL]]).astype(np.float64)
        count, first, second = count + len(columns), first + columns.sum(0), second + np.square(columns).sum(0)
        if count >= LEARN_ROWS:
            break
    mean, scale = first / count, np.sqrt(np.maximum(second / count - (first / count) ** 2, 0.0))
    scale = np.where(scale > 1e-3, scale, 1.0)  # a column that was constant must not blow up in a request
    facts = {"mean": mean[:-1], "scale": scale[:-1], "fare_mean": mean[-1], "fare_scale": scale[-1]}
    return {name: np.asarray(value, np.float32) for name, value in facts.items()}


def preprocess(raw: Mapping[str, tf.Tensor], hp: Hyperparameters, facts: Mapping[str, np.ndarray]) -> Features:
    """Raw inputs -> `numbers`, float32 [n, k], and `cells`, int32 [n, 1]."""
    if hp.features == "lab":
        numbers = (lab_features(raw) - facts["mean"]) / facts["scale"]
        # The course's buckets: equal steps over five standard deviations each way.
        return {"numbers": numbers, "cells": cell_pairs(tf.unstack(numbers[:, :4] / 10.0 + 0.5, axis=1), hp.nbuckets)}
    numbers, pickup, dropoff = city_features(raw)
    numbers = tf.clip_by_value((numbers - facts["mean"]) / facts["scale"], -CLIP, CLIP)
    scaled = [0.5 + kilometres / (2.0 * CELL_RANGE) for kilometres in (*pickup, *dropoff)]
    return {"numbers": numbers, "cells": cell_pairs(scaled, hp.nbuckets)}


class MembersLoss(keras.losses.Loss):
    """Pseudo-Huber loss of each member by itself: squared for small errors, linear well beyond `delta` dollars.

    Averaging the members before the loss would train one wide network; apart, their errors differ and cancel out.
    """

    def __init__(self, delta: float) -> None:
        super().__init__(name="pseudo_huber")
        self.delta = delta

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        error = (y_pred - keras.ops.reshape(y_true, (-1, 1))) / self.delta
        return self.delta**2 * keras.ops.mean(keras.ops.sqrt(1.0 + error * error) - 1.0, axis=-1)


class MembersRMSE(keras.metrics.RootMeanSquaredError):
    """RMSE, in dollars, of the mean over the members: that is what is served."""

    def update_state(self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        super().update_state(keras.ops.reshape(y_true, (-1,)), keras.ops.mean(y_pred, axis=-1), sample_weight)


def pair_rows(hp: Hyperparameters) -> int:
    """Return the rows of the table that `cell_pairs` points into."""
    return min((hp.nbuckets + 1) ** 4, MAX_CELL_PAIRS)


def _lab_network(hp: Hyperparameters, facts: Mapping[str, np.ndarray], numbers: Any, cells: Any) -> Any:
    """The course's network: an embedding of the pickup-dropoff cross beside the coordinates and the distance."""
    embedded = Rows(pair_rows(hp), 10)(cells[:, 0])
    hidden = keras.layers.Concatenate()([numbers, embedded])
    for units in hp.nnsize:
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
    # Starting at the mean fare keeps most seeds from killing every ReLU on the way up to it.
    return keras.layers.Dense(1, bias_initializer=keras.initializers.Constant(float(facts["fare_mean"])))(hidden)


def _city_network(hp: Hyperparameters, facts: Mapping[str, np.ndarray], numbers: Any, cells: Any) -> Any:
    """Several networks side by side, plus what each pair of pickup cell and dropoff cell costs extra."""

    def members_dense(inputs: Any, units: int, gain: float) -> Any:
        """A dense layer for each member: [batch, members, inputs] -> [batch, members, units]."""
        start = keras.initializers.RandomNormal(stddev=gain / math.sqrt(inputs.shape[-1]))
        return keras.layers.EinsumDense("bmi,mio->bmo", (hp.members, units), None, "mo", kernel_initializer=start)(
            inputs
        )

    first, *others = hp.nnsize
    hidden = keras.layers.Dense(hp.members * first, activation="relu", kernel_initializer="he_normal")(numbers)
    hidden = keras.layers.Reshape((hp.members, first))(hidden)
    for units in others:
        hidden = keras.layers.ReLU()(members_dense(hidden, units, gain=math.sqrt(2.0)))
    scores = keras.layers.Reshape((hp.members,))(members_dense(hidden, 1, gain=0.1))  # all start near the mean fare
    table = keras.layers.Embedding(pair_rows(hp), 1, embeddings_initializer="zeros", name="cell_pairs")
    scores = scores + CROSS_SCALE * table(cells[:, 0])
    return keras.layers.Rescaling(float(facts["fare_scale"]), float(facts["fare_mean"]))(scores)


def build_model(hp: Hyperparameters, facts: Mapping[str, np.ndarray], total_steps: int) -> keras.Model:
    """The compiled network: features -> dollars, float32 [batch, members] (one member for the lab's)."""
    lab = hp.features == "lab"
    numbers = keras.Input((len(facts["mean"]),), name="numbers")
    cells = keras.Input((1,), dtype="int32", name="cells")
    fares = (_lab_network if lab else _city_network)(hp, facts, numbers, cells)
    model = keras.Model({"numbers": numbers, "cells": cells}, fares)
    warmup = int(total_steps * hp.warmup_fraction)
    rate = keras.optimizers.schedules.CosineDecay(0.0, max(1, total_steps - warmup), 0.0, "rate", hp.lr, warmup)
    if lab:
        optimizer, loss = RowSparseAdam(hp.lr), "mse"
    else:
        optimizer = keras.optimizers.AdamW(hp.lr if hp.plateau else rate, weight_decay=hp.weight_decay, beta_2=0.99)
        loss = MembersLoss(hp.loss_delta)
    model.compile(optimizer, loss, weighted_metrics=[MembersRMSE(name="rmse")])
    return model


def slices(chunk: data.Chunk) -> dict[str, np.ndarray]:
    """Return each trip's distance as the crow flies, in kilometres: an evaluation shows the errors by it."""
    east = (chunk["dropoff_longitude"] - chunk["pickup_longitude"]) * KM_PER_LON
    north = (chunk["dropoff_latitude"] - chunk["pickup_latitude"]) * KM_PER_LAT
    return {"distance_km": np.hypot(east, north)}


def outputs(predictions: tf.Tensor, facts: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
    """The served answer: the mean of the members, never below zero."""
    return {LABEL: tf.nn.relu(tf.reduce_mean(predictions, axis=-1))}
