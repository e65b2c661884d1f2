"""Kill drills, on a stand-in for our trainers that announces its phases and ends itself where it is told to."""

from __future__ import annotations

import json
import re
import signal

import pytest
from test_local_support import attempts, call, result, write_job, write_script

from vertex_local.local import kills

TRAINER = """\
order = dict(part.split("=") for part in os.environ.get("TRAINER_KILL", "").split(",") if part)
print("TRAINER_KILL", order)
while sum(name.endswith(".lives") for name in os.listdir()) < 3:
    time.sleep(0.01)
counts = {}
def enter(phase, step):
    counts[phase] = counts.get(phase, 0) + 1
    with open(os.environ["TRAINER_EVENTS"], "a") as file:
        file.write(json.dumps({"time": time.time(), "phase": phase, "step": step, "total_steps": 20}) + chr(10))
    if order.get(phase) == str(step if phase == "step" else counts[phase]):
        os.kill(os.getpid(), signal.Signals["SIG" + order["signal"]])
for step in range(1, 21):
    time.sleep(0.01)
    enter("step", step)
    if step % 5 == 0:
        enter("checkpoint", step)
    if step % 10 == 0:
        enter("evaluation", step)
if me == "workerpool0-0":
    enter("export", 20)
    os.makedirs(os.environ["AIP_MODEL_DIR"], exist_ok=True)
    time.sleep(0.3)
"""
FIELDS = {"baseOutputDirectory": {"outputUriPrefix": "gs://bucket/run"}, "scheduling": {"restartJobOnWorkerRestart": True}}


@pytest.fixture
def folder(tmp_path):
    write_script(tmp_path, "trainer.py", TRAINER)
    write_job(tmp_path, [("trainer.py", 1), ("trainer.py", 2)], **FIELDS)
    return tmp_path


def test_kills_hit_their_place_in_the_first_attempt_only(folder, monkeypatch):
    monkeypatch.setattr("vertex_local.local.lifecycle.SETTLE", 2.0)  # two kills at once stay two on a busy machine
    wanted = ["workerpool0-0@evaluation=2,signal=ABRT", "workerpool1-1@step=20,signal=KILL"]
    done = call(folder, "job.yaml", "--job_id=a", "--kill", wanted[0], "--kill", wanted[1])
    assert done.returncode == 0, done.stdout + done.stderr
    codes = attempts(folder, "a")
    assert (codes["workerpool0-0"], codes["workerpool1-1"]) == ([-6, 0], [-9, 0]), codes
    assert result(folder, "a")["kills"] == dict.fromkeys(wanted, True)
    assert len(codes["workerpool1-0"]) == 2, "all start again together"
    log = (folder / ".vertex_local/jobs/a/logs/workerpool0-0.log").read_text()
    assert re.findall("TRAINER_KILL (.*)", log) == ["{'evaluation': '2', 'signal': 'ABRT'}", "{}"]
    events = (folder / ".vertex_local/jobs/a/events/workerpool1-1.jsonl").read_text().splitlines()
    steps = [event["step"] for event in map(json.loads, events) if event["phase"] == "step"]
    assert steps == [*range(1, 21), *range(1, 21)]


def test_a_kill_by_the_clock_needs_no_help_from_the_program(tmp_path):
    write_script(tmp_path, "any.py", "time.sleep(60 if attempt == 1 else 0)\n")
    write_job(tmp_path, [("any.py", 1)])
    done = call(tmp_path, "job.yaml", "--job_id=a", "--kill=workerpool0-0@seconds=0.5,signal=TERM")
    assert done.returncode == 0, done.stdout + done.stderr
    assert attempts(tmp_path, "a") == {"workerpool0-0": [-15, 0]}
    assert "TRAINER_KILL" not in done.stdout


def test_a_place_that_is_not_reached_is_said(folder):
    done = call(folder, "job.yaml", "--job_id=a", "--kill=workerpool1-0@step=999")
    assert done.returncode == 0 and result(folder, "a")["kills"] == {"workerpool1-0@step=999,signal=KILL": False}
    assert "warning: --kill workerpool1-0@step=999,signal=KILL did not happen" in done.stdout


