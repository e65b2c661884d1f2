"""The taxi fare model: the files' columns, what a request holds, and the network. Edit this file.

`--features=city` (default) feeds several small networks with what `features.py` knows of a trip; `--features=lab` is
the network of the published course, kept for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vertex_runtime import data

from .features import CELL_RANGE, COORDINATES, city_features, crosses, pair_count
from .hyperparameters import Hyperparameters

NAME = "taxifare"
SAMPLE_FILES = ("taxi-train.csv", "taxi-valid.csv")
LABEL = "fare_amount"
OBJECTIVE, MAXIMIZE = "val_rmse", False  # what tuning and the best checkpoint go by
DATE = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[ T]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?( ?UTC|Z|[+]00:00)?"
COLUMNS = (
    data.Column(LABEL, low=0.01, high=10_000),
    data.Column("pickup_datetime", text=True, pattern=DATE),
    # Real files hold zeros and swapped degrees; the bounds are those of the published course's map.
    *(data.Column(name, low=-78, high=-70) if "longitude" in name else data.Column(name, low=37, high=45) for name in COORDINATES),
    data.Column("passenger_count", low=0, high=255),
    data.Column("key", text=True, required=False),
)
INPUTS: dict[str, tf.TensorSpec] = {
    "pickup_datetime": tf.TensorSpec([None], tf.string, "pickup_datetime"),
    **{name: tf.TensorSpec([None], tf.float32, name) for name in (*COORDINATES, "passenger_count")},
}
LEARN_ROWS = 200_000  # enough for means and spreads
# Standardised features are clipped here: rare extremes steer the fit, and absurd requests stay harmless.
CLIP = 4.0


def find(paths: Sequence[str], flag: str) -> list[str]:
    """Return the CSV files that the paths, wildcards and folders name."""
    return data.csv_files(data.expand(paths, flag))


def read(path: str, bad: data.BadRows) -> Iterator[data.Chunk]:
    """Read one file in chunks of raw columns."""
    return data.read_csv(path, COLUMNS, bad)


def encode_labels(chunk: data.Chunk, facts: Mapping[str, Any]) -> np.ndarray:
    """Return the fares in dollars: [rows] float32."""
    return chunk[LABEL]


def callbacks(hp: Hyperparameters) -> list[keras.callbacks.Callback]:
    """Return the Keras callbacks to train with; see the README on which hooks are called when."""
    return []


def score(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
    """Return the RMSE in dollars of served answers."""
    return float(np.sqrt(np.mean(np.square(outputs[LABEL] - labels, dtype=np.float64))))


def extra_files(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return texts to put beside the SavedModel, by name: none here."""
    return {}


