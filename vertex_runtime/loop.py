"""The training loop: calls of many steps, evaluations, checkpoints, callbacks, and the end by SIGTERM.

Keras 3's `fit` fails under MultiWorkerMirroredStrategy (keras issue 20585) and pays Python's price at every step.
"""

from __future__ import annotations

import gc
import math
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .callbacks import CallbackStates
from .checkpoint import Checkpointer, assign, named_variables, snapshot
from .errors import FAILED, UserError
from .reporting import Events, Progress, log
from .rows import MemoryRows, StreamedRows, Tensors, ahead
from .steps import Plan, Preempted, Steps


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
    profile_dir: str | None
    objective: str
    maximize: bool
    ledger: Callable[[int, np.ndarray, np.ndarray], None] | None = None
    state: dict[str, Any] = field(
        default_factory=lambda: {"step": 0, "evaluated": 0, "epoch": 0, "best": {}, "finished": False, "stopped": False, "metrics": {}}
    )

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

    def _state(self, alone: bool = False) -> tuple[dict[str, tf.Tensor], dict[str, Any]]:
        """Return (tensors, state) of a checkpoint; `alone`: without the metrics, which take all workers to add up."""
        variables = {name: v for name, v in self.variables.items() if not (alone and name.startswith("metrics/"))}
        plain, arrays = self.states.read()
        kind, keys, *rest = np.random.get_state()
        extra = {
            "callbacks": plain, "random": random.getstate(), "numpy_random": [kind, keys.tolist(), *rest],
            "fingerprint": self.fingerprint, "stopped": bool(self.model.stop_training),
        }
        tensors = snapshot(variables) | {name: tf.constant(value) for name, value in arrays.items()}
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
        feed = ahead(self.train_rows.feed(plan.batch_size, plan.seed, state["step"], plan.share))
        rows, order = None, np.empty((0, 0), np.int32)
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
                self.checkpointer.save(*self._state(alone=plan.share.workers > 1), wait=True)
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
        if plan.share.workers > 1:
            return plan.call_steps  # the same on every worker, since callbacks' metrics are collectives
        if plan.steps_per_call or self.calls == 0:
            return plan.steps_per_call or 1
        return min(plan.call_steps, 2 ** int(math.log2(max(1.0, 1.0 / max(self.step_seconds, 1e-6)))))

    def _call(self, rows: Tensors, order: np.ndarray) -> None:
        plan, state, count = self.plan, self.state, len(order)
        step = state["step"]
        profiled = plan.profile if self.profile_dir else None
        if profiled and step == profiled[0] - 1:
            tf.profiler.experimental.start(self.profile_dir)
        self.hooks.on_train_batch_begin(step)
        if count < plan.call_steps:
            order = np.concatenate([order, np.zeros((plan.call_steps - count, order.shape[1]), np.int32)])
        start = time.perf_counter()
        bad, loss, hashes = self.steps.train(rows, tf.constant(order), tf.constant(count))
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
            self.ledger(step, hashes.numpy()[:count], order[:count] >= 0)
        self.events.enter("step", state["step"], total_steps=plan.total_steps, examples_per_second=round(self.progress.rate))
        logs = self.steps.metrics() if self.callbacks else {}
        self.hooks.on_train_batch_end(state["step"] - 1, logs)
        if self.calls == 1:
            self.progress.begin(state["step"])  # tracing is not training
            gc.freeze()  # nor is there garbage in what tracing made
            gc.enable()
        self.progress.update(state["step"], loss)
        if profiled and state["step"] == profiled[1]:
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
