"""A replica that only evaluates: it follows the checkpoints of the training replicas, in no collective with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import tensorflow as tf

from .checkpoint import assign, named_variables
from .errors import UserError
from .inputs import Inputs
from .reporting import Scalars, format_metrics, log
from .run import Run, build_steps
from .steps import Plan, Steps

POLL_SECONDS = 1.0


def follow(run: Run) -> dict[str, float]:
    """Evaluate each checkpoint that appears, write its metrics under logs/eval, and end when training has ended.

    Returns:
        The metrics of the last checkpoint.
    """
    checkpointer, outputs = run.checkpointer, run.outputs
    held = ExitStack()  # until the process ends
    with ThreadPoolExecutor(1) as background:
        run.inputs = Inputs(run.contract, run.hp, run.options, run.env, background, held, lambda: run.beat("data"), trains=False)
    run.contract = run.inputs.contract
    built: tuple[Steps, dict[str, Any]] | None = None
    scalars = Scalars(f"{outputs.logs}/eval")
    log("INFO", f"evaluator: following {outputs.checkpoints}")
    seen, metrics = 0, {}
    while True:
        newest = (checkpointer.steps() or [0])[-1]
        if newest > seen and (found := _try(checkpointer.load, newest)):
            built = steps, variables = built or _build(run, found[1]["total_steps"])
            assign(variables, found[0], outputs.checkpoints)
            run.events.enter("evaluation", newest)
            metrics = {f"val_{name}": value for name, value in steps.evaluate(run.inputs.evaluation).items()}
            scalars.write(newest, metrics)
            log("INFO", f"evaluator: step {newest}: {format_metrics(metrics)}", step=newest)
            seen = newest
        if seen and seen == newest and _try(checkpointer.finished, newest):
            run.events.enter("end", newest)
            return metrics
        run.beat("waiting for a checkpoint")
        time.sleep(POLL_SECONDS)


def _build(run: Run, total_steps: int) -> tuple[Steps, dict[str, Any]]:
    """Return the network's evaluation and its variables by name; the training replicas' checkpoint says how long they train."""
    # It takes every row of the evaluation data itself.
    steps = build_steps(run, Plan(total_steps, run.hp.batch_size, run.hp.num_evals, run.options.checkpoint_steps))
    return steps, named_variables(model=steps.model.variables)


def _try(read: Callable[[int], Any], step: int) -> Any:
    """Read a checkpoint that may be superseded or written anew meanwhile."""
    try:
        return read(step)
    except (UserError, tf.errors.OpError, RuntimeError, ValueError, IndexError):
        return None
