"""The served model: raw named inputs in, named outputs out, preprocessing in the graph; and the gate it must pass.

A SavedModel is written beside its place, asked for predictions there as the service would ask, and only moved into the
model directory when it answers what the training path answers.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from . import bucket_manifest, checksums, columns, predict, sample_predictions
from .contract import Contract, blame
from .data import Chunk, take
from .environment import quoted
from .errors import FAILED, UserError
from .outputs import Outputs, is_remote, record
from .reporting import Events, log
from .rows import Preparer, rows_of
from .steps import operations

REHEARSAL_ROWS = 8
PYTHON_OPS = ("PyFunc", "PyFuncStateless", "EagerPyFunc")


class Exporter:
    """The served model of a run: traced once, before training, so that what cannot be exported is known within seconds.

    The graph is that of `preprocess`, the network and `outputs`, over copies of the network's weights: whatever strategy
    they were trained under, the copies are plain variables, and the network need not be built, nor its pretrained
    weights fetched, a second time.
    """

    def __init__(self, contract: Contract, network: keras.Model, prepare: Preparer):
        self.contract, self.network, self.prepare, self.facts = contract, network, prepare, prepare.facts
        self.checksum: str | None = None  # of the files that were published
        # A call of one's own need not take `training`; Keras's own steps leave it out then, too.
        self.how = {"training": False} if "training" in inspect.signature(network.call).parameters else {}
        self.module = tf.Module()
        with tf.device("/cpu:0"):
            state = network.trainable_variables + network.non_trainable_variables
            copies = [tf.Variable(tf.convert_to_tensor(v.value), trainable=False, name=v.name) for v in state]
            self.pairs = list(zip(state, copies))
            count = len(network.trainable_variables)

            def serve(**raw: tf.Tensor) -> dict[str, tf.Tensor]:
                checked = columns.guard(raw, contract.served_columns())
                features = prepare.run([checked[name] for name in prepare.names])  # the very graph that training rows went through
                found, _ = network.stateless_call(copies[:count], copies[count:], features, **self.how)
                return self._named(contract.outputs(found, self.facts))

            with blame(contract.module, "the exported graph"):
                self.serve = tf.function(serve, autograph=False).get_concrete_function(**contract.inputs)
        self._refuse_python()
        used = {id(tensor) for tensor in self.serve.captured_inputs}
        self.module.weights = [copy for copy in copies if id(copy.handle) in used]
        self.module.others = [v for v in self.serve.graph.variables if all(v is not copy for copy in copies)]
        self.module.resources = [found for found in contract.resources if id(found.resource_handle) in used]

    def save_keras(self, directory: str) -> str | None:
        """Write `assets.extra/model.keras` for fine-tuning, without the optimizer; return why not, where the model does not allow it."""
        path = f"{directory}/assets.extra/model.keras"
        try:
            with tf.device("/cpu:0"):
                copy = type(self.network).from_config(self.network.get_config())
                if not copy.built:
                    return "the model is not built by its configuration alone"
                copy.set_weights(self.network.get_weights())
                os.makedirs(os.path.dirname(path), exist_ok=True)
                copy.save(path)
                keras.saving.load_model(path, compile=False)
        except Exception as error:  # noqa: BLE001 - what Keras makes of a model of one's own is of any kind
            with contextlib.suppress(OSError):
                os.remove(path)
                os.rmdir(os.path.dirname(path))
            sentence = " ".join(str(error).split()).partition(". ")[0]
            return f"{type(error).__name__}: {sentence[:200].rstrip('.')}"
        return None

    def _named(self, found: Any) -> dict[str, tf.Tensor]:
        if not isinstance(found, Mapping) or not found:
            raise UserError(f"outputs(predictions, facts) must return a dict of tensors by name; got {type(found).__name__}.")
        half = (tf.float16, tf.bfloat16)
        return {name: tf.cast(t, tf.float32) if t.dtype in half else tf.identity(t) for name, t in found.items()}

    def _refuse_python(self) -> None:
        for op in operations(self.serve.graph):
            if op.type in PYTHON_OPS:
                raise UserError(
                    f"the served graph calls Python ({op.name}), which no server has: write preprocess, outputs and the model's "
                    "call in TensorFlow operations, without tf.py_function and tf.numpy_function."
                )

    def signature(self) -> dict[str, dict[str, Any]]:
        """Return type and shape of each input and output that is served."""
        made_of = {"inputs": self.serve.structured_input_signature[1], "outputs": self.serve.structured_outputs}
        return {
            side: {name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for name, spec in sorted(specs.items())}
            for side, specs in made_of.items()
        }

    def expect(self, features: Any) -> dict[str, tf.Tensor]:
        """Return what the trained network answers on prepared features, by the path that training takes."""
        return self._named(self.contract.outputs(self.network(features, **self.how), self.facts))

    def save(self, directory: str) -> None:
        """Write the SavedModel with the weights that the network has now."""
        for variable, copy in self.pairs:
            copy.assign(tf.convert_to_tensor(variable.value))
        self.write(directory)

    def write(self, directory: str) -> None:
        """Write the SavedModel with the copies as they are."""
        with tf.device("/cpu:0"):
            tf.saved_model.save(self.module, directory, signatures={"serving_default": self.serve})
        put_beside(directory, self._extra_files())

    def _extra_files(self) -> dict[str, str]:
        texts = self.contract.extra_files(self.facts)
        for name, text in texts.items() if isinstance(texts, Mapping) else [("", texts)]:
            if not isinstance(text, str) or not name or os.path.isabs(name) or ".." in name.split("/"):
                raise UserError(
                    f"extra_files(facts) must return texts by the names of files in assets.extra; got {quoted(str(name))}: "
                    f"{type(text).__name__}. Correct it in {os.path.relpath(self.contract.module.__file__ or '')}."
                )
        return dict(texts)


def put_beside(directory: str, texts: Mapping[str, str]) -> None:
    """Write texts into `assets.extra` of a SavedModel, by name."""
    for name, text in texts.items():
        path = f"{directory}/assets.extra/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


class Rehearsal:
    """The export of the untrained model and some requests to it, in a thread beside the first steps."""

    def __init__(self, exporter: Exporter, sample: Chunk):
        self.exporter, self.sample = exporter, take(sample, slice(0, REHEARSAL_ROWS))
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin; called after the first step, which would wait for Python otherwise."""
        self.thread.start()

    def _run(self) -> None:
        directory = tempfile.mkdtemp(prefix="rehearsal-")
        try:
            self.exporter.write(directory)
            ask(directory, instances_of(self.exporter.contract, self.sample))
        except (OSError, tf.errors.OpError) as error:
            if isinstance(error, tf.errors.InvalidArgumentError | tf.errors.NotFoundError | tf.errors.FailedPreconditionError):
                self.failure = error
            else:  # a full disk, say, is no fault of the model's
                log("WARNING", f"the export could not be rehearsed in {directory}: {' '.join(str(error).split())[:200]}. Make room there.")
        except Exception as error:  # raised again where training takes notice
            self.failure = error
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def check(self, wait: bool = False) -> None:
        """Raise what went wrong so far.

        Raises:
            UserError: the model cannot be exported, or not asked.
        """
        if wait and self.thread.ident is not None:
            self.thread.join()
        if self.failure is None:
            return
        if isinstance(self.failure, (UserError, MemoryError)):
            raise self.failure
        text = " ".join(str(self.failure).split())[:300]
        raise UserError(
            f"this model cannot be exported and asked: {type(self.failure).__name__}: {text}. Nothing was lost: "
            "it was tried before training, with untrained weights. Mend preprocess, outputs or the model.",
            FAILED,
        ) from self.failure


