"""A managed data set: its sources, its first rows, and the reports on it."""

from __future__ import annotations

import csv
import glob
import itertools
from pathlib import Path
from typing import Any

from ...job import buckets
from ..app import View, Visit, page
from .files import address
from .jobs import named

_ROWS = 6


@page("GET", "/datasets/{number}")
def show(visit: Visit, number: str) -> View:
    """Show a data set."""
    dataset = visit.call("GetDataset", name=named(visit, "datasets", number))
    uris = _sources(dataset, visit.console.local.records.get(dataset["name"]) or {})
    files = [path for uri in uris for path in _files(visit, uri)]
    head = _head(files[0]) if files else []
    return View("dataset.html", {
        "active": "datasets", "dataset": dataset,
        "kind": dataset.get("metadataSchemaUri", "").rpartition("/")[2].partition("_")[0],
        "sources": [(uri, address(visit, uri)) for uri in uris], "head": head, "titled": bool(head) and not any(map(_is_number, head[0])),
        "reports": _reports(visit, files),
    })  # fmt: skip


def _sources(dataset: dict[str, Any], record: dict[str, Any]) -> list[str]:
    config = (dataset.get("metadata") or {}).get("inputConfig", {})
    found = list(config.get("gcsSource", {}).get("uri", []))
    found += [uri for uri in [config.get("bigquerySource", {}).get("uri")] if uri]
    for each in record.get("importConfigs", []):
        found += each.get("gcsSource", {}).get("uris", [])
    return found


def _files(visit: Visit, uri: str) -> list[Path]:
    if not uri.startswith("gs://"):
        return []
    try:
        pattern = buckets.to_path(uri, visit.console.local.buckets)
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


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _reports(visit: Visit, files: list[Path]) -> list[tuple[str, str]]:
    """Return (name, address) of the pages on the data that lie beside its files."""
    folders = {path.parent for path in files}
    found = sorted(page for folder in folders for page in folder.glob("*report*.html"))
    return [(page.name, address(visit, str(page))) for page in found]
