"""What can be done to a job of any kind by the API's own RPCs: end it, forget its record."""

from __future__ import annotations

from functools import partial

from ..app import Redirect, Visit, href, page
from .jobs import named
from .lists import singular

# What the pages call one of a kind, and what stays of it when its record is deleted.
_JOBS = {
    "customJobs": ("job", "files"),
    "hyperparameterTuningJobs": ("tuning job", "files"),
    "trainingPipelines": ("pipeline", "job, model and files"),
    "pipelineJobs": ("pipeline", "files"),
    "batchPredictionJobs": ("job", "files"),
}


def _cancel(visit: Visit, number: str, kind: str) -> Redirect:
    """Ask the job to end."""
    visit.call(f"Cancel{singular(kind)}", name=named(visit, kind, number))
    return Redirect(href(f"/{kind}/{number}"), f"The {_JOBS[kind][0]} was asked to end.")


def _delete(visit: Visit, number: str, kind: str) -> Redirect:
    """Forget the job's record."""
    noun, stays = _JOBS[kind]
    visit.call(f"Delete{singular(kind)}", name=named(visit, kind, number))
    return Redirect(href(f"/{kind}"), f"The record of {noun} {number} is deleted; its {stays} stay.")


for _kind in _JOBS:
    page("POST", f"/{_kind}/{{number}}/cancel")(partial(_cancel, kind=_kind))
    page("POST", f"/{_kind}/{{number}}/delete")(partial(_delete, kind=_kind))
