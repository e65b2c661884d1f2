"""google.cloud.aiplatform.v1.PipelineService: training pipelines and pipeline jobs.

A training pipeline exports a data set, runs a job and uploads its model. A pipeline job runs a compiled pipeline of any steps.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..job import job_file
from ..local import job_record
from . import exports, jobs, messages, models, persistent_resources, pipeline_jobs, runs
from .local import Local, location_of
from .operations import OperationPool
from .rest import ApiError

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2
    from google.protobuf.message import Message

_KIND = "trainingPipelines"
_DEFINITION = re.compile(r"gs://google-cloud-aiplatform/schema/trainingjob/definition/(custom|hyperparameter_tuning)_task_1\.0\.0\.yaml")


class PipelineService:
    """Training pipelines of custom jobs and of tuning jobs; pipeline jobs."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._operations = local, operations
        for type_name, kind in (("TrainingPipeline", _KIND), ("PipelineJob", pipeline_jobs.KIND)):
            jobs.JobResources(local, operations, type_name, kind).add_to(self, "get", "list", "cancel", "delete")

    def create_training_pipeline(self, request: types.CreateTrainingPipelineRequest) -> types.TrainingPipeline:
        """Check and record a new training pipeline, and put it into the queue."""
        pipeline = request.training_pipeline
        jobs.check_name(pipeline)
        task = _task(self._local, pipeline)
        task.work({})
        persistent_resources.check_job(self._local, request.parent, task.spec, task.field)
        export = None
        if pipeline.HasField("input_data_config"):
            export = exports.planned(self._local, request.parent, pipeline.input_data_config)
        if pipeline.HasField("model_to_upload"):
            self._check_upload(request.parent, pipeline, task.output)

        def work(name: str, cancel: threading.Event) -> jobs.End:
            return self._run(name, cancel, pipeline, task, export)

        return messages.read(jobs.create(self._local, request.parent, _KIND, pipeline, work), "TrainingPipeline")

    # ------------------------------------------------------------------ pipeline jobs

    def create_pipeline_job(self, request: types.CreatePipelineJobRequest) -> types.PipelineJob:
        """Check and record a new pipeline job, and put it into the queue."""
        pipeline = pipeline_jobs.checked(self._local, request.parent, request.pipeline_job, request.pipeline_job_id)
        return messages.read(pipeline_jobs.create(self._local, request.parent, pipeline), "PipelineJob")

    def batch_cancel_pipeline_jobs(self, request: types.BatchCancelPipelineJobsRequest) -> operations_pb2.Operation:
        """Ask several pipeline jobs to end: all of them, or none if one does not exist or is over."""
        for name in request.names:
            jobs.check_under_way(self._local, name)
        for name in request.names:
            jobs.cancel(self._local, name)
        found = [self._local.known(name) for name in request.names]
        return self._done(request, "BatchCancelPipelineJobsOperationMetadata", found)

    def batch_delete_pipeline_jobs(self, request: types.BatchDeletePipelineJobsRequest) -> operations_pb2.Operation:
        """Forget several pipeline jobs: all of them, or none if one is not over."""
        found = [jobs.ended(self._local, name) for name in request.names]
        for name in request.names:
            self._local.records.remove(name)
        return self._done(request, "DeleteOperationMetadata", found)

    def _done(self, request: Message, metadata: str, found: list[dict[str, Any]]) -> operations_pb2.Operation:
        """Return the operation that has done what a batch request asks for, with the pipeline jobs in its response."""
        shown = [messages.to_json(messages.read(document, "PipelineJob")) for document in found]
        response = request.DESCRIPTOR.name.removesuffix("Request") + "Response"
        return self._operations.finished(request.parent, metadata, (response, {"pipelineJobs": shown}))

    # ------------------------------------------------------------------ how a training pipeline runs

    def _check_upload(self, parent: str, pipeline: Message, output: str) -> None:
        model = pipeline.model_to_upload
        models.check_upload(self._local, parent, model, pipeline.model_id, pipeline.parent_model)
        if not output and not model.artifact_uri:
            text = "modelToUpload needs baseOutputDirectory in the task's inputs, or an artifactUri."
            raise ApiError("INVALID_ARGUMENT", text, "trainingTaskInputs.baseOutputDirectory")

    def _run(
        self, name: str, cancel: threading.Event, pipeline: Message, task: _Task,
        export: Callable[[threading.Event], dict[str, str]] | None,
    ) -> jobs.End:  # fmt: skip
        """Export the data, run the job, upload the model."""
        job_record.running(self._local.records, name)
        exported = export(cancel) if export else {}
        work = task.work({**exported, pipeline_jobs.PIPELINE: name})  # our trainers record the pipeline's name
        backing, (state, error) = jobs.run_backing(self._local, name, task.kind, task.job, work, cancel)
        if state == "SUCCEEDED" and pipeline.HasField("model_to_upload"):
            model = messages.kind("Model")()
            model.CopyFrom(pipeline.model_to_upload)
            model.artifact_uri = model.artifact_uri or task.model_folder(self._local.known(backing))
            model.training_pipeline = name
            uploaded = models.upload(self._local, location_of(name), model, pipeline.model_id, pipeline.parent_model)
            job_record.update(self._local.records, name, lambda document: document.update(modelToUpload=uploaded))
        return state, error


