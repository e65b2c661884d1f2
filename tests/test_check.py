"""`python -m vertex_local check`: seeded faults each get a line of their own, the project's own job files get none."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from unittest import mock

import forked
import pytest
from conftest import ROOT, TRAINERS
from test_local_support import environ, wait_for

from vertex_local.__main__ import main
from vertex_local.check import inspection
from vertex_local.check import rules as checks
from vertex_local.job import schema
from vertex_local.local.plan import Paths

JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.yaml") if path.stem not in ("settings", "kubernetes-tfjob"))
TODAY = "--today=2026-08-22"


def copy_project(folder: Path) -> Path:
    """Copy what a check reads of the checkout, so that faults can be put into it; the bucket is a folder beside it."""
    project = folder / "project"
    for name in ("setup.py", "MANIFEST.in", "LICENSE", "Dockerfile", "vertex_runtime", *TRAINERS, "jobs"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            project.mkdir(exist_ok=True)
            shutil.copy(source, project / name)
    (folder / "buckets" / "your-bucket").mkdir(parents=True)
    return project


def edit(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text, f"{path} lacks {old!r}"
    path.write_text(text.replace(old, new, count))


def check(project: Path, job: str, *flags: str, code: int | None = None) -> list[dict[str, str]]:
    """Run the command in this process and return its findings."""
    ended, text = patiently(project, "check", job, "--json", "--no_measure", TODAY, *flags)
    said = json.loads(text)
    assert ended == (1 if said["errors"] else 0) and code in (None, ended)
    assert all(finding["message"] == " ".join(finding["message"].split("\n")) for finding in said["findings"])
    return said["findings"]


def patiently(project: Path, *words: str) -> tuple[int, str]:
    """Run the command line in this process; however busy the machine is, what it asks has time to answer."""
    out, before = io.StringIO(), os.getcwd()
    os.chdir(project)
    try:
        with contextlib.redirect_stdout(out), mock.patch.object(inspection.Inspection, "left", lambda self, most: 10 * most):
            own = [f"--bucket_root={project.parent / 'buckets'}", f"--python={forked.interpreter()}"]
            return main([words[0], *own, *words[1:]]), out.getvalue()
    finally:
        os.chdir(before)


def bad(findings: list[dict[str, str]]) -> list[str]:
    return [finding["message"] for finding in findings if finding["level"] == "error"]


def put_data(project: Path, trainer: str) -> None:
    """Put a trainer's sample data into the bucket."""
    shutil.copytree(project / trainer / "tests" / "data", project.parent / "buckets" / "your-bucket" / "data" / trainer)


def sdist_job(project: Path, module: str = "taxifare.trainer.task") -> str:
    """Write a job for the prebuilt container, with data in the bucket, and return its name."""
    put_data(project, "taxifare")
    package = {
        "executorImageUri": "us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-17.py310:latest",
        "packageUris": ["gs://your-bucket/vertex_trainer-0.1.0.tar.gz"], "pythonModule": module,
        "args": ["--train_data_path=gs://your-bucket/data/taxifare/taxi-train.csv"],
    }  # fmt: skip
    package["args"].append("--eval_data_path=gs://your-bucket/data/taxifare/taxi-valid.csv")
    (project.parent / "buckets" / "your-bucket" / "vertex_trainer-0.1.0.tar.gz").touch()
    pool = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "pythonPackageSpec": package}
    job = {"workerPoolSpecs": [pool], "baseOutputDirectory": {"outputUriPrefix": "gs://your-bucket/out"}, "scheduling": {"timeout": "60s"}}
    (project / "jobs" / "packaged.yaml").write_text(json.dumps(job, indent=1))
    return "jobs/packaged.yaml"


# ------------------------------------------------------------------ seeded faults

Seed = Callable[[Path], tuple[str, ...]]
FAULTS: dict[str, tuple[Seed, str]] = {}


def fault(pattern: str) -> Callable[[Seed], Seed]:
    """Register a function that puts a fault into a project's copy and returns what to check; `pattern` is its line."""

    def register(seed: Seed) -> Seed:
        FAULTS[seed.__name__] = (seed, pattern)
        return seed

    return register


@fault(r"taxifare\.yaml:\d+: workerPoolSpecs\[0\]\.machineSpec\.acceleratorType: NVIDIA_TESLA_A100 comes .*: take a2-highgpu-1g")
def accelerator_of_another_machine(project):
    text = "machineType: n1-standard-4\n    acceleratorType: NVIDIA_TESLA_A100\n    acceleratorCount: 1"
    edit(project / "jobs/taxifare.yaml", "machineType: n1-standard-4", text)
    return "jobs/taxifare.yaml", "--file_only"


