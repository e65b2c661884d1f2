"""Readers of training files, one module a format; what they read travels as Arrow record batches and is checked by column.

A module in this package is a format. It has

- `NAMES`: what the format is called, in `AIP_DATA_FORMAT` and in messages; `SUFFIXES`: how its files' names end;
- `recognises(head)`: whether a file that starts so (decompressed) is of this format;
- `read(path, columns, bad, reading)`: the rows as they are, `Raw`; what cannot even be told apart goes to `bad`;
- where its files say so themselves, `count_rows(path)`; where somebody may look for a label, `line_of(path, text)`;
- where it needs them, `SCHEMES`: how paths start that are no files (`bq`), whose module also has `count(path, reading)`, None
  where only reading tells, and `fingerprint(path, reading)`, as `data.fingerprint`; `PRECEDENCE`: where two formats recognise a
  file, the higher is meant (default 0); `FOLDERS = True`: its paths are folders.

Nothing lists the modules: a new format is a new file. One whose name starts with an underscore is no format.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from .. import data
from ..ahead import ahead
from ..columns import Column
from ..data import PATH, ROW, BadRows, Chunk, split_part
from ..errors import UserError
from ..reporting import log
from ..shares import Part
from . import _streams

_NEAR = 50_000  # rows of a file, up to which the line of a bad row is looked for though nobody stops at it
_BLOCK_ROWS = 50_000  # of rows that Python reads one by one
_without_rows: set[str] = set()  # files that were reported to have none


@dataclass(frozen=True)
class Raw:
    """Rows as a file has them, unchecked.

    Args:
        batch: cells by the name of their column, texts (binary or string) or typed.
        place: names row i of the batch for messages, such as "file, line 7"; None: by its number, "file, row 7".
    """

    batch: pa.RecordBatch
    place: Callable[[int], str] | None = None


@dataclass(frozen=True)
class Fault:
    """What `BadRows.add` is told of a row that cannot even be told apart."""

    place: str
    reason: str
    value: object


def in_blocks(
    rows: Iterable[tuple[Any, Sequence[Any]] | Fault], names: Sequence[str], bad: BadRows, place: Callable[[Any], str] = str
) -> Iterator[Raw]:
    """Put rows that were read one by one together, into blocks of about 4 MiB.

    A fault goes to `bad` once the rows before it have been taken, for one of them may be bad as well.

    Args:
        rows: what `place` makes a row's place of, and its cells, bytes or texts, in the order of `names`.
    """
    kept: list[tuple[Any, Sequence[Any]]] = []
    size = 0
    for row in itertools.chain(rows, [None]):
        if isinstance(row, tuple):
            kept.append(row)
            size += sum(map(len, filter(None, row[1])))
        if kept and (not isinstance(row, tuple) or size >= data.BLOCK_BYTES or len(kept) >= _BLOCK_ROWS):
            keys, cells = zip(*kept)
            batch = pa.RecordBatch.from_arrays([pa.array(column, pa.binary()) for column in zip(*cells)], list(names))
            yield Raw(batch, lambda i, keys=keys: place(keys[i]))
            kept, size = [], 0
        if isinstance(row, Fault):
            bad.add(row.place, row.reason, row.value)


@dataclass(frozen=True)
class Reading:
    """How to read.

    Args:
        format: the value of `AIP_DATA_FORMAT`, None where nobody said.
        row_filter: a condition that the place of the rows applies itself, such as BigQuery's row restriction.
        project: the cloud project that pays for the reading.
        labels: the columns to predict; `record_batches` fills them in.
        folder: where rows that are not in files may be kept, for other processes, too; empty: nowhere.
        part: this process's part of the reading, where others look into the same folder.
        job: what those have in common that read at the same time; None where nobody said.
    """

    format: str | None = None
    row_filter: str = ""
    project: str | None = None
    labels: tuple[str, ...] = ()
    folder: str = ""
    part: Part = field(default_factory=Part)
    job: str | None = None


@functools.lru_cache(None)
def modules() -> dict[str, ModuleType]:
    """Return the formats by the names of their modules, those that recognise a file more surely first."""
    names = [entry.name for entry in pkgutil.iter_modules(__path__) if not entry.name.startswith("_")]
    found = {name: importlib.import_module(f"{__name__}.{name}") for name in sorted(names)}
    return dict(sorted(found.items(), key=lambda item: -getattr(item[1], "PRECEDENCE", 0)))


def suffixes() -> tuple[str, ...]:
    """Return how the names of files end that some format reads."""
    return tuple(dict.fromkeys(suffix for module in modules().values() for suffix in module.SUFFIXES))


def table(path: str) -> ModuleType | None:
    """Return the module that reads a path which is no file, such as `bq://…`; None for files, local or in a bucket."""
    scheme, separator, _ = path.partition("://")
    return next((module for module in modules().values() if separator and scheme in getattr(module, "SCHEMES", ())), None)


def choose(path: str, reading: Reading) -> ModuleType:
    """Return the module that reads a path: what its scheme, its name or `AIP_DATA_FORMAT` says, if its content agrees.

    Raises:
        UserError: the content is another format's than is said, or no format's.
    """
    known = modules().values()
    if found := table(path):
        return found
    if os.path.isdir(path):
        return next(module for module in known if getattr(module, "FOLDERS", False))
    path, _ = split_part(path)
    head = _streams.head(path)
    # A file's name is nearer to it than the variable, which is about the service's own export.
    said = [module for module in known if _streams.plain_name(path).endswith(module.SUFFIXES)]
    said = said or [module for module in known if reading.format in module.NAMES and not hasattr(module, "SCHEMES")]
    if fitting := [module for module in said if module.recognises(head)]:
        return fitting[0]
    others = [module for module in known if module.SUFFIXES and module.recognises(head) and module not in said]
    if said and others and getattr(others[0], "PRECEDENCE", 0) >= 0:
        raise UserError(f"{path} is no {said[-1].NAMES[0]} file: what it holds is {others[0].NAMES[0]}. Rename it, or name another file.")
    if said:  # its reader says what is wrong with it, and where
        return said[-1]
    if not others:
        names = ", ".join(sorted({module.NAMES[0] for module in known}))
        raise UserError(f"{path} is no file of a known format: it starts with {head[:16]!r}. Known are {names}. Name another file.")
    return others[0]


def find(paths: Sequence[str], flag: str, columns: Sequence[Column], labels: Sequence[str]) -> list[str]:
    """See `_paths.find`."""
    from . import _paths

    return _paths.find(paths, flag, columns, labels)


def record_batches(
    path: str, columns: Sequence[Column], labels: Sequence[str], bad: BadRows, reading: Reading | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file (folder, table) as checked record batches, none of them empty.

    Each has the required columns in their order: numbers float32, texts binary, without nulls and missing cells filled in;
    images are followed by the files' paths (`data.PATH`) where they are files of their own. Bad rows are counted and left
    out (policy "skip"); with the policy "collect" all rows have their place, `data.PATH` or their number `data.ROW`.

    Raises:
        UserError: the file is not of its format or lacks a column, or (policy "error") a row is bad.
    """
    named = {column.name: column.in_files() for column in columns}
    reading = dataclasses.replace(reading or Reading(), labels=tuple(named[label].name for label in labels))
    module = choose(path, reading)
    if reading.row_filter and not hasattr(module, "SCHEMES"):
        raise UserError(f"{path}: rows of {module.NAMES[0]} files take no --row_filter, only tables do; got {reading.row_filter[:60]!r}.")
    wanted = [column for column in columns if column.required]
    rows = 0
    for raw in ahead(module.read(path, list(named.values()), bad, reading)):  # a core reads while another checks
        batch = _check(path, raw, wanted, bad, rows)
        rows += raw.batch.num_rows
        if batch.num_rows:
            yield batch
    if not rows and path not in _without_rows and not bad.reasons:
        _without_rows.add(path)
        log("WARNING", f"{path} holds no rows: remove it, or write some into it")


