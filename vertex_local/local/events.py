"""Files of JSON lines that programs report to: a replica's events, and a trial's metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .kills import PHASES


class Follower:
    """Reads such a file as it grows; a missing file, or lines that are no objects, are ignored."""

    def __init__(self, path: Path):
        self.path, self.offset, self.rest = path, 0, b""
        self.fields: dict[str, Any] = {}

    def new(self) -> list[dict[str, Any]]:
        """Return the objects that came since the last call."""
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
