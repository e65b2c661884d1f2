"""Scenes that need KFP, run by its own environment's Python; the last line printed is what was found, as JSON."""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from google.cloud.aiplatform_v1.types import CustomJob, HyperparameterTuningJob
from google.protobuf import json_format
from google_cloud_pipeline_components.container.v1.gcp_launcher.utils import json_util
from kfp import dsl
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.kfp import compile as compiling
from pipelines.kfp import components, job_files

PLACE = {"project": "your-project", "location": "us-central1"}


def compiled(*flags: str) -> dict[str, Any]:
    """Return a compiled pipeline, which the spec's own proto takes."""
    args = compiling.build_parser().parse_args([*flags, "--output=unused.yaml"])
    spec = yaml.safe_load(compiling.compile_steps(compiling.steps(args)))
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    return spec


def compile_all(*flags: str) -> dict[str, Any]:
    """Compile pipelines by their flags, one text each; return their specs, and whether they are the same a second time."""
    found = {}
    for words in flags:
        spec = compiled(*words.split())
        found[words] = {"spec": spec, "same": spec == compiled(*words.split())}
    return found


def sent(*paths: str) -> dict[str, Any]:
    """Return, of each job's file, the spec that the launcher of CustomTrainingJobOp would send for the training job."""
    found = {}
    for path in paths:
        job = job_files.training_job(path, {}, compiling.ROOT)
        options = dict(job.options)
        names = ("timeout", "restart_job_on_worker_restart", "strategy", "max_wait_duration")
        scheduling = {name: options.pop(name) for name in names if name in options}
        about = {name: options.pop(name) for name in ("labels", "encryption_spec_key_name")}
        spec = {**options, "worker_pool_specs": job.pools, "scheduling": scheduling}
        plain = json.loads(json.dumps({"display_name": "x", "job_spec": spec, "labels": about["labels"]}))
        message = CustomJob(json_util.recursive_remove_empty(plain))
        found[path] = json_format.MessageToDict(message._pb.job_spec)
    return found


def sent_studies(*paths: str) -> dict[str, Any]:
    """Return, of each tuning job's file, the job that HyperparameterTuningJobRunOp would send, and what is noted."""
    found = {}
    for path in paths:
        job = job_files.tuning_job(path, {}, compiling.ROOT)
        study = {name.removeprefix("study_spec_"): value for name, value in job.options.items() if name.startswith("study_spec_")}
        counts = {name: value for name, value in job.options.items() if name.endswith("_count")}
        fields = {"study_spec": study, "trial_job_spec": {"worker_pool_specs": job.pools}, **counts}
        message = HyperparameterTuningJob(json_util.recursive_remove_empty(json.loads(json.dumps(fields))))
        found[path] = {"job": json_format.MessageToDict(message._pb), "notes": job.notes}
    return found


# ------------------------------------------------------------------ components, as the compiled file runs them


def artifact(uri: object = "", **metadata: str) -> dsl.Artifact:
    return dsl.Artifact(name="artifact", uri=str(uri), metadata=metadata)


def ended(component: Any, **inputs: Any) -> Any:
    """Call a component's function and return its outputs; what it raises to end the pipeline is returned as {"error": …}."""
    try:
        return component(**inputs)
    except SystemExit as end:
        return {"error": str(end)}


def plans(folder: str) -> dict[str, Any]:
    """Plan a run, and judge the data reports in `folder`."""
    pools = [{"container_spec": {"image_uri": "h/taxifare:1", "args": ["--lr=1"]}, "replica_count": "2"}, {"replica_count": "0"},
             {"container_spec": {"image_uri": "h/reductionserver:1"}, "replica_count": "8"}]  # fmt: skip
    given = {"pools": pools, "trial_pools": pools[:1], "eval_data_path": "", "test_data_path": "", "trainer_args": ["--seed=2"],
             "batch_instances": "gs://a/1.jsonl gs://a/2.jsonl", "trainer": "taxifare", "convert_to": "", "convert_shards": 2}  # fmt: skip
    plan = components.plan_run.python_func
    found = {
        "plan": ended(plan, pipeline_job="fares-1", output_root="gs://bucket/x/", run_name="", train_data_path="a.csv b.csv", **given),
        "named": ended(plan, pipeline_job="fares-1", output_root="gs://bucket/x", run_name="mine", train_data_path="", **given),
        "converted": ended(
            plan,
            pipeline_job="fares-1",
            output_root="gs://bucket/x",
            run_name="",
            train_data_path="a.csv b.csv",
            **{**given, "convert_to": "parquet"},
        ),  # fmt: skip
        "nothing to convert": ended(
            plan, pipeline_job="fares-1", output_root="gs://bucket/x", run_name="", train_data_path="", **{**given, "convert_to": "csv"}
        ),
        "wrong": ended(plan, pipeline_job="fares-1", output_root="bucket/x", run_name="", train_data_path="", **given),
    }
    for name in ("clean", "leaks", "duplicates"):
        metrics = dsl.Metrics(name="findings", uri=f"{folder}/metrics", metadata={})
        report = artifact(f"{folder}/{name}.json")
        answer = ended(components.check_data_report.python_func, report=report, stop_on=["leaks", "drift"], findings=metrics)
        found[name] = {"answer": answer, "metrics": metrics.metadata}
    return found


