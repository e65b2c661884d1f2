"""What is learnt of the training rows, and is kept in `--cache_dir`, so that later runs do not read the rows for it again.

An entry belongs to the rows' content, the trainer's source and those hyperparameters that `learn` has read: trials of a study
that differ in others share it. It holds arrays and JSON, and never code: what has no such form is learnt anew by every run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from . import data
from .cache import only_one
from .columns import Category, Text
from .contract import Contract
from .errors import UserError
from .reporting import log

PLAIN = (type(None), bool, int, float, str)


def learn(
    contract: Contract, hp: Any, chunks: Callable[[], Iterator[data.Chunk]], labels: Callable[[], Iterable[data.Chunk]] | None = None
) -> Any:
    """Return what the trainer learns of its training rows, with the classes of text labels where the defaults need them.

    Args:
        chunks: starts reading the training rows.
        labels: starts reading their labels alone, where that is cheaper.
    """
    texts: list[str] = []
    if learns_classes(contract):
        texts = text_labels(contract)
        if not contract.columns and (first := next(chunks(), None)) is not None:
            texts = [label for label in contract.labels if first[label].dtype == object]
    seen: dict[str, set[bytes]] = {label: set() for label in texts}

    def watch(rows: Iterable[data.Chunk]) -> Iterator[data.Chunk]:
        for chunk in rows:
            for label in texts:
                seen[label].update(np.unique(chunk[label].astype(bytes)).tolist())
            yield chunk

    if "learn" in contract.given:
        watched = watch(chunks())
        facts = contract.learn(watched, hp)
        for _ in watched if texts else ():  # what `learn` left unread
            pass
    else:
        facts = {}
        for _ in watch((labels or chunks)()) if texts else ():
            pass
    if not texts or (isinstance(facts, Mapping) and "class_names" in facts):
        return facts
    if not isinstance(facts, Mapping):
        raise UserError("learn must return a dict where the classes of a text label are to be added; or write encode_labels.")
    names = {label: [name.decode("utf-8", "replace") for name in sorted(found)] for label, found in seen.items()}
    return dict(facts) | {"class_names": names if len(contract.labels) > 1 else names[texts[0]]}


def text_labels(contract: Contract) -> list[str]:
    """Return the labels that COLUMNS say are texts."""
    return [c.name for c in contract.columns if c.name in contract.labels and isinstance(c, (Category, Text))]


def learns_classes(contract: Contract) -> bool:
    """Tell whether the classes of the labels may have to be found in the training rows."""
    return "encode_labels" not in contract.given and bool(text_labels(contract) or not contract.columns)


# ------------------------------------------------------------------ what is kept


def kept(folder: str, name: str, made_of: Mapping[str, Any], hp: Any, learn: Callable[[Any], Any], beat: Callable[[], None]) -> Any:
    """Return what an earlier run has learnt of the same rows, or what `learn(hp)` returns, which is kept for later ones.

    Args:
        folder: where it is kept; processes that look there at the same time learn one after the other.
        name: what the entries' names begin with.
        made_of: all that the result follows from beside hyperparameters, in JSON's types.
        hp: the hyperparameters, a dataclass.
        beat: called while another process learns.

    Raises:
        UserError: the folder cannot be written to; or what `learn` raises.
    """
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:24]
    name = f"{name}-learnt-{key}"
    with only_one(folder, name, beat):
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), f"{name}-*.npz"))):
            with contextlib.suppress(Exception):  # half a file, or a damaged one: learnt anew, and written over
                found, fields = _read(path, hp)
                if fields is not None:
                    log("INFO", f"cache: what an earlier run has learnt of the same rows is taken from {folder}")
                    return found
        watched, used = watch(hp)
        before = _draws()
        found = learn(watched)
        if _draws() != before:
            used.add("seed")  # which random numbers it drew follows from the seed, though it did not ask for that
        try:
            _write(folder, name, found, {field: getattr(hp, field) for field in sorted(used)})
        except NoForm as error:
            what = "Arrays, numbers, texts, and lists and dicts of them are kept"
            log("INFO", f"cache: what learn returns holds {error}, which is kept in no file: every run learns anew. {what}.")
    return found


def watch(hp: Any) -> tuple[Any, set[str]]:
    """Return hyperparameters that behave as `hp`, and the names of the fields that have been read of them so far."""
    names, read = {field.name for field in dataclasses.fields(hp)}, set()

    def look_up(self: Any, attribute: str) -> Any:
        if attribute in names:
            read.add(attribute)
        elif attribute == "__dict__":
            read.update(names)
        return object.__getattribute__(self, attribute)

    kind = type(type(hp).__name__, (type(hp),), {"__getattribute__": look_up, "__module__": type(hp).__module__})
    watched = object.__new__(kind)
    for field in names:
        object.__setattr__(watched, field, getattr(hp, field))
    return watched, read


def _draws() -> str:
    """Return a text that changes when random numbers are drawn: from Python's, NumPy's or TensorFlow's common generator."""
    state = repr((random.getstate(), [np.asarray(part).tolist() for part in np.random.get_state()]))
    with contextlib.suppress(Exception):  # not public: without it, TensorFlow's draws go unnoticed
        from tensorflow.python.eager import context

        state += repr(context.context()._rng.getstate())
    with contextlib.suppress(Exception):
        from keras.src.backend.common import global_state

        generator = global_state.get_global_attribute("global_seed_generator")
        state += "" if generator is None else repr(generator.state.numpy().tolist())
    return hashlib.sha256(state.encode()).hexdigest()


