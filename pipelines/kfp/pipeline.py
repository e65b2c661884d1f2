"""The pipeline: validate the data, convert, tune, train, evaluate, gate, upload, deploy, check, predict in batches.

Google's components do what they can; `components.py` has the rest. What is decided when the file is compiled (steps, worker
pools, accounts, networks) stands in `Steps`; what may differ from run to run is a parameter of the pipeline.
KFP reads the annotations, so that they are no text here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from google_cloud_pipeline_components.types.artifact_types import UnmanagedContainerModel, VertexEndpoint, VertexModel
from google_cloud_pipeline_components.v1.batch_predict_job import ModelBatchPredictOp
from google_cloud_pipeline_components.v1.custom_job import CustomTrainingJobOp
from google_cloud_pipeline_components.v1.endpoint import EndpointCreateOp, ModelDeployOp
from google_cloud_pipeline_components.v1.model import ModelUploadOp
from kfp import dsl

from . import components
from .job_files import TrainingJob, TuningJob

STOP_ON = ["leaks", "label leak", "drift", "rows"]  # checks of the data report


@dataclass(frozen=True)
class Steps:
    """What a compiled pipeline consists of; `serving_image`, `output_root` and `location` are defaults of its parameters."""

    job: TrainingJob
    tuning: TuningJob | None
    location: str
    output_root: str
    serving_image: str
    convert_to: str = ""
    validate: bool = True
    deploy: bool = True
    batch_predict: bool = True


class Place(NamedTuple):
    """Where a run's resources are made."""

    project: Any
    location: Any


def define(steps: Steps) -> Callable[..., Any]:
    """Return the pipeline of these steps, for KFP's compiler."""
    job, name = steps.job, steps.job.trainer
    description = f"Trains {name}, and serves it if it is good enough."

    @dsl.pipeline(name=f"{name.replace('_', '-')}-pipeline", description=description)
    def pipeline(
        project: str, location: str = steps.location, output_root: str = steps.output_root, run_name: str = "",
        train_data_path: str = job.data["train_data_path"], eval_data_path: str = job.data["eval_data_path"],
        test_data_path: str = job.data["test_data_path"], convert_shards: int = 1, trainer_args: list[str] = [],  # noqa: B006
        stop_on: list[str] = STOP_ON,  # noqa: B006
        threshold: Optional[float] = None, most_skew: Optional[float] = None, significance: float = 0.05,  # noqa: UP045
        model_display_name: str = name, serving_image: str = steps.serving_image, endpoint_display_name: str = name,
        traffic_percentage: int = 100, serving_machine_type: str = "n1-standard-2", min_replica_count: int = 1,
        max_replica_count: int = 1, serving_tolerance: float = 1e-4, batch_instances: str = "",
    ):  # fmt: skip
        place = Place(project, location)
        plan = components.plan_run(
            pipeline_job=dsl.PIPELINE_JOB_NAME_PLACEHOLDER, output_root=output_root, run_name=run_name, pools=job.pools,
            trial_pools=steps.tuning.pools if steps.tuning else [], train_data_path=train_data_path, eval_data_path=eval_data_path,
            test_data_path=test_data_path, trainer_args=trainer_args, batch_instances=batch_instances,
            trainer=name, convert_to=steps.convert_to, convert_shards=convert_shards,
        )  # fmt: skip
        training = _train(steps, place, _uncached(plan), stop_on)
        assessment = _evaluate(steps, place, plan, training, model_display_name, trainer_args)
        gate = _gate(assessment, threshold, most_skew, significance)
        exported = _exported(plan, gate, serving_image)
        model = _upload(place, assessment.plan, exported, model_display_name)
        if steps.deploy:
            machines = (serving_machine_type, min_replica_count, max_replica_count)
            _deploy(place, gate, model, exported, endpoint_display_name, machines, traffic_percentage, serving_tolerance)
        if steps.batch_predict:
            with dsl.If(batch_instances != "", "batch-prediction-wanted"):
                _predict(place, plan, model, model_display_name, serving_machine_type)

    return pipeline


# ------------------------------------------------------------------ the steps


