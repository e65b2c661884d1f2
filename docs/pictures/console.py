"""Pictures of the console's pages, in Chromium, light and dark: of a job, a study and a pipeline that ran for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from vertex_local.testing import LocalService

ROOT = Path(__file__).resolve().parents[2]
PARENT = "/v1/projects/my-project/locations/us-central1"
DATA = [f"--{part}_data_path={ROOT}/taxifare/tests/data/taxi-{name}.csv" for part, name in (("train", "train"), ("eval", "valid"))]
SIZE = {"width": 1180, "height": 720}


def make(to: Path) -> None:
    """Run a job, a study and a pipeline, and put two pictures of each into a folder: a few minutes.

    It needs Chromium, and for the pipeline the environment that scripts/setup_kfp makes.
    """
    with tempfile.TemporaryDirectory() as folder:
        service = LocalService(Path(folder), f"--project_dir={ROOT}", "--project=my-project", "--region=us-central1")
        try:
            pages = {"job": job(service), "tuning": tuning(service), "pipeline": pipeline(service, Path(folder))}
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
                page = browser.new_context(ignore_https_errors=True, viewport=SIZE).new_page()
                page.goto(service.endpoint.console_address())
                for name, path in pages.items():
                    shoot(page, f"{service.endpoint.url}/console{path}", to / f"console-{name}")
                browser.close()
        finally:
            service.stop()


def shoot(page: Page, address: str, to: Path) -> None:
    """Take two pictures of a page's top."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(address)
        page.screenshot(path=f"{to}-{scheme}.png")


def job(service: LocalService) -> str:
    """Train taxifare with 20 evaluations."""
    body = {"displayName": "taxifare", "jobSpec": spec("taxifare", "--num_evals=20", "--epochs=60")}
    return ended(service, "customJobs", body)


def tuning(service: LocalService) -> str:
    """Search with 16 short trials."""
    study = {
        "metrics": [{"metricId": "val_rmse", "goal": "MINIMIZE"}],
        "parameters": [
            {"parameterId": "lr", "scaleType": "UNIT_LOG_SCALE", "doubleValueSpec": {"minValue": 0.003, "maxValue": 0.1}},
            {"parameterId": "members", "integerValueSpec": {"minValue": 2, "maxValue": 8}},
            {"parameterId": "nnsize", "categoricalValueSpec": {"values": ["32", "64", "64 32"]}},
        ],
    }
    body = {
        "displayName": "taxifare-tuning", "maxTrialCount": 16, "parallelTrialCount": 2, "studySpec": study,
        "trialJobSpec": spec("taxifare-tuning", "--num_evals=2", "--epochs=6"),
    }  # fmt: skip
    return ended(service, "hyperparameterTuningJobs", body)


def pipeline(service: LocalService, folder: Path) -> str:
    """Compile the project's pipeline and run it to a checked endpoint."""
    python = os.environ.get("KFP_PYTHON", str(ROOT / ".venv-kfp" / "bin" / "python"))
    compiled = folder / "pipeline.json"
    command = [python, "-m", "pipelines.kfp.compile", "--job=jobs/taxifare.yaml", f"--output={compiled}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    values = {"project": "my-project", "threshold": 5.0}
    body = {
        "displayName": "taxifare-pipeline", "pipelineSpec": json.loads(compiled.read_text()),
        "runtimeConfig": {"gcsOutputDirectory": "gs://your-bucket/pipelines", "parameterValues": values},
    }  # fmt: skip
    return ended(service, "pipelineJobs", body)


def spec(output: str, *args: str) -> dict:
    """Return a job of the checkout's taxifare on its bundled rows."""
    container = {"imageUri": "host/trainers/taxifare:1", "command": ["python", "-m", "taxifare.trainer.task"], "args": [*args, *DATA]}
    pool = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "containerSpec": container}
    return {"workerPoolSpecs": [pool], "baseOutputDirectory": {"outputUriPrefix": f"gs://your-bucket/{output}"}}


def ended(service: LocalService, kind: str, body: dict) -> str:
    """Create a job, wait for its end, and return its page."""
    name = service.request("POST", f"{PARENT}/{kind}", body)["name"]
    while not (state := service.request("GET", f"/v1/{name}")["state"]).endswith(("SUCCEEDED", "FAILED", "CANCELLED")):
        time.sleep(1)
    print(f"{name}: {state}", flush=True)
    if not state.endswith("SUCCEEDED"):
        sys.exit(f"error: {name} ended as {state}.")
    return f"/{kind}/{name.rpartition('/')[2]}"
