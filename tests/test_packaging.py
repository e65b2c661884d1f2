"""Every way to get and to start a trainer: checkout, both sdists, setup.py alone, the published command, the scripts.

Nothing here asks a package index, except the slow test of the scripts, which makes an environment as a newcomer does.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import forked
import pytest
from conftest import FIRST_TRAINER, ROOT, TRAINERS

import vertex_runtime
from vertex_local.job import job_file
from vertex_local.local import commands

TINY = ("--num_examples_to_train_on=512", "--num_evals=1")
NOT_SOURCES = (".git", ".venv*", "__pycache__", "*.egg-info", "build", "dist", ".*_cache", ".vertex_local", "*-run-*", "*-model*")


def copy_sources(target: Path) -> Path:
    """Copy the checkout as git would clone it, changes that are not committed included."""
    return Path(shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*NOT_SOURCES)))


def execute(command: list[object], cwd: Path, env: Mapping[str, str] | None = None, code: int = 0, stdin: str | None = None) -> str:
    """Run a command that must end with `code`; return stdout and, unless something is piped in, stderr below it."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **(env or {})}, input=stdin or "", capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout if stdin is not None else done.stdout + done.stderr


def run_installed(site: Path, *args: object, cwd: Path) -> str:
    """Run the interpreter with `site` and the installed libraries.

    `-S` leaves out .pth files: an editable install of the checkout must not lend what `site` lacks.
    """
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    return execute([forked.interpreter(), "-S", *args], cwd, {"PYTHONPATH": path})


