"""What the submitting scripts say and do when the service refuses, falls silent, or wants to know who asks."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from google.auth.exceptions import DefaultCredentialsError, InvalidOperation
from test_cloud_support import REAL, Service, call, gcloud_variables, serving

from vertex_submit import cloud, sdk, submit

JOB = ("job", ROOT / "jobs" / "taxifare.yaml", *REAL, "--no_check")


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as found:
        yield found


@pytest.fixture
def env(service, tmp_path) -> dict[str, str]:
    return gcloud_variables(service.url, tmp_path)


def error_of(folder: Path, env: dict[str, str], *flags: str, code: int = 1) -> str:
    done = call(submit.main, *JOB, *flags, cwd=folder, env=env, code=code)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def info(reason: str) -> dict:
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}


@pytest.mark.parametrize(
    "code, message, details, expected",
    [
        (403, "The API is off.", [info("SERVICE_DISABLED")], "gcloud services enable aiplatform.googleapis.com --project=real-project-1"),
        (403, "Permission 'aiplatform.customJobs.create' denied.", [], "gcloud projects add-iam-policy-binding real-project-1"),
        (403, "It requires a quota project.", [], "gcloud auth application-default set-quota-project real-project-1"),
        (429, "The following quotas are exceeded: custom_model_training_cpus.", [], "gcloud beta quotas info list --service="),
    ],
)
def test_an_error_names_the_command_that_helps(tmp_path, service, env, code, message, details, expected):
    service.refuse(code, message, *details)
    said = error_of(tmp_path, env)
    assert f"the service answered: {code}: {message}" in said and expected in said
    assert len(service.requests) == 1, "it is not sent again"


def test_credentials_that_are_refused(tmp_path, service, env):
    service.refuse(401, "Request had invalid authentication credentials.")
    (tmp_path / "token").write_text("an old one")
    for flags in ([], ["--token_file=token"]):
        said = error_of(tmp_path, env, *flags)
        assert "the service refuses the credentials (" in said and "run `gcloud auth application-default login`" in said


def test_credentials_that_are_refused_are_no_wrong_name():
    """google-auth's InvalidOperation is a ValueError, as is what the SDK says of a name."""
    def model(name: str) -> None:
        raise InvalidOperation("anonymous")

    with pytest.raises(cloud.CloudError, match="the service refuses the credentials"), sdk.errors("p"):
        sdk.existing(model, "--model", "1")


def test_fields_that_the_service_names_are_told(tmp_path, service, env):
    violation = {"field": "job_spec.worker_pool_specs[0]", "description": "has no machine."}
    service.refuse(400, "Invalid.", {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]})
    assert "400: Invalid. (job_spec.worker_pool_specs[0]: has no machine.)" in error_of(tmp_path, env)


def test_a_creation_whose_answer_is_lost_is_not_repeated(tmp_path, service, env):
    service.refuse(503, "Try again.")
    assert "It may have been created all the same" in error_of(tmp_path, env)
    assert [method for method, _, _ in service.requests] == ["POST"]
    with socket.socket() as closed:  # bound, so that nobody else has the port, and not listening
        closed.bind(("127.0.0.1", 0))
        silent = {**env, "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": f"http://127.0.0.1:{closed.getsockname()[1]}/"}
        said = error_of(tmp_path, silent)
    assert "the service does not answer" in said and "It may have been created all the same" in said


# ------------------------------------------------------------------ who asks


@pytest.fixture
def nobody(monkeypatch) -> None:
    """Take away what Google's libraries would find on this machine."""

    def default(scopes: object) -> object:
        raise DefaultCredentialsError("none")

    monkeypatch.setattr("google.auth.default", default)


def write_gcloud(folder: Path, *lines: str) -> dict[str, str]:
    (folder / "bin").mkdir()
    (folder / "bin" / "gcloud").write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / "bin" / "gcloud").chmod(0o755)
    return {"PATH": os.pathsep.join([str(folder / "bin"), "/usr/bin", "/bin"])}


def test_a_token_of_a_file_goes_first(tmp_path, nobody, monkeypatch):
    (tmp_path / "token").write_text("of-the-file\n")
    assert sdk.credentials(str(tmp_path / "token"), local=True).token == "of-the-file"
    said = error_of(tmp_path, {"CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(tmp_path / "no-such")}, code=2)
    assert "--token_file: " in said and "no-such: cannot be read" in said


def test_gclouds_login_stands_in_for_missing_credentials(tmp_path, nobody, monkeypatch, capsys):
    path = write_gcloud(tmp_path, f'echo "$*" >>{tmp_path}/asked', "echo of-gcloud")
    monkeypatch.setenv("PATH", path["PATH"])
    found = sdk.credentials(None)
    assert found.token == "of-gcloud" and "gcloud's own login is used" in capsys.readouterr().err
    found.refresh(None)
    assert (tmp_path / "asked").read_text() == "auth print-access-token\n" * 2, "a token that ends is asked for again"
    (tmp_path / "bin" / "gcloud").write_text("#!/bin/sh\necho 'ERROR: (gcloud.auth) You do not have an active account.' >&2; exit 1\n")
    with pytest.raises(cloud.CloudError, match="gcloud ended with 1: ERROR: .* You do not have an active account"):
        sdk.credentials(None)


def test_without_any_credentials_the_remedy_is_named(tmp_path, nobody):
    (tmp_path / "bin").mkdir()
    said = error_of(tmp_path, {"PATH": str(tmp_path / "bin")})
    assert said.startswith("error: no credentials are found: run `gcloud auth application-default login`")
    assert not (tmp_path / ".vertex_local").exists(), "nothing was kept, for nothing could be sent"


def test_a_job_is_checked_before_credentials_are_asked_for(tmp_path, nobody, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 1))  # the check, which fails
    (tmp_path / "bin").mkdir()
    done = call(submit.main, *JOB[:-1], cwd=tmp_path, env={"PATH": str(tmp_path / "bin")}, code=2)
    assert done.stdout.startswith("$ python -m vertex_local check .vertex_local/submitted/")
    assert done.stderr.startswith("error: not submitted, for the reasons above") and "credentials" not in done.stderr


def test_a_token_does_not_go_over_plain_http(tmp_path):
    (tmp_path / "token").write_text("secret")
    assert "is not sent over plain HTTP" in error_of(tmp_path, {}, "--api_endpoint=http://example.org", "--token_file=token")
    for text in ("http://", "a b", "ftp://x"):
        done = call(submit.main, *JOB, f"--api_endpoint={text}", cwd=tmp_path, code=2)
        assert "--api_endpoint: takes HOST:PORT" in done.stderr


def test_google_itself_is_asked_by_grpc_and_any_other_service_by_rest():
    values = {"project": "p-1", "region": "europe-west4"}
    args = submit.build_parser("job").parse_args(["x.yaml", "--dry_run"])
    assert sdk.connect(values, args).url == "https://europe-west4-aiplatform.googleapis.com"
    assert "api_transport" not in sdk.connect(values, args).options
    args = submit.build_parser("job").parse_args(["x.yaml", "--dry_run", "--api_endpoint=localhost:8787"])
    assert sdk.connect(values, args).options | {"credentials": None} == {
        "api_endpoint": "localhost:8787", "api_transport": "rest", "credentials": None,
    }  # fmt: skip
