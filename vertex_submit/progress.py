"""A bar for bytes that go through files, in many threads."""

from __future__ import annotations

import threading
from typing import Any, BinaryIO

from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper


class Cancelled(OSError):
    """The user wants no more of it."""


class Progress:
    """A bar of bytes on a terminal, nothing elsewhere; a file that begins anew takes back what it had counted."""

    def __init__(self, what: str, total: int, cancel: threading.Event | None = None):
        self.lock, self.positions, self.cancel = threading.Lock(), {}, cancel
        # disable=None: only where stderr is no terminal
        self.bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, dynamic_ncols=True, disable=None)

    def reach(self, key: object, position: int) -> None:
        """Note how many bytes of one file are through; raise Cancelled where no more are wanted."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("stopped: the same command goes on from here.")
        with self.lock:
            self.bar.update(position - self.positions.get(key, 0))
            self.positions[key] = position

    def watch(self, file: BinaryIO, method: str, key: object) -> Any:
        """Return the file with a `read` or a `write` that notes how far it has come."""
        return CallbackIOWrapper(lambda count: self.reach(key, file.tell()), file, method)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
