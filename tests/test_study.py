"""Tuning files: what is accepted, and that every mistake is named with file and line."""

from __future__ import annotations

import importlib
import json
import statistics

import pytest
from test_local_support import ROOT

from vertex_local.job import buckets, job_file
from vertex_local.tuning import search, study
from vertex_runtime.arguments import parse

GOOD = """\
displayName: taxi
maxTrialCount: 12
parallelTrialCount: 3
maxFailedTrialCount: 4
studySpec:
  metrics:
  - {metricId: val_rmse, goal: MINIMIZE}
  parameters:
  - parameterId: lr
    scaleType: UNIT_LOG_SCALE
    doubleValueSpec: {minValue: 0.0001, maxValue: 0.1}
  - parameterId: layers
    scaleType: UNIT_LINEAR_SCALE
    integerValueSpec: {minValue: 1, maxValue: 4}
  - parameterId: batch_size
    discreteValueSpec: {values: [64, 128, 256]}
  - parameterId: optimizer
    categoricalValueSpec: {values: [adam, sgd]}
    conditionalParameterSpecs:
    - parentCategoricalValues: {values: [sgd]}
      parameterSpec:
        parameterId: momentum
        doubleValueSpec: {minValue: 0.5, maxValue: 0.99}
  measurementSelectionType: BEST_MEASUREMENT
  studyStoppingConfig: {maxNumTrials: 20, maximumRuntimeConstraint: {maxDuration: 3600s}}
trialJobSpec:
  baseOutputDirectory: {outputUriPrefix: gs://bucket/hp1}
  workerPoolSpecs:
  - machineSpec: {machineType: n1-standard-4}
    containerSpec: {imageUri: host/p/trainer:v1, args: ["--epochs=3"]}
"""


def change(old: str, new: str) -> str:
    assert GOOD.count(old) >= 1, old
    return GOOD.replace(old, new, 1)


def test_a_full_file():
    found = study.loads(GOOD, "hp.yaml")
    assert (found.max_trials, found.parallel, found.max_failed, found.algorithm) == (12, 3, 4, "ALGORITHM_UNSPECIFIED")
    assert found.metrics == (study.Metric("val_rmse", maximize=False),) and found.best_measurement and not found.median_stopping
    lr, layers, batch, optimizer = found.parameters
    assert (lr.kind, lr.scale, lr.low, lr.high) == ("double", "UNIT_LOG_SCALE", 0.0001, 0.1)
    assert (layers.kind, layers.low, layers.high) == ("integer", 1, 4)
    assert batch.values == (64.0, 128.0, 256.0) and isinstance(batch.values[0], float)
    assert [p.id for p in optimizer.active("sgd")] == ["momentum"] and not list(optimizer.active("adam"))
    assert found.job.output == "gs://bucket/hp1" and found.job.pools[0].args == ("--epochs=3",)
    assert found.stopping == {"maxNumTrials": 20, "maximumRuntimeConstraint": {"maxDuration": 3600.0}} and not found.notes


def test_json_means_the_same():
    import yaml

    plain = study.loads(GOOD, "hp.yaml")
    again = study.loads(json.dumps(yaml.safe_load(GOOD), indent="\t"), "hp.json")
    assert (again.message, again.parameters, again.metrics) == (plain.message, plain.parameters, plain.metrics)


@pytest.mark.parametrize("number", ["1e-4", "1E-04", "1.0e-4", "0.0001"])
def test_numbers_with_an_exponent(number):
    """JSON writes 1e-05, which YAML 1.1 takes for text."""
    assert study.loads(change("minValue: 0.0001", f"minValue: {number}"), "hp.yaml").parameters[0].low == 0.0001


def test_what_is_left_out_is_what_gcloud_sends():
    text = "".join(line + "\n" for line in GOOD.splitlines() if "TrialCount" not in line and "measurementSelection" not in line)
    found = study.loads(text.replace(", goal: MINIMIZE", ""), "hp.yaml")
    assert (found.max_trials, found.parallel, found.max_failed, found.best_measurement) == (1, 1, 0, False)
    assert found.metrics[0].maximize


