"""Kill drills drawn by chance: one unbroken run that shows where a kill can hit, then one job for each drill."""

from __future__ import annotations

import dataclasses
from typing import Any

from . import cluster, jobs, kills
from .report import Quiet, places
from .spec import JobSpec


@dataclasses.dataclass(frozen=True)
class Drill:
    """One job of a series: `kills` is empty for the unbroken run that comes first."""

    kills: tuple[kills.Kill, ...]
    result: jobs.Result

    @property
    def passed(self) -> bool:
        """The job succeeded though at least one of its kills happened."""
        return self.result.succeeded and (not self.kills or any(self.result.kills.values()))


def run(job: JobSpec, count: int, seed: int, *, job_id: str | None = None, report: Quiet, **options: Any) -> list[Drill]:
    """Run the job unbroken, then `count` times with drawn kills; each time with an output directory of its own.

    `options` go to `cluster.run`; setting `cancel` ends the series too.
    """
    if job.output is None:
        raise ValueError(f"{job.name}: a drill needs baseOutputDirectory, for each of its jobs gets a folder in it.")
    job_id, drills = job_id or jobs.new_id(), []

    def one(name: str, drawn: list[kills.Kill]) -> jobs.Result:
        target = job.with_output(f"{job.output.rstrip('/')}/{job_id}-{name}")
        result = cluster.run(target, job_id=f"{job_id}-{name}", kills=drawn, report=report, **options)
        drills.append(Drill(tuple(drawn), result))
        return result

    first = one("unbroken", [])
    if first.succeeded:
        seen = {}
        for name, replica in first.replicas.items():
            end = replica["attempts"][-1]["end"] - replica["attempts"][0]["start"]
            seen[name] = {**places(first.folder / "events" / f"{name}.jsonl"), "seconds": end}
        for number, drawn in enumerate(kills.draw(seen, count, seed), 1):
            if one(f"{number:02d}", drawn).state == jobs.CANCELLED:
                break
    for drill in drills:
        report.say(_row(drill))
    return drills


def _row(drill: Drill) -> str:
    result = drill.result
    happened = ", ".join(f"{kill}{'' if hit else ' (not reached)'}" for kill, hit in result.kills.items()) or "no kill"
    seconds = (result.end or result.start) - result.start
    state = result.state.removeprefix("JOB_STATE_")
    return f"{'ok  ' if drill.passed else 'FAIL'} {result.job_id}: {happened}: {state}, {result.restarts} restarts, {seconds:.1f} s"
