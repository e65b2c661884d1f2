"""BigQuery tables, read by Google's own clients from a server of the tests' own."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import forked
import grpc
import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT

pytest.importorskip("google.cloud.bigquery_storage_v1", reason="google-cloud-bigquery-storage is not installed")
from bigquery_stand_in import Behaviour, StandIn  # noqa: E402

from vertex_runtime import data, formats  # noqa: E402
from vertex_runtime.arguments import CommonHyperparameters, parse  # noqa: E402
from vertex_runtime.columns import Category, Date, Image, Number, Text  # noqa: E402
from vertex_runtime.errors import UserError  # noqa: E402
from vertex_runtime.formats import Reading, _by_content, bigquery  # noqa: E402

COLUMNS = (Text("key", required=False), Number("fare"), Date("pickup", time=True), Category("payment"))
TABLE = "bq://p.taxi.trips"
ROWS = 1200
PROJECTS = ("GOOGLE_CLOUD_PROJECT", "CLOUD_ML_PROJECT_ID", "GCLOUD_PROJECT")


def trips(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Return rows with some empty cells and some rows that are there twice."""
    random = np.random.default_rng(seed)
    fares = random.integers(1, 40, rows) / 2
    start = datetime.datetime(2011, 1, 28, 20, 42, 59, tzinfo=datetime.timezone.utc)
    return pa.table(
        {
            "note": [f"unread {i}" for i in range(rows)],
            "payment": [None if i % 50 == 3 else ("cash", "card", "Ünïcödé 日本", "")[i % 4] for i in random.integers(0, 200, rows)],
            "fare": pa.array([None if i % 97 == 5 else fare for i, fare in enumerate(fares)], pa.float64()),
            "pickup": pa.array([start + datetime.timedelta(hours=int(i)) for i in random.integers(0, 99, rows)], pa.timestamp("us", "UTC")),
        }
    )


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def service(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    """A server with the table of trips and no faults, where both clients look for it."""
    server.behaviour = Behaviour({("p", "taxi", "trips"): trips()})
    for name in PROJECTS:
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bigquery, "WAIT", 0.01)
    bigquery._kept.clear()
    return server.behaviour


def rows(path: str = TABLE, columns: tuple = COLUMNS, **reading: str) -> list[tuple]:
    """Return all rows in their order, as a new process would."""
    bigquery._kept.clear()
    return [tuple(row.values()) for raw in bigquery.read(path, columns, None, Reading(**reading)) for row in raw.batch.to_pylist()]


def by_value(found: list[tuple]) -> list[tuple]:
    return sorted(found, key=str)


def expected(table: pa.Table) -> list[tuple]:
    """Return what a table of trips must be read as, whatever the order."""
    found = table.select(["fare", "pickup", "payment"]).to_pylist()
    return by_value([(row["fare"], f"{row['pickup']:%Y-%m-%d %H:%M:%S} UTC", row["payment"]) for row in found])


# ------------------------------------------------------------------ rows and their order


def test_every_row_once_with_the_columns_wanted_alone(service):
    found = rows()
    assert by_value(found) == expected(trips())
    (session,) = service.sessions
    assert sorted(session.read_session.read_options.selected_fields) == ["fare", "payment", "pickup"]  # not key, not note
    assert session.parent == "projects/p" and session.read_session.table == "projects/p/datasets/taxi/tables/trips"


def test_the_order_is_the_same_however_the_service_splits(service):
    first = rows()
    assert [row[0] for row in first] != [row[0] for row in expected(trips())]
    for streams, deal, batch_rows in [(4, None, 100), (4, 1, 7), (7, 2, 1000), (1, 3, 100)]:
        service.streams, service.deal, service.batch_rows = streams, deal, batch_rows
        service.reads.clear()
        assert rows() == first
        assert len(service.reads) == streams


def test_the_order_does_not_change_from_version_to_version(service):
    """A run that goes on after a restart, perhaps with other packages, must find the rows where they were."""
    service.tables["p", "taxi", "few"] = pa.table({"a": [1.0, 2.0, 3.0, None, 5.0], "b": ["one", "two", "", "four", None]})
    assert rows("bq://p.taxi.few", (Number("a"), Text("b"))) == [(None, "four"), (2.0, "two"), (1.0, "one"), (3.0, ""), (5.0, None)]