@dataclass(frozen=True)
class _Task:
    """A training pipeline's job.

    Attributes:
        kind: customJobs or hyperparameterTuningJobs.
        job: its message, with the pipeline's display name.
        spec: the CustomJobSpec in that.
        field: the request's field that holds the spec.
        work: checks the job and returns the function that runs it, given variables for its replicas.
    """

    kind: str
    job: Message
    spec: Message
    field: str
    work: Callable[[Mapping[str, str]], jobs.Work]

    @property
    def output(self) -> str:
        """The job's output directory, without a slash at its end; "" if it has none."""
        return self.spec.base_output_directory.output_uri_prefix.rstrip("/")

    def model_folder(self, document: Mapping[str, Any]) -> str:
        """Return the trained model's folder: the job's AIP_MODEL_DIR, or that of a study's best trial."""
        if self.kind == "customJobs":
            return f"{self.output}/model"
        from ..tuning import measurements, parameters, study

        job = job_file.JobFile("job", None, self.job)
        search = study.Study(job, parameters.read_metrics(job, self.job.study_spec.metrics), ())
        best = measurements.best(search, document.get("trials", []))  # with several metrics the first of them decides
        first = search.objectives[0]
        values = {trial["id"]: measurements.value_of(trial["finalMeasurement"])[first.id] for trial in best}
        if not values:
            raise ApiError(
                "FAILED_PRECONDITION", "no trial succeeded with a measurement; there is no model to upload; see the trials' logs."
            )
        return f"{self.output}/{(max if first.maximize else min)(values, key=values.__getitem__)}/model"


def _task(local: Local, pipeline: Message) -> _Task:
    """Return the job that a training pipeline's definition and inputs describe."""
    messages.required(pipeline, "training_task_definition", "training_task_inputs")
    task = _DEFINITION.fullmatch(pipeline.training_task_definition)
    if not task:
        known = "custom_task_1.0.0.yaml and hyperparameter_tuning_task_1.0.0.yaml"
        text = f"the local service runs {known}; got {pipeline.training_task_definition[:100]!r}."
        raise ApiError("UNIMPLEMENTED", text, "trainingTaskDefinition")
    inputs, field = messages.plain(pipeline.training_task_inputs), "trainingTaskInputs"
    if not isinstance(inputs, Mapping):
        raise ApiError("INVALID_ARGUMENT", f"{field} takes an object; got {str(inputs)[:100]!r}.", field)
    if task[1] == "custom":
        spec = messages.parse(inputs, messages.new("CustomJobSpec"), field)
        job = messages.new("CustomJob", display_name=pipeline.display_name, job_spec=spec)
        return _Task("customJobs", job, spec, field, partial(runs.custom, local, spec, field))
    job = messages.parse(inputs, messages.new("HyperparameterTuningJob"), field)
    job.display_name = pipeline.display_name
    return _Task("hyperparameterTuningJobs", job, job.trial_job_spec, f"{field}.trialJobSpec", partial(runs.tuning, local, job, field))
