"""The compiled calls of a run: k training steps, or the evaluation of every row, over rows given by index.

One call gathers the rows of k steps from tensors that stay in memory and runs Keras's own `train_step` on them in a graph,
`strategy.run` around each step; so one loop serves one device, several, several workers and TPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from .errors import UserError
from .rows import AnyRows, Rows, Share, count_rows
from .sparse import sum_all_at_once

EVALUATION_BATCH = 256
EVALUATION_STEPS = 32
LATE_GATHER = 1024
# TensorFlow's operations whose state is nobody's variable: generators inside an operation, and tables that are written.
RANDOM = {
    "RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal", "ParameterizedTruncatedNormal", "RandomShuffle",
    "Multinomial", "RandomGamma", "RandomPoisson", "RandomPoissonV2", "RandomCrop", "SampleDistortedBoundingBoxV2",
}  # fmt: skip
WRITTEN = {"LookupTableInsert", "LookupTableInsertV2", "LookupTableImportV2", "LookupTableRemoveV2"}


@dataclass(frozen=True)
class Plan:
    """How long a run trains and when it evaluates, checkpoints and profiles (all in steps)."""

    total_steps: int
    batch_size: int
    num_evals: int
    checkpoint_steps: int
    steps_per_call: int = 0
    jit_compile: bool | None = False  # None: not chosen yet
    seed: int = 0
    profile: tuple[int, int] | None = None
    share: Share = Share()
    scalar_steps: int = 0

    @property
    def call_steps(self) -> int:
        """Steps that the rows gathered for one call last for: at most 65,536 rows at a time."""
        return self.steps_per_call or max(1, min(256, 65_536 // self.batch_size))

    def evaluation_steps(self) -> list[int]:
        """Steps after which to evaluate: evenly spaced, the last one at the end."""
        count = min(self.num_evals, self.total_steps)
        return sorted({round(self.total_steps * (i + 1) / count) for i in range(count)})


class Steps:
    """The compiled calls of one model: training steps and evaluation steps over rows given by index."""

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy, plan: Plan, example: Rows, fingerprints: bool):
        self.model, self.strategy, self.plan, self.fingerprints = model, strategy, plan, fingerprints
        self.replicas = strategy.num_replicas_in_sync
        self.local_replicas = self.replicas // plan.share.workers
        self.evaluation_batch = -(-max(plan.batch_size, EVALUATION_BATCH) // self.replicas) * self.replicas
        spec = tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), example)
        order = tf.TensorSpec([plan.call_steps, plan.batch_size // plan.share.workers], tf.int32)
        count = tf.TensorSpec([], tf.int32)
        # AutoGraph is off: nothing here needs it, and converting Keras's code would take most of the tracing.
        self.train = tf.function(self._train, input_signature=[spec, order, count], autograph=False)
        self._loop = tf.function(self._train_loop, jit_compile=bool(plan.jit_compile), autograph=False)
        self.evaluate_batches = tf.function(self._evaluate_batches, input_signature=[spec, count, count], autograph=False)
        self.evaluate_rest = tf.function(self._evaluate_rest, autograph=False)  # traced once for a data set: its size is static
        # Across workers this is a collective: every worker asks for metrics at the same steps.
        self.results = tf.function(model.get_metrics_result, autograph=False)
        with strategy.scope():
            batch = tf.nest.map_structure(lambda t: tf.zeros([plan.batch_size // self.replicas, *t.shape[1:]], t.dtype), example)
            self._build(batch)
            if self.replicas > 1:
                for optimizer in optimizers(model):
                    sum_all_at_once(optimizer)

    def _build(self, batch: Rows) -> None:
        """Create every variable, those of metrics, losses and optimizers too: they must exist before the first trace."""
        model = self.model
        unbuilt = [optimizer for optimizer in optimizers(model) if not optimizer.built]
        for optimizer in unbuilt:
            optimizer.built = True  # Keras would build it for the layers that the model answers by alone
        model._symbolic_build(data_batch=batch)  # Keras has no public call for that
        for optimizer in unbuilt:
            optimizer.built = False
        own_step = type(model).train_step is not keras.Model.train_step
        with_more = own_step and (len(unbuilt) > 1 or not all(layer.built for layer in model._flatten_layers()))
        changed = self._built_by_step(batch, unbuilt) if with_more else {}
        for optimizer in unbuilt:
            optimizer.build(changed.get(id(optimizer)) or model.trainable_variables)

    def _built_by_step(self, batch: Rows, unbuilt: Sequence[keras.optimizers.Optimizer]) -> dict[int, list[keras.Variable]]:
        """Build the layers that only a training step of the model's own uses; return which variables it has each optimizer change.

        `fit` does so at its first step: the discriminator of a GAN, for instance, is no part of what the model answers by.
        """
        changed: dict[int, list[keras.Variable]] = {}

        def noted(optimizer: keras.optimizers.Optimizer) -> Callable[..., None]:
            def apply(grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
                known = changed.setdefault(id(optimizer), [])
                known += [each for each in trainable_variables or () if all(each is not other for other in known)]

            return apply

        for optimizer in unbuilt:
            optimizer.apply = noted(optimizer)
        try:
            step = tf.function(lambda: self.strategy.run(self.model.train_step, args=(batch,)), autograph=False)
            step.get_concrete_function()
        finally:
            for optimizer in unbuilt:
                del optimizer.apply
        return changed

    def trace(self) -> Sequence[tf.Variable]:
        """Trace the training call and return every variable in it, those of nobody's layer among them.

        Raises:
            UserError: a step depends on what no checkpoint can hold.
        """
        graph = self.train.get_concrete_function().graph
        for op in operations(graph):
            if op.type in RANDOM:
                raise UserError(
                    f"a training step draws random numbers by {op.type} ({op.name}), and no checkpoint holds how far they have got. "
                    "Draw them by keras.random with a keras.random.SeedGenerator that the layer keeps, or by a tf.random.Generator."
                )
            if op.type in WRITTEN:
                raise UserError(
                    f"a training step writes into a lookup table ({op.name}), which no checkpoint holds. Count in a tf.Variable instead, "
                    "or fill the table before training."
                )
        return graph.variables

    def metric_names(self) -> list[str]:
        """Return the names of what an evaluation measures."""
        return list(_flat(self.results.get_concrete_function().structured_outputs))

    def _train(self, rows: Rows, order: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Train `count` steps; returns (first step with a non-finite loss or -1, mean loss so far, hashes of the rows)."""
        # Large batches are faster gathered one by one in the compiled loop, small ones all at once before it.
        plan = self.plan
        late = plan.jit_compile and plan.batch_size >= LATE_GATHER and not self.fingerprints
        block = (rows, order) if late else _gather(rows, order)
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

    def _replica_step(self, batch: Rows) -> tf.Tensor:
        """Run one training step; returns what tells whether it went well: its `loss`, else the sum of all that ends in _loss."""
        logs = self.model.train_step(self._own_share(batch))
        found = [logs["loss"]] if "loss" in logs else [value for name, value in logs.items() if name.endswith("loss")]
        if not found:
            raise UserError(f"train_step returns no loss, only {', '.join(logs) or 'nothing'}. Return a dict with the key 'loss'.")
        return tf.add_n([tf.reduce_mean(tf.cast(value, tf.float32)) for value in found])

    def _own_share(self, batch: Any) -> Any:
        """Return this replica's part of the rows that this process holds."""
        if self.local_replicas == 1:
            return batch
        place = tf.distribute.get_replica_context().replica_id_in_sync_group - self.plan.share.worker * self.local_replicas

        def part(t: tf.Tensor) -> tf.Tensor:
            size = t.shape[0] // self.local_replicas
            return tf.slice(t, [place * size] + [0] * (t.shape.rank - 1), [size, *t.shape[1:]])

        return tf.nest.map_structure(part, batch)

    def _evaluate_batches(self, rows: Rows, start: tf.Tensor, count: tf.Tensor) -> None:
        """Evaluate `count` whole batches, from row `start` on."""
        own = self.evaluation_batch // self.plan.share.workers

        def one(i: tf.Tensor) -> tuple[tf.Tensor]:
            first = start + i * self.evaluation_batch + self.plan.share.worker * own
            batch = tf.nest.map_structure(lambda t: _rows(t, first, own), rows)
            self.strategy.run(lambda b: self.model.test_step(self._own_share(b)), args=(batch,))
            return (i + 1,)

        tf.while_loop(lambda i: i < count, one, (tf.constant(0),), parallel_iterations=1)

    def _evaluate_rest(self, rows: Rows, start: tf.Tensor, count: int) -> None:
        """Evaluate the last `count` rows, fewer than a batch: an equal part on each replica, what is left over one by one.

        Nothing is padded, since padding would count in metrics that take no weights.
        """
        part, over = divmod(count, self.replicas)

        def one() -> None:
            context = tf.distribute.get_replica_context()
            place = context.replica_id_in_sync_group if context is not None else 0
            if part:
                self.model.test_step(tf.nest.map_structure(lambda t: _rows(t, start + place * part, part), rows))
            if over:
                last = tf.minimum(start + self.replicas * part + place, start + count - 1)

                def single() -> tf.Tensor:
                    self.model.test_step(tf.nest.map_structure(lambda t: _rows(t, last, 1), rows))
                    return tf.constant(0)

                tf.cond(place < over, single, lambda: tf.constant(0))

        self.strategy.run(one)

    def metrics(self) -> dict[str, float]:
        """Return the model's metrics by name; one of several values gives `name_0`, `name_1` and so on."""
        return {name: float(value) for name, value in _flat(self.results()).items()}

    def evaluate(self, rows: AnyRows, moved: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return the model's metrics over every row, each counted once; `moved` is called every few batches, and may end it by raising."""
        self.model.reset_metrics()
        left: Rows | None = None
        for tensors in rows.chunks():
            if left is not None:
                tensors = tf.nest.map_structure(lambda a, b: tf.concat([a, b], 0), left, tensors)
            count, left = count_rows(tensors), None
            whole = count // self.evaluation_batch
            for start in range(0, whole, EVALUATION_STEPS):
                moved()
                batches = tf.constant(min(EVALUATION_STEPS, whole - start))
                self.evaluate_batches(tensors, tf.constant(start * self.evaluation_batch), batches)
            if count % self.evaluation_batch:
                left = tf.nest.map_structure(lambda t: t[whole * self.evaluation_batch :], tensors)
        if left is not None:
            self.evaluate_rest(left, tf.constant(0), count_rows(left))
        metrics = self.metrics()
        self.model.reset_metrics()
        return metrics


def operations(graph: Any) -> Iterator[tf.Operation]:
    """Yield the operations of a graph and of all functions that it calls."""
    for each in (graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))):
        yield from each.get_operations()


def optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Return the model's optimizer and those that a training step of its own keeps as attributes."""
    found = [getattr(model, "optimizer", None), *vars(model).values()]
    kept: list[keras.optimizers.Optimizer] = []
    for value in found:
        if isinstance(value, keras.optimizers.Optimizer) and not any(value is other for other in kept):
            kept.append(value)
    return kept


def _flat(results: Any) -> dict[str, Any]:
    """Name the scalars of what Keras returns as metrics."""
    found: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, dict):
            found |= _flat(value)
        elif value.shape.rank:
            flat = tf.reshape(value, [-1]) if not isinstance(value, tf.TensorSpec) else [None] * value.shape.num_elements()
            found |= {f"{name}_{i}": flat[i] for i in range(value.shape.num_elements())}
        else:
            found[name] = value
    return found


def _rows(tensor: tf.Tensor, first: tf.Tensor, count: int) -> tf.Tensor:
    """Return `count` rows of a tensor from row `first` on, with a static shape."""
    return tf.slice(tensor, [first] + [0] * (tensor.shape.rank - 1), [count, *tensor.shape[1:]])


def _gather(rows: Rows, order: tf.Tensor) -> Rows:
    """Return the rows of `order` [k, n], with static shapes [k, n, ...]."""
    flat = tf.reshape(order, [-1])
    return tf.nest.map_structure(lambda t: tf.reshape(tf.gather(t, flat), [*order.shape, *t.shape[1:]]), rows)


def _row_hashes(block: Rows) -> tf.Tensor:
    """Hash each row's features and label: [k, n, 8] uint8."""
    columns = []
    for tensor in tf.nest.flatten(block):
        if tensor.dtype == tf.string:
            tensor = tf.strings.to_hash_bucket_fast(tensor, 2**62)
        raw = tf.bitcast(tf.cast(tensor, tf.uint8) if tensor.dtype == tf.bool else tensor, tf.uint8)
        columns.append(tf.reshape(raw, [tensor.shape[0] * tensor.shape[1], -1]))
    hashes = tf.fingerprint(tf.concat(columns, 1))
    return tf.reshape(hashes, [*tf.nest.flatten(block)[0].shape[:2], 8])
