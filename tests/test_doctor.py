"""`python -m vertex_local doctor`: what it finds with stand-ins for Google's answers, without a network, gcloud, or right settings."""

from __future__ import annotations

import ast
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, running
from google.auth.exceptions import DefaultCredentialsError
from test_cloud_support import call

from vertex_local.local import engines
from vertex_submit.doctor import command, google_api, machine, project, quotas

SETTINGS = "project: real-project-1\nregion: europe-west4\nbucket: real-bucket-1\nrepository: trainers\ntag: latest\n"
PROJECT = "projects/real-project-1"
REPOSITORY = f"artifactregistry/v1/{PROJECT}/locations/europe-west4/repositories/trainers"
QUOTA = f"serviceusage/v1beta1/{PROJECT}/services/aiplatform.googleapis.com/consumerQuotaMetrics/aiplatform.googleapis.com%2F"
EVERYTHING = object()  # of the permissions that are asked for


def limits(**regions: int) -> dict:
    """Return a quota as Service Usage tells it: 2 everywhere, but in `regions`; a limit of 0 is left out."""
    named = [{"dimensions": {"region": name.replace("_", "-")}, **({"effectiveLimit": str(n)} if n else {})} for name, n in regions.items()]
    return {"consumerQuotaLimits": [{"unit": "1/{project}/{region}", "quotaBuckets": [{"effectiveLimit": "2"}, *named]}]}


def refusal(code: int, message: str, reason: str = "") -> tuple[int, dict]:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}] if reason else []
    return code, {"error": {"code": code, "message": message, "details": details}}


class Cloud(http.server.ThreadingHTTPServer):
    """Google's APIs for a project in which all is well; a test changes `answers`: of (code, content), content, or EVERYTHING."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str, str | None]] = []
        self.silent = threading.Event()  # set: no answer before the test's end
        self.over = threading.Event()
        names = ("aiplatform", "storage", "artifactregistry")
        self.answers: dict[str, object] = {
            f"aiplatform/v1/{PROJECT}/locations/europe-west4/customJobs": {},
            f"cloudbilling/v1/{PROJECT}/billingInfo": {"billingEnabled": True, "billingAccountName": "billingAccounts/01-02"},
            f"serviceusage/v1/{PROJECT}/services:batchGet": {
                "services": [{"name": f"projects/12/services/{name}.googleapis.com", "state": "ENABLED"} for name in names]
            },
            f"cloudresourcemanager/v3/{PROJECT}:testIamPermissions": EVERYTHING,
            "storage/b/real-bucket-1": {"location": "EUROPE-WEST4", "locationType": "region"},
            "storage/b/real-bucket-1/iam/testPermissions": EVERYTHING,
            REPOSITORY: {"format": "DOCKER"},
            f"{REPOSITORY}:testIamPermissions": EVERYTHING,
            f"{REPOSITORY}/packages/taxifare/tags/latest": {"name": "latest"},
            f"{QUOTA}custom_model_training_cpus": limits(europe_west4=42),
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Cloud

    def do_GET(self) -> None:
        self._serve(urllib.parse.parse_qs(self.path.partition("?")[2]).get("permissions", []))

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["permissions"])

    def _serve(self, permissions: list[str]) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        self.server.requests.append((self.command, path, self.headers.get("Authorization")))
        if self.server.silent.is_set():
            self.server.over.wait()
        found = self.server.answers.get(path, refusal(404, f"{path} is not there"))
        found = {"permissions": permissions} if found is EVERYTHING else found
        code, content = found if isinstance(found, tuple) else (200, found)
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def cloud(monkeypatch) -> Iterator[Cloud]:
    """Google's APIs, which the doctor is led to."""
    with Cloud() as server, running(server):
        for name in google_api.ADDRESSES:
            monkeypatch.setitem(google_api.ADDRESSES, name, f"http://127.0.0.1:{server.server_address[1]}/{name}/")
        yield server
        server.over.set()


