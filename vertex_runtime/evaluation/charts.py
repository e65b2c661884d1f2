"""The plots of an evaluation as SVG: bars with intervals, densities, curves, a map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ..data_report.sketches import shares, usual_range
from ..pages import clipped, svg, ticks

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 520, 300, 52, 40, 10, 10
ROW = 19  # the height of a bar with its room
CELLS, BINS = 36, 40  # of a density, each way; of a histogram
MAP_CELLS, MAP_ROWS = 42, 3  # cells along the longer side of a map, fewer for few rows; rows from which a cell is drawn
STYLE = """
.heat { fill: var(--a-edge); } .over { fill: var(--b); } .under { fill: var(--a-edge); }
.whisker { stroke: var(--text); stroke-width: 1.2; fill: none; } .overall { stroke: var(--faint); stroke-dasharray: 4 3; }
.curve { fill: none; stroke: var(--a-edge); stroke-width: 2; } .curve2 { fill: none; stroke: var(--b); stroke-width: 2; }
.faded { stroke-width: 1; opacity: .5; } .dot { fill: var(--a-edge); }
.ideal { stroke: var(--faint); stroke-dasharray: 4 3; fill: none; }
.bar2 { fill: var(--b); } .plus { fill: var(--b); } .minus { fill: var(--a-edge); }
"""


class Axes:
    """A frame with round numbers along both axes; x and y turn values into places."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str], height: float = HEIGHT, most: int = 6):
        self.height, self.ranges = height, (_widened(*x), _widened(*y))
        self.drawn: list[str] = []
        for value in ticks(*self.ranges[0], most):
            self.drawn.append(_line("grid", self.x(value), self.x(value), TOP, height - BOTTOM))
            self.drawn.append(_text(self.x(value), height - BOTTOM + 15, f"{value:.6g}", "middle"))
        for value in ticks(*self.ranges[1], 5):
            self.drawn.append(_line("grid", LEFT, WIDTH - RIGHT, self.y(value), self.y(value)))
            self.drawn.append(_text(LEFT - 6, self.y(value) + 4, f"{value:.6g}", "end"))
        self.drawn.append(_text((LEFT + WIDTH) / 2, height - 6, labels[0], "middle", "name"))
        self.drawn.append(f'<text class="name" transform="translate(12 {(height - BOTTOM) / 2:.0f}) rotate(-90)" '
                          f'text-anchor="middle">{escape(labels[1])}</text>')  # fmt: skip

    def x(self, value: float) -> float:
        low, high = self.ranges[0]
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ranges[1]
        return TOP + (high - value) / (high - low) * (self.height - TOP - BOTTOM)

    def path(self, kind: str, xs: Sequence[float], ys: Sequence[float]) -> None:
        """Draw a line through points."""
        points = "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, ys))
        self.drawn.append(f'<path class="{kind}" d="M{points}"/>')

    def dot(self, kind: str, x: float, y: float, radius: float, title: str) -> None:
        self.drawn.append(
            f'<circle class="{kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:.1f}"><title>{escape(title)}</title></circle>'
        )

    def svg(self, title: str) -> str:
        return svg(title, WIDTH, self.height, self.drawn)


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


# ------------------------------------------------------------------ numbers


def density(x: np.ndarray, y: np.ndarray, labels: tuple[str, str], title: str) -> str:
    """Draw how many rows lie where, [rows] each, with the line on which both are equal; one in two hundred at each end is left out."""
    low, high = usual_range(np.concatenate([x, y]))
    counts, _, _ = np.histogram2d(x, y, CELLS, [(low, high)] * 2)
    axes = Axes((low, high), (low, high), labels, 360)
    size, strongest = (high - low) / CELLS, math.log1p(counts.max() or 1)
    width, height = axes.x(low + size) - axes.x(low), axes.y(low) - axes.y(low + size)
    for i, j in np.argwhere(counts > 0):
        shade = 0.12 + 0.88 * math.log1p(counts[i, j]) / strongest
        place = f'x="{axes.x(low + i * size):.1f}" y="{axes.y(low + (j + 1) * size):.1f}" width="{width:.1f}" height="{height:.1f}"'
        axes.drawn.append(f'<rect class="heat" {place} fill-opacity="{shade:.2f}"><title>{counts[i, j]:,.0f} rows</title></rect>')
    axes.path("ideal", (low, high), (low, high))
    return axes.svg(title)


