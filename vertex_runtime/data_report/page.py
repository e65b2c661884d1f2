"""A data report as a page: one file of HTML with its plots as SVG in it, which needs no network, no script and no library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ..pages import cell, clipped, head, svg, table, ticks
from .findings import is_warned_of, summary
from .parts import day
from .report import KIND

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 520, 190, 46, 24, 8  # of a histogram, and what its axes take of it
THICK, TOLD = 17, 32  # of bars: the height of a value's, and the width of each number beside them


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a report, as `Report.as_json` gives it."""
    return "\n".join(_page(report)) + "\n"


def _page(report: Mapping[str, Any]) -> Iterator[str]:
    about, parts = report.get("about", {}), report["parts"]
    title = f"Data of {escape(str(about.get('trainer', 'a trainer')))}"
    rows = ", ".join(f"{part['rows']:,} rows of {name}" for name, part in parts.items())
    yield f'{head(title, KIND)}<p class="faint">{escape(rows)}{"; synthetic sample data" if about.get("synthetic") else ""}</p>'
    yield "<h2>Findings</h2>"
    found = report["findings"]
    lines = [
        f'<li class="{one["level"]}"><b>{one["level"].title()}, {escape(one["check"])}:</b>{escape(one["message"])}</li>' for one in found
    ]
    yield f"<ul>{''.join(lines)}</ul>" if lines else "<p>Nothing to warn of.</p>"
    yield "<h2>Parts</h2>" + _parts(report)
    yield from _places(report)
    yield "<h2>Columns</h2>" + _legend(list(parts)) + _overview(report)
    yield '<div class="cards">'
    ordered = sorted(report["columns"].items(), key=lambda entry: entry[1]["role"] != "label")
    for i, (name, said) in enumerate(ordered):
        yield _card(i, name, said, parts)
    yield "</div>" + _method(about) + "</main></body></html>"


def _share(found: Mapping[str, Any]) -> str:
    if not found["count"]:
        return "0"
    return f"{'' if found['exact'] else 'about '}{found['count']:,} ({found['share']:.2%})"


def _parts(report: Mapping[str, Any]) -> str:
    rows = []
    for name, part in report["parts"].items():
        among = [f"{_share(pair['equal'])} in {pair['among']}" for pair in report["pairs"] if pair["of"] == name]
        whole = f"{part['rows']:,}" if part["complete"] else f"the first {part['rows']:,}"
        files = [str(path) for path in report.get("about", {}).get("files", {}).get(name, [])]
        listed = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        cells = [escape(name), whole, f"{part['bad_rows']['count']:,}", _share(part["duplicates"]), _share(part["conflicts"])]
        rows.append([*cells, "<br>".join(among) or "-", cell("place", listed)])
    return table(["part", "rows", "bad rows", "repeated rows", "inputs with several labels", "rows also", "files"], rows)


def _places(report: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        [f"{escape(pair['of'])} in {escape(pair['among'])}: {what}", *(cell("place", place) for place in places)]
        for pair in report["pairs"]
        for key, what in (("equal", "equal"), ("conflicts", "other label"))
        for places in pair[key]["first"]
    ]
    for name, part in report["parts"].items():
        for key, what in (("duplicates", "repeated"), ("conflicts", "other label")):
            rows += [[f"{escape(name)}: {what}", *(cell("place", place) for place in places)] for places in part[key]["first"]]
    if rows:
        yield f"<details><summary>Where rows are equal: the first of each kind ({len(rows)})</summary>"
        yield table(["what", "row", "other row"], rows) + "</details>"
    for name, part in report["parts"].items():
        first = part["bad_rows"]["first"]
        if first:
            bad = [[cell("place", one[key]) for key in ("place", "reason", "value")] for one in first]
            yield f"<details open><summary>The first bad rows of {escape(name)} ({len(bad)} of {part['bad_rows']['count']:,})</summary>"
            yield table(["place", "what is wrong", "value"], bad) + "</details>"


