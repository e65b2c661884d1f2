"""TensorBoard instances as records: experiments, their runs, the runs' time series and their points.

Names are full ones: `projects/P/locations/L/tensorboards/T/experiments/E/runs/R/timeSeries/S`. Functions need only the
records: the service's RPCs use them, and so does what reads a job's event files.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..job.times import now
from ..local.store import Store
from . import nodes

TENSORBOARDS, EXPERIMENTS, RUNS, SERIES = "tensorboards", "experiments", "runs", "timeSeries"


def id_of(text: str) -> str:
    """Return an id made from a folder's or a job's name: small letters, digits and '-', not empty."""
    return re.sub("[^a-z0-9-]", "-", text.lower()).strip("-")[:128] or "default"


def scalars_of(records: Store, run: str, display_name: str) -> dict[str, Any]:
    """Return a run's time series of scalars of that display name; make it if it is missing."""
    for known in records.list(SERIES, run):
        if known["displayName"] == display_name:
            return known
    document = {"displayName": display_name, "valueType": "SCALAR", "pluginName": "scalars"}
    return nodes.ensure(records, run, SERIES, secrets.token_hex(10), document)


def write(records: Store, series: str, points: Iterable[Mapping[str, Any]]) -> None:
    """Record points in the form of the API's TimeSeriesDataPoint; a later point of a step replaces an earlier one."""
    by_step = [(int(point.get("step", 0)), point) for point in points]
    if not by_step:
        return
    records.write_points(series, by_step)
    last, newest = max(step for step, _ in by_step), max(point.get("wallTime", "") for _, point in by_step)

    def reach(document: dict[str, Any]) -> None:
        known = document.get("metadata", {})
        reached = {"maxStep": str(max(last, int(known.get("maxStep", 0)))), "maxWallTime": max(newest, known.get("maxWallTime", ""))}
        document.update(metadata={**known, **reached}, updateTime=now())

    records.change(series, reach)


def thinned(points: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return at most `most` points, evenly spaced, with the first and the last one."""
    if len(points) <= most:
        return list(points)
    if most == 1:
        return [points[-1]]
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]