def _job(steps: Steps, place: Place, what: str, pools: Any, run_dir: Any) -> dsl.PipelineTask:
    """Return a custom job with the job file's scheduling, accounts and networks, which writes to `run_dir`/`what`."""
    options = {name: value for name, value in steps.job.options.items() if value not in ([], {})}
    task = CustomTrainingJobOp(
        project=place.project, location=place.location, display_name=f"{steps.job.trainer}-{what}", worker_pool_specs=pools,
        base_output_directory=f"{run_dir}/{what}", **options,
    )  # fmt: skip
    return task.set_display_name(what)


def _train(steps: Steps, place: Place, plan: dsl.PipelineTask, stop_on: Any) -> dsl.PipelineTask:
    """Train on data that was looked at and, if so compiled, converted, with hyperparameters that were looked for."""
    run_dir = plan.outputs["run_dir"]
    after = _validate(steps, place, plan, stop_on) if steps.validate else plan
    if steps.convert_to:
        after = _job(steps, place, "conversion", plan.outputs["conversion_pools"], run_dir).after(after)
    pools = _tune(steps, place, plan, after) if steps.tuning else plan.outputs["training_pools"]
    return _job(steps, place, "training", pools, run_dir).after(after)


def _validate(steps: Steps, place: Place, plan: dsl.PipelineTask, stop_on: Any) -> dsl.PipelineTask:
    """Have the trainer report on its data, and stop on what `stop_on` names; return the task to wait for."""
    run_dir = plan.outputs["run_dir"]
    job = _uncached(_job(steps, place, "validation", plan.outputs["validation_pools"], run_dir))
    report = dsl.importer(artifact_uri=plan.outputs["data_report"], artifact_class=dsl.Artifact).after(job)
    report.set_display_name("data-report")
    return _uncached(components.check_data_report(report=report.output, stop_on=stop_on))


def _tune(steps: Steps, place: Place, plan: dsl.PipelineTask, after: dsl.PipelineTask) -> Any:
    """Look for the best hyperparameters, and return the training job's worker pools with them."""
    from google_cloud_pipeline_components.v1.hyperparameter_tuning_job import HyperparameterTuningJobRunOp  # takes seconds

    tuning = HyperparameterTuningJobRunOp(
        project=place.project, location=place.location, display_name=f"{steps.job.trainer}-tuning",
        base_output_directory=f"{plan.outputs['run_dir']}/tuning", worker_pool_specs=plan.outputs["trial_pools"], **steps.tuning.options,
    ).after(after)  # fmt: skip
    tuning.set_display_name("tuning")
    best = components.best_trial(
        **place._asdict(), gcp_resources=tuning.outputs["gcp_resources"], pools=plan.outputs["training_pools"]
    )  # fmt: skip
    return best.outputs["training_pools"]


class Assessment(NamedTuple):
    """What was found out for the evaluation, and the job that evaluates."""

    plan: dsl.PipelineTask
    job: dsl.PipelineTask


def _evaluate(
    steps: Steps, place: Place, plan: dsl.PipelineTask, training: dsl.PipelineTask, display_name: Any, trainer_args: Any
) -> Assessment:  # fmt: skip
    """Evaluate the model, against the champion where there is one."""
    run_dir = plan.outputs["run_dir"]
    found = components.plan_evaluation(
        **place._asdict(), display_name=display_name, run_dir=run_dir, model_uri=plan.outputs["model_uri"], pools=steps.job.pools,
        data_args=plan.outputs["data_args"], trainer_args=trainer_args,
    ).after(training)  # fmt: skip
    _uncached(found)
    return Assessment(found, _uncached(_job(steps, place, "evaluation", found.outputs["pools"], run_dir)))


def _gate(assessment: Assessment, threshold: Any, most_skew: Any, significance: Any) -> dsl.PipelineTask:
    """Refuse what is not good enough."""
    uris = [assessment.plan.outputs[name] for name in ("figures", "report")]
    evaluation, report = [dsl.importer(artifact_uri=uri, artifact_class=dsl.Artifact).after(assessment.job) for uri in uris]
    evaluation.set_display_name("evaluation-figures")
    report.set_display_name("evaluation-report")
    gate = components.gate_component()(
        evaluation=evaluation.output, report=report.output, threshold=threshold, most_skew=most_skew, significance=significance
    )
    return _uncached(gate)


