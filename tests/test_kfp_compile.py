"""The pipeline as it is compiled: the same for the same files, the job files' own pools, every wrong input one line."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from test_kfp_support import driver, needs_kfp, run

from vertex_local.job import job_file, schema
from vertex_local.tuning import study

pytestmark = [pytest.mark.kfp, needs_kfp]
GOLDEN = ROOT / "tests" / "data" / "kfp-pipeline.yaml"
COMPILE = ("-m", "pipelines.kfp.compile")
JOBS = sorted(ROOT.glob("jobs/*.yaml"))
STUDIES = [str(path.relative_to(ROOT)) for path in JOBS if "tuning" in path.name]
OTHERS = ("settings.yaml", "kubernetes-tfjob.yaml")  # of jobs/, and no jobs of the service
CUSTOM = [str(path.relative_to(ROOT)) for path in JOBS if "tuning" not in path.name and path.name not in OTHERS]
ALL = "--job=jobs/taxifare.yaml --tuning=jobs/taxifare-tuning.yaml --convert=parquet"
LEAST = "--job=jobs/stackoverflow-2-workers.yaml --no_validate --no_deploy --no_batch_predict"


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    return driver("compile_all", ALL, LEAST)


def structure(spec: dict[str, Any]) -> dict[str, Any]:
    """Return what a pipeline takes and what its steps are, of what kind, after which others and with what from where."""
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    found: dict[str, Any] = {
        "name": spec["pipelineInfo"]["name"],
        "parameters": {name: f"{about['parameterType']} {about.get('defaultValue', '-')!r}" for name, about in inputs.items()},
    }
    for scope, component in {"root": spec["root"], **spec["components"]}.items():
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            found[f"{scope}/{name}"] = step(spec, task)
    return found


def step(spec: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    component = spec["components"][task["componentRef"]["name"]]
    executor = spec["deploymentSpec"]["executors"].get(component.get("executorLabel"), {})
    container = executor.get("container", {})
    given = {**task.get("inputs", {}).get("parameters", {}), **task.get("inputs", {}).get("artifacts", {})}
    found = {
        "title": task["taskInfo"]["name"],
        "runs": next((word for word in container.get("command", []) if word.startswith("google_cloud_pipeline_components")), None)
        or (container.get("args") or ["importer" if "importer" in executor else "dag"])[-1],
        "after": task.get("dependentTasks"),
        "if": task.get("triggerPolicy", {}).get("condition"),
        "cached": task.get("cachingOptions", {}).get("enableCache"),
        "with": {name: source(value) for name, value in given.items() if not name.startswith("pipelinechannel--")},
    }
    return {name: value for name, value in found.items() if value}


def source(value: dict[str, Any]) -> Any:
    if "runtimeValue" in value:
        return value["runtimeValue"].get("constant")
    of_task = value.get("taskOutputParameter") or value.get("taskOutputArtifact")
    if of_task:
        return f"{of_task['producerTask']}.{of_task.get('outputParameterKey') or of_task.get('outputArtifactKey')}"
    return value.get("componentInputParameter") or value.get("componentInputArtifact")


def test_what_is_compiled_is_what_was_agreed_on(compiled):
    found = {"all": structure(compiled[ALL]["spec"]), "least": structure(compiled[LEAST]["spec"])}
    if os.environ.get("KFP_GOLDEN") == "write":
        GOLDEN.write_text("# Written by KFP_GOLDEN=write pytest -m kfp tests/test_kfp_compile.py\n" + yaml.safe_dump(found, width=140))
    assert found == yaml.safe_load(GOLDEN.read_text()), "if it is meant to be so: KFP_GOLDEN=write pytest -m kfp tests/test_kfp_compile.py"


def test_the_same_files_compile_to_the_same(compiled):
    assert all(found["same"] for found in compiled.values())


def test_the_gate_that_is_packed_in_is_the_projects(compiled):
    text = json.dumps(compiled[ALL]["spec"]["deploymentSpec"])
    (archive,) = set(re.findall("__KFP_EMBEDDED_ARCHIVE_B64 = '([^']+)'", text))
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(archive)), mode="r:gz") as packed:
        files = {member.name.removeprefix("./"): packed.extractfile(member).read() for member in packed.getmembers() if member.isfile()}
    assert files["vertex_runtime/evaluation/gate.py"] == (ROOT / "vertex_runtime" / "evaluation" / "gate.py").read_bytes()
    assert files.items() == {name: (ROOT / name).read_bytes() for name in files}.items() and len(files) == 4


def test_steps_that_are_not_wanted_are_not_there(compiled):
    kinds = {each.get("runs") for each in structure(compiled[LEAST]["spec"]).values() if isinstance(each, dict)}
    assert {"plan_run", "plan_evaluation", "gate_model"} <= kinds
    assert not kinds & {"check_data_report", "best_trial", "plan_deployment", "check_endpoint", "make_champion"}
    assert not [kind for kind in kinds if kind and ("endpoint" in kind or "batch" in kind or "tuning" in kind)]


def without_data(path: str) -> Any:
    return job_file.read(ROOT / path).without_data()


def test_every_job_file_is_passed_on_whole(compiled):
    found = driver("sent", *CUSTOM)
    assert len(found) >= 14
    for path, spec in found.items():
        job = without_data(path)
        job.spec.ClearField("base_output_directory")  # the pipeline's own
        job.spec.scheduling.strategy = job.spec.scheduling.strategy or job.spec.scheduling.Strategy.STANDARD
        if not job.spec.scheduling.HasField("timeout"):
            job.spec.scheduling.timeout.seconds = int(job.timeout)
        expected = job.spec
        assert schema.to_message(spec, "CustomJobSpec") == expected, path


def test_every_study_is_passed_on_and_the_rest_is_noted():
    found = driver("sent_studies", *STUDIES)
    for path, told in found.items():
        read = study.loads(job_file.read_text(ROOT / path), path)
        sent = schema.to_message(told["job"], "HyperparameterTuningJob")
        assert sent.study_spec == read.spec and sent.max_trial_count == read.max_trials and sent.parallel_trial_count == read.parallel
        pools = read.job.without_data().spec.worker_pool_specs
        assert list(sent.trial_job_spec.worker_pool_specs) == list(pools)
        (note,) = told["notes"]
        assert note.startswith(f"{path}:") and "trialJobSpec.scheduling: HyperparameterTuningJobRunOp has no input for it" in note


# ------------------------------------------------------------------ the command


def write_job(folder: Path, **changes: Any) -> Path:
    """Write taxifare's job file, with other fields, into a folder with settings."""
    job = {**yaml.safe_load((ROOT / "jobs" / "taxifare.yaml").read_text()), **changes}
    (folder / "settings.yaml").write_text((ROOT / "jobs" / "settings.yaml").read_text())
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def refused(*flags: object) -> str:
    done = run(*COMPILE, *flags, code=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("error: ")


def test_a_file_is_written_and_an_earlier_one_replaced(tmp_path):
    output = tmp_path / "taxifare.json"
    done = run(*COMPILE, "--job=jobs/taxifare-spot.yaml", f"--output={output}", "--trainer=taxifare", "--output_root=gs://mine/x")
    assert f"{output}: the pipeline of taxifare" in done.stdout
    spec = json.loads(output.read_text())
    assert spec["root"]["inputDefinitions"]["parameters"]["output_root"]["defaultValue"] == "gs://mine/x"
    tasks = spec["root"]["dag"]["tasks"].values()
    strategies = [t["inputs"]["parameters"]["strategy"] for t in tasks if "strategy" in t.get("inputs", {}).get("parameters", {})]
    assert strategies == [{"runtimeValue": {"constant": "SPOT"}}] * 3
    run(*COMPILE, "--job=jobs/taxifare.yaml", f"--output={output}")
    assert json.loads(output.read_text())["root"] != spec["root"]


def test_wrong_files_and_flags_are_one_line(tmp_path):
    out = f"--output={tmp_path / 'p.yaml'}"
    job = write_job(tmp_path, scheduling={"disableRetries": True})
    assert refused(f"--job={job}", out).startswith(f"{job}:")
    assert "scheduling.disableRetries: CustomTrainingJobOp has no such input" in refused(f"--job={job}", out)
    job = write_job(tmp_path, baseOutputDirectory={})
    assert "--output_root: takes gs://bucket/folder; got ''" in refused(f"--job={job}", out)
    flags = ("--job=jobs/taxifare.yaml", "--trainer=stackoverflow", out)
    assert "--trainer: jobs/taxifare.yaml runs taxifare, not stackoverflow." in refused(*flags)
    flags = ("--job=jobs/taxifare.yaml", "--tuning=jobs/stackoverflow-tuning.yaml", out)
    assert "--tuning: jobs/stackoverflow-tuning.yaml tunes stackoverflow, and jobs/taxifare.yaml trains taxifare." in refused(*flags)
    flags = ("--job=jobs/taxifare-sdist.yaml", "--convert=parquet", out)
    assert "--convert: jobs/taxifare-sdist.yaml runs a Python package, which has no data_tools in it" in refused(*flags)
    assert "this is a HyperparameterTuningJob" in refused("--job=jobs/taxifare-tuning.yaml", out)
    assert not (tmp_path / "p.yaml").exists()


def test_an_output_that_is_something_else_is_kept(tmp_path):
    other = tmp_path / "notes.yaml"
    other.write_text("mine: 1\n")
    assert f"--output: {other} is no compiled pipeline and is kept" in refused("--job=jobs/taxifare.yaml", f"--output={other}")
    assert other.read_text() == "mine: 1\n"
    assert "is no folder" in refused("--job=jobs/taxifare.yaml", f"--output={tmp_path / 'no' / 'p.yaml'}")
    assert "takes a file *.yaml or *.json" in refused("--job=jobs/taxifare.yaml", f"--output={tmp_path / 'p.txt'}")
