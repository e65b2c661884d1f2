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

Where = tuple[str, int]  # a file and a line of it
_ANNOTATIONS = {
    "classification_single_label": ("classificationAnnotation",), "classification_multi_label": ("classificationAnnotations",),
    "extraction": ("textSegmentAnnotations",), "sentiment": ("sentimentAnnotation",),
}  # fmt: skip


class Row(NamedTuple):
    """One row: `content` identifies it (equal rows have equal content); `value` holds its cells or its item."""

    content: str
    value: Any
    where: Where


class CsvSource:
    """CSV files: the first file's first line names the columns; the other files repeat that line, or have no such line."""

    form, annotation_type = "csv", "tables"

    def __init__(self, dataset: Dataset):
        self.files = sorted(dataset.files())
        self.columns = self._columns(*self.files[0])
        self.bytes = sum(path.stat().st_size for _, path in self.files)

    def _columns(self, name: str, path: Path) -> list[str]:
        columns = next((row.value for row in self._read(name, path)), [])
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if not columns:
            raise DatasetError(f"{name}: it is empty; its first line must hold the columns' names.", "gcsSource.uri")
        if twice:
            raise DatasetError(
                f"{name}:1: column {quoted(twice[0])} appears twice; the first line must hold the columns' names.", "gcsSource.uri"
            )
        for other, place in self.files[1:]:
            first = next((row.value for row in self._read(other, place)), columns)
            alike = sum(cell in columns for cell in first)
            if first != columns and (len(first) != len(columns) or alike * 2 >= len(columns)):
                problem = f"its first line {','.join(first)[:200]!r} does not go with the columns of {name}, {','.join(columns)!r}"
                raise DatasetError(f"{other}:1: {problem}: bring both to the same columns.", "gcsSource.uri")
        return columns

    def _read(self, name: str, path: Path) -> Iterator[Row]:
        reader = None
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                for cells in reader:
                    if cells:
                        yield Row("\x1f".join(cells), cells, (name, reader.line_num))
        except UnicodeDecodeError as error:
            line = reader.line_num + 1 if reader else 1
            raise DatasetError(f"{name}:{line}: is not UTF-8 text from here on ({error.reason}); save the file as UTF-8.") from None
        except csv.Error as error:
            raise DatasetError(f"{name}:{reader.line_num if reader else 1}: is not CSV: {error}; correct the line.") from None

    def rows(self) -> Iterator[Row]:
        """Yield every row except the line of column names."""
        for name, path in self.files:
            rows = self._read(name, path)
            for row in itertools.islice(rows, 1):
                if row.value != self.columns:
                    yield row
            yield from rows

    def value(self, row: Row, key: str) -> str | None:
        """Return a row's cell in the column `key`; None where the row is too short."""
        place = self.columns.index(key)
        return row.value[place] if place < len(row.value) else None


