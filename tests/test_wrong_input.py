"""Every mistake ends with one line that names what, where and the remedy; nothing is deleted."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vertex_runtime.errors import UserError

TAXI = Path("taxifare/tests/data/taxi-train.csv")
HEADER = "fare_amount,pickup_datetime,pickup_longitude,pickup_latitude,dropoff_longitude,dropoff_latitude,passenger_count,key"
SHORT = ["--epochs=1", "--num_evals=1", "--batch_size=16"]


def taxi_rows(count: int = 60) -> list[str]:
    return TAXI.read_text().splitlines()[:count]


def train(trainer: str, *flags: str) -> dict[str, float]:
    """Run a trainer's main in this process."""
    return importlib.import_module(f"{trainer}.trainer.task").main(list(flags))


def write(folder: Path, name: str, lines: list[str]) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def with_cell(lines: list[str], line: int, column: int, value: str) -> list[str]:
    cells = lines[line - 1].split(",")
    cells[column] = value
    return [*lines[: line - 1], ",".join(cells), *lines[line:]]


BAD_CELLS = {
    "text in a number": (0, "abc", "fare_amount must be a number"),
    "empty number": (0, "", "fare_amount must be a number"),
    "negative fare": (0, "-3.5", "fare_amount must be a number"),
    "fare not a number": (0, "NaN", "fare_amount must be a number"),
    "latitude 400": (3, "400", "pickup_latitude must be a number in 37..45"),
    "latitude 0": (5, "0", "dropoff_latitude must be a number in 37..45"),
    "date": (1, "yesterday", "pickup_datetime must be a date"),
    "month 13": (1, "2011-13-28 20:42:59 UTC", "pickup_datetime must be a date"),
}


@pytest.mark.parametrize("case", BAD_CELLS)
def test_bad_cell_is_named_or_skipped(case, tmp_path):
    column, value, problem = BAD_CELLS[case]
    path = write(tmp_path, "bad.csv", with_cell(taxi_rows(), 17, column, value))
    flags = [f"--train_data_path={path}", f"--eval_data_path={TAXI}", *SHORT]
    with pytest.raises(UserError) as error:
        train("taxifare", *flags, f"--output_dir={tmp_path / 'a'}")
    text = str(error.value)
    assert f"{path}, line 17: {problem}" in text and repr(value) in text and "--bad_rows=skip" in text and "\n" not in text


def test_bad_rows_are_skipped_and_counted(tmp_path, capsys):
    lines = taxi_rows()
    for i, (column, value, _) in enumerate(BAD_CELLS.values()):
        lines = with_cell(lines, 10 + i, column, value)
    lines[30] = ",".join(lines[30].split(",")[:5])
    path = write(tmp_path, "bad.csv", lines)
    train("taxifare", f"--train_data_path={path}", f"--eval_data_path={TAXI}", "--bad_rows=skip", f"--output_dir={tmp_path / 'a'}", *SHORT)
    said = capsys.readouterr()
    assert "skipped 9 bad rows" in said.err and "has 5 columns, not 8" in said.err
    assert "rows: 51 to train on" in said.out


def test_a_bad_row_late_in_a_large_file_is_named(tmp_path):
    """The fast parser reads by blocks; the line must be right in a later block too."""
    lines = TAXI.read_text().splitlines() * 90  # about 10 MB: two blocks
    path = write(tmp_path, "bad.csv", with_cell(lines, 130_001, 3, "0"))
    with pytest.raises(UserError, match="line 130001: pickup_latitude"):
        train("taxifare", f"--train_data_path={path}", f"--eval_data_path={TAXI}", f"--output_dir={tmp_path / 'a'}")


TAXI_FILES = {
    "too few columns": ([*taxi_rows(20), "7.5,2011-01-28 20:42:59 UTC,-73.9"], "line 21: has 3 columns, not 8"),
    "unknown header": (["fare,when,a,b,c,d,e,f", *taxi_rows()], "line 1: a header with unknown names"),
    "header lacks a column": ([HEADER.replace("passenger_count", "people"), *taxi_rows()], "the header lacks passenger_count"),
    "other table": (["1,2", "3,4"], "line 1: has 2 columns"),
}


