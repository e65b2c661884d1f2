"""The RPCs of JobService that are about batch predictions: a registered model is asked what lies in files or a table."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..job import buckets, times
from ..local import job_record
from ..local.jobs import stop_asked
from . import batch, batch_tables, jobs, messages, models, runs
from .executor import Stopped
from .instances import FORMATS, TYPES, Config, Instance
from .local import Local
from .rest import ApiError

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.protobuf.message import Message

KIND = "batchPredictionJobs"
_WITH_FIELDS = ("jsonl", "csv", batch_tables.FORMAT)  # formats whose instances have fields, and those of predictions
_UNSUPPORTED = ("unmanaged_container_model", "generate_explanation", "explanation_spec")
_LOOKS = 0.2  # seconds between two looks whether somebody wants the job to end


class BatchPredictionJobs:
    """Batch predictions run in the service's queue, beside training jobs, each with a process that holds the model."""

    _local: Local

    def create_batch_prediction_job(self, request: types.CreateBatchPredictionJobRequest) -> types.BatchPredictionJob:
        """Check and keep a new batch prediction, and let it run when it is its turn."""
        job = request.batch_prediction_job
        model = _checked(self._local, request.parent, job)

        def work(name: str, cancel: threading.Event) -> jobs.End:
            with job_record.held(self._local.state / "jobs" / name.rpartition("/")[2]):
                return _Run(self._local, name, job, model).work(cancel)

        made = jobs.create(self._local, request.parent, KIND, job, work, modelVersionId=model["versionId"])
        return messages.read(made, "BatchPredictionJob")


# ------------------------------------------------------------------ checks


def _checked(local: Local, parent: str, job: Message) -> dict[str, Any]:
    """Check a job and return the version of the model that it asks."""
    jobs.check_name(job)
    messages.unsupported(job, _UNSUPPORTED)
    messages.required(job, "model")
    _check_places(job)
    _check_instances(job)
    if messages.plain(job.model_parameters):
        raise ApiError("UNIMPLEMENTED", "modelParameters are not supported: the exported model takes none.", "modelParameters")
    if job.manual_batch_tuning_parameters.batch_size < 0:
        raise ApiError("INVALID_ARGUMENT", "batchSize takes 1 or more.", "manualBatchTuningParameters.batchSize")
    model = models.version(local, models.full_name(parent, job.model))
    models.check_image(model["containerSpec"]["imageUri"])
    table = _table(job)
    if table is None:
        batch.files(job.input_config.gcs_source.uris, local.buckets)
    _output(local, job, model, table, times.now())
    return model


def _check_places(job: Message) -> None:
    """Check in which form instances come and predictions go, and that the place of either is given."""
    messages.unsupported(job.input_config, ("vertex_multimodal_dataset_source",), where="inputConfig.")
    messages.unsupported(job.output_config, ("vertex_multimodal_dataset_destination",), where="outputConfig.")
    messages.required(job, "input_config.instances_format", "output_config.predictions_format")
    given, wanted = job.input_config.instances_format, job.output_config.predictions_format
    _one_of(given, (*FORMATS, batch_tables.FORMAT), "inputConfig.instancesFormat")
    _one_of(wanted, _WITH_FIELDS, "outputConfig.predictionsFormat")
    source = "bigquery_source.input_uri" if given == batch_tables.FORMAT else "gcs_source.uris"
    to = "bigquery_destination.output_uri" if wanted == batch_tables.FORMAT else "gcs_destination.output_uri_prefix"
    messages.required(job, f"input_config.{source}", f"output_config.{to}")


def _table(job: Message) -> batch_tables.Table | None:
    """Return the table that instances come from; None where they come from files."""
    if job.input_config.instances_format != batch_tables.FORMAT:
        return None
    return batch_tables.Table(job.input_config.bigquery_source.input_uri)


def _config(job: Message) -> Config:
    given, form = job.instance_config, job.input_config.instances_format
    kind = given.instance_type or ("array" if form in ("csv", batch_tables.FORMAT) else "")
    return Config(kind, given.key_field, tuple(given.included_fields), tuple(given.excluded_fields))


def _check_instances(job: Message) -> None:
    given, form, config = job.instance_config, job.input_config.instances_format, _config(job)
    _one_of(given.instance_type, TYPES, "instanceConfig.instanceType")
    if config.included and config.excluded:
        text = "includedFields and excludedFields exclude each other: give one of them."
        raise ApiError("INVALID_ARGUMENT", text, "instanceConfig.excludedFields")
    if form not in _WITH_FIELDS and (config.names_fields or given.instance_type):
        text = f"instanceConfig is about the fields of {', '.join(_WITH_FIELDS)}; {form} has none: leave it out."
        raise ApiError("INVALID_ARGUMENT", text, "instanceConfig")


