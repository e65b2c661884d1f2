"""Our own components: what no component of Google's does.

KFP copies the source of each function into the compiled file and runs it there, in the image of Google's components, which
brings the SDK. So a function imports what it uses, takes only Python that this image has, and calls nothing but the
functions that its decorator names. A component that raises SystemExit with a message ends its pipeline, and that is why.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Optional

from google_cloud_pipeline_components import _image
from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Metrics, Output

ROOT = Path(__file__).resolve().parents[2]
IMAGE = _image.GCPC_IMAGE_TAG
# The gate is a module of the project's, which the image does not have: it is packed into the component.
GATE = ("__init__.py", "errors.py", "evaluation/__init__.py", "evaluation/gate.py")


# ------------------------------------------------------------------ what components share


def with_arguments(pools: list[dict[str, Any]], arguments: list[str]) -> list[dict[str, Any]]:
    """Return worker pools with `arguments` after those of every pool that runs the trainer: the later of two equal flags wins."""
    import copy

    found = copy.deepcopy(pools)
    for pool in found:
        task = pool.get("container_spec") or pool.get("python_package_spec")
        if task and "reductionserver" not in task.get("image_uri", ""):
            task["args"] = [*task.get("args", []), *arguments]
    return found


def chief_alone(pools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first of a job's worker pools alone, with one replica, for work that is not shared."""
    return [{**pools[0], "replica_count": "1"}]


def conversion_pools(
    pools: list[dict[str, Any]], trainer: str, sources: list[str], target: str, convert_to: str, shards: int
) -> list[dict[str, Any]]:
    """Return the pools of a job that converts files by the image of the training job, which has data_tools in it."""
    pool = {**pools[0], "replica_count": "1"}
    words = [trainer, "--from", *sources, "--to", target, "--format", convert_to, "--shards", str(shards), "--shuffle"]
    command = ["python", "-m", "data_tools.convert"]
    pool["container_spec"] = {**pool["container_spec"], "command": command, "args": words}
    return [pool]


def start_sdk(project: str, location: str) -> Any:
    """Return the SDK's high-level module, set up; gcloud's own variables lead it to another service than Google's."""
    import os

    from google.auth.credentials import AnonymousCredentials
    from google.cloud import aiplatform
    from google.oauth2.credentials import Credentials

    options = {}
    endpoint, token = os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM"), os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE")
    if endpoint:
        credentials = Credentials(open(token).read().strip()) if token else AnonymousCredentials()
        address = endpoint.rstrip("/").removeprefix("https://")
        options = {"credentials": credentials, "api_endpoint": address, "api_transport": "rest"}
    aiplatform.init(project=project, location=location, **options)
    return aiplatform


def find_model(aiplatform: Any, display_name: str) -> Any:
    """Return the newest model of that name as (model, {alias: version}); (None, {}) if there is none."""
    models = aiplatform.Model.list(filter=f'display_name="{display_name}"', order_by="create_time desc")
    if not models:
        return None, {}
    versions = models[0].versioning_registry.list_versions()
    return models[0], {alias: version.version_id for version in versions for alias in version.version_aliases}


def find_endpoint(aiplatform: Any, display_name: str) -> Any:
    """Return the newest endpoint of that name, None if there is none."""
    found = aiplatform.Endpoint.list(filter=f'display_name="{display_name}"', order_by="create_time desc")
    return found[0] if found else None


def deployed_id(endpoint: Any, model: str) -> str:
    """Return which of an endpoint's deployed models is the newest of a version, `model` being its resource name."""
    name, _, version = model.partition("@")
    own = [found for found in endpoint.list_models() if found.model.partition("@")[0] == name and found.model_version_id == version]
    if not own:
        raise SystemExit(f"{endpoint.resource_name} has no deployed model {model}.")
    return max(own, key=lambda found: found.create_time).id


