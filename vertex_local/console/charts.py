"""Pictures in SVG, made here: what the browser gets needs no script. Colours are classes of console.css, so that dark mode has its own."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .text import number

WIDTH, HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 30
_COLOURS = 7  # the classes c0 to c6
_MARKED = 60  # points of a line, up to which each has a mark


@dataclass(frozen=True)
class Series:
    """One line of a chart: its name and its points; those without a finite value are left out."""

    name: str
    points: Sequence[tuple[float, float]]


def lines(series: Sequence[Series], x_title: str = "step") -> Markup:
    """Return a chart of lines over one axis, with a legend where there are several; "" if there is nothing to draw."""
    finite = [Series(each.name, [point for point in each.points if all(map(math.isfinite, point))]) for each in series]
    drawn = [each for each in finite if each.points]
    if not drawn:
        return Markup("")
    xs, ys = _Axis([x for each in drawn for x, _ in each.points]), _Axis([y for each in drawn for _, y in each.points])
    parts = list(_grid(xs, ys, x_title))
    for i, each in enumerate(drawn):
        colour, dashes = f"c{i % _COLOURS}", f"d{i // _COLOURS % 3}"
        places = [(xs.place(x, _LEFT, WIDTH - _RIGHT), ys.place(y, HEIGHT - _BOTTOM, _TOP)) for x, y in each.points]
        if len(places) > 1:
            parts.append(_line(places, f"{colour} {dashes}", each.name))
        if len(places) <= _MARKED:
            parts += [
                f'<circle class="point {colour}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                f"<title>{html.escape(each.name)}: {number(value)} at {number(step)}</title></circle>"
                for (x, y), (step, value) in zip(places, each.points)
            ]
    spoken = "; ".join(f"{each.name}: from {number(each.points[0][1])} to {number(each.points[-1][1])}" for each in drawn[:8])
    return _svg("", WIDTH, HEIGHT, spoken, parts) + _legend([each.name for each in drawn])


def _legend(names: Sequence[str]) -> Markup:
    if len(names) < 2:
        return Markup("")
    items = (f'<li><span class="swatch c{i % _COLOURS}"></span>{html.escape(name)}</li>' for i, name in enumerate(names))
    return Markup(f'<ul class="legend">{"".join(items)}</ul>')


def _svg(kind: str, width: float, height: float, label: str, parts: Sequence[str]) -> Markup:
    head = f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text class="tick {kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'


def _line(places: Sequence[tuple[float, float]], kind: str, title: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="line {kind}" points="{path}"><title>{html.escape(title)}</title></polyline>'


class _Axis:
    """Values on a line from their least to their largest, a little more at both ends where they are all one."""

    def __init__(self, values: Sequence[float]):
        low, high = min(values), max(values)
        if low == high:
            spread = abs(low) * 0.1 or 1.0
            low, high = low - spread, high + spread
        self.low, self.high = low, high

    def place(self, value: float, begin: float, end: float) -> float:
        return begin + (value - self.low) / (self.high - self.low) * (end - begin)

    def ticks(self, most: int) -> list[float]:
        """Return round values within the axis, at most so many."""
        raw = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
        return [step * i for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    for limit, factor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.4g}"


def _grid(xs: _Axis, ys: _Axis, x_title: str) -> Iterator[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for tick in ys.ticks(5):
        y = ys.place(tick, bottom, _TOP)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 6, y + 4, _short(tick), "end")
    for tick in xs.ticks(6):
        yield _text(xs.place(tick, _LEFT, right), bottom + 15, _short(tick), "middle")
    yield _text(right, HEIGHT - 2, x_title, "end")


def bars(values: Mapping[str, float]) -> Markup:
    """Return horizontal bars, each with its name before and its value behind it; "" if there is nothing to draw."""
    drawn = {name: value for name, value in values.items() if math.isfinite(value)}
    if not drawn:
        return Markup("")
    most, parts = max(abs(value) for value in drawn.values()) or 1.0, []
    for i, (name, value) in enumerate(drawn.items()):
        y, width, kind = 22 * i + 4, abs(value) / most * (WIDTH - 260), "c0" if value >= 0 else "c5"
        parts.append(_text(170, y + 13, name[:28], "end"))
        parts.append(f'<rect class="bar {kind}" x="178" y="{y}" width="{max(width, 1):.1f}" height="16"/>')
        parts.append(_text(184 + width, y + 13, number(value)))
    return _svg("bars", WIDTH, 22 * len(drawn) + 6, "bars", parts)


@dataclass(frozen=True)
class Coordinate:
    """One axis of parallel coordinates: its name, and the values of each row, numbers or texts; None where a row has none."""

    name: str
    values: Sequence[float | str | None]
    log: bool = False


def parallel(axes: Sequence[Coordinate], names: Sequence[str], best: set[int]) -> Markup:
    """Return rows as lines over parallel axes; the rows of `best` stand out.

    Args:
        names: of the rows, for the titles.
    """
    if len(axes) < 2 or not names:
        return Markup("")
    width, height, top, bottom = max(WIDTH, 130 * len(axes)), 280, 30, 26
    places = [_coordinate(axis, height - bottom, top) for axis in axes]
    xs = [70 + i * (width - 140) / (len(axes) - 1) for i in range(len(axes))]
    parts = []
    for row in sorted(range(len(names)), key=lambda row: row in best):
        points = [(x, found[row]) for x, (found, _) in zip(xs, places) if found[row] is not None]
        parts.append(_line(points, "best" if row in best else "row", names[row]))
    for axis, x, (_, ticks) in zip(axes, xs, places):
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(_text(x, 16, axis.name[:20], "middle strong"))
        parts += [_text(x + 5, y + 4, text) for y, text in ticks]
    return _svg("wide", width, height, "parallel coordinates", parts)


def _coordinate(axis: Coordinate, low: float, high: float) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Return each row's place on an axis, and the axis's ticks."""
    given: list[Any] = [value for value in axis.values if value is not None]
    if any(isinstance(value, str) for value in given):
        known = list(dict.fromkeys(map(str, given)))
        spots = {value: low + (i + 0.5) / len(known) * (high - low) for i, value in enumerate(known)}
        return [None if value is None else spots[str(value)] for value in axis.values], [(y, text[:16]) for text, y in spots.items()]
    if not given:
        return [None for _ in axis.values], []
    scale: Callable[[Any], float] = math.log10 if axis.log and min(given) > 0 else float
    line = _Axis([scale(value) for value in given])
    found = [None if value is None else line.place(scale(value), low, high) for value in axis.values]
    marks = [line.low + share * (line.high - line.low) for share in (0, 0.5, 1)]
    return found, [(line.place(mark, low, high), _short(10**mark if scale is math.log10 else mark)) for mark in marks]
