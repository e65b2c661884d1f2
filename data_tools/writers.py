"""Writers of training files, one class a format: `write` takes record batches, `close` ends the file.

A writer takes a path, a schema, a compression and the bytes of a row group, which only Parquet uses. Batches hold float32
numbers and binary texts, with null for a missing cell. The same batches give the same bytes: no writer adds a time or the
name of a machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vertex_runtime.columns import Column, Image
from vertex_runtime.errors import UserError

SUFFIXES = {"none": "", "gzip": ".gz", "zstd": ".zst"}
_ESCAPED = r'["\\\x00-\x1f\x7f]'  # characters that JSON escapes


def _stream(path: str, compress: str) -> pa.NativeFile:
    """Open a file to write bytes to; by Arrow, because it writes no time into gzip's header: equal rows give equal files."""
    return pa.output_stream(path, compression=None if compress == "none" else compress)


class CsvWriter:
    """CSV with a header; cells with commas, quotes or line breaks are quoted, missing ones are empty."""

    def __init__(self, path: str, schema: pa.Schema, compress: str, group_bytes: int):
        from pyarrow import csv

        self.stream = _stream(path, compress)
        self.schema = _as_strings(schema)
        self.writer = csv.CSVWriter(self.stream, self.schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self.writer.write_batch(batch.cast(self.schema))

    def close(self) -> None:
        self.writer.close()
        self.stream.close()


class JsonlWriter:
    """An object a line, UTF-8; missing cells are null."""

    def __init__(self, path: str, schema: pa.Schema, compress: str, group_bytes: int):
        self.stream = _stream(path, compress)

    def write(self, batch: pa.RecordBatch) -> None:
        parts: list[Any] = []
        for i, (name, array) in enumerate(zip(batch.schema.names, batch.columns)):
            parts += [("{" if i == 0 else ", ") + json.dumps(name, ensure_ascii=False) + ": ", _as_json(array)]
        lines = pc.binary_join_element_wise(*(pa.scalar(part) if isinstance(part, str) else part for part in parts), "}\n", "")
        # The lines lie one after the other in the array's buffer.
        _, offsets, values = lines.buffers()
        ends = np.frombuffer(offsets, np.int32)[lines.offset : lines.offset + len(lines) + 1]
        self.stream.write(values.slice(int(ends[0]), int(ends[-1] - ends[0])))

    def close(self) -> None:
        self.stream.close()


class ParquetWriter:
    """Parquet with texts as strings and images as binary; the row groups depend only on the rows, not on the batches."""

    def __init__(self, path: str, schema: pa.Schema, compress: str, group_bytes: int):
        from pyarrow import parquet

        self.schema, self.group_bytes = _as_strings(schema), group_bytes
        self.writer = parquet.ParquetWriter(path, self.schema, compression=compress)
        self.held: list[pa.RecordBatch] = []
        self.size = 0  # bytes of the held rows

    def write(self, batch: pa.RecordBatch) -> None:
        texts = [array for array in batch.columns if pa.types.is_binary(array.type)]
        sizes = np.full(batch.num_rows, 4 * batch.num_columns, np.int64)
        for array in texts:
            sizes += pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False)
        ends = np.cumsum(sizes)
        start = 0
        while start < batch.num_rows:
            before = int(ends[start - 1]) if start else 0
            end = min(int(np.searchsorted(ends, before + self.group_bytes - self.size)) + 1, batch.num_rows)
            self.held.append(batch.slice(start, end - start))
            self.size += int(ends[end - 1]) - before
            start = end
            if self.size >= self.group_bytes:
                self._flush()

    def _flush(self) -> None:
        if self.held:
            table = pa.Table.from_batches(self.held).cast(self.schema)
            self.writer.write_table(table.combine_chunks(), row_group_size=table.num_rows)
        self.held, self.size = [], 0

    def close(self) -> None:
        self._flush()
        self.writer.close()


