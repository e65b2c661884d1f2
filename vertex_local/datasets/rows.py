"""The rows of a data set's source, one at a time: the cells of CSV files, or items of text.

Cells stay text: an export would only write parsed values back.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import quoted
from .dataset import ML_USE, SETS, Dataset, DatasetError, import_format

_ANNOTATIONS = {  # where an item's annotation stands, by the format of its import
    "classification_single_label": "classificationAnnotation", "classification_multi_label": "classificationAnnotations",
    "extraction": "textSegmentAnnotations", "sentiment": "sentimentAnnotation",
}  # fmt: skip


class Row(NamedTuple):
    """One row: `content` identifies it (equal rows have equal content); `value` holds its cells or its item."""

    content: str
    value: Any
    file: str
    line: int  # or the row's number in a table

    @property
    def place(self) -> str:
        """Where the row stands, for messages."""
        return f"{self.file}:{self.line}"


class Cells:
    """What sources of tables have in common: columns, of which each row has a cell."""

    form, annotation_type = "csv", "tables"
    columns: list[str]

    def value(self, row: Row, key: str) -> str | None:
        """Return a row's cell in the column `key`; None where the row is too short."""
        number = self.columns.index(key)
        return row.value[number] if number < len(row.value) else None


class CsvSource(Cells):
    """CSV files: the first file's first line names the columns; the other files repeat that line, or have no such line."""

    def __init__(self, dataset: Dataset):
        self.files = sorted(dataset.files())
        self.columns = self._columns(*self.files[0])
        self.bytes = sum(path.stat().st_size for _, path in self.files)

    def _columns(self, name: str, path: Path) -> list[str]:
        columns = next((row.value for row in _csv_rows(name, path)), [])
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if not columns:
            raise DatasetError(f"{name}: it is empty; its first line must hold the columns' names.", "gcsSource.uri")
        if twice:
            raise DatasetError(
                f"{name}:1: column {quoted(twice[0])} appears twice; the first line must hold the columns' names.", "gcsSource.uri"
            )
        for other, place in self.files[1:]:
            first = next((row.value for row in _csv_rows(other, place)), columns)
            alike = sum(cell in columns for cell in first)
            if first != columns and (len(first) != len(columns) or alike * 2 >= len(columns)):
                problem = f"its first line {','.join(first)[:200]!r} does not go with the columns of {name}, {','.join(columns)!r}"
                raise DatasetError(f"{other}:1: {problem}: bring both to the same columns.", "gcsSource.uri")
        return columns

    def rows(self) -> Iterator[Row]:
        """Yield every row except the line of column names."""
        for name, path in self.files:
            rows = _csv_rows(name, path)
            yield from (row for row in itertools.islice(rows, 1) if row.value != self.columns)
            yield from rows


class TextSource:
    """Items of text as ImportData takes them: lines of JSON, or CSV of `[ml_use,]text or gs://…[,label…]`."""

    form, columns = "jsonl", None

    def __init__(self, dataset: Dataset, annotation_schema: str = ""):
        self.dataset = dataset
        if not dataset.imports:
            raise DatasetError(f"data set {dataset.id} is empty: import something first.", status="FAILED_PRECONDITION")
        self.formats = [import_format(one) for one in dataset.imports]
        own = {_annotation_type(form) for form in self.formats}
        asked = os.path.basename(annotation_schema).removesuffix("_1.0.0.yaml")
        if annotation_schema and asked not in own:
            text = f"takes what the data set has annotations of, {', '.join(sorted(own))}_1.0.0.yaml; got {quoted(annotation_schema)}."
            raise DatasetError(text, "annotationSchemaUri")
        if not asked and len(own) > 1:
            raise DatasetError(f"say which of {', '.join(sorted(own))} to export.", "annotationSchemaUri")
        self.annotation_type = asked or own.pop()
        self.files = [(i, *file) for i, one in enumerate(dataset.imports) for file in dataset.files(one["gcsSource"]["uris"])]
        self.bytes = sum(path.stat().st_size for _, _, path in self.files)

    def rows(self) -> Iterator[Row]:
        """Yield every item that has an annotation of the wanted kind."""
        for number, name, path in self.files:
            form, labels = self.formats[number], self.dataset.imports[number].get("dataItemLabels", {})
            if _annotation_type(form) == self.annotation_type:
                items = _csv_items(name, path, form) if path.suffix == ".csv" else _json_items(name, path)
                yield from (self._row(item, labels, form, name, line) for item, line in items)

    def _row(self, item: Any, labels: Mapping[str, str], form: str, name: str, line: int) -> Row:
        """Return an item, checked, as the export writes it, with a local path for its file."""

        def wrong(takes: str, value: object) -> DatasetError:
            return DatasetError(f"{name}:{line}: {takes}; got {quoted(value)}.")

        contents = [key for key in ("textContent", "textGcsUri") if isinstance(item, Mapping) and item.get(key)]
        if len(contents) != 1 or not isinstance(item[contents[0]], str):
            raise wrong("an item takes either textContent or textGcsUri, as text", item)
        own = item.get("dataItemResourceLabels") or {}
        if not isinstance(own, Mapping):
            raise wrong("dataItemResourceLabels takes values by label", own)
        own = {**labels, **own}
        if own.get(ML_USE, "training") not in SETS:
            raise wrong(f"{ML_USE} takes one of {', '.join(SETS)}", own[ML_USE])
        annotated = {key: item[key] for key in (_ANNOTATIONS[form],) if item.get(key)}
        if annotated and form.startswith("classification"):
            (found,) = annotated.values()
            found = found if form.endswith("multi_label") else [found]
            if not isinstance(found, list):
                raise wrong("classificationAnnotations takes a list of labels", found)
            for label in found:
                if not isinstance(label, Mapping) or not isinstance(label.get("displayName"), str) or not label["displayName"]:
                    raise wrong("a label takes the form {'displayName': 'name'}", label)
        text = item[contents[0]]
        if contents[0] == "textGcsUri":
            text = str(self.dataset.files([text])[0][1])
        return Row(text, {contents[0]: text, **annotated, "dataItemResourceLabels": own}, name, line)

    def value(self, row: Row, key: str) -> str | None:
        """Return an item's label `key`."""
        return row.value["dataItemResourceLabels"].get(key)


def _annotation_type(form: str) -> str:
    return f"text_{form.partition('_')[0]}"


def _lines(name: str, path: Path) -> Iterator[str]:
    number = 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):  # noqa: B007 - for the error
                yield line
    except UnicodeDecodeError as error:
        raise DatasetError(f"{name}:{number + 1}: is not UTF-8 text from here on ({error.reason}); save the file as UTF-8.") from None


def _csv_rows(name: str, path: Path) -> Iterator[Row]:
    reader = csv.reader(_lines(name, path))
    try:
        for cells in reader:
            if cells:
                yield Row("\x1f".join(cells), cells, name, reader.line_num)
    except csv.Error as error:
        raise DatasetError(f"{name}:{reader.line_num}: is not CSV: {error}; correct the line.") from None


def _json_items(name: str, path: Path) -> Iterator[tuple[Any, int]]:
    for number, line in enumerate(_lines(name, path), 1):
        try:
            if line.strip():
                yield json.loads(line), number
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{name}:{number}: is no line of JSON ({error}); an import file takes one object a line.") from None


def _csv_items(name: str, path: Path, form: str) -> Iterator[tuple[Any, int]]:
    if not form.startswith("classification"):
        raise DatasetError(f"{name}: CSV is for classification; import {form} from lines of JSON.")
    for row in _csv_rows(name, path):
        use = row.value[0] if row.value[0] in SETS else None
        texts = row.value[1:] if use or not row.value[0] else row.value
        if not texts:
            raise DatasetError(f"{row.place}: is no line of `ml_use,text,label`; got {quoted(','.join(row.value))}; correct it.")
        content, *labels = texts
        named = [{"displayName": label} for label in labels if label]
        item: dict[str, Any] = {"textGcsUri" if content.startswith("gs://") else "textContent": content}
        if form.endswith("multi_label"):
            item["classificationAnnotations"] = named
        elif len(named) > 1:
            raise DatasetError(f"{row.place}: takes one label an item; got {', '.join(labels)[:120]!r}.")
        elif named:
            item["classificationAnnotation"] = named[0]
        if use:
            item["dataItemResourceLabels"] = {ML_USE: use}
        yield item, row.line