def chooses() -> dict[str, Any]:
    """Choose the best trial of a study: the first is on the wrong side of a threshold."""
    metrics = [
        {"metric_id": "size", "goal": "MINIMIZE", "safety_config": {"safety_threshold": 10}}, {"metric_id": "accuracy", "goal": "MAXIMIZE"},
    ]  # fmt: skip
    values = ({"size": 20, "accuracy": 0.9}, {"size": 5, "accuracy": 0.8}, {"size": 1, "accuracy": 0.7})
    trials = [
        {
            "id": str(i), "state": "SUCCEEDED", "parameters": [{"parameter_id": "lr", "value": i / 2}],
            "final_measurement": {"metrics": [{"metric_id": name, "value": value} for name, value in found.items()]},
        }
        for i, found in enumerate(values, 1)
    ]  # fmt: skip
    found = {}
    for name, kept in (("safe", trials), ("none is", trials[:1]), ("no trial", [])):
        job = HyperparameterTuningJob({"study_spec": {"metrics": metrics}, "trials": kept})
        tuning = SimpleNamespace(get=lambda name, job=job: SimpleNamespace(gca_resource=job, trials=job.trials))
        components.start_sdk = lambda *place, tuning=tuning: SimpleNamespace(HyperparameterTuningJob=tuning)
        resources = json.dumps({"resources": [{"resourceUri": "https://host/v1/projects/p/locations/l/hyperparameterTuningJobs/1"}]})
        told = dsl.Metrics(name="measurements", uri="measurements", metadata={})
        answer = ended(components.best_trial.python_func, **PLACE, gcp_resources=resources, pools=[], measurements=told)
        found[name] = {"answer": answer, "metrics": told.metadata}
    return found


def gates(folder: str) -> dict[str, Any]:
    """Judge an evaluation by the component as it is compiled, in a process of KFP's local runner."""
    from kfp import local

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=f"{folder}/root")
    gate, found = components.gate_component(), {}

    @dsl.pipeline
    def judged(evaluation: str, page: str, threshold: float):
        figures = dsl.importer(artifact_uri=evaluation, artifact_class=dsl.Artifact)
        report = dsl.importer(artifact_uri=page, artifact_class=dsl.Artifact)
        gate(evaluation=figures.output, report=report.output, significance=0.05, threshold=threshold)

    for threshold in (3.0, 2.0):
        with contextlib.suppress(RuntimeError):
            judged(evaluation=f"{folder}/evaluation.json", page=f"{folder}/evaluation.html", threshold=threshold)
            found[threshold] = True
    pages = sorted(Path(folder, "root").rglob("page"))
    return {"passed": [str(value) for value in found], "pages": [page.read_text() for page in pages]}


def serves(folder: str) -> dict[str, Any]:
    """Register a model and a second version of it, deploy both, check what they answer, make one champion after the other."""
    exported, uri, name = artifact(f"{folder}/model"), "gs://scene/model", "fares"
    service = components.start_sdk(**PLACE)
    evaluation = {"display_name": name, "run_dir": "gs://scene/run", "model_uri": "gs://scene/run/training/model", "data_args": [],
                  "pools": [{"container_spec": {"image_uri": "h/x:1"}}], "trainer_args": []}  # fmt: skip
    found: dict[str, Any] = {}

    def plan(traffic: int) -> Any:
        return ended(components.plan_deployment.python_func, **PLACE, display_name=name, traffic_percentage=traffic)

    def check(model: Any, endpoint: Any, traffic: int, former: dict[str, str]) -> Any:
        metrics = dsl.Metrics(name="answers", uri=f"{folder}/answers", metadata={})
        return ended(
            components.check_endpoint.python_func, **PLACE, endpoint=artifact(resourceName=endpoint.resource_name), exported=exported,
            model=artifact(resourceName=model.versioned_resource_name), traffic_percentage=traffic, former_split=former, tolerance=1e-4,
            answers=metrics,
        ) or metrics.metadata  # fmt: skip

    def upload(parent: str | None = None) -> Any:
        image = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
        return service.Model.upload(
            display_name=name, artifact_uri=uri, serving_container_image_uri=image, parent_model=parent, version_aliases=["challenger"],
            is_default_version=False,
        )  # fmt: skip

    found["nothing yet"] = [ended(components.plan_evaluation.python_func, **PLACE, **evaluation), plan(30)]
    first, endpoint = upload(), service.Endpoint.create(display_name=name)
    first.deploy(endpoint=endpoint, machine_type="n1-standard-2")
    found["first"] = check(first, endpoint, 100, {})
    components.make_champion.python_func(**PLACE, model=artifact(resourceName=first.versioned_resource_name))
    found["champion"] = ended(components.plan_evaluation.python_func, **PLACE, **evaluation)
    second, (_, _, split, former) = upload(first.resource_name), plan(30)
    found["split"] = [sorted(split.values()), list(former.values())]
    second.deploy(endpoint=endpoint, machine_type="n1-standard-2", traffic_split={key: int(value) for key, value in split.items()})
    found["second"] = check(second, endpoint, 30, former)
    samples = Path(folder, "model", "assets.extra", "sample_predictions.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    lines[1]["prediction"] += 1
    samples.write_text("\n".join(map(json.dumps, lines)))
    found["worse"] = check(second, endpoint, 30, former)
    found["after"] = [service.Endpoint(endpoint.resource_name).traffic_split == {key: int(value) for key, value in former.items()}]
    components.make_champion.python_func(**PLACE, model=artifact(resourceName=second.versioned_resource_name))
    found["aliases"] = components.find_model(service, name)[1]
    found["wrong"] = plan(101)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("scene", choices=("compile_all", "sent", "sent_studies", "plans", "chooses", "gates", "serves"))
    parser.add_argument("words", nargs="*")
    chosen = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        result = globals()[chosen.scene](*chosen.words)
    print(json.dumps(result))
