"""Cutting evaluation rows off the training data (`--eval_fraction`, `--split_by`): which rows is a pure function of content and seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from .data import PATH, Chunk, take
from .environment import quoted
from .errors import UserError


@dataclass(frozen=True)
class Split:
    """Tells training rows from evaluation rows.

    `random` goes by a hash of the whole row, so that equal rows stay together; `group:COLUMN` by a hash of that column;
    `order:COLUMN` takes the rows with the highest values, from `edge` on; where one is missing, it is the lowest.
    """

    fraction: float
    kind: str
    column: str | None
    seed: int
    edge: Any = None

    def evaluates(self, chunk: Chunk) -> np.ndarray:
        """Return which rows are for evaluation: [rows] bool."""
        if self.kind == "order":
            return _sortable(chunk[self.column]) >= self.edge
        columns = [self.column] if self.column else sorted(name for name in chunk if name != PATH)
        return hash_rows(chunk, columns, self.seed) < int(self.fraction * 2**32)

    def part(self, chunks: Iterable[Chunk], evaluation: bool, all_rows: bool = False) -> Iterator[Chunk]:
        """Yield the chunks' rows that are for evaluation, or those that are not.

        Raises:
            UserError: there are none, and these are all rows of the data.
        """
        some = not all_rows
        for chunk in chunks:
            mask = self.evaluates(chunk) == evaluation
            some |= bool(mask.any())
            if mask.all():
                yield chunk
            elif mask.any():
                yield take(chunk, mask)
        if not some:
            by = ":".join(filter(None, (self.kind, self.column)))
            what = f"no row is left to {'evaluate' if evaluation else 'train'} on"
            raise UserError(f"--split_by={quoted(by)}, --eval_fraction={self.fraction:g}: {what}. Choose another column or fraction.")


def make_split(fraction: float, by: str, seed: int, chunks: Iterable[Chunk]) -> Split:
    """Return the split that the flags ask for; `order` reads the column once, for its quantile.

    Raises:
        UserError: a flag is malformed, or the column is not there.
    """
    if not 0 < fraction < 1:
        raise UserError(f"--eval_fraction must lie between 0 and 1; got {fraction:g}.")
    kind, _, column = by.partition(":")
    if kind not in ("random", "order", "group") or (kind == "random") == bool(column):
        raise UserError(f"--split_by must be random, order:COLUMN or group:COLUMN; got {quoted(by)}.")
    if kind != "order":
        split = Split(fraction, kind, column or None, seed)
        first = next(iter(chunks), None)
        _see_column(first, column)
        return split
    values = []
    for chunk in chunks:
        _see_column(chunk, column)
        values.append(_sortable(chunk[column]))
    ordered = np.sort(np.concatenate(values))
    place = min(len(ordered) - 1, max(1, round(len(ordered) * (1 - fraction))))
    return Split(fraction, kind, column, seed, ordered[place])


def _see_column(chunk: Chunk | None, column: str) -> None:
    if chunk is None:
        raise UserError("--eval_fraction: the training data has no rows. Name files with rows: --train_data_path.")
    if column and column not in chunk:
        known = ", ".join(name for name in chunk if name != PATH)
        raise UserError(f"--split_by names the column {quoted(column)}, which the rows lack; they have {known}.")


def _sortable(values: np.ndarray) -> np.ndarray:
    """Return values in which what is missing, NaN or an empty text, comes first."""
    if values.dtype == object:
        return values.astype(bytes)
    return np.where(np.isnan(values), -np.inf, values) if values.dtype.kind == "f" else values


def hash_rows(chunk: Chunk, columns: list[str], seed: int) -> np.ndarray:
    """Return a hash of each row's cells in some columns: [rows] uint32 values as int64, evenly spread."""
    total: np.ndarray | None = None
    for name in columns:
        values = chunk[name]
        if values.dtype == object:
            cells = tf.strings.to_hash_bucket_strong(tf.constant(values), 2**62, [seed & (2**62 - 1), 1]).numpy().astype(np.uint64)
        else:
            raw = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8).reshape(len(values), -1)
            texts = tf.strings.reduce_join(tf.strings.as_string(tf.constant(raw, tf.uint8)), 1, separator=",")
            cells = tf.strings.to_hash_bucket_strong(texts, 2**62, [seed & (2**62 - 1), 2]).numpy().astype(np.uint64)
        total = cells if total is None else total * np.uint64(0x9E3779B97F4A7C15) + cells
    mixed = (total ^ (total >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(32)).astype(np.int64)
