"""Readers of training files: wildcards, CSV, a folder per label. They give chunks of raw columns as NumPy arrays.

A file is read by Arrow's multi-threaded parser. Only where that stops, or a value is out of range, is the file read
again line by line, to name the line (`--bad_rows=error`) or to leave out what is bad and count it (`--bad_rows=skip`).
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from .environment import resolve_uri
from .errors import UserError

BLOCK_BYTES = 4 << 20
Chunk = dict[str, np.ndarray]  # column -> [rows]: float32, or objects (bytes) for text


@dataclass(frozen=True)
class Column:
    """One column of a CSV file.

    A number must lie in [low, high]; a text must match `pattern` whole. `required=False` columns may be missing and
    are not read (keys, comments).
    """

    name: str
    low: float | None = None
    high: float | None = None
    pattern: str | None = None
    text: bool = False
    required: bool = True


@dataclass
class BadRows:
    """Collects what is wrong with rows; with the policy "error" the first one ends the run."""

    policy: str = "error"
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, reason: str, value: object, count: int = 1) -> None:
        if self.policy == "error":
            raise UserError(f"{where}: {reason}; got {str(value)[:80]!r}. Mend the row, or leave such rows out with --bad_rows=skip.")
        self.reasons[reason] += count

    def __str__(self) -> str:
        listed = "; ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common(5))
        return f"skipped {sum(self.reasons.values())} bad rows ({listed})"


def expand(paths: Sequence[str], flag: str) -> list[str]:
    """Return the files (or folders) that paths and wildcards name, each once, sorted.

    Raises:
        UserError: a path matches nothing, or names data that these readers do not read.
    """
    found: list[str] = []
    for path in (part for given in paths for part in given.split(",") if part):
        if path.startswith("bq://"):
            raise UserError(f"{flag}: BigQuery tables are not read yet; got {path}. Export the table to CSV files.")
        local = resolve_uri(path)
        if "://" in local:
            import tensorflow as tf

            try:
                matches = tf.io.gfile.glob(local) if re.search(r"[*?\[]", local) else [local] * tf.io.gfile.exists(local)
            except tf.errors.OpError as error:
                raise UserError(f"{flag}: cannot list {path}: {str(error).splitlines()[0]}") from None
        else:
            matches = glob.glob(local) or [local] * os.path.exists(local)
        if not matches:
            raise UserError(f"{flag}: {path} matches no file. Give an existing path or a wildcard in quotes.")
        found += matches
    return sorted(dict.fromkeys(found))


def csv_files(paths: Iterable[str]) -> list[str]:
    """Return the CSV files named; of a folder, the *.csv in it."""
    files: list[str] = []
    for path in paths:
        inside = sorted(glob.glob(f"{glob.escape(path)}/*.csv")) if os.path.isdir(path) else [path]
        if not inside:
            raise UserError(f"{path} is a folder without *.csv files. Name the files or a wildcard.")
        files += inside
    return files


def open_binary(path: str) -> BinaryIO:
    if "://" in path:
        import tensorflow as tf

        return tf.io.gfile.GFile(path, "rb")  # type: ignore[return-value]
    return open(path, "rb")


def fingerprint(path: str, whole: bool) -> dict[str, Any]:
    """Describe a file (or a folder's files together): path, bytes and a SHA-256 of the content.

    Without `whole` only the ends (1 MiB each) are read, for data too large to read twice.
    """
    digest, total = hashlib.sha256(), 0
    for name in _walk(path):
        with open_binary(name) as file:
            if whole:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    total += len(block)
            else:
                size = file.size() if hasattr(file, "size") else os.fstat(file.fileno()).st_size
                digest.update(file.read(1 << 20))
                file.seek(max(0, size - (1 << 20)))
                digest.update(file.read(1 << 20))
                total += size
    return {"path": path, "bytes": total, "sha256": digest.hexdigest()}


def _walk(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)


def total_bytes(paths: Iterable[str]) -> int:
    import tensorflow as tf

    return sum(tf.io.gfile.stat(name).length for path in paths for name in _walk(path))


def read_csv(path: str, columns: Sequence[Column], bad: BadRows) -> Iterator[Chunk]:
    """Read a CSV file in chunks of about 4 MiB; the header may be there or not.

    Raises:
        UserError: the file is empty or not of these columns, or (policy "error") a row is bad.
    """
    import pyarrow as pa
    from pyarrow import csv as pacsv

    names, header = _layout(path, columns)
    wanted = [column for column in columns if column.required]
    types = {c.name: pa.string() if c.text and not c.pattern else pa.binary() if c.text else pa.float32() for c in wanted}
    rows = 0
    try:
        with open_binary(path) as source:
            reader = pacsv.open_csv(
                source,
                read_options=pacsv.ReadOptions(column_names=names, skip_rows=int(header), block_size=BLOCK_BYTES),
                parse_options=pacsv.ParseOptions(newlines_in_values=any(c.text and not c.pattern for c in wanted)),
                convert_options=pacsv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[]),
            )
            for batch in reader:
                good = _good_rows(batch, wanted, bad)
                if bad.policy == "error" and not good.all():
                    break
                chunk = {name: _to_numpy(batch.column(i)) for i, name in enumerate(types)}
                yield chunk if good.all() else take(chunk, good)
                rows += batch.num_rows
            else:
                return
    except (pa.ArrowInvalid, UnicodeDecodeError):
        pass
    yield from _read_by_line(path, names, header, wanted, bad, rows)


def _to_numpy(values: Any) -> np.ndarray:
    import pyarrow as pa

    return (values.cast(pa.binary()) if pa.types.is_string(values.type) else values).to_numpy(zero_copy_only=False)


def _good_rows(batch: Any, columns: Sequence[Column], bad: BadRows) -> np.ndarray:
    """Return which rows hold only valid values, [rows] bool; bad ones are counted under their first fault."""
    good = np.ones(batch.num_rows, bool)
    for i, column in enumerate(columns):
        valid = _valid(column, batch.column(i))
        if bad.policy == "skip" and (count := int((good & ~valid).sum())):
            bad.reasons[_reason(column)] += count
        good &= valid
    return good


def _valid(column: Column, values: Any) -> np.ndarray:
    """Return which values are good: [rows] bool."""
    import pyarrow.compute as pc

    if column.text:
        if column.pattern is None:
            return _to_numpy(pc.greater(pc.binary_length(values), 0))
        return _to_numpy(pc.match_substring_regex(values, pattern=f"^(?:{column.pattern})$"))
    numbers = _to_numpy(values)
    low = -np.inf if column.low is None else np.float32(column.low)
    high = np.inf if column.high is None else np.float32(column.high)
    return np.isfinite(numbers) & (numbers >= low) & (numbers <= high)


def _reason(column: Column) -> str:
    if column.text:
        return f"{column.name} must be {'given' if column.pattern is None else 'a date such as 2011-01-28 20:42:59 UTC'}"
    if column.low is None and column.high is None:
        return f"{column.name} must be a number"
    low, high = (f"{limit:g}" if limit is not None else "" for limit in (column.low, column.high))
    return f"{column.name} must be a number in {low}..{high}"


def _first_row(path: str) -> list[str]:
    with open_binary(path) as file:
        head = file.read(1 << 16)
    if not head.strip():
        raise UserError(f"{path} is empty. Remove it or name another file.")
    text = io.StringIO(head.decode("utf-8-sig", "replace"), newline="")
    return next((row for row in csv.reader(text) if row), [])


def _layout(path: str, columns: Sequence[Column]) -> tuple[list[str], bool]:
    """Return the names of the file's columns in their order, and whether its first line is a header."""
    first = [cell.strip() for cell in _first_row(path)]
    required = [column.name for column in columns if column.required]
    known = [column.name for column in columns]
    if set(first) & set(known):
        if missing := [name for name in required if name not in first]:
            raise UserError(f"{path}, line 1: the header lacks {', '.join(missing)}; it has {', '.join(first)}.")
        return first, True
    numbers = [i for i, column in enumerate(columns[: len(first)]) if column.required and not column.text]
    if numbers and len(first) >= len(required) and not any(_is_number(first[i]) for i in numbers):
        raise UserError(f"{path}, line 1: a header with unknown names ({', '.join(first)[:80]}); known are {', '.join(known)}.")
    if len(first) < len(required) or len(first) > len(known):
        raise UserError(f"{path}, line 1: has {len(first)} columns; needed are {', '.join(required)} in this order, or a header.")
    return known[: len(first)], False


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_by_line(path: str, names: list[str], header: bool, columns: Sequence[Column], bad: BadRows, skip: int) -> Iterator[Chunk]:
    """Read what Arrow would not, from data row `skip` on, naming lines; slow (0.3 M rows/s) but rarely needed."""
    places = [(column, names.index(column.name)) for column in columns]
    values: dict[str, list[Any]] = {column.name: [] for column in columns}
    count = -int(header)
    csv.field_size_limit(1 << 30)
    with io.TextIOWrapper(open_binary(path), encoding="utf-8", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines)
        for row in reader:
            if not row:
                continue
            count += 1
            if count <= skip:
                continue
            if problem := _problem(row, len(names), places):
                bad.add(f"{path}, line {reader.line_num}", *problem)
                continue
            for column, place in places:
                values[column.name].append(row[place].encode() if column.text else float(row[place]))
            if len(values[columns[0].name]) >= 100_000:
                yield _as_chunk(values, columns)
                values = {column.name: [] for column in columns}
    if values[columns[0].name]:
        yield _as_chunk(values, columns)


def _as_chunk(values: dict[str, list[Any]], columns: Sequence[Column]) -> Chunk:
    return {c.name: np.array(values[c.name], dtype=object if c.text else np.float32) for c in columns}


def _problem(row: list[str], width: int, places: Sequence[tuple[Column, int]]) -> tuple[str, str] | None:
    if len(row) != width:
        return f"has {len(row)} columns, not {width}", ",".join(row)
    for column, place in places:
        cell = row[place]
        if column.text:
            if any("\udc80" <= letter <= "\udcff" for letter in cell):
                return f"{column.name} is not UTF-8", cell.encode("utf-8", "replace").decode()
            if not (re.fullmatch(column.pattern, cell) if column.pattern else cell):
                return _reason(column), cell
        else:
            number = float(cell) if _is_number(cell) else math.nan
            low = -math.inf if column.low is None else column.low
            high = math.inf if column.high is None else column.high
            if not (math.isfinite(number) and low <= number <= high):
                return _reason(column), cell
    return None


def read_label_folders(root: str, text: str, label: str, bad: BadRows) -> Iterator[Chunk]:
    """Read `root/<label>/*.txt`, one text a file, as columns `text` and `label`.

    Raises:
        UserError: a folder without examples, or (policy "error") a file that is empty or not UTF-8.
    """
    classes = sorted(name for name in os.listdir(root) if os.path.isdir(os.path.join(root, name)))
    if not classes:
        raise UserError(f"{root} holds no folder per label. Expected {root}/<label>/<question>.txt.")
    for name in classes:
        files = sorted(glob.glob(os.path.join(glob.escape(root), glob.escape(name), "*.txt")))
        if not files:
            folder = os.path.join(root, name)
            raise UserError(f"{folder} has no *.txt file: the class {name!r} has no examples. Add some or remove the folder.")
        texts = []
        for path in files:
            with open(path, "rb") as file:
                content = file.read()
            try:
                if not content.decode("utf-8").strip():
                    bad.add(path, "the text is empty", "")
                    continue
            except UnicodeDecodeError as error:
                line = content[: error.start].count(b"\n") + 1
                bad.add(f"{path}, line {line}", "the text is not UTF-8", content[error.start : error.start + 8])
                continue
            texts.append(content)
        yield {text: _objects(texts), label: _objects([name.encode()] * len(texts))}


def _objects(values: Sequence[bytes]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def concatenate(chunks: Iterable[Chunk]) -> Chunk:
    """Join chunks row by row; the columns are those of the first."""
    chunks = list(chunks)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]} if chunks else {}


