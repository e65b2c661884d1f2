"""What the drawn pictures share: colours in both schemes, text that fits, boxes, arrows and rows of cells.

A picture is one SVG. Its style follows the page's scheme, light or dark; its own background keeps it readable where a page has
another scheme than the browser. Sizes are CSS pixels. Text is as large as that of the page, and in the page's own fonts, which
differ from machine to machine: so nothing here measures text, and what may be too long for its place is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import drawsvg as dw

TEXT, CODE, LINE = 16, 13.6, 23  # size of text and of code, as GitHub sets them; from one line to the next
WIDTH = 340  # fits a telephone's screen without being made smaller
MARGIN, PADDING, ROUND = 16, 12, 8
CELL = 24
# Widths of a letter in the widest of the usual fonts, DejaVu, as parts of the size.
LETTER, LETTER_BOLD, LETTER_OF_CODE = 0.6, 0.67, 0.605
SANS = "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, 'SF Mono', Menlo, Consolas, 'Liberation Mono', monospace"
COLOURS = {  # name: (light, dark)
    "page": ("#ffffff", "#0d1117"), "line": ("#d1d9e0", "#3d444d"), "card": ("#f6f8fa", "#151b23"),
    "text": ("#1f2328", "#f0f6fc"), "soft": ("#59636e", "#9198a1"), "arrow": ("#818b98", "#7d8590"),
    "blue": ("#0969da", "#4493f8"), "blue-fill": ("#ddf4ff", "#10294b"),
    "orange": ("#bc4c00", "#f0883e"), "orange-fill": ("#fff1e5", "#43260f"),
    "green": ("#1a7f37", "#3fb950"), "green-fill": ("#dafbe1", "#12361d"),
    "purple": ("#8250df", "#ab7df8"), "purple-fill": ("#fbefff", "#2d1e4d"),
    "red": ("#cf222e", "#f85149"), "red-fill": ("#ffebe9", "#4a1b1f"),
}  # fmt: skip
HUES = ("blue", "orange", "green", "purple", "red")
Anchor = Literal["start", "middle", "end"]


def _style() -> str:
    """Return the style sheet of every picture."""
    names = [f"--{name}" for name in COLOURS]
    light, dark = (";".join(f"{name}:{pair[i]}" for name, pair in zip(names, COLOURS.values())) for i in (0, 1))
    hues = "".join(
        f".{hue}{{fill:var(--{hue}-fill);stroke:var(--{hue})}}.{hue}-text{{fill:var(--{hue})}}"
        f".{hue}-line{{fill:none;stroke:var(--{hue});stroke-width:2}}"
        for hue in HUES
    )
    return (
        f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"text{{font-family:{SANS};fill:var(--text)}}.code{{font-family:{MONO}}}.bold{{font-weight:600}}"
        ".page{fill:var(--page);stroke:var(--line)}.card{fill:var(--card);stroke:var(--line)}"
        ".soft{fill:var(--soft)}.arrow{fill:none;stroke:var(--arrow);stroke-width:1.5}.head{fill:var(--arrow)}"
        ".rule{fill:none;stroke:var(--arrow)}.lost{fill:var(--red);fill-opacity:.75}.cross{fill:none;stroke:var(--text);stroke-width:3}"
        ".dotted{stroke-dasharray:1 5;stroke-linecap:round}"
        f"{hues}"
    )


class TooLong(ValueError):
    """A text that may not fit its place."""


@dataclass(frozen=True)
class Box:
    """A rectangle that has been drawn, in pixels from the picture's upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """The middle of its width."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.height


