"""Local tuning jobs: real trials of a small plain program, the real command line, and the real trainer in one test."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import forked
import pytest
from test_local_support import ROOT, alive, environ, wait_for

from vertex_local.__main__ import main
from vertex_local.job import times
from vertex_local.local import records, supervise
from vertex_local.tuning import measurements, search, study, trials, tuner, tuning_report
from vertex_local.tuning import runner as tuning

# A trainer in a few lines: `report` writes as hypertune does, `flags` are its arguments as they came.
HEAD = """\
import json, math, os, signal, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
trial = os.environ["CLOUD_ML_TRIAL_ID"]
task = json.loads(os.environ["CLUSTER_SPEC"])["task"]
lines = []
def report(value, step, tag="loss"):
    lines.append(json.dumps({"timestamp": time.time(), "trial": trial, tag: str(value), "global_step": str(step)}) + "\\n")
    open(os.environ["CLOUD_ML_HP_METRIC_FILE"], "w").write("".join(lines[-100:]))
def note(name, text):
    open(name, "a").write(str(text) + "\\n")
"""
X = {"parameterId": "x", "doubleValueSpec": {"minValue": -5, "maxValue": 5}}
LOSS = [{"metricId": "loss", "goal": "MINIMIZE"}]


def write_study(folder: Path, script: str, parameters=(X,), metrics=LOSS, *, trials=4, parallel=2, failed=0, output=True, **spec) -> Path:
    """Write a program and a tuning file that runs it; return the file."""
    (folder / "program.py").write_text(HEAD + script)
    task = {"imageUri": "host/any:1", "command": ["python", "program.py"]}
    job = {"workerPoolSpecs": [{"replicaCount": 1, "containerSpec": task}]}
    if output:
        job["baseOutputDirectory"] = {"outputUriPrefix": "gs://bucket/hp"}
    config = {
        "displayName": "a study", "maxTrialCount": trials, "parallelTrialCount": parallel, "maxFailedTrialCount": failed,
        "studySpec": {"metrics": list(metrics), "parameters": list(parameters), **spec}, "trialJobSpec": job,
    }  # fmt: skip
    path = folder / "hp.yaml"
    path.write_text(json.dumps(config, indent=1))
    return path


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=1))


def tune(folder: Path, *args: object) -> subprocess.CompletedProcess:
    """Run the command line inside this process, where everything is loaded already."""
    out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(["tune", "hp.yaml", "--job_id", "s", *map(str, args)])
            except SystemExit as end:  # argparse
                code = end.code
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def start(folder: Path, *args: object, fresh: bool = False, **popen) -> subprocess.Popen:
    """Start the command line in a fork; `fresh`: as a process of its own, which is gone as soon as it has been killed."""
    python = sys.executable if fresh else forked.python("local")
    command = [python, "-m", "vertex_local", "tune", "hp.yaml", "--job_id", "s", *map(str, args)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environ(), **popen}
    return subprocess.Popen(command, cwd=folder, **options)


def result(folder: Path) -> dict:
    return json.loads((folder / ".vertex_local" / "jobs" / "s" / "result.json").read_text())


def states(folder: Path) -> list[str]:
    return [trial["state"] for trial in result(folder)["trials"]]


def drawn(folder: Path) -> list[dict]:
    return [trials.parameters(trial) for trial in result(folder)["trials"]]


# ------------------------------------------------------------------ trials as on the service


def test_a_study_from_file_to_winner(tmp_path):
    """Every kind of parameter, as the service passes it; directories, metric files and the API's trials."""
    parameters = [
        {"parameterId": "lr", "scaleType": "UNIT_LOG_SCALE", "doubleValueSpec": {"minValue": 1e-4, "maxValue": 0.1}},
        {"parameterId": "layers", "integerValueSpec": {"minValue": 1, "maxValue": 4}},
        {"parameterId": "batch_size", "discreteValueSpec": {"values": [64, 128.5]}},
        {"parameterId": "optimizer", "categoricalValueSpec": {"values": ["adam", "sgd x"]}, "conditionalParameterSpecs": [
            {"parentCategoricalValues": {"values": ["sgd x"]},
             "parameterSpec": {"parameterId": "momentum", "doubleValueSpec": {"minValue": 0.5, "maxValue": 0.9}}}]},
    ]  # fmt: skip
    write_study(tmp_path, """
places = [os.environ[f"AIP_{name}_DIR"] for name in ("MODEL", "CHECKPOINT", "TENSORBOARD_LOG")]
note("seen", json.dumps({"argv": sys.argv[1:], "trial": trial, "task": task, "places": places}))
for step in (10, 20):
    report(float(flags["lr"]) + 1 / step, step)
""", parameters, trials=9, algorithm="RANDOM_SEARCH")  # fmt: skip
    done = tune(tmp_path, "--", "--epochs=3")
    assert done.returncode == 0, done.stderr
    assert states(tmp_path) == ["SUCCEEDED"] * 9 and result(tmp_path)["state"] == "JOB_STATE_SUCCEEDED"
    seen = {entry["trial"]: entry for entry in map(json.loads, (tmp_path / "seen").read_text().splitlines())}
    assert set(seen) == {str(n) for n in range(1, 10)}
    base = tmp_path / ".vertex_local" / "buckets" / "bucket" / "hp"
    for trial in result(tmp_path)["trials"]:
        values, entry = trials.parameters(trial), seen[trial["id"]]
        assert entry["places"] == [f"{base}/{trial['id']}/{name}/" for name in ("model", "checkpoints", "logs")]
        assert entry["task"]["trial"] == trial["id"]
        assert entry["argv"][0] == "--epochs=3"  # the user's own come first: the later of two wins
        assert entry["argv"][1:] == [f"--{name}={value if isinstance(value, str) else repr(value)}" for name, value in values.items()]
        assert isinstance(values["layers"], int) and values["batch_size"] in (64.0, 128.5)
        assert ("momentum" in values) == (values["optimizer"] == "sgd x")
        assert [(m["stepCount"], m["metrics"][0]["metricId"]) for m in trial["measurements"]] == [("10", "loss"), ("20", "loss")]
        assert trial["finalMeasurement"] == trial["measurements"][-1]
    assert "--batch_size=64.0" in {word for entry in seen.values() for word in entry["argv"]}
    assert {len(values) for values in drawn(tmp_path)} == {4, 5}
    check_api(result(tmp_path)["trials"])
    (best,) = result(tmp_path)["best"]
    assert best == min(result(tmp_path)["trials"], key=lambda t: trials.parameters(t)["lr"])["id"]
    command = result(tmp_path)["commands"][best]
    assert command in done.stdout and command.startswith("python program.py --epochs=3 --lr=") and ".0 " not in command
    assert done.stdout.count("SUCCEEDED: loss") == 9 and done.stdout.count("ACTIVE: lr ") == 9


