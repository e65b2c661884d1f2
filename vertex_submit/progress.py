"""A bar for bytes that go through files, in many threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO


class Cancelled(OSError):
    """The user wants no more of it."""


class Progress:
    """A bar of bytes on a terminal; nothing elsewhere. A file that begins anew takes back what it had told."""

    def __init__(self, what: str, total: int, cancel: threading.Event | None = None):
        self.bar, self.lock, self.told, self.cancel = None, threading.Lock(), {}, cancel
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, dynamic_ncols=True)

    def at(self, key: object, place: int) -> None:
        """Say how many bytes of one file are through; raises Cancelled where no more are wanted."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("stopped: the same command goes on from here.")
        if self.bar is not None:
            with self.lock:
                self.bar.update(place - self.told.get(key, 0))
                self.told[key] = place

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


class Watched:
    """A file that tells how far it has been read or written."""

    def __init__(self, file: BinaryIO, told: Callable[[int], None]):
        self.file, self.told = file, told

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.told(self.file.tell())
        return data

    def write(self, data: bytes) -> int:
        count = self.file.write(data)
        self.told(self.file.tell())
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)
