"""The state of Keras callbacks, as part of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from .errors import UserError


class CallbackStates:
    """The plain attributes of Keras callbacks, as part of a checkpoint."""

    WRITERS = ("ModelCheckpoint", "BackupAndRestore", "OrbaxCheckpoint")

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]):
        for callback in callbacks:
            if any(kind.__name__ in self.WRITERS for kind in type(callback).__mro__):
                raise UserError(
                    f"callback {type(callback).__name__} writes checkpoints of its own, which a resumed run would not fit: "
                    "leave it out, the runtime checkpoints (--checkpoint_steps)."
                )
        self.callbacks = list(callbacks)

    def read(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """Return (plain attributes of each callback, arrays by name)."""
        plain: list[dict[str, Any]] = []
        arrays: dict[str, np.ndarray] = {}
        for i, callback in enumerate(self.callbacks):
            plain.append({})
            for name, value in vars(callback).items():
                if name in ("model", "_model", "params", "validation_data"):
                    continue
                if isinstance(value, (bool, int, float, str, type(None), np.floating, np.integer)):
                    plain[i][name] = value.item() if isinstance(value, np.generic) else value
                elif isinstance(value, np.ndarray):
                    arrays[f"callbacks/{i}/{name}"] = value
                elif isinstance(value, (list, tuple)) and value and all(isinstance(item, np.ndarray) for item in value):
                    plain[i][name] = {"arrays": len(value)}
                    arrays.update({f"callbacks/{i}/{name}/{j}": item for j, item in enumerate(value)})
        return plain, arrays

    def write(self, plain: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray]) -> None:
        for i, (callback, attributes) in enumerate(zip(self.callbacks, plain)):
            for name, value in attributes.items():
                if isinstance(value, dict):
                    value = [arrays[f"callbacks/{i}/{name}/{j}"] for j in range(value["arrays"])]
                setattr(callback, name, value)
            prefix = f"callbacks/{i}/"
            for name, value in arrays.items():
                if name.startswith(prefix) and "/" not in name[len(prefix) :]:
                    setattr(callback, name[len(prefix) :], value)
