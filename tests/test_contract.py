"""A `model.py` that is not what the contract says ends in one line before any data is read; what a run may do beside training."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import ROOT
from test_any_model import HEAD, rows, write_trainer

from vertex_runtime.errors import UserError

GOOD = """
OBJECTIVE = "val_auc"
def preprocess(raw, hp, facts):
    return stacked(raw) / 50.0
def build_model(hp, facts, total_steps):
    x = keras.Input((5,))
    return binary(keras.Model(x, dense(x)))
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return a function that writes a trainer and runs it on a small CSV file: `made(model, "--flag", fields=…)`."""
    (tmp_path / "train.csv").write_text(rows(300, 1))
    (tmp_path / "valid.csv").write_text(rows(90, 2))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    count = iter(range(100))

    def run(model: str, *flags: str, fields: str = "    pass\n", data: bool = True, out: str = "out") -> dict[str, float]:
        name = f"made_{tmp_path.name}_{next(count)}".replace("-", "_").replace("[", "_").replace("]", "_")
        write_trainer(tmp_path, name, HEAD + model, fields)
        importlib.invalidate_caches()
        given = ["--train_data_path=train.csv", "--eval_data_path=valid.csv"] if data else []
        small = ["--batch_size=32", "--num_examples_to_train_on=640", "--num_evals=2", f"--output_dir={out}"]
        return importlib.import_module(f"{name}.trainer.task").main([*given, *small, *flags])

    run.folder = tmp_path
    return run


WRONG = {
    "no build_model": (GOOD.replace("def build_model", "def _build"), r"lacks build_model\(hp, facts, total_steps\)"),
    "misspelt function": (GOOD.replace("def preprocess", "def preproces"), "offers preproces, which is nearly preprocess"),
    "misspelt value": (GOOD.replace("OBJECTIVE", "OBJETIVE"), "offers OBJETIVE, which is nearly OBJECTIVE"),
    "no such metric": (GOOD.replace('"val_auc"', '"val_acu"') + "MAXIMIZE = True\n", "OBJECTIVE is 'val_acu'.*the nearest is val_auc"),
    "a training metric": (GOOD.replace('"val_auc"', '"auc"'), "OBJECTIVE must be an evaluation's metric"),
    "unknown direction": (GOOD.replace('"val_auc"', '"val_gain"'), "say by MAXIMIZE = True or False"),
    "no label": (GOOD + "del LABEL\n", "lacks LABEL"),
    "misspelt label": (GOOD + 'LABEL = "churnd"\n', "LABEL names 'churnd'.*the nearest is churned"),
    "no columns": (GOOD + "del COLUMNS\n", "lacks COLUMNS"),
    "a column that is none": (GOOD + 'COLUMNS = ("age",)\n', "COLUMNS must hold Number"),
    "a column twice": (GOOD + 'COLUMNS += (Number("age"),)\n', "COLUMNS names age twice"),
    "a header twice": (GOOD + 'COLUMNS += (Number("years", header="age"),)\n', "two of COLUMNS are 'age' in files"),
    "a header that is none": (GOOD + 'COLUMNS += (Number("years", header=3),)\n', "column years: header= must be a text"),
    "samples of no kind": (GOOD + 'SYNTHETIC_SAMPLES = "no"\n', "SYNTHETIC_SAMPLES must be True or False"),
    "an input with blanks": (GOOD + 'COLUMNS += (Number("a b"),)\n', "'a b' cannot be the name of a served input.*header='a b'"),
    "wrong signature": (
        GOOD.replace("def preprocess(raw, hp, facts)", "def preprocess(raw)"),
        r"preprocess must take \(raw, hp, facts\); it takes \(raw\)",
    ),
    "no function": (GOOD + "outputs = 3\n", r"outputs must be a function outputs\(predictions, facts\); got int"),
    "a flag that is not there": (
        GOOD.replace("dense(x)", "dense(x, hp.unts)"),
        "line 42: Hyperparameters has no field 'unts'; the nearest is units",
    ),
    "weight": (GOOD + 'WEIGHT = "plan"\n', "WEIGHT names 'plan', which is no Number column"),
    "inputs": (
        GOOD + "INPUTS = {'age': tf.TensorSpec([], tf.float32)}\n",
        r"INPUTS\['age'\] must be a tf.TensorSpec\(\[None, ...\], dtype\)",
    ),
    "a name for no input": (GOOD + 'COLUMNS += (Number("total ($)"),)\n', r"the input 'total \(\$\)' cannot be the name of a served input"),
    "not Python": (GOOD + "def (:\n", r"model.py, line \d+: SyntaxError"),
    "an import": (GOOD + "import no_such_module\n", r"model.py, line \d+: ModuleNotFoundError: No module named 'no_such_module'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_part_is_one_line_before_any_data_is_read(case, made, monkeypatch):
    model, message = WRONG[case]
    monkeypatch.setenv("TRAINER_EVENTS", str(made.folder / "events"))
    with pytest.raises(UserError) as error:
        made(model, fields='    units: int = option(1, "units")\n')
    assert re.search(message, str(error.value)), error.value
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert not (made.folder / "events").exists()


def test_hyperparameters_that_are_not_inherited_are_named(made):
    name = "made_alone"
    write_trainer(made.folder, name, HEAD + GOOD)
    path = made.folder / name / "trainer" / "hyperparameters.py"
    path.write_text(path.read_text().replace("(CommonHyperparameters)", "").replace("    pass", "    seed: int = option(0, 'seed')"))
    with pytest.raises(UserError, match=r"lacks batch_size, num_examples_to_train_on, .*num_evals.* Inherit them"):
        importlib.import_module(f"{name}.trainer.task").main([])


def test_an_error_in_the_trainers_code_names_its_line(made):
    with pytest.raises(UserError, match=r"model.py, line 41, in build_model: KeyError: 'cities'"):
        made(GOOD.replace("x = keras.Input((5,))", "x = keras.Input((facts['cities'],))"))


def test_a_model_that_is_not_compiled_is_refused(made):
    with pytest.raises(UserError, match="not compiled"):
        made(GOOD.replace("return binary(keras.Model(x, dense(x)))", "return keras.Model(x, dense(x))"))


def test_a_step_that_returns_no_loss_is_refused(made):
    own = "class Own(keras.Model):\n    def train_step(self, data):\n        return {'what': tf.constant(1.0)}\n"
    with pytest.raises(UserError, match="train_step returns no loss, only what"):
        made(own + GOOD.replace("keras.Model(x", "Own(x").replace('OBJECTIVE = "val_auc"', ""))


def test_what_callbacks_hold_is_carried():
    import keras

    from vertex_runtime.callbacks import CallbackStates

    held = {"wait": 3, "best": np.float32(0.5), "losses": [0.5, math.inf], "rates": {"a": (1, "x"), 7: {}}}
    held |= {"weights": [np.arange(3), np.ones((2, 2))], "empty": [], "array": np.arange(2.0), "nothing": None}
    one, other = keras.callbacks.Callback(), keras.callbacks.Callback()
    vars(one).update(held, better=np.less, models=[one])
    plain, arrays = CallbackStates([one]).read()
    CallbackStates([other]).write(json.loads(json.dumps(plain)), arrays)
    np.testing.assert_equal({name: getattr(other, name) for name in held}, held)
    assert not hasattr(other, "better") and not hasattr(other, "models")


def test_a_record_that_cannot_be_written_is_one_line(tmp_path):
    from vertex_runtime import outputs

    with pytest.raises(UserError, match="cannot write .*/gone/metrics.json: No such file or directory. Make room and start again"):
        outputs.write_json(str(tmp_path / "gone"), "metrics.json", {})


UNSAVED = {
    "random numbers": ("x + tf.random.normal(tf.shape(x)) if training else x", "draws random numbers by RandomStandardNormal"),
    "a table": ("(self.table.insert(tf.cast(x[:, 0], tf.int64), x[:, 0]), x)[1] if training else x", "writes into a lookup table"),
}


@pytest.mark.parametrize("case", UNSAVED)
def test_a_step_with_state_that_no_checkpoint_holds_is_refused_before_it(case, made, monkeypatch):
    call, message = UNSAVED[case]
    layer = f"""
