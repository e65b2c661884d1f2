"""Rules of clusters that need no cluster: roles, dealing out, strategies."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import forked
import numpy as np
import pytest
from conftest import FIRST_TRAINER, ROOT, TRAINERS

from vertex_runtime.environment import Environment
from vertex_runtime.errors import UserError

HOSTS = {"workerpool0": ["a:1"], "workerpool1": ["b:1", "c:1"]}


def environment(cluster: dict, kind: str, index: int = 0, **task: object) -> Environment:
    spec = {"cluster": cluster, "task": {"type": kind, "index": index, **task}, "environment": "cloud"}
    return Environment.from_mapping({"CLUSTER_SPEC": json.dumps(spec)})


def test_roles():
    chief, worker = environment(HOSTS, "workerpool0"), environment(HOSTS, "workerpool1", 1, trial="3")
    assert (chief.role, chief.worker_index, chief.is_chief, chief.worker_count) == ("chief", 0, True, 3)
    assert (worker.role, worker.worker_index, worker.is_chief, worker.trial) == ("worker", 2, False, "3")
    task = {"type": "worker", "index": 1}
    assert json.loads(worker.tf_config()) == {"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "task": task}
    reducers = environment({**HOSTS, "workerpool2": ["r:1", "s:1"]}, "workerpool1")
    assert reducers.reduction_servers == 2 and "ps" not in json.loads(reducers.tf_config())["cluster"]
    evaluator = environment({**HOSTS, "workerpool3": ["e:1"]}, "workerpool3")
    assert evaluator.role == "evaluator" and evaluator.tf_config() is None and not evaluator.is_chief
    alone = environment({"workerpool0": ["a:1"]}, "workerpool0")
    assert alone.tf_config() is None and alone.is_chief and alone.in_job


def test_tf_config_forms():
    def parsed(cluster: dict, kind: str) -> Environment:
        return Environment.from_mapping({"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": 0}})})

    master = parsed({"master": ["a:1"], "worker": ["b:1"]}, "master")
    assert master.is_chief and json.loads(master.tf_config())["cluster"] == {"chief": ["a:1"], "worker": ["b:1"]}
    first = parsed({"worker": ["a:1", "b:1"]}, "worker")
    assert first.is_chief and first.worker_count == 2
    evaluator = parsed({"chief": ["a:1"]}, "evaluator")
    assert evaluator.role == "evaluator" and evaluator.tf_config() is None
    assert not Environment.from_mapping({}).in_job


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_every_place_of_a_batch_belongs_to_one_worker(workers):
    from vertex_runtime.rows import Share

    order = np.arange(5 * 24 * workers).reshape(5, -1)
    shares = [Share(worker, workers).columns(order) for worker in range(workers)]
    assert np.array_equal(np.concatenate(shares, axis=1), order) and len({share.shape for share in shares}) == 1


IMPOSSIBLE = {"multi_worker": "needs a cluster", "mirrored": "two or more devices", "tpu": "no TPU can be used"}


@pytest.mark.parametrize(("wish", "problem"), IMPOSSIBLE.items())
def test_impossible_wishes(wish, problem):
    from vertex_runtime.strategy import choose_strategy

    with pytest.raises(UserError, match=problem):
        choose_strategy(Environment(), 0, wish)


def test_tpu_resolver_calls_in_order(monkeypatch):
    import tensorflow as tf

    from vertex_runtime import strategy

    calls: list[tuple] = []
    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", lambda tpu: calls.append(("resolver", tpu)) or "resolver")
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", lambda r: calls.append(("connect", r)))
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", lambda r: calls.append(("initialise", r)))
    monkeypatch.setattr(tf.distribute, "TPUStrategy", lambda r: calls.append(("strategy", r)) or "tpu")
    for env, wish in ((Environment(), "tpu"), (Environment.from_mapping({"TPU_CONFIG": "{}"}), "auto")):
        calls.clear()
        assert strategy._build(env, wish)[0] == "tpu"
        assert calls == [("resolver", "local"), ("connect", "resolver"), ("initialise", "resolver"), ("strategy", "resolver")]


def test_importing_runs_no_tensorflow_operation(tmp_path):
    """Collective operations must be set up before the first operation: a context that exists is too late."""
    code = (
        "from vertex_runtime.strategy import import_tensorflow; import_tensorflow()\n"
        "import vertex_runtime.run, vertex_runtime.evaluator, vertex_runtime.cluster\n"
        f"import {', '.join(f'{trainer}.trainer.{name}' for trainer in TRAINERS for name in ('task', 'model'))}\n"
        "from tensorflow.python.eager import context\n"
        "assert context.context()._context_handle is None, 'an operation has run'\n"
        # What Keras imports for few is left until somebody wants it, and is there then.
        "import sys, keras\n"
        "assert not {'IPython', 'sklearn'} & sys.modules.keys()\n"
        "assert keras.wrappers.SKLearnClassifier.__module__ == 'keras.src.wrappers.sklearn_wrapper' and 'sklearn' in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_mirrored_on_four_virtual_devices(trainer, tmp_path):
    """The same code on MirroredStrategy: four virtual CPU devices against one."""
    code = (
        "import sys, tensorflow as tf\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))\n"
        f"from {trainer}.trainer import task\n"
        "print('METRICS', task.main(sys.argv[2:]))"
    )
    found = []
    (tmp_path / "devices.py").write_text(code)
    for devices, wish in ((1, "auto"), (4, "mirrored")):
        flags = [f"--output_dir={tmp_path / str(devices)}", "--batch_size=80", "--epochs=2", "--num_evals=1", f"--strategy={wish}"]
        done = forked.run("devices", [str(devices), *flags], {**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(eval(done.stdout.split("METRICS ")[1].splitlines()[0]))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-4), name
