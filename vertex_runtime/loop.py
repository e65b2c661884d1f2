"""The training loop: k steps of a Keras model's own `train_step` inside one compiled call.

Keras 3's `fit` fails under MultiWorkerMirroredStrategy (keras issue 20585) and pays Python's price at every step. Here
one call gathers the rows of k steps from tensors that stay in memory and runs them in a graph, `strategy.run` around
each step; the same loop serves one device, several, several workers and TPUs.
"""

from __future__ import annotations

import gc
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .checkpoint import Checkpointer, assign, named_variables, snapshot
from .errors import FAILED, UserError
from .reporting import Events, Progress, log
from .rows import MemoryRows, StreamedRows, Tensors, ahead

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
    worker: int = 0
    workers: int = 1

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


class StopSignal:
    """Turns the first SIGTERM into a flag; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> StopSignal:
        self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _note(self, *_: object) -> None:
        self.received = True
        # The kernel ignores a default action for PID 1, as which a container's entry point runs.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if os.getpid() != 1 else lambda *_: os._exit(143))


def end_by_sigterm() -> None:
    """End as a process ends that SIGTERM killed; as PID 1 with the status a shell gives that."""
    if os.getpid() == 1:
        os._exit(128 + signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)


class Steps:
    """The compiled calls of one model: training steps and evaluation steps over rows given by index."""

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy, plan: Plan, example: Tensors, fingerprints: bool):
        self.model, self.strategy, self.plan, self.fingerprints = model, strategy, plan, fingerprints
        replicas = strategy.num_replicas_in_sync
        self.local_replicas = replicas // plan.workers
        self.evaluation_batch = -(-max(plan.batch_size, EVALUATION_BATCH) // replicas) * replicas
        spec = tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), example)
        order = tf.TensorSpec([plan.call_steps, plan.batch_size // plan.workers], tf.int32)
        count = tf.TensorSpec([], tf.int32)
        # AutoGraph is off: nothing here needs it, and converting Keras's code would take most of the tracing.
        self.train = tf.function(self._train, input_signature=[spec, order, count], autograph=False)
        self._loop = tf.function(self._train_loop, jit_compile=plan.jit_compile, autograph=False)
        shape = [EVALUATION_STEPS, self.evaluation_batch // plan.workers]
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
        late = self.plan.jit_compile and self.plan.batch_size >= LATE_GATHER and not self.fingerprints
        block = (rows, order) if late else _gather(rows, order)
        bad, loss = self._loop(block, count, late)
        return bad, loss, _row_hashes(block) if self.fingerprints else tf.zeros([0], tf.uint8)

    def _train_loop(self, block: Any, count: tf.Tensor, late: bool) -> tuple[tf.Tensor, tf.Tensor]:
        def rows_of(i: tf.Tensor) -> Tensors:
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
        place = tf.distribute.get_replica_context().replica_id_in_sync_group - self.plan.worker * self.local_replicas

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

    def share(self, order: np.ndarray) -> np.ndarray:
        """Return this worker's columns of an array [steps, global batch]."""
        size = order.shape[1] // self.plan.workers
        return order[:, self.plan.worker * size : (self.plan.worker + 1) * size]

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
                order, weights = self.share(order), self.share(weights)
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


class CallbackStates:
    """The plain attributes of Keras callbacks, as part of a checkpoint."""

    WRITERS = ("ModelCheckpoint", "BackupAndRestore", "OrbaxCheckpoint")

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]):
        for callback in callbacks:
            if any(kind.__name__ in self.WRITERS for kind in type(callback).__mro__):
                raise UserError(
                    f"callback {type(callback).__name__} writes checkpoints of its own, which a resumed run would not fit: "
                    "leave it out, the runtime checkpoints (--checkpoint_steps)."
                )
        self.callbacks = list(callbacks)

    def read(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """Return (plain attributes of each callback, arrays by name)."""
        plain: list[dict[str, Any]] = []
        arrays: dict[str, np.ndarray] = {}
        for i, callback in enumerate(self.callbacks):
            plain.append({})
            for name, value in vars(callback).items():
                if name in ("model", "_model", "params", "validation_data"):
                    continue
                if isinstance(value, (bool, int, float, str, type(None), np.floating, np.integer)):
                    plain[i][name] = value.item() if isinstance(value, np.generic) else value
                elif isinstance(value, np.ndarray):
                    arrays[f"callbacks/{i}/{name}"] = value
                elif isinstance(value, (list, tuple)) and value and all(isinstance(item, np.ndarray) for item in value):
                    plain[i][name] = {"arrays": len(value)}
                    arrays.update({f"callbacks/{i}/{name}/{j}": item for j, item in enumerate(value)})
        return plain, arrays

    def write(self, plain: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray]) -> None:
        for i, (callback, attributes) in enumerate(zip(self.callbacks, plain)):
            for name, value in attributes.items():
                if isinstance(value, dict):
                    value = [arrays[f"callbacks/{i}/{name}/{j}"] for j in range(value["arrays"])]
                setattr(callback, name, value)
            prefix = f"callbacks/{i}/"
            for name, value in arrays.items():
                if name.startswith(prefix) and "/" not in name[len(prefix) :]:
                    setattr(callback, name[len(prefix) :], value)


