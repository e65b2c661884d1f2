"""One process of `cluster.py`: steps of the project's loop or of legacy `fit`, or bare collectives; see `--help`.

`TF_CONFIG` decides what it is part of. The last line of its output is JSON; times are milliseconds, one for each window.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROWS = 1 << 16
LAB_CELLS, LAB_WIDTH = 11**4, 10  # the taxifare lab's table: 10 buckets of two longitudes and two latitudes


def synthetic(network: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return ready-made features by name and labels: what the network takes, in memory."""
    random = np.random.default_rng(0)
    features = {"numbers": random.normal(size=(ROWS, 15 if network == "mlp" else 5)).astype(np.float32)}
    if network == "lab":
        features["cells"] = random.integers(0, LAB_CELLS, (ROWS, 1)).astype(np.int32)
    return features, (10.0 + features["numbers"].sum(1)).astype(np.float32)


def build(keras: Any, network: str) -> Any:
    """Return the network, compiled, in whichever Keras is given: the MLP 15-64-32-1 or the lab's."""
    numbers = keras.Input((15 if network == "mlp" else 5,), name="numbers")
    inputs, hidden, units = {"numbers": numbers}, numbers, (64, 32)
    if network == "lab":
        inputs["cells"], units = keras.Input((1,), dtype="int32", name="cells"), (32, 8)
        embedded = keras.layers.Flatten()(keras.layers.Embedding(LAB_CELLS, LAB_WIDTH)(inputs["cells"]))
        hidden = keras.layers.Concatenate()([numbers, embedded])
    for size in units:
        hidden = keras.layers.Dense(size, activation="relu")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile(keras.optimizers.Adam(1e-3), "mse", weighted_metrics=[keras.metrics.RootMeanSquaredError(name="rmse")])
    return model


