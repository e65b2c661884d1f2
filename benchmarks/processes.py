"""What the benchmarks share: programs run as a user would start them, what those took, the flags, tables, the real data."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a benchmark that is started by its path has its own folder there alone
SERVICE_VARIABLES = ("AIP_", "CLOUD_ML_", "CLUSTER_SPEC", "TF_CONFIG", "TRAINER_")
EVENTS, OUTPUT = "events.jsonl", "output.txt"


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
    busy, begun = busy_seconds(), time.time()
    process = start(command, folder, variables)
    _, status, usage = os.wait4(process.pid, 0)
    seconds, busy = time.time() - begun, busy_seconds() - busy
    process.returncode = os.waitstatus_to_exitcode(status)
    foreign = max(0.0, busy - usage.ru_utime - usage.ru_stime) / seconds
    found = Run(begun, seconds, usage.ru_maxrss * 1024, foreign, process.returncode, *said(folder))
    if check and found.code:
        raise Failed(f"{' '.join(command)}\nended with {found.code}:\n{found.output[-2000:]}")
    return found


def start(command: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a program, whose output and events go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVENTS).unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SERVICE_VARIABLES)}
    environment |= {"PYTHONPATH": str(ROOT), "TRAINER_EVENTS": str(folder / EVENTS), "TF_CPP_MIN_LOG_LEVEL": "2", **(variables or {})}
    with open(folder / OUTPUT, "wb") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)


def said(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return the output and the events of a program that has ended."""
    events = folder / EVENTS
    lines = events.read_text().splitlines() if events.exists() else []
    return (folder / OUTPUT).read_text(errors="replace"), [json.loads(line) for line in lines]


def busy_seconds() -> float:
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

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __format__(self, spec: str) -> str:
        if len(self.values) == 1:
            return f"{self.median:{spec}}"
        return f"{self.median:{spec}} [{min(self.values):{spec}}..{max(self.values):{spec}}]"


def mean_and_range(values: Sequence[float], digits: int) -> str:
    """Return "mean [least..largest]"."""
    return f"{statistics.mean(values):.{digits}f} [{min(values):.{digits}f}..{max(values):.{digits}f}]"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    first, *others = ([cell.ljust(width) for cell, width in zip(row, widths)] for row in cells)
    print(f"\n{title}\n\n{lines([first, ['-' * width for width in widths], *others])}", flush=True)


def lines(rows: Sequence[Sequence[str]]) -> str:
    """Return the lines of a Markdown table, the one below the header among them."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def machine() -> dict[str, Any]:
    """Return what the figures depend on beside the code."""
    from importlib.metadata import version

    packages = {name: version(name) for name in ("tensorflow", "keras", "numpy", "pyarrow")}
    return {"cpus": len(os.sched_getaffinity(0)), "python": sys.version.split()[0], "load": os.getloadavg()[0], **packages}


# ------------------------------------------------------------------ command lines


Arm = Callable[[argparse.Namespace], Any]


def parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of every benchmark that starts processes and keeps figures."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--folder", type=lambda word: Path(word).resolve(), required=True, help="for generated data (kept), logs, outputs")
    made.add_argument("--repeats", type=int, default=3, help="fresh processes of each kind, taking turns")
    made.add_argument("--json", type=Path, help="write every measurement to this file")
    return made


def measure(args: argparse.Namespace, arms: Mapping[str, Arm]) -> None:
    """Let arms measure, each of which prints a table; what they return goes to `--json`, after each of them."""
    args.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(), "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    print(f"machine: {results['machine']}")
    for name, arm in arms.items():
        results[name] = arm(args)
        keep(args.json, results)


def measure_chosen(made: argparse.ArgumentParser, arms: Mapping[str, Arm]) -> None:
    """Parse the command line and let the arms measure that `--arms` names."""
    made.add_argument("--arms", nargs="+", choices=list(arms), default=list(arms), help="what to measure")
    args = made.parse_args()
    measure(args, {name: arms[name] for name in args.arms})


def keep(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write results to the file that `--json` names, if it does."""
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n")


def real_files(folder: Path | None, *names: str) -> list[Path]:
    """Return files of the real data, which is not part of the project, in the folder of `--data`, SHARED_DATA or ../shared/data.

    Raises:
        SystemExit: one of them is not there: with 0 where the command did not name the folder.
    """
    found = [(folder or Path(os.environ.get("SHARED_DATA") or ROOT.parent / "shared" / "data")).resolve() / name for name in names]
    for path in found:
        if not path.exists():
            print(f"skipped: {path} does not exist. Give the folder with --data.", file=sys.stderr if folder else sys.stdout)
            raise SystemExit(1 if folder else 0)
    return found
