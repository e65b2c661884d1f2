"""benchmarks/cross_validation.py: the same splits for every set of flags, and the validation's own metric."""

from __future__ import annotations

import importlib
import json

import pytest
from conftest import ROOT

from vertex_runtime.errors import UserError

DATA = ROOT / "taxifare/tests/data/taxi-train.csv"


@pytest.fixture
def main(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("cross_validation").main


@pytest.mark.slow
def test_every_set_of_flags_is_tried_on_the_same_splits(main, tmp_path, capsys):
    scores = tmp_path / "scores.json"
    same = ["--num_examples_to_train_on=480"]
    main(["taxifare", f"--data={DATA}", "--splits=2", f"--json={scores}", "--", *same, "--lr=0.005", "--", *same, "--lr=0.0050"])
    found = json.loads(scores.read_text())
    assert list(found) == ["defaults", f"{same[0]} --lr=0.005", f"{same[0]} --lr=0.0050"]
    defaults, one, again = found.values()
    assert one == again and one[0] != one[1], "a split is the same in each set, and splits differ"
    assert all(few > many for few, many in zip(one, defaults)), "two steps teach less than thirty passes"
    out = capsys.readouterr().out
    assert "| flags" in out and "val_rmse" in out and "less the defaults" in out and "step " not in out


@pytest.mark.parametrize(
    "words, message",
    [
        (["taxifare", f"--data={DATA}", "--splits=1"], "--splits: needs 2 or more; got 1"),
        (["taxifair", f"--data={DATA}"], "taxifair: no taxifair here"),
        (["taxifare", f"--data={DATA}", "--", "--member=8"], "--member"),
        (["taxifare", "--data=nowhere.csv"], "nowhere.csv"),
    ],
)
def test_mistakes_are_named(words, message, main):
    with pytest.raises(UserError, match=message):
        main(words)
