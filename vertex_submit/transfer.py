"""Files to Cloud Storage and back by google-cloud-storage: in parallel, resumed where they broke off, compared by CRC32C.

Nothing half-written is taken for whole: an object appears in its bucket in one step, a download gets its name when it is
all there and its checksum is right, and what says that a folder is complete (saved_model.pb, a run's manifest.json) goes
last. Nothing else's is replaced without `overwrite`, nor what came there meanwhile (generation preconditions).

google.cloud.storage's own transfer_manager also copies in parallel, but knows no order of files, no download that goes on
where another process stopped, no preconditions of each object's own generation, and no progress.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import glob
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c  # comes with google-cloud-storage
from google.api_core.exceptions import GoogleAPIError, NotFound, PreconditionFailed, RetryError, ServerError
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import RequestException

from vertex_local.errors import UserError
from vertex_local.job import buckets

from . import sdk
from .progress import Cancelled, Progress

WORKERS = 8
ATTEMPTS = 3  # of a whole file, each with the client's own retries of every request
RETRY_SECONDS = 60.0  # for which a service that does not answer is asked again
PIECE = 8 << 20  # of a resumable upload; smaller files go in one request
LAST = ("saved_model.pb", "manifest.json")  # in this order after all others: with them a folder counts as complete
LEFT_OUT = (".lock",)  # of a run that is going on


@dataclass(frozen=True)
class Options:
    """How files are copied: whether what has other bytes is replaced, and a run taken whose manifest does not call it complete;
    how many files at once; an event that stops it."""

    overwrite: bool = False
    unfinished: bool = False
    workers: int = WORKERS
    cancel: threading.Event | None = None


DEFAULTS = Options()


class TransferError(OSError):
    """What could not be copied, why, and what to do, in one line."""


class NotReplaced(UserError):
    """Something else has the name already."""


def open_client(project: str = "", token_file: str | None = None) -> Any:
    """Return a client with the credentials that gcloud or Google's libraries would take."""
    try:
        # An emulator is asked with the token of a file, or without any.
        found = None if os.environ.get("STORAGE_EMULATOR_HOST") and not token_file else sdk.credentials(token_file)
        return storage.Client(project=project or None, credentials=found)
    except sdk.CloudError as error:
        raise TransferError(f"Cloud Storage: {error}") from None
    except GoogleAuthError as error:
        raise TransferError(f"Cloud Storage: no credentials ({sdk.reason(error)}): {sdk.LOGIN}.") from None


def tell(lines: Iterator[str]) -> int:
    """Print what was done with each file when it is done, and return how many files there were."""
    count = 0
    for line in lines:
        print(line, flush=True)
        count += 1
    return count


def crc32c(path: Path) -> str:
    """Return a file's CRC32C as Cloud Storage writes it."""
    found = google_crc32c.Checksum()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return base64.b64encode(found.digest()).decode()


def _retry() -> Any:
    return DEFAULT_RETRY.with_delay(initial=0.25, multiplier=2.0, maximum=8.0).with_timeout(RETRY_SECONDS)


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn what the client raises into a TransferError."""
    try:
        yield
    except (TransferError, Cancelled):
        raise
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        raise TransferError(f"{what}: {sdk.reason(error)}") from None


class _Damaged(Exception):
    """What arrived has another checksum than what was sent."""


# What another attempt at a whole file may help with: a damaged one, a session that broke, an answer to our own upload that was
# lost or somebody else's upload that came in between.
_TRANSIENT = (DataCorruption, InvalidResponse, PreconditionFailed, ServerError, RequestException, _Damaged)


def _attempts(what: str, once: Callable[[], Any]) -> Any:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return once()
        except (*_TRANSIENT, RetryError) as error:
            if attempt == ATTEMPTS or isinstance(error, RetryError):  # the client has asked for RETRY_SECONDS already
                raise TransferError(f"{what}: {sdk.reason(error)}. Start again; what is whole is kept.") from None
            time.sleep(0.2 * attempt)


def _in_parallel(work: Mapping[str, Callable[[], Any]], workers: int) -> Iterator[Any]:
    """Do the work of each name in threads, what completes a folder last; yield the results in order, or raise the first error."""
    for turn in range(len(LAST) + 1):
        with ThreadPoolExecutor(workers) as pool:
            futures: list[Future[Any]] = [pool.submit(do) for name, do in work.items() if _turn(name) == turn]
            done, open_ones = wait(futures, return_when=FIRST_EXCEPTION)
            for future in open_ones:
                future.cancel()
        yield from (future.result() for future in futures if not future.cancelled())


def _turn(name: str) -> int:
    """Return when it is a file's turn: 0 for most, more for what completes a folder."""
    base = name.rpartition("/")[2]
    return LAST.index(base) + 1 if base in LAST else 0