@pytest.mark.parametrize(
    "text", ["workerpool1-0", "worker-0@step=4", "workerpool1-0@epoch=4", "workerpool1-0@step=0", "workerpool1-0@step=1.5",
             "workerpool1-0@step=4,signal=BOO", "workerpool1-0@step=4,signal=STOP",
             "workerpool4-0@step=1", "workerpool1-0@step=1,signal=KILL,x=1"],
)  # fmt: skip
def test_a_kill_that_makes_no_sense(text):
    with pytest.raises(ValueError, match="--kill"):
        kills.parse(text)


def test_the_command_line_refuses_them_too(folder):
    for args, words in (
        (["--kill=workerpool1-0@step=0"], "--kill takes a form such as"),
        (["--kill=workerpool1-7@step=1"], "no such replica is started; there are workerpool0-0"),
        (["--kill=workerpool1-0@step=1", "--kill=workerpool1-0@step=2"], "is named twice"),
        (["--drill=0"], "takes a whole number from 1 on"),
    ):
        done = call(folder, "job.yaml", *args)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    done = call(folder, "job.yaml", "--announce=workerpool0")
    assert done.returncode == 2 and "it takes a pool beside the chief's: workerpool1" in done.stderr
    assert not (folder / ".vertex_local").exists()


def test_kills_are_read_and_written_alike():
    kill = kills.parse("workerpool1-0@checkpoint=2,signal=SIGTERM")
    assert kill == kills.Kill("workerpool1-0", "checkpoint", 2, signal.SIGTERM)
    assert kill.for_trainer == "checkpoint=2,signal=TERM" and kills.parse(str(kill)) == kill
    assert kills.parse("workerpool0-0@seconds=1.5").for_trainer == ""


def test_drills_are_drawn_from_what_an_unbroken_run_showed():
    seen = {
        "workerpool0-0": {"step": 40, "checkpoint": 3, "evaluation": 2, "export": 1, "seconds": 3.0},
        "workerpool1-0": {"step": 40, "checkpoint": 3, "seconds": 3.0},
    }
    drills = kills.draw(seen, 40, 7)
    assert drills == kills.draw(seen, 40, 7) != kills.draw(seen, 40, 8)
    every = [kill for drill in drills for kill in drill]
    assert {kill.place for kill in every} == {"step", "checkpoint", "evaluation", "export"}
    assert {kill.replica for kill in every} == set(seen) and {len(drill) for drill in drills} == {1, 2}
    assert all(1 <= kill.at <= seen[kill.replica].get(kill.place, 0) for kill in every)
    quiet = kills.draw({"workerpool0-0": {"seconds": 2.0}}, 5, 1)
    assert all(kill.place == "seconds" and 0 <= kill.at <= 2 for drill in quiet for kill in drill)


@pytest.mark.slow
def test_a_series_of_drills(folder):
    done = call(folder, "job.yaml", "--job_id=d", "--drill=5", "--seed=3")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "FAIL"))]
    assert len(rows) == 6 and all(row.startswith("ok ") for row in rows)
    assert rows[0].startswith("ok   d-unbroken: no kill: SUCCEEDED, 0 restarts")
    assert re.search(r"d-01: workerpool\d-\d@\w+=\d+,signal=KILL: SUCCEEDED, 3 restarts", rows[1])
    assert "5 of 5 drills passed." in done.stdout
    names = ["d-01", "d-02", "d-03", "d-04", "d-05", "d-unbroken"]
    assert sorted(path.name for path in (folder / ".vertex_local/buckets/bucket/run").iterdir()) == names
    assert all((folder / ".vertex_local/buckets/bucket/run" / name / "model").is_dir() for name in names)
    assert all(-9 in [codes[0] for codes in attempts(folder, name).values()] for name in names[:-1])


def test_drills_need_an_output_directory(folder):
    write_job(folder, [("trainer.py", 1)])
    done = call(folder, "job.yaml", "--drill=1")
    assert done.returncode == 2 and "a drill needs baseOutputDirectory" in done.stderr
