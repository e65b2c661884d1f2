"""A replica that only evaluates: it follows the checkpoints of the training replicas, in no collective with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import tensorflow as tf

from .checkpoint import Checkpointer, assign, named_variables
from .contract import check_metrics
from .errors import UserError
from .inputs import Inputs
from .reporting import Scalars, format_metrics, log
from .run import Run
from .steps import Plan, Steps

POLL_SECONDS = 1.0


def follow(run: Run) -> dict[str, float]:
    """Evaluate each checkpoint that appears, write its metrics under logs/eval, and end when training has ended.

    Returns:
        The metrics of the last checkpoint.
    """
    contract, outputs = run.contract, run.outputs
    held = ExitStack()  # until the process ends
    with ThreadPoolExecutor(1) as background:
        inputs = Inputs(contract, run.hp, run.options, run.env, background, held, lambda: run.beat("data"), trains=False)
    run.contract = inputs.contract
    built: tuple[Steps, dict[str, Any]] | None = None
    checkpointer = Checkpointer(outputs.checkpoints, outputs.records, run.events, writes=False)
    scalars = Scalars(f"{outputs.logs}/eval")
    log("INFO", f"evaluator: following {outputs.checkpoints}")
    seen, metrics = 0, {}
    while True:
        newest = (checkpointer.steps() or [0])[-1]
        if newest > seen and (found := _try(checkpointer.load, newest)):
            built = steps, variables = built or _build(run, inputs, found[1].get("total_steps", newest))
            assign(variables, found[0], outputs.checkpoints)
            run.events.enter("evaluation", newest)
            metrics = {f"val_{name}": value for name, value in steps.evaluate(inputs.evaluation).items()}
            scalars.write(newest, metrics)
            log("INFO", f"evaluator: step {newest}: {format_metrics(metrics)}", step=newest)
            seen = newest
        if seen and seen == newest and _try(checkpointer.finished, newest):
            run.events.enter("end", newest)
            return metrics
        run.beat("waiting for a checkpoint")
        time.sleep(POLL_SECONDS)


def _build(run: Run, inputs: Inputs, total_steps: int) -> tuple[Steps, dict[str, Any]]:
    """Return the network's evaluation and its variables by name; the training replicas' checkpoint says how long they train."""
    hp, options = run.hp, run.options
    # It takes every row of the evaluation data itself.
    plan = Plan(total_steps, hp.batch_size, hp.num_evals, options.checkpoint_steps, options.steps_per_call, seed=hp.seed)
    network = run.contract.build_model(hp, inputs.facts, total_steps)
    steps = Steps(network, run.strategy, plan, inputs.example(), False)
    check_metrics(run.contract, steps.metric_names())
    return steps, named_variables(model=network.variables)


def _try(read: Callable[[int], Any], step: int) -> Any:
    """Read a checkpoint that may be superseded or written anew meanwhile."""
    try:
        return read(step)
    except (UserError, tf.errors.OpError, RuntimeError, ValueError, IndexError):
        return None
