"""The hyperparameters of the taxi fare trainer: every field is a flag. Importing this does not import TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

from vertex_runtime.arguments import CommonHyperparameters, option


@dataclass(frozen=True)
class Hyperparameters(CommonHyperparameters):
    """What a run learns with; to add one, add a field here and use it in `model.py`."""

    batch_size: int = option(240, "examples per step, over all replicas", minimum=1)
    epochs: float = option(30.0, "passes over the training rows, where --num_examples_to_train_on is 0", above=0)
    lr: float = option(2e-2, "peak learning rate", above=0)
    nbuckets: int = option(10, "buckets per latitude and longitude for the feature crosses", minimum=2)
    nnsize: tuple[int, ...] = option((64,), 'sizes of the hidden layers, such as "32 8"')
    features: str = option("city", "city: engineered features; lab: the network of the published course", choices=("city", "lab"))
    members: int = option(4, "city: networks that train side by side and are averaged", minimum=1)
    loss_delta: float = option(5.0, "city: dollars of error beyond which the loss is linear", above=0)
    weight_decay: float = option(0.2, "city: AdamW's decay, times the learning rate", minimum=0)
    warmup_fraction: float = option(0.15, "city: share of the steps that raise the learning rate", minimum=0)
