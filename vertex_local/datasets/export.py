"""The export of a data set for a training pipeline: files or tables for each set, and the variables that tell a trainer where.

The API's reference does not name the files. Their names here follow paths that users of the service have published:
`dataset-<id>-tables-<time>/training-00000-of-00004.csv`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from ..errors import quoted
from ..job import buckets
from . import bigquery, splits
from .dataset import ML_USE, SETS, TABULAR, Dataset, DatasetError, Stopped
from .rows import CsvSource, Row, TextSource

SHARD_BYTES = 64 << 20
EVERY = 5.0  # seconds between two lines of a long export's progress
_UNSUPPORTED = ("annotationsFilter", "savedQueryId", "persistMlUseAssignment")
Say = Callable[[str], object]


def source_of(dataset: Dataset, annotation_schema: str = "") -> Any:
    """Return the source that reads a data set's rows; its files must exist."""
    if dataset.kind != TABULAR:
        return TextSource(dataset, annotation_schema)
    if annotation_schema:
        raise DatasetError("annotationSchemaUri is for data sets of text, images and video; leave it out.", "annotationSchemaUri")
    return bigquery.TableSource(dataset.table) if dataset.table else CsvSource(dataset)


class Export:
    """One export of a data set: the constructor checks it, `run` does it.

    Args:
        config: the API's InputDataConfig in its JSON form. Its `gcsDestination` is used if `destination` is None.
        destination: the folder in which the export makes its own folder.
        say: called with lines about progress and warnings.
        stop: called now and then; if it returns True, the export stops.
        shard_bytes: about how long a file becomes before the next one begins.

    Raises:
        DatasetError: the data set, the split or the destination cannot be used.
    """

    def __init__(
        self, dataset: Dataset, config: Mapping[str, Any], destination: str | Path | None = None, *,
        say: Say = lambda text: None, stop: Callable[[], bool] = lambda: False, shard_bytes: int = SHARD_BYTES,
    ):  # fmt: skip
        for name in _UNSUPPORTED:
            if config.get(name):
                raise DatasetError(f"{name} is not known on this machine; leave it out.", name, "UNIMPLEMENTED")
        self.dataset, self.say, self.stop, self.shard_bytes = dataset, say, stop, shard_bytes
        self.project = self.folder = None
        if "bigqueryDestination" in config:
            self.project = bigquery.destination(dataset, config["bigqueryDestination"])
        else:
            self.folder = _folder(dataset, config) if destination is None else Path(destination)
        self.source = source_of(dataset, config.get("annotationSchemaUri", ""))
        self.remarks = splits.Remarks()
        self.split = splits.plan(config, self.source, dataset.kind, self.remarks)
        self.label = f"data set {dataset.id}"
        self.started = self.said = 0.0

    def run(self) -> dict[str, str]:
        """Export the data set and return the variables for the replicas; a failed export removes what it has written.

        Raises:
            DatasetError: a row cannot be read, or no row is left for training.
            Stopped: `stop` returned True.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        name = f"dataset-{self.dataset.id}-{self.source.annotation_type}-{now}"
        if self.project:
            tables = self._to_tables(re.sub(r"\W", "_", name, flags=re.ASCII))
            return {"AIP_DATA_FORMAT": "bigquery", **_variables(lambda name: f"{tables}.{name}")}
        self.to_files(name)
        folder, form = Path(self.folder, name), self.source.form
        return {"AIP_DATA_FORMAT": form, **_variables(lambda name: f"{folder}/{name}-*.{form}")}

    def _to_tables(self, name: str) -> str:
        self.started = self.said = time.monotonic()
        counts = bigquery.write(self.source, self.split(self._rows), self.project, name, self._tick, self._check)
        self._done(counts, SETS, f"bq://{self.project}.{name}")
        return f"bq://{self.project}.{name}"

    def to_files(self, name: str, whole: bool = False) -> tuple[list[Path], list[int]]:
        """Export into the folder `name` of the destination; `whole` writes all rows as one set called `data`.

        Returns:
            The files, and how many rows each set has. Errors as of `run`.
        """
        self.started = self.said = time.monotonic()
        target, sets = Path(self.folder, name), ("data",) if whole else SETS
        target.mkdir(parents=True)  # fails if it exists
        try:
            counts = self._write(target, (lambda row: 0) if whole else self.split(self._rows), sets)
            self._check(counts)
        except BaseException:
            shutil.rmtree(Path(self.folder, Path(name).parts[0]), ignore_errors=True)
            raise
        self._done(counts, sets, target)
        return sorted(target.iterdir()), counts

    def _write(self, target: Path, assign: splits.Assign, sets: Sequence[str]) -> list[int]:
        columns = len(self.source.columns or ())
        shards = [_Shards(target, name, self.source, self.shard_bytes) for name in sets]
        try:
            for row in self._rows():
                place = assign(row)
                if columns and len(row.value) != columns:
                    self.remarks.add(f"exported as they stand, though their cells are not the {columns} of the first line", row, row.value)
                if place is not None:
                    shards[place].add(row)
        finally:
            for each in shards:
                each.close()
        return [each.finish() for each in shards]

    def _rows(self) -> Iterator[Row]:
        """Yield the source's rows and report progress; a split may read all rows before the export does."""
        for number, row in enumerate(self.source.rows(), 1):
            yield row
            if number % 4096 == 0:
                self._tick(number)

    def _tick(self, number: int) -> None:
        if self.stop():
            raise Stopped
        if time.monotonic() - self.said > EVERY:
            self.said = time.monotonic()
            self.say(f"{self.label}: {number:,} rows read in {self.said - self.started:.0f} s")

    def _check(self, counts: list[int]) -> None:
        why = "".join(f"; {line}" for line in self.remarks.lines()).rstrip(".")
        if not sum(counts):
            raise DatasetError(f"{self.label}: there is no row to export{why}: give it some.")
        if not counts[0]:
            others = f"validation {counts[1]:,}, test {counts[2]:,}"
            raise DatasetError(f"{self.label}: the split leaves no row for training ({others}); give training a larger part{why}.")

    def _done(self, counts: list[int], sets: Sequence[str], where: object) -> None:
        for line in self.remarks.lines():
            self.say(f"warning: {self.label}: {line}")
        shown = ", ".join(f"{count:,} {name}" for name, count in zip(sets, counts, strict=True))
        self.say(f"{self.label}: {shown} rows in {where}")


