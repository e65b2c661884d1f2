"""What the List RPCs share: pages of records, filtered and ordered, with tokens that survive changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from google.protobuf.message import Message

from ..local import store
from . import filters, messages
from .rest import ApiError

DEFAULT_SIZE, LARGEST_SIZE = 100, 1000


def page(
    records: store.Store, kind: str, request: Message, parent: str = "", *,
    shown: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None, only: Callable[[dict[str, Any]], bool] | None = None,
    accepts: filters.Filter | None = None, link: tuple[str, str] | None = None,
) -> tuple[list[dict[str, Any]], str]:  # fmt: skip
    """Return the records of one page of a list, newest first unless the request has another order, and the next page's token.

    Args:
        request: a List request: `parent`, `page_size`, `page_token`, and perhaps `filter` and `order_by`.
        parent: whose records to list, by default the request's `parent`.
        shown: returns the form of a record that the filter looks at, by default the record itself.
        only: returns whether a record belongs to the list at all; by default every one does.
        accepts: the request's filter, if it has been parsed already.
        link: (kind, target): list only records that have such a link in the store.

    Raises:
        ApiError: the filter, order, size or token is wrong.
    """
    accepts = accepts or parsed_filter(getattr(request, "filter", ""))
    order, descending = _order(getattr(request, "order_by", ""))
    states = accepts.values("state")
    state = next(iter(states)) if states is not None and len(states) == 1 else None

    def passes(document: dict[str, Any]) -> bool:
        return (only is None or only(document)) and accepts(shown(document) if shown else document)

    try:
        found = records.page(
            kind, parent or request.parent, size(request), request.page_token, order=order, descending=descending, state=state, link=link,
            accepts=None if type(accepts) is filters.Filter and only is None else passes,
        )  # fmt: skip
    except store.BadToken as error:
        raise ApiError("INVALID_ARGUMENT", f"pageToken: {error}.", "pageToken") from None
    return found.documents, found.token


def answer(records: store.Store, kind: str, request: Message, type_name: str, field: str) -> Message:
    """Return the response to a List request whose items are unchanged records.

    Args:
        type_name: the API's type of an item.
        field: the response's field that holds the items.
    """
    documents, token = page(records, kind, request)
    items = [messages.read(document, type_name) for document in documents]
    response = request.DESCRIPTOR.name.removesuffix("Request") + "Response"
    return messages.new(response, **{field: items, "next_page_token": token})


def size(request: Message) -> int:
    """Return how many items a page for the request may have."""
    if request.page_size < 0:
        raise ApiError("INVALID_ARGUMENT", f"pageSize takes a whole number from 0 on; got {request.page_size}.", "pageSize")
    return min(request.page_size or DEFAULT_SIZE, LARGEST_SIZE)


def parsed_filter(text: str, lookup: filters.Lookup = filters.lookup, functions: Collection[str] = ()) -> filters.Filter:
    """Return a request's parsed filter; raise INVALID_ARGUMENT if it cannot be read."""
    try:
        return filters.parse(text, lookup, functions)
    except filters.FilterError as error:
        raise ApiError("INVALID_ARGUMENT", str(error), "filter") from None


def _order(text: str) -> tuple[str, bool]:
    name, _, way = (text or "create_time desc").partition(" ")
    field = filters.camel(name)
    if field not in store.ORDERS or way not in ("", "asc", "desc"):
        known = "create_time, update_time or display_name, optionally followed by desc"
        raise ApiError("INVALID_ARGUMENT", f"orderBy takes {known}; got {text[:100]!r}.", "orderBy")
    return field, way == "desc"
