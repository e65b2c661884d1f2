"""The export of a data set for a training pipeline, and what it shares with DatasetService."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..datasets import dataset, export
from . import executor, messages
from .local import Local
from .rest import ApiError

if TYPE_CHECKING:
    from google.protobuf.message import Message


def planned(local: Local, parent: str, config: Message) -> Callable[[threading.Event], dict[str, str]]:
    """Check a pipeline's `input_data_config`; return a function that exports the data and returns the job's variables."""
    messages.required(config, "dataset_id", where="inputDataConfig.")
    if not config.HasField("bigquery_destination"):
        messages.required(config, "gcs_destination.output_uri_prefix", where="inputDataConfig.")
    document = local.known(f"{parent}/datasets/{config.dataset_id}")
    with errors("inputDataConfig"):
        task = export.Export(with_imports(local, document), messages.to_json(config), say=local.say)

    def run(cancel: threading.Event) -> dict[str, str]:
        task.stop = cancel.is_set
        with errors("inputDataConfig"):
            return task.run()

    return run


def with_imports(local: Local, document: Mapping[str, Any]) -> dataset.Dataset:
    """Return a recorded data set with all its imports."""
    imports = local.records.list("imports", document["name"])
    number = document["name"].rpartition("/")[2]
    return dataset.make(number, document, [each["config"] for each in imports], local.buckets)


@contextlib.contextmanager
def errors(where: str = "") -> Iterator[None]:
    """Turn a data set's errors into the API's; `where` is the field of the request that holds the data set's fields."""
    try:
        yield
    except dataset.DatasetError as error:
        field = ".".join(filter(None, (where, error.field)))
        raise ApiError(error.status, str(error), field or None) from None
    except dataset.Stopped:
        raise executor.Stopped from None
