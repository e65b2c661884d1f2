"""A pipeline's tasks as a graph in SVG, drawn from what it was compiled to and from how far its run has come."""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT, GAP, STEP = 190, 40, 22, 74  # of a node, and between nodes and layers
_ITERATION = re.compile(r"-iteration-\d+(?=\.|$)")
# Of several runs of one task, as those of a loop, the first of these that one of them has is shown.
_ORDER = ("FAILED", "RUNNING", "PENDING", "CANCELLED", "SUCCEEDED", "SKIPPED", "NOT_TRIGGERED")


@dataclass(frozen=True)
class Node:
    """A task: its name below those it is a part of, what it waits for, and whether it is a group of others."""

    name: str
    title: str
    after: tuple[str, ...]
    is_group: bool


def nodes(spec: Mapping[str, Any]) -> list[Node]:
    """Return the tasks of a compiled pipeline, groups before what is in them."""
    return list(_within(spec, spec["root"], "", ()))


def _within(spec: Mapping[str, Any], component: Mapping[str, Any], above: str, before: tuple[str, ...]) -> Iterator[Node]:
    for name, task in sorted(component.get("dag", {}).get("tasks", {}).items()):
        full = f"{above}{name}"
        after = tuple(f"{above}{other}" for other in task.get("dependentTasks", [])) or before
        inner = spec.get("components", {}).get(task.get("componentRef", {}).get("name", ""), {})
        yield Node(full, task.get("taskInfo", {}).get("name", name), after, "dag" in inner)
        if "dag" in inner:
            yield from _within(spec, inner, f"{full}.", (full,))


def states(details: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the state of each task by its name; iterations of a loop count as one task."""
    found: dict[str, set[str]] = defaultdict(set)
    for detail in details:
        found[_ITERATION.sub("", detail.get("taskUniqueName", detail["taskName"]))].add(detail["state"])
    return {name: min(all_, key=lambda state: _ORDER.index(state) if state in _ORDER else 0) for name, all_ in found.items()}


def drawn(tasks: Sequence[Node], known: Mapping[str, str]) -> Markup:
    """Return the graph; a task's box leads to its row, `#task-NAME`."""
    if not tasks:
        return Markup("")
    layers = _layers(tasks)
    rows: dict[int, list[Node]] = defaultdict(list)
    for node in tasks:
        rows[layers[node.name]].append(node)
    width = max(len(row) for row in rows.values()) * (WIDTH + GAP) + GAP
    places = {}
    for layer, row in sorted(rows.items()):
        row.sort(key=lambda node: _above(node, places, width))
        left = (width - len(row) * (WIDTH + GAP) + GAP) / 2
        for i, node in enumerate(row):
            places[node.name] = (left + i * (WIDTH + GAP), 10 + layer * STEP)
    height = (max(rows) + 1) * STEP
    size = f'viewBox="0 0 {width:.0f} {height}" width="{width:.0f}"'
    parts = [f'<svg class="graph" {size} role="img" aria-label="the tasks of the pipeline">']
    parts += [_edge(places[other], places[node.name]) for node in tasks for other in _direct(node, tasks)]
    skipped = tuple(f"{name}." for name, state in known.items() if state == "NOT_TRIGGERED")
    for node in tasks:
        state = known.get(node.name, "NOT_TRIGGERED" if node.name.startswith(skipped) else "")
        parts.append(_box(node, places[node.name], state))
    return Markup("".join(parts) + "</svg>")


def _layers(tasks: Sequence[Node]) -> dict[str, int]:
    """Return each task's layer: one below the lowest of what it waits for; after a group come all that is in it."""
    found: dict[str, int] = {}
    known = {node.name: node for node in tasks}
    inside = {node.name: [other.name for other in tasks if other.name.startswith(f"{node.name}.")] for node in tasks if node.is_group}

    def layer(name: str) -> int:
        if name not in found:
            found[name] = 0  # of a pipeline that waits for itself, which no compiler makes
            waits = [other for other in known[name].after if other in known]
            if not any(name.startswith(f"{other}.") for other in waits):
                waits += [each for other in waits for each in inside.get(other, [])]
            found[name] = 1 + max((layer(other) for other in waits), default=-1)
        return found[name]

    for node in tasks:
        layer(node.name)
    return found


def _direct(node: Node, tasks: Sequence[Node]) -> list[str]:
    """Return what a task waits for without what those already wait for themselves."""
    waits = {each.name: each.after for each in tasks}
    implied: set[str] = set()
    left = {above for other in node.after for above in waits.get(other, ())}
    while left:
        implied |= left
        left = {above for name in left for above in waits.get(name, ())} - implied
    return [other for other in node.after if other in waits and other not in implied]


def _above(node: Node, places: Mapping[str, tuple[float, float]], width: float) -> float:
    """Return where a node would best stand: below the middle of what it waits for."""
    given = [places[other][0] for other in node.after if other in places]
    return sum(given) / len(given) if given else width / 2


def _edge(begin: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1, x2, y2 = begin[0] + WIDTH / 2, begin[1] + HEIGHT, end[0] + WIDTH / 2, end[1]
    middle = (y1 + y2) / 2
    return f'<path class="edge" d="M{x1:.0f},{y1:.0f} C{x1:.0f},{middle:.0f} {x2:.0f},{middle:.0f} {x2:.0f},{y2:.0f}"/>'


def _box(node: Node, place: tuple[float, float], state: str) -> str:
    name, title = html.escape(node.name, quote=True), html.escape(node.title if len(node.title) < 27 else node.title[:25] + "…")
    shape = "group" if node.is_group else ""
    x, y = place
    said = state.lower().replace("_", " ") or "waits"
    return (
        f'<a href="#task-{name}"><rect class="node {shape} {state}" x="{x:.0f}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{x + 10:.0f}" y="{y + 17}">{title}</text><text class="state" x="{x + 10:.0f}" y="{y + 33}">{said}</text>'
        f"<title>{name}</title></a>"
    )
