"""How clients find the service: `env`, its readiness, the SDK and storage with nothing but what is printed, no thief beside it."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from test_local_support import environ
from test_serve_support import PARENT, Service, job_spec

from vertex_local.__main__ import main
from vertex_local.errors import UserError
from vertex_local.serve import endpoint, tls
from vertex_local.testing import service, service_process  # noqa: F401 - fixtures

JOB = {"displayName": "x", "jobSpec": job_spec("pass")}
SCRIPT = """
import sys
exec(sys.argv[1])
from google.cloud import aiplatform, storage
aiplatform.initializer.global_config._staging_bucket = "gs://script-bucket"
storage.Client().create_bucket("script-bucket")
job = aiplatform.CustomJob.from_local_script("local", sys.argv[2], "us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-17.py310:latest")
job.submit()
print(job.resource_name)
"""


def run(command: list, folder, **env: str) -> str:
    done = subprocess.run(command, cwd=folder, env=environ(**env), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def env_command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "vertex_local", "env", *flags]


@contextlib.contextmanager
def thief(port: int):
    """Listen where `localhost` leads first, as another user of the machine may; yield what it is sent."""
    got: list[bytes] = []
    with socket.socket(socket.AF_INET6) as listening:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listening.bind(("::1", port))
        except OSError as error:
            pytest.skip(f"no ::1 here: {error}")
        listening.listen()

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.settimeout(5)
                        got.append(connection.recv(65536))

        threading.Thread(target=take, daemon=True).start()
        yield got


def test_a_shell_and_the_snippet_are_all_that_from_local_script_needs(service, tmp_path):  # noqa: F811
    """What `serve` prints, evaluated as it is; the SDK stages the script without credentials, and no thief gets a byte."""
    (tmp_path / "task.py").write_text("print('hello')")
    (tmp_path / "client.py").write_text(SCRIPT)
    text = "\n".join(service.out)
    snippet = text[text.index("import google") : text.index("\n\nNot to be redirected")]
    line = next(line for line in service.out if line.startswith("eval "))
    line = line.replace("python", shlex.quote(sys.executable)).replace("env)", f"env --state_dir={shlex.quote(str(service.state))})")
    shell = f'{line}\n{shlex.quote(sys.executable)} client.py "$SNIPPET" task.py'
    with thief(service.port) as got:
        out = run(["bash", "-euc", shell], tmp_path, SNIPPET=snippet)
    name = out.split()[-1]
    assert "/customJobs/" in name and not got
    assert service.request("GET", f"/v1/{name}")["displayName"] == "local"
    assert [path.suffix for path in (service.state / "buckets" / "script-bucket").rglob("*.gz")], "the script's package was staged"


def test_nothing_that_clients_are_given_leads_elsewhere(service):  # noqa: F811
    found = service.endpoint
    assert not [value for value in found.environment().values() if "localhost" in value]
    assert "localhost" not in "\n".join(service.out)
    assert run(env_command(f"--state_dir={service.state}", "--python"), service.folder).strip() == found.snippet()
    assert run(env_command("--wait=5"), service.folder).strip() == found.exports()


def test_the_key_in_a_storage_url_opens_storage_and_nothing_else(tmp_path):
    own = Service(tmp_path)
    prefix = f"/key/{own.endpoint.key}"
    try:
        assert own.raw("POST", f"{prefix}/storage/v1/b", b'{"name": "key-bucket"}', {"Content-Type": "application/json"})[0] == 200
        upload = f"{prefix}/upload/storage/v1/b/key-bucket/o?uploadType=resumable&name=x"
        code, headers, _ = own.raw("POST", upload, b"{}", {"Content-Type": "application/json"})
        assert code == 200 and headers["Location"].startswith(f"{own.endpoint.storage_url}/upload/"), "links carry the key on"
        for path in (f"{prefix}{PARENT}/customJobs", f"{prefix}/", f"{prefix[:-1]}/storage/v1/b", "/key//storage/v1/b", "/storage/v1/b"):
            assert own.raw("GET", path)[0] == 401, path
        assert own.raw("GET", f"{prefix}/storage/v1/b", headers={"Origin": "https://evil.example"})[0] == 403
        assert own.raw("GET", f"{prefix}/storage/v1/b", headers={"Host": "evil.example"})[0] == 403
        assert own.endpoint.key not in (own.state / "serve" / "access.log").read_text()
    finally:
        own.stop()


def test_a_service_that_does_not_run_is_one_line(tmp_path, capsys):
    assert main(["env", f"--state_dir={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no service runs" in error and "vertex_local serve" in error
    own = Service(tmp_path, fresh=True)
    assert main(["env", f"--state_dir={own.state}"]) == 0
    assert "export STORAGE_EMULATOR_HOST=https://127.0.0.1:" in capsys.readouterr().out
    own.process.kill()
    own.process.wait()
    assert main(["env", f"--state_dir={own.state}", "--wait=1"]) == 1, "its file is there, but nobody answers"
    (own.state / "serve" / endpoint.FILE).write_text("{}")
    assert main(["env", f"--state_dir={own.state}"]) == 1 and "endpoint.json" in capsys.readouterr().err


def test_a_second_start_does_not_grow_what_is_trusted(tmp_path, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    first = tls.make(tmp_path).bundle.read_text()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca-bundle.pem"))
    second = tls.make(tmp_path).bundle.read_text()
    assert first.count("BEGIN CERTIFICATE") == second.count("BEGIN CERTIFICATE") > 2 and first != second


def test_what_is_trusted_and_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.pem").write_text("x")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "mine.pem"))
    monkeypatch.setattr(Path, "read_bytes", lambda path: open(tmp_path / "none", "rb"))  # a mode would not stop root
    with pytest.raises(UserError, match="REQUESTS_CA_BUNDLE: .*mine.pem cannot be read: No such file.* Name a file of certificates"):
        tls.make(tmp_path)


def test_readiness_needs_no_token(service):  # noqa: F811
    own = Service.raw(service, "GET", "/healthz")
    assert own[0] == 200 and Service.raw(service, "GET", "/healthz", headers={"Origin": "x"})[0] == 403


def test_a_test_leaves_a_job_and_a_bucket(service):  # noqa: F811
    """The first of two tests that share a process; the second finds none of it."""
    service.request("POST", f"{PARENT}/customJobs", JOB)
    service.request("POST", "/storage/v1/b", {"name": "left-bucket"})
    assert os.environ["STORAGE_EMULATOR_HOST"] == service.endpoint.storage_url


def test_the_next_test_finds_neither(service):  # noqa: F811
    assert service.request("GET", f"{PARENT}/customJobs") == {}
    assert "items" not in service.request("GET", "/storage/v1/b") or service.request("GET", "/storage/v1/b")["items"] == []


def test_what_is_missing_is_named(service):  # noqa: F811
    for path, says in (
        ("/studies", "does not imitate Vizier studies"),
        ("/tensorboards/1:readUsage", "does not imitate Figures on TensorBoard's use"),
        ("/featurestores/x/entityTypes", "does not imitate Feature Store"),
        ("/endpoints/1:fly", "is not"),
    ):
        code, _, text = Service.raw(service, "GET", PARENT + path, headers={"Authorization": f"Bearer {service.token}"})
        assert code == 501 and says in text.decode(), text


def test_a_library_that_is_missing_is_named_with_its_remedy(tmp_path):
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('no', name='uvicorn')")
    command = [sys.executable, "-m", "vertex_local", "serve"]
    env = environ(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: serve needs the package uvicorn: pip install '.[serve]'.\n"


def test_ours_is_the_checkout_that_is_tested():
    assert str(ROOT) in endpoint.__file__