@fault(r"acceleratorCount: NVIDIA_TESLA_T4 comes in 1, 2, 4; got 3")
def three_gpus(project):
    text = "machineType: n1-standard-4\n    acceleratorType: NVIDIA_TESLA_T4\n    acceleratorCount: 3"
    edit(project / "jobs/taxifare.yaml", "machineType: n1-standard-4", text)
    return "jobs/taxifare.yaml", "--file_only"


@fault(r"tpuTopology: ct5lp-hightpu-4t takes 2x2 or a larger slice such as 4x4; got '1x1'")
def topology_of_another_slice(project):
    edit(project / "jobs/taxifare-tpu.yaml", "tpuTopology: 2x2", "tpuTopology: 1x1")
    return "jobs/taxifare-tpu.yaml", "--file_only"


@fault(r"executorImageUri: .*tf-cpu\.2-17.* past its end of availability \(2026-07-11\)")
def image_past_its_end(project):
    return sdist_job(project), "--file_only"


@fault(r"setting serving .*: there is no serving image .*tf2-cpu\.2-18:latest: TensorFlow 2\.13, 2\.14, 2\.15, 2\.17 are served")
def serving_image_that_is_not(project):
    edit(project / "jobs/settings.yaml", "tf2-cpu.2-15", "tf2-cpu.2-18")
    return "jobs/taxifare.yaml", "--file_only"


@fault(r"taxifare\.yaml:\d+: baseOutputDirectory\.outputUriPrefix: gs://your-bucket/taxifare cannot be written: .* is a file")
def output_that_cannot_be_written(project):
    (project.parent / "buckets/your-bucket/taxifare").write_text("in the way")
    return "jobs/taxifare.yaml", "--file_only"


@fault(r"baseOutputDirectory: is not given, nor is --output_dir: the model would be lost")
def nowhere_to_write(project):
    edit(project / "jobs/taxifare.yaml", "baseOutputDirectory:\n  outputUriPrefix: gs://${BUCKET}/taxifare\n", "")
    return "jobs/taxifare.yaml", "--file_only"


@fault(r"scheduling\.strategy: SPOT without baseOutputDirectory: .* takes its checkpoints along")
def spot_without_checkpoints(project):
    edit(project / "jobs/taxifare-spot.yaml", "baseOutputDirectory:\n  outputUriPrefix: gs://${BUCKET}/taxifare-spot\n", "")
    return "jobs/taxifare-spot.yaml", "--file_only"


@fault(r"restartJobOnWorkerRestart: it is false, with 2 workers")
def workers_restart_alone(project):
    edit(project / "jobs/taxifare-2-workers.yaml", "restartJobOnWorkerRestart: true", "restartJobOnWorkerRestart: false")
    return "jobs/taxifare-2-workers.yaml", "--file_only"


@fault(r"taxifare\.yaml:17: workerPoolSpecs\[0\]\.containerSpec\.args\[3\]: unknown argument '--learning_rate=1'; the nearest")
def unknown_flag(project):
    edit(project / "jobs/taxifare.yaml", "- --num_evals=2", "- --num_evals=2\n    - --learning_rate=1")
    return ("jobs/taxifare.yaml",)


@fault(r"pythonPackageSpec\.pythonModule: there is no module taxifare\.trainer\.tusk in the job's package; mend its name")
def module_that_is_not(project):
    return (sdist_job(project, "taxifare.trainer.tusk"),)


@fault(r"containerSpec\.imageUri: trainer\.task stopped with ModuleNotFoundError: No module named 'no_such_package'")
def module_that_cannot_be_imported(project):
    edit(project / "taxifare/trainer/hyperparameters.py", "from dataclasses", "import no_such_package\nfrom dataclasses")
    return ("jobs/taxifare.yaml",)


@fault(r"executorImageUri: vertex.trainer-0\.1\.0\.tar\.gz requires pandas<2.*, but the image has pandas 2\.2\.3: pip would replace it")
def requirement_that_clashes(project):
    edit(project / "setup.py", 'install_requires=["cloudml', 'install_requires=["pandas<2", "cloudml')
    return (sdist_job(project),)


