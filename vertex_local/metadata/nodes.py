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


def of_context(records: Store, context: str) -> Subgraph:
    """Return the nodes that belong to a context, and the events between them."""
    found = Subgraph()
    for document in filter(None, map(records.get, records.links_to(IN_CONTEXT, context))):
        _take(found, document)
    for execution in found.executions:
        found.events += [event for event in events_of(records, execution) if event["artifact"] in found.artifacts]
    return found


def around(
    records: Store, start: str, hops: int | None = None, accepts: Callable[[dict[str, Any]], bool] | None = None
) -> Subgraph:  # fmt: skip
    """Return an artifact or an execution with all that it was made from, and all that was made from it.

    Args:
        hops: the most events between `start` and a node; None for no limit.
        accepts: whether an artifact, other than `start`, belongs to the result.
    """
    found, seen = Subgraph(), {start}
    queue = deque([(start, 0)])
    known: dict[tuple[str, str, str], dict[str, Any]] = {}
    while queue:
        name, distance = queue.popleft()
        document = records.get(name)
        if document is None or (_is_artifact(name) and name != start and accepts is not None and not accepts(document)):
            continue
        _take(found, document)
        if hops is not None and distance >= hops:
            continue
        for event in events_of(records, name):
            known[event["execution"], event["artifact"], event["type"]] = event
            other = event["execution"] if _is_artifact(name) else event["artifact"]
            if other not in seen:
                seen.add(other)
                queue.append((other, distance + 1))
    kept = {**found.artifacts, **found.executions}
    found.events = [event for event in known.values() if event["execution"] in kept and event["artifact"] in kept]
    return found


def events_of(records: Store, name: str) -> list[dict[str, Any]]:
    """Return the events of an execution or of an artifact, those in which an execution has read one first."""
    found = []
    for kind in EVENTS:
        links = records.links_to(kind, name) if _is_artifact(name) else records.links_from(kind, name)
        for other, document in links.items():
            execution, artifact = (other, name) if _is_artifact(name) else (name, other)
            found.append({"execution": execution, "artifact": artifact, "type": kind, **document})
    return found


def _is_artifact(name: str) -> bool:
    return f"/{ARTIFACTS}/" in name


def _take(found: Subgraph, document: dict[str, Any]) -> None:
    (found.artifacts if _is_artifact(document["name"]) else found.executions)[document["name"]] = document
