"""google.cloud.aiplatform.v1.PipelineService: training pipelines and pipeline jobs.

A training pipeline exports a data set, runs a job and uploads its model. A pipeline job runs a compiled pipeline of any steps.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..local import job_record
from . import exports, jobs, lists, messages, models, persistent_resources, pipeline_jobs, runs
from .local import Local, location_of
from .operations import OperationPool
from .rest import ApiError

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2
    from google.protobuf import empty_pb2
    from google.protobuf.message import Message

_KIND = "trainingPipelines"
_DEFINITION = re.compile(r"gs://google-cloud-aiplatform/schema/trainingjob/definition/(custom|hyperparameter_tuning)_task_1\.0\.0\.yaml")


class PipelineService(jobs.Jobs):
    """Training pipelines of custom jobs and of tuning jobs; pipeline jobs."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._operations = local, operations

    def create_training_pipeline(self, request: types.CreateTrainingPipelineRequest) -> types.TrainingPipeline:
        """Check and record a new training pipeline, and put it into the queue."""
        pipeline = request.training_pipeline
        jobs.check_name(pipeline)
        task = _task(pipeline)
        task.check(self._local, request.parent)
        export = None
        if pipeline.HasField("input_data_config"):
            export = exports.planned(self._local, request.parent, pipeline.input_data_config)
        if pipeline.HasField("model_to_upload"):
            self._check_upload(request.parent, pipeline, task.output)

        def work(name: str, cancel: threading.Event) -> jobs.End:
            folder = self._local.state / "jobs" / name.rpartition("/")[2]
            with job_record.held(folder):  # otherwise another process would record the pipeline as failed
                return self._run(name, cancel, pipeline, task, export)

        return messages.read(jobs.create(self._local, request.parent, _KIND, pipeline, work), "TrainingPipeline")

    def get_training_pipeline(self, request: types.GetTrainingPipelineRequest) -> types.TrainingPipeline:
        """Return a training pipeline; its metadata names its job once that exists."""
        return messages.read(self._local.known(request.name), "TrainingPipeline")

    def list_training_pipelines(self, request: types.ListTrainingPipelinesRequest) -> types.ListTrainingPipelinesResponse:
        """Return one page of training pipelines."""
        return lists.answer(self._local.records, _KIND, request, "TrainingPipeline", "training_pipelines")

    def cancel_training_pipeline(self, request: types.CancelTrainingPipelineRequest) -> empty_pb2.Empty:
        """Ask a training pipeline and its job to end; its state shows when they have."""
        return self._cancel(request.name)

    def delete_training_pipeline(self, request: types.DeleteTrainingPipelineRequest) -> operations_pb2.Operation:
        """Forget a training pipeline that is over; its job, its model and all files stay."""
        return self._delete(request.name)

    # ------------------------------------------------------------------ pipeline jobs

    def create_pipeline_job(self, request: types.CreatePipelineJobRequest) -> types.PipelineJob:
        """Check and record a new pipeline job, and put it into the queue."""
        pipeline = pipeline_jobs.checked(self._local, request.parent, request.pipeline_job, request.pipeline_job_id)
        return messages.read(pipeline_jobs.create(self._local, request.parent, pipeline), "PipelineJob")

    def get_pipeline_job(self, request: types.GetPipelineJobRequest) -> types.PipelineJob:
        """Return a pipeline job with its tasks."""
        return messages.read(self._local.known(request.name), "PipelineJob")

    def list_pipeline_jobs(self, request: types.ListPipelineJobsRequest) -> types.ListPipelineJobsResponse:
        """Return one page of pipeline jobs."""
        return lists.answer(self._local.records, pipeline_jobs.KIND, request, "PipelineJob", "pipeline_jobs")

    def cancel_pipeline_job(self, request: types.CancelPipelineJobRequest) -> empty_pb2.Empty:
        """Ask a pipeline job and the jobs of its steps to end; its state shows when they have."""
        return self._cancel(request.name)

    def delete_pipeline_job(self, request: types.DeletePipelineJobRequest) -> operations_pb2.Operation:
        """Forget a pipeline job that is over; what it made and all files stay."""
        return self._delete(request.name)

    def batch_cancel_pipeline_jobs(self, request: types.BatchCancelPipelineJobsRequest) -> operations_pb2.Operation:
        """Ask several pipeline jobs to end: all of them, or none if one does not exist or is over."""
        found = [self._local.known(name) for name in request.names]
        for document in found:
            if job_record.is_over(document):
                raise ApiError("FAILED_PRECONDITION", f"{document['name']} is over ({document['state']}); there is nothing to cancel.")
        for document in found:
            jobs.cancel(self._local, document["name"])
        shown = [messages.to_json(messages.read(self._local.known(each["name"]), "PipelineJob")) for each in found]
        response = ("BatchCancelPipelineJobsResponse", {"pipelineJobs": shown})
        return self._operations.finished(request.parent, "BatchCancelPipelineJobsOperationMetadata", response)

    def batch_delete_pipeline_jobs(self, request: types.BatchDeletePipelineJobsRequest) -> operations_pb2.Operation:
        """Forget several pipeline jobs: all of them, or none if one is not over."""
        found = [self._local.known(name) for name in request.names]
        for document in found:
            if not job_record.is_over(document):
                raise ApiError("FAILED_PRECONDITION", f"{document['name']} is in {document['state']}; cancel it first.")
        for document in found:
            self._local.records.remove(document["name"])
        shown = [messages.to_json(messages.read(each, "PipelineJob")) for each in found]
        response = ("BatchDeletePipelineJobsResponse", {"pipelineJobs": shown})
        return self._operations.finished(request.parent, "DeleteOperationMetadata", response)

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
        work = task.work(self._local, {**exported, pipeline_jobs.PIPELINE: name})  # our trainers record the pipeline's name
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
    """A pipeline's job: its kind, and its message with the pipeline's display name."""

    kind: str
    job: Message

    @property
    def _spec(self) -> Message:
        return self.job.job_spec if self.kind == "customJobs" else self.job.trial_job_spec

    @property
    def output(self) -> str:
        """The job's output directory; "" if it has none."""
        return self._spec.base_output_directory.output_uri_prefix

    def check(self, local: Local, parent: str) -> None:
        """Refuse a job that cannot run."""
        self.work(local, {})
        field = "trainingTaskInputs" if self.kind == "customJobs" else "trainingTaskInputs.trialJobSpec"
        persistent_resources.check_job(local, parent, self._spec, field)

    def work(self, local: Local, variables: Mapping[str, str]) -> jobs.Work:
        """Return the function that runs the job with `variables` for its replicas."""
        if self.kind == "customJobs":
            return runs.custom(local, self.job.job_spec, "trainingTaskInputs", variables)
        return runs.tuning(local, self.job, "trainingTaskInputs", variables)

    def model_folder(self, document: Mapping[str, Any]) -> str:
        """Return the trained model's folder: the job's AIP_MODEL_DIR, or that of a study's best trial."""
        base = self.output.rstrip("/")
        if self.kind == "customJobs":
            return f"{base}/model"
        metric = self.job.study_spec.metrics[0]
        sign = 1 if metric.goal == metric.MINIMIZE else -1
        values = {}
        for trial in document.get("trials", []):
            for measured in trial.get("finalMeasurement", {}).get("metrics", []):
                if measured["metricId"] == metric.metric_id and trial["state"] == "SUCCEEDED":
                    values[trial["id"]] = sign * measured.get("value", 0.0)
        if not values:
            raise ApiError(
                "FAILED_PRECONDITION", "no trial succeeded with a measurement; there is no model to upload; see the trials' logs."
            )
        return f"{base}/{min(values, key=values.__getitem__)}/model"


def _task(pipeline: Message) -> _Task:
    """Return the job that a training pipeline's definition and inputs describe."""
    messages.required(pipeline, "training_task_definition", "training_task_inputs")
    task = _DEFINITION.fullmatch(pipeline.training_task_definition)
    if not task:
        known = "custom_task_1.0.0.yaml and hyperparameter_tuning_task_1.0.0.yaml"
        text = f"the local service runs {known}; got {pipeline.training_task_definition[:100]!r}."
        raise ApiError("UNIMPLEMENTED", text, "trainingTaskDefinition")
    inputs = messages.plain(pipeline.training_task_inputs)
    if not isinstance(inputs, Mapping):
        raise ApiError("INVALID_ARGUMENT", "trainingTaskInputs takes an object.", "trainingTaskInputs")
    if task[1] == "custom":
        spec = messages.parse(inputs, messages.new("CustomJobSpec"), "trainingTaskInputs")
        return _Task("customJobs", messages.new("CustomJob", display_name=pipeline.display_name, job_spec=spec))
    job = messages.parse(inputs, messages.new("HyperparameterTuningJob"), "trainingTaskInputs")
    job.display_name = pipeline.display_name
    return _Task("hyperparameterTuningJobs", job)
