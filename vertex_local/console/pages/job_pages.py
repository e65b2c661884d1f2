"""What the pages of all kinds of job share: the job itself, and what can be done to it by the API's own RPCs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...local.job_record import is_over
from ..app import View, Visit, page, redirect
from ..text import singular

# Returns what a job's page shows beside what all of them do, for the job in the API's JSON form.
Shown = Callable[[Visit, dict[str, Any], str], dict[str, Any]]


def job_page(kind: str, template: str, noun: str = "job", stays: str = "files") -> Callable[[Shown], Shown]:
    """Register the page of a kind of job, whose cancel and delete buttons work by the API's RPCs.

    Args:
        kind: as in a resource's name: `customJobs`.
        noun: what the page calls one of the kind.
        stays: what of it stays when its record is deleted.
    """

    def register(function: Shown) -> Shown:
        @page("GET", f"/{kind}/{{number}}")
        def show(visit: Visit, number: str) -> View:
            job = visit.call(f"Get{singular(kind)}", name=visit.name(kind, number))
            shared = {"active": kind, "job": job, "number": number, "over": is_over(job), "noun": noun, "stays": stays}
            return View(template, {**shared, **function(visit, job, number)})

        @page("POST", f"/{kind}/{{number}}/cancel")
        def cancel(visit: Visit, number: str) -> Any:
            visit.call(f"Cancel{singular(kind)}", name=visit.name(kind, number))
            return redirect(f"/{kind}/{number}", f"The {noun} was asked to end.")

        @page("POST", f"/{kind}/{{number}}/delete")
        def delete(visit: Visit, number: str) -> Any:
            visit.call(f"Delete{singular(kind)}", name=visit.name(kind, number))
            return redirect(f"/{kind}", f"The record of {noun} {number} is deleted; its {stays} stay.")

        return function

    return register
