"""What a SavedModel takes and gives, read from its file without TensorFlow."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message

SIGNATURE = "serving_default"
SAMPLES = "assets.extra/sample_predictions.jsonl"  # our trainers leave some answers there


@dataclass(frozen=True)
class Tensor:
    """An input or output: its dtype as `float32` or `string`, and its shape, in which -1 is any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_file(self) -> bool:
        """Whether a request sends it as base64, which the service tells by the name."""
        return self.dtype == "string" and self.name.endswith("_bytes")

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('any' if size < 0 else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of the signature that serves, in the order of their names."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def signature(folder: Path) -> Signature | None:
    """Return the signature of the SavedModel in a folder; None if it has none, or there is no SavedModel."""
    path = folder / "saved_model.pb"
    try:
        return _signature(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(64)
def _signature(path: Path, changed: int) -> Signature | None:
    """Read a file's signature; once for each time it has `changed`, for pages that are live ask again and again."""
    try:
        graphs = _message_class().FromString(path.read_bytes()).meta_graphs
    except DecodeError:
        return None
    if not graphs or SIGNATURE not in graphs[0].signature_def:
        return None
    found = graphs[0].signature_def[SIGNATURE]
    return Signature(_tensors(found.inputs), _tensors(found.outputs))


@functools.cache
def _message_class() -> type[Message]:
    """Return the class of TensorFlow's SavedModel message, with the one field of it that is read; TensorBoard has not this class."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from tensorboard.compat.proto import meta_graph_pb2

    field = descriptor_pb2.FieldDescriptorProto
    graph = meta_graph_pb2.MetaGraphDef.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto(name="vertex_local/saved_model.proto", package="vertex_local", dependency=[graph.file.name])
    file.message_type.add(name="SavedModel").field.add(
        name="meta_graphs", number=2, label=field.LABEL_REPEATED, type=field.TYPE_MESSAGE, type_name=f".{graph.full_name}"
    )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vertex_local.SavedModel"))


def sample(folder: Path, signature: Signature) -> dict[str, str]:
    """Return an instance that the exporter left with the model, as a form's fields by input; nothing where it left none."""
    try:
        with open(folder / SAMPLES, encoding="utf-8") as file:
            instance = json.loads(file.readline())["instance"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    found = instance if isinstance(instance, dict) and "b64" not in instance else {each.name: instance for each in signature.inputs[:1]}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items() if not isinstance(value, dict)}


def _tensors(infos: Mapping[str, Any]) -> tuple[Tensor, ...]:
    from tensorboard.compat.proto import types_pb2

    names = {"float": "float32", "double": "float64"}
    found = []
    for name, info in sorted(infos.items()):
        kind = types_pb2.DataType.Name(info.dtype).removeprefix("DT_").lower()
        found.append(Tensor(name, names.get(kind, kind), tuple(dim.size for dim in info.tensor_shape.dim)))
    return tuple(found)
