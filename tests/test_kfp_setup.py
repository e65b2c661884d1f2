"""`scripts/setup_kfp`: what it installs in which order, what it says when it cannot, and that it does nothing twice."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

# Stands for an interpreter: writes down how pip is called, and fails where a file says so.
PYTHON = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
*"pip install"*) echo "$*" >>"$here/installed.txt"; [ ! -f "$here/offline" ] || { echo "no index answers"; exit 1; } ;;
*version_info*) [ ! -f "$here/old" ] || exit 1 ;;
--version) echo "Python 3.14.0" ;;
*import*) [ ! -f "$here/broken" ] || { echo "ImportError" >&2; exit 1; } ;;
esac
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with an environment whose interpreter is that stand-in."""
    for name in ("scripts/setup_kfp", "scripts/environment.sh", "setup.py", "requirements-dev.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines")
    (tmp_path / ".venv-kfp" / "bin").mkdir(parents=True)
    (tmp_path / ".venv-kfp" / "bin" / "python").write_text(PYTHON)
    (tmp_path / ".venv-kfp" / "bin" / "python").chmod(0o755)
    return tmp_path


def setup(checkout: Path, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([checkout / "scripts" / "setup_kfp"], env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def test_the_components_come_without_their_bound_of_the_sdk(checkout):
    folder = checkout / ".venv-kfp" / "bin"
    assert "is ready: " in setup(checkout).stdout
    first, second = (folder / "installed.txt").read_text().splitlines()
    assert "-r pipelines/kfp/requirements.txt -e .[cloud,serve,tune]" in first and "--no-deps" not in first
    assert "--no-deps -r pipelines/kfp/components.txt" in second
    assert "is up to date." in setup(checkout).stdout
    assert len((folder / "installed.txt").read_text().splitlines()) == 2, "it does nothing twice"
    with (checkout / "pipelines" / "kfp" / "requirements.txt").open("a") as file:
        file.write("tabulate\n")
    setup(checkout)
    assert len((folder / "installed.txt").read_text().splitlines()) == 4, "what is wanted has changed"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("offline", "error: could not install; all of pip's output is in "),
        ("old", "has Python 3.14.0; TensorFlow 2.21 needs Python 3.10 to 3.13: move it away, and name one by PYTHON=…"),
        ("broken", "error: what was installed does not load; see "),
    ],
)
def test_what_went_wrong_is_one_line(checkout, fault, expected):
    (checkout / ".venv-kfp" / "bin" / fault).touch()
    assert expected in setup(checkout, 1).stderr.splitlines()[-1]
    assert not (checkout / ".venv-kfp" / "installed").exists()


def test_a_python_that_is_none_and_half_a_checkout(checkout):
    shutil.rmtree(checkout / ".venv-kfp")
    assert "error: PYTHON=/bin/false is not a Python 3.10 or newer." in setup(checkout, 1, PYTHON="/bin/false").stderr
    (checkout / "pipelines" / "kfp" / "components.txt").unlink()
    assert "components.txt is not there: the checkout is not whole." in setup(checkout, 1).stderr
