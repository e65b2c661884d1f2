"""Train the question tagger.

On the sample data that ships with the project (a few seconds, accuracy about 0.93):

    python -m stackoverflow.trainer.task --output_dir=/tmp/stackoverflow
"""

from __future__ import annotations

from collections.abc import Sequence

from vertex_runtime import task
from vertex_runtime.errors import run_as_program

from .hyperparameters import Hyperparameters


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, export and check the model; return the final metrics."""
    return task.train(__package__, Hyperparameters, argv, "Train the question tagger.")


if __name__ == "__main__":
    run_as_program(main)
