"""What a trainer reports to a study: the metric's name, once per evaluation, by the chief; and what it does about NaN."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from conftest import ROOT

from vertex_local.tuning import runner as tuning
from vertex_local.tuning import study, trials
from vertex_runtime.errors import FAILED, UserError
from vertex_runtime.reporting import Hypertune

DATA = ROOT / "taxifare" / "tests" / "data"
ROWS = [f"--train_data_path={DATA}/taxi-train.csv", f"--eval_data_path={DATA}/taxi-valid.csv"]


def reports(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tune_taxifare(folder: Path, args: list[str], values: list[float], replicas: int = 1, failed: int = 0) -> tuning.Result:
    """Run a grid over `--lr` with the real trainer, trial by trial."""
    task = {"imageUri": "host/any:1", "command": ["python", "-m", "taxifare.trainer.task"], "args": [*ROWS, *args]}
    pools = [{"replicaCount": 1, "containerSpec": task}] + [{"replicaCount": replicas - 1, "containerSpec": task}] * (replicas > 1)
    config = {
        "maxTrialCount": len(values), "parallelTrialCount": 1, "maxFailedTrialCount": failed,
        "studySpec": {
            "metrics": [{"metricId": "val_rmse", "goal": "MINIMIZE"}], "algorithm": "GRID_SEARCH",
            "parameters": [{"parameterId": "lr", "discreteValueSpec": {"values": values}}],
        },
        "trialJobSpec": {"workerPoolSpecs": pools, "baseOutputDirectory": {"outputUriPrefix": "gs://bucket/hp"}},
    }  # fmt: skip
    wanted = study.loads(json.dumps(config), "hp.json")
    return tuning.run(wanted, state_dir=folder / "state", bucket_root=folder, project_dir=ROOT, job_id="s")


def metric_file(folder: Path, trial: dict, replica: str = "workerpool0-0") -> Path:
    return folder / "state" / "jobs" / trial["customJob"] / "metrics" / replica / "output.metrics"


def test_reports_are_for_trials_and_for_the_chief(tmp_path, monkeypatch):
    path = tmp_path / "hp" / "output.metrics"
    monkeypatch.setenv("CLOUD_ML_HP_METRIC_FILE", str(path))
    Hypertune("val_rmse", "3", str(path), quiet=True).report(1, 0.5)  # another worker
    Hypertune("val_rmse", None, None, quiet=False).report(1, 0.5)  # no trial
    assert not path.exists()
    tuned = Hypertune("val_rmse", "3", str(path), quiet=False)
    for step in range(1, 251):
        tuned.report(step, 1 / step)
        tuned.report(step, 1 / step)  # the same again is no evaluation
    found = reports(path)
    assert [int(line["global_step"]) for line in found] == list(range(151, 251))  # what the library keeps
    assert {(line["trial"], float(line["val_rmse"])) for line in found} == {("3", 1 / step) for step in range(151, 251)}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_ends_the_trial(tmp_path, monkeypatch, value):
    monkeypatch.setenv("CLOUD_ML_HP_METRIC_FILE", str(tmp_path / "metrics"))
    tuned = Hypertune("val_rmse", "3", None, quiet=False)
    tuned.report(10, 2.0)
    with pytest.raises(UserError, match=rf"val_rmse is {value} at step 20: the trial is infeasible") as caught:
        tuned.report(20, value)
    assert caught.value.code == FAILED and len(reports(tmp_path / "metrics")) == 1
    Hypertune("val_rmse", None, None, quiet=False).report(20, value)  # outside a trial the run goes on


def test_one_report_per_evaluation_and_the_exported_models_at_the_end(tmp_path, run_trainer):
    """With early stopping the best weights come back, are evaluated once more and exported: that value is the last."""
    path = tmp_path / "output.metrics"
    env = {"CLOUD_ML_TRIAL_ID": "2", "CLOUD_ML_HP_METRIC_FILE": str(path)}
    flags = [*ROWS, "--num_evals=12", "--epochs=4", "--lr=0.3", "--early_stopping=2"]
    run_trainer("taxifare", *flags, f"--output_dir={tmp_path / 'out'}", env=env)
    events = json.loads((tmp_path / "out" / "2" / "metrics.json").read_text())
    found = reports(path)
    steps = [int(line["global_step"]) for line in found]
    assert steps[:-1] == sorted(set(steps[:-1])) and steps[-1] == steps[-2] < 26  # stopped early; the last step's model changed
    assert float(found[-1]["val_rmse"]) == events["val_rmse"] == min(float(line["val_rmse"]) for line in found)
    assert {line["trial"] for line in found} == {"2"}


@pytest.mark.slow
def test_more_than_a_hundred_evaluations_are_followed_without_loss(tmp_path):
    found = tune_taxifare(tmp_path, ["--num_evals=130", "--epochs=20"], [0.02])
    (trial,) = found.trials
    assert found.succeeded and len(trial["measurements"]) == 130
    assert len(reports(metric_file(tmp_path, trial))) == 100
    assert trial["measurements"][-1]["stepCount"] == "133"


@pytest.mark.slow
def test_nan_makes_a_trial_infeasible_and_the_study_goes_on(tmp_path):
    found = tune_taxifare(tmp_path, ["--num_evals=2", "--epochs=2"], [0.02, 0.03, 1e30], failed=2)
    assert [trial["state"] for trial in found.trials] == ["SUCCEEDED", "SUCCEEDED", "INFEASIBLE"] and found.succeeded
    bad = found.trials[-1]
    assert "the loss is not finite at step" in bad["infeasibleReason"]
    end = json.loads((tmp_path / "state" / "jobs" / bad["customJob"] / "result.json").read_text())
    assert [attempt["code"] for attempt in end["replicas"]["workerpool0-0"]["attempts"]] == [1]  # permanent: not started again
    assert found.best == [min(found.trials[:2], key=lambda trial: trials.final_values(trial)["val_rmse"])["id"]]


@pytest.mark.multiworker
def test_of_two_replicas_the_chief_reports(tmp_path):
    found = tune_taxifare(tmp_path, ["--num_evals=3", "--epochs=2"], [0.02, 0.03], replicas=2)
    assert found.succeeded, found.error
    for trial in found.trials:
        assert len(reports(metric_file(tmp_path, trial))) == len(trial["measurements"]) == 3
        assert not metric_file(tmp_path, trial, "workerpool1-0").exists()
        record = json.loads((tmp_path / "bucket" / "hp" / trial["id"] / "checkpoints" / "metrics.json").read_text())
        assert trials.final_values(trial)["val_rmse"] == pytest.approx(record["val_rmse"])
