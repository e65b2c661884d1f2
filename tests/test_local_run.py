"""The life of a job: failures, restarts, endings, and that nothing is left behind. Payloads are plain scripts."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading

import forked
import pytest
from test_local_support import ROOT, alive, attempts, call, environ, result, run, start, wait_for, write_job, write_script

from vertex_local.job import job_file
from vertex_local.local import cluster, jobs, restarts

TOGETHER = {"scheduling": {"restartJobOnWorkerRestart": True}}
SLEEP = "time.sleep(60)\n"


def test_the_chief_ends_the_job_and_the_others_are_shut_down(tmp_path):
    write_script(tmp_path, "chief.py", "while not os.path.exists('workerpool1-0.lives'): time.sleep(0.01)\n")
    write_script(tmp_path, "quick.py", "time.sleep(0.5)\nprint('worker is done')\n")
    write_script(tmp_path, "slow.py", SLEEP)
    write_job(tmp_path, [("chief.py", 1), ("quick.py", 1), {}, ("slow.py", 1)])
    done = call(tmp_path, "job.yaml", "--job_id=a", "--grace=2")
    assert done.returncode == 0, done.stderr
    assert "[workerpool1-0] worker is done" in done.stdout, "within its grace a worker may finish"
    assert "rule: the chief is done and the grace of 2 s is over: workerpool3-0 shut down" in done.stdout
    assert attempts(tmp_path, "a") == {"workerpool0-0": [0], "workerpool1-0": [0], "workerpool3-0": [-15]}
    assert result(tmp_path, "a")["state"] == "JOB_STATE_SUCCEEDED"


def test_a_mistake_of_the_program_fails_the_job_at_once(tmp_path):
    write_script(tmp_path, "chief.py", SLEEP)
    write_script(tmp_path, "bad.py", "print('noise', file=sys.stderr)\nraise ValueError('fare is -3')\n")
    write_job(tmp_path, [("chief.py", 1), ("bad.py", 1)], **TOGETHER)
    done = run(tmp_path, "job.yaml", "--job_id=a")
    assert done.returncode == 1
    assert done.stderr == "error: workerpool1-0 (worker 0) failed first: exit code 1: ValueError: fare is -3\n"
    assert "rule: workerpool1-0: exit code 1 is permanent" in done.stdout
    assert attempts(tmp_path, "a") == {"workerpool0-0": [-15], "workerpool1-0": [1]}
    found = result(tmp_path, "a")
    assert found["state"] == "JOB_STATE_FAILED" and found["restarts"] == 0 and found["error"] in done.stderr
    log = tmp_path / ".vertex_local/jobs/a/logs/workerpool1-0.log"
    assert log.read_text().endswith("ValueError: fare is -3\n") and "[workerpool1-0] noise" in done.stdout


def test_the_headline_is_the_first_failure_and_reads_json_logs(tmp_path):
    entry = {"severity": "ERROR", "message": "no peers"}
    text = f"print({json.dumps(entry)!r})\nprint('bye', file=sys.stderr)\n"
    write_script(tmp_path, "chief.py", text + "while not os.path.exists('down'): time.sleep(0.01)\ntime.sleep(0.2)\nsys.exit(4)\n")
    write_script(tmp_path, "worker.py", text + "open('down', 'w')\nsys.exit(3)\n")
    write_job(tmp_path, [("chief.py", 1), ("worker.py", 1)])
    done = call(tmp_path, "job.yaml", "--job_id=a")
    assert done.stderr == "error: workerpool1-0 (worker 0) failed first: exit code 3: no peers\n"


@pytest.mark.parametrize("together", [False, True])
def test_a_lost_replica_is_restarted(tmp_path, together):
    lives = "open('workerpool1-0.lives', 'a').tell()"
    write_script(tmp_path, "chief.py", f"while {lives} < 2: time.sleep(0.05)\n")
    write_script(tmp_path, "worker.py", "if attempt == 1: os.kill(os.getpid(), 9)\ntime.sleep(60)\n")
    write_job(tmp_path, [("chief.py", 1), ("worker.py", 1)], **(TOGETHER if together else {}))
    done = call(tmp_path, "job.yaml", "--job_id=a", "--grace=0")
    assert done.returncode == 0, done.stderr
    expected = "all replicas restart (restart 1 of 5)" if together else "this replica restarts (restart 1 of 5)"
    assert "workerpool1-0 (worker 0) failed first: signal 9 (SIGKILL)" in done.stdout
    assert expected in result(tmp_path, "a")["rules"][0] and expected in done.stdout
    codes = attempts(tmp_path, "a")
    assert codes == {"workerpool0-0": [-15, 0] if together else [0], "workerpool1-0": [-9, -15]}
    assert result(tmp_path, "a")["restarts"] == (2 if together else 1)


def test_shell_codes_of_signals_are_transient_and_a_loss_of_several_is_one_incident(tmp_path):
    together = "while sum(name.endswith('.lives') for name in os.listdir()) < 3: time.sleep(0.01)\n"
    write_script(tmp_path, "a.py", together + "if attempt == 1: sys.exit(134)\n")
    write_script(tmp_path, "b.py", together + "if attempt == 1: sys.exit(137)\ntime.sleep(5)\n")
    write_job(tmp_path, [("a.py", 1), ("b.py", 2)], **TOGETHER)
    done = call(tmp_path, "job.yaml", "--job_id=a", "--grace=0")
    assert done.returncode == 0, done.stderr
    assert len([rule for rule in result(tmp_path, "a")["rules"] if "transient" in rule]) == 1
    assert {name: codes[0] for name, codes in attempts(tmp_path, "a").items()} == {
        "workerpool0-0": 134, "workerpool1-0": 137, "workerpool1-1": 137,
    }  # fmt: skip


def test_restarts_and_retries_have_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("vertex_local.local.lifecycle.SETTLE", 0)
    monkeypatch.chdir(tmp_path)
    write_script(tmp_path, "chief.py", "os.kill(os.getpid(), 11)\n")
    done = cluster.run(job_file.read(write_job(tmp_path, [("chief.py", 1)])), job_id="a")
    assert done.state == "JOB_STATE_FAILED" and done.retries == restarts.MAX_RETRIES
    assert attempts(tmp_path, "a") == {"workerpool0-0": [-11] * (restarts.MAX_RESTARTS + 1) * (restarts.MAX_RETRIES + 1)}
    assert "used up" in done.rules[-1] and "retry 1 of 3" in done.rules[5]


def test_the_rules():
    def rule(code, restarted=0, retries=0, together=False, disabled=False):
        return restarts.decide(code, restarted, retries, together=together, disabled=disabled)[0]

    assert [rule(code) for code in (1, 2, 13, 127, 128, 255)] == ["fail"] * 6
    assert [rule(code) for code in (-6, -9, -11, -15, 134, 137, 139, 143)] == ["restart"] * 8
    assert rule(-9, together=True) == "restart_all" and rule(-9, disabled=True) == "fail"
    assert rule(1, together=True) == "fail"
    assert (rule(-9, 4), rule(-9, 5), rule(-9, 5, 2), rule(-9, 5, 3)) == ("restart", "retry_job", "retry_job", "fail")
    assert restarts.describe(-9) == "signal 9 (SIGKILL)" and restarts.describe(134) == "exit code 134 (SIGABRT)"
    assert restarts.describe(3) == "exit code 3" and restarts.describe(255) == "exit code 255"


def test_disable_retries(tmp_path):
    write_script(tmp_path, "chief.py", "os.abort()\n")
    scheduling = {"disableRetries": True, "restartJobOnWorkerRestart": True}
    write_job(tmp_path, [("chief.py", 1)], scheduling=scheduling)
    done = call(tmp_path, "job.yaml", "--job_id=a")
    assert done.returncode == 1 and "scheduling.disableRetries is true: the job fails" in done.stdout
    assert attempts(tmp_path, "a") == {"workerpool0-0": [-6]}


def test_timeout(tmp_path):
    write_script(tmp_path, "chief.py", SLEEP)
    write_job(tmp_path, [("chief.py", 1)], scheduling={"timeout": "1s"})
    done = call(tmp_path, "job.yaml", "--job_id=a")
    assert done.returncode == 1 and "error: the job ran longer than scheduling.timeout, 1 s\n" == done.stderr
    assert "rule: scheduling.timeout of 1 s is over: the job fails" in done.stdout


def test_a_program_that_cannot_be_started(tmp_path):
    write_job(tmp_path, [{"replicaCount": 1, "containerSpec": {"imageUri": "a/b", "command": ["no-such-program"]}}])
    done = call(tmp_path, "job.yaml")
    assert done.returncode == 1
    assert "exit code 127: error: cannot start 'no-such-program': No such file or directory" in done.stderr


TREE = """\
child = "import os, signal, sys, time; signal.signal(15, signal.SIG_IGN); "
child += "open(sys.argv[1] + '.pid', 'w').write(str(os.getpid())); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child, me + "-child"])
subprocess.Popen([sys.executable, "-c", child, me + "-apart"], start_new_session=True)
open(me + "-self.pid", "w").write(str(os.getpid()))
"""


def tree(folder, text: str = SLEEP) -> list:
    """Write a job of two replicas that start children, one of them in a session of its own."""
    write_script(folder, "tree.py", TREE + text)
    write_job(folder, [("tree.py", 1), ("tree.py", 1)])
    return [folder / f"workerpool{i}-0-{kind}.pid" for i in (0, 1) for kind in ("self", "child", "apart")]


def pids_in(files: list) -> list[int]:
    return wait_for(lambda: all(file.exists() and file.read_text() for file in files) and [int(file.read_text()) for file in files])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_process_is_left_behind(tmp_path, number):
    files = tree(tmp_path)
    heard = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # under nohup, pytest and its children ignore it
    process = start(tmp_path, "job.yaml", "--job_id=a", fresh=True, preexec_fn=heard)
    pids = pids_in(files)
    assert all(map(alive, pids))
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: not any(map(alive, pids)))
    if number != signal.SIGKILL:
        assert result(tmp_path, "a")["state"] == "JOB_STATE_CANCELLED"


def test_a_second_interrupt_does_not_wait(tmp_path):
    """After one alone, replicas that do not go by it would have longer than this test takes."""
    files = tree(tmp_path, "signal.signal(15, lambda *_: open(me + '.told', 'w').close())\nopen(me + '.ready', 'w').close()\n" + 9 * SLEEP)
    patient = "import sys; from vertex_local import __main__; from vertex_local.local import lifecycle; "
    patient += "lifecycle.Cluster._stop.__defaults__ = (3600.0,); sys.exit(__main__.main())"
    command = [forked.python("local"), "-c", patient, "run", "job.yaml", "--job_id=a"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environ(), stdout=subprocess.DEVNULL)
    pids = pids_in(files)
    for said in ("ready", "told"):
        wait_for(lambda: all((tmp_path / f"workerpool{i}-0.{said}").exists() for i in (0, 1)))
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    wait_for(lambda: not any(map(alive, pids)))
    assert result(tmp_path, "a")["state"] == "JOB_STATE_CANCELLED"


def test_what_a_replica_leaves_running_ends_with_it_as_in_a_container(tmp_path):
    files = tree(tmp_path, "while not all(os.path.exists(me + end) for end in ('-apart.pid', '-child.pid')): time.sleep(0.05)\n")
    assert call(tmp_path, "job.yaml").returncode == 0
    assert not any(map(alive, pids_in(files)))


def test_a_killed_supervisor_is_a_lost_replica(tmp_path):
    files = tree(tmp_path, "if attempt == 2: sys.exit()\n" + SLEEP)
    process = start(tmp_path, "job.yaml", "--job_id=a", "--grace=0")
    pids = pids_in(files)
    parent = int((open(f"/proc/{pids[0]}/stat").read().rpartition(")")[2]).split()[1])
    os.kill(parent, signal.SIGKILL)
    assert process.wait(120) == 0
    process.communicate()
    assert attempts(tmp_path, "a")["workerpool0-0"] == [-9, 0]


def test_a_reader_that_goes_away_ends_the_job(tmp_path):
    files = tree(tmp_path, "while True: print('x' * 1000); time.sleep(0.001)\n")
    process = start(tmp_path, "job.yaml", "--job_id=a")
    pids = pids_in(files)
    process.stdout.close()
    assert process.wait(120) == 1 and process.stderr.read() == ""
    process.stderr.close()
    wait_for(lambda: not any(map(alive, pids)))


def test_jobs_at_once_have_ports_of_their_own(tmp_path, monkeypatch):
    """Three jobs in threads of this process and one of another process; all listen on all their ports."""
    monkeypatch.chdir(tmp_path)
    text = "import socket\naddress = json.loads(os.environ['CLUSTER_SPEC'])['cluster'][task['type']][task['index']]\n"
    text += "server = socket.create_server(('localhost', int(address.rpartition(':')[2])))\ntime.sleep(2)\n"
    write_script(tmp_path, "listen.py", text)
    job = job_file.read(write_job(tmp_path, [("listen.py", 1), ("listen.py", 1)]))
    other = start(tmp_path, "job.yaml", "--state_dir=elsewhere")
    done = {}
    threads = [threading.Thread(target=lambda i=i: done.update({i: cluster.run(job, job_id=f"t{i}")})) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    out, err = other.communicate(timeout=120)
    assert other.returncode == 0, out + err
    assert sorted(done) == [0, 1, 2] and all(each.succeeded for each in done.values()), done


def test_a_job_that_exists_is_not_overwritten(tmp_path):
    write_script(tmp_path, "show.py", "print('hello')\n")
    write_job(tmp_path, [("show.py", 1)])
    assert call(tmp_path, "job.yaml", "--job_id=a").returncode == 0
    before = result(tmp_path, "a")
    again = call(tmp_path, "job.yaml", "--job_id=a")
    assert again.returncode == 2 and "job a exists already" in again.stderr and before == result(tmp_path, "a")
    for bad in ("../a", "a/b", "", ".a", "a" * 129):
        with pytest.raises(jobs.JobError, match="a job id holds"):
            jobs.create(tmp_path, bad)


def test_it_writes_under_its_state_folder_and_the_bucket_root_only(tmp_path):
    (tmp_path / "show.py").write_text("print('hello')\n")
    write_job(tmp_path, [("show.py", 1)], baseOutputDirectory={"outputUriPrefix": "gs://bucket/run"})
    assert call(tmp_path, "job.yaml", "--job_id=a", "--bucket_root=store").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".vertex_local", "job.yaml", "show.py", "store"]
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "store").rglob("*")] == ["store/bucket"]
    job = tmp_path / ".vertex_local/jobs/a"
    assert job_file.read(job / "spec.yaml").message == job_file.read(tmp_path / "job.yaml").message
    assert (job / "logs/workerpool0-0.log").read_text() == "hello\n"
    found = result(tmp_path, "a")
    assert found["start"] <= found["end"] and found["outputs"]["AIP_MODEL_DIR"] == f"{tmp_path}/store/bucket/run/model/"


def test_a_live_table_on_a_terminal(tmp_path):
    event = {"phase": "step", "step": 40, "total_steps": 500, "examples_per_second": 123456.7}
    text = f"print('hello')\nopen(os.environ['TRAINER_EVENTS'], 'w').write('no json\\n[1]\\n' + {json.dumps(event)!r} + '\\n')\n"
    write_script(tmp_path, "chief.py", text + "time.sleep(1.5)\n")
    write_job(tmp_path, [("chief.py", 1), ("chief.py", 1)])
    code = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]))"
    command = [sys.executable, "-c", code, sys.executable, "-m", "vertex_local", "run", "job.yaml"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "LINES": "40", "TERM": "xterm"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout)
    assert "[workerpool1-0] hello" in plain and "JOB_STATE_SUCCEEDED" in plain
    assert re.search(r"workerpool1-0\W+worker 0\W+running\W+\d+\W+step\W+40/500\W+123,457\W+0", plain), plain
    assert re.search(r"workerpool0-0\W+chief 0\W+done", plain)


def test_it_starts_light_and_its_files_are_small():
    for path in sorted((ROOT / "vertex_local").rglob("*.py")):
        assert len(path.read_text().splitlines()) <= 450, path
    heavy = "('tensorflow', 'google.cloud.aiplatform', 'rich')"
    code = f"import sys, vertex_local.__main__; sys.exit(any(name.startswith({heavy}) for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
