"""An exported model asked with serialized `tf.train.Example`, by the columns of its trainer, as TFMA wants a model to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from data_tools.convert import contract_of
from vertex_runtime.columns import Column
from vertex_runtime.errors import FAILED, UserError


class ServedModel:
    """The signature `serving_default` of a SavedModel with examples for input and one prediction a row for output.

    A class label's prediction is the name that is served, as bytes; any other's is the number, float32.

    Attributes:
        signatures: itself by the trainer's name, where TFMA looks for what to call.
        structured_input_signature: one input, which no column can be called: so TFMA sends examples as they are.
    """

    structured_input_signature = ((), {"serialized tf.train.Example": tf.TensorSpec([None], tf.string)})

    def __init__(self, path: str, trainer: str):
        self.path, self.contract = path, contract_of(trainer)
        self.loaded = tf.saved_model.load(path)  # held: its signature does not hold it
        self.serve = self.loaded.signatures["serving_default"]
        self.inputs: Mapping[str, tf.TensorSpec] = self.serve.structured_input_signature[1]
        self.signatures = {trainer: self}

    def __call__(self, serialized: tf.Tensor) -> tf.Tensor:
        """Return the predictions [rows] of serialized examples [rows].

        Raises:
            UserError: the model answers something else than a class or a number.
        """
        columns = [column for column in self.contract.columns if column.name in self.inputs]
        cells = parse(serialized, [column.in_files() for column in columns])
        answer = self.serve(**{column.name: cells[column.in_files().name] for column in columns})
        name = prediction_of(list(answer), self.contract.labels[0], self.path)
        return answer[name]


def parse(serialized: tf.Tensor, columns: Sequence[Column]) -> dict[str, tf.Tensor]:
    """Return the columns' cells, each [rows], of serialized examples; a missing one is NaN or an empty text, as in a request."""
    kinds = _kinds(serialized.numpy(), {column.name for column in columns if not column.is_text})
    wanted, cells = {}, {}
    for column in columns:
        whole = kinds.get(column.name) == "int64_list"
        # Ragged, because a missing cell may be an empty list as well as no feature at all.
        wanted[column.name] = tf.io.RaggedFeature(tf.string if column.is_text else tf.int64 if whole else tf.float32)
    for name, values in tf.io.parse_example(serialized, wanted).items():
        if values.dtype == tf.int64:
            values = tf.cast(values, tf.float32)
        cells[name] = values.to_tensor("" if values.dtype == tf.string else np.nan, [None, 1])[:, 0]
    return cells


def _kinds(records: np.ndarray, names: set[str]) -> dict[str, str]:
    """Return the kind of value that each column has, by the first record that has the column."""
    found: dict[str, str] = {}
    for record in records:
        features = tf.train.Example.FromString(record).features.feature
        for name in names - found.keys():
            kind = features[name].WhichOneof("kind") if name in features else None
            if kind and getattr(features[name], kind).value:
                found[name] = kind
        if len(found) == len(names):
            break
    return found


def prediction_of(outputs: Sequence[str], label: str, path: str) -> str:
    """Return which of a served model's outputs is the prediction: the class's name, the label's own, or the only one.

    Raises:
        UserError: none of them is.
    """
    for name in ("label", label, *(outputs if len(outputs) == 1 else ())):
        if name in outputs:
            return name
    raise UserError(
        f"{path} answers {', '.join(sorted(outputs))}: none of them is called label or {label}, so that Evaluator cannot tell "
        "which one to compare. Name it so in outputs of model.py.", FAILED,
    )  # fmt: skip
