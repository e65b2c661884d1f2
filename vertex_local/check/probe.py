"""Ask a job's own trainer, as a process with a replica's environment: what it makes of its flags and data, how fast it is.

A program that imports vertex_runtime answers `--plan` with a line of JSON and stops. Any other program is only imported,
and that only where its code stands under `if __name__ == "__main__"`: else an import would train.
"""

from __future__ import annotations

import ast
import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..job.job_file import without_data_flags
from ..local import commands, environment, output, restarts
from ..local.events import Follower
from ..local.plan import Planner, RunOptions
from .rules import Case

_PLAN, _FINDINGS = '{"plan": ', '{"findings": '
_FIND = "import importlib.util, sys; found = importlib.util.find_spec(sys.argv[1]); print(found.origin if found else '')"
_IMPORT = "import importlib, sys; importlib.import_module(sys.argv[1])"
_OF_THE_IMAGE = ("TF_PLUGGABLE_DEVICE_LIBRARY_PATH", "NEXT_PLUGGABLE_DEVICE_USE_C_API")  # libraries that are in there only
_OF_THE_JOB = ("TF_CONFIG", "CLUSTER_SPEC", *environment.DIRECTORIES)  # not of a short training
_TIMED = 2  # calls of the compiled steps between which there is a time
HEAD_BYTES = 32 << 20  # of larger training data, so much of the first file is measured with


class ProbeError(UserError):
    """The trainer said no, in one line of its own, or nothing in time. `kind` is import, absent, arguments, run or time.

    `findings` are what it found in its data until then.
    """

    def __init__(self, message: str, kind: str, findings: Sequence[Mapping[str, str]] = ()):
        super().__init__(message)
        self.kind, self.findings = kind, findings


@dataclass(frozen=True)
class Program:
    """A replica's program: Python with `-m MODULE` or a script; `source` is its file, `ours` whether it knows `--plan`."""

    argv: tuple[str, ...]
    start: int
    env: Mapping[str, str]
    cwd: Path
    source: Path
    ours: bool

    @property
    def name(self) -> str:
        """The module or script."""
        return self.argv[self.start - 1]


@dataclass(frozen=True)
class Measured:
    """One short training on this machine, in seconds: until its first step, per evaluation, and from the last one to the end.

    `reading` is the part of `startup` in which `read` bytes of data were read; `on` says what was trained on, `model` is
    the folder of the exported model, if it came to that.
    """

    startup: float
    examples_per_second: float
    evaluation: float
    finish: float
    reading: float
    read: int
    steps: int
    on: str
    model: str | None = None


