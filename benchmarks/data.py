#!/usr/bin/env python3
"""How fast rows are read, beside what reads the same files without looking at the cells.

    python benchmarks/data.py --folder /tmp/data-benchmark --json data.json

Rows/s of each format, read and checked up to Arrow record batches, against pyarrow's own reading of the
same file (goal: at least 0.6), TFRecord against `tf.data.TFRecordDataset` with `tf.io.parse_example` (goal: at least 3).
Every measurement is a fresh process; the two sides take turns.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import Spread, measure, parser, print_table, run
from taxi_rows import HEADER, generate

TAXI = ("csv", "csv.gz", "jsonl", "parquet", "tfrecord", "tfrecord.gz")
TEXTS = ("texts.csv", "texts.jsonl", "service.jsonl")
GOALS = {name: 3.0 if "tfrecord" in name else 0.6 for name in (*TAXI, *TEXTS)}
TEXT_ROWS = 10  # times fewer than taxi rows


# ------------------------------------------------------------------ files


def write_files(folder: Path, rows: int) -> dict[str, str]:
    """Write the same rows in every format, unless they are there; return the files by the names of the formats."""
    target = folder / f"formats-{rows}"
    names = {name: str(target / f"rows.{name}") for name in (*TAXI, *TEXTS)}
    if (target / "done").exists():
        return names
    target.mkdir(parents=True, exist_ok=True)
    _write_taxi(folder, target, rows)
    _write_texts(target, rows // TEXT_ROWS)
    (target / "done").touch()
    return names


def _write_taxi(folder: Path, target: Path, rows: int) -> None:
    import glob

    import pyarrow as pa
    import tensorflow as tf
    from pyarrow import csv, parquet

    text = pa.string()
    tables = [
        csv.read_csv(path, convert_options=csv.ConvertOptions(column_types={"pickup_datetime": text, "key": text}))
        for path in sorted(glob.glob(generate(folder, rows)[0]))
    ]
    table = pa.concat_tables(tables)
    csv.write_csv(table, target / "rows.csv", csv.WriteOptions(quoting_style="none"))
    content = (target / "rows.csv").read_bytes()
    (target / "rows.csv.gz").write_bytes(gzip.compress(content, 6))
    parquet.write_table(table, target / "rows.parquet")
    with (
        open(target / "rows.jsonl", "w") as lines,
        tf.io.TFRecordWriter(str(target / "rows.tfrecord")) as plain,
        tf.io.TFRecordWriter(str(target / "rows.tfrecord.gz"), "GZIP") as packed,
    ):
        for row in table.to_pylist():
            lines.write(json.dumps(row) + "\n")
            features = {name: _feature(value) for name, value in row.items()}
            record = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
            plain.write(record)
            packed.write(record)


def _feature(value: Any) -> Any:
    import tensorflow as tf

    if isinstance(value, str):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
    return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))


def _write_texts(target: Path, rows: int) -> None:
    import csv

    import numpy as np

    random = np.random.default_rng(0)
    words = np.array(["how", "do", "I", "join", "two", "lists", "déjà", '"quoted"', "a,b", "loop\n", "string", "table"])
    labels = np.array(["python", "sql", "java", "csharp"])
    with open(target / "rows.texts.csv", "w", newline="") as one, open(target / "rows.texts.jsonl", "w") as other:
        with open(target / "rows.service.jsonl", "w") as service:
            writer = csv.writer(one, lineterminator="\n")
            writer.writerow(["text", "label"])
            for _ in range(rows):
                text = " ".join(random.choice(words, random.integers(20, 300)))
                label = str(random.choice(labels))
                writer.writerow([text, label])
                other.write(json.dumps({"text": text, "label": label}) + "\n")
                service.write(json.dumps({"textContent": text, "classificationAnnotation": {"displayName": label}}) + "\n")


# ------------------------------------------------------------------ readers


def ours(name: str, path: str) -> int:
    """Read and check a file as the trainers do, up to record batches; return its rows."""
    from vertex_runtime import data
    from vertex_runtime.columns import Category, Date, Number, Text
    from vertex_runtime.formats import record_batches

    if name in TEXTS:
        columns, labels = (Text("text"), Category("label")), ("label",)
    else:
        numbers = [name for name in HEADER if name not in ("pickup_datetime", "key")]
        limits = {name: (-78, -70) if "longitude" in name else (37, 45) for name in numbers if "itude" in name}
        columns = (
            *(Number(name, low=limits.get(name, (0,))[0], high=limits.get(name, (0, 10_000))[1]) for name in numbers),
            Date("pickup_datetime", time=True),
            Text("key", required=False),
        )
        labels = ("fare_amount",)
    return sum(batch.num_rows for batch in record_batches(path, columns, labels, data.BadRows()))


def bare(name: str, path: str) -> int:
    """Read a file as its library does it by itself; return its rows."""
    reader: Callable[[str, bool], int] = _tf_data if "tfrecord" in name else _pyarrow
    return reader(path, name in TEXTS)


def _pyarrow(path: str, texts: bool) -> int:
    """Read by blocks with the types that are wanted, the column that nobody reads left out."""
    import pyarrow as pa
    from pyarrow import csv, parquet
    from pyarrow import json as pajson

    wanted = ["text", "label"] if texts else [name for name in HEADER if name != "key"]
    types = {name: pa.string() if texts or name == "pickup_datetime" else pa.float32() for name in wanted}
    if path.endswith(".parquet"):
        return sum(batch.num_rows for batch in parquet.ParquetFile(path).iter_batches(columns=wanted))
    if path.endswith(".jsonl"):
        if "service" in path:
            types = {"textContent": pa.string(), "classificationAnnotation": pa.struct([("displayName", pa.string())])}
        types = {name: pa.float64() if kind == pa.float32() else kind for name, kind in types.items()}
        parse = pajson.ParseOptions(explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore")
        return pajson.read_json(path, pajson.ReadOptions(block_size=4 << 20), parse).num_rows
    options = csv.ConvertOptions(include_columns=wanted, column_types=types)
    with pa.input_stream(path) as source:
        parse = csv.ParseOptions(newlines_in_values=texts)
        return sum(batch.num_rows for batch in csv.open_csv(source, csv.ReadOptions(block_size=4 << 20), parse, options))


def _tf_data(path: str, texts: bool) -> int:
    """Read by the batches that it is fastest with; smaller and larger ones, and other numbers of parallel calls, are slower."""
    import tensorflow as tf

    kinds = {name: tf.string if name == "pickup_datetime" else tf.float32 for name in HEADER if name != "key"}
    spec = {name: tf.io.FixedLenFeature([], kind) for name, kind in kinds.items()}

    def parse(records: Any) -> Any:
        return tf.io.parse_example(records, spec)

    records = tf.data.TFRecordDataset(path, "GZIP" if path.endswith(".gz") else "", buffer_size=4 << 20)
    dataset = records.batch(4096).map(parse, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return sum(len(batch["pickup_datetime"]) for batch in dataset)


READERS = {"ours": ours, "bare": bare}


def one(side: str, name: str, path: str) -> None:
    """Read a file twice in this process and print what the second time took: `{"rows": …, "seconds": …, "cpu": …}`."""
    READERS[side](name, path)
    start, busy = time.perf_counter(), time.process_time()
    rows = READERS[side](name, path)
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - start, "cpu": time.process_time() - busy}))


# ------------------------------------------------------------------ the measurement


def formats(args: Namespace) -> dict[str, Any]:
    """Print rows/s of some formats and what share that is of bare reading; return all measurements."""
    folder, rows, repeats = args.folder, args.rows, args.repeats
    command = [sys.executable, str(Path(__file__).resolve()), "--folder", str(folder), "--rows", str(rows)]
    run([*command, "--write"], folder / "logs")  # where it writes files this process need not hold them
    files = {name: path for name, path in write_files(folder, rows).items() if name in args.formats}
    kinds = [*READERS, *(f"{side}, CPU" for side in READERS)]
    rates: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in files}
    for _ in range(repeats):
        for name, path in files.items():
            for side in READERS:
                found = run([*command, "--one", side, name, path], folder / "logs").last_line()
                rates[name][side].append(found["rows"] / found["seconds"])
                rates[name][f"{side}, CPU"].append(found["rows"] / found["cpu"])
    table = []
    for name, found in rates.items():
        pairs = (("ours", "bare"), ("ours, CPU", "bare, CPU"))
        ratios = [Spread([mine / theirs for mine, theirs in zip(found[one], found[other])]) for one, other in pairs]
        sides = [f"{Spread(found[side]):,.0f}" for side in READERS]
        table.append((name, *sides, *(f"{ratio:.2f}" for ratio in ratios), GOALS[name]))
    header = ("format", "rows/s, median [range]", "bare reading, rows/s", "ours : bare", "by CPU time", "at least")
    print_table(f"Reading {rows:,} taxi rows and {rows // TEXT_ROWS:,} texts, {repeats} fresh processes each", header, table)
    return rates


def main() -> None:
    """Measure and print a table; or do for that what a fresh process is to do."""
    made = parser(__doc__)
    made.add_argument("--formats", nargs="+", choices=list(GOALS), default=list(GOALS), help="which formats to read")
    made.add_argument("--rows", type=int, default=1_000_000)
    made.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = made.parse_args()
    if args.one:
        one(*args.one)
    elif args.write:
        write_files(args.folder, args.rows)
    else:
        measure(args, {"formats": formats})


if __name__ == "__main__":
    main()
