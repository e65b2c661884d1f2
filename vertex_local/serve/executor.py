"""Jobs in threads of the service: at most so many at once, each with its own way to be cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .rest import ApiError


class Stopped(Exception):
    """A job that was cancelled before it was its turn."""


class Executor:
    """Runs work in threads. `stopping` is set once the service ends: then a cancelled job was not the user's wish."""

    def __init__(self, most: int):
        self.stopping = threading.Event()
        self._places = threading.Semaphore(most)
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._cancels: dict[str, threading.Event] = {}

    def start(self, name: str, work: Callable[[threading.Event], None]) -> None:
        """Call `work` in a thread of its own with the event that `cancel(name)` sets; it must not raise."""

        def run() -> None:
            try:
                work(cancel)
            finally:
                with self._lock:
                    self._threads.discard(thread)
                    for known in [known for known, event in self._cancels.items() if event is cancel]:
                        del self._cancels[known]

        cancel = threading.Event()
        thread = threading.Thread(target=run, name=name)
        with self._lock:
            if self.stopping.is_set():
                raise ApiError("UNAVAILABLE", "the local service is being stopped.")
            self._threads.add(thread)
            self._cancels[name] = cancel
            thread.start()

    def share(self, name: str, cancel: threading.Event) -> None:
        """Let `cancel(name)` set the event of work that runs already, such as a pipeline's job."""
        with self._lock:
            self._cancels[name] = cancel

    def cancel(self, name: str) -> bool:
        """Ask the work of that name to end; return whether there is such work."""
        with self._lock:
            if name in self._cancels:
                self._cancels[name].set()
            return name in self._cancels

    def take_turn(self, cancel: threading.Event) -> None:
        """Wait for a place among those that run; raise Stopped if the job is cancelled meanwhile."""
        while not self._places.acquire(timeout=0.1):
            if cancel.is_set():
                raise Stopped
        if cancel.is_set():
            self._places.release()
            raise Stopped

    def end_turn(self) -> None:
        """Give the place back."""
        self._places.release()

    def stop(self) -> None:
        """Cancel everything and wait for its end."""
        with self._lock:
            self.stopping.set()
            threads = list(self._threads)
            for cancel in self._cancels.values():
                cancel.set()
        for thread in threads:
            thread.join()
