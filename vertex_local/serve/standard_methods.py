"""The API's standard methods of a type of resource (get, list, update, delete): one implementation, which services have as RPCs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..metadata import nodes
from . import filters, lists, messages, rpc
from .local import Local, location_of
from .operations import OperationPool
from .rest import ApiError

if TYPE_CHECKING:
    from google.longrunning import operations_pb2
    from google.protobuf.message import Message

_OF_MANY = ("list", "purge")  # their RPCs have the resource's plural


class Resources:
    """The records of one type of resource, and its standard methods.

    Args:
        type_name: the API's message, such as CustomJob.
        collection: what stands before the ids in its names, such as customJobs.
        changeable: the fields that an update may change.
        deletion: the type of the metadata of the operation that deletes one.
    """

    def __init__(
        self, local: Local, operations: OperationPool, type_name: str, collection: str, changeable: Iterable[str] = (),
        deletion: str = "DeleteOperationMetadata",
    ):  # fmt: skip
        self._local, self._records, self._operations, self._deletion = local, local.records, operations, deletion
        self._type, self._collection, self._changeable = type_name, collection, changeable
        self._one = rpc.snake(type_name)  # as requests and RPCs name it
        self._many = self._one if self._one.endswith("s") else f"{self._one}s"

    def add_to(self, service: Any, *methods: str) -> None:
        """Give a service these methods as RPCs: `get` as get_custom_job, `list` as list_custom_jobs."""
        for name in methods:
            setattr(service, f"{name}_{self._many if name in _OF_MANY else self._one}", getattr(self, name))

    def message(self, document: dict[str, Any]) -> Message:
        """Return a record as the API's message."""
        return messages.read(self.shown(document), self._type)

    def shown(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return a record as the API shows it: by default as it is."""
        return document

    def get(self, request: Message) -> Message:
        """Return a resource."""
        return self.message(self._local.known(request.name))

    def list(self, request: Message) -> Message:
        """Return one page of a parent's resources."""
        if request.parent != location_of(request.parent):  # a location has no record
            self._local.known(request.parent)
        documents, token = self.page(request)
        items = [self.message(document) for document in documents]
        return messages.new(f"List{rpc.pascal(self._many)}Response", **{self._many: items, "next_page_token": token})

    def page(self, request: Message) -> tuple[Sequence[dict[str, Any]], str]:
        """Return the records of the page that a request asks for, and the next page's token."""
        return lists.page(self._records, self._collection, request)

    def create(self, request: Message) -> Message:
        """Record a new resource; without an id it gets a random one."""
        parent = self._local.known(request.parent)["name"]
        return self.message(self.add(parent, getattr(request, self._one), getattr(request, f"{self._one}_id")))

    def add(self, parent: str, resource: Message, number: str) -> dict[str, Any]:
        """Record a new resource with the id that a request gives, or with a random one, and return the record."""
        number = checked_id(number, filters.camel(f"{self._one}_id"))
        return nodes.add(self._records, parent, self._collection, messages.to_json(resource), number)

    def update(self, request: Message) -> Message:
        """Change the fields in the request's mask; without one, those of the changeable fields that the request sets."""
        return self.message(self.updated(getattr(request, self._one), request.update_mask))

    def updated(self, resource: Message, mask: Message) -> dict[str, Any]:
        """Change the fields in the mask, or without one the changeable ones that are set, and return the record.

        Raises:
            ApiError: FAILED_PRECONDITION if the resource has an etag, and it is not that of the record.
        """
        messages.required(resource, "name")
        self._local.known(resource.name)
        if mask.paths and [*mask.paths] != ["*"]:
            changed = messages.changes(resource, mask, self._changeable)
        else:  # clients send back what they got, with fields that only the service sets
            document = messages.to_json(resource)
            changed = {name: document[name] for name in map(filters.camel, self._changeable) if name in document}

        def change(document: dict[str, Any]) -> None:
            check_etag(document, resource.etag)
            messages.apply(document, changed)

        return self.change(resource.name, change)

    def change(self, name: str, alter: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Let `alter` change a record in one transaction, and return it."""
        return nodes.change(self._records, name, alter) or self._local.known(name)

    def delete(self, request: Message) -> operations_pb2.Operation:
        """Forget a resource."""
        self._local.known(request.name)
        self.forget(request.name)  # not the name in the record, which is a file's content
        return self._operations.finished(location_of(request.name), self._deletion, None)

    def forget(self, name: str) -> None:
        """Remove a resource's record, and those of all that is below it."""
        self._records.remove_below(name)
        self._records.remove(name)


def checked_id(number: str, field: str) -> str:
    """Return the id that a request gives in `field`, or a new one if it gives none."""
    try:
        return nodes.check_id(number) if number else str(uuid.uuid4())
    except nodes.BadId as error:
        raise ApiError("INVALID_ARGUMENT", f"{field} {error}", field) from None


def check_etag(document: Mapping[str, Any], etag: str) -> None:
    """Refuse to change a record that has been changed since its etag was read; "" is any."""
    if etag and etag != document.get("etag"):
        text = f"{document['name']} has been changed since it was read (etag {etag[:40]!r}); read it again."
        raise ApiError("FAILED_PRECONDITION", text, "etag")
