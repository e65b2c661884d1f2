"""The gate of a model's promotion: each reason by itself, several together, and what an evaluation must hold."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from vertex_runtime.errors import UserError
from vertex_runtime.evaluation import gate

SIGNATURE = {
    "inputs": {"hour": {"dtype": "int64", "shape": [None]}, "place": {"dtype": "string", "shape": [None]}},
    "outputs": {"fare": {"dtype": "float32", "shape": [None]}},
}


def evaluation(**changed) -> dict:
    """Return an evaluation that nothing speaks against, with some of its parts changed."""
    paired = {"difference": -0.2, "interval": [-0.4, 0.0], "p_value": 0.04, "rows": 500}
    against = {"model": "gs://b/old", "metrics": {"rmse": 3.5}, "signature": SIGNATURE, "paired": paired}
    made = {
        "model": "gs://b/new", "data": {"files": [], "rows": 500}, "kind": "regression", "objective": "rmse", "maximize": False,
        "metrics": {"rmse": 3.0}, "slices": [], "signature": SIGNATURE, "skew": {"hour": 0.02, "place": 0.09}, "against": against,
    }  # fmt: skip
    return copy.deepcopy({**made, **changed})


def against(**changed) -> dict:
    return {**evaluation()["against"], **changed}


def paired(difference: float, p_value: float) -> dict:
    return against(paired={"difference": difference, "interval": [difference - 0.1, difference + 0.1], "p_value": p_value, "rows": 500})


def test_nothing_speaks_against_a_better_model():
    assert gate.refusals(evaluation(), threshold=3.0, most_skew=0.1) == []
    assert gate.refusals(evaluation(against=None, skew=None)) == []


@pytest.mark.parametrize("maximize, threshold, passes", [
    (False, 3.0, True), (False, 2.999, False), (True, 3.0, True), (True, 3.001, False),
])  # fmt: skip
def test_the_threshold_is_reached_or_not(maximize, threshold, passes):
    found = gate.refusals(evaluation(maximize=maximize), threshold=threshold)
    assert not found if passes else found == [f"rmse is 3, must be {threshold:g} or {'more' if maximize else 'less'}"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "3.0", True])
def test_an_objective_without_a_value_passes_no_gate(value):
    (reason,) = gate.refusals(evaluation(metrics={"rmse": value}))
    assert reason.startswith("the objective rmse has no finite value")
    assert len(gate.refusals(evaluation(metrics={}))) == 1


@pytest.mark.parametrize("difference, p_value, passes", [
    (0.2, 0.049, False), (0.2, 0.05, True), (0.2, 0.9, True), (-0.2, 0.0, True), (0.0, 0.0, True),
])  # fmt: skip
def test_only_what_is_hardly_chance_counts_as_worse(difference, p_value, passes):
    found = gate.refusals(evaluation(against=paired(difference, p_value)))
    assert (found == []) is passes
    if not passes:
        assert found == ["its loss is 0.2 a row [0.1..0.3] above that of gs://b/old on the same 500 rows (p 0.049)"]
    assert gate.refusals(evaluation(against=paired(0.2, 0.2)), significance=0.3)


@pytest.mark.parametrize("missing", [None, {}, {"difference": 0.1}, {"difference": float("nan"), "p_value": 0.5}])
def test_models_that_were_not_compared_row_by_row_are_refused(missing):
    assert gate.refusals(evaluation(against=against(paired=missing))) == ["it was not compared with gs://b/old row by row"]


def test_skew_over_the_limit_names_the_worst_columns_first():
    skew = {f"c{i}": i / 10 for i in range(9)}
    (reason,) = gate.refusals(evaluation(skew=skew), most_skew=0.1)
    assert reason == "the rows differ from the training rows by more than 0.1: c8 0.8, c7 0.7, c6 0.6, c5 0.5, c4 0.4 and 2 more"
    assert gate.refusals(evaluation(skew=skew)) == [], "no limit, no reason"
    assert "unknown" in gate.refusals(evaluation(skew=None), most_skew=0.1)[0]
    assert gate.refusals(evaluation(skew={"a": None}), most_skew=1.0) == ["the skew of a is unknown"]


def test_another_signature_is_refused():
    def changed(side: str, **tensors) -> list[str]:
        other = copy.deepcopy(SIGNATURE)
        for name, tensor in tensors.items():
            if tensor is None:
                del other[side][name]
            else:
                other[side][name] = tensor
        return gate.refusals(evaluation(signature=other))

    head = "differ from those of gs://b/old: it "
    assert changed("inputs", hour=None) == [f"its inputs {head}lacks hour"]
    assert changed("inputs", day={"dtype": "int64", "shape": [None]}) == [f"its inputs {head}adds day"]
    assert changed("outputs", fare={"dtype": "float64", "shape": [None]}) == [
        f"its outputs {head}has fare as float64 [null] instead of float32 [null]"
    ]
    assert len(changed("outputs", fare={"dtype": "float32", "shape": [None, 1]})) == 1
    assert gate.refusals(evaluation(against=against(signature=None))) == ["the signature of gs://b/old is unknown"]


def test_every_reason_is_told_at_once():
    bad = evaluation(against=paired(0.2, 0.001), skew=None, signature={"inputs": {}, "outputs": SIGNATURE["outputs"]})
    assert len(gate.refusals(bad, threshold=1.0, most_skew=0.1)) == 4


@pytest.mark.parametrize("limits, text", [
    ({"threshold": float("nan")}, "--threshold: takes a number; got nan"),
    ({"most_skew": 1.5}, "--most_skew: takes a distance from 0 to 1; got 1.5"),
    ({"significance": 0.0}, "--significance: takes a probability between 0 and 1; got 0.0"),
])  # fmt: skip
def test_a_limit_that_is_none(limits, text):
    with pytest.raises(UserError, match=text):
        gate.refusals(evaluation(), **limits)


@pytest.mark.parametrize("content, text", [
    (None, "cannot be read"), ("{", "is not JSON"), ("[]", "holds list"), ("{}", "model must be of the type str"),
    (json.dumps({**evaluation(), "maximize": "no"}), "maximize must be of the type bool; got 'no'"),
])  # fmt: skip
def test_a_file_that_is_no_evaluation(tmp_path, content, text):
    path = tmp_path / "evaluation.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=text) as caught:
        gate.load(path)
    assert str(path) in str(caught.value) and "--evaluate" in str(caught.value)


def test_an_evaluation_that_is_read(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    assert gate.load(tmp_path / "evaluation.json") == evaluation()


def test_the_gate_needs_no_tensorflow():
    code = "import sys, vertex_runtime.evaluation.gate; print(sorted({'keras', 'numpy', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
