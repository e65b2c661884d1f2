"""A job's folder, `<state>/jobs/<id>`: a copy of its spec, logs, events and `result.json`; never one that exists."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUCCEEDED, FAILED, CANCELLED, RUNNING = (f"JOB_STATE_{name}" for name in ("SUCCEEDED", "FAILED", "CANCELLED", "RUNNING"))
_ID = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


class JobError(ValueError):
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
        new = self.folder / "result.json.new"
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.replace(self.folder / "result.json")


def new_id() -> str:
    """Return a numeric id, as the service's are, that sorts by time."""
    return f"{time.strftime('%Y%m%d%H%M%S')}{secrets.randbelow(10000):04d}"


def create(state_dir: Path, job_id: str | None) -> Result:
    """Make the folder of a new job; an id that is taken is an error."""
    job_id = new_id() if job_id is None else job_id
    if not _ID.fullmatch(job_id):
        raise JobError(f"a job id holds letters, digits, '-' and '_' only, at most 128; got {job_id!r}.")
    folder = state_dir / "jobs" / job_id
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        raise JobError(f"job {job_id} exists already in {folder}; choose another --job_id, or leave it out.") from None
    for name in ("logs", "lines", "events", "work"):
        (folder / name).mkdir()
    return Result(job_id, folder)
