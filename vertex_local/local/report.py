"""What people see while a job runs: prefixed lines, and on a terminal a live table of the replicas below them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from . import terminal
from .kills import PHASES
from .process import Replica


class Quiet(terminal.Quiet):
    """Says nothing: for jobs run as a library, whose logs are in their folder."""

    def line(self, replica: str, text: str) -> None:
        """Pass on a line that a replica printed."""


class Lines(terminal.Lines, Quiet):
    """One line per event."""

    def line(self, replica: str, text: str) -> None:
        self.say(f"[{replica}] {text}")


class Table(terminal.Table, Quiet):
    """Lines above a table of the replicas."""

    def __init__(self, out: TextIO):
        super().__init__(out)
        self.followed: dict[str, Follower] = {}

    def line(self, replica: str, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(f"[{replica}] ", style="cyan") + Text.from_ansi(text), soft_wrap=True)

    def draw(self, replicas: Sequence[Replica], room: int = 0) -> Any:
        """Return the table as it stands."""
        from rich.table import Table as Grid

        grid = Grid("replica", "role", "state", "pid", "phase", "step", "examples/s", "restarts")
        for replica in replicas:
            grid.add_row(*self._row(replica))
        return grid

    def _row(self, replica: Replica) -> list[str]:
        last = self.followed.setdefault(replica.name, Follower(replica.events)).last()
        step, total, speed = (last.get(key) for key in ("step", "total_steps", "examples_per_second"))
        return [
            replica.name,
            f"{replica.member.role} {replica.member.index}",
            replica.state,
            str(replica.attempts[-1].pid or "") if replica.running else "",
            str(last.get("phase", "")),
            "" if step is None else f"{step}/{total}" if total else str(step),
            f"{speed:,.0f}" if isinstance(speed, (int, float)) else "",
            str(max(0, len(replica.attempts) - 1)),
        ]

    def close(self, replicas: Sequence[Replica]) -> None:
        super().close(replicas)
        self.followed.clear()  # a report may serve one job after the other


def for_terminal(out: TextIO | None = None) -> Quiet:
    """Return the report that suits `out`, by default standard output."""
    return terminal.choose(out, Lines, Table)


class Follower:
    """Reads a replica's event file as it grows; a missing file, or lines that are no events, are ignored."""

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
    """Return how far a program came: its last step, and how many checkpoints, evaluations and exports it reported."""
    reached: dict[str, int] = {}
    for event in Follower(path).new():
        phase, step = event.get("phase"), event.get("step")
        if isinstance(step, int):
            reached["step"] = max(step, reached.get("step", 0))
        if phase in PHASES:
            reached[phase] = reached.get(phase, 0) + 1
    return reached
