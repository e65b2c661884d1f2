"""The curves of runs, from TensorBoard's event files, of which each look reads only what is new."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from ..metadata.event_files import LogReader

MOST_POINTS = 1000  # of a curve, as a chart is about so many pixels wide; of a longer one every second is dropped until it fits
_MOST_FOLDERS = 256  # whose curves are remembered


@dataclass
class Curve:
    """One tag's values in a run: steps, which grow, and values."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        """Add a point. A run that was resumed writes the steps since its checkpoint once more: the later ones count."""
        place = bisect.bisect_left(self.steps, step)
        del self.steps[place:], self.values[place:]
        if len(self.steps) >= MOST_POINTS:
            del self.steps[:-1:2], self.values[:-1:2]
        self.steps.append(step)
        self.values.append(value)


class Curves:
    """Reads log folders and remembers what was in them."""

    def __init__(self) -> None:
        self._folders: OrderedDict[Path, tuple[LogReader, dict[str, dict[str, Curve]]]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, folder: Path) -> dict[str, dict[str, Curve]]:
        """Return the curves of a log folder: tag -> run, the folder below it that has the file, "" for itself -> curve."""
        with self._lock:
            reader, found = self._folders.pop(folder, None) or (LogReader(folder), {})
            for scalar in reader.scalars():
                found.setdefault(scalar.tag, {}).setdefault(scalar.run, Curve()).add(scalar.step, scalar.value)
            self._folders[folder] = reader, found
            while len(self._folders) > _MOST_FOLDERS:
                self._folders.popitem(last=False)
            return {tag: dict(runs) for tag, runs in found.items()}