def publish(
    exporter: Exporter, sample: Chunk, outputs: Outputs, tolerance: float, events: Events, step: int, extra: Mapping[str, str]
) -> dict[str, float]:
    """Export, check and publish the trained model.

    Args:
        sample: raw evaluation rows with their labels, for the gate.
        tolerance: largest |served - trained| / max(1, |trained|).
        extra: texts for `assets.extra`, by name.

    Returns:
        What the gate measured: rows, largest difference, metric of both paths. `random` is how far two answers of the
        trained model to the same rows lie apart; beyond the tolerance it draws random numbers, and nothing is `compared`.

    Raises:
        UserError: the two paths disagree; the model then lies in `<model>.rejected`.
    """
    stage = tempfile.mkdtemp(prefix="model-") if is_remote(outputs.model) else f"{outputs.model}.part"
    shutil.rmtree(stage, ignore_errors=True)  # ours: what a killed export left
    exporter.save(stage)
    put_beside(stage, extra)
    events.enter("export", step)
    report, worst = compare(exporter, sample, stage)
    report["compared"] = report["random"] <= tolerance
    if not report["compared"]:
        log(
            "WARNING",
            f"the model draws random numbers when it answers: two answers to one row differ by up to {report['random']:.3g}. So "
            "served and trained predictions are not compared. If that is not meant, draw only where `training` is true.",
        )
    elif not report["largest_difference"] <= tolerance or not report["metric_difference"] <= tolerance:
        _publish(stage, outputs.rejected, outputs.records)
        _reject(report, worst, tolerance, outputs.rejected)
    reason = exporter.save_keras(stage)
    where = f"{outputs.model}/assets.extra/model.keras, for keras.saving.load_model" if reason is None else f"no model.keras ({reason})"
    log("INFO", f"for fine-tuning: {where}")
    exporter.checksum = checksums.of_folder(stage)
    _publish(stage, outputs.model, outputs.records)
    return report


