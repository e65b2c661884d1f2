"""An evaluation as a page: one file of HTML with its plots as SVG in it, which needs no network, no script and no library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ..pages import cell, head, table
from . import charts, parts
from .problem import BINARY, MULTICLASS, REGRESSION
from .run import KIND, verdict
from .slices import Bucketing, by_bucket

SHOWN = 20  # slices in the table; the others are folded away
STYLE = (
    charts.STYLE
    + """
.two { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; } .two > * { max-width: 100%; }
.swatch { display: inline-block; width: .9em; height: .7em; margin-right: .4em; border-radius: 2px; }
.matrix td, .matrix th { padding: .25rem .5rem; text-align: right; border: 1px solid var(--line); min-width: 2.6rem; }
.matrix th { white-space: nowrap; } .few td { color: var(--faint); } .better { color: var(--c); } .worse { color: var(--warn); }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .8rem; }
.examples figure { margin: 0; background: var(--card); border-radius: 8px; padding: .6rem; font-size: .87rem; }
.examples img { width: 100%; image-rendering: pixelated; border-radius: 4px; } .said { margin: .1rem 0; }
.words { margin: .35rem 0; overflow-wrap: anywhere; } .words mark { padding: .05rem .1rem; } .words b { font-weight: 600; }
td.span { white-space: nowrap; } td.text { text-align: left; min-width: 18rem; max-width: 46rem; overflow-wrap: anywhere; }
mark { color: inherit; border-radius: 3px; }
"""
)


def page(report: Mapping[str, Any], plots: Mapping[str, Any]) -> str:
    """Return the page of an evaluation: `report` is what evaluation.json holds, `plots` what judging.py keeps for drawing."""
    return "\n".join(_page(report, plots)) + "\n"


def _page(report: Mapping[str, Any], plots: Mapping[str, Any]) -> Iterator[str]:
    title = f"Evaluation of {escape(str(report['about'].get('trainer', 'a model')))}"
    yield head(title, KIND, STYLE) + _subtitle(report)
    yield from _findings(report)
    yield "<h2>Metrics</h2>" + _metrics(report) + _legend(report)
    if report["kind"] == REGRESSION:
        yield from parts.regression(report, plots)
    elif report["kind"] in (BINARY, MULTICLASS):
        yield from parts.classes(report, plots)
    yield from _slices(report)
    yield from _by_column(report, plots)
    yield from _changes(report)
    yield from parts.examples(report, plots)
    yield from parts.explanations(report, plots)
    yield from _record(report)
    yield _method(report) + "</main></body></html>"


def _subtitle(report: Mapping[str, Any]) -> str:
    data, about = report["data"], report["about"]
    what = f"{report['kind']} of {about['label']}" if report["kind"] != "other" else about["label"]
    kept = f", of which {about['rows_kept']:,} were drawn for what is not a sum" if about["rows_kept"] < data["rows"] else ""
    weights = "; rows count by their weights" if about["weighted"] else ""
    return f'<p class="faint">{escape(report["model"])}: {escape(what)} on {data["rows"]:,} rows{kept}{weights}</p>'


# ------------------------------------------------------------------ what there is to say


def _findings(report: Mapping[str, Any]) -> Iterator[str]:
    lines = []
    for column in report["about"]["drifted"]:
        distance = report["skew"][column]
        lines.append(("warning", f"{column} differs from the training rows: distance {distance:.2f} of 0 (alike) to 1."))
    if report["against"]:
        paired = report["against"]["paired"]
        worse = bool(paired) and paired["interval"][0] > 0
        lines.append(("warning" if worse else "note", verdict(report)[:1].upper() + verdict(report)[1:] + "."))
    certain = [each for each in report["slices"] if not each["few"]]
    mean = report["metrics"].get("loss")
    if certain and mean is not None and certain[0]["interval"][0] > mean:
        worst = certain[0]
        name, value = parts.measure(report["about"]["loss"], worst["metrics"]["loss"])
        overall = parts.measure(report["about"]["loss"], mean)[1]
        text = f"The worst slice is {worst['column']} {worst['value']} ({worst['rows']:,} rows): {name} {value:.4g}, {overall:.4g} overall."
        lines.append(("note", text))
    if lines:
        items = "".join(f'<li class="{level}">{escape(text)}</li>' for level, text in lines)
        yield f"<h2>In short</h2><ul>{items}</ul>"


def _metrics(report: Mapping[str, Any]) -> str:
    other = report["against"]
    names = ["metric", "this model"] + (["the other", "difference"] if other else [])
    rows = []
    for name, value in report["metrics"].items():
        if name == "loss" and report["objective"] != "loss":
            continue
        shown = f"<b>{escape(name)}</b>" if name == report["objective"] else escape(name)
        row = [f'<td class="left">{shown}</td>', f"{value:.5g}" if value is not None else "-"]
        if other:
            theirs = other["metrics"].get(name)
            row += ["-", "-"] if theirs is None or value is None else [f"{theirs:.5g}", _difference(report, name, value - theirs)]
        rows.append(row)
    return table(names, rows) if rows else "<p>Nothing that is known here can be measured of these answers.</p>"


def _difference(report: Mapping[str, Any], name: str, value: float) -> str:
    kind = ""
    if name == report["objective"] and value:
        kind = "better" if (value > 0) == report["maximize"] else "worse"
    return cell(kind, f"{value:+.3g}")


def _legend(report: Mapping[str, Any]) -> str:
    if not report["against"]:
        return ""
    marks = (("--a", report["model"]), ("--b", report["against"]["model"]))
    items = [f'<span><i class="swatch" style="background: var({color})"></i>{escape(name)}</span>' for color, name in marks]
    return f'<p class="legend">{"".join(items)}</p>'


# ------------------------------------------------------------------ slices


def _slices(report: Mapping[str, Any]) -> Iterator[str]:
    found = report["slices"]
    if not found:
        return
    yield "<h2>Slices, the worst first</h2>"
    yield _slice_table(report, found[:SHOWN])
    if found[SHOWN:]:
        yield f"<details><summary>All other slices ({len(found) - SHOWN})</summary>{_slice_table(report, found[SHOWN:])}</details>"


def _slice_table(report: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    loss, objective = report["about"]["loss"], report["objective"]
    name = parts.measure(loss, 0.0)[0]
    extra = [] if objective == name else [objective]
    rows = []
    for each in found:
        low, high = (parts.measure(loss, end)[1] for end in each["interval"])
        value = parts.measure(loss, each["metrics"]["loss"])[1]
        few = ' <span class="faint">(few rows)</span>' if each["few"] else ""
        metrics = [f"{each['metrics'][key]:.4g}" if each["metrics"].get(key) is not None else "-" for key in extra]
        cells = [cell("left", each["column"]), f'<td class="place">{escape(each["value"])}{few}</td>']
        rows.append([*cells, f"{each['rows']:,}", f"{value:.4g}", _span(low, high), *metrics])
    return table(["column", "value", "rows", name, "95 % interval", *map(escape, extra)], rows)


def _span(low: float, high: float, sign: str = "") -> str:
    return cell("span", f"{low:{sign}.3g} to {high:{sign}.3g}")


def _by_column(report: Mapping[str, Any], plots: Mapping[str, Any]) -> Iterator[str]:
    if not report["about"]["output"] or not plots["buckets"]:
        return
    name = parts.measure(report["about"]["loss"], 0.0)[0]
    yield f'<h2>{escape(name[:1].upper() + name[1:])} by column</h2><div class="cards">'
    for buckets in plots["buckets"]:
        yield f'<section class="card"><h3>{escape(buckets.column)}</h3>{_bucket_chart(report, plots, buckets)}</section>'
    yield "</div>"


def _bucket_chart(report: Mapping[str, Any], plots: Mapping[str, Any], buckets: Bucketing) -> str:
    problem, loss = plots["problem"], report["about"]["loss"]
    theirs = {each["value"]: each for each in by_bucket(problem, plots["theirs"], buckets)} if plots["theirs"] else {}
    rows = []
    for each in by_bucket(problem, plots["judged"], buckets):
        if "loss" not in each["metrics"]:
            continue
        low, high = (parts.measure(loss, end)[1] for end in each["interval"])
        told = f"{parts.measure(loss, each['metrics']['loss'])[1]:.3g}, {each['rows']:,} rows"
        if "bias" in each["metrics"]:
            told = f"{told}, bias {each['metrics']['bias']:+.2g}"
        other = theirs.get(each["value"], {}).get("metrics", {}).get("loss")
        rows.append({
            "name": each["value"], "value": parts.measure(loss, each["metrics"]["loss"])[1], "low": low, "told": told,
            "high": high if not each["few"] and math.isfinite(high) else None,
            "second": parts.measure(loss, other)[1] if other is not None else None,
        })  # fmt: skip
    overall = parts.measure(loss, report["metrics"]["loss"])[1]
    return charts.bars(rows, overall, f"{parts.measure(loss, 0.0)[0]} by {buckets.column}; the dashed line is that of all rows")


def _changes(report: Mapping[str, Any]) -> Iterator[str]:
    found = report["details"].get("changes")
    if not found:
        return
    yield "<h2>Where the two models differ for certain</h2>"
    rows = []
    for each in found[:30]:
        low, high = each["interval"]
        kind = "worse" if each["difference"] > 0 else "better"
        cells = [cell("left", each["column"]), cell("place", each["value"]), f"{each['rows']:,}"]
        rows.append([*cells, cell(kind, f"{each['difference']:+.3g}"), _span(low, high, "+")])
    yield table(["column", "value", "rows", f"mean {escape(report['about']['loss'])}, difference", "95 % interval"], rows)


# ------------------------------------------------------------------ the record


def _record(report: Mapping[str, Any]) -> Iterator[str]:
    if report["skew"]:
        yield "<h2>Distance from the training rows</h2>"
        ordered = sorted(report["skew"].items(), key=lambda each: -each[1])
        drifted = report["about"]["drifted"]
        cells = [[escape(name), cell("drifts", f"{value:.3f} !") if name in drifted else f"{value:.3f}"] for name, value in ordered]
        yield table(["column", "distance"], cells)
    elif report["skew"] is None:
        yield '<p class="faint">No profile of the training rows is kept with the model, so skew was not measured.</p>'
    yield "<h2>Rows and signature</h2>"
    files = report["data"]["files"]
    rows = [[cell("place", each["path"]), f"{each['bytes']:,}", escape(each["checksum"][:23]) + "…"] for each in files[:50]]
    more = f" and {len(files) - 50} more" if len(files) > 50 else ""
    yield f"<details><summary>Files ({len(files)}{more})</summary>{table(['file', 'bytes', 'checksum'], rows)}</details>"
    signature = report["signature"]
    rows = [
        [cell("left", side[:-1]), cell("left", name), f"{spec['dtype']} {_shape(spec['shape'])}"]
        for side in ("inputs", "outputs")
        for name, spec in signature[side].items()
    ]
    yield f"<details><summary>Signature</summary>{table(['', 'name', 'type'], rows)}</details>"


def _shape(shape: Sequence[int | None] | None) -> str:
    sizes = ["any" if size is None else str(size) for size in shape or ()]
    return f"[{', '.join(['rows', *sizes[1:]] if sizes else [])}]"


def _method(report: Mapping[str, Any]) -> str:
    about = report["about"]
    test = "Two models are compared by Student's paired t test of the differences of their losses, row by row. "
    return (
        '<h2>How it was measured</h2><p class="faint">'
        f"The exported model was asked by its served signature. The loss of a row is the {escape(about['loss'])}. "
        "Slices are parts of the rows by the values of one column: numbers in eight buckets of about equal rows, or by value where there "
        "are no more than twelve. They are ordered by the lower end of the 95 % interval of their mean loss, those of fewer than 30 rows "
        "last: that end is what is certain of a slice. With many slices one in twenty intervals misses by chance. "
        f"{test if report['against'] else ''}Skew is the Jensen-Shannon distance of the data report, 0 (alike) to 1; it is warned of "
        "from 0.1 on, where chance does not explain it.</p>"
    )
