"""All that users ask of the SDK, as one program for the cloud, over REST and over gRPC, against one service: see sdk_program.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from test_local_support import environ
from test_pipeline_support import compiled, kfp_python  # noqa: F401 - fixtures
from test_serve_support import Service, mark_of

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.kfp]

import sdk_program  # noqa: E402

PROGRAM = ROOT / "tests" / "sdk_program.py"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    where = ("--project=my-project", "--region=us-central1")
    started = Service(tmp_path_factory.mktemp("sdk"), f"--project_dir={ROOT}", *where, KFP_PYTHON=kfp_python())
    yield started
    assert started.stop() == 0


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_one_program_of_everything(service, compiled, tmp_path, transport):  # noqa: F811
    address = service.endpoint.address if transport == "rest" else service.endpoint.grpc
    init = {"project": "my-project", "location": "us-central1", "api_endpoint": address, "token": service.token}
    (tmp_path / "init.json").write_text(json.dumps(init))
    command = [sys.executable, str(PROGRAM), transport, "init.json", str(tmp_path), str(compiled / "chain.yaml")]
    env = environ(**service.endpoint.environment())
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^ok (\w+):", done.stdout, re.MULTILINE) == [step.__name__ for step in sdk_program.STEPS]
    assert float(re.search(r"a ride costs ([\d.]+)", done.stdout)[1]) == pytest.approx(by_script(service), rel=1e-5)
    words = [_words(pid) for pid in mark_of(service.process)]
    assert not [each for each in words if "--requests" in each], "undeployed, no process holds a model"


def by_script(service: Service) -> float:
    """Return what scripts/predict says of the ride, by the model that was trained last."""
    folder = max((service.state / "buckets").glob("sdk-*/container/model"), key=lambda path: path.stat().st_mtime)
    command = [sys.executable, "-m", "vertex_runtime.predict", str(folder)]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(sdk_program.RIDE), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _words(pid: int) -> list[str]:
    try:
        return open(f"/proc/{pid}/cmdline", "rb").read().decode(errors="replace").split("\0")
    except OSError:
        return []
