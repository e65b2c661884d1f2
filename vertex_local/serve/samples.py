"""What endpoints were asked of late: a sample in files of bounded size, which `python -m vertex_local watch` looks at.

An endpoint's `predictRequestResponseLoggingConfig` says how much of its requests is kept, as on the service, where BigQuery
takes it; an endpoint without one has all of them kept. The newest file is `<endpoint>.jsonl`, the one before `<endpoint>.1.jsonl`.
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

FOLDER = "samples"  # of the state folder
MOST_BYTES = 16 << 20  # of a file, after which the next one is begun
CONFIG = "predictRequestResponseLoggingConfig"


def check_config(endpoint: Mapping[str, Any]) -> None:
    """Refuse a sampling rate that is none."""
    config = endpoint.get(CONFIG) or {}
    if config.get("enabled") and not 0 < config.get("samplingRate", 0.0) <= 1:
        field = f"{CONFIG}.samplingRate"
        raise ApiError("INVALID_ARGUMENT", f"{field} takes a share above 0 and up to 1; got {config.get('samplingRate', 0.0)}.", field)


class Samples:
    """The samples of a state folder; safe to use from several threads of one process."""

    def __init__(self, state: Path):
        self._folder, self._lock = state / FOLDER, threading.Lock()

    def add(self, endpoint: Mapping[str, Any], deployed: str, instances: Sequence[Any], predictions: Sequence[Any]) -> None:
        """Keep a request and its answer, if the endpoint's rate draws it; what cannot be written harms no prediction."""
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
        """Remove what is kept of an endpoint's requests."""
        with self._lock:
            for path in paths(self._folder.parent, endpoint):
                path.unlink(missing_ok=True)


def paths(state: Path, endpoint: str) -> tuple[Path, Path]:
    """Return the files of an endpoint's requests, given its full name: the newest, and the one before."""
    _, project, _, region, _, number = endpoint.split("/")
    return tuple(state / FOLDER / f"{project}.{region}.{number}{part}.jsonl" for part in ("", ".1"))  # type: ignore[return-value]


def read(state: Path, endpoint: str) -> Iterator[dict[str, Any]]:
    """Yield what is kept of an endpoint's requests, the oldest first: {"time", "deployedModelId", "instance", "prediction"}."""
    for path in reversed(paths(state, endpoint)):
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError):  # the end of a service that was killed while it wrote
                    yield json.loads(line)
