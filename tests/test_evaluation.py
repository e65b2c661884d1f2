"""`--evaluate`: metrics against scikit-learn, the paired test against SciPy, slices, kinds, the page, and what is wrong with the input."""

from __future__ import annotations

import html.parser
import importlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from scipy import stats
from sklearn import metrics as sklearn
from test_any_model import HEAD, MODELS, rows, write_trainer

from taxifare.trainer.task import main as taxifare
from vertex_runtime import data
from vertex_runtime.columns import Category, Date, Number
from vertex_runtime.errors import UserError
from vertex_runtime.evaluation import command, kept, metrics, page, paired, parts, slices
from vertex_runtime.evaluation.problem import Problem, judge
from vertex_runtime.evaluation.problem import _kind as told
from vertex_runtime.predict import answer, load_signature

VALID = ROOT / "taxifare" / "tests" / "data" / "taxi-valid.csv"
KEYS = {"model", "data", "kind", "objective", "maximize", "metrics", "slices", "signature", "skew", "against"}


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ------------------------------------------------------------------ metrics


@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_of_a_regression_are_those_of_scikit_learn(weighted):
    draw = random()
    label = draw.normal(10, 4, 500)
    prediction = label + draw.standard_t(3, 500)
    weight = draw.integers(0, 4, 500).astype(float) if weighted else np.ones(500)
    judged = judge(Problem("regression", "y", "y"), {"y": prediction}, label, weight)
    found = metrics.metrics_of(Problem("regression", "y", "y"), judged)
    assert found["rmse"] == pytest.approx(sklearn.root_mean_squared_error(label, prediction, sample_weight=weight))
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(label, prediction, sample_weight=weight))
    assert found["r2"] == pytest.approx(sklearn.r2_score(label, prediction, sample_weight=weight))
    size = np.repeat(np.abs(prediction - label), weight.astype(int))  # a row of weight 3 counts as three rows
    assert found["median_absolute_error"] == pytest.approx(np.quantile(size, 0.5, method="inverted_cdf"))
    assert found["absolute_error_90"] == pytest.approx(np.quantile(size, 0.9, method="inverted_cdf"))
    assert found["loss"] == pytest.approx(found["rmse"] ** 2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", ["probability", "two scores", "logit"])
def test_metrics_of_two_classes_are_those_of_scikit_learn(form, weighted):
    draw = random(1)
    label = draw.integers(0, 2, 600)
    logit = np.round(draw.normal(label * 1.5 - 1, 1.2), 2)  # with ties
    score = 1 / (1 + np.exp(-logit))
    weight = draw.integers(1, 5, 600).astype(float) if weighted else np.ones(600)
    values = {"probability": score, "two scores": np.stack([1 - score, score], 1), "logit": logit[:, None]}[form]
    problem = Problem("binary", "y", "p", ("no", "yes"), loss="log loss")
    judged = judge(problem, {"p": values}, label, weight, logits=form == "logit")
    found, said = metrics.metrics_of(problem, judged), (score > 0.5).astype(int)
    assert found["auc"] == pytest.approx(sklearn.roc_auc_score(label, score, sample_weight=weight))
    assert found["pr_auc"] == pytest.approx(sklearn.average_precision_score(label, score, sample_weight=weight))
    assert found["log_loss"] == found["loss"] == pytest.approx(sklearn.log_loss(label, score, sample_weight=weight))
    assert found["brier"] == pytest.approx(sklearn.brier_score_loss(label, score, sample_weight=weight))
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(label, said, sample_weight=weight))
    for name in ("precision", "recall", "f1"):
        score_of = getattr(sklearn, f"{name}_score")
        assert found[name] == pytest.approx(score_of(label, said, sample_weight=weight)), name
    at_half = next(row for row in metrics.thresholds(judged) if row["threshold"] == 0.5)
    assert at_half["recall"] == pytest.approx(sklearn.recall_score(label, score >= 0.5, sample_weight=weight))


