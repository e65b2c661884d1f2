"""How long training stands still for a checkpoint: `Checkpointer.save` in the background against a blocking save.

One dense layer, by default of 5,000 x 5,000 float32 weights: 100 MB, and 300 MB with Adam's moments. A stall is the
save's call plus how much longer the next step took than a step usually does. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable

import keras
import tensorflow as tf

from vertex_runtime.checkpoint import Checkpointer, named_variables, snapshot
from vertex_runtime.reporting import Events


def build(width: int) -> tuple[keras.Model, Callable[[], None]]:
    """Return a model and a function that trains it by one step."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(width, use_bias=False)])
    model.compile("adam", loss="mse")
    model.optimizer.build(model.trainable_variables)
    rows = tf.random.normal([8, width])
    model._symbolic_build(data_batch=(rows, rows))
    train = tf.function(lambda: model.train_step((rows, rows))["loss"])
    return model, lambda: float(train())


def clock(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(step: Callable[[], None], save: Callable[[], None], join: Callable[[], None], usual: float) -> dict[str, float]:
    """Save once while training; return stall (call and next step), call, slowed (until durable) and durable seconds."""
    start = time.perf_counter()
    call = clock(save)
    following = clock(step)
    join()
    durable = time.perf_counter() - start
    return {"stall": call + max(0.0, following - usual), "call": call, "next_step": following, "durable": durable}


def main() -> None:
    """Measure both ways alternately."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write; default: the system's temporary directory")
    args = parser.parse_args()
    model, step = build(args.width)
    variables = named_variables(model=model.variables, optimizer=model.optimizer.variables)
    results: dict[str, list[dict[str, float]]] = {"background": [], "blocking": [], "keras_blocking": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        checkpointer = Checkpointer(folder, folder, Events({}))
        theirs = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        number = iter(range(1, 10_000))

        def save(wait: bool) -> None:
            checkpointer.save(snapshot(variables), {"step": next(number)}, wait=wait)

        ways = {
            "background": lambda: save(False),
            "blocking": lambda: save(True),
            "keras_blocking": lambda: theirs.write(f"{folder}/theirs"),
        }
        for repeat in range(args.repeats + 1):
            for name, way in ways.items():
                usual = statistics.median(clock(step) for _ in range(8))
                found = measure(step, way, checkpointer.join, usual) | {"usual_step": usual}
                if repeat:  # the first save of a process is slower
                    results[name].append(found)
        state = sum(tf.size(v.value).numpy() * 4 for v in variables.values())
    print("\n" + json.dumps({"state_bytes": int(state), **results}))


if __name__ == "__main__":
    main()
