"""Runs programs in forks of a process that has imported TensorFlow: that import is most of what a short run takes.

A fork has an environment, folder, arguments, output and end of its own, as `python -m` gives them. Where the start itself is
what a test looks at (what is imported, when, from where), it starts an interpreter instead.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(
    module: str, flags: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float,
    python: str = sys.executable, imported: tuple[str, ...] = ("keras", "tensorflow"),
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run `python -m MODULE FLAGS` in a fork of a `python` that has imported what `imported` says; `env` is its whole environment."""
    server, late = _server(python, imported), False
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        server.stdin.write(json.dumps([module, list(flags), dict(env), str(cwd), str(out), str(err)]) + "\n")
        server.stdin.flush()
        pid = int(server.stdout.readline())
        if not select.select([server.stdout], [], [], timeout)[0]:
            late = True
            os.kill(pid, signal.SIGKILL)
        code = int(server.stdout.readline())
        said = out.read_text(), err.read_text()
    if late:
        raise subprocess.TimeoutExpired([module, *flags], timeout, *said)
    return subprocess.CompletedProcess([module, *flags], code, *said)


@functools.cache
def _server(python: str, imported: tuple[str, ...]) -> subprocess.Popen[str]:
    """Start the process that forks, once; it ends when its input does, with this process."""
    # As the runtime has it, which sets it before it imports TensorFlow.
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [python, __file__, *imported]
    return subprocess.Popen(command, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def _requests() -> list[str]:
    """Answer each request by a fork's number and then by its exit code; return in the fork, with the request."""
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            return json.loads(line)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    sys.exit()


def _become(flags: Sequence[str], env: Mapping[str, str], cwd: str, out: str, err: str) -> None:
    """Make this fork what a new interpreter would be."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, path, mode in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY | os.O_CREAT), (2, err, os.O_WRONLY | os.O_CREAT)):
        opened = os.open(path, mode)
        os.dup2(opened, descriptor)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs, and so the tests, may ignore
    sys.argv = ["", *flags]
    sys.path[0] = cwd
    sys.path[1:1] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]


if __name__ == "__main__":
    gc.disable()  # as the runtime does while it imports TensorFlow
    for imported in sys.argv[1:]:
        importlib.import_module(imported)
    gc.freeze()
    gc.enable()
    program, *rest = _requests()
    _become(*rest)
    runpy.run_module(program, run_name="__main__", alter_sys=True)
