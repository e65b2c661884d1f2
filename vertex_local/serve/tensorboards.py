"""Copies a job's event files into its TensorBoard instance, as an experiment with the job's id, as on the service."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..job.times import text
from ..local.store import Store
from ..metadata import lineage, nodes, series
from ..metadata.event_files import LogReader

SECONDS = 2.0  # between two looks at the files
_ROOT = "default"  # the run of files directly in the log directory


class Follower:
    """Copies scalars from log directories into the experiment of one job.

    Args:
        tensorboard: the instance's full name.
        job: the job's full name; the experiment gets its id.
        folders: returns the existing log directories, by the prefix of their runs' names ("" for none).
    """

    def __init__(self, records: Store, tensorboard: str, job: str, display_name: str, folders: Callable[[], Mapping[str, Path]]):
        self._records, self._folders = records, folders
        self._readers: dict[str, LogReader] = {}
        self._series: dict[tuple[str, str], str] = {}
        document = {"displayName": display_name, "labels": {"vertex_tensorboard_experiment_source": "custom_job"}, "source": job}
        self._number, self._location = series.id_of(job.rpartition("/")[2]), "/".join(job.split("/")[:4])
        self.experiment = nodes.ensure(records, tensorboard, series.EXPERIMENTS, self._number, document)["name"]
        # The service shows such an experiment in ML Metadata, too, where the SDK ends its runs.
        self._context = lineage.record_context(
            records, self._location, self._number, "system.Experiment", display_name=display_name, tensorboard_link=self.experiment
        )

    def look(self) -> None:
        """Copy what is new."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for prefix, folder in self._folders().items():
            for scalar in self._readers.setdefault(prefix, LogReader(folder)).scalars():
                run = "/".join(filter(None, (prefix, scalar.run))) or _ROOT
                point = {"step": str(scalar.step), "wallTime": text(scalar.time), "scalar": {"value": _plain(scalar.value)}}
                found[run, scalar.tag].append(point)
        for (run, tag), points in found.items():
            series.write(self._records, self._named(run, tag), points)

    def _named(self, run: str, tag: str) -> str:
        """Return the time series of a run's tag; make it at the first value."""
        if (run, tag) not in self._series:
            kept = nodes.ensure(self._records, self.experiment, series.RUNS, series.id_of(run), {"displayName": run})
            if not any(known == run for known, _ in self._series):
                self._show(run)
            self._series[run, tag] = series.scalars_of(self._records, kept["name"], tag)["name"]
        return self._series[run, tag]

    def _show(self, run: str) -> None:
        """Record the run in ML Metadata, under the job's experiment."""
        number, about = f"{self._number}-{series.id_of(run)}"[:128], {"_params": {}, "_metrics": {}, "_state": "RUNNING"}
        context = lineage.record_context(self._records, self._location, number, "system.ExperimentRun", display_name=run, **about)
        nodes.add_children(self._records, self._context, [context])


def find(records: Store, tensorboard: str) -> str | None:
    """Return the recorded name of a job's instance, whose project may be given by id or by number; None if it is not here."""
    if records.get(tensorboard) is not None:
        return tensorboard
    _, _, number = tensorboard.rpartition("/")
    for document in records.named(number, series.TENSORBOARDS):  # a project's number stands for its name
        if document["name"].split("/")[2:] == tensorboard.split("/")[2:]:
            return document["name"]
    return None


@contextlib.contextmanager
def followed(follower: Follower | None, say: Callable[[str], None]) -> Iterator[None]:
    """Let a follower copy while the block runs, and once more at its end; an error is reported and does not fail the job."""
    if follower is None:
        yield
        return
    over = threading.Event()

    def follow() -> None:
        while True:
            last = over.wait(SECONDS)
            try:
                follower.look()
            except Exception as error:  # noqa: BLE001 - the instance may have been deleted, a file be damaged
                return say(f"TensorBoard: {follower.experiment} gets no more values: {type(error).__name__}: {error}")
            if last:
                return None

    thread = threading.Thread(target=follow, name="tensorboard", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _plain(value: float) -> float | str:
    """Return a number as protobuf's JSON writes it."""
    return value if value == value and abs(value) != float("inf") else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
