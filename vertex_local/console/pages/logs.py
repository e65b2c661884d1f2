"""A replica's log: its end while the job runs, any other part of it, and the lines with a text."""

from __future__ import annotations

import os
import re

from ...local.job_record import is_over
from ...serve.rest import ApiError
from .. import log_view
from ..app import View, Visit, href, page
from .jobs import logs


@page("GET", "/logs/{number}/{replica}")
def show(visit: Visit, number: str, replica: str) -> View:
    """Show a part of a log."""
    jobs = visit.local.state / "jobs"
    path = jobs / number / "logs" / f"{replica}.log"
    if not re.fullmatch(r"[\w.-]+", number) or not re.fullmatch(r"[\w.-]+", replica) or not os.path.isfile(path):
        raise ApiError("NOT_FOUND", f"job {number[:80]} has no log of {replica[:80]}.")
    wanted = visit.query.get("search", "").strip()
    before, behind = _place(visit, "before"), _place(visit, "behind")
    if wanted:
        part = log_view.search(path, wanted, behind or 0)
    else:
        part = log_view.before(path, before) if behind is None else log_view.behind(path, behind)
    owner = _owner(visit, number)
    kind, title = (owner["name"].split("/")[-2], owner["displayName"]) if owner else ("customJobs", number)
    live = not wanted and before is None and behind is None and owner is not None and not is_over(owner)
    return View("log.html", {
        "active": kind, "number": number, "replica": replica, "logs": logs(jobs / number), "part": part, "search": wanted,
        "live": live, "here": href(f"/logs/{number}/{replica}"), "title": title,
        "back": href(f"/{kind}/{number.partition('-trial-')[0]}"),
    })  # fmt: skip


def _place(visit: Visit, name: str) -> int | None:
    text = visit.query.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _owner(visit: Visit, number: str) -> dict | None:
    """Return the record of the job, or of the study of a trial."""
    found = visit.local.records.named(number.partition("-trial-")[0])
    return next((each for each in found if "state" in each), None)
