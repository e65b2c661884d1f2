"""A part of a log, however long that is: its end, what lies before or behind a place in it, and the lines with a text."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LINES = 400  # on one page
_LONGEST = 4000  # letters of a line that are shown
_MOST_PAGES = 1 << 18  # bytes that hold the lines of most pages
_WINDOW = 4 << 20  # bytes in which they are looked for at all: a bar of progress may write more without one end of a line
_SEARCHED = 1 << 30  # bytes that one request looks through
_SEARCH_BLOCK = 4 << 20
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
        lines = _lines(path, at, end)
        if len(lines) > LINES:
            break
    dropped = max(len(lines) - LINES, int(at > 0 and len(lines) > 1))  # the first is perhaps only the end of one
    begin = at + sum(map(len, lines[:dropped]))
    return Part(_shown(lines[dropped:], begin), begin, end, size)


def behind(path: Path, begin: int) -> Part:
    """Return the lines from a place on, which is the beginning of one."""
    size = _size(path)
    begin = min(begin, size)
    lines = _lines(path, begin, min(begin + _WINDOW, size))
    if begin + _WINDOW < size and len(lines) > 1:  # the last is perhaps only the beginning of one
        lines.pop()
    shown = lines[:LINES]
    return Part(_shown(shown, begin), begin, begin + sum(map(len, shown)), size)


def _lines(path: Path, begin: int, end: int) -> list[bytes]:
    """Return what lies between two places as lines with their ends; nothing where there is no log."""
    if begin == end:
        return []
    with open(path, "rb") as file:
        file.seek(begin)
        return file.read(end - begin).splitlines(keepends=True)


def search(path: Path, text: str, begin: int = 0) -> Part:
    """Return the lines with `text`, in capitals or not, from a place on: at most `LINES`, of at most `_SEARCHED` bytes."""
    size = _size(path)
    if begin >= size:
        return Part([], begin, begin, size)
    found, at, last = [], begin, min(size, begin + _SEARCHED)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for place in _places(content, text.encode().lower(), begin, last):
            if place < at:  # in a line that has been found already
                continue
            start = content.rfind(b"\n", 0, place) + 1
            end = content.find(b"\n", place, min(len(content), place + (1 << 20)))
            at = len(content) if end < 0 else end + 1
            found += _shown([content[start : min(at, start + (1 << 20))]], start)
            if len(found) == LINES:
                break
    end = at if len(found) == LINES else last
    return Part(found, begin, end, size, more=end < size)


def _places(content: mmap.mmap, wanted: bytes, begin: int, end: int) -> Iterator[int]:
    """Yield where `wanted`, itself in small letters, stands; a block's small letters are searched many times as fast as by a pattern."""
    for start in range(begin, end, _SEARCH_BLOCK):
        block = content[start : min(end, start + _SEARCH_BLOCK + len(wanted) - 1)].lower()
        place = block.find(wanted)
        while place >= 0:
            yield start + place
            place = block.find(wanted, place + 1)


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