def test_more_than_fits_is_sorted_in_files_to_the_same_order(service, monkeypatch, tmp_path, capsys):
    service.streams = 3
    first = rows()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(bigquery.tempfile, "tempdir", None)
    for limit in (20_000, 2_000, 1):
        monkeypatch.setattr(bigquery, "LIMIT", limit)
        assert rows() == first
    assert str(tmp_path) in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_many_equal_rows_are_sorted_in_files(service, monkeypatch):
    one = trips().slice(0, 1)
    service.tables["p", "taxi", "trips"] = pa.concat_tables([one] * 500 + [trips().slice(0, 20)])
    first = rows()
    monkeypatch.setattr(bigquery, "LIMIT", 500)
    assert rows() == first and len(first) == 520


def test_rows_of_one_hash_are_sorted_by_their_cells():
    def batch(numbers: list[float | None]) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pa.array(numbers), pa.array([7] * len(numbers), pa.uint64())], ["a", bigquery.HASH])

    found = list(_by_content.in_order([batch([3.0, None]), batch([1.0, 2.0])], 1 << 20))
    assert [row["a"] for each in found for row in each.to_pylist()] == [1.0, 2.0, 3.0, None]


def test_hashes_differ_by_column_and_length():
    cells = pa.array([b"", None, b"\0", b"\0\0", b"ab", b"ba", b"a" * 3_000_000, b"a" * 2_999_999, b"ab"])
    found = _by_content.hash_cells(cells)
    assert len(set(found.tolist())) == 8 and found[4] == found[8]
    assert (_by_content.hash_cells(cells.slice(2, 5)) == found[2:7]).all()
    numbers = _by_content.hash_cells(pa.array([0.0, -0.0, 1.0, None, float("nan"), 5e-324]))
    assert len(set(numbers.tolist())) == 6


def test_a_table_that_changes_meanwhile_is_noticed(service, monkeypatch, capsys):
    rows()
    assert not capsys.readouterr().err
    asked = bigquery._session
    few = trips().slice(0, 7)
    monkeypatch.setattr(bigquery, "_session", lambda *args: (service.tables.update({("p", "taxi", "trips"): few}), asked(*args))[1])
    assert len(rows()) == 7
    assert "7 rows came, and the table had 1,200" in capsys.readouterr().err


def test_places_count_rows_in_that_order(service, monkeypatch):
    monkeypatch.setattr(_by_content, "BLOCK_BYTES", 4000)
    batches = list(formats.record_batches(TABLE, (Number("fare", missing=0), Date("pickup", time=True)), (), data.BadRows("collect")))
    assert len(batches) > 5
    assert [row for batch in batches for row in batch.column(data.ROW).to_pylist()] == list(range(1, ROWS + 1))
    bad = data.BadRows("collect")
    for _ in formats.record_batches(TABLE, (Number("fare", low=1e6),), (), bad):
        pass
    assert bad.kept[0][0] == f"{TABLE}, row 1" and bad.kept[-1][0] == f"{TABLE}, row {len(bad.kept)}"


