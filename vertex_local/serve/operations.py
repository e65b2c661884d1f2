"""Long-running operations, as records: most are done when they are returned, the others run in a pool of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf import empty_pb2, json_format

from ..job import times
from ..local import job_record
from ..local.store import Store
from . import lists
from .local import Local
from .rest import ApiError

_TYPE = "type.googleapis.com/google.cloud.aiplatform.v1."
_THREADS = 8
_MOST = 500  # operations that run or wait for a thread
_WAITERS = 8  # calls of WaitOperation that may hold a thread of the server at once
LONGEST_WAIT = 60.0  # seconds
KEPT_DAYS = 30  # how long at least a finished operation is kept
LOST = "the local service was stopped while the operation was under way"

# What an operation does; it returns (the response's type, the response in JSON form), or None for an empty response.
Work = Callable[[], "tuple[str, dict[str, Any]] | None"]


class OperationPool:
    """Makes operations for the services, and runs their work in threads."""

    def __init__(self, local: Local):
        self._local, self._records = local, local.records
        self._changed, self._running, self._ending = threading.Condition(), 0, False
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="operation")

    def finished(self, parent: str, metadata: str, response: tuple[str, dict[str, Any]] | None) -> operations_pb2.Operation:
        """Record and return an operation that has succeeded; `response` is (type, fields), or None for Empty."""
        document = {**self._new(parent, metadata), **_success(response)}
        return _message(self._records.add(document["name"], "operations", document))

    def begin(self, parent: str, metadata: str, work: Work, resource: str = "") -> operations_pb2.Operation:
        """Record and return an operation; `work` runs in a thread of the pool, and what it returns or raises ends the operation.

        Args:
            resource: the name of the resource that the operation changes, for its record.

        Raises:
            ApiError: too many operations are under way.
        """
        with self._changed:
            if self._running >= _MOST:
                raise ApiError("RESOURCE_EXHAUSTED", f"{self._running} operations are under way already; wait for some.")
            self._running += 1
        document = {**self._new(parent, metadata), "resource": resource}
        self._records.add(document["name"], "operations", document)
        self._threads.submit(self._run, document["name"], work)
        return _message(document)

    def _run(self, name: str, work: Work) -> None:
        try:
            outcome = _success(work())
        except ApiError as error:
            outcome = {"done": True, "error": error.rpc}
        except Exception as error:  # a bug of ours fails the operation and not the service
            outcome = {"done": True, "error": {"code": 13, "message": f"{type(error).__name__}: {error}"}}
        try:
            self._records.change(name, lambda operation: operation.update(outcome))
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _new(self, parent: str, metadata: str) -> dict[str, Any]:
        now = job_record.now()
        about = {"@type": _TYPE + metadata, "genericMetadata": {"createTime": now, "updateTime": now}}
        return {"name": self._local.new_name(parent, "operations"), "createTime": now, "metadata": about, "done": False}

    def stop(self) -> None:
        """Drop waiting operations, wait for running ones (which end because the service does), and release calls of `wait`."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._threads.shutdown(cancel_futures=True)

    def wait(self, name: str, seconds: float) -> None:
        """Return once the operation is done, or after `seconds`."""
        end = time.monotonic() + seconds
        with self._changed:
            while not self._ending and not self.known(name)["done"] and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)

    def known(self, name: str) -> dict[str, Any]:
        """Return an operation's record, given its own name or its name under the resource that it belongs to."""
        parts = name.split("/")
        return self._local.known("/".join([*parts[:4], *parts[-2:]]))


class Operations:
    """google.longrunning.Operations."""

    def __init__(self, local: Local, pool: OperationPool):
        self._records, self._pool = local.records, pool
        self._waiters = threading.Semaphore(_WAITERS)

    def get_operation(self, request: operations_pb2.GetOperationRequest) -> operations_pb2.Operation:
        """Return an operation, by its own name or under the resource that it belongs to."""
        return _message(self._pool.known(request.name))

    def wait_operation(self, request: operations_pb2.WaitOperationRequest) -> operations_pb2.Operation:
        """Return an operation once it is done, or after `timeout`, at most a minute; at once if too many calls wait already."""
        seconds = times.duration(request.timeout) if request.HasField("timeout") else 30.0
        if self._waiters.acquire(blocking=False):
            try:
                self._pool.wait(request.name, min(seconds, LONGEST_WAIT))
            finally:
                self._waiters.release()
        return _message(self._pool.known(request.name))

    def list_operations(self, request: operations_pb2.ListOperationsRequest) -> operations_pb2.ListOperationsResponse:
        """Return one page of a location's operations."""
        documents, token = lists.page(self._records, "operations", request, parent=request.name)
        return operations_pb2.ListOperationsResponse(operations=map(_message, documents), next_page_token=token)

    def delete_operation(self, request: operations_pb2.DeleteOperationRequest) -> empty_pb2.Empty:
        """Forget an operation."""
        document = self._pool.known(request.name)
        if not document["done"]:
            raise ApiError("FAILED_PRECONDITION", f"{document['name']} is not done yet; wait for it, or cancel it.")
        self._records.remove(document["name"])
        return empty_pb2.Empty()


def settle(records: Store) -> None:
    """Record as failed the operations that a killed service left unfinished, and forget those that ended long ago."""
    oldest = times.text(time.time() - KEPT_DAYS * 86_400)
    for document in records.list("operations"):
        if document["done"] and document["createTime"] < oldest:
            records.remove(document["name"])
        elif not document["done"]:
            error = {"code": 14, "message": LOST}
            records.change(document["name"], lambda operation: operation.update(done=True, error=error))


def _success(response: tuple[str, dict[str, Any]] | None) -> dict[str, Any]:
    if response is None:
        return {"done": True, "response": {"@type": "type.googleapis.com/google.protobuf.Empty"}}
    return {"done": True, "response": {"@type": _TYPE + response[0], **response[1]}}


def _message(document: dict[str, Any]) -> operations_pb2.Operation:
    return json_format.ParseDict(document, operations_pb2.Operation(), ignore_unknown_fields=True)
