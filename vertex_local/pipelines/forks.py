"""Programs as forks of a process that has imported what they need, so that they start in milliseconds.

    python -m vertex_local.pipelines.forks ADDRESS MODULE...    # serves until its standard input ends

A request names a function and its argument. The function runs in a process group of its own, with the environment, folder
and log of the request. The same connection returns its events (see `emit`) and at last its exit code. When the client closes
the connection, the program is ended.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UserError
from ..local import output

EVENTS = "VERTEX_LOCAL_EVENTS"  # variable: the descriptor that `emit` writes to
KILL_AFTER = 10.0  # seconds between SIGTERM and SIGKILL, in which a program may cancel its jobs
_TICK = 0.05
_DRAIN = 1.0  # seconds for the rest of the output: a process that has left the group may hold the stream open
_LOG_TAIL = 1 << 16  # bytes of a log in which an error is looked for
_FORKING = multiprocessing.get_context("fork")


# ------------------------------------------------------------------ the client


class Fork:
    """A program as its client sees it. It is ended when its Fork is closed, or when the client's process ends.

    Args:
        address: the Unix socket of the server.
        function: as "package.module:function"; it is called with `argument`, which JSON can hold.
        env: the program's whole environment.
        log: file to which its output is appended; each line's time and size go to `../lines/<the same name>`.

    Raises:
        UserError: the server is gone.
    """

    def __init__(self, address: str, function: str, argument: Any, *, env: Mapping[str, str], cwd: Path, log: Path):
        self._socket, self._log = socket.socket(socket.AF_UNIX), log
        request = {"function": function, "argument": argument, "env": dict(env), "cwd": str(cwd), "log": str(log)}
        try:
            self._socket.connect(address)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            self._socket.close()
            raise UserError(f"the process from which pipelines' steps fork is gone ({error.strerror}); run the pipeline again.") from None
        self._rest = b""
        self.code: int | None = None

    def lines(self, patience: float | None = None) -> Iterator[Any]:
        """Yield the program's events until it has ended, and None whenever none has come for `patience` seconds."""
        self._socket.settimeout(patience)
        while self.code is None:
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                yield None
                continue
            except ConnectionError:
                data = b""
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if isinstance(event, dict) and "exit" in event:
                    self.code = event["exit"]
                else:
                    yield event
            if not data and self.code is None:
                self.code = -signal.SIGKILL  # the server was killed, and the program with it

    def wait(self) -> int:
        """Return the exit code once the program has ended: negative for a signal."""
        for _ in self.lines():
            pass
        return self.code if self.code is not None else 1

    def last_error(self) -> str:
        """Return the line of the program's output that best says why it ended as it did."""
        with contextlib.suppress(OSError), open(self._log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
            return output.last_error(lines, f"it ended with code {self.code} and said nothing")
        return f"it ended with code {self.code}"

    def terminate(self) -> None:
        """Send SIGTERM to the program, and SIGKILL if it goes on."""
        with contextlib.suppress(OSError):
            self._socket.sendall(b"t")

    def close(self) -> None:
        """End the program if it still runs."""
        self._socket.close()


def emit(event: Any) -> None:
    """Send an event, which JSON can hold, to this program's client."""
    data, place = json.dumps(event).encode() + b"\n", int(os.environ[EVENTS])
    while data:
        data = data[os.write(place, data) :]


class ForkServer:
    """The server: a process that has imported `modules` and forks; it ends with the process that started it.

    Args:
        python: its interpreter.
        folder: an existing folder for its socket, with a short path, that only this user may read.
        logs: folder for its output.
    """

    def __init__(self, python: str, modules: Sequence[str], folder: Path, env: Mapping[str, str], name: str, logs: Path):
        self.address = str(folder / f"{name}.socket")
        self.log = logs / f"pipelines-{name}.log"
        listener = socket.socket(socket.AF_UNIX)  # bound here, so that clients can connect before the imports are done
        listener.bind(self.address)
        listener.listen(128)
        command = [python, "-m", __spec__.name, str(listener.fileno()), *modules]
        with listener, open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=dict(env), pass_fds=(listener.fileno(),), start_new_session=True
            )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def close(self) -> None:
        """End the process; its forks end by themselves."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(2 * KILL_AFTER)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        Path(self.address).unlink(missing_ok=True)


# ------------------------------------------------------------------ the server


def main(argv: Sequence[str]) -> int:
    """Import the modules and fork for each connection, until standard input ends."""
    gc.disable()  # imports make little garbage
    for name in argv[1:]:
        try:
            importlib.import_module(name)
        except Exception:  # a program that needs the module will fail with its own message
            traceback.print_exc()
    gc.freeze()  # so that garbage collection in the forks does not copy these pages
    gc.enable()
    listener = socket.socket(fileno=int(argv[0]))
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if sys.stdin in ready:
                return 0
            connection, _ = listener.accept()
            _FORKING.Process(target=_supervise, args=(connection, listener)).start()
            connection.close()


def _supervise(connection: socket.socket, listener: socket.socket) -> None:
    """Run the program that a client asks for, until it has ended."""
    listener.close()
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(1 << 20)
        if not piece:
            return
        data += piece
    request = json.loads(data)
    out, err = os.pipe(), os.pipe()
    program = _FORKING.Process(target=_become, args=(request, connection, out[1], err[1]), name=request["function"])
    program.start()
    os.close(out[1])
    os.close(err[1])
    code = _watch(program, connection, {"out": out[0], "err": err[0]}, Path(request["log"]))
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps({"exit": code}).encode() + b"\n")


def _become(request: dict[str, Any], connection: socket.socket, out: int, err: int) -> NoReturn:
    """Give this fork the environment, folder and streams of a new program, and call the function."""
    os.setsid()
    os.chdir(request["cwd"])
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, out), (2, err)):
        os.dup2(source, target)
    for each in (null, out, err):
        os.close(each)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", 1), open(2, "w", 1)
    os.environ.clear()
    os.environ.update(request["env"], **{EVENTS: str(connection.fileno())})
    sys.path[:] = [path for path in sys.path if path]
    sys.path[:0] = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, _, name = request["function"].partition(":")
    sys.exit(getattr(importlib.import_module(module), name)(request["argument"]))


def _watch(program: BaseProcess, connection: socket.socket, streams: Mapping[str, int], log: Path) -> int:
    """Log the program's output until it has ended, end it when the client is gone or asks for that, and return its exit code."""
    copies = _copied(streams, log)
    watched: list[Any] = [connection, program.sentinel]
    deadline = 0.0
    while (code := program.exitcode) is None:
        ready, _, _ = select.select(watched, [], [], _TICK)  # the sentinel is also held by processes that it leaves behind
        if connection in ready:
            if not connection.recv(1):  # the client is gone
                watched.remove(connection)
            if not deadline:
                _signal(program, signal.SIGTERM)
                deadline = time.monotonic() + KILL_AFTER
        if deadline and time.monotonic() > deadline:
            _signal(program, signal.SIGKILL)
    _signal(program, signal.SIGKILL)  # processes that it has left in its group
    for copy in copies:
        copy.join(_DRAIN)
    return code


def _copied(streams: Mapping[str, int], log: Path) -> list[threading.Thread]:
    """Start to copy a program's streams to its log, and the time and size of each line to the file beside it."""
    index = log.parents[1] / "lines" / log.name
    for folder in (log.parent, index.parent):
        folder.mkdir(parents=True, exist_ok=True)
    file, lines, lock = open(log, "ab"), open(index, "a"), threading.Lock()

    def copy(kind: str, place: int) -> None:
        for line in os.fdopen(place, "rb"):
            with lock:
                size = file.write(line if line.endswith(b"\n") else line + b"\n")
                lines.write(f"{time.time():.6f} {kind} {size}\n")
                file.flush()
                lines.flush()

    threads = [threading.Thread(target=copy, args=stream, daemon=True) for stream in streams.items()]
    for thread in threads:
        thread.start()
    return threads


def _signal(program: BaseProcess, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or only zombies are left
        os.killpg(program.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