# ------------------------------------------------------------------ the form


class NoForm(Exception):
    """A value that neither JSON nor an array holds."""


def pack(value: Any) -> tuple[Any, list[np.ndarray]]:
    """Return (what JSON holds, arrays that it names by their place) for what `unpack` turns into the very same value.

    Raises:
        NoForm: there is none, such as for a layer or a set; the message names the type and its place.
    """
    arrays: list[np.ndarray] = []
    return _pack(value, arrays, "it"), arrays


def _pack(value: Any, arrays: list[np.ndarray], where: str) -> Any:
    kind = type(value)  # a subclass may behave otherwise
    if kind in PLAIN:
        return value
    if kind in (list, tuple):
        return [kind.__name__, [_pack(part, arrays, f"{where}[{i}]") for i, part in enumerate(value)]]
    if kind is dict:
        return ["dict", [[_pack(k, arrays, f"a key of {where}"), _pack(v, arrays, f"{where}[{k!r}]")] for k, v in value.items()]]
    if kind is bytes:
        return ["bytes", value.hex()]
    if isinstance(value, tf.Tensor) and hasattr(value, "numpy"):
        return ["tensor", _pack(np.asarray(value.numpy(), object if value.dtype == tf.string else None), arrays, where)]
    if kind is np.ndarray and value.dtype == object:
        return ["objects", list(value.shape), [_pack(part, arrays, where) for part in value.ravel().tolist()]]
    if kind is np.ndarray or isinstance(value, np.generic):
        if np.dtype(value.dtype.str) == value.dtype and not value.dtype.hasobject:  # bfloat16 and the like would lose their type
            arrays.append(np.asarray(value))
            return ["array" if kind is np.ndarray else "number", len(arrays) - 1]
    raise NoForm(f"{where}, of type {kind.__module__}.{kind.__qualname__}" if where != "it" else f"{kind.__module__}.{kind.__qualname__}")


def unpack(said: Any, arrays: list[np.ndarray]) -> Any:
    """Return the value that `pack` was given."""
    if not isinstance(said, list):
        return said
    kind, content = said[0], said[-1]
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](unpack(part, arrays) for part in content)
    if kind == "dict":
        return {unpack(k, arrays): unpack(v, arrays) for k, v in content}
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "tensor":
        return tf.constant(unpack(content, arrays))
    if kind == "objects":
        found = np.empty(len(content), object)
        found[:] = [unpack(part, arrays) for part in content]
        return found.reshape(said[1])
    return arrays[content] if kind == "array" else arrays[content][()]


def _write(folder: str, name: str, value: Any, fields: Mapping[str, Any]) -> None:
    said, arrays = pack(value)
    used = json.dumps(fields, sort_keys=True)
    path = os.path.join(folder, f"{name}-{hashlib.sha256(used.encode()).hexdigest()[:12]}.npz")
    members: dict[str, Any] = {"fields": _letters(used), "value": _letters(json.dumps(said))}
    members |= {str(i): array for i, array in enumerate(arrays)}
    handle, part = tempfile.mkstemp(".part", f"{name}-", folder)
    try:
        with open(handle, "wb") as file:
            np.savez(file, **members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # it would have been for later runs only
        os.unlink(part)
        log("WARNING", f"cache: what was learnt cannot be kept in {folder}: {error.strerror}. Name a folder with room: --cache_dir.")


def _letters(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _read(path: str, hp: Any) -> tuple[Any, Mapping[str, Any] | None]:
    """Return (the value, the fields it follows from); None for these where `hp` has them otherwise."""
    with np.load(path, allow_pickle=False) as found:
        fields = json.loads(found["fields"].tobytes())
        if json.loads(json.dumps({field: getattr(hp, field) for field in fields})) != fields:
            return None, None
        members: Iterator[str] = (str(i) for i in range(len(found.files) - 2))
        return unpack(json.loads(found["value"].tobytes()), [found[member] for member in members]), fields
