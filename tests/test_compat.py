"""Other versions, in environments that the run makes: the whole default suite, and exported models loaded elsewhere.

The oldest supported pair is Python 3.10 with TensorFlow 2.17, and there with the oldest version of every other package
that setup.py admits. Where no Python 3.10 is found it is TensorFlow 2.17 on the Python at hand, with a warning; that
the files are Python 3.10 is checked everywhere, in test_style.py. Environments are kept in the user's cache folder
(COMPAT_ENVIRONMENTS names another), by what is in them.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.compat

TINY = ("--num_examples_to_train_on=2048", "--num_evals=2")
Trained = tuple[str, dict[str, tuple[Path, str, list]]]  # version; by variant: model, requests, its answers there
VARIANTS = {
    "taxifare": ("taxifare",),
    "taxifare-lab": ("taxifare", "--features=lab"),
    "stackoverflow": ("stackoverflow",),
    "stackoverflow-cnn": ("stackoverflow", "--model=cnn"),
}


# ------------------------------------------------------------------ environments


def cache_folder() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vertex-trainer" / "environments"
    return Path(os.environ.get("COMPAT_ENVIRONMENTS") or default)


def find_python(minors: Iterable[int]) -> str | None:
    """Return the first interpreter of these versions 3.x that really runs: one on PATH may be a mere stand-in."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for minor in minors:
        names = [Path(folder) / f"python3.{minor}" for folder in os.environ["PATH"].split(os.pathsep)]
        names += sorted(pyenv.glob(f"versions/3.{minor}.*/bin/python"), reverse=True)
        for name in names:
            code = f"import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, {minor}))"
            if name.exists() and subprocess.run([name, "-c", code], capture_output=True).returncode == 0:
                return str(name)
    return None


