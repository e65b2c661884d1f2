"""A job's folder, `<state>/jobs/<id>`, a new one for each job: a copy of its spec, logs, events and `result.json`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, quoted
from .store import private_folder, replace_text

STOP = "stop"  # a file in a job's folder: the process that runs the job then ends it
SUCCEEDED, FAILED, CANCELLED, RUNNING = (f"JOB_STATE_{name}" for name in ("SUCCEEDED", "FAILED", "CANCELLED", "RUNNING"))
_ID = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


class JobError(UserError):
    """A job that cannot be created as asked."""


@dataclass
class Result:
    """How a job went; `result.json` holds the same. Times are seconds since 1970."""

    job_id: str
    folder: Path
    state: str = RUNNING
    error: str | None = None
    start: float = field(default_factory=time.time)
    end: float | None = None
    retries: int = 0
    rules: list[str] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    replicas: dict[str, dict[str, Any]] = field(default_factory=dict)
    kills: dict[str, bool] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        return self.state == SUCCEEDED

    @property
    def restarts(self) -> int:
        """How many times a replica was started again, all replicas together."""
        return sum(len(replica["attempts"]) - 1 for replica in self.replicas.values())

    def write(self) -> None:
        """Replace `result.json` in one step."""
        content = {**self.__dict__, "folder": str(self.folder), "restarts": self.restarts, "pid": os.getpid()}
        replace_text(self.folder / "result.json", json.dumps(content, indent=1) + "\n")


def new_id() -> str:
    """Return a numeric id, as the service's are, that sorts by time."""
    return f"{time.strftime('%Y%m%d%H%M%S')}{secrets.randbelow(10000):04d}"


def folder_of(state_dir: Path, job_id: str) -> Path:
    """Return the folder of a job, which need not exist.

    Raises:
        JobError: a job cannot have that id.
    """
    if not _ID.fullmatch(job_id):
        raise JobError(f"a job id holds letters, digits, '-' and '_' only, at most 128; got {quoted(job_id)}.")
    return state_dir / "jobs" / job_id


def create(state_dir: Path, job_id: str | None) -> Result:
    """Make the folder of a new job, with an id of its own if `job_id` is None.

    The job service may have made the folder already, for the lock and the service's log of a job in its queue.

    Raises:
        JobError: there is a job with that id, or a job cannot have it.
    """
    job_id = new_id() if job_id is None else job_id
    folder = folder_of(state_dir, job_id)
    every = private_folder(private_folder(state_dir) / "jobs")
    if every.stat().st_mode & 0o077:  # made by a version that let others read it
        every.chmod(0o700)
    try:
        (private_folder(folder) / "events").mkdir()  # the process that makes this one owns the job
    except FileExistsError:
        raise JobError(f"job {job_id} exists already in {folder}; choose another --job_id, or leave it out.") from None
    for name in ("logs", "lines", "work"):
        (folder / name).mkdir(exist_ok=True)
    return Result(job_id, folder)


def stop_asked(folder: Path) -> bool:
    """Tell whether the job of this folder has been asked to end."""
    return os.path.exists(folder / STOP)


@contextlib.contextmanager
def recorded(result: Result) -> Iterator[None]:
    """Write `result.json` when a job, whose lock is held, starts and, whatever happens, when it ends."""
    result.write()
    try:
        yield
    except BaseException as error:
        if result.state == RUNNING:
            result.state = FAILED if isinstance(error, Exception) else CANCELLED
            result.error = str(error) or type(error).__name__
        raise
    finally:
        result.end = time.time()
        result.write()
