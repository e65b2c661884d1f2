"""What the RPCs about artifacts, executions and contexts share: create, get, list by filter, update, delete and purge."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..metadata import nodes
from . import filters, lists, messages
from .local import Local, location_of
from .operations import OperationPool
from .rest import ApiError

if TYPE_CHECKING:
    from google.longrunning import operations_pb2
    from google.protobuf.message import Message

_SAMPLE = 100  # names in a purge's answer
_FUNCTIONS = ("in_context", "has_context")
# A filter names values of metadata with their kind: metadata.rows.number_value.
_KINDS = {"number_value": (int, float), "string_value": (str,), "bool_value": (bool,), "struct_value": (dict,), "list_value": (list,)}


@dataclass(frozen=True)
class Kind:
    """One of the three kinds of nodes: its collection and type in the API, and the fields that an update may change."""

    collection: str
    type: str
    changeable: tuple[str, ...]


class Nodes:
    """The RPCs of one kind of node."""

    def __init__(self, local: Local, operations: OperationPool, kind: Kind):
        self._local, self._records, self._operations, self._kind = local, local.records, operations, kind

    def create(self, parent: str, node: Message, number: str) -> Message:
        """Record a new node; without an id it gets a random one."""
        self._local.known(parent)
        document = {name: value for name, value in messages.to_json(node).items() if name not in ("name", "etag", "parentContexts")}
        number = checked_id(number, f"{self._kind.type.lower()}Id")
        return self._message(nodes.add(self._records, parent, self._kind.collection, document, number))

    def get(self, name: str) -> Message:
        """Return a node."""
        return self._message(self._local.known(name))

    def list(self, request: Message) -> Message:
        """Return one page of the nodes that match the request's filter."""
        self._local.known(request.parent)
        accepts = self.filter(request.filter)
        contexts, parents = accepts.values("inContext") or accepts.values("hasContext"), accepts.values("parentContexts")
        link = None  # a condition for which the store has an index
        for kind, names in ((nodes.IN_CONTEXT, contexts), (nodes.PARENT, parents)):
            if names is not None and len(names) == 1 and names != {"*"}:
                link = kind, next(iter(names))
        documents, token = lists.page(self._records, self._kind.collection, request, accepts=accepts, link=link)
        response = request.DESCRIPTOR.name.removesuffix("Request") + "Response"
        found = [self._message(document) for document in documents]
        return messages.new(response, **{self._kind.collection: found, "next_page_token": token})

    def filter(self, text: str) -> filters.Filter:
        """Return the parsed filter; it can also ask for contexts and metadata."""
        return lists.parsed_filter(text, self._lookup, _FUNCTIONS)

    def _lookup(self, document: Mapping[str, Any], name: str) -> Any:
        plain = filters.camel(name)
        if name in _FUNCTIONS:
            return self._records.links_from(nodes.IN_CONTEXT, document["name"])
        if plain == "parentContexts":
            return list(self._records.links_from(nodes.PARENT, document["name"]))
        if plain == "childContexts":
            return list(self._records.links_to(nodes.PARENT, document["name"]))
        path, _, kind = name.rpartition(".")
        if name.startswith("metadata.") and kind in _KINDS:
            found = document.get("metadata", {}).get(path.partition(".")[2])
            found = filters.lookup(document, path) if found is None else found
            fits = isinstance(found, _KINDS[kind]) and (kind != "number_value" or not isinstance(found, bool))
            return found if fits else None
        return filters.lookup(document, name)

    def update(self, node: Message, mask: Message, allow_missing: bool) -> Message:
        """Change the fields in the mask, or without one all that the request sets; a given etag must be the newest."""
        messages.required(node, "name")
        if allow_missing and self._records.get(node.name) is None:
            return self.create(nodes.store_of(node.name), node, node.name.rpartition("/")[2])
        self._local.known(node.name)
        if mask.paths:
            changed = messages.changes(node, mask, self._kind.changeable)
        else:  # clients send back the node that they got, with fields that only the service sets
            document = messages.to_json(node)
            changed = {name: document[name] for name in map(filters.camel, self._kind.changeable) if name in document}

        def change(kept: dict[str, Any]) -> None:
            _check_etag(kept, node.etag)
            messages.apply(kept, changed)

        kept = nodes.change(self._records, node.name, change)
        if kept is None:
            raise ApiError("NOT_FOUND", f"{node.name} has been deleted meanwhile.")
        return self._message(kept)

    def delete(self, name: str, etag: str) -> operations_pb2.Operation:
        """Forget a node and its links."""
        _check_etag(self._local.known(name), etag)
        nodes.remove(self._records, name)
        return self._operations.finished(location_of(name), "DeleteOperationMetadata", None)

    def purge(self, request: Message) -> operations_pb2.Operation:
        """Forget all nodes that match the request's filter; without `force`, only return which they are."""
        messages.required(request, "filter")
        self._local.known(request.parent)
        accepts = self.filter(request.filter)
        names = [each["name"] for each in self._records.list(self._kind.collection, request.parent) if accepts(each)]
        for name in names if request.force else ():
            nodes.remove(self._records, name)
        response: dict[str, Any] = {"purgeCount": str(len(names))}
        if not request.force:
            response["purgeSample"] = names[:_SAMPLE]
        rpc = request.DESCRIPTOR.name.removesuffix("Request")
        return self._operations.finished(location_of(request.parent), f"{rpc}Metadata", (f"{rpc}Response", response))

    def _message(self, document: dict[str, Any]) -> Message:
        return messages.read(nodes.shown(self._records, document), self._kind.type)


def checked_id(number: str, field: str) -> str:
    """Return the id that a request gives in `field`, or a new one if it gives none."""
    try:
        return nodes.check_id(number) if number else str(uuid.uuid4())
    except nodes.BadId as error:
        raise ApiError("INVALID_ARGUMENT", f"{field} {error}", field) from None


def _check_etag(document: Mapping[str, Any], etag: str) -> None:
    if etag and etag != document.get("etag"):
        text = f"{document['name']} has been changed since it was read (etag {etag[:40]!r}); read it again."
        raise ApiError("FAILED_PRECONDITION", text, "etag")
