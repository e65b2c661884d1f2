"""The pipeline's own components: what they plan, refuse and check, with the SDK against the local service."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import ROOT
from test_kfp_support import driver, needs_kfp
from test_serve_support import Service

pytestmark = [pytest.mark.kfp, needs_kfp]
LEAK = {"level": "warning", "check": "leaks", "message": "3 rows of evaluation are in training."}
TWICE = {"level": "warning", "check": "duplicates", "message": "9 rows are there twice."}


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("reports")
    for name, findings in (("clean", []), ("leaks", [TWICE, LEAK]), ("duplicates", [TWICE])):
        (folder / f"{name}.json").write_text(json.dumps({"findings": findings}))
    return driver("plans", folder)


def test_a_run_is_planned_from_the_job_files_pools(planned):
    run_dir, report, model, data, validation, conversion, trials, training, batch = planned["plan"]
    assert run_dir == "gs://bucket/x/fares-1" and model == f"{run_dir}/training/model"
    assert report == f"{run_dir}/validation/data_report.json"
    assert data == ["--train_data_path", "a.csv", "b.csv"]
    arguments = ["--lr=1", "--seed=2", *data]
    assert training[0] == {"container_spec": {"image_uri": "h/taxifare:1", "args": arguments}, "replica_count": "2"}
    assert training[1:] == [{"replica_count": "0"}, {"container_spec": {"image_uri": "h/reductionserver:1"}, "replica_count": "8"}]
    assert [pool["container_spec"]["args"] for pool in trials] == [arguments]
    (alone,) = validation
    assert alone["replica_count"] == "1"
    assert alone["container_spec"]["args"] == [*arguments, f"--data_report={run_dir}/validation/data_report.html"]
    assert conversion == []
    assert batch == ["gs://a/1.jsonl", "gs://a/2.jsonl"]
    assert planned["named"][0] == "gs://bucket/x/mine" and planned["named"][3] == []
    assert planned["wrong"] == {"error": "output_root: takes gs://bucket/folder; got 'bucket/x'."}


def test_training_rows_are_converted_by_the_image_of_the_job(planned):
    run_dir, _, _, data, validation, (conversion,), trials, training, _ = planned["converted"]
    target = f"{run_dir}/data/training"
    words = ["taxifare", "--from", "a.csv", "b.csv", "--to", target, "--format", "parquet", "--shards", "2", "--shuffle"]
    command = ["python", "-m", "data_tools.convert"]
    assert conversion == {"container_spec": {"image_uri": "h/taxifare:1", "command": command, "args": words}, "replica_count": "1"}
    assert all(pools[0]["container_spec"]["args"][-2:] == ["--train_data_path", f"{target}/training-*"] for pools in (trials, training))
    assert not [word for word in (*validation[0]["container_spec"]["args"], *data) if target in word]
    assert planned["nothing to convert"]["error"].startswith("train_data_path: is empty")


def test_a_data_report_ends_the_pipeline_for_what_it_is_told_to(planned):
    assert planned["clean"] == {"answer": None, "metrics": {"warnings": 0}}
    assert planned["duplicates"] == {"answer": None, "metrics": {"warnings": 1}}
    error = planned["leaks"]["answer"]["error"]
    assert error.startswith("the data is not fit to train on, 1 finding(s): leaks: 3 rows of evaluation are in training. See ")
    assert planned["leaks"]["metrics"] == {"warnings": 2}


def test_the_best_trial_is_on_the_right_side_of_every_threshold():
    found = driver("chooses")
    assert found["safe"] == {"answer": ["2", ["--lr=1"], []], "metrics": {"accuracy": 0.8}}
    assert found["none is"] == {"answer": ["1", ["--lr=0.5"], []], "metrics": {"accuracy": 0.9}}
    assert found["no trial"]["answer"]["error"].endswith("hyperparameterTuningJobs/1 has succeeded with a value of accuracy.")


def test_the_gate_is_the_projects_own_and_says_why(tmp_path):
    signature = {"inputs": {"x": {"dtype": "float32", "shape": [None]}}, "outputs": {"y": {"dtype": "float32", "shape": [None]}}}
    evaluation = {"model": "gs://a/model", "kind": "regression", "objective": "rmse", "maximize": False, "signature": signature,
                  "metrics": {"rmse": 2.5, "mae": 1.0}, "skew": None, "against": None}  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "evaluation.html").write_text("<p>report</p>")
    found = driver("gates", tmp_path)
    assert found == {"passed": ["3.0"], "pages": ["<p>report</p>"] * 2}


@pytest.mark.slow
def test_models_are_registered_deployed_checked_and_promoted(tmp_path, run_trainer):
    run_trainer("taxifare", "--num_examples_to_train_on=2000", f"--output_dir={tmp_path}")
    (tmp_path / "serve").mkdir()
    service = Service(tmp_path / "serve", f"--project_dir={ROOT}")
    try:
        shutil.copytree(tmp_path / "model", service.state / "buckets" / "scene" / "model")
        found = driver("serves", tmp_path, env=service.endpoint.environment())
    finally:
        service.stop()
    (parent, uri, champion, figures, report, pools), deployment = found["nothing yet"]
    assert (parent, uri, champion) == ("", "", "") and deployment == ["", "", {"0": "100"}, {}]
    assert (figures, report) == ("gs://scene/run/evaluation/evaluation.json", "gs://scene/run/evaluation/evaluation.html")
    output = "--output_dir=gs://scene/run/evaluation"
    assert pools[0]["container_spec"]["args"] == ["--evaluate=gs://scene/run/training/model", output]
    assert found["first"] == {"instances": 16, "largest_difference": pytest.approx(0, abs=1e-4)}
    assert found["champion"][2] == "gs://scene/model"
    assert found["champion"][5][0]["container_spec"]["args"][-1] == "--against=gs://scene/model"
    assert found["split"] == [["30", "70"], ["100"]]
    assert found["second"]["instances"] == 16
    assert "the endpoint does not answer as the exported model: to {" in found["worse"]["error"]
    assert "It is undeployed again; the traffic is as before: " in found["worse"]["error"] and found["after"] == [True]
    assert found["aliases"] == {"default": "1", "previous-champion": "1", "champion": "2"}
    assert found["wrong"] == {"error": "traffic_percentage: takes 0 to 100; got 101."}
