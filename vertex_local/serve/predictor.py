"""The processes of deployed models: each holds a SavedModel and answers a line of JSON with a line of JSON."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ..local import environment
from .rest import ApiError

START, ANSWER = 180.0, 60.0  # seconds to load TensorFlow and the model; for a prediction, as on a shared endpoint
MOST_WAITING = 10  # requests that may wait for one process; each of them holds a thread of the server


class Predictors:
    """The processes of deployed models, by the name of the resource; one that has ended starts again at the next request."""

    def __init__(self, python: str | None, logs: Path):
        self.python, self.logs = python or sys.executable, logs
        self._lock = threading.Lock()
        self._workers: dict[str, _Worker] = {}

    def ready(self, key: str, model: str) -> None:
        """Start the process of `key` with the SavedModel in the folder `model` and wait until it answers."""
        self._worker(key, model).ask({"instances": []})

    def _worker(self, key: str, model: str) -> _Worker:
        with self._lock:
            worker = self._workers.get(key)
            if worker is None or worker.ended:
                name = "-".join(key.split("/")[-3::2])  # of endpoint and deployed model: ids of the latter may be chosen
                worker = self._workers[key] = _Worker(self.python, model, self.logs / f"{name}.log")
        return worker

    def ask(self, key: str, model: str, instances: list[Any]) -> list[Any]:
        """Return the model's predictions, one for each instance.

        Raises:
            ApiError: INVALID_ARGUMENT for instances that do not fit; another status if the process is busy or has ended.
        """
        return self._answer(key, model, {"instances": instances})["predictions"]

    def explain(self, key: str, model: str, instances: list[Any], spec: dict[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
        """Return the predictions and their explanations, for an ExplanationSpec in JSON form; see vertex_runtime/explain.py."""
        answer = self._answer(key, model, {"instances": instances, "explain": spec})
        return answer["predictions"], answer["explanations"]

    def _answer(self, key: str, model: str, request: dict[str, Any]) -> dict[str, Any]:
        worker = self._worker(key, model)
        try:
            answer = worker.ask(request)
        except _Ended:
            if worker.stopped or not worker.ready:
                raise  # undeployed meanwhile, or never ready; a process that was ready and ended is started again, once
            answer = self._worker(key, model).ask(request)
        if "error" in answer:
            raise ApiError("INVALID_ARGUMENT", f"instances: {answer['error']}", "instances")
        given, asked = len(answer["predictions"]), len(request["instances"])
        if given != asked:
            text = f"the model gives {given} predictions for {asked} instances: export a signature that gives one for each."
            raise ApiError("FAILED_PRECONDITION", text)
        return answer

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
    """One process; it ends with the service, because its input ends then."""

    def __init__(self, python: str, model: str, log: Path):
        env = {**environment.importing_this(os.environ), "TF_CPP_MIN_LOG_LEVEL": "2"}
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self._lock = log, threading.Lock()
        self._turns = threading.Semaphore(1 + MOST_WAITING)
        self.ready = self.stopped = self._closed = False
        command = [python, "-m", "vertex_runtime.predict", model, "--requests"]
        self._channel, theirs = socket.socketpair()  # unlike pipes, it has a time limit, for writing as for reading
        self._answers = self._channel.makefile("rb")
        end = theirs.fileno()
        with theirs, open(log, "ab") as errors:
            self._begin = errors.tell()  # what stands before it was said by an earlier process
            self.process = subprocess.Popen(command, env=env, stdin=end, stdout=end, stderr=errors, start_new_session=True)

    @property
    def ended(self) -> bool:
        return self._closed or self.process.poll() is not None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and return the answer to it; requests take turns."""
        if not self._turns.acquire(blocking=False):
            raise ApiError("RESOURCE_EXHAUSTED", f"{MOST_WAITING} requests wait for this model already; ask again later.")
        try:
            if not self._lock.acquire(timeout=ANSWER if self.ready else START):
                raise ApiError("UNAVAILABLE", "the model is busy with earlier requests; ask again later.")
            try:
                return self._exchange(request)
            finally:
                self._lock.release()
        finally:
            self._turns.release()

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._closed:  # the request before this one was not answered
            raise _Ended("UNAVAILABLE", f"the model's process was ended, as it did not answer; see {self.log}.")
        patience = ANSWER if self.ready else START
        try:
            self._channel.settimeout(patience)
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(self._answers.readline())
            self.ready = True
            return answer
        except TimeoutError:
            self._end()
            raise ApiError("UNAVAILABLE", f"the model did not answer within {patience:g} s; see {self.log}.") from None
        except (OSError, ValueError):  # the channel broke or ended, or the answer is not JSON
            self._end()
            lines = self.log.read_bytes()[self._begin :].decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise _Ended("FAILED_PRECONDITION", f"the model's process ended: {lines[-1].removeprefix('error: ')}") from None

    def stop(self) -> None:
        """Kill it at once, as it has nothing to save; requests that wait get an error."""
        self.stopped = True
        self.process.kill()
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._closed = True
        self._answers.close()
        self._channel.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