def _split(uri: str) -> tuple[str, str, str]:
    """Return (bucket, name, prefix of what lies below it) of a `gs://…`."""
    bucket, _, name = uri[len("gs://") :].partition("/")
    return bucket, name, f"{name.rstrip('/')}/" if name else ""


# ------------------------------------------------------------------ up


def upload(client: Any, files: Mapping[Path, str], options: Options = DEFAULTS) -> Iterator[str]:
    """Copy files to their `gs://…` and yield what was done with each.

    Raises:
        NotReplaced: something else has that name. TransferError: the service refused, or holds other bytes in the end.
    """
    with contextlib.closing(Progress("up", sum(path.stat().st_size for path in files), options.cancel)) as progress:
        work = {uri: lambda p=path, u=uri: _upload_one(client, p, u, options.overwrite, progress) for path, uri in files.items()}
        yield from _in_parallel(work, options.workers)


def _upload_one(client: Any, path: Path, uri: str, overwrite: bool, progress: Progress) -> str:
    bucket, name, _ = _split(uri)
    own, size = crc32c(path), path.stat().st_size
    sent: set[int] = set()  # generations that are our own, of an attempt that failed later

    def once() -> str:
        blobs, retry = client.bucket(bucket), _retry()
        there = blobs.get_blob(name, retry=retry)
        if there is not None and (there.crc32c, there.size) == (own, size):
            progress.reach(uri, size)
            return f"uploaded to {uri}, crc32c {own} on both sides" if sent else f"{uri} is there already, the same bytes"
        if there is not None and not overwrite and there.generation not in sent:
            raise NotReplaced(f"{uri} holds something else: raise the version, or give --overwrite.")
        blob = blobs.blob(name, chunk_size=PIECE if size > PIECE else None)
        sent.add(-1)
        with open(path, "rb") as file:
            watched = progress.watch(file, "read", uri)
            condition = there.generation if there is not None else 0
            blob.upload_from_file(watched, rewind=True, size=size, if_generation_match=condition, checksum="crc32c", retry=retry)
        sent.add(blob.generation)
        blob.reload(retry=retry)
        if (blob.crc32c, blob.size) != (own, size):
            raise _Damaged(f"it arrived with crc32c {blob.crc32c} and {blob.size} bytes, sent were {own} and {size}")
        return f"uploaded to {uri}, crc32c {own} on both sides"

    with _one_line(f"{uri}: not uploaded"):
        return _attempts(f"{uri}: not uploaded", once)


def files_of(folder: Path, uri: str) -> dict[Path, str]:
    """Return where each file of a folder goes; unfinished downloads and a lock stay."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in LEFT_OUT)
    return {path: f"{uri.rstrip('/')}/{path.relative_to(folder).as_posix()}" for path in paths if not path.match(".*.part")}


# ------------------------------------------------------------------ down


def download(client: Any, uri: str, folder: Path, options: Options = DEFAULTS) -> Iterator[str]:
    """Copy an object, or all below a folder's `gs://…`, into a local folder; yield what was done with each.

    Args:
        folder: where to; a single object's own path, if no folder is there.

    Raises:
        NotReplaced: a file with other bytes has that name. TransferError: nothing is there, the run is not whole, or the
            service refused.
    """
    bucket, name, prefix = _split(uri)
    with _one_line(f"{uri}: not downloaded"):
        one = client.bucket(bucket).get_blob(name, retry=_retry()) if name and not name.endswith("/") else None
        found = [one] if one else list(client.list_blobs(bucket, prefix=prefix, retry=_retry()))
        cut = len(name) - len(name.rpartition("/")[2]) if one else len(prefix)
        blobs = {blob.name[cut:]: blob for blob in found if not blob.name.endswith("/") and blob.name.rpartition("/")[2] not in LEFT_OUT}
        if not blobs:
            raise TransferError(f"{uri}: there is no such object, and none below it. Look with `gcloud storage ls`.")
        if not options.unfinished:
            _verify_manifests(uri, blobs)
    alone = one is not None and not folder.is_dir()
    targets = {name: folder if alone else folder / buckets.plain(name) for name in blobs}
    with contextlib.closing(Progress("down", sum(blob.size for blob in blobs.values()), options.cancel)) as progress:
        work = {name: lambda b=blob, t=targets[name]: _download_one(b, t, options.overwrite, progress) for name, blob in blobs.items()}
        yield from _in_parallel(work, options.workers)


def checksums(client: Any, uri: str) -> dict[str, tuple[int, str]]:
    """Return size in bytes and CRC32C of each object below a folder's `gs://…`, by its name below it; {} if there is none."""
    bucket, _, prefix = _split(uri)
    with _one_line(uri):
        try:
            found = list(client.list_blobs(bucket, prefix=prefix, retry=_retry()))
        except NotFound:  # the bucket
            return {}
    names = {blob.name[len(prefix) :]: blob for blob in found if not blob.name.endswith("/")}
    return {name: (blob.size, blob.crc32c) for name, blob in names.items() if name.rpartition("/")[2] not in LEFT_OUT}