def _legend(parts: Sequence[str]) -> str:
    box = '<svg viewBox="0 0 26 12" aria-hidden="true"><rect class="p{}" x="1" y="1" width="24" height="10"/></svg>'
    marks = [f"<span>{box.format(i)}{escape(name)}</span>" for i, name in enumerate(parts)]
    return f'<p class="legend">{"".join(marks)}</p>'


def _drift(said: Mapping[str, Any], other: str) -> str:
    drift = said["drift"].get(other)
    if drift is None:
        return "-"
    number = f"{drift['distance']:.3f}"
    return cell("drifts", f"{number} !") if is_warned_of(said, other) else number


def _overview(report: Mapping[str, Any]) -> str:
    first, *others = report["parts"] or [""]
    rows = []
    numbers = {name: i for i, (name, _) in enumerate(sorted(report["columns"].items(), key=lambda entry: entry[1]["role"] != "label"))}
    for name, said in report["columns"].items():
        figures = said["parts"].get(first, {})
        kind = said["kind"] + ("" if said["role"] == "input" else f", {said['role']}")
        link = f'<a href="#column-{numbers[name]}">{escape(name)}</a>'
        missing = [f"{said['parts'].get(part, {}).get('missing', 0):,}" for part in report["parts"]]
        what = cell("left", summary(said["kind"], figures))
        rows.append([link, cell("left", kind), what, *missing, *(_drift(said, other) for other in others)])
    missing = [f"missing, {escape(part)}" for part in report["parts"]]
    return table(["column", "kind", f"in {escape(first)}", *missing, *(f"drift, {escape(other)}" for other in others)], rows)


def _card(number: int, name: str, said: Mapping[str, Any], parts: Sequence[str]) -> str:
    role = "" if said["role"] == "input" else f", {said['role']}"
    shape = f" {said['shape']}" if "shape" in said else ""
    unit = {"text": ", length in bytes", "image": ", width x height"}.get(said["kind"], "")
    plot = said["plot"]
    drawn = _histogram(name, said["kind"], plot, parts) if plot and "edges" in plot else _bars(name, plot, parts) if plot else ""
    if plot and "values" in plot and said["kind"] == "text":
        unit = ""
    lines = []
    for other, drift in said["drift"].items():
        if drift:
            text = f"Drift of {escape(other)}: {drift['distance']:.3f} (chance alone: up to {drift['chance']:.3f})"
            lines.append(f'<p class="{"drifts" if is_warned_of(said, other) else "faint"}">{text}</p>')
    heading = f"<h3>{escape(name)} <small>{said['kind']}{shape}{role}{unit}</small></h3>"
    return f'<section class="card" id="column-{number}">{heading}{drawn}{"".join(lines)}{_figures(said)}</section>'


def _figures(said: Mapping[str, Any]) -> str:
    known = {key for part in said["parts"].values() for key in part}
    keys = [key for key in ("missing", "infinite", "different", "min", "max", "mean", "deviation") if key in known]
    quantiles = ["5%", "25%", "50%", "75%", "95%"] if "quantiles" in known else []
    rows = [[key, *(_number(part.get(key), key) for part in said["parts"].values())] for key in keys]
    rows += [[key, *(_number(part.get("quantiles", {}).get(key), key) for part in said["parts"].values())] for key in quantiles]
    found = f"<details><summary>Figures</summary>{table(['', *map(escape, said['parts'])], rows)}</details>"
    values = {name: dict(part["values"]) for name, part in said["parts"].items() if "values" in part}
    if values:
        listed = list(dict.fromkeys(value for part in values.values() for value in part))[:50]
        rows = [[escape(str(value)), *(f"{part.get(value, 0):,}" for part in values.values())] for value in listed]
        found += f"<details><summary>Rows by value</summary>{table(['value', *map(escape, values)], rows)}</details>"
    return found