@pytest.fixture
def env(tmp_path, monkeypatch) -> Iterator[dict[str, str]]:
    """A user with settings, a token, and a PATH with nothing but what the test puts there."""
    for name in [name for name in os.environ if name.startswith("CLOUDSDK_API_ENDPOINT_OVERRIDES_")]:
        monkeypatch.delenv(name)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "settings.yaml").write_text(SETTINGS)
    (tmp_path / "jobs" / "job.yaml").write_text((ROOT / "jobs" / "taxifare.yaml").read_text())
    (tmp_path / "token").write_text("a-token")
    (tmp_path / "bin").mkdir()
    engines._problem.cache_clear()
    yield {"PATH": str(tmp_path / "bin"), "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(tmp_path / "token"), "HOME": str(tmp_path)}
    engines._problem.cache_clear()


def program(folder: Path, name: str, *lines: str) -> None:
    path = folder / "bin" / name
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def doctor(folder: Path, env: dict[str, str], *args: str, code: int = 0) -> dict[str, list[dict]]:
    """Run the command with --json and return its findings by what they are about."""
    said = json.loads(call(command.main, "--json", *args, cwd=folder, env=env, code=code).stdout)
    assert said["can_send"] is (code == 0)
    found: dict[str, list[dict]] = {}
    for each in said["findings"]:
        found.setdefault(each["what"], []).append(each)
    return found


def one(found: dict[str, list[dict]], what: str) -> dict:
    (finding,) = found[what]
    return finding


# ------------------------------------------------------------------ the project


def test_a_project_in_which_all_is_well(tmp_path, cloud, env):
    found = doctor(tmp_path, env, "jobs/job.yaml")
    for what in ("service", "billing", "APIs", "permissions", "bucket", "repository", "images", "quotas", "credentials", "settings"):
        assert one(found, what)["level"] == "ok", found[what]
    assert "custom_model_training_cpus is 42 in europe-west4, the job needs 4" in one(found, "quotas")["text"]
    assert {token for _, _, token in cloud.requests} == {"Bearer a-token"}
    posts = {path.rpartition(":")[2] for method, path, _ in cloud.requests if method == "POST"}
    assert posts == {"testIamPermissions"}, "nothing is changed"


def test_one_line_each_for_people(tmp_path, cloud, env):
    cloud.answers[f"cloudbilling/v1/{PROJECT}/billingInfo"] = {"billingEnabled": False}
    done = call(command.main, "jobs/job.yaml", cwd=tmp_path, env=env, code=1)
    (line,) = [line for line in done.stdout.splitlines() if " billing " in line]
    assert line.startswith("missing ") and line.endswith("-> gcloud billing projects link real-project-1 --billing-account=ACCOUNT_ID")
    assert "1 missing" in done.stdout.splitlines()[-1] and "could not be sent" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    "path, answer, what, level, text, remedy",
    [
        (f"cloudbilling/v1/{PROJECT}/billingInfo", refusal(403, "No."), "billing", "not looked at", "403: No.", "--role=roles/viewer"),
        (
            f"cloudbilling/v1/{PROJECT}/billingInfo", refusal(403, "Off.", "SERVICE_DISABLED"), "billing", "not looked at", "403: Off.",
            "gcloud services enable cloudbilling.googleapis.com --project=real-project-1",
        ),
        (
            f"serviceusage/v1/{PROJECT}/services:batchGet", {"services": [{"name": "a/aiplatform.googleapis.com", "state": "ENABLED"}]},
            "APIs", "missing", "off: storage.googleapis.com, artifactregistry.googleapis.com",
            "gcloud services enable storage.googleapis.com artifactregistry.googleapis.com --project=real-project-1",
        ),
        (
            f"cloudresourcemanager/v3/{PROJECT}:testIamPermissions", {}, "permissions", "missing", "aiplatform.customJobs.create",
            "gcloud projects add-iam-policy-binding real-project-1 --member=user:YOU --role=roles/aiplatform.user",
        ),
        (
            "storage/b/real-bucket-1", refusal(404, "None."), "bucket", "missing", "gs://real-bucket-1 is not there",
            "gcloud storage buckets create gs://real-bucket-1 --project=real-project-1 --location=europe-west4 --uniform-bucket",
        ),
        ("storage/b/real-bucket-1", {"location": "US"}, "bucket", "warning", "lies in us, jobs run in europe-west4", "a bucket in europe"),
        (
            REPOSITORY, refusal(404, "None."), "repository", "missing", "trainers is not in europe-west4",
            "gcloud artifacts repositories create trainers --repository-format=docker --location=europe-west4 --project=real-project-1",
        ),
        (REPOSITORY, {"format": "PYTHON"}, "repository", "missing", "holds PYTHON", "another"),
        (f"{REPOSITORY}:testIamPermissions", {}, "repository", "warning", "may not push", "roles/artifactregistry.writer"),
        (
            f"{REPOSITORY}/packages/taxifare/tags/latest", refusal(404, "None."), "images", "missing",
            "docker.pkg.dev/real-project-1/trainers/taxifare:latest is not there", "scripts/build_image --trainer taxifare --push",
        ),
        (f"{QUOTA}custom_model_training_cpus", limits(), "quotas", "missing", "is 2 in europe-west4, the job needs 4", "iam-admin/quotas"),
        (f"{QUOTA}custom_model_training_cpus", limits(europe_west4=0), "quotas", "missing", "is 0 in europe-west4", "iam-admin/quotas"),
        (f"{QUOTA}custom_model_training_cpus", refusal(404, "x"), "quotas", "not looked at", "the job needs 4", "iam-admin/quotas"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_project(tmp_path, cloud, env, path, answer, what, level, text, remedy):
    cloud.answers[path] = answer
    finding = one(doctor(tmp_path, env, "jobs/job.yaml", code=1 if level == "missing" else 0), what)
    assert finding["level"] == level and text in finding["text"] and remedy in finding["remedy"], finding


@pytest.mark.parametrize(
    "answer, remedy",
    [
        (refusal(403, "The API is off.", "SERVICE_DISABLED"), "gcloud services enable aiplatform.googleapis.com --project=real-project-1"),
        (refusal(403, "Permission denied."), "--role=roles/aiplatform.user"),
        (refusal(403, "It requires a quota project."), "gcloud auth application-default set-quota-project real-project-1"),
        (refusal(401, "Invalid credentials."), "gcloud auth application-default login"),
    ],
)
def test_a_service_that_refuses_keeps_a_job_from_being_sent(tmp_path, cloud, env, answer, remedy):
    cloud.answers[f"aiplatform/v1/{PROJECT}/locations/europe-west4/customJobs"] = answer
    finding = one(doctor(tmp_path, env, code=1), "service")
    assert finding["level"] == "missing" and answer[1]["error"]["message"] in finding["text"] and remedy in finding["remedy"]


def test_an_account_that_the_job_names(tmp_path, cloud, env):
    text = (tmp_path / "jobs" / "job.yaml").read_text()
    (tmp_path / "jobs" / "job.yaml").write_text(f"serviceAccount: trainer@real-project-1.iam.gserviceaccount.com\n{text}")
    path = "iam/v1/projects/-/serviceAccounts/trainer@real-project-1.iam.gserviceaccount.com:testIamPermissions"
    cloud.answers[path] = {}
    assert "--role=roles/iam.serviceAccountUser" in one(doctor(tmp_path, env, "jobs/job.yaml", code=1), "account")["remedy"]
    cloud.answers[path] = EVERYTHING
    assert one(doctor(tmp_path, env, "jobs/job.yaml"), "account")["level"] == "ok"


def test_a_study_needs_its_quotas_for_all_trials_at_once(tmp_path, cloud, env):
    (tmp_path / "jobs" / "job.yaml").write_text((ROOT / "jobs" / "taxifare-tuning.yaml").read_text())
    cloud.answers[f"{QUOTA}custom_model_training_cpus"] = limits(europe_west4=7)
    assert "the job needs 8" in one(doctor(tmp_path, env, "jobs/job.yaml", code=1), "quotas")["text"]


@pytest.mark.parametrize(
    "machine, replicas, preemptible, expected",
    [
        ({"machineType": "e2-standard-8"}, 3, False, {"custom_model_training_cpus": 24}),
        ({"machineType": "n2-highmem-16"}, 1, True, {"custom_model_training_preemptible_n2_cpus": 16}),
        (
            {"machineType": "n1-standard-8", "acceleratorType": "NVIDIA_TESLA_T4", "acceleratorCount": 2}, 2, False,
            {"custom_model_training_cpus": 16, "custom_model_training_nvidia_t4_gpus": 4},
        ),
        (
            {"machineType": "a3-highgpu-8g", "acceleratorType": "NVIDIA_H100_80GB", "acceleratorCount": 8}, 1, True,
            {"custom_model_training_preemptible_a3_cpus": 208, "custom_model_training_preemptible_nvidia_h100_gpus": 8},
        ),
        ({"machineType": "ct5lp-hightpu-4t", "tpuTopology": "2x2"}, 1, False, {"custom_model_training_tpu_v5e": 4}),
    ],
)  # fmt: skip
def test_the_quotas_of_machines(machine, replicas, preemptible, expected):
    assert quotas.needed([(machine, replicas)], preemptible) == (expected, [])


def test_machines_whose_quotas_are_not_known_are_named():
    names = ["z9-huge", "ct6e-standard-4t"]
    assert quotas.needed([({"machineType": name}, 1) for name in names], False) == ({}, names)


# ------------------------------------------------------------------ no network, nobody logged in


def test_no_network(tmp_path, env, monkeypatch):
    with socket.socket() as closed:  # bound, so that nobody else has the port, and not listening
        closed.bind(("127.0.0.1", 0))
        for name in google_api.ADDRESSES:
            monkeypatch.setitem(google_api.ADDRESSES, name, f"http://127.0.0.1:{closed.getsockname()[1]}/")
        found = doctor(tmp_path, env, code=1)
    assert one(found, "service")["level"] == "missing" and "does not answer" in one(found, "service")["text"]
    assert one(found, "bucket")["level"] == "not looked at", "what is not known is not called missing"


def test_it_never_hangs(tmp_path, cloud, env):
    cloud.silent.set()
    found = doctor(tmp_path, env, "--seconds=1", code=1)
    assert one(found, "service")["level"] == "missing" and one(found, "service")["text"] == "no answer within 1 s"
    assert one(found, "quotas" if "quotas" in found else "bucket")["level"] == "not looked at"


def test_ctrl_c_ends_it(tmp_path, cloud, env):
    cloud.silent.set()
    led = {f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{name}": f"http://127.0.0.1:{cloud.server_address[1]}/" for name in ("AIPLATFORM", "STORAGE")}
    words = [sys.executable, "-m", "vertex_local", "doctor"]
    with subprocess.Popen(words, cwd=tmp_path, env={**env, **led, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not cloud.requests:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 128 + signal.SIGINT


def test_a_token_is_not_sent_over_plain_http(tmp_path, env):
    far = {**env, "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": "http://storage.example.org/"}
    google = google_api.Google(None, "europe-west4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", far["CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"])
        with pytest.raises(google_api.Silent, match="not sent over plain HTTP"):
            google.ask("storage", "b/x")


def test_nobody_is_logged_in_and_there_is_no_gcloud(tmp_path, cloud, env, monkeypatch):
    def default(scopes: object) -> object:
        raise DefaultCredentialsError("none")

    monkeypatch.setattr("google.auth.default", default)
    monkeypatch.delenv("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", raising=False)
    alone = {name: value for name, value in env.items() if name != "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"}
    found = doctor(tmp_path, alone, code=1)
    assert one(found, "gcloud")["level"] == "warning" and "not on PATH" in one(found, "gcloud")["text"]
    assert one(found, "credentials")["text"] == "no credentials are found"
    assert one(found, "credentials")["remedy"] == "gcloud auth application-default login"
    assert one(found, "project")["level"] == "not looked at" and not cloud.requests


def test_offline_asks_nobody(tmp_path, cloud, env):
    assert one(doctor(tmp_path, env, "--offline"), "project")["text"] == "--offline was given"
    assert not cloud.requests


def test_the_service_on_this_machine_answers_for_what_it_knows(tmp_path, cloud, env):
    url = f"http://127.0.0.1:{cloud.server_address[1]}"
    (tmp_path / "jobs" / "settings.yaml").write_text((ROOT / "jobs" / "settings.yaml").read_text())
    cloud.answers |= {"v1/projects/your-project/locations/us-central1/customJobs": {}, "storage/v1/b/your-bucket": {"location": "US"}}
    local = {
        **env, "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": f"{url}/", "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{url}/storage/v1/",
    }  # fmt: skip
    found = doctor(tmp_path, local)
    assert one(found, "settings")["level"] == "ok", "placeholders are good enough here"
    assert url in one(found, "service")["text"] and one(found, "bucket")["text"].endswith("on this machine")
    assert one(found, "project")["text"].startswith("billing, APIs, permissions, repository: the service on this machine")
    assert len(cloud.requests) == 2
    del cloud.answers["storage/v1/b/your-bucket"]
    assert one(doctor(tmp_path, local), "bucket")["remedy"] == "gcloud storage buckets create gs://your-bucket"


# ------------------------------------------------------------------ settings, files, this machine


@pytest.mark.parametrize(
    "text, expected",
    [
        ((ROOT / "jobs" / "settings.yaml").read_text(), "project is the placeholder your-project"),
        ("region: europe-west4\n", "project is not set"),
        ("projekt: x\n", "'projekt' is not a setting"),
        ("project: [\n", "cannot be read"),
    ],
)
def test_wrong_settings(tmp_path, cloud, env, text, expected):
    (tmp_path / "jobs" / "settings.yaml").write_text(text)
    found = doctor(tmp_path, env, code=1)
    assert expected in found["settings"][0]["text"] and one(found, "project")["level"] == "not looked at"
    assert not cloud.requests


def test_flags_win_over_the_settings(tmp_path, cloud, env):
    (tmp_path / "jobs" / "settings.yaml").write_text((ROOT / "jobs" / "settings.yaml").read_text())
    doctor(tmp_path, env, "--project=real-project-1", "--region=europe-west4", "--bucket=real-bucket-1", "jobs/job.yaml")
    assert ("GET", f"{REPOSITORY}/packages/taxifare/tags/latest", "Bearer a-token") in cloud.requests


def test_a_job_file_that_cannot_be_read(tmp_path, cloud, env):
    assert "no-such.yaml" in one(doctor(tmp_path, env, "jobs/no-such.yaml", code=1), "job")["text"]
    (tmp_path / "jobs" / "job.yaml").write_text("workerPoolSpecs: [{replicaCont: 1}]\n")
    assert "replicaCont" in one(doctor(tmp_path, env, "jobs/job.yaml", code=1), "job")["text"]


def test_gcloud_and_docker(tmp_path, cloud, env):
    program(tmp_path, "gcloud", "exit 0")
    program(tmp_path, "docker", "exit 0")
    found = doctor(tmp_path, env)
    assert one(found, "gcloud")["remedy"] == "gcloud auth login"
    assert one(found, "containers")["remedy"] == "gcloud auth configure-docker europe-west4-docker.pkg.dev"
    program(tmp_path, "gcloud", "echo me@example.org")
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text('{"credHelpers": {"europe-west4-docker.pkg.dev": "gcloud"}}')
    found = doctor(tmp_path, env)
    assert one(found, "gcloud")["text"] == "logged in as me@example.org"
    assert one(found, "containers")["text"] == "docker works"


def test_a_package_that_is_missing(tmp_path, cloud, env, monkeypatch):
    monkeypatch.setitem(machine.EXTRAS, "tune", ("no-such-package",))
    assert [each["remedy"] for each in doctor(tmp_path, env)["packages"]] == ["", "pip install '.[tune]'", ""]
    monkeypatch.setitem(machine.EXTRAS, "cloud", ("no-such-package",))
    found = doctor(tmp_path, env, code=1)
    assert found["packages"][0]["level"] == "missing" and "no-such-package" in found["packages"][0]["text"]


def test_the_extras_are_those_of_setup():
    tree = ast.parse((ROOT / "setup.py").read_text())
    named = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    (extras,) = [ast.literal_eval(node.value) for node in named if node.targets[0].id == "EXTRAS"]
    for name, packages in machine.EXTRAS.items():
        assert list(packages) == [package.partition(">")[0] for package in extras[name]]


def test_the_page_names_what_is_asked_for():
    page = (ROOT / "docs" / "first-job.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "vertex_submit" / "doctor").glob("*.py"))
    roles = set(re.findall(r"roles/[\w.]+", source)) - {"roles/viewer"}
    for name in (*project.APIS, *roles, "custom_model_training_cpus", "custom_model_training_tpu_v5e"):
        assert name in page, name


def test_it_is_a_command_of_vertex_local(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vertex_local", "doctor", "--offline", "--json", "--project=p-1", "--region=r", "--bucket=b-1"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and json.loads(done.stdout)["can_send"] is True, done.stderr
