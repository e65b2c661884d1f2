"""Text data sets as the service imports and exports them: JSON lines with a text, or the URI of one, and its annotations.

    {"textContent": "How do I join?", "classificationAnnotation": {"displayName": "sql"},
     "dataItemResourceLabels": {"aiplatform.googleapis.com/ml_use": "training"}}

Several labels (`classificationAnnotations`) are a bad row: the trainers here predict one. `Raw` keeps the row's use
(`ML_USE`) as a column of its own; of `items.jsonl:ml_use=test` it is the rows of that use alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..columns import Column
from ..data import BadRows, file_column, open_binary, split_part
from ..environment import resolve_uri
from ..errors import UserError
from . import Fault, Raw, Reading, in_blocks, jsonl, shown

NAMES = ("jsonl",)
SUFFIXES = (".jsonl",)
PRECEDENCE = 1
line_of = jsonl.line_of
ML_USE = "aiplatform.googleapis.com/ml_use"
_URI, _SEVERAL = "textGcsUri", "the row has several labels"
_LABEL = pa.struct([("displayName", pa.string())])
_SCHEMA = pa.schema([
    ("textContent", pa.string()), (_URI, pa.string()), ("classificationAnnotation", _LABEL),
    ("classificationAnnotations", pa.list_(_LABEL)), ("dataItemResourceLabels", pa.struct([(ML_USE, pa.string())])),
])  # fmt: skip


def recognises(head: bytes) -> bool:
    """Tell whether the first line has a text and an annotation as the service writes them."""
    first = jsonl.first_object(head) or {}
    return bool({"textContent", "textGcsUri"} & first.keys() and {"classificationAnnotation", "classificationAnnotations"} & first.keys())


def read(path: str, columns: Sequence[Column], bad: BadRows, reading: Reading) -> Iterator[Raw]:
    """Yield blocks of texts with their labels.

    Raises:
        UserError: the columns are not one text and its label, or (policy "error") a line is bad.
    """
    path, use = split_part(path)
    column = file_column(columns, reading.labels)
    if column is None:
        raise UserError(f"{path} holds texts with a label each, and COLUMNS are not one Text and its label. Name another file.")
    text, label = column.name, reading.labels[0]

    def cells(row: dict[str, Any]) -> dict[str, Any]:
        several = row.get("classificationAnnotations")
        several = several if isinstance(several, list) else []
        one = row.get("classificationAnnotation") or (several[0] if several else None)
        uses = row.get("dataItemResourceLabels")
        return {
            text: row.get("textContent"),
            label: one.get("displayName") if isinstance(one, dict) else one,
            ML_USE: uses.get(ML_USE) if isinstance(uses, dict) else None,
            _URI: row.get("textGcsUri"),
            _SEVERAL: json.dumps(several) if len(several) > 1 else None,
        }

    def flat(batch: pa.RecordBatch) -> pa.RecordBatch | None:
        texts, uris, one, several, uses = batch.columns
        if several.null_count < len(several):
            return None
        arrays = [texts, pc.struct_field(one, [0]), pc.struct_field(uses, [0]), uris]
        return pa.RecordBatch.from_arrays(arrays, [text, label, ML_USE, _URI])

    for raw in jsonl.read_objects(path, _SCHEMA, flat, cells, bad):
        yield from _resolved(_of_use(raw, use.removeprefix("ml_use=")) if use else raw, bad)


def uses(path: str) -> Counter[str]:
    """Count a file's rows by their `ml_use`, an empty text for those that have none."""

    def flat(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pc.struct_field(batch.column(0), [0])], [ML_USE])

    def cells(row: dict[str, Any]) -> dict[str, Any]:
        labels = row.get("dataItemResourceLabels")
        return {ML_USE: labels.get(ML_USE) if isinstance(labels, dict) else None}

    found: Counter[str] = Counter()
    for raw in jsonl.read_objects(path, pa.schema([_SCHEMA.field("dataItemResourceLabels")]), flat, cells, BadRows("skip")):
        found.update(text or "" for text in raw.batch.column(0).cast(pa.string()).to_pylist())
    return found


def _of_use(raw: Raw, use: str) -> Raw:
    """Return the rows of a block that are for one use."""
    kept = np.flatnonzero(pc.equal(raw.batch.column(2).cast(pa.string()), use).fill_null(False).to_numpy(zero_copy_only=False))
    return Raw(raw.batch.take(pa.array(kept)), lambda i: raw.place(int(kept[i])))


def _resolved(raw: Raw, bad: BadRows) -> Iterator[Raw]:
    """Yield a block with the texts that other files hold, without the rows of several labels and those whose file cannot be read."""
    uris, *several = raw.batch.columns[3:]
    names = raw.batch.schema.names[:3]
    if uris.null_count == len(uris) and all(array.null_count == len(array) for array in several):
        yield Raw(raw.batch.select(names), raw.place)
        return
    columns = [column.to_pylist() for column in raw.batch.columns]

    def rows() -> Iterator[tuple[int, list[Any]] | Fault]:
        for i, (text, label, use, uri, *several) in enumerate(zip(*columns)):
            if several and several[0] is not None:
                yield Fault(raw.place(i), _SEVERAL, shown(several[0]))
                continue
            if text is None and uri is not None:
                name = shown(uri)
                try:
                    with open_binary(resolve_uri(name)) as file:
                        text = file.read()
                except Exception as error:  # each file system has its own
                    yield Fault(raw.place(i), f"textGcsUri cannot be read ({type(error).__name__})", name)
                    continue
            yield i, [text, label, use]

    yield from in_blocks(rows(), names, bad, raw.place)
