"""google.cloud.aiplatform.v1.TensorboardService: instances, experiments, runs, time series and their points."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..metadata import series
from . import filters, lists, messages
from .local import Local, location_of
from .operations import OperationPool
from .rest import ApiError

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2
    from google.protobuf.message import Message

_TEXTS = ("display_name", "description", "labels")
_POINTS, _TENSORS = 1000, 100  # the most scalars, or tensors, of a series that a read returns by default
_EXPORTED = 1000  # points on a page of an export


class TensorboardService:
    """TensorBoard instances, as clients read and write them; `tensorboards` copies jobs' event files into them."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._records, self._operations = local, local.records, operations

    # ------------------------------------------------------------------ instances

    def create_tensorboard(self, request: types.CreateTensorboardRequest) -> operations_pb2.Operation:
        """Make an instance; the operation is done at once."""
        messages.required(request, "tensorboard.display_name")
        messages.unsupported(request.tensorboard, ("encryption_spec",), where="tensorboard.")
        number = self._local.new_name(request.parent, series.TENSORBOARDS).rpartition("/")[2]
        kept = series.add(self._records, request.parent, series.TENSORBOARDS, number, messages.to_json(request.tensorboard))
        self._only_default(kept)
        return self._operations.finished(request.parent, "CreateTensorboardOperationMetadata", ("Tensorboard", kept))

    def get_tensorboard(self, request: types.GetTensorboardRequest) -> types.Tensorboard:
        """Return an instance."""
        return messages.read(self._local.known(request.name), "Tensorboard")

    def list_tensorboards(self, request: types.ListTensorboardsRequest) -> types.ListTensorboardsResponse:
        """Return one page of instances."""
        return lists.answer(self._records, series.TENSORBOARDS, request, "Tensorboard", "tensorboards")

    def update_tensorboard(self, request: types.UpdateTensorboardRequest) -> operations_pb2.Operation:
        """Change an instance's texts and labels, or make it the default one."""
        kept = self._update(request.tensorboard, request.update_mask, (*_TEXTS, "is_default"))
        self._only_default(kept)
        return self._operations.finished(location_of(kept["name"]), "UpdateTensorboardOperationMetadata", ("Tensorboard", kept))

    def delete_tensorboard(self, request: types.DeleteTensorboardRequest) -> operations_pb2.Operation:
        """Forget an instance with everything in it; event files stay."""
        return self._delete(request.name)

    def _only_default(self, kept: dict[str, Any]) -> None:
        """If an instance is the default one, make no other instance of its location that."""
        for other in self._records.list(series.TENSORBOARDS, location_of(kept["name"])) if kept.get("isDefault") else ():
            if other.get("isDefault") and other["name"] != kept["name"]:
                self._records.change(other["name"], lambda document: document.pop("isDefault", None))

    # ------------------------------------------------------------------ experiments

    def create_tensorboard_experiment(self, request: types.CreateTensorboardExperimentRequest) -> types.TensorboardExperiment:
        """Make an experiment in an instance."""
        self._local.known(request.parent)
        number = _checked_id(request.tensorboard_experiment_id, "tensorboardExperimentId")
        document = messages.to_json(request.tensorboard_experiment)
        kept = series.add(self._records, request.parent, series.EXPERIMENTS, number, document)
        return messages.read(kept, "TensorboardExperiment")

    def get_tensorboard_experiment(self, request: types.GetTensorboardExperimentRequest) -> types.TensorboardExperiment:
        """Return an experiment."""
        return messages.read(self._local.known(request.name), "TensorboardExperiment")

    def list_tensorboard_experiments(self, request: types.ListTensorboardExperimentsRequest) -> types.ListTensorboardExperimentsResponse:
        """Return one page of experiments."""
        self._local.known(request.parent)
        return lists.answer(self._records, series.EXPERIMENTS, request, "TensorboardExperiment", "tensorboard_experiments")

    def update_tensorboard_experiment(self, request: types.UpdateTensorboardExperimentRequest) -> types.TensorboardExperiment:
        """Change an experiment's texts and labels."""
        return messages.read(self._update(request.tensorboard_experiment, request.update_mask, _TEXTS), "TensorboardExperiment")

    def delete_tensorboard_experiment(self, request: types.DeleteTensorboardExperimentRequest) -> operations_pb2.Operation:
        """Forget an experiment with its runs."""
        return self._delete(request.name)

    # ------------------------------------------------------------------ runs

    def create_tensorboard_run(self, request: types.CreateTensorboardRunRequest) -> types.TensorboardRun:
        """Make a run in an experiment."""
        return self._create_run(request, self._names(series.RUNS, request.parent))

    def batch_create_tensorboard_runs(self, request: types.BatchCreateTensorboardRunsRequest) -> types.BatchCreateTensorboardRunsResponse:
        """Make several runs in one experiment."""
        taken = self._names(series.RUNS, request.parent)
        runs = [self._create_run(each, taken) for each in _of_one_parent(request)]
        return messages.new("BatchCreateTensorboardRunsResponse", tensorboard_runs=runs)

    def _create_run(self, request: types.CreateTensorboardRunRequest, taken: set[str]) -> Message:
        self._local.known(request.parent)
        messages.required(request, "tensorboard_run.display_name")
        number = _checked_id(request.tensorboard_run_id, "tensorboardRunId")
        _take_name(request.tensorboard_run.display_name, taken, request.parent)
        kept = series.add(self._records, request.parent, series.RUNS, number, messages.to_json(request.tensorboard_run))
        return messages.read(kept, "TensorboardRun")

    def get_tensorboard_run(self, request: types.GetTensorboardRunRequest) -> types.TensorboardRun:
        """Return a run."""
        return messages.read(self._local.known(request.name), "TensorboardRun")

    def list_tensorboard_runs(self, request: types.ListTensorboardRunsRequest) -> types.ListTensorboardRunsResponse:
        """Return one page of runs."""
        self._local.known(request.parent)
        return lists.answer(self._records, series.RUNS, request, "TensorboardRun", "tensorboard_runs")

    def update_tensorboard_run(self, request: types.UpdateTensorboardRunRequest) -> types.TensorboardRun:
        """Change a run's texts and labels."""
        return messages.read(self._update(request.tensorboard_run, request.update_mask, _TEXTS), "TensorboardRun")

    def delete_tensorboard_run(self, request: types.DeleteTensorboardRunRequest) -> operations_pb2.Operation:
        """Forget a run with its time series."""
        return self._delete(request.name)

    # ------------------------------------------------------------------ time series

    def create_tensorboard_time_series(self, request: types.CreateTensorboardTimeSeriesRequest) -> types.TensorboardTimeSeries:
        """Make a time series in a run."""
        return self._create_series(request, self._names(series.SERIES, request.parent))

    def batch_create_tensorboard_time_series(
        self, request: types.BatchCreateTensorboardTimeSeriesRequest
    ) -> types.BatchCreateTensorboardTimeSeriesResponse:
        """Make several time series in the runs of one experiment."""
        taken: dict[str, set[str]] = {}
        made = []
        for each in request.requests:
            if not each.parent.startswith(f"{request.parent}/"):
                text = f"requests.parent takes runs of {request.parent[:200]}; got {each.parent[:200]}."
                raise ApiError("INVALID_ARGUMENT", text, "requests.parent")
            if each.parent not in taken:
                taken[each.parent] = self._names(series.SERIES, each.parent)
            made.append(self._create_series(each, taken[each.parent]))
        return messages.new("BatchCreateTensorboardTimeSeriesResponse", tensorboard_time_series=made)

    def _create_series(self, request: types.CreateTensorboardTimeSeriesRequest, taken: set[str]) -> Message:
        self._local.known(request.parent)
        messages.required(request, "tensorboard_time_series.display_name", "tensorboard_time_series.value_type")
        _refuse_blobs(request.tensorboard_time_series.value_type, "tensorboardTimeSeries.valueType")
        _take_name(request.tensorboard_time_series.display_name, taken, request.parent)
        number = request.tensorboard_time_series_id or self._local.new_name(request.parent, series.SERIES).rpartition("/")[2]
        document = messages.to_json(request.tensorboard_time_series)
        kept = series.add(self._records, request.parent, series.SERIES, _checked_id(number, "tensorboardTimeSeriesId"), document)
        return messages.read(kept, "TensorboardTimeSeries")

    def get_tensorboard_time_series(self, request: types.GetTensorboardTimeSeriesRequest) -> types.TensorboardTimeSeries:
        """Return a time series without its points."""
        return messages.read(self._local.known(request.name), "TensorboardTimeSeries")

    def list_tensorboard_time_series(self, request: types.ListTensorboardTimeSeriesRequest) -> types.ListTensorboardTimeSeriesResponse:
        """Return one page of time series without their points."""
        self._local.known(request.parent)
        return lists.answer(self._records, series.SERIES, request, "TensorboardTimeSeries", "tensorboard_time_series")

    def update_tensorboard_time_series(self, request: types.UpdateTensorboardTimeSeriesRequest) -> types.TensorboardTimeSeries:
        """Change a time series' texts."""
        changed = self._update(request.tensorboard_time_series, request.update_mask, ("display_name", "description", "plugin_data"))
        return messages.read(changed, "TensorboardTimeSeries")

    def delete_tensorboard_time_series(self, request: types.DeleteTensorboardTimeSeriesRequest) -> operations_pb2.Operation:
        """Forget a time series with its points."""
        return self._delete(request.name)

    # ------------------------------------------------------------------ points

    def write_tensorboard_run_data(self, request: types.WriteTensorboardRunDataRequest) -> types.WriteTensorboardRunDataResponse:
        """Record points of a run's time series; a point replaces an earlier one of the same step."""
        self._local.known(request.tensorboard_run)
        self._write(request.tensorboard_run, request.time_series_data)
        return messages.new("WriteTensorboardRunDataResponse")

    def write_tensorboard_experiment_data(
        self, request: types.WriteTensorboardExperimentDataRequest
    ) -> types.WriteTensorboardExperimentDataResponse:
        """Record points of time series in several runs of one experiment."""
        self._local.known(request.tensorboard_experiment)
        for each in request.write_run_data_requests:
            if not each.tensorboard_run.startswith(f"{request.tensorboard_experiment}/"):
                text = f"tensorboardRun takes runs of {request.tensorboard_experiment[:200]}; got {each.tensorboard_run[:200]}."
                raise ApiError("INVALID_ARGUMENT", text, "writeRunDataRequests.tensorboardRun")
            self.write_tensorboard_run_data(each)
        return messages.new("WriteTensorboardExperimentDataResponse")

    def _write(self, run: str, data: Iterable[Message]) -> None:
        wanted = []
        for i, each in enumerate(data):
            where = f"timeSeriesData[{i}]"
            messages.required(each, "tensorboard_time_series_id", "values", where=f"{where}.")
            known = self._local.known(f"{run}/{series.SERIES}/{each.tensorboard_time_series_id}")
            _refuse_blobs(each.value_type, f"{where}.valueType")
            given = messages.to_json(each)
            if given.get("valueType", known["valueType"]) != known["valueType"]:
                text = f"{where}.valueType: {known['displayName']} takes {known['valueType']}; got {given['valueType']}."
                raise ApiError("INVALID_ARGUMENT", text, f"{where}.valueType")
            wanted.append((known["name"], given["values"]))
        for name, values in wanted:  # only now, when all of them are right
            series.write(self._records, name, values)

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
            if not name.startswith(f"{request.tensorboard}/"):
                text = f"timeSeries takes time series of {request.tensorboard[:200]}; got {name[:200]}."
                raise ApiError("INVALID_ARGUMENT", text, "timeSeries")
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
                "INVALID_ARGUMENT", f"pageToken: {request.page_token[:80]!r} is not a token of this list; "
                "start from the first page.", "pageToken"
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

    # ------------------------------------------------------------------ all of them

    def _names(self, collection: str, parent: str) -> set[str]:
        return {each.get("displayName", "") for each in self._records.list(collection, parent)}

    def _update(self, message: Message, mask: Message, changeable: tuple[str, ...]) -> dict[str, Any]:
        messages.required(message, "name")
        self._local.known(message.name)
        if mask.paths and list(mask.paths) != ["*"]:
            changed = messages.changes(message, mask, changeable)
        else:
            document = messages.to_json(message)
            changed = {name: document[name] for name in map(filters.camel, changeable) if name in document}
        kept = self._records.change(message.name, lambda document: messages.apply(document, changed))
        if kept is None:
            raise ApiError("NOT_FOUND", f"{message.name} has been deleted meanwhile.")
        return kept

    def _delete(self, name: str) -> operations_pb2.Operation:
        name = self._local.known(name)["name"]
        self._records.remove_points(name)
        self._records.remove_below(name)
        self._records.remove(name)
        return self._operations.finished(location_of(name), "DeleteOperationMetadata", None)


