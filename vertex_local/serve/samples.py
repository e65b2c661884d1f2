"""Samples of the latest requests to endpoints, in files of limited size; `python -m vertex_local watch` reads them.

An endpoint's `predictRequestResponseLoggingConfig` gives the share of requests to keep, as on the service, which writes them
to BigQuery. Without one, all requests are kept. The newest file is `<endpoint>.jsonl`, the one before `<endpoint>.1.jsonl`.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..local import job_record, store
from .rest import ApiError

FOLDER = "samples"  # in the state folder
MOST_BYTES = 16 << 20  # bytes of a file, after which the next one begins
CONFIG = "predictRequestResponseLoggingConfig"


def check_config(endpoint: Mapping[str, Any]) -> None:
    """Refuse a sampling rate that is not above 0 and at most 1."""
    config = endpoint.get(CONFIG) or {}
    if config.get("enabled") and not 0 < config.get("samplingRate", 0.0) <= 1:
        field = f"{CONFIG}.samplingRate"
        raise ApiError("INVALID_ARGUMENT", f"{field} takes a share above 0 and up to 1; got {config.get('samplingRate', 0.0)}.", field)


class Samples:
    """The samples of a state folder; safe to use from several threads of one process."""

    def __init__(self, state: Path):
        self._folder, self._lock = state / FOLDER, threading.Lock()

    def add(self, endpoint: Mapping[str, Any], deployed: str, instances: Sequence[Any], predictions: Sequence[Any]) -> None:
        """Keep a request and its answer with the endpoint's sampling rate; an error in writing does not fail the prediction."""
        config = endpoint.get(CONFIG)
        rate = 1.0 if config is None else config.get("samplingRate", 0.0) if config.get("enabled") else 0.0
        if random.random() >= rate:
            return
        about = {"time": job_record.now(), "deployedModelId": deployed}
        pairs = zip(instances, predictions)
        lines = "".join(json.dumps({**about, "instance": each, "prediction": said}) + "\n" for each, said in pairs).encode()
        with self._lock, contextlib.suppress(OSError):
            store.private_folder(self._folder)
            newest, before = paths(self._folder.parent, endpoint["name"])
            with open(newest, "ab") as file:
                file.write(lines)
                size = file.tell()
            if size >= MOST_BYTES:
                newest.replace(before)

    def forget(self, endpoint: str) -> None:
        """Remove the samples of an endpoint's requests."""
        with self._lock:
            for path in paths(self._folder.parent, endpoint):
                path.unlink(missing_ok=True)


def paths(state: Path, endpoint: str) -> tuple[Path, Path]:
    """Return (the newest file, the one before) of samples of an endpoint, given its full name."""
    _, project, _, region, _, number = endpoint.split("/")
    return tuple(state / FOLDER / f"{project}.{region}.{number}{part}.jsonl" for part in ("", ".1"))  # type: ignore[return-value]


def read(state: Path, endpoint: str) -> Iterator[dict[str, Any]]:
    """Yield an endpoint's samples, the oldest first: {"time", "deployedModelId", "instance", "prediction"}."""
    for path in reversed(paths(state, endpoint)):
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError):  # a half line, from a service that was killed while it wrote
                    yield json.loads(line)
