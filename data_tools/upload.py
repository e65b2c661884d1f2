"""Upload a finished conversion to a bucket, the manifest last: if the manifest is there, all files are."""

from __future__ import annotations

import os

from vertex_runtime.environment import resolve_uri
from vertex_runtime.errors import FAILED, UserError

from . import manifest, reason

SCHEME = "gs://"


def check_free(uri: str) -> None:
    """Raise a UserError if a bucket's folder has objects already, or cannot be listed."""
    import tensorflow as tf

    try:
        names = tf.io.gfile.listdir(resolve_uri(uri)) if tf.io.gfile.isdir(resolve_uri(uri)) else []
    except tf.errors.OpError as error:
        raise UserError(f"--to: cannot look into {uri}: {reason(error)}. Name another folder.") from None
    if names:
        raise UserError(f"--to must be an empty folder or a new one; got {uri}, which holds files. Nothing was overwritten.")


def upload(folder: str, uri: str) -> None:
    """Copy a folder's files to a bucket, and check that each has arrived in full length.

    Raises:
        UserError: a file could not be written, or is shorter; then the manifest is not there.
    """
    import tensorflow as tf

    target = resolve_uri(uri.rstrip("/"))
    try:
        tf.io.gfile.makedirs(target)
        for name in sorted(os.listdir(folder), key=lambda each: (each == manifest.NAME, each)):
            own, there = os.path.join(folder, name), f"{target}/{name}"
            tf.io.gfile.copy(own, there)
            sent, arrived = os.path.getsize(own), tf.io.gfile.stat(there).length
            if sent != arrived:
                raise UserError(f"--to: {uri}/{name} has {arrived:,} bytes instead of {sent:,}. Name another folder.", FAILED)
    except tf.errors.OpError as error:
        raise UserError(f"--to: cannot write to {uri}: {reason(error)}. Name another folder.", FAILED) from None
