"""What the readers of all formats share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Raw:
    """Rows as a reader found them: unchecked cells by column name; `place(i)` names row i for messages."""

    batch: pa.RecordBatch
    place: Callable[[int], str]


@dataclass(frozen=True)
class Reading:
    """How to read: the format where the path does not say it, BigQuery's condition on rows and its project."""

    format: str | None = None
    row_filter: str = ""
    project: str | None = None
