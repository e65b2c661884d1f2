"""How replicas are started: packages once, this machine instead of the cloud, memory, and Python without os.waitid."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_local_packages import build, package_pool
from test_local_support import ROOT, attempts, call, result, write_job, write_script

from vertex_local import cli, errors
from vertex_local.job import job_file, times
from vertex_local.local import commands, environment, plan, process, restarts, supervise
from vertex_local.local import packages as packages_

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


def shown(folder: Path, job_id: str) -> dict[str, str]:
    """Return the environment that the chief printed."""
    return json.loads((folder / f".vertex_local/jobs/{job_id}/logs/workerpool0-0.log").read_text())


def show(folder: Path, *flags: str, job_id: str = "a") -> dict[str, str]:
    task = {"imageUri": "host/any:1", "command": ["python", "-c", SHOW]}
    write_job(folder, [{"replicaCount": 1, "containerSpec": task}])
    done = call(folder, "job.yaml", f"--job_id={job_id}", *flags)
    assert done.returncode == 0, done.stderr
    return shown(folder, job_id)


# ------------------------------------------------------------------ packages


def test_packages_are_installed_once_for_all_jobs_and_trials(tmp_path):
    uri = build(tmp_path)
    write_job(tmp_path, [package_pool(uri), package_pool(uri)])
    first, second = (call(tmp_path, "job.yaml", f"--job_id={name}") for name in "ab")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.count(" pip install ") == 1 and " pip install " not in second.stdout and "ran sdist" in second.stdout
    (installed,) = (path for path in (tmp_path / ".vertex_local/packages").iterdir() if path.is_dir())
    assert json.loads((installed / "packages.json").read_text())["files"] == [str(tmp_path / uri)]
    (tmp_path / uri).unlink()
    (tmp_path / "trainer" / "task.py").write_text("print('other content')\n")
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "--formats=gztar"], cwd=tmp_path, check=True, capture_output=True)
    third = call(tmp_path, "job.yaml", "--job_id=c")
    assert "other content" in third.stdout, "the same name with another content is another package"


@pytest.mark.slow
def test_several_at_once_wait_for_the_one_that_installs(tmp_path):
    (file,) = [tmp_path / build(tmp_path)]
    said: list[str] = []
    sites: list[Path] = []
    ask = threading.Thread(target=lambda: sites.append(packages_.site([file], tmp_path / "state", sys.executable, False, said.append)))
    other = threading.Thread(target=lambda: sites.append(packages_.site([file], tmp_path / "state", sys.executable, False, said.append)))
    for thread in (ask, other):
        thread.start()
    for thread in (ask, other):
        thread.join()
    assert len(set(sites)) == 1 and len(said) == 1 and (sites[0] / "trainer/task.py").is_file()
    assert [path.name for path in (tmp_path / "state/packages").glob("installing-*")] == []


def test_what_could_not_be_installed_leaves_nothing(tmp_path):
    (tmp_path / "broken.tar.gz").write_text("no archive")
    with pytest.raises(packages_.PackageError, match="pip could not install"):
        packages_.site([tmp_path / "broken.tar.gz"], tmp_path / "state", sys.executable, False, lambda text: None)
    assert [path for path in (tmp_path / "state/packages").iterdir() if path.is_dir()] == []


def test_what_an_sdist_requires(tmp_path):
    file = tmp_path / build(tmp_path, "'numpy>=1', 'tqdm'")
    assert packages_.requirements(file) == (["numpy>=1", "tqdm"], None)
    (tmp_path / "trainer" / ".#task.py").symlink_to("somebody@somewhere.1")  # as Emacs marks a file that is open
    again = packages_.build(tmp_path, tmp_path / "again")
    assert again.name == "tiny_trainer-0.1.tar.gz" and packages_.requirements(again) == (["numpy>=1", "tqdm"], None)


# ------------------------------------------------------------------ this machine, and not the cloud

CALLERS = {
    "GOOGLE_APPLICATION_CREDENTIALS": "/elsewhere/key.json", "CLOUDSDK_CONFIG": "/elsewhere/gcloud",
    "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": "/elsewhere/token", "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": "https://far.googleapis.com/",
    "GOOGLE_CLOUD_PROJECT": "far", "STORAGE_EMULATOR_HOST": "https://storage.googleapis.com",
}  # fmt: skip


def test_a_replica_cannot_reach_the_cloud_with_the_callers_credentials(tmp_path, monkeypatch):
    for name, value in CALLERS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:9050")
    found = show(tmp_path)
    assert not set(CALLERS.values()) & set(found.values())
    assert found["BIGQUERY_EMULATOR_HOST"] == "http://127.0.0.1:9050", "an emulator that the caller named stays"
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in found and os.listdir(found["CLOUDSDK_CONFIG"]) == []
    for name in ("STORAGE_EMULATOR_HOST", "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM", "GCE_METADATA_HOST"):
        assert "127.0.0.1:9" in found[name]
    code = "import google.auth\ntry: google.auth.default()\nexcept google.auth.exceptions.DefaultCredentialsError: print('none')"
    done = subprocess.run([sys.executable, "-c", code], env={**found, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout == "none\n", done.stderr


def test_with_cloud_credentials_they_are_the_callers(tmp_path, monkeypatch):
    for name, value in CALLERS.items():
        monkeypatch.setenv(name, value)
    found = show(tmp_path, "--cloud_credentials")
    assert {name: found[name] for name in CALLERS} == CALLERS


def test_where_the_service_runs_its_clients_find_it(tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/the/callers.pem")
    state = tmp_path / ".vertex_local"
    (state / "serve").mkdir(parents=True)
    told = {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:8787", "OTHER": "x", "REQUESTS_CA_BUNDLE": "/the/services.pem"}
    (state / "serve" / "environment.json").write_text(json.dumps(told))
    assert show(tmp_path)["STORAGE_EMULATOR_HOST"] == "http://127.0.0.1:9", "a file that a killed service left says nothing"
    with open(state / "serve" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = show(tmp_path, job_id="b")
    assert found["STORAGE_EMULATOR_HOST"] == "http://127.0.0.1:8787" and found["OTHER"] == "x"
    assert found["REQUESTS_CA_BUNDLE"] == "/the/services.pem", "which holds what the caller trusts, too"


def test_replicas_know_the_project_under_which_the_job_is_kept(tmp_path):
    (tmp_path / "settings.yaml").write_text("project: my-project\nregion: europe-west4\n")
    assert show(tmp_path)["CLOUD_ML_PROJECT_ID"] == "my-project"
    assert show(tmp_path, "--project=other", job_id="b")["CLOUD_ML_PROJECT_ID"] == "other"
    from vertex_local.local.records import opened

    with opened(tmp_path / ".vertex_local") as found:
        names = [record.document["name"] for record in found.all()]
    where = "locations/europe-west4/customJobs"
    assert names == [f"projects/other/{where}/b", f"projects/my-project/{where}/a"]


def test_other_users_cannot_look_into_jobs(tmp_path):
    before = os.umask(0o022)
    try:
        show(tmp_path)
    finally:
        os.umask(before)
    state = tmp_path / ".vertex_local"
    assert [path.stat().st_mode & 0o077 for path in (state, state / "jobs", state / "jobs" / "a")] == [0] * 3


# ------------------------------------------------------------------ how replicas end


def test_out_of_memory_is_permanent(tmp_path, monkeypatch):
    """The counter is a stand-in for the kernel's, which no test may drive up; all else is real."""
    counter, script = tmp_path / "vmstat", tmp_path / "supervise_with_counter.py"
    counter.write_text("pgfault 5\noom_kill 3\n")
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(supervise.__file__).parent)!r})\nimport supervise\n"
        f"supervise._VMSTAT, supervise._CGROUP = {str(counter)!r}, 'nowhere'\nsupervise.main()\n"
    )
    monkeypatch.setattr(process, "_SUPERVISOR", script)
    write_script(tmp_path, "greedy.py", f"open({str(counter)!r}, 'w').write('oom_kill 4')\nos.kill(os.getpid(), signal.SIGKILL)\n")
    write_job(tmp_path, [("greedy.py", 1)])
    done = call(tmp_path, "job.yaml", "--job_id=a")
    assert done.returncode == 1 and "out of memory" in done.stderr and attempts(tmp_path, "a") == {"workerpool0-0": [-9]}
    assert "signal 9 (SIGKILL) is permanent" in result(tmp_path, "a")["rules"][0]