@fault(r"containerSpec\.args\[0\]: --train_data_path: taxifare/tests/data/taxi-trian\.csv matches no file")
def data_that_is_missing(project):
    edit(project / "jobs/taxifare.yaml", "taxi-train.csv", "taxi-trian.csv")
    return ("jobs/taxifare.yaml",)


@fault(r"containerSpec\.args: \S*valid\.csv, line 402: the label 'cobol' was not seen in training")
def label_only_in_evaluation(project):
    with open(project / "stackoverflow/tests/data/valid.csv", "a") as file:
        file.write("how do i declare a paragraph,cobol\n")
    return ("jobs/stackoverflow.yaml",)


@fault(r"containerSpec\.args: all 3 training rows have the label 'java': add others")
def a_single_label(project):
    for name in ("train.csv", "valid.csv"):
        (project / "stackoverflow/tests/data" / name).write_text("text,label\na b,java\nc d,java\ne f,java\n")
    return "jobs/stackoverflow.yaml", "--", "--batch_size=3"


@fault(r"containerSpec\.args\[3\]: --batch_size 241 must divide by the 2 replicas; the nearest that do are 240 and 242")
def batch_that_does_not_divide(project):
    return "jobs/taxifare-2-workers.yaml", "--", "--batch_size=241"


@fault(r"taxifare-tuning\.yaml:\d+: studySpec\.metrics\[0\]\.metricId: 'val_rsme' is never reported: the trainer reports val_rmse")
def metric_with_a_typo(project):
    edit(project / "jobs/taxifare-tuning.yaml", "metricId: val_rmse", "metricId: val_rsme")
    edit(project / "jobs/taxifare-tuning.yaml", "parameterId: lr", "parameterId: learning_rate")
    return ("jobs/taxifare-tuning.yaml",)


@fault(r"2-workers\.yaml:\d+: studySpec\.metrics\[0\]\.goal: the trainer takes val_rmse to be better the smaller it is; write MINIMIZE")
def goal_the_wrong_way(project):
    job = project / "jobs/taxifare-tuning-2-workers.yaml"
    edit(job, "goal: MINIMIZE", "goal: MAXIMIZE")
    job.write_text(re.sub(r"(parameterId: batch_size.*?values: \[)\d+", r"\g<1>121", job.read_text(), flags=re.DOTALL))
    return ("jobs/taxifare-tuning-2-workers.yaml",)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory) -> Callable[[str], list[dict[str, str]]]:
    """Return a function from a fault's name to its findings; each is run once."""
    found: dict[str, list[dict[str, str]]] = {}

    def run(name: str) -> list[dict[str, str]]:
        if name not in found:
            project = copy_project(tmp_path_factory.mktemp(name))
            found[name] = check(project, *FAULTS[name][0](project))
        return found[name]

    return run


SLOW = ("module_that_is_not", "a_single_label", "fewer_shards_than_workers", "goal_the_wrong_way")  # others ask the same way


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAULTS])
def test_a_fault_gets_a_line_of_its_own(seeded, name):
    lines = [finding for finding in seeded(name) if finding["level"] in ("error", "warning")]
    hits = [finding for finding in lines if re.search(FAULTS[name][1], finding["message"])]
    assert len(hits) == 1, "\n".join(finding["message"] for finding in lines)
    assert hits[0]["level"] == ("warning" if name in ("image_past_its_end", "workers_restart_alone") else "error")
    others = [other for other in FAULTS if other != name and any(re.search(FAULTS[other][1], line["message"]) for line in lines)]
    assert not set(others) - {"image_past_its_end", "nowhere_to_write"}


def test_a_parameter_that_is_no_flag_is_named(seeded):
    no_flag = [line for line in bad(seeded("metric_with_a_typo")) if "parameterId" in line]
    assert len(no_flag) == 1
    assert re.search(r"yaml:\d+: studySpec\.parameters\[0\]\.parameterId: unknown argument '--learning_rate=", no_flag[0])


@pytest.mark.slow
def test_a_tuned_batch_that_does_not_divide_is_named(seeded):
    batch = [line for line in bad(seeded("goal_the_wrong_way")) if "parameterId" in line]
    assert len(batch) == 1 and "121 does not divide by the 2 replicas" in batch[0]