def learn(chunks: Iterable[data.Chunk], hp: Hyperparameters) -> dict[str, np.ndarray]:
    """Return mean and spread of each feature and of the fare over the first training rows."""
    count, total, squares, fare_total, fare_squares = 0, 0.0, 0.0, 0.0, 0.0
    for chunk in chunks:
        dense = city_features({name: tf.convert_to_tensor(chunk[name], spec.dtype) for name, spec in INPUTS.items()})[0]
        values, fares = dense.numpy().astype(np.float64), chunk[LABEL].astype(np.float64)
        count += len(fares)
        total, squares = total + values.sum(0), squares + np.square(values).sum(0)
        fare_total, fare_squares = fare_total + fares.sum(), fare_squares + np.square(fares).sum()
        if count >= LEARN_ROWS:
            break

    def moments(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
        mean = np.asarray(first / count)
        scale = np.sqrt(np.maximum(second / count - mean * mean, 0.0))
        # A constant column must not blow up when a request brings another value.
        return mean.astype(np.float32), np.where(scale > 1e-3, scale, 1.0).astype(np.float32)

    mean, scale = moments(total, squares)
    fare_mean, fare_scale = moments(fare_total, fare_squares)
    return {"mean": mean, "scale": scale, "fare_mean": fare_mean, "fare_scale": fare_scale}


def preprocess(
    raw: Mapping[str, tf.Tensor], hp: Hyperparameters, facts: Mapping[str, np.ndarray]
) -> dict[str, tf.Tensor]:
    """Raw inputs -> `numbers` float32 [n, k] and `cells` int32 [n, number of crosses]."""
    if hp.features == "lab":
        scaled = [(raw[name] + 78.0) / 8.0 if "longitude" in name else (raw[name] - 37.0) / 8.0 for name in COORDINATES]
        distance = tf.sqrt((scaled[2] - scaled[0]) ** 2 + (scaled[3] - scaled[1]) ** 2)
        return {
            "numbers": tf.stack([*scaled, distance], axis=1),
            "cells": tf.stack(crosses(scaled, hp.nbuckets)[2:], axis=1),
        }
    dense, pickup, dropoff = city_features(raw)
    dense = tf.clip_by_value((dense - facts["mean"]) / facts["scale"], -CLIP, CLIP)
    on_map = [0.5 + value / (2.0 * CELL_RANGE) for value in (*pickup, *dropoff)]
    return {"numbers": dense, "cells": tf.stack(crosses(on_map, hp.nbuckets), axis=1)}


class Members(keras.layers.Layer):
    """One dense layer for each of several networks: [batch, members, inputs] -> [batch, members, units]."""

    def __init__(self, units: int, spread: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.spread = units, spread

    def build(self, shape: tuple[int | None, ...]) -> None:
        deviation = self.spread / math.sqrt(shape[2])
        shape_of_kernel = (shape[1], shape[2], self.units)
        start = keras.initializers.RandomNormal(stddev=deviation)
        self.kernel = self.add_weight(name="kernel", shape=shape_of_kernel, initializer=start)
        self.bias = self.add_weight(name="bias", shape=(shape[1], self.units), initializer="zeros")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return keras.ops.einsum("bmi,mio->bmo", inputs, self.kernel) + self.bias


class MembersLoss(keras.losses.Loss):
    """Pseudo-Huber loss of every member by itself: squared near zero, linear far beyond `delta` dollars.

    Averaging the members first would train one wide network; apart, their errors differ and cancel out.
    """

    def __init__(self, delta: float) -> None:
        super().__init__(name="pseudo_huber")
        self.delta = delta

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        error = (y_pred - keras.ops.reshape(y_true, (-1, 1))) / self.delta
        return self.delta**2 * keras.ops.mean(keras.ops.sqrt(1.0 + error * error) - 1.0, axis=-1)


class MembersRMSE(keras.metrics.RootMeanSquaredError):
    """RMSE in dollars of the mean over the members, which is what is served."""

    def update_state(self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        super().update_state(keras.ops.reshape(y_true, (-1,)), keras.ops.mean(y_pred, axis=-1), sample_weight)


def _lab_model(hp: Hyperparameters, facts: Mapping[str, np.ndarray]) -> keras.Model:
    """The course's network: one embedding of the pickup-dropoff cross beside the coordinates and the distance."""
    dense = keras.Input((5,), name="numbers")
    cells = keras.Input((1,), dtype="int32", name="cells")
    rows = pair_count((hp.nbuckets + 1) ** 2)
    embedded = keras.layers.Flatten()(keras.layers.Embedding(rows, 10)(cells))
    hidden = keras.layers.Concatenate()([dense, embedded])
    for units in hp.nnsize:
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
    # Starting at the mean fare saves some seeds from killing every ReLU on the way there.
    fare = keras.layers.Dense(1, bias_initializer=keras.initializers.Constant(float(facts["fare_mean"])))(hidden)
    model = keras.Model({"numbers": dense, "cells": cells}, fare)
    model.compile(keras.optimizers.Adam(hp.lr), loss="mse", weighted_metrics=[MembersRMSE(name="rmse")])
    return model


def build_model(hp: Hyperparameters, facts: Mapping[str, np.ndarray], total_steps: int) -> keras.Model:
    """The compiled network: features -> dollars [batch, members]."""
    if hp.features == "lab":
        return _lab_model(hp, facts)
    dense = keras.Input((len(facts["mean"]),), name="numbers")
    cells = keras.Input((3,), dtype="int32", name="cells")
    first, *others = hp.nnsize
    hidden = keras.layers.Dense(hp.members * first, activation="relu", kernel_initializer="he_normal")(dense)
    hidden = keras.layers.Reshape((hp.members, first))(hidden)
    for units in others:
        hidden = keras.layers.ReLU()(Members(units, spread=math.sqrt(2.0))(hidden))
    # A small start of the last layer: every member begins near the mean fare.
    scores = keras.layers.Reshape((hp.members,))(Members(1, spread=0.1)(hidden))
    rows = (hp.nbuckets + 1) ** 2
    # Wide part: what each pickup cell, dropoff cell and pair of cells costs above or below the rest.
    for column, size in enumerate((rows, rows, pair_count(rows))):
        table = keras.layers.Embedding(size, 1, embeddings_initializer="zeros", name=f"cross_{column}")
        scores = scores + 0.02 * table(cells[:, column])
    fares = keras.layers.Rescaling(float(facts["fare_scale"]), float(facts["fare_mean"]))(scores)
    model = keras.Model({"numbers": dense, "cells": cells}, fares)
    warmup = int(total_steps * hp.warmup_fraction)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=max(1, total_steps - warmup), warmup_target=hp.lr, warmup_steps=warmup
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=hp.weight_decay, beta_2=0.99)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, loss=MembersLoss(hp.loss_delta), weighted_metrics=[MembersRMSE(name="rmse")])
    return model


def outputs(predictions: tf.Tensor, facts: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
    """The served answer: the members' mean, never below zero."""
    return {LABEL: tf.nn.relu(tf.reduce_mean(predictions, axis=-1))}
