"""What is there, how much of it runs, and the latest jobs."""

from __future__ import annotations

from typing import Any

from ...local.job_record import KINDS as JOBS
from ...local.store import Store
from ..app import Redirect, View, Visit, href, page
from ..text import KINDS

_LATEST = 12


@page("GET", "/")
def home(visit: Visit) -> View:
    """Count every kind and show the jobs that were made last."""
    records, parent = visit.console.local.records, visit.parent
    cards = [
        {
            "kind": kind, "title": title, "total": records.count(kind, parent),
            "running": _running(records, kind, parent) if kind in (*JOBS, "batchPredictionJobs") else 0,
        }
        for kind, title in KINDS.items()
    ]  # fmt: skip
    latest: list[dict[str, Any]] = []
    for kind in JOBS:
        found = records.page(kind, parent, _LATEST).documents
        latest += [{"title": KINDS[kind], "document": each, "href": href(f"/{kind}/{each['name'].rpartition('/')[2]}")} for each in found]
    latest.sort(key=lambda each: each["document"]["createTime"], reverse=True)
    return View("home.html", {"cards": cards, "latest": latest[:_LATEST], "parents": records.parents(tuple(KINDS))})


def _running(records: Store, kind: str, parent: str) -> int:
    states = ("JOB_STATE_RUNNING", "PIPELINE_STATE_RUNNING")
    return sum(records.count(kind, parent, state) for state in states)


@page("POST", "/logout")
def log_out(visit: Visit) -> Redirect:
    """End the session."""
    visit.console.logins.log_out(visit.session)
    return Redirect("/console/")
