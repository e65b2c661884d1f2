"""The lock on a run's outputs in a bucket: an object that is created, refreshed and taken over by its generation.

A process of its own keeps it (`python -c`, no TensorFlow): Google's storage client draws from Python's global random
numbers, which belong to the training, and TensorFlow may hold Python up for longer than a heartbeat. The process also
outlives a trainer that was killed alone, and releases the lock then. Where google-cloud-storage is not installed, or
finds no credentials, a thread does the same through TensorFlow, without preconditions, and the run says so.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .environment import Environment
from .errors import FAILED, UserError
from .reporting import log, report_error

NAME = ".lock"
HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 300.0  # without a heartbeat, after which the owner counts as dead wherever it was
START_SECONDS = 180.0  # for which the keeper may look for credentials and ask again
RESTARTS = 3
Found = tuple[dict[str, Any], int, float]  # what a lock says, its generation, when it was written by the server's clock


class Refused(Exception):
    """A live run holds the lock, or took it over; the text describes that run."""


class Conflict(Exception):
    """The object has another generation than was expected."""


class Unlockable(Exception):
    """The service cannot be asked with what is installed or configured here."""


# ------------------------------------------------------------------ owners


def describe_owner(env: Environment) -> dict[str, Any]:
    """Return who this process is: its job and replica on the service, its place and start on this machine."""
    pid = os.getpid()
    return {
        "token": uuid.uuid4().hex, "job": env.job, "replica": env.name, "host": socket.gethostname(), "machine": _machine(),
        "pid": pid, "pid_start": _start_of(pid), "started": _stamp(),
    }  # fmt: skip


def _machine() -> str | None:
    """Return what tells this boot of the machine and this space of process numbers from all others (Linux)."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """Return when a process started, in the kernel's clock ticks; None where there is no such process, or only its remains."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _stamp() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def why_dead(owner: Mapping[str, Any], mine: Mapping[str, Any], age: Callable[[], float]) -> str | None:
    """Return why the owner of a lock no longer runs; None for one that may.

    Args:
        age: returns the seconds since its last heartbeat; called only where nothing nearer decides.
    """
    if owner.get("token") == mine["token"]:
        return "it is this run's own"
    if owner.get("machine") and owner["machine"] == mine["machine"]:
        alive = owner.get("pid_start") and _start_of(int(owner["pid"])) == owner["pid_start"]
        return None if alive else "its process is gone"
    if owner.get("job") and (owner["job"], owner.get("replica")) == (mine["job"], mine["replica"]):
        return "the service started this replica again"  # it never runs one twice
    seconds = age()
    return f"its last heartbeat is {seconds / 60:.0f} minutes old" if seconds > STALE_SECONDS else None


def say_owner(owner: Mapping[str, Any]) -> str:
    job = f"job {owner['job']}, " if owner.get("job") else ""
    return f"{job}replica {owner.get('replica')}, host {owner.get('host')}, pid {owner.get('pid')}, started {owner.get('started')}"


# ------------------------------------------------------------------ where the object lies


class CloudStore:
    """One object by google-cloud-storage, with preconditions that the service itself keeps."""

    def __init__(self, uri: str):
        """Open it; raises Unlockable where the package or credentials are missing, or it is another kind of storage."""
        if not uri.startswith("gs://"):
            raise Unlockable(f"{uri.partition('://')[0]}:// is not Cloud Storage")
        try:
            from google.auth.exceptions import GoogleAuthError
            from google.cloud import storage
            from google.cloud.storage.retry import DEFAULT_RETRY
        except ImportError:
            raise Unlockable("google-cloud-storage is not installed") from None
        bucket, _, self.name = uri[len("gs://") :].partition("/")
        self.retry = DEFAULT_RETRY.with_timeout(60.0)
        try:
            self.bucket = storage.Client().bucket(bucket)
        except GoogleAuthError as error:
            raise Unlockable(f"google-cloud-storage finds no credentials ({' '.join(str(error).split())[:120]})") from None

    def read(self) -> Found | None:
        """Return what the object holds now, None where there is none."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        while (blob := self.bucket.get_blob(self.name, retry=self.retry)) is not None:
            with contextlib.suppress(NotFound, PreconditionFailed):  # replaced between the two questions
                content = blob.download_as_bytes(if_generation_match=blob.generation, retry=self.retry)
                return _parsed(content), blob.generation, blob.updated.timestamp()
        return None

    def write(self, content: Mapping[str, Any], generation: int) -> int:
        """Replace the object of this generation (0: create it) and return the new one's; raises Conflict where it has another."""
        from google.api_core.exceptions import PreconditionFailed

        blob = self.bucket.blob(self.name)
        try:
            blob.upload_from_string(json.dumps(content).encode(), "application/json", if_generation_match=generation, retry=self.retry)
        except PreconditionFailed:
            raise Conflict from None
        return blob.generation

    def remove(self, generation: int) -> None:
        """Delete the object if it still has this generation."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with contextlib.suppress(NotFound, PreconditionFailed):
            self.bucket.blob(self.name).delete(if_generation_match=generation, retry=self.retry)

    def now(self) -> float:
        """Return the time by the clock that dates the lock: machines' own clocks may differ."""
        blob = self.bucket.blob(f"{self.name}-clock-{uuid.uuid4().hex}")
        blob.upload_from_string(b"", retry=self.retry)
        blob.delete(retry=self.retry)
        return blob.updated.timestamp()


