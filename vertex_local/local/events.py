"""Files of JSON lines that programs report to: a replica's events, and a trial's metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