@dataclass
class Trainer:
    """One run of the loop: what it trains, where it stands and whom it tells."""

    steps: Steps
    plan: Plan
    train_rows: MemoryRows | StreamedRows
    eval_rows: MemoryRows | StreamedRows
    checkpointer: Checkpointer
    callbacks: Sequence[keras.callbacks.Callback]
    fingerprint: dict[str, Any]
    events: Events
    progress: Progress
    on_evaluation: Callable[[int, dict[str, float]], None]
    profile_dir: str
    objective: str
    maximize: bool
    ledger: Callable[[int, np.ndarray], None] | None = None
    state: dict[str, Any] = field(default_factory=lambda: {"step": 0, "evaluated": 0, "epoch": 0, "best": {}, "finished": False, "stopped": False, "metrics": {}})

    def __post_init__(self) -> None:
        self.model = self.steps.model
        self.states = CallbackStates(self.callbacks)
        counts = {"epochs": self.plan.num_evals, "steps": self.plan.total_steps}
        self.hooks = keras.callbacks.CallbackList(list(self.callbacks), model=self.model, **counts)
        self.model.stop_training = False
        self.variables = named_variables(
            model=self.model.variables, optimizer=self.model.optimizer.variables, metrics=self.model.metrics_variables
        )
        self.calls, self.step_seconds = 0, 0.0

    def restore(self, tensors: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        assign(self.variables, tensors, self.checkpointer.directory)
        self.state = state
        self.model.stop_training = state["stopped"]
        self.states.write(state["callbacks"], tensors)
        random.setstate((state["random"][0], tuple(state["random"][1]), state["random"][2]))
        np.random.set_state(tuple(np.array(v, np.uint32) if isinstance(v, list) else v for v in state["numpy_random"]))

    def _state(self) -> tuple[dict[str, tf.Tensor], dict[str, Any]]:
        plain, arrays = self.states.read()
        kind, keys, *rest = np.random.get_state()
        extra = {
            "callbacks": plain, "random": random.getstate(), "numpy_random": [kind, keys.tolist(), *rest],
            "fingerprint": self.fingerprint, "stopped": bool(self.model.stop_training),
        }
        tensors = snapshot(self.variables) | {name: tf.constant(value) for name, value in arrays.items()}
        return tensors, self.state | extra

    def run(self, restored: tuple[dict[str, np.ndarray], dict[str, Any]] | None) -> dict[str, float]:
        """Train to the end and return the final metrics of training and evaluation (the latter as `val_*`).

        Raises:
            Preempted: SIGTERM came; the state is durable.
            UserError: the loss is not finite, or a checkpoint cannot be written.
        """
        self.hooks.on_train_begin()
        if restored:
            self.restore(*restored)
        if self.state["finished"]:
            return self.state["metrics"]
        with StopSignal() as stop:
            self.progress.begin(self.state["step"])
            try:
                self._train(stop)
            except Preempted:
                self.checkpointer.join()
                log("WARNING", f"SIGTERM: the state of step {self.state['step']} is saved; the same command continues there.")
                raise
            finally:
                self.progress.close()
            return self._finish(stop)

    def _train(self, stop: StopSignal) -> None:
        plan, state = self.plan, self.state
        evaluations = plan.evaluation_steps()
        feed = ahead(self.train_rows.feed(plan.batch_size, plan.seed, state["step"]))
        rows, order = None, np.empty((0, plan.batch_size), np.int32)
        while True:
            step = state["step"]
            if step > state["evaluated"] and step in evaluations:
                self._evaluate(stop)
            if step >= plan.total_steps or self.model.stop_training:
                return
            if step == state["evaluated"]:
                self.hooks.on_epoch_begin(state["epoch"])
            if not len(order):
                rows, order = next(feed)
            count = min(len(order), self._steps_to_boundary(step, evaluations))
            self._call(rows, order[:count])
            order = order[count:]
            if stop.received:
                self.checkpointer.save(*self._state(), wait=True)
                raise Preempted
            if state["step"] % plan.checkpoint_steps == 0 and state["step"] not in evaluations:
                self.checkpointer.save(*self._state(), skip=True)
            self.checkpointer.check()

    def _steps_to_boundary(self, step: int, evaluations: Sequence[int]) -> int:
        plan = self.plan
        edges = [plan.total_steps, (step // plan.checkpoint_steps + 1) * plan.checkpoint_steps, *evaluations]
        edges += [edge - 1 for edge in (plan.profile or ())[:1]] + list((plan.profile or ())[1:])
        edges += [self.events.kill_step] if self.events.kill_step else []
        return min(self._steps_this_call(), *(edge - step for edge in edges if edge > step))

    def _steps_this_call(self) -> int:
        """Few steps at first, then as many as a second holds, so that a slow model still heeds SIGTERM in time."""
        plan = self.plan
        if plan.steps_per_call or self.calls == 0:
            return plan.steps_per_call or 1
        return min(plan.call_steps, 2 ** int(math.log2(max(1.0, 1.0 / max(self.step_seconds, 1e-6)))))

    def _call(self, rows: Tensors, order: np.ndarray) -> None:
        plan, state, count = self.plan, self.state, len(order)
        step = state["step"]
        if plan.profile and step == plan.profile[0] - 1:
            tf.profiler.experimental.start(self.profile_dir)
        self.hooks.on_train_batch_begin(step)
        if count < plan.call_steps:
            order = np.concatenate([order, np.zeros((plan.call_steps - count, plan.batch_size), np.int32)])
        start = time.perf_counter()
        bad, loss, hashes = self.steps.train(rows, tf.constant(self.steps.share(order)), tf.constant(count))
        bad, loss = int(bad), float(loss)
        if self.calls:  # the first one traces
            self.step_seconds = (time.perf_counter() - start) / count
        self.calls += 1
        if bad >= 0:
            raise UserError(
                f"the loss is not finite at step {step + bad + 1} of {plan.total_steps}. Lower --lr or look at the data; "
                "the newest checkpoint is from before that step.",
                FAILED,
            )
        state["step"] = step + count
        if self.ledger:
            self.ledger(step, hashes.numpy()[:count])
        logs = self.steps.metrics() if self.callbacks else {}
        self.hooks.on_train_batch_end(state["step"] - 1, logs)
        if self.calls == 1:
            self.progress.begin(state["step"])  # tracing is not training
            gc.freeze()  # nor is there garbage in what tracing made
            gc.enable()
        self.progress.update(state["step"], loss)
        self.events.enter("step", state["step"], total_steps=plan.total_steps, examples_per_second=round(self.progress.rate))
        if plan.profile and state["step"] == plan.profile[1]:
            tf.profiler.experimental.stop()

    def _evaluate(self, stop: StopSignal) -> None:
        state, step = self.state, self.state["step"]
        pending = self._state()  # before the training metrics are read off and reset
        self.events.enter("evaluation", step)
        metrics = self.steps.metrics()
        self.hooks.on_test_begin()
        try:
            evaluated = self.steps.evaluate(self.eval_rows, lambda: stop.received)
        except Preempted:
            self.checkpointer.save(*pending, wait=True)
            raise
        self.hooks.on_test_end(evaluated)
        metrics |= {f"val_{name}": value for name, value in evaluated.items()}
        self._note_best(metrics)
        state.update(evaluated=step, metrics=metrics)
        self.on_evaluation(step, metrics)
        self.progress.begin(step)
        self.hooks.on_epoch_end(state["epoch"], dict(metrics))
        state["epoch"] += 1
        self.checkpointer.save(*self._state())

    def _note_best(self, metrics: dict[str, float]) -> None:
        best, value = self.state["best"], metrics[self.objective]
        better = (lambda a, b: a > b) if self.maximize else (lambda a, b: a < b)
        if math.isfinite(value) and (not best or better(value, best["value"])):
            self.state["best"] = {"metric": self.objective, "value": value, "step": self.state["step"]}

    def _finish(self, stop: StopSignal) -> dict[str, float]:
        """Let callbacks and weight averaging have the last word on the weights, and evaluate what will be exported."""
        self.hooks.on_train_end()
        optimizer = self.model.optimizer
        optimizer.finalize_variable_values(self.model.trainable_variables)
        if self.callbacks or optimizer.use_ema:
            try:
                evaluated = self.steps.evaluate(self.eval_rows, lambda: stop.received)
            except Preempted:
                self.checkpointer.join()
                raise
            self.state["metrics"] |= {f"val_{name}": value for name, value in evaluated.items()}
        self.state["finished"] = True
        self.checkpointer.save(*self._state(), wait=True)
        return self.state["metrics"]
