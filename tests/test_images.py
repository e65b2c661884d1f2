"""The Dockerfile built and run for real, and jobs in containers: `run --containers` with docker, podman or buildah.

buildah needs no registry here: its base image is a Debian that debootstrap makes of the package archive which this machine's
apt uses. The other engines take the Dockerfile's own base.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from test_serve_support import Service

from vertex_local.local import containers, engines, run
from vertex_local.local.engines import ContainerError, Engine
from vertex_submit import package

pytestmark = pytest.mark.image
BASE = "localhost/vertex-trainer-tests/python:1"
PREBUILT = "localhost/vertex-trainer-tests/prebuilt:1"
DEBIAN_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"


@pytest.fixture(scope="module")
def engine() -> Engine:
    try:
        return engines.find_engine()
    except ContainerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def build_args(engine, tmp_path_factory) -> list[str]:
    """The flags for the project's image: with buildah, a base that it has."""
    if engine.name != "buildah":
        return []
    if engine.find(BASE) is None:
        make_base(tmp_path_factory.mktemp("debian"))
    return [f"--build_arg=BASE_IMAGE={BASE}"]


def make_base(folder: Path) -> None:
    """Make a small Debian with Python, as far as this machine's apt can bring one."""
    if os.getuid() or not shutil.which("debootstrap"):
        pytest.skip("buildah's base image is made by debootstrap, as root: apt-get install debootstrap")
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages", "Component: main"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    suite = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())[1]
    site = next(line.split()[0] for line in listed.splitlines() if line.split()[1] == suite)
    root = folder / "root"
    call("debootstrap", "--variant=minbase", f"--include={DEBIAN_PACKAGES}", suite, str(root), site)
    container = call("buildah", "from", "scratch").strip()
    call("buildah", "copy", "--quiet", container, str(root), "/")
    call("buildah", "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
    call("buildah", "commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(root)


def call(*words: str) -> str:
    variables = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    done = subprocess.run(words, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def left_behind(engine: Engine) -> set[str]:
    """Return the containers that there are; docker and podman are told to remove theirs."""
    return set(call("buildah", "containers", "--quiet").split()) if engine.name == "buildah" else set()


def job_file(folder: Path, trainer: str, **changes) -> Path:
    """Write the trainer's own job file, short and in a folder of its own."""
    job = yaml.safe_load((ROOT / "jobs" / f"{trainer}.yaml").read_text())
    task = job["workerPoolSpecs"][0]["containerSpec"]
    task["args"] = [*task["args"], "--num_examples_to_train_on=512", "--num_evals=2"]
    job["baseOutputDirectory"]["outputUriPrefix"] = "gs://a-bucket/run"
    job.update(changes)
    shutil.copy(ROOT / "jobs" / "settings.yaml", folder)
    path = folder / f"{trainer}.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def start(path: Path, state: Path, *flags: str) -> dict:
    code = run.main([str(path), f"--state_dir={state}", f"--project_dir={ROOT}", "--job_id=1", *flags])
    result = json.loads((state / "jobs" / "1" / "result.json").read_text())
    return {**result, "code": code, "output": state / "buckets" / "a-bucket" / "run"}


@pytest.mark.parametrize("trainer", ["taxifare", "stackoverflow"])
def test_the_dockerfiles_image_trains_as_the_checkout_does(trainer, engine, build_args, tmp_path):
    path, before = job_file(tmp_path, trainer), left_behind(engine)
    inside = start(path, tmp_path / "inside", f"--containers={engine.name}", *build_args)
    outside = start(path, tmp_path / "outside")
    assert (inside["code"], outside["code"]) == (0, 0)
    assert (inside["output"] / "model" / "saved_model.pb").is_file()
    metrics = [json.loads((each["output"] / "checkpoints" / "metrics.json").read_text()) for each in (inside, outside)]
    values = [{"loss": each["loss"], "best": each["best"]["value"], "step": each["best"]["step"]} for each in metrics]
    assert values[0] == pytest.approx(values[1], rel=1e-3), "the same code on the same rows"
    assert left_behind(engine) <= before


def test_replicas_are_lost_and_come_back(engine, build_args, tmp_path):
    pool = yaml.safe_load((ROOT / "jobs" / "taxifare-2-workers.yaml").read_text())["workerPoolSpecs"][0]
    path = job_file(tmp_path, "taxifare", workerPoolSpecs=[pool, pool], scheduling={"restartJobOnWorkerRestart": True})
    result = start(path, tmp_path / "state", f"--containers={engine.name}", *build_args, "--kill=workerpool1-0@step=20,signal=KILL")
    assert result["code"] == 0 and result["restarts"] == 2, result
    assert result["kills"] == {"workerpool1-0@step=20,signal=KILL": True}
    assert [attempt["code"] for attempt in result["replicas"]["workerpool1-0"]["attempts"]] == [-9, 0]


def test_exit_codes_and_signals_come_through(engine, build_args, tmp_path):
    """What an engine's own client makes of them differs from one to the next."""
    image = engine.find(BASE) or containers.project_image(engine, ROOT, "taxifare", {})
    for number, (script, expected) in enumerate([("exit 3", 3), ("kill -TERM $$", -15)]):
        task = {"imageUri": image.name, "command": ["sh", "-c"], "args": [f"echo $AIP_MODEL_DIR; {script}"]}
        path = job_file(tmp_path, "taxifare", workerPoolSpecs=[{"containerSpec": task, "replicaCount": 1}])
        job = yaml.safe_load(path.read_text())
        job["scheduling"] = {"disableRetries": True}
        path.write_text(yaml.safe_dump(job).replace("$AIP", "$$AIP").replace("$$'", "$$$$'"))
        result = start(path, tmp_path / str(number), f"--containers={engine.name}")
        assert result["code"] == 1
        assert result["replicas"]["workerpool0-0"]["attempts"][-1]["code"] == expected


def test_a_package_in_a_prebuilt_container(engine, build_args, tmp_path, capfd):
    """A base with TensorFlow stands for the service's prebuilt one; pip installs the sdist in it."""
    if engine.name != "buildah":
        pytest.skip("made with buildah's own base")
    own = containers.project_image(engine, ROOT, "taxifare", {"BASE_IMAGE": BASE})
    if engine.find(PREBUILT) is None:
        (tmp_path / "Dockerfile").write_text(
            f"FROM {own.name} AS own\nFROM {BASE}\nCOPY --from=own /opt/venv /opt/venv\nENV PATH=/opt/venv/bin:/usr/bin:/bin\n"
        )
        engine.build(tmp_path, {}, PREBUILT)
    state = tmp_path / "state"
    assert package.main(["--trainer=taxifare", "--sample_data", f"--bucket_root={state / 'buckets'}", f"--dist_dir={tmp_path}"]) == 0
    job = ROOT / "jobs" / "taxifare-sdist.yaml"
    code = run.main([str(job), f"--state_dir={state}", f"--project_dir={ROOT}", "--containers=buildah", f"--prebuilt={PREBUILT}"])
    assert code == 0, capfd.readouterr().out[-2000:]
    assert (state / "buckets" / "your-bucket" / "taxifare-sdist" / "model" / "saved_model.pb").is_file()


def test_a_container_reaches_the_job_service(engine, build_args, tmp_path):
    """Its variables name the service's certificate and its token's file, which it can read and nothing else of that folder."""
    image = engine.find(BASE) or containers.project_image(engine, ROOT, "taxifare", {})
    script = """
import json, os, pathlib, ssl, urllib.request
root = os.environ["CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM"]
token = pathlib.Path(os.environ["CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"])
jobs, headers = "v1/projects/p/locations/us-central1/customJobs", {"Authorization": "Bearer " + token.read_text()}
request = urllib.request.Request(root + jobs, headers=headers)
tls = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
print("jobs:", [job["displayName"] for job in json.load(urllib.request.urlopen(request, context=tls))["customJobs"]])
print("beside it:", sorted(path.name for path in token.parent.iterdir()))
"""
    service = Service(tmp_path, f"--project_dir={ROOT}", f"--containers={engine.name}")
    try:
        task = {"imageUri": image.name, "command": ["python3", "-c", script]}
        spec = {"workerPoolSpecs": [{"containerSpec": task, "replicaCount": 1, "machineSpec": {"machineType": "n1-standard-4"}}]}
        number = service.call("POST", "/customJobs", {"displayName": "asks", "jobSpec": spec})["name"].rpartition("/")[2]
        ended = service.ended(number, seconds=120)
        log = service.log(number)
        assert ended["state"] == "JOB_STATE_SUCCEEDED", log
        assert "jobs: ['asks']" in log and "key.pem" not in log and "records.sqlite" not in log
    finally:
        service.stop()


def test_an_image_that_cannot_be_had_is_one_line(engine, tmp_path, capfd):
    task = {"imageUri": "localhost:1/nobody/has:this"}
    path = job_file(tmp_path, "taxifare", workerPoolSpecs=[{"containerSpec": task, "replicaCount": 1}])
    assert start(path, tmp_path / "state", f"--containers={engine.name}")["code"] == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: image localhost:1/nobody/has:this: is not here, and cannot be pulled")
