"""What the `test_serve*` files share: the service as a process, and a client that shows what goes over the wire."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from email.message import Message
from pathlib import Path

import forked
from conftest import ROOT
from test_local_support import alive, environ, wait_for

from vertex_local.testing import LocalService

PARENT = "/v1/projects/p/locations/us-central1"
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")


class Service(LocalService):
    """`python -m vertex_local serve` on a free port, and what tests ask of it; its models and trainers run in forks.

    It is a fork itself, whose signals and end `process` passes on, unless `fresh`: then `process` is the service.
    """

    def __init__(self, folder: Path, *flags: str, fresh: bool = False, **env: str):
        python = sys.executable if fresh else forked.python("local")
        flags = (f"--python={forked.interpreter()}", *flags)  # the last --python counts
        super().__init__(folder, *flags, env=environ(**env), python=python)

    def raw(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, Message, bytes]:
        """Send exactly these headers beside Host and Content-Length; return code, headers and body."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.tls)
        try:
            connection.request(method, path, body, {"Host": f"127.0.0.1:{self.port}", **(headers or {})})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def call(self, method: str, path: str, body: object = None, code: int = 200, base: str = PARENT) -> dict:
        """Send JSON with the token and return the answer, whose code must be `code`."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", **({"Content-Type": "application/json"} if data else {})}
        got, _, text = self.raw(method, base + path, data, headers)
        assert got == code, (got, text.decode(errors="replace"))
        return json.loads(text) if text.strip() else {}

    def storage(self, method: str, path: str, body: bytes | None = None, code: int = 200, **headers: str) -> tuple[Message, bytes]:
        headers = {"Authorization": f"Bearer {self.token}", **{name.replace("_", "-"): value for name, value in headers.items()}}
        got, answered, text = self.raw(method, path, body, headers)
        assert got == code, (got, text)
        return answered, text

    def create(self, source: str, name: str = "job", kind: str = "customJobs", **fields) -> str:
        """Create a custom job that runs Python source and return its id."""
        return self.call("POST", f"/{kind}", {"displayName": name, "jobSpec": job_spec(source), **fields})["name"].rpartition("/")[2]

    def ended(self, number: str, kind: str = "customJobs", seconds: float = 60) -> dict:
        """Wait for a job's end and return it."""
        return wait_for(lambda: (job := self.call("GET", f"/{kind}/{number}"))["state"].endswith(ENDED) and job, seconds)

    def reach(self, number: str, state: str, kind: str = "customJobs") -> dict:
        return wait_for(lambda: (job := self.call("GET", f"/{kind}/{number}"))["state"].endswith(state) and job)

    def log(self, number: str, replica: str = "workerpool0-0") -> str:
        path = self.state / "jobs" / number / "logs" / f"{replica}.log"
        return path.read_text() if path.exists() else ""

    def operation(self, answer: dict) -> dict:
        """Wait for an operation and return it."""
        name = answer["name"].partition("/operations/")[2]
        return wait_for(lambda: (found := self.call("GET", f"/operations/{name}"))["done"] and found)


def lead_sdk(service: Service, monkeypatch) -> None:
    """Lead the SDK and what it starts to a service, for one test."""
    from google.cloud import aiplatform

    for name, value in service.endpoint.environment().items():
        monkeypatch.setenv(name, value)
    aiplatform.init(**service.init_arguments)


def pool(source: str, *args: str, replicas: int = 1, **fields) -> dict:
    container = {"imageUri": "host/any:1", "command": ["python", "-c", source], "args": list(args)}
    return {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": replicas, "containerSpec": container, **fields}


def job_spec(source: str, *args: str, **fields) -> dict:
    return {"workerPoolSpecs": [pool(source, *args)], **fields}


def gone(pid: int) -> None:
    wait_for(lambda: not alive(pid))


def write_object(service: Service, name: str, content: str | bytes) -> str:
    """Put a file where `gs://bucket/name` lies and return that."""
    path = service.state / "buckets" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"gs://{name}"


def mark_of(process: subprocess.Popen) -> list[int]:
    """Return the processes whose parent is the service."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process.pid:
            found.append(int(entry))
    return found


def echo_service(folder, source: str = "", **options) -> Service:
    """Start a service whose models need no TensorFlow: they answer with their instances, after what `source` does with them."""
    program = folder / "echo"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys, time\nfor line in sys.stdin:\n    instances = json.loads(line)['instances']\n"
        f"    {source or 'pass'}\n    print(json.dumps({{'predictions': instances}}), flush=True)\n"
    )
    program.chmod(0o755)
    return Service(folder, f"--project_dir={ROOT}", f"--python={program}", **options)