def _number(value: Any, key: str) -> str:
    if value is None:
        return "more than are counted" if key == "different" else "-"
    if isinstance(value, str):
        return escape(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


# ------------------------------------------------------------------ plots


def _histogram(name: str, kind: str, plot: Mapping[str, Any], parts: Sequence[str]) -> str:
    """Draw shares over bins of equal width: the first part filled, the others as lines over it."""
    edges, shares = plot["edges"], plot["shares"]
    top = max((max(row) for row in shares.values()), default=0) or 1.0
    low, high = edges[0], edges[-1]

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - 8)

    def y(share: float) -> float:
        return TOP + (1 - share / top) * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for share in ticks(0, top, 4):
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share * 100:.3g}%</text>')
    marks = [low + (high - low) * i / 3 for i in range(4)] if kind == "date" else ticks(low, high, 6)
    for i, value in enumerate(marks):
        text = day(value)[:10] if kind == "date" else f"{value:.6g}"
        anchor = "middle" if kind != "date" or 0 < i < 3 else "start" if i == 0 else "end"
        drawn.append(f'<text x="{x(value):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{text}</text>')
    for i, part in enumerate(parts):
        if part not in shares:
            continue
        points = [f"M{x(low):.1f},{y(0):.1f}"]
        for k, share in enumerate(shares[part]):
            points.append(f"L{x(edges[k]):.1f},{y(share):.1f}L{x(edges[k + 1]):.1f},{y(share):.1f}")
        points.append(f"L{x(high):.1f},{y(0):.1f}" + ("Z" if not i else ""))
        drawn.append(f'<path class="p{i}" d="{"".join(points)}"/>')
    drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    return svg(f"Histogram of {name}: shares of rows in {', '.join(shares)}", WIDTH, HEIGHT, drawn)


def _bars(name: str, plot: Mapping[str, Any], parts: Sequence[str]) -> str:
    """Draw shares of values: for each value a bar of each part."""
    values, shares = plot["values"], {part: plot["shares"][part] for part in parts if part in plot["shares"]}
    top = max((max(row) for row in shares.values() if row), default=0) or 1.0
    thick = 7 if len(shares) > 1 else 12
    tall = max(THICK, thick * len(shares) + 5)
    texts = [clipped(str(value) or "(empty)", 22) for value in values]
    left = 14 + 6.4 * max(map(len, texts), default=0)
    scale = (WIDTH - left - TOLD * (len(shares) + 1)) / top
    drawn = []
    for k, text in enumerate(texts):
        middle = TOP + k * tall + tall / 2
        drawn.append(f'<text class="name" x="{left - 8:.1f}" y="{middle + 4:.1f}" text-anchor="end">{escape(text)}</text>')
        for i, part in enumerate(shares):
            upper, number = middle - thick * len(shares) / 2 + i * thick, list(parts).index(part)
            size = f'width="{shares[part][k] * scale:.1f}" height="{thick - 1}"'
            drawn.append(f'<rect class="bar p{number}" x="{left:.1f}" y="{upper:.1f}" {size}/>')
        told = " / ".join(f"{row[k] * 100:.3g}" for row in shares.values()) + " %"
        drawn.append(f'<text x="{left + max(row[k] for row in shares.values()) * scale + 6:.1f}" y="{middle + 4:.1f}">{told}</text>')
    return svg(f"Shares of the values of {name} in {', '.join(shares)}", WIDTH, TOP + len(values) * tall + 4, drawn)


def _method(about: Mapping[str, Any]) -> str:
    limits, threshold = about.get("limits", {}), about.get("drift_threshold")
    if not limits:
        return ""
    return (
        '<h2>How it was measured</h2><p class="faint">'
        f"Drift is the Jensen-Shannon distance, 0 (alike) to 1 (nothing in common), of shares by value, or by ten quantile bins of the "
        f"first part; it is warned of from {threshold:g} on where chance alone, once in ten thousand times, does not reach it. Plots, "
        f"quantiles and the drift of numbers go by {limits['sample']:,} rows of each part, drawn with seed {about.get('seed')}; everything "
        f"else counts all rows. Rows are equal where a 64-bit hash of inputs and labels is; beyond {limits['rows']:,} different rows in a "
        "part they are compared in a share of them, exactly there, and the numbers begin with “about”. Rows count "
        "from 1, without header, blank lines and rows with too few or too many cells. The first and last bin of a histogram hold what "
        "lies beyond them.</p>"
    )
