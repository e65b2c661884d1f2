"""The whole pipeline on this machine: from the job's file to a checked endpoint, and the ways in which it ends before."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_cloud_support import call
from test_kfp_support import PYTHON, needs_kfp, run
from test_serve_support import Service

from vertex_submit import pipeline_job

pytestmark = [pytest.mark.kfp, pytest.mark.slow, needs_kfp]
QUICK = '--parameter=trainer_args=["--num_examples_to_train_on=4000"]'
PARENT = "/v1/projects/your-project/locations/us-central1"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("serve"), f"--project_dir={ROOT}", KFP_PYTHON=str(PYTHON))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "taxifare.yaml"
    run("-m", "pipelines.kfp.compile", "--job=jobs/taxifare.yaml", "--convert=parquet", f"--output={path}")
    return path


def submit(service: Service, compiled: Path, folder: Path, *flags: str, code: int = 0) -> Any:
    where = (f"--api_endpoint={service.endpoint.url}", "--wait", "--poll=0.5", f"--state_dir={folder}")
    return call(pipeline_job.main, compiled, *where, QUICK, *flags, cwd=ROOT, env=service.endpoint.environment(), code=code)


def listed(service: Service, collection: str) -> list[dict[str, Any]]:
    return service.call("GET", f"/{collection}", base=PARENT).get(collection, [])


@pytest.fixture(scope="module")
def served(service, compiled, tmp_path_factory) -> Path:
    """The folder of a run that has gone well."""
    done = submit(service, compiled, tmp_path_factory.mktemp("state"), "--parameter=threshold=10", "--parameter=run_name=first")
    assert re.search(r"^succeeded \d+ steps done", done.stdout, re.MULTILINE), done.stdout
    return service.state / "buckets" / "your-bucket" / "taxifare" / "first"


def test_data_becomes_a_champion_that_answers(service, served):
    assert {path.name for path in served.iterdir()} >= {"validation", "data", "training", "evaluation"}
    manifest = json.loads((served / "data" / "training" / "manifest.json").read_text())
    assert manifest["format"] == "parquet" and manifest["rows"] == 1600
    (model,) = listed(service, "models")
    assert set(model["versionAliases"]) == {"default", "champion"}
    assert model["artifactUri"] == "gs://your-bucket/taxifare/first/training/model"
    (endpoint,) = listed(service, "endpoints")
    ((number, share),) = endpoint["trafficSplit"].items()
    assert share == 100 and [found["id"] for found in endpoint["deployedModels"]] == [number]
    evaluation = json.loads((served / "evaluation" / "evaluation.json").read_text())
    assert evaluation["metrics"]["rmse"] < 10 and evaluation["against"] is None


def test_a_threshold_not_reached_registers_nothing(service, served, compiled, tmp_path):
    before = listed(service, "models"), listed(service, "endpoints")
    done = submit(service, compiled, tmp_path, "--parameter=threshold=0.5", "--parameter=run_name=first", code=1)
    assert "gate-model: the model is refused, nothing is uploaded: rmse is " in done.stderr and "must be 0.5 or less" in done.stderr
    assert (listed(service, "models"), listed(service, "endpoints")) == before


def test_a_leak_ends_it_before_anything_is_trained(service, served, compiled, tmp_path):
    sample = "taxifare/tests/data/taxi-train.csv"
    flags = (f"--parameter=train_data_path={sample}", f"--parameter=eval_data_path={sample}", "--parameter=run_name=leaky")
    done = submit(service, compiled, tmp_path, *flags, code=1)
    assert "check-data-report: the data is not fit to train on" in done.stderr and "leaks: " in done.stderr
    assert {path.name for path in (served.parent / "leaky").iterdir()} == {"validation"}
