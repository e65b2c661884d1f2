"""The store: records of several threads and processes, pages that nothing moves, and jobs whose process was killed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT

from vertex_local.errors import UserError
from vertex_local.local import job_record
from vertex_local.local.store import BadToken, Store, Taken

PARENT = "projects/p/locations/l"


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "state")
    yield store
    store.close()


def add(store, number, **fields):
    name = f"{PARENT}/customJobs/{number}"
    return store.add(name, "customJobs", {"name": name, "createTime": f"2026-01-01T00:00:{number:02d}Z", **fields})


def names(page):
    return [document["name"].rpartition("/")[2] for document in page.documents]


def test_a_file_that_holds_no_records_is_said_and_kept(tmp_path):
    path = tmp_path / "records.sqlite"
    path.write_text("notes of my own, which are no database\n")
    with pytest.raises(UserError, match=r"records\.sqlite: holds no records of jobs: file is not a database\. Move it away"):
        Store(tmp_path)
    assert path.read_text().startswith("notes of my own")


def test_pages_survive_what_changes_meanwhile(store):
    for number in range(30):
        add(store, number, state="A" if number % 3 else "B")
    first = store.page("customJobs", PARENT, 5, accepts=lambda document: document["state"] == "A")
    assert names(first) == ["29", "28", "26", "25", "23"]
    store.remove(f"{PARENT}/customJobs/23")  # the token's own document
    add(store, 40, state="A")
    second = store.page("customJobs", PARENT, 5, first.token, accepts=lambda document: document["state"] == "A")
    assert names(second) == ["22", "20", "19", "17", "16"]


def test_other_orders(store):
    for number, title in enumerate(["b", "a", "c", "a"]):
        add(store, number, displayName=title)
    add(store, 9)
    pages, token = [], ""
    while True:
        page = store.page("customJobs", PARENT, 2, token, order="displayName", descending=False)
        pages, token = pages + names(page), page.token
        if not token:
            break
    assert pages == ["9", "1", "3", "0", "2"]
    token = store.page("customJobs", PARENT, 2, order="displayName").token
    for bad in (token + "x", "x", token):
        with pytest.raises(BadToken):
            store.page("customJobs", PARENT, 2, bad, order="updateTime")


def test_a_name_is_taken_once_and_changes_are_whole(store):
    document = add(store, 1, count=0)
    with pytest.raises(Taken):
        add(store, 1)
    other = Store(store_folder(store))  # as another process has it

    def more(record):
        record["count"] += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: (store, other)[i % 2].change(document["name"], more), range(100)))
    assert store.get(document["name"])["count"] == 100
    with pytest.raises(ZeroDivisionError):
        store.change(document["name"], lambda record: 1 / 0)
    assert store.get(document["name"])["count"] == 100
    other.close()


def store_folder(store):
    from pathlib import Path

    return Path(store._run("PRAGMA database_list")[0][2]).parent


def test_nobody_else_can_read_it(store):
    folder = store_folder(store)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(folder / "records.sqlite").st_mode) == 0o600


def test_states_and_their_first_end(store):
    name = f"{PARENT}/trainingPipelines/7"
    job_record.add(store, name, "trainingPipelines", {"displayName": "x"})
    assert store.get(name)["state"] == "PIPELINE_STATE_PENDING"
    job_record.running(store, name)
    job_record.cancelling(store, name)
    job_record.running(store, name)
    assert store.get(name)["state"] == "PIPELINE_STATE_CANCELLING"
    job_record.end(store, name, job_record.CANCELLED)
    job_record.end(store, name, job_record.FAILED, {"code": 1, "message": "late"})
    job_record.cancelling(store, name)
    record = store.get(name)
    assert record["state"] == "PIPELINE_STATE_CANCELLED" and "error" not in record and record["endTime"] <= record["updateTime"]


def test_a_killed_process_leaves_nothing_that_says_running(store, tmp_path):
    state = store_folder(store)
    code = """
import sys
from pathlib import Path
from vertex_local.local import job_record
with job_record.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    for number in (1, 2):
        job_record.add(store, f"{PARENT}/customJobs/{number}", "customJobs", {})
        job_record.running(store, f"{PARENT}/customJobs/{number}")
        folder = job_record.private_folder(state / "jobs" / str(number))
        (folder / "result.json").write_text(json.dumps({"state": "JOB_STATE_RUNNING", "error": None}))
    process = subprocess.Popen(
        [sys.executable, "-c", code, state / "jobs" / "1"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(job_record.InUse), job_record.held(state / "jobs" / "1"):
        pass
    assert job_record.settle(store, state) == [f"{PARENT}/customJobs/2"]
    assert job_record.plain_state(store.get(f"{PARENT}/customJobs/1")) == "RUNNING"
    process.kill()
    process.wait()
    assert job_record.settle(store, state, hint=lambda document: "; go on") == [f"{PARENT}/customJobs/1"]
    record = store.get(f"{PARENT}/customJobs/1")
    assert record["state"] == "JOB_STATE_FAILED" and record["error"] == {"code": 14, "message": f"{job_record.KILLED}; go on"}
    assert json.loads((state / "jobs" / "1" / "result.json").read_text())["state"] == "JOB_STATE_FAILED"
    assert job_record.settle(store, state) == []
