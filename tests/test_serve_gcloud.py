"""The local job service asked by the real gcloud, as it comes: jobs from our files and from flags, logs, storage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import FIRST_TRAINER, ROOT
from test_local_support import environ, wait_for
from test_serve_support import Service

from vertex_local.job import job_file

pytestmark = pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")
PARENT = "/v1/projects/my-project/locations/us-central1"
SLEEP = "import time; print('up', flush=True); time.sleep(300)"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("gcloud"), f"--project_dir={ROOT}", "--project=my-project", "--region=us-central1")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def gcloud(service, tmp_path_factory):
    """Run gcloud with exactly the variables that `env` prints, and a configuration of its own."""
    printed = service.endpoint.environment()
    own = {"CLOUDSDK_CONFIG": str(tmp_path_factory.mktemp("config")), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}

    def run(*args: object, code: int = 0, timeout: float = 120) -> str:
        command = ["gcloud", *map(str, args)]
        done = subprocess.run(command, env=environ(**own, **printed), cwd=service.folder, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    return run


def ended(service, name: str) -> dict:
    path = name.partition("/locations/us-central1")[2]
    over = ("SUCCEEDED", "FAILED", "CANCELLED")
    return wait_for(lambda: (job := service.call("GET", path, base=PARENT))["state"].endswith(over) and job, 120)


def created(gcloud, kind: str, *flags: object) -> str:
    return gcloud("ai", kind, "create", "--region=us-central1", "--format=value(name)", *flags).strip()


def write_config(folder, source: str, name: str = "job.json", **fields) -> object:
    container = {"imageUri": "host/any:1", "command": ["python", "-c", source], "args": ["--from=file"]}
    pool = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "containerSpec": container}
    (folder / name).write_text(json.dumps({"workerPoolSpecs": [pool], **fields}))
    return folder / name


@pytest.fixture(scope="module")
def finished(service, gcloud, tmp_path_factory):
    """Return (name, a job that has ended, its logs to come): gcloud asks twice, ten seconds apart, whether there are more."""
    source = (
        "import json,os,sys\nprint('args', *sys.argv[1:])\nprint('oh', file=sys.stderr)\n"
        "print(json.dumps({'severity': 'WARNING', 'message': 'careful'}))\n"
    )
    config = write_config(tmp_path_factory.mktemp("finished"), source, baseOutputDirectory={"outputUriPrefix": "gs://cloud-bucket/run"})
    name = created(gcloud, "custom-jobs", "--display-name=from-file", f"--config={config}", "--labels=stage=dev")
    job = ended(service, name)
    with ThreadPoolExecutor(1) as aside:
        yield name, job, aside.submit(gcloud, "ai", "custom-jobs", "stream-logs", name, "--polling-interval=5", "--task-name=workerpool0-0")


def test_create_describe_and_list(gcloud, finished):
    name, job, _ = finished
    assert job["state"] == "JOB_STATE_SUCCEEDED" and job["labels"] == {"stage": "dev"}
    shown = json.loads(gcloud("ai", "custom-jobs", "describe", name, "--format=json"))
    assert {key: shown[key] for key in job} == job
    listed = gcloud("ai", "custom-jobs", "list", "--region=us-central1", "--filter=displayName=from-file", "--format=value(name)")
    assert listed.split() == [name]


def test_flags_override_the_file(service, gcloud, tmp_path):
    config = write_config(tmp_path, "import sys; print('args', *sys.argv[1:])", scheduling={"timeout": "3600s"})
    name = created(gcloud, "custom-jobs", "--display-name=both", f"--config={config}", "--args=--from=flag,--more=1")
    job = ended(service, name)
    assert job["state"] == "JOB_STATE_SUCCEEDED" and job["jobSpec"]["scheduling"]["timeout"] == "3600s"
    assert service.log(name.rpartition("/")[2]) == "args --from=flag --more=1\n"


def test_a_job_from_flags_alone_with_a_package(service, gcloud, tmp_path):
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").touch()
    (tmp_path / "mypackage" / "task.py").write_text("import sys; print('packaged', *sys.argv[1:])")
    (tmp_path / "setup.py").write_text("from setuptools import setup; setup(name='mypackage', version='1', packages=['mypackage'])")
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "--formats=gztar"], cwd=tmp_path, check=True, capture_output=True)
    (service.state / "buckets" / "package-bucket").mkdir(parents=True)
    (archive,) = (tmp_path / "dist").iterdir()
    gcloud("storage", "cp", archive, "gs://package-bucket/dist/")
    pool = "machine-type=n1-standard-4,replica-count=1,executor-image-uri=us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-17.py310:latest,"
    name = created(
        gcloud, "custom-jobs", "--display-name=flags", f"--worker-pool-spec={pool}python-module=mypackage.task",
        f"--python-package-uris=gs://package-bucket/dist/{archive.name}", "--args=--data=gs://package-bucket/x,--n=2",
    )  # fmt: skip
    job = ended(service, name)
    assert job["state"] == "JOB_STATE_SUCCEEDED", job
    assert service.log(name.rpartition("/")[2]) == f"packaged --data={service.state}/buckets/package-bucket/x --n=2\n"


def test_cancel(service, gcloud, tmp_path):
    name = created(gcloud, "custom-jobs", "--display-name=long", f"--config={write_config(tmp_path, SLEEP)}")
    wait_for(lambda: "up" in service.log(name.rpartition("/")[2]))
    gcloud("ai", "custom-jobs", "cancel", name)
    assert ended(service, name)["state"] == "JOB_STATE_CANCELLED"


def test_what_is_wrong_is_told_as_gcloud_tells_it(service, gcloud, tmp_path):
    config = write_config(tmp_path, "pass", noSuchField=1)
    error = gcloud("ai", "custom-jobs", "create", "--region=us-central1", "--display-name=x", f"--config={config}", code=1)
    assert "INVALID_ARGUMENT" in error and "noSuchField" in error
    error = gcloud("ai", "custom-jobs", "describe", "123", "--region=us-central1", code=1)
    assert "NOT_FOUND" in error and "customJobs/123" in error


@pytest.mark.parametrize("trainer", FIRST_TRAINER)
@pytest.mark.parametrize("group, kind", [("custom-jobs", ""), ("hp-tuning-jobs", "-tuning")])
def test_our_job_files_are_taken(service, gcloud, tmp_path, trainer, group, kind):
    """With their settings filled in, which a request keeps as they are. Cancelled once it has begun to run."""
    file = tmp_path / "job.yaml"
    source = ROOT / "jobs" / f"{trainer}{kind}.yaml"
    if not kind:  # of both kinds the same code says it
        error = gcloud("ai", group, "create", "--region=us-central1", "--display-name=x", f"--config={source}", code=1)
        assert "${" in error and "scripts/submit_job" in error
    file.write_text(job_file.read_text(source, {"project": "my-project", "region": "us-central1", "bucket": "a-bucket"}))
    name = created(gcloud, group, f"--display-name={trainer}{kind}", f"--config={file}")
    path = name.partition("/locations/us-central1")[2]
    job = service.call("GET", path, base=PARENT)
    pools = (job.get("trialJobSpec") or job["jobSpec"])["workerPoolSpecs"]
    assert pools[0]["containerSpec"]["imageUri"] == f"us-central1-docker.pkg.dev/my-project/trainers/{trainer}:latest"
    assert wait_for(lambda: service.call("GET", path, base=PARENT).get("startTime"))
    if "endTime" not in service.call("GET", path, base=PARENT):
        service.call("POST", f"{path}:cancel", {}, base=PARENT)
    ended(service, name)


def test_a_tuning_job_from_flags_and_a_file(service, gcloud, tmp_path):
    value = "float(sys.argv[-1].partition('=')[2])"
    source = f"import hypertune,sys; hypertune.HyperTune().report_hyperparameter_tuning_metric('loss', {value}, 1)"
    config = write_config(tmp_path, source, baseOutputDirectory={"outputUriPrefix": "gs://cloud-bucket/hp"})
    parameter = {"parameterId": "x", "scaleType": "UNIT_LINEAR_SCALE", "doubleValueSpec": {"minValue": -1, "maxValue": 1}}
    study = {"metrics": [{"metricId": "loss", "goal": "MINIMIZE"}], "parameters": [parameter]}
    (tmp_path / "hp.json").write_text(json.dumps({"studySpec": study, "trialJobSpec": json.loads(config.read_text()), "maxTrialCount": 9}))
    name = created(
        gcloud, "hp-tuning-jobs", "--display-name=hp", f"--config={tmp_path / 'hp.json'}", "--max-trial-count=2",
        "--parallel-trial-count=2", "--algorithm=random-search",
    )  # fmt: skip
    job = ended(service, name)
    assert job["state"] == "JOB_STATE_SUCCEEDED" and job["studySpec"]["algorithm"] == "RANDOM_SEARCH", job
    shown = json.loads(gcloud("ai", "hp-tuning-jobs", "describe", name, "--format=json"))
    assert shown["maxTrialCount"] == 2 and [trial["state"] for trial in shown["trials"]] == ["SUCCEEDED"] * 2


@pytest.mark.slow
def test_storage_copies_both_ways(service, gcloud, tmp_path):
    content = os.urandom(9 << 20)  # above eight MiB gcloud's upload is a resumable one
    (tmp_path / "big.bin").write_bytes(content)
    gcloud("storage", "buckets", "create", "gs://copy-bucket")
    gcloud("storage", "cp", tmp_path / "big.bin", "gs://copy-bucket/folder/big.bin")
    assert (service.state / "buckets/copy-bucket/folder/big.bin").read_bytes() == content
    gcloud("storage", "cp", "gs://copy-bucket/folder/big.bin", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == content
    assert gcloud("storage", "ls", "-r", "gs://copy-bucket/**").split() == ["gs://copy-bucket/folder/big.bin"]
    gcloud("storage", "rm", "gs://copy-bucket/folder/big.bin")
    assert not (service.state / "buckets/copy-bucket/folder/big.bin").exists()


@pytest.mark.slow
def test_storage_lists_syncs_moves_and_removes(service, gcloud, tmp_path):
    gcloud("storage", "buckets", "create", "gs://sync-bucket")
    folder = service.state / "buckets" / "sync-bucket"
    for name in ("run/a", "run/b/c"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"a job wrote {name}")
    listed = gcloud("storage", "ls", "-l", "gs://sync-bucket/run/")
    assert "TOTAL: 1 objects, 17 bytes" in listed and "4096" not in listed, "folders are no objects"
    gcloud("storage", "cp", "-r", "gs://sync-bucket/run", tmp_path)
    assert (tmp_path / "run" / "b" / "c").read_text() == "a job wrote run/b/c"
    changed = folder / "run" / "a"
    changed.write_text("a job wrote run/A")  # as many bytes,
    later = changed.stat().st_mtime + 10  # in another second: of two equally long files of one second gcloud copies none
    os.utime(changed, (later, later))
    gcloud("storage", "rsync", "-r", tmp_path / "run", "gs://sync-bucket/run")
    assert (folder / "run" / "a").read_text() == "a job wrote run/a"
    gcloud("storage", "mv", "gs://sync-bucket/run/a", "gs://sync-bucket/run/z")
    gcloud("storage", "objects", "update", "gs://sync-bucket/run/z", "--custom-metadata=k=v")
    shown = json.loads(gcloud("storage", "objects", "describe", "gs://sync-bucket/run/z", "--format=json"))
    assert shown["custom_fields"]["k"] == "v" and str(shown["metageneration"]) == "2"
    gcloud("storage", "rm", "-r", "gs://sync-bucket/run")
    gcloud("storage", "cp", tmp_path / "run" / "a", "gs://sync-bucket/run")
    assert (folder / "run").is_file()
    gcloud("storage", "rm", "-r", "gs://sync-bucket")
    assert not folder.exists()


def test_without_the_token_gcloud_is_refused(service, tmp_path):
    exports = {
        **service.endpoint.environment(), "CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
    }  # fmt: skip
    del exports["CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"]
    command = ["gcloud", "ai", "custom-jobs", "list", "--region=us-central1"]
    done = subprocess.run(command, env=environ(**exports), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Authorization: Bearer" in done.stderr


def test_logs_are_streamed(finished):
    """The last one: meanwhile the tests above had their turn."""
    lines = [line.split("\t") for line in finished[2].result().splitlines()]
    assert [(line[0], line[2], line[3]) for line in lines if line[3] in ("args --from=file", "oh", "careful")] == [
        ("INFO", "workerpool0-0", "args --from=file"), ("ERROR", "workerpool0-0", "oh"), ("WARNING", "workerpool0-0", "careful"),
    ] or sorted(line[3] for line in lines) == ["args --from=file", "careful", "oh"]  # fmt: skip
