"""What people see while a job runs: prefixed lines, and on a terminal a live table of the replicas below them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from .kills import PHASES
from .process import Replica


class Quiet:
    """Says nothing: for jobs run as a library, whose logs are in their folder. Others override what they show."""

    def say(self, text: str) -> None:
        """Tell something about the job as a whole."""

    def line(self, replica: str, text: str) -> None:
        """Pass on a line that a replica printed."""

    def update(self, replicas: Iterable[Replica]) -> None:
        """Show the replicas' states; called several times a second."""

    def close(self, replicas: Iterable[Replica]) -> None:
        """Leave the last state on the screen."""


class Lines(Quiet):
    """One line per event: for logs and pipes."""

    def __init__(self, out: TextIO):
        self.out = out

    def say(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def line(self, replica: str, text: str) -> None:
        self.say(f"[{replica}] {text}")


class Table(Quiet):
    """Lines that scroll by above a table that stays."""

    def __init__(self, out: TextIO):
        from rich.console import Console
        from rich.live import Live

        self.console = Console(file=out, highlight=False)
        self.live = Live(console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self.followed: dict[str, Follower] = {}
        self.shown = 0.0

    def say(self, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(text), soft_wrap=True)

    def line(self, replica: str, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(f"[{replica}] ", style="cyan") + Text.from_ansi(text), soft_wrap=True)

    def update(self, replicas: Iterable[Replica]) -> None:
        if time.monotonic() - self.shown > 0.25:
            self.shown = time.monotonic()
            self.live.start()
            self.live.update(self.draw(replicas), refresh=True)

    def draw(self, replicas: Iterable[Replica]) -> Any:
        """Return the table as it stands."""
        from rich.table import Table as Grid

        grid = Grid("replica", "role", "state", "pid", "phase", "step", "examples/s", "restarts")
        for replica in replicas:
            last = self.followed.setdefault(replica.name, Follower(replica.events)).last()
            step, total, speed = (last.get(key) for key in ("step", "total_steps", "examples_per_second"))
            pid = replica.attempts[-1].pid if replica.running else None
            grid.add_row(
                replica.name, f"{replica.member.role} {replica.member.index}", replica.state, str(pid or ""),
                str(last.get("phase", "")), "" if step is None else f"{step}/{total}" if total else str(step),
                f"{speed:,.0f}" if isinstance(speed, (int, float)) else "", str(max(0, len(replica.attempts) - 1)),
            )  # fmt: skip
        return grid

    def close(self, replicas: Iterable[Replica]) -> None:
        self.live.update(self.draw(replicas), refresh=True)
        self.live.stop()
        self.followed.clear()  # a report may serve one job after the other


def for_terminal(out: TextIO | None = None) -> Quiet:
    """Return the report that suits `out`, by default standard output."""
    out = out or sys.stdout
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")  # a replica may print what this terminal cannot show
    try:
        return Table(out) if out.isatty() else Lines(out)
    except ImportError:  # without rich there is no table
        return Lines(out)


class Follower:
    """Reads a replica's event file as it grows; a program that writes none, or something else there, does no harm."""

    def __init__(self, path: Path):
        self.path, self.offset, self.rest = path, 0, b""
        self.fields: dict[str, Any] = {}

    def new(self) -> list[dict[str, Any]]:
        """Return the events that came since the last call."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return []
        self.offset += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        events = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            events += [event] if isinstance(event, dict) else []
        return events

    def last(self) -> dict[str, Any]:
        """Return the newest value of every field."""
        for event in self.new():
            self.fields.update(event)
        return self.fields


def places(path: Path) -> dict[str, int]:
    """Return how far a program went: its last step, and how many checkpoints, evaluations and exports it announced."""
    reached: dict[str, int] = {}
    for event in Follower(path).new():
        phase, step = event.get("phase"), event.get("step")
        if isinstance(step, int):
            reached["step"] = max(step, reached.get("step", 0))
        if phase in PHASES:
            reached[phase] = reached.get(phase, 0) + 1
    return reached
