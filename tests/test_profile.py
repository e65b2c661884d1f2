"""Profiles of rows: small, the same by chunks of any size, and as far from each other as the data report says."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from conftest import ROOT

from vertex_runtime import data, profile
from vertex_runtime.columns import Category, Date, Image, Number, Text
from vertex_runtime.data_report import collect
from vertex_runtime.errors import UserError

COLUMNS = (Number("x", missing=math.nan), Number("few"), Category("plan"), Text("text"), Date("day"))


def rows(count: int, seed: int, shift: float = 0.0) -> data.Chunk:
    random = np.random.default_rng(seed)
    x = (random.normal(size=count) + shift).astype(np.float32)
    x[random.random(count) < 0.1] = math.nan
    texts = [b"word " * int(length) for length in random.integers(1, 60, count)]
    days = [f"20{year:02d}-03-04 10:11:12 UTC".encode() for year in random.integers(9, 15, count)]
    plans = data.objects([[b"basic", b"plus"][int(pick)] for pick in random.random(count) > 0.7 + 0.3 * shift])
    few = random.integers(0, 3, count).astype(np.float32)
    return {"x": x, "few": few, "plan": plans, "text": data.objects(texts), "day": data.objects(days)}


def test_the_distance_is_that_of_the_data_report():
    first, second = rows(15_000, 1), rows(12_000, 2, shift=0.4)
    reported = collect({"training": [first], "evaluation": [second]}, COLUMNS).columns
    mine = [json.loads(json.dumps(profile.profile_of([chunk], COLUMNS))) for chunk in (first, second)]
    found = profile.compare(*mine)
    assert found.keys() == set(first)
    for name, said in found.items():
        drift = reported[name]["drift"]["evaluation"]
        assert said["distance"] == pytest.approx(drift["distance"], abs=0.015), name
        assert said["drifts"] == drift["drifts"], name
    assert found["x"]["drifts"] and found["plan"]["drifts"] and not found["few"]["drifts"]
    assert profile.distance(*mine) == {name: said["distance"] for name, said in found.items()}
    assert max(profile.distance(mine[0], mine[0]).values()) == 0.0


def test_a_profile_does_not_depend_on_the_chunks_and_stays_small():
    chunk = rows(30_000, 3)
    whole = profile.profile_of([chunk], COLUMNS)
    parts = profile.profile_of((data.take(chunk, slice(i, i + 700)) for i in range(0, 30_000, 700)), COLUMNS)
    assert whole == parts and whole["rows"] == 30_000 and whole["sampled"] == profile.ROWS
    assert len(json.dumps(whole)) < 40_000
    said = whole["columns"]
    assert said["x"]["median"] in chunk["x"].astype(np.float64).round(7) or abs(said["x"]["median"]) < 0.05
    assert said["day"]["median"].endswith("-03-04 10:11:12 UTC") and said["few"]["median"] == 1.0
    assert said["x"]["missing"] == pytest.approx(0.1 * profile.ROWS, rel=0.1)
    assert [value for value, _ in said["plan"]["values"]] == ["basic", "plus"]


def test_images_and_arrays_are_told_by_size_and_mean():
    head = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (32).to_bytes(4, "big") + (16).to_bytes(4, "big")
    chunk = {"photo_bytes": data.objects([head] * 3), "vector": np.arange(12, dtype=np.float32).reshape(3, 4)}
    found = profile.profile_of([chunk], (Image("photo_bytes"),))["columns"]
    assert found["photo_bytes"]["values"] == [["32 x 16", 3]] and found["vector"]["kind"] == "array"
    assert found["vector"]["points"] == [1.5, 5.5, 9.5]


def test_requests_are_compared_with_a_models_training_rows(tmp_path, monkeypatch, capsys):
    made = profile.profile_of([rows(2000, 4)], COLUMNS)
    (tmp_path / profile.NAME).write_text(json.dumps(made))
    asked = [{"x": None, "few": 1, "plan": "new", "text": "a b", "day": "2010-03-04"} for _ in range(300)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(json.dumps, asked))))
    found = profile.main([str(tmp_path / "model")])
    assert json.loads(capsys.readouterr().out) == found and found["rows"] == 300
    assert found["columns"]["plan"]["distance"] == 1.0 and found["columns"]["few"]["drifts"]
    assert profile.chunk_of([{"b64": "AAEC"}], {"columns": {"photo_bytes": {"kind": "image"}}})["photo_bytes"][0] == b"\0\1\2"
    with pytest.raises(UserError, match="has no training_profile.json: give the folder of a model"):
        profile.main([str(ROOT)])


@pytest.mark.parametrize(
    "flags", [(), pytest.param(("--in_memory=no",), marks=pytest.mark.slow), ("--in_memory=no", "--eval_fraction=0.2")]
)
def test_a_run_keeps_the_profile_of_its_training_rows(flags, tmp_path, run_trainer):
    folder = ROOT / "taxifare" / "tests" / "data"
    files = [f"--train_data_path={folder / 'taxi-train.csv'}"]
    files += [] if "--eval_fraction=0.2" in flags else [f"--eval_data_path={folder / 'taxi-valid.csv'}"]
    run_trainer("taxifare", "--output_dir=out", "--num_examples_to_train_on=480", "--num_evals=1", *files, *flags, cwd=tmp_path)
    inside = json.loads((tmp_path / "out" / "model" / "assets.extra" / profile.NAME).read_text())
    assert inside == json.loads((tmp_path / "out" / profile.NAME).read_text()) == profile.load(str(tmp_path / "out" / "model"))
    assert inside["rows"] in (1600, 1293) and inside["labels"] == ["fare_amount"]
    assert profile.columns_of(inside) and inside["columns"]["pickup_latitude"]["median"] == pytest.approx(40.75, abs=0.05)