def _folder(dataset: Dataset, config: Mapping[str, Any]) -> Path:
    prefix = config.get("gcsDestination", {}).get("outputUriPrefix", "")
    where = "gcsDestination.outputUriPrefix"
    if not prefix.startswith("gs://"):
        raise DatasetError(f"{where} takes gs://bucket/folder; got {quoted(prefix)}.", where)
    try:
        return Path(buckets.to_path(prefix, dataset.buckets))
    except buckets.BucketError as error:
        raise DatasetError(str(error), where) from None


def _variables(uri: Callable[[str], str]) -> dict[str, str]:
    return {f"AIP_{name.upper()}_DATA_URI": uri(name) for name in SETS}


class _Shards:
    """The files of one set; they get their names when all are written, because each name has the number of files."""

    def __init__(self, folder: Path, name: str, source: Any, most: int):
        self.folder, self.name, self.source, self.most = folder, name, source, most
        self.count = self.number = 0
        self.file: TextIO | None = None

    def add(self, row: Row) -> None:
        """Write a row; begin a new file if the last one is long enough."""
        if self.file is None:
            # A half of a surrogate pair, which only JSON can hold, stays the escape that it was.
            self.file = open(self._part(self.number), "x", newline="", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            self.number += 1
            self.writer = csv.writer(self.file, lineterminator="\n")
            if self.source.columns:
                self.writer.writerow(self.source.columns)
        if self.source.columns:
            self.writer.writerow(row.value)
        else:
            own = {**row.value["dataItemResourceLabels"], **({ML_USE: self.name} if self.name in SETS else {})}
            self.file.write(json.dumps({**row.value, "dataItemResourceLabels": own}, ensure_ascii=False) + "\n")
        self.count += 1
        if self.count % 256 == 0 and self.file.tell() >= self.most:
            self.close()

    def close(self) -> None:
        """Close the open file."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def finish(self) -> int:
        """Give the files their names and return the number of rows."""
        for number in range(self.number):
            os.rename(self._part(number), self.folder / f"{self.name}-{number:05d}-of-{self.number:05d}.{self.source.form}")
        return self.count

    def _part(self, number: int) -> Path:
        return self.folder / f".{self.name}-{number:05d}.part"
