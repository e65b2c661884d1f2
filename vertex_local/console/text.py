"""How the console writes times, sizes, numbers and names."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any

from ..job import times

# Titles of the lists, in the navigation's order, by the API's names.
KINDS = {
    "customJobs": "Custom jobs",
    "hyperparameterTuningJobs": "Tuning jobs",
    "trainingPipelines": "Training pipelines",
    "pipelineJobs": "Pipelines",
    "batchPredictionJobs": "Batch predictions",
    "datasets": "Data sets",
    "models": "Models",
    "endpoints": "Endpoints",
}


def ago(when: Any) -> str:
    """Return how long ago a time was, `5 min ago`, and its day where that is more than one."""
    if not when:
        return ""
    seconds = times.seconds(when) if isinstance(when, str) else float(when)
    spent = max(0.0, time.time() - seconds)
    if spent < 86_400:
        unit, name = next((unit, name) for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if spent >= unit or unit == 1)
        return f"{int(spent // unit)} {name} ago"
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def duration(document: Mapping[str, Any]) -> str:
    """Return how long a job ran, or has been running for."""
    if not document.get("startTime"):
        return ""
    end = times.seconds(document["endTime"]) if document.get("endTime") else time.time()
    return times.describe(max(0.0, end - times.seconds(document["startTime"])))


def number(value: Any) -> str:
    """Return a number with at most six digits that count; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def as_number(text: str) -> float | None:
    """Return the number that a text is, None if it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def last_part(name: str) -> str:
    """Return a resource's id, the last part of its name."""
    return name.rpartition("/")[2]


def singular(kind: str) -> str:
    """Return what an RPC calls one of a kind: `customJobs` -> `CustomJob`."""
    return kind[0].upper() + kind[1:-1]


def dataset_kind(dataset: Mapping[str, Any]) -> str:
    """Return a data set's kind, `tabular` or `text`, by its schema's name."""
    return last_part(dataset.get("metadataSchemaUri", "")).partition("_")[0]


def yaml(value: Any) -> str:
    """Return a document as YAML, in the order of its keys."""
    import yaml as pyyaml

    return pyyaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