@pytest.mark.parametrize("case", TAXI_FILES)
def test_bad_file(case, tmp_path):
    lines, problem = TAXI_FILES[case]
    path = write(tmp_path, "bad.csv", lines)
    with pytest.raises(UserError, match=problem) as error:
        train("taxifare", f"--train_data_path={path}", f"--eval_data_path={TAXI}", f"--output_dir={tmp_path / 'a'}", *SHORT)
    assert str(path) in str(error.value)


def test_header_and_column_order_are_recognised(tmp_path):
    import numpy as np

    from taxifare.trainer import model
    from vertex_runtime import data

    plain = write(tmp_path, "plain.csv", taxi_rows())
    named = write(tmp_path, "named.csv", [HEADER, *taxi_rows()])
    turned = write(tmp_path, "turned.csv", [",".join(reversed(line.split(","))) for line in [HEADER, *taxi_rows()]])
    one, *others = [data.concatenate(data.read(str(path), model.COLUMNS, (), data.BadRows())) for path in (plain, named, turned)]
    for other in others:
        assert all(np.array_equal(one[name], other[name]) for name in one)


FLAGS = {
    "no match": (["--train_data_path=/nowhere/*.csv"], r"--train_data_path: /nowhere/\*.csv matches no file"),
    "no evaluation data": ([f"--train_data_path={TAXI}"], "give --eval_data_path, or let the service set AIP_VALIDATION_DATA_URI"),
    "bigquery": (["--train_data_path=bq://p.d.t", f"--eval_data_path={TAXI}"], r"bq://p\.d\.t"),
    "row filter of a file": (["--row_filter=fare_amount > 3"], "rows of csv files take no --row_filter, only tables do"),
    "large batch": (["--batch_size=5000"], "--batch_size 5000 is larger than the training data, which has 1600 rows"),
    "less than a batch": (["--num_examples_to_train_on=10"], "--num_examples_to_train_on 10 is less than one batch"),
    "no sizes": (["--nnsize", ""], "--nnsize: needs one or more sizes"),
    "negative size": (["--nnsize=32 -8"], "--nnsize: needs one or more sizes"),
    "negative rate": (["--lr=-1"], "--lr: must be above 0; got '-1'"),
    "rate not finite": (["--lr=nan"], "--lr: needs a finite number; got 'nan'"),
    "fraction of a batch": (["--batch_size=12.5"], "--batch_size: needs a whole number; got '12.5'"),
    "no such choice": (["--features=town"], "--features: must be one of city, lab; got 'town'"),
    "mistyped flag": (["--batchsize=3"], "unknown argument '--batchsize=3'; the nearest known flag is --batch_size"),
    "bad profile": (["--profile=9,3"], "--profile: needs A,B"),
    "not writable": (["--output_dir=/dev/null/x"], "cannot write to /dev/null/x"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_bad_flag(case, tmp_path):
    flags, problem = FLAGS[case]
    with pytest.raises(UserError, match=problem):
        train("taxifare", f"--output_dir={tmp_path / 'a'}", *flags)


VARIABLES = {
    "TF_CONFIG not JSON": ({"TF_CONFIG": "{'cluster'"}, "TF_CONFIG is not JSON"),
    "CLUSTER_SPEC a list": ({"CLUSTER_SPEC": "[]"}, "CLUSTER_SPEC must be a JSON object"),
    "unknown role": ({"TF_CONFIG": '{"cluster":{"boss":["a:1"]},"task":{"type":"boss","index":0}}'}, "unknown pool 'boss'"),
    "index outside": ({"TF_CONFIG": '{"cluster":{"worker":["a:1"]},"task":{"type":"worker","index":3}}'}, "not in the cluster"),
    "format": ({"AIP_DATA_FORMAT": "avro"}, "AIP_DATA_FORMAT must be one of csv, jsonl, bigquery, tfrecord, parquet; got 'avro'"),
    "jsonl": ({"AIP_DATA_FORMAT": "jsonl", "AIP_TRAINING_DATA_URI": "x"}, "AIP_TRAINING_DATA_URI: x matches no file"),
    "job without data": ({"CLOUD_ML_JOB_ID": "1"}, "give --train_data_path, or let the service set AIP_TRAINING_DATA_URI"),
    "start over": ({"AIP_TRAINING_DATA_URI": str(TAXI)}, "--start_over is refused in a job"),
}


@pytest.mark.parametrize("case", VARIABLES)
def test_bad_variable(case, tmp_path, monkeypatch):
    variables, problem = VARIABLES[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=problem):
        train("taxifare", f"--output_dir={tmp_path / 'a'}", *(["--start_over"] if case == "start over" else []))


def test_text_mistakes(tmp_path):
    flags = [f"--output_dir={tmp_path / 'out'}", *SHORT]
    rows = [f"how to loop {i},python" for i in range(40)] + [f"join {i},sql" for i in range(40)]
    good = write(tmp_path, "good.csv", ["text,label", *rows])
    unseen = write(tmp_path, "unseen.csv", ["text,label", "what is a monad,haskell"])
    with pytest.raises(UserError, match=r"unseen.csv, line 2: the label 'haskell' was not seen in training"):
        train("stackoverflow", f"--train_data_path={good}", f"--eval_data_path={unseen}", *flags)
    folder = tmp_path / "archive"
    for name in ("python", "sql", "rust"):
        (folder / name).mkdir(parents=True)
    for i in range(20):
        for name in ("python", "sql"):
            (folder / name / f"{i}.txt").write_text(f"{name} question {i}")
    with pytest.raises(UserError, match="the class 'rust' has no examples"):
        train("stackoverflow", f"--train_data_path={folder}", f"--eval_data_path={good}", *flags)
    (folder / "rust" / "0.txt").write_bytes(b"fine\nna\xefve")
    with pytest.raises(UserError, match=r"rust/0.txt, line 2: the text is not UTF-8"):
        train("stackoverflow", f"--train_data_path={folder}", f"--eval_data_path={good}", *flags)
    bad = tmp_path / "latin.csv"
    bad.write_bytes(b"text,label\nplain,python\nna\xefve,sql\n")
    with pytest.raises(UserError, match="latin.csv, line 3: text is not UTF-8"):
        train("stackoverflow", f"--train_data_path={bad}", f"--eval_data_path={good}", *flags)
    empty = write(tmp_path, "empty.csv", ["text,label", '"",python'])
    with pytest.raises(UserError, match="empty.csv, line 2: text must be given"):
        train("stackoverflow", f"--train_data_path={empty}", f"--eval_data_path={good}", *flags)


def process(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "taxifare.trainer.task", *flags]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)


def test_process_ends_with_one_line_and_code_2(tmp_path, run_trainer):
    (tmp_path / "empty.csv").write_text("")
    empty = [f"--train_data_path={tmp_path}/empty.csv", f"--eval_data_path={TAXI}", f"--output_dir={tmp_path / 'o'}"]
    for flags in (["--batch_sice=3"], empty):
        done = run_trainer("taxifare", *flags, code=2)
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr


def test_missing_and_old_tensorflow(tmp_path):
    fake = tmp_path / "tensorflow"
    fake.mkdir()
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    (fake / "__init__.py").write_text("raise ImportError('No module named tensorflow')")
    done = process(PYTHONPATH=path)
    assert done.returncode == 2 and "TensorFlow cannot be imported" in done.stderr and "pip install" in done.stderr
    (fake / "__init__.py").write_text("__version__ = '2.9.1'")
    done = process(PYTHONPATH=path)
    assert done.returncode == 2 and "TensorFlow 2.9.1 is too old" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_loss_that_is_not_finite_names_the_step(tmp_path, run_trainer):
    flags = [f"--output_dir={tmp_path}", "--features=lab", "--lr=1e30", "--steps_per_call=4", "--epochs=5"]
    done = run_trainer("taxifare", *flags, code=1)
    assert "the loss is not finite at step " in done.stderr and "Traceback" not in done.stderr
