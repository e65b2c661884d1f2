"""Runs programs in forks of a process that has imported TensorFlow: that import is most of what a short run takes.

`interpreter()` is a program to give as `--python` or to start as a process. What it is asked to run of the trainers and of
`vertex_runtime` runs in a fork, with an environment, folder, arguments, input, output and end of its own, as `python -m` (or
`python -S -m`) gives them; all else it leaves to Python. Signals go on to the fork, and the fork ends with the program. Where the
start itself is what a test looks at (what is imported, when, from where) or its children's fate, the test takes `sys.executable`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 4  # bytes that say how long a request is

PROGRAM = """\
#!{python} -IS
import json, os, signal, socket, sys

bare = sys.argv[1:2] == ["-S"]
words = sys.argv[1 + bare:]
module, flags = (words[1], words[2:]) if words[:1] == ["-m"] else ("", words)
if not ({forks}):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
fork = socket.socket(socket.AF_UNIX)
def pass_on(number, _):
    try:
        fork.sendall(bytes([number]))
    except OSError:
        pass  # it has just ended
ignored = [number for number in (signal.SIGHUP, signal.SIGTERM) if signal.getsignal(number) == signal.SIG_IGN]
request = json.dumps([module, flags, dict(os.environ), os.getcwd(), bare, ignored]).encode()
try:
    fork.connect({address!r})
    socket.send_fds(fork, [len(request).to_bytes({length}, "little")], [0, 1, 2])
    fork.sendall(request)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, pass_on)
    end = fork.recv(2)
except OSError:
    end = b""
if not end:
    sys.exit("the process that forks has ended: " + open({log!r}).read())
code = int.from_bytes(end, "little", signed=True)
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""
# What a program forks for; `module` is what stands behind -m.
FORKED = {"all": "True", "trainers": 'module.split(".")[-2:] == ["trainer", "task"] or module.startswith("vertex_runtime.")'}
# What the processes of `prepare` have imported.
IMPORTED = {
    "tensorflow": ("keras", "tensorflow", "pyarrow.csv", "pyarrow.compute"),
    "google": ("google.cloud.aiplatform", "google.cloud.storage", "google.cloud.bigquery", "google.cloud.bigquery_storage_v1"),
    "local": (
        "vertex_local.serve.command", "vertex_local.local.run", "vertex_local.tuning.tune", "google.cloud.aiplatform_v1.types",
        "optuna.visualization", "optuna.importance", "sqlalchemy", "alembic.command",  # which a study takes as it begins and ends
    ),
}  # fmt: skip
VARIABLE = "FORKS"  # the interpreter and the folder of what `prepare` made


def prepare() -> None:
    """Let this process and those that it starts, as pytest-xdist's, share processes that have imported what takes long."""
    if os.environ.get(VARIABLE, "").partition(":")[0] != sys.executable:  # as where tests run the tests by another Python
        root = _temporary()
        os.environ[VARIABLE] = f"{sys.executable}:{root}"
        for name, imported in IMPORTED.items():
            _listen(root / name, sys.executable, imported)


def shared(name: str) -> Path:
    """Return the folder of the programs that fork from a process which has imported IMPORTED[name]."""
    return Path(os.environ[VARIABLE].partition(":")[2], name)


@functools.cache
def own(python: str, imported: tuple[str, ...]) -> Path:
    """Return such a folder for another Python."""
    folder = _temporary() / "own"
    _listen(folder, python, imported)
    return folder


def python(name: str) -> str:
    """Return the path of a program that runs whatever a Python runs in a fork of a process which has imported IMPORTED[name]."""
    return str(shared(name) / "all" / "python")


def interpreter() -> str:
    """Return the path of a program that runs what trains or predicts in a fork, and all else as this Python does."""
    return str(shared("tensorflow") / "trainers" / "python")