def test_the_kernels_own_counter_is_found():
    assert supervise._memory_kills() >= 0
    action, rule = restarts.decide(-9, 0, 0, together=True, disabled=False, out_of_memory=True)
    assert action == restarts.FAIL and "out of memory" in rule


def test_python_without_waitid(tmp_path, monkeypatch):
    script = tmp_path / "supervise_without_waitid.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(Path(supervise.__file__).parent)!r})\ndel os.waitid\nimport supervise\nsupervise.main()\n"
    )
    monkeypatch.setattr(process, "_SUPERVISOR", script)
    write_script(tmp_path, "chief.py", "if attempt == 1: os.kill(os.getpid(), 15)\nsys.exit(0)\n")
    write_job(tmp_path, [("chief.py", 1)])
    assert call(tmp_path, "job.yaml", "--job_id=a").returncode == 0
    assert attempts(tmp_path, "a") == {"workerpool0-0": [-15, 0]}


def test_cmd_before_entrypoint():
    """Docker: ENTRYPOINT drops the CMD of the image that a stage begins with, and keeps one that the stage itself has."""
    own = commands.parse_dockerfile('FROM x\nCMD ["--a=1"]\nENTRYPOINT ["python", "-m", "t"]\n', {})
    assert (own.entrypoint, own.cmd) == (["python", "-m", "t"], ["--a=1"])
    text = 'FROM x AS base\nCMD ["--a=1"]\nFROM base\nENTRYPOINT ["python"]\n'
    assert commands.parse_dockerfile(text, {}).cmd == []


