"""Readers of training files: wildcards, CSV, a folder per label. They give chunks of raw columns as NumPy arrays (see columns.py).

A file is read by Arrow's multi-threaded parser. Only where that stops, or a value is out of range, is the file read
again line by line, to name the line (`--bad_rows=error`) or to leave out what is bad and count it (`--bad_rows=skip`).
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from .columns import Category, Column, Image, Number, Text
from .environment import resolve_uri
from .errors import UserError

BLOCK_BYTES = 4 << 20
PATH = "_path"  # where a row is a file of its own: that file's path, for messages
ROW = "_row"  # with the policy "collect": each row's number in its file, from 1, without header and blank lines
KEPT = 20  # bad rows whose places are kept with their values
Chunk = dict[str, np.ndarray]  # column -> [rows]: float32, or objects (bytes) for text


@dataclass
class BadRows:
    """Collects what is wrong with rows; with the policy "error" the first one ends the run.

    The policy "skip" counts them; "collect", for data that is read once, also keeps the first `KEPT` of them.
    """

    policy: str = "error"
    reasons: Counter[str] = field(default_factory=Counter)
    places: set[str] = field(default_factory=set)  # each is counted once, however often it is read
    kept: list[tuple[str, str, str]] = field(default_factory=list)  # (place, reason, value)

    def add(self, where: str, reason: str, value: object, count: int = 1) -> None:
        if self.policy == "error":
            raise UserError(f"{where}: {reason}; got {str(value)[:80]!r}. Mend the row, or leave such rows out with --bad_rows=skip.")
        if self.policy == "collect":
            self.reasons[reason] += count
            if len(self.kept) < KEPT:
                text = value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
                self.kept.append((where, reason, text[:80]))
        elif where not in self.places:
            self.places.add(where)
            self.reasons[reason] += count

    def add_rows(self, path: str, before: int, faults: Sequence[tuple[np.ndarray, str, Any]]) -> None:
        """Count the bad rows of a batch, which `before` rows of the file precede: (places in the batch, reason, Arrow values)."""
        few = max(0, KEPT - len(self.kept)) if self.policy == "collect" else 0
        first = sorted((row, i) for i, (rows, _, _) in enumerate(faults) for row in rows[:few].tolist())[:few]
        for row, i in first:
            self.add(f"{path}, row {before + row + 1}", faults[i][1], faults[i][2][row].as_py())
        for i, (rows, reason, _) in enumerate(faults):
            if rest := len(rows) - sum(place == i for _, place in first):
                self.reasons[reason] += rest

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
    if "://" not in path and not os.path.exists(path):  # a source's own name for its rows
        return {"path": path, "bytes": 0, "sha256": hashlib.sha256(path.encode()).hexdigest()}
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

    # A source of its own may name what is no file.
    return sum(tf.io.gfile.stat(name).length for path in paths for name in _walk(path) if tf.io.gfile.exists(name))


def read_csv(path: str, columns: Sequence[Column], bad: BadRows) -> Iterator[Chunk]:
    """Read a CSV file in chunks of about 4 MiB; the header may be there or not.

    Raises:
        UserError: the file is empty or not of these columns, or (policy "error") a row is bad.
    """
    import pyarrow as pa
    from pyarrow import csv as pacsv

    names, header = _layout(path, columns)
    wanted = [column for column in columns if column.required]
    types = {c.name: pa.float32() if not c.is_text else pa.binary() if c.pattern else pa.string() for c in wanted}
    rows = 0
    try:
        with open_binary(path) as source:
            reader = pacsv.open_csv(
                source,
                read_options=pacsv.ReadOptions(column_names=names, skip_rows=int(header), block_size=BLOCK_BYTES),
                parse_options=pacsv.ParseOptions(newlines_in_values=any(isinstance(c, Text) and not c.pattern for c in wanted)),
                convert_options=pacsv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[""]),
            )
            for batch in reader:
                good = _good_rows(batch, wanted, bad, path, rows)
                if bad.policy == "error" and not good.all():
                    break
                chunk = {c.name: c.to_numpy(batch.column(i)) for i, c in enumerate(wanted)}
                if bad.policy == "collect":
                    chunk[ROW] = np.arange(rows + 1, rows + 1 + batch.num_rows)
                yield chunk if good.all() else take(chunk, good)
                rows += batch.num_rows
            else:
                return
    except (pa.ArrowInvalid, UnicodeDecodeError):
        pass
    yield from _read_by_line(path, names, header, wanted, bad, rows)


def _good_rows(batch: Any, columns: Sequence[Column], bad: BadRows, path: str, before: int) -> np.ndarray:
    """Return which rows hold only valid values, [rows] bool; bad ones are counted under their first fault."""
    good, faults = np.ones(batch.num_rows, bool), []
    for i, column in enumerate(columns):
        valid = column.good_values(batch.column(i))
        if bad.policy != "error" and not valid.all():
            faults.append((np.flatnonzero(good & ~valid), column.must_be, batch.column(i)))
        good &= valid
    bad.add_rows(path, before, faults)
    return good


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
    numbers = [i for i, column in enumerate(columns[: len(first)]) if column.required and isinstance(column, Number)]
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
    collects = bad.policy == "collect"
    names_kept = [column.name for column in columns] + [ROW] * collects
    values: dict[str, list[Any]] = {name: [] for name in names_kept}
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
                bad.add(f"{path}, row {count}" if collects else f"{path}, line {reader.line_num}", *problem)
                continue
            if collects:
                values[ROW].append(count)
            for column, place in places:
                values[column.name].append(column.parse(row[place]))
            if len(values[columns[0].name]) >= 100_000:
                yield _as_chunk(values, columns)
                values = {name: [] for name in names_kept}
    if values[columns[0].name]:
        yield _as_chunk(values, columns)


def _as_chunk(values: dict[str, list[Any]], columns: Sequence[Column]) -> Chunk:
    chunk = {c.name: objects(values[c.name]) if c.is_text else np.array(values[c.name], np.float32) for c in columns}
    return chunk | ({ROW: np.array(values[ROW])} if ROW in values else {})


def _problem(row: list[str], width: int, places: Sequence[tuple[Column, int]]) -> tuple[str, str] | None:
    if len(row) != width:
        return f"has {len(row)} columns, not {width}", ",".join(row)
    for column, place in places:
        cell = row[place]
        if any("\udc80" <= letter <= "\udcff" for letter in cell):
            return f"{column.name} is not UTF-8", cell.encode("utf-8", "replace").decode()
        if (column.missing is None) if not cell else column.problem(cell):
            return column.must_be, cell
    return None


def holds_label_folders(path: str) -> bool:
    """Tell whether a path is a folder with folders in it."""
    return os.path.isdir(path) and any(entry.is_dir() for entry in os.scandir(path))


def read(path: str, columns: Sequence[Column], labels: Sequence[str], bad: BadRows) -> Iterator[Chunk]:
    """Read a CSV file, or a folder per label where the columns are one text (or image) and its label.

    Raises:
        UserError: as `read_csv` and `read_label_folders`.
    """
    if os.path.isdir(path):
        return read_label_folders(path, _file_column(columns, labels), labels[0], bad)
    return read_csv(path, columns, bad)


def find(paths: Sequence[str], flag: str, columns: Sequence[Column], labels: Sequence[str]) -> list[str]:
    """Return the CSV files that the paths, wildcards and folders name, and the folders that hold a folder per label.

    Raises:
        UserError: a path matches nothing, or nothing that holds these columns.
    """
    found = expand(paths, flag)
    column = _file_column(columns, labels)
    folders = [path for path in found if column is not None and holds_label_folders(path)]
    rest = [path for path in found if path not in folders]
    if isinstance(column, Image) and rest:
        raise UserError(f"{flag}: {rest[0]} is no folder that holds a folder of images per label. Name such a folder.")
    return folders + csv_files(rest)


def _file_column(columns: Sequence[Column], labels: Sequence[str]) -> Column | None:
    """Return the column whose cells may be files of their own: the only one beside the label."""
    inputs = [column for column in columns if column.name not in labels]
    single = len(inputs) == len(labels) == 1 and isinstance(inputs[0], (Text, Category, Image))
    return inputs[0] if single else None


def label_files(root: str, column: Column) -> list[tuple[str, str]]:
    """Return (label, path) of every file in `root/<label>/`, sorted.

    Raises:
        UserError: there is no folder per label, or one without examples.
    """
    endings = column.suffixes if isinstance(column, Image) else (".txt",)
    labels = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not labels:
        raise UserError(f"{root} holds no folder per label. Expected {root}/<label>/<file>{endings[0]}.")
    found: list[tuple[str, str]] = []
    for label in labels:
        folder = os.path.join(root, label)
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(endings))
        if not names:
            listed = " or ".join(f"*{ending}" for ending in endings)
            raise UserError(f"{folder} has no {listed} file: the class {label!r} has no examples. Add some or remove the folder.")
        found += [(label, os.path.join(folder, name)) for name in names]
    return found


def read_label_folders(root: str, column: Column | None, label: str, bad: BadRows) -> Iterator[Chunk]:
    """Read `root/<label>/*`, one example a file, in chunks of about 4 MiB with the file's path as a third column.

    Raises:
        UserError: a folder without examples, or (policy "error") a file that is empty, not UTF-8, or no whole image.
    """
    if column is None:
        raise UserError(f"{root} is a folder, which is read only where COLUMNS are one Text or Image and its label. Name CSV files.")
    contents: list[bytes] = []
    names: list[bytes] = []
    paths: list[bytes] = []
    size = 0
    for name, path in label_files(root, column):
        with open(path, "rb") as file:
            content = file.read()
        if _is_bad_file(path, content, column, bad):
            continue
        contents.append(content)
        names.append(name.encode())
        paths.append(os.fsencode(path))
        size += len(content)
        if size >= BLOCK_BYTES:
            yield {column.name: objects(contents), label: objects(names), PATH: objects(paths)}
            contents, names, paths, size = [], [], [], 0
    if contents:
        yield {column.name: objects(contents), label: objects(names), PATH: objects(paths)}


def _is_bad_file(path: str, content: bytes, column: Column, bad: BadRows) -> bool:
    if isinstance(column, Image):
        if column.problem_bytes(content):
            bad.add(path, "is no whole PNG or JPEG file", content[:16])
            return True
        return False
    try:
        if content.decode("utf-8").strip():
            return False
        bad.add(path, "the text is empty", "")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        bad.add(f"{path}, line {line}", "the text is not UTF-8", content[error.start : error.start + 8])
    return True


def objects(values: Sequence[bytes]) -> np.ndarray:
    """Return byte strings as an array of objects: [rows]."""
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
    read: Callable[[str], Iterator[Chunk]], paths: Sequence[str], label: str | None, seconds: float
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
            rows[-1] += len(next(iter(chunk.values())))
            labels.update(chunk[label] if label in chunk and chunk[label].dtype == object else ())
            if time.monotonic() > end and blocks * BLOCK_BYTES < size:
                rows[-1] = round(rows[-1] * size / (blocks * BLOCK_BYTES))
                break
        seen += size
    return rows, labels, time.monotonic() <= end
