"""BigQuery tables: `bq://project.dataset.table`, read by the Storage Read API as Arrow, several streams at once.

Columns and `row_filter` are pushed down: the service sends nothing else. How it splits a table into streams differs from
day to day, so rows are put into an order of their own, by a hash of their cells: the same rows always come in the same
order. Up to `LIMIT` bytes are sorted in memory; more go to a temporary folder (TMPDIR names another) in buckets by hash.
What was read whole is kept there, too, for this process: a second pass asks for nothing, and finds the same rows.
Processes with a common folder (`Reading.folder`) open one session, read a share of its streams each, and keep the rows there.

For tests, BIGQUERY_EMULATOR_HOST (`http://127.0.0.1:9050`, as google-cloud-bigquery has it) and
BIGQUERY_STORAGE_EMULATOR_HOST (`127.0.0.1:9060`, plain gRPC) name a service on this machine, which is asked without
credentials. Forms and rules are those of "BigQuery Storage Read API" in the service's documentation.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import json
import mmap
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..ahead import merged
from ..columns import Column, Date, Image, Number
from ..environment import quoted
from ..errors import FAILED, UserError
from ..hashing import mix
from ..reporting import log
from . import Raw, Reading, _shared
from ._by_content import HASH, hash_cells, in_order

NAMES = ("bigquery",)
SUFFIXES = ()
SCHEMES = ("bq",)

LIMIT = 512 << 20  # bytes of rows that are sorted at once; the copies that sorting makes are up to twice as much again
MOST_STREAMS = 16
TRIES = 8  # of a stream without a row between them, one to 32 seconds apart
WAIT = 1.0
CALL_SECONDS = 600.0  # after which a stream that is silent is asked for anew
REST, STORAGE = "BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"
NUMBERS = ("INTEGER", "INT64", "FLOAT", "FLOAT64", "NUMERIC", "BIGNUMERIC", "BOOLEAN", "BOOL", "STRING")
TEXTS = (*NUMBERS, "BYTES", "DATE", "DATETIME", "TIMESTAMP", "TIME", "GEOGRAPHY", "JSON")
REMEDY = "Select plain columns into a table of their own: CREATE TABLE … AS SELECT …"


@dataclass(frozen=True)
class _Table:
    """A table that was found, and the names that it has for the columns wanted."""

    project: str
    dataset: str
    name: str
    rows: int | None  # None where the service does not know yet: rows were streamed in of late
    size: int
    modified: str
    names: Mapping[str, str]  # the trainer's name of a column -> the table's
    kinds: Mapping[str, str]  # the trainer's name of a column -> what its cells are given as

    def __str__(self) -> str:
        return f"bq://{self.project}.{self.dataset}.{self.name}"


def recognises(head: bytes) -> bool:
    """Tell whether a file begins as this format does: a table is no file."""
    return False


def read(path: str, columns: Sequence[Column], bad: object, reading: Reading) -> Iterator[Raw]:
    """Read the required columns of a table, or of all tables that a wildcard (`bq://p.d.training_*`) or a list names.

    Args:
        path: `bq://project.dataset.table`; `bq://dataset.table` where `reading` or the environment names the project.
        columns: the trainer's columns.
        bad: not used here; whoever checks the cells collects bad rows.
        reading: `row_filter` is SQL for the service, such as `fare > 2.5 AND passenger_count < 7`.

    Returns:
        Batches of the required columns: float64 (or text, where the table has text) for a `Number`, else text or bytes,
        times as `2011-01-28 20:42:59 UTC`. Empty cells are null.

    Raises:
        UserError: there is no such table, column, permission, project or client library, or the service failed for good.

    A table without rows gives no batch; with a filter that is said in a warning.
    """
    wanted = [column for column in columns if column.required]
    key = (path, reading.row_filter, _project(reading), tuple((column.name, isinstance(column, Number)) for column in wanted))
    some = False
    with _explained(path, reading):
        for batch in _kept[key]() if key in _kept else _rows(path, key, wanted, reading):
            some = True
            yield Raw(batch)
    if not some and reading.row_filter:
        log("WARNING", f"{path}: no row meets --row_filter={quoted(reading.row_filter)}: mend the condition")


def _rows(path: str, key: tuple, wanted: Sequence[Column], reading: Reading) -> Iterator[pa.RecordBatch]:
    """Yield the rows that a path names, in their order, and keep them."""
    billed, rest = _rest_client(path, reading)
    tables = _find(rest, path, reading, wanted)
    folder = _folder(tables, key, reading)
    storage = _storage_client()
    try:
        if folder:
            yield from _in_shares(storage, path, folder, tables, wanted, billed, reading)
            _kept[key] = functools.partial(_shared.kept, folder, sum(table.size for table in tables))
        else:
            yield from _keeping(key, in_order(_download(storage, path, tables, wanted, billed, reading.row_filter), LIMIT))
    finally:
        storage.transport.close()  # also ends the calls of streams that nobody reads on


def _folder(tables: Sequence[_Table], key: tuple, reading: Reading) -> str | None:
    """Return the folder of these very rows, as the tables' metadata tell; None where they are not to be kept for others."""
    streamed = any(table.rows is None for table in tables)  # there are rows of which the metadata know nothing yet
    if not reading.folder or (streamed and not reading.job):
        return None
    made_of = [_facts(tables), key[1:], [(table.names, table.kinds) for table in tables], reading.job if streamed else None]
    name = hashlib.sha256(json.dumps(made_of, default=dict).encode()).hexdigest()[:24]
    return os.path.join(reading.folder, f"bigquery-{name}")


