"""The served model: raw named inputs in, named outputs out, preprocessing in the graph; and the gate it must pass.

A SavedModel is written beside its place, asked for predictions there as the service would ask, and only moved into the
model directory when it answers what the training path answers.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import predict
from .data import Chunk, concatenate, take
from .errors import FAILED, UserError
from .outputs import Outputs, is_remote, record
from .reporting import Events, log
from .rows import Preparer

GATE_ROWS = 10_000


def build_served(model: Any, network: keras.Model, hyperparameters: Any, facts: Any) -> tuple[tf.Module, Any]:
    """Return (module, its serving function): each weight once, no optimizer, nothing of ours needed to load it."""
    module = tf.Module()
    module.weights = [weight.value for weight in network.weights]

    def serve(**raw: tf.Tensor) -> dict[str, tf.Tensor]:
        features = model.preprocess(raw, hyperparameters, facts)
        return model.outputs(network(features, training=False), facts)

    return module, tf.function(serve, autograph=False).get_concrete_function(**model.INPUTS)


def export(
    model: Any, trained: keras.Model, hyperparameters: Any, prepare: Preparer, sample: Chunk, outputs: Outputs,
    tolerance: float, events: Events, step: int,
) -> dict[str, float]:
    """Export, check and publish the trained model.

    Args:
        trained: the model as trained; its weights are copied into a network outside any distribution strategy.
        sample: raw evaluation rows with their labels, for the gate.
        tolerance: largest |served - trained| / max(1, |trained|).

    Returns:
        What the gate measured: rows, largest difference, metric of both paths.

    Raises:
        UserError: the two paths disagree; the model then lies in `<model>.rejected`.
    """
    stage = tempfile.mkdtemp(prefix="model-") if is_remote(outputs.model) else f"{outputs.model}.part"
    shutil.rmtree(stage, ignore_errors=True)  # ours: what a killed export left
    with tf.device("/cpu:0"):
        network = model.build_model(hyperparameters, prepare.facts, 1)
        network.set_weights(trained.get_weights())
        module, serve = build_served(model, network, hyperparameters, prepare.facts)
        tf.saved_model.save(module, stage, signatures={"serving_default": serve})
    for name, text in model.extra_files(prepare.facts).items():
        os.makedirs(f"{stage}/assets.extra", exist_ok=True)
        with open(f"{stage}/assets.extra/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    events.enter("export", step)
    report, worst = compare(model, trained, prepare, sample, stage)
    if not report["largest_difference"] <= tolerance or not report["metric_difference"] <= tolerance:
        _publish(stage, outputs.rejected, outputs.records)
        for row in worst:
            log("ERROR", f"skew: {json.dumps(row)}")
        raise UserError(
            f"the exported model does not answer as the trained one: largest difference {report['largest_difference']:.3g}, "
            f"metric {report['served_metric']:.6g} served, {report['trained_metric']:.6g} trained, --skew_tolerance {tolerance:g}. "
            f"It lies in {outputs.rejected}; the checkpoints are kept. Look for what training and serving do differently.",
            FAILED,
        )
    _publish(stage, outputs.model, outputs.records)
    return report


def compare(
    model: Any, trained: keras.Model, prepare: Preparer, sample: Chunk, directory: str
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Ask both paths about the sample; return (measurements, the worst rows)."""
    features, labels = prepare(sample)
    forward = tf.function(lambda batch: model.outputs(trained(batch, training=False), prepare.facts), autograph=False)
    count = int(labels.shape[0])
    parts = [forward({k: v[i : i + 256] for k, v in features.items()}) for i in range(0, count, 256)]
    expected = {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
    instances = _instances(model, sample)
    answers = predict.answer(predict.load_signature(directory), json.loads(json.dumps({"instances": instances}))["instances"])
    rows = answers if len(expected) > 1 else [{name: row} for name in expected for row in answers]
    served = {name: np.array([row[name] for row in rows]) for name in expected}
    difference = np.zeros(count)
    for name, values in expected.items():
        if values.dtype.kind in "fiu":
            gap = np.abs(served[name] - values) / np.maximum(1, np.abs(values))
            difference = np.maximum(difference, np.where(np.isfinite(gap), gap, np.inf).reshape(count, -1).max(1))
    scores = [model.score(found, labels.numpy()) for found in (served, expected)]
    report = {
        "rows": count, "largest_difference": float(difference.max()), "served_metric": scores[0], "trained_metric": scores[1],
        "metric_difference": abs(scores[0] - scores[1]) / max(1.0, abs(scores[1])),
    }
    worst = np.argsort(-difference, kind="stable")[:3]
    return report, [
        {"instance": instances[i], "served": rows[i], "trained": {k: _plain(v[i]) for k, v in expected.items()}} for i in worst
    ]


def _instances(model: Any, sample: Chunk) -> list[dict[str, Any]]:
    columns = {}
    for name, spec in model.INPUTS.items():
        values = sample[name].tolist()
        # A float32 as JSON sees it: the shortest text that reads back as the same value.
        columns[name] = [v.decode("utf-8") for v in values] if spec.dtype == tf.string else [float(str(np.float32(v))) for v in values]
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def _plain(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value.tolist() if hasattr(value, "tolist") else value


class Sampler:
    """Draws a seeded sample of raw rows as they pass, at most GATE_ROWS, the awkward ones of each chunk included."""

    def __init__(self, seed: int, columns: Mapping[str, Any]):
        self.random, self.columns = np.random.default_rng(seed), list(columns)
        self.kept: list[tuple[np.ndarray, Chunk]] = []

    def add(self, chunk: Chunk) -> None:
        """Look at a chunk. Each row gets a random rank (awkward rows the best); the lowest ranks stay."""
        count = len(chunk[self.columns[0]])
        ranks = self.random.random(count)
        for name in self.columns:
            values = chunk[name]
            keys = np.array([len(v) for v in values]) if values.dtype == object else values
            ranks[[int(np.argmin(keys)), int(np.argmax(keys))]] = -1.0
            if values.dtype == object:
                ranks[[i for i, v in enumerate(values[:GATE_ROWS]) if not v.isascii()][:100]] = -1.0
        keep = np.argsort(ranks, kind="stable")[:GATE_ROWS]
        self.kept.append((ranks[keep], take(chunk, keep)))
        if len(self.kept) > 8:
            self.kept = [self._merged()]

    def _merged(self) -> tuple[np.ndarray, Chunk]:
        ranks, rows = np.concatenate([r for r, _ in self.kept]), concatenate(c for _, c in self.kept)
        keep = np.sort(np.argsort(ranks, kind="stable")[:GATE_ROWS])
        return ranks[keep], take(rows, keep)

    def sample(self) -> Chunk:
        return self._merged()[1]


def _publish(stage: str, target: str, records: str) -> None:
    """Move the staged files to their place, saved_model.pb last: a model without it is not loaded by anyone."""
    found = [os.path.relpath(os.path.join(folder, name), stage) for folder, _, names in os.walk(stage) for name in names]
    for name in sorted(found, key=lambda name: (name == "saved_model.pb", name)):
        source, place = f"{stage}/{name}", f"{target}/{name}"
        record(records, place)
        tf.io.gfile.makedirs(os.path.dirname(place))
        if not is_remote(target):
            os.replace(source, place)
            continue
        tf.io.gfile.copy(source, place, overwrite=True)
        if (size := tf.io.gfile.stat(place).length) != os.path.getsize(source):
            raise UserError(f"{place} reads back with {size} bytes, written were {os.path.getsize(source)}. Start again.", FAILED)
    shutil.rmtree(stage, ignore_errors=True)
