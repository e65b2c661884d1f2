"""Download the public data sets of the trainers: see `scripts/download_data --help`.

The question titles are one archive, which `stackoverflow` reads unchanged. An interrupted download goes on where it stopped,
if the server still has the same file. Its name ends in `.part` until its size and checksums have been found right. The taxi
trips are the result of a query (see taxi.py).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import gzip
import hashlib
import http.client
import json
import os
import re
import socket
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from vertex_runtime.environment import quoted
from vertex_runtime.errors import FAILED, UserError, run_as_program
from vertex_runtime.reporting import log

from . import ended_by_signals, manifest, taxi

URL = "https://storage.googleapis.com/download.tensorflow.org/data/stack_overflow_16k.tar.gz"
ATTEMPTS = 6
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20  # bytes
_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # HTTP codes after which another attempt may succeed


class _Broken(Exception):
    """An attempt failed, but another may succeed."""


class _NoNetwork(_Broken):
    """The server's name cannot be resolved; another attempt will hardly change that."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's flags."""
    parser = argparse.ArgumentParser("download_data", allow_abbrev=False, description="Download a public data set.")
    parser.add_argument("data", choices=["stackoverflow", "taxifare"], help="the trainer that the data is for")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="where to put it")
    parser.add_argument("--url", default=URL, help="stackoverflow: another place of the archive")
    parser.add_argument("--project", help="taxifare: the project that pays for the query; default: the environment's")
    parser.add_argument("--table", default="nyc-tlc.yellow.trips", help="taxifare: the table of the trips; default: %(default)s")
    parser.add_argument(
        "--sample", type=int, default=1000, metavar="N",
        help="taxifare: take one pickup time in N, and for validation one in 10 N; default: 1000, about a million trips",
    )  # fmt: skip
    options = parser.parse_args(argv)
    if options.sample < 1:
        raise UserError(f"--sample must be 1 or more; got {options.sample}.")
    if not re.fullmatch(r"[\w:.-]+\.\w+\.\w+", options.table):
        raise UserError(f"--table must look like project.dataset.table; got {quoted(options.table)}.")
    if not re.match(r"https?://[^/?]+/([^?]*/)?[^/?]+(\?|$)", options.url):
        raise UserError(f"--url must be an http or https address of a file; got {quoted(options.url)}.")
    if "://" in options.to:
        raise UserError(f"--to must be a folder of this machine; got {options.to}. Copy it there with gcloud storage cp afterwards.")
    return options


def download(url: str, folder: str) -> str:
    """Download a gzip file into a folder, or complete an earlier download of it, and return its path.

    Raises:
        UserError: the server cannot be reached or has no such file, or the file is damaged.
    """
    path = os.path.join(folder, os.path.basename(url.partition("?")[0]))
    if os.path.exists(path):
        _check_gzip(path, path)
        log("INFO", f"{path} is here already and whole; sha256 {manifest.fingerprint(path)['sha256']}")
        return path
    with _part(path) as file:
        facts = _fetch_all(url, file, path)
        try:
            checked = _check(file.name, facts)
            _check_gzip(file.name, path)
        except UserError:
            _forget(path)
            raise
        made = manifest.fingerprint(file.name)
        os.replace(file.name, path)
        _forget(path)
    log("INFO", f"{path}: {made['bytes']:,} bytes, {', '.join([*checked, 'gzip'])} as they should be; sha256 {made['sha256']}")
    return path


@contextlib.contextmanager
def _part(path: str) -> Iterator[BinaryIO]:
    """Open and lock the `.part` file."""
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        file = open(path + ".part", "ab")  # noqa: SIM115 - closed below
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--to: another download writes {path}.part. Wait for it.") from None
    except OSError as error:
        raise UserError(f"--to: cannot write {path}.part: {error.strerror}. Name another folder.") from None
    with file:
        yield file


def _fetch_all(url: str, file: BinaryIO, path: str) -> dict[str, Any]:
    """Append the missing bytes to the file; return the server's size, version and hashes of the whole."""
    attempts = 0  # in a row without a new byte
    while True:
        before = os.path.getsize(file.name)
        try:
            return _fetch(url, file, path)
        except _Broken as error:
            reason = error
        have = os.path.getsize(file.name)
        attempts = 1 if have > before else attempts + 1
        if attempts >= ATTEMPTS or (isinstance(reason, _NoNetwork) and not have):
            if not have:
                _forget(path)
            kept = f" {have:,} bytes are kept; a new start goes on from there." if have else ""
            raise UserError(
                f"cannot download {url}: {reason}.{kept} Without a network here, fetch it elsewhere and put it there: "
                f"curl -L -o {path} {url} (or: gcloud storage cp {url.replace('https://storage.googleapis.com/', 'gs://')} {path}).",
                FAILED,
            )
        pause = min(PAUSE * 2 ** (attempts - 1), 30)
        log("WARNING", f"{url}: {reason}; trying again in {pause:g} s")
        time.sleep(pause)


def _fetch(url: str, file: BinaryIO, path: str) -> dict[str, Any]:
    """Make one request for the missing bytes.

    Raises:
        _Broken: there was no answer, or it broke off.
        UserError: the server has no such file, or the disk is full.
    """
    known = _remembered(path)
    have = os.path.getsize(file.name)
    if have and not known.get("version"):  # the rest may be of another version
        file.truncate(0)
        have = 0
    if have and have == known.get("size"):
        return known
    headers = {"Accept-Encoding": "identity", "User-Agent": "download_data"}
    if have:  # only if the server still has that version, else all of it
        headers |= {"Range": f"bytes={have}-", "If-Range": known["version"]}
    with _errors(url, file), urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        facts = _facts(answer)
        if answer.status != 206:
            file.truncate(0)
        elif not have or (facts["start"], facts["version"]) != (have, known["version"]):
            file.truncate(0)
            raise _Broken("the server sent another part than was asked for")
        _remember(path, facts)
        _copy(answer, file, facts["size"])
    return facts


