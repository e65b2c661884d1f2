"""Train the taxi fare model.

On the sample data that ships with the project (a few seconds, RMSE about 2.3 dollars):

    python -m taxifare.trainer.task --output_dir=/tmp/taxifare
"""

from __future__ import annotations

from collections.abc import Sequence

from vertex_runtime import task
from vertex_runtime.errors import run_as_program

from .hyperparameters import Hyperparameters


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, export and check the model; return the final metrics."""
    return task.train(__package__, Hyperparameters, argv, "Train the taxi fare model.")


if __name__ == "__main__":
    run_as_program(main)
