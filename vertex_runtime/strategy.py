"""Which `tf.distribute` strategy a replica trains under, and why."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from importlib.machinery import PathFinder
from typing import Any

from .environment import Environment
from .errors import UserError, first_line
from .reporting import log

OLDEST = (2, 17)
# Modules that Keras imports wherever the packages they need are installed, for what few programs do with them.
SELDOM = {"IPython": "IPython", "keras.wrappers": "sklearn"}
NOISE = re.compile(
    r"WARNING: All log messages before absl|[IWE]\d{4} .*(port|cuda\w*|cpu_feature_guard|computation_placer|util)\.cc:"
    r"|\d{4}-.*: [IWE] |To enable the following"
)


def import_tensorflow() -> None:
    """Import TensorFlow, quietly, or say in one line why that cannot be.

    Raises:
        UserError: TensorFlow is missing or older than 2.17.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    gc.disable()  # what is imported stays: looking through it for garbage takes a third of the import's time
    remedy = "Install it with: pip install 'tensorflow>=2.17'"
    try:
        with _without_noise(), _postponed():
            import tensorflow as tf

            version = str(getattr(tf, "__version__", "0"))
            if hasattr(tf, "config"):
                tf.config.list_physical_devices()
    except ImportError as error:
        if "failed to map segment" in str(error):  # what the loader says where memory does not suffice for a library
            raise MemoryError(f"for TensorFlow's libraries: {error}") from None
        raise UserError(f"TensorFlow cannot be imported ({error}). {remedy}.") from None
    gc.freeze()
    gc.enable()
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        raise UserError(f"TensorFlow {version} is too old; at least {'.'.join(map(str, OLDEST))} is needed. {remedy}.")


def choose_strategy(env: Environment, seed: int, wish: str = "auto"):
    """Return the strategy to train under; must run before any other TensorFlow operation of the process.

    Results repeat bit for bit afterwards: seeds are set and TensorFlow's operations are made deterministic.

    Raises:
        UserError: the wished-for strategy is impossible here.
    """
    import keras
    import tensorflow as tf

    config = env.tf_config()
    if config is None or wish not in ("auto", "multi_worker"):
        os.environ.pop("TF_CONFIG", None)
    else:
        os.environ["TF_CONFIG"] = config
    tf.config.experimental.enable_op_determinism()
    strategy, reason = _build(env, wish)
    keras.utils.set_random_seed(seed)
    name = type(strategy).__name__.replace("_DefaultDistributionStrategy", "none")
    log("INFO", f"strategy: {name}, for {reason}")
    return strategy


def _build(env: Environment, wish: str):
    """Return (strategy, why it was chosen)."""
    import tensorflow as tf

    if wish == "tpu" or (wish == "auto" and env.tpu):
        return _tpu_strategy(), "--strategy=tpu" if wish == "tpu" else "a TPU job"
    workers = env.worker_count if env.role in ("chief", "worker") else 1  # an evaluator is in nobody's cluster
    if workers == 1 < env.worker_count and wish == "multi_worker":
        wish = "auto"  # one list of arguments serves all pools
    if workers > 1 and wish in ("auto", "multi_worker"):
        # NCCL is for GPUs on every worker (a Reduction Server speaks nothing else); on CPUs a ring is all there is.
        gpus = tf.config.list_physical_devices("GPU")
        kinds = tf.distribute.experimental.CommunicationImplementation
        options = tf.distribute.experimental.CommunicationOptions(implementation=kinds.NCCL if gpus else kinds.RING)
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        reducers = f" and {env.reduction_servers} reduction servers" if env.reduction_servers else ""
        return strategy, f"{workers} workers{reducers}"
    if workers > 1:
        raise UserError(f"--strategy={wish} cannot serve a cluster of {env.worker_count} workers. Use auto or multi_worker.")
    if wish == "multi_worker":
        raise UserError("--strategy=multi_worker needs a cluster of two or more workers in TF_CONFIG or CLUSTER_SPEC. Use auto.")
    gpus, cpus = tf.config.list_logical_devices("GPU"), tf.config.list_logical_devices("CPU")
    devices = [device.name for device in (gpus or cpus)]
    if wish == "mirrored" and len(devices) < 2:
        raise UserError(f"--strategy=mirrored needs two or more devices of a kind; here is {', '.join(devices)}. Use auto.")
    if wish == "mirrored" or (wish == "auto" and len(gpus) > 1):
        return tf.distribute.MirroredStrategy(devices), f"{len(devices)} {'GPUs' if gpus else 'CPU devices'}"
    return tf.distribute.get_strategy(), f"one device ({'GPU' if gpus else 'CPU'})"


def _tpu_strategy():
    """Connect to the TPU of this very machine; "" or None would make TensorFlow look for one elsewhere."""
    import tensorflow as tf

    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        text = first_line(error)
        raise UserError(f"--strategy=tpu: no TPU can be used here ({text}). Run on a TPU machine, or use --strategy=auto.") from None


class _Later(types.ModuleType):
    """Stands for a module, which is imported when somebody wants something of it."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def _postponed() -> Iterator[None]:
    """Let others stand for the modules of SELDOM meanwhile: importing those takes a quarter of TensorFlow's own import."""
    others = {name: _Later(name) for name, needed in SELDOM.items() if name not in sys.modules and PathFinder.find_spec(needed)}
    sys.modules.update(others)
    try:
        yield
    finally:  # whoever imports one of them from now on gets it at once
        for name, other in others.items():
            if sys.modules.get(name) is other:
                del sys.modules[name]


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