class PlainStore:
    """One object by TensorFlow's file system, which knows no preconditions: two starts in the same second may both win."""

    def __init__(self, uri: str):
        import tensorflow as tf

        self.files, self.uri, self.missing = tf.io.gfile, uri, tf.errors.NotFoundError

    def read(self) -> Found | None:
        """Return what the object holds now, with the time of its writing as its generation."""
        try:
            written = self.files.stat(self.uri).mtime_nsec
            with self.files.GFile(self.uri, "rb") as file:
                return _parsed(file.read()), written, written / 1e9
        except self.missing:
            return None

    def write(self, content: Mapping[str, Any], generation: int) -> int:
        """Write the object, unless somebody else's lies there by now."""
        found = self.read()
        if found is not None and found[0].get("token") != content["token"] and found[1] != generation:
            raise Conflict
        with self.files.GFile(self.uri, "wb") as file:
            file.write(json.dumps(content).encode())
        return self.files.stat(self.uri).mtime_nsec

    def remove(self, generation: int) -> None:
        with contextlib.suppress(self.missing):
            self.files.remove(self.uri)

    def now(self) -> float:
        """Return the time by the server's clock."""
        uri = f"{self.uri}-clock-{uuid.uuid4().hex}"
        with self.files.GFile(uri, "wb") as file:
            file.write(b"x")
        try:
            return self.files.stat(uri).mtime_nsec / 1e9
        finally:
            self.files.remove(uri)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"host": "unknown"}


# ------------------------------------------------------------------ keeping it


class Keeper:
    """Takes, refreshes and releases a lock for one owner."""

    def __init__(self, store: CloudStore | PlainStore, owner: Mapping[str, Any]):
        self.store, self.owner, self.generation = store, dict(owner), 0

    def acquire(self) -> str | None:
        """Take the lock and return what is to be said about it: whose it was, where it was taken over.

        Raises:
            Refused: a live run holds it.
        """
        note = None
        while True:
            try:
                self.generation = self.store.write(self._content(), self.generation)
                return note
            except Conflict:
                pass
            found = self.store.read()
            if found is None:
                self.generation = 0  # released meanwhile
                continue
            owner, generation, written = found
            dead = why_dead(owner, self.owner, lambda: self.store.now() - written)
            if dead is None:
                raise Refused(say_owner(owner))
            self.generation = generation  # whoever is first gets it: the other meets a new generation
            if owner.get("token") != self.owner["token"]:
                note = f"the lock was left by {say_owner(owner)}: {dead}, so it is taken over"

    def beat(self) -> None:
        """Say that the owner lives; raises Refused where another run has taken the lock over."""
        try:
            self.generation = self.store.write(self._content(), self.generation)
        except Conflict:
            found = self.store.read()
            if found is not None and found[0].get("token") != self.owner["token"]:
                raise Refused(say_owner(found[0])) from None
            # A write of our own whose answer was lost, or somebody removed the object by hand.
            self.generation = self.store.write(self._content(), found[1] if found else 0)

    def release(self) -> None:
        found = self.store.read()
        if found is not None and found[0].get("token") == self.owner["token"]:
            self.store.remove(found[1])

    def beats(self, ended: Callable[[], Any]) -> Iterator[tuple[str, str]]:
        """Beat until `ended`, which waits in between; yield ("late", why), once for several in a row, or at last ("lost", to whom)."""
        late = False
        while not ended():
            try:
                self.beat()
                late = False
            except Refused as holder:
                yield "lost", str(holder)
                return
            except Exception as error:  # noqa: BLE001 - the next heartbeat may get through
                if not late:
                    yield "late", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                late = True

    def _content(self) -> dict[str, Any]:
        return {**self.owner, "heartbeat": _stamp()}


