"""The manifest of a run whose outputs lie in a bucket: which files are its own and, written last, their sizes and checksums.

A bucket has no appends, so `manifest.json` is written anew and in one step: with a file's name before the file comes, and
with `"complete": true` when all have come. Who copies or serves a run can tell a whole one from one that was cut off.
"""

from __future__ import annotations

import datetime
import json
import posixpath
import threading
import time
from collections.abc import Iterable
from typing import Any

from .reporting import log

NAME = "manifest.json"
PAUSE_SECONDS = 1.0  # between two writes: Cloud Storage takes one a second of the same object


def relative(path: str, records: str) -> str:
    """Return a file's path as seen from the records, both in one notation such as `gs://bucket/x`."""
    return posixpath.relpath(path.replace("://", "/", 1), records.replace("://", "/", 1))


def absolute(name: str, records: str) -> str:
    """Return the path that `relative` made a name of."""
    scheme, separator, rest = records.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(rest, name))


class BucketManifest:
    """The manifest of one directory, of which only the run that holds the directory's lock writes anything."""

    opened: dict[str, BucketManifest] = {}
    guard = threading.Lock()

    def __init__(self, records: str):
        self.records, self.path, self.lock, self.written = records, f"{records}/{NAME}", threading.Lock(), 0.0
        self.files: dict[str, dict[str, Any]] = {}
        self.complete = False
        found = read(records)
        if found is not None:
            self.files, self.complete = found["files"], found["complete"]

    @classmethod
    def of(cls, records: str) -> BucketManifest:
        """Return the manifest of a directory, read once in this process."""
        with cls.guard:
            return cls.opened.setdefault(records, cls.opened.get(records) or cls(records))

    def add(self, paths: Iterable[str]) -> None:
        """Note files before they are written; from then on the run counts as unfinished."""
        with self.lock:
            names = [relative(path, self.records) for path in paths]
            if self.complete or any(name not in self.files for name in names):
                self.files.update((name, {}) for name in names)
                self.complete = False
                self._write()

    def discard(self, paths: Iterable[str]) -> None:
        """Forget files that were removed; the next write says so."""
        with self.lock:
            for path in paths:
                self.files.pop(relative(path, self.records), None)

    def seal(self) -> None:
        """Note size and checksum of each file that is there, and that the run is complete."""
        with self.lock:
            self.files = describe(self.records, self.files)
            self.complete = True
            self._write()

    def forget(self) -> None:
        """Begin anew, after the files were moved aside."""
        with self.lock:
            self.files, self.complete = {}, False

    def _write(self) -> None:
        import tensorflow as tf

        time.sleep(max(0.0, self.written + PAUSE_SECONDS - time.monotonic()))
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        value = {"complete": self.complete, "written": now, "files": dict(sorted(self.files.items()))}
        with tf.io.gfile.GFile(self.path, "w") as file:
            file.write(json.dumps(value, indent=1) + "\n")
        self.written = time.monotonic()


def read(records: str) -> dict[str, Any] | None:
    """Return the manifest of a directory as it is in the bucket, None where there is none."""
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(f"{records}/{NAME}") as file:
            found = json.loads(file.read())
        return {"complete": bool(found["complete"]), "files": dict(found["files"])}
    except tf.errors.NotFoundError:
        return None
    except (KeyError, TypeError, ValueError):  # not ours, or damaged by hand: no file is taken for a run's own
        log("WARNING", f"{records}/{NAME} is not a manifest of this trainer; it is written anew.")
        return None


def describe(records: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return bytes and, as far as the service can be asked, CRC32C of those files that are there."""
    import tensorflow as tf

    sums, found = _checksums(records, names), {}
    for name in names:
        path = absolute(name, records)
        try:
            found[name] = {"bytes": tf.io.gfile.stat(path).length, **sums.get(path, {})}
        except tf.errors.NotFoundError:
            continue  # a checkpoint that newer ones have replaced
    return found


def _checksums(records: str, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the CRC32C that the service computed of each object, by its path; nothing where it cannot be asked."""
    if not records.startswith("gs://"):
        return {}
    try:
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage
    except ImportError:
        return {}
    found = {}
    folders = {posixpath.dirname(absolute(name, records)) for name in names}
    roots = {folder for folder in folders if not any(folder.startswith(f"{other}/") for other in folders)}
    try:
        client = storage.Client()
        for root in roots:
            bucket, _, prefix = root[len("gs://") :].partition("/")
            for blob in client.list_blobs(bucket, prefix=f"{prefix}/" if prefix else None):
                found[f"gs://{bucket}/{blob.name}"] = {"crc32c": blob.crc32c}
    except (GoogleAuthError, OSError, GoogleAPIError) as error:
        log("WARNING", f"{records}/{NAME} has sizes and no checksums: {' '.join(str(error).split())[:200]}")
    return found


def crc32c(path: str) -> str | None:
    """Return the CRC32C of a local file as Cloud Storage writes it; None where its package is not installed."""
    try:
        import google_crc32c
    except ImportError:
        return None
    import base64

    found = google_crc32c.Checksum()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return base64.b64encode(found.digest()).decode()