def check_api(found: list[dict]) -> None:
    """The service's own type takes the trials, every field of them."""
    from google.cloud.aiplatform_v1.types import study as types
    from google.protobuf import json_format

    for trial in found:
        json_format.ParseDict(trial, types.Trial.pb()())


def test_a_python_package_gets_two_words_and_a_container_one():
    package = {"executorImageUri": "i", "packageUris": ["p.whl"], "pythonModule": "trainer.task", "args": ["--a", "1"]}
    specs = [
        {"replicaCount": 1, "pythonPackageSpec": package}, {"replicaCount": 1, "containerSpec": {"imageUri": "i", "args": ["--a=1"]}},
        {"replicaCount": 1, "containerSpec": {"imageUri": "reductionserver"}}, {},
    ]  # fmt: skip
    config = {"studySpec": {"metrics": LOSS, "parameters": [X]}, "trialJobSpec": {"workerPoolSpecs": specs}}
    values = {"lr": 0.01, "batch_size": 128.0, "layers": 2, "nnsize": "64 32"}
    wanted = study.loads(json.dumps(config), "f").job
    job = trials.job_for(wanted, values)
    assert job.pools[0].args == ("--a", "1", "--lr", "0.01", "--batch_size", "128.0", "--layers", "2", "--nnsize", "64 32")
    assert job.pools[1].args == ("--a=1", "--lr=0.01", "--batch_size=128.0", "--layers=2", "--nnsize=64 32")
    assert job.pools[2:] == wanted.pools[2:]


