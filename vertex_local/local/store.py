"""The state of everything on this machine, in SQLite: jobs, trials, pipelines, data sets, models, endpoints, operations.

A resource is one JSON document in the API's form, stored under its full name. Logs and artefacts lie in folders; all that
is looked up, listed or changed is in this file, which the commands and the service share.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError

FILE = "records.sqlite"
ORDERS = ("createTime", "updateTime", "startTime", "endTime", "displayName", "name")
_ROWS = 200  # documents that are read at a time while a page is filled
_TABLES = """
CREATE TABLE IF NOT EXISTS resources (
  name TEXT PRIMARY KEY, id TEXT NOT NULL, kind TEXT NOT NULL, parent TEXT NOT NULL, created TEXT NOT NULL, document TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_parent ON resources (kind, parent, created, name);
CREATE INDEX IF NOT EXISTS by_state ON resources (kind, parent, json_extract(document, '$.state'), created, name);
CREATE INDEX IF NOT EXISTS by_id ON resources (id);
CREATE INDEX IF NOT EXISTS by_uri ON resources (parent, json_extract(document, '$.uri')) WHERE kind = 'artifacts';
CREATE TABLE IF NOT EXISTS objects (
  bucket TEXT, name TEXT, generation INTEGER, document TEXT NOT NULL, PRIMARY KEY (bucket, name));
CREATE TABLE IF NOT EXISTS links (
  kind TEXT, source TEXT, target TEXT, document TEXT NOT NULL, PRIMARY KEY (kind, source, target)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_target ON links (kind, target, source);
CREATE TABLE IF NOT EXISTS points (
  series TEXT, step INTEGER, document TEXT NOT NULL, PRIMARY KEY (series, step)) WITHOUT ROWID;
"""
_KEPT_IN = ("resources", "objects", "links", "points")


class Taken(Exception):
    """A name that exists already."""


class BadToken(ValueError):
    """A page token that does not come from this list."""


@dataclass
class Page:
    """Documents in the order asked for, and the token of the next page; "" after the last."""

    documents: list[dict[str, Any]] = field(default_factory=list)
    token: str = ""


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: who reads it meanwhile finds the earlier text or this one."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner may read, unless it exists, and return it; missing parents are made as usual.

    Raises:
        UserError: it cannot be made, or is a file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made a folder: {error.strerror}. Name another --state_dir.") from None
    return path


class Store:
    """All records of one state folder; safe to use from several threads and processes.

    Raises:
        UserError: the folder's file is no such store, or damaged.
    """

    def __init__(self, state_dir: Path):
        path = private_folder(state_dir) / FILE
        self._lock = threading.RLock()
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # before SQLite makes it readable for everybody
        self._base = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
        try:
            for setting in ("journal_mode=WAL", "synchronous=NORMAL"):  # safe from kill -9
                self._base.execute(f"PRAGMA {setting}")
            self._base.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            self._base.close()
            raise UserError(f"{path}: holds no records of jobs: {error}. Move it away, or name another --state_dir.") from None

    def close(self) -> None:
        """Write what is left and close the file."""
        with self._lock:
            self._base.close()

    def _run(self, statement: str, *values: Any) -> list[tuple]:
        with self._lock:
            return self._base.execute(statement, values).fetchall()

    # ------------------------------------------------------------------ one resource

    def add(self, name: str, kind: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a new document and return it; raise Taken if there is one of that name."""
        parent, number = name.rpartition(f"/{kind}/")[0], name.rpartition("/")[2]
        values = (name, number, kind, parent, document.get("createTime", ""), json.dumps(document))
        try:
            self._run("INSERT INTO resources VALUES (?, ?, ?, ?, ?, ?)", *values)
        except sqlite3.IntegrityError:
            raise Taken(name) from None
        return dict(document)

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the document of that name, or None."""
        rows = self._run("SELECT document FROM resources WHERE name = ?", name)
        return json.loads(rows[0][0]) if rows else None

    def named(self, number: str, *kinds: str) -> list[dict[str, Any]]:
        """Return the documents whose id, the last part of the name, is `number`: of these kinds, by default of any."""
        rows = self._run("SELECT kind, document FROM resources WHERE id = ?", number)
        return [json.loads(document) for kind, document in rows if not kinds or kind in kinds]

    def artifacts_at(self, uri: str, store: str) -> list[dict[str, Any]]:
        """Return a metadata store's artifacts with that address, the newest first."""
        where = "kind = 'artifacts' AND parent = ? AND json_extract(document, '$.uri') = ? ORDER BY created DESC, name"
        return [json.loads(row[0]) for row in self._run(f"SELECT document FROM resources WHERE {where}", store, uri)]

    def has_id(self, number: str) -> bool:
        """Return whether any resource has that id, which is the last part of its name."""
        return bool(self._run("SELECT 1 FROM resources WHERE id = ? LIMIT 1", number))

    def change(self, name: str, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any] | None:
        """Let `change` alter the document in one transaction and return it; None if it has been deleted meanwhile.

        No other thread or process can change it in between. If `change` raises, the document stays as it was.
        """
        with self._lock, self._base:  # which commits, or takes everything back
            self._base.execute("BEGIN IMMEDIATE")
            document = self.get(name)
            if document is not None:
                change(document)
                self._run("UPDATE resources SET document = ? WHERE name = ?", json.dumps(document), name)
            return document

    def remove(self, name: str) -> bool:
        """Forget the record, but not its links; return whether there was one."""
        return bool(self._run("DELETE FROM resources WHERE name = ? RETURNING 1", name))

    def remove_below(self, name: str) -> None:
        """Forget the records, links and points of all resources whose names begin with `name/`."""
        beyond = f"{name}/", f"{name}0"  # the character after "/"
        with self._lock:
            for table, column in (("resources", "name"), ("links", "source"), ("links", "target"), ("points", "series")):
                self._run(f"DELETE FROM {table} WHERE {column} > ? AND {column} < ?", *beyond)

    def clear(self) -> None:
        """Empty all tables; folders stay."""
        for table in _KEPT_IN:
            self._run(f"DELETE FROM {table}")

    # ------------------------------------------------------------------ many

    def list(self, kind: str, parent: str | None = None, state: str | None = None) -> list[dict[str, Any]]:
        """Return all documents of a kind, of all parents or of one, in any state or in one, the oldest first."""
        where, given = _where(kind, parent, state)
        return [json.loads(row[0]) for row in self._run(f"SELECT document FROM resources WHERE {where} ORDER BY created, name", *given)]

    def count(self, kind: str, parent: str | None = None, state: str | None = None) -> int:
        """Return how many documents of a kind there are, of all parents or of one, in any state or in one."""
        where, given = _where(kind, parent, state)
        return self._run(f"SELECT count(*) FROM resources WHERE {where}", *given)[0][0]

    def parents(self, kinds: Sequence[str]) -> Sequence[str]:
        """Return the parents that documents of these kinds have, projects with their regions."""
        found = set()
        for kind in kinds:
            parent: str | None = ""
            while parent is not None:  # from one parent to the next, without reading the rows between
                found.add(parent)
                parent = self._run("SELECT min(parent) FROM resources WHERE kind = ? AND parent > ?", kind, parent)[0][0]
        return sorted(found - {""})

    def page(
        self, kind: str, parent: str, size: int, token: str = "", *, order: str = "createTime", descending: bool = True,
        state: str | None = None, link: tuple[str, str] | None = None, accepts: Callable[[dict[str, Any]], bool] | None = None,
    ) -> Page:  # fmt: skip
        """Return up to `size` documents that `accepts` accepts, and the token of the next page.

        A token names the last document of its page, so what is added, changed or removed meanwhile does not shift the rest.
        Only as many documents are read as the page needs.

        Args:
            order: one of ORDERS; a document without that field sorts as if it were empty.
            state: only documents in that state, found by an index.
            link: (kind, target): only documents that have such a link.

        Raises:
            BadToken: the token does not come from a list in this order.
        """
        after = _decoded(token, order, descending) if token else None
        found, last = Page(), ("", "")
        rows = _ROWS if accepts else min(_ROWS, size + 1)
        for key, document in self._ordered(kind, parent, (state, link), order, descending, after, rows):
            if accepts is not None and not accepts(document):
                continue
            if len(found.documents) == size:
                found.token = _encoded(last, order, descending)
                break
            found.documents.append(document)
            last = key
        return found

    def _ordered(
        self,
        kind: str,
        parent: str,
        only: tuple[str | None, tuple[str, str] | None],
        order: str,
        descending: bool,
        after: tuple[str, str] | None,
        rows_at_once: int,
    ) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
        """Yield ((order's value, name), document), reading a few rows of the file at a time."""
        value = {"createTime": "created", "name": "name"}.get(order, f"ifnull(json_extract(document, '$.{order}'), '')")
        sign, way = ("<", "DESC") if descending else (">", "ASC")
        state, link = only
        while True:
            beyond, values = (f"AND ({value}, name) {sign} (?, ?)", after) if after else ("", ())
            if state is not None:
                beyond, values = f"AND json_extract(document, '$.state') = ? {beyond}", (state, *values)
            if link is not None:
                beyond, values = f"AND name IN (SELECT source FROM links WHERE kind = ? AND target = ?) {beyond}", (*link, *values)
            rows = self._run(
                f"SELECT {value}, name, document FROM resources WHERE kind = ? AND parent = ? {beyond}"
                f" ORDER BY {value} {way}, name {way} LIMIT {rows_at_once}", kind, parent, *values,
            )  # fmt: skip
            for key, name, document in rows:
                yield (key, name), json.loads(document)
            if len(rows) < rows_at_once:
                return
            after = rows[-1][:2]

    # ------------------------------------------------------------------ links between resources

    def link(self, kind: str, source: str, target: str, document: Mapping[str, Any] | None = None) -> None:
        """Store a link of a kind from `source` to `target`, both full names, with a document about it."""
        self._run("INSERT OR REPLACE INTO links VALUES (?, ?, ?, ?)", kind, source, target, json.dumps(document or {}))

    def unlink(self, kind: str, source: str, target: str) -> None:
        """Forget a link."""
        self._run("DELETE FROM links WHERE kind = ? AND source = ? AND target = ?", kind, source, target)

    def remove_links(self, name: str) -> None:
        """Forget every link from and to a resource."""
        self._run("DELETE FROM links WHERE source = ? OR target = ?", name, name)

    def links_from(self, kind: str, source: str) -> dict[str, dict[str, Any]]:
        """Return the targets of a resource's links of a kind, each with its link's document."""
        rows = self._run("SELECT target, document FROM links WHERE kind = ? AND source = ? ORDER BY target", kind, source)
        return {target: json.loads(document) for target, document in rows}

    def links_to(self, kind: str, target: str) -> dict[str, dict[str, Any]]:
        """Return the sources of the links of a kind to a resource, each with its link's document."""
        rows = self._run("SELECT source, document FROM links WHERE kind = ? AND target = ? ORDER BY source", kind, target)
        return {source: json.loads(document) for source, document in rows}

    # ------------------------------------------------------------------ points of time series

    def write_points(self, series: str, points: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Store points, each with its step, under their series' full name; a point replaces an earlier one of the same step."""
        rows = [(series, step, json.dumps(document)) for step, document in points]
        with self._lock, self._base:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?)", rows)

    def points(self, series: str) -> Sequence[dict[str, Any]]:
        """Return all points of a series in the order of their steps."""
        return [json.loads(row[0]) for row in self._run("SELECT document FROM points WHERE series = ? ORDER BY step", series)]

    def remove_points(self, series: str) -> None:
        """Forget all points of a series."""
        self._run("DELETE FROM points WHERE series = ?", series)

    # ------------------------------------------------------------------ stored objects

    def object(self, bucket: str, name: str, generation: int) -> dict[str, Any]:
        """Return what is recorded of a stored object (type, checksums); nothing if its file has changed since."""
        rows = self._run("SELECT document FROM objects WHERE (bucket, name, generation) = (?, ?, ?)", bucket, name, generation)
        return json.loads(rows[0][0]) if rows else {}

    def set_object(self, bucket: str, name: str, generation: int, document: Mapping[str, Any]) -> None:
        """Record `document` for that generation of a stored object; it replaces that of an earlier generation."""
        self._run("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", bucket, name, generation, json.dumps(document))

    def remove_object(self, bucket: str, name: str) -> None:
        """Forget what is recorded of a stored object."""
        self._run("DELETE FROM objects WHERE bucket = ? AND name = ?", bucket, name)


def _where(kind: str, parent: str | None, state: str | None) -> tuple[str, list[str]]:
    """Return a condition and its values; None is any."""
    wanted = {"kind": kind, "parent": parent, "json_extract(document, '$.state')": state}
    given = {field: value for field, value in wanted.items() if value is not None}
    return " AND ".join(f"{field} = ?" for field in given), [*given.values()]


def _encoded(key: tuple[str, str], order: str, descending: bool) -> str:
    return base64.urlsafe_b64encode(json.dumps([order, descending, *key]).encode()).decode()


def _decoded(token: str, order: str, descending: bool) -> tuple[str, str]:
    try:
        kept, way, value, name = json.loads(base64.urlsafe_b64decode(token))
        if (kept, way) == (order, descending) and isinstance(value, str) and isinstance(name, str):
            return value, name
    except (ValueError, TypeError):
        pass  # said below
    raise BadToken(f"{token[:80]!r} is not a token of this list in this order")