def install(package: Path, target: Path) -> Path:
    """Install without an index, and without the variable that the package was built with."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    execute([*pip, "--target", target, package], package.parent)
    return target


def record_of(output_dir: Path) -> dict:
    """Return run.json of a run that trained, exported and measured itself."""
    assert (output_dir / "model" / "saved_model.pb").is_file()
    assert json.loads((output_dir / "metrics.json").read_text())
    return json.loads((output_dir / "run.json").read_text())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("tree") / "project")


@pytest.fixture(scope="module")
def sdists(tree: Path) -> dict[str | None, Path]:
    """Build, in one folder and one after the other, the full sdist (None) and every narrowed one."""
    found = {}
    for trainer in (None, *TRAINERS):
        variables = {"VERTEX_TRAINER": trainer} if trainer else {}
        folder = tree / "dist" / (trainer or "all")
        execute([sys.executable, "setup.py", "--quiet", "sdist", "--formats=gztar", "--dist-dir", folder], tree, variables)
        (found[trainer],) = folder.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def sites(sdists: dict[str | None, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path]:
    """Install every sdist into a folder of its own."""
    return {trainer: install(sdist, tmp_path_factory.mktemp("site") / "packages") for trainer, sdist in sdists.items()}


def files_of(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def folders(files: set[str]) -> set[str]:
    """Return the folders at the top of an sdist or an installation."""
    return {name.partition("/")[0] for name in files if "/" in name}


def test_full_sdist_holds_what_a_job_needs_and_nothing_else(sdists):
    files = files_of(sdists[None])
    assert {"LICENSE", "setup.py", "vertex_runtime/run.py", "vertex_local/local/run.py", "vertex_local/check/prices.yaml"} <= files
    for trainer in TRAINERS:
        assert {f"{trainer}/trainer/{name}.py" for name in ("task", "model", "hyperparameters")} <= files
        assert {f"{trainer}/tests/data/{file.name}" for file in (ROOT / trainer / "tests" / "data").iterdir()} <= files
    assert "pyproject.toml" not in files, "with it pip builds in isolation, which needs an index"
    assert not [name for name in files if name.startswith(("tests", "benchmarks", "scripts", "pipelines", ".ci"))]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_narrowed_sdist_holds_one_trainer_even_after_a_full_build(sdists, trainer):
    files = files_of(sdists[trainer])
    assert {"LICENSE", "setup.py", f"{trainer}/trainer/task.py", "vertex_runtime/run.py"} <= files
    assert folders(files) == {trainer, "vertex_runtime", "vertex_trainer.egg-info"}


def test_narrowing_to_an_unknown_trainer_is_refused(tree):
    said = execute([sys.executable, "setup.py", "sdist"], tree, {"VERTEX_TRAINER": "taxifaer"}, code=1)
    assert said.strip() == f"VERTEX_TRAINER must be one of {', '.join(TRAINERS)}; got 'taxifaer'."


def test_metadata(sites):
    (found,) = importlib.metadata.distributions(path=[str(sites[None])])
    assert found.metadata["License"] == "Apache-2.0" or found.metadata["License-Expression"] == "Apache-2.0"
    assert found.version == vertex_runtime.__version__
    assert found.metadata["Requires-Python"] == ">=3.10"
    extras = {"tf", "cloud", "gcs", "bigquery", "serve", "tune", "debug", "pictures", "docs", "test", "all"}
    assert set(found.metadata.get_all("Provides-Extra")) == extras
    needs = {text: text.partition("extra == ")[2].strip("'\" ") for text in found.requires}
    names = {extra: {re.match(r"[\w.-]+", text)[0] for text in needs if needs[text] == extra} for extra in needs.values()}
    assert names[""] == {"cloudml-hypertune", "numpy", "pyarrow", "tensorboard", "tqdm"}
    assert names["tf"] == {"tensorflow"}
    assert names["all"] == set().union(*(names[extra] for extra in names if extra not in ("", "tf", "all")))
    assert not [text for text in needs if re.search("tensorflow", text) and needs[text] != "tf"]
    assert not [text for text in needs if re.search("[<~]|==", text.partition(";")[0])], "a ceiling fights the image"


def test_license_is_the_whole_text(sdists):
    with tarfile.open(sdists[None]) as archive:
        name = next(name for name in archive.getnames() if name.endswith("/LICENSE"))
        text = archive.extractfile(name).read().decode()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


# ------------------------------------------------------------------ every spelling


@pytest.mark.slow
@pytest.mark.parametrize("trainer", FIRST_TRAINER)
@pytest.mark.parametrize(
    "path, module",
    [("", "{}.trainer.task"), ("{}", "trainer.task")],  # as the published command
)
def test_start_from_the_root_of_a_checkout(tree, tmp_path, path, module, trainer):
    command = [forked.interpreter(), "-m", module.format(trainer), *TINY, "--output_dir", tmp_path / "out"]
    execute(command, tree, {"PYTHONPATH": path.format(trainer)})
    record = record_of(tmp_path / "out")
    assert [Path(file["path"]).is_relative_to(tree) for file in record["data"]] == [True, True]


@pytest.mark.slow  # `-m trainer.task` of an installation is that of the narrowed one below
@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_start_in_the_trainers_folder_once_installed(tree, sites, tmp_path, trainer):
    run_installed(sites[None], "-m", "trainer.task", *TINY, "--output_dir", tmp_path / "out", cwd=tree / trainer)
    record_of(tmp_path / "out")


@pytest.mark.parametrize("trainer", FIRST_TRAINER)
@pytest.mark.parametrize("module", [pytest.param("{}.trainer.task", marks=pytest.mark.slow), "trainer.task"])
def test_start_narrowed_from_any_folder_on_the_sample_data(sites, tmp_path, module, trainer):
    said = run_installed(sites[trainer], "-m", module.format(trainer), *TINY, "--output_dir", "out", cwd=tmp_path)
    see_that_it_ran_on_sample_data(tmp_path / "out", said, sites[trainer])


@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_start_without_any_argument_makes_a_fresh_folder(sites, tmp_path, trainer):
    said = run_installed(sites[None], "-m", f"{trainer}.trainer.task", cwd=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith(trainer)
    see_that_it_ran_on_sample_data(folder, said, sites[None])


def see_that_it_ran_on_sample_data(output_dir: Path, said: str, site: Path) -> None:
    record = record_of(output_dir)
    assert record["synthetic_sample_data"] is True
    assert [Path(file["path"]).is_relative_to(site) for file in record["data"]] == [True, True]
    assert len(re.findall("synthetic sample data", said)) >= 2, "at the start and at the end"


PUBLISHED = """\
EVAL_DATA_PATH=./taxifare/tests/data/taxi-valid*
TRAIN_DATA_PATH=./taxifare/tests/data/taxi-train*
OUTPUT_DIR=./taxifare-model
test ${OUTPUT_DIR} && rm -rf ${OUTPUT_DIR}
export PYTHONPATH=${PYTHONPATH}:${PWD}/taxifare
python3 -m trainer.task \\
  --eval_data_path $EVAL_DATA_PATH --output_dir $OUTPUT_DIR --train_data_path $TRAIN_DATA_PATH \\
  --batch_size 5 --num_examples_to_train_on 100 --num_evals 1 --nbuckets 10 --lr 0.0001 --nnsize "32 8"