def histogram(values: Mapping[str, np.ndarray], label: str, title: str) -> str:
    """Draw the shares of rows over bins of equal width, of one or two models; the first and last bin hold what lies beyond."""
    low, high = usual_range(np.concatenate(list(values.values())))
    percent = [100 * shares(column, low, high, BINS) for column in values.values()]
    axes = Axes((low, high), (0.0, float(max(share.max() for share in percent))), (label, "% of rows"), 240)
    edges = np.linspace(low, high, BINS + 1)
    for i, share in enumerate(percent):
        xs, ys = np.repeat(edges, 2), np.r_[0.0, np.repeat(share, 2), 0.0]
        axes.path("p0" if not i else "curve2", xs.tolist(), ys.tolist())
    axes.path("overall", (0, 0), (0, axes.ranges[1][1])) if low < 0 < high else None
    return axes.svg(title)


# ------------------------------------------------------------------ bars


def bars(rows: Sequence[Mapping[str, Any]], overall: float | None, title: str) -> str:
    """Draw a bar for each row: {"name", "value", "low", "high" (of an interval, or None), "told", "second" (or None)}."""
    texts = [clipped(row["name"], 26) for row in rows]
    left = 14 + 6.3 * max(map(len, texts), default=0)
    told = 14 + 5.7 * max((len(row["told"]) for row in rows), default=0)
    top = max((max(row["value"], row.get("high") or 0, row.get("second") or 0) for row in rows), default=0) or 1.0
    scale = (WIDTH - left - told) / top
    drawn = []
    for i, (row, text) in enumerate(zip(rows, texts)):
        middle = TOP + i * ROW + ROW / 2
        drawn.append(_text(left - 7, middle + 4, text, "end", "name"))
        two = row.get("second") is not None
        thick, upper = (6, middle - 6.5) if two else (12, middle - 6)
        drawn.append(f'<rect class="bar p0" x="{left:.1f}" y="{upper:.1f}" width="{max(0, row["value"] * scale):.1f}" height="{thick}"/>')
        if two:
            width = max(0, row["second"] * scale)
            drawn.append(f'<rect class="bar2" x="{left:.1f}" y="{middle + 0.5:.1f}" width="{width:.1f}" height="6"/>')
        if row.get("high") is not None:
            low, high, y = left + max(0, row["low"]) * scale, left + row["high"] * scale, upper + thick / 2
            drawn.append(f'<path class="whisker" d="M{low:.1f},{y:.1f}H{high:.1f}M{low:.1f},{y - 3:.1f}v6M{high:.1f},{y - 3:.1f}v6"/>')
        drawn.append(_text(WIDTH - 2, middle + 4, row["told"], "end"))
    height = TOP + len(rows) * ROW + 6
    if overall is not None:
        drawn.append(_line("overall", left + overall * scale, left + overall * scale, TOP - 4, height - 4))
    return svg(title, WIDTH, height, drawn)


def signed_bars(rows: Sequence[tuple[str, float, str]], title: str) -> str:
    """Draw bars to both sides of a middle line: (name, value, what is told beside it)."""
    texts = [clipped(name, 40) for name, _, _ in rows]
    left = 14 + 6.3 * max(map(len, texts), default=0)
    told = 8 + 6.2 * max((len(each[2]) for each in rows), default=0)
    top = max((abs(value) for _, value, _ in rows), default=0) or 1.0
    middle = left + told + (WIDTH - left - 2 * told) / 2
    scale = (WIDTH - left - 2 * told) / 2 / top
    drawn = []
    for i, ((_, value, text), name) in enumerate(zip(rows, texts)):
        y, size = TOP + i * ROW + ROW / 2, abs(value) * scale
        drawn.append(_text(left - 7, y + 4, name, "end", "name"))
        start = middle if value >= 0 else middle - size
        drawn.append(f'<rect class="{"plus" if value >= 0 else "minus"}" x="{start:.1f}" y="{y - 6:.1f}" width="{size:.1f}" height="12"/>')
        drawn.append(_text(middle + (size + 5) * (1 if value >= 0 else -1), y + 4, text, "start" if value >= 0 else "end"))
    drawn.append(_line("grid", middle, middle, TOP - 2, TOP + len(rows) * ROW))
    return svg(title, WIDTH, TOP + len(rows) * ROW + 6, drawn)


