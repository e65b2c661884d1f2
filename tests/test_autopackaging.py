"""Autopackaging (local-package-path): the real gcloud writes its Dockerfile, and its steps are executed without Docker.

A `docker` on PATH takes the Dockerfile that gcloud hands it; what stands in for Docker is in `test_docker_support`.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import FIRST_TRAINER, ROOT
from test_cloud_support import REAL, gcloud_variables, needs_gcloud, script, serving
from test_docker_support import build, instructions, start

from vertex_submit import jobs
from vertex_submit.image_build import autopackage

PACKAGES = Path(sysconfig.get_path("purelib"))
IMAGE = "europe-west4-docker.pkg.dev/real-project-1/trainers/{}-autopackaged:latest"


@pytest.fixture
def docker(tmp_path) -> dict[str, str]:
    """Environment with a `docker` that keeps its arguments and, of a build, the Dockerfile from stdin."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{tmp_path}/docker.log\n[ "$1" = push ] || cat >{tmp_path}/Dockerfile\n')
    program.chmod(0o755)
    return {"PATH": os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])}


def submit(job: str, folder: Path, docker: dict[str, str], *flags: str) -> tuple[dict, str, str]:
    """Submit a job with --autopackage; return the job that gcloud posted, its Dockerfile, and what was said."""
    with serving() as service:
        env = {**docker, **gcloud_variables(service.url, folder)}
        done = script("submit_job", ROOT / "jobs" / f"{job}.yaml", "--autopackage", "--no_check", *REAL, *flags, cwd=folder, env=env)
        return service.posted(), (folder / "Dockerfile").read_text(), done.stdout


@needs_gcloud
@pytest.mark.slow
@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_the_generated_dockerfiles_steps_train(tmp_path, docker, trainer):
    body, text, said = submit(trainer, tmp_path, docker)
    image = IMAGE.format(trainer)
    built, pushed = (tmp_path / "docker.log").read_text().splitlines()
    assert built == f"build --no-cache -t {image} --rm -f- {ROOT}" and pushed == f"push {image}"
    (pool,) = body["jobSpec"]["workerPoolSpecs"]
    assert pool["containerSpec"]["imageUri"] == image
    assert body["jobSpec"]["baseOutputDirectory"] == {"outputUriPrefix": f"gs://real-bucket-1/{trainer}"}, "the rest of the file stays"
    assert "local-package-path=" in said.splitlines()[0], "the exact command is printed"

    steps = instructions(text)
    assert ("COPY", '["./setup.py", "./setup.py"]') in steps and ("RUN", "pip install --no-cache-dir .") in steps
    # TensorFlow is what this environment has: the line that would fetch another version is read, not done.
    (tensorflow,) = [rest for word, rest in steps if word == "RUN" and "tensorflow" in rest]
    assert tensorflow == "pip install --no-cache-dir --upgrade 'tensorflow-cpu~=2.21.0'"
    stage = build(text.replace(f"RUN {tensorflow}\n", ""), ROOT, tmp_path / "image", PACKAGES, {})
    app = stage.root / "usr" / "app"
    assert sorted(path.name for path in app.iterdir() if path.name not in ("build", "vertex_trainer.egg-info")) == sorted(
        [trainer, "setup.py", "vertex_runtime"]
    )
    assert stage.entrypoint == ["python", "-m", f"{trainer}.trainer.task"]
    done = start(stage, PACKAGES, *pool["containerSpec"]["args"], "--num_examples_to_train_on=512", "--output_dir=out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (app / "out" / "model" / "saved_model.pb").is_file()
    assert json.loads((app / "out" / "run.json").read_text())["total_steps"] > 1


@needs_gcloud
def test_all_pools_get_the_image_and_a_prebuilt_base_needs_no_tensorflow(tmp_path, docker):
    base = "us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-17.py310:latest"
    body, text, _ = submit("taxifare-2-workers", tmp_path, docker, f"--base={base}", "--", "--num_evals=1", "--nnsize=8,4")
    first, second = body["jobSpec"]["workerPoolSpecs"]
    assert first["containerSpec"] == second["containerSpec"]
    assert first["containerSpec"]["imageUri"] == IMAGE.format("taxifare")
    assert first["containerSpec"]["args"][-2:] == ["--num_evals=1", "--nnsize=8,4"], "a comma does not part arguments"
    assert body["jobSpec"]["scheduling"]["restartJobOnWorkerRestart"] is True
    steps = instructions(text)
    assert ("FROM", base) in steps and ("RUN", "rm -rf /var/sitecustomize") in steps
    assert not [rest for word, rest in steps if word == "RUN" and "tensorflow" in rest]
    assert steps[-1] == ("ENTRYPOINT", '["python3", "-m", "taxifare.trainer.task"]')


@pytest.mark.parametrize(
    "job, extra, expected",
    [
        ("taxifare-reduction-server", [], "gives all pools one image and one list of arguments"),
        ("taxifare-tpu", [], "gcloud has no flag for tpuTopology"),
        ("annotated", [], "gcloud has no flag for diskSpec, nfsMounts"),
        ("taxifare", ["--", "--num_evals=2"], "takes no argument twice"),
    ],
)
def test_what_gclouds_flags_cannot_say_is_refused(tmp_path, job, extra, expected):
    done = script("submit_job", ROOT / "jobs" / f"{job}.yaml", "--autopackage", "--dry_run", *extra, cwd=tmp_path, code=2)
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ") and expected in error


def test_the_documents_show_the_exact_flag():
    values = {"images": "R-docker.pkg.dev/P/trainers", "tag": "latest"}
    (flag, _) = autopackage(jobs.read(jobs.CUSTOM, str(ROOT / "jobs" / "taxifare.yaml"), {}), None, values)
    name, _, value = flag.replace(f"local-package-path={ROOT},", "local-package-path=.,").partition("=")
    assert f"{name}='{value}'" in (ROOT / "docs" / "vertex-ai.md").read_text(encoding="utf-8")


def test_an_evaluator_is_packaged_too_for_flags_may_leave_a_pool_empty(tmp_path):
    done = script("submit_job", ROOT / "jobs" / "taxifare-evaluator.yaml", "--autopackage", "--dry_run", cwd=tmp_path)
    assert done.stdout.count("--worker-pool-spec=") == 4 and " --worker-pool-spec= " in done.stdout
