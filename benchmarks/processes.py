"""Runs programs as a user would start them and reads off what they took: seconds, peak memory, phases, foreign load."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SERVICE_VARIABLES = ("AIP_", "CLOUD_ML_", "CLUSTER_SPEC", "TF_CONFIG", "TRAINER_")


class Failed(Exception):
    """A program that is measured ended with an error."""


@dataclass(frozen=True)
class Run:
    """One finished process."""

    start: float
    seconds: float
    peak_bytes: int
    foreign: float
    code: int
    output: str
    events: list[dict[str, Any]] = field(default_factory=list)

    def until(self, phase: str) -> float:
        """Return the seconds from the start of the process to the first event of a phase."""
        return next(event["time"] for event in self.events if event["phase"] == phase) - self.start

    def last_line(self) -> Any:
        """Return the JSON value on the last line of the output."""
        return json.loads(self.output.splitlines()[-1])


def run(command: Sequence[str], folder: Path, check: bool = True, variables: Mapping[str, str] | None = None) -> Run:
    """Run a program from the project's root, without the service's variables, and wait for its end.

    Its output goes to `folder`. The peak is the kernel's, which for a child starts at what its parent held: keep the
    measuring process small.

    Raises:
        Failed: the program ended with an error and `check` is set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    events = folder / "events.jsonl"
    events.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SERVICE_VARIABLES)}
    environment |= {"PYTHONPATH": str(ROOT), "TRAINER_EVENTS": str(events), "TF_CPP_MIN_LOG_LEVEL": "2", **(variables or {})}
    with open(folder / "output.txt", "wb") as output:
        busy, start = _busy_seconds(), time.time()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds, busy = time.time() - start, _busy_seconds() - busy
    process.returncode = os.waitstatus_to_exitcode(status)
    text = (folder / "output.txt").read_text(errors="replace")
    if check and process.returncode:
        raise Failed(f"{' '.join(command)}\nended with {process.returncode}:\n{text[-2000:]}")
    lines = events.read_text().splitlines() if events.exists() else []
    foreign = max(0.0, busy - usage.ru_utime - usage.ru_stime) / seconds
    return Run(start, seconds, usage.ru_maxrss * 1024, foreign, process.returncode, text, [json.loads(line) for line in lines])


def _busy_seconds() -> float:
    """Return the CPU seconds that all processes of this machine have used; 0 where the kernel does not tell."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def trainer(name: str, *flags: object) -> list[str]:
    """Return the command that starts a trainer as its users do."""
    return [sys.executable, "-m", f"{name}.trainer.task", *map(str, flags)]


def windows(events: Sequence[Mapping[str, Any]], batch_size: int) -> tuple[list[float], list[float]]:
    """Return examples/s of every window between evaluations but the first: (training only, evaluations included).

    A training window goes from the first finished call after an evaluation to the start of the next evaluation.
    """
    training, whole = [], []
    before = first = None
    for event in events:
        if event["phase"] == "step" and first is None:
            first = event
        elif event["phase"] == "evaluation":
            if before and first:
                began = first if first["step"] < event["step"] else before
                training.append(_rate(began, event, batch_size))
                whole.append(_rate(before, event, batch_size))
            before, first = event, None
    return training, whole


def _rate(began: Mapping[str, Any], ended: Mapping[str, Any], batch_size: int) -> float:
    return (ended["step"] - began["step"]) * batch_size / (ended["time"] - began["time"])


@dataclass(frozen=True)
class Spread:
    """Median and range of repeated measurements."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __format__(self, spec: str) -> str:
        if len(self.values) == 1:
            return f"{self.median:{spec}}"
        return f"{self.median:{spec}} [{min(self.values):{spec}}..{max(self.values):{spec}}]"


def machine() -> dict[str, Any]:
    """Return what the figures depend on beside the code."""
    from importlib.metadata import version

    packages = {name: version(name) for name in ("tensorflow", "keras", "numpy", "pyarrow")}
    return {"cpus": len(os.sched_getaffinity(0)), "python": sys.version.split()[0], "load": os.getloadavg()[0], **packages}


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{title}\n")
    for row in [header, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths)) + " |", flush=True)
