"""The hyperparameters of the question tagger: every field is a flag. Importing this does not import TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

from vertex_runtime.arguments import CommonHyperparameters, option


@dataclass(frozen=True)
class Hyperparameters(CommonHyperparameters):
    """What a run learns with; to add one, add a field here and use it in `model.py`."""

    model: str = option("linear", "linear: hashed n-grams; cnn: the published sample's network", choices=("linear", "cnn"))
    batch_size: int = option(60, "examples per step, over all replicas", minimum=1)
    epochs: float = option(4.0, "passes over the training rows, where --num_examples_to_train_on is 0", above=0)
    lr: float = option(0.0, "first learning rate, falls to 0; 0: 0.05 x batch size (linear), 0.001 (cnn)", minimum=0)
    min_n: int = option(2, "linear: shortest character n-gram", minimum=2)
    max_n: int = option(4, "linear: longest character n-gram", minimum=2)
    hash_bits: int = option(20, "linear: n-grams are hashed into 2**hash_bits buckets", minimum=4)
    min_count: int = option(1, "linear: training texts a bucket must be in to get weights", minimum=1)
    smoothing: float = option(1.0, "linear: texts of prior mixed into an n-gram's class shares", above=0)
    max_rows: int = option(2**18, "linear: most buckets that get weights, those that tell most in all first", minimum=1)
    coverage: float = option(0.75, "share of training texts that fit uncut into the features", above=0)
    word_weight: float = option(1.0, "linear: weight of words and word pairs beside characters", minimum=0)
    max_features: int = option(512, "linear: most distinct n-grams kept of one text", minimum=2)
    max_bytes: int = option(4096, "bytes of a text that are read; the rest is ignored", minimum=1)
    naive_bayes: float = option(0.06, "linear: the weights start at this share of naive Bayes's", minimum=0)
    l2: float = option(5e-3, "linear: L2 decay of the rows touched by a batch", minimum=0)
    sharpness: float = option(4.0, "linear: scores are softmax(sharpness x margins)", above=0)
    vocabulary: int = option(20000, "cnn: words are hashed into so many embedding rows", minimum=2)
    sequence_length: int = option(0, "cnn: words kept of one text (25 or more); 0: fitted to the training rows, at most 250", minimum=0)
    dropout: float = option(0.5, "cnn: dropout rate", minimum=0)