def test_a_second_pass_asks_for_nothing_and_finds_the_same(service, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(bigquery.tempfile, "tempdir", None)
    first = rows()
    service.tables["p", "taxi", "trips"] = trips(seed=1)
    again = list(bigquery.read(TABLE, COLUMNS, None, Reading()))
    assert [tuple(row.values()) for raw in again for row in raw.batch.to_pylist()] == first
    assert sum(raw.batch.num_rows for raw in again) == ROWS
    assert len(service.sessions) == 1 and not list(tmp_path.iterdir())
    assert sum(raw.batch.num_rows for raw in bigquery.read(TABLE, COLUMNS, None, Reading(row_filter="fare > 10"))) < ROWS
    assert [raw.batch.schema.names for raw in bigquery.read(TABLE, COLUMNS[:2], None, Reading())] == [["fare"]]
    assert len(service.sessions) == 3


def test_a_table_that_cannot_be_kept_is_read_again(service, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bigquery.pa.ipc.RecordBatchStreamWriter, "write_batch", full)
    assert by_value(rows()) == expected(trips())
    assert not bigquery._kept and "each pass reads them" in capsys.readouterr().err


def test_a_reader_that_is_left_ends_its_threads(service):
    service.streams, service.batch_rows = 4, 1
    reading = bigquery.read(TABLE, COLUMNS, None, Reading())
    assert next(reading).batch.num_rows
    reading.close()
    assert by_value(rows()) == expected(trips())


# ------------------------------------------------------------------ several processes with a common folder

WORKER = """
import sys, time
from test_bigquery import COLUMNS, TABLE, bigquery, Reading
from vertex_runtime.formats import _shared
from vertex_runtime.shares import Part
worker, workers, folder, bucket_bytes = *map(int, sys.argv[1:3]), sys.argv[3], int(sys.argv[4])
_shared.BUCKET_BYTES, bigquery.WAIT = bucket_bytes, 0.01
print("ready", flush=True)
sys.stdin.readline()
reading = Reading(folder=folder, part=Part(worker, workers, lambda: time.sleep(0.01)))
for _ in range(2):
    print([tuple(row.values()) for raw in bigquery.read(TABLE, COLUMNS, None, reading) for row in raw.batch.to_pylist()], flush=True)
"""


def workers(folder: object, count: int, bucket_bytes: int) -> list[subprocess.Popen[str]]:
    """Start processes that read the table as the workers of a job, all at once."""
    found = [
        subprocess.Popen(
            [forked.python("google"), "-c", WORKER, str(i), str(count), str(folder), str(bucket_bytes)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        )
        for i in range(count)
    ]  # fmt: skip
    for process in found:
        assert process.stdout.readline() == "ready\n"
    for process in found:
        process.stdin.write("go\n")
        process.stdin.flush()
    return found


def rows_of(process: subprocess.Popen[str]) -> list[tuple]:
    """Return what a worker has read, twice the same."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    found = [eval(line) for line in out.splitlines() if line.startswith("[")]  # noqa: S307 - our own tuples
    assert len(found) == 2 and found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("bucket_bytes", [1 << 26, 1 << 12])
def test_each_stream_is_read_by_one_worker(service, tmp_path, bucket_bytes):
    """Together they read the table once, and all have its rows in the order of one process; so has a later run."""
    whole = rows()
    service.streams, service.deal, service.batch_rows = 8, 1, 7
    service.reads.clear(), service.sessions.clear()
    both = workers(tmp_path, 2, bucket_bytes)
    assert [rows_of(process) for process in both] == [whole, whole]
    assert sorted(service.reads) == [(stream, 0) for stream in range(8)] and len(service.sessions) == 1
    (later,) = workers(tmp_path, 1, bucket_bytes)
    assert rows_of(later) == whole and len(service.sessions) == 1 and len(service.reads) == 8
    (folder,) = tmp_path.iterdir()
    assert {path.name.split("-")[0] for path in folder.iterdir()} == {"claims", "session.json", "sorted"}


def test_without_a_common_folder_each_reads_all(service, tmp_path):
    whole = rows()
    service.streams = 3
    service.reads.clear(), service.sessions.clear()
    found = [rows_of(workers(tmp_path / str(i), 1, 1 << 26)[0]) for i in range(2)]
    assert found == [whole, whole] and len(service.sessions) == 2 and len(service.reads) == 6


def test_streams_of_a_killed_worker_are_read_by_another(service, tmp_path):
    whole = rows()
    service.streams, service.batch_rows = 4, 10
    service.reads.clear(), service.sessions.clear()
    service.hold = threading.Event()  # after the first rows
    first, second = workers(tmp_path, 2, 1 << 26)
    while len(service.reads) < 4:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    service.hold.set()
    assert rows_of(second) == whole
    assert len(service.sessions) == 1 and {stream for stream, _ in service.reads} == set(range(4))


def test_another_table_filter_or_column_has_a_folder_of_its_own(service, tmp_path):
    def read(columns: tuple = COLUMNS, **how: str) -> int:
        bigquery._kept.clear()
        return sum(raw.batch.num_rows for raw in bigquery.read(TABLE, columns, None, Reading(folder=str(tmp_path), **how)))

    assert read() == read() == ROWS and len(service.sessions) == 1
    assert 0 < read(row_filter="fare > 10") < ROWS and read(COLUMNS[:2]) == ROWS and len(service.sessions) == 3
    service.tables["p", "taxi", "trips"] = trips(rows=900)
    assert read() == 900 and len(service.sessions) == 4


def test_rows_that_the_metadata_do_not_count_yet_are_not_kept_for_others(service, tmp_path, monkeypatch):
    checked = bigquery._checked
    monkeypatch.setattr(bigquery, "_checked", lambda *args: dataclasses.replace(checked(*args), rows=None))
    for job, sessions in [(None, 1), (None, 2), ("1", 3), ("1", 3), ("2", 4)]:
        bigquery._kept.clear()
        assert sum(raw.batch.num_rows for raw in bigquery.read(TABLE, COLUMNS, None, Reading(folder=str(tmp_path), job=job))) == ROWS
        assert len(service.sessions) == sessions


def test_a_folder_without_room_is_named(service, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep its rows in .*file/bigquery-.* Name a folder with room: --cache_dir"):
        list(bigquery.read(TABLE, COLUMNS, None, Reading(folder=str(tmp_path / "file"))))


# ------------------------------------------------------------------ streams that are cut


@pytest.mark.parametrize("code", ["UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED"])
def test_a_cut_stream_goes_on_from_the_row_it_was_cut_at(service, code, capsys):
    service.streams = 3
    whole = rows()
    service.reads.clear()
    service.rows_sent = 0
    status = grpc.StatusCode[code]
    service.cuts = {0: [(150, status)], 2: [(0, status), (399, status), (0, status)]}
    assert rows() == whole
    assert sorted(service.reads) == [(0, 0), (0, 150), (1, 0), (2, 0), (2, 0), (2, 399), (2, 399)]
    assert service.rows_sent == ROWS
    assert "a stream was cut after 150 rows" in capsys.readouterr().err


def test_a_stream_may_be_cut_often_as_long_as_rows_come(service):
    service.cuts = {0: [(30, grpc.StatusCode.UNAVAILABLE)] * (3 * bigquery.TRIES)}
    assert by_value(rows()) == expected(trips())
    assert service.rows_sent == ROWS


def test_empty_streams_are_no_trouble(service):
    service.empty_streams, service.streams = 3, 2
    assert by_value(rows()) == expected(trips())


def test_a_stream_that_never_recovers_ends_the_run_in_one_line(service):
    service.cuts = {0: [(100, grpc.StatusCode.UNAVAILABLE)] + [(0, grpc.StatusCode.UNAVAILABLE)] * 50}
    with pytest.raises(UserError, match=r"^bq://p.taxi.trips: BigQuery does not answer \(.*cut by the test\). Look at the network"):
        rows()
    assert len(service.reads) == 1 + bigquery.TRIES - 1


def test_permission_lost_midway_ends_the_run_at_once(service):
    service.cuts = {0: [(100, grpc.StatusCode.PERMISSION_DENIED)]}
    with pytest.raises(UserError, match="no permission .*roles/bigquery.dataViewer"):
        rows()
    assert len(service.reads) == 1


# ------------------------------------------------------------------ what is asked for


def test_the_filter_is_left_to_the_service(service):
    found = rows(row_filter="fare > 10 AND payment = 'card'")
    assert found and all(row[0] > 10 and row[2] == "card" for row in found)
    assert service.sessions[0].read_session.read_options.row_restriction == "fare > 10 AND payment = 'card'"
    assert service.rows_sent == len(found) < ROWS


def test_a_filter_may_name_a_column_that_is_not_read(service):
    assert len(rows(row_filter="note = 'unread 7'")) == 1


def test_wildcards_and_lists_of_tables_are_read_as_one(service):
    whole = rows()
    table = service.tables.pop(("p", "taxi", "trips"))
    for i, start in enumerate(range(0, ROWS, 400)):
        service.tables["p", "export", f"training_{i}"] = table.slice(start, 400)
    service.tables["p", "export", "validation"] = table.slice(0, 5)
    assert rows("bq://p.export.training_*") == whole
    assert rows("bq://p.export.training_2,bq://p.export.training_0,bq://p.export.training_1") == whole
    assert bigquery.count("bq://p.export.training_*", Reading()) == ROWS
    assert by_value(rows("bq://p.export.validation")) == expected(table.slice(0, 5))


def test_the_project_comes_from_the_path_the_flag_or_the_environment(service, monkeypatch):
    assert bigquery.count("bq://taxi.trips", Reading(project="p")) == ROWS
    with pytest.raises(UserError, match=r"^bq://taxi.trips names no project. Write bq://PROJECT.taxi.trips, or set GOOGLE_CLOUD_PROJECT.$"):
        bigquery.count("bq://taxi.trips", Reading())
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "q")
    monkeypatch.setenv("CLOUD_ML_PROJECT_ID", "p")  # the job's own goes first
    assert bigquery.count("bq://taxi.trips", Reading()) == ROWS
    rows(TABLE, project="payer")
    assert service.sessions[0].parent == "projects/payer"


@pytest.mark.parametrize(
    "path, parts",
    [
        ("bq://p.d.t", ("p", "d", "t")),
        ("bq://my-project-1.dataset_12_tables_2026.training", ("my-project-1", "dataset_12_tables_2026", "training")),
        ("bq://example.com:my-project.d.t", ("example.com:my-project", "d", "t")),
        ("bq://p:d.t", ("p", "d", "t")),
        ("bq://p.d.a table-with_9", ("p", "d", "a table-with_9")),
        ("bq://d.t", ("given", "d", "t")),
    ],
)
def test_names_of_tables(path, parts):
    assert bigquery._parts(path, Reading(project="given")) == parts


def test_count_and_fingerprint_read_no_row(service):
    assert bigquery.count(TABLE, Reading()) == ROWS
    assert bigquery.count(TABLE, Reading(row_filter="fare > 1")) is None
    one = bigquery.fingerprint(TABLE, Reading())
    assert one["path"] == TABLE and one["bytes"] == trips().nbytes and re.fullmatch("[0-9a-f]{64}", one["sha256"])
    assert bigquery.fingerprint(TABLE, Reading()) == one != bigquery.fingerprint(TABLE, Reading(row_filter="fare > 1"))
    assert not service.sessions


# ------------------------------------------------------------------ types


def test_typed_columns(service):
    when = datetime.datetime(1969, 7, 20, 20, 17, 40, 120000)
    D = decimal.Decimal
    service.tables["p", "taxi", "types"] = pa.table(
        {
            "i": pa.array([1, None], pa.int64()),
            "n": pa.array([D("100.500000000"), None], pa.decimal128(38, 9)),
            "b": pa.array([D("1e-7"), None], pa.decimal256(76, 38)),
            "flag": [True, None],
            "text_number": ["2.5", None],
            "stamp": pa.array([when, None], pa.timestamp("us", "UTC")),
            "clock": pa.array([when.replace(microsecond=0), None], pa.timestamp("us")),
            "day": pa.array([when.date(), None], pa.date32()),
            "hour": pa.array([when.time().replace(microsecond=0), None], pa.time64("us")),
            "photo_bytes": pa.array([b"\x89PNG\xff", None], pa.binary()),
            "Name": ["Ünï", None],
        }
    )
    columns = [Number(name) for name in ("i", "n", "b", "flag", "text_number")]
    columns += [Date("stamp", time=True), Date("clock", time=True), Date("day"), Text("hour"), Image("photo_bytes"), Text("name")]
    (raw,) = bigquery.read("bq://p.taxi.types", columns, None, Reading())
    assert {str(raw.batch.schema.field(name).type) for name in ("i", "n", "b", "flag")} == {"double"}
    full, empty = sorted((tuple(row.values()) for row in raw.batch.to_pylist()), key=lambda row: row[0] is None)
    times = ("1969-07-20 20:17:40.12 UTC", "1969-07-20 20:17:40", "1969-07-20")
    assert full[:9] == (1.0, 100.5, 1e-7, 1.0, "2.5", *times, "20:17:40.000000")
    assert full[9:] == (b"\x89PNG\xff", "Ünï") and raw.batch.schema.names[-1] == "name"
    assert empty == (None,) * 11
    (raw,) = bigquery.read("bq://p.taxi.types", [Text(name) for name in ("i", "n", "b", "flag")], None, Reading())
    assert {tuple(row.values()) for row in raw.batch.to_pylist()} == {("1", "100.5", "0.0000001", "true"), (None,) * 4}


def test_times_are_as_the_columns_rule_has_them(service):
    pattern = Date("pickup", time=True).pattern
    assert all(re.fullmatch(pattern, pickup) for _, pickup, _ in rows())


# ------------------------------------------------------------------ wrong inputs


WRONG_TABLES = {
    "no such table": ("bq://p.taxi.trip", "there is no such table in the dataset taxi of p; it has trips."),
    "no such dataset": ("bq://p.tax.trips", "there is no such table in the dataset tax of p, or no such dataset. Look at its name."),
    "no table for a wildcard": ("bq://p.taxi.training_*", "bq://p.taxi.training_*: there is no such table in the dataset taxi of p"),
    "no table at all": ("bq://trips", "bq://trips: a table must be named as bq://project.dataset.table."),
    "a partition": ("bq://p.taxi.trips$20200101", "a partition cannot be named. Name the table, and the partition by --row_filter."),
    "a column is missing": ("bq://p.taxi.short", "bq://p.taxi.short lacks payment; it has fare, pickup. Name another table"),
    "a date for a number": ("bq://p.taxi.odd", "bq://p.taxi.odd: the column fare is of type DATE, and the trainer needs numbers."),
    "a day for a time": ("bq://p.taxi.days", "the column pickup is of type DATE, and the trainer needs a time of day."),
    "a list": ("bq://p.taxi.lists", "the column payment is of type ARRAY of STRING, and the trainer needs text. Select plain"),
    "a record": ("bq://p.taxi.records", "the column payment is of type RECORD, and the trainer needs text."),
    "a view": ("bq://p.taxi.seen", "bq://p.taxi.seen is a view, and only tables can be read. Make one of it: CREATE TABLE"),
    "tables of two kinds": ("bq://p.taxi.trips,bq://p.taxi.words", "bq://p.taxi.words: the column fare is not of the type that it has in"),
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_a_wrong_table_ends_in_one_line_that_names_it(service, case):
    path, said = WRONG_TABLES[case]
    table = trips().slice(0, 4)
    day = pa.array([datetime.date(2011, 1, 28)] * 4)

    def change(name: str, values: object) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, values)

    service.views = {"seen"}
    for name, content in {
        "short": table.select(["fare", "pickup"]),
        "odd": change("fare", day),
        "days": change("pickup", day),
        "lists": change("payment", pa.array([["cash"]] * 4)),
        "records": change("payment", pa.array([{"kind": "cash"}] * 4)),
        "seen": table,
        "words": change("fare", pa.array(["2.5"] * 4)),
    }.items():
        if name in path:
            service.tables["p", "taxi", name] = content
    with pytest.raises(UserError) as caught:
        rows(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert service.rows_sent == 0


def test_a_wrong_filter_is_named(service):
    with pytest.raises(
        UserError, match=r"--row_filter='fair > 1': BigQuery cannot read this \(.*Unrecognized name: fair.*Mend the condition"
    ):
        rows(row_filter="fair > 1")


def test_no_rows_are_no_error_of_the_reader(service, capsys):
    """Who reads several tables knows whether the others have rows."""
    assert rows(row_filter="fare > 1000") == []
    assert "bq://p.taxi.trips: no row meets --row_filter='fare > 1000'" in capsys.readouterr().err
    service.tables["p", "taxi", "empty"] = trips().slice(0, 0)
    assert rows("bq://p.taxi.empty") == []


@pytest.mark.parametrize(
    "status, said",
    [
        (403, "no permission (Access Denied: who are you). Grant roles/bigquery.dataViewer on the dataset"),
        (401, "no valid credentials for BigQuery (Anonymous credentials cannot be refreshed). Run `gcloud auth application-default login`"),
        (503, "BigQuery does not answer ("),
    ],
)
def test_what_the_service_refuses_is_said_with_the_remedy(service, status, said):
    service.refused = (status, "Access Denied: who are you")
    with pytest.raises(UserError) as caught:
        rows()
    assert said in str(caught.value) and "\n" not in str(caught.value) and "http" not in str(caught.value)


def test_no_permission_to_read_what_may_be_looked_at(service):
    service.session_refused = (grpc.StatusCode.PERMISSION_DENIED, "request failed: bigquery.readsessions.create")
    with pytest.raises(UserError, match="^bq://p.taxi.trips: no permission .*readsessions.create.*roles/bigquery.readSessionUser"):
        rows()


def test_nobody_answers(service, monkeypatch):
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="^bq://p.taxi.trips: BigQuery does not answer .*Look at the network"):
        rows()


def test_nobody_is_logged_in(service, monkeypatch, tmp_path):
    for name in ("BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(
        UserError, match="^bq://p.taxi.trips: no valid credentials for BigQuery .*key.json.*gcloud auth application-default login"
    ):
        rows()


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES, None])
def test_a_disk_that_takes_no_rows_is_named(service, monkeypatch, tmp_path, fault):
    def full(*_: object) -> None:
        raise OSError(fault, "the disk's own words")

    monkeypatch.setattr(bigquery, "LIMIT", 1000)
    if fault:
        monkeypatch.setattr(_by_content, "_deal", full)
    else:
        monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
        monkeypatch.setattr(bigquery.tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(
        UserError, match="^bq://p.taxi.trips: cannot write to .*, where its rows are sorted .*Set TMPDIR to a folder with room"
    ):
        rows()


def test_row_filter_is_a_flag_of_every_trainer():
    assert parse(CommonHyperparameters, ["--row_filter=fare > 2.5"], "")[1].row_filter == "fare > 2.5"
    assert parse(CommonHyperparameters, [], "")[1].row_filter == ""


@pytest.mark.parametrize(
    "name, value",
    [
        ("BIGQUERY_EMULATOR_HOST", "http://10.0.0.1:9050"),
        ("BIGQUERY_EMULATOR_HOST", ""),
        ("BIGQUERY_STORAGE_EMULATOR_HOST", "bigquery.example.com:443"),
        ("BIGQUERY_STORAGE_EMULATOR_HOST", ""),
    ],
)
def test_a_stand_in_is_on_this_machine_and_whole(service, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name} must be an address on this machine such as "):
        rows()


def test_without_the_client_library_one_line_says_what_to_install(service, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.bigquery_storage_v1", None)
    with pytest.raises(
        UserError, match="needs a package that is not here .*pip install google-cloud-bigquery google-cloud-bigquery-storage"
    ):
        rows()


def test_the_module_needs_neither_the_client_library_nor_tensorflow():
    names = ("tensorflow", "grpc", "google.cloud.bigquery")
    code = f"import sys, vertex_runtime.formats.bigquery; print(sorted({set(names)} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# ------------------------------------------------------------------ whole runs


@pytest.mark.multiworker
@pytest.mark.parametrize("memory", ["auto", "no"])
def test_two_workers_train_on_a_table_that_is_read_once(service, tmp_path, memory):
    """Each stream is read by one of them, and every step is fed the rows of one process; without a common folder each reads all."""
    from pyarrow import csv
    from test_multiworker import free_ports, replica

    from benchmarks import drills
    from taxifare.trainer.model import COLUMNS as TAXI

    names = csv.ReadOptions(column_names=[column.name for column in TAXI])
    kinds = csv.ConvertOptions(column_types={"key": pa.string(), "pickup_datetime": pa.string()})
    service.tables["p", "taxi", "trips"] = csv.read_csv(ROOT / "taxifare/tests/data/taxi-train.csv", names, None, kinds)
    service.streams, service.batch_rows = 6, 50
    flags = ["--batch_size=100", "--epochs=1", "--num_evals=1", f"--in_memory={memory}", f"--train_data_path={TABLE}"]

    def run(name: str, workers: int, *more: str) -> tuple[dict[int, list[str]], str]:
        service.reads.clear(), service.sessions.clear()
        own = ["--ledger=" + str(tmp_path / f"{name}.ledger"), *more]
        ports = free_ports(workers) if workers > 1 else []
        if not ports:
            from taxifare.trainer.task import main

            bigquery._kept.clear()
            main([f"--output_dir={tmp_path / name}", "--eval_data_path=taxifare/tests/data/taxi-valid.csv", *flags, *own])
        processes = [replica(i, ports, tmp_path / name, *flags, *own) for i in range(workers)] if ports else []
        said = [process.communicate(timeout=400) for process in processes]
        assert not any(process.returncode for process in processes), said
        fed: dict[int, list[str]] = {}
        for (_, step), rows in sorted(drills.fed_rows(tmp_path / f"{name}.ledger").items()):
            fed.setdefault(step, []).extend(rows)
        return fed, "".join(out for out, _ in said)

    alone, _ = run("alone", 1)
    assert len(alone) == 16 and len(service.reads) == 6
    both, said = run("both", 2, f"--cache_dir={tmp_path / 'cache'}")
    assert both == alone
    assert sorted(service.reads) == [(stream, 0) for stream in range(6)] and len(service.sessions) == 1
    assert "a share of the streams" in said
    apart, said = run("apart", 2)
    assert apart == alone and len(service.reads) == 12 and "each of 2 workers reads all of the table" in said