@contextlib.contextmanager
def _errors(url: str, file: BinaryIO) -> Iterator[None]:
    """Turn the errors of a request into those of `_fetch`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the file has become shorter
            file.truncate(0)
            raise _Broken("the server has fewer bytes than are here") from None
        text = f"the server answered {error.code} {error.reason}"
        if error.code in _AGAIN:
            raise _Broken(text) from None
        raise UserError(f"cannot download {url}: {text}. Give the right place: --url.", FAILED) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        kind = _NoNetwork if isinstance(reason, socket.gaierror) else _Broken
        raise kind(str(reason) or type(error).__name__) from None


def _facts(answer: Any) -> dict[str, Any]:
    """Return the facts about the whole file in an answer's headers: start, size, version and hashes."""
    headers = answer.headers
    size = int(headers["Content-Length"]) if (headers["Content-Length"] or "").isdigit() else None
    start = 0
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers["Content-Range"] or "")
        start, size = (int(found[1]), int(found[2])) if found else (-1, None)
    etag = headers["ETag"] or ""
    version = etag if etag and not etag.startswith("W/") else headers["Last-Modified"]
    pairs = (pair.strip().partition("=") for line in headers.get_all("x-goog-hash") or () for pair in line.split(","))
    hashes = {name: value for name, _, value in pairs if name in ("md5", "crc32c")}
    if headers["Content-Encoding"]:  # the hashes are those of the stored bytes, which differ from the sent ones
        hashes = {}
    return {"start": start, "size": size, "version": version, "hashes": hashes}


def _copy(answer: Any, file: BinaryIO, size: int | None) -> None:
    from tqdm import tqdm

    have = os.path.getsize(file.name)
    with tqdm(total=size, initial=have, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        while True:
            # read1 returns what has arrived, so it is kept even if the connection breaks before a block is full.
            block = answer.read1(_BLOCK)
            if not block:
                break
            try:
                file.write(block)
                file.flush()
            except OSError as error:
                raise UserError(f"--to: cannot write {file.name}: {error.strerror}. Make room or name another folder.", FAILED) from None
            have += len(block)
            bar.update(len(block))
    if size is not None and have < size:
        raise _Broken(f"the connection broke off after {have:,} of {size:,} bytes")


# ------------------------------------------------------------------ facts about an unfinished download


def _remembered(path: str) -> dict[str, Any]:
    try:
        with open(path + ".part.json", encoding="utf-8") as file:
            found = json.load(file)
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _remember(path: str, facts: dict[str, Any]) -> None:
    try:
        with open(path + ".part.json", "w", encoding="utf-8") as file:
            json.dump(facts, file)
    except OSError as error:
        raise UserError(f"--to: cannot write {path}.part.json: {error.strerror}. Make room or name another folder.", FAILED) from None


def _forget(path: str) -> None:
    for name in (path + ".part", path + ".part.json"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)


# ------------------------------------------------------------------ checks of a finished download


def _check(part: str, facts: dict[str, Any]) -> list[str]:
    """Compare size and hashes with the server's; return which of them it told.

    Raises:
        UserError: one of them differs.
    """
    size, checked = os.path.getsize(part), []
    if facts["size"] is not None:
        if facts["size"] != size:
            raise UserError(f"{part} has {size:,} bytes, not {facts['size']:,} as the server says; it was removed. Start again.", FAILED)
        checked.append("size")
    for name, wanted in sorted(facts["hashes"].items()):
        digest: Any = hashlib.md5(usedforsecurity=False) if name == "md5" else _crc32c()
        if digest is None:
            continue
        with open(part, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        found = base64.b64encode(digest.digest()).decode()
        if found != wanted:
            raise UserError(f"{part} has the {name} {found}, not {wanted} as the server says; it was removed. Start again.", FAILED)
        checked.append(name)
    return checked


def _crc32c() -> Any:
    """Return a CRC-32C to update; None if google-crc32c, which comes with Google's storage client, is not installed."""
    try:
        from google_crc32c import Checksum
    except ImportError:
        return None
    return Checksum()


def _check_gzip(path: str, name: str) -> None:
    """Decompress a file to its end, which checks gzip's own checksum; `name` is the file's final path.

    Raises:
        UserError: it is incomplete or damaged.
    """
    try:
        with gzip.open(path) as file:
            while file.read(_BLOCK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        remedy = f"Remove {name} and start again" if path == name else "It was removed; start again"
        raise UserError(f"{path} is not a complete gzip file: {str(error).rstrip('.')}. {remedy}.", FAILED) from None


# ------------------------------------------------------------------ the program


def main(argv: Sequence[str] | None = None) -> list[str]:
    """Download and return the paths of the files.

    Raises:
        UserError: anything that the user can correct.
    """
    options = parse(argv)
    try:
        with ended_by_signals(f"what is in {options.to} is kept, and a new start goes on from there"):
            if options.data == "taxifare":
                return taxi.download(options.table, options.sample, options.project, options.to)
            path = download(options.url, options.to)
            log("INFO", f"scripts/train stackoverflow --train_data_path={path} --eval_data_path={path}")
            return [path]
    except OSError as error:
        raise UserError(f"--to: {error.filename or options.to}: {error.strerror or error}. Name another folder.", FAILED) from None


if __name__ == "__main__":
    run_as_program(main)
