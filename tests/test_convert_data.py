"""scripts/convert_data and scripts/download_data: the same rows in any format, in bounded memory; downloads whole or not at all."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from conftest import FIRST_TRAINER, ROOT

from data_tools import convert, dealing, download, manifest, taxi
from vertex_runtime.columns import Category, Image, Number, Text
from vertex_runtime.data import BadRows
from vertex_runtime.errors import UserError
from vertex_runtime.formats import record_batches

FORMATS = ("csv", "jsonl", "parquet", "tfrecord")
DATA = {"taxifare": ROOT / "taxifare/tests/data/taxi-train.csv", "stackoverflow": ROOT / "stackoverflow/tests/data/train.csv"}
COLUMNS = (Text("text"), Number("number", missing=7.0), Category("kind", missing="none"), Category("label"))


def run(trainer, source, to, format, *flags):
    sources = [str(source)] if not isinstance(source, list) else [str(path) for path in source]
    return convert.main([trainer, "--from", *sources, "--to", str(to), "--format", format, *map(str, flags)])


def texts_of(folder):
    return [(folder / shard["name"]).read_bytes() for shard in json.loads((folder / "manifest.json").read_text())["shards"]]


# ------------------------------------------------------------------ the same rows


@pytest.mark.parametrize("trainer", DATA)
def test_round_trips_give_the_same_rows(trainer, tmp_path):
    run(trainer, DATA[trainer], tmp_path / "plain", "csv")
    plain = texts_of(tmp_path / "plain")[0]
    for format in FORMATS:
        for compress in ("none", "gzip", "zstd"):
            if (format, compress) == ("tfrecord", "zstd"):
                continue
            folder = tmp_path / f"{format}-{compress}"
            found = run(trainer, DATA[trainer], folder, format, "--compress", compress)
            assert found["rows"] == 1600 and convert.main(["--verify", str(folder)]) == found
            run(trainer, folder, tmp_path / f"back-{format}-{compress}", "csv")  # the folder is read without its manifest
            assert texts_of(tmp_path / f"back-{format}-{compress}")[0] == plain, folder


@pytest.mark.slow
@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_every_format_trains_to_the_same_ledger(trainer, tmp_path):
    from importlib import import_module

    main = import_module(f"{trainer}.trainer.task").main
    valid = str(DATA[trainer]).replace("train.csv", "valid.csv")
    ledgers = {}
    formats = ("jsonl", "parquet", "tfrecord") if trainer == "taxifare" else ("tfrecord",)
    for format in (None, *formats):
        path = DATA[trainer]
        if format:
            path = tmp_path / format
            run(trainer, DATA[trainer], path, format)
        ledger = tmp_path / f"{format}.ledger"
        flags = [f"--train_data_path={path}", f"--eval_data_path={valid}", "--epochs=1", "--num_evals=1", f"--ledger={ledger}"]
        main([f"--output_dir={tmp_path / 'out' / str(format)}", *flags])
        ledgers[format] = ledger.read_text()
    assert len(set(ledgers.values())) == 1 and ledgers[None]


@pytest.fixture
def odd(monkeypatch):
    """A trainer whose rows hold what formats trip over."""
    monkeypatch.setattr(convert, "columns_of", lambda name: (tuple(column.keeping_gaps() for column in COLUMNS), ("label",)))


def odd_rows():
    texts = [
        'say "x", twice',
        "two\nlines",
        "a\r\nb",
        "tab\tand \\ back\\nslash",
        "ünï ☃ \U0001f600",
        "\u2028x\x7f",
        "{}",
        " spaces ",
        "null",
    ]
    numbers = [0.1, None, -0.0, 1e-30, 3.4e38, 16777216.0, 0.3333333333, 1e10, None]
    kinds = ["a", None, "1.50", "None", "NaN", None, "", "true", "z"]
    return [dict(text=t, number=n, kind=k, label=str(i % 2)) for i, (t, n, k) in enumerate(zip(texts, numbers, kinds))]


@pytest.mark.parametrize("format", FORMATS)
def test_odd_cells_and_missing_ones_survive(format, odd, tmp_path):
    source = tmp_path / "odd.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in odd_rows()))
    run("odd", source, tmp_path / "out", format)
    (name,) = [shard["name"] for shard in json.loads((tmp_path / "out/manifest.json").read_text())["shards"]]

    def rows(path):
        batches = list(record_batches(str(path), COLUMNS, ("label",), BadRows()))
        return pa.Table.from_batches(batches).to_pylist()

    assert rows(tmp_path / "out" / name) == rows(source)
    assert [row["number"] for row in rows(source)][1] == 7.0  # a trainer fills it in, the files still lack it
    run("odd", tmp_path / "out", tmp_path / "lines", "jsonl")
    lines = [json.loads(line) for line in texts_of(tmp_path / "lines")[0].decode().split("\n") if line]
    assert [(row["number"] is None, row["kind"] or None) for row in lines] == [
        (row["number"] is None, row["kind"] or None) for row in odd_rows()
    ]


def test_records_are_what_tensorflow_writes(odd, tmp_path):
    """Byte for byte; a missing cell is a list of its kind without a value."""
    import tensorflow as tf

    rows = [*odd_rows(), *(dict(text="t" * size, number=1.5, kind="k", label="é" * 70) for size in (100, 127, 128, 16383, 16384, 300_000))]
    source = tmp_path / "odd.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run("odd", source, tmp_path / "out", "tfrecord")
    records = tf.data.TFRecordDataset(str(tmp_path / "out" / found["shards"][0]["name"])).as_numpy_iterator()
    for row, record in zip(rows, records, strict=True):
        features = {}
        for name, value in row.items():
            value = [] if value in (None, "") else [value if name == "number" else value.encode()]
            numbers = (
                {"float_list": tf.train.FloatList(value=value)} if name == "number" else {"bytes_list": tf.train.BytesList(value=value)}
            )
            features[name] = tf.train.Feature(**numbers)
        example = tf.train.Example(features=tf.train.Features(feature=features))
        assert record == example.SerializeToString(deterministic=True)


@pytest.mark.parametrize("format", ["parquet", "tfrecord"])
def test_images_go_into_binary_formats_only(format, monkeypatch, tmp_path):
    columns = (Image("image_bytes"), Category("label"))
    monkeypatch.setattr(convert, "columns_of", lambda name: (columns, ("label",)))
    for label in ("cat", "dog"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "in" / label / f"{i}.jpg").write_bytes(b"\xff\xd8\xff" + label.encode() + bytes([i, 0, 34, 10]) + b"\xff\xd9")
    found = run("images", tmp_path / "in", tmp_path / "out", format, "--shards", 2)
    assert [shard["rows"] for shard in found["shards"]] == [3, 3] and [c["kind"] for c in found["columns"]] == ["Image", "Category"]
    rows = []
    for shard in found["shards"]:
        for batch in record_batches(str(tmp_path / "out" / shard["name"]), columns, ("label",), BadRows()):
            rows += [(row["label"], row["image_bytes"]) for row in batch.to_pylist()]
    files = sorted((tmp_path / "in").rglob("*.jpg"))
    assert sorted(rows) == sorted((file.parent.name.encode(), file.read_bytes()) for file in files)
    for text in ("csv", "jsonl"):
        with pytest.raises(UserError, match=f"--format: image_bytes is an image, which {text} files cannot hold"):
            run("images", tmp_path / "in", tmp_path / text, text)


def archive(folder):
    """Write an archive as the public one is: folders per label within train and test."""
    path = folder / "stack_overflow_16k.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for part, count in (("train", 6), ("test", 3)):
            for i in range(count):
                content = f"{part} {i}, how?".encode()
                info = tarfile.TarInfo(f"{part}/{'sql' if i % 2 else 'java'}/{i}.txt")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_the_public_archive_becomes_tfrecord_part_by_part(tmp_path):
    path = archive(tmp_path)
    for prefix, count in (("training", 6), ("validation", 3)):
        found = run("stackoverflow", path, tmp_path / prefix, "tfrecord", "--prefix", prefix, "--shuffle", "--seed", 1, "--shards", 2)
        assert found["rows"] == count and found["shards"][0]["name"] == f"{prefix}-00001-of-00002.tfrecord"
        assert found["from"] == [f"{path}:{'train' if prefix == 'training' else 'test'}"]


def test_a_table_becomes_files(tmp_path, monkeypatch):
    pytest.importorskip("google.cloud.bigquery_storage_v1", reason="google-cloud-bigquery-storage is not installed")
    from bigquery_stand_in import Behaviour, StandIn

    columns = (Number("fare", missing=0.0), Category("label"))
    monkeypatch.setattr(convert, "columns_of", lambda name: (tuple(column.keeping_gaps() for column in columns), ("label",)))
    table = pa.table({"fare": [1.5, None, 2.5] * 50, "unread": ["x"] * 150, "label": ["a", "b", "c"] * 50})
    with StandIn() as server:
        server.behaviour = Behaviour({("p", "taxi", "trips"): table})
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        found = run("trips", "bq://p.taxi.trips", tmp_path / "out", "jsonl", "--shards", 2)
    lines = [json.loads(line) for text in texts_of(tmp_path / "out") for line in text.splitlines()]
    assert sorted(lines, key=str) == sorted(table.select(["fare", "label"]).to_pylist(), key=str)
    assert found["from"] == ["bq://p.taxi.trips"] and [shard["rows"] for shard in found["shards"]] == [75, 75]


# ------------------------------------------------------------------ shards and shuffles


def test_rows_are_dealt_in_turn(tmp_path):
    found = run("taxifare", DATA["taxifare"], tmp_path / "out", "csv", "--shards", 3)
    assert [shard["rows"] for shard in found["shards"]] == [534, 533, 533]
    run("taxifare", DATA["taxifare"], tmp_path / "one", "csv")
    whole = texts_of(tmp_path / "one")[0].splitlines()[1:]
    for i, text in enumerate(texts_of(tmp_path / "out")):
        assert text.splitlines()[1:] == whole[i::3]


@pytest.mark.slow
def test_a_shuffle_depends_on_seed_and_rows_alone(tmp_path, monkeypatch):
    """Not on the format that the rows came in, nor on how many fit into memory; every row is there once."""
    run("taxifare", DATA["taxifare"], tmp_path / "plain", "csv")
    run("taxifare", DATA["taxifare"], tmp_path / "lines", "jsonl")
    flags = ["--shuffle", "--shards", 3]
    kinds = {}
    for format in ("csv", "parquet"):
        for name, source, size in (("a", "plain", 64 << 20), ("b", "lines", 64 << 20), ("c", "plain", 20_000), ("d", "plain", 300)):
            monkeypatch.setattr(dealing, "BUCKET_BYTES", size)
            run("taxifare", tmp_path / source, tmp_path / (format + name), format, *flags, "--seed", 5)
            kinds.setdefault(format, []).append(texts_of(tmp_path / (format + name)))
        assert all(kind == kinds[format][0] for kind in kinds[format])
    lines = [line for text in kinds["csv"][0] for line in text.splitlines()[1:]]
    whole = texts_of(tmp_path / "plain")[0].splitlines()[1:]
    assert lines != whole and sorted(lines) == sorted(whole)
    run("taxifare", tmp_path / "plain", tmp_path / "other", "csv", *flags, "--seed", 6)
    assert texts_of(tmp_path / "other") != kinds["csv"][0]


def test_keys_are_spread_evenly():
    keys = np.concatenate([dealing.keys(3, start, 5_000) for start in range(0, 100_000, 5_000)])
    assert np.array_equal(keys, dealing.keys(3, 0, 100_000)) and len(np.unique(keys)) == 100_000
    counts = np.bincount((keys >> np.uint64(57)).astype(int), minlength=128)
    assert abs(counts - 100_000 / 128).max() < 150
    order = np.argsort(keys)
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    assert not np.array_equal(dealing.keys(0, 0, 10), dealing.keys(1, 0, 10))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Of a shuffle that holds at most 2 MiB at a time, 4 times the rows take about as much memory.

    The fewer rows are enough to fill what is held however many there are: blocks read ahead, and two of Parquet's row groups.
    Not ru_maxrss: that counts what the process that started this one had.
    """
    row = json.dumps({"text": "x" * 400, "label": "a"}) + "\n"
    code = (
        "import sys; from data_tools import convert, dealing; dealing.BUCKET_BYTES = 2 << 20; convert.main(sys.argv[1:]);"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    peaks = []
    for rows in (160_000, 640_000):
        (tmp_path / f"{rows}.jsonl").write_text(row * rows)
        flags = ["stackoverflow", "--from", f"{tmp_path}/{rows}.jsonl", "--to", f"{tmp_path}/{rows}", "--format", "parquet", "--shuffle"]
        done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 100, peaks  # MiB; the rows are 200 more


# ------------------------------------------------------------------ what goes wrong


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("kept")
    with pytest.raises(UserError, match="--to must be an empty folder or a new one.*Nothing was overwritten"):
        run("taxifare", DATA["taxifare"], tmp_path / "out", "csv")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]
    (tmp_path / "out/mine").unlink()
    run("taxifare", DATA["taxifare"], tmp_path / "out", "csv")  # an empty folder is as good as none
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_bad_rows(policy, tmp_path):
    lines = DATA["taxifare"].read_text().splitlines()[:10]
    lines[3] = lines[3].replace("-7", "7", 1)
    (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n")
    if policy == "error":
        with pytest.raises(UserError, match="bad.csv, line 4: pickup_longitude must be a number"):
            run("taxifare", tmp_path / "bad.csv", tmp_path / "out", "parquet", "--shuffle")
        assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]
    else:
        found = run("taxifare", tmp_path / "bad.csv", tmp_path / "out", "parquet", "--bad_rows", "skip")
        assert found["rows"] == 9 and list(found["bad_rows"].values()) == [1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nobody", "--from", "x", "--to", "t", "--format", "csv"], "there is no trainer 'nobody'"),
        (["../taxifare", "--from", "x", "--to", "t", "--format", "csv"], "there is no trainer '../taxifare'"),
        (["./taxifare/", "--from", "x.csv", "--to", "t", "--format", "csv"], "x.csv matches no file"),
        (["taxifare", "--from", "x.csv", "--to", "t", "--format", "csv"], "x.csv matches no file"),
        (["taxifare", "--to", "t"], "--from, --format must be given"),
        (["taxifare", "--from", "x", "--to", "t", "--format", "csv", "--shards", "0"], "--shards must be 1 to 900; got 0"),
        (["taxifare", "--from", "x", "--to", "t", "--format", "csv", "--prefix", "../x"], "--prefix must be"),
        (["taxifare", "--from", "x", "--to", "s3://b/t", "--format", "csv"], "--to takes a folder, or gs://bucket/folder; got s3://b/t"),
        (["taxifare", "--from", "x", "--to", "t", "--format", "tfrecord", "--compress", "zstd"], "TensorFlow writes no zstd"),
        (["taxifare", "--from", str(DATA["taxifare"]), "--to", "t", "--format", "csv", "--shards", "900"], None),
        (["taxifare", "--from", str(DATA["taxifare"]), "--to", "/proc/t", "--format", "csv"], "--to: cannot write to /proc/t"),
        (["--verify", "t"], "manifest.json does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if message is None:
        assert convert.main(flags)["rows"] == 1600
        return
    with pytest.raises(UserError, match=message):
        convert.main(flags)
    assert not list(tmp_path.iterdir())


def test_a_bucket_gets_the_manifest_last(tmp_path, monkeypatch):
    monkeypatch.setenv("VERTEX_LOCAL_BUCKET_ROOT", str(tmp_path))
    flags = ["taxifare", "--from", str(DATA["taxifare"]), "--format", "parquet", "--shards", "2"]
    convert.main([*flags, "--to", "gs://bucket/new"])
    assert manifest.verify(str(tmp_path / "bucket" / "new"))["rows"] == 1600
    with pytest.raises(UserError, match="--to must be an empty folder or a new one; got gs://bucket/new, which holds files"):
        convert.main([*flags, "--to", "gs://bucket/new"])
    copied, copy = [], tf.io.gfile.copy

    def cut_short(source, target):
        copied.append(os.path.basename(target))
        copy(source, target)
        os.truncate(target, 10)

    monkeypatch.setattr(tf.io.gfile, "copy", cut_short)
    with pytest.raises(UserError, match="training-00001-of-00002.parquet has 10 bytes instead of"):
        convert.main([*flags, "--to", "gs://bucket/other"])
    assert copied == ["training-00001-of-00002.parquet"] and not (tmp_path / "bucket" / "other" / "manifest.json").exists()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    class Full(convert.WRITERS["csv"]):
        def write(self, batch):
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(convert.WRITERS, "csv", Full)
    with pytest.raises(UserError, match="cannot write to .*No space left on device. Nothing was left there"):
        run("taxifare", DATA["taxifare"], tmp_path / "out", "csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_killed_conversion_leaves_no_target(number, tmp_path):
    """After SIGTERM nothing at all; after SIGKILL what the next start removes."""
    (tmp_path / "rows.jsonl").write_text((json.dumps({"text": "x" * 400, "label": "a"}) + "\n") * 100_000)
    flags = ["stackoverflow", "--from", f"{tmp_path}/rows.jsonl", "--to", f"{tmp_path}/out", "--format", "tfrecord", "--shuffle"]
    code = "import sys; from data_tools import convert, dealing; from vertex_runtime.errors import run_as_program\n"
    code += "dealing.BUCKET_BYTES = 1 << 20; run_as_program(lambda _: convert.main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    stage = tmp_path / ".out.converting"
    while not list(stage.glob("*.arrow")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)  # it is in the midst of it, however fast it is
    with pytest.raises(UserError, match="another conversion writes"):
        run("taxifare", DATA["taxifare"], tmp_path / "out", "csv")
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    error = process.communicate(timeout=120)[1]
    assert not (tmp_path / "out").exists()
    if number == signal.SIGTERM:
        assert process.returncode == 143 and "ended by SIGTERM" in error and "Traceback" not in error
        assert not stage.exists()
    run("taxifare", DATA["taxifare"], tmp_path / "out", "csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("fault", ["cut", "changed", "missing", "more", "manifest"])
def test_verify_finds(fault, tmp_path):
    found = run("taxifare", DATA["taxifare"], tmp_path / "out", "jsonl", "--shards", 2)
    path = tmp_path / "out" / found["shards"][1]["name"]
    content = path.read_bytes()
    if fault == "cut":
        path.write_bytes(content[:-1])
    elif fault == "changed":
        path.write_bytes(content.replace(b"2012", b"2013", 1))
    elif fault == "missing":
        path.unlink()
    elif fault == "more":
        (tmp_path / "out/more.jsonl").write_bytes(content)
    else:
        (tmp_path / "out/manifest.json").write_text("{")
    says = {"cut": "bytes, not", "changed": "has the sha256", "missing": "is missing", "more": "is not in", "manifest": "is not a manifest"}
    with pytest.raises(UserError, match=says[fault]):
        manifest.verify(str(tmp_path / "out"))


def test_the_scripts_start(tmp_path):
    env = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    for name in ("convert_data", "download_data"):
        done = subprocess.run([ROOT / "scripts" / name, "--help"], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and name in done.stdout, done.stderr
    done = subprocess.run([ROOT / "scripts/convert_data", "taxifare"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --from, --to, --format must be given"), done.stderr


# ------------------------------------------------------------------ downloads

CONTENT = gzip.compress(random.Random(1).randbytes(300_000), mtime=0)


class Server:
    """A server of one file over HTTP that cuts connections as told.

    Args:
        cuts: after how many bytes of its answer each request in turn breaks off; those after them do not.
    """

    def __init__(self, content=CONTENT, cuts=(), headers=None, ranges=True, status=None):
        self.content, self.cuts, self.headers, self.ranges, self.status = content, list(cuts), headers or {}, ranges, status
        self.etag, self.requests = '"one"', []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/set.tar.gz"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        asked = request.headers.get("Range")
        self.requests.append(asked)
        if self.status:
            status = self.status if isinstance(self.status, int) else self.status.pop(0)
            if status != 200:
                request.send_error(status)
                return
        start = int(asked[6:-1]) if asked and self.ranges and request.headers.get("If-Range") == self.etag else 0
        body = self.content[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", self.etag)
        for name, value in self.headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    servers = []

    def start(**options):
        servers.append(Server(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


def get(server, folder):
    return download.main(["stackoverflow", "--to", str(folder), "--url", server.url])


def md5(content):
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def test_a_download_goes_on_where_it_was_cut(serve, tmp_path, capsys):
    server = serve(cuts=[100_000, 50_000, 0], headers={"x-goog-hash": f"md5={md5(CONTENT)}"})
    (path,) = get(server, tmp_path / "to")
    assert open(path, "rb").read() == CONTENT and os.listdir(tmp_path / "to") == ["set.tar.gz"]
    assert server.requests == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    assert "size, md5, gzip as they should be" in capsys.readouterr().out
    get(server, tmp_path / "to")
    assert len(server.requests) == 4 and "is here already and whole" in capsys.readouterr().out


def test_a_later_start_goes_on(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server = serve(cuts=[120_000])
    with pytest.raises(UserError, match="broke off after 120,000 of .* 120,000 bytes are kept; a new start goes on"):
        get(server, tmp_path)
    assert not (tmp_path / "set.tar.gz").exists()
    get(server, tmp_path)
    assert server.requests == [None, "bytes=120000-"] and (tmp_path / "set.tar.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["changed", "no ranges"])
def test_parts_of_two_files_are_never_joined(how, serve, tmp_path, monkeypatch):
    server = serve(cuts=[120_000], ranges=how != "no ranges")
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(UserError):
        get(server, tmp_path)
    if how == "changed":
        server.content, server.etag = gzip.compress(random.Random(2).randbytes(200_000)), '"two"'
    get(server, tmp_path)
    assert (tmp_path / "set.tar.gz").read_bytes() == server.content


@pytest.mark.parametrize("name", ["md5", "crc32c"])
def test_a_wrong_hash_is_never_taken_for_whole(name, serve, tmp_path):
    if name == "crc32c":
        pytest.importorskip("google_crc32c")
    server = serve(headers={"x-goog-hash": f"{name}={md5(b'other')}"})
    with pytest.raises(UserError, match=f"has the {name} .* as the server says; it was removed. Start again"):
        get(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_truncated_archive_is_never_taken_for_whole(serve, tmp_path):
    """The server itself has half a file; or somebody put one there."""
    server = serve(content=CONTENT[:-100])
    with pytest.raises(UserError, match="is not a complete gzip file"):
        get(server, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "set.tar.gz").write_bytes(CONTENT[:1000])
    with pytest.raises(UserError, match="is not a complete gzip file.*Remove .*set.tar.gz and start again"):
        get(server, tmp_path)


def test_answers_of_no_use(serve, tmp_path):
    server = serve(status=404)
    with pytest.raises(UserError, match="the server answered 404 Not Found. Give the right place: --url"):
        get(server, tmp_path / "a")
    assert len(server.requests) == 1
    server = serve(status=[503, 429, 200])
    get(server, tmp_path / "b")
    assert len(server.requests) == 3


def test_without_a_network_it_says_what_to_do(serve, tmp_path, monkeypatch):
    server = serve()
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(UserError, match="fetch it elsewhere and put it there: curl -L -o .*set.tar.gz http"):
        get(server, tmp_path / "a")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: pytest.fail("it waits for what will not come"))
    with pytest.raises(UserError, match="gcloud storage cp gs://download.tensorflow.org/data/stack_overflow_16k.tar.gz"):
        monkeypatch.setattr(download.urllib.request, "urlopen", no_network)
        download.main(["stackoverflow", "--to", str(tmp_path / "b")])
    assert not list((tmp_path / "b").iterdir())


def no_network(*_, **__):
    import socket
    import urllib.error

    raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))


# ------------------------------------------------------------------ taxi trips


class Client:
    """Stands in for BigQuery's: gives rows, and breaks off after `fails` of them."""

    project = "p"
    total_bytes_processed = 2**30

    def __init__(self, fails=None):
        self.fails, self.queries = fails, []

    def query(self, query, job_config=None):
        self.queries += [] if job_config is not None else [query]
        return self

    def result(self):
        for i in range(10):
            if i == self.fails:
                raise ConnectionError("the network is gone")
            yield dict(zip(taxi.COLUMNS, (9.5 + i, "2013-11-02 23:27:00 UTC", -73.98, 40.73, -73.99, 40.75, 2, "unused")))


def test_trips_come_in_files_that_the_trainer_reads(tmp_path, monkeypatch):
    pytest.importorskip("google.cloud.bigquery")
    monkeypatch.setattr(taxi, "ROWS", 4)
    client = Client()
    monkeypatch.setattr(taxi, "_client", lambda project, by_hand: client)
    paths = download.main(["taxifare", "--to", str(tmp_path)])
    assert [os.path.basename(path) for path in paths] == [f"taxi-{n}-0000{i}.csv" for n in ("train", "valid") for i in (1, 2, 3)]
    assert run("taxifare", paths[:3], tmp_path / "out", "tfrecord")["rows"] == 10
    assert "1000)) = 1\n" in client.queries[0] and "10000)) = 2\n" in client.queries[1] and "`nyc-tlc.yellow.trips`" in client.queries[0]
    assert download.main(["taxifare", "--to", str(tmp_path)]) == paths and len(client.queries) == 2


def test_trips_of_another_query_or_by_hand_are_not_overwritten(tmp_path, monkeypatch):
    pytest.importorskip("google.cloud.bigquery")
    monkeypatch.setattr(taxi, "_client", lambda project, by_hand: Client())
    by_hand = tmp_path / "taxi-valid-00001.csv"  # as the message says where there is no network
    by_hand.write_text("mine")
    with pytest.raises(UserError, match="taxi-valid-00001.csv is not of this query, or was put there by hand.*Nothing was overwritten"):
        download.main(["taxifare", "--to", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [by_hand.name] and by_hand.read_text() == "mine"
    by_hand.unlink()
    first = download.main(["taxifare", "--to", str(tmp_path)])
    with pytest.raises(UserError, match="taxi-train-00001.csv is not of this query"):
        download.main(["taxifare", "--to", str(tmp_path), "--sample=500"])
    os.remove(first[0])
    assert download.main(["taxifare", "--to", str(tmp_path)]) == first, "what was removed is downloaded again"


@pytest.mark.parametrize("url", ["http://host/", "http://host/?name=x", "http://host", "ftp://host/x", "http://host/a/?x=y/z"])
def test_an_address_names_a_file(url, tmp_path):
    """Else the folder itself would be taken for a download that is no gzip file, and be called one to remove."""
    with pytest.raises(UserError, match="--url must be an http or https address of a file"):
        download.main(["stackoverflow", "--to", str(tmp_path), "--url", url])


def test_half_an_answer_is_no_set(tmp_path, monkeypatch):
    pytest.importorskip("google.cloud.bigquery")
    monkeypatch.setattr(taxi, "ROWS", 4)
    monkeypatch.setattr(taxi, "_client", lambda project, by_hand: Client(fails=6))
    with pytest.raises(UserError, match="BigQuery did not answer: the network is gone.*bq query --nouse_legacy_sql.*put the file into"):
        download.main(["taxifare", "--to", str(tmp_path)])
    assert not list(tmp_path.glob("*.csv"))
    monkeypatch.setattr(taxi, "_client", lambda project, by_hand: Client())
    download.main(["taxifare", "--to", str(tmp_path)])
    assert not list(tmp_path.glob("*.part"))


def test_without_the_client_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.bigquery", None)
    monkeypatch.delattr("google.cloud.bigquery", raising=False)
    with pytest.raises(UserError, match=r"taxifare needs google-cloud-bigquery: pip install '\.\[bigquery\]'.*bq query"):
        download.main(["taxifare", "--to", str(tmp_path)])