def _one_of(value: str, known: tuple[str, ...], field: str) -> None:
    if value not in known:
        raise ApiError("INVALID_ARGUMENT", f"{field} takes {', '.join(filter(None, known))}; got {value[:100]!r}.", field)


def _output(
    local: Local, job: Message, model: Mapping[str, Any], table: batch_tables.Table | None, time: str
) -> tuple[batch.Output, dict[str, str]]:
    """Return where answers go, which is not made yet, and the record's `outputInfo`; the names are the service's.

    Args:
        time: when the job was made, in RFC 3339.
    """
    wanted, title, config = job.output_config, model["displayName"], _config(job)
    if wanted.predictions_format == batch_tables.FORMAT:
        tables = batch_tables.Tables(wanted.bigquery_destination.output_uri, title, time, table, config)
        return tables, {"bigqueryOutputDataset": tables.dataset, "bigqueryOutputTable": tables.names[batch_tables.PREDICTION]}
    own = re.sub(r"[^\w.-]+", "_", title)  # a path's own characters
    try:
        uri = f"{buckets.check_folder(wanted.gcs_destination.output_uri_prefix).rstrip('/')}/prediction-{own}-{time[:23]}Z"
        folder = Path(buckets.to_path(uri, local.buckets))
    except buckets.BucketError as error:
        raise ApiError("INVALID_ARGUMENT", str(error), "outputConfig.gcsDestination.outputUriPrefix") from None
    return batch.Files(folder, wanted.predictions_format, config), {"gcsOutputDirectory": uri}


# ------------------------------------------------------------------ one job


class _Run:
    """A job in its turn: the model's process, the log, the record."""

    def __init__(self, local: Local, name: str, job: Message, model: dict[str, Any]):
        self._local, self._name, self._job, self._model = local, name, job, model
        self._own = local.state / "jobs" / name.rpartition("/")[2]
        self._log = runs.Log(self._own, lambda: None)

    def work(self, cancel: threading.Event) -> jobs.End:
        """Predict everything; the job has failed if nothing could be predicted."""
        job_record.running(self._local.records, self._name)
        table = _table(self._job)
        sources = self._files() if table is None else [table.instances()]
        output, about = _output(self._local, self._job, self._model, table, self._local.known(self._name)["createTime"])
        self._update(outputInfo=about)
        if table is not None:
            self._log.say(table.about)
        size = self._job.manual_batch_tuning_parameters.batch_size or batch.BATCH
        with self._process(cancel) as ask:
            asked = batch.Batch(sources, _config(self._job), size, ask, self._log.say, lambda counts: self._update(**counts.as_fields()))
            counts = asked.run(output, cancel)
        if counts.succeeded or not counts.failures:
            return "SUCCEEDED", None
        text = f"nothing was predicted: {counts.failed:,} instance(s) failed; the first: {counts.failures[0]}"
        return "FAILED", {"code": 3, "message": text}

    def _files(self) -> list[Iterator[Instance]]:
        given, form = self._job.input_config.gcs_source.uris, self._job.input_config.instances_format
        found = batch.files(given, self._local.buckets)
        self._log.say(f"{len(found)} file(s), {sum(path.stat().st_size for path in found.values()):,} bytes")
        if form == "csv" and self._job.instance_config.instance_type == "object":
            self._log.say("note: Vertex AI sends rows of csv as arrays, whatever instanceType says; jsonl has objects there, too.")
        return batch.sources(found, form, self._local.buckets)

    def _update(self, **fields: Any) -> None:
        job_record.update(self._local.records, self._name, lambda document: document.update(fields))

    @contextlib.contextmanager
    def _process(self, cancel: threading.Event) -> Iterator[Any]:
        """Yield what asks the model's process; a cancelled job ends it, whatever it is doing."""
        predictors, over = self._local.predictors, threading.Event()
        path = str(models.folder(self._local, self._model))

        def watch() -> None:
            while not over.wait(_LOOKS):
                if stop_asked(self._own):  # by `python -m vertex_local stop`
                    cancel.set()
                if cancel.is_set():  # and again, should the process be started meanwhile
                    predictors.stop(self._name)

        def unless_cancelled(work: Callable[..., Any], *more: Any) -> Any:
            if cancel.is_set():
                raise Stopped
            try:
                return work(self._name, path, *more)
            except ApiError:
                if cancel.is_set():
                    raise Stopped from None
                raise

        watcher = threading.Thread(target=watch, name="batch-cancel", daemon=True)
        watcher.start()
        try:
            unless_cancelled(predictors.ready)
            self._log.say(f"{self._model['name']}@{self._model['versionId']} can be asked")
            yield lambda instances: unless_cancelled(predictors.ask, instances)
        finally:
            over.set()
            watcher.join()
            predictors.stop(self._name)
