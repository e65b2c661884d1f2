"""What limits a run: how much of its time it waits for rows, and what its steps could do if they never had to."""

from __future__ import annotations

import time
from dataclasses import dataclass

INPUT, COMPUTING, REST = "input", "computing", "work between steps"
LEAST = 1.0  # seconds of training that are worth a word


@dataclass(frozen=True)
class Limits:
    """Where the time of a window went.

    Attributes:
        by: what took the largest part of it: INPUT, COMPUTING or REST.
        waiting: the part of it in which the loop waited for rows, from 0 to 1.
        peak: examples a second that steps take whose rows are there, the best of all windows so far.
        reached: examples a second in this window, all in all.
        share: the part of the time that `by` took.
    """

    by: str
    waiting: float
    peak: float
    reached: float
    share: float

    @property
    def of_peak(self) -> float:
        """Which part of the peak was reached, from 0 to 1."""
        return self.reached / self.peak

    def __str__(self) -> str:
        if self.by == COMPUTING:
            text = f"{self.waiting:.0%} of the time waiting for rows); it takes {self.peak:,.0f} examples/s at most"
        elif self.by == INPUT:
            text = f"{self.waiting:.0%} of the time waiting for rows); computing could take {self.peak:,.0f} examples/s"
        else:
            text = f"{self.share:.0%} of the time in callbacks, checkpoints); computing could take {self.peak:,.0f} examples/s"
        return f"limited by: {self.by} ({text}, {self.of_peak:.0%} of that reached".replace("%", " %")

    def fields(self) -> dict[str, object]:
        """Return it for a line of an event file or of a log."""
        return {
            "limited_by": self.by, "waiting_for_rows": round(self.waiting, 4), "share_of_peak": round(self.of_peak, 4),
            "peak_examples_per_second": round(self.peak),
        }  # fmt: skip


class Pace:
    """Adds up where the time goes from one evaluation to the next, or the next but one where that is no time to speak of.

    It costs a few readings of the clock a call.
    """

    def __init__(self) -> None:
        self.peak = 0.0
        self._clear()

    def _clear(self) -> None:
        self.waiting, self.computing, self.elapsed, self.examples = 0.0, 0.0, 0.0, 0
        self.since = time.perf_counter()

    def resume(self) -> None:
        """Start the clock: what came before, tracing or an evaluation, is no training."""
        self.since = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Count time in which rows were not there yet."""
        self.waiting += seconds

    def stepped(self, examples: int, seconds: float) -> None:
        """Count steps whose rows were there."""
        self.examples += examples
        self.computing += seconds

    def skipped(self, seconds: float) -> None:
        """Leave out time that is none of training's."""
        self.since += seconds

    def limits(self) -> Limits | None:
        """Return what limits the run so far; None before there is time to speak of in it."""
        total = max(self.elapsed + time.perf_counter() - self.since, self.waiting + self.computing)
        if total < LEAST or not self.computing:
            return None
        shares = {INPUT: self.waiting / total, COMPUTING: self.computing / total}
        shares[REST] = 1 - sum(shares.values())
        by = max(shares, key=shares.__getitem__)
        peak = max(self.peak, self.examples / self.computing)
        return Limits(by, shares[INPUT], peak, self.examples / total, shares[by])

    def pause(self) -> Limits | None:
        """Stop the clock. Return what limited the run, if there is time to speak of in it: then another window begins."""
        found = self.limits()
        self.elapsed += time.perf_counter() - self.since
        if found:
            self.peak = found.peak
            self._clear()
        return found