def test_trials_may_be_clusters_of_which_the_chief_reports(tmp_path):
    path = write_study(tmp_path, """
config = json.loads(os.environ["TF_CONFIG"])
task = config["task"]
note("seen", json.dumps([trial, task["type"], task["trial"], sorted(config["cluster"]), os.environ.get("OMP_NUM_THREADS")]))
report(1 if task["type"] == "chief" else 0, 1)
""", trials=2, parallel=2)  # fmt: skip
    config = json.loads(path.read_text())
    pool = config["trialJobSpec"]["workerPoolSpecs"][0]
    config["trialJobSpec"]["workerPoolSpecs"] = [pool, pool]
    path.write_text(json.dumps(config))
    assert tune(tmp_path).returncode == 0
    seen = sorted(json.loads(line) for line in (tmp_path / "seen").read_text().splitlines())
    assert [entry[:3] for entry in seen] == [["1", "chief", "1"], ["1", "worker", "1"], ["2", "chief", "2"], ["2", "worker", "2"]]
    assert {tuple(entry[3]) for entry in seen} == {("chief", "worker")}
    assert [t["finalMeasurement"]["metrics"][0]["value"] for t in result(tmp_path)["trials"]] == [1.0, 1.0]
    share = max(1, len(os.sched_getaffinity(0)) // 4)
    assert {entry[4] for entry in seen} == {os.environ.get("OMP_NUM_THREADS") or str(share)}


def test_the_last_or_the_best_measurement_counts(tmp_path):
    script = "for step, value in enumerate((3, 1, 2), 1):\n    report(value, step)\n"
    for folder, kind, value, step in (("a", "MEASUREMENT_SELECTION_TYPE_UNSPECIFIED", 2, "3"), ("b", "BEST_MEASUREMENT", 1, "2")):
        (tmp_path / folder).mkdir()
        write_study(tmp_path / folder, script, trials=1, measurementSelectionType=kind)
        assert tune(tmp_path / folder).returncode == 0
        final = result(tmp_path / folder)["trials"][0]["finalMeasurement"]
        assert (final["metrics"][0]["value"], final["stepCount"]) == (value, step)


def test_no_report_is_lost_though_the_file_keeps_a_hundred(tmp_path):
    """hypertune's own client, three trials at a time, hundreds of reports a second."""
    write_study(tmp_path, """
import hypertune
client = hypertune.HyperTune()
for step in range(1, 701):
    client.report_hyperparameter_tuning_metric("loss", 1000 - step, step)
    time.sleep(0.001)
""", trials=3, parallel=3)  # fmt: skip
    done = tune(tmp_path)
    assert done.returncode == 0, done.stderr
    for trial in result(tmp_path)["trials"]:
        assert [int(m["stepCount"]) for m in trial["measurements"]] == list(range(1, 701))
        assert [m["metrics"][0]["value"] for m in trial["measurements"]] == [1000.0 - step for step in range(1, 701)]
        path = tmp_path / ".vertex_local" / "jobs" / trial["customJob"] / "metrics" / "workerpool0-0" / "output.metrics"
        assert len(path.read_text().splitlines()) == 100
    assert "warning" not in done.stdout


def test_lost_reports_are_owned_up_to(tmp_path):
    """A file that was rewritten altogether between two looks; a restarted replica's file does not count twice."""
    path = tmp_path / "metrics"
    write = [json.dumps({"timestamp": n, "trial": "1", "loss": "1", "global_step": str(n)}) + "\n" for n in range(250)]
    over, reports = threading.Event(), measurements.Reports(path)
    keeper = threading.Thread(target=supervise._keep_reports, args=(str(path), over))
    keeper.start()
    found: list[dict] = []
    for lines, lost in ((write[:99], False), (write[50:150], False), (write[150:], True)):
        path.write_text("".join(lines) + '{"timestamp": 1, "half a li')
        expected = len(found) + len(set(lines) - set(write[: len(found)]))
        wait_for(lambda: found.extend(reports.new()) or len(found) >= expected)
        assert reports.lost == lost
    over.set()
    keeper.join()
    supervise._keep_reports(str(path), over)
    assert len(found) == 250 and not reports.new()


def test_reports_without_steps_and_again_after_a_restart():
    """A measurement for each report; with steps, what a restarted replica reports again takes the old one's place."""
    loss, ms = study.Metric("loss", False), study.Metric("ms", False)
    found: list[dict] = []
    for n in range(3):
        reports = [{"step": 0, "time": 10.0 + n, "values": {name: n}} for name in ("loss", "ms")]
        found = measurements.merge(found, reports, [loss, ms], 10.0)
    assert [measurements.value_of(item) for item in found] == [{"loss": n, "ms": n} for n in range(3)]
    reports = [
        {"step": step, "time": 11.5, "values": {"loss": value, "other": 1.0}}
        for step, value in ((10, 1.0), (20, 2.0), (10, 3.0), (30, float("nan")))
    ]
    again = measurements.merge([], reports, [loss], 10.0)
    assert [(item["stepCount"], measurements.value_of(item)) for item in again] == [("10", {"loss": 3.0}), ("20", {"loss": 2.0})]
    assert again[0]["elapsedDuration"] == "1.500s"


# ------------------------------------------------------------------ failures


def test_a_failed_trial_is_infeasible_and_the_study_goes_on(tmp_path):
    write_study(tmp_path, """
if trial == "2":
    report(5, 1)
    sys.exit("error: the loss is not finite at step 7 of 9")
report(math.nan if trial == "3" else 1, 1)
""", trials=5, failed=3)  # fmt: skip
    done = tune(tmp_path)
    assert done.returncode == 0, done.stderr
    assert states(tmp_path) == ["SUCCEEDED", "INFEASIBLE", "INFEASIBLE", "SUCCEEDED", "SUCCEEDED"]
    bad, nan = result(tmp_path)["trials"][1:3]
    assert "the loss is not finite at step 7 of 9" in bad["infeasibleReason"] and nan["infeasibleReason"] == "loss was nan at step 1"
    assert "finalMeasurement" not in bad and len(bad["measurements"]) == 1 and not nan["measurements"]
    assert re.search(r"^trial 2 INFEASIBLE: .*not finite at step 7", done.stdout, re.MULTILINE)
    check_api(result(tmp_path)["trials"])


@pytest.mark.parametrize("failed, ran", [(0, 1), (2, 2)])
def test_too_many_failures_end_the_job(tmp_path, failed, ran):
    write_study(tmp_path, "sys.exit('error: no data')\n", trials=5, parallel=1, failed=failed)
    done = tune(tmp_path)
    assert done.returncode == 1 and states(tmp_path) == ["INFEASIBLE"] * ran
    (line,) = done.stderr.splitlines()
    assert f"{ran} of {ran} trials failed (maxFailedTrialCount is {failed}" in line and "error: no data" in line
    assert result(tmp_path)["state"] == "JOB_STATE_FAILED"


def test_a_trial_without_the_studys_metric_says_what_it_reported(tmp_path):
    write_study(tmp_path, "report(1, 1, tag='val_loss')\n", trials=1)
    done = tune(tmp_path)
    assert done.returncode == 1 and states(tmp_path) == ["INFEASIBLE"]
    assert "the study wants loss, the trial reported val_loss" in done.stderr


def test_when_the_job_fails_the_other_trials_end_too(tmp_path):
    write_study(tmp_path, """
note("pids", os.getpid())
if trial == "1":
    while len(open("pids").readlines()) < 2: time.sleep(0.05)
    sys.exit(1)
time.sleep(60)
""")  # fmt: skip
    assert tune(tmp_path).returncode == 1
    assert [t["infeasibleReason"] == tuner.CUT for t in result(tmp_path)["trials"]] == [False, True]
    assert not [pid for pid in (tmp_path / "pids").read_text().split() if alive(int(pid))]


# ------------------------------------------------------------------ the search


def test_the_same_seed_draws_the_same(tmp_path):
    found = []
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / folder).mkdir()
        write_study(tmp_path / folder, "report(float(flags['x']) ** 2, 1)\n", trials=3, parallel=1)
        assert tune(tmp_path / folder, "--seed", seed).returncode == 0
        found.append([values["x"] for values in drawn(tmp_path / folder)])
    assert found[0] == found[1] != found[2]