def test_a_file_that_is_no_job_ends_with_2(tmp_path, capsys):
    project = copy_project(tmp_path)
    for old, new, said in (
        ("gs://${BUCKET}/taxifare", "gs://Your_Bucket!/x", r"taxifare\.yaml:\d+: baseOutputDirectory.outputUriPrefix: bucket name"),
        ("replicaCount: 1", "replicaCounts: 1", r"taxifare\.yaml:\d+: workerPoolSpecs\[0\]\.replicaCounts: unknown field"),
    ):
        shutil.copy(ROOT / "jobs/taxifare.yaml", project / "jobs/taxifare.yaml")
        edit(project / "jobs/taxifare.yaml", old, new)
        assert main(["check", str(project / "jobs/taxifare.yaml")]) == 2
        assert re.fullmatch(f"error: .*{said}.*\n", capsys.readouterr().err)
    assert main(["check", str(project / "no.yaml")]) == 2
    (tmp_path / "freeze.txt").write_text("numpy==1.26.4\nwhat is this?\n")
    assert main(["check", str(project / "jobs/taxifare.yaml"), f"--freeze={tmp_path / 'freeze.txt'}"]) == 2
    assert re.search(r"--freeze .*freeze\.txt:2: takes lines of `pip freeze`", capsys.readouterr().err)


# ------------------------------------------------------------------ what is well, and what is not looked at


@pytest.mark.parametrize("job", JOBS)
def test_the_projects_own_job_files_have_no_error(job, tmp_path):
    assert bad(check(copy_project(tmp_path), f"jobs/{job}", "--file_only")) == []


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_the_trainers_take_the_projects_own_job_files(job, tmp_path):
    project = copy_project(tmp_path)
    for trainer in TRAINERS:
        put_data(project, trainer)
    findings = check(project, f"jobs/{job}")
    # A package is built and uploaded by its own script, and is not in the bucket of this test.
    assert [line for line in bad(findings) if "packageUris" not in line] == []
    assert {"arguments", "module", "data"} <= {finding["check"] for finding in findings if finding["level"] == "ok"}


def test_data_of_other_buckets_is_not_looked_at_but_the_rest_is(tmp_path):
    project = copy_project(tmp_path)
    edit(project / "jobs/taxifare-tuning.yaml", "taxifare/tests/data/taxi-train.csv", "gs://elsewhere/taxi-*.csv")
    findings = {(f["check"], f["level"]): f["message"] for f in check(project, "jobs/taxifare-tuning.yaml", code=0)}
    assert "gs://elsewhere/taxi-*.csv: that needs the network" in findings["data", "not looked at"]
    assert "val_rmse is what the trainer reports" in findings["metric", "ok"]
    assert "lr, weight_decay" in findings["parameters", "ok"]


def test_a_file_that_is_only_in_the_cloud_is_not_missed(tmp_path, monkeypatch):
    """A bucket's folder that local runs left says nothing of the bucket's files, unless --bucket_root says that it does."""
    project = copy_project(tmp_path)
    shutil.copytree(tmp_path / "buckets", project / ".vertex_local" / "buckets")
    monkeypatch.chdir(project)
    at = {"given": {"bucket": "your-bucket"}, "extra": ["--train_data_path=gs://your-bucket/data/*.csv"], "today": date(2026, 8, 22)}
    state = project / ".vertex_local"
    at["paths"] = Paths(state, state / "buckets", project, sys.executable)
    for sure, away in ((False, ["gs://your-bucket/data/*.csv"]), (True, [])):
        case = checks.load("jobs/taxifare.yaml", has_all_buckets=sure, **at)
        assert checks.remote(case, case.job.pools[0]) == away
    (project / ".vertex_local/buckets/your-bucket/data").mkdir()
    (project / ".vertex_local/buckets/your-bucket/data/a.csv").touch()
    case = checks.load("jobs/taxifare.yaml", **at)
    assert checks.remote(case, case.job.pools[0]) == []


def pipeline_with_explanations(folder: Path) -> Path:
    """Write a training pipeline's file whose model is to be registered with explanations."""
    container = {"imageUri": "host/image:1"}
    pool = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "containerSpec": container}
    output = {"outputUriPrefix": "gs://bucket/x"}
    document = {
        "displayName": "fares", "trainingTaskDefinition": schema.TASK,
        "trainingTaskInputs": {"workerPoolSpecs": [pool], "baseOutputDirectory": output, "scheduling": {"timeout": "60s"}},
        "modelToUpload": {
            "displayName": "fares", "containerSpec": container,
            "explanationSpec": {"parameters": {"sampledShapleyAttribution": {"pathCount": 5}}},
        },
    }  # fmt: skip
    path = folder / "pipeline.json"
    path.write_text(json.dumps(document, indent=1))
    return path


