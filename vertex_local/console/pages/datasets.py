"""A managed data set: its sources, its first rows, and the reports on it."""

from __future__ import annotations

import csv
import glob
import itertools
from pathlib import Path
from typing import Any

from ...job import buckets
from ..app import View, Visit, page
from ..text import as_number, dataset_kind
from .files import address

_ROWS = 6


@page("GET", "/datasets/{number}")
def show(visit: Visit, number: str) -> View:
    """Show a data set."""
    dataset = visit.call("GetDataset", name=visit.name("datasets", number))
    uris = _sources(visit, dataset)
    files = [path for uri in uris for path in _files(visit, uri)]
    head = _head(files[0]) if files else []
    return View("dataset.html", {
        "active": "datasets", "dataset": dataset,
        "kind": dataset_kind(dataset),
        "sources": [(uri, address(visit, uri)) for uri in uris], "head": head,
        "titled": bool(head) and all(as_number(cell) is None for cell in head[0]), "reports": _reports(visit, files),
    })  # fmt: skip


def _sources(visit: Visit, dataset: dict[str, Any]) -> list[str]:
    """Return the URIs of a tabular data set's source, or of what was imported."""
    config = (dataset.get("metadata") or {}).get("inputConfig", {})
    table = config.get("bigquerySource", {}).get("uri")
    imports = visit.local.records.list("imports", dataset["name"])
    imported = [uri for each in imports for uri in each["config"]["gcsSource"]["uris"]]
    return [*config.get("gcsSource", {}).get("uri", []), *([table] if table else []), *imported]


def _files(visit: Visit, uri: str) -> list[Path]:
    if not uri.startswith("gs://"):
        return []
    try:
        pattern = buckets.to_path(uri, visit.local.buckets)
    except buckets.BucketError:
        return []
    return [Path(path) for path in sorted(glob.glob(str(pattern)))]


def _head(path: Path) -> list[list[str]]:
    """Return the first lines of a CSV file."""
    if path.suffix.lower() != ".csv":
        return []
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = [row[:40] for row in itertools.islice(csv.reader(file), _ROWS) if row]
    except (OSError, csv.Error):
        return []
    return rows if len(rows) > 1 else []


def _reports(visit: Visit, files: list[Path]) -> list[tuple[str, str]]:
    """Return (name, address) of the pages on the data that lie beside its files."""
    folders = {path.parent for path in files}
    found = sorted(page for folder in folders for page in folder.glob("*report*.html"))
    return [(page.name, address(visit, str(page))) for page in found]