def count(path: str, reading: Reading) -> int | None:
    """Return the number of rows by the tables' metadata; None where only reading tells: with a filter, or rows streamed in of late.

    Raises:
        UserError: as `read`.
    """
    if reading.row_filter:
        return None
    with _explained(path, reading):
        found = [table.rows for table in _find(_rest_client(path, reading)[1], path, reading, ())]
    return None if None in found else sum(found)


def fingerprint(path: str, reading: Reading) -> dict[str, Any]:
    """Describe tables as `data.fingerprint` does files: path, bytes and a SHA-256 of what their metadata says (not of their rows)."""
    with _explained(path, reading):
        tables = _find(_rest_client(path, reading)[1], path, reading, ())
    digest = hashlib.sha256(json.dumps([_facts(tables), reading.row_filter]).encode())
    return {"path": path, "bytes": sum(table.size for table in tables), "sha256": digest.hexdigest()}


def _facts(tables: Sequence[_Table]) -> list[tuple]:
    return [(str(table), table.rows, table.size, table.modified) for table in tables]


# ------------------------------------------------------------------ rows that were read before

_kept: dict[tuple, Callable[[], Iterator[pa.RecordBatch]]] = {}


def _keeping(key: tuple, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Pass rows on, and keep them in a file without a name, which is gone with the process however that ends.

    Each pass over the rows must find the same ones, and the service charges for every byte that it sends.
    """
    with tempfile.TemporaryFile() as file:
        writer, room = None, True
        for batch in batches:
            if room:
                writer = writer or pa.ipc.new_stream(file, batch.schema)
                room = _fits(file, lambda: writer.write_batch(batch))
            yield batch

        def finish() -> None:
            writer.close()
            file.flush()

        if writer is not None and room and _fits(file, finish):
            _kept[key] = functools.partial(_reread, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _fits(file: Any, write: Callable[[], object]) -> bool:
    """Write, and tell whether there was room; where not, what was written is given up: the sorting needs it more."""
    try:
        write()
    except OSError as error:
        log("WARNING", f"no room in TMPDIR={tempfile.gettempdir()} for the rows ({_line(error)[:80]}): each pass reads them. Name another")
        os.ftruncate(file.fileno(), 0)
        return False
    return True


def _reread(kept: mmap.mmap) -> Iterator[pa.RecordBatch]:
    yield from pa.ipc.open_stream(pa.py_buffer(kept))


# ------------------------------------------------------------------ the service's clients and what they say


def _rest_client(path: str, reading: Reading) -> tuple[str, Any]:
    """Return (the project that reading is billed to, a client for metadata)."""
    try:
        import google.cloud.bigquery as bigquery
        import google.cloud.bigquery_storage_v1  # noqa: F401  (so that what is missing is said at once)
    except ImportError as error:
        packages = "google-cloud-bigquery google-cloud-bigquery-storage"
        raise UserError(f"{path}: reading BigQuery needs a package that is not here ({error}): pip install {packages}.") from None
    project = _project(reading) or _parts(path.split(",")[0], reading)[0]
    if not _local():
        return project, bigquery.Client(project=project)
    from google.auth.credentials import AnonymousCredentials

    return project, bigquery.Client(project=project, credentials=AnonymousCredentials())


def _storage_client() -> Any:
    from google.cloud.bigquery_storage_v1.services.big_query_read import BigQueryReadClient

    if not _local():
        return BigQueryReadClient()
    import grpc
    from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

    options = [("grpc.max_receive_message_length", -1)]
    return BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=grpc.insecure_channel(os.environ[STORAGE], options)))


def _local() -> bool:
    """Tell whether a service on this machine stands in for BigQuery; half of one, or one elsewhere, is an error."""
    given = {name: os.environ.get(name, "") for name in (REST, STORAGE)}
    for name, value in given.items():
        if any(given.values()) and not re.fullmatch(r"(http://)?(127\.\d+\.\d+\.\d+|localhost|\[::1\]):\d+/?", value):
            example = "http://127.0.0.1:9050" if name == REST else "127.0.0.1:9060"
            raise UserError(f"{name} must be an address on this machine such as {example}; got {quoted(value)}. Set {REST} and {STORAGE}.")
    return any(given.values())


def _project(reading: Reading) -> str | None:
    return reading.project or os.environ.get("CLOUD_ML_PROJECT_ID") or os.environ.get("GOOGLE_CLOUD_PROJECT") or None


@contextlib.contextmanager
def _explained(path: str, reading: Reading) -> Iterator[None]:
    """Turn what the clients raise into one line that names the table and the remedy."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if _is_network(error):
            raise _unreachable(path, error) from None
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOENT):
            raise
        what = f"cannot write to {os.environ.get('TMPDIR') or tempfile.tempdir}, where its rows are sorted ({_line(error)[:120]})"
        raise UserError(f"{path}: {what}. Set TMPDIR to a folder with room, or read less by --row_filter.", FAILED) from None
    except Exception as error:
        known = _explanation(path, reading, error)
        if known is None:
            raise
        raise known from None