class Own(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
    def call(self, x, training=False):
        return tf.ensure_shape({call}, [None, 5])
"""
    monkeypatch.setenv("TRAINER_EVENTS", str(made.folder / "events"))
    with pytest.raises(UserError, match=message):
        made(layer + GOOD.replace("dense(x)", "dense(Own()(x))"))
    assert '"phase": "step"' not in (made.folder / "events").read_text()


# ------------------------------------------------------------------ what cannot be served is known before training


BY_PYTHON = "tf.ensure_shape(tf.numpy_function(lambda v: v, [stacked(raw)], tf.float32), [None, 5])"
UNSERVED = {
    "python": (GOOD.replace("stacked(raw) / 50.0", BY_PYTHON), "calls Python"),
    "outputs": (GOOD + "def outputs(predictions, facts):\n    return predictions\n", "outputs.predictions, facts. must return a dict"),
    "a ragged feature": (GOOD.replace("stacked(raw) / 50.0", "tf.strings.split(raw['plan'])"), "preprocess must return dense tensors"),
    "a wrong output": (GOOD + "def outputs(predictions, facts):\n    return {'x': predictions[:, 3]}\n", "."),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSERVED)
def test_what_cannot_be_exported_is_refused_before_the_first_checkpoint(case, made):
    model, message = UNSERVED[case]
    with pytest.raises(UserError, match=message):
        made(model)
    assert not list(made.folder.glob("out/checkpoints/ckpt-*")) and not list(made.folder.glob("out/model/*"))


def test_a_rehearsal_that_fails_ends_the_run(made, monkeypatch):
    from vertex_runtime import export

    def fail(*_):
        raise AssertionError("Tried to export a function which references an 'untracked' resource")

    monkeypatch.setattr(export.Exporter, "write", fail)
    with pytest.raises(UserError, match="cannot be exported and asked: AssertionError.*untracked.*before training"):
        made(GOOD)


# ------------------------------------------------------------------ rows


def test_missing_cells_mean_the_same_in_files_and_requests(made):
    from vertex_runtime import predict

    metrics = made(GOOD)
    assert 0 < metrics["val_auc"] <= 1
    signature = predict.load_signature(str(made.folder / "out" / "model"))
    row = {"age": 40.0, "spend": 50.0, "visits": 3.0, "score": 0.1, "plan": "pro", "city": "rome", "joined": "2011-01-28"}
    row |= {"weight": 1.0, "target": 1.0}

    def ask(**cells):
        (found,) = predict.answer(signature, [row | cells])
        return found

    assert ask(visits=None) == ask(visits=0.0) and ask(city=None) == ask(city="unknown") == ask(city="")
    assert ask(joined=None) == ask(joined="2000-01-01")
    assert ask(spend=None) != ask(spend=0.0)
    for cells, message in (
        ({"age": None}, r"^0: age must be a number in 0..120; got nothing"), ({"age": 121.0}, r"age must be a number in 0..120; got 121"),
        ({"plan": "gold"}, "plan must be one of basic, plus, pro; got 'gold'"),
        ({"joined": "2011-13-01"}, "joined must be a date.*; got '2011-13-01'"),
        ({"age": "old"}, "age must be a number"), ({"plan": None}, "plan must be one of.*; got nothing"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ask(**cells)
    with pytest.raises(ValueError, match="^2: age must be"):
        predict.answer(signature, [row, row, row | {"age": -1.0}, row])


BAD_CELLS = [
    ("x,1,1,1,pro,rome,2011-01-01,1,1,yes", "age must be a number in 0..120; got 'x'"),
    ("30,1,1,1,gold,rome,2011-01-01,1,1,yes", "plan must be one of basic, plus, pro; got 'gold'"),
    ("30,1,1,1,pro,rome,2011-01-32,1,1,yes", "joined must be a date such as 2011-01-28; got '2011-01-32'"),
    ("30,1,1,,pro,rome,2011-01-01,1,1,yes", "score must be a number; got ''"),
    ("30,nan,1,1,pro,rome,2011-01-01,1,1,yes", "spend must be a number; got 'nan'"),
]


@pytest.mark.parametrize("cells, message", BAD_CELLS)
def test_bad_cells_name_column_file_and_line(cells, message, made):
    (made.folder / "train.csv").write_text(rows(40, 1) + cells + "\n")
    with pytest.raises(UserError, match=re.escape("train.csv, line 42: " + message)):
        made(GOOD)


def test_rows_with_bad_cells_are_skipped(made, capsys):
    (made.folder / "train.csv").write_text(rows(40, 1) + "".join(f"{cells}\n" for cells, _ in BAD_CELLS))
    made(GOOD, "--bad_rows=skip")
    said = capsys.readouterr()
    assert f"skipped {len(BAD_CELLS)} bad rows" in said.err and "rows: 40 to train on" in said.out


def test_rows_are_weighed_and_counted_once_whatever_argument_a_metric_came_by(made):
    """Against Keras's own evaluate, on a number of rows that divides by nothing."""
    import keras
    import tensorflow as tf

    weighed = GOOD.replace(
        "dense(x)))",
        'dense(x)), weighted_metrics=[keras.metrics.AUC(from_logits=True, name="heavy")],'
        ' metrics=[keras.metrics.AUC(from_logits=True, name="auc")])',
    )
    metrics = made(weighed + 'WEIGHT = "weight"\n')
    from vertex_runtime import data
    from vertex_runtime.columns import Category, Date, Number

    columns = [Number("age"), Number("spend", missing=float("nan")), Number("visits", missing=0.0), Number("score")]
    columns += [Category("plan"), Category("city", missing="unknown"), Date("joined", missing="2000-01-01")]
    columns += [Number("weight"), Number("target"), Category("churned")]
    chunk = next(data.read(str(made.folder / "valid.csv"), columns, (), data.BadRows()))
    served = tf.saved_model.load(str(made.folder / "out" / "model")).signatures["serving_default"]
    names = [name for name in chunk if name not in ("churned", "weight")]
    logits = served(**{name: tf.constant(chunk[name]) for name in names})["predictions"]
    labels = (chunk["churned"] == b"yes").astype(np.float32)
    for name, weights in (("auc", None), ("heavy", chunk["weight"])):
        metric = keras.metrics.AUC(from_logits=True)
        metric.update_state(labels, logits, weights)
        assert metrics[f"val_{name}"] == pytest.approx(float(metric.result()), abs=1e-6)
    assert metrics["val_auc"] != metrics["val_heavy"]


def test_a_missing_value_is_the_lowest_of_an_order():
    from vertex_runtime.splits import make_split

    chunk = {"x": np.array([np.nan] * 40 + list(range(60)), np.float32)}
    assert np.flatnonzero(make_split(0.2, "order:x", 0, [chunk]).evaluates(chunk)).tolist() == list(range(80, 100))


@pytest.mark.parametrize("by, left", [("order:visits", "train"), ("group:plan", "(train|evaluate)")])
def test_a_split_that_leaves_no_rows_names_its_flags(by, left, made):
    (made.folder / "one.csv").write_text(re.sub("(?m)^(.*?,.*?),.*?,(.*?),(basic|plus|pro),", r"\1,7,\2,pro,", rows(60, 1)))
    said = f"--split_by='{by}', --eval_fraction=0.25: no row is left to {left} on. Choose another"
    with pytest.raises(UserError, match=said):
        made(GOOD, "--train_data_path=one.csv", "--eval_fraction=0.25", f"--split_by={by}", data=False)


@pytest.mark.parametrize("by", ["random", "order:joined", "group:city"])
def test_evaluation_rows_are_cut_off_by_content(by, made):
    from vertex_runtime import data
    from vertex_runtime.columns import Category, Number, Text
    from vertex_runtime.splits import make_split

    columns = [Number("age"), Category("city", missing="?"), Text("joined", missing="?")]
    columns += [Text(name, missing="?") for name in ("spend", "visits", "score", "plan", "weight", "target", "churned")]
    (chunk,) = data.read("train.csv", columns, (), data.BadRows())
    split = make_split(0.25, by, 0, iter([chunk]))
    mask = split.evaluates(chunk)
    assert 0 < mask.mean() < 0.9
    shuffled = np.random.default_rng(0).permutation(len(mask))
    np.testing.assert_array_equal(split.evaluates(data.take(chunk, shuffled)), mask[shuffled])
    if by == "random":
        assert 0.15 < mask.mean() < 0.35 and (make_split(0.25, by, 1, iter([chunk])).evaluates(chunk) != mask).any()
    elif by == "order:joined":
        assert max(chunk["joined"][~mask]) < min(chunk["joined"][mask])
    else:
        assert not set(chunk["city"][mask]) & set(chunk["city"][~mask])


def test_a_run_on_a_split_alone(made):
    given = ["--train_data_path=train.csv", "--eval_fraction=0.2", "--split_by=order:joined"]
    assert made(GOOD, *given, data=False)["val_auc"] > 0
    record = json.loads((made.folder / "out" / "run.json").read_text())["rows"]
    assert record["train"] + record["evaluation"] == 300 and 40 <= record["evaluation"] <= 90
    with pytest.raises(UserError, match="--split_by names the column 'joind', which the rows lack"):
        made(GOOD, "--train_data_path=train.csv", "--eval_fraction=0.2", "--split_by=order:joind", data=False, out="other")


# ------------------------------------------------------------------ the best model, one stage alone, time


OVERTRAINED = GOOD.replace(
    "def preprocess",
    """
class Spoil(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch >= 3:
            self.model.optimizer.learning_rate = 30.0
def callbacks(hp):
    return [Spoil()]
def preprocess""",
)


def test_the_best_model_is_exported_and_its_checkpoint_kept(made):
    metrics = made(OVERTRAINED, "--num_evals=10", "--num_examples_to_train_on=1280")
    written = json.loads((made.folder / "out" / "metrics.json").read_text())
    run = json.loads((made.folder / "out" / "run.json").read_text())
    assert written["best"]["step"] == written["exported_step"] < 40 and written["best"]["value"] == metrics["val_auc"]
    assert run["best"] == written["best"] and run["state"] == "finished" and run["step"] == 40 and run["duration_seconds"] > 0
    assert (made.folder / "out" / "checkpoints" / f"ckpt-{written['exported_step']:09d}.index").exists()
    last = made(OVERTRAINED, "--num_evals=10", "--num_examples_to_train_on=1280", "--export=last", out="last")
    assert last["val_auc"] < metrics["val_auc"]


@pytest.mark.slow
def test_one_stage_alone_from_a_checkpoint(made):
    with pytest.raises(UserError, match="--only=evaluate needs a checkpoint"):
        made(GOOD, "--only=evaluate")
    metrics = made(GOOD)
    model = made.folder / "out" / "model" / "saved_model.pb"
    before = model.stat().st_mtime_ns
    alone = made(GOOD, "--only=evaluate")
    assert alone["val_auc"] == metrics["val_auc"] and model.stat().st_mtime_ns == before
    assert json.loads((made.folder / "out" / "evaluation.json").read_text())["val_auc"] == metrics["val_auc"]
    assert made(GOOD, "--only=export")["val_auc"] == metrics["val_auc"] and model.stat().st_mtime_ns != before


@pytest.mark.slow
def test_a_mended_export_goes_on_after_training(made, monkeypatch, capsys):
    from vertex_runtime import export

    def fail(*_):
        raise UserError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(export, "publish", fail)
        with pytest.raises(UserError, match="the disk is full"):
            made(GOOD)
    mended = GOOD + "def outputs(predictions, facts):\n    return {'probability': tf.sigmoid(predictions[:, 0])}\n"
    made(mended)
    said = capsys.readouterr()
    assert "source (model.py or what it imports) has changed since training; the model answers as before" in said.err
    assert (made.folder / "out" / "model" / "saved_model.pb").exists()
    with pytest.raises(UserError, match="has changed since training, and with it what the model answers"):
        made(GOOD.replace("stacked(raw) / 50.0", "stacked(raw) / 40.0"), "--only=export")
    with pytest.raises(UserError, match="holds a run that differs in the trainer's source"):
        made(mended + "UNUSED = 1\n")


@pytest.mark.slow
def test_a_run_that_is_out_of_time_exports_and_goes_on_later(made):
    many = ["--num_examples_to_train_on=3200000", "--max_minutes=0.0001", "--num_evals=3"]
    metrics = made(GOOD, *many)
    run = json.loads((made.folder / "out" / "run.json").read_text())
    assert run["state"] == "out of time" and 0 < run["step"] < run["total_steps"] and metrics["val_auc"] > 0
    assert (made.folder / "out" / "model" / "saved_model.pb").exists()
    made(GOOD, *many)
    assert json.loads((made.folder / "out" / "run.json").read_text())["step"] > run["step"]


def test_the_metrics_of_a_run_that_is_out_of_time_are_those_of_the_averaged_weights_it_exports(made):
    averaged = GOOD.replace("dense(x)))", "dense(x)), keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.99))")
    flags = ["--num_examples_to_train_on=3200000", "--max_minutes=0.0001", "--export=last", "--steps_per_call=40"]
    metrics = made(averaged, *flags)
    gate = json.loads((made.folder / "out" / "metrics.json").read_text())["skew_gate"]
    assert gate["rows"] == 90 and metrics["val_auc"] == pytest.approx(gate["trained_metric"], rel=1e-5)


@pytest.mark.slow
def test_xla_is_off_unless_asked_for_and_a_choice_is_kept(made, capsys):
    made(GOOD)
    assert not json.loads((made.folder / "out" / "run.json").read_text())["jit_compile"]
    made(GOOD + "def jit_compile(hp, total_steps):\n    return True\n", out="asked")
    assert json.loads((made.folder / "asked" / "run.json").read_text())["jit_compile"]
    capsys.readouterr()
    timed = made(GOOD, "--jit_compile=auto", out="timed")
    said = capsys.readouterr().out
    chosen = json.loads((made.folder / "timed" / "run.json").read_text())["jit_compile"]
    assert re.search(r"--jit_compile=auto: .* ms a step with XLA, .* ms without: (with|without) it", said)
    assert ("steps: " in said) and (", compiled by XLA" in said) == chosen
    plain = made(GOOD, f"--jit_compile={'yes' if chosen else 'no'}", out="plain")
    assert timed == plain  # trying it out left no trace
    made(GOOD, "--jit_compile=auto", out="timed")
    assert "ms a step" not in capsys.readouterr().out.split("resuming")[-1]


def test_training_values_and_hyperparameters_are_in_tensorboard(made):
    import tensorflow as tf

    made(GOOD, "--scalar_steps=4")
    (events,) = (made.folder / "out" / "logs" / "train").glob("events*")
    found = [(event.step, value.tag) for event in tf.compat.v1.train.summary_iterator(str(events)) for value in event.summary.value]
    assert [tag for step, tag in found if step == 4] == ["loss", "auc"] and {step for step, _ in found} >= {4, 8, 12, 16, 20}
    (events,) = (made.folder / "out" / "logs").glob("events*")
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(events)) for value in event.summary.value}
    assert "_hparams_/session_start_info" in tags


