"""What every trainer's `task.py` calls: arguments, environment, strategy, and then the run."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from typing import Any

from . import plan
from .arguments import parse
from .cluster import Peers
from .environment import Environment
from .outputs import resolve_outputs
from .strategy import choose_strategy, import_tensorflow
from .watchdog import Watchdog


def train(package: str, hyperparameters: type, argv: Sequence[str] | None, description: str) -> dict[str, Any]:
    """Train the model of `package.model` as flags and environment say; return the final metrics.

    Args:
        package: the trainer's own package, `__package__` of its task.py.
        hyperparameters: its dataclass, made of `CommonHyperparameters`.
        argv: arguments without the program's name; None takes the process's own.
        description: what `--help` opens with.

    Raises:
        UserError: anything that the user can mend.
    """
    started = time.monotonic()
    hp, options = parse(hyperparameters, argv, description)
    env = Environment.from_mapping(os.environ)
    trainer = package.split(".")[-2] if "." in package else _folder(package)
    if options.evaluate or options.against:
        from .evaluation import run as evaluation

        return evaluation.say(package, trainer, hyperparameters, hp, options, env)
    if options.data_report:
        from .data_report.run import say

        return say(package, trainer, hyperparameters, hp, options, env)
    if options.plan != "no":
        return plan.say(f"{package}.model", hp, options, env)
    outputs = resolve_outputs(options.output_dir, env, trainer)
    patience = 0.0 if env.debugged else options.stall_minutes
    # Both watch from processes of their own, which must start before TensorFlow's threads do.
    with Watchdog(patience) as watchdog, Peers(env, options.startup_timeout):
        import_tensorflow()
        strategy = choose_strategy(env, hp.seed, options.strategy)  # before any other TensorFlow operation
        from . import contract, evaluator, run

        with contract.made_resources() as resources:
            model = contract.load_module(f"{package}.model", hyperparameters, resources)
            work = evaluator.follow if env.role == "evaluator" else run.train_and_export
            return work(run.Run(model, hp, options, env, outputs, strategy, started, watchdog.beat))


def _folder(package: str) -> str:
    """Return the folder above a package that is started as plain `trainer`."""
    file = importlib.import_module(package).__file__ or ""
    return os.path.basename(os.path.dirname(os.path.dirname(os.path.abspath(file))))
