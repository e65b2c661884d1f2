"""The profile of a run's training rows, which is kept beside the model: see profile.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from .columns import Image
from .data import BadRows, Chunk, is_table
from .errors import UserError
from .reporting import log
from .rows import rows_of
from .sources import DatasetSource

if TYPE_CHECKING:
    from .inputs import Inputs

ROWS, IMAGES = 100_000, 500  # that are read for it, where the run did not hold all rows in memory
PLACES = 50  # blocks, or files, that they come from, evenly spaced


def training_profile(inputs: Inputs) -> dict[str, Any] | None:
    """Return the profile of the training rows: of all where they were read whole, else of some from everywhere.

    None where they cannot be read a second time, which is no reason to lose a model.
    """
    made = inputs.profile
    if made is None:
        return None
    try:
        for chunk in () if made.rows else _some(inputs):
            made.add(chunk)
    except (UserError, OSError) as error:
        log("WARNING", f"no profile of the training rows is kept with the model: {' '.join(str(error).split())[:200]}")
        return None
    found = made.as_json()
    return found | {"rows": inputs.train.count} if inputs.train is not None else found


def text_of(profile: dict[str, Any]) -> str:
    """Return a profile as the text of its file."""
    return json.dumps(profile, sort_keys=True) + "\n"


def _some(inputs: Inputs) -> Iterator[Chunk]:
    """Yield some raw training rows, from everywhere as far as their source allows it."""
    source = inputs._source("training")
    if isinstance(source, DatasetSource):
        yield from islice(source.chunks(), 20)
    elif source is not None:
        places = inputs._places("training", source)
        images = any(isinstance(column, Image) for column in inputs.contract.columns)
        chosen = places[np.unique(np.linspace(0, len(places) - 1, IMAGES if images else 10 * IMAGES).astype(int))]
        for start in range(0, len(chosen), 100):
            yield source.take(chosen[start : start + 100])
    elif inputs.blocks is not None:
        for block in np.unique(np.linspace(0, len(inputs.blocks.index.blocks) - 1, PLACES).astype(int)):
            yield inputs.blocks.raw([int(block)])
    else:
        yield from _first_of_files(inputs)


def _first_of_files(inputs: Inputs) -> Iterator[Chunk]:
    paths = inputs._paths("training")
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, PLACES).astype(int))]
    each = ROWS // len(chosen) if not any(map(is_table, paths)) else 1
    for path in chosen:
        rows = 0
        for chunk in inputs.contract.read(path, BadRows("skip")):
            rows += rows_of(chunk)
            yield from inputs.split.part([chunk], False) if inputs.split else [chunk]
            if rows >= each:
                break
