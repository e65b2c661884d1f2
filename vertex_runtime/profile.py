"""The profile of some rows: what their columns hold, small enough to keep beside a model, and how far other rows are from it.

A run keeps that of its training rows as `training_profile.json`, beside run.json and in the model's `assets.extra`. The rows
that an endpoint is asked, or that a model is evaluated on, are compared with it by the drift numbers of the data report.
Explanations take their baselines from it. Nothing here needs TensorFlow.

    python -m vertex_runtime.profile MODEL < instances.jsonl     # the distance of each column, as JSON
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .columns import Category, Column, Date, Image, Number, Text
from .data import Chunk, objects
from .data_report import sketches
from .data_report.parts import FEW, kind_of
from .errors import UserError, run_as_program
from .outputs import read_text

NAME = "training_profile.json"
KIND = "vertex_runtime profile"  # by which a file is known to be ours
ROWS = 20_000  # rows that a profile goes by, drawn at random
POINTS = 500  # of a column of numbers: values at even steps of their order
VALUES = 200  # of a category, the most frequent ones; the others are counted together
BINS = 10  # of numbers, by their quantiles in the first profile
TEXT_BYTES = 64  # of a text, by which texts are told apart
_KINDS = {"number": Number, "category": Category, "date": Date, "text": Text}


class Profile:
    """Draws a seeded sample of rows as they pass, and makes the profile of it."""

    def __init__(self, columns: Sequence[Column] = (), labels: Sequence[str] = (), seed: int = 0, rows: int = ROWS):
        """Prepare for rows whose `columns` may be known; of others the kind follows from the first chunk."""
        self.known, self.labels, self.rows = {column.name: column for column in columns}, tuple(labels), 0
        self.kinds: dict[str, str] = {}
        self.sample = sketches.RowSample(seed, rows)

    def add(self, chunk: Chunk) -> None:
        """Look at a chunk: columns [rows, ...]; those whose names begin with `_` are left out."""
        columns = {name: values for name, values in chunk.items() if not name.startswith("_")}
        count = len(next(iter(columns.values()))) if columns else 0
        if not count:
            return
        for name, values in columns.items():
            if name not in self.kinds:
                self.kinds[name] = kind_of(self.known.get(name), values, name in self.labels)
        self.rows += count
        self.sample.offer(count, lambda taken: {name: self._cells(name, values[taken]) for name, values in columns.items()})

    def _cells(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return what is kept of cells: numbers [rows], or objects [rows] for texts."""
        kind = self.kinds[name]
        if kind == "image":
            sizes = [sketches.image_size(content) for content in values]
            return objects([f"{size[0]} x {size[1]}".encode() if size else b"unknown" for size in sizes])
        if kind == "text":  # a long one as its beginning and its length
            texts = sketches.as_bytes(values)
            return objects([text if len(text) <= TEXT_BYTES else text[:TEXT_BYTES] + b"\0%d" % len(text) for text in texts])
        if kind == "array":
            return values.reshape(len(values), -1).astype(np.float64).mean(axis=1) if values.dtype.kind in "fiub" else np.zeros(len(values))
        return sketches.as_bytes(values) if values.dtype.kind in "OSU" else values.astype(np.float64)

    def as_json(self) -> dict[str, Any]:
        """Return the profile: {"kind", "rows", "sampled", "columns": {name: {"kind", "missing", …}}}.

        Of numbers, dates (seconds since 1970) and lengths of texts: mean, deviation, min, max, `points`; the `median` is a
        value that occurs, a date's as its text. Of what has few values: `values` [[value, rows]], the most frequent first, and
        `others`, rows with any other one.
        """
        columns = {name: _described(kind, self.sample.column(name)) for name, kind in self.kinds.items()}
        sampled = len(self.sample.column(""))
        labels = [name for name in columns if name in self.labels]
        return {"kind": KIND, "rows": self.rows, "sampled": sampled, "labels": labels, "columns": columns}


