"""The pipelines' virtual environment: kfp and Google's components need other versions of packages than trainers do."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError
from ..local import environment

VARIABLE, FOLDER = "KFP_PYTHON", ".venv-kfp"
NEEDED = ("kfp", "google-cloud-pipeline-components", "google-cloud-aiplatform", "wrapt")
_ROOT = Path(__file__).resolve().parents[2]
_REMEDY = f"make the environment with scripts/setup_kfp, or name its interpreter in {VARIABLE}"
_ASK = (
    "import importlib.metadata as m, json, sys\n"
    "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}\n"
    "print(json.dumps({name: found.get(name) for name in sys.argv[1:]}))\n"
)


def find(project: Path) -> str:
    """Return the interpreter of the pipelines' environment: that of KFP_PYTHON, or of `.venv-kfp` in the checkout.

    Raises:
        UserError: there is no such interpreter, or it lacks a package.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = shutil.which(named)
        if path is None:
            raise UserError(f"{VARIABLE}={named} is not a program that can be run; {_REMEDY}.")
    else:
        places = [folder / FOLDER / "bin" / "python" for folder in dict.fromkeys((project, _ROOT))]
        path = next((str(place) for place in places if os.access(place, os.X_OK)), None)
        if path is None:
            raise UserError(f"pipelines need an environment with kfp, and there is no {places[0]}; {_REMEDY}.")
    missing = [name for name, version in versions(path).items() if version is None]
    if missing:
        versions.cache_clear()  # they may be installed while a service runs
        raise UserError(f"{path} has no {' and no '.join(missing)}; {_REMEDY}.")
    return path


@functools.cache
def versions(python: str) -> Mapping[str, str | None]:
    """Return the versions of the packages that pipelines need; None for one that the interpreter does not have."""
    try:
        done = subprocess.run([python, "-c", _ASK, *NEEDED], capture_output=True, text=True, check=True, timeout=120)
        return json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UserError(f"{python} cannot tell which packages it has ({error}); {_REMEDY}.") from None


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` with this checkout on PYTHONPATH, because the pipelines' environment need not have it installed."""
    # Without a checkout this package is installed beside packages for another interpreter.
    return environment.importing_this(env) if (_ROOT / "setup.py").is_file() else dict(env)
