"""What the `test_pipeline_*` files share: the pipelines' environment, compiled pipelines, and a service that runs them."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from test_serve_support import Service

from vertex_local.errors import UserError
from vertex_local.pipelines import python

BUCKET = "bucket"
WHERE = {"project": "my-project", "location": "us-central1"}


@functools.cache
def kfp_python() -> str:
    """The interpreter of the pipelines' environment; where there is none, what needs it is skipped."""
    try:
        return python.find(ROOT)
    except UserError as error:
        pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pipelines of kfp_pipelines.py, compiled once."""
    return _compiled("kfp_pipelines.py", tmp_path_factory)


@pytest.fixture(scope="session")
def compiled_google(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pipelines of kfp_google_pipelines.py, compiled once."""
    return _compiled("kfp_google_pipelines.py", tmp_path_factory)


def _compiled(program: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    done = subprocess.run([kfp_python(), str(ROOT / "tests" / program), str(folder)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that runs pipelines; one for all tests of a session, for its processes import once what steps need."""
    started = Service(
        tmp_path_factory.mktemp("pipelines"), f"--project_dir={ROOT}", "--project=my-project", "--region=us-central1",
        KFP_PYTHON=kfp_python(),
    )  # fmt: skip
    (started.state / "buckets" / BUCKET / "in").mkdir(parents=True)
    (started.state / "buckets" / BUCKET / "in" / "file.txt").write_text("imported")
    yield started
    started.stop()


def tasks(job: dict) -> dict[str, dict]:
    """The details of a pipeline job's tasks by their unique names, without the pipeline's own."""
    return {task["taskUniqueName"]: task for task in job.get("jobDetail", {}).get("taskDetails", []) if "parentTaskId" in task}


def states(job: dict) -> dict[str, str]:
    return {name: task["state"] for name, task in tasks(job).items()}


def output(job: dict, name: str, key: str = "Output"):
    """What a task put out as a parameter."""
    return tasks(job)[name]["execution"]["metadata"][f"output:{key}"]
