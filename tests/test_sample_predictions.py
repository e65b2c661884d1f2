"""The answers that are kept beside an exported model: those that it gives, of rows that can be asked online."""

from __future__ import annotations

import json

import pytest

from vertex_runtime import predict, sample_predictions


def kept(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / sample_predictions.FILE).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("trainer, examples", [("taxifare", 2000), pytest.param("stackoverflow", 640, marks=pytest.mark.slow)])
def test_they_are_what_the_model_answers(tmp_path, run_trainer, trainer, examples):
    run_trainer(trainer, f"--num_examples_to_train_on={examples}", f"--output_dir={tmp_path}")
    found = kept(tmp_path / "model")
    assert len(found) == sample_predictions.ROWS
    answers = predict.answer(predict.load_signature(str(tmp_path / "model")), [each["instance"] for each in found])
    for each, answer in zip(found, answers):
        assert near(answer, each["prediction"]), (answer, each)


def near(one, other) -> bool:
    """Tell whether two answers are the same up to rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[name], other[name]) for name in one)
    return one == other if isinstance(one, str) else one == pytest.approx(other, rel=1e-5)


def test_rows_that_are_too_large_are_left_out(tmp_path):
    large = {"image_bytes": {"b64": "A" * sample_predictions.BYTES}}
    sample_predictions.keep(str(tmp_path), [large, {"x": 1}, {"x": 2}], [0.5, "é", None])
    assert kept(tmp_path) == [{"instance": {"x": 1}, "prediction": "é"}, {"instance": {"x": 2}, "prediction": None}]


def test_where_none_is_left_there_is_no_file(tmp_path):
    sample_predictions.keep(str(tmp_path), ["A" * sample_predictions.BYTES], [1.0])
    assert not list(tmp_path.iterdir())
