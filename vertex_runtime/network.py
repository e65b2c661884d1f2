"""What `build_model` returned, looked at before the first step: what cannot be trained here, and what trains otherwise than by `fit`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from .errors import UserError
from .reporting import log
from .steps import optimizers

# What optimizers cannot do on several replicas, and what there is instead.
IN_CONDITIONS = {
    "gradient_accumulation_steps": "raise --batch_size by that factor",
    "ema_overwrite_frequency": "the averages take the weights' place at the end of the training anyway",
}


def check_network(network: Any, strategy: tf.distribute.Strategy) -> None:
    """See that this is a compiled model that the replicas can train.

    Raises:
        UserError: it is not; one line with the remedy.
    """
    if not isinstance(network, keras.Model):
        raise UserError(f"build_model must return a compiled keras.Model; got {type(network).__name__}.")
    if not network.compiled:
        raise UserError("build_model returns a model that is not compiled. Call its compile(optimizer, loss, metrics=…) before.")
    _say_what_is_left_out(network)
    _see_that_replicas_can_train_it(network, strategy)


def _say_what_is_left_out(network: keras.Model) -> None:
    """Name the arguments of `compile` that say how `fit` runs a step: here the loop does, by its flags."""
    if network.run_eagerly:
        log("WARNING", "compile(run_eagerly=True) is not looked at: steps are compiled. tf.print shows values in a step.")
    if network.steps_per_execution not in (None, 1):
        log("WARNING", f"compile(steps_per_execution={network.steps_per_execution}) is not looked at: --steps_per_call says it.")


def _see_that_replicas_can_train_it(network: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Say in one line that batch normalisation goes by each replica's own part of the batch, where it does.

    Raises:
        UserError: an optimizer does what Keras cannot do on several replicas.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    for optimizer in optimizers(network):
        for name, instead in IN_CONDITIONS.items():
            if getattr(getattr(optimizer, "inner_optimizer", optimizer), name, None):  # loss scaling wraps the one that updates
                raise UserError(
                    f"{name} does not work on {strategy.num_replicas_in_sync} replicas: Keras does it inside a condition, "
                    f"where replicas cannot meet. Leave it out; {instead}."
                )
    kinds = keras.layers.BatchNormalization
    found = [layer.name for layer in network._flatten_layers() if isinstance(layer, kinds) and not layer.synchronized]
    if found:
        log(
            "WARNING",
            f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}: batch normalisation goes by each replica's own part "
            "of the batch, so the weights depend on the number of replicas. BatchNormalization(synchronized=True) goes by the whole batch.",
        )