@pytest.mark.parametrize("spec_text, note", [
    ("decayCurveStoppingSpec: {useElapsedDuration: true}", "decayCurveStoppingSpec is not imitated"),
    ("convexAutomatedStoppingSpec: {maxStepCount: 100}", "convexAutomatedStoppingSpec is not imitated"),
    ("observationNoise: HIGH", "observationNoise is not imitated"),
])  # fmt: skip
def test_what_is_not_imitated_is_named(spec_text, note):
    found = study.loads(change("  measurementSelectionType", f"  {spec_text}\n  measurementSelectionType"), "hp.yaml")
    assert any(note in each for each in found.notes) and not found.median_stopping


def test_median_stopping_and_several_metrics():
    text = change("  measurementSelectionType", "  medianAutomatedStoppingSpec: {useElapsedDuration: true}\n  measurementSelectionType")
    found = study.loads(text, "hp.yaml")
    assert found.median_stopping and found.by_elapsed
    more = "  - {metricId: ms, goal: MINIMIZE, safetyConfig: {safetyThreshold: 5}}\n  - metricId: auc\n"
    text = change("  parameters:", f"{more}  parameters:")
    found = study.loads(text, "hp.yaml")
    assert [metric.id for metric in found.objectives] == ["val_rmse", "auc"] and found.metrics[1].threshold == 5
    assert any("val_rmse, auc" in note for note in found.notes) and any("ms is not optimised" in note for note in found.notes)


def test_times_of_the_stopping_rules():
    config = "studyStoppingConfig: {minimumRuntimeConstraint: {endTime: '2030-01-01T00:00:00.123456789Z'}, maxDurationNoProgress: 1.5s}"
    text = change("studyStoppingConfig: {maxNumTrials: 20, maximumRuntimeConstraint: {maxDuration: 3600s}}", config)
    stopping = study.loads(text, "hp.yaml").stopping
    assert stopping["maxDurationNoProgress"] == 1.5
    assert stopping["minimumRuntimeConstraint"]["endTime"] == pytest.approx(1893456000.123456)


