"""What people see while a job or a study runs: lines in logs and pipes; on a terminal, lines that scroll above a live table."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

Shown = TypeVar("Shown")


class Quiet:
    """Prints nothing: for use as a library. Subclasses override what they show."""

    def say(self, text: str) -> None:
        """Print a line about the whole job or study."""

    def update(self, rows: Any) -> None:
        """Show the state of its replicas or trials; called several times a second."""

    def close(self, rows: Any) -> None:
        """Leave the last state on the screen."""


class Lines(Quiet):
    """One line per event."""

    def __init__(self, out: TextIO):
        self.out = out

    def say(self, text: str) -> None:
        print(text, file=self.out, flush=True)


class Table(Quiet):
    """Lines above a live table, which subclasses draw."""

    def __init__(self, out: TextIO):
        from rich.console import Console
        from rich.live import Live

        self.console = Console(file=out, highlight=False)
        self.live = Live(console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._shown = 0.0

    def say(self, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(text), soft_wrap=True)

    def update(self, rows: Any) -> None:
        if time.monotonic() - self._shown > 0.25:
            self._shown = time.monotonic()
            self.live.start()
            self.live.update(self.draw(rows, self.console.height - 5), refresh=True)

    def close(self, rows: Any) -> None:
        self.live.update(self.draw(rows, len(rows)), refresh=True)
        self.live.stop()

    def draw(self, rows: Any, room: int) -> Any:
        """Return the table of the present state, with at most `room` rows."""
        raise NotImplementedError


def choose(out: TextIO | None, lines: Callable[[TextIO], Shown], table: Callable[[TextIO], Shown]) -> Shown:
    """Return what suits `out`, by default standard output: a table on a terminal if rich is installed, else lines."""
    out = out or sys.stdout
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")  # a program may print what this terminal cannot show
    try:
        return table(out) if out.isatty() else lines(out)
    except ImportError:  # without rich there is no table
        return lines(out)