def make_environment(python: str, requirements: Sequence[str]) -> str:
    """Return the interpreter of an environment with these packages, which is made unless an earlier run made it."""
    version = subprocess.run([python, "-VV"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256("\n".join([python, version, *requirements]).encode()).hexdigest()[:12]
    folder = cache_folder() / f"{requirements[0].replace('==', '-').strip('.*')}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:  # two test runs may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([python, "-m", "venv", folder], check=True)
            pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements]
            done = subprocess.run(pip, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (folder / "complete").write_text("\n".join(requirements))
    return str(folder / "bin" / "python")


def tensorflow(version: str) -> str:
    """Return the requirement; the package without GPU code is a third of the size, where there is one."""
    small = sys.platform == "linux" and platform.machine() == "x86_64"
    return f"{'tensorflow-cpu' if small else 'tensorflow'}=={version}.*"


@pytest.fixture(scope="session")
def requirements(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What setup.py requires, each at its floor, and what the tests do."""
    folder = tmp_path_factory.mktemp("metadata")
    subprocess.run([sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder], cwd=ROOT, check=True)
    (found,) = importlib.metadata.distributions(path=[str(folder)])
    floors = [text.replace(">=", "==") for text in found.requires if "extra ==" not in text]
    return floors + [text.partition(";")[0].strip() for text in found.requires if re.search("extra == .test.", text)]


@pytest.fixture(scope="session")
def python_2_17(requirements: list[str]) -> str:
    python = find_python([10])
    if python is None:
        python = find_python([11, 12])
        at_hand = platform.python_version() if python is None else python
        warnings.warn(f"no Python 3.10 was found: TensorFlow 2.17 is tested on {at_hand} instead", stacklevel=1)
    return make_environment(python or sys.executable, [tensorflow("2.17"), *requirements])


@pytest.fixture(scope="session")
def pythons(python_2_17: str) -> dict[str, str]:
    """Return the interpreters by TensorFlow version; 2.15 has nothing but TensorFlow, and needs Python 3.9 to 3.11."""
    oldest = find_python([10, 11, 9])
    assert oldest, "TensorFlow 2.15 needs Python 3.9, 3.10 or 3.11 on PATH (or under PYENV_ROOT); install one to run this test."
    return {"2.15": make_environment(oldest, [tensorflow("2.15")]), "2.17": python_2_17, "current": sys.executable}


def execute(command: Sequence[object], cwd: Path, code: int = 0, stdin: str = "", **variables: str) -> str:
    """Run a command that must end with `code`; return its stdout."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **variables}, input=stdin, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout[-20000:]}\n{done.stderr[-5000:]}"
    return done.stdout


# ------------------------------------------------------------------ the oldest supported versions


def test_the_oldest_versions_are_what_they_claim(python_2_17, requirements):
    names = ("tensorflow", "pyarrow", "numpy", "python")
    code = f"from vertex_runtime.outputs import versions; print(*map(versions().get, {names}))"
    tf, arrow, numpy, python = execute([python_2_17, "-c", code], ROOT).split()
    assert tf.startswith("2.17.") and f"pyarrow=={arrow}" in requirements and numpy.startswith("1.26.")
    assert python.startswith("3.10.") or find_python([10]) is None


@pytest.mark.parametrize("trainer", ["taxifare", "stackoverflow"])
def test_train_killed_resume_and_export_with_the_oldest_versions(python_2_17, trainer, tmp_path):
    command = [python_2_17, "-m", f"{trainer}.trainer.task", *TINY, "--batch_size=64", "--checkpoint_steps=4", "--output_dir=out"]
    execute(command, tmp_path, code=-9, PYTHONPATH=str(ROOT), TRAINER_KILL="step=24,signal=KILL")
    said = execute(command, tmp_path, PYTHONPATH=str(ROOT))
    resumed = re.search(r"resuming from step (\d+) of 32", said)
    assert resumed and int(resumed[1]) > 0, said
    assert (tmp_path / "out" / "model" / "saved_model.pb").is_file()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["skew_gate"]["largest_difference"] <= 1e-5


# What starts no trainer, or only as another test here does: it is the same whichever TensorFlow is installed.
ELSEWHERE = (
    "serve", "submit", "tune", "study", "datasets", "storage", "convert", "bigquery", "check", "jobs", "estimate", "docker", "style",
    "console", "registry", "batch", "doctor", "tensorboard", "experiments", "pipeline", "kfp", "tfx", "notebook",
)  # fmt: skip


def test_the_default_suite_passes_with_the_oldest_versions(python_2_17):
    left_out = [f"--ignore={path}" for path in sorted(Path(__file__).parent.glob("test_*.py")) if any(w in path.stem for w in ELSEWHERE)]
    said = execute([python_2_17, "-m", "pytest", "-q", "-p", "no:cacheprovider", *left_out], ROOT)
    assert " passed" in said.splitlines()[-1]


# ------------------------------------------------------------------ models that travel


@pytest.fixture(scope="session", params=["current", "2.17"])
def trained(request: pytest.FixtureRequest, pythons: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Export every variant with one version of TensorFlow, and ask each model there."""
    folder, python, found = tmp_path_factory.mktemp(f"trained-{request.param}"), pythons[request.param], {}
    for name, (trainer, *flags) in VARIANTS.items():
        command = [python, "-m", f"{trainer}.trainer.task", *TINY, *flags, f"--output_dir={name}"]
        execute(command, folder, PYTHONPATH=str(ROOT))
        lines = instances(trainer)
        found[name] = (folder / name / "model", lines, ask(python, folder / name / "model", lines, folder))
    return request.param, found


def instances(trainer: str) -> str:
    """Return requests as JSON lines: sample rows, and what people really send."""
    if trainer == "stackoverflow":
        with open(ROOT / "stackoverflow/tests/data/valid.csv", encoding="utf-8", newline="") as file:
            texts = [row["text"] for row in csv.DictReader(file)][:60]
        return "\n".join(json.dumps(text) for text in [*texts, "", "  ", "Ünïcödé 日本語 🐍", "x" * 5000, "a\nb\tc"])
    with open(ROOT / "taxifare/tests/data/taxi-valid.csv", newline="") as file:
        rows = [row[1:7] for row in csv.reader(file)][:60]
    names = ["pickup_datetime", "pickup_longitude", "pickup_latitude", "dropoff_longitude", "dropoff_latitude", "passenger_count"]
    trips = [{name: value if name == "pickup_datetime" else float(value) for name, value in zip(names, row)} for row in rows]
    far = trips[0] | {"dropoff_longitude": -78.0, "dropoff_latitude": 37.0, "passenger_count": 208.0}
    still = trips[1] | {"dropoff_longitude": trips[1]["pickup_longitude"], "dropoff_latitude": trips[1]["pickup_latitude"]}
    return "\n".join(json.dumps(trip) for trip in [*trips, far, still])


def ask(python: str, model: Path, lines: str, folder: Path) -> list:
    """Ask with predict.py and the exported folder alone, both moved away from the project."""
    shutil.copy(ROOT / "vertex_runtime" / "predict.py", folder / "predict.py")
    moved = shutil.copytree(model, folder / "elsewhere", dirs_exist_ok=True)
    said = execute([python, folder / "predict.py", moved], folder, stdin=lines, PYTHONPATH="")
    shutil.rmtree(moved)
    return [json.loads(line) for line in said.splitlines()]


def values(answer: object) -> list[float | str]:
    """Return every number and text of an answer, in order."""
    if isinstance(answer, dict):
        answer = [answer[name] for name in sorted(answer)]
    return [value for part in answer for value in values(part)] if isinstance(answer, list) else [answer]


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_model_answers_equally_elsewhere(trained, pythons, variant, tmp_path):
    version, models = trained
    model, lines, expected = models[variant]
    for other in sorted({"2.15", "2.17", "current"} - {version}):
        found = ask(pythons[other], model, lines, tmp_path)
        assert len(found) == len(expected) == len(lines.split("\n"))
        assert_close(found, expected)


def assert_close(found: list, expected: list) -> None:
    for got, wanted in zip(found, expected):
        for a, b in zip(values(got), values(wanted), strict=True):
            assert a == b if isinstance(b, str) else abs(a - b) <= 1e-5 * max(1, abs(b))
