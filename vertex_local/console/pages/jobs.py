"""A custom job: replicas, restarts, curves, outputs; cancel it, run it again with other arguments."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...job import times
from ...local.job_record import is_over
from ...serve.rest import ApiError
from .. import charts, trainer_flags
from ..app import Redirect, View, Visit, href, message, page
from .files import address

_MOST_CURVES = 12


def named(visit: Visit, kind: str, number: str) -> str:
    """Return a resource's full name, given its id."""
    return f"{visit.parent}/{kind}/{number}"


@page("GET", "/customJobs/{number}")
def show(visit: Visit, number: str) -> View:
    """Show a custom job."""
    job = visit.call("GetCustomJob", name=named(visit, "customJobs", number))
    folder = visit.console.local.state / "jobs" / number
    result = read_result(folder)
    args, fields = _arguments(visit, job)
    return View("job.html", {
        "active": "customJobs", "job": job, "number": number,
        "over": is_over(job), "restarts": result.get("restarts") or "", "rules": rules(result), "progress": progress(folder, job),
        "replicas": list(_attempts(result)), "logs": logs(folder), "charts": curves(visit, result),
        "outputs": list(_outputs(visit, result)), "args": args, "fields": fields, "argument_pools": "every pool",
        "output": job["jobSpec"].get("baseOutputDirectory", {}).get("outputUriPrefix", ""),
    })  # fmt: skip


@page("POST", "/customJobs/{number}/rerun")
def rerun(visit: Visit, number: str) -> Redirect:
    """Create the job once more, with the arguments and the output folder of the form."""
    job = visit.call("GetCustomJob", name=named(visit, "customJobs", number))
    spec = job["jobSpec"]
    before, own = _argument_pool(job).get("args", []), _arguments(visit, job)[1]
    args = [line.strip() for line in visit.form.fields.get("args", "").splitlines() if line.strip()]
    args = trainer_flags.put_back(args, visit.form) if own else args
    for pool in spec["workerPoolSpecs"]:
        for task in ("containerSpec", "pythonPackageSpec"):
            if task in pool and pool[task].get("args", []) == before:
                pool[task]["args"] = args
    if output := visit.form.get("output"):
        spec["baseOutputDirectory"] = {"outputUriPrefix": output}
    new = {"displayName": visit.form.get("displayName"), "jobSpec": spec, "labels": job.get("labels", {})}
    made = visit.call("CreateCustomJob", parent=visit.parent, custom_job=message("CustomJob", new))
    return Redirect(href(f"/customJobs/{made['name'].rpartition('/')[2]}"), "The job was created.")


# ------------------------------------------------------------------ what a job's folder holds


def read_result(folder: Path) -> dict[str, Any]:
    """Return what `result.json` of a job's folder says; nothing where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {}


def rules(result: Mapping[str, Any]) -> list[str]:
    """Return the restart rules that were applied, as the run has noted them."""
    return [rule if isinstance(rule, str) else json.dumps(rule) for rule in result.get("rules", [])]


def logs(folder: Path) -> list[str]:
    """Return the names of a job's logs, without their suffix."""
    return sorted(path.stem for path in folder.glob("logs/*.log"))


def progress(folder: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the chief's last event that names a step, while the job runs."""
    if is_over(job):
        return None
    found = None
    with contextlib.suppress(OSError):
        path = folder / "events" / "workerpool0-0.jsonl"
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            for line in file.read().splitlines()[-20:]:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    found = event if event.get("total_steps") else found
    return {"examples_per_second": 0, **found} if found else None


def curves(visit: Visit, result: Mapping[str, Any], most: int = _MOST_CURVES) -> list[tuple[str, Any]]:
    """Return (tag, chart) of what a job wrote for TensorBoard."""
    folder = Path(result.get("outputs", {}).get("AIP_TENSORBOARD_LOG_DIR") or "/nonexistent")
    found = []
    for tag, runs in sorted(visit.console.curves.of(folder).items())[:most]:
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


def _outputs(visit: Visit, result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, path in result.get("outputs", {}).items():
        yield name, path, address(visit, path)


def _arguments(visit: Visit, job: Mapping[str, Any]) -> tuple[list[str], list[trainer_flags.Field]]:
    """Return the arguments that the form shows as lines, and the fields that it has beside them for a trainer of this project."""
    task = _argument_pool(job)
    args = task.get("args", [])
    return trainer_flags.taken_out(args) if trainer_flags.is_trainer(task, visit.console.local.project_dir) else (args, [])


def _argument_pool(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the task of the chief's pool, whose arguments the form shows."""
    pools = job["jobSpec"].get("workerPoolSpecs", [])
    if not pools:
        raise ApiError("FAILED_PRECONDITION", "the job has no worker pool: choose another one.")
    return pools[0].get("containerSpec") or pools[0].get("pythonPackageSpec") or {}
