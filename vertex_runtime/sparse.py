"""Large tables of which a batch touches few rows: a layer that gathers from one, and Adam for those rows only."""

from __future__ import annotations

import keras
import tensorflow as tf


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
    # One position stands for each id: the last one that holds it. A segment maximum is the only
    # part that depends on the table's height, and it costs one integer per row, not one vector.
    last = tf.gather(tf.math.unsorted_segment_max(tf.range(size), ids, rows), ids)
    return tf.gather(tf.math.unsorted_segment_sum(values, last, size), last)


def _can_pack(gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> bool:
    """Tell whether row numbers can travel beside the values: whole numbers are exact in float32 below 2**24."""
    if not isinstance(gradient, tf.IndexedSlices) or gradient.values.dtype != tf.float32:
        return False
    return None not in gradient.values.shape and len(variable.shape) == 2 and variable.shape[0] < 2**24


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
        if self._is_dense(gradient, rows):
            self._update_all_rows(gradient, variable, moment, velocity, learning_rate)
            return
        ids = gradient.indices
        summed = sum_duplicates(ids, tf.cast(gradient.values, variable.dtype), rows)
        m, v, step = self._adam(summed, tf.gather(moment.value, ids), tf.gather(velocity.value, ids), learning_rate)
        # Sums, hence results, are equal for equal ids: writing a row twice is harmless.
        self.assign(moment, tf.IndexedSlices(m, ids))
        self.assign(velocity, tf.IndexedSlices(v, ids))
        self.assign(variable, tf.IndexedSlices(tf.gather(variable, ids) - step, ids))

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Sum over the replicas in one all-reduce: rows travel in a buffer with a place for those of every replica.

        TensorFlow's own way takes three collective operations, one after the other, for each sparse gradient.
        """
        context = tf.distribute.get_replica_context()
        count, sent = context.num_replicas_in_sync, []
        if count == 1 or any(gradient is None for gradient, _ in grads_and_vars):
            return super()._all_reduce_sum_gradients(grads_and_vars)
        for gradient, variable in grads_and_vars:
            if _can_pack(gradient, variable):
                ids = tf.cast(gradient.indices, tf.float32)[:, None]
                rows = tf.concat([gradient.values, ids], 1)
                mine = tf.range(count)[:, None, None] == context.replica_id_in_sync_group
                gradient = tf.reshape(tf.where(mine, rows[None], 0.0), [count * rows.shape[0], rows.shape[1]])
            sent.append(gradient)
        return [
            (tf.IndexedSlices(summed[:, :-1], tf.cast(summed[:, -1], tf.int32), gradient.dense_shape), variable)
            if _can_pack(gradient, variable)
            else (summed, variable)
            for summed, (gradient, variable) in zip(context.all_reduce(tf.distribute.ReduceOp.SUM, sent), grads_and_vars)
        ]

    @staticmethod
    def _is_dense(gradient: tf.IndexedSlices, rows: int) -> bool:
        """Tell, by static shape, whether one pass over the whole table is the faster way."""
        return gradient.indices.shape[0] is not None and 4 * gradient.indices.shape[0] >= rows

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
