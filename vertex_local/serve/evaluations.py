"""ModelService's RPCs about evaluations: the metrics of a model version, over all rows and over slices of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..local import job_record
from . import lists, messages, models
from .local import Local
from .rest import ApiError

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types

_EVALUATIONS, _SLICES = "evaluations", "slices"  # the collections in resource names
_MOST_SLICES = 50  # in one request, as on the service
_SCHEMA = "gs://google-cloud-aiplatform/schema/modelevaluation/"


class ModelEvaluations:
    """Evaluations are records beside a model's; `modelVersionId` in a record says which version it is about."""

    _local: Local

    def import_model_evaluation(self, request: types.ImportModelEvaluationRequest) -> types.ModelEvaluation:
        """Record an evaluation of a version, by default of the default version."""
        version = models.version(self._local, request.parent)
        messages.required(request, "model_evaluation.metrics", "model_evaluation.metrics_schema_uri")
        _check_schema(request.model_evaluation.metrics_schema_uri, "modelEvaluation.metricsSchemaUri")
        if not isinstance(messages.plain(request.model_evaluation.metrics), dict):
            raise ApiError("INVALID_ARGUMENT", "modelEvaluation.metrics takes an object.", "modelEvaluation.metrics")
        name = self._local.new_name(version["name"], _EVALUATIONS)
        own = {"name": name, "createTime": job_record.now(), "modelVersionId": version["versionId"]}
        document = {**messages.to_json(request.model_evaluation), **own}
        return messages.read(self._local.records.add(name, _EVALUATIONS, document), "ModelEvaluation")

    def get_model_evaluation(self, request: types.GetModelEvaluationRequest) -> types.ModelEvaluation:
        """Return an evaluation."""
        return messages.read(self._local.known(_without_version(request.name)), "ModelEvaluation")

    def list_model_evaluations(self, request: types.ListModelEvaluationsRequest) -> types.ListModelEvaluationsResponse:
        """Return one page of a version's evaluations, by default of the default version's."""
        version = models.version(self._local, request.parent)

        def mine(document: dict[str, Any]) -> bool:
            return document["modelVersionId"] == version["versionId"]

        found, token = lists.page(self._local.records, _EVALUATIONS, request, parent=version["name"], only=mine)
        evaluations = [messages.read(document, "ModelEvaluation") for document in found]
        return messages.new("ListModelEvaluationsResponse", model_evaluations=evaluations, next_page_token=token)

    def batch_import_model_evaluation_slices(
        self, request: types.BatchImportModelEvaluationSlicesRequest
    ) -> types.BatchImportModelEvaluationSlicesResponse:
        """Record metrics over slices of an evaluation's rows."""
        evaluation = self._local.known(_without_version(request.parent))
        messages.required(request, "model_evaluation_slices")
        slices = request.model_evaluation_slices
        if len(slices) > _MOST_SLICES:
            text = f"a request may have {_MOST_SLICES} slices; got {len(slices)}: send them in several."
            raise ApiError("INVALID_ARGUMENT", text, "modelEvaluationSlices")
        for place, each in enumerate(slices):
            where = f"modelEvaluationSlices[{place}]."
            messages.required(each, "slice_.dimension", "metrics", where=where)
            _check_schema(each.metrics_schema_uri or evaluation["metricsSchemaUri"], f"{where}metricsSchemaUri")
        names = []
        for each in slices:
            document = {"metricsSchemaUri": evaluation["metricsSchemaUri"], **messages.to_json(each), "createTime": job_record.now()}
            names.append(self._local.new_name(evaluation["name"], _SLICES))
            self._local.records.add(names[-1], _SLICES, {**document, "name": names[-1]})
        dimensions = {each.slice_.dimension for each in slices}
        self._local.records.change(
            evaluation["name"], lambda kept: kept.update(sliceDimensions=sorted({*kept.get("sliceDimensions", []), *dimensions}))
        )
        return messages.new("BatchImportModelEvaluationSlicesResponse", imported_model_evaluation_slices=names)

    def get_model_evaluation_slice(self, request: types.GetModelEvaluationSliceRequest) -> types.ModelEvaluationSlice:
        """Return the metrics of a slice."""
        return messages.read(self._local.known(_without_version(request.name)), "ModelEvaluationSlice")

    def list_model_evaluation_slices(self, request: types.ListModelEvaluationSlicesRequest) -> types.ListModelEvaluationSlicesResponse:
        """Return one page of an evaluation's slices; the filter is of the form `slice.dimension = <dimension>`."""
        evaluation = self._local.known(_without_version(request.parent))
        found, token = lists.page(self._local.records, _SLICES, request, parent=evaluation["name"])
        slices = [messages.read(document, "ModelEvaluationSlice") for document in found]
        return messages.new("ListModelEvaluationSlicesResponse", model_evaluation_slices=slices, next_page_token=token)


def forget(local: Local, model: str, version: str | None = None) -> None:
    """Forget the evaluations of a model, or of one version of it."""
    for evaluation in local.records.list(_EVALUATIONS, model):
        if version in (None, evaluation["modelVersionId"]):
            for each in local.records.list(_SLICES, evaluation["name"]):
                local.records.remove(each["name"])
            local.records.remove(evaluation["name"])


def _without_version(name: str) -> str:
    """Return the name under which an evaluation is recorded; clients may put `@VERSION` after the model's id."""
    model, evaluations, rest = name.partition(f"/{_EVALUATIONS}/")
    return model.partition("@")[0] + evaluations + rest


def _check_schema(uri: str, field: str) -> None:
    if not uri.startswith(_SCHEMA):
        text = f"takes one of the schemata {_SCHEMA}*_metrics_1.0.0.yaml; got {uri[:150]!r}."
        raise ApiError("INVALID_ARGUMENT", f"{field} {text}", field)
