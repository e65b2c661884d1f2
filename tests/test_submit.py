"""The submitting scripts: what the real SDK sends to a stand-in for the service, what they print, what they refuse."""

from __future__ import annotations

import base64
import http.server
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT, running
from test_cloud_support import REAL, Service, call, gcloud_variables, needs_gcloud, script, serving

from vertex_local.job import job_file, schema
from vertex_local.local import packages
from vertex_submit import cloud, deploy, jobs, package, pipeline, sdk, submit

JOBS = ROOT / "jobs"
FLAGS = (*REAL, "--no_check", "--poll=0.1")


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as found:
        yield found


@pytest.fixture
def gcloud(service, tmp_path) -> dict[str, str]:
    return gcloud_variables(service.url, tmp_path)


@pytest.fixture
def fake_gcloud(tmp_path) -> dict[str, str]:
    """A `gcloud` on PATH that writes down its arguments and answers with a job, or ends with GCLOUD_CODE."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gcloud").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" "" >>{tmp_path}/gcloud.log\n'
        '[ -z "$GCLOUD_CODE" ] || { echo "ERROR: (gcloud.ai) INVALID_ARGUMENT: no such region." >&2; exit "$GCLOUD_CODE"; }\n'
        'echo "${GCLOUD_SAYS:-{\\"name\\": \\"projects/1/locations/r/customJobs/4711\\", \\"state\\": \\"JOB_STATE_PENDING\\"\\}}"\n'
    )
    (folder / "gcloud").chmod(0o755)
    return {"PATH": os.pathsep.join([str(folder), str(Path(sys.executable).parent), "/usr/bin", "/bin"])}


def asked(folder: Path) -> list[list[str]]:
    return [block.splitlines() for block in (folder / "gcloud.log").read_text().split("\n\n") if block]


def last_error(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.splitlines()
    assert lines and lines[-1].startswith("error: ") and "Traceback" not in done.stderr, done.stderr
    return lines[-1]


# ------------------------------------------------------------------ submit_job


def test_submitting_returns_at_once_with_the_id_and_the_commands(tmp_path, service, gcloud):
    job = JOBS / "taxifare.yaml"
    flags = (*FLAGS, "--labels=team=fares,stage=try", "--base_output_dir=gs://other-bucket/run-2")
    done = script("submit_job", job, *flags, "--", "--num_evals=3", cwd=tmp_path, env=gcloud)
    body = service.sent(jobs.CUSTOM)
    expected = job_file.read(job, {"project": "real-project-1", "bucket": "real-bucket-1"}).with_args(["--num_evals=3"])
    assert body["displayName"] == "taxifare" and body["labels"] == {"team": "fares", "stage": "try"}
    assert body["jobSpec"]["baseOutputDirectory"] == {"outputUriPrefix": "gs://other-bucket/run-2"}
    container = body["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]
    assert container["args"] == list(expected.pools[0].args)
    assert container["imageUri"] == "europe-west4-docker.pkg.dev/real-project-1/trainers/taxifare:latest"
    (kept,) = (tmp_path / ".vertex_local" / "submitted").iterdir()
    assert yaml.safe_load(kept.read_text()) == body["jobSpec"], "the very message that was sent is kept"
    assert f"--config={kept.relative_to(tmp_path)}" in done.stdout.splitlines()[0]
    name = "projects/real-project-1/locations/europe-west4/customJobs/4711"
    assert f"submitted custom job {name}\n" in done.stdout
    where = "4711 --project=real-project-1 --region=europe-west4"
    assert f"$ gcloud ai custom-jobs stream-logs {where}\n" in done.stdout
    assert f"$ gcloud ai custom-jobs cancel {where}\n" in done.stdout
    assert "/agent-platform/locations/europe-west4/training/4711?project=real-project-1\n" in done.stdout
    assert [method for method, _, _ in service.requests] == ["POST"], "it does not wait"


def test_wait_follows_a_job_that_fails(tmp_path, service, gcloud):
    service.states = ["JOB_STATE_PENDING", "JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_RUNNING", "JOB_STATE_FAILED"]
    done = script("submit_job", JOBS / "taxifare.yaml", *FLAGS, "--wait", cwd=tmp_path, env=gcloud, code=1)
    progress = [line.partition(",")[0] for line in done.stdout.splitlines() if re.fullmatch(r"\w+, \d+ s", line)]
    assert progress == ["pending", "running", "failed"], "one line for each change"
    assert last_error(done) == "error: the job ended as FAILED: it broke in two lines"


def test_an_evaluator_is_sent_with_its_empty_pool(tmp_path, service, gcloud):
    service.states = ["JOB_STATE_PENDING", "JOB_STATE_SUCCEEDED"]
    job = JOBS / "taxifare-evaluator.yaml"
    done = call(submit.main, "job", job, *FLAGS, "--wait", "--display_name=mine", "--", "--lr=0.1", cwd=tmp_path, env=gcloud)
    body = service.sent(jobs.CUSTOM)
    assert body["displayName"] == "mine" and body["jobSpec"]["workerPoolSpecs"][2] == {}
    used = [pool for pool in body["jobSpec"]["workerPoolSpecs"] if pool]
    assert [pool["containerSpec"]["args"][-1] for pool in used] == ["--lr=0.1"] * 3
    (method, path, _) = service.requests[0]
    assert (method, path.partition("?")[0]) == ("POST", "/v1/projects/real-project-1/locations/europe-west4/customJobs")
    (kept,) = (tmp_path / ".vertex_local" / "submitted").iterdir()
    assert json.loads(kept.read_text()) == body and f"POST {service.url}v1/projects/real-project-1" in done.stdout
    assert "gcloud cannot send it, for it refuses the file's empty pool" in done.stdout


def test_a_reduction_server_keeps_its_own_arguments(tmp_path, service, gcloud):
    call(submit.main, "job", JOBS / "taxifare-reduction-server.yaml", *FLAGS, "--", "--lr=0.1", cwd=tmp_path, env=gcloud)
    chief, worker, server = service.sent(jobs.CUSTOM)["jobSpec"]["workerPoolSpecs"]
    assert chief["containerSpec"]["args"][-1] == worker["containerSpec"]["args"][-1] == "--lr=0.1"
    assert "args" not in server["containerSpec"]


def test_the_services_refusal_is_one_line(tmp_path, service, gcloud):
    service.refuse(400, "machine type n1-standard-4 is not supported.")
    for job in ("taxifare", "taxifare-evaluator"):
        done = call(submit.main, "job", JOBS / f"{job}.yaml", *FLAGS, cwd=tmp_path, env=gcloud, code=1)
        assert "machine type n1-standard-4 is not supported." in last_error(done) and done.stderr.count("\n") == 1


def test_the_whole_custom_job_is_told_by_flags(tmp_path, service, gcloud):
    """A file with displayName, labels and key around the spec: gcloud's --config takes the spec only."""
    inner = yaml.safe_load(job_file.read_text(JOBS / "taxifare.yaml", {"project": "real-project-1", "bucket": "real-bucket-1"}))
    whole = {"displayName": "mine", "labels": {"a": "b"}, "encryptionSpec": {"kmsKeyName": "projects/p/k"}, "jobSpec": inner}
    (tmp_path / "whole.json").write_text(json.dumps(whole))
    said = call(submit.main, "job", "whole.json", *REAL, "--no_check", "--labels=c=d", cwd=tmp_path, env=gcloud).stdout
    assert {"--display-name=mine", "--labels=a=b,c=d", "--kms-key=projects/p/k"} <= set(shlex.split(said.splitlines()[0]))
    assert service.sent(jobs.CUSTOM) == whole | {"labels": {"a": "b", "c": "d"}}
    (kept,) = (tmp_path / ".vertex_local" / "submitted").iterdir()
    assert yaml.safe_load(kept.read_text()) == inner


