"""`scripts/new_trainer`: what it refuses, what it finds in a CSV file, what it writes, and that what it wrote works."""

from __future__ import annotations

import ast
import csv
import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from random import Random

import forked
import pytest
import yaml
from conftest import ROOT
from test_packaging import copy_sources, execute, install, run_installed
from test_resume import same_weights, weights

sys.path.insert(0, str(ROOT / "templates"))

import csv_columns  # noqa: E402

KINDS = ("tabular", "image", "text")
NAME = "made"
WRITTEN = (NAME, *(f"jobs/{NAME}{job}.yaml" for job in ("", "-2-workers", "-gpu", "-tuning")), f"tests/test_{NAME}.py")
EVALUATED = {"tabular": "val_auc", "image": "val_accuracy", "text": "val_accuracy"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As much of a checkout as the command needs."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "templates", folder / "templates", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "vertex_runtime", folder / "vertex_runtime", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "jobs").mkdir()
    (folder / "tests").mkdir()
    return folder


def new_trainer(root: Path, *words: object, code: int = 0) -> str:
    """Run the command; return what it prints, or its one line of complaint."""
    flags = [str(root / "templates" / "new_trainer.py"), *map(str, words)]
    done = forked.run("", flags, {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, root, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    assert not code or (not done.stdout and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")), done.stderr
    return done.stderr if code else done.stdout


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def houses(path: Path, count: int = 400) -> Path:
    """Write a file with a column of every kind, under names that are no identifiers; the price follows from the others."""
    rng = Random(5)
    rows: list[list[object]] = [["house_id", "Living area (m²)", "class", "a b", "a_b", "sold on", "remark", "kind", "Price"]]
    for i in range(count):
        area, rooms, kind = rng.uniform(30, 200), rng.randint(1, 6), rng.choice(["flat", "house", "Schloß"])
        price = 2000 * area + 10_000 * rooms + 50_000 * len(kind)
        sold = date(2020, 1, 1) + timedelta(rng.randrange(1500))
        cells = [i, f"{area:.1f}", rooms, rng.choice([1, 2, 3]), rng.random(), f"{sold}T10:20:30Z", f"text {i}", kind, f"{price:.2f}"]
        for place in (1, 5, 7, 8):
            if rng.random() < 0.05:
                cells[place] = ""
        rows.append(cells)
    return write_csv(path, rows)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "name, said",
    [
        ("My-Shop", "such as my_shop"), ("1st", "lower-case"), ("_x", "such as x"), ("shöp", "lower-case"), ("", "lower-case"),
        ("../x", "such as x"), ("a.b", "such as a_b"), ("x_", "such as x"), ("a" * 61, "lower-case"), ("class", "keyword"),
        ("tests", "tests exists already"), ("jobs", "jobs exists already"), ("trainer", "module"), ("keras", "module"),
        ("json", "module"), ("pytest", "module"), ("yaml", "module"), ("build", "module"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_is_refused(root, name, said):
    before = files(root)
    assert said in new_trainer(root, name, "--kind=text", code=2)
    assert files(root) == before


@pytest.mark.parametrize("path", WRITTEN)
def test_nothing_is_overwritten(root, path):
    (root / path).write_text("mine")
    before = files(root)
    said = new_trainer(root, NAME, "--kind=text", code=2)
    assert f"{path} exists already" in said and files(root) == before


@pytest.mark.parametrize(
    "words, said",
    [
        ([NAME], "--kind"), ([NAME, "--kind=tables"], "invalid choice"), ([NAME, "--kind=image", "--from=x.csv"], "--from"),
        ([NAME, "--kind=text", "--label=x"], "--from"), (["--kind=text"], "NAME"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together_are_refused(root, words, said):
    assert said in new_trainer(root, *words, code=2)


ROWS = "\n".join(f"{i},{i * i},{'no' if i % 3 else 'yes'}" for i in range(60))


@pytest.mark.parametrize(
    "content, flags, said",
    [
        (None, [], "not there"), ("", [], "is empty"), ("\n\n", [], "is empty"), ("a,b,c\n1,2,x\n", [], "has 1 rows"),
        ("a,b,c\n", [], "rows"), (ROWS, [], "lacks a header: its first line"), ("no,b,yes\n" + ROWS, [], "lacks a header: 'yes'"),
        ("a,,c\n" + ROWS, [], "lacks a header"), ("a,b,a\n" + ROWS, [], "two columns are named 'a'"),
        ("a;b;c\n" + ROWS.replace(",", ";"), [], "separated by ';'"), ("a\n" + "1\n" * 60, [], "has one column"),
        ("a,b,answer\n" + ROWS, ["--label=anser"], "the nearest is 'answer'"), ("a,b,c\n" + ROWS, ["--label=zzzzz"], "there are a, b, c"),
        ("a,b,c\n" + ROWS + "\n1,2\n", [], "Expected 3 columns, got 2"), (b"a,b,c\xff\n" + ROWS.encode(), [], "not UTF-8"),
        (b"a,b,c\n1,2,\xff\n" + ROWS.encode(), [], "not UTF-8"), ("a,b,c\n" + ROWS.replace("yes", "no"), [], "one value only"),
        ("a,b\n" + "\n".join(f"{i},2024-01-{i:02}" for i in range(1, 29)), [], "holds dates"),
        ("a,b\n" + "\n".join(f"{i},name {i}" for i in range(1, 29)), [], "28 different texts"),
        ("a,b\n" + "\n".join(f"name {i},{i}" for i in range(1, 29)), [], "nothing to predict 'b' by: add a column"),
        ("a,b\n" + "\n".join(f"{i}," for i in range(1, 29)), [], "no value only"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused(root, tmp_path, content, flags, said):
    path = tmp_path / "given.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = files(root)
    assert said in new_trainer(root, NAME, "--kind=tabular", f"--from={path}", *flags, code=2)
    assert files(root) == before


def test_what_cannot_be_written_leaves_nothing_half_written(root):
    shutil.rmtree(root / "jobs")
    (root / "jobs").write_text("no folder")
    before = files(root)
    new_trainer(root, NAME, "--kind=text", code=1)
    assert files(root) == before and not (root / NAME).exists() and not list(root.glob(".new_trainer-*"))


# ------------------------------------------------------------------ what a CSV file holds


@pytest.mark.parametrize(
    "cells, source",
    [
        (["1", "2.5", "-3"] * 20, 'Number("x", low=-9, high=8)'), (["0", "7", ""] * 20, 'Number("x", low=0, high=14, missing=math.nan)'),
        (["1e3", "2e3"] * 20, 'Number("x", low=0, high=3_000)'), (["5"] * 40, 'Number("x", low=0, high=10)'),
        (["0.001", "0.002"] * 20, 'Number("x", low=0, high=0.003)'), (["nan", "1"] * 20, 'Category("x")'),
        (["inf", "1"] * 20, 'Category("x")'),
        (["2024-02-29", "1999-12-31"] * 20, 'Date("x")'), (["2024-02-29", ""] * 20, 'Date("x", missing="")'),
        (["2024-02-29 10:11:12", "2024-02-29T10:11:12Z"] * 20, 'Date("x", time=True)'),
        (["2024-02-29 10:11:12", "2024-02-29"] * 20, 'Date("x")'),
        (["2024-13-01", "2024-02-29"] * 20, 'Category("x")'), (["red", "green", ""] * 20, 'Category("x", missing="")'),
        ([f"name {i}" for i in range(40)], 'Text("x", required=False)'), (["", ""] * 20, 'Text("x", required=False)'),
    ],
)  # fmt: skip
def test_the_kind_of_a_column_is_found(cells, source):
    import pyarrow as pa

    assert csv_columns.look("x", pa.array(cells)).source().strip() == f"{source},"


@pytest.mark.parametrize(
    "name, is_key", [("id", True), ("customerID", True), ("user_id", True), ("userId", True), ("paid", False), ("grid", False)]
)
def test_numbered_rows_are_a_key_and_no_number(name, is_key):
    import pyarrow as pa

    found = csv_columns.look(name, pa.array([str(i) for i in range(50)]))
    assert (found.kind, found.required) == (("Text", False) if is_key else ("Number", True))


def test_limits_hold_what_was_seen():
    rng = Random(3)
    for _ in range(500):
        values = sorted(rng.uniform(-1, 1) * 10 ** rng.randint(-6, 9) for _ in range(2))
        low, high = csv_columns.limits(*values)
        assert low <= values[0] and values[1] <= high and math.copysign(1, low * values[0]) >= 0


def test_a_column_is_nearly_one_of_numbers(root, tmp_path):
    rows = [["age", "y"], *([i % 50 if i % 9 else "NA", "yes" if i % 2 else "no"] for i in range(300))]
    said = new_trainer(root, NAME, "--kind=tabular", "--from", write_csv(tmp_path / "given.csv", rows))
    assert "numbers but for 'NA' in 34 rows: leave such cells empty" in said


def test_numbers_are_what_the_runtime_reads_as_numbers(root, tmp_path):
    rows = [[" width ", "weight", "y"], *([f" {i} ", 10 ** (38 + i % 2), "yes" if i % 2 else "no"] for i in range(300))]
    said = new_trainer(root, NAME, "--kind=tabular", "--from", write_csv(tmp_path / "given.csv", rows))
    assert 'Number("width", low=0, high=600)\n' in said and "numbers but for" not in said


def test_blank_lines_may_stand_above_the_header(root, tmp_path):
    (tmp_path / "given.csv").write_text('\n\n"a\nb",y\n' + "".join(f"{i},{'no' if i % 3 else 'yes'}\n" for i in range(60)))
    said = new_trainer(root, NAME, "--kind=tabular", "--from", tmp_path / "given.csv")
    assert 'Number("a_b", low=0, high=120, header="a\\nb")\n' in said and "of 60 in" in said


@pytest.mark.parametrize("rows, size", [(20, 2), (60, 4), (200, 16), (640, None)])
def test_few_rows_are_several_steps(root, tmp_path, rows, size):
    given = write_csv(tmp_path / "given.csv", [["x", "y"], *([i, "no" if i % 3 else "yes"] for i in range(rows))])
    new_trainer(root, NAME, "--kind=tabular", "--from", given)
    written = (root / NAME / "trainer" / "hyperparameters.py").read_text()
    assert (f"    batch_size: int = option({size}, " in written) if size else ("batch_size" not in written)


@pytest.mark.parametrize(
    "names, label",
    [(["a", "label", "b"], "label"), (["Target", "a", "b"], "Target"), (["a", "y", "target"], "target"), (["a", "b", "c"], "c")],
)
def test_the_label_is_chosen_by_name_or_is_the_last_column(root, tmp_path, names, label):
    rows = [names, *([Random(i).choice(["u", "v"]) for _ in names] for i in range(100))]
    said = new_trainer(root, NAME, "--kind=tabular", "--from", write_csv(tmp_path / "given.csv", rows))
    assert f"predicts {label!r}, one of 2 classes (--label=COLUMN" in said
    assert f'LABEL = "{label}"' in (root / NAME / "trainer" / "model.py").read_text()


@pytest.mark.parametrize("values, objective", [([0, 1], "val_auc"), (["a", "b", "c"], "val_accuracy"), ([1, 2, 3], "val_rmse")])
def test_the_label_decides_what_the_model_is(root, tmp_path, values, objective):
    rows = [["x", "y"], *([Random(i).random(), values[i % len(values)]] for i in range(100))]
    new_trainer(root, NAME, "--kind=tabular", "--from", write_csv(tmp_path / "given.csv", rows))
    assert f'OBJECTIVE = "{objective}"' in (root / NAME / "trainer" / "model.py").read_text()
    (metric,) = yaml.safe_load((root / "jobs" / f"{NAME}-tuning.yaml").read_text())["studySpec"]["metrics"]
    assert metric == {"metricId": objective, "goal": "MINIMIZE" if objective == "val_rmse" else "MAXIMIZE"}


def test_a_users_rows_are_split_and_its_columns_kept(root, tmp_path):
    given = houses(tmp_path / "given.csv", 3000)
    said = new_trainer(root, NAME, "--kind=tabular", "--from", given)
    with open(given, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    unlabelled = [row for row in rows if not row[-1]]
    assert f"left out {len(unlabelled)} rows without 'Price'" in said
    parts = []
    for name in ("train", "valid"):
        with open(root / NAME / "tests" / "data" / f"{name}.csv", encoding="utf-8", newline="") as file:
            head, *part = csv.reader(file)
        assert head == header and all(row in rows and row[-1] for row in part)
        parts.append(part)
    assert [len(part) for part in parts] == [1600, 400] and not {row[0] for row in parts[0]} & {row[0] for row in parts[1]}
    model = (root / NAME / "trainer" / "model.py").read_text()
    for line in (
        'Text("house_id", required=False),',
        'Number("Living_area_m2", low=0, high=400, missing=math.nan, header="Living area (m²)"),',
        'Number("class_", low=0, high=11, header="class"),',
        'Date("sold_on", time=True, missing="", header="sold on"),', 'Text("remark", required=False),', 'Category("kind", missing=""),',
    ):  # fmt: skip
        assert f"    {line}\n" in model, line
    assert ' header="a b"),\n' in model and "def read" not in model
    assert "SYNTHETIC_SAMPLES = False" in model


def test_every_class_is_trained_on(root, tmp_path):
    rows = [["x", "y"], *([i, "rare" if i in (7, 8) else "ab"[i % 2]] for i in range(200))]
    new_trainer(root, NAME, "--kind=tabular", "--from", write_csv(tmp_path / "given.csv", rows))
    data = root / NAME / "tests" / "data"
    assert (data / "train.csv").read_text().count("rare") == 2 and "rare" not in (data / "valid.csv").read_text()


def test_the_texts_of_a_file_are_the_longest_ones(root, tmp_path):
    rows = [["stars", "id", "city", "review"], *([i % 5, i, "Ulm", f"a long and, with a comma,\nlonger text {i}"] for i in range(100))]
    said = new_trainer(root, NAME, "--kind=text", "--from", write_csv(tmp_path / "given.csv", rows), "--label=stars")
    assert "predicts 'stars', one of 5 classes\n" in said and "reads the texts of 'review'" in said
    model = (root / NAME / "trainer" / "model.py").read_text()
    assert 'TEXT, LABEL = "review", "stars"' in model and '    Text("city", required=False),\n' in model


# ------------------------------------------------------------------ what is written


def look_at_style(root: Path) -> None:
    for words in (["check", "."], ["format", "--check", NAME, f"tests/test_{NAME}.py"]):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", "--config", ROOT / "pyproject.toml"]
        assert not subprocess.run(command, cwd=root).returncode, words


def test_names_and_cells_with_quotes_are_written_in_style(root, tmp_path):
    names = ['a "quoted" name', "it's cold", "a tab\there", "back\\slash", "Größe in cm", "大小", f"long {'x' * 150}", "far", "y" * 150]
    texts = ['a "b" c', "it's", 'it\'s "so"', "tab\there"]
    rows = [names, *([*(texts[(i + j) % 4] for j in range(7)), f"{i}e30", "no" if i % 3 else "yes"] for i in range(60))]
    said = new_trainer(root, NAME, "--kind=tabular", "--from", write_csv(tmp_path / "given.csv", rows))
    assert f"header={names[0]!r}" in said and 'header="it\'s cold"' in said
    if importlib.util.find_spec("ruff"):  # not in the environments of other versions
        look_at_style(root)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written(root, kind):
    before = files(root)
    said = new_trainer(root, NAME, f"--kind={kind}")
    after = files(root)
    assert {name: after.pop(name) for name in before} == before
    assert {name for name in after if not name.startswith(f"{NAME}/")} == set(WRITTEN[1:])
    for name, content in after.items():
        text = "" if name.endswith(".png") else content.decode()
        assert "<<" not in text and "\t" not in text, name
        if name.endswith(".py"):
            ast.parse(text, name, feature_version=(3, 10))
        if name.endswith(".yaml"):
            assert f"jobs/{Path(name).name}" in text and NAME in str(yaml.safe_load(text))
    assert len((root / NAME / "trainer" / "model.py").read_text().splitlines()) <= 110
    for command in ("trainer.task --output_dir", "scripts/predict", "check", "tune", "2-workers", "build_package"):
        assert command in said, command
    if importlib.util.find_spec("ruff"):  # not in the environments of other versions
        look_at_style(root)
    # The same command makes the same files, and so does the script that the trainer brings.
    for path in WRITTEN:
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()
    new_trainer(root, NAME, f"--kind={kind}")
    shutil.rmtree(root / NAME / "tests" / "data")
    subprocess.run([sys.executable, root / NAME / "tests" / "make_data.py"], check=True)
    assert {name: content for name, content in files(root).items() if name in after} == after


def test_it_needs_no_tensorflow(root):
    code = (
        "import runpy, sys; sys.modules.update(tensorflow=None, keras=None); sys.argv = sys.argv[1:]; sys.path.insert(0, 'templates'); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-B", "-c", code, "templates/new_trainer.py", NAME, "--kind=tabular"]
    assert subprocess.run(command, cwd=root, capture_output=True).returncode == 0 and (root / NAME).is_dir()


# ------------------------------------------------------------------ what is written works


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Return (a copy of the checkout with a trainer made in it, its kind, what the command printed)."""
    project = copy_sources(tmp_path_factory.mktemp(request.param) / "project")
    return project, request.param, new_trainer(project, NAME, f"--kind={request.param}")


def few(kind: str, steps: int = 20) -> list[str]:
    """Return flags of a short run."""
    return [f"--num_examples_to_train_on={steps * (16 if kind == 'image' else 64)}", "--num_evals=2", "--checkpoint_steps=4"]


def python(project: Path, *words: object, code: int = 0, **variables: str) -> str:
    return execute([sys.executable, "-m", *words], project, {"PYTHONPATH": "", **variables}, code)


@pytest.mark.slow
def test_a_made_trainer_resumes_bit_by_bit(made, tmp_path):
    project, kind, _ = made
    module = f"{NAME}.trainer.task"
    python(project, module, f"--output_dir={tmp_path / 'whole'}", *few(kind))
    killed = [module, f"--output_dir={tmp_path / 'killed'}", *few(kind)]
    python(project, *killed, code=-signal.SIGKILL, TRAINER_KILL="step=14,signal=KILL")
    assert "resuming from step" in python(project, *killed)
    assert same_weights(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_a_made_trainers_own_test_passes_and_its_model_answers_the_printed_command(made, tmp_path):
    """Its own test holds it to its accuracy on the sample data."""
    project, kind, said = made
    python(project, "pytest", "-q", "-m", "", "-p", "no:cacheprovider", f"tests/test_{NAME}.py")
    printed = python(project, f"{NAME}.trainer.task", f"--output_dir={tmp_path / 'out'}", *few(kind))
    assert EVALUATED[kind] in printed
    (ask,) = (line.strip() for line in said.splitlines() if "| scripts/predict" in line)
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    answer = execute(["sh", "-c", ask.replace(f"/tmp/{NAME}/model", str(tmp_path / "out" / "model"))], project, {"PATH": search}, stdin="")
    assert '"label"' in answer and '"scores"' in answer


@pytest.mark.slow
@pytest.mark.multiworker
def test_a_made_trainers_job_files_run(made):
    project, kind, _ = made
    for job in ("", "-2-workers", "-gpu", "-tuning"):
        said = python(project, "vertex_local", "check", "--no_measure", f"jobs/{NAME}{job}.yaml")
        assert f"jobs/{NAME}{job}.yaml: 0 error(s)" in said
    said = python(project, "vertex_local", "run", f"jobs/{NAME}-2-workers.yaml", "--", *few(kind))
    assert "JOB_STATE_SUCCEEDED" in said and "served and trained predictions agree" in said
    said = python(project, "vertex_local", "tune", f"jobs/{NAME}-tuning.yaml", "--max_trial_count=2", "--", *few(kind))
    assert "best: trial " in said and EVALUATED[kind] in said


@pytest.mark.slow
def test_a_made_trainer_is_packaged_with_its_sample_data(made, tmp_path):
    project, kind, _ = made
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--formats=gztar", "--dist-dir", tmp_path]
    execute(command, project, {"VERTEX_TRAINER": NAME})
    (sdist,) = tmp_path.glob("*.tar.gz")
    site = install(sdist, tmp_path / "site")
    assert not (site / "templates").exists()
    for module in (f"{NAME}.trainer.task", "trainer.task"):
        said = run_installed(site, "-m", module, f"--output_dir={tmp_path / module}", *few(kind, 2), cwd=tmp_path)
        assert "served and trained predictions agree" in said


@pytest.mark.slow
def test_a_trainer_of_a_users_file_learns_and_answers(tmp_path):
    project = copy_sources(tmp_path / "project")
    new_trainer(project, NAME, "--kind=tabular", "--from", houses(tmp_path / "given.csv", 2000))
    python(project, "pytest", "-q", "-p", "no:cacheprovider", f"tests/test_{NAME}.py")
    # The user's own file, with all its columns under their own names, is data as well.
    data = [f"--train_data_path={NAME}/tests/data/train.csv", f"--eval_data_path={NAME}/tests/data/valid.csv"]
    said = python(project, f"{NAME}.trainer.task", f"--output_dir={tmp_path / 'out'}", *data)
    rmse = float(said.rpartition("val_rmse ")[2].split()[0].rstrip(","))
    assert rmse < 50_000  # the prices' spread is about 130,000
    instance = '{"Living_area_m2": null, "class_": 3, "a_b_2": 1, "a_b": 0.5, "sold_on": "", "kind": "igloo"}'
    command = [sys.executable, project / "vertex_runtime" / "predict.py", tmp_path / "out" / "model"]
    assert 50_000 < float(execute(command, project, stdin=instance)) < 800_000