def _is_network(error: OSError) -> bool:
    return isinstance(error, ConnectionError) or type(error).__module__.startswith("requests")


def _unreachable(path: str, error: object) -> UserError:
    return UserError(f"{path}: BigQuery does not answer ({_line(error)}). Look at the network and its firewall, then start again.", FAILED)


def _explanation(path: str, reading: Reading, error: Exception) -> UserError | None:
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    said = _line(getattr(error, "message", "") or error)
    if isinstance(error, (GoogleAuthError, exceptions.Unauthorized)):
        remedy = "Run `gcloud auth application-default login`, or give the job a service account"
        return UserError(f"{path}: no valid credentials for BigQuery ({said}). {remedy}.")
    if isinstance(error, exceptions.Forbidden):
        remedy = "Grant roles/bigquery.dataViewer on the dataset and roles/bigquery.readSessionUser on the project that pays"
        return UserError(f"{path}: no permission ({said}). {remedy} ({_project(reading) or 'the table’s'}).")
    if isinstance(error, exceptions.NotFound):
        return UserError(f"{path}: there is no such table ({said}). Look at project, dataset and table.")
    if isinstance(error, exceptions.BadRequest):
        where = f"--row_filter={quoted(reading.row_filter)}: " if reading.row_filter else ""
        return UserError(
            f"{path}: {where}BigQuery cannot read this ({said}). Mend {'the condition' if where else 'the table or its name'}."
        )
    if isinstance(error, (exceptions.RetryError, exceptions.GoogleAPICallError)):
        return _unreachable(path, said)
    return None


def _line(text: object) -> str:
    """Return a service's message on one line, without its web address."""
    return re.sub(r"^(GET|POST) \S+: ", "", " ".join(str(text).split()))[:200].rstrip(".")


# ------------------------------------------------------------------ which tables, and whether they hold the columns


