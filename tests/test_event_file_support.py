"""Event files as TensorFlow writes them, written without it: for tests, and for the jobs that tests run."""

from __future__ import annotations

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.record_writer import RecordWriter

FLOAT = 1  # of tensorflow.DataType


def scalar(tag: str, value: float, plugin: str = "scalars") -> Summary.Value:
    """Return a scalar as TensorFlow 2 writes it."""
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin)) if plugin else None
    return Summary.Value(tag=tag, metadata=metadata, tensor=TensorProto(dtype=FLOAT, float_val=[value]))


def write(path: Path, *values: Summary.Value, step: int = 0) -> None:
    """Append one event."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        writer = RecordWriter(file)
        writer.write(Event(step=step, wall_time=1000.0 + step, summary=Summary(value=values)).SerializeToString())
        writer.flush()
