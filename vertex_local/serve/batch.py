"""A batch prediction: instances in batches through the model's process, answers and errors into files, or where an Output puts them."""

from __future__ import annotations

import csv
import glob
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

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
_URIS = "inputConfig.gcsSource.uris"
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
        return {"completionStats": stats, "partialFailures": [status(text) for text in self.failures]}


class Output(AbstractContextManager, Protocol):
    """Where answers and errors go; what it got is there once it is left, however that happens."""

    def add(self, instance: Instance, answer: Any) -> None:
        """Take a prediction, or a Refused."""


@dataclass(frozen=True)
class Batch:
    """What a job asks.

    Attributes:
        sources: the instances of each file or table; one raises Unreadable where the rest of it cannot be read.
        ask: returns the predictions of instances; ones that do not fit the model are an ApiError INVALID_ARGUMENT.
        say: takes a line for the job's log.
        note: takes how far it has come.
    """

    sources: Sequence[Iterator[Instance]]
    config: Config
    size: int
    ask: Callable[[list[Any]], list[Any]]
    say: Callable[[str], None]
    note: Callable[[Counts], None]

    def run(self, output: Output, cancel: threading.Event) -> Counts:
        """Predict everything.

        Raises:
            Stopped: it was cancelled. ApiError: the model's process ended, or the output takes nothing.
        """
        counts, start = Counts(), time.monotonic()
        said = start
        try:
            with output:
                for number, source in enumerate(self.sources, 1):
                    for some in _batches(self._instances(source, counts), self.size):
                        if cancel.is_set():
                            raise Stopped
                        self._one(some, output, counts)
                        if time.monotonic() - said >= EVERY:
                            said = time.monotonic()
                            self.say(f"{number} of {len(self.sources)}: {counts.succeeded:,} predicted, {counts.failed:,} failed")
                            self.note(counts)
        finally:
            self.note(counts)
        seconds = time.monotonic() - start
        pace = counts.succeeded / max(seconds, 1e-9)
        self.say(f"{counts.succeeded:,} predicted, {counts.failed:,} failed in {seconds:.1f} s ({pace:,.0f}/s)")
        return counts

    def _instances(self, source: Iterator[Instance], counts: Counts) -> Iterator[Instance]:
        """Yield a source's instances; the part of it that cannot be read is a failure of its own."""
        try:
            yield from source
        except Unreadable as error:
            counts.fail(f"{error}; what follows in it is left out.")
            self.say(f"error: {error}")

    def _one(self, some: Sequence[Instance], out: Output, counts: Counts) -> None:
        """Predict one batch and write what comes of it, in the order of the instances."""
        found = [self._asked(each) for each in some]
        places = [place for place, asked in enumerate(found) if not isinstance(asked, Refused)]
        for place, answer in zip(places, answered(self.ask, [found[place] for place in places])):
            found[place] = answer
        for each, answer in zip(some, found):
            if isinstance(answer, Refused):
                counts.failed += 1
                counts.fail(f"{each.where}: {answer}")
            else:
                counts.succeeded += 1
            out.add(each, answer)

    def _asked(self, instance: Instance) -> Any:
        """Return the model's input for an instance, or a Refused."""
        try:
            return Refused(instance.problem) if instance.problem else self.config.asked(instance.content)
        except Unreadable as error:
            return Refused(error)


class Refused(str):
    """Why there is no prediction for an instance."""


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


def sources(found: Mapping[str, Path], form: str, root: Path) -> list[Iterator[Instance]]:
    """Return files as sources; `form` is one of `instances.FORMATS`."""
    return [read(path, uri, form, partial(buckets.to_path, root=root)) for uri, path in found.items()]


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


def status(text: str) -> dict[str, Any]:
    """Return the google.rpc.Status of an instance that failed."""
    return {"code": _INVALID, "message": text}


class Files:
    """An Output: the files of answers and of errors in a new folder, in which they appear as they come; `form` is jsonl or csv."""

    def __init__(self, folder: Path, form: str, config: Config):
        self._folder, self._config, self._form = folder, config, form
        self._writers: dict[IO[str], csv.DictWriter] = {}

    def __enter__(self) -> Files:
        self._folder.mkdir(parents=True)
        self._answers, self._errors = map(self._opened, ("results", "errors_stats"))
        return self

    def _opened(self, what: str) -> IO[str]:
        path = self._folder / f"prediction.{what}-00000-of-00001{'.csv' if self._form == 'csv' else ''}"
        # Half a pair of surrogates, which JSON may hold and UTF-8 may not, is written as JSON writes it, in CSV, too.
        return open(path, "x", encoding="utf-8", errors="backslashreplace", newline="")

    def __exit__(self, *_: object) -> None:
        for file in (self._answers, self._errors):
            file.close()

    def add(self, instance: Instance, answer: Any) -> None:
        """Write a prediction, or what failed and why."""
        file, name, said = self._answers, "prediction", answer
        if isinstance(answer, Refused):
            file, name, said = self._errors, "error", status(answer)
        content, shown = instance.content, self._config.shown(instance.content)
        if self._form == "jsonl":
            file.write(json.dumps({**shown, name: said}) + "\n")  # in ASCII: what some take for the end of a line is escaped, too
            return
        row = dict(content) if "instance" in shown and isinstance(content, Mapping) else shown
        row |= {f"{name}_{key}": value for key, value in said.items()} if isinstance(said, Mapping) else {name: said}
        if file not in self._writers:
            self._writers[file] = csv.DictWriter(file, list(row), restval="", extrasaction="ignore")
            self._writers[file].writeheader()
        self._writers[file].writerow({key: json.dumps(cell) if isinstance(cell, (list, dict)) else cell for key, cell in row.items()})
