"""Custom jobs' files by the names that scripts and tests use: `job_file` does the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from . import job_file
from .job_file import JobFile, without_data_flags
from .job_file import read_text as read
from .pools import ROLES, Pool
from .schema import SpecError

__all__ = ["ROLES", "JobFile", "Pool", "SpecError", "load", "loads", "read", "without_data_flags"]


def load(
    path: str | Path, overrides: Sequence[str] = (), given: Mapping[str, str] | None = None, pipelines: bool = False
) -> JobFile:  # fmt: skip
    """Read a custom job's file and append `overrides` to its arguments; with `pipelines`, a training pipeline's, too."""
    return loads(read(path, given), str(path), overrides, pipelines)


def loads(text: str, name: str, overrides: Sequence[str] = (), pipelines: bool = False) -> JobFile:
    """Read a custom job from text, as `load` does from a file."""
    kinds = (job_file.CUSTOM, job_file.PIPELINE) if pipelines else (job_file.CUSTOM,)
    return job_file.parse(text, name, kinds).with_args(overrides)
