"""Rows from elsewhere than CSV files: an object with random access, or a `tf.data.Dataset`; both give chunks of columns."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from .columns import Column, Image, Text, is_input_name
from .contract import Contract, blame, iterate
from .data import PATH, BadRows, Chunk, objects, read
from .environment import quoted
from .errors import UserError
from .formats.folder import label_files, read_files
from .reporting import log

LABEL, WEIGHT = "_label", "_weight"  # the columns of a dataset's labels and weights
RESERVED = (LABEL, WEIGHT, PATH)
CHUNK_ROWS = 1024
_TENSORS = "biufc"  # NumPy's kinds of numbers


class IndexedSource:
    """An object with `len` and `[i]` (the convention of Grain's data sources) whose rows are dicts of values.

    Args:
        names: what each row must hold, whatever else it does.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()):
        if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
            raise UserError(f"source(files, hp) must return an object with len() and [i]; got {type(rows).__name__}.")
        self.rows, self.names, self.count = rows, names, len(rows)
        self.kinds: dict[str, np.dtype] = {}  # of each column: what the first rows that were asked for hold
        if not self.count:
            raise UserError("the source has no rows. Return some from source of model.py.")

    def take(self, places: Sequence[int] | np.ndarray) -> Chunk:
        """Return the rows at some places as a chunk."""
        found = [self.rows[int(place)] for place in places]
        for kind in dict.fromkeys(map(type, found)):
            if not issubclass(kind, Mapping):
                raise UserError(f"a row of source must be a dict of values by name; got {kind.__name__}.")
        names = dict.fromkeys([*found[0], *self.names])
        try:
            return {name: self._agreeing(name, _column([row[name] for row in found], name), places) for name in names}
        except KeyError:
            for place, row in zip(places, found):
                if lacking := [name for name in names if name not in row]:
                    there = ", ".join(map(str, row))[:120]
                    raise UserError(
                        f"row {place} of source lacks {quoted(lacking[0])}; it has {there}. Give all rows the same names."
                    ) from None
            raise

    def _agreeing(self, name: str, column: np.ndarray, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return a column in the type that it had first; refuse what that type cannot hold, such as 1.5 after whole numbers."""
        kind = self.kinds.setdefault(name, column.dtype)
        if column.dtype == kind:
            return column
        if "O" in (kind.kind, column.dtype.kind) or (column.dtype.kind == "c" and kind.kind != "c"):
            fits = np.zeros(len(column), bool)
        elif kind.kind in "fc":
            return column.astype(kind)
        else:
            with np.errstate(invalid="ignore"):
                found = column.astype(kind)
            fits = (found == column).reshape(len(column), -1).all(axis=1)
        if not fits.all():
            place = int(np.argmin(fits))
            held = "texts" if kind.kind == "O" else f"numbers of the type {kind}"
            raise UserError(
                f"row {places[place]} of source: {quoted(name)} is {quoted(str(self.rows[int(places[place])][name]))}, and the rows "
                f"before hold {held}. Give all rows one type, such as float."
            )
        return found

    def chunks(self) -> Iterator[Chunk]:
        for start in range(0, self.count, CHUNK_ROWS):
            yield self.take(range(start, min(start + CHUNK_ROWS, self.count)))


def _column(values: Sequence[Any], name: str) -> np.ndarray:
    """Stack the values of one column: texts as objects, Python's floats as float32, arrays as they are."""
    kinds = dict.fromkeys(map(type, values))
    are_texts = {issubclass(kind, (str, bytes)) for kind in kinds}
    if type(None) in kinds or len(are_texts) > 1:
        found = ", ".join(kind.__name__ for kind in kinds)[:120]
        raise UserError(f"the rows of source differ in the type of {quoted(name)}: {found}. Give NaN or an empty text where none is.")
    if are_texts == {True}:
        return objects([value.encode() if isinstance(value, str) else value for value in values])
    try:
        number = np.float32 if any(issubclass(kind, float) for kind in kinds) else None
        arrays = [np.asarray(value, number) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise _no_tensor(values, name) from None
    if len({array.shape for array in arrays}) > 1:
        shapes = sorted({array.shape for array in arrays})[:3]
        raise UserError(f"the rows of source differ in the shape of {quoted(name)}: {', '.join(map(str, shapes))}. Give them one shape.")
    column: Any = np.stack(arrays)
    if column.dtype.kind in "US":  # arrays of texts
        return np.char.encode(column, "utf-8").astype(object) if column.dtype.kind == "U" else column.astype(object)
    if column.dtype.kind not in _TENSORS:
        raise _no_tensor(values, name)
    return column


def _no_tensor(values: Sequence[Any], name: str) -> UserError:
    rule = "which is no number or text, and no dense array of them"
    return UserError(f"source: {quoted(name)} holds {quoted(str(values[0]))} ({type(values[0]).__name__}), {rule}. Convert it in source.")


def with_inferred_inputs(contract: Contract, chunk: Chunk) -> Contract:
    """Return the contract with what a request must hold where the module does not say it: all columns but labels and weight."""
    if contract.inputs is not None:
        return contract
    without = (*contract.labels, contract.weight)
    kinds = {name: tf.string if values.dtype == object else tf.as_dtype(values.dtype) for name, values in chunk.items()}
    named = [name for name in chunk if name not in without and name not in RESERVED and not name.startswith(f"{LABEL}/")]
    if odd := [name for name in named if not is_input_name(name)]:
        rule = "cannot be the name of a served input, which must be a plain identifier"
        raise UserError(f"{quoted(odd[0])} {rule}. Rename it in source or dataset of model.py.")
    return contract.with_inputs({name: tf.TensorSpec([None, *chunk[name].shape[1:]], kinds[name], name) for name in named})


class DatasetSource:
    """The `tf.data.Dataset` of single examples that a trainer makes anew for each epoch; read in its own order."""

    def __init__(self, contract: Contract, files: Sequence[str], hp: Any, training: bool, counted: bool = True):
        self.contract, self.files, self.hp, self.training, self.count = contract, files, hp, training, 0
        if not counted:
            return
        made = self._made(0)
        count = int(made.cardinality())
        if count < 0:
            start = time.monotonic()
            with blame(self.contract.module, "dataset"):
                count = int(made.reduce(np.int64(0), lambda total, *_: total + 1))
            took = f"{time.monotonic() - start:.1f} s"
            log("INFO", f"dataset: its length is not known, so it was run through once to count {count} examples ({took})")
        if not count:
            raise UserError("the dataset has no examples. Return some from dataset of model.py.")
        self.count = count

    def _made(self, epoch: int) -> tf.data.Dataset:
        made = self.contract.dataset(self.files, self.hp, epoch if self.training else None)
        spec = getattr(made, "element_spec", None)
        if not isinstance(made, tf.data.Dataset) or not isinstance(spec, tuple) or len(spec) not in (2, 3):
            found = str(spec or made)[:120]
            raise UserError(f"dataset(files, hp, epoch) must return a tf.data.Dataset of (features, label[, weight]); got {found}.")
        if made.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise UserError("the dataset has no end. Return one pass from dataset of model.py, without repeat().")
        for kind, part in zip(("features", "labels"), spec):
            if any(not isinstance(each, tf.TensorSpec) for each in (part.values() if isinstance(part, Mapping) else [part])):
                wanted = "a dense tensor or a dict of dense tensors"
                raise UserError(f"dataset: {kind} must be {wanted}; got {str(part)[:120]}. Change it by map().")
        if isinstance(spec[0], Mapping) and (odd := [name for name in spec[0] if name in RESERVED]):
            raise UserError(f"dataset: features cannot be called {odd[0]}. Rename it.")
        return made

    def chunks(self, epoch: int = 0, skip: int = 0) -> Iterator[Chunk]:
        """Yield the examples of an epoch in its order, from example `skip` on."""
        made = self._made(epoch)
        if skip:
            made = made.skip(skip)
        for features, label, *weight in iterate(made.batch(CHUNK_ROWS).as_numpy_iterator(), self.contract.module, "dataset"):
            chunk = dict(features) if isinstance(features, Mapping) else {"inputs": features}
            if isinstance(label, Mapping):
                chunk |= {f"{LABEL}/{name}": values for name, values in label.items()}
            else:
                chunk[LABEL] = label
            if weight:
                chunk[WEIGHT] = weight[0].astype(np.float32)
            yield chunk


def dataset_labels(chunk: Chunk, facts: Any) -> Any:
    """Return a dataset's labels as it gave them: an array, or a dict of arrays."""
    if LABEL in chunk:
        return chunk[LABEL]
    return {name.partition("/")[2]: values for name, values in chunk.items() if name.startswith(f"{LABEL}/")}


def dataset_weights(chunk: Chunk, hp: Any, facts: Any) -> np.ndarray | None:
    """Return a dataset's weights, None where it gives none."""
    return chunk.get(WEIGHT)


class FolderSource:
    """Files in a folder per label, read when they are asked for."""

    def __init__(self, roots: Sequence[str], column: Column, label: str, bad: BadRows):
        self.roots, self.column, self.label, self.bad = list(roots), column, label, bad
        self.files = [entry for root in roots for entry in label_files(root, column)]
        self.count = len(self.files)

    def take(self, places: Sequence[int] | np.ndarray) -> Chunk:
        """Return the rows at some places as a chunk."""
        found = [self.files[int(place)] for place in places]
        contents = [content for _, _, content in read_files(found)]
        names = [label.encode() for label, _ in found]
        return {self.column.name: objects(contents), self.label: objects(names), PATH: objects([os.fsencode(path) for _, path in found])}

    def chunks(self) -> Iterator[Chunk]:
        for root in self.roots:
            yield from read(root, (self.column, Text(self.label)), (self.label,), self.bad)

    def labels(self) -> Chunk:
        """Return the label column of all rows, without reading a file."""
        return {self.label: objects([label.encode() for label, _ in self.files])}


def source_of(
    contract: Contract, files: Sequence[str], hp: Any, training: bool, bad: BadRows, counted: bool = True
) -> IndexedSource | DatasetSource | FolderSource | None:
    """Return where the rows come from that are not read file by file: the trainer's own source or dataset, or folders of images.

    Args:
        training: whether they are trained on: a dataset is then told which epoch it is.
        counted: whether the length of a dataset is wanted.
    """
    if "dataset" in contract.given:
        return DatasetSource(contract, files, hp, training, counted)
    if "source" in contract.given:
        return IndexedSource(contract.source(files, hp), [name for name in (*contract.labels, contract.weight) if name])
    image = next((column for column in contract.columns if isinstance(column, Image)), None)
    if image is not None and "read" not in contract.given and all(map(os.path.isdir, files)):
        return FolderSource(files, image, contract.labels[0], bad)
    return None
