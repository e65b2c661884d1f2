"""One replica as a process: its supervisor, its output line by line, and how each of its attempts ended."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from . import output
from .environment import Member
from .events import Follower
from .kills import Kill
from .plan import ReplicaPlan

_SUPERVISOR = Path(__file__).with_name("supervise.py")
_LONGEST = 1 << 16  # bytes: output without a line end, such as a progress bar, is shown when it gets longer


@dataclass
class Attempt:
    """One attempt of a replica, from its start to its end. Times are seconds since 1970.

    `code` is its exit code, negative for a signal; `out_of_memory` says that the kernel sent it; `told` is when
    vertex_local told it to end.
    """

    start: float
    pid: int | None = None
    end: float | None = None
    code: int | None = None
    told: float | None = None
    out_of_memory: bool = False

    @property
    def stopped(self) -> bool:
        """Whether it ended because it was told to."""
        return self.told is not None and (self.end is None or self.end >= self.told)


@dataclass
class Replica:
    """A replica that is started: what it runs, and its attempts so far; `folder` is its job's. All of it belongs to one thread."""

    plan: ReplicaPlan
    folder: Path
    kill: Kill | None = None
    attempts: list[Attempt] = field(default_factory=list)
    restarts_in_try: int = 0
    kill_sent: bool = False
    errors: deque = field(default_factory=lambda: deque(maxlen=200))
    last_line: str = ""
    _process: subprocess.Popen | None = None
    _orders: int | None = None
    _open: dict[str, Any] = field(default_factory=dict)
    _rest: dict[str, bytes] = field(default_factory=dict)
    _file: BinaryIO | None = None
    _lines: TextIO | None = None

    def __post_init__(self) -> None:
        self.log, self.events = self.folder / "logs" / f"{self.name}.log", self.folder / "events" / f"{self.name}.jsonl"
        self.progress, self.launcher = Follower(self.events), self.plan.launcher

    @property
    def member(self) -> Member:
        return self.plan.member

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def debugged(self) -> bool:
        """Whether somebody debugs it: then no time limit ends the job."""
        return bool(self.plan.notes)

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def succeeded(self) -> bool:
        """Whether its last attempt ended with 0 by itself."""
        return not self.running and self.attempts[-1].code == 0 and not self.attempts[-1].stopped

    @property
    def state(self) -> str:
        """One word, or the way it ended."""
        if self.running or not self.attempts:
            return "running" if self.running else "waiting"
        return "done" if self.succeeded else f"ended ({self.attempts[-1].code})"

    def start(self, selector: selectors.BaseSelector) -> None:
        """Start the next attempt; a kill drill belongs to the first one only."""
        env = dict(self.plan.env)
        if self.kill and self.kill.for_trainer and not self.attempts:
            env["TRAINER_KILL"] = self.kill.for_trainer
        command = self.launcher.command(self.plan.argv, env) if self.launcher else []  # it may fail: before there are pipes
        orders, self._orders = os.pipe()
        status, report = os.pipe()
        if self.launcher:
            env = dict(os.environ)
        else:
            command = [sys.executable, "-I", "-S", str(_SUPERVISOR), str(report), *self.plan.argv]
        try:
            self._process = subprocess.Popen(
                command, cwd=self.plan.cwd, env=env, stdin=orders, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=(report,), start_new_session=True, bufsize=0,
            )  # fmt: skip
        except BaseException:
            os.close(self._orders)
            os.close(status)
            raise
        finally:
            os.close(orders)
            os.close(report)
        self._follow(selector, status)

    def _follow(self, selector: selectors.BaseSelector, status: int) -> None:
        """Open the logs of the attempt that has just started, and let `selector` watch its streams."""
        self._open = {"out": self._process.stdout, "err": self._process.stderr}
        if self.launcher is None:
            self._open["status"] = os.fdopen(status, "rb", 0)
        else:
            os.close(status)
        self._rest = dict.fromkeys(self._open, b"")
        self._file = open(self.log, "ab")
        self._lines = open(self.folder / "lines" / self.log.name, "a")
        self.errors.clear()
        self.last_line = ""
        self.attempts.append(Attempt(time.time()))
        for kind, stream in self._open.items():
            selector.register(stream, selectors.EVENT_READ, (self, kind))

    def read(self, selector: selectors.BaseSelector, kind: str) -> list[str]:
        """Read from a stream and return its finished lines; the end of the last stream ends the attempt."""
        stream = self._open[kind]
        data = os.read(stream.fileno(), 1 << 16)
        *lines, self._rest[kind] = (self._rest[kind] + data).split(b"\n")
        if len(self._rest[kind]) > _LONGEST or (not data and self._rest[kind]):
            lines.append(self._rest[kind])
            self._rest[kind] = b""
        if not data:
            selector.unregister(stream)
            stream.close()
            del self._open[kind]
        if kind == "status":
            self._note(lines)
            lines = []
            if not data and self.attempts[-1].code is None:
                self._lost()
        texts = [self._keep(kind, line) for line in lines]
        if not self._open:
            self._finish()
        return texts

    def _keep(self, kind: str, line: bytes) -> str:
        self._file.write(line + b"\n")
        self._file.flush()
        self._lines.write(f"{time.time():.6f} {kind} {len(line) + 1}\n")  # when it was printed, and its size: `logs` and `serve` read this
        self._lines.flush()
        text = line.decode("utf-8", "replace").rstrip("\r")
        if text.strip():
            self.last_line = text.strip()
            if kind == "err" or '"severity"' in text:
                self.errors.append(text.strip())
        return text

    def _note(self, lines: list[bytes]) -> None:
        attempt = self.attempts[-1]
        for line in lines:
            first, *more = line.split()
            if more:
                attempt.code, attempt.end = int(first), float(more[0])
                attempt.out_of_memory = more[1:] == [b"oom"] and not attempt.stopped
            else:
                attempt.pid = int(first)

    def _lost(self) -> None:
        """Clean up after a killed supervisor, whose program died with it: kill the program's children, found by their variables."""
        self.attempts[-1].code, self.attempts[-1].end = -signal.SIGKILL, time.time()
        mark = f"TRAINER_EVENTS={self.events}\0".encode()
        for entry in filter(str.isdigit, os.listdir("/proc") if sys.platform == "linux" else ()):
            try:
                if mark in Path("/proc", entry, "environ").read_bytes():
                    os.kill(int(entry), signal.SIGKILL)
            except OSError:
                continue  # another user's, or gone

    def _finish(self) -> None:
        os.close(self._orders)
        code = self._process.wait()
        if self.launcher is not None:
            self._note(self.launcher.ended())
            if self.attempts[-1].code is None:  # the engine did not start the program
                self.attempts[-1].code, self.attempts[-1].end = code or 125, time.time()
        self._close()
        self._process = None

    def _close(self) -> None:
        self._file.close()
        self._lines.close()
        if self.launcher is not None:
            self.launcher.close()

    def signal(self, number: int) -> None:
        """Send a signal to the replica's main process."""
        try:
            os.write(self._orders, bytes([number]))
        except OSError:
            pass  # it has just ended by itself

    def stop(self, number: int) -> None:
        """End this attempt by a signal; its exit code then does not count as a failure."""
        self.attempts[-1].told = self.attempts[-1].told or time.time()
        self.signal(number)

    def abandon(self) -> None:
        """Kill the replica at once and wait until it is gone, without reading the rest of its output."""
        if self._process is not None:
            os.close(self._orders)
            for stream in self._open.values():
                stream.close()
            self._process.wait()
            if self.launcher is not None:
                self._note(self.launcher.ended())
            self._close()
            attempt, now = self.attempts[-1], time.time()
            attempt.told = attempt.told or now
            attempt.code, attempt.end = -signal.SIGKILL if attempt.code is None else attempt.code, attempt.end or now
            self._process = None

    def last_error(self) -> str:
        """Return the line that best says why the last attempt failed: the last that reads like an error, else the last."""
        if self.attempts[-1].out_of_memory:
            return "the machine ran out of memory, and the kernel ended it"
        return output.last_error(self.errors, self.last_line)
