"""A stand-in for the service on loopback that writes down what real clients send, and the scripts as processes."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import forked
import pytest
from conftest import ROOT, running

from vertex_local.job import schema
from vertex_submit import jobs

needs_gcloud = pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")
REAL = ("--project=real-project-1", "--region=europe-west4", "--bucket=real-bucket-1")  # no placeholder among them


class Service(http.server.ThreadingHTTPServer):
    """Creates whatever is posted under the number 4711; `states` are what one look after the other finds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str, dict]] = []
        self.states = ["JOB_STATE_PENDING"]
        self.refusal: dict | None = None
        self.created: dict = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def posted(self) -> dict:
        """Return the one body that was posted."""
        (found,) = [body for method, _, body in self.requests if method == "POST"]
        return found

    def sent(self, kind: jobs.Kind) -> dict:
        """Return the one job that was posted, in the API's JSON form: the SDK writes the numbers of enums."""
        return schema.to_fields(schema.to_message(self.posted(), kind.type))

    def refuse(self, code: int, message: str, *details: dict) -> None:
        """Answer every creation with an error from now on."""
        self.refusal = {"error": {"code": code, "message": message, "status": "X", "details": list(details)}}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        self.server.requests.append(("POST", self.path, body))
        if self.server.refusal:
            return self._answer(self.server.refusal["error"]["code"], self.server.refusal)
        name = self.path.partition("?")[0].partition("/v1/")[2] + "/4711"
        self.server.created = {**body, "name": name, "state": self.server.states[0]}
        self._answer(200, self.server.created)

    def do_GET(self) -> None:
        self.server.requests.append(("GET", self.path, {}))
        state = self.server.states.pop(0) if len(self.server.states) > 1 else self.server.states[0]
        error = {"error": {"code": 13, "message": "it broke\nin two lines"}} if state.endswith("FAILED") else {}
        self._answer(200, {**self.server.created, "state": state, **error})

    def _answer(self, code: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Service]:
    """Run the stand-in while the block lasts."""
    with Service() as service, running(service):
        yield service


def gcloud_variables(url: str, folder: Path) -> dict[str, str]:
    """Return what makes gcloud, and our scripts, talk to `url` with no account; gcloud's own files are kept in `folder`."""
    return {
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": url, "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_CONFIG": str(folder / "gcloud"), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1", "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
    }  # fmt: skip


def script(
    name: str, *args: object, cwd: Path, env: Mapping[str, str] | None = None, code: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """Run one of our scripts, its Python in a fork; `code` is what it must end with."""
    path = os.pathsep.join([str(Path(forked.python("local")).parent), os.environ["PATH"]])
    done = subprocess.run(
        [ROOT / "scripts" / name, *map(str, args)], cwd=cwd, env={**os.environ, "PATH": path, **(env or {})},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def call(
    main: Callable[[Sequence[str]], int], *args: object, cwd: Path, env: Mapping[str, str] | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a script's `main` inside this process, where the SDK is loaded already."""
    out, err, before, variables = io.StringIO(), io.StringIO(), os.getcwd(), dict(os.environ)
    os.chdir(cwd)
    os.environ.update(env or {})
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                ended = main(list(map(str, args)))
            except SystemExit as end:  # argparse
                ended = end.code
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(variables)
    assert ended == code, f"exit code {ended}\n{out.getvalue()}\n{err.getvalue()}"
    return subprocess.CompletedProcess(args, ended, out.getvalue(), err.getvalue())


def plain(message: object) -> object:
    """Return a REST body with 64-bit numbers as numbers: clients write them as text, job files as numbers."""
    if isinstance(message, dict):
        return {key: plain(value) for key, value in message.items()}
    if isinstance(message, list):
        return [plain(value) for value in message]
    return int(message) if isinstance(message, str) and message.isdecimal() else message
