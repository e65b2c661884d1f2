"""What an exported model is asked of `tf.train.Example` in TFX's Evaluator. TFX itself is not needed for these tests."""

from __future__ import annotations

import math

import pytest
import tensorflow as tf

from pipelines.tfx.examples import ServedModel, parse, prediction_of
from vertex_runtime.columns import Number, Text
from vertex_runtime.errors import UserError


def record(**cells: object) -> bytes:
    """Return a serialized example: floats, whole numbers and texts, a list for a cell that is empty."""
    lists = {float: "float_list", int: "int64_list", str: "bytes_list", list: "bytes_list"}
    features = {}
    for name, value in cells.items():
        values = value if isinstance(value, list) else [value.encode() if isinstance(value, str) else value]
        features[name] = tf.train.Feature(**{lists[type(value)]: {"value": values}})
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def test_missing_cells_are_what_null_is_in_a_request():
    records = [record(n=1.5, t="a"), record(n=2.5), record(t="c"), record(n=3.5, t=[])]
    cells = parse(tf.constant(records), [Number("n"), Text("t")])
    assert [value.decode() for value in cells["t"].numpy()] == ["a", "", "c", ""]
    assert [None if math.isnan(value) else float(value) for value in cells["n"].numpy()] == [1.5, 2.5, None, 3.5]


def test_whole_numbers_are_numbers_too():
    cells = parse(tf.constant([record(t="no number here"), record(n=7), record(n=-2)]), [Number("n")])
    assert math.isnan(cells["n"][0]) and cells["n"].numpy()[1:].tolist() == [7.0, -2.0]


def test_examples_get_the_answers_that_requests_get(run_trainer, tmp_path):
    run_trainer("stackoverflow", "--num_examples_to_train_on=512", "--num_evals=1", "--output_dir=out", cwd=tmp_path)
    texts = ["how do I join two tables", "a list comprehension with a condition"]
    model = ServedModel(str(tmp_path / "out" / "model"), "stackoverflow")
    answers = tf.saved_model.load(tmp_path / "out" / "model").signatures["serving_default"](text=tf.constant(texts))
    asked = model.signatures["stackoverflow"](tf.constant([record(text=text, label="unknown", other=1.0) for text in texts]))
    assert asked.numpy().tolist() == answers["label"].numpy().tolist()


@pytest.mark.parametrize("outputs, found", [(["scores", "label"], "label"), (["other", "fare"], "fare"), (["only"], "only")])
def test_the_prediction_is_the_class_the_label_or_the_only_output(outputs, found):
    assert prediction_of(outputs, "fare", "model") == found


def test_outputs_that_say_nothing_of_the_label_are_refused():
    with pytest.raises(UserError, match="model answers a, b: none of them is called label or fare"):
        prediction_of(["b", "a"], "fare", "model")
