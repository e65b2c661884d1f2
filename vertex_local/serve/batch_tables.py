"""Tables of a batch prediction: a BigQuery table's rows as instances, predictions and errors as tables; see datasets/bigquery.py."""

from __future__ import annotations

import datetime
import decimal
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..datasets import bigquery
from ..datasets.dataset import DatasetError
from . import batch
from .exports import errors
from .instances import Config, Instance, Unreadable
from .rest import ApiError

FORMAT = "bigquery"
PREDICTION, ERRORS, KEY = "prediction", "errors", "key"  # columns that are not the instances'
SOURCE, DESTINATION = "inputConfig.bigquerySource", "outputConfig.bigqueryDestination"
ROWS = 1_000  # that wait to be written
_PROJECT = r"(?:[a-z][a-z0-9.-]*:)?[a-z][a-z0-9-]*"


class Table:
    """The table that instances come from.

    Raises:
        ApiError: there is none of that name, or no stand-in for BigQuery.
    """

    def __init__(self, uri: str):
        if not re.fullmatch(rf"bq://{_PROJECT}\.\w+\.[\w-]+", uri):
            path = f"{SOURCE}.inputUri"
            raise ApiError("INVALID_ARGUMENT", f"{path} takes bq://project.dataset.table; got {uri[:100]!r}.", path)
        with errors(SOURCE):
            self._source = bigquery.TableSource(uri)
        self.uri, self.schema, self.location = uri, self._source.table.schema, self._source.table.location
        self.arrow: Any = None  # the rows' schema in Arrow, once some were read

    @property
    def about(self) -> str:
        """What there is to read, for the log."""
        return f"{self.uri}: {self._source.table.num_rows or 0:,} rows"

    def instances(self) -> Iterator[Instance]:
        """Yield the rows as instances; raise Unreadable where the rest cannot be read."""
        number = 0
        try:
            for each in self._source.batches():
                self.arrow, size = each.schema, each.nbytes // max(1, each.num_rows)
                for row in each.to_pylist():
                    number += 1
                    yield Instance({name: as_json(value) for name, value in row.items()}, f"{self.uri}: row {number}", size, row=row)
        except DatasetError as error:
            raise Unreadable(str(error)) from None


def as_json(value: Any) -> Any:
    """Return a cell as a request holds it: bytes as `{"b64": …}`, times as BigQuery writes them, decimals as numbers."""
    if isinstance(value, bytes):
        return {"b64": bigquery.text(value)}
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return bigquery.text(value)
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    return [as_json(each) for each in value] if isinstance(value, list) else value