def loop(args: argparse.Namespace) -> dict[str, Any]:
    """Train by `vertex_runtime`'s loop, strategy and order of rows, as `vertex_runtime.run` puts them together."""
    from vertex_runtime.environment import Environment
    from vertex_runtime.strategy import choose_strategy, import_tensorflow

    import_tensorflow()
    env = Environment.from_mapping(os.environ)
    strategy = choose_strategy(env, 0)
    import keras
    import tensorflow as tf

    from vertex_runtime.order import permutation
    from vertex_runtime.rows import Share
    from vertex_runtime.steps import Plan, Steps

    share = Share(env.worker_index, env.worker_count)
    tensors = tf.nest.map_structure(tf.constant, synthetic(args.network))
    with strategy.scope():
        model = build(keras, args.network)
    plan = Plan(1, args.batch_size, 1, 1, share=share)
    steps = Steps(model, strategy, plan, tensors, False)
    count, call = plan.call_steps, 0

    def window() -> int:
        nonlocal call
        for _ in range(-(-args.steps // count)):
            order = permutation(0, call, ROWS)[: count * args.batch_size].reshape(count, args.batch_size)
            _, loss, _ = steps.train(tensors, tf.constant(share.columns(order)), tf.constant(count))
            float(loss)
            call += 1
        return -(-args.steps // count) * count

    milliseconds = timed(window, args.windows)
    return {"milliseconds": milliseconds, "parameters": model.count_params(), "rmse": steps.metrics()["rmse"], "steps": call * count}


def fit(args: argparse.Namespace) -> dict[str, Any]:
    """Train by legacy `fit`: one call for all windows, an epoch each, so that what `fit` sets up is not counted."""
    import tensorflow as tf
    import tf_keras

    distribute = tf.distribute.experimental
    options = distribute.CommunicationOptions(implementation=distribute.CommunicationImplementation.RING)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    with strategy.scope():
        model = build(tf_keras, args.network)
    rows = tf.data.Dataset.from_tensor_slices(synthetic(args.network)).batch(args.batch_size, drop_remainder=True)
    sharding = tf.data.Options()
    sharding.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    rows = rows.cache().repeat().prefetch(tf.data.AUTOTUNE).with_options(sharding)
    ends = []
    clock = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append((time.perf_counter(), logs["rmse"])))
    model.fit(rows, steps_per_epoch=args.steps, epochs=args.windows + 1, callbacks=[clock], verbose=0)
    milliseconds = [1000 * (b - a) / args.steps for (a, _), (b, _) in zip(ends, ends[1:])]
    return {"milliseconds": milliseconds, "parameters": model.count_params(), "rmse": ends[-1][1]}


def collective(args: argparse.Namespace) -> dict[str, Any]:
    """Time one all-reduce of so many floats, one of so many table rows, and the update of a table by them."""
    from vertex_runtime.environment import Environment
    from vertex_runtime.strategy import choose_strategy, import_tensorflow

    import_tensorflow()
    strategy = choose_strategy(Environment.from_mapping(os.environ), 0)
    import tensorflow as tf

    with strategy.scope():
        table = tf.Variable(tf.zeros([1 << 18, 20]))
    found: dict[str, dict[int, list[float]]] = {"dense": {}, "rows": {}, "update": {}}

    def reduce(value: tf.Tensor, ids: tf.Tensor | None = None) -> tf.Tensor:
        value = 0.5 * value  # made on this replica's device, which is then where the sum shall go
        if ids is None:
            return tf.distribute.get_replica_context().all_reduce("SUM", value)
        return tf.distribute.get_replica_context().all_reduce("SUM", tf.IndexedSlices(value, ids + 0, tf.constant([1 << 18, 20]))).values

    def repeat(kind: str, size: int) -> None:
        count, shape = max(8, min(400, 4_000_000 // size)), [size] if kind == "dense" else [size, 20]
        ids = tf.random.uniform([size], 0, 1 << 18, tf.int32)

        def once(i: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if kind == "dense":
                summed = strategy.run(reduce, args=(value,))
            elif kind == "rows":
                summed = strategy.run(reduce, args=(value, ids))
            else:
                table.scatter_sub(tf.IndexedSlices(value, ids))
                return i + 1, value
            return i + 1, tf.reshape(strategy.experimental_local_results(summed)[0][:size], shape)

        def many(value: tf.Tensor) -> tf.Tensor:
            return tf.while_loop(lambda i, _: i < count, once, (tf.constant(0), value), parallel_iterations=1)[1]

        compiled, value = tf.function(many, autograph=False), tf.ones(shape)
        found[kind][size] = timed(lambda: (compiled(value).numpy(), count)[1], args.windows)

    alone = strategy.num_replicas_in_sync == 1
    for size in (1000, 10_000, 100_000) if alone else (1, 12_500, 262_144, 4_194_304):
        repeat("update" if alone else "dense", size)
    for size in () if alone else (1, 1000, 10_000, 100_000):
        repeat("rows", size)
    return {kind: sizes for kind, sizes in found.items() if sizes}


def timed(window: Callable[[], int], windows: int) -> list[float]:
    """Return milliseconds per step of so many windows, after one that does not count."""
    window()
    found = []
    for _ in range(windows):
        start = time.perf_counter()
        steps = window()
        found.append(1000 * (time.perf_counter() - start) / steps)
    return found


def main() -> None:
    """Do what `mode` says and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("loop", "fit", "collective"))
    parser.add_argument("--network", choices=("mlp", "lab"), default="mlp")
    parser.add_argument("--batch_size", type=int, default=1024, help="rows of a step, over all workers")
    parser.add_argument("--steps", type=int, default=1024, help="steps of a window")
    parser.add_argument("--windows", type=int, default=3, help="windows that count")
    args = parser.parse_args()
    if args.mode == "fit":
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    print("\n" + json.dumps({"loop": loop, "fit": fit, "collective": collective}[args.mode](args)))


if __name__ == "__main__":
    main()
