"""Curves from TensorBoard's event files, read as they grow and without TensorFlow, which its own reader would import."""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER = struct.Struct("<QI")  # a record's length and its checksum; the record and its own checksum follow
_LONGEST_RECORD = 64 << 20
_MOST_FILES = 256  # whose curves are remembered
MOST_POINTS = 2000  # of a curve; of a longer one every second is dropped until it fits


@dataclass
class Curve:
    """One tag's values: steps, values, and seconds since 1970."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, step: int, value: float, when: float) -> None:
        """Add a point; where there are too many, every second of those before is dropped."""
        if len(self.steps) >= MOST_POINTS:
            for values in (self.steps, self.values, self.times):
                del values[:-1:2]
        self.steps.append(step)
        self.values.append(value)
        self.times.append(when)


@dataclass
class _File:
    offset: int = 0
    curves: dict[str, Curve] = field(default_factory=dict)


class EventFiles:
    """Reads the scalars of event files, of each only what is new since the last time."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, _File] = OrderedDict()
        self._lock = threading.Lock()

    def curves(self, folder: Path) -> dict[str, dict[str, Curve]]:
        """Return the curves of a log folder: tag -> run, the folder below it that has the file, "" for itself -> curve."""
        found: dict[str, dict[str, Curve]] = {}
        with self._lock:
            for path in sorted(folder.glob("**/*.tfevents.*")):
                run = path.parent.relative_to(folder).as_posix()
                for tag, curve in self._read(path).items():
                    runs = found.setdefault(tag, {})
                    name = "" if run == "." else run
                    runs[name] = _joined(runs[name], curve) if name in runs else curve
        return found

    def _read(self, path: Path) -> dict[str, Curve]:
        known = self._files.pop(path, None) or _File()
        try:
            if path.stat().st_size < known.offset:  # another file of that name
                known = _File()
            with open(path, "rb") as file:
                file.seek(known.offset)
                for record in _records(file):
                    for tag, step, value, when in _scalars(record):
                        known.curves.setdefault(tag, Curve()).add(step, value, when)
                    known.offset = file.tell()
        except OSError:
            return known.curves
        self._files[path] = known
        while len(self._files) > _MOST_FILES:
            self._files.popitem(last=False)
        return known.curves


def _joined(first: Curve, second: Curve) -> Curve:
    """Return two curves of one run as one: a run that was resumed wrote the steps since its checkpoint twice, the later ones count."""
    earlier, later = sorted((first, second), key=lambda curve: curve.times[0] if curve.times else 0.0)
    begin = min(later.steps, default=0)
    kept = [i for i, step in enumerate(earlier.steps) if step < begin]
    return Curve(*([values[i] for i in kept] + more for values, more in (
        (earlier.steps, later.steps), (earlier.values, later.values), (earlier.times, later.times)
    )))  # fmt: skip


def _records(file: Any) -> Iterator[bytes]:
    """Yield the whole records that follow; one that is still being written is left for the next time."""
    while len(header := file.read(_HEADER.size)) == _HEADER.size:
        length = _HEADER.unpack(header)[0]
        if length > _LONGEST_RECORD:
            return
        record = file.read(length + 4)
        if len(record) < length + 4:
            return
        yield record[:length]


def _scalars(record: bytes) -> Iterator[tuple[str, int, float, float]]:
    """Yield (tag, step, value, seconds since 1970) of an event's scalars."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto import event_pb2
    from tensorboard.util import tensor_util

    try:
        event = event_pb2.Event.FromString(record)
    except DecodeError:
        return
    for value in event.summary.value:
        if value.HasField("simple_value"):
            yield value.tag, event.step, float(value.simple_value), event.wall_time
        elif value.HasField("tensor") and not value.tensor.tensor_shape.dim and value.tensor.dtype in (1, 2):  # float, double
            yield value.tag, event.step, float(tensor_util.make_ndarray(value.tensor)), event.wall_time