@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_of_many_classes_are_those_of_scikit_learn(weighted):
    draw = random(2)
    label = draw.integers(0, 7, 800)
    logits = draw.normal(size=(800, 7)) + 2 * np.eye(7)[label]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    weight = draw.uniform(0.2, 3, 800) if weighted else np.ones(800)
    problem = Problem("multiclass", "y", "s", tuple("abcdefg"), "accuracy", True, "0/1 error")
    judged = judge(problem, {"s": logits}, label, weight, logits=True)
    found, said = metrics.metrics_of(problem, judged), scores.argmax(1)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(label, said, sample_weight=weight))
    assert found["log_loss"] == pytest.approx(sklearn.log_loss(label, scores, sample_weight=weight))
    assert found["top_5_accuracy"] == pytest.approx(sklearn.top_k_accuracy_score(label, scores, k=5, sample_weight=weight))
    assert found["loss"] == pytest.approx(1 - found["accuracy"])
    for name in ("precision", "recall", "f1"):
        for average in ("macro", "micro"):
            score_of = getattr(sklearn, f"{name}_score")(label, said, average=average, sample_weight=weight)
            assert found[f"{average}_{name}"] == pytest.approx(score_of), (average, name)
    assert np.allclose(metrics.confusion(problem, judged), sklearn.confusion_matrix(label, said, sample_weight=weight))


def test_several_labels_at_once():
    draw = random(3)
    label = draw.integers(0, 2, (300, 4))
    scores = np.clip(label * 0.4 + draw.uniform(0, 0.6, (300, 4)), 0, 1)
    problem = Problem("multilabel", "y", "s", (), "micro_f1", True, "log loss")
    found = metrics.metrics_of(problem, judge(problem, {"s": scores}, label, np.ones(300)))
    for average in ("micro", "macro"):
        assert found[f"{average}_f1"] == pytest.approx(sklearn.f1_score(label, scores >= 0.5, average=average))
    assert found["accuracy"] == pytest.approx(1 - sklearn.hamming_loss(label, scores >= 0.5))


def test_kinds_are_told_by_labels_and_answers():
    draw, rows_ = random(8), 40
    wide, one, whole = draw.uniform(size=(rows_, 5)), draw.uniform(size=rows_), draw.integers(0, 4, rows_)
    cases = [
        ("multiclass", whole, {"scores": wide, "label": np.full(rows_, b"x", object)}, 0, "scores"),
        ("regression", whole, {"y": one * 9, "embedding": wide}, 0, "y"),
        ("binary", whole > 1, {"embedding": wide[:, :2], "y": one}, 0, "y"),
        ("regression", one * 7, {"y": one[:, None]}, 0, "y"),
        ("multilabel", wide > 0.5, {"probabilities": wide}, 0, "probabilities"),
        ("multiclass", np.eye(5)[whole], {"probabilities": wide}, 0, "probabilities"),
        ("other", wide, {"vector": wide}, 0, "vector"),
        ("other", np.full(rows_, np.nan), {"scores": wide}, 0, ""),
        ("other", whole, {"y": one}, 4, ""),
    ]
    for kind, labels, outputs, classes, output in cases:
        numbers = {name: values for name, values in outputs.items() if values.dtype.kind == "f"}
        assert told("y", np.asarray(labels), numbers, classes, False) == (kind, output), (kind, output)
    with pytest.raises(UserError, match="the label 5 of y is none of the classes, which are numbered 0..4"):
        judge(Problem("multiclass", "y", "s", tuple("abcde")), {"s": wide}, np.r_[5, whole[1:]], np.ones(rows_))


def test_calibration_by_hand():
    judged = {"weight": np.array([1.0, 1, 2]), "score": np.array([0.1, 0.12, 1.0]), "label": np.array([0, 1, 1]), "confidence": np.zeros(3)}
    found = metrics.calibration(judged)
    assert [each["weight"] for each in found["bins"]] == [2.0, 2.0] and found["bins"][0]["accuracy"] == 0.5
    assert found["ece"] == pytest.approx((abs(0.22 - 1) + abs(2.0 - 2)) / 4)


def test_sums_are_those_of_all_rows():
    draw = random(4)
    label, prediction, weight = draw.normal(size=90), draw.normal(size=90), draw.uniform(0, 2, 90)
    problem, sums = Problem("regression", "y", "y"), metrics.Sums()
    judged = judge(problem, {"y": prediction}, label, weight)
    for part in (slice(0, 40), slice(40, 90)):
        sums.add({name: values[part] for name, values in judged.items()})
    whole = metrics.metrics_of(problem, judged)
    assert sums.metrics(problem) == pytest.approx({name: whole[name] for name in ("loss", "rmse", "mse", "mae", "bias", "r2")})