"""


def test_the_readme_shows_the_published_command():
    assert PUBLISHED in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("files", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_published_courses_command(tree, files):
    folder = tree / "taxifare" / "tests" / "data"
    second = folder / "taxi-train-2.csv"
    if files == 2:
        shutil.copy(folder / "taxi-train.csv", second)
    path = os.pathsep.join([str(Path(forked.interpreter()).parent), os.environ["PATH"]])
    execute(["bash", "-c", PUBLISHED], tree, {"PATH": path})
    second.unlink(missing_ok=True)
    record = record_of(tree / "taxifare-model")
    assert record["total_steps"] == 20
    assert record["rows"] == {"train": 1600 * files, "evaluation": 400}
    assert record["hyperparameters"]["nnsize"] == [32, 8]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_autopackaging_installs_setup_py_alone_and_copies_the_trainer(tree, tmp_path, trainer):
    """What gcloud's generated Dockerfile does: setup.py by itself, then --extra-dirs and the script's own folder."""
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(tree / "setup.py", app)
    site = install(app, tmp_path / "site")
    shutil.copytree(tree / "vertex_runtime", app / "vertex_runtime")
    shutil.copytree(tree / trainer / "trainer", app / trainer / "trainer")
    train, valid = sorted((tree / trainer / "tests" / "data").iterdir())
    flags = [*TINY, f"--train_data_path={train}", f"--eval_data_path={valid}", "--output_dir=out"]
    run_installed(site, "-m", f"{trainer}.trainer.task", *flags, cwd=app)
    record_of(app / "out")


# ------------------------------------------------------------------ a trainer of your own


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a third trainer, churn: taxifare under another name, and not a word of it in any other file."""
    project = copy_sources(tmp_path_factory.mktemp("third") / "project")
    shutil.copytree(project / "taxifare", project / "churn")
    (project / "churn" / "tests" / "data" / "more").mkdir()
    (project / "churn" / "tests" / "data" / "more" / "rows.csv").write_text("1\n")
    shutil.copy(project / "jobs" / "taxifare.yaml", project / "jobs" / "churn.yaml")
    for path in (*(project / "churn").rglob("*.py"), project / "jobs" / "churn.yaml"):
        path.write_text(path.read_text().replace("taxifare", "churn"))
    return project


@pytest.fixture
def here() -> dict[str, str]:
    """A PATH on which python3 is this interpreter, whose packages the scripts then take."""
    return {"PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"])}


