"""Every format gives the same rows; what is wrong with a file is one line that names it; folders, wildcards, partitions."""

from __future__ import annotations

import calendar
import gzip
import importlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from conftest import ROOT

from vertex_runtime import data, formats
from vertex_runtime.columns import Category, Column, Date, Image, Number, Text
from vertex_runtime.errors import UserError
from vertex_runtime.formats import Reading, tfrecord

COLUMNS = (
    Number("price", low=0, high=1000), Number("size", missing=-1.0), Date("day", missing="2000-01-01"), Category("kind"),
    Text("key", required=False),
)  # fmt: skip
LABELS = ("price",)
NAMES = ["price", "size", "day", "kind", "key"]
TEXTS = (Text("text"), Category("label"))
TAXI = ROOT / "taxifare" / "tests" / "data"
QUESTIONS = ROOT / "stackoverflow" / "tests" / "data"
Row = Sequence[object]


def some_rows(count: int) -> list[list[object]]:
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        size = None if i % 5 == 0 else round(float(random.uniform(0, 9)), 3)
        day = None if i % 7 == 0 else f"2011-01-{i % 28 + 1:02d}"
        rows.append([round(float(random.uniform(0, 999)), 2), size, day, ["a", "déjà vu", "c, d"][i % 3], f"key {i}"])
    return rows


# ------------------------------------------------------------------ the same rows in every format


def as_csv(rows: Sequence[Row], names: Sequence[str] = NAMES) -> bytes:
    import csv

    text = io.StringIO()
    csv.writer(text).writerows([names, *[["" if cell is None else cell for cell in row] for row in rows]])
    return text.getvalue().encode()


def as_jsonl(rows: Sequence[Row], names: Sequence[str] = NAMES) -> bytes:
    return "".join(json.dumps(dict(zip(names, row))) + "\n" for row in rows).encode()


def as_parquet(rows: Sequence[Row], names: Sequence[str] = NAMES) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(zip(names, row)) for row in rows]), sink, row_group_size=37)
    return sink.getvalue()


def as_records(rows: Sequence[Row], names: Sequence[str] = NAMES) -> list[bytes]:
    import tensorflow as tf

    def feature(cell: object) -> tf.train.Feature:
        if isinstance(cell, float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=[cell]))
        if isinstance(cell, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[cell]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[cell.encode() if isinstance(cell, str) else cell]))

    examples = [{name: feature(cell) for name, cell in zip(names, row) if cell is not None} for row in rows]
    return [tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString() for features in examples]


def framed(records: Sequence[bytes]) -> bytes:
    """Return records as a TFRecord file has them, by TensorFlow's own writer."""
    import tempfile

    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        with tf.io.TFRecordWriter(f"{folder}/f") as writer:
            for record in records:
                writer.write(record)
        return Path(folder, "f").read_bytes()


def as_tfrecord(rows: Sequence[Row], names: Sequence[str] = NAMES) -> bytes:
    return framed(as_records(rows, names))


WRITERS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    "rows.csv": as_csv, "rows.jsonl": as_jsonl, "rows.parquet": as_parquet, "rows.tfrecord": as_tfrecord,
    "rows.csv.gz": lambda rows: gzip.compress(as_csv(rows)), "rows.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "rows.tfrecord.gz": lambda rows: gzip.compress(as_tfrecord(rows)), "zlib.tfrecord": lambda rows: zlib.compress(as_tfrecord(rows)),
    "joined.csv.gz": lambda rows: gzip.compress(as_csv(rows)[:1000]) + gzip.compress(as_csv(rows)[1000:]),
    "rows.csv.zst": lambda rows: pa.Codec("zstd").compress(as_csv(rows), asbytes=True),
    "rows.jsonl.zst": lambda rows: pa.Codec("zstd").compress(as_jsonl(rows), asbytes=True),
}  # fmt: skip


def read(path: Path, columns: Sequence[Column] = COLUMNS, labels: Sequence[str] = LABELS, policy: str = "error", **how: str) -> pa.Table:
    batches = list(formats.record_batches(str(path), columns, labels, data.BadRows(policy), Reading(**how)))
    return pa.Table.from_batches(batches).combine_chunks()


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name, tmp_path):
    rows = some_rows(700)
    table = read(write(tmp_path, name, WRITERS[name](rows)))
    assert table.schema.names == ["price", "size", "day", "kind"] and not any(column.null_count for column in table.columns)
    assert table.schema.types == [pa.float32(), pa.float32(), pa.binary(), pa.binary()]
    np.testing.assert_array_equal(table["price"].to_numpy(), np.array([row[0] for row in rows], np.float32))
    np.testing.assert_array_equal(table["size"].to_numpy(), np.array([-1.0 if row[1] is None else row[1] for row in rows], np.float32))
    assert table["day"].to_pylist() == [(row[2] or "2000-01-01").encode() for row in rows]
    assert table["kind"].to_pylist() == [row[3].encode() for row in rows]
    chunk = next(data.read(str(tmp_path / name), COLUMNS, LABELS, data.BadRows()))
    assert chunk["price"].dtype == np.float32 and chunk["kind"].dtype == object and isinstance(chunk["kind"][0], bytes)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("place, cell, problem", [
    (0, -1.0, "price must be a number in 0..1000; got '-1.0'"), (3, None, "kind must be given; got ''"),
    (2, "2011-02-30x", "day must be a date such as 2011-01-28; got '2011-02-30x'"),
])  # fmt: skip
def test_a_bad_row_is_named_or_skipped_in_every_format(name, place, cell, problem, tmp_path):
    rows = some_rows(700)
    rows[600][place] = cell
    path = write(tmp_path, name, WRITERS[name](rows))
    where = "line 602" if ".csv" in name else "line 601" if ".jsonl" in name else "row 601"
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, {where}: {problem}") and "\n" not in str(error.value)
    bad = data.BadRows("skip")
    assert sum(batch.num_rows for batch in formats.record_batches(str(path), COLUMNS, LABELS, bad)) == 699
    assert bad.reasons == {problem.partition(";")[0]: 1}


