"""A study to look at: an HTML page with Optuna's plots, and event files that fill TensorBoard's HParams view."""

from __future__ import annotations

import html
import re
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..job import times
from ..local.store import replace_text
from . import importance, measurements, trials, tuning_report
from .parameters import INTEGER, Parameter, walk
from .search import import_optuna
from .study import Study
from .trials import Trial

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.state { margin-top: .2rem; color: #555; } p.error { color: #b00020; } p.none { color: #777; }
pre { background: #f4f5f7; padding: .7rem 1rem; border-radius: 6px; overflow-x: auto; }
div.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap; }
th:nth-child(2), td:nth-child(2) { text-align: left; } td.why { text-align: left; white-space: normal; color: #b00020; }
tr.best { background: #e8f5e9; font-weight: 600; } tr.INFEASIBLE { color: #999; }
"""


# ------------------------------------------------------------------ the page


def write_report(study: Study, result: Any, path: Path) -> str | None:
    """Write the page, which needs no network; return why it cannot be written, or None."""
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        return f"it needs the package plotly: pip install '.[tune]' ({error})."
    replace_text(path, "\n".join(_page(study, result)))
    return None


def _page(study: Study, result: Any) -> Iterator[str]:
    title = html.escape(study.job.display_name)
    yield f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head><body>'
    states = [trial["state"] for trial in result.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trials"
    yield f'<h1>{title}</h1><p class="state">job {html.escape(result.job_id)}: {result.state}; {counts}</p>'
    if result.error:
        yield f'<p class="error">{html.escape(result.error)}</p>'
    for trial in (trial for trial in result.trials if trial["id"] in result.best):
        values = ", ".join(f"{name} {value:.6g}" for name, value in measurements.value_of(trial["finalMeasurement"]).items())
        lines = re.sub(r" ('?--)", r" \\\n  \1", result.commands[trial["id"]])
        yield f"<h2>Best: trial {trial['id']}, {html.escape(values)}</h2><pre>{html.escape(lines)}</pre>"
    scripts = True  # plotly's own, once
    for heading, figure in _figures(study, result.trials):
        yield f"<h2>{html.escape(heading)}</h2>"
        if isinstance(figure, str):
            yield f'<p class="none">{html.escape(figure)}</p>'
            continue
        options = {"displayModeBar": False, "responsive": True}
        yield figure.to_html(full_html=False, include_plotlyjs=scripts, config=options, default_height="460px")
        scripts = False
    yield "<h2>Trials, the best first</h2>" + _table(study, result)
    yield "</body></html>\n"


def _table(study: Study, result: Any) -> str:
    names = [parameter.id for parameter in walk(study.parameters)]
    head = ["trial", "state", *(metric.id for metric in study.metrics), "step", "seconds", *names]
    rows = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>"]
    for trial in tuning_report.ranked(study, result.trials):
        drawn, values = trials.parameters(trial), trials.final_values(trial) or {}
        final, spent = trial.get("finalMeasurement", {}), times.spent(trial)
        cells = [trial["id"], trial["state"], *(f"{values[m.id]:.6g}" if m.id in values else "" for m in study.metrics)]
        cells += [final.get("stepCount", ""), f"{spent:.1f}", *(_text(drawn.get(name, "-")) for name in names)]
        kind = "best" if trial["id"] in result.best else trial["state"]
        why = f'<td class="why">{html.escape(trial["infeasibleReason"])}</td>' if "infeasibleReason" in trial else ""
        rows.append(f'<tr class="{kind}">{"".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)}{why}</tr>')
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _figures(study: Study, everyone: Sequence[Trial]) -> Iterator[tuple[str, Any]]:
    """Yield (heading, figure) for each of Optuna's plots; a text that says why, instead of a figure that cannot be drawn."""
    optuna = import_optuna()
    shown, plots = importance.as_optuna(study, everyone), optuna.visualization
    several = len(study.objectives) > 1
    if several and len(study.objectives) <= 3:
        names = [metric.id for metric in study.objectives]
        yield "Best trade-offs", _drawn(lambda: plots.plot_pareto_front(shown, target_names=names))
    for i, metric in enumerate(study.objectives):
        target: dict[str, Any] = {"target_name": metric.id}
        if several:
            target["target"] = lambda trial, i=i: trial.values[i]
        name = f" of {metric.id}" if several else ""
        yield f"History{name}", _drawn(lambda: _count_from_one(plots.plot_optimization_history(shown, **target)))
        yield f"Importance{name}", _drawn(lambda: plots.plot_param_importances(shown, evaluator=importance.evaluator(), **target))
        yield f"Parallel coordinates{name}", _drawn(lambda: plots.plot_parallel_coordinate(shown, **target))


def _drawn(draw: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's, about experimental features
            figure = draw()
    except (ValueError, RuntimeError) as error:  # too few trials, or all alike
        return f"Not drawn: {error}"
    figure.update_layout(title=None, template="plotly_white", margin={"t": 50, "l": 70, "r": 60, "b": 50}, font={"size": 13})
    return figure if any(len(trace.x or ()) or getattr(trace, "dimensions", None) for trace in figure.data) else "No trial is done."


def _count_from_one(figure: Any) -> Any:
    """Number trials as the service does."""
    figure.for_each_trace(lambda trace: trace.update(x=[number + 1 for number in trace.x]))
    return figure


# ------------------------------------------------------------------ TensorBoard


def write_events(study: Study, trial: Trial, folder: Path) -> None:
    """Write a finished trial's parameters and values for TensorBoard, by hand: TensorBoard's writer would import TensorFlow."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    begin, end = times.seconds(trial["startTime"]), times.seconds(trial["endTime"])
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.trial-{trial['id']}"
    first = event_pb2.Event(wall_time=begin, file_version="brain.Event:2")
    with open(folder / name, "wb") as file:
        out = RecordWriter(file)
        for event in (first, *_session_events(study, trial, begin, end), *_value_events(trial, begin)):
            out.write(event.SerializeToString())


def _session_events(study: Study, trial: Trial, begin: float, end: float) -> Iterator[Any]:
    """Yield the events from which the HParams view knows a trial: the study, the trial's parameters, and its end."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

    ranges = [summary_v2.HParam(parameter.id, _domain(parameter)) for parameter in walk(study.parameters)]
    metrics = [summary_v2.Metric(metric.id) for metric in study.metrics]
    yield event_pb2.Event(wall_time=end, summary=summary_v2.hparams_config_pb(ranges, metrics, time_created_secs=0))
    values = summary_v2.hparams_pb(trials.parameters(trial), f"trial {trial['id']}", begin)
    yield event_pb2.Event(wall_time=end, summary=values)
    status = api_pb2.STATUS_SUCCESS if trial["state"] == trials.SUCCEEDED else api_pb2.STATUS_FAILURE
    part = plugin_data_pb2.HParamsPluginData(session_end_info=plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=end))
    event = event_pb2.Event(wall_time=end)
    about = metadata.create_summary_metadata(part)
    event.summary.value.add(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
    yield event


def _domain(parameter: Parameter) -> Any:
    """Return the values that a parameter may take, as TensorBoard has them."""
    from tensorboard.plugins.hparams import summary_v2

    if parameter.values:
        return summary_v2.Discrete(parameter.values)
    return (summary_v2.IntInterval if parameter.kind == INTEGER else summary_v2.RealInterval)(parameter.low, parameter.high)


def _value_events(trial: Trial, begin: float) -> Iterator[Any]:
    """Yield an event for each of a trial's measurements, and for the final one."""
    from tensorboard.compat.proto import event_pb2

    for prefix, measured in (("measurements/", trial["measurements"]), ("", filter(None, [trial.get("finalMeasurement")]))):
        for item in measured:
            event = event_pb2.Event(wall_time=begin + measurements.seconds(item), step=int(item["stepCount"]))
            for metric, value in measurements.value_of(item).items():
                event.summary.value.add(tag=f"{prefix}{metric}", simple_value=value)
            yield event