def _check(path: str, raw: Raw, columns: Sequence[Column], bad: BadRows, before: int) -> pa.RecordBatch:
    """Return the good rows of a batch, which `before` rows of the file precede; the first fault of each other row goes to `bad`."""
    names, partition = raw.batch.schema.names, partition_of(path)
    arrays, masks, cells = [], [], []
    in_files = [column.in_files() for column in columns]
    for column in in_files:
        if column.name in names:
            cells.append(raw.batch.column(names.index(column.name)))
        else:
            cells.append(pa.repeat(pa.scalar(partition[column.name].encode(), pa.binary()), raw.batch.num_rows))
        try:
            values, good = column.check(cells[-1])
        except TypeError as error:
            raise UserError(f"{path}: the column {column.name} is of a wrong type: {error}, and {column.must_be}.") from None
        arrays.append(values)
        masks.append(good)
    kept = np.ones(raw.batch.num_rows, bool)
    for good in masks:
        kept &= good
    for i in np.flatnonzero(~kept).tolist():
        first = next(place for place, good in enumerate(masks) if not good[i])
        cell = cells[first][i].as_py()
        place = raw.place if bad.policy != "collect" or before + i < _NEAR else None
        where = functools.partial(place, i) if place else (lambda: f"{path}, row {before + i + 1}")
        bad.add(where, in_files[first].reason(cell), shown(cell))
    own = [PATH] if PATH in names and all(column.name != PATH for column in in_files) else []
    arrays += [raw.batch.column(names.index(name)) for name in own]
    if bad.policy == "collect" and not own:
        own.append(ROW)
        arrays.append(pa.array(np.arange(before + 1, before + 1 + raw.batch.num_rows)))
    batch = pa.RecordBatch.from_arrays(arrays, [*(column.name for column in columns), *own])
    return batch if kept.all() else batch.filter(pa.array(kept))


