"""How fast image rows are prepared against decoding them alone with tf.data, in the same run: `python benchmarks/images.py`.

Both read the same JPEG files from a folder per label and bring them to one size; the ratio of examples a second is printed
for each of some alternating repeats, with its range.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from processes import Spread

from vertex_runtime.arguments import CommonHyperparameters
from vertex_runtime.strategy import import_tensorflow


def write_images(folder: Path, count: int, side: int) -> None:
    """Write random JPEG files of smooth shapes, half of them for each of two labels."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("even", "odd")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        small = random.integers(0, 255, (8, 8, 3)).astype(np.float32)
        pixels = tf.cast(tf.image.resize(small, [side + i % 5, side]), tf.uint8)
        path.write_bytes(tf.io.encode_jpeg(pixels).numpy())


def prepared(folder: Path, side: int) -> float:
    """Return the examples a second that a run's training rows come at, read, decoded and shuffled."""
    from types import ModuleType, SimpleNamespace

    from vertex_runtime import images
    from vertex_runtime.columns import Category, Image
    from vertex_runtime.contract import load
    from vertex_runtime.data import BadRows
    from vertex_runtime.rows import IndexedRows, Preparer, Share
    from vertex_runtime.sources import FolderSource

    image, trainer = Image("image_bytes"), ModuleType("benchmarks.images")
    vars(trainer).update(
        __file__=__file__, NAME="images", OBJECTIVE="val_loss", LABEL="label", COLUMNS=(image, Category("label")),
        preprocess=lambda raw, hp, facts: images.decode(raw["image_bytes"], side, side), build_model=lambda hp, facts, total_steps: None,
    )  # fmt: skip
    prepare = Preparer(load(trainer, CommonHyperparameters), SimpleNamespace(), {"class_names": ["even", "odd"]})
    source = FolderSource([str(folder)], image, "label", BadRows())
    feed = IndexedRows(source, np.arange(source.count), prepare, 4.0 * side * side * 3).feed(64, 0, 0, Share())
    start, seen = time.perf_counter(), 0
    while seen < source.count - source.count % 64:
        seen += next(feed)[1].size
    return seen / (time.perf_counter() - start)


def alone(folder: Path, side: int) -> float:
    """Return the examples a second that tf.data reads and decodes at, with as many parallel calls as it likes."""
    import tensorflow as tf

    def decode(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(tf.io.read_file(path), 3)
        return tf.cast(tf.round(tf.image.resize(image, [side, side], antialias=True)), tf.uint8)

    files = tf.data.Dataset.list_files(f"{folder}/*/*.jpg", shuffle=True, seed=0)
    rows = files.map(decode, tf.data.AUTOTUNE).batch(64).prefetch(tf.data.AUTOTUNE)
    start, seen = time.perf_counter(), 0
    for batch in rows:
        seen += int(batch.shape[0])
    return seen / (time.perf_counter() - start)


def main() -> None:
    """Measure in turn and print the medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="images")
    parser.add_argument("--side", type=int, default=160, help="pixels each way")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), args.count, args.side)
        prepared(Path(folder), args.side), alone(Path(folder), args.side)  # warm
        rates = [(prepared(Path(folder), args.side), alone(Path(folder), args.side)) for _ in range(args.repeats)]
    ours, theirs = map(Spread, zip(*rates))
    ratio = Spread([mine / other for mine, other in rates])
    print(f"{args.count} JPEG files of {args.side} x {args.side}, {os.cpu_count()} cores, {args.repeats} alternating repeats")
    print(f"tf.data, decoding alone: {theirs.median:,.0f} examples/s; training rows: {ours.median:,.0f} examples/s")
    print(f"ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
