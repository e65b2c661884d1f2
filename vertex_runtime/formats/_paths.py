"""What paths, wildcards and folders name: files of any format, folders per label, parts of archives, tables."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .. import data
from ..columns import Column, Image
from ..errors import UserError
from ..reporting import log
from . import Reading, archive, choose, folder, suffixes, table
from ._streams import plain_name

MANIFEST = "manifest.json"  # what scripts/convert_data puts beside its files: JSON, and no rows


def find(paths: Sequence[str], flag: str, columns: Sequence[Column], labels: Sequence[str]) -> list[str]:
    """Return what paths, wildcards and lists name, each once.

    Of a folder that holds no folder per label it is the files within, at any depth, that some format reads. Where a folder
    or an archive holds `train` and `test`, the flag says which is meant. Files of no bytes are left out, with a warning.

    Raises:
        UserError: a path matches nothing, or nothing that holds these columns, or all files are empty.
    """
    column = data.file_column(columns, labels)
    found: list[str] = []
    expanded = data.expand(paths, flag)
    for path in [path for path in expanded if os.path.basename(path) != MANIFEST] or expanded:
        if table(path):
            found.append(path)
        elif not data.is_folder(path):
            found.append(_part_of_archive(path, flag) if column is not None else path)
        elif column is not None and (inner := _label_folder(path, flag, column)):
            found.append(inner)
        elif isinstance(column, Image):
            found.append(path)  # its reader says what is missing
        else:
            found += files_inside(path)
    if isinstance(column, Image):
        _see_that_they_hold_images(found, flag)
    return _not_empty(found)


def _see_that_they_hold_images(paths: Sequence[str], flag: str) -> None:
    for path in paths:
        try:
            fits = choose(path, Reading()).NAMES[0] not in ("csv", "jsonl")
        except UserError:
            fits = False
        if not fits:
            raise UserError(f"{flag}: {path} is no folder that holds a folder of images per label. Name such a folder.")


def _label_folder(path: str, flag: str, column: Column) -> str | None:
    """Return the folder whose folders are labels: this or its train or test; None where it holds files to read."""
    if "://" in path:
        return None
    inside = _folders(path)
    if {"train", "test"} <= inside.keys() and _folders(inside["train"]):
        path = inside[_part_meant(flag)]
        inside = _folders(path)
    endings = folder.endings(column)
    if any(name.lower().endswith(endings) for inner in inside.values() for name in os.listdir(inner)):
        return path
    return path if inside and not _files_inside(path) else None


def _folders(path: str) -> dict[str, str]:
    return {entry.name: entry.path for entry in os.scandir(path) if entry.is_dir()}


def _part_meant(flag: str) -> str:
    return "train" if "train" in flag.lower() else "test"


def _part_of_archive(path: str, flag: str) -> str:
    """Return `archive.tar.gz:train` for an archive that holds train and test; any other path as it is."""
    if path.lower().endswith(archive.SUFFIXES) and len(archive.parts(path)) == 2:
        return f"{path}:{_part_meant(flag)}"
    return path


def files_inside(path: str) -> list[str]:
    """Return the files in a folder, at any depth, whose names end as those of some format, sorted.

    Raises:
        UserError: there are none.
    """
    if found := _files_inside(path):
        return found
    known = ", ".join(f"*{ending}" for ending in suffixes())
    raise UserError(f"{path} is a folder without files of a known format ({known}). Name the files or a wildcard.")


def _files_inside(path: str) -> list[str]:
    """Files whose names start with `.` or `_` are marks of other programs."""
    bases = {name: os.path.basename(name) for name in data.walk(path)}
    named = [name for name, base in bases.items() if not base.startswith((".", "_")) and base != MANIFEST]
    return [name for name in named if plain_name(name).endswith(suffixes())]


def _not_empty(paths: Sequence[str]) -> list[str]:
    """Return the paths without files of no bytes.

    Raises:
        UserError: all are such files.
    """
    files = [path for path in paths if not table(path) and not data.is_folder(path)]
    empty = {path for path in files if not data.total_bytes([path])}
    if empty and len(empty) == len(paths):
        more = f", and so are {len(empty) - 1} more files" if len(empty) > 1 else ""
        raise UserError(f"{min(empty)} is empty{more}. Remove it or name another file.")
    if empty:
        log("WARNING", f"{len(empty)} empty files are left out, {min(empty)} among them: remove them, or write them again")
    return [path for path in paths if path not in empty]
