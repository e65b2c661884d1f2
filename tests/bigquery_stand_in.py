"""A small BigQuery for tests: the REST calls for tables and the Storage Read API by gRPC, with faults on demand.

It is spoken to by Google's own clients, and speaks their own types. What it was asked for is kept in `sessions` and `reads`.
"""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.cloud.bigquery_storage_v1 import types

SERVICE = "google.cloud.bigquery.storage.v1.BigQueryRead"
COMPARISONS = {
    "=": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


@dataclass
class Behaviour:
    """What tests set: how tables are split, and what goes wrong."""

    tables: dict[tuple[str, str, str], pa.Table] = field(default_factory=dict)
    views: set[str] = field(default_factory=set)
    streams: int = 1
    empty_streams: int = 0
    batch_rows: int = 100
    deal: int | None = None  # seed of an order in which rows are dealt to the streams; None: as they are
    cuts: dict[int, list[tuple[int, grpc.StatusCode]]] = field(default_factory=dict)  # stream -> (after rows, code), one by one
    refused: tuple[int, str] | None = None  # status and message of every REST call
    session_refused: tuple[grpc.StatusCode, str] | None = None
    sessions: list[types.CreateReadSessionRequest] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)  # (stream, offset)
    rows_sent: int = 0
    hold: threading.Event | None = None  # streams go on after their first batch once it is set


class StandIn:
    """The server; `with StandIn() as service:` runs it, `service.behaviour = Behaviour()` makes it as new."""

    def __init__(self) -> None:
        self.behaviour, self.lock, self.content = Behaviour(), threading.Lock(), {}

    def __enter__(self) -> StandIn:
        self.rest = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Rest,), {"service": self}))
        threading.Thread(target=self.rest.serve_forever, args=(0.05,), daemon=True).start()
        self.grpc = grpc.server(ThreadPoolExecutor(20))
        handlers = {
            "CreateReadSession": grpc.unary_unary_rpc_method_handler(
                self.create, types.CreateReadSessionRequest.deserialize, types.ReadSession.serialize
            ),
            "ReadRows": grpc.unary_stream_rpc_method_handler(
                self.read, types.ReadRowsRequest.deserialize, types.ReadRowsResponse.serialize
            ),
        }
        self.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.grpc.start()
        self.environment = {
            "BIGQUERY_EMULATOR_HOST": f"http://127.0.0.1:{self.rest.server_port}",
            "BIGQUERY_STORAGE_EMULATOR_HOST": f"127.0.0.1:{port}",
        }
        return self

    def __exit__(self, *_: object) -> None:
        self.rest.shutdown()
        self.rest.server_close()
        self.grpc.stop(None)

    def create(self, request: types.CreateReadSessionRequest, context: grpc.ServicerContext) -> types.ReadSession:
        """Split a table's rows, as filtered, into streams."""
        asked = request.read_session
        with self.lock:
            self.behaviour.sessions.append(request)
            number = len(self.behaviour.sessions)
        if self.behaviour.session_refused:
            context.abort(*self.behaviour.session_refused)
        key = re.fullmatch(r"projects/(.+)/datasets/(.+)/tables/(.+)", asked.table).groups()
        table = self.behaviour.tables[key]
        if asked.read_options.row_restriction:
            try:
                table = table.filter(restriction(table, asked.read_options.row_restriction))
            except (KeyError, ValueError, pa.ArrowException) as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"request failed: {error}")
        table = table.select(list(asked.read_options.selected_fields))
        if self.behaviour.deal is not None:
            table = table.take(np.random.default_rng(self.behaviour.deal).permutation(table.num_rows))
        count = min(self.behaviour.streams, request.max_stream_count)
        edges = np.linspace(0, table.num_rows, count + 1).astype(int)
        parts = [table.slice(start, end - start) for start, end in zip(edges, edges[1:])] if table.num_rows else []
        parts += [table.slice(0, 0)] * self.behaviour.empty_streams
        names = [f"{request.parent}/locations/us/sessions/{number}/streams/{i}" for i in range(len(parts))]
        self.content |= dict(zip(names, parts))
        return types.ReadSession(
            name=f"{request.parent}/locations/us/sessions/{number}", table=asked.table, data_format=asked.data_format,
            arrow_schema=types.ArrowSchema(serialized_schema=table.schema.serialize().to_pybytes()),
            streams=[types.ReadStream(name=name) for name in names],
        )  # fmt: skip

    def read(self, request: types.ReadRowsRequest, context: grpc.ServicerContext) -> Any:
        """Send a stream's rows from the offset on, up to a cut where one is due."""
        stream = int(request.read_stream.rpartition("/")[2])
        table = self.content[request.read_stream].slice(request.offset)
        with self.lock:
            self.behaviour.reads.append((stream, request.offset))
            due = self.behaviour.cuts.get(stream)
            after, code = due.pop(0) if due else (None, None)
        for batch in table.slice(0, after).combine_chunks().to_batches(max_chunksize=self.behaviour.batch_rows):
            with self.lock:
                self.behaviour.rows_sent += batch.num_rows
            content = types.ArrowRecordBatch(serialized_record_batch=batch.serialize().to_pybytes())
            yield types.ReadRowsResponse(arrow_record_batch=content, row_count=batch.num_rows)
            if self.behaviour.hold is not None:
                self.behaviour.hold.wait(60)
        if code is not None:
            context.abort(code, "cut by the test")