def _verify_manifests(uri: str, blobs: Mapping[str, Any]) -> None:
    """Compare what a bucket holds with each run's manifest there; raise a TransferError at the first difference."""
    for name in [name for name in blobs if name.rpartition("/")[2] == "manifest.json"]:
        base = name.rpartition("/")[0]
        try:
            read = functools.partial(blobs[name].download_as_bytes, if_generation_match=blobs[name].generation, retry=_retry())
            manifest = json.loads(_attempts(f"{uri}: {name} cannot be read", read))
            files = {file: dict(wanted) for file, wanted in manifest["files"].items()} if "complete" in manifest else {}
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # somebody else's file of that name
        remedy = "let it finish, or give --unfinished to take what is there"
        if not manifest.get("complete", True):
            raise TransferError(f"{uri}: {name} says that the run is not complete (it goes on, or was killed): {remedy}.")
        for file, wanted in files.items():
            path = os.path.normpath(os.path.join(base, file)) if base else os.path.normpath(file)
            if path.startswith(".."):
                continue  # the model of a job lies beside its records, and here above what is copied
            blob = blobs.get(path)
            found = {} if blob is None else {"bytes": blob.size, "crc32c": blob.crc32c}
            wrong = [f"{key} {found.get(key)} instead of {value}" for key, value in wanted.items() if found.get(key) != value]
            if wrong:
                what = ", ".join(wrong) if blob else "it is not there"
                raise TransferError(f"{uri}: {path} is not what the manifest says ({what}). Start the run again, or give --unfinished.")


def _download_one(blob: Any, target: Path, overwrite: bool, progress: Progress) -> str:
    uri = f"gs://{blob.bucket.name}/{blob.name}"
    if target.exists() and not target.is_dir() and (target.stat().st_size, crc32c(target)) == (blob.size, blob.crc32c):
        progress.reach(uri, blob.size)
        return f"{target} is there already, the same bytes"
    if target.is_dir() or (target.exists() and not overwrite):
        raise NotReplaced(f"{target} holds something else than {uri}: choose another folder, or give --overwrite.")
    part = target.with_name(f".{target.name}.{blob.generation}.part")

    def once() -> str:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            if file.tell() > blob.size:
                file.truncate(0)
            if file.tell() < blob.size:
                watched = progress.watch(file, "write", uri)
                start, condition = file.tell() or None, {"if_generation_match": blob.generation}
                # As stored: a gzip encoding stays, and the checksum is that of these bytes. It is ours to compare.
                blob.download_to_file(watched, start=start, raw_download=True, checksum=None, retry=_retry(), **condition)
            file.flush()
            os.fsync(file.fileno())
            got = file.tell()
        if got < blob.size:
            raise _Damaged(f"{got} of {blob.size} bytes came")
        if (found := crc32c(part)) != blob.crc32c:
            part.unlink()
            raise _Damaged(f"it arrived with crc32c {found} instead of {blob.crc32c}")
        os.replace(part, target)
        return f"downloaded {target}, crc32c {blob.crc32c} on both sides"

    with _one_line(f"{uri}: not downloaded to {target}"):
        done = _attempts(f"{uri}: not downloaded", once)
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.part"):  # what came of other generations of the object
        if path.name.split(".")[-2].isdecimal():
            path.unlink(missing_ok=True)
    return done