def test_names_say_less_than_content_and_content_less_than_nothing(tmp_path):
    rows = some_rows(40)
    expected = read(write(tmp_path, "rows.csv", as_csv(rows)))
    for name, content in (("a", as_csv(rows)), ("b", as_jsonl(rows)), ("c", as_parquet(rows)), ("d", as_tfrecord(rows))):
        assert read(write(tmp_path, name, content)).equals(expected), name
    for name, said in (("a", "csv"), ("b", "jsonl"), ("rows.csv", "jsonl"), ("rows.csv", "bigquery")):
        assert read(tmp_path / name, format=said).equals(expected)


MISNAMED = {
    "parquet in csv": ("f.csv", as_parquet, "f.csv is no csv file: what it holds is parquet"),
    "json in csv": ("f.csv", as_jsonl, "f.csv is no csv file: what it holds is jsonl"),
    "csv in parquet": ("f.parquet", as_csv, "f.parquet is no whole Parquet file"),
    "json in parquet": ("f.parquet", as_jsonl, "f.parquet is no parquet file: what it holds is jsonl"),
    "csv in json": ("f.jsonl", as_csv, "f.jsonl, line 1: the line is no JSON object; got 'price,size,"),
    "records in parquet": ("f.parquet", as_tfrecord, "f.parquet is no parquet file: what it holds is tfrecord"),
    "csv in records": ("f.tfrecord", as_csv, "f.tfrecord, record 1: the checksum of its length is wrong"),
    "csv in an archive": ("f.tar.gz", as_csv, "f.tar.gz"),
    "a picture": ("f", lambda rows: b"\x89PNG\r\n\x1a\n\0\0", "f is no file of a known format"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISNAMED)
def test_a_file_that_is_not_what_its_name_says(case, tmp_path):
    name, writer, problem = MISNAMED[case]
    path = write(tmp_path, name, writer(some_rows(30)))
    with pytest.raises(UserError) as error:
        read(path)
    assert problem in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("rows.csv", "rows.jsonl")])
