"""What the `test_local_*` files share: job files, payload scripts, and the real command line as a process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import forked

from vertex_local.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


def write_job(folder: Path, pools: list, name: str = "job.yaml", **fields) -> Path:
    """Write a job file; a pool is (script, replicas), a pool in full, or {}."""
    specs = [
        {"replicaCount": pool[1], "containerSpec": {"imageUri": "host/any:1", "command": ["python", pool[0]]}}
        if isinstance(pool, tuple)
        else pool
        for pool in pools
    ]
    path = folder / name
    path.write_text(json.dumps({"workerPoolSpecs": specs, **fields}, indent=1))
    return path


def write_script(folder: Path, name: str, text: str) -> str:
    """Write a payload script; `attempt` in it counts the lives of that replica from 1 on."""
    head = (
        "import json, os, signal, subprocess, sys, time\n"
        "task = json.loads(os.environ['CLUSTER_SPEC'])['task']\n"
        "me = task['type'] + '-' + str(task['index'])\n"
        "open(me + '.lives', 'a').write('x')\n"
        "attempt = os.path.getsize(me + '.lives')\n"
    )
    (folder / name).write_text(head + text)
    return name


def environ(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


class Started(subprocess.Popen):
    """A process that a test which fails does not wait for."""

    def __exit__(self, kind, *error) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, *error)


def start(folder: Path, *args: object, fresh: bool = False, **popen) -> Started:
    """Start the command line in a fork; `fresh`: as a process of its own, which is gone as soon as it has been killed."""
    command = [sys.executable if fresh else forked.python("local"), "-m", "vertex_local", "run", *map(str, args)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environ(), **popen}
    return Started(command, cwd=folder, **options)


def run(folder: Path, *args: object, seconds: float = 60, **popen) -> subprocess.CompletedProcess:
    """Run the command line to its end, in so many seconds at most."""
    with start(folder, *args, **popen) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def call(folder: Path, *args: object) -> subprocess.CompletedProcess:
    """Run a job inside this process, where the SDK's types are loaded already."""
    return command(folder, "run", *args)


def result(folder: Path, job_id: str) -> dict:
    return json.loads((folder / ".vertex_local" / "jobs" / job_id / "result.json").read_text())


def attempts(folder: Path, job_id: str) -> dict[str, list[int]]:
    """Return the exit codes of every replica's attempts."""
    replicas = result(folder, job_id)["replicas"]
    return {name: [attempt["code"] for attempt in replica["attempts"]] for name, replica in replicas.items()}


def wait_for(condition, seconds: float = 60.0):
    """Wait until `condition()` is true and return what it returned; what takes longer than `seconds` hangs."""
    end = time.time() + seconds
    while time.time() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"it did not happen within {seconds} s")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command(folder: Path, *words: object) -> subprocess.CompletedProcess:
    """Run one of `python -m vertex_local`'s commands in this process, in `folder`."""
    out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([*map(str, words)])
            except SystemExit as end:  # argparse
                code = end.code
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def said(folder: Path, *words: object) -> str:
    """Return what a command prints, which must succeed."""
    done = command(folder, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout
