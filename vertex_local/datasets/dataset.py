"""A managed data set: the API's Dataset, read from a file or a request; for text with the list of its imports.

    displayName: taxifare
    metadataSchemaUri: gs://google-cloud-aiplatform/schema/dataset/metadata/tabular_1.0.0.yaml
    metadata: {inputConfig: {gcsSource: {uri: [gs://bucket/trips-*.csv]}}}     # or bigquerySource: {uri: bq://project.dataset.table}

A data set of text has text_1.0.0.yaml and, instead of `metadata`, `importConfigs`: the list that ImportData takes.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, quoted
from ..job import buckets, job_file, schema

TABULAR, TEXT = "tabular", "text"
SETS = ("training", "validation", "test")
ML_USE = "aiplatform.googleapis.com/ml_use"
_SCHEMAS = "gs://google-cloud-aiplatform/schema/dataset"
_KIND = re.compile(_SCHEMAS + r"/metadata/(tabular|text)_1\.0\.0\.yaml")
_FORMATS = "classification_single_label|classification_multi_label|extraction|sentiment"
_FORMAT = re.compile(_SCHEMAS + rf"/ioformat/text_({_FORMATS})_io_format_1\.0\.0\.yaml")


class DatasetError(UserError):
    """A data set or a split that cannot be used; `status` is the API's status code, `field` the request's field at fault."""

    def __init__(self, message: str, field: str = "", status: str = "INVALID_ARGUMENT"):
        super().__init__(message)
        self.field, self.status = field, status


class Stopped(Exception):
    """An export was stopped because its job was cancelled."""


@dataclass(frozen=True)
class Dataset:
    """A checked data set: CSV files (`uris`), a BigQuery `table`, or `imports` of text. `buckets` holds `gs://bucket/x` as bucket/x.

    Files that are not `gs://…` are looked for in the folder `project`; if that is None, there can be none.
    """

    id: str
    kind: str
    buckets: Path
    project: Path | None = None
    uris: tuple[str, ...] = ()
    table: str = ""
    imports: tuple[Mapping[str, Any], ...] = ()

    def files(self, uris: Sequence[str] | None = None) -> list[tuple[str, Path]]:
        """Return names and paths of the files that URIs with wildcards match; by default of the CSV files.

        Raises:
            DatasetError: a URI is not valid, leads out of its bucket, or matches no file.
        """
        found: dict[str, Path] = {}
        for uri in self.uris if uris is None else uris:
            prefix, base, pattern = self._place(uri)
            names = [pattern] if os.path.isfile(os.path.join(base, pattern)) else sorted(glob.glob(pattern, root_dir=base))
            known = {prefix + name: Path(base, name) for name in names if _is_file(os.path.join(base, name), base if prefix else "/")}
            if not known:
                remedy = f"put it into {self.buckets}, or correct the URI" if prefix else "correct the path"
                missing = f"there is no such {'object' if prefix else 'file'} ({os.path.join(base, pattern)})"
                raise DatasetError(f"{uri}: {missing}; {remedy}.", status="NOT_FOUND")
            found.update(known)
        return list(found.items())

    def _place(self, uri: str) -> tuple[str, str, str]:
        """Return a URI's bucket (empty for a path of this machine), the folder of that, and the rest, which may have wildcards."""
        if uri.startswith("gs://"):
            try:
                buckets.to_path(uri, self.buckets)
            except buckets.BucketError as error:
                raise DatasetError(str(error), "gcsSource.uri") from None
            bucket, _, pattern = uri.removeprefix("gs://").partition("/")
            return f"gs://{bucket}/", os.path.join(os.path.realpath(self.buckets), bucket), pattern.lstrip("/")
        if self.project is None or "://" in uri:
            raise DatasetError(f"gcsSource takes gs://bucket/file.csv; got {quoted(uri)}.", "gcsSource.uri")
        return "", str(self.project), uri


def _is_file(path: str, within: str) -> bool:
    """Return whether a path is a file's, and no link leads out of the folder."""
    return os.path.isfile(path) and Path(within) in Path(os.path.realpath(path)).parents