@pytest.mark.parametrize("today, said", [("2026-11-29", "ends them on or after 2027-03-16; leave them out"), ("2027-04-01", "may refuse")])
def test_explanations_of_a_model_to_upload_are_warned_of(tmp_path, capsys, today, said):
    path = pipeline_with_explanations(tmp_path)
    assert main(["check", str(path), "--file_only", f"--today={today}"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "explanation " in line]
    number = path.read_text().splitlines().index('  "explanationSpec": {') + 1
    assert line.startswith("warning") and f"{path}:{number}: modelToUpload.explanationSpec: Vertex AI has deprecated" in line
    assert said in line


def test_a_freeze_file_is_compared_with(tmp_path):
    project = copy_project(tmp_path)
    freeze = tmp_path / "freeze.txt"
    freeze.write_text("# made by hand\nNumPy==1.21.0\npyarrow==17.0.0\ntqdm @ file:///somewhere\n-e git+https://x#egg=y\n")
    lines = bad(check(project, "jobs/taxifare.yaml", f"--freeze={freeze}", "--", "--no_such_flag=1"))
    assert len(lines) == 2 and "requires numpy>=1.26, but the image has numpy 1.21.0" in lines[0]


@pytest.mark.slow
def test_someone_elses_program_is_imported_only_where_that_trains_nothing(tmp_path):
    project = copy_project(tmp_path)
    text = "import argparse\nopen('was_run', 'w')\n"
    (project / "bare.py").write_text(text)
    (project / "guarded.py").write_text("if __name__ == '__main__':\n    open('was_run', 'w')\n")
    (project / "broken.py").write_text("import no_such_package\nif __name__ == '__main__':\n    pass\n")
    said = {}
    for name in ("bare", "guarded", "broken", "elsewhere"):
        container = {"imageUri": "host/any:1", "command": ["python", "-m", name], "args": ["--whatever"]}
        pool = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "containerSpec": container}
        job = {"workerPoolSpecs": [pool], "baseOutputDirectory": {"outputUriPrefix": "gs://your-bucket/x"}}
        (project / "jobs/own.yaml").write_text(json.dumps(job, indent=1))
        findings = check(project, "jobs/own.yaml")
        said[name] = [f["message"] for f in findings if f["check"] in ("arguments", "module")]
    assert "compiled, not imported, which might train; it knows no --plan" in said["bare"][0]
    assert "guarded was imported; it knows no --plan" in said["guarded"][0]
    assert "broken cannot be imported: ModuleNotFoundError" in said["broken"][0]
    assert "there is no module elsewhere in" in said["elsewhere"][0] and "it is the image's own" in said["elsewhere"][0]
    assert not (project / "was_run").exists()


@pytest.mark.slow
def test_the_checkout_stays_as_it_is(tmp_path):
    project = copy_project(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    check(project, sdist_job(project), code=0)
    made = {path for path in tmp_path.rglob("*")} - set(before) - {project / "jobs/packaged.yaml"}
    assert not [path for path in made if "buckets" not in path.parts and "__pycache__" not in path.parts]


# ------------------------------------------------------------------ the whole command


def test_the_command_prints_lines_and_an_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    words = ("check", "jobs/stackoverflow-2-workers.yaml", f"--serving_python={forked.python('tensorflow')}")
    ended, said = patiently(copy_project(tmp_path), *words)
    assert ended == 0, said
    for line in (
        r"ok +data .* 1,600 rows .* 2 replicas take 30 examples of each batch",
        r"ok +serving +--serving_python: TensorFlow \S+ loads the exported model, with serving_default\.",
        r"estimate +steps +106 of global batch 60, 6,360 examples of 1,600 rows, 2 evaluations",
        r"estimate +time +[\d.]+ s to [\d.]+ \w+ on n1-standard-4, .* 6,360 examples at [\d,]+/s, .* at most: .*",
        r"estimate +price +on demand \(this job\): 0\.\d+ USD to 0\.\d+ USD; 0\.4906 USD an hour for 2 machines in us-central1\.",
        r"estimate +price +Spot: 0\.\d+ USD to 0\.\d+ USD \+ the management fee; 0\.2319 USD an hour .*",
    ):
        assert re.search(f"^{line}$", said, re.M), line
    assert not list(tmp_path.glob("vertex-check-*"))


@pytest.mark.slow
def test_the_command_can_be_stopped_while_it_measures(tmp_path):
    project = copy_project(tmp_path)
    patient = "import sys; from vertex_local.check import inspection; inspection.Inspection.left = lambda self, most: 100 * most; "
    patient += "from vertex_local.__main__ import main; sys.exit(main())"  # however busy the machine is, it comes to that
    command = [sys.executable, "-c", patient, "check", "jobs/taxifare.yaml", "--", "--epochs=100000", "--steps_per_call=1"]
    with subprocess.Popen(command, cwd=project, env=environ(TMPDIR=str(tmp_path)), stdout=subprocess.PIPE, text=True) as process:
        events = wait_for(lambda: list(tmp_path.glob("vertex-check-*/events.jsonl")), 300)[0]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("vertex-check-*"))
    mark = f"TRAINER_EVENTS={events}".encode()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            assert mark not in Path("/proc", entry, "environ").read_bytes()


