"""What the commands about recorded jobs share: the store of a state folder, and a job by its id."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import cli
from ..errors import UserError, quoted
from ..job import times
from . import job_record
from .store import FILE, Store


@dataclass(frozen=True)
class Record:
    """A recorded job: its document as the API shows it, and its folder."""

    document: dict[str, Any]
    folder: Path

    @property
    def job_id(self) -> str:
        """The last part of its name."""
        return self.document["name"].rpartition("/")[2]

    @property
    def kind(self) -> str:
        """Such as customJobs."""
        return self.document["name"].split("/")[-2]

    @property
    def state(self) -> str:
        """Such as RUNNING."""
        return job_record.plain_state(self.document)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return job_record.is_over(self.document)

    @property
    def duration(self) -> float | None:
        """How many seconds it ran, or has been running for; None before its start."""
        return times.spent(self.document) if "startTime" in self.document else None

    @property
    def result(self) -> dict[str, Any]:
        """The content of its `result.json`; empty if there is none."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        return {}

    @property
    def folders(self) -> list[Path]:
        """Its folder and those of its trials."""
        trials = sorted(self.folder.parent.glob(f"{self.job_id}-trial-*"), key=lambda path: (len(path.name), path.name))
        return [folder for folder in (self.folder, *trials) if folder.is_dir()]


@dataclass(frozen=True)
class Records:
    """The jobs of a state folder."""

    state: Path
    store: Store

    def all(self) -> list[Record]:
        """Return every job, the newest first."""
        documents = [document for kind in job_record.KINDS for document in self.store.list(kind)]
        documents.sort(key=lambda document: document["createTime"], reverse=True)
        return [self._record(document) for document in documents]

    def get(self, job_id: str) -> Record:
        """Return the job of an id or a full name.

        Raises:
            UserError: there is no such job, or several have that id.
        """
        if "/" in job_id:
            document = self.store.get(job_id)
            found = [document] if document else []
        else:
            found = self.store.named(job_id, *job_record.KINDS)
        if not found:
            raise UserError(f"there is no job {quoted(job_id)} in {self.state}; see `python -m vertex_local list`.")
        if len(found) > 1:
            raise UserError(f"several jobs have the id {job_id}: give the name, {' or '.join(each['name'] for each in found)}.")
        return self._record(found[0])

    def backing(self, record: Record) -> Record:
        """Return the job that a training pipeline has started, because that is what runs; any other record as it is."""
        metadata = record.document.get("trainingTaskMetadata", {})
        name = metadata.get("backingCustomJob") or metadata.get("backingHyperparameterTuningJob")
        return self.get(name) if name else record

    def _record(self, document: dict[str, Any]) -> Record:
        return Record(document, self.state / "jobs" / document["name"].rpartition("/")[2])


def _hint(document: Mapping[str, Any]) -> str:
    number = document["name"].rpartition("/")[2]
    return f"; `python -m vertex_local tune --job_id {number}` goes on with it" if "studySpec" in document else ""


def parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a command about recorded jobs."""
    made = cli.Parser(
        prog=f"python -m vertex_local {command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--state_dir", metavar="DIR", default=".vertex_local", help="folder for jobs (default: %(default)s)")
    return made


@contextlib.contextmanager
def opened(state_dir: str | Path) -> Iterator[Records]:
    """Open the records of a state folder; jobs whose process was killed are recorded as failed."""
    state = Path(state_dir).resolve()
    if not (state / FILE).is_file():
        raise UserError(f"--state_dir: no job was recorded in {state_dir} yet. Name the folder in which one was run.")
    with contextlib.closing(Store(state)) as store:
        job_record.settle(store, state, _hint)
        yield Records(state, store)


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