class Tables:
    """An Output: the tables of predictions and of errors, which are made at the end, of what has come until then.

    Args:
        uri: `bq://project`, in which a dataset is made, or `bq://project.dataset`, in which the tables are.
        title: a name of the model's.
        time: when the job was made, in RFC 3339.
        table: where the instances come from, whose columns the tables repeat; None: another place.

    Raises:
        ApiError: there is no such dataset, or no stand-in for BigQuery, or a column of the instances has the name of ours.
    """

    def __init__(self, uri: str, title: str, time: str, table: Table | None, config: Config):
        field, found = f"{DESTINATION}.outputUri", re.fullmatch(rf"(?:bq://)?({_PROJECT})(?:\.(\w+))?", uri)
        if not found:
            raise ApiError("INVALID_ARGUMENT", f"{field} takes bq://project or bq://project.dataset; got {uri[:100]!r}.", field)
        project, dataset = found.groups()
        stamp = re.sub(r"\W", "_", time[:23]) + "Z"
        self._made = dataset is None
        dataset = dataset or f"prediction_{re.sub(r'[^A-Za-z0-9]+', '_', title)[:900]}_{stamp}"
        self.dataset, ending = f"bq://{project}.{dataset}", "" if self._made else f"_{stamp}"
        self.names = {PREDICTION: f"predictions{ending}", ERRORS: f"errors{ending}"}
        self._table, self._config = table, config
        self._check_columns()
        with errors(DESTINATION):
            self._client = bigquery.client(self.dataset, project)
            if not self._made:
                with bigquery.errors(self.dataset):
                    self._client.get_dataset(f"{project}.{dataset}", **bigquery.ONCE)

    def _check_columns(self) -> None:
        known = {} if self._table is None else {field.name.casefold(): field.name for field in self._table.schema}
        if key := self._config.key_field:
            if self._table is not None and key not in known.values():
                path = "instanceConfig.keyField"
                raise ApiError("INVALID_ARGUMENT", f"{path}: {self._table.uri} has no column {key[:100]!r}; name one that it has.", path)
            return
        for name in (PREDICTION, ERRORS):
            if name in known:
                text = f"{self._table.uri} has a column {known[name]}, as the predictions' tables have: rename it, or give a keyField."
                raise ApiError("INVALID_ARGUMENT", text, f"{SOURCE}.inputUri")

    def __enter__(self) -> Tables:
        self._scratch = ExitStack()
        self._folder = Path(self._scratch.enter_context(tempfile.TemporaryDirectory(prefix="vertex-batch-")))
        self._writers: dict[str, Any] = {}
        self._waiting: dict[str, list[dict[str, Any]]] = {PREDICTION: [], ERRORS: []}
        return self

    def add(self, instance: Instance, answer: Any) -> None:
        """Take a prediction, which is JSON in its column, or what failed and why."""
        kind, said = (PREDICTION, json.dumps(answer)) if not isinstance(answer, batch.Refused) else (ERRORS, _status(answer))
        self._waiting[kind].append({**self._columns(instance), kind: said})
        if len(self._waiting[kind]) >= ROWS:
            self._flush(kind)

    def _columns(self, instance: Instance) -> Mapping[str, Any]:
        """Return the instance as its columns: the table's own cells, or JSON where it comes from another place."""
        if self._table is None:
            return {name: json.dumps(value) for name, value in self._config.shown(instance.content).items()}
        return {KEY: instance.row[self._config.key_field]} if self._config.key_field else instance.row

    def _flush(self, kind: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = self._waiting[kind]
        if not rows:
            return
        if kind not in self._writers:
            types = {PREDICTION: pa.string(), ERRORS: pa.struct([("code", pa.int64()), ("message", pa.string())])}
            schema = pa.schema([*self._arrow(), pa.field(kind, types[kind])])
            self._writers[kind] = self._scratch.enter_context(pq.ParquetWriter(str(self._folder / kind), schema))
        self._writers[kind].write_table(pa.Table.from_pylist(rows, self._writers[kind].schema))
        rows.clear()

    def _arrow(self) -> list[Any]:
        import pyarrow as pa

        if self._table is None:
            return [pa.field(KEY if self._config.key_field else "instance", pa.string())]
        key = self._config.key_field
        return [self._table.arrow.field(key).with_name(KEY)] if key else list(self._table.arrow)

    def _schema(self, kind: str) -> list[Any]:
        """Return a table's schema as the service describes it."""
        from google.cloud.bigquery import SchemaField

        if self._table is None:
            columns = [SchemaField(KEY if self._config.key_field else "instance", "STRING")]
        else:
            described = [_optional(field.to_api_repr()) for field in self._table.schema]
            if key := self._config.key_field:
                described = [{**field, "name": KEY} for field in described if field["name"] == key]
            columns = [SchemaField.from_api_repr(field) for field in described]
        status = [SchemaField("code", "INTEGER"), SchemaField("message", "STRING")]
        own = {PREDICTION: SchemaField(PREDICTION, "STRING"), ERRORS: SchemaField(ERRORS, "RECORD", fields=status)}
        return [*columns, own[kind]]

    def __exit__(self, *_: object) -> None:
        from google.cloud.bigquery import Dataset

        with self._scratch, errors(DESTINATION), bigquery.errors(self.dataset):
            for kind in self._waiting:
                self._flush(kind)
            for writer in self._writers.values():
                writer.close()
            name = self.dataset.removeprefix("bq://")
            if self._made:
                made = Dataset(name)
                made.location = "US" if self._table is None else self._table.location or "US"
                self._client.create_dataset(made, **bigquery.ONCE)  # never one that exists
            for kind, table in self.names.items():
                file = str(self._folder / kind) if kind in self._writers else None
                bigquery.make_table(self._client, f"{name}.{table}", self._schema(kind), file)


def _status(text: str) -> dict[str, Any]:
    """Return the status of a row that failed, in text that a table can hold."""
    return batch.status(text.encode(errors="backslashreplace").decode())


def _optional(field: dict[str, Any]) -> dict[str, Any]:
    """Return a column's description without what holds for its own table alone."""
    names = ("name", "type", "mode", "fields", "precision", "scale", "maxLength")
    kept: dict[str, Any] = {name: field[name] for name in names if name in field}
    return {**kept, "mode": "NULLABLE" if field.get("mode") == "REQUIRED" else field.get("mode", "NULLABLE")}