def profile_of(chunks: Iterable[Chunk], columns: Sequence[Column] = (), labels: Sequence[str] = (), seed: int = 0) -> dict[str, Any]:
    """Return the profile of some rows, in its JSON form.

    Args:
        chunks: columns [rows, ...] of numbers, or of objects (bytes) for texts; a missing cell is NaN or an empty text.
        columns: what is known of the columns.
        labels: the columns to predict, by which a category is told from a number.
        seed: of the sample of `ROWS` rows.
    """
    made = Profile(columns, labels, seed)
    for chunk in chunks:
        made.add(chunk)
    return made.as_json()


def distance(profile: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """Return the Jensen-Shannon distance of each column that two profiles have in common: 0 (alike) to 1."""
    return {name: found["distance"] for name, found in compare(profile, other).items()}


def compare(profile: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the drift of each column that two profiles have in common: {"distance", "chance", "drifts"}.

    `chance` is what two samples of the same rows exceed once in ten thousand times; it drifts where the distance is at least
    0.1 and above that.
    """
    found = {}
    for name, first in profile["columns"].items():
        second = other["columns"].get(name)
        histograms = _histograms(first, second) if second and second["kind"] == first["kind"] else None
        said = sketches.drift(*histograms) if histograms else None
        if said:
            found[name] = said
    return found


def chunk_of(instances: Sequence[Any], profile: Mapping[str, Any]) -> Chunk:
    """Return the instances of requests as a chunk, as far as `profile` knows their columns; what does not fit is a missing cell."""
    inputs = {name: said for name, said in profile["columns"].items() if name not in profile.get("labels", ())}
    only = next(iter(inputs), "")
    rows = [each if isinstance(each, dict) and set(each) != {"b64"} else {only: each} for each in instances]
    chunk: Chunk = {}
    for name, said in inputs.items():
        if said["kind"] == "array" or not any(name in row for row in rows):
            continue
        cells = [row.get(name) for row in rows]
        if said["kind"] == "number":
            plain = [cell if isinstance(cell, (int, float)) else math.nan for cell in cells]
            chunk[name] = np.array(plain, np.float64).astype(np.float32)
        else:
            chunk[name] = objects([_bytes(cell) for cell in cells])
    return chunk


def columns_of(profile: Mapping[str, Any]) -> list[Column]:
    """Return the columns of a profile by name and kind, for another profile of the same ones; those of arrays are left out."""
    found: list[Column] = [_KINDS[said["kind"]](name) for name, said in profile["columns"].items() if said["kind"] in _KINDS]
    images = [name for name, said in profile["columns"].items() if said["kind"] == "image" and name.endswith("_bytes")]
    return found + [Image(name) for name in images]


def load(model: str) -> dict[str, Any] | None:
    """Return the profile of a model's training rows; None where there is none.

    Args:
        model: the SavedModel's folder, on this machine or in a bucket.
    """
    folder = model.rstrip("/")
    for path in (f"{folder}/assets.extra/{NAME}", f"{os.path.dirname(folder)}/{NAME}"):
        if found := read(path):
            return found
    return None


def read(path: str) -> dict[str, Any] | None:
    """Return the profile that a file holds; None where there is no such file, or it is none of ours."""
    try:
        text = read_text(path)
        return json.loads(text) if KIND in text else None
    except (OSError, ValueError):
        return None


# ------------------------------------------------------------------ one column


def _described(kind: str, cells: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": kind}
    numbers = _numbers(kind, cells)
    absent = np.isnan(numbers) if numbers is not None else np.array([not cell for cell in cells], bool)
    given = cells[~absent]
    found |= {"missing": int(absent.sum()), "given": len(given)}
    if numbers is not None and len(given):
        found |= _measured(kind, numbers[~absent], given)
    values, counts = np.unique(given.astype(bytes) if given.dtype == object else given, return_counts=True)
    most = VALUES if kind in ("category", "image") else FEW
    if kind in ("category", "image") or (kind in ("number", "text") and 0 < len(values) <= most):
        order = np.lexsort((np.arange(len(values)), -counts))[:most]
        found["values"] = [[_plain(values[i]), int(counts[i])] for i in order]
        found["others"] = int(counts.sum() - counts[order].sum())
    return found


def _numbers(kind: str, cells: np.ndarray) -> np.ndarray | None:
    """Return cells as numbers, NaN for missing: dates as seconds, texts as lengths in bytes; None for categories and images."""
    if kind in ("category", "image"):
        return None
    if kind == "date":
        return sketches.seconds_of(cells)
    if kind == "text":
        lengths = [int(cell[TEXT_BYTES + 1 :]) if len(cell) > TEXT_BYTES else len(cell) for cell in cells]
        return np.array([length or math.nan for length in lengths], np.float64)
    return np.where(np.isfinite(cells), cells, math.nan) if cells.dtype.kind == "f" else cells.astype(np.float64)


def _measured(kind: str, numbers: np.ndarray, cells: np.ndarray) -> dict[str, Any]:
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    places = np.unique(np.round(np.linspace(0, len(ordered) - 1, min(POINTS, len(ordered)))).astype(int))
    middle = order[(len(order) - 1) // 2]
    median = numbers[middle] if kind != "date" else cells[middle]
    return {
        "mean": float(numbers.mean()), "deviation": float(numbers.std()), "min": float(ordered[0]), "max": float(ordered[-1]),
        "median": _plain(median), "points": [_short(value) for value in ordered[places]],
    }  # fmt: skip


def _histograms(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the rows of two columns over the same bins: by value where the first has few of them, else by its quantiles."""
    if "values" in first and ("values" in second or first["kind"] in ("category", "image")):
        keys = list(dict.fromkeys([*(value for value, _ in first["values"]), *(value for value, _ in second.get("values", ()))]))
        sides = []
        for side in (first, second):
            counts = dict(map(tuple, side.get("values", ())))
            sides.append(np.array([*(counts.get(key, 0) for key in keys), side.get("others", 0), side["missing"]], float))
        return sides[0], sides[1]
    if "points" not in first:
        return None
    points = np.array(first["points"])
    bins = min(BINS, max(2, min(len(points), len(second.get("points", ())) or len(points)) // 5))
    edges = np.unique(np.quantile(points, np.linspace(0, 1, bins + 1)[1:-1]))
    return _binned(first, edges), _binned(second, edges)


def _binned(side: Mapping[str, Any], edges: np.ndarray) -> np.ndarray:
    """Return a column's rows between some edges, and its missing cells: the points stand for all rows alike."""
    points = np.array(side.get("points", ()), float)
    counts = np.bincount(np.searchsorted(edges, points, side="left"), minlength=len(edges) + 1) if len(points) else np.zeros(len(edges) + 1)
    rows = side.get("given", 0)
    return np.r_[counts * (rows / max(1, len(points))), side["missing"]]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return _short(value)


def _short(value: Any) -> float:
    """Return a number in at most seven digits, which is what a float32 has."""
    number = float(value)
    return number if number.is_integer() and abs(number) < 1 << 53 else float(f"{number:.7g}")


def _bytes(cell: Any) -> bytes:
    if isinstance(cell, dict) and set(cell) == {"b64"}:
        try:
            return base64.b64decode(cell["b64"])
        except (ValueError, TypeError):
            return b""
    return cell.encode() if isinstance(cell, str) else b""


# ------------------------------------------------------------------ the command


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Compare the instances of requests, JSON lines from stdin, with a model's training rows; print the drift of each column."""
    parser = argparse.ArgumentParser(prog="python -m vertex_runtime.profile", description=main.__doc__)
    parser.add_argument("model", help="folder of the exported model, or a training_profile.json")
    args = parser.parse_args(argv)
    profile = read(args.model) if args.model.endswith(".json") else load(args.model)
    if profile is None:
        raise UserError(f"{args.model} has no {NAME}: give the folder of a model that a run of this project exported.")
    instances = []
    for number, line in enumerate(sys.stdin, 1):
        try:
            instances += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f"line {number}: not JSON ({error}); got {line.strip()[:80]!r}. Write one instance a line.") from None
    other = profile_of([chunk_of(instances, profile)] if instances else [], columns_of(profile))
    found = {"rows": len(instances), "columns": compare(profile, other)}
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    run_as_program(main)
