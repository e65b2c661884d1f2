"""What people see while a job or a study runs: lines in logs and pipes; on a terminal, lines that scroll above a live table."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from .process import Replica

# Makes rich's table of the present state, from the replicas or trials and the number of rows that there is room for.
Draw = Callable[[Any, int], Any]


class Quiet:
    """Prints nothing: for use as a library, where logs are in the job's folder. Subclasses override what they show."""

    def say(self, text: str) -> None:
        """Print a line about the whole job or study."""

    def line(self, replica: str, text: str) -> None:
        """Pass on a line that a replica printed."""

    def change(self, text: str, in_table: bool) -> None:
        """Print a line about a trial's change; `in_table` says that a table of the trials shows as much."""

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

    def line(self, replica: str, text: str) -> None:
        self.say(f"[{replica}] {text}")

    def change(self, text: str, in_table: bool) -> None:
        self.say(text)


class Table(Quiet):
    """Lines above a live table."""

    def __init__(self, out: TextIO, draw: Draw):
        from rich.console import Console
        from rich.live import Live

        self.console, self.draw = Console(file=out, highlight=False), draw
        self.live = Live(console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._shown = 0.0

    def say(self, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(text), soft_wrap=True)

    def line(self, replica: str, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(f"[{replica}] ", style="cyan") + Text.from_ansi(text), soft_wrap=True)

    def change(self, text: str, in_table: bool) -> None:
        if not in_table:
            self.say(text)

    def update(self, rows: Any) -> None:
        if time.monotonic() - self._shown > 0.25:
            self._shown = time.monotonic()
            self.live.start()
            self.live.update(self.draw(rows, self.console.height - 5), refresh=True)

    def close(self, rows: Any) -> None:
        self.live.update(self.draw(rows, len(rows)), refresh=True)
        self.live.stop()


def for_terminal(draw: Draw, out: TextIO | None = None) -> Quiet:
    """Return what suits `out`, by default standard output: a table on a terminal if rich is installed, else lines."""
    out = out or sys.stdout
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")  # a program may print what this terminal cannot show
    try:
        return Table(out, draw) if out.isatty() else Lines(out)
    except ImportError:  # without rich there is no table
        return Lines(out)


def of_replicas(replicas: Sequence[Replica], room: int) -> Any:
    """Return the table of a job's replicas, all of them."""
    from rich.table import Table as Grid

    grid = Grid("replica", "role", "state", "pid", "phase", "step", "examples/s", "restarts")
    for replica in replicas:
        last = replica.progress.last()
        step, total, speed = (last.get(key) for key in ("step", "total_steps", "examples_per_second"))
        grid.add_row(
            replica.name,
            f"{replica.member.role} {replica.member.index}",
            replica.state,
            str(replica.attempts[-1].pid or "") if replica.running else "",
            str(last.get("phase", "")),
            "" if step is None else f"{step}/{total}" if total else str(step),
            f"{speed:,.0f}" if isinstance(speed, (int, float)) else "",
            str(max(0, len(replica.attempts) - 1)),
        )
    return grid
