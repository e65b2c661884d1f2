"""The files of reports: written in one step, on this machine or in a bucket, and only in place of a report."""

from __future__ import annotations

import os

from .errors import UserError
from .outputs import is_remote, read_text, write_text


def is_ours(path: str, kind: str | tuple[str, ...], flag: str) -> bool:
    """Tell whether there is an earlier report in the way, which has the word `kind`, or one of several, in its first lines.

    Raises:
        UserError: it is no report; `flag` is what named the place.
    """
    try:
        head = read_text(path)[:2000]
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
        if not is_remote(path):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        write_text(path, text)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{flag}: cannot write {path}: {why}. Name another folder: {flag}=FOLDER.") from None
