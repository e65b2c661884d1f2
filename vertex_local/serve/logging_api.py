"""Cloud Logging's `entries:list` over the log files of jobs, which `gcloud ai custom-jobs stream-logs` calls."""

from __future__ import annotations

import base64
import contextlib
import datetime
import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
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
class _Log:
    """One replica's log: its project and job, and the file; `index` is the file with its lines' times."""

    project: str
    job: str
    path: Path

    @property
    def index(self) -> Path:
        return self.path.parents[1] / "lines" / self.path.name

    @property
    def place(self) -> str:
        """The beginning of its entries' ids."""
        return f"{self.path.parents[1].name}/{self.path.stem}"

    @property
    def trial(self) -> str:
        return self.path.parents[1].name.partition("-trial-")[2].partition("-")[0]  # a trial that ran again has a number after its id


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
        for key, log, line in self._lines(query):
            entry = _entry(log, line)
            if entry is None or not query.accepts(entry):
                continue
            if len(found) == query.size or size > _LARGEST_PAGE:
                more = True
                break
            found.append(entry)
            last, size = key, size + line.size
        answer: dict[str, Any] = {"entries": found} if found else {}
        if more:
            answer["nextPageToken"] = base64.urlsafe_b64encode(json.dumps(last).encode()).decode()
        return answer

    def _lines(self, query: _Query) -> Iterator[tuple[tuple[int, str], _Log, log_index.Line]]:
        """Yield (sort key, log, line), in order, of the lines that may match the query."""
        least = _microseconds(query.accepts.least("timestamp"))
        streams = [self._stream(log, query, least) for log in self._logs(query)]
        return heapq.merge(*streams, key=lambda item: item[0], reverse=query.descending)

    def _stream(self, log: _Log, query: _Query, least: int | None) -> Iterator[tuple[tuple[int, str], _Log, log_index.Line]]:
        for line in self._index.lines(log.index, log.path, _position(log, query), least, query.descending):
            yield (line.time, f"{log.place}-{line.number:010d}"), log, line

    def _logs(self, query: _Query) -> Iterator[_Log]:
        """Yield the logs of the jobs, and of their trials, that may match the filter."""
        tasks = query.accepts.values("resource.labels.taskName")
        for job in self._jobs(query.accepts.values("resource.labels.jobId")):
            project, number = job["name"].split("/")[1], job["name"].rpartition("/")[2]
            if query.projects and project not in query.projects or not number.isdecimal():
                continue
            folder = self._local.state / "jobs" / number
            folders = [folder, *(sorted(folder.parent.glob(f"{number}-trial-*")) if "studySpec" in job else ())]
            for path in (path for each in folders for path in sorted(each.glob("lines/*.log"))):
                if tasks is None or path.stem in tasks:
                    yield _Log(project, number, path.parents[1] / "logs" / path.name)

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


def _position(log: _Log, query: _Query) -> tuple[int, int] | None:
    """Return the time and number of the line in one log after which the page begins; None for the log's beginning."""
    if query.after is None:
        return None
    time, place = query.after
    own, _, number = place.rpartition("-")
    if own == log.place and number.isdecimal():
        return time, int(number)
    wants_same_time = (log.place > own) != query.descending  # among entries of one time, those of later logs come later
    return time, -1 if wants_same_time != query.descending else 1 << 62


def _microseconds(text: str | None) -> int | None:
    with contextlib.suppress(ValueError):
        return None if text is None else round(times.seconds(text) * 1e6)
    return None


def _entry(log: _Log, line: log_index.Line) -> dict[str, Any] | None:
    """Return a line as Cloud Logging shows it; None if its file has been removed."""
    try:
        text = log_index.content(log.path, line)
    except FileNotFoundError:
        return None
    when = _stamp(line.time)
    entry = {
        "insertId": f"{log.place}-{line.number:010d}", "logName": f"projects/{log.project}/logs/{log.path.stem}",
        "resource": {"type": "ml_job", "labels": {"job_id": log.job, "project_id": log.project, "task_name": log.path.stem}},
        "timestamp": when, "receiveTimestamp": when, **_content(text, line.stream),
    }  # fmt: skip
    return {**entry, "labels": {"ml.googleapis.com/trial_id": log.trial}} if log.trial else entry


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
