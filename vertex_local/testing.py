"""A service for tests: `from vertex_local.testing import service, service_process` in a conftest.py, or the plugin

    pytest -p vertex_local.testing

A test that takes `service` has an empty service on a free port, with the variables of gcloud and google-cloud-storage set;
`aiplatform.init(**service.init_arguments)` configures the SDK. All tests of a session share one process.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from . import client
from .local.environment import PROJECT as PROJECT_NUMBER
from .serve import endpoint

_ROOT = Path(__file__).resolve().parents[1]
STOP_SECONDS = 60.0


class ServiceError(RuntimeError):
    """The service did not start."""


class LocalService:
    """`python -m vertex_local serve` in `folder` on a free port, ready to be asked; `out` holds the lines that it printed.

    Args:
        flags: of the command `serve`.
        env: variables of its own, over those of this process.
        python: the interpreter that runs it; jobs and models have the one of the flag `--python`.

    Raises:
        ServiceError: it did not start; the message is what it printed.
    """

    def __init__(self, folder: Path, *flags: str, env: Mapping[str, str] | None = None, python: str = sys.executable):
        self.folder, self.state, self.out = folder, folder / ".vertex_local", list[str]()
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [python, "-m", "vertex_local", "serve", "--port=0", *flags], cwd=folder,
            env={**os.environ, "PYTHONPATH": path, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        atexit.register(self.process.kill)  # whatever a test that fails leaves running
        for line in self.process.stdout:
            self.out.append(line.rstrip("\n"))
            if line.startswith("Ctrl-C"):
                break
        else:
            self.process.wait()
            raise ServiceError("it did not start: " + "\n".join(self.out))
        threading.Thread(target=self._drain, daemon=True).start()
        self.endpoint = endpoint.find(self.state, wait=60)
        self.port = int(self.endpoint.address.rpartition(":")[2])
        self.token = self.endpoint.token or ""
        self.tls = ssl.create_default_context(cafile=str(self.state / "serve" / "ca.pem"))

    def _drain(self) -> None:
        self.out.extend(line.rstrip("\n") for line in self.process.stdout)

    @property
    def init_arguments(self) -> dict[str, Any]:
        """The arguments of `aiplatform.init`."""
        return self.endpoint.init_arguments()

    def request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Send JSON with the token to a path such as `/v1/projects/p/…` and return the answer; errors are urllib's HTTPError."""
        with client.send(self.endpoint.url + path, self.endpoint.ca_file, method, body, self.token, timeout=300) as answer:
            return json.loads(answer.read() or b"{}")

    def reset(self) -> None:
        """End every job and remove all records and buckets; only with the flag --testing."""
        self.request("POST", "/reset", {})

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the service and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)


@pytest.fixture(scope="session")
def service_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """The one process of a session's tests."""
    started = LocalService(tmp_path_factory.mktemp("vertex_local"), "--testing")
    yield started
    started.stop()


@pytest.fixture
def service(service_process: LocalService, monkeypatch: pytest.MonkeyPatch) -> LocalService:
    """An empty service, to which this process's clients of Cloud Storage and those that it starts are led."""
    service_process.reset()
    for name, value in service_process.endpoint.environment().items():
        monkeypatch.setenv(name, value)
    if "google.cloud.aiplatform" in sys.modules:
        # PipelineJob.submit asks Google's Resource Manager whose the bucket is, and without a network waits a minute for it.
        monkeypatch.setattr("google.cloud.aiplatform.utils.resource_manager_utils.get_project_number", lambda *_, **__: PROJECT_NUMBER)
    return service_process