# ------------------------------------------------------------------ small things


def test_times_of_every_form():
    assert times.seconds("2020-01-01T00:00:00.5Z") == 1577836800.5 == times.seconds("2020-01-01T01:00:00.500000000+01:00")
    assert times.duration("1.5s") == 1.5 and times.text(1577836800.5) == "2020-01-01T00:00:00.500000Z"
    assert times.seconds(times.text(1577836800)) == 1577836800


def test_a_fault_of_ours_is_no_mistake_of_the_users(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def work(error: Exception):
        def fail(cancel: threading.Event) -> int:
            raise error

        return fail

    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert cli.supervised(work(ValueError("stray"))) == cli.FAULT
        assert cli.supervised(work(errors.UserError("no such file"))) == 2
    fault, mistake = err.getvalue().splitlines()
    assert "a fault of vertex_local, not of your job: ValueError: stray; see " in fault and mistake == "error: no such file"
    (kept,) = tmp_path.glob("vertex_local-fault-*")
    assert "Traceback" in kept.read_text()


def test_the_command_line_of_a_plan(tmp_path):
    task = {"imageUri": "host/any:1", "command": ["python", "-m", "trainer.task"], "args": ["--a=1"]}
    task["env"] = [{"name": "PYTHONPATH", "value": f"{tmp_path}/taxi"}]
    path = write_job(tmp_path, [{"replicaCount": 1, "containerSpec": task}])
    (tmp_path / "taxi/trainer").mkdir(parents=True)
    (tmp_path / "taxi/trainer/task.py").touch()
    paths = plan.RunOptions(project_dir=tmp_path, state_dir=tmp_path / "s").paths()
    assert plan.command_line(job_file.read(path), paths) == "python -m taxi.trainer.task --a=1"
    assert environment.PROJECT.isdecimal()
