"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from ..columns import Column
from ..data import BadRows, open_binary
from ..errors import UserError
from . import Raw, Reading, present

NAMES = ("parquet",)
SUFFIXES = (".parquet", ".pq", ".parq")
_ROWS = 65_536


def recognises(head: bytes) -> bool:
    """Tell whether a file that starts so is a Parquet file."""
    return head.startswith(b"PAR1")


def read(path: str, columns: Sequence[Column], bad: BadRows, reading: Reading) -> Iterator[Raw]:
    """Yield blocks of rows, of the required columns only.

    Raises:
        UserError: the file is cut off or broken, or lacks a column.
    """
    from pyarrow import parquet

    with open_binary(path) as source:
        try:
            file = parquet.ParquetFile(source if "://" in path else path, pre_buffer=True)
            wanted = present(path, columns, file.schema_arrow.names)
            # Nothing is wanted where the folders' names give all; then the first column says how many rows there are.
            names = [column.name for column in wanted] or file.schema_arrow.names[:1]
            if few := _repeated_texts(file, names):
                file = parquet.ParquetFile(source if "://" in path else path, pre_buffer=True, read_dictionary=few)
            for batch in file.iter_batches(_ROWS, columns=names):
                yield Raw(batch.select(names))
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(f"{path} is no whole Parquet file: {reason[:200]}. Write or copy it again.") from None


def _repeated_texts(file: Any, names: Sequence[str]) -> list[str]:
    """Return the columns of texts that the file keeps as places in a list of distinct ones: they can be read and checked as such."""
    if not file.metadata.num_row_groups:
        return []
    group = file.metadata.row_group(0)
    found = []
    for i in range(group.num_columns):
        column = group.column(i)
        # A text by itself takes at least its length's four bytes; a writer gives a list up that grows too long.
        listed = column.has_dictionary_page and column.total_uncompressed_size <= 4 * column.num_values
        if listed and column.physical_type == "BYTE_ARRAY" and column.path_in_schema in names:
            found.append(column.path_in_schema)
    return found


def count_rows(path: str) -> int:
    """Return how many rows a file has, as its end says."""
    from pyarrow import parquet

    with open_binary(path) as source:
        return int(parquet.ParquetFile(source if "://" in path else path).metadata.num_rows)
