"""A pool of threads for jobs: a limited number runs at once, the others wait in a queue; each can be cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from .rest import ApiError

MOST_WAITING = 5_000


class Stopped(Exception):
    """Work has ended because it was cancelled."""


@dataclass
class _Job:
    cancel: threading.Event
    dropped: Callable[[], None]
    names: list[str]
    future: Future = field(init=False)


class Executor:
    """Runs work in threads. `stopping` is set once the service ends: then the user has not asked for jobs to be cancelled."""

    def __init__(self, most: int, waiting: int = MOST_WAITING):
        self.stopping = threading.Event()
        self._most = most + waiting
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="job")
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}

    def start(self, name: str, work: Callable[[threading.Event], None], dropped: Callable[[], None]) -> None:
        """Put `work` into the queue; it is called with the event that `cancel(name)` sets, and must not raise.

        Args:
            dropped: called instead of `work` if it is cancelled while it waits.

        Raises:
            ApiError: too many jobs wait already, or the service is ending.
        """
        job = _Job(threading.Event(), dropped, [name])

        def run() -> None:
            try:
                work(job.cancel)
            finally:
                self._forget(job)

        with self._lock:
            if self.stopping.is_set():
                raise ApiError("UNAVAILABLE", "the local service is being stopped.")
            if len(self._jobs) >= self._most:
                raise ApiError("RESOURCE_EXHAUSTED", f"{len(self._jobs):,} jobs run or wait already; wait for some, or cancel them.")
            self._jobs[name] = job
            job.future = self._pool.submit(run)

    def share(self, name: str, other: str) -> None:
        """Let `cancel(other)` cancel the running work `name`, too: a pipeline's job and the pipeline end together."""
        with self._lock:
            job = self._jobs[name]
            job.names.append(other)
            self._jobs[other] = job

    def cancel(self, name: str) -> bool:
        """Ask the work of that name to end; return whether there is such work."""
        with self._lock:
            job = self._jobs.get(name)
        if job is None:
            return False
        self._end(job)
        return True

    def stop(self) -> None:
        """Take no more work, cancel everything and wait for its end."""
        with self._lock:
            self.stopping.set()
        self.cancel_all()
        self._pool.shutdown()

    def cancel_all(self) -> None:
        """Cancel everything and wait for its end."""
        with self._lock:
            known = list(self._jobs.values())
        for job in reversed(known):  # waiting jobs first, or they would start when running ones end
            self._end(job)
        wait([job.future for job in known])

    def _end(self, job: _Job) -> None:
        job.cancel.set()
        if job.future.cancel():
            self._forget(job)
            job.dropped()

    def _forget(self, job: _Job) -> None:
        with self._lock:
            for name in job.names:
                self._jobs.pop(name, None)
