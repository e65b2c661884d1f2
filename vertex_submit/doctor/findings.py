"""What a look finds, and looking at several things at once, each for a bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

OK, WARNING, MISSING, SKIPPED = "ok", "warning", "missing", "not looked at"


@dataclass(frozen=True)
class Finding:
    """What was found of one thing: a level, one line, and the command or the place that mends it, where there is one.

    MISSING means that a job could not be sent, or would end before it trains.
    """

    level: str
    what: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:13s} {self.what:12s} {self.text}{f' -> {self.remedy}' if self.remedy else ''}"


@dataclass(frozen=True)
class Check:
    """One look at one thing; a `vital` one is MISSING, not just unknown, where no answer comes."""

    what: str
    look: Callable[[], Finding | list[Finding]]
    vital: bool = False


def look(checks: Sequence[Check], seconds: float, cancel: threading.Event) -> Iterator[Finding]:
    """Start all checks and yield what they find in their order; each has `seconds` from now, and none is waited for longer,
    or once `cancel` is set.

    A check that is late goes on in a daemon thread, which ends with the program.
    """
    found: dict[int, list[Finding]] = {}
    faults: dict[int, Exception] = {}

    def work(number: int, check: Check) -> None:
        try:
            answer = check.look()
            found[number] = answer if isinstance(answer, list) else [answer]
        except Exception as error:  # a fault of ours in one look does not hide what the others find
            faults[number] = error

    threads = [threading.Thread(target=work, args=each, daemon=True) for each in enumerate(checks)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for number, (check, thread) in enumerate(zip(checks, threads, strict=True)):
        while thread.is_alive() and time.monotonic() < end and not cancel.is_set():
            thread.join(0.05)
        if number in faults:
            text = " ".join(f"{type(faults[number]).__name__}: {faults[number]}".split())[:300]
            yield Finding(MISSING if check.vital else SKIPPED, check.what, f"the look itself failed: {text}")
        else:
            late = Finding(MISSING if check.vital else SKIPPED, check.what, f"no answer within {seconds:g} s")
            yield from found.get(number, [late])
