"""What the `test_kfp*` files share: the pipelines' own environment, and programs that run in it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

PYTHON = Path(os.environ.get("KFP_PYTHON") or ROOT / ".venv-kfp" / "bin" / "python")
needs_kfp = pytest.mark.skipif(not PYTHON.is_file(), reason=f"there is no {PYTHON}: make it with scripts/setup_kfp, or set KFP_PYTHON")


def run(
    *words: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, code: int = 0, seconds: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run the pipelines' Python with `words`; it must end with `code`."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **(env or {})}
    done = subprocess.run(
        [PYTHON, *map(str, words)], cwd=cwd, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def driver(what: str, *words: object, **options: Any) -> Any:
    """Run one of the scenes of kfp_driver.py and return what it found."""
    done = run(ROOT / "tests" / "kfp_driver.py", what, *words, **options)
    return json.loads(done.stdout.strip().splitlines()[-1])