@pytest.mark.slow
def test_the_model_is_built_once_and_can_be_loaded_by_keras_too(made, monkeypatch):
    import keras
    import tensorflow as tf

    monkeypatch.setenv("BUILT", str(made.folder / "built"))
    note = "    import os\n    open(os.environ['BUILT'], 'a').write('x')\n    x = keras.Input"
    metrics = made(GOOD.replace("    x = keras.Input", note))
    assert (made.folder / "built").read_text() == "x" and metrics["val_auc"] > 0
    loaded = keras.saving.load_model(made.folder / "out" / "model" / "assets.extra" / "model.keras", compile=False)
    served = tf.saved_model.load(str(made.folder / "out" / "model"))
    kernels = {tuple(v.shape): v.numpy() for v in served.weights}
    for weight in loaded.weights:
        np.testing.assert_array_equal(weight.numpy(), kernels[tuple(weight.shape)])


# ------------------------------------------------------------------ how it ends


def start(made, model: str, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    write_trainer(made.folder, "ending", HEAD + model)
    data = ["--train_data_path=train.csv", "--eval_data_path=valid.csv"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return forked.run("ending.trainer.task", [*data, *flags], variables, made.folder, timeout=120)


def test_an_interrupt_saves_as_sigterm_does(made):
    flags = ["--batch_size=32", "--num_examples_to_train_on=64000", "--num_evals=1", "--output_dir=out"]
    ended = start(made, GOOD, *flags, TRAINER_KILL="step=40,signal=INT")
    assert ended.returncode == 130 and "SIGINT: the state of step" in ended.stderr and "Traceback" not in ended.stderr, ended.stderr
    assert list(made.folder.glob("out/checkpoints/ckpt-*.index"))
    assert json.loads((made.folder / "out" / "run.json").read_text())["state"] == "interrupted"


def test_an_interrupt_before_the_first_step_promises_nothing(made):
    ended = start(made, GOOD, "--output_dir=out", TRAINER_KILL="data=1,signal=INT")
    assert ended.returncode == 130 and "if one was written" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_run_that_stands_still_is_ended(made):
    slow = GOOD.replace("def preprocess", "def learn(chunks, hp):\n    import time\n    time.sleep(600)\ndef preprocess")
    done = start(made, slow, "--stall_minutes=0.2", "--output_dir=out")
    assert done.returncode == -signal.SIGABRT and "--stall_minutes: nothing has moved for 0.2 minutes since data" in done.stderr


@pytest.mark.slow
def test_too_little_memory_is_one_line(made):
    write_trainer(made.folder, "large", HEAD + GOOD)
    # A little more, and TensorFlow's own threads are what cannot be had: it aborts by itself.
    command = f"ulimit -v 1300000; exec {sys.executable} -m large.trainer.task --train_data_path=train.csv --eval_data_path=valid.csv"
    env = {**os.environ, "PYTHONPATH": f"{made.folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=300, cwd=made.folder)
    assert done.returncode and "Traceback" not in done.stderr and "memory" in done.stderr, done.stderr


def test_batch_normalisation_says_that_it_goes_by_replica(capsys):
    import keras
    import tensorflow as tf

    from vertex_runtime.network import check_network

    plain = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(name="norm")])
    synchronized = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(synchronized=True)])
    plain.compile("sgd", "mse")
    synchronized.compile("sgd", "mse")
    several = type("Strategy", (), {"num_replicas_in_sync": 2})()
    check_network(synchronized, several)
    check_network(plain, tf.distribute.get_strategy())
    assert capsys.readouterr().err == ""
    check_network(plain, several)
    assert "norm: batch normalisation goes by each replica's own part" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gradient_accumulation_steps", "ema_overwrite_frequency"])
