"""TFX's pipelines: run here, trained as a job of the local service, compiled for the cloud; and what is refused.

Commands are forks of one process that has imported TFX, which takes half a minute.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from conftest import ROOT
from test_local_support import environ

from vertex_local.testing import LocalService

STEPS = ("ImportExampleGen", "StatisticsGen", "SchemaGen", "ExampleValidator", "Trainer", "latest_blessed_model", "Evaluator", "Pusher")
CLOUD = ("--data=gs://a-bucket/data", "--root=gs://a-bucket/tfx", "--project=a-project")
PYTHON = os.environ.get("TFX_PYTHON") or str(ROOT / ".venv-tfx" / "bin" / "python")
IMPORTED = ("tfx.v1", "tensorflow_model_analysis", "google.cloud.aiplatform")
QUICK = ("--", "--num_evals=1", "--epochs=2")


pytestmark = pytest.mark.tfx


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    """Skip where there is no environment with TFX."""
    if not os.access(PYTHON, os.X_OK):
        pytest.skip(f"TFX's environment is not here ({PYTHON}): scripts/setup_tfx makes it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tfx")


def tfx(folder: Path, *flags: object, code: int = 0, **env: str) -> tuple[list[str], str]:
    """Run the command and return the lines that it printed, and its error."""
    words = [str(flag) for flag in flags]
    done = forked.run("pipelines.tfx", words, {**environ(), **env}, folder, 600, forked.own(PYTHON, IMPORTED))
    assert done.returncode == code, done.stdout + done.stderr + "".join(path.read_text()[-3000:] for path in folder.glob("*/run-*.log"))
    return done.stdout.splitlines(), done.stderr


@pytest.fixture(scope="module")
def first(folder) -> list[str]:
    """The lines of a run on the sample data whose model is good enough."""
    return tfx(folder, "--trainer=stackoverflow", "--threshold=0.85", "--root=root")[0]


def test_a_good_model_is_pushed_as_the_trainer_exported_it(folder, first):
    root = folder / "root"
    assert {line.split()[0] for line in first[1:9]} == set(STEPS) and all(line.endswith(" s") for line in first[1:9])
    (pushed,) = (root / "serving").iterdir()
    assert first[-1] == f"pushed: {pushed}"
    (exported,) = root.glob("Trainer/model/*/Format-Serving")
    files = [str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()]
    assert "saved_model.pb" in files and filecmp.cmpfiles(exported, pushed, files, shallow=False)[1:] == ([], [])
    requests = '{"text": "how do I select the rows of a table with a join"}\n'
    command = [sys.executable, ROOT / "vertex_runtime" / "predict.py", pushed]
    answered = subprocess.run(command, input=requests, capture_output=True, text=True, check=True).stdout
    assert json.loads(answered)["label"] == "sql", "the pushed model takes what the service's clients send"


def test_the_model_is_a_direct_runs_bit_for_bit(folder, first, run_trainer, tmp_path):
    run_trainer("stackoverflow", "--num_evals=2", "--output_dir=out", cwd=tmp_path)  # as jobs/stackoverflow.yaml has it
    (exported,) = (folder / "root").glob("Trainer/model/*/Format-Serving/variables/variables.data-*")
    assert exported.read_bytes() == (tmp_path / "out" / "model" / "variables" / exported.name).read_bytes()


def test_evaluator_measures_what_the_trainer_measured(folder, first):
    (path,) = (folder / "root").glob("Trainer/model_run/*/checkpoints/metrics.json")
    value = json.loads(path.read_text())["best"]["value"]
    assert f"accuracy {value:.6g} on 400 rows; threshold 0.85, blessed model so far: none" in first
    assert any(line.startswith("worst slice: label ") for line in first), "of the classes the worst is named"


def test_a_threshold_not_reached_pushes_nothing(folder, first):
    lines, error = tfx(folder, "--trainer=stackoverflow", "--threshold=0.999", "--root=root", code=1)
    assert error.startswith("error: not pushed: accuracy 0.9") and error.endswith("is below --threshold 0.999.\n")
    assert len(list((folder / "root" / "serving").iterdir())) == 1
    assert len(list((folder / "root" / "Trainer" / "model").iterdir())) == 1, "what has not changed is not trained again"


def test_a_worse_model_than_the_blessed_one_is_not_pushed(folder, first):
    training = ("--num_examples_to_train_on=64", "--num_evals=1", "--naive_bayes=0")  # from zeros, on next to nothing
    flags = ("--trainer=stackoverflow", "--threshold=0.01", "--root=root", "--", *training)
    lines, error = tfx(folder, *flags, code=1)
    assert "is worse than the blessed model's 0.9" in error and error.count("\n") == 1
    assert len(list((folder / "root" / "serving").iterdir())) == 1


def test_a_number_is_judged_by_its_error(folder):
    lines, _ = tfx(folder, "--trainer=taxifare", "--threshold=20", "--root=taxi", "--slice_by", "passenger_count", *QUICK)
    (path,) = (folder / "taxi").glob("Trainer/model_run/*/checkpoints/metrics.json")
    said = float(next(line for line in lines if line.startswith("rmse ")).split()[1])
    assert said == pytest.approx(json.loads(path.read_text())["best"]["value"], rel=1e-5)
    assert any(line.startswith("worst slice: passenger_count ") for line in lines)
    assert lines[-1].startswith("pushed: ")


def test_a_step_that_fails_is_named_with_its_reason(folder, first):
    data = next((folder / "root").glob("sample-*"))  # of another trainer
    _, error = tfx(folder, "--trainer=taxifare", "--threshold=1", f"--data={data}", "--root=wrong", code=1)
    assert error.startswith("error: Trainer failed: ") and "fare_amount" in error and "Nothing was pushed." in error
    assert error.count("\n") == 1 and not (folder / "wrong" / "serving").exists()


def test_training_is_a_job_of_the_local_service(folder):
    lines, _, job = train_there(folder, "vertex", PYTHON)
    assert lines[-1].startswith("pushed: ")
    assert job["state"] == "JOB_STATE_SUCCEEDED" and job["displayName"] == "stackoverflow-tfx"
    (pool,) = job["jobSpec"]["workerPoolSpecs"]
    assert pool["containerSpec"]["command"][:3] == ["python", "-m", "tfx.scripts.run_executor"]
    assert pool["machineSpec"]["machineType"] == "n1-standard-4", "as jobs/stackoverflow.yaml has it"


def test_a_job_that_fails_is_the_steps_reason(folder):
    _, error, job = train_there(folder, "vertex-without-tfx", sys.executable, code=1)
    assert job["state"] == "JOB_STATE_FAILED"
    assert error.startswith("error: Trainer failed: ") and "No module named 'tfx" in error and error.count("\n") == 1
    assert not list((folder / "vertex-without-tfx" / "serving").glob("*"))


def train_there(folder: Path, name: str, python: str, code: int = 0) -> tuple[list[str], str, dict]:
    """Run the second scenario on a local service whose replicas run `python`; return lines, error and the job."""
    (folder / f"service-{name}").mkdir()
    service = LocalService(folder / f"service-{name}", f"--python={python}", f"--project_dir={ROOT}", "--grpc_port=0")
    try:
        flags = ("--trainer=stackoverflow", "--threshold=0.5", f"--root={name}", "--vertex", *QUICK)
        lines, error = tfx(folder, *flags, code=code, **service.endpoint.environment())
        (job,) = service.request("GET", f"/v1/projects/{service.endpoint.project}/locations/us-central1/customJobs")["customJobs"]
    finally:
        service.process.terminate()
        service.process.wait()
    return lines, error, job


@pytest.mark.parametrize("vertex", [(), ("--vertex",)])
def test_both_compile_for_the_cloud(folder, vertex):
    name = f"spec{len(vertex)}.json"
    lines, _ = tfx(folder, "--threshold=0.9", *CLOUD, *vertex, f"--compile={name}", "--", "--epochs=3")
    written = json.loads((folder / name).read_text())
    code = (
        "import json, sys; from google.protobuf import json_format; from kfp.pipeline_spec import pipeline_spec_pb2 as proto\n"
        "spec = json_format.ParseDict(json.load(open(sys.argv[1]))['pipelineSpec'], proto.PipelineSpec())\n"
        "print(sorted(spec.root.dag.tasks))"
    )
    done = subprocess.run([PYTHON, "-c", code, folder / name], capture_output=True, text=True, check=True)
    assert all(step in done.stdout for step in STEPS)
    image = "us-central1-docker.pkg.dev/a-project/trainers/stackoverflow-tfx:latest"
    executors = written["pipelineSpec"]["deploymentSpec"]["executors"]
    assert {each["container"]["image"] for each in executors.values() if "container" in each} == {image}
    inputs = written["pipelineSpec"]["root"]["dag"]["tasks"]["Trainer"]["inputs"]["parameters"]
    config = json.loads(inputs["custom_config"]["runtimeValue"]["constantValue"]["stringValue"])
    assert config["trainer"] == "stackoverflow" and "--epochs=3" in config["flags"]
    assert written["runtimeConfig"]["gcsOutputDirectory"] == "gs://a-bucket/tfx"
    if vertex:
        (pool,) = config["ai_platform_training_args"]["job_spec"]["worker_pool_specs"]
        assert pool["container_spec"] == {"image_uri": image} and pool["machine_spec"] == {"machine_type": "n1-standard-4"}
        assert config["ai_platform_training_args"]["project"] == "a-project"
    _, error = tfx(folder, "--threshold=0.9", *CLOUD, f"--compile={name}", code=2)
    assert "is there already. Nothing was overwritten" in error


def test_the_image_has_all_that_tfx_calls(folder):
    copied = re.findall(r"^COPY (\S+/) ", (ROOT / "pipelines" / "tfx" / "Dockerfile").read_text(), re.MULTILINE)
    for name in (name.replace("${TRAINER}", "stackoverflow") for name in copied):
        shutil.copytree(ROOT / name, folder / "image" / name, ignore=shutil.ignore_patterns("__pycache__"))
    flags = f"stackoverflow --from {ROOT}/stackoverflow/tests/data/valid.csv --to rows --format jsonl".split()
    for module, words in (("pipelines.tfx.module", []), ("data_tools.convert", flags)):
        done = forked.run(module, words, {**os.environ, "PYTHONPATH": ""}, folder / "image", 300, forked.own(PYTHON, IMPORTED))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--trainer=nobody"], "there is no trainer 'nobody'; give one of stackoverflow, taxifare"),
        (["--data=EMPTY"], "training holds no *.tfrecord or *.tfrecord.gz files, the split train. Make them: scripts/convert_data"),
        (["--threshold=high"], "--threshold: needs a finite number; got 'high'"),
        (["--vertex"], "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM is not set. Start one: python -m vertex_local serve"),
        (["--", "--lerning_rate=1"], "unknown argument '--lerning_rate=1'"),
        (["--", "--output_dir=here"], "--output_dir is none of the trainer's flags here"),
        (["--", "--plan"], "--plan is none of the trainer's flags here"),
        (["--job=jobs/nothing.yaml"], "jobs/nothing.yaml: cannot be read"),
        (["--job=jobs/stackoverflow-sdist.yaml"], "a job of containers is needed"),
        (["--compile=x.json"], "--compile needs --data gs://"),
        (["--compile=x.json", "--data=gs://b/d", "--bucket=a-bucket"], "whose project is still your-project"),
        (["--compile=x.json", "--data=here", "--bucket=a-bucket", "--project=p"], "--data must lie in a bucket"),
        (["--schema=nothing.pbtxt"], "--schema: there is no file nothing.pbtxt"),
    ],
)
def test_what_cannot_be_is_one_line(flags, words, folder):
    flags = [flag.replace("EMPTY", str(folder / "empty")).replace("jobs/", f"{ROOT}/jobs/") for flag in flags]
    threshold = [] if flags[0].startswith("--threshold") else ["--threshold=1"]
    _, error = tfx(folder, *threshold, *flags, code=2)
    assert words.replace("jobs/", f"{ROOT}/jobs/") in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_service_that_is_gone_is_named(folder):
    _, error = tfx(folder, "--threshold=1", "--vertex", code=2, CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM="https://127.0.0.1:1/")
    assert "https://127.0.0.1:1/ does not answer" in error and error.count("\n") == 1
