"""google.cloud.aiplatform.v1.JobService: custom jobs and hyperparameter tuning jobs; batch predictions are in batch_service.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import batch_service, jobs, messages, persistent_resources, pipeline_jobs, runs
from .local import Local
from .operations import OperationPool

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types

_CUSTOM, _TUNING = "customJobs", "hyperparameterTuningJobs"


class JobService(batch_service.BatchPredictionJobs):
    """Jobs; custom and tuning jobs run as with `python -m vertex_local run` and `tune`."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._operations = local, operations
        kinds = (("CustomJob", _CUSTOM), ("HyperparameterTuningJob", _TUNING), ("BatchPredictionJob", batch_service.KIND))
        for type_name, kind in kinds:
            jobs.JobResources(local, operations, type_name, kind).add_to(self, "get", "list", "cancel", "delete")

    def create_custom_job(self, request: types.CreateCustomJobRequest) -> types.CustomJob:
        """Check and record a new custom job, and put it into the queue."""
        job = request.custom_job
        jobs.check_name(job)
        work = runs.custom(self._local, job.job_spec, "jobSpec", pipeline_jobs.variables_of(self._local, job.labels))
        persistent_resources.check_job(self._local, request.parent, job.job_spec, "jobSpec")
        return messages.read(jobs.create(self._local, request.parent, _CUSTOM, job, work), "CustomJob")

    def create_hyperparameter_tuning_job(self, request: types.CreateHyperparameterTuningJobRequest) -> types.HyperparameterTuningJob:
        """Check and record a new tuning job, and put it into the queue."""
        job = request.hyperparameter_tuning_job
        jobs.check_name(job)
        work = runs.tuning(self._local, job, variables=pipeline_jobs.variables_of(self._local, job.labels))
        persistent_resources.check_job(self._local, request.parent, job.trial_job_spec, "trialJobSpec")
        return messages.read(jobs.create(self._local, request.parent, _TUNING, job, work), "HyperparameterTuningJob")
