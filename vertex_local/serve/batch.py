"""A batch prediction: instances from files, in batches through the model's process, answers and errors into files."""

from __future__ import annotations

import contextlib
import csv
import glob
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..job import buckets
from .executor import Stopped
from .instances import Config, Instance, Unreadable, read
from .rest import ApiError

BATCH = 512  # instances that are asked at once, unless the job says how many
BATCH_BYTES = 4 << 20  # of their text, above which a batch is not filled up
EVERY = 5.0  # seconds between two lines of the log, and two looks at the figures
MOST_FAILURES = 20  # that the job itself names
_INVALID = 3  # google.rpc.Code.INVALID_ARGUMENT
_PLACE = re.compile(r"(?:instances: )?(\d+): ")
_UNPLACED = "the model refuses the instances"  # what the worker says where it cannot tell which instance is at fault


@dataclass
class Counts:
    """How far a job has come."""

    succeeded: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)  # the first ones, each with its place

    def fail(self, text: str) -> None:
        """Note a failure that the job itself names, as long as there are few."""
        if len(self.failures) < MOST_FAILURES:
            self.failures.append(text)

    def as_fields(self) -> dict[str, Any]:
        """Return the API's fields of a job."""
        stats = {"successfulCount": str(self.succeeded), "failedCount": str(self.failed)}
        return {"completionStats": stats, "partialFailures": [{"code": _INVALID, "message": text} for text in self.failures]}


@dataclass(frozen=True)
class Batch:
    """What a job asks.

    Attributes:
        uris: `gs://bucket/object`, with wildcards or not.
        root: where `gs://bucket/x` lies as `bucket/x`.
        ask: returns the predictions of instances; ones that do not fit the model are an ApiError INVALID_ARGUMENT.
        say: takes a line for the job's log.
        note: takes how far it has come.
    """

    uris: Sequence[str]
    form: str
    config: Config
    size: int
    root: Path
    ask: Callable[[list[Any]], list[Any]]
    say: Callable[[str], None]
    note: Callable[[Counts], None]

    def run(self, folder: Path, output: str, cancel: threading.Event) -> Counts:
        """Predict everything into `folder`; answers and errors appear there as they come.

        Args:
            output: jsonl or csv.

        Raises:
            Stopped: it was cancelled. ApiError: the model's process ended.
        """
        found, counts, start = files(self.uris, self.root), Counts(), time.monotonic()
        self.say(f"{len(found)} file(s), {sum(path.stat().st_size for path in found.values()):,} bytes")
        folder.mkdir(parents=True)
        with _Output(folder, output, self.config) as out, _Progress(self, counts, len(found)) as progress:
            for number, (uri, path) in enumerate(found.items(), 1):
                progress.file = number
                for some in _batches(self._instances(uri, path, counts), self.size):
                    if cancel.is_set():
                        raise Stopped
                    self._one(some, out, counts)
                    progress()
        seconds = time.monotonic() - start
        pace = counts.succeeded / max(seconds, 1e-9)
        self.say(f"{counts.succeeded:,} predicted, {counts.failed:,} failed in {seconds:.1f} s ({pace:,.0f}/s)")
        return counts

    def _instances(self, uri: str, path: Path, counts: Counts) -> Iterator[Instance]:
        """Yield a file's instances; the part of it that cannot be read is a failure of its own."""
        try:
            yield from read(path, uri, self.form, lambda name: buckets.to_path(name, self.root))
        except (Unreadable, OSError) as error:
            text = str(error) if isinstance(error, Unreadable) else f"{uri}: cannot be read: {error.strerror}"
            counts.fail(f"{text}; what follows in the file is left out.")
            self.say(f"error: {text}")

    def _one(self, some: Sequence[Instance], out: _Output, counts: Counts) -> None:
        """Predict one batch and write what comes of it, in the order of the instances."""
        asked: dict[int, Any] = {}
        problems = {place: each.problem for place, each in enumerate(some) if each.problem}
        for place, each in enumerate(some):
            try:
                asked |= {} if each.problem else {place: self.config.asked(each.content)}
            except Unreadable as error:
                problems[place] = str(error)
        answers = dict(zip(asked, answered(self.ask, list(asked.values()))))
        for place, each in enumerate(some):
            answer = problems.get(place) or answers[place]
            if place in problems or isinstance(answer, Refused):
                counts.failed += 1
                counts.fail(f"{each.where}: {answer}")
                out.error(each.content, str(answer))
            else:
                counts.succeeded += 1
                out.answer(each.content, answer)


class Refused(str):
    """Why the model gives no prediction for an instance."""