def _parts(path: str, reading: Reading) -> tuple[str, str, str]:
    """Return the project, dataset and table that a path names; a project may have a domain: `example.com:project`."""
    text = path.removeprefix("bq://")
    found = re.fullmatch(r"(?:((?:[a-z0-9.-]+:)?[a-z0-9-]+)[.:])?(\w+)\.([\w *-]+)", text)
    if "$" in text:
        raise UserError(f"{path}: a partition cannot be named. Name the table, and the partition by --row_filter.")
    if not found:
        raise UserError(f"{path}: a table must be named as bq://project.dataset.table.")
    project = found[1] or _project(reading)
    if not project:
        raise UserError(f"{path} names no project. Write bq://PROJECT.{text}, or set GOOGLE_CLOUD_PROJECT.")
    return project, found[2], found[3]


def _find(client: Any, path: str, reading: Reading, wanted: Sequence[Column]) -> list[_Table]:
    """Return the tables that a path names, sorted by name, each checked for the columns wanted.

    Raises:
        UserError: there is no such table, or it lacks a column or has it in a type that cannot be read.
    """
    from google.api_core.exceptions import NotFound

    found: dict[tuple[str, str, str], Any] = {}
    for part in filter(None, path.split(",")):
        project, dataset, name = _parts(part, reading)
        try:
            names = [name]
            if "*" in name:
                names = [each for each in _listed(client, project, dataset) if _matches(name, each)]
            for each in names:
                found[project, dataset, each] = client.get_table(f"{project}.{dataset}.{each}", retry=_retry(), timeout=60)
        except NotFound:
            names = []
        if not names:
            raise UserError(f"{part}: there is no such table in the dataset {dataset} of {project}{_others(client, project, dataset)}.")
    tables = [_checked(key, found[key], wanted) for key in sorted(found)]
    for table in tables:
        if odd := [name for name, kind in table.kinds.items() if kind != tables[0].kinds[name]]:
            raise UserError(f"{table}: the column {odd[0]} is not of the type that it has in {tables[0]}. Name tables of one kind.")
    return tables


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def _listed(client: Any, project: str, dataset: str) -> list[str]:
    return [item.table_id for item in client.list_tables(f"{project}.{dataset}", retry=_retry(), timeout=60)]


def _others(client: Any, project: str, dataset: str) -> str:
    """Return what a dataset has instead, for a message."""
    try:
        names = sorted(_listed(client, project, dataset))
    except Exception:  # said beside an error that stands: it must not replace it
        return ", or no such dataset. Look at its name"
    return f"; it has {', '.join(names[:8])}{' …' if len(names) > 8 else ''}" if names else "; it is empty. Name another"


def _retry() -> Any:
    from google.api_core import retry

    return retry.Retry(predicate=_is_transient, initial=WAIT, maximum=10 * WAIT, timeout=60 * WAIT)


def _checked(key: tuple[str, str, str], table: Any, wanted: Sequence[Column]) -> _Table:
    """Check the columns of a table against those wanted; names are equal whatever their case, as in SQL."""
    fields = {field.name.casefold(): field for field in table.schema}
    rows = None if table.streaming_buffer is not None else table.num_rows
    numbers = [column.name for column in wanted if isinstance(column, Number)]
    names = {column.name: fields[column.name.casefold()].name for column in wanted if column.name.casefold() in fields}
    kinds = {name: _given(fields[name.casefold()].field_type, name in numbers) for name in names}
    found = _Table(*key, rows, table.num_bytes or 0, str(table.modified), names, kinds)
    if table.table_type in ("VIEW", "MATERIALIZED_VIEW"):
        raise UserError(f"{found} is a view, and only tables can be read. Make one of it: CREATE TABLE … AS SELECT * FROM {key[2]}.")
    if missing := [column.name for column in wanted if column.name not in names]:
        there = ", ".join(field.name for field in table.schema)
        raise UserError(f"{found} lacks {', '.join(missing)}; it has {there[:200]}. Name another table, or rename its columns.")
    for column in wanted:
        field = fields[column.name.casefold()]
        kind = field.field_type if field.mode != "REPEATED" else f"ARRAY of {field.field_type}"
        needs = "numbers" if isinstance(column, Number) else "text"
        readable: tuple[str, ...] = NUMBERS if isinstance(column, Number) else TEXTS
        if isinstance(column, Image):
            readable, needs = ("BYTES",), "bytes"
        elif isinstance(column, Date) and column.time and kind == "DATE":
            readable, needs = (), "a time of day"
        if kind not in readable:
            raise UserError(f"{found}: the column {field.name} is of type {kind}, and the trainer needs {needs}. {REMEDY}.")
    return found


