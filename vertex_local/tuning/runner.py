"""Run a hyperparameter tuning job on this machine: trials in parallel, each of them a local job of its own.

`run` blocks, keeps no global state, installs no signal handler, and may run in several threads at once. Everything but
the trials themselves happens in the thread that calls it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..job import buckets
from ..local import cluster, job_record, jobs
from ..local.plan import Paths, RunOptions
from ..local.report import Quiet
from .search import Search, import_optuna
from .study import Study
from .trials import Trial
from .tuner import Result, Tuner


def run(
    study: Study, options: RunOptions | None = None, *, seed: int = 0, report: Quiet | None = None,
    cancel: threading.Event | None = None, on_trial: Callable[[Trial], None] | None = None, **changes: Any,
) -> Result:  # fmt: skip
    """Run a study to its end and return how it went.

    A `job_id` that names an earlier run of the same study continues it: finished trials stay, interrupted ones run again
    with the same parameters.

    Args:
        seed: the search's seed.
        cancel: set it to end the job and its trials.
        on_trial: called with a trial at each of its changes.
        changes: options by name, over those of `options`.

    Raises:
        UserError: the study cannot be started.
    """
    import_optuna()  # before anything is written
    options = dataclasses.replace(options or RunOptions(), **changes)
    paths = options.paths()
    result = _result(study, options, paths)
    with _held(result), contextlib.closing(Search(study, result.folder, seed)) as search:
        search.check(_asked(study), f"job {result.job_id} in {result.folder}")
        (result.folder / "spec.yaml").write_text(study.job.text(), encoding="utf-8")
        _keep_start(result)
        tuner = Tuner(study, search, result, options, paths, report or Quiet(), cancel or threading.Event(), on_trial)
        with cluster.kept(study.job, options, result), jobs.recorded(result):
            tuner.run()
    return result


def _result(study: Study, options: RunOptions, paths: Paths) -> Result:
    """Return the result of a new job, or of the earlier one that this run continues."""
    if options.job_id is not None:
        folder = jobs.folder_of(paths.state, options.job_id)
        if (folder / "study.db").exists():
            return Result(options.job_id, folder)
    _refuse_used_output(study, paths)
    made = jobs.create(paths.state, options.job_id)
    return Result(made.job_id, made.folder)


@contextlib.contextmanager
def _held(result: Result) -> Any:
    try:
        with job_record.held(result.folder):
            yield
    except job_record.InUse:
        raise UserError(f"job {result.job_id} is running in another process; wait for it or end it.") from None


def _keep_start(result: Result) -> None:
    """Take the start time from an earlier run of the job, if there is one."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        result.start = float(json.loads((result.folder / "result.json").read_text())["start"])


def _refuse_used_output(study: Study, paths: Paths) -> None:
    """Refuse a new study whose output folder holds another study's trials: trainers would resume from their checkpoints."""
    if study.job.output is None:
        return
    base = Path(buckets.to_path(study.job.output, paths.buckets))
    used = [n for n in range(1, study.max_trials + 1) if (base / str(n)).is_dir() and any((base / str(n)).iterdir())]
    if not used:
        return
    others = []
    for path in sorted(paths.state.glob("jobs/*/result.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):  # a custom job has none
            other = json.loads(path.read_text())
            if other["log_dir"] == str(base).rstrip("/"):
                others.append(other["job_id"])
    remedy = f"go on with that study by --job_id {others[-1]}" if others else "remove it"
    raise UserError(
        f"{study.name}: {base}/{used[0]} holds an earlier trial {used[0]}: {remedy}, or give another outputUriPrefix (--output)."
    )


def _asked(study: Study) -> dict[str, Any]:
    """Return what must be the same to continue an earlier run of a study: all but its counts and limits."""
    fields, spec = study.job.fields(), study.job.spec_fields()
    return {
        "metrics": fields["studySpec"]["metrics"],
        "parameters": fields["studySpec"]["parameters"],
        "algorithm": study.algorithm,
        "pools": spec["workerPoolSpecs"],
        "output": study.job.output,
    }
