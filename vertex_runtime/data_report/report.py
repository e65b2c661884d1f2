"""The report itself: what was found of each part and column, and the judgements on it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KIND = "vertex_runtime data report"  # by which a file is known to be ours


@dataclass(frozen=True)
class Finding:
    """One line of judgement: level is warning or note; check is what was looked at, such as leaks or drift."""

    level: str
    check: str
    message: str


@dataclass
class Report:
    """What was found, as JSON holds it.

    Args:
        parts: by name (training first): rows, whether all were read, bad rows, duplicates, conflicts.
        columns: by name: kind, role, figures by part, plot, and drift against training by part.
        pairs: what two parts have in common.
    """

    parts: dict[str, dict[str, Any]]
    columns: dict[str, dict[str, Any]]
    pairs: list[dict[str, Any]]
    findings: list[Finding] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "warning"]

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values; numbers that are not finite become null."""
        return {"kind": KIND, **plain(dataclasses.asdict(self))}


def plain(value: Any) -> Any:
    """Return values as JSON has them, NumPy's among them; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