@pytest.mark.slow
def test_the_default_search_learns(tmp_path):
    """Beyond what it draws by chance at first, its draws gather around the best value, 2."""
    write_study(tmp_path, "report((float(flags['x']) - 2) ** 2, 1)\n", trials=24, parallel=1)
    assert tune(tmp_path).returncode == 0
    errors = [abs(values["x"] - 2) for values in drawn(tmp_path)]
    assert statistics.median(errors[12:]) < statistics.median(errors[:8]) / 2, errors


def test_a_grid_with_conditional_parameters(tmp_path):
    parameters = [
        {"parameterId": "opt", "categoricalValueSpec": {"values": ["a", "b"]}, "conditionalParameterSpecs": [
            {"parentCategoricalValues": {"values": ["b"]},
             "parameterSpec": {"parameterId": "m", "scaleType": "UNIT_LOG_SCALE", "discreteValueSpec": {"values": [0.5, 0.9]}}}]},
        {"parameterId": "n", "integerValueSpec": {"minValue": 1, "maxValue": 2}},
    ]  # fmt: skip
    write_study(tmp_path, "report(1, 1)\n", parameters, trials=20, parallel=3, algorithm="GRID_SEARCH")
    done = tune(tmp_path)
    assert done.returncode == 0 and "the grid has 6 points, maxTrialCount is 20" in done.stdout
    expected = [{"opt": "a", "n": 1}, {"opt": "a", "n": 2}] + [{"opt": "b", "m": m, "n": n} for m in (0.5, 0.9) for n in (1, 2)]
    assert drawn(tmp_path) == expected


def test_several_metrics_and_a_threshold(tmp_path):
    """The best are those that no other beats in every metric, on the right side of the threshold."""
    metrics = [*LOSS, {"metricId": "auc"}, {"metricId": "ms", "goal": "MINIMIZE", "safetyConfig": {"safetyThreshold": 5}}]
    script = """
n = int(flags["n"])
report({1: 1, 2: 2, 3: 2, 4: 0}[n], 1)
report({1: 0.1, 2: 0.9, 3: 0.5, 4: 1}[n], 1, "auc")
report(9 if n == 4 else 1, 1, "ms")
"""
    parameter = {"parameterId": "n", "integerValueSpec": {"minValue": 1, "maxValue": 4}}
    write_study(tmp_path, script, [parameter], metrics, algorithm="GRID_SEARCH", medianAutomatedStoppingSpec={})
    done = tune(tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path)["best"] == ["1", "2"] and "needs a single metric" in done.stdout
    path = tmp_path / "hp.yaml"
    config = json.loads(path.read_text())
    del config["studySpec"]["algorithm"]
    path.write_text(json.dumps({**config, "maxTrialCount": 14}))
    assert tune(tmp_path, "--output", "gs://bucket/other", "--job_id", "s2").returncode == 0  # the Bayesian search with both


# ------------------------------------------------------------------ stopping


@pytest.mark.slow
def test_the_median_rule_stops_a_trial_by_sigterm(tmp_path):
    write_study(tmp_path, """
x = int(flags["x"])
if x > 8: signal.signal(signal.SIGTERM, lambda *_: (note("terminated", trial), sys.exit(143)))
for step in range(1, 4):
    report(x + 1 / step, step)
    time.sleep(0.05)
if x > 8: time.sleep(60)
""", [{"parameterId": "x", "integerValueSpec": {"minValue": 1, "maxValue": 9}}], trials=9, parallel=1,
        algorithm="GRID_SEARCH", medianAutomatedStoppingSpec={})  # fmt: skip
    changes: list[tuple] = []
    found = run_here(tmp_path, on_trial=lambda trial: changes.append((trial["id"], trial["state"])))
    assert found.succeeded and {trial["state"] for trial in found.trials} == {"SUCCEEDED"}
    last = found.trials[-1]
    assert [state for n, state in dict.fromkeys(changes) if n == "9"] == ["ACTIVE", "STOPPING", "SUCCEEDED"]
    assert last["measurements"] and last["finalMeasurement"] == last["measurements"][-1]
    assert (tmp_path / "terminated").read_text() == "9\n"
    assert ("1", "STOPPING") not in changes


