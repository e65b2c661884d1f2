"""Images for `preprocess`: decoding in the graph that is exported, so that training and serving decode alike."""

from __future__ import annotations

import tensorflow as tf


def decode(contents: tf.Tensor, height: int, width: int, channels: int = 3) -> tf.Tensor:
    """Decode PNG or JPEG files and bring them to one size.

    Args:
        contents: the files' bytes, string [n].
        height, width: pixels of the result; an image of another size is resized (bilinear, antialiased), not cropped.
        channels: 1 for grey, 3 for colour, 4 with transparency (PNG only).

    Returns:
        uint8 [n, height, width, channels]. Scale it in the model (`keras.layers.Rescaling(1 / 255)`): four bytes a value
        would take four times the memory.
    """

    def one(content: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(content, channels, expand_animations=False)
        size = tf.shape(image)[:2]
        image = tf.cond(
            tf.reduce_all(size == [height, width]),
            lambda: image,
            lambda: tf.cast(tf.round(tf.image.resize(image, [height, width], antialias=True)), tf.uint8),
        )
        return tf.ensure_shape(image, [height, width, channels])

    spec = tf.TensorSpec([height, width, channels], tf.uint8)
    return tf.map_fn(one, contents, fn_output_signature=spec, parallel_iterations=16)
