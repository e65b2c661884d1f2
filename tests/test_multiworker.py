"""Workers that train together: real processes under `vertex_local`, compared with one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import drills

pytestmark = pytest.mark.multiworker
ROOT = Path(__file__).resolve().parents[1]
DATA = {"taxifare": ("taxi-train.csv", "taxi-valid.csv"), "stackoverflow": ("train.csv", "valid.csv")}


def data_flags(trainer: str) -> list[str]:
    train, valid = (ROOT / trainer / "tests" / "data" / name for name in DATA[trainer])
    return [f"--train_data_path={train}", f"--eval_data_path={valid}"]


def job(
    folder: Path, trainer: str, replicas: int, *flags: str, own: tuple[str, ...] = (), **pools: bool
) -> subprocess.CompletedProcess[str]:
    """Run a job of so many replicas on the bundled data, with `own` flags of vertex_local, into folder/buckets/buck/out."""
    pool = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1}
    container = {"imageUri": "host/any:1", "command": ["python", "-m", f"{trainer}.trainer.task"], "args": [*data_flags(trainer), *flags]}
    specs = [{**pool, "containerSpec": container}]
    specs += [{**pool, "replicaCount": replicas - 1, "containerSpec": container}] if replicas > 1 else [{}] * bool(pools)
    specs += [{}] * bool(pools) + [{**pool, "containerSpec": container}] if pools.get("evaluator") else []
    text = {"workerPoolSpecs": specs, "baseOutputDirectory": {"outputUriPrefix": "gs://buck/out"}}
    text["scheduling"] = {"restartJobOnWorkerRestart": True}
    (folder / "job.json").write_text(json.dumps(text))
    command = [sys.executable, "-m", "vertex_local", "run", folder / "job.json"]
    command += ["--state_dir", folder / "state", "--bucket_root", folder / "buckets", *own]
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=400)


def metrics(folder: Path) -> dict:
    return json.loads((folder / "checkpoints" / "metrics.json").read_text())


@pytest.mark.parametrize("trainer", DATA)
def test_the_same_weights_on_1_2_and_3_processes(trainer, tmp_path):
    """100 steps at default flags: what differs is the order in which sums are rounded."""
    batch = {"taxifare": 240, "stackoverflow": 60}[trainer]
    found = []
    for replicas in (1, 2, 3):
        folder = tmp_path / str(replicas)
        folder.mkdir()
        done = job(folder, trainer, replicas, f"--num_examples_to_train_on={100 * batch}", "--num_evals=2", f"--ledger={folder / 'ledger'}")
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        out = folder / "buckets/buck/out"
        found.append((drills.weights(out), metrics(out), drills.fed_rows(folder / "ledger")))
    (one, one_metrics, one_rows), *others = found
    assert len(one_rows) == 100
    for replicas, (several, several_metrics, rows) in enumerate(others, 2):
        apart = {name: np.abs(several[name].astype(float) - one[name]) for name in one}
        # One row that lies within rounding of a ReLU's kink goes either way, by the processor, and takes that unit's weights along.
        total = sum(values.size for values in apart.values())
        assert sum((values > 1e-5).sum() for values in apart.values()) <= 0.01 * total, replicas
        for name, values in apart.items():
            assert values.max(initial=0) < 1e-2 and np.median(values) < 1e-6, f"{name} on {replicas} processes"
        for name, value in one_metrics.items():
            if isinstance(value, float):
                assert several_metrics[name] == pytest.approx(value, rel=1e-5), name
        replica_names = ["chief-0", *(f"worker-{i}" for i in range(replicas - 1))]
        for step in range(1, 101):
            assert sum((rows[name, step] for name in replica_names), []) == one_rows["chief-0", step]


def test_the_lab_network_and_callbacks_on_two_workers(tmp_path):
    """A table whose gradient stays a few rows, and a learning rate that a callback changes."""
    flags = ["--features=lab", "--nbuckets=10", "--lr=0.001", "--plateau=1", "--early_stopping=9", "--epochs=6", "--num_evals=6"]
    found = []
    for replicas in (1, 2):
        folder = tmp_path / str(replicas)
        folder.mkdir()
        done = job(folder, "taxifare", replicas, *flags)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        found.append(drills.weights(folder / "buckets/buck/out"))
    for name in found[0]:
        np.testing.assert_allclose(found[1][name], found[0][name], atol=1e-5, rtol=0, err_msg=name)


def test_only_the_chief_writes_and_the_model_loads_alone(tmp_path):
    import tensorflow as tf

    done = job(tmp_path, "taxifare", 3, "--epochs=2", "--num_evals=2", "--jit_compile=yes")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "--jit_compile=yes: on 3 replicas the steps run without XLA" in done.stdout
    result = json.loads(next((tmp_path / "state" / "jobs").glob("*/result.json")).read_text())
    assert result["state"] == "JOB_STATE_SUCCEEDED" and result["restarts"] == 0
    said = [line for line in done.stdout.splitlines() if "workerpool1" in line]
    assert said and not any('"model: ' in line for line in said)
    loaded = tf.saved_model.load(str(tmp_path / "buckets/buck/out/model"))
    graphs = [loaded.signatures["serving_default"].graph]
    graphs += [function.graph for function in graphs[0]._functions.values() if hasattr(function, "graph")]
    assert not [op.type for graph in graphs for op in graph.get_operations() if "Collective" in op.type]


def test_workers_write_nothing(tmp_path, monkeypatch):
    """A worker may not even touch the directories: they are read-only to it here."""
    from vertex_runtime.checkpoint import Checkpointer
    from vertex_runtime.reporting import Events, Scalars

    checkpointer = Checkpointer(str(tmp_path / "c"), str(tmp_path), Events({}), writes=False)
    checkpointer.save({}, {"step": 1}, wait=True)
    checkpointer.clean()
    Scalars(None).write(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_evaluator_follows_the_checkpoints(tmp_path):
    import tensorflow as tf

    done = job(tmp_path, "taxifare", 1, "--epochs=40", "--num_evals=8", evaluator=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "evaluator: following" in done.stdout and "evaluator: step " in done.stdout
    (events,) = (tmp_path / "buckets/buck/out/logs/eval/validation").glob("events*")
    values = [v.tag for event in tf.compat.v1.train.summary_iterator(str(events)) for v in event.summary.value]
    assert "rmse" in values


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def replica(index: int, ports: list[int], output: Path, *flags: str, **variables: str) -> subprocess.Popen[str]:
    """Start one replica by hand under a TF_CONFIG: 0 is the chief."""
    hosts = [f"localhost:{port}" for port in ports]
    task = {"type": "worker", "index": index - 1} if index else {"type": "chief", "index": 0}
    config = {"cluster": {"chief": hosts[:1], "worker": hosts[1:]}, "task": task}
    command = [sys.executable, "-m", "taxifare.trainer.task", f"--output_dir={output}", *data_flags("taxifare"), *flags]
    env = {**os.environ, "TF_CONFIG": json.dumps(config), **variables}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_peer_that_does_not_appear_is_named(tmp_path):
    ports = free_ports(2)
    alone = replica(0, ports, tmp_path / "out", "--startup_timeout=8")
    _, err = alone.communicate(timeout=90)
    assert alone.returncode == -signal.SIGABRT
    assert f"worker-0 (localhost:{ports[1]}) did not appear within --startup_timeout 8 s" in err


@pytest.mark.parametrize("lost", [0, 1])
def test_a_peer_that_disappears_is_named_within_a_minute(lost, tmp_path):
    ports = free_ports(2)
    flags = ["--epochs=100000", "--num_evals=1"]
    both = [replica(i, ports, tmp_path / "out", *flags, TRAINER_EVENTS=str(tmp_path / f"events-{i}")) for i in range(2)]
    try:
        for _ in range(900):
            if all("step" in (tmp_path / f"events-{i}").read_text() for i in range(2) if (tmp_path / f"events-{i}").exists()):
                if (tmp_path / "events-0").exists() and (tmp_path / "events-1").exists():
                    break
            time.sleep(0.1)
        both[lost].kill()
        _, err = both[1 - lost].communicate(timeout=120)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert both[1 - lost].returncode == -signal.SIGABRT, err[-2000:]
    assert f"{['chief-0', 'worker-0'][lost]} (localhost:{ports[lost]}) has disappeared" in err


def test_batch_must_divide_by_the_replicas(tmp_path):
    ports = free_ports(2)
    both = [replica(i, ports, tmp_path / "out", "--batch_size=101") for i in range(2)]
    outs = [process.communicate(timeout=120) for process in both]
    for process, (_, err) in zip(both, outs):
        assert process.returncode == 2, err
        assert "--batch_size 101 must divide by the 2 replicas; the nearest that do are 100 and 102" in err


def test_a_job_with_its_rows_on_disk_survives_a_kill(tmp_path):
    """Files of unequal length, two workers: the batches are those of one process in memory, after a kill, too."""
    lines = (ROOT / "taxifare/tests/data/taxi-train.csv").read_text().splitlines(keepends=True)
    for i, (start, end) in enumerate([(0, 700), (700, 1000), (1000, 1600)]):
        (tmp_path / f"part-{i}.csv").write_text("".join(lines[start:end]))
    flags = ["--batch_size=100", "--epochs=4", "--num_evals=4", "--checkpoint_steps=5", f"--train_data_path={tmp_path}/part-*.csv"]
    cache = ["--in_memory=no", f"--cache_dir={tmp_path / 'cache'}"]
    found = []
    kill = ("--kill", "workerpool1-0@step=37,signal=KILL")
    for name, workers, more, own in (("alone", 1, [], ()), ("whole", 2, ["--in_memory=no"], ()), ("killed", 2, cache, kill)):
        folder = tmp_path / name
        folder.mkdir()
        done = job(folder, "taxifare", workers, *flags, *more, f"--ledger={folder / 'ledger'}", own=own)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        result = json.loads(next((folder / "state" / "jobs").glob("*/result.json")).read_text())
        assert bool(result["restarts"]) == bool(own)
        fed: dict[int, list[str]] = {}
        for (_, step), part in sorted(drills.fed_rows(folder / "ledger").items()):
            fed.setdefault(step, []).extend(part)
        found.append((drills.weights(folder / "buckets/buck/out"), fed))
    (_, rows), (whole, again), (killed, once_more) = found
    assert rows == again == once_more
    assert drills.largest_difference(killed, whole) == 0.0
    assert len(list((tmp_path / "cache").glob("taxifare-training-*.arrow"))) == 1  # one worker prepared them for both


@pytest.mark.slow
def test_drills_end_as_an_unbroken_run(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["drill", "--drills=4", "--replicas=3", "--seed=3"])
    code = drills.main()
    assert code == 0, capsys.readouterr().out
