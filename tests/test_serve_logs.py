"""The local service's `entries:list`: times of the lines' own, filters, pages that read what they show and no more."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from starlette.datastructures import QueryParams

from vertex_local.local import store
from vertex_local.serve import log_index, logging_api
from vertex_local.serve.rest import ApiError, Request

PARENT = "projects/p/locations/us-central1"


class Logs:
    """A state folder with logs as the local cluster writes them, and a reader."""

    def __init__(self, folder):
        self.state, self.records = folder, store.Store(folder)
        self.reader = logging_api.LogReader(SimpleNamespace(state=folder, records=self.records))

    def job(self, number: str, kind: str = "customJobs", **fields) -> None:
        name = f"{PARENT}/{kind}/{number}"
        self.records.add(name, kind, {"name": name, **fields})

    def write(self, folder: str, *lines: object, replica: str = "workerpool0-0", start: float = 1_700_000_000.0) -> None:
        """Write lines a second apart; what is not text becomes JSON."""
        texts = [(line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines]
        for name in ("logs", "lines"):
            (self.state / "jobs" / folder / name).mkdir(parents=True, exist_ok=True)
        with open(self.state / "jobs" / folder / "logs" / f"{replica}.log", "a") as log:
            log.writelines(texts)
        with open(self.state / "jobs" / folder / "lines" / f"{replica}.log", "a") as index:
            index.writelines(f"{start + i:.6f} out {len(text.encode())}\n" for i, text in enumerate(texts))

    def ask(self, **body) -> dict:
        data = json.dumps({"resourceNames": ["projects/p"], **body}).encode()
        return self.reader.entries(Request("POST", "/v2/entries:list", QueryParams(), {}, len(data), io.BytesIO(data)))

    def texts(self, **body) -> list[str]:
        return [entry["jsonPayload"]["message"] for entry in self.ask(**body).get("entries", [])]


@pytest.fixture
def logs(tmp_path):
    return Logs(tmp_path)


@pytest.mark.parametrize("seconds", [1_700_000_000_000, 10**400, -1, 253_402_300_800, True, 1.5, "1", None])
def test_a_time_that_cannot_be_is_not_taken(logs, seconds):
    """Milliseconds in `timestampSeconds` are a mistake that is easily made; the job's log can be read all the same."""
    logs.job("1")
    logs.write("1", "before", {"message": "odd", "timestampSeconds": seconds, "timestampNanos": 0}, "after")
    assert logs.texts() == ["before", "odd", "after"]
    nanos = {"message": "late", "timestampSeconds": 1_600_000_000, "timestampNanos": 10**9}
    logs.write("1", {"message": "first", "timestampSeconds": 0}, nanos, start=1_700_000_100.0)
    assert logs.texts() == ["first", "before", "odd", "after", "late"]
    assert logs.ask()["entries"][0]["timestamp"] == "1970-01-01T00:00:00.000000Z"


def test_trials_are_found_by_their_label(logs):
    logs.job("1", "hyperparameterTuningJobs", studySpec={})
    for trial in ("1", "2", "2-2"):
        logs.write(f"1-trial-{trial}", f"of {trial}")
    label = 'labels."ml.googleapis.com/trial_id"'
    assert sorted(logs.texts(filter=f'{label}="2"')) == ["of 2", "of 2-2"]
    assert logs.texts(filter=f"{label}:* AND NOT {label}=2") == ["of 1"]
    assert logs.ask(filter='labels."ml.googleapis.com/trial_id"="3"') == {}


@pytest.mark.parametrize("order", ["timestamp asc", "timestamp desc"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pages_show_every_entry_once_in_order(logs, order, size):
    """Two logs with the same times: the pages end in the middle of those, too."""
    for number in ("1", "2"):
        logs.job(number)
        logs.write(number, *(f"{number}-{i}" for i in range(4)))
        logs.write(number, *(f"{number}-b{i}" for i in range(3)), replica="workerpool0-10")
    everything = logs.texts(orderBy=order)
    assert len(everything) == 14 and everything == (logs.texts()[::-1] if order.endswith("desc") else everything)
    seen, token = [], ""
    while token is not None:
        page = logs.ask(orderBy=order, pageSize=size, pageToken=token)
        seen += [entry["jsonPayload"]["message"] for entry in page["entries"]]
        token = page.get("nextPageToken")
    assert seen == everything


def test_a_page_reads_what_it_shows_and_a_log_is_read_once(logs, monkeypatch):
    logs.job("1")
    logs.job("2")
    logs.write("1", *(f"line {i}" for i in range(3000)))
    logs.write("2", "other")
    read, indexed = [], []
    monkeypatch.setattr(log_index, "content", lambda log, line, old=log_index.content: (read.append(line), old(log, line))[1])
    monkeypatch.setattr(log_index, "own_time", lambda data, old=log_index.own_time: (indexed.append(data), old(data))[1])
    job = 'resource.labels.job_id="1"'
    page = logs.ask(filter=job, pageSize=10)
    assert len(indexed) == 3000 and len(read) == 11, "ten that are shown, and one that tells that there are more"
    page = logs.ask(filter=job, pageSize=10, pageToken=page["nextPageToken"])
    assert page["entries"][0]["jsonPayload"]["message"] == "line 10" and len(read) == 22
    logs.write("1", "new", start=1_700_010_000.0)
    read.clear()
    last = page["entries"][0]["timestamp"]
    newer = f'{job} AND ((timestamp="{last}" AND insertId>"x") OR timestamp>"2023-11-15T00:00:00Z")'
    assert logs.texts(filter=f'{job} AND timestamp>="2023-11-15T00:00:00Z"') == ["new"] and len(read) == 1
    assert logs.texts(filter=newer) == ["new"]
    assert len(indexed) == 3001, "what was read is not read again, and no log of another job"


def test_a_line_that_is_still_being_written_comes_when_it_is_complete(logs):
    logs.job("1")
    logs.write("1", "one")
    folder = logs.state / "jobs" / "1"
    with open(folder / "lines" / "workerpool0-0.log", "a") as index:
        index.write("1700000001.000000 out 4\n")
    assert logs.texts() == ["one"]
    with open(folder / "logs" / "workerpool0-0.log", "a") as log:
        log.write("two\n")
    assert logs.texts() == ["one", "two"]
    with open(folder / "lines" / "workerpool0-0.log", "a") as index:
        index.write("17000000")
    assert logs.texts() == ["one", "two"]


def test_a_page_of_long_lines_is_cut(logs):
    logs.job("1")
    logs.write("1", *("x" * (200 << 10) for _ in range(60)))
    page = logs.ask(pageSize=1000)
    assert len(page["entries"]) < 60 and page["nextPageToken"]


@pytest.mark.parametrize("token", ["x", "bnVsbA==", "WzEsIDJd", "WyJhIiwgImIiXQ=="])
def test_a_token_of_somebody_elses_is_refused(logs, token):
    with pytest.raises(ApiError, match="pageToken"):
        logs.ask(pageToken=token)