def test_a_file_is_never_written_over_another(tmp_path, gcloud):
    for _ in range(3):
        call(submit.main, "job", JOBS / "taxifare.yaml", *REAL, "--no_check", cwd=tmp_path, env=gcloud)
    assert len(list((tmp_path / ".vertex_local" / "submitted").iterdir())) == 3
    assert cloud.keep("1", "x.yaml", tmp_path) != cloud.keep("2", "x.yaml", tmp_path)


def test_a_dry_run_prints_and_does_nothing(tmp_path, fake_gcloud):
    done = script("submit_job", JOBS / "taxifare-sdist.yaml", "--dry_run", "--", "--num_evals=9", cwd=tmp_path, env=fake_gcloud)
    header, *text, command = done.stdout.splitlines()
    assert header == "# .vertex_local/submitted/TIME-taxifare-sdist.yaml" and command.startswith("$ gcloud ai custom-jobs create ")
    (pool,) = yaml.safe_load("\n".join(text))["workerPoolSpecs"]
    assert pool["pythonPackageSpec"]["args"][-2:] == ["--num_evals=2", "--num_evals=9"]
    assert "past its end of availability (2026-07-11)" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bin"], "neither files nor gcloud"


@pytest.mark.parametrize(
    "args, expected",
    [
        ([JOBS / "taxifare.yaml"], "--project: your-project is a placeholder"),
        ([JOBS / "taxifare.yaml", "--project=p-1"], "taxifare.yaml:20: your-bucket is a placeholder"),
        ([JOBS / "taxifare.yaml", *REAL, "--base_output_dir=gs://your-bucket/x"], "taxifare.yaml: your-bucket is a placeholder"),
        ([JOBS / "no-such.yaml"], "no-such.yaml"),
        ([JOBS / "taxifare-tuning.yaml", *REAL], "this is a HyperparameterTuningJob"),
        (["plain.yaml"], "--project: not set: give it, or put it into settings.yaml"),
    ],
)
def test_what_is_refused_before_anything_is_sent(tmp_path, fake_gcloud, args, expected):
    (tmp_path / "plain.yaml").write_text("workerPoolSpecs: [{containerSpec: {imageUri: h/taxifare:1}}]")
    done = call(submit.main, "job", *args, "--no_check", cwd=tmp_path, env=fake_gcloud, code=2)
    assert expected in last_error(done) and done.stderr.count("\n") == 1
    assert not (tmp_path / "gcloud.log").exists() and not (tmp_path / ".vertex_local").exists()


