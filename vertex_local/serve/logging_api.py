"""Cloud Logging's `entries:list` over the log files of jobs, which `gcloud ai custom-jobs stream-logs` calls."""

from __future__ import annotations

import base64
import contextlib
import datetime
import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..job import times
from . import filters, lists, log_index
from .local import Local
from .rest import ApiError, Request

_SEVERITIES = ("DEFAULT", "DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL", "ALERT", "EMERGENCY")
_MOST = 1000
_LARGEST_PAGE = 8 << 20  # bytes of text after which a page ends, even with fewer entries than asked for
_KINDS = ("customJobs", "hyperparameterTuningJobs")


@dataclass(frozen=True)
class _Query:
    """What a request asks for; `after` is the time and id of the last entry of the page before."""

    accepts: filters.Filter
    projects: frozenset[str]
    size: int
    descending: bool
    after: tuple[int, str] | None


class LogReader:
    """Answers `entries:list`, with an index of the logs that it has read."""

    def __init__(self, local: Local):
        self._local, self._index = local, log_index.LogIndex()

    def entries(self, request: Request) -> dict[str, Any]:
        """Return one page of log entries that match the filter, in the order of their times."""
        query = _query(request.json())
        found, last, more, size = [], None, False, 0
        for project, job, line in self._lines(query):
            entry = _entry(project, job, line)
            if entry is None or not query.accepts(entry):
                continue
            if len(found) == query.size or size > _LARGEST_PAGE:
                more = True
                break
            found.append(entry)
            last, size = (line.time, line.id), size + line.size
        answer: dict[str, Any] = {"entries": found} if found else {}
        if more:
            answer["nextPageToken"] = base64.urlsafe_b64encode(json.dumps(last).encode()).decode()
        return answer

    def _lines(self, query: _Query) -> Iterator[tuple[str, str, log_index.Line]]:
        """Yield (project, job's number, line), in order, of the lines that may match the query."""
        jobs = self._jobs(query.accepts.values("resource.labels.jobId"))
        streams = [self._of_job(job, query) for job in jobs]
        return heapq.merge(*streams, key=lambda item: (item[2].time, item[2].id), reverse=query.descending)

    def _of_job(self, job: Mapping[str, Any], query: _Query) -> Iterator[tuple[str, str, log_index.Line]]:
        """Yield the same of one job and its trials."""
        project, number = job["name"].split("/")[1], job["name"].rpartition("/")[2]
        if query.projects and project not in query.projects or not number.isdecimal():
            return
        folder, tasks = self._local.state / "jobs" / number, query.accepts.values("resource.labels.taskName")
        folders = [folder, *(sorted(folder.parent.glob(f"{number}-trial-*")) if "studySpec" in job else ())]
        found = [each / "logs" / path.name for each in folders for path in sorted(each.glob("lines/*.log"))]
        logs = [log for log in found if tasks is None or log.stem in tasks]
        least = _microseconds(query.accepts.least("timestamp"))
        for line in self._index.lines(number, logs, query.after, least, query.descending):
            yield project, number, line

    def _jobs(self, numbers: set[str] | None) -> Iterator[dict[str, Any]]:
        if numbers is None:
            for kind in _KINDS:
                yield from self._local.records.list(kind)
        else:
            for number in sorted(numbers):
                yield from self._local.records.named(number, *_KINDS)


def _query(body: Mapping[str, Any]) -> _Query:
    names = body.get("resourceNames", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name.startswith("projects/") for name in names):
        raise ApiError("INVALID_ARGUMENT", f"resourceNames takes a list of projects/ID; got {str(names)[:100]}.", "resourceNames")
    text, order = body.get("filter", ""), body.get("orderBy", "timestamp asc")
    if not isinstance(text, str):
        raise ApiError("INVALID_ARGUMENT", "filter takes text.", "filter")
    if order not in ("timestamp asc", "timestamp desc", ""):
        text = f"orderBy takes 'timestamp asc' or 'timestamp desc'; got {str(order)[:100]!r}."
        raise ApiError("INVALID_ARGUMENT", text, "orderBy")
    size, token = body.get("pageSize") or 50, body.get("pageToken", "")
    if type(size) is not int or not 1 <= size <= _MOST:
        raise ApiError("INVALID_ARGUMENT", f"pageSize takes 1 to {_MOST}; got {str(size)[:100]!r}.", "pageSize")
    accepts = lists.parsed_filter(text, _lookup)
    projects = frozenset(name.split("/")[1] for name in names)
    return _Query(accepts, projects, size, order.endswith("desc"), _decoded(token) if token else None)


def _decoded(token: Any) -> tuple[int, str]:
    with contextlib.suppress(ValueError, TypeError):
        time, place = json.loads(base64.urlsafe_b64decode(token))
        if type(time) is int and abs(time) < 1 << 62 and isinstance(place, str):
            return time, place
    raise ApiError("INVALID_ARGUMENT", f"pageToken {str(token)[:80]!r} is not one of this list's; start from the first page.", "pageToken")


def _microseconds(text: str | None) -> int:
    """Return a time in microseconds since 1970; 0 without one."""
    with contextlib.suppress(ValueError):
        return 0 if text is None else round(times.seconds(text) * 1e6)
    return 0


def _entry(project: str, job: str, line: log_index.Line) -> dict[str, Any] | None:
    """Return a line as Cloud Logging shows it; None if its file has been removed."""
    try:
        text = log_index.content(line.log, line)
    except FileNotFoundError:
        return None
    when, task = _stamp(line.time), line.log.stem
    entry = {
        "insertId": line.id, "logName": f"projects/{project}/logs/{task}",
        "resource": {"type": "ml_job", "labels": {"job_id": job, "project_id": project, "task_name": task}},
        "timestamp": when, "receiveTimestamp": when, **_content(text, line.stream),
    }  # fmt: skip
    trial = line.log.parents[1].name.partition("-trial-")[2].partition("-")[0]  # one that ran again has a number after its id
    return {**entry, "labels": {"ml.googleapis.com/trial_id": trial}} if trial else entry


def _stamp(microseconds: int) -> str:
    when = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=microseconds)
    return when.isoformat(timespec="microseconds") + "Z"


def _content(text: str, stream: str) -> dict[str, Any]:
    """Return an entry's payload and severity: from a line in JSON, else by the stream, as on the service."""
    payload = log_index.payload(text)
    if payload is None:
        return {"severity": "ERROR" if stream == "err" else "INFO", "jsonPayload": {"message": text}}
    severity = str(payload.pop("severity", "DEFAULT")).upper()
    for name in ("timestampSeconds", "timestampNanos"):
        payload.pop(name, None)
    return {"severity": severity if severity in _SEVERITIES else "DEFAULT", "jsonPayload": payload}


def _lookup(entry: Mapping[str, Any], name: str) -> Any:
    value = filters.lookup(entry, name)
    return _Severity(value) if name == "severity" else value


class _Severity(str):
    """A severity, ordered by how severe it is."""

    def compare(self, other: str) -> int:
        """Return -1, 0 or 1 if it is less, as, or more severe than `other`."""
        mine, rank = _SEVERITIES.index(self), _SEVERITIES.index(other.upper()) if other.upper() in _SEVERITIES else -1
        return (mine > rank) - (mine < rank)
