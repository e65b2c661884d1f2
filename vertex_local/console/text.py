"""How the console writes times, sizes, numbers and names."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any

from ..job import times
from ..local.job_record import plain_state  # noqa: F401 - for the pages

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
# Okabe and Ito's palette, which people who see red and green alike can tell apart; black is left to the text.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")


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


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def number(value: Any) -> str:
    """Return a number with at most six digits that count; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def last_part(name: str) -> str:
    """Return a resource's id, the last part of its name."""
    return name.rpartition("/")[2]


def yaml(value: Any) -> str:
    """Return a document as YAML, in the order of its keys."""
    import yaml as pyyaml

    return pyyaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
