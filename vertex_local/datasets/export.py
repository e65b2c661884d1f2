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


def quiet(text: str) -> None:
    """Say nothing."""


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
        self, dataset: Dataset, config: Mapping[str, Any], destination: str | Path | None = None, *, say: Say = quiet,
        stop: Callable[[], bool] = lambda: False, shard_bytes: int = SHARD_BYTES,
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
        self.split = splits.plan(config, self.source, dataset.kind)
        self.label = f"data set {dataset.id}"

    def run(self) -> dict[str, str]:
        """Export the data set and return the variables for the replicas; a failed export removes what it has written.

        Raises:
            DatasetError: a row cannot be read, or no row is left for training.
            Stopped: `stop` returned True.
        """
        now, remarks = datetime.now(timezone.utc), splits.Remarks()
        stamp = now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03d}Z"
        self.started = self.said = time.monotonic()
        assign = self.split(remarks, self._rows)
        if self.project:
            name = re.sub(r"\W", "_", f"dataset_{self.dataset.id}_{self.source.annotation_type}_{stamp}", flags=re.ASCII)
            tables = bigquery.write(self.source, assign, self.project, name, self._tick, lambda counts: self._check(counts, remarks))
            self._done(tables.counts, f"bq://{self.project}.{name}", remarks)
            return {"AIP_DATA_FORMAT": "bigquery", **_variables(lambda name: f"{tables.prefix}.{name}")}
        name = f"dataset-{self.dataset.id}-{self.source.annotation_type}-{stamp}"
        target, _ = self._to_folder(name, assign, SETS, remarks)
        form = self.source.form
        return {"AIP_DATA_FORMAT": form, **_variables(lambda name: f"{target}/{name}-*.{form}")}

    def to_files(self, name: str, whole: bool = False) -> tuple[list[Path], list[int]]:
        """Export into the folder `name` of the destination; `whole` writes all rows as one set called `data`.

        Returns:
            The files, and how many rows each set has.
        """
        self.started = self.said = time.monotonic()
        remarks = splits.Remarks()
        assign = (lambda row: 0) if whole else self.split(remarks, self._rows)
        target, counts = self._to_folder(name, assign, ("data",) if whole else SETS, remarks)
        return sorted(target.iterdir()), counts

    def _to_folder(
        self, name: str, assign: splits.Assign, sets: Sequence[str], remarks: splits.Remarks
    ) -> tuple[Path, list[int]]:  # fmt: skip
        target = Path(self.folder, name)
        target.mkdir(parents=True)  # fails if it exists
        try:
            counts = self._write(target, assign, sets, remarks)
            self._check(counts, remarks)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        self._done(counts, target, remarks, sets)
        return target, counts

    def _write(self, target: Path, assign: splits.Assign, sets: Sequence[str], remarks: splits.Remarks) -> list[int]:
        columns = len(self.source.columns or ())
        shards = [_Shards(target, name, self.source, self.shard_bytes) for name in sets]
        try:
            for row in self._rows():
                place = assign(row)
                if columns and len(row.value) != columns:
                    remarks.add(f"exported as they stand, though their cells are not the {columns} of the first line", row, row.value)
                if place is not None:
                    shards[place].add(row, sets[place])
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

    def _check(self, counts: list[int], remarks: splits.Remarks) -> None:
        why = "".join(f"; {line}" for line in remarks.lines()).rstrip(".")
        if not sum(counts):
            raise DatasetError(f"{self.label}: there is no row to export{why}: give it some.")
        if not counts[0]:
            others = f"validation {counts[1]:,}, test {counts[2]:,}"
            raise DatasetError(f"{self.label}: the split leaves no row for training ({others}); give training a larger part{why}.")

    def _done(self, counts: list[int], where: object, remarks: splits.Remarks, sets: Sequence[str] = SETS) -> None:
        for line in remarks.lines():
            self.say(f"warning: {self.label}: {line}")
        shown = ", ".join(f"{count:,} {name}" for name, count in zip(sets, counts, strict=True))
        self.say(f"{self.label}: {shown} rows in {where}")


def export(
    dataset: Dataset, config: Mapping[str, Any], destination: str | Path | None = None, **options: Any
) -> dict[str, str]:  # fmt: skip
    """Export a data set at once and return the variables `AIP_DATA_FORMAT` and `AIP_…_DATA_URI`; see `Export`."""
    return Export(dataset, config, destination, **options).run()


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

    def add(self, row: Row, use: str) -> None:
        """Write a row; begin a new file if the last one is long enough."""
        if self.file is None:
            self.file = open(self._part(self.number), "x", newline="", encoding="utf-8")  # noqa: SIM115
            self.number += 1
            self.writer = csv.writer(self.file, lineterminator="\n")
            if self.source.columns:
                self.writer.writerow(self.source.columns)
        if self.source.columns:
            self.writer.writerow(row.value)
        else:
            self.file.write(json.dumps(_with_use(row.value, use), ensure_ascii=False) + "\n")
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


def _with_use(item: dict[str, Any], use: str) -> dict[str, Any]:
    """Return an item that says in which set it is."""
    if use not in SETS:
        return item
    return {**item, "dataItemResourceLabels": {**item["dataItemResourceLabels"], ML_USE: use}}
