"""Large tables of which a batch touches few rows: a layer that gathers from one, Adam for those rows only, and the sum of
their gradients over several replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

TRAVEL_BYTES = 256 << 10  # of a replica's rows: what they take longer in a sum is less than three more collectives take


def sum_duplicates(ids: tf.Tensor, values: tf.Tensor, rows: int) -> tf.Tensor:
    """Return `values` where every row holds the sum over all positions with its id.

    Shapes stay static and equal ids get bit-identical sums, so that a scatter
    which writes one row several times gives the same result in any order.

    Args:
        ids: int tensor [n] of row numbers in [0, rows).
        values: float tensor [n, ...].
        rows: rows of the table.
    """
    size = tf.shape(ids)[0]
    # One position stands for each id: the last one that holds it.
    if ids.shape[0] is not None and ids.shape[0] ** 2 <= rows:
        last = tf.reduce_max(tf.where(ids[:, None] == ids, tf.range(size), -1), 1)
    else:  # a pass over one integer per row of the table is less than comparing all pairs
        last = tf.gather(tf.math.unsorted_segment_max(tf.range(size), ids, rows), ids)
    return tf.gather(tf.math.unsorted_segment_sum(values, last, size), last)


@keras.saving.register_keras_serializable(package="vertex_runtime")
class RowSparseAdam(keras.optimizers.Adam):
    """Adam that updates only the rows a batch touches, for gradients that are `tf.IndexedSlices`.

    A touched row gets exactly Adam's update for the summed gradient of its
    duplicates; an untouched row keeps its weights and its moments, where plain
    Adam would go on moving it by old momentum. The bias correction counts all
    steps. Other gradients are treated as by `keras.optimizers.Adam`.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable; see `keras.optimizers.Optimizer.update_step`."""
        if not isinstance(gradient, tf.IndexedSlices) or self.amsgrad:
            super().update_step(gradient, variable, learning_rate)
            return
        rows = variable.shape[0]
        index = self._get_variable_index(variable)
        moment, velocity = self._momentums[index], self._velocities[index]
        if gradient.indices.shape[0] is not None and 4 * gradient.indices.shape[0] >= rows:  # one pass over the table is faster
            self._update_all_rows(gradient, variable, moment, velocity, learning_rate)
            return
        ids = gradient.indices
        summed = sum_duplicates(ids, tf.cast(gradient.values, variable.dtype), rows)
        m, v, step = self._adam(summed, tf.gather(moment.value, ids), tf.gather(velocity.value, ids), learning_rate)
        # Sums, hence results, are equal for equal ids: writing a row twice is harmless.
        self.assign(moment, tf.IndexedSlices(m, ids))
        self.assign(velocity, tf.IndexedSlices(v, ids))
        self.assign(variable, tf.IndexedSlices(tf.gather(variable, ids) - step, ids))

    def _adam(self, gradient, moment, velocity, learning_rate):
        """Return both new moments and the step to subtract."""
        dtype = gradient.dtype
        rate, count = tf.cast(learning_rate, dtype), tf.cast(self.iterations.value + 1, dtype)
        beta_1, beta_2 = tf.cast(self.beta_1, dtype), tf.cast(self.beta_2, dtype)
        rate *= tf.sqrt(1 - tf.pow(beta_2, count)) / (1 - tf.pow(beta_1, count))
        m = moment + (gradient - moment) * (1 - beta_1)
        v = velocity + (tf.square(gradient) - velocity) * (1 - beta_2)
        return m, v, rate * m / (tf.sqrt(v) + tf.cast(self.epsilon, dtype))

    def _update_all_rows(self, gradient, variable, moment, velocity, learning_rate):
        """Same result by dense arithmetic: rows that no id names are masked."""
        ids, rows = gradient.indices, variable.shape[0]
        summed = tf.math.unsorted_segment_sum(tf.cast(gradient.values, variable.dtype), ids, rows)
        touched = tf.math.unsorted_segment_max(tf.ones_like(ids), ids, rows) > 0
        touched = tf.reshape(touched, [rows] + [1] * (len(variable.shape) - 1))
        old_m, old_v = moment.value, velocity.value
        m, v, step = self._adam(summed, old_m, old_v, learning_rate)
        self.assign(moment, tf.where(touched, m, old_m))
        self.assign(velocity, tf.where(touched, v, old_v))
        self.assign_sub(variable, tf.where(touched, step, tf.zeros_like(step)))


class Rows(keras.layers.Layer):
    """An embedding whose gradient is sure to stay a few rows.

    It gathers from the variable itself: a read of the whole table would be copied at every update.
    """

    def __init__(self, rows: int, width: int, **kwargs):
        super().__init__(**kwargs)
        self.table = self.add_weight(shape=(rows, width), initializer="uniform", name="table")

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """Return [..., width] for ids [...]."""
        return tf.gather(self.table.value, ids)


def sum_all_at_once(optimizer: keras.optimizers.Optimizer) -> None:
    """Let an optimizer sum sparse gradients over the replicas in the one all-reduce that sums the dense ones.

    The rows of a gradient travel in a buffer that has a place for those of each replica; every replica then has the rows
    of all, as ever. TensorFlow's own way takes three collective operations for each sparse gradient, one after the other.
    That way is kept where a replica has many rows.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # loss scaling wraps the one that updates
    usual = inner._all_reduce_sum_gradients

    def all_reduce(pairs: Sequence[tuple[Any, tf.Variable]]) -> list[tuple[Any, tf.Variable]]:
        context, pairs = tf.distribute.get_replica_context(), list(pairs)
        if context is None:
            return usual(pairs)
        fits = [_fits(gradient, variable) for gradient, variable in pairs]
        sent = [(_pack(gradient, context) if fit else gradient, variable) for fit, (gradient, variable) in zip(fits, pairs)]
        summed = zip(fits, usual(sent), pairs)
        return [(_unpack(found, gradient) if fit else found, variable) for fit, (found, variable), (gradient, _) in summed]

    inner._all_reduce_sum_gradients = all_reduce


def _fits(gradient: Any, variable: tf.Variable) -> bool:
    """Tell whether a gradient is of few rows, and their numbers may travel beside the values: as float32, exact below 2**24."""
    if not isinstance(gradient, tf.IndexedSlices) or gradient.values.dtype != tf.float32:
        return False
    sizes = gradient.values.shape.num_elements(), gradient.indices.shape.num_elements()
    return None not in sizes and variable.shape[0] < 2**24 and 4 * sum(sizes) <= TRAVEL_BYTES


def _pack(gradient: tf.IndexedSlices, context: tf.distribute.ReplicaContext) -> tf.Tensor:
    """Return [replicas, rows, width + 1]: this replica's rows, their numbers last, and zeros in the others' places."""
    count = gradient.indices.shape[0]
    rows = tf.concat([tf.reshape(gradient.values, [count, -1]), tf.cast(gradient.indices, tf.float32)[:, None]], 1)
    mine = tf.range(context.num_replicas_in_sync)[:, None, None] == context.replica_id_in_sync_group
    return tf.where(mine, rows, 0.0)


def _unpack(buffer: tf.Tensor, gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """Return the rows of all replicas, shaped as those of one were."""
    count = buffer.shape[0] * buffer.shape[1]
    rows = tf.reshape(buffer, [count, buffer.shape[2]])
    values = tf.reshape(rows[:, :-1], [count, *gradient.values.shape[1:]])
    return tf.IndexedSlices(values, tf.cast(rows[:, -1], gradient.indices.dtype), gradient.dense_shape)
