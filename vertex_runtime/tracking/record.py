"""`run.json`: enough to tell later what a run was, from which rows and which code, how it went and what came of it."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
import secrets
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from .. import checksums, data
from ..environment import uri_of
from ..outputs import read_json, versions, write_json

if TYPE_CHECKING:
    from ..export import Exporter
    from ..inputs import Inputs
    from ..run import Run

NAME = "run.json"
DISTRIBUTION = "vertex-trainer"  # setup.py's name


class Record:
    """The record of one run, over all of its starts in the same directory. Only the chief writes it."""

    def __init__(self, run: Run):
        self.run = run
        self.id = secrets.token_hex(8)
        self.evaluations: list[dict[str, Any]] = []
        self.metrics: dict[str, float] = {}
        self.model: dict[str, Any] | None = None  # where the served model lies and what it is; None before it is there
        self.experiment: dict[str, str] | None = None  # name and run
        self.starts = 1
        self.source = ""  # what `source_fingerprint` returns, which takes a while
        self.written: dict[str, Any] = {}  # what was written last

    def resume(self, step: int) -> None:
        """Go on with the record of the run that has come to `step`."""
        kept = read_json(self.run.outputs.records, NAME)
        self.id = kept.get("id", self.id)
        self.evaluations = [each for each in kept.get("evaluations", []) if each["step"] <= step]
        self.metrics, self.model = kept.get("metrics") or {}, kept.get("model")
        self.starts = kept.get("starts", 1) + 1

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Note an evaluation; one that was made again counts once."""
        self.evaluations = [each for each in self.evaluations if each["step"] < step] + [{"step": step, "metrics": dict(metrics)}]

    def write(self, state: str) -> None:
        """Write what is known now."""
        self.written = self._made(state)
        write_json(self.run.outputs.records, NAME, self.written)

    def _made(self, state: str) -> dict[str, Any]:
        run, inputs, trainer = self.run, self.run.inputs, self.run.trainer
        seconds = round(time.monotonic() - run.started, 1)
        return {
            "id": self.id,
            "trainer": run.contract.name,
            "starts": self.starts,
            **self.made_of(),
            "hyperparameters": dataclasses.asdict(run.hp),
            "options": dataclasses.asdict(run.options),
            "environment": dataclasses.asdict(run.env),
            "job": {"id": run.env.job, "trial": run.env.trial, "pipeline": run.env.pipeline},
            "experiment": self.experiment,
            "rows": {"train": inputs.train.count, "evaluation": inputs.evaluation.count},
            "synthetic_sample_data": inputs.synthetic,
            "total_steps": trainer.plan.total_steps,
            "jit_compile": bool(trainer.plan.jit_compile),
            "outputs": dataclasses.asdict(run.outputs),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds)),
            "state": state,
            "duration_seconds": seconds,
            "phase_seconds": {phase: round(spent, 2) for phase, spent in run.events.seconds.items()},
            "step": trainer.state["step"],
            "best": {name: value for name, value in trainer.state["best"].items() if name != "metrics"},
            "objective": run.contract.objective,
            "maximize": run.contract.maximize,
            "evaluations": self.evaluations,
            "metrics": self.metrics,
            "model": self.model,
        }

    def published(self, exporter: Exporter, metrics: dict[str, float]) -> None:
        """Note the served model, and the metrics that it has."""
        where = self.run.outputs.model
        self.model = {"path": where, "uri": uri_of(where), "checksum": exporter.checksum, "signature": exporter.signature()}
        self.metrics = dict(metrics)

    def made_of(self) -> dict[str, Any]:
        """Return what the run goes by: code, versions, machine, seed and data."""
        return {**_code(self.run), "versions": versions(), "machine": _machine(), "seed": self.run.hp.seed, "data": _data(self.run.inputs)}


def _code(run: Run) -> dict[str, Any]:
    found = commit(os.path.dirname(run.contract.module.__file__ or ""))
    return {
        "command": sys.argv,
        "commit": found,
        "code": {
            "commit": found.partition("+")[0] if found else None, "changed": found.endswith("+changes") if found else None,
            "source_sha256": run.record.source, "package": DISTRIBUTION, "version": _version(),
        },
    }  # fmt: skip


@functools.cache
def _version() -> str | None:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None  # it runs from a checkout, which has a commit


@functools.cache
def commit(folder: str) -> str | None:
    """Return the git commit of the code, with `+changes` where files differ from it; None outside a checkout."""
    git = ["git", "-C", folder or "."]
    try:
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        if found.returncode:
            return None
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


@functools.cache
def _machine() -> dict[str, Any]:
    import tensorflow as tf

    devices = [device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices()]
    return {"platform": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count(), "devices": devices}


def _data(inputs: Inputs) -> list[dict[str, Any]]:
    """Return every file that was read: which parts it is in, where it lies, and a checksum that says what it was made of."""
    parts: dict[str, list[str]] = {}
    for part, paths in inputs.paths.items():
        for path in paths:
            parts.setdefault(path, []).append(part)
    found = []
    for path, of in parts.items():
        described = inputs.descriptions[path].result()
        kind = checksums.METADATA if data.is_table(path) else checksums.WHOLE if inputs.whole else checksums.ENDS
        if kind != checksums.METADATA and not described["bytes"] and "://" not in path and not os.path.exists(path):
            kind = checksums.NAME
        found.append({**described, "parts": of, "uri": uri_of(path), "checksum": f"{kind}:{described['sha256']}"})
    return found