def restriction(table: pa.Table, text: str) -> pa.ChunkedArray:
    """Return which rows meet conditions such as `fare > 2.5 AND payment = 'card'`."""
    found = None
    for part in re.split(r"\s+AND\s+", text):
        asked = re.fullmatch(r"(\w+)\s*(=|!=|<=|<|>=|>)\s*(.+)", part)
        if not asked:
            raise ValueError(f"Syntax error: {part}")
        name, comparison, value = asked.groups()
        if name not in table.column_names:
            raise KeyError(f"Unrecognized name: {name}")
        literal = value[1:-1] if value.startswith("'") else float(value)
        meets = COMPARISONS[comparison](table[name], literal)
        found = meets if found is None else pc.and_(found, meets)
    return found


def field_of(entry: pa.Field) -> dict[str, str]:
    """Return a column as the REST API describes it."""
    kind, mode = entry.type, "NULLABLE"
    if pa.types.is_list(kind):
        kind, mode = kind.value_type, "REPEATED"
    if pa.types.is_timestamp(kind):
        return {"name": entry.name, "mode": mode, "type": "TIMESTAMP" if kind.tz else "DATETIME"}
    names = {
        "int64": "INTEGER", "double": "FLOAT", "string": "STRING", "bool": "BOOLEAN", "binary": "BYTES", "date32[day]": "DATE",
        "time64[us]": "TIME", "decimal128(38, 9)": "NUMERIC", "decimal256(76, 38)": "BIGNUMERIC",
    }  # fmt: skip
    return {"name": entry.name, "mode": mode, "type": names.get(str(kind), "RECORD")}


class _Rest(BaseHTTPRequestHandler):
    service: StandIn

    def do_GET(self) -> None:
        behaviour = self.service.behaviour
        if behaviour.refused:
            return self.refuse(*behaviour.refused)
        found = re.fullmatch(r"/bigquery/v2/projects/([^/]+)/datasets/([^/]+)/tables(?:/([^/]+))?", self.path.partition("?")[0])
        project, dataset, name = found.groups() if found else ("", "", "")
        names = [key[2] for key in behaviour.tables if key[:2] == (project, dataset)]
        if name is None and names:
            items = [{"tableReference": {"projectId": project, "datasetId": dataset, "tableId": each}} for each in names]
            return self.answer(200, {"tables": items, "totalItems": len(items)})
        if name not in names:
            return self.refuse(404, f"Not found: {'Table' if names else 'Dataset'} {project}:{dataset}.{name}")
        table = behaviour.tables[project, dataset, name]
        self.answer(200, {
            "tableReference": {"projectId": project, "datasetId": dataset, "tableId": name},
            "type": "VIEW" if name in behaviour.views else "TABLE", "numRows": str(table.num_rows), "numBytes": str(table.nbytes),
            "lastModifiedTime": "1700000000000", "schema": {"fields": [field_of(entry) for entry in table.schema]},
        })  # fmt: skip

    def refuse(self, status: int, message: str) -> None:
        reason = {403: "accessDenied", 404: "notFound"}.get(status, "backendError")
        self.answer(status, {"error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
