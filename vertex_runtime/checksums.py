"""Checksums of files by their content, the same whoever computes them: a run that reads them, or a command that looks again.

It needs nothing but the standard library, so that `vertex_local` can use it, too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any

WHOLE, ENDS, METADATA, NAME = "sha256", "sha256-of-ends", "sha256-of-metadata", "sha256-of-name"  # what a checksum was made of
BLOCK_BYTES, END_BYTES = 1 << 20, 1 << 20


def of_files(names: Iterable[str], whole: bool, opened: Callable[..., Any]) -> tuple[int, str]:
    """Return the bytes of some files together and a SHA-256 of them, in their order.

    Args:
        whole: of all their bytes; else of the first and the last MiB of each, for data too large to read twice.
        opened: opens a file to read bytes by its name.
    """
    digest, total = hashlib.sha256(), 0
    for name in names:
        with opened(name) as file:
            if whole:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    total += len(block)
            else:
                size = file.size() if hasattr(file, "size") else os.fstat(file.fileno()).st_size
                digest.update(file.read(END_BYTES))
                file.seek(max(0, size - END_BYTES))
                digest.update(file.read(END_BYTES))
                total += size
    return total, digest.hexdigest()


def files_in(path: str) -> list[str]:
    """Return the files in a local folder, at any depth, in order; of a file itself."""
    if not os.path.isdir(path):
        return [path]
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)


def of_folder(folder: str) -> str:
    """Return a checksum of a local folder, such as a model's: of the names in it and of each file's content."""
    digest = hashlib.sha256()
    for path in files_in(folder):
        name = os.path.relpath(path, folder).replace(os.sep, "/")
        digest.update(f"{name}\0{of_files([path], True, _opened)[1]}\n".encode())
    return f"{WHOLE}:{digest.hexdigest()}"


def of_local(path: str, kind: str) -> str | None:
    """Return the checksum of a local file or folder, made as `kind` says; None where it is not there, or is no file's.

    Args:
        path: of an archive's part, `archive.zip:part`, too.
    """
    if kind not in (WHOLE, ENDS):
        return None
    if not os.path.exists(path):
        path = path.rpartition(":")[0]
    if not path or not os.path.exists(path):
        return None
    return f"{kind}:{of_files(files_in(path), kind == WHOLE, _opened)[1]}"


def _opened(path: str) -> Any:
    return open(path, "rb")
