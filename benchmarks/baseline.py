"""The named baseline: `tf.data.experimental.make_csv_dataset` with its own defaults and Keras `fit`.

The features and the network are those of the taxifare trainer's `--features=lab`, the features as layers of the model.
Prints one JSON line: examples/s of each window of training, or the times at which one whole run got where.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

COORDINATES = ("pickup_longitude", "pickup_latitude", "dropoff_longitude", "dropoff_latitude")
USED = ("fare_amount", *COORDINATES)
MEAN, SCALE = (-73.97, 40.75, -73.97, 40.75, 0.04), (0.04, 0.03, 0.04, 0.03, 0.03)  # about those of the rows


class LabFeatures(keras.layers.Layer):
    """Scaled coordinates and their distance, and the id of the pair of pickup and dropoff cell."""

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.buckets, self.edges = buckets, np.linspace(0.0, 1.0, buckets).tolist()

    def call(self, raw: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Return standardised numbers [n, 5] and cells [n]."""
        lon_1, lat_1, lon_2, lat_2 = (raw[name] for name in COORDINATES)
        distance = tf.sqrt((lon_2 - lon_1) ** 2 + (lat_2 - lat_1) ** 2)
        numbers = (tf.stack([lon_1, lat_1, lon_2, lat_2, distance], axis=1) - MEAN) / SCALE
        cell = tf.zeros_like(lon_1, tf.int32)
        for value in tf.unstack(numbers[:, :4] / 10.0 + 0.5, axis=1):
            cell = cell * (self.buckets + 1) + tf.raw_ops.Bucketize(input=value, boundaries=self.edges)
        return numbers, cell


def build(buckets: int = 10) -> keras.Model:
    """Return the lab's network, compiled."""
    raw = {name: keras.Input((), name=name) for name in COORDINATES}
    numbers, cell = LabFeatures(buckets)(raw)
    hidden = keras.layers.Concatenate()([numbers, keras.layers.Embedding((buckets + 1) ** 4, 10)(cell)])
    for units in (32, 8):
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
    model = keras.Model(raw, keras.layers.Dense(1)(hidden))
    model.compile("adam", loss="mse", metrics=[keras.metrics.RootMeanSquaredError(name="rmse")])
    return model


def read(pattern: str, batch_size: int, epochs: int | None, columns: str) -> tf.data.Dataset:
    """Return (features, label) batches, prefetched and shuffled as `make_csv_dataset` does it unasked.

    Args:
        columns: "used" parses only what the network needs, "all" leaves that to its defaults too.
    """
    chosen = {"select_columns": list(USED), "column_defaults": [tf.float32] * len(USED)} if columns == "used" else {}
    rows = tf.data.experimental.make_csv_dataset(pattern, batch_size, label_name="fare_amount", num_epochs=epochs, **chosen)
    if columns == "used":
        return rows
    return rows.map(lambda features, label: ({name: features[name] for name in COORDINATES}, label)).prefetch(tf.data.AUTOTUNE)


class Clock(keras.callbacks.Callback):
    """Notes when each epoch of `fit`, which is a window here, began and ended."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.seconds.append(time.perf_counter() - self.began)


def main() -> None:
    """Train in windows (`--steps`, `--windows`), or one epoch with evaluation and export (`--export`)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--valid", required=True)
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--columns", choices=("used", "all"), default="used")
    parser.add_argument("--export", default="", help="train one epoch, evaluate and export the model to this directory")
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = build()
    if args.export:
        model.fit(read(args.train, args.batch_size, 1, args.columns), verbose=2)
        metrics = model.evaluate(read(args.valid, args.batch_size, 1, args.columns), verbose=2, return_dict=True)
        model.export(args.export, verbose=False)
        print("\n" + json.dumps({"end": time.time(), "metrics": metrics}))
        return
    clock = Clock()
    rows = read(args.train, args.batch_size, None, args.columns)
    model.fit(rows, steps_per_epoch=args.steps, epochs=args.windows, callbacks=[clock], verbose=2)
    print("\n" + json.dumps({"examples_per_second": [args.steps * args.batch_size / s for s in clock.seconds]}))


if __name__ == "__main__":
    main()
