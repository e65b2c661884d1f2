"""Run a hyperparameter tuning job on this machine: trials in parallel, each of them a local job of its own.

`run` blocks, keeps no global state, installs no signal handler, and may run in several threads at once. Everything but
the trials themselves happens in the thread that calls it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..job import buckets
from ..local import jobs
from .search import Search, import_optuna
from .study import Study
from .trials import Trial
from .tuner import Result, Tuner
from .tuning_report import Quiet


class TuningError(ValueError):
    """A tuning job that cannot be started as asked."""


def run(
    study: Study,
    *,
    state_dir: str | Path = ".vertex_local",
    bucket_root: str | Path | None = None,
    project_dir: str | Path = ".",
    job_id: str | None = None,
    python: str | None = None,
    with_index: bool = False,
    seed: int = 0,
    report: Quiet | None = None,
    cancel: threading.Event | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> Result:
    """Run a study to its end and return how it went; raise a ValueError for one that cannot be started.

    A `job_id` that names an earlier run of the same study continues it: finished trials stay, those that were cut run
    again with the same parameters.

    Args:
        bucket_root, project_dir, python, with_index: as for `cluster.run`.
        seed: of the search.
        cancel: set it to end the job and its trials.
        on_trial: called with a trial at each of its changes.
    """
    import_optuna()  # before anything is written
    state = Path(os.path.abspath(state_dir))
    root = Path(os.path.realpath(bucket_root or state / "buckets"))
    lock = state / "jobs" / str(job_id) / ".lock"
    is_new = job_id is None or "/" in job_id or not lock.exists()
    if is_new:
        _refuse_used_output(study, root, state)
        made = jobs.create(state, job_id)
        result, lock = Result(made.job_id, made.folder), made.folder / ".lock"
    else:
        result = Result(str(job_id), lock.parent)
    options = {"project_dir": project_dir, "python": python, "with_index": with_index}
    with _locked(lock, result), contextlib.closing(Search(study, result.folder, seed)) as search:
        search.check(_asked(study), f"job {result.job_id} in {result.folder}")
        (result.folder / "spec.yaml").write_text(study.text, encoding="utf-8")
        tuner = Tuner(study, search, result, state, root, options, report or Quiet(), cancel or threading.Event(), on_trial)
        with _recorded(result):
            tuner.run()
    return result


@contextlib.contextmanager
def _locked(lock: Path, result: Result) -> Iterator[None]:
    """Hold the job for this process; the lock is the kernel's, so that a killed process leaves none behind."""
    with open(lock, "a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TuningError(f"job {result.job_id} is running in another process; wait for it or end it.") from None
        yield


@contextlib.contextmanager
def _recorded(result: Result) -> Iterator[None]:
    """Write down that the job runs, and in the end how it went; an earlier run's start stays."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        result.start = float(json.loads((result.folder / "result.json").read_text())["start"])
    result.write()
    try:
        yield
    except BaseException as error:
        if result.state == jobs.RUNNING:
            result.state = jobs.FAILED if isinstance(error, Exception) else jobs.CANCELLED
            result.error = str(error) or type(error).__name__
        raise
    finally:
        result.end = time.time()
        result.write()


def _refuse_used_output(study: Study, root: Path, state: Path) -> None:
    """Refuse a new study where another one's trials lie: a trainer would go on from their checkpoints, or refuse to."""
    if study.job.output is None:
        return
    base = Path(buckets.to_path(study.job.output, root))
    used = [n for n in range(1, study.max_trials + 1) if (base / str(n)).is_dir() and any((base / str(n)).iterdir())]
    if not used:
        return
    others = []
    for path in sorted(state.glob("jobs/*/result.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):  # a custom job has none
            other = json.loads(path.read_text())
            if other["log_dir"] == str(base).rstrip("/"):
                others.append(other["job_id"])
    remedy = f"go on with that study by --job_id {others[-1]}" if others else "remove it"
    raise TuningError(
        f"{study.name}: {base}/{used[0]} holds an earlier trial {used[0]}: {remedy}, or give another outputUriPrefix (--output)."
    )


def _asked(study: Study) -> dict[str, Any]:
    """Return what a study must have in common with an earlier run to go on with it: all but its counts and limits."""
    asked = {
        "metrics": study.message["studySpec"]["metrics"],
        "parameters": study.message["studySpec"]["parameters"],
        "algorithm": study.algorithm,
        "pools": [dataclasses.asdict(pool) for pool in study.job.pools],
        "output": study.job.output,
    }
    return json.loads(json.dumps(asked))
