"""The service's resources in SQLite: one JSON document each, under its full name, kept across restarts."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TABLES = """
CREATE TABLE IF NOT EXISTS resources (
  name TEXT PRIMARY KEY, kind TEXT NOT NULL, parent TEXT NOT NULL, document TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_parent ON resources (kind, parent);
CREATE TABLE IF NOT EXISTS objects (
  bucket TEXT, name TEXT, generation INTEGER, document TEXT NOT NULL, PRIMARY KEY (bucket, name));
"""


class Taken(Exception):
    """A name that exists already."""


class Records:
    """All records of one state folder; safe to use from several threads."""

    def __init__(self, path: Path):
        self._lock = threading.RLock()
        self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.executescript(_TABLES)

    def close(self) -> None:
        """Write what is left and close the file."""
        with self._lock:
            self._base.close()

    def _run(self, statement: str, *values: Any) -> list[tuple]:
        with self._lock:
            return self._base.execute(statement, values).fetchall()

    def add(self, name: str, kind: str, document: dict[str, Any]) -> dict[str, Any]:
        """Keep a new document and return it; raise Taken if there is one of that name."""
        parent = name.rpartition(f"/{kind}/")[0]
        try:
            self._run("INSERT INTO resources VALUES (?, ?, ?, ?)", name, kind, parent, json.dumps(document))
        except sqlite3.IntegrityError:
            raise Taken(name) from None
        return document

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the document of that name, or None."""
        rows = self._run("SELECT document FROM resources WHERE name = ?", name)
        return json.loads(rows[0][0]) if rows else None

    def has_id(self, number: str) -> bool:
        """Return whether any resource has that id, which is the last part of its name."""
        return bool(self._run("SELECT 1 FROM resources WHERE name LIKE ? LIMIT 1", f"%/{number}"))

    def change(self, name: str, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any] | None:
        """Let `change` alter the document in one step and return it; None if it has been deleted meanwhile."""
        with self._lock:
            document = self.get(name)
            if document is not None:
                change(document)
                self._run("UPDATE resources SET document = ? WHERE name = ?", json.dumps(document), name)
            return document

    def list(self, kind: str, parent: str | None = None) -> list[dict[str, Any]]:
        """Return the documents of a kind, of all parents or of one."""
        rows = self._run("SELECT document FROM resources WHERE kind = ? AND ifnull(parent = ?, 1)", kind, parent)
        return [json.loads(row[0]) for row in rows]

    def remove(self, name: str) -> bool:
        """Forget the record, and nothing else; return whether there was one."""
        with self._lock:
            known = self.get(name) is not None
            self._run("DELETE FROM resources WHERE name = ?", name)
            return known

    def object(self, bucket: str, name: str, generation: int) -> dict[str, Any]:
        """Return what is kept of a stored object (type, sums): nothing if the file has changed since."""
        rows = self._run("SELECT document FROM objects WHERE (bucket, name, generation) = (?, ?, ?)", bucket, name, generation)
        return json.loads(rows[0][0]) if rows else {}

    def set_object(self, bucket: str, name: str, generation: int, document: dict[str, Any]) -> None:
        """Keep `document` for that generation of a stored object, instead of an earlier one's."""
        self._run("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", bucket, name, generation, json.dumps(document))
