"""`python -m vertex_local pipeline`: every construct of kfp, failures, caching and Google's components, run by kfp's own local runner."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_local_support import environ, wait_for
from test_pipeline_support import BUCKET, WHERE, compiled, compiled_google, kfp_python, output, pipelines, states, tasks  # noqa: F401 - fixtures

from vertex_local.__main__ import main
from vertex_local.pipelines import command

pytestmark = pytest.mark.kfp
kfp_python()

FOLDER = ROOT / "taxifare" / "tests" / "data"
TRAINING = [
    f"--train_data_path={FOLDER / 'taxi-train.csv'}", f"--eval_data_path={FOLDER / 'taxi-valid.csv'}", "--num_evals=1",
    "--num_examples_to_train_on=2400",
]  # fmt: skip
TRAIN = (f"--parameter=folder={FOLDER}", "--parameter=examples=2400")


class Run:
    """One run of the command in this process, against the tests' service: its code, what it printed, and the job."""

    def __init__(self, service, folder, capsys, name: str, *flags: str):
        capsys.readouterr()
        self.code = main(
            ["pipeline", str(folder / f"{name}.yaml"), f"--state_dir={service.state}", f"--project_dir={ROOT}", f"--bucket={BUCKET}",
             "--project=my-project", *flags]
        )  # fmt: skip
        self.out, self.err = capsys.readouterr()
        named = re.match(r"pipeline (\S+):", self.out)
        assert named, self.out + self.err
        self.id = named[1]
        self.job = service.call("GET", f"/pipelineJobs/{self.id}", base="/v1/projects/my-project/locations/us-central1")


@pytest.fixture
def run(pipelines, compiled, capsys, monkeypatch):  # noqa: F811 - the fixtures above
    monkeypatch.setenv("KFP_PYTHON", kfp_python())
    return lambda name, *flags: Run(pipelines, compiled, capsys, name, *flags)