# ------------------------------------------------------------------ the paired test


@pytest.mark.parametrize("rows_, shift", [(8, 0.5), (40, 0.0), (3000, 0.05)])
def test_the_paired_test_is_scipys(rows_, shift):
    draw = random(rows_)
    first = draw.exponential(size=rows_)
    second = first + draw.normal(shift, 0.4, rows_)
    found, wanted = paired.paired(first, second, np.ones(rows_), "squared error"), stats.ttest_rel(first, second)
    assert found["p_value"] == pytest.approx(wanted.pvalue, rel=1e-6) and found["rows"] == rows_
    interval = wanted.confidence_interval(0.95)
    assert found["interval"] == pytest.approx([interval.low, interval.high])
    assert found["difference"] == pytest.approx((first - second).mean())


def test_the_paired_test_of_equal_and_of_too_few_rows():
    assert paired.paired(np.ones(5), np.ones(5), np.ones(5), "x")["p_value"] == 1.0
    assert paired.paired(np.ones(5), np.zeros(5), np.ones(5), "x")["p_value"] == 0.0
    assert paired.paired(np.ones(1), np.ones(1), np.ones(1), "x") is None
    weights = np.array([1.0, 1, 1, 0])  # a row without weight is none
    mine = paired.paired(np.array([1.0, 2, 4, 99]), np.zeros(4), weights, "x")
    wanted = stats.ttest_1samp([1, 2, 4], 0)
    assert mine["rows"] == 3 and mine["p_value"] == pytest.approx(wanted.pvalue) and mine["difference"] == pytest.approx(7 / 3)


# ------------------------------------------------------------------ slices


def test_slices_put_the_certainly_worst_first_and_few_rows_last():
    draw = random(5)
    place = np.repeat([b"good", b"bad", b"rare", b"unsure"], [400, 400, 5, 40])
    scale = {b"good": 1.0, b"bad": 3.0, b"rare": 50.0, b"unsure": 3.0}
    error = draw.normal(0, [scale[each] for each in place])
    chunk = {"place": data.objects(place.tolist()), "x": draw.normal(size=len(place)).astype(np.float32)}
    problem, rows_kept = Problem("regression", "y", "y"), kept.Kept((Category("place"), Number("x")), 0)
    rows_kept.add(chunk, judge(problem, {"y": error}, np.zeros(len(place)), np.ones(len(place))))
    found = slices.slices_of(problem, rows_kept.judged, slices.bucketings(rows_kept, problem))
    assert (found[0]["column"], found[0]["value"]) == ("place", "bad")
    assert found[-1]["value"] == "rare" and found[-1]["few"] and found[-1]["metrics"]["rmse"] > found[0]["metrics"]["rmse"]
    ends = [each["interval"][0] for each in found if not each["few"]]
    assert ends == sorted(ends, reverse=True)
    bad = error[place == b"bad"]
    assert found[0]["rows"] == 400 and found[0]["metrics"]["rmse"] == pytest.approx(math.sqrt((bad**2).mean()))
    reach = 1.959964 * stats.sem(bad**2)
    assert found[0]["interval"] == pytest.approx([(bad**2).mean() - reach, (bad**2).mean() + reach])


def test_the_interval_of_a_share_is_wilsons():
    values = np.r_[np.ones(3), np.zeros(47)]
    wanted = stats.binomtest(3, 50).proportion_ci(0.95, method="wilson")
    assert slices.interval(values, np.ones(50)) == pytest.approx((wanted.low, wanted.high), rel=1e-5)
    low, high = slices.interval(np.zeros(45), np.ones(45))
    assert abs(low) < 1e-12 and 0.05 < high < 0.1, "no error in 45 rows is not none at all"


