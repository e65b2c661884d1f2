"""The row-sparse Adam against the textbook, and gradients that stay sparse."""

from __future__ import annotations

import numpy as np
import pytest


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
