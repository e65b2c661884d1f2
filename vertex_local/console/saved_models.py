"""What a SavedModel takes and gives, read from its file without TensorFlow."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIGNATURE = "serving_default"
SAMPLES = "assets.extra/sample_predictions.jsonl"  # our trainers leave some answers there
_META_GRAPHS = 2 << 3 | 2  # the tag of `meta_graphs` in a SavedModel's message


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
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto import meta_graph_pb2

    try:
        graph = _first_meta_graph(path.read_bytes())
        signatures = meta_graph_pb2.MetaGraphDef.FromString(graph).signature_def
    except (DecodeError, IndexError):
        return None
    if SIGNATURE not in signatures:
        return None
    found = signatures[SIGNATURE]
    return Signature(_tensors(found.inputs), _tensors(found.outputs))


def sample(folder: Path) -> dict[str, str]:
    """Return an instance that the exporter left with the model, as a form's fields by input; nothing where it left none."""
    try:
        with open(folder / SAMPLES, encoding="utf-8") as file:
            instance = json.loads(file.readline())["instance"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    found = instance if isinstance(instance, dict) and "b64" not in instance else {"": instance}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items() if not isinstance(value, dict)}


def _tensors(infos: Mapping[str, Any]) -> tuple[Tensor, ...]:
    from tensorboard.compat.proto import types_pb2

    names = {2: "float64", 1: "float32", 3: "int32", 9: "int64", 7: "string", 10: "bool"}
    return tuple(
        Tensor(
            name, names.get(info.dtype) or types_pb2.DataType.Name(info.dtype).removeprefix("DT_").lower(),
            tuple(dim.size for dim in info.tensor_shape.dim),
        )
        for name, info in sorted(infos.items())
    )  # fmt: skip


def _first_meta_graph(data: bytes) -> bytes:
    """Return the first `meta_graphs` of a SavedModel's message, whose own class only TensorFlow has."""
    at = 0
    while True:
        tag, at = _varint(data, at)
        size, at = _varint(data, at)
        if tag == _META_GRAPHS:
            return data[at : at + size]
        at += size if tag & 7 == 2 else 0  # the version before it is a number, which has been read with `size`


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
        shift += 7
