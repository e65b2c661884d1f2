"""Training files: what paths and wildcards name, and their rows as chunks of NumPy arrays (see formats/ and columns.py).

A row that is bad ends the run and is named by file and line (`--bad_rows=error`), or is left out and counted
(`--bad_rows=skip`).
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from . import checksums
from .columns import Category, Column, Image, Text
from .environment import quoted, resolve_uri
from .errors import FAILED, UserError, first_line

if TYPE_CHECKING:
    from .formats import Reading

BLOCK_BYTES = 4 << 20
PATH = "_path"  # where a row is a file of its own: that file's path, for messages
ROW = "_row"  # with the policy "collect": each row's number in its file, from 1, as its reader tells rows apart
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
    lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)  # files are read ahead of the checks

    def add(self, where: str | Callable[[], str], reason: str, value: object, count: int = 1) -> None:
        """Take note of a bad row.

        Args:
            where: its place, or what finds it where that takes long: it is looked for only if it is shown, and such rows
                are counted as often as they are read.

        Raises:
            UserError: the policy is "error".
        """
        if self.policy == "error":
            place = where if isinstance(where, str) else where()
            raise UserError(f"{place}: {reason}; got {str(value)[:80]!r}. Mend the row, or leave such rows out with --bad_rows=skip.")
        with self.lock:
            if self.policy == "collect" and len(self.kept) < KEPT:
                text = value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
                self.kept.append((where if isinstance(where, str) else where(), reason, text[:80]))
            if self.policy == "skip" and isinstance(where, str):
                if where in self.places:
                    return
                self.places.add(where)
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
        if is_table(path):
            found.append(path)
            continue
        local, part = split_part(resolve_uri(path))
        if "://" in local:
            import tensorflow as tf

            try:
                matches = tf.io.gfile.glob(local) if re.search(r"[*?\[]", local) else [local] * tf.io.gfile.exists(local)
            except tf.errors.OpError as error:
                raise UserError(f"{flag}: cannot list {path}: {first_line(error)}. Mend the path or its permissions.") from None
        else:
            matches = glob.glob(local) or [local] * os.path.exists(local)
        if not matches:
            raise UserError(f"{flag}: {path} matches no file. Give an existing path or a wildcard in quotes.")
        found += [f"{match}:{part}" if part else match for match in matches]
    return sorted(dict.fromkeys(found))


def open_binary(path: str) -> BinaryIO:
    if "://" in path:
        import tensorflow as tf

        return tf.io.gfile.GFile(path, "rb")  # type: ignore[return-value]
    return open(path, "rb")


def fingerprint(path: str, whole: bool, reading: Reading | None = None) -> dict[str, Any]:
    """Describe a file (or a folder's files together): path, bytes and a SHA-256 of the content; of a table, of its metadata.

    Without `whole` only the ends (1 MiB each) are read, for data too large to read twice.
    """
    from . import formats

    if table := formats.table(path):
        return table.fingerprint(path, reading or formats.Reading())
    if "://" not in path and not os.path.exists(split_part(path)[0]):  # a name of rows, not of a file
        return {"path": path, "bytes": 0, "sha256": hashlib.sha256(path.encode()).hexdigest()}
    total, digest = checksums.of_files(walk(path), whole, open_binary)
    return {"path": path, "bytes": total, "sha256": digest}


def walk(path: str) -> list[str]:
    """Return the files in a folder, at any depth; of any other path the file itself."""
    if not is_folder(path):
        return [split_part(path)[0]]
    if "://" in path:
        import tensorflow as tf

        return sorted(f"{folder.rstrip('/')}/{name}" for folder, _, names in tf.io.gfile.walk(path) for name in names)
    return checksums.files_in(path)


class Watch:
    """Knows files by size and time of change, and tells when one is no longer what it was.

    Files on Cloud Storage are not watched: an object never changes while it is read, and listing it costs a request.
    """

    def __init__(self, paths: Iterable[str]):
        files = (split_part(path)[0] for path in paths)
        local = dict.fromkeys(path for path in files if "://" not in path and os.path.exists(path))
        self.known = {path: self._look(path) for path in local}

    def _look(self, path: str) -> tuple[int, int, int] | None:
        try:
            found = os.stat(path)
        except OSError:
            return None
        return found.st_ino, 0 if os.path.isdir(path) else found.st_size, found.st_mtime_ns

    def see(self) -> None:
        """Raise where a file has changed, or is gone.

        Raises:
            UserError: it has; what was trained on so far is in the newest checkpoint.
        """
        before = "the newest checkpoint is from before"
        for path, known in self.known.items():
            found = self._look(path)
            if found is None:
                raise UserError(f"{path} is gone since the run began to read it. Put it back; {before}.", FAILED)
            if found != known:
                how = f"{known[1]:,} bytes then, {found[1]:,} now" if known[1] != found[1] else "written to meanwhile"
                what = f"{path} has changed since the run began to read it ({how}). Train on files that nobody writes to; {before}."
                raise UserError(what, FAILED)


def total_bytes(paths: Iterable[str]) -> int:
    import tensorflow as tf

    # A source of its own may name what is no file, and a table is none.
    files = [name for path in paths if not is_table(path) for name in walk(path)]
    return sum(tf.io.gfile.stat(name).length for name in files if tf.io.gfile.exists(name))


def read(path: str, columns: Sequence[Column], labels: Sequence[str], bad: BadRows, reading: Reading | None = None) -> Iterator[Chunk]:
    """Read a file of any format, or a folder per label where the columns are one text (or image) and its label.

    Raises:
        UserError: see `formats.record_batches`.
    """
    from . import formats

    for batch in formats.record_batches(path, columns, labels, bad, reading):
        yield formats.chunk(batch)


def find(paths: Sequence[str], flag: str, columns: Sequence[Column], labels: Sequence[str]) -> list[str]:
    """Return the files, folders per label, parts of archives and tables that paths, wildcards and lists name.

    Raises:
        UserError: see `formats.find`.
    """
    from . import formats

    return formats.find(paths, flag, columns, labels)


def split_part(path: str) -> tuple[str, str]:
    """Return (file, part) of a path such as `archive.tar.gz:train` or `items.jsonl:ml_use=test`; the part is empty where none is named."""
    file, _, part = path.rpartition(":")
    kind = r"\.jsonl?(\.\w+)?$" if part.startswith("ml_use=") else r"\.(tar|tar\.gz|tgz)$"
    return (file, part) if file and re.search(kind, file, re.IGNORECASE) else (path, "")


def is_table(path: str) -> bool:
    """Tell whether a path names rows that are in no file, such as `bq://project.dataset.table`, which some format reads."""
    from . import formats

    return formats.table(path) is not None


def is_folder(path: str) -> bool:
    """Tell whether a path is a folder, on this machine or in a bucket."""
    if "://" not in path:
        return os.path.isdir(path)
    import tensorflow as tf

    return bool(tf.io.gfile.isdir(path))


def block_bytes(path: str, rows: int) -> int:
    """Return about how many bytes of a file hold its first chunk, of so many rows; a guess where no format here reads it."""
    from . import formats

    try:
        return max(1, formats.block_bytes(path, rows))
    except (UserError, OSError):
        return BLOCK_BYTES


def file_column(columns: Sequence[Column], labels: Sequence[str]) -> Column | None:
    """Return the column whose cells may be files of their own: the only one beside the label."""
    inputs = [column for column in columns if column.name not in labels]
    single = len(inputs) == len(labels) == 1 and isinstance(inputs[0], (Text, Category, Image))
    return inputs[0] if single else None


def objects(values: Sequence[bytes]) -> np.ndarray:
    """Return byte strings as an array of objects: [rows]."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def concatenate(chunks: Iterable[Chunk]) -> Chunk:
    """Join chunks row by row; the columns are those of the first."""
    chunks = list(chunks)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]} if chunks else {}