WRONG = {
    "a custom job": ("workerPoolSpecs: []\n", 1, "this is a custom job"),
    "no study": ("displayName: x\n", 1, "studySpec: is required"),
    "no trial's job": (GOOD[: GOOD.index("trialJobSpec")], 1, "trialJobSpec: is required"),
    "an unknown field": (change("maxTrialCount", "max_trial_count"), 2, "write maxTrialCount"),
    "a metric with a blank": (change("val_rmse", "'val rmse'"), 7, "without whitespace; got 'val rmse'"),
    "a metric twice": (change("  parameters:", "  - metricId: val_rmse\n  parameters:"), 8, "appears twice"),
    "only safety metrics": (change("MINIMIZE}", "MINIMIZE, safetyConfig: {}}"), 6, "at least one metric to optimise"),
    "no parameters": (GOOD[: GOOD.index("  parameters:")] + GOOD[GOOD.index("trialJobSpec") :], 5, "at least one parameter"),
    "an id that is no flag": (change("parameterId: lr", "parameterId: --lr"), 9, "without '--', such as lr; got '--lr'"),
    "an id twice": (change("parameterId: momentum", "parameterId: lr"), 22, "'lr' appears twice"),
    "no values": (change("    doubleValueSpec: {minValue: 0.0001, maxValue: 0.1}\n", ""), 9, "needs one of doubleValueSpec"),
    "an empty range": (change("maxValue: 4", "maxValue: 0"), 14, "must be at most maxValue, both finite; got 1 and 0"),
    "an endless range": (change("maxValue: 0.1", "maxValue: .inf"), 11, "takes a number; got inf"),
    "a log scale from 0": (change("minValue: 0.0001", "minValue: 0"), 10, "strictly positive values; the smallest of lr is 0"),
    "numbers that do not ascend": (change("[64, 128, 256]", "[64, 256, 128]"), 16, "must be finite and ascend"),
    "numbers too near": (change("[64, 128, 256]", "[64, 64.00000000001]"), 16, "1e-10 apart"),
    "texts twice": (change("[adam, sgd]", "[adam, adam]"), 18, "different texts"),
    "texts with a scale": (change("    categoricalV", "    scaleType: UNIT_LOG_SCALE\n    categoricalV"), 18, "has no scale"),
    "a value the parent never takes": (change("values: [sgd]", "values: [rmsprop]"), 20, "optimizer never takes 'rmsprop'"),
    "the wrong kind of parent's values": (change("parentCategoricalValues: {values: [sgd]}", "parentIntValues: {values: [1]}"), 20,
                                          "needs parentCategoricalValues, since optimizer is categorical; got parentIntValues"),
    "no parent's values": (change("- parentCategoricalValues: {values: [sgd]}\n      parameterSpec", "- parameterSpec"), 20, "got none"),
    "a grid of doubles": (change("  metrics:", "  algorithm: GRID_SEARCH\n  metrics:"), 6, "GRID_SEARCH takes no doubleValueSpec"),
    "more failures than trials": (change("maxFailedTrialCount: 4", "maxFailedTrialCount: 13"), 4, "at most maxTrialCount, 12; got 13"),
    "a negative count": (change("parallelTrialCount: 3", "parallelTrialCount: -1"), 3, "from 0 on; got -1"),
    "two ways to stop": (change("  measurementSelectionType", "  medianAutomatedStoppingSpec: {}\n  decayCurveStoppingSpec: {}\n  measur"
                                "ementSelectionType"), 25, "cannot stand beside medianAutomatedStoppingSpec"),
    "no trials at all": (change("maxNumTrials: 20", "maxNumTrials: 0"), 25, "from 1 on; got 0"),
    "no time": (change("{maxDuration: 3600s}", "{endTime: soon}"), 25, "takes a quoted time such as"),
    "a pool of two chiefs": (GOOD + "    replicaCount: 2\n", 31, "the chief's pool takes 1 replica"),
    "a directory elsewhere": (change("gs://bucket/hp1", "/tmp/hp1"), 27, "takes gs://bucket/folder"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_every_mistake_has_its_line(what):
    text, line, problem = WRONG[what]
    with pytest.raises(ValueError) as caught:
        study.loads(text, "hp.yaml")
    message = str(caught.value)
    assert message.startswith(f"hp.yaml:{line}: ") and problem in message and "\n" not in message, message


def test_a_child_of_a_double_is_refused():
    text = change("    doubleValueSpec: {minValue: 0.0001, maxValue: 0.1}\n", """\
    doubleValueSpec: {minValue: 0.0001, maxValue: 0.1}
    conditionalParameterSpecs:
    - parentDiscreteValues: {values: [0.1]}
      parameterSpec: {parameterId: x, integerValueSpec: {minValue: 1, maxValue: 2}}
""")  # fmt: skip
    with pytest.raises(job_file.SpecError, match=r"hp.yaml:13: .*lr is a double, whose values cannot be named"):
        study.loads(text, "hp.yaml")


def test_the_other_loader_points_here(tmp_path):
    (tmp_path / "hp.yaml").write_text(GOOD)
    with pytest.raises(job_file.SpecError, match="HyperparameterTuningJob, for `tune`"):
        job_file.read(tmp_path / "hp.yaml")


# ------------------------------------------------------------------ the project's own files

FILES = sorted((ROOT / "jobs").glob("*-tuning*.yaml"))


def test_there_are_files_for_both_trainers():
    names = {path.stem for path in FILES}
    assert {f"{trainer}-tuning{kind}" for trainer in ("taxifare", "stackoverflow") for kind in ("", "-2-workers")} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_parameter_is_a_flag_that_takes_its_values(path, capsys):
    """An unknown flag would fail every trial, and the first failure may end the whole job."""
    trainer = path.stem.partition("-")[0]
    found = study.load(path)
    hyperparameters = importlib.import_module(f"{trainer}.trainer.hyperparameters").Hyperparameters
    own = list(found.job.pools[0].args)
    for parameter in study.walk(found.parameters):
        for value in parameter.values or (parameter.low, parameter.high):
            hp, _ = parse(hyperparameters, [*own, f"--{parameter.id}={value}"], "")
            plain, _ = parse(hyperparameters, own, "")
            assert hasattr(plain, parameter.id), parameter.id
            if isinstance(value, (int, float)):
                assert getattr(hp, parameter.id) == value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_metric_is_what_the_trainer_reports(path):
    trainer = path.stem.partition("-")[0]
    (metric,) = study.load(path).metrics
    text = (ROOT / trainer / "trainer" / "model.py").read_text()
    assert f'OBJECTIVE, MAXIMIZE = "{metric.id}", {metric.maximize}' in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_failed_trial_does_not_end_the_study(path):
    found = study.load(path)
    assert 0 < found.max_failed <= found.max_trials and found.parallel <= found.max_trials
    buckets.check_name(found.job.output.split("/")[2])


# ------------------------------------------------------------------ scales


def drawn(parameter: study.Parameter, count: int = 400) -> list:
    optuna = search.import_optuna()
    inner = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    return [search.draw(inner.ask(), (parameter,))[parameter.id] for _ in range(count)]


@pytest.mark.parametrize("scale, middle", [
    ("UNIT_LINEAR_SCALE", 500.5), ("SCALE_TYPE_UNSPECIFIED", 500.5), ("UNIT_LOG_SCALE", 31.6), ("UNIT_REVERSE_LOG_SCALE", 1001 - 31.6),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["double", "integer"])
def test_half_of_the_draws_lie_on_each_side_of_the_scales_middle(kind, scale, middle):
    values = drawn(study.Parameter("x", kind, scale, 1, 1000))
    assert 1 <= min(values) and max(values) <= 1000 and all(isinstance(v, int) for v in values) == (kind == "integer")
    assert 0.42 < statistics.mean(value < middle for value in values) < 0.58


@pytest.mark.parametrize("scale, values, shares", [
    ("SCALE_TYPE_UNSPECIFIED", (1.0, 10.0, 1000.0), (1 / 3, 1 / 3, 1 / 3)),
    ("UNIT_LINEAR_SCALE", (10.0, 20.0, 30.0), (1 / 3, 1 / 3, 1 / 3)),
    ("UNIT_LOG_SCALE", (64.0, 128.0, 256.0), (1 / 3, 1 / 3, 1 / 3)),
    ("UNIT_LINEAR_SCALE", (64.0, 128.0, 256.0), (2 / 9, 3 / 9, 4 / 9)),
    ("UNIT_REVERSE_LOG_SCALE", (0.9, 0.99, 0.999), None),
    ("UNIT_LOG_SCALE", (5.0,), (1.0,)),
])  # fmt: skip
def test_discrete_values_are_drawn_by_their_room_on_the_scale(scale, values, shares):
    found = drawn(study.Parameter("x", "discrete", scale, values[0], values[-1], values))
    assert set(found) == set(values)
    for value, share in zip(values, shares or ()):
        assert statistics.mean(each == value for each in found) == pytest.approx(share, abs=0.08)


def test_a_grid_has_every_combination_once_and_children_where_they_are_active():
    text = change("    scaleType: UNIT_LOG_SCALE\n    doubleValueSpec: {minValue: 0.0001, maxValue: 0.1}", """\
    scaleType: UNIT_REVERSE_LOG_SCALE
    integerValueSpec: {minValue: 2, maxValue: 3}""")  # fmt: skip
    text = text.replace("doubleValueSpec: {minValue: 0.5, maxValue: 0.99}", "discreteValueSpec: {values: [0.5, 0.9]}")
    found = study.loads(text.replace("  metrics:", "  algorithm: GRID_SEARCH\n  metrics:"), "hp.yaml")
    points = list(search.grid(found.parameters))
    assert len(points) == search.grid_size(found.parameters) == 2 * 4 * 3 * (1 + 2)
    optuna = search.import_optuna()
    inner = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for point in points:
        inner.enqueue_trial(point)
        values = search.draw(inner.ask(), found.parameters)
        assert ("momentum" in values) == (values["optimizer"] == "sgd")
        seen.add(tuple(values.items()))
    assert len(seen) == len(points)
    assert {dict(each)["lr"] for each in seen} == {2, 3} and {dict(each).get("momentum") for each in seen} == {None, 0.5, 0.9}
