"""The training loop: calls of many steps, evaluations, checkpoints, callbacks, and the end by SIGTERM.

Keras 3's `fit` fails under MultiWorkerMirroredStrategy (keras issue 20585) and pays Python's price at every step.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .ahead import ahead
from .callbacks import CallbackStates, Hooks
from .checkpoint import Checkpointer, assign, named_variables, parts, snapshot
from .errors import FAILED, Preempted, UserError
from .export import Rehearsal
from .reporting import Events, Progress, log
from .rows import AnyRows, CachedRows, Rows
from .steps import Plan, Steps, optimizers


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a flag; a second one ends the process at once."""

    KINDS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> StopSignal:
        self.before = [signal.signal(kind, self._note) for kind in self.KINDS]
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in zip(self.KINDS, self.before):
            signal.signal(kind, handler)

    def check(self) -> None:
        """Raise Preempted where a signal has come."""
        if self.received:
            raise Preempted(self.received)

    def _note(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number)
        for kind in self.KINDS:
            # The kernel ignores a default action for PID 1, as which a container's entry point runs.
            signal.signal(kind, signal.SIG_DFL if os.getpid() != 1 else lambda kind, _: os._exit(128 + kind))


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
    train_rows: AnyRows
    eval_rows: AnyRows
    checkpointer: Checkpointer
    callbacks: Sequence[keras.callbacks.Callback]
    fingerprint: dict[str, Any]
    events: Events
    progress: Progress
    on_evaluation: Callable[[int, dict[str, float]], None]
    on_values: Callable[[int, dict[str, float]], None]  # of training
    profile_dir: str | None
    objective: str
    maximize: bool
    keep: str  # which model to end with: of the "best" evaluation, or the "last"
    agree: Callable[[int], int] = lambda value: value
    blame: Callable[[str], Any] = contextlib.nullcontext  # around what runs a part of the trainer's code, which is named
    deadline: float = math.inf  # by the monotonic clock, in seconds
    rehearsal: Rehearsal | None = None
    ledger: Callable[[int, np.ndarray], None] | None = None
    state: dict[str, Any] = field(
        default_factory=lambda: {"step": 0, "evaluated": 0, "epoch": 0, "best": {}, "finished": False, "stopped": False, "metrics": {}}
    )

    def __post_init__(self) -> None:
        self.model = self.steps.model
        self.states = CallbackStates(self.callbacks)
        counts = {"epochs": self.plan.num_evals, "steps": self.plan.total_steps}
        self.evaluations = self.plan.evaluation_steps()
        self.hooks = Hooks(keras.callbacks.CallbackList(list(self.callbacks), model=self.model, **counts), self.blame)
        self.model.stop_training = False
        with self.blame("training"):  # tracing runs the model's own code
            captured = self.steps.trace()
        owned = [variable for optimizer in optimizers(self.model) for variable in optimizer.variables]
        self.variables = named_variables(model=self.model.variables, optimizer=owned, metrics=self.model.metrics_variables)
        known = {id(part) for variable in self.variables.values() for part in parts(variable)}
        # What a model keeps in plain tf.Variables is state, too.
        self.variables |= {f"other/{i:03d}/{v.name}": v for i, v in enumerate(v for v in captured if id(v) not in known)}
        self.calls, self.step_seconds = 0, 0.0
        self.out_of_time, self.exported_step = False, 0

    def restore(self, tensors: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Put variables, callbacks and random generators back to where a checkpoint found them.

        Raises:
            UserError: its tensors do not fit the model.
        """
        assign(self.variables, tensors, self.checkpointer.directory)
        self.state = state
        self.model.stop_training = state["stopped"]
        self.states.write(state["callbacks"], tensors)
        random.setstate((state["random"][0], tuple(state["random"][1]), state["random"][2]))
        kind, keys, *rest = state["numpy_random"]
        np.random.set_state((kind, np.array(keys, np.uint32), *rest))

    def _state(self, alone: bool = False) -> tuple[dict[str, tf.Tensor], dict[str, Any]]:
        """Return (tensors, state) of a checkpoint; `alone`: without the metrics, which take all workers to add up."""
        variables = {name: v for name, v in self.variables.items() if not (alone and name.startswith("metrics/"))}
        plain, arrays = self.states.read()
        numpy_state: Any = np.random.get_state()
        kind, keys, *rest = numpy_state
        extra = {
            "callbacks": plain,
            "random": random.getstate(),
            "numpy_random": [kind, keys.tolist(), *rest],
            "total_steps": self.plan.total_steps,
            "fingerprint": self.fingerprint,
            "stopped": bool(self.model.stop_training),
            "jit_compile": bool(self.plan.jit_compile),
        }
        tensors = snapshot(variables) | {name: tf.constant(value) for name, value in arrays.items()}
        return tensors, self.state | extra

    def run(self, restored: tuple[dict[str, np.ndarray], dict[str, Any]] | None, train: bool = True) -> dict[str, float]:
        """Train to the end, or only restore; leave the model with the weights to export and return their metrics.

        Raises:
            Preempted: SIGTERM or SIGINT came; the state is durable.
            UserError: the loss is not finite, a checkpoint cannot be written, or the model cannot be exported.
        """
        self.hooks.on_train_begin()
        if restored:
            self.restore(*restored)
        if train and not self.state["finished"]:
            with StopSignal() as stop:
                self.progress.begin(self.state["step"])
                try:
                    self._train(stop)
                    self._finish(stop)
                except (Preempted, UserError) as end:
                    self.checkpointer.join()  # what is called the newest checkpoint is whole before the process ends
                    if isinstance(end, Preempted):
                        where = f"the state of step {self.state['step']} is saved in {self.checkpointer.directory}"
                        log("WARNING", f"{end.signal.name}: {where}; the same command with the same --output_dir continues there.")
                    raise
                finally:
                    self.progress.close()
        return self._take_the_model_to_export()

    def _train(self, stop: StopSignal) -> None:
        plan, state = self.plan, self.state
        depth = 1 if isinstance(self.train_rows, CachedRows) else 2  # a window of cached rows takes 64 MiB
        feed = ahead(self.train_rows.feed(plan.batch_size, plan.seed, state["step"], plan.share), depth)
        rows, order = None, np.empty((0, 0), np.int32)
        while True:
            step = state["step"]
            if step > state["evaluated"] and (step in self.evaluations or self.out_of_time):
                self._evaluate(stop)
            if step >= plan.total_steps or self.model.stop_training or self.out_of_time:
                return
            if step == state["evaluated"]:
                self.hooks.on_epoch_begin(state["epoch"])
            if not len(order):
                start = time.perf_counter()
                rows, order = next(feed)
                self.progress.pace.waited(time.perf_counter() - start)
            count = min(len(order), self._steps_to_boundary(step))
            self._call(rows, order[:count])
            order = order[count:]
            self._between_calls(stop)

    def _between_calls(self, stop: StopSignal) -> None:
        """Heed a signal, a rehearsal that failed and the deadline; save, and write training values, where it is time to."""
        plan, step = self.plan, self.state["step"]
        if stop.received:
            self.checkpointer.save(*self._state(alone=plan.share.workers > 1), wait=True)
            stop.check()
        if self.rehearsal is not None:
            # Known before the first checkpoint; a run that is over by then exports anyway.
            start = time.perf_counter()
            self.rehearsal.check(wait=step in self.evaluations[:-1])
            self.progress.pace.skipped(time.perf_counter() - start)
        if step % plan.checkpoint_steps == 0 and step not in self.evaluations:
            self.checkpointer.save(*self._state(), skip=True)
        if plan.scalar_steps and step % plan.scalar_steps == 0 and step not in self.evaluations:
            metrics = self.steps.metrics()
            loss = {"loss": metrics.pop("loss")} if "loss" in metrics else {}
            self.on_values(step, loss | metrics)
        self.checkpointer.check()
        if self.deadline < math.inf and self.agree(int(time.monotonic() >= self.deadline)):
            self.out_of_time = step < plan.total_steps
            log("WARNING", f"--max_minutes: stopping at step {step} of {plan.total_steps}; the same command continues there.")

    def _steps_to_boundary(self, step: int) -> int:
        plan = self.plan
        edges = [plan.total_steps, (step // plan.checkpoint_steps + 1) * plan.checkpoint_steps, *self.evaluations]
        if plan.profile:
            edges += [plan.profile[0] - 1, plan.profile[1]]
        if plan.scalar_steps:
            edges.append((step // plan.scalar_steps + 1) * plan.scalar_steps)
        if self.events.kill_step:
            edges.append(self.events.kill_step)
        return min(self._steps_this_call(), *(edge - step for edge in edges if edge > step))

    def _steps_this_call(self) -> int:
        """Few steps at first, then as many as a second holds, so that a slow model still heeds SIGTERM in time."""
        plan = self.plan
        if plan.share.workers > 1:
            return plan.call_steps  # the same on every worker, since callbacks' metrics are collectives
        if plan.steps_per_call or self.calls == 0:
            return plan.steps_per_call or 1
        return min(plan.call_steps, 2 ** int(math.log2(max(1.0, 1.0 / max(self.step_seconds, 1e-6)))))

    def _call(self, rows: Rows, order: np.ndarray) -> None:
        plan, state, count = self.plan, self.state, len(order)
        step = state["step"]
        profiled = plan.profile if self.profile_dir else None
        if profiled and step == profiled[0] - 1:
            tf.profiler.experimental.start(self.profile_dir)
        self.hooks.on_train_batch_begin(step)
        if count < plan.call_steps:
            order = np.concatenate([order, np.zeros((plan.call_steps - count, order.shape[1]), np.int32)])
        start = time.perf_counter()
        with self.blame("training"):
            bad, loss, hashes = self.steps.train(rows, tf.constant(order), tf.constant(count))
            bad, loss = int(bad), float(loss)
        if self.calls:  # the first one traces
            seconds = time.perf_counter() - start
            self.step_seconds = seconds / count
            self.progress.pace.stepped(count * plan.batch_size, seconds)
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
        self.events.enter("step", state["step"], total_steps=plan.total_steps, **self.progress.fields())
        logs = self.steps.metrics() if self.callbacks else {}
        self.hooks.on_train_batch_end(state["step"] - 1, logs)
        if self.calls == 1:
            self.progress.begin(state["step"])  # tracing is not training
            if self.rehearsal is not None:
                self.rehearsal.start()
            gc.freeze()  # nor is there garbage in what tracing made
            gc.enable()
        self.progress.update(state["step"], loss)
        if profiled and state["step"] == profiled[1]:
            tf.profiler.experimental.stop()

    def _evaluate(self, stop: StopSignal) -> None:
        state, step = self.state, self.state["step"]
        pending = self._state()  # before the training metrics are read off and reset
        self.progress.pause()
        self.events.enter("evaluation", step, **self.progress.fields())
        metrics = self.steps.metrics()
        self.hooks.on_test_begin()
        try:
            with self.blame("training"):
                evaluated = self.steps.evaluate(self.eval_rows, partial(self._moved, stop))
        except Preempted:
            self.checkpointer.save(*pending, wait=True)
            raise
        self.hooks.on_test_end(evaluated)
        metrics |= {f"val_{name}": value for name, value in evaluated.items()}
        if self._is_better(metrics[self.objective]):
            self._set_best(metrics)
        state.update(evaluated=step, metrics=metrics)
        self.on_evaluation(step, metrics)
        self.progress.begin(step)
        self.hooks.on_epoch_end(state["epoch"], dict(metrics))
        state["epoch"] += 1
        self.checkpointer.save(*self._state())

    def _moved(self, stop: StopSignal) -> None:
        """Tell the watchdog that an evaluation goes on, and end it where a signal has come."""
        self.events.beat("evaluation")
        stop.check()

    def _is_better(self, value: float) -> bool:
        best = self.state["best"]
        if not math.isfinite(value) or not best:
            return math.isfinite(value)
        return value > best["value"] if self.maximize else value < best["value"]

    def _set_best(self, metrics: dict[str, float]) -> None:
        step, value = self.state["step"], metrics[self.objective]
        self.state["best"] = {"metric": self.objective, "value": value, "step": step, "metrics": dict(metrics)}

    def _finish(self, stop: StopSignal) -> None:
        """Let callbacks and weight averaging have the last word on the weights, and evaluate what came of it."""
        self.hooks.on_train_end()
        averaged = [optimizer for optimizer in optimizers(self.model) if optimizer.use_ema]
        for optimizer in optimizers(self.model):
            optimizer.finalize_variable_values(self.model.trainable_variables)
        if self.callbacks or averaged:
            evaluated = self.steps.evaluate(self.eval_rows, partial(self._moved, stop))
            self.state["metrics"] |= {f"val_{name}": value for name, value in evaluated.items()}
            # The weights of this step are no longer those of its own evaluation, and take its place.
            if self.state["best"].get("step") == self.state["step"] or self._is_better(self.state["metrics"][self.objective]):
                self._set_best(self.state["metrics"])
        if self.out_of_time:
            return  # not finished: the checkpoint of the last evaluation is where the next start goes on
        self.state["finished"] = True
        self.checkpointer.save(*self._state(), wait=True)

    def _take_the_model_to_export(self) -> dict[str, float]:
        """Give the model the weights of the best evaluation, or leave it the last ones; return the metrics they had."""
        state, best = self.state, self.state["best"]
        self.exported_step = state["step"]
        self.agree(0)  # the chief has written what others read now
        if self.keep == "best" and best and best["step"] != state["step"]:
            found = self.checkpointer.load(best["step"]) if best["step"] in self.checkpointer.steps() else None
            if found is None:
                log("WARNING", f"the checkpoint of the best evaluation (step {best['step']}) is gone: the last weights are taken.")
            else:
                kept = ("model/", "other/")
                chosen = {name: v for name, v in self.variables.items() if name.startswith(kept)}
                assign(chosen, found[0], self.checkpointer.directory)
                self.exported_step = best["step"]
                reached = f"{self.objective} {best['value']:.5g} at step {best['step']} of {state['step']}"
                log("INFO", f"best: {reached}; that model is taken (--export)")
                return dict(best["metrics"])
        if state["evaluated"] != state["step"]:  # a stage alone, from a checkpoint between two evaluations
            return {f"val_{name}": value for name, value in self.steps.evaluate(self.eval_rows).items()}
        return dict(state["metrics"])
