"""The list of each kind, by the API's own List RPC: filtered, a page at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...serve.rest import ApiError
from ..app import View, Visit, href, page
from ..text import KINDS, ago, duration, plain_state

_SIZE = 50
_HINTS = {
    "customJobs": "Create one with scripts/submit_job, gcloud or the SDK.",
    "hyperparameterTuningJobs": "Create one with scripts/submit_tuning.",
    "trainingPipelines": "Create one with scripts/submit_training_pipeline.",
    "models": "A training pipeline uploads its model; scripts/deploy uploads one, too.",
    "endpoints": "Deploy a model from its page.",
}


def singular(kind: str) -> str:
    """Return what an RPC calls one of a kind: `customJobs` -> `CustomJob`."""
    return kind[0].upper() + kind[1:-1]


@page("GET", "/{kind}")
def show(visit: Visit, kind: str) -> View:
    """Show one page of a list, the newest first."""
    if kind not in KINDS or not visit.console.has(f"List{singular(kind)}s"):
        raise ApiError("NOT_FOUND", f"the console has no page {kind[:80]!r}.")
    text, state = visit.query.get("filter", "").strip(), visit.query.get("state", "")
    has_state = "Job" in kind or "Pipeline" in kind
    answer = visit.call(
        f"List{singular(kind)}s", parent=visit.parent, filter=_filter(text, state, kind), page_size=_SIZE,
        page_token=visit.query.get("page", ""),
    )  # fmt: skip
    rows = [{"href": href(f"/{kind}/{each['name'].rpartition('/')[2]}"), "cells": _cells(kind, each)} for each in answer.get(kind, [])]
    older = answer.get("nextPageToken", "")
    given = {"filter": text, "state": state}
    return View("list.html", {
        "active": kind, "title": KINDS[kind], "columns": _columns(kind), "rows": rows, "filter": text, "state_wanted": state,
        "has_state": has_state, "hint": _HINTS.get(kind, ""), "total": visit.console.local.records.count(kind, visit.parent),
        "older": href(f"/{kind}", page=older, **given) if older else "",
    })  # fmt: skip


def _filter(text: str, state: str, kind: str) -> str:
    """Return the API's filter for what was typed: a filter as it is, anything else as a part of the name."""
    if text and not any(sign in text for sign in "=:<>"):
        text = f"displayName:{json.dumps(text)}"
    prefix = "PIPELINE_STATE_" if "ipeline" in kind else "JOB_STATE_"
    wanted = f'state="{prefix}{state}"' if state else ""
    return " AND ".join(filter(None, (f"({text})" if text and wanted else text, wanted)))


def _columns(kind: str) -> list[str]:
    if kind in ("datasets", "endpoints", "models"):
        return ["Name", "Id", *{"models": ["Version", "Aliases"], "endpoints": ["Models"], "datasets": ["Kind"]}[kind], "Created"]
    return ["Name", "Id", "State", "Created", "Duration", "Labels"]


def _cells(kind: str, document: Mapping[str, Any]) -> list[Any]:
    name, number = document.get("displayName", ""), document["name"].rpartition("/")[2]
    created = ago(document.get("createTime"))
    if kind == "models":
        return [name, number, document.get("versionId", ""), ", ".join(document.get("versionAliases", [])), created]
    if kind == "endpoints":
        return [name, number, len(document.get("deployedModels", [])), created]
    if kind == "datasets":
        return [name, number, document.get("metadataSchemaUri", "").rpartition("/")[2].partition("_")[0], created]
    labels = ", ".join(f"{key}: {value}" for key, value in document.get("labels", {}).items())
    return [name, number, {"state": plain_state(document)}, created, duration(document), labels]
