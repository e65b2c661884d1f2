"""Kill drills drawn at random: one unbroken run that shows where a kill can hit, then one job for each drill."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..job.job_file import JobFile
from . import cluster, jobs, kills
from .events import Follower
from .report import Quiet


@dataclasses.dataclass(frozen=True)
class Drill:
    """One job of a series: `kills` is empty for the unbroken run that comes first."""

    kills: tuple[kills.Kill, ...]
    result: jobs.Result

    @property
    def passed(self) -> bool:
        """The job succeeded though at least one of its kills happened."""
        return self.result.succeeded and (not self.kills or any(self.result.kills.values()))

    def __str__(self) -> str:
        result = self.result
        happened = ", ".join(f"{kill}{'' if hit else ' (not reached)'}" for kill, hit in result.kills.items()) or "no kill"
        seconds = (result.end or result.start) - result.start
        state = result.state.removeprefix("JOB_STATE_")
        return f"{result.job_id}: {happened}: {state}, {result.restarts} restarts, {seconds:.1f} s"


def run(
    job: JobFile, count: int, seed: int, *, job_id: str | None = None, report: Quiet,
    flags: Callable[[str], Sequence[str]] = lambda job_id: (), **given: Any,
) -> Iterator[Drill]:  # fmt: skip
    """Run the job unbroken, then `count` times with drawn kills, if the first one succeeds; yield each as it ends.

    Args:
        job_id: the beginning of every job's id; each job writes to a folder of the output directory with its id as name.
        flags: called with a job's id; returns what to append to the trainer's arguments in that job.
        given: for `cluster.run`, such as `options` and `cancel`; setting `cancel` also ends the series.

    Raises:
        UserError: the job has no output directory, or cannot be started.
    """
    if job.output is None:
        raise UserError(f"{job.name}: a drill needs baseOutputDirectory, for each of its jobs gets a folder in it.")
    first_id = job_id or jobs.new_id()

    def one(name: str, drawn: list[kills.Kill]) -> Drill:
        own_id = f"{first_id}-{name}"
        target = job.with_output(f"{job.output.rstrip('/')}/{own_id}").with_args(flags(own_id))
        return Drill(tuple(drawn), cluster.run(target, job_id=own_id, kills=drawn, report=report, **given))

    yield (unbroken := one("unbroken", []))
    first = unbroken.result
    if not first.succeeded:
        return
    seen = {}
    for name, replica in first.replicas.items():
        end = replica["attempts"][-1]["end"] - replica["attempts"][0]["start"]
        seen[name] = {**_places(first.folder / "events" / f"{name}.jsonl"), "seconds": end}
    for number, drawn in enumerate(kills.draw(seen, count, seed), 1):
        yield (drill := one(f"{number:02d}", drawn))
        if drill.result.state == jobs.CANCELLED:
            return


def _places(path: Path) -> dict[str, int]:
    """Return how far a program came: its last step, and how many checkpoints, evaluations and exports it reported."""
    reached: dict[str, int] = {}
    for event in Follower(path).new():
        phase, step = event.get("phase"), event.get("step")
        if isinstance(step, int):
            reached["step"] = max(step, reached.get("step", 0))
        if phase in kills.PHASES:
            reached[phase] = reached.get(phase, 0) + 1
    return reached
