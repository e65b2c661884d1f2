"""Which Python has TFX: this one, `$TFX_PYTHON`, or that of `.venv-tfx`, which scripts/setup_tfx makes. Imports no package."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vertex_runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def interpreter() -> str:
    """Return the interpreter of TFX's environment.

    Raises:
        UserError: there is none.
    """
    named = os.environ.get("TFX_PYTHON")
    found = named or str(ROOT / ".venv-tfx" / "bin" / "python")
    if not os.access(found, os.X_OK):
        where = f"TFX_PYTHON={found} is no program" if named else f"there is no {found}"
        raise UserError(f"TFX needs an environment of its own, and {where}. Make one: scripts/setup_tfx")
    return found


def go_on_with_tfx(argv: Sequence[str]) -> None:
    """Return where this interpreter has TFX; else start the same command anew with the one that has it.

    Raises:
        UserError: there is none.
    """
    if importlib.util.find_spec("tfx") is not None:
        return
    python = interpreter()
    if os.path.abspath(python) == sys.executable:
        raise UserError(f"{python} has no TFX. Install it there: scripts/setup_tfx")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    os.execve(python, [python, "-m", "pipelines.tfx", *argv], {**os.environ, "PYTHONPATH": path})
