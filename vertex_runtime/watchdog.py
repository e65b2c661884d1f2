"""Ends a run in which nothing moves (`--stall_minutes`), from a process of its own: TensorFlow may wait in C++ for ever."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time

from .cluster import die_with_parent
from .reporting import report_error

POLL_SECONDS = 0.5
TEXT = 120  # bytes of the phase's name


class Watchdog:
    """Watches a counter in shared memory that every step, evaluation batch and chunk of data moves on.

    A run that stands still ends by SIGABRT: the service takes that for a passing fault and starts the job again.
    """

    def __init__(self, minutes: float):
        self.minutes, self.count, self.watcher = minutes, 0, 0
        self.memory = mmap.mmap(-1, 8 + TEXT) if minutes else None

    def __enter__(self) -> Watchdog:
        if self.memory is not None:
            self.beat("start")
            parent = os.getpid()
            self.watcher = os.fork()
            if not self.watcher:
                try:
                    self._watch(parent)
                finally:
                    os._exit(0)
        return self

    def __exit__(self, *_: object) -> None:
        if self.watcher:
            os.kill(self.watcher, signal.SIGKILL)
            os.waitpid(self.watcher, 0)

    def beat(self, phase: str) -> None:
        """Say that something moved, and in which phase."""
        if self.memory is not None:
            self.count += 1
            self.memory[: 8 + TEXT] = struct.pack(f"q{TEXT}s", self.count, phase.encode()[:TEXT])

    def _watch(self, parent: int) -> None:
        die_with_parent()
        last, since = 0, time.monotonic()
        while os.getppid() == parent:
            count, text = struct.unpack(f"q{TEXT}s", self.memory[: 8 + TEXT])
            if count != last:
                last, since = count, time.monotonic()
            elif time.monotonic() - since > 60 * self.minutes:
                phase = text.rstrip(b"\0").decode("utf-8", "replace")
                report_error(
                    f"--stall_minutes: nothing has moved for {self.minutes:g} minutes since {phase}. "
                    "Ending by SIGABRT, so that the job is started again."
                )
                os.kill(parent, signal.SIGABRT)
                time.sleep(10)
                os.kill(parent, signal.SIGKILL)
                return
            time.sleep(POLL_SECONDS)
