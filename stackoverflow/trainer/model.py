"""The question tagger: the files' columns, what a request holds, and the network. Edit this file.

`--model=linear` (default) is a one-vs-rest linear classifier with squared hinge loss over the hashed character and word
n-grams of `features.py`, weighted by what they tell of the class; training starts from what naive Bayes would answer.
`--model=cnn` is the network of the published Vertex AI sample.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from vertex_runtime.columns import Category, Text
from vertex_runtime.sparse import Rows, RowSparseAdam

from .features import LABEL, Facts, learn, preprocess  # noqa: F401 - parts of what a model module offers
from .hyperparameters import Hyperparameters

NAME = "stackoverflow"
OBJECTIVE, MAXIMIZE = "val_accuracy", True  # what tuning and the best checkpoint go by
COLUMNS = (Text("text", default=""), Category(LABEL))  # an empty question is answered, and is nothing to learn from


def score(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
    """Return the accuracy of served answers."""
    return float(np.mean(np.argmax(outputs["scores"], -1) == labels))


class HashedLinear(keras.layers.Layer):
    """Margins of a linear classifier over sparse features, with L2 decay of the rows in use."""

    def __init__(self, rows: int, prior: np.ndarray, l2: float, **kwargs):
        super().__init__(**kwargs)
        self.l2 = l2
        # The best margins for a text without n-grams; as weights they would need their own, smaller rate.
        self.bias = 2.0 * prior - 1.0
        self.table = self.add_weight(shape=(rows, len(prior)), initializer="zeros", name="table")

    def call(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Return margins [n, classes]."""
        weights = features["weights"]
        # Gather from the variable itself: a read of all its rows would be copied at every update,
        # and the gradient stays a few rows (IndexedSlices), which plain SGD applies as such.
        rows = tf.gather(self.table.value, features["ids"])
        if training and self.l2:
            used = tf.cast(weights > 0, rows.dtype)
            self.add_loss(self.l2 / 2 * tf.reduce_mean(tf.reduce_sum(used * tf.reduce_sum(rows**2, -1), -1)))
        return tf.linalg.matvec(rows, weights, transpose_a=True) + self.bias


def squared_hinge(label: tf.Tensor, margins: tf.Tensor) -> tf.Tensor:
    """One-vs-rest squared hinge loss, summed over the classes."""
    label = tf.reshape(tf.cast(label, tf.int32), [-1])
    sign = 2.0 * tf.one_hot(label, margins.shape[-1], dtype=margins.dtype) - 1.0
    return tf.reduce_sum(tf.square(tf.nn.relu(1.0 - sign * margins)), -1)


def build_model(hp: Hyperparameters, facts: Facts, total_steps: int) -> keras.Model:
    """Return the compiled network; the learning rate falls linearly to 0 over `total_steps` (--plateau: as it decides)."""
    classes, width = len(facts["class_names"]), sum(facts["widths"])
    inputs = {"ids": keras.Input([width], dtype="int32", name="ids")}
    if hp.model == "cnn":
        outputs = _cnn(inputs["ids"], classes, hp)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer, lr = RowSparseAdam, hp.lr or 1e-3
    else:
        inputs["weights"] = keras.Input([width], dtype="float32", name="weights")
        linear = HashedLinear(len(facts["weight"]), facts["prior"], hp.l2, name="linear")
        # An n-gram of one or two texts has little to learn from: where it starts is most of what it will say.
        linear.table.assign(hp.naive_bayes * facts["evidence"])
        outputs = linear(inputs)
        loss, optimizer, lr = squared_hinge, keras.optimizers.SGD, hp.lr or 0.05 * hp.batch_size
    model = keras.Model(inputs, outputs, name=hp.model)
    schedule = lr if hp.plateau else keras.optimizers.schedules.PolynomialDecay(lr, total_steps, end_learning_rate=0.0)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    model.compile(optimizer=optimizer(schedule), loss=loss, weighted_metrics=[accuracy])
    return model


def _cnn(ids: tf.Tensor, classes: int, hp: Hyperparameters) -> tf.Tensor:
    """Return logits of the published sample's convolutional network."""
    x = Rows(hp.vocabulary, 128, name="embedding")(ids)
    x = keras.layers.Dropout(hp.dropout)(x)
    for _ in range(2):
        x = keras.layers.Conv1D(128, 7, strides=3, padding="valid", activation="relu")(x)
    x = keras.layers.GlobalMaxPooling1D()(x)
    x = keras.layers.Dense(128, activation="relu")(x)
    x = keras.layers.Dropout(hp.dropout)(x)
    return keras.layers.Dense(classes)(x)


def outputs(predictions: tf.Tensor, facts: Facts) -> dict[str, tf.Tensor]:
    """Return the best class's name and a score per class, in the order of `class_names`.

    The linear network's scores are a softmax of scaled margins: they rank the classes and sum to 1.
    """
    scores = tf.nn.softmax(facts["sharpness"] * predictions)
    names = tf.constant([str(name) for name in facts["class_names"]])
    return {"label": tf.gather(names, tf.argmax(scores, -1)), "scores": scores}
