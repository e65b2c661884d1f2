"""A small BigQuery for tests: as much of its REST as reads tables, makes them and loads Parquet into them."""

from __future__ import annotations

import base64
import datetime
import io
import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

PROJECT = "my-project"
START = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)


class StandIn(BaseHTTPRequestHandler):
    """Tables in memory: get, list rows, create, load Parquet, delete. `refuses` is a table that no load may go to."""

    tables: dict[str, tuple[list, pa.Table | None]] = {}
    datasets: list[str] = []
    uploads: dict[str, tuple[str, bytes]] = {}
    refuses = ""

    def log_message(self, *args: object) -> None:
        """Stay quiet."""

    def answer(self, body: dict, code: int = 200, **headers: str) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if "/jobs/" in url.path:
            return self.answer(self.job(url.path.rpartition("/")[2]))
        name = ".".join(re.findall(r"(?:datasets|tables)/([^/]+)", url.path))
        if "/tables" not in url.path and any(each.startswith(f"{name}@") for each in self.datasets):
            return self.answer({"datasetReference": {"projectId": PROJECT, "datasetId": name}})
        if name not in self.tables:
            return self.answer({"error": {"code": 404, "message": f"Not found: Table {PROJECT}:{name}"}}, 404)
        schema, rows = self.tables[name]
        if not url.path.endswith("/data"):
            where = dict(zip(("datasetId", "tableId"), name.split("."), strict=True))
            about = {"tableReference": {"projectId": PROJECT, **where}, "schema": {"fields": schema}, "location": "EU"}
            return self.answer({**about, "numRows": str(rows.num_rows if rows else 0)})
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        if rows is None:
            return self.answer({"totalRows": "0"})
        start, most = int(query.get("pageToken") or query.get("startIndex") or 0), min(int(query.get("maxResults") or 200), 200)
        part = [{"f": [{"v": cell(value)} for value in row.values()]} for row in rows.slice(start, most).to_pylist()]
        more = {"pageToken": str(start + most)} if start + most < rows.num_rows else {}
        return self.answer({"totalRows": str(rows.num_rows), "rows": part, **more})

    def do_POST(self) -> None:
        url, body = urlsplit(self.path), self.body()
        if url.path.startswith("/upload/") or "/upload/" in url.path:
            key, wish = secrets.token_hex(4), json.loads(body)["configuration"]["load"]["destinationTable"]
            self.uploads[key] = (f"{wish['datasetId']}.{wish['tableId']}", b"")
            return self.answer({}, Location=f"http://{self.headers['Host']}/upload/{key}")
        wish = json.loads(body)
        if "tableReference" in wish:
            reference = wish["tableReference"]
            self.tables[f"{reference['datasetId']}.{reference['tableId']}"] = (wish["schema"]["fields"], None)
        else:
            self.datasets.append(wish["datasetReference"]["datasetId"] + "@" + wish.get("location", "EU"))
        return self.answer(wish)

    def do_PUT(self) -> None:
        key = self.path.rpartition("/")[2]
        name, before = self.uploads[key]
        self.uploads[key] = (name, before + self.body())
        if name.endswith(f".{self.refuses}"):
            return self.answer({"error": {"code": 400, "message": "the disk is full"}}, 400)
        self.tables[name] = (self.tables[name][0], pq.read_table(io.BytesIO(self.uploads[key][1])))
        return self.answer(self.job(key))

    def do_DELETE(self) -> None:
        name = self.path.partition("/datasets/")[2].partition("?")[0]
        for each in [each for each in self.tables if each.startswith(f"{name}.")]:
            del self.tables[each]
        self.datasets[:] = [each for each in self.datasets if not each.startswith(f"{name}@")]
        return self.answer({})

    def job(self, key: str) -> dict:
        reference = {"projectId": PROJECT, "jobId": key, "location": "EU"}
        return {"jobReference": reference, "configuration": {"load": {}}, "status": {"state": "DONE"}, "id": f"{PROJECT}:{key}"}


def cell(value: object) -> object:
    if isinstance(value, dict):
        return {"f": [{"v": cell(each)} for each in value.values()]}
    if isinstance(value, list):
        return [{"v": cell(each)} for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime):
        return str((value - START) // datetime.timedelta(microseconds=1) + int(START.timestamp()) * 1_000_000)
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def serving() -> Iterator[str]:
    """Run the stand-in and give its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
