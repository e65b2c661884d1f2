"""The list of each kind, by the API's own List RPC: filtered, a page at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...local.job_record import KINDS as JOBS
from ...local.job_record import plain_state, prefix
from ...serve.rest import ApiError
from ..app import View, Visit, href, page
from ..text import KINDS, ago, dataset_kind, duration, last_part, singular

_SIZE = 50
_HINTS = {
    "customJobs": "Create one with scripts/submit_job, gcloud or the SDK.",
    "hyperparameterTuningJobs": "Create one with scripts/submit_tuning.",
    "trainingPipelines": "Create one with scripts/submit_training_pipeline.",
    "models": "A training pipeline uploads its model; scripts/deploy uploads one, too.",
    "endpoints": "Deploy a model from its page.",
}


@page("GET", "/{kind}")
def show(visit: Visit, kind: str) -> View:
    """Show one page of a list, the newest first."""
    if kind not in KINDS:
        raise ApiError("NOT_FOUND", f"the console has no page {kind[:80]!r}.")
    text, state = visit.query.get("filter", "").strip(), visit.query.get("state", "")
    answer = visit.call(
        f"List{singular(kind)}s", parent=visit.parent, filter=_filter(text, state, kind), pageSize=_SIZE,
        pageToken=visit.query.get("page", ""),
    )  # fmt: skip
    rows = [{"href": href(f"/{kind}/{last_part(each['name'])}"), "cells": _cells(kind, each)} for each in answer.get(kind, [])]
    older = answer.get("nextPageToken", "")
    given = {"filter": text, "state": state}
    return View("list.html", {
        "active": kind, "title": KINDS[kind], "columns": _columns(kind), "rows": rows, "filter": text, "state_wanted": state,
        "has_state": kind in JOBS, "hint": _HINTS.get(kind, ""), "total": visit.local.records.count(kind, visit.parent),
        "older": href(f"/{kind}", page=older, **given) if older else "",
    })  # fmt: skip


def _filter(text: str, state: str, kind: str) -> str:
    """Return the API's filter for what was typed: a filter as it is, anything else as a part of the name."""
    if text and not any(sign in text for sign in "=:<>"):
        text = f"displayName:{json.dumps(text)}"
    wanted = f'state="{prefix(kind)}{state}"' if state else ""
    return " AND ".join(filter(None, (f"({text})" if text and wanted else text, wanted)))


def _columns(kind: str) -> list[str]:
    if kind in ("datasets", "endpoints", "models"):
        return ["Name", "Id", *{"models": ["Version", "Aliases"], "endpoints": ["Models"], "datasets": ["Kind"]}[kind], "Created"]
    return ["Name", "Id", "State", "Created", "Duration", "Labels"]


def _cells(kind: str, document: Mapping[str, Any]) -> list[Any]:
    name, number = document.get("displayName", ""), last_part(document["name"])
    created = ago(document.get("createTime"))
    if kind == "models":
        return [name, number, document.get("versionId", ""), ", ".join(document.get("versionAliases", [])), created]
    if kind == "endpoints":
        return [name, number, len(document.get("deployedModels", [])), created]
    if kind == "datasets":
        return [name, number, dataset_kind(document), created]
    labels = ", ".join(f"{key}: {value}" for key, value in document.get("labels", {}).items())
    return [name, number, {"state": plain_state(document)}, created, duration(document), labels]