def take(chunk: Chunk, rows: Any) -> Chunk:
    """Return the given rows (a slice, mask or indices) of every column."""
    return {name: values[rows] for name, values in chunk.items()}


class UnknownLabel(Exception):
    """A label that the training rows do not have."""

    def __init__(self, label: str):
        super().__init__(label)
        self.label = label


def locate(paths: Sequence[str], label: str) -> str:
    """Return "file, line" of the first row with a cell `label`, or the folder of that name."""
    for path in paths:
        if os.path.isdir(path):
            if os.path.isdir(os.path.join(path, label)):
                return os.path.join(path, label)
            continue
        with io.TextIOWrapper(open_binary(path), encoding="utf-8", errors="replace", newline="") as lines:
            reader = csv.reader(lines)
            for row in reader:
                if label in row:
                    return f"{path}, line {reader.line_num}"
    return ", ".join(paths)


def unseen(paths: Sequence[str], label: str) -> UserError:
    """Return the error for a label that the training rows do not have."""
    return UserError(f"{locate(paths, label)}: the label {label!r} was not seen in training. Mend it or add examples.")


def count(
    read: Callable[[str], Iterator[Chunk]], paths: Sequence[str], label: str, seconds: float
) -> tuple[list[int], Counter[bytes], bool]:
    """Count each file's rows and, where the column `label` is text, those of each label.

    Returns:
        (rows per file, rows per label, whether all was read). After `seconds` of reading, the rest of the rows is
        estimated from the files' sizes.
    """
    end, rows, labels, seen = time.monotonic() + seconds, [], Counter(), 0
    for path in paths:
        size, late = total_bytes([path]), time.monotonic() > end
        rows.append(round(sum(rows) * size / seen) if seen and late else 0)
        for blocks, chunk in enumerate(() if seen and late else read(path), 1):
            rows[-1] += len(chunk[label])
            labels.update(chunk[label] if chunk[label].dtype == object else ())
            if time.monotonic() > end and blocks * BLOCK_BYTES < size:
                rows[-1] = round(rows[-1] * size / (blocks * BLOCK_BYTES))
                break
        seen += size
    return rows, labels, time.monotonic() <= end
