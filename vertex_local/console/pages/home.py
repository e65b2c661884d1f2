"""What is there, how much of it runs, and the latest jobs."""

from __future__ import annotations

from typing import Any

from ...local.job_record import KINDS as JOBS
from ...local.job_record import prefix
from ...serve.rest import Answer
from ..app import View, Visit, href, page, redirect
from ..text import KINDS, last_part

_LATEST = 12


@page("GET", "/")
def home(visit: Visit) -> View:
    """Count every kind and show the jobs that were made last."""
    records, parent = visit.local.records, visit.parent
    cards = [
        {
            "kind": kind, "title": title, "total": records.count(kind, parent),
            "running": records.count(kind, parent, f"{prefix(kind)}RUNNING") if kind in JOBS else 0,
        }
        for kind, title in KINDS.items()
    ]  # fmt: skip
    latest: list[dict[str, Any]] = []
    for kind in JOBS:
        found = records.page(kind, parent, _LATEST).documents
        latest += [{"title": KINDS[kind], "document": each, "href": href(f"/{kind}/{last_part(each['name'])}")} for each in found]
    latest.sort(key=lambda each: each["document"]["createTime"], reverse=True)
    return View("home.html", {"cards": cards, "latest": latest[:_LATEST], "parents": records.parents(tuple(KINDS))})


@page("POST", "/logout")
def log_out(visit: Visit) -> Answer:
    """End the session."""
    visit.console.logins.log_out(visit.session)
    return redirect("/")
