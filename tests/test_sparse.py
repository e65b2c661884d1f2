"""The row-sparse Adam against the textbook, and gradients that stay sparse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import forked
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def reference(table, ids, gradients, steps, rate):
    """Adam of the rows touched in each step, the gradients of equal ids summed: what NumPy makes of the definition."""
    table = table.astype(np.float64)
    moment, velocity = np.zeros_like(table), np.zeros_like(table)
    for t in range(1, steps + 1):
        total = np.zeros_like(table)
        np.add.at(total, ids[t - 1], gradients[t - 1])
        rows = np.unique(ids[t - 1])
        moment[rows] = 0.9 * moment[rows] + 0.1 * total[rows]
        velocity[rows] = 0.999 * velocity[rows] + 0.001 * total[rows] ** 2
        alpha = rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        table[rows] -= alpha * moment[rows] / (np.sqrt(velocity[rows]) + 1e-7)
    return table


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("batch", [4, 64])  # few ids: rows are scattered; many: the whole table is masked
def test_row_sparse_adam_is_adam_on_touched_rows(batch, jit):
    import keras
    import tensorflow as tf

    from vertex_runtime.sparse import RowSparseAdam

    random = np.random.default_rng(0)
    ids = random.integers(0, 20, (5, batch)).astype(np.int32)
    ids[:, :2] = 7  # duplicates in every step
    gradients = random.normal(size=(5, batch, 3)).astype(np.float32)
    start = random.normal(size=(40, 3)).astype(np.float32)
    variable = keras.Variable(start)
    optimizer = RowSparseAdam(0.1)
    optimizer.build([variable])

    @tf.function(jit_compile=jit, autograph=False)
    def step(rows, values):
        optimizer.apply([tf.IndexedSlices(values, rows, tf.constant([40, 3]))], [variable])

    for i in range(5):
        step(tf.constant(ids[i]), tf.constant(gradients[i]))
    np.testing.assert_allclose(variable.numpy(), reference(start, ids, gradients, 5, 0.1), rtol=2e-5, atol=1e-6)
    assert np.array_equal(variable.numpy()[20:], start[20:])


def test_rows_layer_has_a_sparse_gradient():
    import tensorflow as tf

    from vertex_runtime.sparse import Rows

    layer = Rows(1000, 4)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(tf.constant([[1, 2], [2, 3]])))
    gradient = tape.gradient(total, layer.trainable_weights)[0]
    assert isinstance(gradient, tf.IndexedSlices) and gradient.values.shape == (2, 2, 4) or gradient.values.shape == (4, 4)


SUMMED = """
import json, sys
import keras, numpy as np, tensorflow as tf
from vertex_runtime.sparse import sum_all_at_once

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
random = np.random.default_rng(0)
ids = random.integers(0, 9, (3, 2, 8, 2)).astype(np.int32)  # steps, replicas, rows, columns: many duplicates
targets = random.normal(size=(3, 2, 8, 1)).astype(np.float32)


def trained(strategy, at_once):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs = keras.Input((2,), dtype="int32")
        # The second table is too large for its rows to travel with the rest.
        parts = [keras.layers.Embedding(50, 3)(inputs[:, 0]), keras.layers.Embedding(2**24, 1)(inputs[:, 1])]
        model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(parts)))
        model.compile(keras.optimizers.Adam(0.1), "mse")
        model.optimizer.build(model.trainable_variables)
    if at_once:
        sum_all_at_once(model.optimizer)

    @tf.function(autograph=False)
    def step(ids, targets):
        def one():
            place = tf.distribute.get_replica_context().replica_id_in_sync_group
            return model.train_step((ids[place], targets[place]))["loss"]

        return strategy.run(one)

    graph = step.get_concrete_function(tf.TensorSpec([2, 8, 2], tf.int32), tf.TensorSpec([2, 8, 1])).graph
    for i in range(3):
        step(tf.constant(ids[i]), tf.constant(targets[i]))
    return graph, [variable.numpy()[:50] for variable in model.trainable_variables]


def collectives(graph):
    graphs = [graph, *(f.graph for f in graph._functions.values() if hasattr(f, "graph"))]
    return sum(op.type.startswith("Collective") for each in graphs for op in each.get_operations())


strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
graphs, two = zip(*(trained(strategy, at_once) for at_once in (False, True)))
apart = max(float(np.abs(a - b).max()) for a, b in zip(*two))
moved = max(float(np.abs(a).max()) for a in two[0])
print(json.dumps({"apart": apart, "moved": moved, "collectives": [collectives(graph) for graph in graphs]}))
"""


@pytest.mark.slow
def test_rows_travel_with_the_dense_gradients(tmp_path):
    """Two replicas end with the weights that TensorFlow's own collectives give, with fewer of them."""
    (tmp_path / "summed.py").write_text(SUMMED)
    done = forked.run("summed", [], {**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["apart"] <= 1e-6 < 0.1 < found["moved"]
    assert found["collectives"][1] < found["collectives"][0]