def test_placeholders_are_good_enough_for_a_service_on_this_machine(tmp_path, service, gcloud):
    call(submit.main, "job", JOBS / "taxifare.yaml", "--no_check", cwd=tmp_path, env=gcloud)
    assert len(service.requests) == 1
    far = {**gcloud, "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": "http://localhost.example.org/"}
    assert "placeholder" in last_error(call(submit.main, "job", JOBS / "taxifare.yaml", "--no_check", cwd=tmp_path, env=far, code=2))


def test_a_failed_check_stops_it_and_its_command_is_printed(tmp_path, service, gcloud):
    job = tmp_path / "job.yaml"
    text = job_file.read_text(JOBS / "taxifare.yaml", {"project": "real-project-1", "bucket": "real-bucket-1"})
    job.write_text(text.replace("--num_evals", "--num_evalz"))
    done = script("submit_job", job, *REAL, cwd=tmp_path, env=gcloud, code=2)
    assert done.stdout.startswith("$ python -m vertex_local check ")
    assert "not submitted" in last_error(done) and not service.requests


@pytest.mark.slow
def test_the_check_sees_what_flags_changed(tmp_path, service, gcloud):
    """A file without baseOutputDirectory is refused, for its outputs would be lost; with --base_output_dir it is fine."""
    container = {"imageUri": "host/any:1", "command": ["python", "-c", "print(1)"]}
    pool = {"machineSpec": {"machineType": "n1-standard-4"}, "containerSpec": container}
    (tmp_path / "job.json").write_text(json.dumps({"workerPoolSpecs": [pool]}))
    done = script("submit_job", "job.json", *REAL, cwd=tmp_path, env=gcloud, code=2)
    assert "baseOutputDirectory: is not given" in done.stdout and not service.requests
    done = script("submit_job", "job.json", *REAL, "--base_output_dir=gs://real-bucket-1/x", cwd=tmp_path, env=gcloud)
    kept = max((tmp_path / ".vertex_local" / "submitted").iterdir())
    assert done.stdout.startswith(f"$ python -m vertex_local check {kept.relative_to(tmp_path)} ") and "submitted custom job" in done.stdout
    pipeline = ("submit_training_pipeline", "job.json", *REAL, "--no_model", "--serving=h/s:1", "--base_output_dir=gs://real-bucket-1/x")
    assert "submitted training pipeline" in script(*pipeline, cwd=tmp_path, env=gcloud).stdout


# ------------------------------------------------------------------ gcloud builds the image


def test_gclouds_failure_and_its_absence_are_one_line(tmp_path, fake_gcloud, gcloud):
    words = ("job", JOBS / "taxifare.yaml", *REAL, "--no_check", "--autopackage")
    call(submit.main, *words, cwd=tmp_path, env={**gcloud, **fake_gcloud})
    (asked_for,) = asked(tmp_path)
    assert asked_for[:3] == ["ai", "custom-jobs", "create"] and asked_for[-1] == "--format=json"
    failing = {**gcloud, **fake_gcloud, "GCLOUD_CODE": "1"}
    done = call(submit.main, *words, cwd=tmp_path, env=failing, code=1)
    assert last_error(done) == "error: gcloud ended with 1: ERROR: (gcloud.ai) INVALID_ARGUMENT: no such region."
    (tmp_path / "bare").mkdir()
    done = call(submit.main, *words, cwd=tmp_path, env={**gcloud, "PATH": str(tmp_path / "bare")}, code=1)
    assert last_error(done).startswith("error: gcloud is not on PATH: install it, or give --dry_run")


def test_the_lines_of_the_build_stand_before_gclouds_answer(tmp_path, fake_gcloud, gcloud):
    """`gcloud ai custom-jobs create` streams what `docker build` says to its own stdout."""
    answer = json.dumps({"name": "projects/1/locations/r/customJobs/4711", "jobSpec": {"workerPoolSpecs": [{}]}}, indent=2)
    words, env = ("job", JOBS / "taxifare.yaml", *REAL, "--no_check", "--autopackage"), {**gcloud, **fake_gcloud}
    for build in ("", "Step 1/9 : FROM python\n", "{\n  no JSON\n{}\nSuccessfully built 0123\n"):
        done = call(submit.main, *words, cwd=tmp_path, env={**env, "GCLOUD_SAYS": build + answer})
        assert "submitted custom job projects/1/locations/r/customJobs/4711\n  state   PENDING\n" in done.stdout
    done = call(submit.main, *words, cwd=tmp_path, env={**env, "GCLOUD_SAYS": "Done."}, code=1)
    assert "see `gcloud ai custom-jobs list` before you send it again" in last_error(done)


# ------------------------------------------------------------------ following a job