def ask(endpoint: Any, instances: list[Any], deployed: str, share: int) -> list[Any]:
    """Return what one of an endpoint's deployed models answers, which gets `share` percent of the requests."""
    most = 1 if share == 100 else min(500, 10 * -(-100 // share))  # until it is its turn, almost certainly
    for _ in range(most):
        answer = endpoint.predict(instances=instances)
        if answer.deployed_model_id == deployed:
            return answer.predictions
    raise SystemExit(f"deployed model {deployed} answered none of {most} requests; it should get {share} % of them.")


def largest_difference(one: Any, other: Any) -> float:
    """Return how far two answers are apart: of numbers |a - b| / max(1, |b|), the largest; infinite for anything else that differs."""
    import math

    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((largest_difference(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((largest_difference(*pair) for pair in zip(one, other)), default=0.0)
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
    if numbers and math.isfinite(one) and math.isfinite(other):
        return abs(one - other) / max(1.0, abs(other))
    return 0.0 if one == other else math.inf


# ------------------------------------------------------------------ what is to be done


@dsl.component(base_image=IMAGE, install_kfp_package=False, additional_funcs=[with_arguments, chief_alone, conversion_pools])
def plan_run(
    pipeline_job: str, output_root: str, run_name: str, pools: list[dict[str, Any]], trial_pools: list[dict[str, Any]],
    train_data_path: str, eval_data_path: str, test_data_path: str, trainer_args: list[str], batch_instances: str, trainer: str,
    convert_to: str, convert_shards: int,
) -> NamedTuple(
    "Plan",
    [
        ("run_dir", str), ("data_report", str), ("model_uri", str), ("data_args", list[str]),
        ("validation_pools", list[dict[str, Any]]), ("conversion_pools", list[dict[str, Any]]),
        ("trial_pools", list[dict[str, Any]]), ("training_pools", list[dict[str, Any]]), ("batch_sources", list[str]),
    ],
):  # fmt: skip
    """Say where the run writes to, and complete the job file's worker pools by the run's data and arguments.

    Args:
        pipeline_job: the pipeline job's name, which is the run's where `run_name` is empty.
        pools, trial_pools: of the training and of the tuning job; the latter may be none.
        train_data_path: paths, with blanks between them, as in its siblings; empty: none is given to the trainer.
        convert_to: the format that training rows are converted to before they are trained on; empty: they are read as they are.
    """
    if not output_root.startswith("gs://"):
        raise SystemExit(f"output_root: takes gs://bucket/folder; got {output_root!r}.")
    run_dir = f"{output_root.rstrip('/')}/{run_name or pipeline_job}"
    if convert_to and not train_data_path.split():
        raise SystemExit("train_data_path: is empty, and the pipeline was compiled with --convert: say what to convert.")
    paths = {"train": train_data_path, "eval": eval_data_path, "test": test_data_path}
    data_args = [word for name, text in paths.items() if text.split() for word in (f"--{name}_data_path", *text.split())]
    arguments = [*trainer_args, *data_args]
    converted, sources = f"{run_dir}/data/training", train_data_path.split()
    conversion = conversion_pools(pools, trainer, sources, converted, convert_to, convert_shards) if convert_to else []
    report = f"{run_dir}/validation/data_report"
    validation = with_arguments(chief_alone(pools), [*arguments, f"--data_report={report}.html"])
    arguments += ["--train_data_path", f"{converted}/training-*"] if convert_to else []  # a folder may mean one of images
    trials, training = with_arguments(trial_pools, arguments), with_arguments(pools, arguments)
    batch, model = batch_instances.split(), f"{run_dir}/training/model"
    print(f"run directory: {run_dir}")
    return (run_dir, f"{report}.json", model, data_args, validation, conversion, trials, training, batch)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def check_data_report(report: Input[Artifact], stop_on: list[str], findings: Output[Metrics]):
    """End the pipeline where the trainer's report on its data warns of something that `stop_on` names, such as leaks or drift.

    Args:
        report: data_report.json, as the trainer writes it.
        stop_on: checks whose warnings end the pipeline; all others are printed.
    """
    import json

    with open(report.path, encoding="utf-8") as file:
        found = json.load(file)["findings"]
    for finding in found:
        print(f"{finding['level']}: {finding['check']}: {finding['message']}")
    warnings = [finding for finding in found if finding["level"] == "warning"]
    findings.log_metric("warnings", len(warnings))
    fatal = [f"{finding['check']}: {finding['message']}" for finding in warnings if finding["check"] in stop_on]
    if fatal:
        raise SystemExit(f"the data is not fit to train on, {len(fatal)} finding(s): {' '.join(fatal)} See {report.uri}.")


@dsl.component(base_image=IMAGE, install_kfp_package=False, additional_funcs=[start_sdk, with_arguments])
def best_trial(
    project: str, location: str, gcp_resources: str, pools: list[dict[str, Any]], measurements: Output[Metrics]
) -> NamedTuple("Best", [("trial", str), ("arguments", list[str]), ("training_pools", list[dict[str, Any]])]):  # fmt: skip
    """Return the worker pools with the hyperparameters of a tuning job's best trial, by the first metric that is to be optimized.

    A trial on the wrong side of another metric's threshold counts only if every trial is.

    Args:
        gcp_resources: what HyperparameterTuningJobRunOp says of its job.
    """
    import json

    uri = json.loads(gcp_resources)["resources"][0]["resourceUri"]
    job = start_sdk(project, location).HyperparameterTuningJob.get(uri.partition("/v1/")[2])
    metrics = job.gca_resource.study_spec.metrics
    signs = {metric.metric_id: 1 if metric.goal.name == "MINIMIZE" else -1 for metric in metrics}
    limits = {metric.metric_id: metric.safety_config.safety_threshold for metric in metrics if "safety_config" in metric}
    objective = next(name for name in signs if name not in limits)
    values = []
    for trial in job.trials:
        found = {each.metric_id: each.value for each in trial.final_measurement.metrics}
        if trial.state.name == "SUCCEEDED" and objective in found:
            unsafe = any(signs[name] * (found[name] - limit) > 0 for name, limit in limits.items() if name in found)
            values.append((unsafe, signs[objective] * found[objective], trial))
    if not values:
        raise SystemExit(f"no trial of {uri.partition('/v1/')[2]} has succeeded with a value of {objective}.")
    _, value, best = min(values, key=lambda item: item[:2])
    value *= signs[objective]
    arguments = []
    for parameter in best.parameters:
        chosen = parameter.value
        whole = isinstance(chosen, float) and chosen.is_integer()  # all numbers of a trial are floats
        arguments.append(f"--{parameter.parameter_id}={int(chosen) if whole else chosen}")
    measurements.log_metric(objective, value)
    print(f"trial {best.id}, the best of {len(values)} by {objective} ({value:g}): {' '.join(arguments)}")
    return (best.id, arguments, with_arguments(pools, arguments))


@dsl.component(base_image=IMAGE, install_kfp_package=False, additional_funcs=[start_sdk, find_model, with_arguments, chief_alone])
def plan_evaluation(
    project: str, location: str, display_name: str, run_dir: str, model_uri: str, pools: list[dict[str, Any]], data_args: list[str],
    trainer_args: list[str],
) -> NamedTuple(
    "Evaluation",
    [
        ("parent_model", str), ("parent_uri", str), ("champion", str), ("figures", str), ("report", str),
        ("pools", list[dict[str, Any]]),
    ],
):  # fmt: skip
    """Find the registered model and the version that serves, its alias `champion`, and return the pools of the evaluation's job.

    Returns:
        parent_model, parent_uri: the model of which the new one becomes a version, as name and as URL; empty if there is none.
        champion: where the champion's SavedModel is; empty if there is none.
        figures, report: where the job will write evaluation.json and evaluation.html.
    """
    aiplatform = start_sdk(project, location)
    model, aliases = find_model(aiplatform, display_name)
    champion = ""
    if "champion" in aliases:
        champion = aiplatform.Model(model.resource_name, version=aliases["champion"]).uri or ""
    output, name = f"{run_dir}/evaluation", model.resource_name if model else ""
    arguments = [*trainer_args, *data_args, f"--evaluate={model_uri}", f"--output_dir={output}"]
    arguments += [f"--against={champion}"] if champion else []
    print(f"model: {name or 'none yet'}; champion: {champion or 'none yet'}")
    uri = f"https://{location}-aiplatform.googleapis.com/v1/{name}" if name else ""
    return (name, uri, champion, f"{output}/evaluation.json", f"{output}/evaluation.html", with_arguments(chief_alone(pools), arguments))


# ------------------------------------------------------------------ whether the model may serve


def gate_model(
    evaluation: Input[Artifact],
    report: Input[Artifact],
    significance: float,
    metrics: Output[Metrics],
    page: Output[HTML],
    threshold: Optional[float] = None,  # noqa: UP045 - KFP reads it
    most_skew: Optional[float] = None,  # noqa: UP045
):
    """End the pipeline where something speaks against the model, by vertex_runtime/evaluation/gate.py.

    Args:
        evaluation, report: evaluation.json and evaluation.html.
        significance: from this p-value on, being worse than the champion on the same rows counts as chance.
        threshold: what the objective must reach; None: anything.
        most_skew: the largest distance of a column from the training rows; None: any.
    """
    import shutil

    from vertex_runtime.errors import UserError
    from vertex_runtime.evaluation import gate

    shutil.copyfile(report.path, page.path)
    try:
        found = gate.load(evaluation.path)
        for name, value in found["metrics"].items():
            if isinstance(value, (int, float)):
                metrics.log_metric(name, value)
        reasons = gate.refusals(found, threshold=threshold, most_skew=most_skew, significance=significance)
    except UserError as error:
        raise SystemExit(str(error)) from None
    if reasons:
        raise SystemExit(f"the model is refused, nothing is uploaded: {'; '.join(reasons)}. See {report.uri}.")
    print(f"the model may serve: {found['objective']} is {found['metrics'].get(found['objective'])}")


def gate_component() -> Callable[..., Any]:
    """Return `gate_model` as a component with the gate's own modules packed in, which KFP puts on the path where it runs."""
    with tempfile.TemporaryDirectory(prefix="gate-") as folder:
        for name in GATE:
            target = Path(folder) / "vertex_runtime" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / "vertex_runtime" / name, target)
        return dsl.component(gate_model, base_image=IMAGE, install_kfp_package=False, embedded_artifact_path=os.fspath(folder))


# ------------------------------------------------------------------ deployed


@dsl.component(base_image=IMAGE, install_kfp_package=False, additional_funcs=[start_sdk, find_endpoint])
def plan_deployment(project: str, location: str, display_name: str, traffic_percentage: int) -> NamedTuple(
    "Deployment", [("endpoint", str), ("endpoint_uri", str), ("traffic_split", dict[str, str]), ("former_split", dict[str, str])]
):
    """Find the endpoint of that name, and say who is to get how much of its traffic.

    The models that are there keep their proportions within what the new one, "0", leaves of the 100.

    Returns:
        endpoint, endpoint_uri: its resource name and URL; empty if there is none.
        former_split: the traffic as it is.
    """
    if not 0 <= traffic_percentage <= 100:
        raise SystemExit(f"traffic_percentage: takes 0 to 100; got {traffic_percentage}.")
    endpoint = find_endpoint(start_sdk(project, location), display_name)
    name = endpoint.resource_name if endpoint else ""
    uri = f"https://{location}-aiplatform.googleapis.com/v1/{name}" if name else ""
    former = {key: value for key, value in dict(endpoint.traffic_split).items() if value} if endpoint else {}
    if not former:
        print(f"endpoint: {name or 'none yet'}; the new model gets all traffic")
        return (name, uri, {"0": "100"}, {})
    rest = 100 - traffic_percentage
    shares = {key: value * rest // 100 for key, value in former.items()}
    for key in sorted(former, key=lambda name: -(former[name] * rest % 100))[: rest - sum(shares.values())]:
        shares[key] += 1  # what rounding down has left over
    split = {"0": str(traffic_percentage), **{key: str(value) for key, value in shares.items()}}
    print(f"endpoint: {name}; traffic {former}, then {split}, where 0 is the new model")
    return (name, uri, split, {key: str(value) for key, value in former.items()})


@dsl.component(base_image=IMAGE, install_kfp_package=False, additional_funcs=[start_sdk, deployed_id, ask, largest_difference])
def check_endpoint(
    project: str, location: str, endpoint: Input[Artifact], model: Input[Artifact], exported: Input[Artifact], traffic_percentage: int,
    former_split: dict[str, str], tolerance: float, answers: Output[Metrics],
):  # fmt: skip
    """Ask the endpoint what the exported model was asked when it was made, and compare; undo the deployment where they differ.

    Args:
        endpoint, model: what was deployed where; their metadata has the resource names.
        exported: the SavedModel's folder; assets.extra/sample_predictions.jsonl in it has an instance and its answer a line.
        former_split: the traffic as it was before, which it is again after a failure.
        tolerance: of numbers, |served - exported| / max(1, |exported|).
    """
    import json
    import os

    path = f"{exported.path}/assets.extra/sample_predictions.jsonl"
    if not os.path.isfile(path):
        print(f"{exported.uri} has no sample predictions, its rows are too large to be asked online: not checked.")
        return
    with open(path, encoding="utf-8") as file:
        samples = [json.loads(line) for line in file]
    target = start_sdk(project, location).Endpoint(endpoint.metadata["resourceName"])
    deployed, share = deployed_id(target, model.metadata["resourceName"]), traffic_percentage if former_split else 100
    if share == 0:
        print(f"deployed model {deployed} gets no traffic and cannot be asked.")
        return
    served = ask(target, [sample["instance"] for sample in samples], deployed, share)
    differences = [largest_difference(answer, sample["prediction"]) for answer, sample in zip(served, samples)]
    worst = max(range(len(differences)), key=differences.__getitem__)
    if len(served) != len(samples) or differences[worst] > tolerance:
        shares = {key: int(value) for key, value in former_split.items()}
        target.undeploy(deployed_model_id=deployed, **({"traffic_split": shares} if shares else {}))
        raise SystemExit(
            f"the endpoint does not answer as the exported model: to {json.dumps(samples[worst]['instance'])[:500]} "
            f"{json.dumps(served[worst])[:200]} instead of {json.dumps(samples[worst]['prediction'])[:200]}. "
            f"It is undeployed again; the traffic is as before: {former_split or 'none'}."
        )
    answers.log_metric("instances", len(samples))
    answers.log_metric("largest_difference", differences[worst])
    print(f"{target.resource_name} answers {len(samples)} instances as the exported model, largest difference {differences[worst]:.1e}")


@dsl.component(base_image=IMAGE, install_kfp_package=False, additional_funcs=[start_sdk])
def make_champion(project: str, location: str, model: Input[Artifact]):
    """Give the alias `champion` to a version, and `previous-champion` to the one that had it."""
    name, _, version = model.metadata["resourceName"].partition("@")
    registry = start_sdk(project, location).Model(name).versioning_registry
    former = [found.version_id for found in registry.list_versions() if "champion" in found.version_aliases]
    if former and former != [version]:
        registry.add_version_aliases(["previous-champion"], former[0])
    registry.add_version_aliases(["champion"], version)
    registry.remove_version_aliases(["challenger"], version)
    print(f"champion: version {version} of {name}" + (f", before it version {former[0]}" if former else ""))
