"""Work that goes on in a thread of its own, some items ahead of who takes them."""

from __future__ import annotations

import collections
import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
FILES = min(4, CORES)  # read side by side: each holds some chunks
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


def one_after_another(read: Callable[[Item], Iterator[Made]], files: Sequence[Item], threads: int) -> Iterator[Made]:
    """Yield what is read of each file, in their order, while so many threads read one file each, some items ahead.

    The second file is opened once somebody wants more than the first item: many ask for that one alone.
    """
    first = read(files[0]) if files else iter(())
    if threads < 2 or len(files) < 2:
        yield from first
        for file in files[1:]:
            yield from read(file)
        return
    yield from itertools.islice(first, 1)
    with ExitStack() as held:
        waiting = collections.deque([held.enter_context(closing(_Ahead(first, 2)))])
        left = iter(files[1:])
        while waiting:
            for file in itertools.islice(left, threads - len(waiting)):
                waiting.append(held.enter_context(closing(_Ahead(read(file), 2))))
            yield from waiting.popleft()


def merged(jobs: Sequence[Callable[[], Iterable[Item]]], threads: int, stop: threading.Event) -> Iterator[Item]:
    """Yield what the jobs give, as it comes, so many of them going on at a time; few items wait. An error in one ends all.

    Args:
        stop: set once nobody takes items any more, for the jobs to see.
    """
    waiting, results = queue.SimpleQueue(), queue.Queue(threads)
    for job in jobs:
        waiting.put(job)

    def work() -> None:
        try:
            while not stop.is_set():
                for item in waiting.get_nowait()():
                    _put(results, (item, None), stop)
        except queue.Empty:
            _put(results, (None, StopIteration()), stop)
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            _put(results, (None, error), stop)

    running = min(threads, len(jobs))
    try:
        for _ in range(running):
            threading.Thread(target=work, daemon=True).start()
        while running:
            item, error = results.get()
            if error is None:
                yield item
            elif isinstance(error, StopIteration):
                running -= 1
            else:
                raise error
    finally:
        stop.set()


def ahead(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """Iterate in a thread of its own, `depth` items ahead. An exception is raised where the item would have been taken.

    Once nobody takes items any more, the iterator is closed, and the thread has ended.
    """
    with closing(_Ahead(items, depth)) as found:
        yield from found


class _Ahead(Iterator[Item]):
    """What `ahead` does, from now on rather than from the first item on, until it is closed."""

    def __init__(self, items: Iterator[Item], depth: int):
        self.items, self.slots, self.ended = items, queue.Queue(depth), threading.Event()
        self.thread = threading.Thread(target=self._work, name="ahead", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            for item in self.items:
                if _put(self.slots, (item, None), self.ended):
                    break
            else:
                _put(self.slots, (None, StopIteration()), self.ended)
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            _put(self.slots, (None, error), self.ended)
        finally:
            if hasattr(self.items, "close"):
                self.items.close()

    def __next__(self) -> Item:
        item, error = self.slots.get()
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        self.ended.set()
        self.thread.join()


def _put(slots: queue.Queue, item: Any, ended: threading.Event) -> bool:
    """Put an item; return True where nobody takes items any more."""
    while not ended.is_set():
        try:
            slots.put(item, timeout=0.1)
            return False
        except queue.Full:
            continue
    return True
