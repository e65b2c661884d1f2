"""A trial as a job: its arguments, its share of the processor, and the command that does the same again."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..job.spec import JobSpec, Pool
from ..local import commands
from .measurements import value_of
from .study import Study

ACTIVE, STOPPING, SUCCEEDED, INFEASIBLE = "ACTIVE", "STOPPING", "SUCCEEDED", "INFEASIBLE"
_THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")

Trial = dict[str, Any]


def job_for(job: JobSpec, values: Mapping[str, Any]) -> JobSpec:
    """Return a trial's job: its parameters come after every pool's own arguments, as the service puts them."""
    pools = [
        dataclasses.replace(pool, args=(*pool.args, *_arguments(pool, values))) if pool.replicas and not pool.is_reduction_server else pool
        for pool in job.pools
    ]
    return dataclasses.replace(job, pools=tuple(pools))


def _arguments(pool: Pool, values: Mapping[str, Any]) -> list[str]:
    """Return what was seen on the service: two words for a Python package, one for a container; 128 of a list as 128.0."""
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
    """Return a trial's parameters as arguments to read and to type: whole numbers without a fraction."""
    words = []
    for name, value in parameters(trial).items():
        if isinstance(value, float):
            value = int(value) if value.is_integer() and abs(value) < 1e15 else repr(value)
        words.append(shlex.quote(f"--{name}={value}"))
    return " ".join(words)


def command(study: Study, trial: Trial, project: Path, bucket_root: Path) -> str:
    """Return the command line that trains with a trial's parameters, to be called in the checkout."""
    found = commands.for_pool(study.job.pools[0], "python", project, bucket_root)
    argv, path = list(found.argv), found.env.get("PYTHONPATH", "")
    if argv[:2] == ["python", "-m"] and path:
        place = Path(*argv[2].split(".")).with_suffix(".py")
        inside = [Path(entry).relative_to(project) for entry in path.split(os.pathsep) if Path(entry).is_relative_to(project)]
        named = [".".join((*entry.parts, argv[2])) for entry in inside if (project / entry / place).is_file()]
        argv[2], path = (named[0], "") if named else (argv[2], path)
    return f"{f'PYTHONPATH={shlex.quote(path)} ' if path else ''}{shlex.join(argv)} {flags(trial)}"


def thread_limits(study: Study) -> dict[str, str]:
    """Return the variables that keep parallel trials from each using every core; none where one trial runs at a time.

    What the caller or the job sets itself stays.
    """
    pools = study.job.pools
    processes = study.parallel * sum(pool.replicas for pool in pools[:2])
    if study.parallel == 1:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    taken = {name for pool in pools for name, _ in pool.env} | set(os.environ)
    return {name: str(max(1, cores // processes)) for name in _THREADS if name not in taken}


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
