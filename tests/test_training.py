"""What a run does beside learning: evaluation, calls of k steps, XLA, callbacks, reports, directories, the gate."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import FIRST_TRAINER, ROOT

from vertex_runtime.errors import UserError

TRAINERS = ("taxifare", "stackoverflow")
SAMPLES = {"taxifare": ("taxi-train.csv", "taxi-valid.csv"), "stackoverflow": ("train.csv", "valid.csv")}


def train(trainer: str, *flags: str) -> dict[str, float]:
    return importlib.import_module(f"{trainer}.trainer.task").main([str(flag) for flag in flags])


def ledger(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prepared(trainer: str, jit: bool = False, batch: int = 64, **values: float):
    """Return (steps, rows, facts, contract) of a trainer on its sample."""
    import tensorflow as tf

    from vertex_runtime import contract, data, inputs
    from vertex_runtime.rows import MemoryRows, Preparer
    from vertex_runtime.steps import Plan, Steps

    kind = importlib.import_module(f"{trainer}.trainer.hyperparameters").Hyperparameters
    model, hp = contract.load_module(f"{trainer}.trainer.model", kind), kind(batch_size=batch, **values)
    read = lambda: model.read(f"{trainer}/tests/data/{SAMPLES[trainer][0]}", data.BadRows())  # noqa: E731
    facts = inputs.learn(model, hp, read)
    rows = MemoryRows(Preparer(model, hp, facts).ahead(read()), 1.0)
    strategy = tf.distribute.get_strategy()
    network = model.build_model(hp, facts, 100)
    return Steps(network, strategy, Plan(100, batch, 1, 100, jit_compile=jit), rows.tensors, False), rows, facts, model


@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_step_has_no_string_and_no_dynamic_shape_and_compiles(trainer):
    import tensorflow as tf

    steps, rows, _, _ = prepared(trainer, jit=True)
    features, labels = rows.tensors
    block = tf.nest.map_structure(lambda t: tf.TensorSpec([steps.plan.call_steps, 64, *t.shape[1:]], t.dtype), (features, labels))
    graph = steps._loop.get_concrete_function(block, tf.TensorSpec([], tf.int32), False).graph
    bodies = [graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))]
    operations = [op for body in bodies for op in body.get_operations()]
    assert len(operations) > 100
    for op in operations:
        assert all(t.dtype != tf.string for t in [*op.inputs, *op.outputs]), op.name
    order = tf.constant(np.arange(steps.plan.call_steps * 64).reshape(-1, 64) % rows.count, tf.int32)
    bad, loss, _ = steps.train(rows.tensors, order, tf.constant(5))
    assert int(bad) == -1 and math.isfinite(float(loss))


@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_evaluation_compiles(trainer):
    """As a TPU would have it: XLA takes nothing whose shape is not known."""
    import tensorflow as tf

    steps, rows, _, _ = prepared(trainer)
    expected = steps.evaluate(rows)
    whole = rows.count // steps.evaluation_batch
    compiled = tf.function(steps._evaluate_batches, jit_compile=True, autograph=False)
    compiled(rows.tensors, tf.constant(0), tf.constant(whole))
    rest = tf.function(steps._evaluate_rest, jit_compile=True, autograph=False)
    rest(rows.tensors, tf.constant(whole * steps.evaluation_batch), rows.count - whole * steps.evaluation_batch)
    metric = "rmse" if trainer == "taxifare" else "accuracy"
    assert steps.metrics()[metric] == pytest.approx(expected[metric], rel=1e-5)


@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_evaluation_counts_every_row_once(trainer):
    """400 and 1,600 rows do not divide by the evaluation batch of 256."""
    steps, rows, facts, model = prepared(trainer)
    measured = steps.evaluate(rows)
    predictions = steps.model(rows.tensors[0], training=False)
    outputs = {name: value.numpy() for name, value in model.outputs(predictions, facts).items()}
    metric = model.objective.removeprefix("val_")
    if trainer == "taxifare":
        outputs = {"fare_amount": predictions.numpy().mean(-1)}
    assert measured[metric] == pytest.approx(model.score(outputs, rows.tensors[1].numpy()), rel=1e-5)
    losses = steps.model.loss(rows.tensors[1], predictions)
    assert measured["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-4)


@pytest.mark.slow
def test_the_tagger_starts_from_naive_bayes():
    """Before the first step it already answers well; with --naive_bayes=0 it knows nothing, and one class alone is no trouble."""
    from stackoverflow.trainer.features import _choose_ngrams
    from stackoverflow.trainer.hyperparameters import Hyperparameters

    accuracy = {}
    for share in (0.0, 0.06):
        steps, rows, _, _ = prepared("stackoverflow", naive_bayes=share)
        accuracy[share] = steps.evaluate(rows)["accuracy"]
    assert accuracy[0.0] < 0.4 < 0.8 < accuracy[0.06]
    bucket, label = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1])  # of each n-gram of five texts
    index, weight, evidence = _choose_ngrams(bucket, label, np.array([0.6, 0.4]), Hyperparameters(hash_bits=4, min_count=2))
    assert index.tolist() == [0, 1, *[-1] * 14] and weight[0] > weight[1] > 0, "bucket 2 is in one text only"
    share = np.array([2.6, 0.4]) / 3  # two texts of class 0 and one of prior
    np.testing.assert_allclose(evidence[0], np.log(share / (1 - share)) - np.log([0.6 / 0.4, 0.4 / 0.6]), rtol=1e-6)
    bucket, label = np.array([0] * 2 + [1] * 6), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    index, _, _ = _choose_ngrams(bucket, label, np.array([0.6, 0.4]), Hyperparameters(hash_bits=1, max_rows=1))
    assert index.tolist() == [-1, 0], "bucket 0 says more of each text, bucket 1 more in all"
    _, _, alone = _choose_ngrams(bucket, np.zeros(8, int), np.ones(1), Hyperparameters(hash_bits=4))
    assert np.all(alone == 0)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_learns(trainer, trained):
    metrics = json.loads((trained(trainer) / "metrics.json").read_text())
    assert metrics["val_rmse"] < 2.7 if trainer == "taxifare" else metrics["val_accuracy"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, exact", [(["--steps_per_call=7"], True), (["--jit_compile"], False)], ids=["calls", "xla"]
)
def test_steps_per_call_and_xla_do_not_change_the_rows(flags, exact, tmp_path):
    common = ["--features=lab", "--batch_size=32", "--epochs=2", "--num_evals=3", "--seed=5"]
    results = []
    for i, words in enumerate((["--steps_per_call=1"], flags)):
        results.append(train("taxifare", f"--output_dir={tmp_path / str(i)}", f"--ledger={tmp_path / f'{i}.jsonl'}", *common, *words))
    assert results[1]["val_rmse"] == pytest.approx(results[0]["val_rmse"], rel=1e-3)
    assert not exact or results[0] == results[1]
    one, other = [ledger(tmp_path / f"{i}.jsonl") for i in range(2)]
    assert len(one) == 100
    assert [(line["step"], line["rows"]) for line in one] == [(line["step"], line["rows"]) for line in other]
    see_each_row_once_per_epoch(one)


@pytest.mark.slow
def test_initial_weights_follow_from_the_seed_alone(tmp_path, monkeypatch):
    model = importlib.import_module("taxifare.trainer.model")
    learn, found = model.learn, []

    def drawing(*args):
        random.random()
        return learn(*args)

    for name, work in (("still", learn), ("drawing", drawing)):
        monkeypatch.setattr(model, "learn", work)
        found.append(train("taxifare", f"--output_dir={tmp_path / name}", "--num_examples_to_train_on=512", "--num_evals=1"))
    assert found[0] == found[1]


def see_each_row_once_per_epoch(lines: list[dict]) -> None:
    rows = [row for line in lines for row in line["rows"]]
    first, second = rows[:1600], rows[1600:]
    assert len(set(first)) > 1590  # hardly two sample rows are alike
    assert sorted(first) == sorted(second) and first != second


@pytest.mark.slow  # test_order.py feeds rows from disk from any step on, test_resume.py resumes
def test_a_run_with_its_rows_on_disk_resumes_at_its_place(tmp_path, run_trainer):
    import signal

    flags = ["--in_memory=no", "--batch_size=64", "--epochs=4", "--num_evals=2", "--checkpoint_steps=10"]
    run_trainer("taxifare", f"--output_dir={tmp_path / 'a'}", f"--ledger={tmp_path / 'a.jsonl'}", *flags)
    killed = {"TRAINER_KILL": "step=63,signal=KILL"}
    run_trainer("taxifare", f"--output_dir={tmp_path / 'b'}", f"--ledger={tmp_path / 'b.jsonl'}", *flags, env=killed, code=-signal.SIGKILL)
    done = run_trainer("taxifare", f"--output_dir={tmp_path / 'b'}", f"--ledger={tmp_path / 'b.jsonl'}", *flags)
    assert "resuming from step" in done.stdout
    one, other = ({line["step"]: line["rows"] for line in ledger(tmp_path / f"{name}.jsonl")} for name in "ab")
    assert one == other
    assert json.loads((tmp_path / "a/metrics.json").read_text()) == json.loads((tmp_path / "b/metrics.json").read_text())


class TestCallbacks:
    """Hooks are called where the README says, and what they change counts."""

    def run(self, tmp_path, monkeypatch, callbacks, *flags):
        from taxifare.trainer import model

        monkeypatch.setattr(model, "callbacks", lambda hp: callbacks, raising=False)
        common = ["--features=lab", "--batch_size=100", "--epochs=2", "--num_evals=4"]
        return train("taxifare", f"--output_dir={tmp_path / 'out'}", *common, *flags)

    def test_hooks(self, tmp_path, monkeypatch):
        import keras

        seen: list[tuple] = []

        class Spy(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                seen.append(("train",))

            def on_epoch_begin(self, epoch, logs=None):
                seen.append(("begin", epoch))

            def on_epoch_end(self, epoch, logs=None):
                seen.append(("end", epoch, sorted(logs)))

            def on_train_batch_end(self, batch, logs=None):
                seen.append(("batch", batch, sorted(logs)))

            def on_train_end(self, logs=None):
                seen.append(("over",))

        self.run(tmp_path, monkeypatch, [Spy()], "--steps_per_call=1")
        assert [entry[1] for entry in seen if entry[0] == "batch"] == list(range(32))
        assert [entry[1] for entry in seen if entry[0] == "begin"] == [0, 1, 2, 3]
        assert seen[0] == ("train",) and seen[-1] == ("over",)
        assert [entry for entry in seen if entry[0] == "end"][0][2] == ["loss", "rmse", "val_loss", "val_rmse"]

    def test_stop_training_and_learning_rate(self, tmp_path, monkeypatch):
        import keras

        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                self.model.optimizer.learning_rate = 0.0
                self.model.stop_training = epoch == 1

        self.run(tmp_path, monkeypatch, [Stop()], "--plateau=9")
        state = newest_state(tmp_path / "out")
        assert state["step"] == 16 and state["finished"] and state["stopped"]

    def test_writers_are_refused(self, tmp_path, monkeypatch):
        import keras

        with pytest.raises(UserError, match="ModelCheckpoint writes checkpoints of its own"):
            self.run(tmp_path, monkeypatch, [keras.callbacks.ModelCheckpoint(str(tmp_path / "x.keras"))])


def newest_state(output: Path) -> dict:
    import tensorflow as tf

    newest = sorted((output / "checkpoints").glob("ckpt-*.index"))[-1]
    return json.loads(tf.train.load_checkpoint(str(newest)[: -len(".index")]).get_tensor("state_json"))


def test_job_directories_records_and_reports(tmp_path, monkeypatch):
    """As a tuning trial with test data: the service's directories, hypertune's file, TensorBoard, run.json."""
    import tensorflow as tf

    folder = Path("taxifare/tests/data").resolve()
    for name, value in {
        "AIP_MODEL_DIR": f"{tmp_path}/p/2/model/", "AIP_CHECKPOINT_DIR": f"{tmp_path}/p/2/checkpoints/",
        "AIP_TENSORBOARD_LOG_DIR": f"{tmp_path}/p/2/logs/", "AIP_DATA_FORMAT": "csv",
        "AIP_TRAINING_DATA_URI": f"{folder}/taxi-train*", "AIP_VALIDATION_DATA_URI": f"{folder}/taxi-valid*",
        "AIP_TEST_DATA_URI": f"{folder}/taxi-valid*", "CLOUD_ML_TRIAL_ID": "2", "CLOUD_ML_HP_METRIC_FILE": f"{tmp_path}/hp/output.metrics",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    metrics = train("taxifare", "--batch_size=128.0", "--epochs=2", "--num_evals=3")
    base = tmp_path / "p" / "2"
    assert (base / "model" / "saved_model.pb").exists()
    assert metrics["test_rmse"] == pytest.approx(metrics["val_rmse"], rel=1e-6)
    written = json.loads((base / "checkpoints" / "metrics.json").read_text())
    assert written["val_rmse"] == metrics["val_rmse"] and not written["synthetic_sample_data"]
    run = json.loads((base / "checkpoints" / "run.json").read_text())
    assert run["hyperparameters"]["batch_size"] == 128 and run["environment"]["trial"] == "2"
    assert {Path(entry["path"]).name for entry in run["data"]} == {"taxi-train.csv", "taxi-valid.csv"} and run["data"][0]["bytes"] > 10_000
    reports = [json.loads(line) for line in (tmp_path / "hp" / "output.metrics").read_text().splitlines()]
    assert len(reports) == 3 and reports[-1]["trial"] == "2"
    assert float(reports[-1]["val_rmse"]) == pytest.approx(metrics["val_rmse"])
    (events,) = (base / "logs" / "validation").glob("events*")
    values = {value.tag: event.step for event in tf.compat.v1.train.summary_iterator(str(events)) for value in event.summary.value}
    assert values == {"loss": 25, "rmse": 25}
    (events,) = (base / "logs" / "train").glob("events*")
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(events)) for value in event.summary.value}
    measured = {"waiting_for_rows", "share_of_peak"}  # where training took long enough to tell
    assert tags - measured == {"loss", "rmse", "learning_rate", "examples_per_second"}


def test_output_dir_in_a_trial_and_over_the_services_with_a_profile(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLUSTER_SPEC", '{"cluster":{"workerpool0":["h:2222"]},"task":{"type":"workerpool0","index":0,"trial":"7"}}')
    monkeypatch.setenv("AIP_MODEL_DIR", f"{tmp_path}/service/model/")
    data = Path("taxifare/tests/data").resolve()
    flags = [f"--train_data_path={data}/taxi-train.csv", f"--eval_data_path={data}/taxi-valid.csv"]
    train("taxifare", f"--output_dir={tmp_path / 'd'}", *flags, "--features=lab", "--epochs=3", "--num_evals=1", "--profile=6,9")
    assert (tmp_path / "d" / "7" / "model" / "saved_model.pb").exists()
    assert list((tmp_path / "d" / "7").glob("logs/plugins/profile/*/*.xplane.pb"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    warned = [line["message"] for line in lines if line["severity"] == "WARNING"]
    assert any("overrides AIP_MODEL_DIR" in message for message in warned)


@pytest.mark.parametrize("trainer", FIRST_TRAINER)
def test_export_holds_each_weight_once(trainer, trained):
    import tensorflow as tf

    model, size = trained(trainer) / "model", 0
    for name, shape in tf.train.list_variables(f"{model}/variables/variables"):
        if name not in ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"):
            size += int(np.prod(shape)) * 4
    steps, _, _, _ = prepared(trainer)
    assert size == sum(int(np.prod(v.shape)) * 4 for v in steps.model.weights)
    signature = tf.saved_model.load(str(model)).signatures["serving_default"]
    inputs = set(signature.structured_input_signature[1])
    if trainer == "taxifare":
        coordinates = {f"{end}_{axis}" for end in ("pickup", "dropoff") for axis in ("longitude", "latitude")}
        assert inputs == {"pickup_datetime", "passenger_count", *coordinates}
        assert set(signature.structured_outputs) == {"fare_amount"}
    else:
        assert inputs == {"text"} and set(signature.structured_outputs) == {"label", "scores"}
        labels = (model / "assets.extra" / "labels.txt").read_text().split()
        answer = signature(text=tf.constant(["how do I concatenate two lists in python"]))
        assert labels[int(np.argmax(answer["scores"][0]))] == answer["label"].numpy()[0].decode()


def test_gate_stops_a_wrong_scaler(tmp_path, monkeypatch, capsys):
    """The served graph sees other coordinates than the training did."""
    from taxifare.trainer import model
    from vertex_runtime import export

    honest = export.columns.guard

    def skewed(raw, columns):
        checked = honest(raw, columns)
        return checked | {"pickup_latitude": checked["pickup_latitude"] * 1.001}

    monkeypatch.setattr(export.columns, "guard", skewed)
    with pytest.raises(UserError, match="does not answer as the trained one") as error:
        train("taxifare", f"--output_dir={tmp_path}", "--epochs=1", "--num_evals=1")
    assert error.value.code not in (0, None) and str(tmp_path / "model.rejected") in str(error.value)
    assert (tmp_path / "model.rejected" / "saved_model.pb").exists() and not (tmp_path / "model" / "saved_model.pb").exists()
    assert list(tmp_path.glob("checkpoints/ckpt-*.index"))
    assert "skew: {" in capsys.readouterr().err
    monkeypatch.setattr(export.columns, "guard", honest)
    train("taxifare", f"--output_dir={tmp_path}", "--epochs=1", "--num_evals=1")  # mended: trains nothing, publishes
    assert (tmp_path / "model" / "saved_model.pb").exists() and model.NAME == "taxifare"


def test_no_google_client_is_imported(tmp_path):
    code = (
        "import sys; from taxifare.trainer import task; task.main(['--output_dir=" + str(tmp_path) + "', '--epochs=1', '--num_evals=1']);"
        "print('CLIENTS', [name for name in sys.modules if name.startswith('google.cloud.')])"
    )
    (tmp_path / "clients.py").write_text(code)
    done = forked.run("clients", [], {**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path, timeout=300)
    assert "CLIENTS []" in done.stdout, done.stderr
