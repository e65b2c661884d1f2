"""google.cloud.aiplatform.v1.JobService: custom jobs and hyperparameter tuning jobs; batch predictions are in batch_service.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import batch_service, jobs, lists, messages, persistent_resources, pipeline_jobs, runs
from .local import Local
from .operations import OperationPool

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2
    from google.protobuf import empty_pb2

_CUSTOM, _TUNING = "customJobs", "hyperparameterTuningJobs"


class JobService(batch_service.BatchPredictionJobs):
    """Jobs; custom and tuning jobs run as with `python -m vertex_local run` and `tune`."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._operations = local, operations

    # ------------------------------------------------------------------ custom jobs

    def create_custom_job(self, request: types.CreateCustomJobRequest) -> types.CustomJob:
        """Check and record a new custom job, and put it into the queue."""
        job = request.custom_job
        jobs.check_name(job)
        work = runs.custom(self._local, job.job_spec, "jobSpec", pipeline_jobs.variables_of(self._local, job.labels))
        persistent_resources.check_job(self._local, request.parent, job.job_spec, "jobSpec")
        return messages.read(jobs.create(self._local, request.parent, _CUSTOM, job, work), "CustomJob")

    def get_custom_job(self, request: types.GetCustomJobRequest) -> types.CustomJob:
        """Return a custom job."""
        return messages.read(self._local.known(request.name), "CustomJob")

    def list_custom_jobs(self, request: types.ListCustomJobsRequest) -> types.ListCustomJobsResponse:
        """Return one page of custom jobs."""
        return lists.answer(self._local.records, _CUSTOM, request, "CustomJob", "custom_jobs")

    def cancel_custom_job(self, request: types.CancelCustomJobRequest) -> empty_pb2.Empty:
        """Ask a custom job to end; its state shows when it has."""
        return self._cancel(request.name)

    def delete_custom_job(self, request: types.DeleteCustomJobRequest) -> operations_pb2.Operation:
        """Forget a custom job that is over; its files stay."""
        return self._delete(request.name)

    # ------------------------------------------------------------------ hyperparameter tuning jobs

    def create_hyperparameter_tuning_job(self, request: types.CreateHyperparameterTuningJobRequest) -> types.HyperparameterTuningJob:
        """Check and record a new tuning job, and put it into the queue."""
        job = request.hyperparameter_tuning_job
        jobs.check_name(job)
        work = runs.tuning(self._local, job, variables=pipeline_jobs.variables_of(self._local, job.labels))
        persistent_resources.check_job(self._local, request.parent, job.trial_job_spec, "trialJobSpec")
        return messages.read(jobs.create(self._local, request.parent, _TUNING, job, work), "HyperparameterTuningJob")

    def get_hyperparameter_tuning_job(self, request: types.GetHyperparameterTuningJobRequest) -> types.HyperparameterTuningJob:
        """Return a tuning job with its trials."""
        return messages.read(self._local.known(request.name), "HyperparameterTuningJob")

    def list_hyperparameter_tuning_jobs(
        self, request: types.ListHyperparameterTuningJobsRequest
    ) -> types.ListHyperparameterTuningJobsResponse:
        """Return one page of tuning jobs."""
        return lists.answer(self._local.records, _TUNING, request, "HyperparameterTuningJob", "hyperparameter_tuning_jobs")

    def cancel_hyperparameter_tuning_job(self, request: types.CancelHyperparameterTuningJobRequest) -> empty_pb2.Empty:
        """Ask a tuning job and its trials to end; its state shows when they have."""
        return self._cancel(request.name)

    def delete_hyperparameter_tuning_job(self, request: types.DeleteHyperparameterTuningJobRequest) -> operations_pb2.Operation:
        """Forget a tuning job that is over; its files stay."""
        return self._delete(request.name)