def test_buckets_of_dates_numbers_and_missing_cells():
    days = [f"2021-03-{day:02d} {hour:02d}:30:00 UTC".encode() for day in range(1, 29) for hour in range(24)]
    numbers = np.arange(len(days), dtype=np.float32)
    numbers[:40] = math.nan
    chunk = {"when": data.objects(days), "n": numbers, "flag": (numbers > 300).astype(np.float32)}
    problem, rows_kept = Problem("regression", "y", "y"), kept.Kept((Date("when"), Number("n", missing=math.nan), Number("flag")), 0)
    rows_kept.add(chunk, judge(problem, {"y": np.zeros(len(days))}, np.zeros(len(days)), np.ones(len(days))))
    found = {each.column: each for each in slices.bucketings(rows_kept, problem)}
    assert set(found) == {"when: hour", "when: weekday", "n", "flag"}
    assert found["when: hour"].names[5] == "05" and (np.bincount(found["when: hour"].places) == 28).all()
    assert found["when: weekday"].names[found["when: weekday"].places[0]] == "Monday", "1 March 2021"
    counts = {each["value"]: each["rows"] for each in slices.by_bucket(problem, rows_kept.judged, found["n"])}
    assert counts["missing"] == 40 and len(counts) == 9 and max(counts.values()) - 40 < 60
    assert found["flag"].names[:2] == ["0", "1"]


def test_pairs_of_degrees_are_found_by_name_and_range():
    def found(**columns) -> list[str]:
        table = kept.Kept(tuple(map(Number, columns)), 0)
        table.add({name: np.array([value], np.float32) for name, value in columns.items()}, {"weight": np.ones(1), "loss": np.ones(1)})
        return [name for name, _, _ in parts.places(table)]

    assert found(pickup_latitude=40.0, pickup_longitude=-73.0, dropoff_lat=1.0, dropoff_lon=2.0) == ["pickup", "dropoff"]
    assert found(lat=4.0, lng=3.0) == ["place"] and found(latitude=400.0, longitude=3.0) == []
    assert found(plate=4.0, plon=3.0) == [] and found(latitude=4.0) == []


# ------------------------------------------------------------------ the whole