def rows_of(chunk: Mapping[str, Any]) -> int:
    """Return how many rows a chunk has."""
    return len(next(iter(chunk.values())))


def take(chunk: Chunk, rows: Any) -> Chunk:
    """Return the given rows (a slice, mask or indices) of every column."""
    return {name: values[rows] for name, values in chunk.items()}


def rechunk(chunks: Iterable[Chunk], rows: int) -> Iterator[Chunk]:
    """Cut the same rows into chunks of `rows`, so that sums over them do not depend on the files they came in."""
    held: list[Chunk] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += rows_of(chunk)
        if size >= rows:
            joined = concatenate(held)
            for start in range(0, size - rows + 1, rows):
                yield take(joined, slice(start, start + rows))
            held, size = [take(joined, slice(size // rows * rows, None))], size % rows
    if size:
        yield concatenate(held)


class UnknownLabel(Exception):
    """A label that the training rows do not have."""

    def __init__(self, label: str):
        super().__init__(label)
        self.label = label


def locate(paths: Sequence[str], label: str) -> str:
    """Return "file, line" of the first row with a cell `label`, or the folder of that name; else the paths."""
    from . import formats

    for path in paths:
        if os.path.isdir(path):
            if os.path.isdir(os.path.join(path, label)):
                return os.path.join(path, label)
            continue
        line_of, file = getattr(formats.choose(path, formats.Reading()), "line_of", None), split_part(path)[0]
        if line_of and (line := line_of(file, label)):
            return f"{file}, line {line}"
    return ", ".join(paths)


def unseen(paths: Sequence[str], label: str) -> UserError:
    """Return the error for a label that the training rows do not have."""
    return UserError(f"{locate(paths, label)}: the label {quoted(label)} was not seen in training. Mend it or add examples.")


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
        block = 0
        for blocks, chunk in enumerate(() if seen and late else read(path), 1):
            rows[-1] += rows_of(chunk)
            block = block or block_bytes(path, rows[-1])
            labels.update(chunk[label] if label in chunk and chunk[label].dtype == object else ())
            if time.monotonic() > end and blocks * block < size:
                rows[-1] = round(rows[-1] * size / (blocks * block))
                break
        seen += size
    return rows, labels, time.monotonic() <= end
