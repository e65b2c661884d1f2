"""A part of a log, however long that is: its end, what lies before or behind a place in it, and the lines with a text."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

LINES = 400  # on one page
_LONGEST = 4000  # letters of a line that are shown
_MOST_PAGES = 1 << 18  # bytes that hold the lines of most pages
_WINDOW = 4 << 20  # bytes in which they are looked for at all: a bar of progress may write more without one end of a line
_SEARCHED = 1 << 30  # bytes that one request looks through
SEVERITIES = ("ERROR", "CRITICAL", "WARNING")


@dataclass(frozen=True)
class Line:
    """One line: where it begins, what it says, and its severity if it is structured."""

    at: int
    text: str
    severity: str


@dataclass(frozen=True)
class Part:
    """Some lines of a log. `begin` and `end` are places in bytes; `more` tells that a search has not come to the log's end."""

    lines: list[Line]
    begin: int
    end: int
    size: int
    more: bool = False


def before(path: Path, end: int | None = None) -> Part:
    """Return the lines before a place, by default the log's last ones."""
    size = _size(path)
    end = size if end is None else min(end, size)
    for window in (_MOST_PAGES, _WINDOW):
        at = max(0, end - window)
        lines = _read(path, at, end).splitlines(keepends=True)
        if len(lines) > LINES:
            break
    dropped = max(len(lines) - LINES, int(at > 0 and len(lines) > 1))  # the first is perhaps only the end of one
    begin = at + sum(map(len, lines[:dropped]))
    return Part(_shown(lines[dropped:], begin), begin, end, size)


def behind(path: Path, begin: int) -> Part:
    """Return the lines from a place on, which is the beginning of one."""
    size = _size(path)
    begin = min(begin, size)
    lines = _whole_lines(path, begin, size).splitlines(keepends=True)[:LINES]
    return Part(_shown(lines, begin), begin, begin + sum(map(len, lines)), size)


def search(path: Path, text: str, begin: int = 0) -> Part:
    """Return the lines with `text`, in capitals or not, from a place on: at most `LINES`, of about `_SEARCHED` bytes."""
    size, at, wanted = _size(path), begin, text.encode().lower()
    found: list[Line] = []
    while at < min(size, begin + _SEARCHED) and len(found) < LINES:
        block = _whole_lines(path, at, size)
        small, end = block.lower(), 0  # a block's small letters are searched many times as fast as by a pattern
        while len(found) < LINES and (place := small.find(wanted, end)) >= 0:
            start, end = block.rfind(b"\n", 0, place) + 1, block.find(b"\n", place) + 1 or len(block)
            found += _shown([block[start:end]], at + start)
        at += end if len(found) == LINES else len(block)
    return Part(found, begin, at, size, more=at < size)


def _whole_lines(path: Path, begin: int, size: int) -> bytes:
    """Return lines from a place on, as many as a window holds whole; of a line that is longer, a part."""
    data = _read(path, begin, min(begin + _WINDOW, size))
    if begin + len(data) == size:
        return data
    return data[: data.rfind(b"\n") + 1 or data.rfind(b"\r") + 1 or len(data)]


def _read(path: Path, begin: int, end: int) -> bytes:
    if begin == end:  # perhaps there is no log
        return b""
    with open(path, "rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _size(path: Path) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _shown(lines: list[bytes], at: int) -> list[Line]:
    found = []
    for line in lines:
        text, severity = line[: 4 * _LONGEST].decode("utf-8", "replace").rstrip("\r\n"), ""
        if text.startswith("{"):
            text, severity = _structured(text)
        found.append(Line(at, text[:_LONGEST] + ("…" if len(text) > _LONGEST else ""), severity))
        at += len(line)
    return found


def _structured(text: str) -> tuple[str, str]:
    """Return the message and severity of a line in JSON; the line itself if it is none."""
    try:
        entry = json.loads(text)
        return str(entry["message"]), str(entry.get("severity", ""))
    except (ValueError, KeyError, TypeError, RecursionError):
        return text, ""
