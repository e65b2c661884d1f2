"""The state that all handlers of the local service share: its folders, records, executors and processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..local import jobs
from ..local.plan import RunOptions
from ..local.store import Store
from .executor import Executor
from .pipeline_workers import PipelineWorkers
from .predictor import Predictors
from .rest import ApiError


@dataclass
class Local:
    """The service's folders and parts. `say` prints a line where the service was started.

    Pipelines have an executor of their own: a pipeline waits for its steps' jobs and must not take a thread from them.
    """

    state: Path
    buckets: Path
    project_dir: Path
    options: RunOptions
    records: Store
    executor: Executor
    pipelines: Executor
    predictors: Predictors
    workers: PipelineWorkers
    say: Callable[[str], None]
    address: str = ""  # host and port of the REST API, once it listens
    _last: int = 0  # the id that was given last, which need not have a record yet
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def executor_of(self, kind: str) -> Executor:
        """Return the executor for jobs of a kind, such as customJobs."""
        return self.pipelines if kind == "pipelineJobs" else self.executor

    @property
    def stopping(self) -> bool:
        """Whether the service is ending: then the user has not asked for jobs to be cancelled."""
        return self.executor.stopping.is_set() or self.pipelines.stopping.is_set()

    def known(self, name: str) -> dict[str, Any]:
        """Return the record of that name; raise NOT_FOUND if there is none."""
        record = self.records.get(name)
        if record is None:
            raise ApiError("NOT_FOUND", f"{name[:200]} does not exist here.")
        return record

    def new_name(self, parent: str, kind: str) -> str:
        """Return a name for a new resource of `parent`, with an id that no record and no job's folder has."""
        with self._lock:
            number = max(int(jobs.new_id()), self._last + 1)
            while self.records.has_id(str(number)) or (self.state / "jobs" / str(number)).exists():
                number += 1
            self._last = number
        return f"{parent}/{kind}/{number}"


def location_of(name: str) -> str:
    """Return `projects/P/locations/L` of a resource's full name."""
    return "/".join(name.split("/")[:4])
