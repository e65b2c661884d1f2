"""Run the TFX pipeline on this machine, or compile it for the cloud: python -m pipelines.tfx --trainer stackoverflow --threshold 0.9

Any Python may start it: where that has no TFX, `$TFX_PYTHON` goes on, or the Python of `.venv-tfx`, which scripts/setup_tfx makes.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vertex_runtime.errors import UserError, run_as_program

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


def main(argv: Sequence[str] | None = None) -> None:
    """Run or compile, in the environment that has TFX.

    Raises:
        UserError: anything that the user can mend.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    go_on_with_tfx(words)
    from vertex_local.errors import UserError as LocalError

    from . import command

    try:
        command.main(words)
    except LocalError as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run_as_program(main)