def _of_one_parent(request: Message) -> Iterable[Message]:
    """Yield a batch's requests with its parent filled in; raise an ApiError for one with another parent."""
    for i, each in enumerate(request.requests):
        if each.parent and each.parent != request.parent:
            text = f"requests[{i}].parent must be that of the batch, {request.parent[:200]}; got {each.parent[:200]}."
            raise ApiError("INVALID_ARGUMENT", text, f"requests[{i}].parent")
        each.parent = request.parent
        yield each


def _take_name(name: str, taken: set[str], parent: str) -> None:
    if name in taken:
        raise ApiError("ALREADY_EXISTS", f"{parent} has one with the displayName {name[:200]!r} already.")
    taken.add(name)


def _checked_id(number: str, field: str) -> str:
    if not series.fits_id(number):
        text = f"{field} has 1 to 128 of a-z, 0-9 and '-', and does not begin with '-'; got {number[:140]!r}."
        raise ApiError("INVALID_ARGUMENT", text, field)
    return number


def _refuse_blobs(value_type: int, field: str) -> None:
    if messages.kind("TensorboardTimeSeries").ValueType.Name(value_type) == "BLOB_SEQUENCE":
        raise ApiError("UNIMPLEMENTED", f"{field}: sequences of blobs are not kept by the local service; scalars and tensors are.", field)
