"""The checkout that the submitting scripts belong to: its folders, a pool's trainer, its Dockerfile's defaults."""

from __future__ import annotations

import re
from pathlib import Path

from vertex_local.errors import UserError
from vertex_local.job.pools import Pool
from vertex_local.local.commands import trainer_in, trainers

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ROOT / "jobs"


def trainer_of(pool: Pool, name: str) -> str:
    """Return which trainer a worker pool runs, by its module or its image; raise a UserError naming the job file `name`."""
    known = trainers(ROOT)
    found = trainer_in(pool.module.partition(".")[0] if pool.module else pool.image, known)
    if found is None:
        raise UserError(f"{name}: {(pool.module or pool.image)[:100]} names none of the trainers here: give one of {', '.join(known)}.")
    return found


def dockerfile_default(name: str) -> str:
    """Return the default of one of the Dockerfile's ARGs."""
    found = re.search(rf'^ARG {name}="?([^"\s]+)"?$', (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise UserError(f"{ROOT / 'Dockerfile'}: there is no line ARG {name}=…: add it.")
    return found[1]
