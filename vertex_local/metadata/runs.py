"""Runs as rows of text, to compare them: their records, found by folder, job or experiment run, and metrics with their spread."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vertex_runtime.tracking import nodes as run_nodes

from ..errors import UserError, quoted
from ..local.store import Store
from . import lineage, nodes

_SHOWN = 19  # characters of a checksum: sha256: and twelve digits
Rows = dict[str, str]


# ------------------------------------------------------------------ records


def of_folder(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the run, or of the trials' runs, in an output folder."""
    return [record for path in lineage.records_in(folder) if (record := lineage.read_record(path))]


def of_experiment_run(records: Store, root: Path, asked: str) -> tuple[list[dict[str, Any]], Rows]:
    """Return the records of an experiment's run, `EXPERIMENT/RUN`, and what clients have logged for it, as rows.

    Raises:
        UserError: there is no such run.
    """
    experiment, _, run = asked.partition("/")
    names = [f"{store['name']}/{nodes.CONTEXTS}/{experiment}-{run}" for store in records.list(nodes.STORES)]
    found = [context for name in names if (context := records.get(name))]
    if not found:
        known = sorted(each["name"].rpartition("/")[2] for each in records.list(nodes.CONTEXTS) if each["schemaTitle"].endswith("Run"))
        hint = f"; there are {', '.join(known[:5])}" if known else ""
        raise UserError(f"RUN: there is no run {quoted(run)} of an experiment {quoted(experiment)} here{hint}.")
    context, read = found[0], []
    for name in records.links_to(nodes.IN_CONTEXT, context["name"]):
        path = ((records.get(name) or {}).get("metadata") or {}).get("record")
        record = lineage.read_record(lineage.local_path(path, root)) if path else None
        read += [record] if record else []
    metadata = context.get("metadata", {})
    logged = {f"parameters.{name}": _text(value) for name, value in (metadata.get("_params") or {}).items()}
    logged |= {name: _text(value) for name, value in (metadata.get("_metrics") or {}).items()}
    return read, {"state": str(metadata.get("_state", "-")), **logged}


# ------------------------------------------------------------------ as rows


def asked(record: Mapping[str, Any]) -> Rows:
    """Return what went into a run: parameters, data, code and environment."""
    rows = {f"parameters.{name}": _text(value) for name, value in run_nodes.parameters(record).items()}
    rows |= _data(record["data"])
    code = record.get("code") or {}
    rows |= {f"code.{name}": _text(code.get(name)) for name in ("commit", "changed", "source_sha256", "version")}
    rows |= {f"environment.{name}": _text(value) for name, value in (record.get("versions") or {}).items()}
    rows |= {f"environment.{name}": _text(value) for name, value in (record.get("machine") or {}).items()}
    return rows


def _data(files: Sequence[Mapping[str, Any]]) -> Rows:
    """Return a row for each file: under its name if no other file has the same, else under its address."""
    count = Counter(_name(file) for file in files)
    rows = {}
    for file in files:
        name = _name(file) if count[_name(file)] == 1 else file["uri"]
        rows[f"data {name}"] = f"{file['checksum'][:_SHOWN]} {'+'.join(file['parts'])} {file['uri']}"
    return rows


def _name(file: Mapping[str, Any]) -> str:
    return file["uri"].rstrip("/").rpartition("/")[2]


def went(record: Mapping[str, Any]) -> Rows:
    """Return how a run went."""
    return {"state": str(record["state"]), "start": str(record["started"])[:19], "duration": f"{record['duration_seconds']:g} s"}


def metrics(records: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the final metrics with their spread: over the trials if there are several, else over the run's evaluations."""
    best = _best(records)
    rows = {}
    for name, value in (best.get("metrics") or {}).items():
        if not isinstance(value, (int, float)):
            continue
        if len(records) > 1:
            values, over = [record["metrics"][name] for record in records if name in (record.get("metrics") or {})], "trials"
        else:
            evaluations = best.get("evaluations") or ()
            values, over = [each["metrics"][name] for each in evaluations if name in each["metrics"]], "evaluations"
        rows[name] = f"{value:.6g}{_spread(values, over)}"
    return rows


def _best(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the run with the best objective."""
    first = records[0]
    objective, sign = first.get("objective", ""), -1 if first.get("maximize") else 1
    return min(records, key=lambda record: sign * (record.get("metrics") or {}).get(objective, sign * math.inf))


def _spread(values: Sequence[float], over: str) -> str:
    return f" ({min(values):.6g} to {max(values):.6g}, {len(values)} {over})" if len(values) > 1 else ""


def differing(one: Rows, other: Rows) -> list[str]:
    """Return the names of rows that differ, in the order in which they come."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # protobuf's Struct has no integers
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
