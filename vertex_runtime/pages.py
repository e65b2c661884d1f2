"""What the pages of reports share: their style, tables, and plots as SVG; a page needs no network, no script and no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f9; --line: #d9dde3; --text: #1d2127; --faint: #59616d;
  --a: #7fb0e3; --a-edge: #2b6cb0; --b: #b4430a; --c: #1f7a4d; --warn: #8a3b00; --warn-back: #fff1e0; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1d2229; --line: #363d48; --text: #e6e9ee; --faint: #a3acb9;
  --a: #2f5f94; --a-edge: #7db4f0; --b: #ff9d57; --c: #63cf98; --warn: #ffc48a; --warn-back: #3a2a18; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; } h3 small { color: var(--faint); font-weight: 400; font-size: .87rem; }
p { margin: .3rem 0; } .faint { color: var(--faint); font-size: .87rem; } a { color: inherit; }
ul { list-style: none; padding: 0; margin: 0; }
li { padding: .45rem .75rem; margin: .3rem 0; border-radius: 6px; background: var(--card); overflow-wrap: anywhere; }
li.warning { background: var(--warn-back); border-left: 4px solid var(--warn); } li b { margin-right: .35rem; }
li.warning b, .drifts { color: var(--warn); font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } th:first-child, td:first-child, .left, td.place { text-align: left; } td.left { white-space: nowrap; }
td.place { overflow-wrap: anywhere; min-width: 9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
.cards { gap: 1rem; margin-top: 1rem; align-items: start; }
.card { background: var(--card); border-radius: 8px; padding: .8rem 1rem 1rem; min-width: 0; }
.card table { font-size: .87rem; width: 100%; } svg { display: block; width: 100%; height: auto; margin: .5rem 0; }
svg text { fill: var(--faint); font: 11px system-ui, sans-serif; } svg .name { fill: var(--text); }
svg .grid { stroke: var(--line); stroke-width: 1; }
.p0 { fill: var(--a); stroke: var(--a-edge); stroke-width: 1; } .p1 { fill: none; stroke: var(--b); stroke-width: 2; }
.p2 { fill: none; stroke: var(--c); stroke-width: 2; stroke-dasharray: 5 3; }
.bar.p1 { fill: var(--b); stroke: none; } .bar.p2 { fill: var(--c); stroke: none; }
.legend { display: flex; gap: 1.2rem; flex-wrap: wrap; }
.legend svg { display: inline-block; width: 26px; height: 12px; margin: 0 .4rem 0 0; vertical-align: -1px; }
details { margin-top: .4rem; font-size: .87rem; } summary { cursor: pointer; color: var(--faint); }
"""


def head(title: str, kind: str, style: str = "") -> str:
    """Return how a page begins, up to its heading; `kind` is the word by which it is known as ours, `title` HTML already."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="{kind}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title><style>{STYLE}{style}</style></head><body><main>\n<h1>{title}</h1>"
    )


def cell(kind: str, text: str) -> str:
    """Return a table's cell of a class of the style, such as left or place."""
    return f'<td class="{kind}">{escape(text)}</td>'


def clipped(text: str, most: int) -> str:
    """Return a text of so many characters at most."""
    return text if len(text) <= most else text[: most - 1] + "…"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are HTML already, one that begins with `<td` stands as it is."""
    texts = [bool(rows) and rows[0][i].startswith(('<td class="left', '<td class="place', '<td class="text')) for i in range(len(head))]
    titles = "".join(f'<th scope="col"{" class=left" * is_text}>{cell}</th>' for cell, is_text in zip(head, texts))
    body = "".join(f"<tr>{''.join(cell if cell.startswith('<td') else f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def svg(title: str, width: float, height: float, drawn: Sequence[str]) -> str:
    """Return a drawing of so many units each way, scaled to the width that there is; `title` says what it shows."""
    said = escape(title)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{said}"><title>{said}</title>{"".join(drawn)}</svg>'


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return up to `most` + 1 round numbers between two."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next((factor * power for factor in (1, 2, 5, 10) if factor * power >= rough), power)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, first + most + 2) if k * step <= high + step * 1e-9]
