"""Flags of this project's trainers that a form has fields for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..local import commands
from ..serve.rest import ApiError
from .forms import Form
from .text import as_number

_MODULE = re.compile(r"(\w+\.)?trainer\.task")


@dataclass(frozen=True)
class Field:
    """A flag that takes a number of minutes, and how a form calls it; `value` is what the job gives it."""

    name: str
    label: str
    value: str = ""


FIELDS = (
    Field("max_minutes", "Stop training after so many minutes, and export what is best"),
    Field("stall_minutes", "End it when nothing has moved for so many minutes, so that it is started again"),
)


def is_trainer(task: Mapping[str, Any], project: Path) -> bool:
    """Tell whether a pool's task, a containerSpec or a pythonPackageSpec, runs one of this project's trainers."""
    if module := task.get("pythonModule"):
        return _MODULE.fullmatch(module) is not None
    if command := task.get("command"):
        return any(_MODULE.fullmatch(word) for word in command)
    return commands.trainer_in(task.get("imageUri", ""), commands.trainers(project)) is not None


def taken_out(args: Sequence[str]) -> tuple[list[str], list[Field]]:
    """Return the arguments without the flags that have fields, and those fields with their values."""
    rest, values, words = [], {}, iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        plain = name.lstrip("-").replace("-", "_")
        if name.startswith("--") and plain in {field.name for field in FIELDS}:
            values[plain] = value if equals else next(words, "")
        else:
            rest.append(word)
    return rest, [Field(field.name, field.label, values.get(field.name, "")) for field in FIELDS]


def put_back(args: Sequence[str], form: Form) -> list[str]:
    """Return the arguments with the flags whose fields a form has filled in.

    Raises:
        ApiError: a field holds no number of minutes, or the arguments give its flag as well.
    """
    rest, given = taken_out(args)
    for field in given:
        text = form.get(f"flag.{field.name}")
        if text and field.value:
            raise ApiError("INVALID_ARGUMENT", f"--{field.name} stands in the arguments and in its own field; give it once.")
        minutes = as_number(text)
        if text and (minutes is None or not 0 <= minutes < math.inf):
            raise ApiError("INVALID_ARGUMENT", f"--{field.name} takes a number of minutes from 0 on; got {text[:40]!r}.")
        if text or field.value:
            rest.append(f"--{field.name}={text or field.value}")
    return rest