class TfrecordWriter:
    """TFRecord of tf.train.Example: each feature is a float_list or bytes_list with one value, or none for a missing cell."""

    def __init__(self, path: str, schema: pa.Schema, compress: str, group_bytes: int):
        import tensorflow as tf

        self.writer = tf.io.TFRecordWriter(path, "GZIP" if compress == "gzip" else None)
        # Features in the order of their names, as protobuf's deterministic serialisation has them.
        self.order = sorted(range(len(schema)), key=lambda i: schema.names[i].encode())

    def write(self, batch: pa.RecordBatch) -> None:
        columns = [_entries(batch.schema.names[i], batch.column(i)) for i in self.order]
        for row in zip(*columns):
            self.writer.write(_field(1, b"".join(row)))

    def close(self) -> None:
        self.writer.close()


def _entries(name: str, array: pa.Array) -> Iterable[bytes]:
    """Return a column's cells as serialised entries of `Features.feature`; several times as fast as tf.train.Example."""
    key = _field(1, name.encode())
    if pa.types.is_floating(array.type):
        missing = _field(1, key + _field(2, _field(2, b"")))
        raw = np.ascontiguousarray(array.to_numpy(zero_copy_only=False), "<f4").tobytes()
        whole = _field(1, key + _field(2, _field(2, _field(1, b"\0\0\0\0"))))[:-4]  # all but the number
        if not array.null_count:
            return (whole + raw[i : i + 4] for i in range(0, len(raw), 4))
        given = array.is_valid().to_pylist()
        return (whole + raw[4 * i : 4 * i + 4] if good else missing for i, good in enumerate(given))
    missing = _field(1, key + _field(2, _field(1, b"")))
    cells = array.to_pylist()
    return (missing if cell is None else _field(1, key + _field(2, _field(1, _field(1, cell)))) for cell in cells)


def _field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field of a protobuf message."""
    size, head = len(content), bytearray((number << 3 | 2,))
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + content


WRITERS = {"csv": CsvWriter, "jsonl": JsonlWriter, "parquet": ParquetWriter, "tfrecord": TfrecordWriter}


def suffix(format: str, compress: str) -> str:
    """Return the ending of files' names; Parquet compresses inside the file, so its ending is always the same."""
    return f".{format}" + ("" if format == "parquet" else SUFFIXES[compress])


def check(format: str, compress: str, columns: Sequence[Column]) -> None:
    """Refuse data that a format cannot hold.

    Raises:
        UserError: zstd for TFRecord, or images for CSV or JSON lines.
    """
    if format == "tfrecord" and compress == "zstd":
        raise UserError("--compress: TensorFlow writes no zstd into TFRecord files; got zstd. Take gzip or none.")
    images = [column.name for column in columns if isinstance(column, Image)]
    if images and format in ("csv", "jsonl"):
        raise UserError(f"--format: {images[0]} is an image, which {format} files cannot hold; got {format}. Take parquet or tfrecord.")


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    """Return the batches' schema; images have metadata that tells them from texts, which are binary, too."""
    fields = []
    for column in columns:
        kind = pa.binary() if column.is_text else pa.float32()
        fields.append(pa.field(column.name, kind, metadata={"image": "1"} if isinstance(column, Image) else None))
    return pa.schema(fields)


def _as_strings(schema: pa.Schema) -> pa.Schema:
    return pa.schema([
        pa.field(field.name, pa.string() if pa.types.is_binary(field.type) and not field.metadata else field.type) for field in schema
    ])  # fmt: skip


def _as_json(array: pa.Array) -> pa.Array:
    """Return cells as JSON; a number has the fewest digits that give the same float32."""
    if pa.types.is_floating(array.type):
        return pc.fill_null(array.cast(pa.string()), "null")
    texts = array.cast(pa.string())
    quoted = pc.binary_join_element_wise(pa.scalar('"'), texts, pa.scalar('"'), "")
    odd = pc.fill_null(pc.match_substring_regex(texts, _ESCAPED), False)
    if pc.any(odd).as_py():
        written = [json.dumps(text, ensure_ascii=False) for text in texts.filter(odd).to_pylist()]
        quoted = pc.replace_with_mask(quoted, odd, pa.array(written, pa.string()))
    return pc.fill_null(quoted, "null")
