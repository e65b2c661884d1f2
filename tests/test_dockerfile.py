"""The root Dockerfile: its rules, and its steps executed in scratch folders up to a trained and exported model.

No Docker engine is needed, so none is tested: see `test_docker_support` for what stands in for what.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import FIRST_TRAINER, ROOT, TRAINERS
from test_docker_support import Stage, build, ignored, instructions, start

from vertex_local.job import job_file
from vertex_local.local import commands

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PACKAGES = Path(sysconfig.get_path("purelib"))
BUILD_IMAGE = ROOT / "scripts" / "build_image"
NOT_SOURCES = (".git", ".venv*", "__pycache__", "*.egg-info", "build", "dist", ".vertex_local", "*-run-*", "*-model*")


def make(scratch: Path, trainer: str, context: Path = ROOT, packages: Path = PACKAGES, index: bool = False, **build_args: str) -> Stage:
    scratch.mkdir(parents=True, exist_ok=True)
    return build(TEXT, context, scratch, packages, {"TRAINER": trainer, **build_args}, index)


def train(stage: Stage, trainer: str, packages: Path, *flags: str) -> dict:
    """Train a few steps in a built image with the arguments of the trainer's job file; return run.json."""
    args = job_file.read(ROOT / "jobs" / f"{trainer}.yaml").pools[0].args
    done = start(stage, packages, *args, "--num_examples_to_train_on=512", "--output_dir=out", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (stage.path("out") / "model" / "saved_model.pb").is_file()
    return json.loads((stage.path("out") / "run.json").read_text())


# ------------------------------------------------------------------ the text


def test_the_base_is_pinned_and_slim_and_an_argument():
    assert re.search(r"^ARG BASE_IMAGE=python:3\.\d+\.\d+-slim-\w+$", TEXT, re.MULTILINE)
    assert [rest for word, rest in instructions(TEXT) if word == "FROM"] == ["${BASE_IMAGE} AS dependencies", "${BASE_IMAGE}"]


def test_dependencies_are_a_layer_that_code_does_not_touch():
    steps = instructions(TEXT)
    stage = steps[: [word for word, _ in steps].index("FROM", 2)]
    assert [rest for word, rest in stage if word == "COPY"] == ["setup.py ./"]
    assert [rest for word, rest in steps[len(stage) :] if word == "RUN"] == [], "the last stage only copies"


def test_no_cache_and_no_secret():
    for word, rest in instructions(TEXT):
        assert word != "RUN" or "pip install" not in rest or "--no-cache-dir" in rest
        assert word not in ("ARG", "ENV") or not re.search("(?i)secret|token|passw|credential|_key", rest)
        assert word != "ADD" and not (word == "COPY" and rest.split()[0] in (".", "./"))


def test_vertex_local_reads_the_same_command_from_it(tmp_path):
    for trainer in TRAINERS:
        stage = commands.parse_dockerfile(TEXT, {"TRAINER": trainer})
        assert (stage.entrypoint, stage.workdir) == (["python", "-m", "trainer.task"], "/app")
        assert stage.env["PYTHONPATH"] == f"/app/{trainer}:/app"


@pytest.mark.parametrize(
    "name, out",
    [
        ("setup.py", False), ("taxifare/tests/data/taxi-train.csv", False), ("vertex_runtime/run.py", False), (".git/config", True),
        (".env", True), ("taxifare/.env.local", True), ("taxifare/trainer/key.pem", True), ("my-credentials-1.json", True),
        ("taxifare/trainer/__pycache__/task.pyc", True), ("tests/conftest.py", True), ("taxifare-run-1/model/saved_model.pb", True),
        (".vertex_local/buckets/b/x", True),
    ],
)  # fmt: skip
def test_what_is_sent_to_docker(name, out):
    assert ignored((ROOT / ".dockerignore").read_text(), name) is out


# ------------------------------------------------------------------ the steps


@pytest.mark.slow
@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_the_image_trains(tmp_path, trainer):
    """With the packages of this environment in the base, as a prebuilt container has TensorFlow: pip adds none of them."""
    context = Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=shutil.ignore_patterns(*NOT_SOURCES)))
    for secret in (".env", f"{trainer}/.env", f"{trainer}/trainer/service.pem", "vertex_runtime/credentials.json"):
        (context / secret).write_text("secret")
    here = importlib.metadata.packages_distributions()["tensorflow"][0]  # tensorflow, or tensorflow-cpu
    stage = make(tmp_path / "image", trainer, context, TENSORFLOW=here, REVISION="abc", CREATED="2026-11-21T00:00:00Z")
    app = stage.path(".")
    assert sorted(path.name for path in app.iterdir()) == sorted([trainer, "data_tools", "vertex_runtime"]), "one trainer"
    assert not [path for path in stage.root.rglob("*") if path.is_file() and path.suffix != ".py" and path.read_bytes() == b"secret"]
    assert not [path for path in app.rglob("*") if path.name in ("__pycache__", ".cache")]
    site = next(stage.root.glob("opt/venv/lib/python*/site-packages"))
    assert not (site / "tensorflow").exists(), "the base's TensorFlow is used, not installed again"
    assert [path.name for path in site.glob("vertex_trainer*")], "setup.py was installed, and what it requires was there"
    names = {name.removeprefix("org.opencontainers.image."): value for name, value in stage.labels.items()}
    assert names["title"] == trainer and names["revision"] == "abc" and names["licenses"] == "Apache-2.0"
    assert names["base.name"].startswith("python:3.") and names["created"].startswith("2026-11-21")
    record = train(stage, trainer, PACKAGES)
    assert record["total_steps"] > 1 and not record["synthetic_sample_data"]
    code = "import sys; print(sys.prefix)"
    stage.entrypoint = ["python", "-c", code]
    assert start(stage, PACKAGES).stdout.strip() == str(stage.root / "opt" / "venv"), "it starts with the image's own python"


