"""A folder per label, each file in it an example: texts, or images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from ..columns import Column, Image
from ..data import PATH, BadRows, file_column
from ..environment import quoted
from ..errors import UserError
from . import Fault, Raw, Reading, in_blocks

NAMES = ("folder per label",)
SUFFIXES = ()
FOLDERS = True


def recognises(head: bytes) -> bool:
    """A folder has no first bytes."""
    return False


def read(path: str, columns: Sequence[Column], bad: BadRows, reading: Reading) -> Iterator[Raw]:
    """Yield the files of `path/<label>/` in blocks of about 4 MiB, images with their paths (`PATH`).

    Raises:
        UserError: the columns are not one text or image and its label, a folder has no examples, or (policy "error") a file
            is empty, not UTF-8, or no whole image.
    """
    column = file_column(columns, reading.labels)
    if column is None:
        raise UserError(f"{path} is a folder, which is read only where COLUMNS are one Text or Image and its label. Name files.")
    return blocks(read_files(label_files(path, column)), column, reading.labels[0], bad)


def read_files(files: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, bytes]]:
    """Yield (label, path, content) of files."""
    for label, path in files:
        with open(path, "rb") as file:
            yield label, path, file.read()


def label_files(root: str, column: Column) -> list[tuple[str, str]]:
    """Return (label, path) of every file in `root/<label>/`, sorted.

    Raises:
        UserError: there is no folder per label, or one without examples.
    """
    ends = endings(column)
    labels = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not labels:
        raise UserError(f"{root} holds no folder per label. Make them: {root}/<label>/<file>{ends[0]}.")
    found: list[tuple[str, str]] = []
    for label in labels:
        folder = os.path.join(root, label)
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(ends))
        if not names:
            listed = " or ".join(f"*{ending}" for ending in ends)
            raise UserError(f"{folder} has no {listed} file: the class {quoted(label)} has no examples. Add some or remove the folder.")
        found += [(label, os.path.join(folder, name)) for name in names]
    return found


def endings(column: Column) -> tuple[str, ...]:
    """Return how the names of files end that hold one cell of a column."""
    return column.suffixes if isinstance(column, Image) else (".txt",)


def blocks(files: Iterable[tuple[str, str, bytes]], column: Column, label: str, bad: BadRows) -> Iterator[Raw]:
    """Yield files, (label, path, content) each, as rows in blocks of about 4 MiB."""
    names = [column.name, label, *([PATH] if isinstance(column, Image) or bad.policy == "collect" else [])]

    def rows() -> Iterator[tuple[str, Sequence[bytes]] | Fault]:
        for name, path, content in files:
            cells = (content, name.encode("utf-8", "surrogateescape"), os.fsencode(path))
            yield _fault(path, content, column) or (path, cells[: len(names)])

    return in_blocks(rows(), names, bad)


def _fault(path: str, content: bytes, column: Column) -> Fault | None:
    """Return what is wrong with a file, the line in it with its place."""
    if isinstance(column, Image):
        return Fault(path, "is no whole PNG or JPEG file", content[:16]) if column.problem_bytes(content) else None
    try:
        return None if content.decode("utf-8").strip() else Fault(path, "the text is empty", "")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return Fault(f"{path}, line {line}", "the text is not UTF-8", content[error.start : error.start + 8])
