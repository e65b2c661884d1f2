"""Cloud Logging's `entries:list` over the log files of jobs: what `gcloud ai custom-jobs stream-logs` asks for.

Beside each log lies a file that says of each of its lines when it was written, to which stream, and how long it is.
"""

from __future__ import annotations

import base64
import heapq
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .local import Local
from .rest import ApiError, Request, lookup, parsed_filter, stamp

_SEVERITIES = ("DEFAULT", "DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL", "ALERT", "EMERGENCY")
_JOB = re.compile(r'resource\.labels\.job_id\s*=\s*"?(\d+)"?')
_MOST = 1000
_LONGEST = 256 << 10  # bytes: what the real service takes of one entry


def entries(local: Local, request: Request) -> dict[str, Any]:
    """Return one page of log entries that pass the filter, in the order of their time."""
    body = request.json()
    names = body.get("resourceNames", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name.startswith("projects/") for name in names):
        raise ApiError("INVALID_ARGUMENT", f"resourceNames takes a list of projects/ID; got {names!r}.", "resourceNames")
    text, order = body.get("filter", ""), body.get("orderBy", "timestamp asc")
    if not isinstance(text, str) or order not in ("timestamp asc", "timestamp desc", ""):
        raise ApiError("INVALID_ARGUMENT", f"orderBy takes 'timestamp asc' or 'timestamp desc'; got {order!r}.", "orderBy")
    size, after = body.get("pageSize") or 50, body.get("pageToken", "")
    if not isinstance(size, int) or not 1 <= size <= _MOST:
        raise ApiError("INVALID_ARGUMENT", f"pageSize takes 1 to {_MOST}; got {size!r}.", "pageSize")
    accepts, down = parsed_filter(text, _lookup), order.endswith("desc")
    projects = {name.split("/")[1] for name in names}
    start = _decode(after) if after else None
    found: list[dict[str, Any]] = []
    for entry in _all(local, text, projects):
        key = _key(entry)
        if accepts(entry) and (start is None or (key < start if down else key > start)):
            found.append(entry)
    best = (heapq.nlargest if down else heapq.nsmallest)(size, found, key=_key)
    answer: dict[str, Any] = {"entries": best} if best else {}
    if len(found) > size:
        answer["nextPageToken"] = base64.urlsafe_b64encode(json.dumps(_key(best[-1])).encode()).decode()
    return answer


def _key(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["timestamp"], entry["insertId"]


def _decode(token: Any) -> tuple[str, str]:
    try:
        when, key = json.loads(base64.urlsafe_b64decode(token))
        return str(when), str(key)
    except (ValueError, TypeError):
        raise ApiError("INVALID_ARGUMENT", f"pageToken {token!r} is not one of this list's.", "pageToken") from None


def _lookup(entry: Mapping[str, Any], name: str) -> Any:
    value = lookup(entry, name)
    if name == "severity":
        return _Severity(value)
    return value


class _Severity(str):
    """A severity, which sorts by how bad it is."""

    __hash__ = str.__hash__

    def _rank(self, other: str) -> tuple[int, int]:
        return _SEVERITIES.index(self), _SEVERITIES.index(other) if other in _SEVERITIES else -1

    def __lt__(self, other: str) -> bool:
        mine, theirs = self._rank(other)
        return mine < theirs

    def __gt__(self, other: str) -> bool:
        mine, theirs = self._rank(other)
        return mine > theirs


def _all(local: Local, text: str, projects: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the entries of the jobs that the filter can mean."""
    wanted = _JOB.findall(text)
    for kind in ("customJobs", "hyperparameterTuningJobs"):
        for job in local.records.list(kind):
            project, number = job["name"].split("/")[1], job["name"].rpartition("/")[2]
            if number.isdecimal() and (not wanted or number in wanted) and (not projects or project in projects):
                yield from _job(local.state / "jobs" / number, project, number)


def _job(folder: Path, project: str, number: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of a job, and those of its trials, whose folders lie beside it."""
    for lines in sorted([*folder.glob("lines/*.log"), *folder.parent.glob(f"{number}-trial-*/lines/*.log")]):
        trial = lines.parents[1].name.partition("-trial-")[2].partition("-")[0]  # an attempt has a number behind it
        labels = {"job_id": number, "project_id": project, "task_name": lines.stem}
        more = {"ml.googleapis.com/trial_id": trial} if trial else {}
        place = f"{lines.parents[1].name}/{lines.stem}"
        for count, (time, kind, text) in enumerate(_read(lines, lines.parents[1] / "logs" / lines.name)):
            entry = {
                "insertId": f"{place}-{count:010d}", "logName": f"projects/{project}/logs/{lines.stem}",
                "resource": {"type": "ml_job", "labels": labels}, "timestamp": stamp(time), "receiveTimestamp": stamp(time),
            }  # fmt: skip
            yield {**entry, **({"labels": more} if more else {}), **_content(text, kind)}


def _read(lines: Path, log: Path) -> Iterator[tuple[float, str, str]]:
    try:
        with open(lines) as index, open(log, "rb") as content:
            for line in index:
                time, kind, size = line.split()
                data = content.read(int(size))
                if len(data) < int(size):
                    return  # still being written
                if data.strip():
                    yield float(time), kind, data[:_LONGEST].decode("utf-8", "replace").rstrip("\r\n")
    except (OSError, ValueError):
        return  # a file that vanished, or that was cut off with the service


def _content(text: str, kind: str) -> dict[str, Any]:
    """Return an entry's payload and severity: those of a JSON line, else by the stream, as the service does it."""
    if text.lstrip().startswith("{"):
        try:
            payload = json.loads(text)
        except (ValueError, RecursionError):
            payload = None
        if isinstance(payload, dict) and "message" in payload:
            severity = str(payload.pop("severity", "DEFAULT")).upper()
            severity = severity if severity in _SEVERITIES else "DEFAULT"
            seconds = payload.pop("timestampSeconds", None), payload.pop("timestampNanos", 0)
            when = {"timestamp": stamp(seconds[0] + seconds[1] / 1e9)} if all(type(part) is int for part in seconds) else {}
            return {"severity": severity, "jsonPayload": payload, **when}
    return {"severity": "ERROR" if kind == "err" else "INFO", "jsonPayload": {"message": text}}