def test_ctrl_c_stops_following_and_not_the_job(tmp_path, service, gcloud):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with subprocess.Popen(
        [ROOT / "scripts" / "submit_job", JOBS / "taxifare.yaml", *REAL, "--no_check", "--wait", "--poll=30"], cwd=tmp_path,
        env={**os.environ, **gcloud, "PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("pending"):
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "stopped following; the job goes on." in err
    assert [method for method, _, _ in service.requests] == ["POST", "GET"], "nobody asked to cancel it"


def test_following_outlives_a_few_failed_questions():
    answers = [cloud.CloudError("no answer")] * (cloud.PATIENCE - 1) + [{"state": "JOB_STATE_SUCCEEDED"}]

    def look():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert cloud.follow(look, 0.001, threading.Event(), lambda job: "") == 0
    answers[:] = [cloud.CloudError("no answer")] * cloud.PATIENCE
    with pytest.raises(cloud.CloudError, match="the job goes on: no answer"):
        cloud.follow(look, 0.001, threading.Event(), lambda job: "")


# ------------------------------------------------------------------ submit_tuning


def test_a_tuning_job_is_sent_and_followed(tmp_path, service, gcloud):
    service.states = ["JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED"]
    flags = (*FLAGS, "--max_trial_count=3", "--parallel_trial_count=2", "--wait")
    done = script("submit_tuning", JOBS / "taxifare-tuning-2-workers.yaml", *flags, "--", "--num_evals=1", cwd=tmp_path, env=gcloud)
    body = service.sent(jobs.TUNING)
    assert (int(body["maxTrialCount"]), int(body["parallelTrialCount"]), body["displayName"]) == (3, 2, "taxifare-tuning-2-workers")
    assert int(body["maxFailedTrialCount"]) == 3, "the file's 4 would be more than there are trials"
    for pool in body["trialJobSpec"]["workerPoolSpecs"]:
        assert pool["containerSpec"]["args"][-1] == "--num_evals=1"
    (kept,) = (tmp_path / ".vertex_local" / "submitted").iterdir()
    assert yaml.safe_load(kept.read_text()) == body
    assert "$ gcloud ai hp-tuning-jobs stream-logs 4711 " in done.stdout and "0 of 3 trials" in done.stdout


def test_a_custom_job_is_no_study(tmp_path, fake_gcloud):
    done = call(submit.main, "tuning", JOBS / "taxifare.yaml", *REAL, "--no_check", cwd=tmp_path, env=fake_gcloud, code=2)
    assert "taxifare.yaml:" in last_error(done) and not (tmp_path / "gcloud.log").exists()


# ------------------------------------------------------------------ build_package


def test_the_same_sources_make_the_same_bytes(tmp_path):
    before = set(ROOT.iterdir())
    one, two = (packages.build(ROOT, tmp_path / name, "taxifare") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes() and one.name == "vertex_trainer-0.1.0.tar.gz"
    with tarfile.open(one) as packed:
        members = packed.getmembers()
    assert {(member.mtime, member.uid, member.uname) for member in members} == {(packages.EPOCH, 0, "")}
    names = {member.name.partition("/")[2] for member in members}
    assert {"setup.py", "LICENSE", "taxifare/trainer/task.py", "taxifare/tests/data/taxi-train.csv"} <= names
    assert not [name for name in names if "stackoverflow" in name or name.startswith(("tests", "jobs"))]
    assert {path for path in set(ROOT.iterdir()) - before if path.name[0] != "."} == set(), "the checkout stays as it was"


@pytest.mark.slow
def test_a_package_for_local_runs(tmp_path):
    flags = ("--trainer=taxifare", "--bucket_root=buckets", "--sample_data")
    said = script("build_package", *flags, cwd=tmp_path).stdout
    target = tmp_path / "buckets" / "your-bucket" / "packages" / "taxifare" / "vertex_trainer-0.1.0.tar.gz"
    assert f"copied to {target}\n" in said
    assert (tmp_path / "buckets/your-bucket/data/taxifare/taxi-train.csv").is_file()
    assert target.read_bytes() == (tmp_path / "dist" / "taxifare" / target.name).read_bytes()
    assert "is there already, the same bytes" in call(package.main, *flags, cwd=tmp_path).stdout
    target.write_bytes(b"somebody else's")
    assert "holds something else" in last_error(call(package.main, *flags, cwd=tmp_path, code=2))
    assert target.read_bytes() == b"somebody else's"
    call(package.main, *flags, "--overwrite", cwd=tmp_path)
    assert target.read_bytes() != b"somebody else's"
    (pool,) = job_file.read(JOBS / "taxifare-sdist.yaml").pools
    assert pool.package_uris[0].removeprefix("gs://") == str(target.relative_to(tmp_path / "buckets")), "where the job file looks for it"


class Bucket(http.server.ThreadingHTTPServer):
    """The storage API, as far as google-cloud-storage asks for it here; `damage` changes what arrives."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Objects)
        self.objects: dict[str, bytes] = {}
        self.damage = b""


class _Objects(http.server.BaseHTTPRequestHandler):
    server: Bucket

    def do_GET(self) -> None:
        name = urllib.parse.unquote(self.path.partition("/o/")[2].partition("?")[0])
        self._answer(200 if name in self.server.objects else 404, name)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        boundary = re.search("boundary=[\"']?([^\"';]+)", self.headers["Content-Type"])[1].encode()
        head, content = (part.partition(b"\r\n\r\n")[2].rsplit(b"\r\n", 1)[0] for part in data.split(b"--" + boundary)[1:3])
        name = json.loads(head)["name"]
        generation = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).get("ifGenerationMatch")
        if generation and int(generation[0]) != (1 if name in self.server.objects else 0):
            return self._answer(412, name)
        self.server.objects[name] = content + self.server.damage
        self._answer(200, name)

    def _answer(self, code: int, name: str) -> None:
        content = self.server.objects.get(name, b"")
        about = {"generation": "1", "size": str(len(content)), "crc32c": crc32c(content)}
        answer = {"name": name, "bucket": "real-bucket-1", **about}
        data = json.dumps(answer if code == 200 else {"error": {"code": code, "message": "no such object"}}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def crc32c(content: bytes) -> str:
    import google_crc32c

    return base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket() as server, running(server):
        yield server


def test_an_upload_is_verified_and_never_replaces_another_package(tmp_path, bucket):
    env = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{bucket.server_address[1]}"}
    flags = ("--trainer=stackoverflow", "--upload", *REAL)
    name = "packages/stackoverflow/vertex_trainer-0.1.0.tar.gz"
    said = script("build_package", *flags, cwd=tmp_path, env=env).stdout
    assert f"uploaded to gs://real-bucket-1/{name}, crc32c {crc32c(bucket.objects[name])} on both sides" in said
    assert "is there already, the same bytes" in call(package.main, *flags, cwd=tmp_path, env=env).stdout
    bucket.objects[name] = b"another"
    assert "holds something else" in last_error(call(package.main, *flags, cwd=tmp_path, env=env, code=2))
    assert bucket.objects[name] == b"another"
    bucket.damage = b"!"
    assert "it arrived with crc32c " in last_error(call(package.main, *flags, "--overwrite", cwd=tmp_path, env=env, code=1))


def test_a_bucket_that_does_not_answer_is_one_line(tmp_path):
    # In a process of its own: the storage client leaves a thread that asks on for two minutes.
    patient = "import sys; from vertex_submit import package as p; p.transfer.RETRY_SECONDS = 1; sys.exit(p.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", patient, "--trainer=taxifare", "--upload", *REAL], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "vertex_trainer-0.1.0.tar.gz: not uploaded: " in last_error(done)


# ------------------------------------------------------------------ submit_training_pipeline


def request_of(name: str, *flags: str, cwd: Path, extra: tuple[str, ...] = ()) -> dict:
    """Return the request that a dry run shows."""
    done = call(pipeline.main, JOBS / f"{name}.yaml", "--dry_run", *REAL, *flags, *extra, cwd=cwd)
    head, _, rest = done.stdout.partition("\n")
    body, _, by_hand = rest.partition("\n# gcloud cannot send it, for it knows no training pipelines; by hand:\n$ curl ")
    assert head == f"# .vertex_local/submitted/TIME-{name}.json"
    assert by_hand.endswith(".googleapis.com/v1/projects/real-project-1/locations/europe-west4/trainingPipelines\n"), done.stdout
    assert list(cwd.iterdir()) == []
    return json.loads(body)


def test_a_container_on_a_managed_dataset(tmp_path):
    flags = ("--dataset=123", "--split=0.7,0.2,0.1", "--version_aliases=best,fare", "--parent_model=77", "--version_description=third")
    found = request_of("taxifare-2-workers", *flags, cwd=tmp_path, extra=("--", "--epochs=2"))
    assert found["inputDataConfig"] == {
        "datasetId": "123",
        "fractionSplit": {"trainingFraction": 0.7, "validationFraction": 0.2, "testFraction": 0.1},
        "gcsDestination": {"outputUriPrefix": "gs://real-bucket-1/taxifare-2-workers"},
    }
    inputs = found["trainingTaskInputs"]
    assert inputs["baseOutputDirectory"] == {"outputUriPrefix": "gs://real-bucket-1/taxifare-2-workers"}
    assert [pool["replicaCount"] for pool in inputs["workerPoolSpecs"]] == [1, 1]
    for pool in inputs["workerPoolSpecs"]:
        assert pool["containerSpec"]["args"] == ["--num_evals=2", "--epochs=2"], "the dataset brings the data, not the flags"
        assert pool["containerSpec"]["imageUri"] == "europe-west4-docker.pkg.dev/real-project-1/trainers/taxifare:latest"
    assert inputs["scheduling"]["restartJobOnWorkerRestart"] is True and inputs["scheduling"]["timeout"] == "7200s"
    assert found["parentModel"] == "projects/real-project-1/locations/europe-west4/models/77"
    model = found["modelToUpload"]
    assert model["versionAliases"] == ["best", "fare", "default"] and model["versionDescription"] == "third"
    assert model["containerSpec"]["imageUri"] == "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"


def test_a_dry_run_shows_what_the_sdks_training_class_would_send(tmp_path, service, gcloud):
    """For what the class can say; it writes pools in snake_case, which is the same message."""
    from google.cloud import aiplatform

    flags = ("--dataset=123", "--split=0.7,0.2,0.1", "--version_aliases=best", "--parent_model=77")
    ours = request_of("taxifare-2-workers", *flags, cwd=tmp_path, extra=("--", "--epochs=2"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in gcloud.items():
            patch.setenv(name, value)
        args = pipeline.build_parser().parse_args(["x", *REAL])
        aiplatform = sdk.start(sdk.connect({"project": "real-project-1", "region": "europe-west4"}, args), "real-bucket-1")
        service.states = ["PIPELINE_STATE_SUCCEEDED"]
        image = "europe-west4-docker.pkg.dev/real-project-1/trainers/taxifare:latest"
        serving = ours["modelToUpload"]["containerSpec"]["imageUri"]
        job = aiplatform.CustomContainerTrainingJob("taxifare-2-workers", container_uri=image, model_serving_container_image_uri=serving)
        job.submit(
            dataset=SimpleNamespace(name="123"), args=["--num_evals=2", "--epochs=2"], replica_count=2, machine_type="n1-standard-4",
            base_output_dir="gs://real-bucket-1/taxifare-2-workers", restart_job_on_worker_restart=True, timeout=7200,
            training_fraction_split=0.7, validation_fraction_split=0.2, test_fraction_split=0.1, model_display_name="taxifare",
            model_version_aliases=["best"], parent_model="77",
        )  # fmt: skip
    theirs = service.posted()
    theirs["trainingTaskInputs"] = schema.to_fields(schema.to_message(theirs["trainingTaskInputs"], "CustomJobSpec"))
    for pool in theirs["trainingTaskInputs"]["workerPoolSpecs"]:
        pool.pop("diskSpec")  # the SDK writes the default out
    assert schema.to_fields(schema.to_message(theirs, "TrainingPipeline")) == schema.to_fields(schema.to_message(ours, "TrainingPipeline"))


def test_without_a_dataset_the_flags_stay(tmp_path):
    found = request_of("stackoverflow-spot", "--no_model", cwd=tmp_path)
    assert "inputDataConfig" not in found and "modelToUpload" not in found
    (pool,) = found["trainingTaskInputs"]["workerPoolSpecs"]
    assert pool["containerSpec"]["args"][0] == "--train_data_path=stackoverflow/tests/data/train.csv"
    assert found["trainingTaskInputs"]["scheduling"]["strategy"] == "SPOT"


def test_a_python_package_of_the_file_and_one_of_this_checkout(tmp_path):
    found = request_of("taxifare-sdist", "--dataset=1", "--predefined_split=part", cwd=tmp_path)
    (pool,) = found["trainingTaskInputs"]["workerPoolSpecs"]
    assert pool["pythonPackageSpec"]["packageUris"] == ["gs://real-bucket-1/packages/taxifare/vertex_trainer-0.1.0.tar.gz"]
    assert pool["pythonPackageSpec"]["pythonModule"] == "taxifare.trainer.task"
    assert found["inputDataConfig"]["predefinedSplit"] == {"key": "part"}
    by_time = ("--dataset=1", "--timestamp_split=pickup_datetime", "--split=.8,.1,.1")
    for name in ("taxifare-sdist", "taxifare"):
        found = request_of(name, "--kind=script", *by_time, cwd=tmp_path)
        (pool,) = found["trainingTaskInputs"]["workerPoolSpecs"]
        package = pool["pythonPackageSpec"]
        (uri,) = package["packageUris"]
        assert re.fullmatch(r"gs://real-bucket-1/packages/taxifare/[0-9a-f]{12}/vertex_trainer-0\.1\.0\.tar\.gz", uri)
        assert package["pythonModule"] == "taxifare.trainer.task" and package["args"] == ["--num_evals=2"]
        assert package["executorImageUri"] == "us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-17.py310:latest"
    assert found["inputDataConfig"]["timestampSplit"]["key"] == "pickup_datetime"


def test_the_other_splits_and_destinations(tmp_path):
    filters = ("--dataset=1", "--filter_split", "a", "-", "c", "--annotation_schema=gs://s/x.yaml", "--bigquery_destination=bq://p")
    assert request_of("taxifare", *filters, cwd=tmp_path)["inputDataConfig"] == {
        "datasetId": "1", "filterSplit": {"trainingFilter": "a", "validationFilter": "-", "testFilter": "c"},
        "annotationSchemaUri": "gs://s/x.yaml", "bigqueryDestination": {"outputUri": "bq://p"},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["annotated", "taxifare-evaluator", "taxifare-reduction-server"])
def test_whatever_a_job_file_says_reaches_the_pipeline(tmp_path, name):
    inputs = request_of(name, cwd=tmp_path)["trainingTaskInputs"]
    given = {"project": "real-project-1", "region": "europe-west4", "bucket": "real-bucket-1"}
    assert inputs == schema.to_fields(jobs.read(jobs.CUSTOM, str(JOBS / f"{name}.yaml"), given).spec)


@pytest.mark.parametrize(
    "name, flags, expected",
    [
        ("taxifare", ["--split=.8,.1,.1"], "--split: is about a managed dataset"),
        ("taxifare", ["--dataset=1", "--split=.8,.1,.1", "--predefined_split=x"], "cannot stand beside"),
        ("taxifare", ["--dataset=1", "--timestamp_split=x"], "needs the fractions, too"),
        ("taxifare", ["--dataset=1", "--dataset_csv", "gs://b/x.csv"], "leave --dataset out"),
        ("taxifare", ["--no_model", "--parent_model=1"], "leave --no_model out"),
        ("taxifare", ["--kind=package"], "runs a container, not a Python package"),
        ("taxifare-sdist", ["--kind=container"], "runs a Python package, not a container"),
        ("taxifare-tuning", [], "this is a HyperparameterTuningJob"),
    ],
)
def test_what_no_pipeline_can_be_made_of(tmp_path, name, flags, expected):
    done = call(pipeline.main, JOBS / f"{name}.yaml", "--dry_run", *flags, cwd=tmp_path, code=2)
    assert expected in last_error(done)


def test_fractions_that_are_none_are_refused(tmp_path):
    for text in ("0.8,0.1", "0.8,0.2,0.1", "a,b,c", "-1,1,1"):
        with pytest.raises(SystemExit):
            pipeline.build_parser().parse_args(["x.yaml", f"--split={text}"])


def test_flags_are_checked_before_the_service_does(tmp_path):
    for flag in ("--version_aliases=x", "--version_aliases=ok,Best", "--base_output_dir=/tmp/x", "--base_output_dir=gs://B/x", "--poll=0"):
        with pytest.raises(SystemExit):
            pipeline.build_parser().parse_args(["x.yaml", flag])
    found = request_of("taxifare", "--base_output_dir=gs://other-bucket/run-2", cwd=tmp_path)
    assert found["trainingTaskInputs"]["baseOutputDirectory"] == {"outputUriPrefix": "gs://other-bucket/run-2"}


def test_a_managed_dataset_takes_the_place_of_data_flags_only(tmp_path):
    text = "workerPoolSpecs: [{containerSpec: {imageUri: h/taxifare:1, args: [%s]}}]"
    (tmp_path / "x.yaml").write_text(text % '"--train-data-path", a, b, "--lr=1", "--eval_data_path=c", "--nnsize", "8 4"')
    flags = ("--project=p-1", "--region=r", "--bucket=b-1", "--serving=h/s:1", "--dry_run")
    for more, expected in ((["--dataset=1"], ["--lr=1", "--nnsize", "8 4"]), ([], None)):
        shown = call(pipeline.main, "x.yaml", *flags, *more, cwd=tmp_path).stdout
        (pool,) = json.loads(shown.partition("\n")[2].partition("\n# gcloud")[0])["trainingTaskInputs"]["workerPoolSpecs"]
        assert pool["containerSpec"]["args"] == (expected or list(job_file.read(tmp_path / "x.yaml").pools[0].args))


# ------------------------------------------------------------------ deploy


def test_a_dry_deploy_says_every_call(tmp_path):
    (tmp_path / "ask.jsonl").write_text('{"text": "how do i parse a date?"}\n\n"bare"\n')
    flags = ("--dry_run", *REAL, "--instances=ask.jsonl", "--version_aliases=aa,bb", "--max_replicas=3")
    done = call(deploy.main, JOBS / "stackoverflow.yaml", *flags, cwd=tmp_path)
    calls = [re.search(r"aiplatform\.([\w.]+)\(", line)[1] for line in done.stdout.splitlines()]
    assert calls == ["Model.upload", "Endpoint.list", "Endpoint.create", "Model.deploy", "Endpoint.predict"]
    assert "artifact_uri='gs://real-bucket-1/stackoverflow/model'" in done.stdout and "version_aliases=['aa', 'bb']" in done.stdout
    assert "'max_replica_count': 3" in done.stdout or "max_replica_count=3" in done.stdout
    assert "instances=[{'text': 'how do i parse a date?'}, 'bare']" in done.stdout
    assert "past its end of support (2026-07-14)" in done.stderr
    flags = ("--dry_run", *REAL, "--instances=ask.jsonl", "--parent_model=77")
    shown = call(deploy.main, JOBS / "stackoverflow.yaml", *flags, cwd=tmp_path).stdout
    assert "parent_model='77', version_aliases=['challenger']" in shown, "a new version is one to be compared"


def test_the_check_request_is_rows_of_the_sample_data(tmp_path):
    done = script("deploy", JOBS / "taxifare.yaml", "--dry_run", "--model=77", cwd=tmp_path)
    assert "aiplatform.Model(model_name='77')" in done.stdout and "Model.upload" not in done.stdout
    assert len(re.findall("pickup_datetime", done.stdout)) == 2


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--traffic=101"], "--traffic: takes a percentage from 0 to 100; got 101."),
        (["--replicas=0"], "--replicas: takes 1 or more; got 0."),
        (["--replicas=3", "--max_replicas=2"], "--max_replicas: takes 3 (--replicas) or more; got 2."),
        (["--model=1", "--parent_model=2"], "--parent_model: is for an upload"),
        (["--instances=none.jsonl"], "--instances: none.jsonl: cannot be read"),
        (["--instances=bad.jsonl"], "bad.jsonl:2: must be JSON"),
        (["--instances=empty.jsonl"], "is empty"),
    ],
)
def test_what_cannot_be_deployed(tmp_path, flags, expected):
    (tmp_path / "bad.jsonl").write_text("{}\n{\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    done = call(deploy.main, JOBS / "taxifare.yaml", "--dry_run", *flags, cwd=tmp_path, code=2)
    assert expected in last_error(done)


def test_names_that_the_sdk_refuses_are_the_users_mistakes(tmp_path, service, gcloud):
    (tmp_path / "ask.jsonl").write_text("{}\n")
    flags = (JOBS / "taxifare.yaml", *REAL, "--instances=ask.jsonl")
    for model in ("a b", "projects/x/y"):
        done = call(deploy.main, *flags, f"--model={model}", cwd=tmp_path, env=gcloud, code=2)
        assert re.match(f"error: --model: '{model}': .*; give the id or the full name of a Model", done.stderr)
    done = call(deploy.main, *flags, "--model_display_name=" + "x" * 200, cwd=tmp_path, env=gcloud, code=2)
    assert "the SDK refuses it before it is sent: Display name needs to be less than 128 characters; give" in last_error(done)
    words = (JOBS / "taxifare.yaml", *REAL, "--no_check", "--dataset=a b")
    done = call(pipeline.main, *words, cwd=tmp_path, env=gcloud, code=2)
    assert "error: --dataset: 'a b': " in last_error(done) and "of a TabularDataset" in last_error(done)
    assert not service.requests
    (tmp_path / "ask.jsonl").write_text("[" * 100_000)
    done = call(deploy.main, *flags, "--dry_run", cwd=tmp_path, code=2)
    assert "ask.jsonl:1: must be JSON" in last_error(done)


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", ["build_package", "build_image", "submit_job", "submit_tuning", "submit_training_pipeline", "deploy"])
def test_every_script_explains_itself(tmp_path, name):
    done = script(name, "--help", cwd=tmp_path)
    assert f"usage: scripts/{name} " in done.stdout and "--dry_run" in done.stdout and "--project" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_gcloud
def test_from_sdist_to_prediction_on_the_local_service(tmp_path):
    """Every script in its order, with nothing but the lines exported that `serve` prints; no placeholder matters there."""
    from test_serve_support import Service as LocalService

    local = LocalService(tmp_path, f"--project_dir={ROOT}")
    try:
        words = (word for line in local.out if line.startswith("export ") for word in shlex.split(line)[1:])
        env = {**dict(word.split("=", 1) for word in words), "CLOUDSDK_CONFIG": str(tmp_path / "gcloud")}
        if "REQUESTS_CA_BUNDLE" not in env:
            pytest.skip("the SDK needs TLS, and the local service the package cryptography for that")
        upload = ("--trainer=taxifare", "--sample_data", "--upload")
        said = script("build_package", *upload, cwd=tmp_path, env=env, code=1).stderr
        assert "not uploaded: 404: The specified bucket does not exist: your-bucket" in said and said.count("\n") == 1
        (tmp_path / ".vertex_local" / "buckets" / "your-bucket").mkdir()
        script("build_package", *upload, cwd=tmp_path, env=env)
        quick = ("--no_check", "--wait", "--poll=0.5")
        for job in ("taxifare-sdist", "taxifare-evaluator"):
            assert "succeeded" in script("submit_job", JOBS / f"{job}.yaml", *quick, "--", "--epochs=4", cwd=tmp_path, env=env).stdout
        two = ("--max_trial_count=2", "--parallel_trial_count=1", "--", "--epochs=2")
        assert "2 of 2 trials" in script("submit_tuning", JOBS / "taxifare-tuning.yaml", *quick, *two, cwd=tmp_path, env=env).stdout
        columns = "fare_amount,pickup_datetime,pickup_longitude,pickup_latitude,dropoff_longitude,dropoff_latitude,passenger_count,key\n"
        rows = (ROOT / "taxifare" / "tests" / "data" / "taxi-train.csv").read_text()
        (tmp_path / ".vertex_local" / "buckets" / "your-bucket" / "trips.csv").write_text(columns + rows)
        managed = ("--dataset_csv", "gs://your-bucket/trips.csv", "--split=0.8,0.1,0.1", "--base_output_dir=gs://your-bucket/managed")
        said = script("submit_training_pipeline", JOBS / "taxifare.yaml", *quick, *managed, "--", "--epochs=4", cwd=tmp_path, env=env)
        model = re.search("^model (projects/.*)$", said.stdout, re.MULTILINE)[1]
        one_file = ("--kind=script", "--no_model", "--base_output_dir=gs://your-bucket/script")
        script("submit_training_pipeline", JOBS / "taxifare-sdist.yaml", *quick, *one_file, "--", "--epochs=4", cwd=tmp_path, env=env)
        said = script("deploy", JOBS / "taxifare.yaml", f"--model={model}", cwd=tmp_path, env=env).stdout
        fares = [float(fare) for fare in re.findall(r" -> ([\d.]+)$", said, re.MULTILINE)]
        assert len(fares) == 2 and all(1 < fare < 100 for fare in fares)
        uploaded = script("deploy", JOBS / "taxifare-sdist.yaml", "--version_aliases=second", cwd=tmp_path, env=env).stdout
        assert "which was there" in uploaded and uploaded.count(" -> ") == 2
    finally:
        assert local.stop() == 0
