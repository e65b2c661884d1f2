"""An exported model that is asked by its served signature, batch by batch: nothing of the trainer's code is in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ..data import Chunk, take
from ..environment import resolve_uri
from ..errors import UserError, first_line
from ..predict import load_signature
from ..rows import rows_of

BATCH, IMAGES = 4096, 256  # rows asked at a time; of inputs whose names end in _bytes

Outputs = dict[str, np.ndarray]


class Served:
    """The model in a folder.

    Args:
        uri: where it is, as the user says it: a folder with saved_model.pb, or the run's folder with model/ in it.
        flag: the flag that named it, for messages.
    """

    def __init__(self, uri: str, flag: str = "--evaluate"):
        self.uri, self.folder = uri, _folder(uri, flag)
        try:
            self.signature = load_signature(self.folder)
        except ValueError as error:
            raise UserError(f"{flag}: {error}") from None
        self.specs: Mapping[str, tf.TensorSpec] = self.signature.structured_input_signature[1]
        self.batch = IMAGES if any(name.endswith("_bytes") for name in self.specs) else BATCH

    def described(self) -> dict[str, Any]:
        """Return the signature as JSON: {"inputs": {name: {"dtype", "shape"}}, "outputs": {…}}."""
        return {"inputs": _described(self.specs), "outputs": _described(self.signature.structured_outputs)}

    def class_names(self, label: str) -> list[str]:
        """Return the classes of a label that the exporter noted, in the order of the scores; none where it noted none."""
        for path in (f"{self.folder}/assets.extra/labels.{label}.txt", f"{self.folder}/assets.extra/labels.txt"):
            if tf.io.gfile.exists(path):
                with tf.io.gfile.GFile(path, "r") as file:
                    return file.read().splitlines()
        return []

    def inputs(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Return a chunk's columns as the signature takes them.

        Raises:
            UserError: the rows lack one.
        """
        if missing := sorted(self.specs.keys() - chunk.keys()):
            raise UserError(f"{self.uri} wants the input {missing[0]}, which the rows lack; they have {', '.join(sorted(chunk))}.")
        return {name: _typed(chunk[name], spec) for name, spec in self.specs.items()}

    def answer(self, chunk: Chunk) -> Outputs:
        """Return the model's answers to raw rows, by output: [rows, ...]."""
        given, rows = self.inputs(chunk), rows_of(chunk)
        parts = [self._ask(take(given, slice(start, start + self.batch)), start) for start in range(0, rows, self.batch)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _ask(self, given: dict[str, np.ndarray], start: int) -> Outputs:
        try:
            found = self.signature(**{name: tf.constant(values, self.specs[name].dtype) for name, values in given.items()})
        except (tf.errors.InvalidArgumentError, ValueError) as error:
            text = " ".join(str(getattr(error, "message", error)).split())[:300]
            raise UserError(
                f"{self.uri} refuses rows of the evaluation data (from row {start} of a chunk on): {text}. Mend the rows."
            ) from None
        rows = rows_of(given)
        outputs = {name: tensor.numpy() for name, tensor in found.items()}
        for name, values in outputs.items():
            if not values.ndim or len(values) != rows:
                raise UserError(f"{self.uri}: its output {name} has the shape {list(values.shape)} for {rows} rows; it must give one each.")
        return outputs


def _folder(uri: str, flag: str) -> str:
    folder = resolve_uri(uri).rstrip("/") or "/"
    for path in (folder, f"{folder}/model"):
        try:
            if tf.io.gfile.exists(f"{path}/saved_model.pb"):
                return path
        except tf.errors.OpError as error:
            raise UserError(f"{flag}: {uri} cannot be read: {first_line(error)}. Export it anew.") from None
    there = " (a file)" if os.path.isfile(folder) else ""
    raise UserError(f"{flag}: {uri}{there} holds no SavedModel. Give the folder with saved_model.pb in it, such as OUTPUT_DIR/model.")


def _described(specs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for name, spec in sorted(specs.items())}


def _typed(values: np.ndarray, spec: tf.TensorSpec) -> np.ndarray:
    return values if spec.dtype == tf.string else values.astype(spec.dtype.as_numpy_dtype, copy=False)
