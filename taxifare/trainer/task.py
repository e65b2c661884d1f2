"""Train the taxi fare model.

On the sample data that ships with the project (a few seconds, RMSE about 2.3 dollars):

    python -m taxifare.trainer.task --output_dir=/tmp/taxifare
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from vertex_runtime import plan
from vertex_runtime.arguments import parse
from vertex_runtime.cluster import Peers
from vertex_runtime.environment import Environment
from vertex_runtime.errors import run_as_program
from vertex_runtime.outputs import resolve_outputs
from vertex_runtime.strategy import choose_strategy, import_tensorflow

from .hyperparameters import Hyperparameters


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, export and check the model; return the final metrics."""
    hp, options = parse(Hyperparameters, argv, "Train the taxi fare model.")
    env = Environment.from_mapping(os.environ)
    if options.plan != "no":
        return plan.say(f"{__package__}.model", hp, options, env)
    outputs = resolve_outputs(options.output_dir, env, "taxifare")
    with Peers(env, options.startup_timeout):
        import_tensorflow()
        strategy = choose_strategy(env, hp.seed, options.strategy)  # before any other TensorFlow operation
        from vertex_runtime import evaluator, run

        from . import model

        work = evaluator.follow if env.role == "evaluator" else run.train_and_export
        return work(model, hp, options, env, outputs, strategy)


if __name__ == "__main__":
    run_as_program(main)
