"""The run in Vertex AI Experiments, told by a process of its own: the training waits for nobody.

The process (`client.py`) imports the SDK, speaks with the service and may fail; what it is told goes through a queue and a
pipe, a line of JSON each. Only the end waits for it, and not for long.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from ..environment import Environment
from ..reporting import log

AT_THE_END = 60.0  # seconds that the end of a run waits for a service that has answered
WHEN_FAILED = 20.0
WHEN_STOPPED = 2.0  # the same where the process was told to end, of which it has five
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def names(given: str, env: Environment, trainer: str, run_id: str) -> dict[str, str] | None:
    """Return the experiment's name and the run's; None where the run is in no experiment.

    Args:
        given: `--experiment`, which wins over AIP_EXPERIMENT_NAME.
        run_id: of `run.json`, for a run outside a job.
    """
    name = given or env.experiment
    if not name:
        return None
    run = env.experiment_run.rpartition("/")[2] if env.experiment_run else ""
    run = run.removeprefix(f"{name.rpartition('/')[2]}-")
    if not run:
        run = env.job or f"{trainer}-{run_id}"
    if env.trial:
        run = f"{run}-{env.trial}"
    return {"name": name, "run": "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in run.lower())}


class Reporter:
    """Tells the client what happens; the first record begins the run, the last one ends it."""

    def __init__(self, experiment: Mapping[str, str] | None, env: Environment):
        self.experiment = experiment
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process: subprocess.Popen | None = None
        self._thread: threading.Thread | None = None
        self._tensorboard = env.tensorboard

    def begin(self, record: Mapping[str, Any]) -> None:
        """Start the client, if the run is in an experiment."""
        if self.experiment is None or self._process is not None:
            return
        path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "vertex_runtime.tracking.client"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
        self._thread = threading.Thread(target=self._write, name="experiment", daemon=True)
        self._thread.start()
        self._tell("begin", experiment=dict(self.experiment), tensorboard=self._tensorboard, record=record)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell an evaluation."""
        if self._process is not None:
            self._tell("evaluation", step=step, metrics=dict(metrics))

    def end(self, record: Mapping[str, Any], patience: float = AT_THE_END) -> None:
        """Tell how the run has ended, and wait until that is kept, for so many seconds at most.

        Where the process was told to end (WHEN_STOPPED), the client finishes by itself, if it is let.
        """
        process, self._process = self._process, None
        if process is None:
            return
        self._tell("end", record=record)
        self._lines.put(None)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            if patience == WHEN_STOPPED:
                return
            process.kill()
            process.wait()
            log("WARNING", f"experiment {self.experiment['name']}: the service took longer than {patience:g} s; the run is in run.json.")

    def fail(self) -> None:
        """Tell that the run has failed, unless its end was told."""
        self.end({"state": "failed"}, WHEN_FAILED)

    def _tell(self, kind: str, **content: Any) -> None:
        self._lines.put(json.dumps({"kind": kind, **content}, default=str) + "\n")

    def _write(self) -> None:
        pipe = self._process.stdin
        try:
            while (line := self._lines.get()) is not None:
                pipe.write(line)
                pipe.flush()
            pipe.close()
        except OSError:
            pass  # the client has ended, and has said why
