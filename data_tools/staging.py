"""Where converted files wait until all are there: a folder beside the target, or a temporary one for a target in a bucket."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator

from vertex_runtime.environment import resolve_uri
from vertex_runtime.errors import FAILED, UserError, first_line

from . import manifest

SCHEME = "gs://"


def staging(target: str) -> contextlib.AbstractContextManager[str]:
    """Return a context manager of a folder whose files go to the target at the end of the block, unless that raises an error.

    Raises:
        UserError: the target has files or cannot be written, or another conversion is writing it.
    """
    return _for_a_bucket(target) if target.startswith(SCHEME) else _beside(os.path.realpath(target), target)


@contextlib.contextmanager
def _beside(target: str, named: str) -> Iterator[str]:
    stage = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.converting")
    try:
        if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
            raise _taken(named)
        os.makedirs(stage, exist_ok=True)
        lock = open(os.path.join(stage, ".lock"), "a")  # noqa: SIM115 - held until the end
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in set(os.listdir(stage)) - {".lock"}:  # left by a killed conversion
            os.remove(os.path.join(stage, name))
    except BlockingIOError:
        raise UserError(f"--to: another conversion writes {named}. Wait for it, or name another folder.") from None
    except OSError as error:
        raise UserError(f"--to: cannot write to {named}: {error.strerror}. Name another folder.") from None
    try:
        yield stage
        os.remove(os.path.join(stage, ".lock"))
        os.rename(stage, target)  # replaces an empty folder, and fails on any other
    except OSError as error:
        raise UserError(f"--to: cannot make {named}: {error.strerror}. Name a folder that does not exist yet.", FAILED) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        lock.close()


@contextlib.contextmanager
def _for_a_bucket(uri: str) -> Iterator[str]:
    """Copy the folder's files to a bucket, the manifest last: if it is there, all files are, each in full length."""
    import tensorflow as tf

    target = resolve_uri(uri.rstrip("/"))
    try:
        if tf.io.gfile.isdir(target) and tf.io.gfile.listdir(target):
            raise _taken(uri)
    except tf.errors.OpError as error:
        raise UserError(f"--to: cannot look into {uri}: {first_line(error)}. Name another folder.") from None
    with tempfile.TemporaryDirectory(prefix="converting-") as stage:
        yield stage
        try:
            tf.io.gfile.makedirs(target)
            for name in sorted(os.listdir(stage), key=lambda each: (each == manifest.NAME, each)):
                own, there = os.path.join(stage, name), f"{target}/{name}"
                tf.io.gfile.copy(own, there)
                sent, arrived = os.path.getsize(own), tf.io.gfile.stat(there).length
                if sent != arrived:
                    raise UserError(f"--to: {uri}/{name} has {arrived:,} bytes instead of {sent:,}. Name another folder.", FAILED)
        except tf.errors.OpError as error:
            raise UserError(f"--to: cannot write to {uri}: {first_line(error)}. Name another folder.", FAILED) from None


def _taken(target: str) -> UserError:
    return UserError(f"--to must be an empty folder or a new one; got {target}, which holds files. Nothing was overwritten.")
