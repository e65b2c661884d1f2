"""Experiments: their runs side by side, parameters and metrics, curves over one another, and what each run used and made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .. import charts
from ..app import View, Visit, href, page
from ..text import last_part
from ..text import number as short
from .pipeline_jobs import linked

_SIZE = 100  # runs, and experiments, that are shown
_CURVES = 12  # runs whose curves are drawn over one another
_SERIES = 1000  # points of a time series that are asked for: a chart is about so many pixels wide


@page("GET", "/experiments")
def experiments(visit: Visit) -> View:
    """List the experiments."""
    found = _contexts(visit, 'schema_title="system.Experiment"')
    rows = [
        {"href": href(f"/experiments/{last_part(each['name'])}"), "created": each.get("createTime"), "name": each.get("displayName"),
         "runs": len(_runs(visit, each["name"])), "description": each.get("description")}
        for each in found
    ]  # fmt: skip
    return View("experiments.html", {"active": "experiments", "experiments": rows})


@page("GET", "/experiments/{name}")
def show(visit: Visit, name: str) -> View:
    """Show an experiment's runs beside one another."""
    context = visit.call("GetContext", name=_context_name(visit, name))
    runs = _runs(visit, context["name"])
    rows = [_row(visit, name, each) for each in runs]
    columns = {kind: list(dict.fromkeys(key for row in rows for key in row[kind])) for kind in ("parameters", "metrics")}
    return View("experiment.html", {
        "active": "experiments", "experiment": context, "number": name, "rows": rows, **columns,
        "differ": {key for key in columns["parameters"] if len({row["parameters"].get(key) for row in rows}) > 1},
        "charts": _curves(visit, rows),
    })  # fmt: skip


@page("GET", "/experiments/{name}/runs/{run}")
def run(visit: Visit, name: str, run: str) -> View:
    """Show one run: what went into it and what came of it."""
    context = visit.call("GetContext", name=_context_name(visit, run))
    row = _row(visit, name, context)
    graph = visit.call("QueryContextLineageSubgraph", context=context["name"])
    ways = {(each["artifact"], each["execution"]): each.get("type", "INPUT") for each in graph.get("events", [])}
    artifacts = {each["name"]: each for each in graph.get("artifacts", [])}
    executions = [
        {**each, "artifacts": [
            (way.lower(), _title(artifacts[artifact]), *linked(visit, artifacts[artifact]))
            for (artifact, execution), way in ways.items() if execution == each["name"] and artifact in artifacts
        ]}
        for each in graph.get("executions", [])
    ]  # fmt: skip
    loose = [(_title(each), *linked(visit, each)) for name, each in artifacts.items() if not any(artifact == name for artifact, _ in ways)]
    return View("experiment_run.html", {
        "active": "experiments", "run": context, "row": row, "number": name, "executions": executions, "artifacts": loose,
        "charts": _curves(visit, [row]),
    })  # fmt: skip


def _context_name(visit: Visit, name: str) -> str:
    return f"{visit.parent}/metadataStores/default/contexts/{name}"


def _contexts(visit: Visit, filter_: str) -> list[dict[str, Any]]:
    parent = f"{visit.parent}/metadataStores/default"
    if visit.local.records.get(parent) is None:  # nobody has logged anything yet
        return []
    return visit.call("ListContexts", parent=parent, filter=filter_, pageSize=_SIZE).get("contexts", [])


def _runs(visit: Visit, experiment: str) -> list[dict[str, Any]]:
    return _contexts(visit, f'schema_title="system.ExperimentRun" AND parent_contexts:"{experiment}"')


def _row(visit: Visit, experiment: str, context: Mapping[str, Any]) -> dict[str, Any]:
    metadata = context.get("metadata") or {}
    number = last_part(context["name"])
    return {
        "name": context.get("displayName") or number, "id": number, "href": href(f"/experiments/{experiment}/runs/{number}"),
        "state": str(metadata.get("_state", "")), "created": context.get("createTime"), "context": context["name"],
        "parameters": {key: short(value) for key, value in sorted((metadata.get("_params") or {}).items())},
        "metrics": {key: short(value) for key, value in sorted((metadata.get("_metrics") or {}).items())},
    }  # fmt: skip


def _curves(visit: Visit, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Return (metric, chart) of the time series that the runs logged into a TensorBoard instance."""
    series: dict[str, list[charts.Series]] = {}
    for row in rows[:_CURVES]:
        filter_ = f'in_context({json.dumps(row["context"])}) AND schema_title="google.VertexTensorboardRun"'
        parent = f"{visit.parent}/metadataStores/default"
        for artifact in visit.call("ListArtifacts", parent=parent, filter=filter_).get("artifacts", []):
            name = (artifact.get("metadata") or {}).get("resourceName", "")
            if visit.local.records.get(name) is None:
                continue
            for each in visit.call("ListTensorboardTimeSeries", parent=name).get("tensorboardTimeSeries", []):
                if each.get("valueType") == "SCALAR":
                    series.setdefault(each["displayName"], []).append(charts.Series(row["name"], _points(visit, each["name"])))
    return [(name, charts.lines(found)) for name, found in sorted(series.items())]


def _points(visit: Visit, name: str) -> list[tuple[float, float]]:
    answer = visit.call("ReadTensorboardTimeSeriesData", tensorboardTimeSeries=name, maxDataPoints=_SERIES)
    points = answer.get("timeSeriesData", {}).get("values", [])
    return [(float(each.get("step", 0)), float(each.get("scalar", {}).get("value", 0.0))) for each in points]


def _title(artifact: Mapping[str, Any]) -> str:
    return f"{artifact.get('schemaTitle', '').rpartition('.')[2]} {artifact.get('displayName', '')}".strip()
