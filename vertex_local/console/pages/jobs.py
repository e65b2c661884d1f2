"""A custom job: replicas, restarts, curves, outputs; cancel it, run it again with other arguments."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...job import times
from ...local.events import Follower
from ...local.job_record import is_over
from ...local.records import Record
from ...serve.rest import Answer
from .. import charts, trainer_flags
from ..app import Visit, page, redirect
from ..text import last_part
from .files import address
from .job_pages import job_page

_MOST_CURVES = 12
_LATEST = 4096  # bytes of a replica's events that are read


@job_page("customJobs", "job.html")
def shown(visit: Visit, job: dict[str, Any], number: str) -> dict[str, Any]:
    """Show a custom job."""
    folder = visit.local.state / "jobs" / number
    result = Record(job, folder).result
    args, fields = _arguments(visit, job)
    return {
        "restarts": result.get("restarts") or "", "rules": result.get("rules", []), "progress": _progress(folder, job),
        "replicas": list(_attempts(result)), "logs": logs(folder), "charts": _curves(visit, folder), "args": args, "fields": fields,
        "outputs": [(name, path, address(visit, path)) for name, path in result.get("outputs", {}).items()],
        "output": job["jobSpec"].get("baseOutputDirectory", {}).get("outputUriPrefix", ""), "spec": job["jobSpec"],
    }  # fmt: skip


@page("POST", "/customJobs/{number}/rerun")
def rerun(visit: Visit, number: str) -> Answer:
    """Create the job once more, with the arguments and the output folder of the form."""
    job = visit.call("GetCustomJob", name=visit.name("customJobs", number))
    spec = job["jobSpec"]
    before, own = _chiefs_task(job).get("args", []), _arguments(visit, job)[1]
    args = [line.strip() for line in visit.form.fields.get("args", "").splitlines() if line.strip()]
    args = trainer_flags.put_back(args, visit.form) if own else args
    for pool in spec["workerPoolSpecs"]:
        for task in ("containerSpec", "pythonPackageSpec"):
            if task in pool and pool[task].get("args", []) == before:
                pool[task]["args"] = args
    if output := visit.form.get("output"):
        spec["baseOutputDirectory"] = {"outputUriPrefix": output}
    new = {"displayName": visit.form.get("displayName"), "jobSpec": spec, "labels": job.get("labels", {})}
    made = visit.call("CreateCustomJob", parent=visit.parent, customJob=new)
    return redirect(f"/customJobs/{last_part(made['name'])}", "The job was created.")


# ------------------------------------------------------------------ what a job's folder holds


def log_dir(folder: Path) -> Path:
    """Return where a job writes for TensorBoard, given its folder; a folder that does not exist where it is not known."""
    return Path(Record({}, folder).result.get("outputs", {}).get("AIP_TENSORBOARD_LOG_DIR") or "/nonexistent")


def logs(folder: Path) -> list[str]:
    """Return the names of a job's logs, without their suffix."""
    return sorted(path.stem for path in folder.glob("logs/*.log"))


def _progress(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the chief has said last of its steps, while the job runs; nothing where it has said nothing."""
    if is_over(job):
        return {}
    events = Follower(folder / "events" / "workerpool0-0.jsonl")
    with contextlib.suppress(OSError):
        events.offset = max(0, events.path.stat().st_size - _LATEST)
    last = events.last()
    return last if last.get("step") and last.get("total_steps") else {}


def _curves(visit: Visit, folder: Path) -> list[tuple[str, Any]]:
    """Return (tag, chart) of what a job wrote for TensorBoard."""
    found = []
    for tag, runs in sorted(visit.console.curves.of(log_dir(folder)).items())[:_MOST_CURVES]:
        series = [charts.Series(run or tag, list(zip(curve.steps, curve.values))) for run, curve in sorted(runs.items())]
        if chart := charts.lines(series):
            found.append((tag, chart))
    return found


def _attempts(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, replica in result.get("replicas", {}).items():
        for number, attempt in enumerate(replica.get("attempts", []), 1):
            ran = (attempt.get("end") or time.time()) - attempt["start"]
            yield {
                "name": name, "role": replica.get("role", ""), "attempt": number, "start": attempt["start"],
                "ran": times.describe(ran), "end": _end(attempt),
            }  # fmt: skip


def _end(attempt: Mapping[str, Any]) -> str:
    if attempt.get("end") is None:
        return "runs"
    if attempt.get("out_of_memory"):
        return "out of memory"
    code = attempt.get("code")
    text = f"signal {-code}" if isinstance(code, int) and code < 0 else f"exit code {code}"
    return f"{text}, {attempt['told']}" if attempt.get("told") else text


def _arguments(visit: Visit, job: Mapping[str, Any]) -> tuple[list[str], list[trainer_flags.Field]]:
    """Return the arguments that the form shows as lines, and the fields that it has beside them for a trainer of this project."""
    task = _chiefs_task(job)
    args = task.get("args", [])
    return trainer_flags.taken_out(args) if trainer_flags.is_trainer(task, visit.local.project_dir) else (args, [])


def _chiefs_task(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the task of the chief's pool, whose arguments the form shows."""
    pool = job["jobSpec"]["workerPoolSpecs"][0]
    return pool.get("containerSpec") or pool["pythonPackageSpec"]
