"""google.cloud.aiplatform.v1.TensorboardService: instances, experiments, runs, time series and their points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..metadata import series
from . import lists, messages
from .local import Local, location_of
from .operations import OperationPool
from .rest import ApiError
from .standard_methods import Resources

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2
    from google.protobuf.message import Message

_TEXTS = ("display_name", "description", "labels")
_POINTS, _TENSORS = 1000, 100  # the most scalars, or tensors, of a series that a read returns by default
_EXPORTED = 1000  # points on a page of an export


class _Level(Resources):
    """Instances, experiments, runs or time series: what is forgotten goes with all that is below it, points included."""

    def forget(self, name: str) -> None:
        self._records.remove_points(name)
        super().forget(name)


class TensorboardService:
    """TensorBoard instances, as clients read and write them; `tensorboards` copies jobs' event files into them."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._records, self._operations = local, local.records, operations
        self._instances = _Level(local, operations, "Tensorboard", series.TENSORBOARDS, (*_TEXTS, "is_default"))
        self._instances.add_to(self, "get", "list", "delete")
        self._experiments = _Level(local, operations, "TensorboardExperiment", series.EXPERIMENTS, _TEXTS)
        self._runs = _Level(local, operations, "TensorboardRun", series.RUNS, _TEXTS)
        changeable = ("display_name", "description", "plugin_data")
        self._series = _Level(local, operations, "TensorboardTimeSeries", series.SERIES, changeable)
        for each in (self._experiments, self._runs, self._series):
            each.add_to(self, "get", "list", "update", "delete")

    # ------------------------------------------------------------------ instances

    def create_tensorboard(self, request: types.CreateTensorboardRequest) -> operations_pb2.Operation:
        """Make an instance; the operation is done at once."""
        messages.required(request, "tensorboard.display_name")
        messages.unsupported(request.tensorboard, ("encryption_spec",), where="tensorboard.")
        kept = self._instances.add(request.parent, request.tensorboard, self._new_id(request.parent, series.TENSORBOARDS))
        return self._operation("Create", kept)

    def update_tensorboard(self, request: types.UpdateTensorboardRequest) -> operations_pb2.Operation:
        """Change an instance's texts and labels, or make it the default one."""
        return self._operation("Update", self._instances.updated(request.tensorboard, request.update_mask))

    def _operation(self, verb: str, kept: dict[str, Any]) -> operations_pb2.Operation:
        """Return the finished operation of an instance; if that is the default one, make no other of its location that."""
        location = location_of(kept["name"])
        for other in self._records.list(series.TENSORBOARDS, location) if kept.get("isDefault") else ():
            if other.get("isDefault") and other["name"] != kept["name"]:
                self._records.change(other["name"], lambda document: document.pop("isDefault", None))
        return self._operations.finished(location, f"{verb}TensorboardOperationMetadata", ("Tensorboard", kept))

    # ------------------------------------------------------------------ experiments, runs, time series

    def create_tensorboard_experiment(self, request: types.CreateTensorboardExperimentRequest) -> types.TensorboardExperiment:
        """Make an experiment in an instance."""
        messages.required(request, "tensorboard_experiment_id")
        return self._experiments.create(request)

    def create_tensorboard_run(self, request: types.CreateTensorboardRunRequest) -> types.TensorboardRun:
        """Make a run in an experiment."""
        return self._create_run(request, {})

    def batch_create_tensorboard_runs(self, request: types.BatchCreateTensorboardRunsRequest) -> types.BatchCreateTensorboardRunsResponse:
        """Make several runs in one experiment."""
        taken: dict[str, set[str]] = {}
        runs = [self._create_run(each, taken) for each in _of_one_parent(request)]
        return messages.new("BatchCreateTensorboardRunsResponse", tensorboard_runs=runs)

    def _create_run(self, request: types.CreateTensorboardRunRequest, taken: dict[str, set[str]]) -> Message:
        messages.required(request, "tensorboard_run_id", "tensorboard_run.display_name")
        self._take_name(series.RUNS, request.parent, request.tensorboard_run.display_name, taken)
        return self._runs.create(request)

    def create_tensorboard_time_series(self, request: types.CreateTensorboardTimeSeriesRequest) -> types.TensorboardTimeSeries:
        """Make a time series in a run."""
        return self._create_series(request, {})

    def batch_create_tensorboard_time_series(
        self, request: types.BatchCreateTensorboardTimeSeriesRequest
    ) -> types.BatchCreateTensorboardTimeSeriesResponse:
        """Make several time series in the runs of one experiment."""
        taken: dict[str, set[str]] = {}
        for i, each in enumerate(request.requests):
            _check_within(each.parent, request.parent, f"requests[{i}].parent", "runs")
        made = [self._create_series(each, taken) for each in request.requests]
        return messages.new("BatchCreateTensorboardTimeSeriesResponse", tensorboard_time_series=made)

    def _create_series(self, request: types.CreateTensorboardTimeSeriesRequest, taken: dict[str, set[str]]) -> Message:
        messages.required(request, "tensorboard_time_series.display_name", "tensorboard_time_series.value_type")
        _refuse_blobs(request.tensorboard_time_series.value_type, "tensorboardTimeSeries.valueType")
        self._take_name(series.SERIES, request.parent, request.tensorboard_time_series.display_name, taken)
        request.tensorboard_time_series_id = request.tensorboard_time_series_id or self._new_id(request.parent, series.SERIES)
        return self._series.create(request)

    def _new_id(self, parent: str, collection: str) -> str:
        return self._local.new_name(parent, collection).rpartition("/")[2]

    def _take_name(self, collection: str, parent: str, name: str, taken: dict[str, set[str]]) -> None:
        """Refuse a display name that another resource of the parent has; `taken` are those looked up so far, by parent."""
        if parent not in taken:
            taken[parent] = {each.get("displayName", "") for each in self._records.list(collection, parent)}
        if name in taken[parent]:
            raise ApiError("ALREADY_EXISTS", f"{parent} has one with the displayName {name[:200]!r} already.")
        taken[parent].add(name)

    # ------------------------------------------------------------------ points

    def write_tensorboard_run_data(self, request: types.WriteTensorboardRunDataRequest) -> types.WriteTensorboardRunDataResponse:
        """Record points of a run's time series; a point replaces an earlier one of the same step."""
        self._write([request])
        return messages.new("WriteTensorboardRunDataResponse")

    def write_tensorboard_experiment_data(
        self, request: types.WriteTensorboardExperimentDataRequest
    ) -> types.WriteTensorboardExperimentDataResponse:
        """Record points of time series in several runs of one experiment."""
        self._local.known(request.tensorboard_experiment)
        for i, each in enumerate(request.write_run_data_requests):
            field = f"writeRunDataRequests[{i}].tensorboardRun"
            _check_within(each.tensorboard_run, request.tensorboard_experiment, field, "runs")
        self._write(request.write_run_data_requests)
        return messages.new("WriteTensorboardExperimentDataResponse")

    def _write(self, requests: Iterable[Message]) -> None:
        wanted = [found for request in requests for found in self._checked_points(request)]
        for name, values in wanted:  # only now, when all of them are right
            series.write(self._records, name, values)

    def _checked_points(self, request: Message) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield (time series, its points) of a request to write the data of one run."""
        self._local.known(request.tensorboard_run)
        for i, each in enumerate(request.time_series_data):
            where = f"timeSeriesData[{i}]"
            messages.required(each, "tensorboard_time_series_id", "values", where=f"{where}.")
            known = self._local.known(f"{request.tensorboard_run}/{series.SERIES}/{each.tensorboard_time_series_id}")
            _refuse_blobs(each.value_type, f"{where}.valueType")
            given = messages.to_json(each)
            if given.get("valueType", known["valueType"]) != known["valueType"]:
                text = f"{where}.valueType: {known['displayName']} takes {known['valueType']}; got {given['valueType']}."
                raise ApiError("INVALID_ARGUMENT", text, f"{where}.valueType")
            yield known["name"], given["values"]

    def read_tensorboard_time_series_data(
        self, request: types.ReadTensorboardTimeSeriesDataRequest
    ) -> types.ReadTensorboardTimeSeriesDataResponse:
        """Return the points of a time series that match the filter; if they are too many, evenly spaced ones."""
        known = self._local.known(request.tensorboard_time_series)
        accepts = lists.parsed_filter(request.filter)
        data = self._data(known, filter(accepts, self._records.points(known["name"])), request.max_data_points)
        return messages.new("ReadTensorboardTimeSeriesDataResponse", time_series_data=data)

    def batch_read_tensorboard_time_series_data(
        self, request: types.BatchReadTensorboardTimeSeriesDataRequest
    ) -> types.BatchReadTensorboardTimeSeriesDataResponse:
        """Return points of several time series of an instance."""
        self._local.known(request.tensorboard)
        found = []
        for name in request.time_series:
            _check_within(name, request.tensorboard, "timeSeries", "time series")
            known = self._local.known(name)
            found.append(self._data(known, self._records.points(name), 0))
        return messages.new("BatchReadTensorboardTimeSeriesDataResponse", time_series_data=found)

    def export_tensorboard_time_series_data(
        self, request: types.ExportTensorboardTimeSeriesDataRequest
    ) -> types.ExportTensorboardTimeSeriesDataResponse:
        """Return one page of all points of a time series, in the order of their steps."""
        known = self._local.known(request.tensorboard_time_series)
        accepts = lists.parsed_filter(request.filter)
        if request.order_by not in ("", "step", "step asc", "step desc"):
            text = f"orderBy takes step, optionally followed by desc; got {request.order_by[:100]!r}."
            raise ApiError("INVALID_ARGUMENT", text, "orderBy")
        found = [point for point in self._records.points(known["name"]) if accepts(point)]
        found = found[::-1] if request.order_by.endswith("desc") else found
        if request.page_token and not request.page_token.isdecimal():
            raise ApiError(
                "INVALID_ARGUMENT",
                f"pageToken: {request.page_token[:80]!r} is not a token of this list; start from the first page.",
                "pageToken",
            )
        start = int(request.page_token or 0)
        end = start + min(request.page_size or _EXPORTED, 10 * _EXPORTED)
        points = self._data(known, found[start:end], len(found) + 1).values
        token = str(end) if end < len(found) else ""
        return messages.new("ExportTensorboardTimeSeriesDataResponse", time_series_data_points=points, next_page_token=token)

    @staticmethod
    def _data(known: dict[str, Any], points: Iterable[dict[str, Any]], most: int) -> Message:
        limit = most if most > 0 else _POINTS if known["valueType"] == "SCALAR" else _TENSORS
        document = {
            "tensorboardTimeSeriesId": known["name"].rpartition("/")[2], "valueType": known["valueType"],
            "values": series.thinned(list(points), limit),
        }  # fmt: skip
        return messages.read(document, "TimeSeriesData")


def _of_one_parent(request: Message) -> Iterable[Message]:
    """Yield a batch's requests with its parent filled in; raise an ApiError for one with another parent."""
    for i, each in enumerate(request.requests):
        if each.parent and each.parent != request.parent:
            text = f"requests[{i}].parent must be that of the batch, {request.parent[:200]}; got {each.parent[:200]}."
            raise ApiError("INVALID_ARGUMENT", text, f"requests[{i}].parent")
        each.parent = request.parent
        yield each


def _check_within(name: str, above: str, field: str, what: str) -> None:
    """Refuse the name of a resource that is not below another one."""
    if not name.startswith(f"{above}/"):
        raise ApiError("INVALID_ARGUMENT", f"{field} takes {what} of {above[:200]}; got {name[:200]!r}.", field)


def _refuse_blobs(value_type: int, field: str) -> None:
    if messages.kind("TensorboardTimeSeries").ValueType.Name(value_type) == "BLOB_SEQUENCE":
        raise ApiError("UNIMPLEMENTED", f"{field}: sequences of blobs are not kept by the local service; scalars and tensors are.", field)
