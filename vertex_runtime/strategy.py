"""Which `tf.distribute` strategy a replica trains under, and why."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

from .environment import Environment
from .errors import UserError
from .reporting import log

OLDEST = (2, 17)
NOISE = re.compile(r"WARNING: All log messages before absl|[IWE]\d{4} .*(port|cuda\w*|cpu_feature_guard|computation_placer|util)\.cc:|\d{4}-.*: [IWE] |To enable the following")


def import_tensorflow() -> None:
    """Import TensorFlow, quietly, or say in one line why that cannot be.

    Raises:
        UserError: TensorFlow is missing or older than 2.17.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    remedy = "Install it with: pip install 'tensorflow>=2.17'"
    try:
        with _without_noise():
            import tensorflow as tf

            version = str(getattr(tf, "__version__", "0"))
            if hasattr(tf, "config"):
                tf.config.list_physical_devices()
    except ImportError as error:
        raise UserError(f"TensorFlow cannot be imported ({error}). {remedy}.") from None
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        raise UserError(f"TensorFlow {version} is too old; at least {'.'.join(map(str, OLDEST))} is needed. {remedy}.")


def choose_strategy(env: Environment, seed: int):
    """Return the strategy to train under; must run before any other TensorFlow operation of the process.

    Results repeat bit for bit afterwards: seeds are set and TensorFlow's operations are made deterministic.
    """
    import keras
    import tensorflow as tf

    config = env.tf_config()
    if config is None:
        os.environ.pop("TF_CONFIG", None)
    else:
        os.environ["TF_CONFIG"] = config
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    accelerators = tf.config.list_physical_devices("GPU")
    if len(accelerators) > 1:
        strategy, reason = tf.distribute.MirroredStrategy(), f"{len(accelerators)} GPUs"
    else:
        strategy, reason = tf.distribute.get_strategy(), f"one device ({'GPU' if accelerators else 'CPU'})"
    log("INFO", f"strategy: {type(strategy).__name__}, for {reason}")
    return strategy


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Hold stderr back and leave out what TensorFlow's C++ side says of CPU features and absent GPUs at each start."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            for line in held.read().decode("utf-8", "replace").splitlines():
                if not NOISE.match(line):
                    print(line, file=sys.stderr)
