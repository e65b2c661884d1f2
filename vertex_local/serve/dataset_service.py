"""google.cloud.aiplatform.v1.DatasetService: tabular and text data sets, their imports and exports.

An import records where its files lie, not their content: each export reads them again.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..datasets import dataset, export
from ..job import times
from ..local import job_record
from . import exports, lists, messages
from .local import Local, location_of
from .operations import OperationPool
from .rest import ApiError

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2

_LABEL = "aiplatform.googleapis.com/dataset_metadata_schema"
_CHANGEABLE = ("display_name", "description", "labels")


class DatasetService:
    """Managed data sets."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._operations = local, operations

    def create_dataset(self, request: types.CreateDatasetRequest) -> operations_pb2.Operation:
        """Record a data set; the operation is done at once. A tabular data set's source must exist."""
        messages.required(request.dataset, "display_name", "metadata_schema_uri")
        body = messages.to_json(request.dataset)
        with exports.errors():
            found = dataset.make("new", body, (), self._local.buckets)
            if found.kind == dataset.TABULAR:
                export.source_of(found)
        name, now = self._local.new_name(request.parent, "datasets"), job_record.now()
        labels = {**body.get("labels", {}), _LABEL: found.kind.upper()}
        document = self._local.records.add(name, "datasets", {**body, "name": name, "labels": labels, "createTime": now, "updateTime": now})
        return self._operations.finished(request.parent, "CreateDatasetOperationMetadata", ("Dataset", document))

    def get_dataset(self, request: types.GetDatasetRequest) -> types.Dataset:
        """Return a data set."""
        return messages.read(self._local.known(request.name), "Dataset")

    def list_datasets(self, request: types.ListDatasetsRequest) -> types.ListDatasetsResponse:
        """Return one page of data sets."""
        return lists.answer(self._local.records, "datasets", request, "Dataset", "datasets")

    def update_dataset(self, request: types.UpdateDatasetRequest) -> types.Dataset:
        """Change a data set's texts and labels."""
        name = self._local.known(request.dataset.name)["name"]
        changed = messages.changes(request.dataset, request.update_mask, _CHANGEABLE)
        job_record.update(self._local.records, name, lambda document: messages.apply(document, changed))
        return messages.read(self._local.known(name), "Dataset")

    def delete_dataset(self, request: types.DeleteDatasetRequest) -> operations_pb2.Operation:
        """Forget a data set; its files stay."""
        name = self._local.known(request.name)["name"]
        for each in self._local.records.list("imports", name):
            self._local.records.remove(each["name"])
        self._local.records.remove(name)
        return self._operations.finished(location_of(name), "DeleteOperationMetadata", None)

    def import_data(self, request: types.ImportDataRequest) -> operations_pb2.Operation:
        """Check every item of the imports; add them to the data set only if all are right."""
        document = self._local.known(request.name)
        messages.required(request, "import_configs")
        configs = messages.to_json(request)["importConfigs"]
        with exports.errors():
            new = dataset.make(document["name"].rpartition("/")[2], document, configs, self._local.buckets)
            # One by one, because imports may have different kinds of annotations.
            sources = [export.source_of(dataclasses.replace(new, imports=(one,))) for one in new.imports]

        def work() -> tuple[str, dict[str, Any]]:
            with exports.errors():
                count = sum(1 for source in sources for _ in self._until_the_end(source.rows()))
            if not count:
                raise ApiError("INVALID_ARGUMENT", "importConfigs needs at least one item.", "importConfigs")
            self._local.known(document["name"])  # which may have been deleted meanwhile
            for each in configs:
                name = self._local.new_name(document["name"], "imports")
                self._local.records.add(name, "imports", {"name": name, "createTime": job_record.now(), "config": each})
            job_record.update(self._local.records, document["name"], lambda kept: _add_items(kept, count))
            return "ImportDataResponse", {}

        return self._operations.begin(location_of(document["name"]), "ImportDataOperationMetadata", work)

    def _until_the_end(self, rows: Iterator[Any]) -> Iterator[Any]:
        for row in rows:
            if self._local.executor.stopping.is_set():
                raise ApiError("UNAVAILABLE", "the local service is being stopped.")
            yield row

    def export_data(self, request: types.ExportDataRequest) -> operations_pb2.Operation:
        """Write a data set's rows below `gcs_destination`; split them if the request has a split or is for custom training."""
        document = self._local.known(request.name)
        messages.required(request, "export_config.gcs_destination.output_uri_prefix")
        config = messages.to_json(request)["exportConfig"]
        in_one = config.get("exportUse") != "CUSTOM_CODE_TRAINING" and not {"fractionSplit", "filterSplit"} & config.keys()
        stopping = self._local.executor.stopping
        with exports.errors("exportConfig"):
            task = export.Export(exports.with_imports(self._local, document), config, say=self._local.say, stop=stopping.is_set)
        title = re.sub(r"[^\w.-]", "_", document["displayName"])
        folder = f"export-data-{title}-{times.now()}/{task.source.annotation_type}"

        def work() -> tuple[str, dict[str, Any]]:
            with exports.errors("exportConfig"):
                files, counts = task.to_files(folder, in_one)
            stats = {} if in_one else {f"{name}DataItemsCount": str(count) for name, count in zip(dataset.SETS, counts, strict=True)}
            uris = [f"gs://{os.path.relpath(file, self._local.buckets)}" for file in files]
            return "ExportDataResponse", {"exportedFiles": uris, "dataStats": stats}

        return self._operations.begin(location_of(document["name"]), "ExportDataOperationMetadata", work)


def _add_items(document: dict[str, Any], more: int) -> None:
    document["dataItemCount"] = str(int(document.get("dataItemCount", 0)) + more)
