"""The state of Keras callbacks, as part of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from .errors import UserError

WRITERS = ("ModelCheckpoint", "BackupAndRestore", "OrbaxCheckpoint")
KERAS_OWN = ("model", "_model", "params", "_params", "validation_data")


class Hooks:
    """Keras's list of callbacks, by the names of its hooks: `hooks.on_epoch_end(0, logs)`. What one raises is its own code's fault."""

    def __init__(self, callbacks: keras.callbacks.CallbackList, blame: Callable[[str], Any]):
        self._callbacks, self._blame = callbacks, blame

    def __getattr__(self, name: str) -> Callable[..., None]:
        hook = getattr(self._callbacks, name)

        def call(*args: Any) -> None:
            with self._blame(f"{name} of a callback"):
                hook(*args)

        return call


class CallbackStates:
    """The attributes of Keras callbacks that are data: numbers, texts, arrays, and lists, tuples and dicts of them."""

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]):
        for callback in callbacks:
            if any(kind.__name__ in WRITERS for kind in type(callback).__mro__):
                raise UserError(
                    f"callback {type(callback).__name__} writes checkpoints of its own, which a resumed run would not fit: "
                    "leave it out, the runtime checkpoints (--checkpoint_steps)."
                )
        self.callbacks = list(callbacks)

    def read(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """Return (attributes of each callback as JSON, the arrays in them by the names that stand for them there)."""
        arrays: dict[str, np.ndarray] = {}

        def keep(array: np.ndarray) -> str:
            name = f"callbacks/{len(arrays)}"
            arrays[name] = array
            return name

        plain: list[dict[str, Any]] = []
        for callback in self.callbacks:
            plain.append({})
            for name, value in vars(callback).items():
                if name not in KERAS_OWN and _is_data(value):
                    plain[-1][name] = _packed(value, keep)
        return plain, arrays

    def write(self, plain: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray]) -> None:
        """Give the callbacks what `read` returned."""
        for callback, attributes in zip(self.callbacks, plain):
            for name, value in attributes.items():
                setattr(callback, name, _unpacked(value, arrays))


def _is_data(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) for key in value) and all(map(_is_data, value.values()))
    return isinstance(value, (bool, int, float, str, type(None), np.floating, np.integer, np.ndarray))


def _packed(value: Any, keep: Callable[[np.ndarray], str]) -> Any:
    """Return a value as JSON, what JSON does not know as {kind: content}."""
    if isinstance(value, np.ndarray):
        return {"array": keep(value)}
    if isinstance(value, dict):
        return {"dict": [[key, _packed(each, keep)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_packed(each, keep) for each in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, arrays) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content]
    if kind == "tuple":
        return tuple(_unpacked(each, arrays) for each in content)
    return {key: _unpacked(each, arrays) for key, each in content}
