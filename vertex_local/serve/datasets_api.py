"""datasets: tabular ones and those of text, which are imported; their export, also as part of a training pipeline.

An import keeps where its files lie, not what is in them: they are read again at each export.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

from ..datasets import dataset, export
from . import executor, operations
from .local import Local
from .models_api import apply, changed
from .rest import ApiError, Request, checked, required, stamp

_LABEL = "aiplatform.googleapis.com/dataset_metadata_schema"


@contextlib.contextmanager
def _answers(where: str = "") -> Iterator[None]:
    """Turn a data set's errors into the API's; `where` is the request's field that they are about."""
    try:
        yield
    except dataset.DatasetError as error:
        field = ".".join(filter(None, (where, error.field)))
        raise ApiError(error.status, str(error), field or None) from None
    except dataset.Stopped:
        raise executor.Stopped from None


def create(local: Local, request: Request, project: str, location: str) -> dict[str, Any]:
    """Keep a dataset; the operation is done at once. A tabular one's source must be there."""
    parent = f"projects/{project}/locations/{location}"
    body = checked(request.json(), "Dataset")
    required(body, "displayName", "metadataSchemaUri")
    with _answers():
        found = dataset.make("new", body, (), local.buckets)
        if found.kind == dataset.TABULAR:
            export.source_of(found)
    name, now = operations.new_name(local.records, parent, "datasets"), stamp()
    labels = {**body.get("labels", {}), _LABEL: found.kind.upper()}
    document = {**body, "name": name, "labels": labels, "createTime": now, "updateTime": now}
    local.records.add(name, "datasets", document)
    return operations.done(local.records, parent, "CreateDatasetOperationMetadata", ("Dataset", document))


def patch(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Change a dataset's texts and labels."""
    document = local.known(f"projects/{project}/locations/{location}/datasets/{id}")
    changes = changed(checked(request.json(), "Dataset"), request)
    return local.records.change(document["name"], lambda document: apply(document, changes))


def delete(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Forget a dataset; its files stay."""
    document = local.known(f"projects/{project}/locations/{location}/datasets/{id}")
    for each in local.records.list("imports", document["name"]):
        local.records.remove(each["name"])
    local.records.remove(document["name"])
    return operations.done(local.records, f"projects/{project}/locations/{location}", "DeleteOperationMetadata", None)


def import_data(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Read every item that is to be imported; only if all are right they belong to the dataset."""
    parent = f"projects/{project}/locations/{location}"
    document = local.known(f"projects/{project}/locations/{location}/datasets/{id}")
    body = checked(request.json(), "ImportDataRequest")
    required(body, "importConfigs")
    with _answers():
        new = dataset.make(id, document, body["importConfigs"], local.buckets)
        sources = [export.source_of(each) for each in _single(new)]

    def work() -> tuple[str, dict[str, Any]]:
        with _answers():
            count = sum(1 for source in sources for _ in source.rows())
        if not count:
            raise ApiError("INVALID_ARGUMENT", "there is no item to import.", "importConfigs")
        for each in body["importConfigs"]:
            name = operations.new_name(local.records, document["name"], "imports")
            local.records.add(name, "imports", {"name": name, "createTime": stamp(), "config": each})
        local.records.change(document["name"], lambda kept: _count(kept, count))
        return "ImportDataResponse", {}

    return operations.start(local.records, parent, "ImportDataOperationMetadata", work)


def _single(found: dataset.Dataset) -> list[dataset.Dataset]:
    """Return a data set for each import, which may be of several kinds of annotations."""
    return [dataset.Dataset(found.id, found.kind, found.buckets, imports=(one,)) for one in found.imports]


def _count(document: dict[str, Any], more: int) -> None:
    apply(document, {"dataItemCount": str(int(document.get("dataItemCount", 0)) + more)})


def export_data(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Write a dataset's rows below `gcsDestination`, split if a split is given or custom training asks for it."""
    document = local.known(f"projects/{project}/locations/{location}/datasets/{id}")
    body = checked(request.json(), "ExportDataRequest")
    required(body, "exportConfig.gcsDestination.outputUriPrefix")
    config = body["exportConfig"]
    whole = config.get("exportUse") != "CUSTOM_CODE_TRAINING" and not {"fractionSplit", "filterSplit"} & config.keys()
    with _answers("exportConfig"):
        wanted = export.Export(_known(local, document), config, say=local.say, stop=local.executor.stopping.is_set)
    title = re.sub(r"[^\w.-]", "_", document["displayName"])
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def work() -> tuple[str, dict[str, Any]]:
        with _answers("exportConfig"):
            files, counts = wanted.to_files(f"export-data-{title}-{now}/{wanted.source.annotation_type}", whole)
        stats = {} if whole else {f"{name}DataItemsCount": str(count) for name, count in zip(dataset.SETS, counts, strict=True)}
        return "ExportDataResponse", {"exportedFiles": [_uri(local, file) for file in files], "dataStats": stats}

    return operations.start(local.records, f"projects/{project}/locations/{location}", "ExportDataOperationMetadata", work)


def _uri(local: Local, path: Any) -> str:
    return f"gs://{os.path.relpath(path, local.buckets)}"


def _known(local: Local, document: dict[str, Any]) -> dataset.Dataset:
    """Return a kept dataset with all that was imported into it."""
    imports = sorted(local.records.list("imports", document["name"]), key=lambda each: each["createTime"])
    number = document["name"].rpartition("/")[2]
    return dataset.make(number, document, [each["config"] for each in imports], local.buckets)


def plan(local: Local, parent: str, config: dict[str, Any]) -> Callable[[threading.Event], dict[str, str]]:
    """Check a pipeline's `inputDataConfig` and return what exports the data and returns the job's variables."""
    required({"inputDataConfig": config}, "inputDataConfig.datasetId")
    if "bigqueryDestination" not in config:
        required({"inputDataConfig": config}, "inputDataConfig.gcsDestination.outputUriPrefix")
    document = local.known(f"{parent}/datasets/{config['datasetId']}")
    with _answers("inputDataConfig"):
        wanted = export.Export(_known(local, document), config, say=local.say)

    def run(cancel: threading.Event) -> dict[str, str]:
        wanted.stop = cancel.is_set
        with _answers("inputDataConfig"):
            return wanted.run()

    return run
