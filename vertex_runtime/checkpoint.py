"""Checkpoints in TensorFlow's own format, written beside the training, and the fingerprint that guards a resume.

A checkpoint is one tensor bundle `ckpt-<step>`: every variable of model and optimizer, arrays of callbacks, and a JSON
text with the step and all other state. `tf.train.load_checkpoint` reads it.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from .errors import FAILED, UserError, first_line
from .outputs import is_remote, record, removed
from .reporting import Events, log

STATE = "state_json"
KEEP = 3
PART = re.compile(r"ckpt-\d+\.(data-00000-of-00001|index)\.tempstate\d+")  # TensorFlow's, in a bucket


class Checkpointer:
    """Writes and restores the checkpoints of one directory; only the chief's writes anything.

    A tensor read from a variable is a value that later steps do not change (TensorFlow copies on write), so a save
    costs the training the reads; a thread does the rest.
    """

    def __init__(self, directory: str, records: str, events: Events, writes: bool = True):
        self.directory, self.records, self.events, self.writes = directory, records, events, writes
        self.thread: threading.Thread | None = None
        self.failure: Exception | None = None

    def save(self, tensors: Mapping[str, tf.Tensor], state: Mapping[str, Any], wait: bool = False, skip: bool = False) -> None:
        """Write a checkpoint in the background; `wait` until it is durable, or `skip` it while the last is being written.

        Raises:
            UserError: this write or the one before it failed; older checkpoints are untouched.
        """
        if not self.writes or (skip and self.thread is not None and self.thread.is_alive()):
            return
        self.join()
        self.thread = threading.Thread(target=self._write, args=(dict(tensors), dict(state)), daemon=True)
        self.thread.start()
        if wait:
            self.join()

    def join(self) -> None:
        """Wait for the write under way, if any, and report its failure."""
        if self.thread is not None:
            self.thread.join()
        self.check()

    def check(self) -> None:
        if self.failure is not None:
            text = f"cannot write a checkpoint to {self.directory}: {first_line(self.failure)}"
            raise UserError(f"{text}. Earlier checkpoints are kept; make room and start again.", FAILED)

    def _write(self, tensors: dict[str, tf.Tensor], state: dict[str, Any]) -> None:
        prefix = f"{self.directory}/ckpt-{state['step']:09d}"
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # of this thread only: training goes first
        part = prefix if is_remote(prefix) else f"{self.directory}/.part-{state['step']:09d}"
        endings = (".data-00000-of-00001", ".index")  # a checkpoint exists once its index does
        try:
            if part == prefix:
                record(self.records, *(prefix + ending for ending in endings))
            names, values = list(tensors), list(tensors.values())
            names, values = names + [STATE], values + [tf.constant(json.dumps(state))]
            with tf.device("/cpu:0"):
                tf.raw_ops.SaveV2(prefix=part, tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)
            self.events.enter("checkpoint", state["step"])
            if part != prefix:
                record(self.records, *(prefix + ending for ending in endings))
                for ending in endings:
                    _sync(part + ending)
                    os.replace(part + ending, prefix + ending)
            best = state.get("best", {}).get("step")  # survives until it is exported, however many come after it
            for step in [step for step in self.steps()[:-KEEP] if step != best]:
                old = [f"{self.directory}/ckpt-{step:09d}{ending}" for ending in reversed(endings)]
                for path in old:
                    tf.io.gfile.remove(path)
                removed(self.records, *old)
        except Exception as error:  # noqa: BLE001 - handed to the training thread, which ends the run
            self.failure = error

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints in the directory, oldest first."""
        names = tf.io.gfile.listdir(self.directory) if tf.io.gfile.isdir(self.directory) else []
        return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"ckpt-(\d+)\.index", name)))

    def load(self, step: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return (tensors, state) of the checkpoint of a step, or of the newest that reads back whole; None where none is.

        Raises:
            UserError: there are checkpoints and none of those asked for can be read.
        """
        steps = self.steps() if step is None else [step]
        for candidate in reversed(steps):
            prefix = f"{self.directory}/ckpt-{candidate:09d}"
            try:
                reader = tf.train.load_checkpoint(prefix)
                tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
                return tensors, json.loads(tensors.pop(STATE))
            except Exception as error:  # noqa: BLE001 - damage shows as almost any kind
                log("WARNING", f"checkpoint {prefix} cannot be read ({first_line(error)}); trying the one before it.")
        if steps:
            many = f"none of the {len(steps)} checkpoints in {self.directory} can be read"
            raise UserError(f"{many}. Restore them or use another --output_dir.")
        return None

    def finished(self, step: int) -> bool:
        """Tell whether the run had ended when the checkpoint of this step was written."""
        return json.loads(tf.train.load_checkpoint(f"{self.directory}/ckpt-{step:09d}").get_tensor(STATE))["finished"]

    def clean(self) -> None:
        """Remove the half-written files that a killed process left."""
        if self.writes:
            for name in tf.io.gfile.listdir(self.directory):
                if name.startswith(".part-") or PART.fullmatch(name):
                    tf.io.gfile.remove(f"{self.directory}/{name}")


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def named_variables(**owners: Sequence[Any]) -> dict[str, Any]:
    """Name Keras variables by owner, place and path; the place keeps equal paths apart."""
    return {f"{owner}/{i:03d}/{v.path}": v for owner, variables in owners.items() for i, v in enumerate(variables)}


def parts(variable: Any) -> list[Any]:
    """Return the TensorFlow variables behind a Keras variable: one, or one on each of this process's replicas."""
    value = variable if isinstance(variable, tf.Variable) else variable.value
    return list(getattr(value, "values", None) or [value])


def snapshot(variables: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """Return the values that variables have now: Keras's own, or plain ones."""
    return {name: tf.convert_to_tensor(v if isinstance(v, tf.Variable) else v.value) for name, v in variables.items()}


def assign(variables: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str) -> None:
    """Give the variables their saved values, by owner and place: Keras numbers paths anew in every process.

    Raises:
        UserError: a variable is missing or of another shape, which the fingerprint rules out but for a change of Keras.
    """
    places = {_place(name): value for name, value in tensors.items()}
    for name, variable in variables.items():
        saved = places.get(_place(name))
        if saved is None and name.startswith("metrics/"):
            continue  # a worker that SIGTERM ends alone cannot add up the metrics of all
        if saved is None or tuple(saved.shape) != tuple(variable.shape):
            raise UserError(f"the checkpoint in {where} does not fit the model (at {name}). Use another --output_dir or --start_over.")
        variable.assign(saved)


def _place(name: str) -> str:
    return "/".join(name.split("/", 2)[:2])


SOURCE = "the trainer's source (model.py or what it imports)"
LENGTHS = ("--num_examples_to_train_on", "--epochs")  # what decides how long a run trains, and nothing else


def compare_fingerprints(
    old: Mapping[str, Any], new: Mapping[str, Any], where: str, longer: bool, trained: bool = False
) -> tuple[bool, str | None]:
    """Return whether the run trains for longer than it was to, and what of the source changed where that is to be proved harmless.

    Args:
        old, new: {"hyperparameters": {...}, "source": sha256, "data": [file descriptions]}.
        longer: the new total of steps is above the old one.
        trained: nothing is to be trained any more, so that another source may be admitted.

    Raises:
        UserError: anything else differs; the message names it, both values and the ways out.
    """
    differing = _differing(old, new)
    changed = SOURCE if trained and old["source"] != new["source"] else None
    differing = [entry for entry in differing if entry[0] != changed]
    if not differing:
        return False, changed
    if longer and changed is None and all(name in LENGTHS for name, _, _ in differing):
        return True, None
    name, was, now = differing[0]
    others = f" (and {len(differing) - 1} more: {', '.join(entry[0] for entry in differing[1:4])})" if len(differing) > 1 else ""
    raise UserError(
        f"{where} holds a run that differs in {name}: it had {was}, this one has {now}{others}. "
        "Use another --output_dir, or --start_over to move the earlier run aside."
    )


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (name, old value, new value) of all that differs."""
    before, after = old["hyperparameters"], new["hyperparameters"]
    differing = [(f"--{name}", before.get(name), value) for name, value in after.items() if before.get(name) != value]
    if old["source"] != new["source"]:
        differing.append((SOURCE, old["source"][:12], new["source"][:12]))
    before, after = ({entry["path"]: entry for entry in described["data"]} for described in (old, new))
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            differing.append((f"the data {path}", _describe(before.get(path)), _describe(after.get(path))))
    return differing


def _describe(entry: Mapping[str, Any] | None) -> str:
    return "no such file" if entry is None else f"{entry['bytes']} bytes, sha256 {entry['sha256'][:12]}"