def test_a_third_trainer_is_packaged_alone(third, tmp_path):
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--formats=gztar", "--dist-dir", tmp_path]
    execute(command, third, {"VERTEX_TRAINER": "churn"})
    (sdist,) = tmp_path.glob("*.tar.gz")
    files = files_of(sdist)
    assert folders(files) == {"churn", "vertex_runtime", "vertex_trainer.egg-info"}
    sources = {str(path.relative_to(third)) for path in (third / "churn").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert sources - {"churn/README.md"} == {name for name in files if name.startswith("churn/") and Path(name).suffix}
    assert {"churn/trainer/task.py", "churn/tests/data/taxi-train.csv", "churn/tests/data/more/rows.csv"} <= sources
    site = install(sdist, tmp_path / "site")  # by the service, which sets no VERTEX_TRAINER
    installed = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert {name for name in folders(installed) if "." not in name} == {"churn", "trainer", "vertex_runtime"}
    assert {name for name in sources if name.endswith(".csv")} <= installed
    said = run_installed(site, "-c", "import churn.trainer.task, trainer.task; print(trainer.task.__file__)", cwd=tmp_path)
    assert said.strip() == str(site / "trainer" / "task.py")


@pytest.mark.slow
def test_the_scripts_find_a_third_trainer(third, tmp_path, here):
    def run(script: str, *flags: object) -> str:
        return execute([third / "scripts" / script, *flags], tmp_path, here)

    image = "us-central1-docker.pkg.dev/your-project/trainers/churn:latest"
    said = run("build_image", "--trainer=churn", "--dry_run")
    assert "--build-arg=TRAINER=churn " in said and f"--tag={image} " in said
    said = run("build_package", "--trainer=churn", "--sample_data", "--bucket_root=buckets")
    assert "VERTEX_TRAINER=churn python setup.py sdist" in said
    bucket = tmp_path / "buckets" / "your-bucket"
    assert (bucket / "data/churn/taxi-train.csv").is_file() and (bucket / "data/churn/more/rows.csv").is_file()
    assert folders(files_of(bucket / "packages/churn/vertex_trainer-0.1.0.tar.gz")) >= {"churn", "vertex_runtime"}
    job = third / "jobs" / "churn.yaml"
    assert image in run("submit_job", job, "--dry_run")
    assert "python-module=churn.trainer.task" in run("submit_job", job, "--dry_run", "--autopackage")
    command = commands.for_pool(job_file.read(job).pools[0], "python3", third, bucket)
    assert command.argv[:3] == ("python3", "-m", "trainer.task") and command.env["PYTHONPATH"] == f"{third}/churn:{third}"
    assert {*TRAINERS, "churn"} == {*commands.trainers(third)}


@pytest.mark.parametrize(
    "flags, started",
    [
        ([], "-m taxifare.trainer.task"), (["--num_evals=2"], "-m taxifare.trainer.task --num_evals=2"),
        (["churn", "--num_evals=2"], "-m churn.trainer.task --num_evals=2"), (["churn/"], "-m churn.trainer.task"),
    ],
)  # fmt: skip
def test_train_starts_the_trainer_that_is_named(third, tmp_path, flags, started):
    python = third / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text('#!/bin/sh\n[ "$2" = pip ] || [ "$1" = -c ] || echo "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    said = execute([third / "scripts" / "train", *flags], tmp_path, {"PYTHONPATH": ""}, stdin="")
    assert said == f"{third} {started}\n"


def test_train_names_the_trainers_that_there_are(third, tmp_path):
    said = execute([third / "scripts" / "train", "chrun", "--num_evals=2"], tmp_path, code=1)
    assert said == (
        f"error: there is no trainer chrun here, only {' '.join(sorted((*TRAINERS, 'churn')))} "
        "(a trainer is a folder with a trainer/task.py in it).\n"
    )


# ------------------------------------------------------------------ the scripts


@pytest.fixture
def no_python(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A PATH on which every python3 is there but does not run, as a version manager's stand-ins may be."""
    folder = tmp_path / "stand-ins"
    folder.mkdir()
    for name in ("python3", *(f"python3.{minor}" for minor in range(10, 16))):
        (folder / name).write_text("#!/bin/sh\nexit 127\n")
        (folder / name).chmod(0o755)
    yield {"PATH": os.pathsep.join([str(folder), "/usr/bin", "/bin"])}


def test_train_says_what_python_it_needs(tree, no_python):
    said = execute([tree / "scripts" / "train"], tree, no_python, code=1)
    assert said.startswith("error: needs Python 3.10") and "PYTHON=" in said and said.count("\n") == 1
    assert not (tree / ".venv").exists()


def test_train_refuses_an_old_python_that_is_named(tree, tmp_path):
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    said = execute([tree / "scripts" / "train"], tree, {"PYTHON": str(old)}, code=1)
    assert said == f"error: PYTHON={old} is not a Python 3.10 or newer.\n"


def test_predict_says_what_to_do_without_tensorflow(tree, no_python):
    said = execute([tree / "scripts" / "predict", "model"], tree, no_python, code=1)
    assert said.startswith("error: ") and f"{tree}/scripts/train" in said and said.count("\n") == 1


@pytest.mark.slow
def test_predict_runs_with_the_active_environment_from_any_folder(tree, tmp_path, run_trainer):
    run_trainer("taxifare", *TINY, "--output_dir", tmp_path / "out")
    trip = {"pickup_datetime": "2014-05-01 10:00:00 UTC", "passenger_count": 1}
    trip |= {"pickup_longitude": -73.98, "pickup_latitude": 40.75, "dropoff_longitude": -73.96, "dropoff_latitude": 40.77}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [tree / "scripts" / "predict", "out/model"]
    answers = execute(command, tmp_path, {"PATH": path}, stdin=2 * (json.dumps(trip) + "\n")).splitlines()
    assert len(answers) == 2 and answers[0] == answers[1]
    assert 1 < float(answers[0]) < 100
    assert execute(command, tmp_path, {"PATH": path}, stdin="") == "", "no line in, no line out"


@pytest.mark.slow
def test_scripts_in_a_clean_clone(tmp_path, no_python):
    """A newcomer's first ten minutes; the folder's name has a space in it."""
    clone = copy_sources(tmp_path / "a clone")
    clean = {"PYTHONPATH": "", "VIRTUAL_ENV": "", "CI": "", "PYTHON": sys.executable}
    said = execute([clone / "scripts" / "train", "--num_evals=2"], clone, clean)
    assert "Installing" in said and len(re.findall("synthetic sample data", said)) >= 2 and "tensorboard" in said
    again = execute([clone / "scripts" / "train", "--num_evals=1", "--output_dir=out"], tmp_path, clean)
    assert "Installing" not in again
    assert record_of(tmp_path / "out")["total_steps"] > 0
    predict = re.search(r"echo (?P<instance>'\{.*\}')", again)
    answer = execute([clone / "scripts" / "predict", "out/model"], tmp_path, no_python, stdin=shlex.split(predict["instance"])[0])
    assert 1 < float(answer) < 200, "the environment that scripts/train made answers where no other can"
    assert " passed" in execute([clone / "scripts" / "test", "tests/test_sample_data.py"], tmp_path, clean)
    script = clone / "scripts" / "test"
    default, everything, in_ci = (
        {line for line in execute([script, *flags, "--collect-only", "-q"], tmp_path, clean | env).splitlines() if "::" in line}
        for flags, env in (([], {}), (["--all"], {}), ([], {"CI": "true"}))
    )
    slow = "tests/test_packaging.py::test_scripts_in_a_clean_clone"
    assert default < everything == in_ci and slow in everything - default
    execute([clone / "scripts" / "check"], tmp_path, clean)