@pytest.fixture(scope="module")
def models(tmp_path_factory, run_trainer, trained) -> Path:
    """Two models of taxifare, `good` and `poor`, and one of stackoverflow."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(trained("taxifare"), folder / "good")
    run_trainer("taxifare", f"--output_dir={folder / 'poor'}", "--num_evals=1", "--epochs=1", cwd=folder)
    shutil.copytree(trained("stackoverflow"), folder / "words")
    return folder


def check_page(path: Path) -> str:
    """See that a page is whole and needs no network, and return its text."""
    text, open_tags = path.read_text(), []

    class Reader(html.parser.HTMLParser):
        def handle_startendtag(self, tag, attributes):
            links = [value for name, value in attributes if name in ("src", "href") and value]
            assert all(value.startswith(("#", "data:")) for value in links), links

        def handle_starttag(self, tag, attributes):
            self.handle_startendtag(tag, attributes)
            if tag not in ("meta", "br", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag, (tag, self.getpos())

    Reader().feed(text)
    assert not open_tags and "<script" not in text and not re.search(r"\b(nan|https?|None)\b", re.sub(r"data:[^\"]*", "", text))
    return text


def test_taxifare_is_measured_as_its_run_measured_it(models, tmp_path, capsys):
    found = taxifare([f"--evaluate={models / 'good' / 'model'}", f"--output_dir={tmp_path}"])
    assert KEYS <= found.keys() and found == json.loads((tmp_path / "evaluation.json").read_text())
    run = json.loads((models / "good" / "metrics.json").read_text())
    assert (found["kind"], found["objective"], found["maximize"]) == ("regression", "rmse", False)
    assert found["metrics"]["rmse"] == pytest.approx(run["val_rmse"], rel=1e-5)
    assert found["data"]["rows"] == 400 and found["data"]["files"][0]["bytes"] == VALID.stat().st_size
    assert found["signature"]["inputs"]["passenger_count"] == {"dtype": "float32", "shape": [None]} and found["against"] is None
    assert found["skew"] and set(found["skew"]) == set(found["signature"]["inputs"]) - {"pickup_datetime"} | {"fare_amount"}
    assert {"distance_km", "pickup_datetime: hour", "fare_amount"} <= {each["column"] for each in found["slices"]}
    assert found["explanations"]["largest_approximation_error"] < 1e-5 and len(found["explanations"]["columns"]) == 6
    text = check_page(tmp_path / "evaluation.html")
    titles = ("Residuals by pickup", "Residuals by dropoff", "Predicted against actual", "The largest errors", "What the answers rest on")
    assert not [title for title in titles if title not in text]
    said = capsys.readouterr().out
    assert "regression on 400 rows: rmse " in said and "worst: fare_amount" in said and "evaluation.html" in said
    assert list((tmp_path / "logs" / "evaluation").glob("events.*")), "TensorBoard has it, too"
    again = taxifare([f"--evaluate={models / 'good'}", f"--output_dir={tmp_path}"])  # the run's folder will do
    assert again["metrics"] == found["metrics"] and again["slices"] == found["slices"]
    assert "in place of earlier ones" in capsys.readouterr().out


def test_two_models_on_the_same_rows(models, tmp_path, capsys):
    good, poor = models / "good" / "model", models / "poor" / "model"
    found = taxifare([f"--evaluate={good}", f"--against={poor}", f"--eval_data_path={VALID}", f"--output_dir={tmp_path}"])
    lines = VALID.read_text().splitlines()
    instances, fares = [], []
    for line in lines:
        fare, when, *numbers = line.split(",")[:7]
        names = ("pickup_longitude", "pickup_latitude", "dropoff_longitude", "dropoff_latitude", "passenger_count")
        fares.append(float(fare))
        instances.append({"pickup_datetime": when, **dict(zip(names, map(float, numbers)))})
    losses = [(np.array(answer(load_signature(str(model)), instances)) - fares) ** 2 for model in (good, poor)]
    wanted, said = stats.ttest_rel(*losses), found["against"]["paired"]
    assert said["difference"] == pytest.approx((losses[0] - losses[1]).mean(), rel=1e-4)
    assert said["p_value"] == pytest.approx(wanted.pvalue, rel=1e-3)
    assert said["interval"][1] < 0 and found["against"]["metrics"]["rmse"] == pytest.approx(math.sqrt(losses[1].mean()), rel=1e-5)
    assert found["against"]["signature"] == found["signature"] and found["details"]["changes"]
    assert f"against {poor}: rmse" in capsys.readouterr().out
    assert "Where the two models differ for certain" in check_page(tmp_path / "evaluation.html")


def test_stackoverflow_has_its_classes_and_mistakes(models, tmp_path):
    main = importlib.import_module("stackoverflow.trainer.task").main
    found = main([f"--evaluate={models / 'words' / 'model'}", f"--output_dir={tmp_path}"])
    run = json.loads((models / "words" / "metrics.json").read_text())
    assert found["kind"] == "multiclass" and found["metrics"]["accuracy"] == pytest.approx(run["val_accuracy"])
    names = (models / "words" / "model" / "assets.extra" / "labels.txt").read_text().split()
    assert found["about"]["classes"] == names and np.trace(found["details"]["confusion"]) == round(400 * run["val_accuracy"])
    text = check_page(tmp_path / "evaluation.html")
    assert "The most confident mistakes" in text and "<mark " in text and "Calibration" in text


def test_beyond_the_limit_sums_are_still_those_of_all_rows(models, tmp_path, monkeypatch):
    whole = taxifare([f"--evaluate={models / 'good' / 'model'}", f"--output_dir={tmp_path}"])
    monkeypatch.setattr(kept, "CELLS", 100)
    monkeypatch.setattr(kept, "LEAST", 150)
    part = taxifare([f"--evaluate={models / 'good' / 'model'}", f"--output_dir={tmp_path}"])
    assert part["about"]["rows_kept"] == 150 and part["data"]["rows"] == 400
    for name in ("rmse", "mae", "bias", "r2", "loss"):
        assert part["metrics"][name] == pytest.approx(whole["metrics"][name]), name
    assert part["metrics"]["median_absolute_error"] != whole["metrics"]["median_absolute_error"]


def test_a_cut_of_the_training_data_is_the_runs_own(tmp_path, run_trainer):
    flags = [f"--train_data_path={ROOT / 'taxifare/tests/data/taxi-train.csv'}", "--eval_fraction=0.25", "--seed=5"]
    run_trainer("taxifare", "--output_dir=out", "--num_evals=1", "--epochs=2", *flags, cwd=tmp_path)
    found = taxifare([f"--evaluate={tmp_path / 'out' / 'model'}", f"--output_dir={tmp_path / 'report'}", *flags])
    run = json.loads((tmp_path / "out" / "metrics.json").read_text())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert found["data"]["rows"] == record["rows"]["evaluation"] and found["metrics"]["rmse"] == pytest.approx(run["val_rmse"], rel=1e-5)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """Trainers of other kinds, trained for a moment."""
    folder = tmp_path_factory.mktemp("zoo")
    kinds = {name: MODELS[name] for name in ("functional", "two_outputs", "vector", "source", "dataset")}
    for name, text in kinds.items():
        write_trainer(folder, f"judged_{name}", HEAD + text)
    (folder / "train.csv").write_text(rows(300, 1))
    (folder / "valid.csv").write_text(rows(187, 2))
    sys.path.insert(0, str(folder))
    flags = [f"--train_data_path={folder / 'train.csv'}", f"--eval_data_path={folder / 'valid.csv'}", "--batch_size=24", "--num_evals=1"]
    for name in kinds:
        main = importlib.import_module(f"judged_{name}.trainer.task").main
        main([*flags, "--num_examples_to_train_on=480", f"--output_dir={folder / name}"])
    yield folder
    sys.path.remove(str(folder))


@pytest.mark.parametrize(
    "name, kind, objective",
    [
        ("functional", "binary", "auc"),
        ("two_outputs", "regression", "mae"),
        ("vector", "other", "loss"),
        ("source", "multiclass", "accuracy"),
        ("dataset", "binary", "loss"),
    ],
)
def test_every_kind_is_told_and_measured(zoo, name, kind, objective, tmp_path):
    main = importlib.import_module(f"judged_{name}.trainer.task").main
    found = main([f"--evaluate={zoo / name / 'model'}", f"--eval_data_path={zoo / 'valid.csv'}", f"--output_dir={tmp_path}"])
    assert (found["kind"], found["objective"]) == (kind, objective) and found["metrics"][objective] is not None
    run = json.loads((zoo / name / "metrics.json").read_text())
    if name in ("functional", "source", "dataset"):
        assert found["metrics"]["log_loss"] == pytest.approx(run["val_loss"], rel=1e-4)
    assert found["explanations"]["largest_approximation_error"] < 1e-5
    check_page(tmp_path / "evaluation.html")


# ------------------------------------------------------------------ what is wrong


def test_a_model_that_is_not_there_or_does_not_fit(models, tmp_path):
    with pytest.raises(UserError, match=r"--evaluate: .*nothing holds no SavedModel. Give the folder with saved_model.pb"):
        taxifare([f"--evaluate={tmp_path / 'nothing'}", f"--output_dir={tmp_path}"])
    with pytest.raises(UserError, match="--against: .* holds no SavedModel"):
        taxifare([f"--evaluate={models / 'good' / 'model'}", f"--against={__file__}", f"--output_dir={tmp_path}"])
    with pytest.raises(UserError, match="--against is a second model: name the first by --evaluate=MODEL"):
        taxifare([f"--against={models / 'good' / 'model'}"])
    with pytest.raises(UserError, match="wants the input text, which the rows lack; they have "):
        taxifare([f"--evaluate={models / 'words' / 'model'}", f"--output_dir={tmp_path}"])
    with pytest.raises(UserError, match="--evaluate, --data_report and --plan each end"):
        taxifare([f"--evaluate={models / 'good' / 'model'}", "--plan"])
    assert not (tmp_path / "evaluation.json").exists()


def test_rows_that_are_not_there_or_bad(models, tmp_path):
    model, out = f"--evaluate={models / 'good' / 'model'}", f"--output_dir={tmp_path / 'out'}"
    with pytest.raises(UserError, match="--eval_data_path: .*none.csv matches no file"):
        taxifare([model, out, f"--eval_data_path={tmp_path / 'none.csv'}"])
    lines = VALID.read_text().splitlines()
    (tmp_path / "bad.csv").write_text("\n".join([*lines[:3], lines[3].replace("-73", "73"), *lines[4:]]) + "\n")
    with pytest.raises(UserError, match=r"bad.csv, line 4: .*longitude must be a number in -78..-70"):
        taxifare([model, out, f"--eval_data_path={tmp_path / 'bad.csv'}"])
    found = taxifare([model, out, f"--eval_data_path={tmp_path / 'bad.csv'}", "--bad_rows=skip"])
    assert found["data"]["rows"] == 399
    questions = tmp_path / "questions.csv"
    questions.write_text("text,label\nwhat is it,cobol\n")
    main = importlib.import_module("stackoverflow.trainer.task").main
    with pytest.raises(UserError, match=r"questions.csv, line 2: the label 'cobol' was not seen in training"):
        main([f"--evaluate={models / 'words' / 'model'}", f"--eval_data_path={questions}", out])


@pytest.mark.parametrize(
    "slices_, says",
    [
        ("{'x': chunk['age'][:3]}", r"arrays of \d+ rows; x has the shape \(3,\)"),
        ("[1]", "a dict of arrays; got list"),
        ("1 / 0", "in slices: ZeroDivisionError"),
    ],
)
def test_slices_of_a_trainer_that_do_not_fit(zoo, tmp_path, slices_, says):
    name = f"sliced_{re.sub('[^a-z]', '', says)[:9]}"
    write_trainer(zoo, name, f"{HEAD}{MODELS['functional']}\ndef slices(chunk):\n    return {slices_}\n")
    main = importlib.import_module(f"{name}.trainer.task").main
    with pytest.raises(UserError, match=says):
        main([f"--evaluate={zoo / 'functional' / 'model'}", f"--eval_data_path={zoo / 'valid.csv'}", f"--output_dir={tmp_path}"])


def test_a_file_of_the_users_is_kept(models, tmp_path):
    (tmp_path / "evaluation.html").write_text("<p>mine")
    with pytest.raises(UserError, match="evaluation.html is no report of ours and is kept"):
        taxifare([f"--evaluate={models / 'good' / 'model'}", f"--output_dir={tmp_path}"])
    assert (tmp_path / "evaluation.html").read_text() == "<p>mine"
    (tmp_path / "evaluation.html").rename(tmp_path / "evaluation.json")
    with pytest.raises(UserError, match="evaluation.json is no report of ours and is kept"):
        taxifare([f"--evaluate={models / 'good' / 'model'}", f"--output_dir={tmp_path}"])


def test_a_model_without_a_profile_and_baselines_is_still_measured(models, tmp_path, capsys):
    shutil.copytree(models / "good" / "model", tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "assets.extra")
    found = taxifare([f"--evaluate={tmp_path / 'old'}", f"--output_dir={tmp_path / 'out'}"])
    assert found["skew"] is None and found["explanations"] is None and found["metrics"]["rmse"] > 0
    assert "answers are not explained" in capsys.readouterr().out
    assert "No profile of the training rows is kept" in check_page(tmp_path / "out" / "evaluation.html")


def test_the_script_finds_the_trainer(models, tmp_path):
    run = [forked.interpreter(), "-m", "vertex_runtime.evaluation.command"]
    more = {"cwd": tmp_path, "env": {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}, "capture_output": True}
    done = subprocess.run([*run, str(models / "good" / "model"), str(VALID), "--output=here", "--", "--seed=3"], text=True, **more)
    assert done.returncode == 0 and (tmp_path / "here" / "evaluation.html").is_file(), done.stderr
    done = subprocess.run([*run, str(models / "good" / "model" / "variables")], text=True, **more)
    assert done.returncode == 2 and re.fullmatch("error: .* Name it: --trainer=NAME.\n", done.stderr)
    with pytest.raises(UserError, match="--trainer names the trainer 'nobody', and nobody.trainer.task is not here"):
        command.main([str(models / "good" / "model"), "--trainer=nobody"])


def test_thumbnails_of_what_does_not_decode():
    assert parts.thumbnail(b"nothing") == "data:,"
    image = tf.io.encode_png(np.zeros((300, 100, 3), np.uint8)).numpy()
    assert parts.thumbnail(image).startswith("data:image/png;base64,") and page.KIND == "vertex_runtime evaluation"