# ------------------------------------------------------------------ the trainers' --plan


@pytest.mark.parametrize("trainer", TRAINERS)
def test_flags_are_parsed_without_tensorflow(trainer, tmp_path, run_trainer):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('not needed')")
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = run_trainer(trainer, "--plan=flags", "--batch-size=128.0", env=env, cwd=tmp_path, fresh=True)
    plan = json.loads(done.stdout.splitlines()[-1])["plan"]
    assert plan["hyperparameters"]["batch_size"] == 128 and "metrics" not in plan
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["tensorflow.py"]


def test_a_plan_knows_the_devices_of_every_worker(tmp_path, run_trainer):
    hosts = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    env = {"TF_CONFIG": json.dumps({"cluster": hosts, "task": {"type": "worker", "index": 1}}), "TRAINER_DEVICES": "4"}
    sample = ROOT / "taxifare/tests/data"
    data = [f"--train_data_path={sample / 'taxi-train.csv'}", f"--eval_data_path={sample / 'taxi-valid.csv'}"]
    done = run_trainer("taxifare", "--plan", *data, env=env, cwd=tmp_path)
    plan = json.loads(done.stdout.splitlines()[-1])["plan"]
    assert (plan["replicas"], plan["rows"], plan["evaluation_rows"], plan["total_steps"]) == (12, 1600, 400, 200)
    assert plan["exact"] and plan["metrics"] == ["val_rmse"] and not plan["maximize"]
    assert not list(tmp_path.iterdir())


def test_rows_that_there_is_no_time_for_are_estimated(tmp_path, monkeypatch):
    from vertex_runtime import data
    from vertex_runtime.columns import Text

    monkeypatch.setattr(data, "BLOCK_BYTES", 1 << 16)
    column = Text("label")
    paths = []
    for i in range(4):
        paths.append(str(tmp_path / f"{i}.csv"))
        Path(paths[-1]).write_text("label\n" + "abcdefg\n" * 50_000)
    read = lambda path: data.read(path, [column], (), data.BadRows())  # noqa: E731
    rows, labels, exact = data.count(read, paths, "label", 60)
    assert (rows, dict(labels), exact) == ([50_000] * 4, {b"abcdefg": 200_000}, True)
    rows, _, exact = data.count(read, paths, "label", -1)
    assert not exact and len(rows) == 4 and 190_000 < sum(rows) < 210_000


# ------------------------------------------------------------------ scripts/image_freeze


def freeze(path: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "scripts/image_freeze", *args], env={"PATH": path}, capture_output=True, text=True)


def test_image_freeze_asks_docker(tmp_path):
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho numpy==1.26.4\n')
    docker.chmod(0o755)
    done = freeze(f"{tmp_path}:/usr/bin:/bin", "host/image:1")
    assert (done.returncode, done.stdout) == (0, "numpy==1.26.4\n")
    assert (tmp_path / "asked").read_text() == "run --rm --entrypoint python3 host/image:1 -m pip freeze --all\n"
    assert done.stderr.startswith("$ docker run --rm ")
    docker.write_text("#!/bin/sh\nexit 125\n")
    done = freeze(f"{tmp_path}:/usr/bin:/bin", "host/image:1")
    assert done.returncode == 1 and "error: docker could not run host/image:1" in done.stderr


def test_image_freeze_says_what_is_missing(tmp_path):
    (tmp_path / "sh").symlink_to("/bin/sh")
    done = freeze(str(tmp_path), "host/image:1")
    assert done.returncode == 2 and done.stderr.startswith("error: there is no docker on PATH")
    assert freeze(str(tmp_path)).returncode == 2 and freeze(str(tmp_path), "a", "b").returncode == 2
