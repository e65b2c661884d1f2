"""The terminal for what a person wants to know, and a file for what the libraries say."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def to_file(path: str) -> Iterator[TextIO]:
    """Send to a file what this process and its libraries write to stdout and stderr while the block lasts.

    Yields:
        The stdout that there was before.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(path, "a") as file, os.fdopen(os.dup(1), "w") as terminal:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), kept):
                os.dup2(copy, number)
                os.close(copy)
