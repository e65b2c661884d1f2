"""The graph of a metadata store: artifacts, executions and contexts are records in the API's form, events and membership links.

Functions need only the records and no service, so a job leaves the same graph with and without the service. Names are
full ones: `projects/P/locations/L/metadataStores/S/artifacts/A`.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..job.times import now
from ..local.store import Store, Taken

ARTIFACTS, EXECUTIONS, CONTEXTS = COLLECTIONS = ("artifacts", "executions", "contexts")
STORES, SCHEMAS = "metadataStores", "metadataSchemas"
DEFAULT_STORE = "default"
INPUT, OUTPUT = EVENTS = ("INPUT", "OUTPUT")  # kinds of links from an execution to an artifact
IN_CONTEXT, PARENT = "context", "parent"  # from a node to a context it belongs to, from a context to one above it
_ID = re.compile("[a-z0-9][a-z0-9-]{0,127}")


class BadId(ValueError):
    """An id that no node of a metadata store can have."""


@dataclass
class Subgraph:
    """Nodes and the events between them, each as the API shows it."""

    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    executions: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)


def check_id(number: str) -> str:
    """Return the id if it is valid; raise BadId if not."""
    if not _ID.fullmatch(number):
        raise BadId(f"has 1 to 128 of a-z, 0-9 and '-', and does not begin with '-'; got {number[:140]!r}.")
    return number


def store_of(name: str) -> str:
    """Return the name of the store that a node belongs to."""
    return "/".join(name.split("/")[:6])


def ensure_store(records: Store, location: str) -> str:
    """Return the name of a location's default metadata store; make the store if it is missing.

    Args:
        location: `projects/P/locations/L`.
    """
    return ensure(records, location, STORES, DEFAULT_STORE, {})["name"]


def ensure(records: Store, parent: str, collection: str, number: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resource of that id; make it if it is missing."""
    name = f"{parent}/{collection}/{number}"
    try:
        return records.get(name) or add(records, parent, collection, document, number)
    except Taken:  # another process was faster
        return records.get(name) or {"name": name}


def add(records: Store, parent: str, collection: str, document: Mapping[str, Any], number: str) -> dict[str, Any]:
    """Record a new resource below `parent`, such as a node of a metadata store, and return it.

    Raises:
        BadId: the id is not valid.
        Taken: there is a resource of that name.
    """
    name = f"{parent}/{collection}/{check_id(number)}"
    when = now()
    document = {**document, "name": name, "createTime": when, "updateTime": when, "etag": secrets.token_hex(8)}
    return records.add(name, collection, document)


def put(records: Store, store: str, collection: str, document: Mapping[str, Any], number: str) -> dict[str, Any]:
    """Record a node, or update the one of that id: fields are replaced, the keys of the metadata merged."""
    try:
        return add(records, store, collection, document, number)
    except Taken:
        pass  # so it is updated, below

    def merge(kept: dict[str, Any]) -> None:
        metadata = {**kept.get("metadata", {}), **document.get("metadata", {})}
        kept.update({**document, "metadata": metadata})

    return change(records, f"{store}/{collection}/{number}", merge) or dict(document)


def change(records: Store, name: str, alter: Callable[[dict[str, Any]], Any]) -> dict[str, Any] | None:
    """Let `alter` change a node in one transaction and return it; None if there is none."""

    def touched(document: dict[str, Any]) -> None:
        alter(document)
        document.update(updateTime=now(), etag=secrets.token_hex(8))

    return records.change(name, touched)


def remove(records: Store, name: str) -> None:
    """Forget a node and its links."""
    records.remove_links(name)
    records.remove(name)


# ------------------------------------------------------------------ links


def add_to_context(records: Store, context: str, nodes: Iterable[str]) -> None:
    """Add artifacts and executions to a context."""
    for name in nodes:
        records.link(IN_CONTEXT, name, context)


def add_children(records: Store, context: str, children: Iterable[str]) -> None:
    """Make contexts the children of another one."""
    for name in children:
        records.link(PARENT, name, context)


def add_event(records: Store, execution: str, artifact: str, kind: str, labels: Mapping[str, str] | None = None, time: str = "") -> None:
    """Record that an execution has read or made an artifact.

    Args:
        kind: INPUT or OUTPUT.
        time: RFC 3339; by default now.
    """
    document = {"eventTime": time or now(), **({"labels": dict(labels)} if labels else {})}
    records.link(kind, execution, artifact, document)


def shown(records: Store, document: dict[str, Any]) -> dict[str, Any]:
    """Return a context as the API shows it, with the contexts above it; any other node as it is."""
    if f"/{CONTEXTS}/" not in document["name"]:
        return document
    return {**document, "parentContexts": list(records.links_from(PARENT, document["name"]))}


# ------------------------------------------------------------------ subgraphs


def of_execution(records: Store, execution: str) -> Subgraph:
    """Return an execution with its artifacts and events."""
    found = Subgraph()
    _take(records, found, execution)
    for event in events_of(records, execution):
        found.events.append(event)
        _take(records, found, event["artifact"])
    return found


def of_context(records: Store, context: str) -> Subgraph:
    """Return the nodes that belong to a context, and the events between them."""
    found = Subgraph()
    for name in records.links_to(IN_CONTEXT, context):
        _take(records, found, name)
    for execution in found.executions:
        found.events += [event for event in events_of(records, execution) if event["artifact"] in found.artifacts]
    return found


def of_artifact(
    records: Store, artifact: str, hops: int | None = None, accepts: Callable[[dict[str, Any]], bool] | None = None
) -> Subgraph:  # fmt: skip
    """Return all nodes that an artifact was made from, and all that were made from it.

    Args:
        hops: the most events between the artifact and a node; None for no limit.
        accepts: whether an artifact, other than the one asked for, belongs to the result.
    """
    found, seen = Subgraph(), {artifact}
    queue = deque([(artifact, 0)])
    known: dict[tuple[str, str, str], dict[str, Any]] = {}
    while queue:
        name, distance = queue.popleft()
        document = records.get(name)
        is_artifact = f"/{ARTIFACTS}/" in name
        if document is None or (is_artifact and name != artifact and accepts is not None and not accepts(document)):
            continue
        _take(records, found, name)
        if hops is not None and distance >= hops:
            continue
        for event in events_at(records, name) if is_artifact else events_of(records, name):
            known[event["execution"], event["artifact"], event["type"]] = event
            other = event["execution"] if is_artifact else event["artifact"]
            if other not in seen:
                seen.add(other)
                queue.append((other, distance + 1))
    kept = {**found.artifacts, **found.executions}
    found.events = [event for event in known.values() if event["execution"] in kept and event["artifact"] in kept]
    return found


def events_of(records: Store, execution: str) -> list[dict[str, Any]]:
    """Return the events of an execution, its inputs first."""
    return [
        {"execution": execution, "artifact": name, "type": kind, **document}
        for kind in EVENTS
        for name, document in records.links_from(kind, execution).items()
    ]


def events_at(records: Store, artifact: str) -> list[dict[str, Any]]:
    """Return the events of an artifact, those of executions that made it last."""
    return [
        {"execution": name, "artifact": artifact, "type": kind, **document}
        for kind in EVENTS
        for name, document in records.links_to(kind, artifact).items()
    ]


def _take(records: Store, found: Subgraph, name: str) -> None:
    document = records.get(name)
    if document is not None:
        (found.artifacts if f"/{ARTIFACTS}/" in name else found.executions)[name] = document
