"""What lies in the buckets: folders as lists, text as text, reports as pages that can do nothing here."""

from __future__ import annotations

import mimetypes
import os
import re
import urllib.parse
from pathlib import Path
from typing import Any

from ...job import buckets
from ...serve.rest import Answer, ApiError
from ..app import View, Visit, href, page

_MOST = 1000  # names of a folder that are shown
_TEXT = (".txt", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".log", ".md", ".py")
_IMAGES = (".png", ".jpg", ".jpeg", ".svg", ".gif")
# A report may draw with its own script, but in an origin of its own, from where it reaches nothing.
_SANDBOX = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; font-src data:"


def address(visit: Visit, path: str) -> str:
    """Return the page of a file or folder in a bucket, given its path here or `gs://…`; "" if it lies in none.

    Of a pattern such as `gs://bucket/data/*.csv` it is the page of the folder.
    """
    path = re.sub(r"[^/]*[*?\[].*", "", path)
    for start in (f"{visit.local.buckets}/", "gs://", "/gcs/"):
        if path.startswith(start):
            return href(f"/files/{path.removeprefix(start)}")
    return ""


@page("GET", "/files/")
def root(visit: Visit) -> View:
    """Show the buckets."""
    return _folder(visit.local.buckets, "")


@page("GET", "/files/{path*}")
def show(visit: Visit, path: str) -> View | Answer:
    """Show a folder, or send a file."""
    try:
        found = buckets.to_path(f"gs://{path}", visit.local.buckets)
    except buckets.BucketError as error:
        raise ApiError("NOT_FOUND", str(error)) from None
    if os.path.isfile(found):
        return _file(Path(found))
    if not os.path.isdir(found):
        raise ApiError("NOT_FOUND", f"there is no gs://{path[:200]}.")
    return _folder(Path(found), path.strip("/"))


def _folder(folder: Path, path: str) -> View:
    entries: list[dict[str, Any]] = []
    names = sorted(os.scandir(folder), key=lambda entry: (not entry.is_dir(), entry.name))
    for entry in names[:_MOST]:
        try:
            stat, slash = entry.stat(), "/" * entry.is_dir()
        except OSError:  # gone meanwhile, or a link to nothing
            continue
        entries.append({
            "name": entry.name + slash, "href": href(f"/files/{path}{'/' * bool(path)}{entry.name}{slash}"),
            "size": None if slash else stat.st_size, "changed": stat.st_mtime,
        })  # fmt: skip
    above = path.rpartition("/")[0]
    return View("files.html", {
        "active": "files", "uri": f"gs://{path}", "entries": entries, "more": max(0, len(names) - _MOST),
        "up": href(f"/files/{above}{'/' * bool(above)}") if path else "",
    })  # fmt: skip


def _file(path: Path) -> Answer:
    """Return a file: what a browser shows without running it, in place; anything else to be saved."""
    suffix, length = path.suffix.lower(), path.stat().st_size
    headers = {"Content-Security-Policy": _SANDBOX}
    if suffix in _TEXT:
        headers["Content-Type"] = "text/plain; charset=utf-8"
    elif suffix in (".html", ".htm"):
        headers["Content-Type"] = "text/html; charset=utf-8"
    elif suffix in _IMAGES:
        headers["Content-Type"] = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    else:
        name = urllib.parse.quote(os.fsencode(path.name))
        headers |= {"Content-Type": "application/octet-stream", "Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
    return Answer(200, b"", headers, path, (0, length))
