"""What is kept of a run's training rows beside the model: their profile, and the baselines that explanations start from."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from .columns import Column, Image, Text
from .contract import Contract
from .data import BadRows, Chunk, is_table
from .errors import UserError
from .explain import PATHS, SPEC, output_of
from .profile import NAME
from .reporting import log
from .rows import rows_of
from .sources import DatasetSource

if TYPE_CHECKING:
    from .inputs import Inputs

ROWS, IMAGES = 100_000, 500  # that are read for it, where the run did not hold all rows in memory
PLACES = 50  # blocks, or files, that they come from, evenly spaced


def training_profile(inputs: Inputs) -> dict[str, Any] | None:
    """Return the profile of the training rows: of all where they were read whole, else of some from everywhere.

    None where they cannot be read a second time, which is no reason to lose a model.
    """
    made = inputs.profile
    if made is None:
        return None
    try:
        for chunk in () if made.rows else _some(inputs):
            made.add(chunk)
    except (UserError, OSError) as error:
        log("WARNING", f"no profile of the training rows is kept with the model: {' '.join(str(error).split())[:200]}")
        return None
    found = made.as_json()
    return found | {"rows": inputs.train.count} if inputs.train is not None else found


def texts_of(inputs: Inputs, profile: dict[str, Any] | None, outputs: Mapping[str, tf.TensorSpec]) -> dict[str, str]:
    """Return the texts for a model's `assets.extra` by name: the profile, and the baselines of explanations."""
    if profile is None:
        return {}
    texts = {NAME: json.dumps(profile, sort_keys=True) + "\n"}
    classes = inputs.contract.extra_files(inputs.facts).get("labels.txt", "").splitlines()
    with contextlib.suppress(ValueError):  # nothing of it can be explained
        texts[SPEC] = json.dumps(explanation_spec(inputs.contract, profile, outputs, classes), indent=1) + "\n"
    return texts


def explanation_spec(
    contract: Contract, profile: Mapping[str, Any], outputs: Mapping[str, tf.TensorSpec], classes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return an ExplanationSpec in the API's JSON form, whose baselines are the training rows' medians and most common values.

    Args:
        outputs: of the served signature.
        classes: the names of the scores, in their order.

    Raises:
        ValueError: the model has no output of numbers.
    """
    columns = {column.name: column for column in contract.columns}
    inputs = {}
    for name, spec in (contract.inputs or {}).items():
        said = profile["columns"].get(name, {})
        kind, baseline = _baseline(spec, columns.get(name), said)
        inputs[name] = {"inputTensorName": name, "modality": kind} | ({} if baseline is None else {"inputBaselines": [baseline]})
    output = output_of(outputs)
    names = {"indexDisplayNameMapping": list(classes)} if classes and outputs[output].shape[-1] == len(classes) else {}
    metadata = {"inputs": inputs, "outputs": {output: {"outputTensorName": output, **names}}}
    return {"parameters": {"sampledShapleyAttribution": {"pathCount": PATHS}}, "metadata": metadata}


def _baseline(spec: tf.TensorSpec, column: Column | None, said: Mapping[str, Any]) -> tuple[str, Any]:
    """Return (modality, baseline) of an input; None where an image is its own."""
    if isinstance(column, Image) or (spec.dtype == tf.string and spec.name.endswith("_bytes")):
        return "image", None
    values = [value for value, _ in said.get("values", ())]
    if spec.dtype == tf.string:
        if isinstance(column, Text) or (column is None and said.get("kind") == "text"):
            if column is None or column.pattern is None:
                return "text", "" if column is None or column.answered is not None else " "  # which nobody refuses
            return "categorical", next((value for value in values if "\0" not in value), column.answered or "")
        answered = "" if column is None or column.answered is None else column.answered
        return "categorical", said.get("median", values[0] if values else answered)
    median = said.get("median", (column.answered if column is not None else None) or 0.0)
    median = round(median) if spec.dtype.is_integer else median
    if spec.shape.rank == 1:
        return "numeric", None if isinstance(median, float) and math.isnan(median) else median
    zeros: Any = 0
    for size in reversed(spec.shape[1:]):
        zeros = [zeros] * (size or 1)
    return "numeric", zeros


def _some(inputs: Inputs) -> Iterator[Chunk]:
    """Yield some raw training rows, from everywhere as far as their source allows it."""
    source = inputs._source("training")
    if isinstance(source, DatasetSource):
        yield from islice(source.chunks(), 20)
    elif source is not None:
        places = inputs._places("training", source)
        images = any(isinstance(column, Image) for column in inputs.contract.columns)
        chosen = places[np.unique(np.linspace(0, len(places) - 1, IMAGES if images else 10 * IMAGES).astype(int))]
        for start in range(0, len(chosen), 100):
            yield source.take(chosen[start : start + 100])
    elif inputs.blocks is not None:
        for block in np.unique(np.linspace(0, len(inputs.blocks.index.blocks) - 1, PLACES).astype(int)):
            yield inputs.blocks.raw([int(block)])
    else:
        yield from _first_of_files(inputs)


def _first_of_files(inputs: Inputs) -> Iterator[Chunk]:
    paths = inputs._paths("training")
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, PLACES).astype(int))]
    each = ROWS // len(chosen) if not any(map(is_table, paths)) else 1
    for path in chosen:
        rows = 0
        for chunk in inputs.contract.read(path, BadRows("skip")):
            rows += rows_of(chunk)
            yield from inputs.split.part([chunk], False) if inputs.split else [chunk]
            if rows >= each:
                break