def _given(kind: str, number: bool) -> str:
    """Return what cells of a BigQuery type are given as: bytes, text or numbers."""
    return {"BYTES": "bytes", "STRING": "text"}.get(kind, "numbers" if number else "text")


# ------------------------------------------------------------------ rows from the service


def _is_transient(error: BaseException) -> bool:
    """Tell whether the same request may do later."""
    from google.api_core import exceptions as api
    from requests.exceptions import ConnectionError as NoConnection

    passing = (api.ServiceUnavailable, api.Aborted, api.DeadlineExceeded, api.InternalServerError, api.Unknown)
    return isinstance(error, (*passing, api.TooManyRequests, api.BadGateway, api.GatewayTimeout, NoConnection))


def _download(
    client: Any, path: str, tables: Sequence[_Table], wanted: Sequence[Column], billed: str, row_filter: str
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of tables in no order, with their hashes, while threads read as many streams as the service gives."""
    streams, _ = _streams(client, tables, billed, row_filter)
    total = _total(tables, row_filter)
    of = "" if total is None else f" of {total:,}"
    stop = threading.Event()

    def read(table: _Table, schema: bytes, name: str) -> Iterator[pa.RecordBatch]:
        return (_converted(batch, table, wanted) for batch in _stream(client, table, schema, name, stop))

    jobs = [functools.partial(read, *stream) for stream in streams]
    rows, said = 0, time.monotonic()
    for batch in merged(jobs, MOST_STREAMS, stop):
        rows += batch.num_rows
        if time.monotonic() - said > 10:
            log("INFO", f"{path}: {rows:,}{of} rows read in {len(streams)} streams")
            said = time.monotonic()
        yield batch
    _see_total(path, rows, total)


def _total(tables: Sequence[_Table], row_filter: str) -> int | None:
    known = [table.rows for table in tables]
    return None if row_filter or None in known else sum(known)


def _see_total(path: str, rows: int, total: int | None) -> None:
    if total not in (None, rows):
        log("WARNING", f"{path}: {rows:,} rows came, and the table had {total:,} when its schema was read. Was it written to meanwhile?")


def _in_shares(
    client: Any, path: str, folder: str, tables: Sequence[_Table], wanted: Sequence[Column], billed: str, reading: Reading
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of tables in their order; this process reads a share of them, or none where others have read all."""
    stop, read = threading.Event(), []

    def begin() -> dict[str, Any]:
        found, expires = _streams(client, tables, billed, reading.row_filter)
        streams = [(tables.index(table), base64.b64encode(schema).decode(), name) for table, schema, name in found]
        return {"streams": streams, "expires": expires}

    def rows(session: Mapping[str, Any], i: int) -> Iterator[pa.RecordBatch]:
        place, schema, name = session["streams"][i]
        read.append(i)
        for batch in _stream(client, tables[place], base64.b64decode(schema), name, stop):
            yield _converted(batch, tables[place], wanted)

    total = 0
    try:
        for batch in _shared.in_shares(folder, reading.part, begin, rows, sum(table.size for table in tables), LIMIT, stop):
            total += batch.num_rows
            yield batch
    except OSError as error:
        if _is_network(error):
            raise
        raise UserError(f"{path}: cannot keep its rows in {folder} ({_line(error)[:120]}). Name a folder with room: --cache_dir.") from None
    finally:
        stop.set()
    if read:
        log("INFO", f"{path}: of its streams this process has read {len(read)}; all {total:,} rows are kept in {folder}")
        _see_total(path, total, _total(tables, reading.row_filter))


def _streams(client: Any, tables: Sequence[_Table], billed: str, row_filter: str) -> tuple[list[tuple[_Table, bytes, str]], float]:
    """Open the sessions of tables; return (table, schema, name) of each stream, and when the first session expires, 0 if never."""

    def session(table: _Table) -> Any:
        with _explained(str(table), Reading(row_filter=row_filter, project=billed)):
            return _session(client, table, billed, row_filter)

    with ThreadPoolExecutor(8) as pool:  # all sessions at once: each shows its table as it is now
        sessions = list(pool.map(session, tables))
    streams = [
        (table, made.arrow_schema.serialized_schema, stream.name) for table, made in zip(tables, sessions) for stream in made.streams
    ]
    ends = [made.expire_time.timestamp() for made in sessions if made.expire_time]
    return streams, min((end for end in ends if end > 0), default=0.0)


def _session(client: Any, table: _Table, billed: str, row_filter: str) -> Any:
    from google.cloud.bigquery_storage_v1 import types

    options = types.ReadSession.TableReadOptions(selected_fields=list(table.names.values()), row_restriction=row_filter)
    name = f"projects/{table.project}/datasets/{table.dataset}/tables/{table.name}"
    asked = types.ReadSession(table=name, data_format=types.DataFormat.ARROW, read_options=options)
    parent = f"projects/{billed}"
    return client.create_read_session(parent=parent, read_session=asked, max_stream_count=MOST_STREAMS, retry=_retry(), timeout=60)


def _stream(client: Any, table: _Table, schema: bytes, name: str, stop: threading.Event) -> Iterator[pa.RecordBatch]:
    """Yield a stream's batches; where it is cut, go on from the first row that did not arrive."""
    layout, offset, failures = pa.ipc.read_schema(pa.py_buffer(schema)), 0, 0
    while not stop.is_set():
        try:
            for response in client.read_rows(read_stream=name, offset=offset, retry=None, timeout=CALL_SECONDS):
                batch = pa.ipc.read_record_batch(pa.py_buffer(response.arrow_record_batch.serialized_record_batch), layout)
                offset, failures = offset + batch.num_rows, 0
                if batch.num_rows:
                    yield batch
            return
        except Exception as error:
            failures += 1
            if not _is_transient(error) or failures >= TRIES:
                raise
            log("WARNING", f"{table}: a stream was cut after {offset:,} rows ({_line(error)[:80]}); it goes on from there")
        stop.wait(WAIT * min(32, 2 ** (failures - 1)))


# ------------------------------------------------------------------ cells


def _converted(batch: pa.RecordBatch, table: _Table, wanted: Sequence[Column]) -> pa.RecordBatch:
    """Return the columns wanted, by the trainer's names and in its types, and a last column of hashes."""
    arrays = {column.name: _cells(batch.column(table.names[column.name]), isinstance(column, Number)) for column in wanted}
    hashes = np.zeros(batch.num_rows, np.uint64)
    for name, values in arrays.items():
        seed = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), np.uint64)
        hashes ^= mix(hash_cells(values) ^ seed)
    return pa.RecordBatch.from_arrays([*arrays.values(), pa.array(hashes)], [*arrays, HASH])


def _cells(values: pa.Array, number: bool) -> pa.Array:
    """Return one column's cells: numbers as float64 where they are to be numbers, all else as text or bytes."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return values
    if number:
        return values.cast(pa.uint8()).cast(pa.float64()) if pa.types.is_boolean(kind) else values.cast(pa.float64(), safe=False)
    if pa.types.is_timestamp(kind):
        return _times(values)
    if pa.types.is_decimal(kind):  # Arrow would write 1E-7, and the zeros up to the type's scale
        texts = [None if value is None else f"{value:f}" for value in values.to_pylist()]
        return pa.array([text.rstrip("0").rstrip(".") if text and "." in text else text for text in texts], pa.string())
    if pa.types.is_floating(kind):
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def _times(values: pa.Array) -> pa.Array:
    """Write times as BigQuery does: a fraction only where there is one, UTC where the column is of a point in time."""
    text = values.cast(pa.timestamp("us")).cast(pa.string())
    text = pc.replace_substring_regex(text, pattern=r"(\.\d*?)0+$", replacement=r"\1")
    text = pc.replace_substring_regex(text, pattern=r"\.$", replacement="")
    return text if values.type.tz is None else pc.binary_join_element_wise(text, "UTC", " ")