def test_a_dependency_that_cannot_be_had_stops_the_build(tmp_path):
    with pytest.raises(AssertionError, match="no-such-package-of-ours"):
        make(tmp_path / "image", "taxifare", TENSORFLOW="no-such-package-of-ours")


@pytest.fixture
def bare(tmp_path) -> Path:
    """A site-packages folder with pip and setuptools only, as a slim Python image has; skips where no index answers."""
    folder = tmp_path / "bare"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder]
    done = subprocess.run([*pip, "pip", "setuptools", "wheel"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package index answers: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.mark.slow
def test_the_image_installs_from_an_index_and_trains(tmp_path, bare):
    """The same steps on an empty base: everything comes from the index, as in a real build."""
    stage = make(tmp_path / "image", "taxifare", packages=bare, index=True)
    site = next(stage.root.glob("opt/venv/lib/python*/site-packages"))
    assert (site / "tensorflow").is_dir() and list(site.glob("tensorflow_cpu-2.21*"))
    assert train(stage, "taxifare", bare)["versions"]["tensorflow"].startswith("2.21")


@pytest.mark.slow
def test_the_gpu_variant_resolves(tmp_path, bare):
    """CUDA's packages are too much to install for nothing: pip says what it would install."""
    args = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--report", "-", "--quiet"]
    done = subprocess.run([*args, "tensorflow[and-cuda]~=2.21.0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {item["metadata"]["name"].lower() for item in json.loads(done.stdout)["install"]}
    assert "tensorflow" in names and any(name.startswith("nvidia-cudnn") for name in names)


# ------------------------------------------------------------------ scripts/build_image


@pytest.fixture
def docker(tmp_path, monkeypatch) -> Path:
    """A `docker` on PATH that writes down its arguments; DOCKER_CODE is what it ends with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "" >>{tmp_path}/docker.log\nexit ${{DOCKER_CODE:-0}}\n')
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), str(Path(sys.executable).parent), "/usr/bin", "/bin"]))
    return tmp_path / "docker.log"


def build_image(*flags: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([BUILD_IMAGE, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_build_image_runs_what_it_prints(docker):
    done = build_image("--trainer=taxifare", "--gpu", "--push", "--project=p-1", "--region=europe-west4", "--tag=v3")
    asked = [block.splitlines() for block in docker.read_text().split("\n\n") if block]
    image = "europe-west4-docker.pkg.dev/p-1/trainers/taxifare-gpu:v3"
    assert asked[0][0] == "build" and asked[0][-2:] == [f"--tag={image}", str(ROOT)]
    assert {"--build-arg=TRAINER=taxifare", "--build-arg=TENSORFLOW=tensorflow[and-cuda]~=2.21.0"} <= set(asked[0])
    assert asked[1] == ["push", image]
    assert done.stdout.startswith("$ docker build ") and f"$ docker push {image}" in done.stdout


def test_build_image_on_a_prebuilt_base_warns_and_keeps_its_tensorflow(docker):
    done = build_image("--trainer=stackoverflow", "--base=prebuilt", "--dry_run")
    assert "--build-arg=TENSORFLOW=tensorflow " in done.stdout and "training/tf-cpu.2-17.py310:latest" in done.stdout
    assert "past its end of availability (2026-07-11)" in done.stderr
    assert not docker.exists(), "a dry run runs nothing"
    said = build_image("--trainer=stackoverflow", "--base=prebuilt", "--gpu", "--dry_run", code=2).stderr
    assert "tf-gpu" in said.splitlines()[-1]


def test_build_image_says_what_is_wrong_in_one_line(docker, monkeypatch):
    said = build_image("--trainer=taxifare", "--push", code=2).stderr
    assert said.startswith("error: --project: your-project is a placeholder") and said.count("\n") == 1
    monkeypatch.setenv("DOCKER_CODE", "3")
    assert build_image("--trainer=taxifare", code=1).stderr == "error: docker build ended with 3; see above what it said.\n"
    (docker.parent / "bin" / "docker").unlink()
    if not shutil.which("docker"):
        said = build_image("--trainer=taxifare", code=1).stderr
        assert said.startswith("error: docker is not on PATH") and said.count("\n") == 1
    assert "invalid choice: 'taxifaer'" in build_image("--trainer=taxifaer", code=2).stderr