def run(
    module: str, flags: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE FLAGS` in a fork, by default of a process with TensorFlow; `env` is its whole environment.

    Without a `module` the first of `flags` is a script, or -c.
    """
    words = [str((folder or shared("tensorflow")) / "all" / "python"), *(["-m", module] if module else []), *flags]
    return subprocess.run(
        words, env=dict(env), cwd=cwd, timeout=timeout, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )  # fmt: skip


def _temporary() -> Path:
    folder = tempfile.mkdtemp(prefix="forks-")  # with a short path, as a socket's must be
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _listen(folder: Path, python: str, imported: tuple[str, ...]) -> None:
    """Make a socket, from which the first request starts the process that forks, and the programs that ask it."""
    for name, forks in FORKED.items():
        path = folder / name / "python"  # its name begins as an interpreter's, for `check` asks no other programs
        path.parent.mkdir(parents=True)
        places = {"address": str(folder / "socket"), "log": str(folder / "log")}
        path.write_text(PROGRAM.format(python=python, forks=forks, length=LENGTH, **places))
        path.chmod(0o755)
        path.with_name("python3").symlink_to("python")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    # As the runtime has it, which sets it before it imports TensorFlow.
    command, env = [python, __file__, str(listener.fileno()), *imported], {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    threading.Thread(target=_start, args=(command, env, listener, folder / "log"), daemon=True).start()


def _start(command: Sequence[str], env: Mapping[str, str], listener: socket.socket, log: Path) -> None:
    """Start the process that forks when the first request is there; it ends when its input does, with this process."""
    select.select([listener], [], [])
    options = {"env": env, "cwd": ROOT, "stdin": subprocess.PIPE, "pass_fds": (listener.fileno(),), "start_new_session": True}
    with listener, open(log, "wb") as said, subprocess.Popen(command, stdout=said, stderr=said, **options) as server:
        listener.close()
        server.wait()


@dataclass
class _Fork:
    """A fork and the connection to whoever asked for it: closed, once that is gone."""

    pid: int
    connection: socket.socket


class _Server:
    """Forks for each request, passes signals on and tells how the fork ended."""

    def __init__(self, listener: socket.socket):
        self.listener, self.selector = listener, selectors.DefaultSelector()
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        self.selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> tuple[str, list[str]]:
        """Return in each fork, with the module that it is to run and its arguments."""
        while True:
            key = self.selector.select()[0][0]  # one at a time: what it leads to may be the end of another's descriptor
            if key.fileobj is sys.stdin:
                os._exit(0)  # the kernel kills the forks: see _become
            if key.fileobj is self.listener:
                if request := self._fork():
                    return request
            elif key.fileobj is key.data.connection:
                self._pass_on(key.data)
            else:
                self._tell_end(key.data, key.fd)

    def _fork(self) -> tuple[str, list[str]] | None:
        connection, _ = self.listener.accept()
        request, files = _request(connection)
        pid = os.fork() if request else None
        if pid == 0:
            for each in (connection, *(key.fileobj for key in self.selector.get_map().values() if key.fileobj is not sys.stdin)):
                os.close(each) if isinstance(each, int) else each.close()  # else who waits at the other end waits for this fork, too
            self.selector.close()
            _become(*request[2:], files)
            return request[0], request[1]
        for file in files:
            os.close(file)
        if pid is None:  # it was killed while it asked
            connection.close()
            return None
        fork = _Fork(pid, connection)
        self.selector.register(connection, selectors.EVENT_READ, fork)
        self.selector.register(os.pidfd_open(pid), selectors.EVENT_READ, fork)
        return None

    def _pass_on(self, fork: _Fork) -> None:
        number = b""
        with contextlib.suppress(ConnectionResetError):
            number = fork.connection.recv(1)
        os.kill(fork.pid, number[0] if number else signal.SIGKILL)
        if not number:
            self.selector.unregister(fork.connection)
            fork.connection.close()

    def _tell_end(self, fork: _Fork, descriptor: int) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(fork.pid, 0)[1])
        self.selector.unregister(descriptor)
        os.close(descriptor)
        if fork.connection.fileno() >= 0:
            self.selector.unregister(fork.connection)
            with contextlib.suppress(OSError):  # gone in this moment
                fork.connection.sendall(code.to_bytes(2, "little", signed=True))
            fork.connection.close()


def _request(connection: socket.socket) -> tuple[list[Any], list[int]]:
    """Return what is asked for, and the input, output and error that it gets; nothing where whoever asked is gone."""
    head, files, _, _ = socket.recv_fds(connection, LENGTH, 3)
    data, length = b"", int.from_bytes(head, "little")
    while piece := connection.recv(length - len(data)):
        data += piece
    return json.loads(data) if data and len(data) == length else [], files


def _become(env: Mapping[str, str], cwd: str, bare: bool, ignored: Sequence[int], files: Sequence[int]) -> None:
    """Make this fork what a new interpreter would be."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.setpgid(0, 0)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, file in enumerate(files):
        os.dup2(file, descriptor)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs, and so the tests, may ignore
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    # Anew, for those of the server know whether it had files, pipes or a terminal.
    sys.stdin = sys.__stdin__ = open(0, closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", 1 if "PYTHONUNBUFFERED" in env else -1, closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in env
    if bare:  # without what `site` adds: site-packages, and what installs there lead to
        sys.path[:] = [path for path in sys.path if not path.endswith("-packages")]
        sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
    sys.path[0] = cwd
    sys.path[1:1] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]


def _run(module: str, flags: list[str]) -> None:
    """Run a module, the text of -c, or a script."""
    if module:
        sys.argv = ["", *flags]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif flags[0] == "-c":
        sys.argv = ["-c", *flags[2:]]
        exec(compile(flags[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = flags, str(Path(flags[0]).parent)
        runpy.run_path(flags[0], run_name="__main__")


def _end(code: object) -> None:
    """End as Python does, without taking TensorFlow apart, for which a fork would have to copy it: a quarter of a second."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads it, or the program has closed it
        code = 120 if not sys.stdout.closed else code
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    gc.disable()  # as the runtime does while it imports TensorFlow
    sys.path.insert(0, str(ROOT))  # where the project is not installed
    for imported in sys.argv[2:]:
        with contextlib.suppress(ModuleNotFoundError):  # of an extra that is not installed
            importlib.import_module(imported)
    sys.path.remove(str(ROOT))
    gc.freeze()
    gc.enable()
    try:
        _run(*_Server(socket.socket(fileno=int(sys.argv[1]))).serve())
    except SystemExit as ended:
        _end(ended.code)
    _end(0)
