"""TensorBoard's event files, read without TensorFlow: the runs in a folder and their scalars.

A file is a sequence of records: length (8 bytes, little-endian), checksum of the length (4), an Event as protobuf,
checksum of the Event (4).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

_HEAD, _TAIL = 12, 4  # bytes before and after a record's content
_LARGEST = 1 << 30  # bytes of a record; a greater length means a damaged file
_SCALARS = "scalars"  # the plugin whose tensors are single numbers
_FLOAT, _DOUBLE = 1, 2  # members of tensorflow.DataType


@dataclass(frozen=True)
class Scalar:
    """One value: `run` is its file's folder relative to the log directory ("" for that itself); `time` in seconds since 1970."""

    run: str
    tag: str
    step: int
    time: float
    value: float


@dataclass
class LogReader:
    """Reads what is new in a log directory at each call; a record that is only half written is read at a later call."""

    folder: Path
    _read: dict[Path, int] = field(default_factory=dict)  # bytes of each file that have been read
    _tags: set[tuple[str, str]] = field(default_factory=set)  # (run, tag) of scalars that are kept as tensors

    def scalars(self) -> Iterator[Scalar]:
        """Yield the scalars that were written since the last call."""
        for path in sorted(self.folder.rglob("*tfevents*")):
            if not path.is_file():
                continue
            run = path.parent.relative_to(self.folder).as_posix()
            run = "" if run == "." else run
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                for content in records_of(file):
                    yield from self._of_event(run, content)
                    self._read[path] = file.tell()

    def _of_event(self, run: str, content: bytes) -> Iterator[Scalar]:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event

        try:
            event = Event.FromString(content)
        except DecodeError:
            return  # this record is damaged; others may be whole
        for value in event.summary.value if event.HasField("summary") else ():
            found = value.simple_value if value.WhichOneof("value") == "simple_value" else self._of_tensor(run, value)
            if found is not None:
                yield Scalar(run, value.tag, event.step, event.wall_time, found)

    def _of_tensor(self, run: str, value: Any) -> float | None:
        """Return the number of a scalar that is written as a tensor; only the first value of a tag says that it is a scalar."""
        if value.metadata.plugin_data.plugin_name == _SCALARS:
            self._tags.add((run, value.tag))
        if (run, value.tag) not in self._tags or value.WhichOneof("value") != "tensor":
            return None
        tensor = value.tensor
        if tensor.dtype == _FLOAT:
            return tensor.float_val[0] if tensor.float_val else _number(tensor.tensor_content, "<f")
        if tensor.dtype == _DOUBLE:
            return tensor.double_val[0] if tensor.double_val else _number(tensor.tensor_content, "<d")
        return None


def _number(content: bytes, form: str) -> float | None:
    return struct.unpack(form, content)[0] if len(content) == struct.calcsize(form) else None


def records_of(file: BinaryIO) -> Iterator[bytes]:
    """Yield the contents of whole records; at each, the file's position is the end of that record."""
    while True:
        start = file.tell()
        head = file.read(_HEAD)
        size = int.from_bytes(head[:8], "little")
        if len(head) < _HEAD or size > _LARGEST or size > os.fstat(file.fileno()).st_size - start:
            return
        content = file.read(size)
        if len(content) < size or len(file.read(_TAIL)) < _TAIL:
            return
        yield content
