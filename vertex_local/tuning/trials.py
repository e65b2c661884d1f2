"""A trial as a job: its arguments, its share of the processor cores, and a command that trains the same again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any

from ..job import job_file
from ..job.job_file import JobFile
from ..job.pools import Pool
from ..local import devices, plan
from ..local.plan import Paths
from .measurements import value_of
from .study import Study

ACTIVE, STOPPING, SUCCEEDED, INFEASIBLE = "ACTIVE", "STOPPING", "SUCCEEDED", "INFEASIBLE"
_THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")

Trial = dict[str, Any]


def job_for(job: JobFile, values: Mapping[str, Any]) -> JobFile:
    """Return a trial's job: its parameters follow every pool's own arguments, as on the service."""
    return job_file.trial(job).with_args(lambda pool: _arguments(pool, values))


def _arguments(pool: Pool, values: Mapping[str, Any]) -> list[str]:
    """Return the arguments as the service writes them: two words for a Python package, one for a container; a discrete 128 as 128.0."""
    texts = {name: value if isinstance(value, str) else repr(value) for name, value in values.items()}
    if pool.module:
        return [word for name, text in texts.items() for word in (f"--{name}", text)]
    return [f"--{name}={text}" for name, text in texts.items()]


def parameters(trial: Trial) -> dict[str, Any]:
    """Return a trial's parameters by id."""
    return {item["parameterId"]: item["value"] for item in trial["parameters"]}


def final_values(trial: Trial) -> dict[str, float] | None:
    """Return the final values by metric; None for a trial that has none."""
    return value_of(trial["finalMeasurement"]) if trial["state"] == SUCCEEDED else None


def flags(trial: Trial) -> str:
    """Return a trial's parameters as arguments for a command line, whole numbers without a fraction."""
    words = []
    for name, value in parameters(trial).items():
        if isinstance(value, float):
            value = int(value) if value.is_integer() and abs(value) < 1e15 else repr(value)
        words.append(shlex.quote(f"--{name}={value}"))
    return " ".join(words)


def command(study: Study, trial: Trial, paths: Paths) -> str:
    """Return the command line that trains with a trial's parameters; it must run in the checkout."""
    return f"{plan.command_line(study.job, paths)} {flags(trial)}"


def thread_limits(study: Study) -> dict[str, str]:
    """Return the variables that keep parallel trials from each using every core; none if one trial runs at a time.

    Variables that the caller or the job sets itself are left alone.
    """
    pools = study.job.pools
    processes = study.parallel * sum(pool.replicas for pool in pools[:2])
    if study.parallel == 1:
        return {}
    taken = {name for pool in pools for name, _ in pool.env} | set(os.environ)
    return {name: str(max(1, devices.cpus() // processes)) for name in _THREADS if name not in taken}
