"""A run as ML Metadata sees it: an execution that has read the artifacts of its data and made that of its model.

    nodes = of_run(json.load(open("run.json")))

Ids follow from what a node is, so that everybody who records a run, the trainer or the service, means the same nodes, and
runs that read the same file share its artifact. It needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import math
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

MOST_FILES = 50  # artifacts of single files; more of them are one artifact for each part of the data
STATES = {"running": "RUNNING", "finished": "COMPLETE", "out of time": "COMPLETE", "interrupted": "CANCELLED", "failed": "FAILED"}
JOB, OTHER = "system.CustomJobExecution", "system.ContainerExecution"
DATASET, MODEL = "system.Dataset", "system.Model"
VERSION = "0.0.1"  # of these schemas


def of_run(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nodes of a run: `execution`, and the lists `inputs` and `outputs` of artifacts.

    Each node has id, schemaTitle, schemaVersion, displayName and metadata, as the API's JSON has them; artifacts have a uri.

    Args:
        record: what `run.json` holds.
    """
    return {
        "execution": _execution(record),
        "inputs": _datasets(record["data"]),
        "outputs": [_model(record)] if record.get("model") else [],
    }


def _execution(record: Mapping[str, Any]) -> dict[str, Any]:
    job = record.get("job") or {}
    code = record.get("code") or {}
    metadata = {
        "run": record["id"], "trainer": record["trainer"], "record": record["outputs"]["records"] + "/run.json",
        "started": record["started"], "duration_seconds": record["duration_seconds"],
        "job": job.get("id"), "trial": job.get("trial"), "pipeline": job.get("pipeline"),
        "commit": code.get("commit"), "changed": code.get("changed"), "source_sha256": code.get("source_sha256"),
        "package_version": code.get("version"), "seed": record["seed"],
        "parameters": parameters(record), "metrics": metrics(record),
        "versions": record["versions"], "experiment": record.get("experiment"),
    }  # fmt: skip
    name = record["trainer"] + (f" {job['id']}" if job.get("id") else "") + (f"/{job['trial']}" if job.get("trial") else "")
    return {
        "id": f"run-{record['id']}", "schemaTitle": JOB if job.get("id") else OTHER, "schemaVersion": VERSION, "displayName": name,
        "state": STATES.get(record["state"], "STATE_UNSPECIFIED"),
        "metadata": {key: value for key, value in metadata.items() if value is not None},
    }  # fmt: skip


def parameters(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's hyperparameters as numbers and texts."""
    kept = record["hyperparameters"].items()
    return {name: value if isinstance(value, (bool, int, float, str)) else _text(value) for name, value in kept}


def metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's final metrics; JSON has no numbers that are not finite, so those are texts."""
    found = (record.get("metrics") or {}).items()
    return {name: value if math.isfinite(value) else str(value) for name, value in found}


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _datasets(files: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if len(files) <= MOST_FILES:
        return [_dataset(file["uri"], file["checksum"], file["bytes"], file["parts"], 1) for file in files]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for file in files:
        groups.setdefault(tuple(file["parts"]), []).append(file)
    return [_group(parts, group) for parts, group in groups.items()]


def _group(parts: Sequence[str], files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one artifact for many files: where all of them lie, and a checksum of theirs."""
    uris = sorted(file["uri"] for file in files)
    lines = "".join(sorted(f"{file['uri']} {file['checksum']}\n" for file in files))
    total = sum(file["bytes"] for file in files)
    checksum = f"sha256-of-list:{hashlib.sha256(lines.encode()).hexdigest()}"
    return _dataset(posixpath.commonprefix([uris[0], uris[-1]]).rpartition("/")[0] + "/", checksum, total, parts, len(files))


def _dataset(uri: str, checksum: str, size: int, parts: Sequence[str], count: int) -> dict[str, Any]:
    return {
        "id": _id("data", uri, checksum), "schemaTitle": DATASET, "schemaVersion": VERSION,
        "displayName": posixpath.basename(uri.rstrip("/")) or uri, "uri": uri, "state": "LIVE",
        "metadata": {"checksum": checksum, "bytes": size, "files": count, "parts": " ".join(parts)},
    }  # fmt: skip


def _model(record: Mapping[str, Any]) -> dict[str, Any]:
    model = record["model"]
    return {
        "id": _id("model", model["uri"], model["checksum"]), "schemaTitle": MODEL, "schemaVersion": VERSION,
        "displayName": f"{record['trainer']} model", "uri": model["uri"], "state": "LIVE",
        "metadata": {
            "checksum": model["checksum"], "framework": "TensorFlow", "framework_version": record["versions"].get("tensorflow", ""),
            "signature": model["signature"], "run": record["id"],
        },
    }  # fmt: skip


def _id(kind: str, *made_of: str) -> str:
    return f"{kind}-{hashlib.sha256(' '.join(made_of).encode()).hexdigest()[:40]}"