def program(case: Case, number: int, site: Path | None, scratch: Path) -> Program:
    """Return what the replicas of a pool run; `site` holds the installed package of a pythonPackageSpec.

    Raises:
        ProbeError: the module cannot be found or imported; CommandError: the image is not the project's own.
    """
    options = RunOptions(trial="1" if case.study else None, variables=case.variables)
    planner = Planner(case.job, options, case.paths, scratch, "0", itertools.count(2222).__next__)
    members = planner.members()
    member = next(member for member in members if member.pool == number)
    found = planner.replica(member, members, site)
    env = {name: value for name, value in found.env.items() if name not in (*_OF_THE_IMAGE, "TRAINER_EVENTS")}
    env |= {"PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    argv, cwd, pool = found.argv, found.cwd, case.job.pools[number]
    start = 3 if argv[1:2] == ("-m",) else 2
    if not re.match("python", os.path.basename(argv[0])) or len(argv) < start or argv[start - 1].startswith("-"):
        raise commands.CommandError(f"{' '.join(argv[:3])} is not a Python program: it was not asked about its flags and data.")
    source = _source(argv, start, env, cwd, site is not None, bool(pool.command))
    return Program(argv, start, env, cwd, source, "vertex_runtime" in source.read_text(encoding="utf-8", errors="replace"))


def _source(argv: Sequence[str], start: int, env: Mapping[str, str], cwd: Path, packaged: bool, foreign: bool) -> Path:
    name = argv[start - 1]
    if start == 2:
        found = cwd / name
    else:
        done = _answer([argv[0], "-c", _FIND, name], env, cwd, 60)
        found = Path(done.stdout.strip() or "?") if done.returncode == 0 else Path("?")
        if done.returncode:
            raise ProbeError(f"{name} cannot be imported: {_last_error(done.stderr)}", "import")
    if not found.is_file():
        what = f"there is no {'module' if start == 3 else 'script'} {name}"
        if foreign:
            raise ProbeError(f"{what} in {cwd}: it is the image's own, and was not looked at.", "absent")
        where = "in the job's package" if packaged else f"in {cwd}, where the container starts"
        raise ProbeError(f"{what} {where}; mend its name.", "import")
    return found


def ask(found: Program, plan: str, seconds: float, *more: str, devices: int = 1) -> dict[str, Any]:
    """Return what the trainer says to `--plan`; `more` goes before it, where a trial's parameters would stand.

    Raises:
        ProbeError: it ended with an error, whose one line is the message, or took longer than `seconds` (kind `time`).
    """
    env = {**found.env, "TRAINER_DEVICES": str(devices)}
    done = _answer([*found.argv, *more, f"--plan={plan}"], env, found.cwd, seconds)
    answers = [line for line in done.stdout.splitlines() if line.startswith(_PLAN)]
    found_in_data = [line for line in done.stdout.splitlines() if line.startswith(_FINDINGS)]
    findings = json.loads(found_in_data[-1])["findings"] if found_in_data else []
    if done.returncode or not answers:
        message, crashed = _why(done), "Traceback" in done.stderr
        if crashed:
            raise ProbeError(f"{found.name} stopped with {message}", "import")
        raise ProbeError(message, "arguments" if plan == "flags" else "run", findings)
    return {**json.loads(answers[-1])["plan"], "findings": findings}


def import_plain(found: Program) -> str:
    """Import a program that does not know `--plan`, where that trains nothing; return what was done, in words."""
    try:
        tree = ast.parse(found.source.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ProbeError(f"{found.source}:{getattr(error, 'lineno', 1)}: is not Python: {error}", "import") from None
    guarded = any(isinstance(node, ast.If) and "__name__" in ast.dump(node.test) for node in tree.body)
    if not guarded or found.start == 2:
        return "compiled, not imported, which might train"
    done = _answer([found.argv[0], "-c", _IMPORT, found.name], found.env, found.cwd, 60)
    if done.returncode:
        raise ProbeError(f"{found.name} cannot be imported: {_last_error(done.stderr)}", "import")
    return "imported"


def measure(
    found: Program, plan: Mapping[str, Any] | None, scratch: Path, steps: int, seconds: float, most: float, cancel: threading.Event
) -> Measured:  # fmt: skip
    """Train up to `steps` steps on this machine and time them; without a `plan`, on the trainer's sample data.

    It is ended after `seconds`, or where there is nothing to time by then, as soon as there is something, after `most` at last.

    Raises:
        ProbeError: it failed, or there was nothing to time; KeyboardInterrupt: `cancel` was set.
    """
    env = {name: value for name, value in found.env.items() if name not in _OF_THE_JOB}
    events, target = scratch / "events.jsonl", scratch / "measured"
    argv, on = list(found.argv), "its own data"
    if plan is None:
        argv, on = without_data_flags(argv), "its sample data, since the job's is not on this machine"
        env = {name: value for name, value in env.items() if not name.startswith("CLOUD_ML_")}
        plan = ask(dataclasses.replace(found, argv=tuple(argv), env=env), "data", most)
    flags, size, more, on = _sample(plan, scratch, on)
    count = min(steps, plan["total_steps"]) * plan["batch_size"]
    argv += [*flags, f"--num_examples_to_train_on={count}", "--num_evals=2", "--strategy=auto", "--in_memory=yes"]
    argv += [f"--output_dir={target}", f"--jit_compile={'yes' if plan['jit_compile'] else 'no'}", "--profile=", "--plan=no"]
    start = time.time()
    seen, ended = _train(argv, {**env, "TRAINER_EVENTS": str(events)}, found.cwd, seconds, most, cancel)
    folder = next((str(folder) for folder in (target / "model", target / "1" / "model") if (folder / "saved_model.pb").is_file()), None)
    timed = _timed(seen, start, ended, plan["batch_size"])
    return dataclasses.replace(timed, evaluation=timed.evaluation * more, read=size, on=on, model=folder)


def _train(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, seconds: float, most: float, cancel: threading.Event
) -> tuple[list[dict[str, Any]], float | None]:
    """Run a short training; return its events, and the time of its end or None where it was ended."""
    seen, progress, start = [], Follower(Path(env["TRAINER_EVENTS"])), time.time()

    def enough() -> bool:
        seen.extend(event for event in progress.new() if "phase" in event)
        spent = time.time() - start
        return cancel.is_set() or spent > most or spent > seconds and len(_steps(seen)) >= _TIMED

    done = _run(argv, env, cwd, enough)
    ended = time.time()
    if cancel.is_set():
        raise KeyboardInterrupt
    if done is not None and done.returncode:
        raise ProbeError(f"a short training failed here: {_why(done)}", "run")
    enough()  # reads what came last
    return seen, None if done is None else ended


def _sample(plan: Mapping[str, Any], scratch: Path, what: str) -> tuple[Sequence[str], int, float, str]:
    """Return the data of a short training: the job's own, or the first part of it where that is much.

    Returns:
        The flags that name it, its size in bytes, how many times as much the job evaluates on, and what it is in words.
    """
    if plan["bytes"] <= HEAD_BYTES:
        return (), plan["bytes"], 1.0, what
    if not os.path.isfile(plan["files"][0]):
        raise ProbeError(f"its data is too much to measure with ({plan['bytes']:,} bytes in folders).", "run")
    head = _head(Path(plan["files"][0]), scratch)
    size = head.stat().st_size
    evaluated = plan["evaluation_rows"] / (plan["rows"] * size / plan["bytes"])
    flags = (f"--train_data_path={head}", f"--eval_data_path={head}", "--bad_rows=skip")
    return flags, size, evaluated, f"the first {size:,} bytes of {plan['files'][0]}"


def _steps(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["phase"] == "step"]


def _timed(events: Sequence[dict[str, Any]], start: float, ended: float | None, batch: int) -> Measured:
    """Return what the events of a training tell that began at `start` and ended by itself, or was ended (None)."""
    steps = _steps(events)
    if len(steps) < _TIMED:
        spent = (ended or time.time()) - start
        first = f", the first after {steps[0]['time'] - start:.1f} s" if steps else ""
        raise ProbeError(
            f"not two calls of the compiled steps were done within {spent:.0f} s{first}: try again when the machine is less busy, "
            "or give --no_measure.", "run",
        )  # fmt: skip
    phases = {event["phase"]: event["time"] for event in reversed(events)}  # the first of each
    # Rates over calls one after the other: an evaluation between two of them is not training.
    pairs = [(a, b) for a, b in zip(events, events[1:]) if a["phase"] == b["phase"] == "step"]
    trained, spent = sum(b["step"] - a["step"] for a, b in pairs), sum(b["time"] - a["time"] for a, b in pairs)
    rate = trained * batch / spent if spent else 0.0
    if not rate:
        raise ProbeError("too few steps to measure: the job itself is as short as that.", "run")
    evaluation = _evaluation(events)
    last = max(event["time"] for event in events if event["phase"] in ("step", "evaluation"))
    return Measured(
        startup=steps[0]["time"] - start, examples_per_second=rate, evaluation=evaluation,
        finish=max(0.0, ended - last - evaluation) if ended else 0.0,
        reading=phases.get("build", start) - phases.get("data", start), read=0, steps=steps[-1]["step"], on="",
    )  # fmt: skip


def _evaluation(events: Sequence[Mapping[str, Any]]) -> float:
    """Return how long the last evaluation took: the next step or its own checkpoint follows; an older one may lie between."""
    for i in reversed(range(len(events))):
        if events[i]["phase"] == "evaluation":
            after = (e for e in events[i + 1 :] if e["phase"] == "step" or e["phase"] == "checkpoint" and e["step"] >= events[i]["step"])
            if (following := next(after, None)) is not None:
                return following["time"] - events[i]["time"]
    return 0.0


def _head(file: Path, scratch: Path) -> Path:
    """Write the first part of a file, up to a line's end, to a file of its own."""
    head = scratch / f"head-{file.name}"
    with open(file, "rb") as source:
        data = source.read(HEAD_BYTES)
    head.write_bytes(data[: data.rfind(b"\n") + 1])
    return head


def _answer(argv: Sequence[str], env: Mapping[str, str], cwd: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; raise a ProbeError where that takes longer than `seconds`."""
    end = time.monotonic() + seconds
    done = _run(argv, env, cwd, lambda: time.monotonic() > end)
    if done is None:
        raise ProbeError(f"gave no answer within {seconds:.0f} s.", "time")
    return done


# PR_SET_PDEATHSIG, then the program in this process's place.
_DYING = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"


def _run(argv: Sequence[str], env: Mapping[str, str], cwd: Path, enough: Callable[[], bool]) -> subprocess.CompletedProcess[str] | None:
    """Run a program; return how it ended, or None where it was killed because there was `enough` of it."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(_dying_with_us(argv, env, cwd), env=dict(env), cwd=cwd, errors="replace", **pipes) as process:
        while True:
            try:
                out, err = process.communicate(timeout=0.2)
                return subprocess.CompletedProcess(argv, process.returncode, out, err)
            except subprocess.TimeoutExpired:
                if enough():
                    process.kill()
                    process.communicate()
                    return None
            except BaseException:
                process.kill()
                raise


def _dying_with_us(argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> list[str]:
    """Return a command line by which a program is killed as this process is, so that no training is left behind.

    The program asks for that itself: a function in a fork of this process would run beside the threads of gRPC and TensorFlow.

    Raises:
        FileNotFoundError: there is no such program.
    """
    found = os.path.join(cwd, argv[0]) if os.sep in argv[0] else shutil.which(argv[0], path=env.get("PATH"))
    if not found or not os.path.exists(found):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
    return [sys.executable, "-IS", "-c", _DYING, *argv] if sys.platform == "linux" else list(argv)


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """Return why a program ended, in one line."""
    if done.returncode < 0:
        how = restarts.describe(done.returncode)
        return f"it ended by {how}: {_last_error(done.stderr)}" if done.stderr.strip() else f"it ended by {how}, as for want of memory."
    return _last_error(done.stderr or done.stdout)


def _last_error(text: str) -> str:
    return output.last_error(text.splitlines()).removeprefix("error: ")