@dataclass
class Picture:
    """A picture that grows downwards.

    Args:
        title: what it shows, in a sentence, for those who cannot see it.
        y: where the next thing goes, in pixels.
    """

    title: str
    width: float = WIDTH
    y: float = MARGIN
    parts: list[dw.DrawingBasicElement] = dataclasses.field(default_factory=list)

    @property
    def inner(self) -> float:
        """The width between the margins."""
        return self.width - 2 * MARGIN

    def svg(self) -> str:
        """Return the picture as the text of an SVG file."""
        drawing = dw.Drawing(self.width, self.y + MARGIN, role="img", aria_label=self.title)
        drawing.append_css(_style())
        drawing.append_title(self.title)
        drawing.append(dw.Rectangle(0.5, 0.5, self.width - 1, self.y + MARGIN - 1, rx=ROUND, class_="page"))
        drawing.extend(self.parts)
        return drawing.as_svg(header="").strip() + "\n"

    def text(
        self, text: str, x: float, y: float, room: float, look: str = "", anchor: Anchor = "middle", size: float | None = None
    ) -> None:
        """Write a line whose letters stand on `y`.

        Args:
            room: the width that it may take, in pixels.
            look: classes of the style sheet, such as "soft", "code" or "blue-text".

        Raises:
            TooLong: it may not fit.
        """
        kinds = look.split()
        size = size or (CODE if "code" in kinds else TEXT)
        letter = LETTER_OF_CODE if "code" in kinds else LETTER_BOLD if "bold" in kinds else LETTER
        wide = len(text) * letter * size
        if wide > room:
            raise TooLong(f"{text!r} takes up to {wide:.0f} pixels and has {room:.0f}.")
        self.parts.append(dw.Text(text, size, x, y, text_anchor=anchor, class_=look or None))

    def rectangle(self, box: Box, look: str, round: float = ROUND) -> Box:
        """Draw a rectangle of a look such as "card" or "blue"."""
        self.parts.append(dw.Rectangle(box.x, box.y, box.width, box.height, rx=round, class_=look))
        return box

    def card(
        self, title: str, lines: Sequence[str] = (), code: Sequence[str] = (), *, look: str = "card", x: float = MARGIN,
        width: float | None = None, y: float | None = None,
    ) -> Box:  # fmt: skip
        """Draw a box with a title, lines below it and lines of code below those; it moves `y` on unless that is given."""
        width = width or self.inner
        top = self.y if y is None else y
        rows = [*([(title, "bold")] if title else []), *((line, "") for line in lines), *((line, "code soft") for line in code)]
        height = len(rows) * LINE + PADDING
        box = self.rectangle(Box(x, top, width, height), look)
        first = top + PADDING / 2 + LINE * 0.72
        for i, (line, kind) in enumerate(rows):
            self.text(line, box.middle, first + i * LINE, width - 6, kind)
        if y is None:
            self.y = box.bottom
        return box

    def note(self, text: str, look: str = "soft") -> None:
        """Write a line in the middle and go on below it."""
        self.text(text, self.width / 2, self.y + LINE * 0.72, self.inner, look)
        self.y += LINE

    def space(self, pixels: float) -> None:
        """Leave some room."""
        self.y += pixels

    def line(self, points: Sequence[tuple[float, float]], look: str = "arrow", head: bool = True, tail: bool = False) -> None:
        """Draw a line through points, with an arrow's head at its end, and one at its start if asked for."""
        path = dw.Path(class_=look).M(*points[0])
        for point in points[1:]:
            path.L(*point)
        self.parts.append(path)
        if head:
            self._head(points[-2], points[-1])
        if tail:
            self._head(points[1], points[0])

    def _head(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        dx, dy = end[0] - start[0], end[1] - start[1]
        size = (dx * dx + dy * dy) ** 0.5
        dx, dy = 7 * dx / size, 7 * dy / size
        back = (end[0] - dx, end[1] - dy)
        side = (-dy * 0.6, dx * 0.6)
        corners = [end, (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1])]
        self.parts.append(dw.Lines(*(round(value, 2) for corner in corners for value in corner), close=True, class_="head"))

    def dot(self, x: float, y: float, look: str) -> None:
        """Draw a dot in the middle of (x, y)."""
        self.parts.append(dw.Circle(x, y, 5, class_=f"{look}-text"))

    def arrow(self, label: str = "", length: float = 30, look: str = "soft", x: float | None = None) -> None:
        """Draw an arrow downwards from `y`, with a label beside it, and go on at its end."""
        x = MARGIN + 24 if x is None else x
        self.line([(x, self.y + 3), (x, self.y + length - 3)])
        if label:
            self.text(label, x + 12, self.y + length / 2 + 5.5, self.width - MARGIN - x - 12, look, "start")
        self.y += length

    def cells(self, texts: Sequence[str], looks: Sequence[str], x: float, y: float | None = None, gap: int = 0, every: int = 0) -> Box:
        """Draw a row of small squares with a text in each; after every so many of them comes a gap, in pixels."""
        top = self.y if y is None else y
        place = x
        for i, (text, look) in enumerate(zip(texts, looks)):
            if every and i and i % every == 0:
                place += gap
            self.rectangle(Box(place, top, CELL, CELL), look, 4)
            self.text(text, place + CELL / 2, top + CELL / 2 + 5, CELL, "", size=13.6)
            place += CELL
        if y is None:
            self.y = top + CELL
        return Box(x, top, place - x, CELL)

    def bracket(self, x: float, width: float, label: str, look: str = "soft") -> None:
        """Draw a bracket below what stands at `y` above, with a label under it; `y` stays."""
        top = self.y + 4
        self.line([(x + 2, top), (x + 2, top + 5), (x + width - 2, top + 5), (x + width - 2, top)], "arrow", head=False)
        self.text(label, x + width / 2, top + 5 + LINE * 0.8, width + 16, look)
