"""BigQuery as a source of rows and a destination of tables: by the real client, against a stand-in only.

A rehearsal on this machine never calls BigQuery itself: BIGQUERY_EMULATOR_HOST must name an emulator.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from ..errors import quoted
from .dataset import SETS, Dataset, DatasetError
from .rows import Cells, Row

HOST = "BIGQUERY_EMULATOR_HOST"
PAGE_ROWS = 20_000
ONCE: Any = {"retry": None, "timeout": 60}  # the clients' own retries hold a request for ten minutes where no stand-in answers


def client(uri: str, project: str) -> Any:
    """Return a client of the emulator; `uri` names, for messages, the table that needs it.

    Raises:
        DatasetError: no emulator is named, or the client is not installed.
    """
    if not os.environ.get(HOST):
        text = f"{uri}: needs BigQuery, and {HOST} names no emulator of it on this machine; set it, or give gcsSource or gcsDestination."
        raise DatasetError(text, status="UNIMPLEMENTED")
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import bigquery
    except ImportError as error:
        raise DatasetError(f"{uri}: needs the package google-cloud-bigquery: install it ({error}).", status="UNIMPLEMENTED") from None
    host = os.environ[HOST]
    endpoint = {"api_endpoint": host if "://" in host else f"http://{host}"}
    return bigquery.Client(project, credentials=AnonymousCredentials(), client_options=endpoint)


@contextlib.contextmanager
def errors(uri: str) -> Iterator[None]:
    """Turn the client's errors into one line that names what was asked for."""
    from google.api_core.exceptions import GoogleAPIError
    from requests.exceptions import RequestException

    try:
        yield
    except (GoogleAPIError, RequestException) as error:
        missing = getattr(error, "code", None) == 404
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise DatasetError(f"{uri}: {os.environ.get(HOST)} answered: {first}", status="NOT_FOUND" if missing else "UNAVAILABLE") from None


class TableSource(Cells):
    """A table's rows, with the cells that BigQuery's own export to CSV would write."""

    bytes = 0

    def __init__(self, uri: str):
        self.uri, name = uri, uri.removeprefix("bq://")
        self.client = client(self.uri, name.partition(".")[0])
        with errors(self.uri):
            self.table = self.client.get_table(name, **ONCE)
        self.columns = [field.name for field in self.table.schema]
        self.nested = [field.name for field in self.table.schema if field.field_type in ("RECORD", "STRUCT") or field.mode == "REPEATED"]

    def batches(self) -> Iterator[Any]:
        """Yield the table as Arrow record batches."""
        with errors(self.uri):
            yield from self.client.list_rows(self.table, page_size=PAGE_ROWS, **ONCE).to_arrow_iterable()

    def rows(self) -> Iterator[Row]:
        """Yield every row as text.

        Raises:
            DatasetError: a column has records or lists, which CSV cannot hold.
        """
        if self.nested:
            raise DatasetError(
                f"{self.uri}: column {self.nested[0]} has records or lists, which CSV cannot hold; give bigqueryDestination."
            )
        number = 0
        for batch in self.batches():
            yield from self.texts(batch, number)
            number += batch.num_rows

    def texts(self, batch: Any, number: int) -> Iterator[Row]:
        """Yield the rows of a batch whose first row is that `number` of the table."""
        columns = [[text(value) for value in column.to_pylist()] for column in batch.columns]
        for i, cells in enumerate(zip(*columns, strict=True), number + 1):
            yield Row("\x1f".join(cells), list(cells), self.uri, i)


def text(value: Any) -> str:
    """Return a cell as BigQuery writes it into CSV."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).replace(tzinfo=None).isoformat(" ") + " UTC" if value.tzinfo else value.isoformat()
    return str(value)


def destination(dataset: Dataset, wish: Mapping[str, Any]) -> str:
    """Return the project of a `bigqueryDestination`; raise a DatasetError unless the data set comes from BigQuery."""
    uri = wish.get("outputUri", "")
    found = re.fullmatch(r"bq://([a-z][a-z0-9:.-]*[a-z0-9])", uri)
    if not found:
        raise DatasetError(f"bigqueryDestination.outputUri takes bq://project; got {quoted(uri)}.", "bigqueryDestination.outputUri")
    if not dataset.table:
        text = "bigqueryDestination is for tabular data sets with a BigQuery source; this one takes gcsDestination."
        raise DatasetError(text, "bigqueryDestination")
    return found[1]


def write(
    source: TableSource, assign: Callable[[Row], int | None], project: str, name: str, tick: Callable[[int], None],
    check: Callable[[list[int]], None],
) -> list[int]:  # fmt: skip
    """Make the dataset `name` with the tables training, validation and test; the rows keep their types. Return the sets' sizes.

    Args:
        tick: called with the number of rows read, after each batch.
        check: called with the sizes before anything is made; it may raise.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts, number = [0] * len(SETS), 0
    with tempfile.TemporaryDirectory(prefix="vertex-dataset-") as scratch, contextlib.ExitStack() as opened:
        files, writers = [f"{scratch}/{each}" for each in SETS], []
        for batch in source.batches():
            writers = writers or [opened.enter_context(pq.ParquetWriter(file, batch.schema)) for file in files]
            places = [assign(row) for row in source.texts(batch, number)]
            for place, writer in enumerate(writers):
                chosen = batch.filter(pa.array([found == place for found in places]))
                if chosen.num_rows:
                    writer.write_batch(chosen)
                    counts[place] += chosen.num_rows
            number += batch.num_rows
            tick(number)
        opened.close()
        check(counts)
        with errors(f"bq://{project}.{name}"):
            _load(source, f"{project}.{name}", [file if count else None for file, count in zip(files, counts)])
    return counts


def _load(source: TableSource, name: str, files: Sequence[str | None]) -> None:
    """Make the dataset with a table for each set."""
    from google.cloud import bigquery

    made = bigquery.Dataset(name)
    made.location = source.table.location or "US"  # a query over both needs them in one place
    source.client.create_dataset(made, **ONCE)  # never one that exists
    try:
        for each, file in zip(SETS, files):
            make_table(source.client, f"{name}.{each}", source.table.schema, file)
    except BaseException:
        source.client.delete_dataset(made, delete_contents=True, not_found_ok=True)
        raise


def make_table(client: Any, name: str, schema: Sequence[Any], file: str | None) -> None:
    """Create a table, which must not exist, and load a Parquet file into it; None leaves it empty."""
    from google.cloud import bigquery

    table = client.create_table(bigquery.Table(name, schema=schema), **ONCE)
    if file is None:
        return
    how = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_APPEND", schema=schema)
    how.parquet_options = bigquery.ParquetOptions()
    how.parquet_options.enable_list_inference = True
    with open(file, "rb") as content:
        client.load_table_from_file(content, table.reference, job_config=how, project=table.project).result()
