"""What the routes of the local service work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .executor import Executor
from .predictor import Predictors
from .records import Records
from .rest import ApiError


@dataclass
class Local:
    """The service's folders and parts. `say` prints a line where the service was started."""

    state: Path
    buckets: Path
    project_dir: Path
    python: str | None
    with_index: bool
    records: Records
    executor: Executor
    predictors: Predictors
    say: Callable[[str], None]

    def known(self, name: str) -> dict[str, Any]:
        """Return the record of that name, or answer NOT_FOUND."""
        record = self.records.get(name)
        if record is None:
            raise ApiError("NOT_FOUND", f"{name} does not exist here.")
        return record