@pytest.mark.slow
def test_elapsed_time_may_be_what_the_median_rule_goes_by(tmp_path):
    """Steps that never meet, as with different batch sizes, or none at all: the newest value at a time is compared."""
    write_study(tmp_path, """
x = int(flags["x"])
for n in range(1, 30):
    report(x, 0)
    time.sleep(0.1)
    if x < 9 and n == 15: break
if x == 9: time.sleep(60)
""", [{"parameterId": "x", "integerValueSpec": {"minValue": 1, "maxValue": 9}}], trials=9, parallel=4,
        algorithm="GRID_SEARCH", medianAutomatedStoppingSpec={"useElapsedDuration": True})  # fmt: skip
    found = run_here(tmp_path)
    assert found.succeeded and [trial["state"] for trial in found.trials] == ["SUCCEEDED"] * 9


@pytest.mark.parametrize("rules, ran", [
    ({"maxNumTrials": 3}, 3),
    ({"maxNumTrialsNoProgress": 2}, 4),
    ({"maxNumTrialsNoProgress": 2, "minNumTrials": 6}, 6),
    ({"maximumRuntimeConstraint": {"maxDuration": "1s"}}, None),
    ({"maximumRuntimeConstraint": {"endTime": "2020-01-01T00:00:00Z"}}, 0),
    ({"maximumRuntimeConstraint": {"maxDuration": "0.1s"}, "minimumRuntimeConstraint": {"maxDuration": "600s"}}, 8),
    ({"maxDurationNoProgress": "1s"}, None),
])  # fmt: skip
def test_studys_own_stopping_rules(tmp_path, rules, ran):
    """The best is the second trial of at most eight, run one after the other."""
    pause = 0.1 if ran is not None else 0.5  # Eight trials must outlast the rules that go by time on the fastest machine.
    write_study(tmp_path, f"time.sleep({pause})\nreport(abs(int(trial) - 2), 1)\n", trials=8, parallel=1, studyStoppingConfig=rules)
    done = tune(tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(states(tmp_path)) == ran if ran is not None else len(states(tmp_path)) < 8
    assert ("rule: " in done.stdout) == (ran != 8)


def test_stopping_as_soon_as_possible_keeps_what_was_measured(tmp_path):
    rules = {"maxNumTrials": 3, "shouldStopAsap": True}
    write_study(tmp_path, """
if trial == "1": sys.exit(report(1, 1))
report(2, 1)
time.sleep(0.5 if trial == "2" else 60)
""", trials=8, parallel=2, studyStoppingConfig=rules)  # fmt: skip
    done = tune(tmp_path)
    assert done.returncode == 0, done.stderr
    third = result(tmp_path)["trials"][2]
    assert states(tmp_path)[2] == "SUCCEEDED" or third["infeasibleReason"] == tuner.UNMEASURED


def run_here(folder: Path, **options) -> tuning.Result:
    before = os.getcwd()
    os.chdir(folder)
    try:
        return tuning.run(study.load("hp.yaml"), job_id="s", **options)
    finally:
        os.chdir(before)


# ------------------------------------------------------------------ cut, and continued

SLOW = """
note("pids", os.getpid())
note("lives-" + trial, json.dumps(sys.argv[1:]))
report(int(trial), 1)
while int(trial) in (3, 4) and not os.path.exists("go"): time.sleep(0.02)
report(int(trial) + 0.5, 2)
"""


def third_and_fourth(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        found = result(folder)["trials"]
        return [bool(trial["measurements"]) for trial in found] == [True] * 4 and states(folder)[:2] == ["SUCCEEDED"] * 2
    return False


@pytest.mark.parametrize("number, code, state", [
    (signal.SIGKILL, -9, "JOB_STATE_RUNNING"), (signal.SIGINT, 130, "JOB_STATE_CANCELLED"),
    pytest.param(signal.SIGTERM, 143, "JOB_STATE_CANCELLED", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_study_that_was_cut_goes_on(tmp_path, number, code, state):
    """Finished trials stay, cut ones run again with the same parameters, nothing is left running meanwhile."""
    write_study(tmp_path, SLOW, trials=6)
    with start(tmp_path, fresh=number == signal.SIGKILL) as process:
        wait_for(lambda: third_and_fourth(tmp_path))
        process.send_signal(number)
        assert process.wait(120) == code
    wait_for(lambda: not [pid for pid in (tmp_path / "pids").read_text().split() if alive(int(pid))])
    before = result(tmp_path)
    assert before["state"] == state
    if number != signal.SIGKILL:
        assert [trial["state"] for trial in before["trials"]] == ["SUCCEEDED"] * 2 + ["INFEASIBLE"] * 2
        assert before["trials"][2]["infeasibleReason"] == tuner.CUT
    (tmp_path / "go").touch()
    done = tune(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on: 2 trials are done, 2 were cut and run again" in done.stdout and done.stdout.count("ACTIVE: x") == 4
    after = result(tmp_path)["trials"]
    assert after[:2] == before["trials"][:2] and states(tmp_path) == ["SUCCEEDED"] * 6
    for n in (1, 2, 3, 4, 5, 6):
        lives = (tmp_path / f"lives-{n}").read_text().splitlines()
        assert len(lives) == (2 if n in (3, 4) else 1) and len(set(lives)) == 1
    assert [trial["customJob"] for trial in after] == ["s-trial-1", "s-trial-2", "s-trial-3-2", "s-trial-4-2", "s-trial-5", "s-trial-6"]
    assert [m["stepCount"] for m in after[2]["measurements"]] == ["1", "2"] and "infeasibleReason" not in after[2]


@pytest.mark.slow
def test_a_study_that_was_cut_draws_what_an_unbroken_one_draws(tmp_path):
    found = []
    for folder, counts in (("a", (7,)), ("b", (2, 5, 7))):
        (tmp_path / folder).mkdir()
        path = write_study(tmp_path / folder, "report(float(flags['x']), 1)\n", parallel=1)
        for count in counts:  # more trials are asked for, and the others stay
            edit(path, maxTrialCount=count)
            assert tune(tmp_path / folder).returncode == 0
        found.append(drawn(tmp_path / folder))
    assert len(found[0]) == 7 and found[0] == found[1]


def test_a_trial_that_ended_as_the_study_was_killed_is_not_run_again(tmp_path, monkeypatch):
    """Between the trial's last record and the search's."""
    write_study(tmp_path, "note('ran', trial)\nreport(int(trial), 1)\n", trials=3, parallel=1)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(search.Search, "tell", killed)
        assert tune(tmp_path).returncode == 1
    assert len((tmp_path / "ran").read_text().split()) == 1
    assert tune(tmp_path).returncode == 0
    assert (tmp_path / "ran").read_text().split() == ["1", "2", "3"] and states(tmp_path) == ["SUCCEEDED"] * 3


def test_reports_that_were_not_yet_noted_are_found_again(tmp_path):
    """A trainer that goes on from its checkpoint does not evaluate again what it has evaluated."""
    write_study(tmp_path, """
first = not os.path.exists("lives")
note("lives", os.getpid())
for step in (1, 2) if first else (3,): report(step, step)
while first: time.sleep(0.05)
""", trials=1)  # fmt: skip
    with start(tmp_path, fresh=True) as process:
        wait_for(lambda: len(metric_lines(tmp_path)) == 2)
        process.kill()
        process.wait(120)
    assert tune(tmp_path).returncode == 0
    (trial,) = result(tmp_path)["trials"]
    assert [m["stepCount"] for m in trial["measurements"]] == ["1", "2", "3"]


def metric_lines(folder: Path) -> list[str]:
    paths = list(folder.glob(".vertex_local/jobs/s-trial-1/metrics/*/output.metrics"))
    return paths[0].read_text().splitlines() if paths else []


def test_a_finished_study_runs_nothing_again(tmp_path):
    write_study(tmp_path, "note('ran', trial)\nreport(1, 1)\n", trials=2)
    assert tune(tmp_path).returncode == 0 and tune(tmp_path).returncode == 0
    assert len((tmp_path / "ran").read_text().split()) == 2


def test_another_study_under_the_same_id_is_refused(tmp_path):
    path = write_study(tmp_path, "report(1, 1)\n", trials=1)
    assert tune(tmp_path).returncode == 0
    config = json.loads(path.read_text())
    config["studySpec"]["parameters"][0]["doubleValueSpec"]["maxValue"] = 6
    path.write_text(json.dumps(config))
    done = tune(tmp_path)
    assert done.returncode == 2 and "was begun with other parameters; choose another --job_id" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and states(tmp_path) == ["SUCCEEDED"]
    with records.opened(tmp_path / ".vertex_local") as found:  # what `list` shows
        assert found.get("s").state == "SUCCEEDED"


def test_a_study_that_is_running_is_refused(tmp_path):
    write_study(tmp_path, "report(1, 1)\nwhile not os.path.exists('go'): time.sleep(0.02)\n", trials=1)
    with start(tmp_path) as process:
        wait_for(lambda: (tmp_path / ".vertex_local" / "jobs" / "s-trial-1").exists())
        done = tune(tmp_path)
        (tmp_path / "go").touch()
        assert process.wait(120) == 0
    assert done.returncode == 2 and "job s is running in another process" in done.stderr
    assert states(tmp_path) == ["SUCCEEDED"]


def test_another_studys_trials_are_not_taken_for_this_ones(tmp_path):
    write_study(tmp_path, "os.makedirs(os.environ['AIP_MODEL_DIR'])\nreport(1, 1)\n", trials=2)
    assert tune(tmp_path).returncode == 0
    done = tune(tmp_path, "--job_id", "t")
    assert done.returncode == 2 and "go on with that study by --job_id s" in done.stderr and "bucket/hp/1 holds" in done.stderr
    assert tune(tmp_path, "--job_id", "u", "--output", "gs://bucket/hp2").returncode == 0


def test_the_folder_of_a_job_that_is_no_study_is_left_alone(tmp_path):
    kept = tmp_path / ".vertex_local" / "jobs" / "s" / "spec.yaml"
    (kept.parent / "events").mkdir(parents=True)
    kept.write_text("workerPoolSpecs: []\n")  # of a custom job of that id
    write_study(tmp_path, "report(1, 1)\n", trials=1)
    done = tune(tmp_path)
    assert done.returncode == 2 and "job s exists already" in done.stderr and "choose another --job_id" in done.stderr
    assert kept.read_text() == "workerPoolSpecs: []\n" and not (kept.parent / "study.db").exists()


# ------------------------------------------------------------------ what people see


def test_the_table_has_the_best_on_top(tmp_path):
    write_study(tmp_path, "report(abs(float(flags['x'])), 1)\n", trials=6)
    assert tune(tmp_path).returncode == 0
    found, wanted = result(tmp_path)["trials"], study.load(tmp_path / "hp.yaml")
    drawn = [{"parameterId": "x", "value": 4.0}]
    active = {"id": "7", "state": "ACTIVE", "parameters": drawn, "measurements": [], "startTime": times.now()}
    bad = {**active, "id": "8", "state": "INFEASIBLE", "endTime": times.now(), "infeasibleReason": "it [broke]"}
    from rich.console import Console

    for room, shown in ((20, 8), (4, 4)):
        out = io.StringIO()
        Console(file=out, width=120).print(tuning_report.table(wanted, [*found, active, bad], room))
        rows = [line.strip("│ ").split()[0] for line in out.getvalue().splitlines() if line.startswith("│")]
        order = sorted(found, key=lambda trial: trial["finalMeasurement"]["metrics"][0]["value"])
        assert rows[0] == order[0]["id"] == result(tmp_path)["best"][0] and rows[-1] == "7" and len(rows) == shown
        assert (rows[:6] == [trial["id"] for trial in order] and rows[6] == "8") or "…" in rows


def test_on_a_terminal_a_live_table(tmp_path):
    write_study(tmp_path, "report(1, 1)\nif trial == '2': sys.exit('error: [bold]broken')\n", trials=2, failed=2)
    master, slave = pty.openpty()
    text = b""
    with start(tmp_path, stdout=slave, stderr=slave, text=False, env=environ(TERM="xterm", COLUMNS="120", LINES="30")) as process:
        os.close(slave)
        with contextlib.suppress(OSError):  # the end of the terminal
            while data := os.read(master, 1 << 16):
                text += data
        assert process.wait(120) == 0
    os.close(master)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode())
    assert "┃ trial ┃ state" in plain and "trial 2 INFEASIBLE" in plain and "[bold]broken" in plain
    assert "best: trial 1, loss 1" in plain and "python program.py --x=" in plain and "ACTIVE: x " not in plain


def test_the_report_holds_the_plots_and_needs_no_network(tmp_path):
    pytest.importorskip("plotly")
    parameters = [X, {"parameterId": "kind", "categoricalValueSpec": {"values": ["<a>", "b"]}}]
    write_study(tmp_path, "report(float(flags['x']) ** 2 + (flags['kind'] == 'b'), 1)\n", parameters, trials=8)
    done = tune(tmp_path)
    page = tmp_path / ".vertex_local" / "jobs" / "s" / "report.html"
    assert done.returncode == 0 and str(page) in done.stdout
    text = page.read_text()
    assert text.count("Plotly.newPlot(") == 3 and text.count("plotly.js v") == 1
    assert "<script src" not in text and "<a>" not in text.partition("<script")[0]
    for heading in ("History", "Importance", "Parallel coordinates", "Trials, the best first"):
        assert f"<h2>{heading}</h2>" in text, heading
    assert "Not drawn" not in text


def test_a_study_without_a_finished_trial_has_a_report_all_the_same(tmp_path):
    pytest.importorskip("plotly")
    write_study(tmp_path, "sys.exit(3)\n", trials=1)
    assert tune(tmp_path).returncode == 1
    text = (tmp_path / ".vertex_local" / "jobs" / "s" / "report.html").read_text()
    assert "Plotly.newPlot(" not in text and "exit code 3" in text


@pytest.mark.parametrize("output", [True, False])
def test_tensorboards_hparams_view_has_every_trial(tmp_path, output):
    """Asked as its web page asks: the plugin's own handlers over TensorBoard's own reader of event files."""
    parameters = [X, {"parameterId": "kind", "categoricalValueSpec": {"values": ["a", "b"]}}]
    write_study(tmp_path, """
if trial == "3": sys.exit(1)
report(-1, 1); report(float(flags['x']) ** 2, 2)
""", parameters, trials=5, failed=2, output=output)  # fmt: skip
    done = tune(tmp_path)
    (log_dir,) = re.findall(r"^tensorboard --logdir (.*)$", done.stdout, re.MULTILINE)
    experiment, groups = ask_hparams(log_dir)
    assert [info.name for info in experiment.hparam_infos] == ["kind", "x"] and experiment.metric_infos[0].name.tag == "loss"
    assert len(groups) == 5
    found = {f"trial {trial['id']}": trial for trial in result(tmp_path)["trials"]}
    for group in groups:
        trial = found[group.name]
        values = {name: value.string_value or value.number_value for name, value in group.hparams.items()}
        assert values == trials.parameters(trial)
        shown = {metric.name.tag: (metric.value, metric.training_step) for metric in group.metric_values}
        final = trials.final_values(trial)
        assert shown.get("loss") == (pytest.approx((final["loss"], 2)) if final else None)


def ask_hparams(log_dir: str):
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(log_dir)
    multiplexer.Reload()
    context = backend_context.Context(base_plugin.TBContext(data_provider=data_provider.MultiplexerDataProvider(multiplexer, log_dir)))
    tags = context.hparams_metadata(RequestContext(), "0")
    experiment = get_experiment.Handler(RequestContext(), context, "0", api_pb2.GetExperimentRequest(include_metrics=True)).run()
    assert tags and experiment.hparam_infos
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100, include_metrics=True)
    request.allowed_statuses.extend([api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE])
    return experiment, list_session_groups.Handler(RequestContext(), context, "0", request).run().session_groups


# ------------------------------------------------------------------ the command line


def test_flags_win_over_the_file(tmp_path):
    parameter = {"parameterId": "n", "integerValueSpec": {"minValue": 1, "maxValue": 9}}
    write_study(tmp_path, "note('at', 'begun'); time.sleep(0.2); note('at', 'over'); report(1, 1)\n", [parameter], failed=4)
    done = tune(tmp_path, "--max_trial_count", 3, "--parallel_trial_count=1", "--algorithm=grid-search")
    assert done.returncode == 0, done.stderr
    assert [values["n"] for values in drawn(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "at").read_text().split() == 3 * ["begun", "over"], "one after the other"
    assert "the service allows at most maxTrialCount" in done.stdout


@pytest.mark.parametrize("args, problem", [
    (["--algorithm=grid-search"], "error: --algorithm: GRID_SEARCH takes no doubleValueSpec, which x would need"),
    (["--output=hp2"], "error: --output takes gs://bucket/folder; got 'hp2'."),
    (["--output=gs://Bad_Name/x"], "error: --output bucket name 'Bad_Name'"),
    (["--job_id=a/b"], "error: a job id holds letters"),
    (["--project_dir=nowhere"], "error: --project_dir: there is no folder"),
    (["--python=nowhere"], "error: --python: nowhere is not a program"),
])  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, args, problem):
    write_study(tmp_path, "report(1, 1)\n")
    done = tune(tmp_path, *args)
    assert done.returncode == 2 and problem in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.count("Traceback") == 0


def test_a_trial_that_cannot_be_started_ends_the_job_with_its_reason(tmp_path):
    path = write_study(tmp_path, "report(1, 1)\n")
    config = json.loads(path.read_text())
    del config["trialJobSpec"]["workerPoolSpecs"][0]["containerSpec"]["command"]
    path.write_text(json.dumps(config))
    done = tune(tmp_path)
    assert done.returncode == 2 and "image host/any:1 is not the project's own" in done.stderr and len(done.stderr.splitlines()) == 1
    assert result(tmp_path)["state"] == "JOB_STATE_FAILED"
    config["trialJobSpec"]["workerPoolSpecs"][0]["containerSpec"]["args"] = ["--x=1"]
    (tmp_path / "Dockerfile").write_text('FROM python\nENTRYPOINT ["python", "program.py"]\n')
    assert tune(tmp_path).returncode == 0 and states(tmp_path) == ["SUCCEEDED"] * 4  # mended, and continued


def test_two_studies_at_once_in_one_process(tmp_path):
    """As the local job service runs them: each in a thread of its own, without signals or a working directory."""
    found = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = write_study(tmp_path / name, "report(float(flags['x']), 1)\n")
        wanted = study.load(path)
        options = {"state_dir": tmp_path / "state", "project_dir": tmp_path / name, "bucket_root": tmp_path / name, "job_id": name}
        found[name] = threading.Thread(target=lambda w=wanted, o=options, n=name: found.update({n: tuning.run(w, **o)}))
    threads = list(found.values())
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(each.trials) for each in found.values()] == [4, 4] and all(each.succeeded for each in found.values())


@pytest.mark.slow
def test_the_taxi_trainer_is_tuned_by_its_own_file(tmp_path):
    """The file as it is, from the checkout, with little data and few trials; the winner's command runs."""
    command = [
        sys.executable, "-m", "vertex_local", "tune", "jobs/taxifare-tuning.yaml", "--state_dir", str(tmp_path / "state"),
        "--job_id", "s", "--max_trial_count=2", "--", "--epochs=1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environ(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "state" / "jobs" / "s" / "result.json").read_text())
    for trial in found["trials"]:
        base = Path(found["log_dir"]) / trial["id"]
        assert (base / "model" / "saved_model.pb").is_file()
        metrics = json.loads((base / "checkpoints" / "metrics.json").read_text())
        assert trials.final_values(trial)["val_rmse"] == pytest.approx(metrics["val_rmse"]) and len(trial["measurements"]) == 2
    line = found["commands"][found["best"][0]]
    assert line.startswith("python -m taxifare.trainer.task ") and line in done.stdout
    again = subprocess.run(
        f"{line} --output_dir={tmp_path / 'again'}", shell=True, cwd=ROOT, capture_output=True, text=True, timeout=200,
        env=environ(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"),
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