def keep() -> None:
    """Be the keeping process: `[uri, owner, seconds between heartbeats]` as argv[1], a JSON line on stdout for each event.

    It ends, and releases the lock, when its stdin does: by the trainer's close, or because the trainer is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the trainer, which may take its time to save
        signal.signal(number, signal.SIG_IGN)
    uri, owner, seconds = json.loads(sys.argv[1])
    try:
        keeper = Keeper(CloudStore(uri), owner)
        _tell("held", keeper.acquire())
    except Unlockable as reason:
        return _tell("unlockable", str(reason))
    except Refused as holder:
        return _tell("refused", str(holder))
    except Exception as error:  # noqa: BLE001 - the trainer says it in its own words
        kind = "unlockable" if type(error).__name__ in ("Forbidden", "Unauthorized", "RefreshError", "TransportError") else "failed"
        return _tell(kind, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    for state, text in keeper.beats(lambda: select.select([sys.stdin], [], [], seconds)[0]):
        _tell(state, text)
        if state == "lost":
            return
    with contextlib.suppress(Exception):  # left alone, it goes stale
        keeper.release()


def _tell(state: str, text: str | None) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps([state, text]), flush=True)


class BucketLock:
    """The trainer's end of a lock: held from the start to `close`, or to the end of the process."""

    def __init__(self, directory: str, owner: Mapping[str, Any], on_lost: Callable[[str], None] | None = None):
        """Take the lock of a directory.

        Raises:
            UserError: a live run holds it, or the service cannot be reached.
        """
        self.directory, self.owner, self.uri = directory, owner, f"{directory}/{NAME}"
        self.on_lost = on_lost or self._end
        self.closing = threading.Event()
        self.process: subprocess.Popen[str] | None = None
        self.plain: Keeper | None = None
        note = self._begin()
        if note:
            log("WARNING", f"{directory}: {note}.")
        self.thread = threading.Thread(target=self._follow if self.plain is None else self._beat, daemon=True)
        self.thread.start()

    def __enter__(self) -> BucketLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock and wait until it is."""
        self.closing.set()
        if self.process is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()
            self.thread.join()
        elif self.plain is not None:
            self.thread.join()
            with contextlib.suppress(Exception):
                self.plain.release()

    def _begin(self) -> str | None:
        state, text = self._start()
        if state == "unlockable":
            log("WARNING", f"{text}: the lock on {self.directory} has no preconditions, and two starts at once may both win it: start one.")
            self.plain = Keeper(PlainStore(self.uri), self.owner)
            try:
                return self.plain.acquire()
            except Refused as holder:
                state, text = "refused", str(holder)
        if state == "refused":
            minutes = STALE_SECONDS / 60
            raise UserError(
                f"{self.directory} is in use by a live run ({text}). Wait for it, end it, or use another --output_dir; "
                f"{self.uri} counts as left behind {minutes:g} minutes after its last heartbeat."
            )
        if state != "held":
            raise UserError(f"cannot take the lock {self.uri}: {text}. Start again, or use another --output_dir.", FAILED)
        return text

    def _start(self) -> tuple[str, str | None]:
        """Start the keeping process and return its first word."""
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        code = f"import sys; sys.path.append({root!r}); from vertex_runtime.bucket_lock import keep; keep()"
        words = [sys.executable, "-W", "ignore", "-c", code, json.dumps([self.uri, self.owner, HEARTBEAT_SECONDS])]
        self.process = subprocess.Popen(
            words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )  # fmt: skip
        if not select.select([self.process.stdout], [], [], START_SECONDS)[0]:
            self.process.kill()
            return "failed", f"no answer within {START_SECONDS:g} seconds"
        line = self.process.stdout.readline()
        state, text = json.loads(line) if line else ("failed", f"its process ended with {self.process.wait()}")
        if state != "held":
            self.process.wait()
            self.process = None
        return state, text

    def _follow(self) -> None:
        """Listen to the keeping process until the lock is released; start it again where something ended it."""
        for _ in range(RESTARTS):
            if self._heard(json.loads(line) for line in self.process.stdout):
                return
            if self.closing.is_set():
                return
            before, (state, text) = self.process, self._start()
            if state == "refused":
                self.on_lost(text)
                return
            if state != "held":
                self.process = before
                break
            if self.closing.is_set():
                self.process.stdin.close()
                self.process.wait()
                return
            log("WARNING", f"the process that keeps the lock {self.uri} was ended by something else, and is started again.")
        log("WARNING", f"the lock {self.uri} is no longer kept: another run may take it over after {STALE_SECONDS / 60:g} minutes.")

    def _heard(self, events: Iterable[Sequence[str]]) -> bool:
        """Say what heartbeats say; return whether the lock is lost."""
        for state, text in events:
            if state == "lost":
                self.on_lost(text)
                return True
            log("WARNING", f"the lock {self.uri} could not be refreshed ({text}); trying again.")
        return False

    def _beat(self) -> None:
        self._heard(self.plain.beats(lambda: self.closing.wait(HEARTBEAT_SECONDS)))

    def _end(self, holder: str) -> None:
        """End this run at once, whatever it does: from now on the directory is another one's."""
        report_error(
            f"{self.directory} was taken over by another run ({holder}): this one gave no sign of life, and ends. Let that one run."
        )
        sys.stdout.flush()
        os._exit(FAILED)