def answered(ask: Callable[[list[Any]], list[Any]], instances: list[Any]) -> list[Any]:
    """Return a prediction, or a Refused, for each instance: a batch that does not fit is asked again in parts until it does."""
    found: list[Any] = [None] * len(instances)
    parts = [(0, len(instances))] if instances else []
    while parts:
        start, end = parts.pop()
        try:
            found[start:end] = ask(instances[start:end])
        except ApiError as error:
            if error.status != "INVALID_ARGUMENT":
                raise
            place = _PLACE.match(error.message)
            if end - start == 1:
                found[start] = Refused(_PLACE.sub("", error.message, count=1))
                continue
            known = place is not None and int(place[1]) < end - start and _UNPLACED not in error.message
            cuts = [int(place[1]), int(place[1]) + 1] if place and known else [(end - start) // 2]
            bounds = [start, *(start + cut for cut in cuts), end]
            parts += [(low, high) for low, high in zip(bounds, bounds[1:]) if low < high]
    return found


def files(uris: Iterable[str], root: Path) -> dict[str, Path]:
    """Return the files that URIs match, each once, in order.

    Raises:
        ApiError: a URI is none, leads out of its bucket, or matches no file.
    """
    found: dict[str, Path] = {}
    for uri in uris:
        if not uri.startswith("gs://"):
            raise ApiError("INVALID_ARGUMENT", f"inputConfig.gcsSource.uris takes gs://bucket/object; got {uri[:100]!r}.", _URIS)
        try:
            path = buckets.to_path(uri, root)
        except buckets.BucketError as error:
            raise ApiError("INVALID_ARGUMENT", str(error), _URIS) from None
        matches = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
        inside = os.path.realpath(root) + os.sep
        known = [match for match in matches if os.path.isfile(match) and os.path.realpath(match).startswith(inside)]
        if not known:
            raise ApiError("NOT_FOUND", f"{uri[:300]} matches no object ({path[:300]}).", _URIS)
        found |= {"gs://" + os.path.relpath(match, os.path.realpath(root)): Path(match) for match in known}
    return found


_URIS = "inputConfig.gcsSource.uris"


def _batches(instances: Iterator[Instance], size: int) -> Iterator[list[Instance]]:
    some: list[Instance] = []
    held = 0
    for each in instances:
        some.append(each)
        held += each.size
        if len(some) >= size or held >= BATCH_BYTES:
            yield some
            some, held = [], 0
    if some:
        yield some


class _Progress:
    """Says every few seconds how far a job has come."""

    def __init__(self, batch: Batch, counts: Counts, files: int):
        self.batch, self.counts, self.files, self.file, self.last = batch, counts, files, 0, time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __call__(self) -> None:
        if time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            self.batch.say(f"file {self.file} of {self.files}: {self.counts.succeeded:,} predicted, {self.counts.failed:,} failed")
            self.batch.note(self.counts)

    def __exit__(self, *_: object) -> None:
        self.batch.note(self.counts)


class _Output:
    """The files of answers and of errors."""

    def __init__(self, folder: Path, form: str, config: Config):
        self._config, self._form, self._stack = config, form, contextlib.ExitStack()
        ending = ".csv" if form == "csv" else ""
        self._answers = self._opened(folder / f"prediction.results-00000-of-00001{ending}")
        self._errors = self._opened(folder / f"prediction.errors_stats-00000-of-00001{ending}")
        self._writers: dict[IO[str], csv.DictWriter] = {}

    def _opened(self, path: Path) -> IO[str]:
        # Half a pair of surrogates, which JSON may hold and UTF-8 may not, is written as JSON writes it, in CSV, too.
        return self._stack.enter_context(open(path, "x", encoding="utf-8", errors="backslashreplace", newline=""))

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def answer(self, content: Any, prediction: Any) -> None:
        """Write a prediction."""
        self._write(self._answers, content, "prediction", prediction)

    def error(self, content: Any, text: str) -> None:
        """Write what failed, and why."""
        self._write(self._errors, content, "error", {"code": _INVALID, "message": text})

    def _write(self, file: IO[str], content: Any, name: str, said: Any) -> None:
        shown = self._config.shown(content)
        if self._form == "jsonl":
            file.write(json.dumps({**shown, name: said}) + "\n")  # in ASCII: what some take for the end of a line is escaped, too
            return
        row = dict(content) if "instance" in shown and isinstance(content, Mapping) else shown
        row |= {f"{name}_{key}": value for key, value in said.items()} if isinstance(said, Mapping) else {name: said}
        if file not in self._writers:
            self._writers[file] = csv.DictWriter(file, list(row), restval="", extrasaction="ignore")
            self._writers[file].writeheader()
        self._writers[file].writerow({key: json.dumps(cell) if isinstance(cell, (list, dict)) else cell for key, cell in row.items()})