@pytest.fixture
def run_google(pipelines, compiled_google, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv("KFP_PYTHON", kfp_python())
    return lambda name, *flags: Run(pipelines, compiled_google, capsys, name, *flags)


@pytest.mark.parametrize("side, ran", [("heads", "condition-2"), ("tails", "condition-3"), ("edge", "condition-4")])
def test_branches_and_what_is_nested(run, side, ran):
    done = run("branches", f"--parameter=side={side}", "--parameter=n=4")
    assert done.code == 0, done.out + done.err
    found, word = states(done.job), {"condition-2": "heads", "condition-3": "tails", "condition-4": "neither"}[ran]
    branches = {name: found[f"condition-branches-1.{name}"] for name in ("condition-2", "condition-3", "condition-4")}
    assert branches.pop(ran) == "SUCCEEDED" and set(branches.values()) == {"NOT_TRIGGERED"}
    assert output(done.job, "only-read.read") == f"it's {word}", "OneOf is the artefact of the branch that ran"
    assert output(done.job, "add-and-read") == 6 and found["add-and-read.read"] == "SUCCEEDED"
    assert found["condition-5"] == "SUCCEEDED" and found["condition-5.condition-6"] == "NOT_TRIGGERED"
    assert output(done.job, "show-or") == "'nothing was given'", "a parameter without a value is as if it were not given"
    assert output(done.job, "numbers", "share") == "nan"


def test_a_condition_that_does_not_hold_starts_nothing_below_it(run):
    done = run("branches", "--parameter=n=1", "--no_caching")
    found = states(done.job)
    assert found["condition-5"] == "NOT_TRIGGERED" and not [name for name in found if name.startswith("condition-5.")]
    assert "startTime" not in tasks(done.job)["condition-5"] and "NOT_TRIGGERED condition-5" in done.out


def test_loops_and_what_is_collected(run):
    done = run("loops")
    assert done.code == 0, done.out + done.err
    assert output(done.job, "show") == "[8, 9, 10]", "whole numbers stay whole, and other inputs of the body are not the loop's item"
    adding = sorted(output(done.job, name) for name in tasks(done.job) if re.fullmatch(r"for-loop-\d.*\.add(-2)?", name))
    assert adding == [3, 7, 8, 9, 10]
    reading = [output(done.job, name) for name in tasks(done.job) if re.fullmatch(r"read-each\..*\.read", name)]
    assert reading == ["a row"] * 3
    iterations = [name for name in tasks(done.job) if name.endswith("-iteration-2") and name.count("iteration") == 1]
    assert {tasks(done.job)[name]["parentTaskId"] for name in iterations if name.startswith("for-loop")} <= {
        task["taskId"] for task in tasks(done.job).values()
    }


def test_containers_and_importers(run, pipelines):  # noqa: F811
    done = run("containers")
    assert done.code == 0, done.out + done.err
    assert output(done.job, "same") == f"written by {Path(kfp_python()).name}"
    assert (output(done.job, "read"), output(done.job, "read-2")) == ("made", "imported")
    made = tasks(done.job)["shell"]["outputs"]["made"]["artifacts"][0]
    assert re.fullmatch(rf"gs://{BUCKET}/pipelines/123456789012/{done.id}/shell_\d+/made", made["uri"])
    assert (pipelines.state / "buckets" / made["uri"][len("gs://") :]).read_text() == "made"


def test_retries_exit_handlers_and_the_headline(run, tmp_path):
    done = run("exits", f"--parameter=counter={tmp_path / 'counter'}")
    assert done.code == 1
    found = tasks(done.job)
    retried = found["exit-handler-1.flaky"]
    assert retried["state"] == "SUCCEEDED" and output(done.job, "exit-handler-1.flaky") == 3
    assert [status.get("error", {}).get("message") for status in retried["pipelineTaskStatus"]] == [
        None, "RuntimeError: attempt 1 is not enough", "RuntimeError: attempt 2 is not enough", None,
    ]  # fmt: skip
    assert states(done.job)["exit-handler-1.condition-2.nothing"] == "NOT_TRIGGERED", "what needs a failed step does not start"
    assert states(done.job)["exit-handler-1.same"] == "SUCCEEDED", "what does not need it does"
    said = output(done.job, "last").split(" | ")
    assert said == ["FAILED", "condition-2: fails: ValueError: as it should", done.job["name"]]
    assert "error: exit-handler-1.condition-2.fails: ValueError: as it should\n" in done.err


def test_the_log_that_an_error_names_is_there(run, tmp_path, capsys):
    done = run("exits", f"--parameter=counter={tmp_path / 'counter'}", "--failure_policy=fast", "--label=stage=test")
    command = re.search(r"its log: python -m vertex_local (.*)", done.err)[1].split()
    assert main(command) == 0
    assert "[exit-handler-1.condition-2.fails] before the end" in capsys.readouterr().out
    assert done.job["labels"] == {"stage": "test"}


def test_outputs_of_an_earlier_run_are_taken_by_content(run, pipelines):  # noqa: F811
    first = run("chain", "--parameter=text=cached")
    again = run("chain", "--parameter=text=cached", "--parameter=n=5")
    assert set(states(first.job).values()) == {"SUCCEEDED"}
    assert states(again.job) == {"write": "SKIPPED", "read": "SKIPPED", "add": "SUCCEEDED"}
    assert output(again.job, "add") == 9 and output(again.job, "read") == "cached" and "SKIPPED       write (as before)" in again.out
    assert " SUCCEEDED     add (sum up) " in again.out
    file = pipelines.state / "buckets" / tasks(first.job)["write"]["outputs"]["out"]["artifacts"][0]["uri"][len("gs://") :]
    file.write_text("changed by hand")
    other = run("chain", "--parameter=text=cached")
    assert states(other.job) == {"write": "SKIPPED", "read": "SUCCEEDED", "add": "SKIPPED"}
    assert output(other.job, "read") == "changed by hand"
    file.unlink()
    assert states(run("chain", "--parameter=text=cached").job)["write"] == "SUCCEEDED", "what is gone is made again"
    assert set(states(run("chain", "--parameter=text=cached", "--no_caching").job).values()) == {"SUCCEEDED"}


def test_a_link_to_nothing_in_the_checkout_is_no_source(tmp_path):
    for name in ("setup.py", "model.py"):
        (tmp_path / name).write_text("")
    code = "import sys\nfrom pathlib import Path\nfrom vertex_local.pipelines import caching\nprint(caching.sources(Path(sys.argv[1])))"

    def checksum() -> str:
        done = subprocess.run([kfp_python(), "-c", code, str(tmp_path)], env=environ(), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    before = checksum()
    (tmp_path / ".#model.py").symlink_to("user@host.123:456")
    assert checksum() == before


def test_runs_that_start_within_a_second_have_names_of_their_own(run, pipelines, compiled, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(command, "_new_id", lambda name: f"{name}-now")
    assert [run("chain", "--parameter=text=cached").id for _ in range(3)] == ["chain-now", "chain-now-2", "chain-now-3"]
    flags = [f"--state_dir={pipelines.state}", f"--project_dir={ROOT}", "--job_id=chain-now", "--project=my-project"]
    assert main(["pipeline", str(compiled / "chain.yaml"), *flags, f"--bucket={BUCKET}"]) == 2
    assert "chain-now exists already" in capsys.readouterr().err, "a name that was asked for is taken or refused"


def test_the_error_of_a_steps_job_is_the_headline(run_google, pipelines):  # noqa: F811
    done = run_google("job-fails", f"--parameter=project={WHERE['project']}", f"--parameter=location={WHERE['location']}")
    assert done.code == 1 and re.search(r"error: custom-training-job: .*workerpool0-0.*no such column", done.err), done.err
    job = tasks(done.job)["custom-training-job"]["executorDetail"]["containerDetail"]["mainJob"]
    found = pipelines.call("GET", "", base=f"/v1/{job}")
    assert found["state"] == "JOB_STATE_FAILED" and re.fullmatch(r"\d+", found["labels"]["vertex-ai-pipelines-run-billing-id"])


def test_a_study_and_what_a_step_asks_of_it(run_google):
    done = run_google("tune", f"--parameter=project={WHERE['project']}", f"--parameter=location={WHERE['location']}")
    assert done.code == 0, done.out + done.err
    assert output(done.job, "trials") == 2


@pytest.mark.slow
def test_training_to_a_prediction_and_the_same_weights_as_a_direct_run(run_google, pipelines, tmp_path):  # noqa: F811
    flags = [f"--parameter={name}={value}" for name, value in WHERE.items()]
    done = run_google("train-and-serve", *flags, *TRAIN, f"--parameter=out=gs://{BUCKET}/taxifare")
    assert done.code == 0, done.out + done.err
    assert set(states(done.job).values()) == {"SUCCEEDED"}
    assert float(output(done.job, "ask")) > 0
    model = tasks(done.job)["model-upload"]["outputs"]["model"]["artifacts"][0]
    assert model["schemaTitle"] == "google.VertexModel" and model["metadata"]["resourceName"].endswith("@1")
    (tmp_path / "job.json").write_text(json.dumps({
        "workerPoolSpecs": [{
            "machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1,
            "containerSpec": {"imageUri": "host/repo/taxifare:v1", "args": TRAINING},
        }], "baseOutputDirectory": {"outputUriPrefix": f"gs://{BUCKET}/direct"},
    }))  # fmt: skip
    command = [sys.executable, "-m", "vertex_local", "run", "job.json", f"--project_dir={ROOT}", f"--bucket_root={tmp_path}"]
    subprocess.run(command, cwd=tmp_path, env=environ(), check=True, capture_output=True)
    by_pipeline, directly = pipelines.state / "buckets" / BUCKET / "taxifare", tmp_path / BUCKET / "direct"
    weights = Path("model", "variables", "variables.data-00000-of-00001")
    assert (by_pipeline / weights).read_bytes() == (directly / weights).read_bytes()
    again = run_google("train-and-serve", *flags, *TRAIN, f"--parameter=out=gs://{BUCKET}/taxifare")
    found = states(again.job)
    assert found["custom-training-job"] == "SKIPPED" and found["endpoint-create"] == "SUCCEEDED", "the endpoint of then was deleted"
    number = model["metadata"]["resourceName"].partition("@")[0].rpartition("/")[2]
    row = {
        "pickup_datetime": "2010-03-23 06:49:00+00:00", "pickup_longitude": -73.98, "pickup_latitude": 40.75, "dropoff_longitude": -73.96,
        "dropoff_latitude": 40.78, "passenger_count": 1,
    }  # fmt: skip
    bucket = pipelines.state / "buckets" / BUCKET
    (bucket / "in" / "rows.jsonl").write_text(json.dumps(row) + "\n")
    got = run_google("get-model", *flags, f"--parameter=model={number}@fresh")
    assert got.code == 0, got.out + got.err
    (results,) = bucket.glob("predicted/*/prediction.results-*")
    assert json.loads(results.read_text())["prediction"] == pytest.approx(float(output(done.job, "ask")))
    assert tasks(got.job)["model-get"]["outputs"]["model"]["artifacts"][0]["metadata"] == model["metadata"]


@pytest.mark.slow
def test_without_a_service_one_is_started_for_the_run(compiled, tmp_path):  # noqa: F811
    command = [sys.executable, "-m", "vertex_local", "pipeline", str(compiled / "five.yaml"), f"--project_dir={ROOT}"]
    done = subprocess.run(command, cwd=tmp_path, env=environ(KFP_PYTHON=kfp_python()), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"SUCCEEDED after .*: 5 succeeded; see \.vertex_local/jobs/five-\d+$", done.stdout.strip().splitlines()[-1])
    assert not (tmp_path / ".vertex_local" / "serve" / "endpoint.json").exists(), "and ended"


@pytest.mark.slow
def test_interrupted_it_ends_the_steps_and_their_jobs(pipelines, compiled_google):  # noqa: F811
    flags = [f"--state_dir={pipelines.state}", "--project=my-project", f"--bucket={BUCKET}"]
    command = [
        sys.executable, "-m", "vertex_local", "pipeline", str(compiled_google / "job-cancelled.yaml"), f"--project_dir={ROOT}", *flags,
        *[f"--parameter={name}={value}" for name, value in WHERE.items()],
    ]  # fmt: skip
    base = "/v1/projects/my-project/locations/us-central1"
    with subprocess.Popen(command, env=environ(KFP_PYTHON=kfp_python()), stdout=subprocess.PIPE, text=True) as process:
        wait_for(lambda: pipelines.call("GET", "/customJobs?filter=state%3D%22JOB_STATE_RUNNING%22", base=base).get("customJobs"), 120)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT and "CANCELLED     custom-training-job" in out
    wait_for(lambda: not pipelines.call("GET", "/customJobs?filter=state%3D%22JOB_STATE_RUNNING%22", base=base).get("customJobs"), 60)


@pytest.mark.parametrize("change, told", [
    ("", ""),
    ("del e.construct_executor_input", "kfp 2.17.3: kfp.local.executor_input_utils.construct_executor_input is not there"),
    ("e.construct_executor_input = lambda task, spec: None", "construct_executor_input takes task, spec, not component_spec, arguments"),
])  # fmt: skip
def test_a_release_of_kfp_that_is_another_inside_is_refused(change, told):
    code = (
        "from kfp.local import executor_input_utils as e\n"
        "from vertex_local.pipelines import patches\n"
        f"{change}\n"
        "try:\n    patches.check_runner()\nexcept patches.PatchError as error:\n    print(error)\n"
    )
    done = subprocess.run([kfp_python(), "-c", code], env=environ(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout and bool(told) == bool(done.stdout)
    assert not told or "pipelines run here with kfp 2.17.3: run scripts/setup_kfp." in done.stdout