def _exported(plan: dsl.PipelineTask, gate: dsl.PipelineTask, serving_image: Any) -> Any:
    """Return the trained model as the artifact that is uploaded, once it may be."""
    exported = dsl.importer(
        artifact_uri=plan.outputs["model_uri"], artifact_class=UnmanagedContainerModel,
        metadata={"containerSpec": {"imageUri": serving_image}},
    ).after(gate)  # fmt: skip
    return exported.set_display_name("exported-model").output


def _upload(place: Place, plan: dsl.PipelineTask, exported: Any, display_name: Any) -> Any:
    """Register the model, as a new version where there is one of that name; return it."""
    options = {**place._asdict(), "display_name": display_name, "unmanaged_container_model": exported, "version_aliases": ["challenger"]}
    with dsl.If(plan.outputs["parent_model"] == "", "new-model"):
        first = _uncached(ModelUploadOp(**options))
    with dsl.Else("new-version"):
        known = _existing(plan.outputs["parent_uri"], plan.outputs["parent_model"], VertexModel, "registered-model")
        following = _uncached(ModelUploadOp(parent_model=known, **options))
    return dsl.OneOf(first.outputs["model"], following.outputs["model"])


def _deploy(
    place: Place, gate: dsl.PipelineTask, model: Any, exported: Any, display_name: Any, machines: tuple[Any, Any, Any], traffic: Any,
    tolerance: Any,
) -> None:  # fmt: skip
    """Deploy the model with its share of the endpoint's traffic, check what it answers, and make it the champion if it has all."""
    plan = components.plan_deployment(**place._asdict(), display_name=display_name, traffic_percentage=traffic).after(gate)
    _uncached(plan)
    with dsl.If(plan.outputs["endpoint"] == "", "new-endpoint"):
        created = _uncached(EndpointCreateOp(**place._asdict(), display_name=display_name))
    with dsl.Else("existing-endpoint"):
        known = _existing(plan.outputs["endpoint_uri"], plan.outputs["endpoint"], VertexEndpoint, "registered-endpoint")
    endpoint = dsl.OneOf(created.outputs["endpoint"], known)
    machine_type, least, most = machines
    deployed = ModelDeployOp(
        model=model, endpoint=endpoint, traffic_split=plan.outputs["traffic_split"], dedicated_resources_machine_type=machine_type,
        dedicated_resources_min_replica_count=least, dedicated_resources_max_replica_count=most,
    )  # fmt: skip
    _uncached(deployed)
    check = components.check_endpoint(
        **place._asdict(), endpoint=endpoint, model=model, exported=exported, traffic_percentage=traffic,
        former_split=plan.outputs["former_split"], tolerance=tolerance,
    ).after(deployed)  # fmt: skip
    _uncached(check)
    with dsl.If(traffic == 100, "all-traffic"):
        _uncached(components.make_champion(**place._asdict(), model=model).after(check))


def _predict(place: Place, plan: dsl.PipelineTask, model: Any, display_name: Any, machine_type: Any) -> None:
    """Predict in a batch."""
    batch = ModelBatchPredictOp(
        **place._asdict(), job_display_name=f"{display_name}-batch", model=model, gcs_source_uris=plan.outputs["batch_sources"],
        gcs_destination_output_uri_prefix=f"{plan.outputs['run_dir']}/batch", machine_type=machine_type, starting_replica_count=1,
        max_replica_count=1,
    )  # fmt: skip
    _uncached(batch)


def _existing(uri: Any, resource: Any, kind: Any, title: str) -> Any:
    """Return a resource that is there as the artifact that Google's components take."""
    return dsl.importer(artifact_uri=uri, artifact_class=kind, metadata={"resourceName": resource}).set_display_name(title).output


def _uncached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Have a step run each time, and return it: what it finds or does depends on more than its inputs.

    Conversion, tuning and training alone may be taken from an earlier run, and only from one of the same name: others write elsewhere.
    """
    return task.set_caching_options(False)