def test_what_an_optimizer_cannot_do_on_replicas_is_refused(name):
    import keras

    from vertex_runtime.network import check_network

    several = type("Strategy", (), {"num_replicas_in_sync": 2})()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(use_ema=True, **{name: 3})), "mse")
    with pytest.raises(UserError, match=f"{name} does not work on 2 replicas"):
        check_network(model, several)


def test_bad_images_are_named(tmp_path):
    from vertex_runtime import data
    from vertex_runtime.columns import Category, Image, Text

    columns = (Image("image_bytes"), Category("label"))
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    with pytest.raises(UserError, match=r"cat/a.png: is no whole PNG or JPEG file"):
        list(data.read(str(tmp_path), columns, ("label",), data.BadRows()))
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match=r"dog has no \*.png or \*.jpg or \*.jpeg file: the class 'dog' has no examples"):
        list(data.read(str(tmp_path), columns, ("label",), data.BadRows("skip")))
    with pytest.raises(UserError, match="is no folder that holds a folder of images per label"):
        data.find([str(tmp_path / "cat" / "a.png")], "--train_data_path", columns, ("label",))
    with pytest.raises(TypeError, match="must end in _bytes"):
        Image("picture")
    assert Text("text", like="a+").must_be == "text must match a+" and Path(tmp_path).is_dir()
