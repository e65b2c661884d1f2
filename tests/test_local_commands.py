"""`list`, `logs`, `stop`, `clean` and `compare`: over jobs that ran, run, and were killed."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
from pathlib import Path

import forked
import pytest
from test_local_support import alive, call, command, environ, result, said, start, wait_for, write_job, write_script
from test_tune import start as start_study
from test_tune import write_study


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    """A folder with three jobs that are over: a and b succeeded, c failed."""
    folder = tmp_path_factory.mktemp("ended")
    text = """
json.dump({"val_rmse": len(sys.argv), "kept": True}, open(os.path.join(os.environ["AIP_CHECKPOINT_DIR"], "metrics.json"), "w"))
for n in range(3):
    print(me, n, flush=True)
    time.sleep(0.02)
sys.exit("error: no data" if "--fail" in sys.argv else 0)
"""
    write_script(folder, "chief.py", "os.makedirs(os.environ['AIP_CHECKPOINT_DIR'], exist_ok=True)" + text)
    for name, flags in (("a", ("--lr=1",)), ("b", ("--lr=2", "--deep")), ("c", ("--fail",))):
        output = {"outputUriPrefix": f"gs://bucket/{name}"}
        write_job(folder, [("chief.py", 1), ("chief.py", 1)], "first.yaml", baseOutputDirectory=output)
        call(folder, "first.yaml", f"--job_id={name}", "--", *flags)
    return folder


def test_list(ended):
    lines = said(ended, "list").splitlines()
    assert re.split(r"\s{2,}", lines[0]) == ["ID", "KIND", "STATE", "NAME", "START", "DURATION"]
    rows = [line.split() for line in lines[1:]]
    assert [row[:4] for row in rows] == [
        ["c", "customJobs", "FAILED", "first"], ["b", "customJobs", "SUCCEEDED", "first"], ["a", "customJobs", "SUCCEEDED", "first"],
    ]  # fmt: skip
    assert [line.split()[0] for line in said(ended, "list", "--limit=1").splitlines()[1:]] == ["c"]
    some = said(ended, "list", '--filter=display_name="first" AND state="JOB_STATE_SUCCEEDED"').splitlines()
    assert [line.split()[0] for line in some[1:]] == ["b", "a"]
    done = command(ended, "list", "--filter=state=")
    assert done.returncode == 2 and done.stderr.startswith("error: --filter: ")


def test_logs(ended):
    lines = said(ended, "logs", "a").splitlines()
    assert sorted(lines) == sorted(f"[{name}] {name} {n}" for name in ("workerpool0-0", "workerpool1-0") for n in range(3))
    times = [float(line.split()[0]) for line in (ended / ".vertex_local/jobs/a/lines/workerpool0-0.log").read_text().splitlines()]
    assert times == sorted(times) and lines.index("[workerpool0-0] workerpool0-0 0") < lines.index("[workerpool0-0] workerpool0-0 2")
    assert {line.split()[0] for line in said(ended, "logs", "a", "--replica=workerpool1-0", "-f").splitlines()} == {"[workerpool1-0]"}
    assert "has no log of 'nobody'" in command(ended, "logs", "a", "--replica=nobody").stderr


def test_the_logs_of_a_training_pipeline_are_those_of_its_job(ended):
    from vertex_local.local.store import Store

    with contextlib.closing(Store(ended / ".vertex_local")) as store:
        (job,) = store.named("a", "customJobs")
        name = job["name"].replace("customJobs/a", "trainingPipelines/p")
        own = {"name": name, "state": "PIPELINE_STATE_SUCCEEDED", "trainingTaskMetadata": {"backingCustomJob": job["name"]}}
        store.add(name, "trainingPipelines", {**job, **own})
        assert sorted(said(ended, "logs", "p").splitlines()) == sorted(said(ended, "logs", "a").splitlines()) != []
        store.remove(name)


def test_compare(ended):
    text = said(ended, "compare", "a", "b")
    rows = {re.split(r"\s{2,}", line)[0]: re.split(r"\s{2,}", line)[1:] for line in text.splitlines()[1:]}
    assert rows["jobSpec.workerPoolSpecs[0].containerSpec.args --lr"] == ["1", "2"]
    assert rows["jobSpec.workerPoolSpecs[0].containerSpec.args --deep"] == ["-", "given"]
    assert rows["val_rmse"] == ["2", "3"] and rows["state"] == ["SUCCEEDED", "SUCCEEDED"] and "kept" not in rows
    assert not [key for key in rows if "imageUri" in key], "what is equal is not shown"
    assert "no data" in said(ended, "compare", "a", "c")


def test_there_is_no_such_job(ended, tmp_path):
    for words in (("logs", "nobody"), ("stop", "nobody"), ("compare", "a", "nobody")):
        done = command(ended, *words)
        assert done.returncode == 2 and done.stderr.startswith("error: there is no job 'nobody'") and len(done.stderr.splitlines()) == 1
    assert "no job was recorded" in command(tmp_path, "list").stderr and not (tmp_path / ".vertex_local").exists()
    assert "is over (SUCCEEDED)" in command(ended, "stop", "a").stderr


def test_stop_ends_a_run_in_order(tmp_path):
    save = "signal.signal(15, lambda *_: (print('saved', flush=True), sys.exit(0)))\n"
    write_script(tmp_path, "chief.py", save + "print('up', flush=True)\ntime.sleep(60)\n")
    write_job(tmp_path, [("chief.py", 1)])
    with start(tmp_path, "job.yaml", "--job_id=a") as process:
        wait_for(lambda: "RUNNING" in command(tmp_path, "list").stdout and "up" in command(tmp_path, "logs", "a").stdout)
        text = said(tmp_path, "stop", "a")
        assert process.wait(120) == 1
    assert "job a was asked to end" in text and "job a: CANCELLED" in text and "saved" in said(tmp_path, "logs", "a")
    assert result(tmp_path, "a")["state"] == "JOB_STATE_CANCELLED" and "CANCELLED" in said(tmp_path, "list")


def test_follow_until_the_end(tmp_path):
    write_script(tmp_path, "chief.py", "print('up', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.02)\nprint('over')\n")
    write_job(tmp_path, [("chief.py", 1)])
    with start(tmp_path, "job.yaml", "--job_id=a") as process:
        wait_for(lambda: "up" in command(tmp_path, "logs", "a").stdout)
        words = [forked.python("local"), "-m", "vertex_local", "logs", "a", "-f"]
        with subprocess.Popen(words, cwd=tmp_path, env=environ(), stdout=subprocess.PIPE, text=True) as follower:
            assert follower.stdout.readline() == "[workerpool0-0] up\n"
            (tmp_path / "go").touch()
            assert follower.stdout.read() == "[workerpool0-0] over\n" and follower.wait(120) == 0
        assert process.wait(120) == 0


def test_a_run_that_was_killed_does_not_stay_running(tmp_path):
    write_script(tmp_path, "chief.py", "open('pid', 'w').write(str(os.getpid()))\nprint('up', flush=True)\ntime.sleep(60)\n")
    write_job(tmp_path, [("chief.py", 1)])
    with start(tmp_path, "job.yaml", "--job_id=a", fresh=True) as process:
        wait_for(lambda: "up" in command(tmp_path, "logs", "a").stdout)
        process.kill()
        process.wait(120)
    assert "FAILED" in said(tmp_path, "list") and result(tmp_path, "a")["state"] == "JOB_STATE_FAILED"
    assert "was killed" in result(tmp_path, "a")["error"]
    wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_a_study_is_stopped_and_continued_without_its_file(tmp_path):
    write_study(tmp_path, "report(1, 1)\nwhile not os.path.exists('go'): time.sleep(0.02)\n", trials=2)
    (tmp_path / "settings.yaml").write_text("project: my-project\n")
    with start_study(tmp_path, "--", "--more=1") as process:
        wait_for(lambda: len(list(tmp_path.glob(".vertex_local/jobs/s-trial-*/logs/workerpool0-0.log"))) == 2)
        said(tmp_path, "stop", "s")
        assert process.wait(120) == 1
    assert "CANCELLED" in said(tmp_path, "list")
    assert "goes on with it" in result(tmp_path, "s")["error"]
    (tmp_path / "go").touch()
    for name in ("hp.yaml", "settings.yaml"):
        (tmp_path / name).unlink()
    done = command(tmp_path, "tune", "--job_id", "s")
    assert done.returncode == 0, done.stderr
    assert "SUCCEEDED" in said(tmp_path, "list") and len(said(tmp_path, "list").splitlines()) == 2
    assert "--more=1" in json.dumps(result(tmp_path, "s")["commands"]), "the arguments that the study was begun with stay"
    assert "no study nobody" in command(tmp_path, "tune", "--job_id", "nobody").stderr
    assert "give the study's FILE" in command(tmp_path, "tune").stderr


def test_clean(tmp_path):
    write_script(tmp_path, "chief.py", "os.makedirs(os.environ['AIP_MODEL_DIR'])\n")
    write_job(tmp_path, [("chief.py", 1)], baseOutputDirectory={"outputUriPrefix": "gs://bucket/x"})
    assert call(tmp_path, "job.yaml", "--job_id=a").returncode == 0
    jobs = tmp_path / ".vertex_local" / "jobs"
    assert "a  SUCCEEDED" in said(tmp_path, "clean", "--dry_run") and (jobs / "a").is_dir()
    assert said(tmp_path, "clean", "--older_than=1", "--yes") == "nothing to remove\n" and (jobs / "a").is_dir()
    done = command(tmp_path, "clean")
    assert done.returncode == 1 and "give --yes" in done.stderr and (jobs / "a").is_dir()
    assert "1 removed" in said(tmp_path, "clean", "--yes") and not (jobs / "a").exists()
    assert (tmp_path / ".vertex_local/buckets/bucket/x/model").is_dir() and len(said(tmp_path, "list").splitlines()) == 1


def test_clean_leaves_what_runs(tmp_path):
    write_script(tmp_path, "chief.py", "print('up', flush=True)\ntime.sleep(60)\n")
    write_job(tmp_path, [("chief.py", 1)])
    with start(tmp_path, "job.yaml", "--job_id=a") as process:
        wait_for(lambda: "up" in command(tmp_path, "logs", "a").stdout)
        assert said(tmp_path, "clean", "--yes") == "nothing to remove\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130


def test_a_job_that_waits_is_stopped_before_it_starts(tmp_path, monkeypatch):
    """As the service's queue has it: a record, and a folder with no more than a lock."""
    from vertex_local.job import job_file
    from vertex_local.local import cluster, job_record
    from vertex_local.local.store import Store

    monkeypatch.chdir(tmp_path)
    write_script(tmp_path, "chief.py", "time.sleep(60)\n")
    path, name = write_job(tmp_path, [("chief.py", 1)]), "projects/p/locations/r/customJobs/7"
    store = Store(tmp_path / ".vertex_local")
    job_record.add(store, name, "customJobs", {"displayName": "x"})
    with job_record.held(tmp_path / ".vertex_local/jobs/7"):
        said(tmp_path, "stop", "7", "--no_wait")
        assert "CANCELLING" in said(tmp_path, "list")
        done = cluster.run(job_file.read(path), job_id="7")
    assert done.state == "JOB_STATE_CANCELLED"
    job_record.end(store, name, "CANCELLED")
    store.close()
    assert "CANCELLED" in said(tmp_path, "list")
