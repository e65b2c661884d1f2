"""Where there is no TFX, its pipelines say in one line how to get it. TFX is not needed for these tests."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT
from test_local_support import environ


@pytest.mark.parametrize(
    "python, words",
    [
        (
            "/nowhere/python",
            "TFX needs an environment of its own, and TFX_PYTHON=/nowhere/python is no program. Make one: scripts/setup_tfx",
        ),
        (sys.executable, f"{sys.executable} has no TFX. Install it there: scripts/setup_tfx"),
    ],
)
def test_without_tfx_the_command_that_makes_its_environment_is_named(python, words):
    command = [sys.executable, "-m", "pipelines.tfx", "--threshold=0.9"]
    done = subprocess.run(command, env=environ(TFX_PYTHON=python), cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {words}\n")