def shown(cell: Any) -> str:
    """Return a cell as a message shows it."""
    if isinstance(cell, bytes):
        return cell[:400].decode("utf-8", "replace")
    return "" if cell is None else str(cell)


def present(path: str, columns: Sequence[Column], names: Sequence[str]) -> list[Column]:
    """Return the required columns that a file has, by the names in it; those that it lacks its folders' names must give.

    Raises:
        UserError: a required column is in neither.
    """
    partition = partition_of(path)
    required = [column for column in columns if column.required]
    if missing := [column.name for column in required if column.name not in names and column.name not in partition]:
        raise UserError(f"{path} lacks the column {', '.join(missing)}; it has {', '.join(map(str, names))[:200]}.")
    return [column for column in required if column.name in names]


def partition_of(path: str) -> dict[str, str]:
    """Return what the folders in a path say of all rows of the file, as Hive writes it: `dt=2024-01-01/part-0.parquet`."""
    from urllib.parse import unquote

    pairs = (part.partition("=") for part in path.split("/")[:-1] if "=" in part)
    return {name: "" if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for name, _, value in pairs if name}


def rows_of_file(path: str, reading: Reading) -> int | None:
    """Return how many rows a file has, good or bad; None where it does not say so itself."""
    count = None if table(path) else getattr(choose(path, reading), "count_rows", None)
    return None if count is None else count(path)


def block_bytes(path: str, rows: int) -> int:
    """Return about how many bytes of a file hold the first block of rows that its reader yields, for estimates."""
    module = choose(path, Reading())
    if count := getattr(module, "count_rows", None):
        return round(data.total_bytes([path]) * rows / max(1, count(path)))
    return round(data.BLOCK_BYTES * _streams.compression(path)) if module.SUFFIXES and not data.is_table(path) else data.BLOCK_BYTES


def chunk(batch: pa.RecordBatch) -> Chunk:
    """Return a checked batch as what trainers get: float32 [rows], or objects (bytes) [rows] for texts."""
    return {name: batch.column(i).to_numpy(zero_copy_only=False) for i, name in enumerate(batch.schema.names)}
