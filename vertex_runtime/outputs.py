"""Where a run writes: its directories, the lock on them, the manifest of its files, and its JSON records.

`--output_dir D` is laid out as the service lays out `baseOutputDirectory`: D/model, D/checkpoints, D/logs.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TextIO

from . import bucket_manifest
from .bucket_lock import BucketLock, describe_owner
from .bucket_manifest import BucketManifest, absolute, relative
from .environment import Environment, resolve_uri
from .errors import FAILED, UserError, first_line
from .reporting import log

MANIFEST = "manifest.txt"  # on a disk
BUCKET_MANIFEST = bucket_manifest.NAME
_append = threading.Lock()


@dataclass(frozen=True)
class Outputs:
    """The directories of one run (local, `gs://…` or `/gcs/…`); `records` holds run.json and metrics.json."""

    model: str
    checkpoints: str
    logs: str
    records: str
    given: bool = True

    @property
    def rejected(self) -> str:
        return self.model.rstrip("/") + ".rejected"


def resolve_outputs(output_dir: str, env: Environment, trainer: str) -> Outputs:
    """Apply the order flag, variable, local default; no directory is made yet."""
    service = (env.model_dir, env.checkpoint_dir, env.tensorboard_dir)
    given = bool(output_dir or any(service))
    root = output_dir or f"{trainer}-run-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    root = resolve_uri(root.rstrip("/") or "/")
    if env.trial:
        root = f"{root}/{env.trial}"
    if output_dir and env.model_dir:
        log("WARNING", f"--output_dir {output_dir} overrides AIP_MODEL_DIR={env.model_dir}, where the service looks: leave it out.")
    if env.in_job and not given:
        log(
            "WARNING",
            f"no --output_dir and no AIP_MODEL_DIR (the job has no baseOutputDirectory): {root} is lost with the machine. Give one.",
        )
    model, checkpoints, logs = (
        resolve_uri(path.rstrip("/")) if path and not output_dir else f"{root}/{name}"
        for path, name in zip(service, ("model", "checkpoints", "logs"))
    )
    in_service = bool(env.checkpoint_dir and not output_dir)
    return Outputs(model, checkpoints, logs, checkpoints if in_service else root, given)


def is_remote(path: str) -> bool:
    return "://" in path


def bucket_of(path: str) -> str | None:
    """Return the `gs://…` of a path in a bucket, on a mount too; None for a local one.

    Under `vertex_local` a bucket is a folder, and `/gcs` is not mounted.
    """
    if path.startswith("/gcs/") and os.path.ismount("/gcs"):
        return f"gs://{path[len('/gcs/') :]}"
    return path if is_remote(path) else None


def prepare(outputs: Outputs, start_over: bool, env: Environment) -> AbstractContextManager[object]:
    """Make the directories, prove that they can be written, take the lock and, if asked, move an earlier run aside.

    Returns:
        The lock, held until it is closed or the process ends: the kernel's on a disk, an object in a bucket.

    Raises:
        UserError: not writable, in use by another run, or holding files that no run of ours wrote.
    """
    if start_over and env.in_job:
        raise UserError("--start_over is refused in a job: a restart of the replica would repeat it. Use another output directory.")
    directories = list(dict.fromkeys((outputs.records, outputs.checkpoints, outputs.logs, outputs.model)))
    for directory in directories:
        _probe(directory)
    bucket = bucket_of(outputs.records)
    lock = BucketLock(bucket, describe_owner(env)) if bucket else _lock(outputs.records)
    BucketManifest.opened.pop(outputs.records, None)  # as another run may have left it
    try:
        if start_over:
            _move_aside(outputs.records)
            for directory in directories:  # those that it emptied are gone
                _probe(directory)
        _refuse_foreign_model(outputs)
    except BaseException:
        lock.close()
        raise
    return lock


def _probe(directory: str) -> None:
    import tensorflow as tf

    probe = f"{directory}/.probe-{os.getpid()}"
    try:
        tf.io.gfile.makedirs(directory)
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("x")
        tf.io.gfile.remove(probe)
    except (tf.errors.OpError, OSError) as error:
        text = first_line(error)
        raise UserError(f"cannot write to {directory}: {text}. Choose another --output_dir or mend its permissions.") from None


def _lock(directory: str) -> TextIO:
    """An advisory lock of the kernel's: a killed process leaves none behind."""
    file = open(f"{directory}/.lock", "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise UserError(f"{directory} is in use by a live run ({holder}). Wait for it, end it, or use another --output_dir.") from None
    except OSError as error:
        log("WARNING", f"{directory}: its file system has no locks ({error.strerror}); see that no other run writes there.")
        return file
    file.truncate(0)
    file.write(f"host {socket.gethostname()}, pid {os.getpid()}")
    file.flush()
    return file


def record(records: str, *paths: str) -> None:
    """Note files of ours in the manifest, before they are written."""
    if is_remote(records):
        BucketManifest.of(records).add(paths)
        return
    lines = "".join(relative(path, records) + "\n" for path in paths)
    with _append, open(f"{records}/{MANIFEST}", "a") as file:
        file.write(lines)


def removed(records: str, *paths: str) -> None:
    """Note that files of ours are gone: in a bucket, whose manifest is written anew each time and need not grow."""
    if is_remote(records):
        BucketManifest.of(records).discard(paths)


def seal(records: str) -> None:
    """Say that the run is whole, last of all: in a bucket, where files are copied and served from, with sizes and checksums."""
    if is_remote(records):
        BucketManifest.of(records).seal()


def _recorded(records: str) -> set[str]:
    if is_remote(records):
        return set(BucketManifest.of(records).files)
    try:
        with open(f"{records}/{MANIFEST}") as file:
            return set(file.read().splitlines())
    except OSError:
        return set()


def _move_aside(records: str) -> None:
    """Move what the manifest names, and the manifest last: until then the same command finds the rest."""
    import tensorflow as tf

    aside, remote = f"{records}.before-{time.strftime('%Y%m%d-%H%M%S')}", is_remote(records)
    emptied = []
    for name in [*sorted(_recorded(records)), BUCKET_MANIFEST if remote else MANIFEST]:
        source, target = absolute(name, records), f"{aside}/{name}"
        if not name.startswith("../") and tf.io.gfile.exists(source):
            tf.io.gfile.makedirs(os.path.dirname(target))
            tf.io.gfile.rename(source, target)
            emptied.append(os.path.dirname(source))
    if remote:
        BucketManifest.of(records).forget()
    else:
        _remove_empty(emptied, records)
    if emptied:
        log("INFO", f"--start_over moved {len(emptied)} {'objects' if remote else 'files'} of the earlier run to {aside}.")


def _remove_empty(directories: Iterable[str], top: str) -> None:
    for directory in sorted(set(directories), key=len, reverse=True):
        while directory != top and os.path.isdir(directory) and not os.listdir(directory):
            os.rmdir(directory)
            directory = os.path.dirname(directory)


def _refuse_foreign_model(outputs: Outputs) -> None:
    import tensorflow as tf

    if not tf.io.gfile.isdir(outputs.model):
        return
    ours = _recorded(outputs.records)
    if is_remote(outputs.model) and not ours and tf.io.gfile.exists(f"{outputs.records}/run.json"):
        return  # of a version that kept no manifest in a bucket
    for folder, _, names in tf.io.gfile.walk(outputs.model):
        for name in filter(None, names):
            path = os.path.join(folder, name)
            if relative(path, outputs.records) not in ours:
                raise UserError(f"{path} was not written by a run of this trainer and is kept: use another --output_dir.")


def read_text(path: str) -> str:
    """Return the text of a file, on this machine or in a bucket.

    Raises:
        OSError: it cannot be read.
    """
    if not is_remote(path):
        with open(path, encoding="utf-8") as file:
            return file.read()
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path) as remote:
            return remote.read()
    except tf.errors.NotFoundError:
        raise FileNotFoundError(path) from None
    except tf.errors.OpError as error:
        raise OSError(first_line(error)) from None


def write_text(path: str, text: str) -> None:
    """Write a file in one step: a reader sees the old file or the new one, never half of one.

    Raises:
        OSError: it cannot be written.
    """
    if not is_remote(path):
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{path}.tmp", path)
        return
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "w") as remote:
            remote.write(text)
    except tf.errors.OpError as error:
        raise OSError(first_line(error)) from None


def write_json(records: str, name: str, value: Mapping[str, Any]) -> None:
    """Write a record of the run.

    Raises:
        UserError: there is no room for it, say.
    """
    path = f"{records}/{name}"
    try:
        record(records, path)
        write_text(path, json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}. Make room and start again: the checkpoints are kept.", FAILED) from None


def read_json(records: str, name: str) -> dict[str, Any]:
    """Return a record that an earlier start of the run wrote; nothing where there is none that can be read."""
    try:
        found = json.loads(read_text(f"{records}/{name}"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def versions() -> dict[str, str]:
    """Return the versions of Python and of what computes, by module."""
    import keras
    import numpy
    import pyarrow
    import tensorflow as tf

    found = {module.__name__: module.__version__ for module in (tf, keras, numpy, pyarrow)}
    return {"python": platform.python_version(), **found}