def _reject(report: Mapping[str, Any], worst: list[dict[str, Any]], tolerance: float, where: str) -> NoReturn:
    for row in worst:
        log("ERROR", f"skew: {json.dumps(row)[:2000]}")
    metrics = [f"{report[kind]:.6g}" if report[kind] is not None else "unknown" for kind in ("served_metric", "trained_metric")]
    raise UserError(
        f"the exported model does not answer as the trained one: largest difference {report['largest_difference']:.3g}, "
        f"metric {metrics[0]} served, {metrics[1]} trained, --skew_tolerance {tolerance:g}. "
        f"It lies in {where}; the checkpoints are kept. Look for what training and serving do differently.",
        FAILED,
    )


def ask(directory: str, instances: list[dict[str, Any]]) -> list[Any]:
    """Ask a SavedModel as the service would, JSON in between."""
    body = json.dumps({"instances": instances}, allow_nan=False)
    try:
        return predict.answer(predict.load_signature(directory), json.loads(body)["instances"])
    except ValueError as error:
        text = f"the exported model refuses a row of the evaluation data: instance {error}"
        raise UserError(f"{text}. Mend INPUTS or the columns.", FAILED) from None


def compare(exporter: Exporter, sample: Chunk, directory: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask both paths about the sample, and keep some answers beside the model; return (measurements, the worst rows)."""
    contract = exporter.contract
    features, labels = exporter.prepare(sample)[:2]
    count = rows_of(sample)
    forward = tf.function(exporter.expect, autograph=False)
    parts = [forward(tf.nest.map_structure(lambda t: t[i : i + 256], features)) for i in range(0, count, 256)]  # noqa: B023
    again = forward(tf.nest.map_structure(lambda t: t[:256], features))
    expected = {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
    instances = instances_of(contract, sample)
    answers = ask(directory, instances)
    sample_predictions.keep(directory, instances, answers)
    rows = answers if len(expected) > 1 else [{name: row} for name in expected for row in answers]
    served = {name: np.array([_plain_in(row[name]) for row in rows]) for name in expected}
    difference = _differences(served, expected, count)
    labels = tf.nest.map_structure(lambda t: t.numpy(), labels)
    scores = [_score(exporter, found, labels) for found in (served, expected)]
    known = scores[0] is not None and scores[1] is not None
    report = {
        "rows": count, "largest_difference": float(difference.max()), "served_metric": scores[0], "trained_metric": scores[1],
        "metric_difference": abs(scores[0] - scores[1]) / max(1.0, abs(scores[1])) if known else 0.0,
        "random": float(_differences(_numbers(again), _numbers(expected), min(count, 256)).max()),
    }  # fmt: skip
    worst = np.argsort(-difference, kind="stable")[:3]
    return report, [{"instance": instances[i], "served": rows[i], "trained": {k: _plain(v[i]) for k, v in expected.items()}} for i in worst]


def _numbers(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the outputs that are numbers, NaN as 0: what is not finite must not pass for a random answer."""
    arrays = {name: np.asarray(values) for name, values in outputs.items()}
    return {name: np.nan_to_num(values) for name, values in arrays.items() if values.dtype.kind in "fiu"}


def _differences(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Return |found - expected| / max(1, |expected|) of each of the first rows, the largest over all numbers of a row: [count]."""
    largest = np.zeros(count)
    for name, values in expected.items():
        if values.dtype.kind in "fiu":
            values = values[:count]
            gap = np.abs(found[name] - values) / np.maximum(1, np.abs(values))
            largest = np.maximum(largest, np.where(np.isfinite(gap), gap, np.inf).reshape(count, -1).max(1))
    return largest


def _score(exporter: Exporter, found: Mapping[str, np.ndarray], labels: Any) -> float | None:
    """Return the trainer's own score; else the objective's metric, where there is one output of one value a row."""
    if "score" in exporter.contract.given:
        return float(exporter.contract.score(found, labels))
    name = exporter.contract.objective.removeprefix("val_")
    values = found.get("scores", next(iter(found.values())) if len(found) == 1 else None)
    metric = next((metric for metric in _all_metrics(exporter.network) if metric.name == name), None)
    if metric is None or values is None or values.dtype.kind != "f" or isinstance(labels, Mapping):
        return None
    try:
        own = type(metric).from_config(metric.get_config())
        own.update_state(labels, values.astype(np.float32))
        return float(own.result())
    except (TypeError, ValueError, NotImplementedError, tf.errors.OpError):
        return None  # a metric with arguments or shapes of its own


def _all_metrics(network: keras.Model) -> list[Any]:
    nested = [getattr(metric, "metrics", [metric]) for metric in network.metrics]
    return [metric for metrics in nested for metric in metrics]


def instances_of(contract: Contract, sample: Chunk) -> list[dict[str, Any]]:
    """Return rows as the instances of a request: `null` for what is missing, `{"b64": …}` for bytes."""
    names = {}
    for name, spec in contract.inputs.items():
        values = sample[name]
        if spec.dtype == tf.string and name.endswith("_bytes"):
            names[name] = [_nested(value, lambda v: {"b64": base64.b64encode(v).decode()}) for value in values.tolist()]
        elif spec.dtype == tf.string:
            try:
                names[name] = [_nested(value, lambda v: v.decode("utf-8") or None) for value in values.tolist()]
            except UnicodeDecodeError:
                remedy = "end its name in _bytes, and requests say them as b64"
                raise UserError(f"the input {name} holds bytes that are no UTF-8 text: {remedy}.") from None
        elif values.dtype.kind == "f":
            # A float32 as JSON sees it: the shortest text that reads back as the same value.
            names[name] = [_nested(value, _short) for value in values.astype(np.float32).tolist()]
        else:
            names[name] = values.tolist()
    return [dict(zip(names, row)) for row in zip(*names.values())]


def _nested(value: Any, turn: Any) -> Any:
    return [_nested(part, turn) for part in value] if isinstance(value, list) else turn(value)


def _short(value: float) -> float | None:
    return None if math.isnan(value) else float(str(np.float32(value)))


def _plain_in(value: Any) -> Any:
    return base64.b64decode(value["b64"]) if isinstance(value, dict) and set(value) == {"b64"} else value


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if hasattr(value, "tolist") else value


def _publish(stage: str, target: str, records: str) -> None:
    """Move the staged files to their place, saved_model.pb last: a model without it is not loaded by anyone.

    Raises:
        UserError: a bucket holds something else than was sent.
    """
    found = [os.path.relpath(os.path.join(folder, name), stage) for folder, _, names in os.walk(stage) for name in names]
    found.sort(key=lambda name: (name == "saved_model.pb", name))
    record(records, *(f"{target}/{name}" for name in found))
    for directory in sorted({os.path.dirname(f"{target}/{name}") for name in found}):
        tf.io.gfile.makedirs(directory)
    if is_remote(target):
        _upload(stage, target, records, found)
    else:
        for name in found:
            os.replace(f"{stage}/{name}", f"{target}/{name}")
    shutil.rmtree(stage, ignore_errors=True)


def _upload(stage: str, target: str, records: str, names: list[str]) -> None:
    """Copy the staged files to a bucket, and compare what it holds then; saved_model.pb comes when all else is right."""
    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(f"{target}/saved_model.pb")  # an earlier export's, which would be loaded with half of the new files
    for part in (names[:-1], names[-1:]):
        for name in part:
            tf.io.gfile.copy(f"{stage}/{name}", f"{target}/{name}", overwrite=True)
        there = bucket_manifest.describe(records, [bucket_manifest.relative(f"{target}/{name}", records) for name in part])
        for name in part:
            arrived = there.get(bucket_manifest.relative(f"{target}/{name}", records), {})
            sent = {"bytes": os.path.getsize(f"{stage}/{name}"), "crc32c": bucket_manifest.crc32c(f"{stage}/{name}")}
            wrong = [f"{kind} {arrived.get(kind)} instead of {sent[kind]}" for kind in sent if arrived.get(kind, sent[kind]) != sent[kind]]
            if not arrived or wrong:
                if name == "saved_model.pb" and arrived:
                    tf.io.gfile.remove(f"{target}/{name}")
                raise UserError(f"{target}/{name} arrived damaged ({', '.join(wrong) or 'it is not there'}). Start again.", FAILED)
