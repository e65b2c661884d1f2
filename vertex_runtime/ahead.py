"""Work that goes on in a thread of its own, some items ahead of who takes them."""

from __future__ import annotations

import collections
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Yield what is made of each item, in their order, made in as many threads as there are cores, some items ahead."""
    with ThreadPoolExecutor(CORES) as pool:
        waiting: collections.deque = collections.deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > 2 * CORES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def ahead(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """Iterate in a thread of its own, `depth` items ahead. An exception is raised where the item would have been taken.

    Once nobody takes items any more, the iterator is closed, and the thread has ended.
    """
    slots: queue.Queue = queue.Queue(depth)
    ended = threading.Event()

    def work() -> None:
        try:
            for item in items:
                if _put(slots, (item, None), ended):
                    break
            else:
                _put(slots, (None, StopIteration()), ended)
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            _put(slots, (None, error), ended)
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = slots.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        ended.set()
        thread.join()


def _put(slots: queue.Queue, item: Any, ended: threading.Event) -> bool:
    """Put an item; return True where nobody takes items any more."""
    while not ended.is_set():
        try:
            slots.put(item, timeout=0.1)
            return False
        except queue.Full:
            continue
    return True
