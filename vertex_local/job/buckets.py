"""`gs://bucket/x` as a folder: `<bucket root>/bucket/x`, which programs see as they see `/gcs/bucket/x` on the service."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*[a-z0-9]")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
# A reference starts the text or follows a delimiter, so that "--data=gs://a/x,/gcs/b/y" holds two.
_REFERENCE = re.compile(r"""(?:gs://|(?<![^\s=,;:"'])/gcs/)([^/\s,;"']*)([^\s,;"']*)""")


class BucketError(ValueError):
    """A `gs://` reference that the service would refuse, or that leaves the bucket's folder."""


def check_name(bucket: str) -> str:
    """Return `bucket` if Cloud Storage allows the name, else raise a BucketError that says which rule it breaks."""
    problem = None
    if not 3 <= len(bucket) <= 222 or any(not 1 <= len(part) <= 63 for part in bucket.split(".")):
        problem = "it must have 3 to 63 characters (222 with dots, at most 63 between two dots, none empty)"
    elif not _NAME.fullmatch(bucket):
        problem = "it may hold lower-case letters, digits, '-', '_' and '.', and starts and ends with a letter or digit"
    elif _ADDRESS.fullmatch(bucket):
        problem = "it must not look like an IP address"
    elif bucket.startswith("goog") or re.search("g[o0][o0]gle", bucket):
        problem = "it must not start with 'goog' or contain 'google'"
    if problem:
        raise BucketError(f"bucket name {bucket!r}: {problem}; rename it.")
    return bucket


def to_path(uri: str, root: str | Path) -> str:
    """Return the absolute path of `gs://bucket/x` or `/gcs/bucket/x`, its trailing slash kept; nothing is created."""
    bucket, _, name = re.sub("^(gs://|/gcs/)", "", uri).partition("/")
    base = os.path.join(os.path.realpath(root), check_name(bucket))
    target = os.path.realpath(os.path.join(base, name.lstrip("/")))
    if target != base and not target.startswith(base + os.sep):
        raise BucketError(f"{uri!r} leaves the folder of its bucket, {base}; write it without '..' or links to elsewhere.")
    return f"{base}/{name.lstrip('/')}" if name else base


def localize(text: str, root: str | Path) -> str:
    """Return `text` (an argument, a variable's value) with every `gs://…` and `/gcs/…` in it turned into a path."""
    return _REFERENCE.sub(lambda match: to_path(match.group(), root), text)


def plain(name: str) -> str:
    """Return an object's name as a path below a folder; one that would leave it is refused."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise BucketError(f"object {name!r} is no plain path: copy it by itself, under another name, with `gcloud storage cp`.")
    return name
