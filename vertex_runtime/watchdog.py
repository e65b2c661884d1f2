"""Processes that watch over a run from outside: TensorFlow may wait in C++ for ever, and lets no Python run meanwhile.

The watchdog ends a run in which nothing moves (`--stall_minutes`); cluster.py watches the other workers.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import time
from typing import NoReturn

from .reporting import report_error

POLL_SECONDS = 0.5
TEXT = 120  # bytes of the phase's name


class Watcher:
    """A process that watches this one, and may end it by SIGABRT: the service takes that for a passing fault and starts the job again."""

    def __init__(self) -> None:
        self.trainer, self.watcher = os.getpid(), 0

    def start(self) -> None:
        """Start watching; must come before TensorFlow is imported, whose threads a fork would not take along."""
        self.watcher = os.fork()
        if not self.watcher:
            try:
                with contextlib.suppress(OSError, AttributeError):  # a killed trainer leaves no watcher behind (Linux's PR_SET_PDEATHSIG)
                    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
                self.watch()
            finally:
                os._exit(0)

    def stop(self) -> None:
        """End the watching, if it was started."""
        if self.watcher:
            os.kill(self.watcher, signal.SIGKILL)
            os.waitpid(self.watcher, 0)

    def watch(self) -> None:
        """Watch for as long as the trainer lives."""
        raise NotImplementedError

    def abort(self, text: str) -> NoReturn:
        """End the trainer, and say why."""
        report_error(f"{text}. Ending by SIGABRT, so that the job is started again.")
        os.kill(self.trainer, signal.SIGABRT)
        time.sleep(10)
        os.kill(self.trainer, signal.SIGKILL)
        raise SystemExit


class Watchdog(Watcher):
    """Watches a counter in shared memory that every step, evaluation batch and chunk of data moves on."""

    def __init__(self, minutes: float):
        super().__init__()
        self.minutes, self.count = minutes, 0
        self.memory = mmap.mmap(-1, 8 + TEXT) if minutes else None

    def __enter__(self) -> Watchdog:
        if self.memory is not None:
            self.beat("start")
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def beat(self, phase: str) -> None:
        """Say that something moved, and in which phase."""
        if self.memory is not None:
            self.count += 1
            self.memory[: 8 + TEXT] = struct.pack(f"q{TEXT}s", self.count, phase.encode()[:TEXT])

    def watch(self) -> None:
        """See that the counter moves."""
        last, since = 0, time.monotonic()
        while os.getppid() == self.trainer:
            count, text = struct.unpack(f"q{TEXT}s", self.memory[: 8 + TEXT])
            if count != last:
                last, since = count, time.monotonic()
            elif time.monotonic() - since > 60 * self.minutes:
                phase = text.rstrip(b"\0").decode("utf-8", "replace")
                self.abort(f"--stall_minutes: nothing has moved for {self.minutes:g} minutes since {phase}")
            time.sleep(POLL_SECONDS)