def test_a_file_that_is_cut_off(name, tmp_path):
    content = WRITERS[name](some_rows(700))
    path = write(tmp_path, name, content[: len(content) * 2 // 3])
    for policy in ("error", "skip"):
        with pytest.raises(UserError) as error:
            read(path, policy=policy)
        assert str(path) in str(error.value) and "\n" not in str(error.value), error.value
        assert "cut off" in str(error.value) or "is no whole" in str(error.value)


def test_a_damaged_record_is_named(tmp_path):
    records = as_records(some_rows(300))
    content = bytearray(framed(records))
    start = sum(len(record) + 16 for record in records[:250])
    for place, problem in (
        (start + 40, "record 251: its checksum is wrong"),
        (start + 2, "record 251: the checksum of its length is wrong"),
    ):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path = write(tmp_path, "f.tfrecord", bytes(damaged))
        for policy in ("error", "skip"):
            with pytest.raises(UserError, match=problem):
                read(path, policy=policy)


def test_damaged_records_are_found_wherever_they_stand(tmp_path, monkeypatch):
    """Checksums are looked at for many records together: none of them may hide another's."""
    pytest.importorskip("google_crc32c")
    monkeypatch.setattr(tfrecord, "_CHAINED", 64)
    records = as_records(some_rows(300))
    content = framed(records)
    starts = np.cumsum([0, *(len(record) + 16 for record in records)])
    for damaged in ([0], [63], [64], [299], [5, 6], [70, 71, 72, 200], range(300)):
        wrong = bytearray(content)
        for record in damaged:
            wrong[starts[record] + 12 + record % 20] ^= 0x40
        with pytest.raises(UserError, match=f"record {damaged[0] + 1}: its checksum is wrong"):
            read(write(tmp_path, "f.tfrecord", bytes(wrong)))
    wrong = bytearray(content)
    wrong[starts[101] - 1] ^= 1  # the checksum itself
    with pytest.raises(UserError, match="record 101: its checksum is wrong"):
        read(write(tmp_path, "f.tfrecord", bytes(wrong)))


@pytest.mark.parametrize("name", ["rows.tfrecord.gz", "rows.jsonl.gz"])
def test_what_is_wrong_first_is_said_first(name, tmp_path, monkeypatch):
    """A bad row that stands before the place where a file is cut off, though that is read ahead."""
    monkeypatch.setattr(data, "BLOCK_BYTES", 2000)
    rows = some_rows(700)
    rows[300][0] = -1.0
    content = WRITERS[name](rows)
    path = write(tmp_path, name, content[: len(content) * 4 // 5])
    with pytest.raises(UserError, match="price must be a number"):
        read(path)
    with pytest.raises(UserError, match="cut off|no whole"):
        read(path, policy="skip")


def test_checksums_without_google_crc32c(tmp_path, monkeypatch):
    records = as_records(some_rows(300))
    monkeypatch.setattr(tfrecord, "_checker", lambda: tfrecord._first_wrong)
    content = bytearray(framed(records))
    path = write(tmp_path, "f.tfrecord", bytes(content))
    assert read(path).num_rows == 300
    content[sum(len(record) + 16 for record in records[:250]) + 40] ^= 1
    with pytest.raises(UserError, match="record 251: its checksum is wrong"):
        read(write(tmp_path, "f.tfrecord", bytes(content)))


def test_damaged_pages_of_a_parquet_file(tmp_path):
    content = bytearray(as_parquet(some_rows(3000)))
    content[200:2000] = b"\xff" * 1800
    with pytest.raises(UserError, match="f.parquet is no whole Parquet file"):
        read(write(tmp_path, "f.parquet", bytes(content)))


# ------------------------------------------------------------------ what each format has of its own


def test_lines_of_json_that_are_no_objects(tmp_path):
    lines = as_jsonl(some_rows(60)).splitlines(keepends=True)
    wrong = {
        10: b"[1, 2]\n",
        20: b'{"price": 1, \n',
        30: b"word\n",
        40: b"\n",
        50: b'{"price": [3], "kind": "a"}\n',
        55: b'{"kind": "\xff", "price": 1}\n',
    }
    for place, line in wrong.items():
        lines[place] = line
    path = write(tmp_path, "f.jsonl", b"".join(lines))
    with pytest.raises(UserError, match="f.jsonl, line 11: the line is no JSON object"):
        read(path)
    bad = data.BadRows("skip")
    assert sum(batch.num_rows for batch in formats.record_batches(str(path), COLUMNS, LABELS, bad)) == 54
    assert bad.reasons == {"the line is no JSON object": 3, "price is no text or number": 1, "the line is not UTF-8": 1}


def test_numbers_in_json_are_numbers_or_texts(tmp_path):
    spelt = [
        "1",
        '"1"',
        '" 1 "',
        "1.0",
        '"1e0"',
        "10e-1",
        '"+1"',
        '"1_0"',
        "null",
        '""',
        "NaN",
        '"nan"',
        "true",
        "1e999",
        '"x"',
        "Infinity",
    ]
    path = write(tmp_path, "f.jsonl", "".join(f'{{"a": {text}, "other": {{"deep": [1]}}}}\n' for text in spelt))
    bad = data.BadRows("skip")
    (batch,) = formats.record_batches(str(path), (Number("a", missing=7.0),), (), bad)
    assert batch.column(0).to_pylist() == [1, 1, 1, 1, 1, 1, 1, 10, 7, 7] and bad.reasons == {"a must be a number": 6}
    path = write(tmp_path, "g.jsonl", '{"a": 3}\n{"a": 2, "b": 1}\n{"b": 2}\n')
    (batch,) = formats.record_batches(str(path), (Category("a", missing="?"), Number("b", missing=0.0)), (), data.BadRows())
    assert batch.to_pydict() == {"a": [b"3", b"2", b"?"], "b": [0, 1, 2]}
    path = write(tmp_path, "h.jsonl", '{"a": 1}{"a": 2}\n{"a":\n3}\n')  # Arrow alone would take it
    with pytest.raises(UserError, match="h.jsonl, line 1: the line is no JSON object"):
        read(path, (Number("a"),), ())


@pytest.mark.parametrize("fault", [b"x\n", b'{"price": -5, "kind": "a"}\n'])
def test_a_bad_line_beyond_the_first_block_of_json(fault, tmp_path):
    lines = as_jsonl(some_rows(100)).splitlines(keepends=True) * 700
    lines[66_000] = fault
    path = write(tmp_path, "f.jsonl", b"".join(lines))
    assert path.stat().st_size > data.BLOCK_BYTES
    with pytest.raises(UserError, match="f.jsonl, line 66001: "):
        read(path)
    assert read(path, policy="skip").num_rows == 69_999


def test_types_of_parquet_that_are_not_text_or_float(tmp_path):
    import datetime
    import decimal

    when = [datetime.datetime(2011, 1, 28, 20, 42, 59), None]
    table = pa.table({
        "i": pa.array([3, None], pa.int16()), "d": pa.array([decimal.Decimal("1.25"), None], pa.decimal128(9, 2)),
        "when": pa.array(when, pa.timestamp("us", "UTC")), "naive": pa.array(when, pa.timestamp("ns")),
        "day": pa.array([datetime.date(2011, 1, 28), None]),
        "word": pa.array(["a", None]).dictionary_encode(), "large": pa.array(["b", None], pa.large_string()),
        "flag": pa.array([True, None]),
        "half": pa.array(np.array([0.5, np.nan], np.float32)), "number": pa.array([7, None]), "text": pa.array(["2.5", ""]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "f.parquet")
    columns = (
        *(Number(name, missing=-1.0) for name in ("i", "d", "flag", "half", "text")),
        *(Date(name, missing="2000-01-01") for name in ("when", "naive", "day")),
        *(Category(name, missing="?") for name in ("word", "large", "number")),
    )  # fmt: skip
    found = read(tmp_path / "f.parquet", columns, ()).to_pydict()
    assert found == {
        "i": [3, -1], "d": [1.25, -1], "flag": [1, -1], "half": [0.5, -1], "text": [2.5, -1],
        "when": [b"2011-01-28 20:42:59 UTC", b"2000-01-01"], "naive": [b"2011-01-28 20:42:59 UTC", b"2000-01-01"],
        "day": [b"2011-01-28", b"2000-01-01"],
        "word": [b"a", b"?"], "large": [b"b", b"?"], "number": [b"7", b"?"],
    }  # fmt: skip
    pq.write_table(pa.table({"price": [[1.0]], "kind": ["a"], "day": ["2011-01-01"]}), tmp_path / "g.parquet")
    with pytest.raises(
        UserError, match=r"g.parquet: the column price is of a wrong type: list<.*> holds no numbers, and price must be a number"
    ):
        read(tmp_path / "g.parquet", (Number("price"),))
    with pytest.raises(UserError, match="g.parquet lacks the column size; it has price, kind, day"):
        read(tmp_path / "g.parquet")


def test_records_that_are_written_in_other_ways(tmp_path):
    """Several layouts, integers of any length, several values, no Example at all."""
    random = np.random.default_rng(1)
    rows: list[list[object]] = [
        [float(i), int(random.integers(-(1 << 62), 1 << 62) >> int(random.integers(0, 60))), "w" * (i % 3 + 1)] for i in range(4000)
    ]
    for row in rows[::11]:
        row[1] = None
    columns = (Number("a"), Number("b", missing=0.5), Text("c"))
    found = read(write(tmp_path, "f.tfrecord", as_tfrecord(rows, ["a", "b", "c"])), columns, ())
    np.testing.assert_array_equal(found["b"].to_numpy(), np.array([0.5 if row[1] is None else row[1] for row in rows], np.float32))
    assert found["a"].to_pylist() == [row[0] for row in rows] and found["c"].to_pylist() == [row[2].encode() for row in rows]
    records = as_records(rows, ["a", "b", "c"])
    records[700] = b"\x0a\xffno message"
    records[800] = as_records([["one", 3, "w"]], ["a", "b", "c"])[0]
    records[900] = as_records([[1.0, 2.0, "w"]], ["a", "b", "c"])[0]
    path = write(tmp_path, "g.tfrecord", framed(records))
    with pytest.raises(UserError, match="g.tfrecord, row 701: is no tf.train.Example"):
        read(path, columns, ())
    bad = data.BadRows("skip")
    assert sum(batch.num_rows for batch in formats.record_batches(str(path), columns, (), bad)) == 3998
    assert bad.reasons == {"is no tf.train.Example": 1, "a must be a number": 1}


def test_several_values_of_a_feature_are_a_bad_row(tmp_path):
    import tensorflow as tf

    records = as_records([[1.0], [2.0]], ["a"])
    several = tf.train.Feature(float_list=tf.train.FloatList(value=[1.0, 2.0]))
    records.append(tf.train.Example(features=tf.train.Features(feature={"a": several})).SerializeToString())
    path = write(tmp_path, "f.tfrecord", framed(records))
    with pytest.raises(UserError, match="f.tfrecord, row 3: a holds several values"):
        read(path, (Number("a"),), ())
    assert read(path, (Number("a"),), (), "skip").num_rows == 2


def test_images_in_records_and_parquet_files(tmp_path):
    import tensorflow as tf

    image = tf.io.encode_png(np.zeros((2, 2, 1), np.uint8)).numpy()
    columns, labels = (Image("image_bytes"), Category("label")), ("label",)
    rows = [[image, "cat"], [image[:-20], "dog"]]
    write(tmp_path, "f.tfrecord", as_tfrecord(rows, ["image_bytes", "label"]))
    write(tmp_path, "f.parquet", as_parquet(rows, ["image_bytes", "label"]))
    for name in ("f.tfrecord", "f.parquet"):
        assert data.find([str(tmp_path / name)], "--train_data_path", columns, labels) == [str(tmp_path / name)]
        assert read(tmp_path / name, columns, labels, "skip").to_pydict() == {"image_bytes": [image], "label": [b"cat"]}
        with pytest.raises(UserError, match=f"{name}, row 2: image_bytes must be a whole PNG or JPEG file"):
            read(tmp_path / name, columns, labels)


# ------------------------------------------------------------------ texts: folders, archives, the service's own lines


def label_folders(root: Path) -> None:
    for part in ("train", "test"):
        for label in ("python", "sql"):
            for i in range(3):
                write(root, f"{part}/{label}/{i}.txt", f"{part} {label} question {i}\n")


def archive(folder: Path, root: Path, name: str) -> Path:
    path = folder / name
    with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as file:
        for part in sorted(root.iterdir()):
            file.add(part, part.name)
    return path


def test_archives_folders_and_lines_hold_the_same_texts(tmp_path):
    root = tmp_path / "questions"
    label_folders(root)
    for flag, part in (("--train_data_path", "train"), ("--eval_data_path", "test"), ("AIP_VALIDATION_DATA_URI", "test")):
        (found,) = data.find([str(root)], flag, TEXTS, ("label",))
        assert found == str(root / part)
        expected = read(Path(found), TEXTS, ("label",))
        assert expected.to_pylist()[0] == {"text": f"{part} python question 0\n".encode(), "label": b"python"} and expected.num_rows == 6
        for name in ("q.tar.gz", "q.tar", "q.tgz"):
            path = archive(tmp_path, root, name)
            (named,) = data.find([str(path)], flag, TEXTS, ("label",))
            assert named == f"{path}:{part}" and data.find([named], "--train_data_path", TEXTS, ("label",)) == [named]
            rows = sorted(read(Path(named), TEXTS, ("label",)).to_pylist(), key=lambda row: row["text"])
            assert rows == expected.to_pylist()
            assert data.total_bytes([named]) == path.stat().st_size and data.fingerprint(named, True)["bytes"] == path.stat().st_size
        lines = [
            {"textContent": row["text"].decode(), "classificationAnnotation": {"displayName": row["label"].decode()}}
            for row in expected.to_pylist()
        ]
        path = write(tmp_path, "lines.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        assert read(path, TEXTS, ("label",)).equals(expected)


def test_an_archive_that_is_wrong(tmp_path):
    root = tmp_path / "questions"
    label_folders(root)
    write(root, "train/sql/9.txt", b"na\xefve")
    path = archive(tmp_path, root, "q.tar.gz")
    with pytest.raises(UserError, match=r"q.tar.gz:train/sql/9.txt, line 1: the text is not UTF-8"):
        read(Path(f"{path}:train"), TEXTS, ("label",))
    assert read(Path(f"{path}:train"), TEXTS, ("label",), "skip").num_rows == 6
    with pytest.raises(UserError, match="holds no valid/<label>/<file>.txt"):
        read(Path(f"{path}:valid"), TEXTS, ("label",))
    with pytest.raises(UserError, match="is an archive, which is read only where COLUMNS are one Text or Image and its label"):
        read(Path(f"{path}:train"))
    for name in ("q.tar.gz", "q.tar"):
        content = archive(tmp_path, root, name).read_bytes()
        for size in (len(content) // 2, len(content) // 2 // 512 * 512, len(content) // 2 // 512 * 512 + 99):
            path = write(tmp_path, name, content[:size])
            with pytest.raises(UserError, match=f"{name} is no whole"):
                read(Path(f"{path}:train"), TEXTS, ("label",), "skip")


def line(text: str | None = None, uri: str | None = None, labels: Sequence[str] = (), use: str | None = None) -> str:
    row: dict[str, object] = {"textContent": text} if text is not None else {"textGcsUri": uri}
    named = [{"displayName": label, "annotationResourceLabels": {"a": "b"}} for label in labels]
    row |= {"classificationAnnotation": named[0]} if len(named) == 1 else {"classificationAnnotations": named}
    row |= {"dataItemResourceLabels": {"aiplatform.googleapis.com/ml_use": use}} if use else {}
    return json.dumps(row) + "\n"


def test_the_services_lines_of_text(tmp_path, monkeypatch):
    from vertex_runtime.formats import text_jsonl

    monkeypatch.setenv("VERTEX_LOCAL_BUCKET_ROOT", str(tmp_path))
    write(tmp_path, "bucket/far.txt", "from afar")
    write(tmp_path, "near.txt", "from near")
    lines = [
        line("one", labels=["a"], use="training"),
        line(uri="gs://bucket/far.txt", labels=["b"], use="test"),
        line(uri=str(tmp_path / "near.txt"), labels=["a"]),
    ]
    path = write(tmp_path, "f.jsonl", "".join(lines))
    assert read(path, TEXTS, ("label",)).to_pydict() == {"text": [b"one", b"from afar", b"from near"], "label": [b"a", b"b", b"a"]}
    (raw,) = text_jsonl.read(str(path), TEXTS, data.BadRows(), Reading(labels=("label",)))
    assert raw.batch.column(2).cast(pa.string()).to_pylist() == ["training", "test", None]
    wrong = [
        line("two", labels=["a", "b"]),
        line(uri="gs://bucket/none.txt", labels=["b"]),
        line("none", labels=[]),
        line("", labels=["a"]),
    ]
    path = write(tmp_path, "g.jsonl", "".join([*lines, *wrong, line("last", labels=["b"])]))
    bad = data.BadRows("skip")
    assert sum(batch.num_rows for batch in formats.record_batches(str(path), TEXTS, ("label",), bad)) == 4
    assert sorted(bad.reasons) == [
        "label must be given",
        "text must be given",
        "textGcsUri cannot be read (FileNotFoundError)",
        "the row has several labels",
    ]
    with pytest.raises(UserError, match="g.jsonl, line 4: the row has several labels"):
        read(path, TEXTS, ("label",))
    with pytest.raises(UserError, match="COLUMNS are not one Text and its label"):
        read(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "tfrecord"])
def test_a_column_may_be_called_otherwise_in_files(kind, tmp_path):
    """Messages name it as the file does; all else as requests do."""
    writer = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet, "tfrecord": as_tfrecord}[kind]
    columns = (Number("area", low=0, header="Living area (m²)"), Category("label", header="Kind of house"))
    path = write(tmp_path, f"f.{kind}", writer([[1.5, "a"], [2.5, "b"]], ["Living area (m²)", "Kind of house"]))
    assert read(path, columns, ("label",)).to_pydict() == {"area": [1.5, 2.5], "label": [b"a", b"b"]}
    path = write(tmp_path, f"g.{kind}", writer([[1.5, "a"], [-2.5, "b"]], ["Living area (m²)", "Kind of house"]))
    with pytest.raises(UserError, match=r"[23]: Living area \(m²\) must be a number"):
        read(path, columns, ("label",))
    plain = write(tmp_path, f"h.{kind}", writer([[1.5, "a"]], ["area", "label"]))
    with pytest.raises(UserError, match=r"Living area \(m²\)"):
        read(plain, columns, ("label",))


def test_a_files_column_called_as_the_runtimes_own_is_a_column(tmp_path):
    path = write(tmp_path, "f.csv", "_path,_row\n1,a\n2,b\n")
    columns = (Number("path", header="_path"), Category("row", header="_row"))
    assert read(path, columns, ("row",)).to_pydict() == {"path": [1.0, 2.0], "row": [b"a", b"b"]}
    assert read(path, columns, ("row",), "collect").column("_row").to_pylist() == [1, 2]


def test_blocks_of_csv_files_know_such_columns_too(tmp_path):
    from vertex_runtime.blocks import csv_blocks

    path = write(tmp_path, "f.csv", "x y,z\n" + "".join(f"{i},{-i}\n" for i in range(300)))
    columns = (Number("x", header="x y"), Number("z"))
    found = csv_blocks([str(path)], columns, 64, 128, lambda chunk: [chunk["x"], chunk["z"]], lambda: None, lambda: None)
    blocks = dict(found.prepared([1, 4]))
    assert blocks[1][0].tolist() == list(range(64, 128)) and blocks[4][1].tolist() == [-i for i in range(256, 300)]


USES = ["training"] * 5 + ["validation"] * 3 + ["test"] * 2


def items(folder: Path, uses: Sequence[str | None], name: str = "items.jsonl") -> str:
    """Write lines of text whose uses are given; each text tells its use."""
    return str(write(folder, name, "".join(line(f"{use} {i}", labels=["ab"[i % 2]], use=use) for i, use in enumerate(uses))))


def parts_of(tmp_path: Path, *flags: str, **variables: str) -> list[list[str]]:
    """Return the texts that a run with such flags trains on, evaluates on and tests on, each without its number."""
    from types import SimpleNamespace

    from vertex_runtime.arguments import CommonHyperparameters, parse
    from vertex_runtime.environment import Environment
    from vertex_runtime.locations import data_paths

    hp, options = parse(CommonHyperparameters, flags, "")
    find = lambda paths, flag: data.find(paths, flag, TEXTS, ("label",))  # noqa: E731
    contract = SimpleNamespace(given=frozenset(), columns=TEXTS, labels=("label",), find=find)
    *parts, _ = data_paths(contract, hp, options, Environment.from_mapping(variables))
    read_one = lambda path: [text.split()[0].decode() for text in read(Path(path), TEXTS, ("label",)).to_pydict()["text"]]  # noqa: E731
    return [[text for path in paths for text in read_one(path)] for paths in parts]


def test_one_file_of_items_is_parted_by_their_use(tmp_path, capsys):
    path = items(tmp_path, USES)
    parted = [USES[:5], USES[5:8], USES[8:]]
    assert parts_of(tmp_path, f"--train_data_path={path}") == parted
    assert parts_of(tmp_path, AIP_TRAINING_DATA_URI=path) == parted
    assert parts_of(tmp_path, f"--train_data_path={path}", f"--eval_data_path={path}") == [*parted[:2], []]
    assert parts_of(tmp_path, *(f"--{name}_data_path={path}" for name in ("train", "eval", "test"))) == parted
    assert "items.jsonl: its rows are parted by what their ml_use says: 5 training, 3 validation, 2 test" in capsys.readouterr().out
    assert parts_of(tmp_path, f"--train_data_path={path}:ml_use=test", f"--eval_data_path={path}") == [USES[8:], USES, []]


def test_other_files_are_left_as_they_are(tmp_path):
    """Files of their own for each use, one whose rows are all for one use, rows without any, and a fraction that was asked for."""
    path, other = items(tmp_path, USES), items(tmp_path, ["training", "validation"], "other.jsonl")
    assert parts_of(tmp_path, f"--train_data_path={path}", f"--eval_data_path={other}") == [USES, ["training", "validation"], []]
    alike = items(tmp_path, ["training"] * 4, "alike.jsonl")
    assert parts_of(tmp_path, f"--train_data_path={alike}", f"--eval_data_path={alike}") == [["training"] * 4] * 2 + [[]]
    none = items(tmp_path, [None] * 4, "none.jsonl")
    assert parts_of(tmp_path, f"--train_data_path={none}", f"--eval_data_path={none}") == [["None"] * 4] * 2 + [[]]
    for unparted in (alike, none):
        with pytest.raises(UserError, match="no data: give --eval_data_path"):
            parts_of(tmp_path, f"--train_data_path={unparted}")
    assert parts_of(tmp_path, f"--train_data_path={path}", "--eval_fraction=0.2") == [USES, [], []]


def test_items_without_a_use_are_left_out_with_a_warning(tmp_path, capsys):
    path = items(tmp_path, [*USES, None, "TRAIN", ""])
    assert parts_of(tmp_path, f"--train_data_path={path}") == [USES[:5], USES[5:8], USES[8:]]
    assert "items.jsonl: 3 rows have none of these as their ml_use: they are left out" in capsys.readouterr().err


def test_bad_rows_of_a_use_are_named_by_their_line(tmp_path):
    lines = [line("one", labels=["a"], use="training"), line("two", labels=["a", "b"], use="test"), line("", labels=["a"], use="training")]
    path = write(tmp_path, "f.jsonl", "".join(lines))
    with pytest.raises(UserError, match="f.jsonl, line 3: text must be given"):
        read(Path(f"{path}:ml_use=training"), TEXTS, ("label",))
    with pytest.raises(UserError, match="f.jsonl, line 2: the row has several labels"):
        read(Path(f"{path}:ml_use=test"), TEXTS, ("label",))


# ------------------------------------------------------------------ what paths name


def test_folders_wildcards_lists_and_partitions(tmp_path):
    rows = some_rows(20)
    keyed = [name for name in NAMES if name != "kind"]
    for kind, writer, ending in (
        ("a", as_parquet, "parquet"),
        ("b%20c", as_csv, "csv"),
        ("d", as_jsonl, "jsonl"),
        ("e", as_tfrecord, "tfrecord"),
    ):
        write(tmp_path, f"table/kind={kind}/part-0.{ending}", writer([[*row[:3], row[4]] for row in rows], keyed))
    write(tmp_path, "table/_SUCCESS", "")
    write(tmp_path, "table/kind=a/.part-0.parquet.crc", "x")
    found = data.find([str(tmp_path / "table")], "--train_data_path", COLUMNS, LABELS)
    assert [path.rpartition("=")[2] for path in found] == ["a/part-0.parquet", "b%20c/part-0.csv", "d/part-0.jsonl", "e/part-0.tfrecord"]
    for path, kind in zip(found, (b"a", b"b c", b"d", b"e")):
        assert set(read(Path(path))["kind"].to_pylist()) == {kind} and read(Path(path)).num_rows == 20
    assert data.find([f"{tmp_path}/table/kind=a/*", f"{found[1]},{found[2]}"], "--train_data_path", COLUMNS, LABELS) == found[:3]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing is a folder without files of a known format"):
        data.find([str(tmp_path / "nothing")], "--train_data_path", COLUMNS, LABELS)


def test_empty_shards(tmp_path, capsys):
    write(tmp_path, "a.csv", as_csv(some_rows(3)))
    write(tmp_path, "b.csv", b"")
    write(tmp_path, "c.csv", as_csv([]))
    write(tmp_path, "d.parquet", pa_bytes(pa.table({name: pa.array([], pa.string()) for name in NAMES})))
    found = data.find([f"{tmp_path}/*"], "--train_data_path", COLUMNS, LABELS)
    assert found == [f"{tmp_path}/a.csv", f"{tmp_path}/c.csv", f"{tmp_path}/d.parquet"]
    assert [sum(batch.num_rows for batch in formats.record_batches(path, COLUMNS, LABELS, data.BadRows())) for path in found] == [3, 0, 0]
    said = capsys.readouterr().err
    assert "1 empty files are left out" in said and "c.csv holds no rows" in said and "d.parquet holds no rows" in said
    with pytest.raises(UserError, match="b.csv is empty. Remove it"):
        data.find([f"{tmp_path}/b.csv"], "--train_data_path", COLUMNS, LABELS)


def pa_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_no_rows_at_all_are_refused(tmp_path):
    header = (TAXI / "taxi-train.csv").read_text().splitlines()[0]
    write(
        tmp_path,
        "none.csv",
        "fare_amount,pickup_datetime,pickup_longitude,pickup_latitude,dropoff_longitude,dropoff_latitude,passenger_count,key\n",
    )
    write(tmp_path, "bad.csv", header.replace(header.split(",")[0], "-1") + "\n")
    for name, flag, problem in (
        ("none.csv", "error", "the training data holds no rows"),
        ("bad.csv", "skip", "skipped 1 bad rows .* and no others"),
    ):
        with pytest.raises(UserError, match=problem):
            train("taxifare", tmp_path / name, TAXI / "taxi-valid.csv", tmp_path / "out", f"--bad_rows={flag}")


def test_a_format_is_a_file(tmp_path, monkeypatch):
    """A module that is put into the package reads its files, and paths of its own scheme, without any list of formats."""
    source = (
        "import pyarrow as pa\nfrom vertex_runtime.formats import Raw\nNAMES = ('word',)\nSUFFIXES = ('.word',)\nSCHEMES = ('word',)\n"
        "def recognises(head):\n    return head.startswith(b'WORD')\n"
        "def read(path, columns, bad, reading):\n"
        "    yield Raw(pa.record_batch([pa.array([reading.row_filter or path])], ['text']), lambda i: f'{path}, row {i + 1}')\n"
    )
    write(tmp_path, "word.py", source)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    formats.modules.cache_clear()
    try:
        path = write(tmp_path, "f.word", "WORD")
        assert read(path, (Text("text"),), ()).to_pydict() == {"text": [str(path).encode()]}
        assert list(formats.record_batches("word://x", (Text("text"),), (), data.BadRows(), Reading(row_filter="a > 1")))[
            0
        ].to_pydict() == {"text": [b"a > 1"]}
    finally:
        formats.modules.cache_clear()
    with pytest.raises(UserError, match="rows of csv files take no --row_filter, only tables do; got 'a > 1'"):
        read(TAXI / "taxi-train.csv", row_filter="a > 1")


# ------------------------------------------------------------------ trainers


def train(trainer: str, training: Path, evaluation: Path, out: Path, *flags: str) -> dict[str, float]:
    main = importlib.import_module(f"{trainer}.trainer.task").main
    small = ["--epochs=1", "--num_evals=1", "--batch_size=16"]
    return main([f"--train_data_path={training}", f"--eval_data_path={evaluation}", f"--output_dir={out}", *small, *flags])


def taxi_rows() -> tuple[list[str], list[list[object]]]:
    names = [column.name for column in importlib.import_module("taxifare.trainer.model").COLUMNS]
    rows = [text.split(",") for text in (TAXI / "taxi-train.csv").read_text().splitlines()[:320]]
    return names, [[cell if name in ("pickup_datetime", "key") else float(cell) for name, cell in zip(names, row)] for row in rows]


@pytest.mark.slow
def test_taxifare_trains_alike_on_every_format(tmp_path):
    """That each format gives the same rows is what other tests look at."""
    names, rows = taxi_rows()
    found = {}
    for writer, ending in ((as_csv, "csv"), (as_tfrecord, "tfrecord"), (as_jsonl, "jsonl"), (as_parquet, "parquet")):
        path = write(tmp_path, f"f.{ending}", writer(rows, names))
        found[ending] = train("taxifare", path, path, tmp_path / ending)["val_rmse"]
    assert len(set(found.values())) == 1, found


@pytest.mark.slow
def test_stackoverflow_trains_alike_on_every_format(tmp_path):
    rows = [[f"how to loop {i} {word}", word] for i in range(40) for word in ("python", "sql")]
    rows.sort(key=lambda row: (row[1], row[0]))
    paths = []
    for writer, ending in ((as_csv, "csv"), (as_jsonl, "jsonl"), (as_parquet, "parquet"), (as_tfrecord, "tfrecord")):
        paths.append(write(tmp_path, f"f.{ending}", writer(rows, ["text", "label"])))
    paths.append(write(tmp_path, "lines.jsonl", "".join(line(text, labels=[label]) for text, label in rows)))
    for i, (text, label) in enumerate(rows):
        for part in ("train", "test"):
            write(tmp_path, f"folders/{part}/{label}/{i:03d}.txt", text)
    paths.append(tmp_path / "folders")
    packed = tmp_path / "packed.tar.gz"
    with tarfile.open(packed, "w:gz") as file:
        for path in sorted((tmp_path / "folders").rglob("*.txt")):
            file.add(path, path.relative_to(tmp_path / "folders"))
    found = {
        str(path): train("stackoverflow", path, path, tmp_path / "out" / str(i))["val_loss"] for i, path in enumerate([*paths, packed])
    }
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("name", ["jsonl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("parquet", "tfrecord"))])
def test_the_services_format_is_read(name, tmp_path, monkeypatch):
    names, rows = taxi_rows()
    writer = {"jsonl": as_jsonl, "parquet": as_parquet, "tfrecord": as_tfrecord}[name]
    path = write(tmp_path, "exported-00000", writer(rows, names))
    for variable in ("AIP_TRAINING_DATA_URI", "AIP_VALIDATION_DATA_URI"):
        monkeypatch.setenv(variable, str(path))
    monkeypatch.setenv("AIP_DATA_FORMAT", name)
    main = importlib.import_module("taxifare.trainer.task").main
    assert main([f"--output_dir={tmp_path / 'out'}", "--num_examples_to_train_on=64", "--num_evals=1", "--batch_size=16"])["val_rmse"] > 0


@pytest.mark.parametrize("ending, where", [("jsonl", ", line 2"), ("parquet", "")])
def test_an_unseen_label_is_located(ending, where, tmp_path):
    writer = {"jsonl": as_jsonl, "parquet": as_parquet}[ending]
    rows = [[f"how to loop {i}", word] for i in range(40) for word in ("python", "sql")]
    training = write(tmp_path, "train.csv", as_csv(rows, ["text", "label"]))
    unseen = write(tmp_path, f"unseen.{ending}", writer([["one", "sql"], ["what is a monad", "haskell"]], ["text", "label"]))
    with pytest.raises(UserError, match=f"unseen.{ending}{where}: the label 'haskell' was not seen in training"):
        train("stackoverflow", training, unseen, tmp_path / "out")


def test_a_date_is_a_day_that_its_month_has():
    """In files of one spelling and of several, and in the served model."""
    years = [1, 4, 100, 1600, 1900, *range(1995, 2030), 2100, 2400]
    texts = [f"{year:04}-{month:02}-{day:02}" for year in years for month in range(14) for day in range(34)]
    lengths = {(year, month): calendar.monthrange(year, month)[1] for year in years for month in range(1, 13)}
    expected = [1 <= int(day) <= lengths.get((int(year), int(month)), 0) for year, month, day in (text.split("-") for text in texts)]
    column = Date("day")
    assert column.check(pa.array(["2011-01-28", *texts]))[1].tolist() == [True, *expected]
    assert column.check(pa.array(["2011-01-28 20:42:59", *texts]))[1].tolist() == [True, *expected]
    assert column.guard(tf.constant(texts))[1].numpy().tolist() == expected


@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("like", [
    "2011-01-28", "2011-01-28 20:42:59", "2011-01-28T20:42:59.123Z", "2011-01-28 20:42:59+00:00", "2011-01-28 20:42:59 UTC",
])  # fmt: skip
def test_dates_are_what_their_pattern_says(like, time):
    """Those of one length are looked at at once: every letter replaced by every other, against the pattern."""
    import re

    column = Date("day", time=time, missing="2000-01-01 00:00:00Z")
    texts = [like] + [like[:i] + letter + like[i + 1 :] for i in range(len(like)) for letter in "0123456789-: TZ.+UC/x\n"]
    for some in (texts, texts[5:], [*texts, like + "0"], [*texts, ""]):
        values = pa.array(["before", *some], pa.string())[1:]
        expected = [not text or re.fullmatch(column.pattern, text, re.ASCII) is not None for text in some]
        assert column.check(values)[1].tolist() == expected
        assert column.check(values.dictionary_encode())[1].tolist() == expected
