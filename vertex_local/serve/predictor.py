"""Deployed models: each one a process that holds the SavedModel and answers a line of JSON with a line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .rest import ApiError

_ROOT = Path(__file__).resolve().parents[2]
START, ANSWER = 180.0, 60.0  # seconds for TensorFlow and the model; for a prediction, as on a shared endpoint


class Predictors:
    """The processes of the deployed models, by a key of the caller's; one is started again when it is asked next."""

    def __init__(self, python: str | None, logs: Path):
        self.python, self.logs = python or sys.executable, logs
        self._lock = threading.Lock()
        self._workers: dict[str, _Worker] = {}

    def ready(self, key: str, model: str) -> None:
        """Start the process of `key` with the SavedModel in the folder `model` and wait until it can be asked."""
        self._worker(key, model).ask({"instances": []})

    def _worker(self, key: str, model: str) -> _Worker:
        with self._lock:
            worker = self._workers.get(key)
            if worker is None or worker.ended:
                worker = self._workers[key] = _Worker(self.python, model, self.logs / f"{key.rpartition('/')[2]}.log")
        return worker

    def ask(self, key: str, model: str, instances: list[Any]) -> list[Any]:
        """Return its predictions, one for each instance; instances that do not fit are INVALID_ARGUMENT."""
        worker = self._worker(key, model)
        try:
            answer = worker.ask({"instances": instances})
        except _Ended:
            if worker.stopped or not worker.ready:
                raise  # undeployed meanwhile, or it never came up; a process that was killed since is started again, once
            answer = self._worker(key, model).ask({"instances": instances})
        if "error" in answer:
            raise ApiError("INVALID_ARGUMENT", f"instances: {answer['error']}", "instances")
        return answer["predictions"]

    def stop(self, key: str) -> None:
        """End the process of that key, if there is one."""
        with self._lock:
            worker = self._workers.pop(key, None)
        if worker:
            worker.stop()

    def stop_all(self) -> None:
        """End every process."""
        for key in list(self._workers):
            self.stop(key)


class _Ended(ApiError):
    """The process ended before it answered."""


class _Worker:
    """One process; it ends by itself when the service does, for its input ends then."""

    def __init__(self, python: str, model: str, log: Path):
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"}
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self._lock, self._rest = log, threading.Lock(), b""
        self.ready = self.stopped = False
        command = [python, "-m", "vertex_runtime.predict", model, "--requests"]
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True, bufsize=0
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and return the answer to it."""
        with self._lock:
            try:
                self.process.stdin.write(json.dumps(request).encode() + b"\n")
                patience = ANSWER if self.ready else START
                line = self._line(time.monotonic() + patience)
                self.ready = True
                return json.loads(line)
            except TimeoutError:
                self._end()
                raise ApiError("UNAVAILABLE", f"the model did not answer within {patience:g} s; see {self.log}.") from None
            except OSError:
                self._end()
                lines = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise _Ended("FAILED_PRECONDITION", f"the model's process ended: {lines[-1].removeprefix('error: ')}") from None

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            data = os.read(self.process.stdout.fileno(), 1 << 20)
            if not data:
                raise BrokenPipeError
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def stop(self) -> None:
        """End it at once: it keeps nothing, and whoever waits for an answer gets an error."""
        self.stopped = True
        self.process.kill()
        with self._lock:
            self._end()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