def load(
    path: str | Path, root: Path, project: Path | None = None, given: Mapping[str, str] | None = None
) -> Dataset:  # fmt: skip
    """Read a data set file; its id is that of its `name`, else the file's own name.

    Args:
        root: the folder that holds `gs://bucket/x` as `bucket/x`.
        project: the folder of files that are not `gs://…`.
        given: settings for `${…}`.

    Raises:
        SpecError: the file is wrong; the message names the line.
    """
    tree = schema.parse(job_file.read_text(path, given), str(path), "Dataset", {"importConfigs": "[ImportDataConfig]"})
    number = tree.message.get("name", "").rpartition("/")[2] or re.sub(r"\W", "_", Path(path).stem, flags=re.ASCII)
    try:
        return make(number, tree.message, tree.message.get("importConfigs", ()), root, project)
    except DatasetError as error:
        at = tuple(int(part) if part.isdecimal() else part for part in error.field.split(".") if part)
        raise tree.error(at, str(error)) from None


def make(
    number: str, message: Mapping[str, Any], imports: Sequence[Mapping[str, Any]], root: Path, project: Path | None = None
) -> Dataset:  # fmt: skip
    """Check a Dataset in its JSON form, without its files, and return it; raise a DatasetError if something is wrong."""
    uri = message.get("metadataSchemaUri", "")
    kind = _KIND.fullmatch(uri)
    if not kind:
        known = f"{_SCHEMAS}/metadata/tabular_1.0.0.yaml and text_1.0.0.yaml"
        status = "UNIMPLEMENTED" if uri else "INVALID_ARGUMENT"
        raise DatasetError(f"on this machine it takes {known}; got {quoted(uri)}.", "metadataSchemaUri", status)
    if kind[1] == TABULAR:
        if imports:
            raise DatasetError(
                "a tabular data set imports nothing; leave importConfigs out: its source stands in metadata.inputConfig.", "importConfigs"
            )
        uris, table = _tabular(message.get("metadata"))
        return Dataset(number, TABULAR, root, project, uris, table)
    for i, one in enumerate(imports):
        import_format(one, f"importConfigs.{i}.importSchemaUri")
        if not one.get("gcsSource", {}).get("uris"):
            raise DatasetError("gcsSource.uris is required and must not be empty.", f"importConfigs.{i}.gcsSource.uris")
    return Dataset(number, TEXT, root, project, imports=tuple(imports))


def import_format(one: Mapping[str, Any], field: str = "importSchemaUri") -> str:
    """Return an import's kind of annotation: classification_single_label, classification_multi_label, extraction or sentiment."""
    uri = one.get("importSchemaUri", "")
    found = _FORMAT.fullmatch(uri)
    if not found:
        example = f"{_SCHEMAS}/ioformat/text_classification_single_label_io_format_1.0.0.yaml"
        raise DatasetError(f"takes a schema for text such as {example}; got {quoted(uri)}.", field)
    return found[1]


def _tabular(metadata: Any) -> tuple[tuple[str, ...], str]:
    """Return the URIs of a tabular data set's files, or its table."""
    where = "metadata.inputConfig"
    source = _fields(_fields(metadata).get("inputConfig"))
    given = {key: _fields(source[key]).get("uri") for key in ("gcsSource", "bigquerySource") if key in source}
    if len(given) > 1:
        raise DatasetError(f"{where} takes one of {' and '.join(given)}.", where)
    if "bigquerySource" in given:
        table = str(given["bigquerySource"])
        if not re.fullmatch(r"bq://[^.\s]+\.[^.\s]+\.[^.\s]+", table):
            raise DatasetError(f"takes bq://project.dataset.table; got {quoted(table)}.", f"{where}.bigquerySource.uri")
        return (), table
    uris = given.get("gcsSource")
    if not uris:
        raise DatasetError(f"{where}.gcsSource.uri is required and must not be empty.", f"{where}.gcsSource.uri")
    uris = [uris] if isinstance(uris, str) else uris
    if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
        raise DatasetError(f"takes a list of gs://bucket/file.csv; got {quoted(uris)}.", f"{where}.gcsSource.uri")
    return tuple(uris), ""


def _fields(value: Any) -> Mapping[str, Any]:
    """Return the fields of a value in the API's free form, which need not have any."""
    return value if isinstance(value, Mapping) else {}
