"""What the RPCs about artifacts, executions and contexts have beside the standard methods: filters, etags, purges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..metadata import nodes
from . import filters, lists, messages
from .local import location_of
from .standard_methods import Resources, check_etag

if TYPE_CHECKING:
    from google.longrunning import operations_pb2
    from google.protobuf.message import Message

_SAMPLE = 100  # names in a purge's answer
_FUNCTIONS = ("in_context", "has_context")
# A filter names values of metadata with their kind: metadata.rows.number_value.
_KINDS = {"number_value": (int, float), "string_value": (str,), "bool_value": (bool,), "struct_value": (dict,), "list_value": (list,)}


class Nodes(Resources):
    """The nodes of one kind."""

    def shown(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return a node as the API shows it: a context with those above it."""
        return nodes.shown(self._records, document)

    def page(self, request: Message) -> tuple[Sequence[dict[str, Any]], str]:
        """Return the records of the nodes that match the request's filter."""
        accepts = self.parsed(request.filter)
        contexts, parents = accepts.values("inContext") or accepts.values("hasContext"), accepts.values("parentContexts")
        link = None  # a condition for which the store has an index
        for kind, names in ((nodes.IN_CONTEXT, contexts), (nodes.PARENT, parents)):
            if names is not None and len(names) == 1 and names != {"*"}:
                link = kind, next(iter(names))
        return lists.page(self._records, self._collection, request, accepts=accepts, link=link)

    def parsed(self, text: str) -> filters.Filter:
        """Return a request's parsed filter; it can also ask for contexts and metadata."""
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

    def update(self, request: Message) -> Message:
        """Change a node, or make it if the request allows that."""
        node = getattr(request, self._one)
        if request.allow_missing and node.name and self._records.get(node.name) is None:
            store = self._local.known(nodes.store_of(node.name))["name"]
            return self.message(self.add(store, node, node.name.rpartition("/")[2]))
        return super().update(request)

    def delete(self, request: Message) -> operations_pb2.Operation:
        """Forget a node and its links."""
        check_etag(self._local.known(request.name), request.etag)
        return super().delete(request)

    def forget(self, name: str) -> None:
        """Remove a node's record and links."""
        nodes.remove(self._records, name)

    def purge(self, request: Message) -> operations_pb2.Operation:
        """Forget all nodes that match the request's filter; without `force`, only return which they are."""
        messages.required(request, "filter")
        self._local.known(request.parent)
        accepts = self.parsed(request.filter)
        names = [each["name"] for each in self._records.list(self._collection, request.parent) if accepts(each)]
        for name in names if request.force else ():
            nodes.remove(self._records, name)
        response: dict[str, Any] = {"purgeCount": str(len(names))}
        if not request.force:
            response["purgeSample"] = names[:_SAMPLE]
        rpc = request.DESCRIPTOR.name.removesuffix("Request")
        return self._operations.finished(location_of(request.parent), f"{rpc}Metadata", (f"{rpc}Response", response))
