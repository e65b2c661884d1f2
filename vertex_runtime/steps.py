"""The compiled calls of a run: k training steps, or the evaluation of every row, over rows given by index.

One call gathers the rows of k steps from tensors that stay in memory and runs Keras's own `train_step` on them in a graph,
`strategy.run` around each step; so one loop serves one device, several, several workers and TPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .rows import MemoryRows, Share, StreamedRows, Tensors

EVALUATION_BATCH = 256
EVALUATION_STEPS = 32
LATE_GATHER = 1024


@dataclass(frozen=True)
class Plan:
    """How long a run trains and when it evaluates, checkpoints and profiles (all in steps)."""

    total_steps: int
    batch_size: int
    num_evals: int
    checkpoint_steps: int
    steps_per_call: int = 0
    jit_compile: bool = False
    seed: int = 0
    profile: tuple[int, int] | None = None
    share: Share = Share()
    padded: bool = False

    @property
    def call_steps(self) -> int:
        """Steps that the rows gathered for one call last for: at most 65,536 rows at a time."""
        return self.steps_per_call or max(1, min(256, 65_536 // self.batch_size))

    def evaluation_steps(self) -> list[int]:
        """Steps after which to evaluate: evenly spaced, the last one at the end."""
        count = min(self.num_evals, self.total_steps)
        return sorted({round(self.total_steps * (i + 1) / count) for i in range(count)})


class Preempted(Exception):
    """The process was told to end (SIGTERM) and its state is durable."""


class Steps:
    """The compiled calls of one model: training steps and evaluation steps over rows given by index."""

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy, plan: Plan, example: Tensors, fingerprints: bool):
        self.model, self.strategy, self.plan, self.fingerprints = model, strategy, plan, fingerprints
        replicas = strategy.num_replicas_in_sync
        self.local_replicas = replicas // plan.share.workers
        self.evaluation_batch = -(-max(plan.batch_size, EVALUATION_BATCH) // replicas) * replicas
        spec = tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), example)
        order = tf.TensorSpec([plan.call_steps, plan.batch_size // plan.share.workers], tf.int32)
        count = tf.TensorSpec([], tf.int32)
        # AutoGraph is off: nothing here needs it, and converting Keras's code would take most of the tracing.
        self.train = tf.function(self._train, input_signature=[spec, order, count], autograph=False)
        self._loop = tf.function(self._train_loop, jit_compile=plan.jit_compile, autograph=False)
        shape = [EVALUATION_STEPS, self.evaluation_batch // plan.share.workers]
        weights = tf.TensorSpec(shape, tf.float32)
        signature = [spec, tf.TensorSpec(shape, tf.int32), weights, count]
        self.evaluate_call = tf.function(self._evaluate, input_signature=signature, autograph=False)
        # Across workers this is a collective: every worker asks for metrics at the same steps.
        self.results = tf.function(model.get_metrics_result, autograph=False)
        with strategy.scope():
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            batch = tf.nest.map_structure(lambda t: tf.zeros([plan.batch_size // replicas, *t.shape[1:]], t.dtype), example)
            # Metric and loss state must exist before the first trace; Keras has no public call for that.
            model._symbolic_build(data_batch=(*batch, tf.ones([plan.batch_size // replicas])))

    def _train(self, rows: Tensors, order: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Train `count` steps; returns (first step with a non-finite loss or -1, mean loss so far, hashes of the rows)."""
        # Large batches are faster gathered one by one in the compiled loop, small ones all at once before it.
        plan = self.plan
        late = plan.jit_compile and plan.batch_size >= LATE_GATHER and not self.fingerprints and not plan.padded
        block = (rows, order) if late else _gather(rows, tf.maximum(order, 0))
        if plan.padded:
            block = (*block, tf.cast(order >= 0, tf.float32))
        bad, loss = self._loop(block, count, late)
        return bad, loss, _row_hashes(block[:2]) if self.fingerprints else tf.zeros([0], tf.uint8)

    def _train_loop(self, block: Any, count: tf.Tensor, late: bool) -> tuple[tf.Tensor, tf.Tensor]:
        def rows_of(i: tf.Tensor) -> Any:
            if not late:
                return tf.nest.map_structure(lambda t: t[i], block)
            return tf.nest.map_structure(lambda t: tf.gather(t, block[1][i]), block[0])

        def one(i: tf.Tensor, bad: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, ...]:
            loss = self.strategy.run(self._replica_step, args=(rows_of(i),))
            loss = tf.cast(self.strategy.experimental_local_results(loss)[0], tf.float32)
            return i + 1, tf.where((bad < 0) & ~tf.math.is_finite(loss), i, bad), loss

        start = (tf.constant(0), tf.constant(-1), tf.constant(0.0))
        _, bad, loss = tf.while_loop(lambda i, *_: i < count, one, start, parallel_iterations=1)
        return bad, loss

    def _replica_step(self, batch: Tensors) -> tf.Tensor:
        return self.model.train_step(self._own_share(batch))["loss"]

    def _own_share(self, batch: Any) -> Any:
        """Return this replica's part of the rows that this process holds."""
        if self.local_replicas == 1:
            return batch
        place = tf.distribute.get_replica_context().replica_id_in_sync_group - self.plan.share.worker * self.local_replicas

        def part(t: tf.Tensor) -> tf.Tensor:
            size = t.shape[0] // self.local_replicas
            return tf.slice(t, [place * size] + [0] * (t.shape.rank - 1), [size, *t.shape[1:]])

        return tf.nest.map_structure(part, batch)

    def _evaluate(self, rows: Tensors, order: tf.Tensor, weights: tf.Tensor, count: tf.Tensor) -> None:
        block = (*_gather(rows, order), weights)

        def one(i: tf.Tensor) -> tuple[tf.Tensor]:
            batch = tf.nest.map_structure(lambda t: t[i], block)
            self.strategy.run(lambda b: self.model.test_step(self._own_share(b)), args=(batch,))
            return (i + 1,)

        tf.while_loop(lambda i: i < count, one, (tf.constant(0),), parallel_iterations=1)

    def metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.results().items()}

    def evaluate(self, rows: MemoryRows | StreamedRows, stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Return the model's metrics over every row, each counted once; the last batch is padded with weight 0.

        Raises:
            Preempted: `stop` became true on the way.
        """
        self.model.reset_metrics()
        total, padded = 0, 0
        for tensors in rows.chunks():
            count = int(tensors[1].shape[0])
            for order, weights, steps in _batches(count, self.evaluation_batch):
                if stop():
                    raise Preempted
                order, weights = self.plan.share.columns(order), self.plan.share.columns(weights)
                self.evaluate_call(tensors, tf.constant(order), tf.constant(weights), tf.constant(steps))
                padded += steps * self.evaluation_batch
            total += count
        metrics = self.metrics()
        # Keras divides a batch's loss by its rows, the padding among them.
        metrics["loss"] *= padded / total
        self.model.reset_metrics()
        return metrics


def _gather(rows: Tensors, order: tf.Tensor) -> Tensors:
    """Return the rows of `order` [k, n], with static shapes [k, n, ...]."""
    flat = tf.reshape(order, [-1])
    return tf.nest.map_structure(lambda t: tf.reshape(tf.gather(t, flat), [*order.shape, *t.shape[1:]]), rows)


def _row_hashes(block: Tensors) -> tf.Tensor:
    """Hash each row's features and label: [k, n, 8] uint8."""
    columns = []
    for tensor in tf.nest.flatten(block):
        raw = tf.bitcast(tensor, tf.uint8)
        columns.append(tf.reshape(raw, [tensor.shape[0] * tensor.shape[1], -1]))
    hashes = tf.fingerprint(tf.concat(columns, 1))
    return tf.reshape(hashes, [*tf.nest.flatten(block)[0].shape[:2], 8])


def _batches(count: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield (order, weights, steps): every row of `count` once, in blocks of EVALUATION_STEPS batches."""
    block = EVALUATION_STEPS * size
    for first in range(0, count, block):
        order = np.arange(first, first + block, dtype=np.int32)
        weights = (order < count).astype(np.float32)
        steps = min(EVALUATION_STEPS, -(-(count - first) // size))
        shape = (EVALUATION_STEPS, size)
        yield np.minimum(order, count - 1).reshape(shape), weights.reshape(shape), steps
