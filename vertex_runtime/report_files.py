"""The files of reports: written in one step, on this machine or in a bucket, and only in place of a report."""

from __future__ import annotations

import os
from typing import Any

from .errors import UserError, first_line
from .outputs import is_remote


def is_ours(path: str, kind: str | tuple[str, ...], flag: str) -> bool:
    """Tell whether there is an earlier report in the way, which has the word `kind`, or one of several, in its first lines.

    Raises:
        UserError: it is no report; `flag` is what named the place.
    """
    try:
        with _open(path, "r") as file:
            head = file.read(2000)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, UnicodeDecodeError) as error:
        head = f"({error})"
    if not any(word in head for word in ([kind] if isinstance(kind, str) else kind)):
        raise UserError(f"{flag}: {path} is no report of ours and is kept. Name another folder: {flag}=FOLDER.")
    return True


def write(path: str, text: str, flag: str) -> None:
    """Write a report's file; its folder is made.

    Raises:
        UserError: it cannot be written.
    """
    try:
        if is_remote(path):
            _write_remote(path, text)
            return
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{path}.tmp", path)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{flag}: cannot write {path}: {why}. Name another folder: {flag}=FOLDER.") from None


def _open(path: str, mode: str) -> Any:
    if not is_remote(path):
        return open(path, mode, encoding="utf-8")
    import tensorflow as tf

    if mode == "r" and not tf.io.gfile.exists(path):
        raise FileNotFoundError(path)
    return tf.io.gfile.GFile(path, mode)


def _write_remote(path: str, text: str) -> None:
    import tensorflow as tf

    try:
        with _open(path, "w") as file:
            file.write(text)
    except tf.errors.OpError as error:
        raise OSError(first_line(error)) from None
