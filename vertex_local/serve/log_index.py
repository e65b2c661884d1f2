"""An index of jobs' log lines by time, so that a request need not read the logs again.

Beside each log lies a file that gives the time, stream and length of each line. A line in JSON may give its own time
instead. The index is a temporary SQLite file, which ends with the service.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 256 << 10  # bytes of an entry, which is Cloud Logging's limit
_ROWS = 200  # lines of one job that are read from the index at a time
_LATEST = 253_402_300_799  # seconds since 1970: the end of the year 9999, the last time that can be written
_TABLES = """
CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT UNIQUE, read INTEGER, at INTEGER, count INTEGER);
CREATE TABLE lines (
  job TEXT, time INTEGER, id TEXT, file INTEGER, at INTEGER, size INTEGER, stream TEXT, PRIMARY KEY (job, time, id)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Line:
    """One line of a log: its time in microseconds since 1970, its id, the log, its offset and size there in bytes, its stream."""

    time: int
    id: str
    log: Path
    at: int
    size: int
    stream: str


class LogIndex:
    """The lines of all logs that clients have asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._base = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._base.executescript(_TABLES)

    def lines(self, job: str, logs: Sequence[Path], after: tuple[int, str] | None, least: int, descending: bool) -> Iterator[Line]:
        """Add the new lines of a job's logs to the index, then yield all of theirs in the order of their times and ids.

        Args:
            after: time and id of a line; only lines after it are wanted.
            least: microseconds since 1970; earlier lines are not wanted.
        """
        with self._lock:
            files = {self._updated(job, log): log for log in logs}
        sign, way = ("<", "DESC") if descending else (">", "ASC")
        of_files = f"job = ? AND file IN ({', '.join(map(str, files))}) AND time >= ?"
        while files:
            beyond, values = (f"AND (time, id) {sign} (?, ?)", after) if after else ("", ())
            statement = f"SELECT time, id, file, at, size, stream FROM lines WHERE {of_files} {beyond}"
            with self._lock:
                rows = self._base.execute(f"{statement} ORDER BY time {way}, id {way} LIMIT {_ROWS}", (job, least, *values)).fetchall()
            for time, number, file, *rest in rows:
                yield Line(time, number, files[file], *rest)
            if len(rows) < _ROWS:
                return
            after = rows[-1][:2]

    def _updated(self, job: str, log: Path) -> int:
        """Add a log's new lines to the index and return the file's id there."""
        folder = log.parents[1]
        self._base.execute("INSERT OR IGNORE INTO files (path, read, at, count) VALUES (?, 0, 0, 0)", (str(log),))
        file, read, at, count = self._base.execute("SELECT id, read, at, count FROM files WHERE path = ?", (str(log),)).fetchone()
        self._base.execute("BEGIN")
        try:
            with open(folder / "lines" / log.name, "rb") as lines, open(log, "rb") as content:
                lines.seek(read)
                content.seek(at)
                for line in lines:
                    found = _parsed(line)
                    if found is None:
                        break  # half written, or cut off when the writer was killed
                    seconds, stream, size = found
                    data = content.read(size)
                    if len(data) < size:
                        break
                    if data.strip():
                        own = own_time(data)
                        time, number = round(seconds * 1e6) if own is None else own, f"{folder.name}/{log.stem}-{count:010d}"
                        self._base.execute("INSERT INTO lines VALUES (?, ?, ?, ?, ?, ?, ?)", (job, time, number, file, at, size, stream))
                        count += 1
                    read, at = read + len(line), at + size
        except FileNotFoundError:
            pass  # somebody has removed the job's folder
        finally:
            self._base.execute("UPDATE files SET read = ?, at = ?, count = ? WHERE id = ?", (read, at, count, file))
            self._base.execute("COMMIT")
        return file


def _parsed(line: bytes) -> tuple[float, str, int] | None:
    try:
        seconds, stream, size = line.decode("ascii").split()
        return (float(seconds), stream, int(size)) if line.endswith(b"\n") else None
    except ValueError:
        return None


def content(log: Path, line: Line) -> str:
    """Return a line's text without its line end, and at most LONGEST bytes of it."""
    with open(log, "rb") as file:
        file.seek(line.at)
        return file.read(min(line.size, LONGEST)).decode("utf-8", "replace").rstrip("\r\n")


def payload(text: str) -> dict[str, Any] | None:
    """Return the object in a line of JSON if the service would take it for a structured entry; else None."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and "message" in found else None


def own_time(data: bytes) -> int | None:
    """Return the time that a line in JSON gives for itself, in microseconds since 1970; None without a possible time."""
    if b'"timestampSeconds"' not in data[:LONGEST]:
        return None
    found = payload(data[:LONGEST].decode("utf-8", "replace")) or {}
    seconds, nanos = found.get("timestampSeconds"), found.get("timestampNanos", 0)
    if type(seconds) is not int or type(nanos) is not int or not (0 <= seconds <= _LATEST and 0 <= nanos < 10**9):
        return None  # for example milliseconds, which would be a year after 9999
    return seconds * 1_000_000 + nanos // 1000