class TextSource:
    """Items of text as ImportData takes them: lines of JSON, or CSV of `[ml_use,]text or gs://…[,label…]`."""

    form, columns = "jsonl", None

    def __init__(self, dataset: Dataset, annotation_schema: str = ""):
        self.dataset = dataset
        if not dataset.imports:
            raise DatasetError(f"data set {dataset.id} is empty: import something first.", status="FAILED_PRECONDITION")
        self.formats = [import_format(one) for one in dataset.imports]
        own = {f"text_{form.partition('_')[0]}" for form in self.formats}
        asked = os.path.basename(annotation_schema).removesuffix("_1.0.0.yaml")
        if annotation_schema and asked not in own:
            text = f"takes what the data set has annotations of, {', '.join(sorted(own))}_1.0.0.yaml; got {annotation_schema!r}."
            raise DatasetError(text, "annotationSchemaUri")
        if not asked and len(own) > 1:
            raise DatasetError(f"say which of {', '.join(sorted(own))} to export.", "annotationSchemaUri")
        self.annotation_type = asked or own.pop()
        self.files = [(i, *file) for i, one in enumerate(dataset.imports) for file in dataset.files(one["gcsSource"]["uris"])]
        self.bytes = sum(path.stat().st_size for _, _, path in self.files)

    def rows(self) -> Iterator[Row]:
        """Yield every item that has an annotation of the wanted kind."""
        for number, name, path in self.files:
            form = self.formats[number]
            if f"text_{form.partition('_')[0]}" != self.annotation_type:
                continue
            labels = self.dataset.imports[number].get("dataItemLabels", {})
            for item, line in _csv_items(name, path, form) if path.suffix == ".csv" else _json_items(name, path):
                yield Row(*self._checked(item, labels, form, (name, line)))

    def _checked(self, item: Any, labels: Mapping[str, str], form: str, where: Where) -> tuple[str, dict[str, Any], Where]:
        """Return an item as the export writes it, with a local path for its file."""
        place = f"{where[0]}:{where[1]}"
        content = [key for key in ("textContent", "textGcsUri") if isinstance(item, Mapping) and item.get(key)]
        if len(content) != 1 or not isinstance(item[content[0]], str):
            raise DatasetError(f"{place}: an item takes either textContent or textGcsUri, as text; got {json.dumps(item)[:120]}.")
        own = {**labels, **(item.get("dataItemResourceLabels") or {})}
        if own.get(ML_USE, "training") not in SETS:
            raise DatasetError(f"{place}: {ML_USE} takes one of {', '.join(SETS)}; got {quoted(own[ML_USE])}.")
        found = {key: item[key] for key in _ANNOTATIONS[form] if item.get(key)}
        for annotation in found.get("classificationAnnotations", [*filter(None, [found.get("classificationAnnotation")])]):
            if not isinstance(annotation, Mapping) or not isinstance(annotation.get("displayName"), str) or not annotation["displayName"]:
                raise DatasetError(f"{place}: a label takes the form {{'displayName': 'name'}}; got {json.dumps(annotation)[:120]}.")
        text = item[content[0]]
        if content[0] == "textGcsUri":
            text = str(self.dataset.files([text])[0][1])
        return text, {content[0]: text, **found, "dataItemResourceLabels": own}, where

    def value(self, row: Row, key: str) -> str | None:
        """Return an item's label `key`."""
        return row.value["dataItemResourceLabels"].get(key)


def _json_items(name: str, path: Path) -> Iterator[tuple[Any, int]]:
    line = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield json.loads(text), line
    except UnicodeDecodeError as error:
        raise DatasetError(f"{name}:{line + 1}: is not UTF-8 text from here on ({error.reason}); save the file as UTF-8.") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{name}:{line}: is no line of JSON ({error}); an import file takes one object a line.") from None


def _csv_items(name: str, path: Path, form: str) -> Iterator[tuple[Any, int]]:
    if not form.startswith("classification"):
        raise DatasetError(f"{name}: CSV is for classification; import {form} from lines of JSON.")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            for cells in filter(None, reader):
                use = cells[0] if cells[0] in SETS else None
                content, *labels = cells[1:] if use or not cells[0] else cells
                item: dict[str, Any] = {"textGcsUri" if content.startswith("gs://") else "textContent": content}
                named = [{"displayName": label} for label in labels if label]
                if form.endswith("single_label") and len(named) > 1:
                    raise DatasetError(f"{name}:{reader.line_num}: takes one label an item; got {', '.join(labels)[:120]!r}.")
                if named:
                    item |= (
                        {"classificationAnnotation": named[0]} if form.endswith("single_label") else {"classificationAnnotations": named}
                    )
                yield item | ({"dataItemResourceLabels": {ML_USE: use}} if use else {}), reader.line_num
        except UnicodeDecodeError as error:
            raise DatasetError(f"{name}:{reader.line_num + 1}: is not UTF-8 text ({error.reason}); save the file as UTF-8.") from None
        except (csv.Error, ValueError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{name}:{reader.line_num}: is no line of `ml_use,text,label`: {error}; correct it.") from None
