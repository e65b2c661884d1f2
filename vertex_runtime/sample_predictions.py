"""What a model answers to some evaluation rows, kept beside it: whoever deploys it can see that it answers the same there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

FILE = "assets.extra/sample_predictions.jsonl"
ROWS = 16
BYTES = 256 << 10  # of all lines: an online request takes 1.5 MB


def keep(directory: str, instances: Sequence[Any], predictions: Sequence[Any]) -> None:
    """Write the first instances and what the exported model in `directory` answers, one `{"instance", "prediction"}` a line.

    Rows that are too large to be asked online are left out; where none is left there is no file.
    """
    lines: list[str] = []
    size = 0
    for instance, prediction in zip(instances, predictions):
        line = json.dumps({"instance": instance, "prediction": prediction}, ensure_ascii=False) + "\n"
        if size + len(line.encode()) <= BYTES:
            lines.append(line)
            size += len(line.encode())
        if len(lines) == ROWS:
            break
    if lines:
        path = f"{directory}/{FILE}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(lines)
