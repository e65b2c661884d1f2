"""What is run: a package's sdist and not the checkout, a container's command, the project's own Dockerfile."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import pytest
from test_local_support import ROOT, call, environ, run, write_job

from vertex_local.local import commands


def build(folder, requires: str = "") -> str:
    """Write a checkout with a package `trainer`, build its sdist, and then change the checkout."""
    (folder / "trainer").mkdir()
    (folder / "trainer" / "__init__.py").touch()
    task = "import os, sys\nprint('ran', {!r}, sys.argv[1:], os.getcwd(), sys.executable)\n"
    (folder / "trainer" / "task.py").write_text(task.format("sdist"))
    fields = f"name='tiny-trainer', version='0.1', packages=['trainer'], install_requires=[{requires}]"
    (folder / "setup.py").write_text(f"from setuptools import setup\nsetup({fields})\n")
    command = [sys.executable, "setup.py", "-q", "sdist", "--formats=gztar"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / "trainer" / "task.py").write_text(task.format("checkout"))
    (built,) = (folder / "dist").iterdir()
    return f"dist/{built.name}"


def package_pool(uri: str, replicas: int = 1) -> dict:
    task = {"executorImageUri": "host/tf:latest", "packageUris": [uri], "pythonModule": "trainer.task", "args": ["--a=1"]}
    return {"replicaCount": replicas, "pythonPackageSpec": task}


def test_the_sdist_runs_and_not_the_checkout(tmp_path):
    uri = build(tmp_path)
    store = tmp_path / "store" / "packages" / "v1"
    store.mkdir(parents=True)
    built = tmp_path / uri
    built.rename(store / built.name)
    write_job(tmp_path, [package_pool(f"gs://packages/v1/{built.name}"), package_pool(f"gs://packages/v1/{built.name}")])
    env = environ(PYTHONPATH=f"{ROOT}:{tmp_path}")  # the checkout is on the path, as in an editable install
    done = run(tmp_path, "job.yaml", "--job_id=a", "--bucket_root=store", "--", "--b=2", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / ".vertex_local/jobs/a"
    for name in ("workerpool0-0", "workerpool1-0"):
        assert f"[{name}] ran sdist ['--a=1', '--b=2'] {folder}/work/{name} {sys.executable}" in done.stdout
    (site,) = (tmp_path / ".vertex_local/packages").glob("*/site")
    assert (site / "trainer/task.py").is_file()
    install = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert len(install) == 1 and "--no-deps --no-index --no-build-isolation" in install[0] and "--target" in install[0]
    found = json.loads((folder / "result.json").read_text())["replicas"]["workerpool0-0"]["command"]
    assert found == [sys.executable, "-m", "trainer.task", "--a=1", "--b=2"]


def wheel(folder) -> None:
    """Write a wheel of the package `missing-thing`, by hand: nothing here may ask an index."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "missing_thing-2.0-py3-none-any.whl", "w") as file:
        info = "missing_thing-2.0.dist-info"
        file.writestr("missing_thing.py", "X = 1\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: missing-thing\nVersion: 2.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def test_what_a_package_requires_and_the_environment_lacks(tmp_path):
    uri = build(tmp_path, "'missing_thing>=1.5', 'setuptools', 'pip>900', 'nowhere; python_version<\"3\"'")
    write_job(tmp_path, [package_pool(uri)])
    done = call(tmp_path, "job.yaml", "--job_id=a")
    assert done.returncode == 2 and "ran" not in done.stdout
    assert "tiny-trainer-0.1.tar.gz requires missing" in done.stderr.replace("_", "-")
    assert ">=1.5" in done.stderr and "pip>900" in done.stderr and "setuptools" not in done.stderr and "--with_index" in done.stderr
    assert json.loads((tmp_path / ".vertex_local/jobs/a/result.json").read_text())["state"] == "JOB_STATE_FAILED"


@pytest.mark.slow
def test_with_index(tmp_path, monkeypatch):
    uri = build(tmp_path, "'missing_thing>=1.5'")
    wheel(tmp_path / "wheels")
    write_job(tmp_path, [package_pool(uri)])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    done = call(tmp_path, "job.yaml", "--job_id=a", "--with_index")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / ".vertex_local/packages").glob("*/site/missing_thing.py"))) == 1


def test_packages_that_cannot_be_installed(tmp_path):
    (tmp_path / "broken.tar.gz").write_text("no archive")
    for uri, words in (
        ("dist/none.tar.gz", "there is no"),
        ("gs://packages/none.whl", "there is no"),
        ("trainer.zip", "must be a .tar.gz or .whl"),
        ("broken.tar.gz", "pip could not install"),
    ):
        write_job(tmp_path, [package_pool(uri)])
        done = call(tmp_path, "job.yaml")
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


