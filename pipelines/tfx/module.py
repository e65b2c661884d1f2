"""What TFX calls of ours, in whatever process it runs a step: `run_fn` of Trainer, `custom_eval_shared_model` of Evaluator.

Both leave the work to the trainer: it trains by its own task.py, and what is evaluated is the very model that will be served.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_model_analysis as tfma

from .examples import ServedModel


def run_fn(fn_args: Any) -> None:
    """Train as a job of Vertex AI would, TFX's folders in the place of the service's; in a cluster, only the chief writes.

    Args:
        fn_args: TFX's `FnArgs`; `custom_config` holds the `trainer` and its `flags`.

    Raises:
        vertex_runtime.errors.UserError: anything that the user can mend.
    """
    config = fn_args.custom_config
    task = importlib.import_module(f"{config['trainer']}.trainer.task")
    service = {
        "AIP_MODEL_DIR": fn_args.serving_model_dir,
        "AIP_CHECKPOINT_DIR": f"{fn_args.model_run_dir}/checkpoints",
        "AIP_TENSORBOARD_LOG_DIR": f"{fn_args.model_run_dir}/logs",
    }
    with _variables(service):
        task.main([*config["flags"], "--train_data_path", *fn_args.train_files, "--eval_data_path", *fn_args.eval_files])


def custom_eval_shared_model(eval_saved_model_path: str, model_name: str, eval_config: tfma.EvalConfig, **arguments: Any) -> Any:
    """Return the served model as TFMA asks one. The specification's `signature_name` names the trainer, whose COLUMNS examples have."""
    spec = next(spec for spec in eval_config.model_specs if spec.name == model_name)
    load = functools.partial(ServedModel, eval_saved_model_path, spec.signature_name)
    loader = tfma.types.ModelLoader(tags=[tf.saved_model.SERVING], construct_fn=load)
    return tfma.default_eval_shared_model(
        eval_saved_model_path, model_name=model_name, eval_config=eval_config, custom_model_loader=loader, **arguments
    )


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process while the block lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
