"""Long-running operations: kept as records, most of them done when they are answered, and names for what is new."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..local import jobs
from .records import Records
from .rest import ApiError, Request, page, stamp

_TYPE = "type.googleapis.com/google.cloud.aiplatform.v1."
LOST = "the local service was stopped while the operation was under way"


def new_name(records: Records, parent: str, kind: str, folder: Path | None = None) -> str:
    """Return a name for a new resource of `parent`; its id is free among the records, and in `folder` too."""
    while True:
        number = jobs.new_id()
        if not records.has_id(number) and not (folder and (folder / number).exists()):
            return f"{parent}/{kind}/{number}"


def done(records: Records, parent: str, metadata: str, response: tuple[str, dict[str, Any]] | None) -> dict[str, Any]:
    """Keep and return an operation that has succeeded; `response` is its type's name and fields, None is Empty."""
    document = _new(records, parent, metadata)
    return records.add(document["name"], "operations", {**document, **_success(response)})


def start(
    records: Records, parent: str, metadata: str, work: Callable[[], tuple[str, dict[str, Any]] | None]
) -> dict[str, Any]:  # fmt: skip
    """Keep and return an operation that ends as `work`, called in a thread of its own, returns or raises."""

    def run() -> None:
        try:
            outcome = _success(work())
        except ApiError as error:
            outcome = {"done": True, "error": error.rpc}
        except Exception as error:  # a fault of ours: the operation has failed, not the service
            outcome = {"done": True, "error": {"code": 13, "message": f"{type(error).__name__}: {error}"}}
        records.change(document["name"], lambda operation: operation.update(outcome))

    document = _new(records, parent, metadata)
    records.add(document["name"], "operations", document)
    threading.Thread(target=run, daemon=True).start()
    return document


def settle(records: Records) -> None:
    """End what a service that was killed left undone."""
    for document in records.list("operations"):
        if not document["done"]:
            error = {"code": 14, "message": LOST}
            records.change(document["name"], lambda operation: operation.update(done=True, error=error))


def _new(records: Records, parent: str, metadata: str) -> dict[str, Any]:
    now = stamp()
    about = {"@type": _TYPE + metadata, "genericMetadata": {"createTime": now, "updateTime": now}}
    return {"name": new_name(records, parent, "operations"), "metadata": about, "done": False}


def _success(response: tuple[str, dict[str, Any]] | None) -> dict[str, Any]:
    if response is None:
        return {"done": True, "response": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}}
    return {"done": True, "response": {"@type": _TYPE + response[0], **response[1]}}


def for_version(document: dict[str, Any], version: str) -> dict[str, Any]:
    """Return an operation whose types are those of the API version that the client speaks."""
    for key in ("metadata", "response"):
        if key in document:
            document[key]["@type"] = document[key]["@type"].replace(".v1.", f".{version}.")
    return document


# ------------------------------------------------------------------ the routes


def get(records: Records, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Return an operation, by its own name or under the resource that it belongs to."""
    document = records.get(f"projects/{project}/locations/{location}/operations/{id}")
    if document is None:
        raise ApiError("NOT_FOUND", f"operation {id} does not exist here.")
    return for_version(document, request.version)


def wait(records: Records, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Return an operation once it is done, or after `timeout` (query or body, such as 10s), at most a minute."""
    text = request.query.get("timeout") or request.json().get("timeout") or "30s"
    try:
        patience = float(str(text).removesuffix("s"))
    except ValueError:
        raise ApiError("INVALID_ARGUMENT", f"timeout takes seconds such as 10s; got {text!r}.", "timeout") from None
    end = time.monotonic() + min(patience, 60.0)
    while not (document := get(records, request, project, location, id))["done"] and time.monotonic() < end:
        time.sleep(0.1)
    return document


def listing(records: Records, request: Request, project: str, location: str) -> dict[str, Any]:
    """Return one page of operations."""
    found = records.list("operations", f"projects/{project}/locations/{location}")
    found = [{**document, "createTime": document["metadata"]["genericMetadata"]["createTime"]} for document in found]
    answer = page(found, request, "operations")
    for document in answer.get("operations", []):
        del document["createTime"]
        for_version(document, request.version)
    return answer


def delete(records: Records, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Forget an operation."""
    document = get(records, request, project, location, id)
    if not document["done"]:
        raise ApiError("FAILED_PRECONDITION", f"operation {id} is not done yet.")
    records.remove(document["name"])
    return {}