# ------------------------------------------------------------------ classes


def calibration(bins: Sequence[Mapping[str, float]], labels: tuple[str, str], title: str) -> str:
    """Draw how often answers of some score are right; dots are larger where there are more rows."""
    axes = Axes((0.0, 1.0), (0.0, 1.0), labels)
    axes.path("ideal", (0, 1), (0, 1))
    axes.path("curve faded", [each["confidence"] for each in bins], [each["accuracy"] for each in bins])
    most = max((each["weight"] for each in bins), default=1)
    for each in bins:
        told = f"said {each['confidence']:.3f}, true {each['accuracy']:.3f}, weight {each['weight']:,.6g}"
        axes.dot("dot", each["confidence"], each["accuracy"], 2 + 5 * math.sqrt(each["weight"] / most), told)
    return axes.svg(title)


def curves(lines: Sequence[tuple[np.ndarray, np.ndarray]], labels: tuple[str, str], title: str, diagonal: bool) -> str:
    """Draw one or two lines through points of 0 to 1."""
    axes = Axes((0.0, 1.0), (0.0, 1.0), labels)
    if diagonal:
        axes.path("ideal", (0, 1), (0, 1))
    for i, (x, y) in enumerate(lines):
        keep = np.unique(np.linspace(0, len(x) - 1, 300).astype(int))
        axes.path("curve" if not i else "curve2", x[keep], y[keep])
    return axes.svg(title)


# ------------------------------------------------------------------ a map


def residual_map(longitude: np.ndarray, latitude: np.ndarray, error: np.ndarray, title: str) -> str:
    """Draw the mean error by place: [rows] each, degrees; cells with fewer than three rows are left out."""
    (west, east), (south, north) = (_place_range(values) for values in (longitude, latitude))
    ratio = math.cos(math.radians((south + north) / 2))
    across, up = (east - west) * ratio, north - south
    cell = max(across, up) / min(MAP_CELLS, max(12, round(0.8 * math.sqrt(len(error)))))
    columns, rows = max(1, math.ceil(across / cell)), max(1, math.ceil(up / cell))
    inside = (longitude >= west) & (longitude <= east) & (latitude >= south) & (latitude <= north)
    i = np.minimum(((longitude[inside] - west) * ratio / cell).astype(int), columns - 1)
    j = np.minimum(((latitude[inside] - south) / cell).astype(int), rows - 1)
    counts = np.bincount(i * rows + j, minlength=columns * rows)
    means = np.bincount(i * rows + j, error[inside], columns * rows) / np.maximum(1, counts)
    drawn_cells = np.flatnonzero(counts >= min(MAP_ROWS, max(1, int(counts.max()))))
    strongest = float(np.quantile(np.abs(means[drawn_cells]), 0.9)) or 1.0
    size = min((WIDTH - 20) / columns, 420 / rows)
    left = (WIDTH - size * columns) / 2
    drawn = [f'<rect x="{left:.1f}" y="4" width="{size * columns:.1f}" height="{size * rows:.1f}" fill="none" class="grid"/>']
    for each in drawn_cells:
        x, y = left + (each // rows) * size, 4 + (rows - 1 - each % rows) * size
        kind, shade = "over" if means[each] > 0 else "under", 0.08 + 0.92 * min(1.0, abs(means[each]) / strongest)
        place = f'x="{x:.1f}" y="{y:.1f}" width="{size:.1f}" height="{size:.1f}"'
        told = f"{means[each]:+.3g}, {counts[each]:,} rows"
        drawn.append(f'<rect class="{kind}" {place} fill-opacity="{shade:.2f}"><title>{told}</title></rect>')
    bottom = 4 + size * rows
    drawn.append(_text(left, bottom + 15, f"{west:.4g}, {south:.4g}"))
    drawn.append(_text(left + size * columns, bottom + 15, f"{east:.4g}, {north:.4g}", "end"))
    middle = left + size * columns / 2
    drawn.append(_text(middle, bottom + 31, f"blue: too low, orange: too high; full colour from {strongest:.3g} on", "middle"))
    return svg(title, WIDTH, bottom + 38, drawn)


def _place_range(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.01, 0.99))
    room = max((high - low) * 0.03, 1e-6)
    return float(low - room), float(high + room)
