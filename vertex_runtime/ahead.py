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
THREADS = min(CORES, 8)  # for blocks of files, each of which takes some MiB


def in_threads(make: Callable[[Item], Made], items: Iterable[Item], threads: int = CORES) -> Iterator[Made]:
    """Yield what is made of each item, in their order, made in some threads, some items ahead.

    An exception of `make`, or one that the items end with, is raised once all that comes before it has been yielded. Once
    nobody takes items any more, what was not begun is not made, and the threads have ended.
    """
    items, failure = iter(items), None
    pool = ThreadPoolExecutor(threads)
    waiting: collections.deque = collections.deque()
    try:
        while failure is None:
            try:
                item = next(items)
            except StopIteration:
                break
            except Exception as error:
                failure = error
            else:
                waiting.append(pool.submit(make, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


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