DOCKERFILE = """\
# syntax=docker/dockerfile:1
ARG BASE=python:3.11-slim
FROM ${BASE} AS base
ENV LEVEL=1 \\
    NOTE="two words"
WORKDIR /app
ENTRYPOINT ["python", "-m", "nothing"]

FROM base
ARG TRAINER=taxifare
ARG UNSET
ENV TRAINER=$TRAINER PYTHONPATH=/app/${TRAINER}:/app OTHER=/application/${UNSET:-none}
ENV OLD style here
COPY . .
ENTRYPOINT ["python", "-m", "trainer.task"]
CMD ["--from_cmd"]
"""


@pytest.fixture
def project(tmp_path):
    for name in ("taxifare", "stackoverflow"):
        (tmp_path / name / "trainer").mkdir(parents=True)
        (tmp_path / name / "trainer" / "__init__.py").touch()
        task = f"import os, sys\nprint('{name}', sys.argv[1:], os.environ['LEVEL'], os.environ['NOTE'], os.environ['OLD'])\n"
        (tmp_path / name / "trainer" / "task.py").write_text(task)
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    return tmp_path


@pytest.mark.parametrize("image, name", [("taxifare:latest", "taxifare"), ("stackoverflow-gpu@sha256:1", "stackoverflow")])
def test_the_projects_own_image(project, image, name):
    spec = {"imageUri": f"host/p/trainers/{image}", "env": [{"name": "OLD", "value": "spec"}]}
    write_job(project, [{"replicaCount": 1, "containerSpec": spec}])
    done = call(project, "job.yaml", "--", "--x=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"[workerpool0-0] {name} ['--x=1'] 1 two words spec" in done.stdout


@pytest.mark.parametrize(
    "image, name",
    [
        ("h/p/fares:1", "fares"), ("h/p/fares_v2-gpu@sha256:1", "fares_v2"), ("fares-v2", "fares"), ("h/fares-churn:1", None),
        ("h/p/air_fares:1", "fares"), ("h/fares/other:1", None), ("h/p/myfares:1", None),
    ],
)  # fmt: skip
def test_the_trainer_that_an_image_names(image, name):
    assert commands.trainer_in(image, ["churn", "fares", "fares_v2"]) == name


def test_a_trainer_is_a_folder_with_a_task(tmp_path):
    tasks = ("churn", "no-name", ".hidden", "")
    for path in (*(f"{name}/trainer/task.py".lstrip("/") for name in tasks), "fares/trainer/model.py"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert commands.trainers(tmp_path) == ["churn"]


def test_what_a_dockerfile_says():
    stage = commands.parse_dockerfile(DOCKERFILE, {"TRAINER": "stackoverflow"})
    assert stage.entrypoint == ["python", "-m", "trainer.task"] and stage.cmd == ["--from_cmd"] and stage.workdir == "/app"
    assert stage.env == {
        "LEVEL": "1", "NOTE": "two words", "TRAINER": "stackoverflow", "PYTHONPATH": "/app/stackoverflow:/app",
        "OTHER": "/application/none", "OLD": "style here",
    }  # fmt: skip
    assert commands.parse_dockerfile(DOCKERFILE, {}).env["TRAINER"] == "taxifare"
    shell = commands.parse_dockerfile("FROM x\nENTRYPOINT exec python -m $T.task\n", {})
    assert shell.entrypoint == ["/bin/sh", "-c", "exec python -m $T.task"]


def test_images_that_are_not_the_projects(project):
    def refused(image: str, dockerfile: str | None = None) -> str:
        if dockerfile is not None:
            (project / "Dockerfile").write_text(dockerfile)
        write_job(project, [{"replicaCount": 1, "containerSpec": {"imageUri": image}}])
        done = call(project, "job.yaml")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return done.stderr

    assert "does not name one of this project's trainers (stackoverflow, taxifare)" in refused("host/p/other:1")
    assert "Docker puts no variables into" in refused("a/taxifare:1", 'FROM x\nENTRYPOINT ["python", "-m", "$T.task"]\n')
    assert "Dockerfile: ENV 'A=\"b': No closing quotation; mend the line" in refused("a/taxifare:1", 'FROM x\nENV A="b\nCMD a\n')
    assert "ends without ENTRYPOINT and CMD" in refused("a/taxifare:1", "FROM x\n")
    (project / "Dockerfile").unlink()
    assert "there is no" in refused("a/taxifare:1") and "give containerSpec.command" in refused("a/taxifare:1")


def test_commands_run_as_they_stand(tmp_path):
    script = "echo $0 $1 $2; python -c 'import sys; print(sys.executable)'"
    spec = {"imageUri": "a/b:1", "command": ["sh", "-c", script, "zero"], "args": ["one"]}
    write_job(tmp_path, [{"replicaCount": 1, "containerSpec": spec}])
    done = call(tmp_path, "job.yaml", f"--python={sys.executable}", "--", "two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[workerpool0-0] zero one two\n" in done.stdout and f"[workerpool0-0] {sys.executable}\n" in done.stdout
    assert "is not a program" in call(tmp_path, "job.yaml", "--python=nowhere/python").stderr
    assert "there is no folder" in call(tmp_path, "job.yaml", "--project_dir=nowhere").stderr
