"""Whatever `keras.Model.fit` trains, this trains: each kind is trained, killed, resumed, served, and shared by workers."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

HEAD = """
import math
import keras
import numpy as np
import tensorflow as tf
from vertex_runtime import images
from vertex_runtime.columns import Category, Date, Image, Number, Text

NUMBERS = ("age", "spend", "visits", "score")
COLUMNS = (
    Number("age", low=0, high=120),
    Number("spend", missing=math.nan),
    Number("visits", missing=0.0),
    Number("score"),
    Category("plan", values=("basic", "plus", "pro")),
    Category("city", missing="unknown"),
    Date("joined", missing="2000-01-01"),
    Number("weight", low=0),
    Number("target"),
    Category("churned"),
)
LABEL = "churned"

def stacked(raw):
    known = [tf.where(tf.math.is_nan(raw[name]), 0.0, raw[name]) for name in NUMBERS]
    return tf.stack([*known, tf.cast(tf.math.is_nan(raw["spend"]), tf.float32)], 1)

def dense(inputs, units=1):
    hidden = keras.layers.Dense(8, activation="tanh")(inputs)
    return keras.layers.Dense(units)(hidden)

def binary(model, optimizer=None, **how):
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(1e-2), loss, **(how or {"metrics": [keras.metrics.AUC(from_logits=True, name="auc")]}))
    return model
"""

# Each: the text of a model.py, less its head. What begins with `EXACT` must agree between 1 and 2 workers.
MODELS = {
    "functional": """
EXACT = True
OBJECTIVE = "val_auc"
def learn(chunks, hp):
    cities, plans = set(), set()
    normal = keras.layers.Normalization()
    rows = []
    for chunk in chunks:
        cities |= set(chunk["city"]); plans |= set(chunk["plan"])
        rows.append(np.stack([chunk[name] for name in ("age", "score")], 1))
    normal.adapt(np.concatenate(rows))
    return {"cities": sorted(c.decode() for c in cities), "normal": normal}
def preprocess(raw, hp, facts):
    lookup = keras.layers.StringLookup(vocabulary=facts["cities"])
    return {"numbers": stacked(raw) / 50.0, "normal": facts["normal"](tf.stack([raw["age"], raw["score"]], 1)),
            "city": tf.cast(lookup(raw["city"]), tf.int32), "year": tf.strings.to_number(tf.strings.substr(raw["joined"], 0, 4)) / 2000.0}
def build_model(hp, facts, total_steps):
    inputs = {"numbers": keras.Input((5,)), "normal": keras.Input((2,)), "city": keras.Input((), dtype="int32"), "year": keras.Input(())}
    city = keras.layers.Embedding(len(facts["cities"]) + 1, 3)(inputs["city"])
    year = keras.layers.Reshape((1,))(inputs["year"])
    x = keras.layers.Concatenate()([inputs["numbers"], inputs["normal"], city, year])
    return binary(keras.Model(inputs, dense(x)))
""",
    "sequential": """
EXACT = True
OBJECTIVE = "val_accuracy"
def preprocess(raw, hp, facts):
    return tf.strings.join([raw["plan"], raw["city"]], " ")
def build_model(hp, facts, total_steps):
    words = keras.layers.TextVectorization(max_tokens=20, output_mode="multi_hot")
    words.adapt(["basic oslo", "plus lima", "pro rome", "unknown"])
    return binary(keras.Sequential([keras.Input((), dtype="string"), words, keras.layers.Dense(4, "relu"), keras.layers.Dense(1)]),
                  metrics=[keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)])
""",
    "own_steps": """
OBJECTIVE = "val_loss"
def preprocess(raw, hp, facts):
    return stacked(raw) / 50.0
class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.one, self.two = keras.layers.Dense(8, "relu"), keras.layers.Dense(1)
        self.seen = tf.Variable(0, dtype=tf.int64)
        self.tracker = keras.metrics.Mean(name="loss")
    def call(self, x, training=False):
        return self.two(self.one(x))
    @property
    def metrics(self):
        return [self.tracker]
    def _loss(self, x, y):
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(y, tf.float32)[:, None], self(x, training=True)))
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self._loss(x, y)
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables))
        self.seen.assign_add(1)
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}
    def test_step(self, data):
        x, y = data
        self.tracker.update_state(self._loss(x, y), sample_weight=tf.shape(x)[0])
        return {"loss": self.tracker.result()}
def build_model(hp, facts, total_steps):
    model = Own()
    model.compile(keras.optimizers.Adam(1e-2))
    return model
""",
    "adversarial": """
OBJECTIVE, MAXIMIZE = "val_gap", False
def preprocess(raw, hp, facts):
    return stacked(raw) / 50.0
class Adversaries(keras.Model):  # the second is no part of what the model answers by
    def __init__(self):
        super().__init__()
        self.answers = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
        self.judge = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
        self.aside = keras.layers.Dense(1)
        self.judges = keras.optimizers.RMSprop(1e-2)
        self.gap = keras.metrics.MeanAbsoluteError(name="gap")
    @property
    def metrics(self):
        return [self.gap]
    def call(self, x, training=False):
        return self.answers(x)
    def train_step(self, data):
        x, y = data
        y = tf.cast(y, tf.float32)[:, None]
        with tf.GradientTape(persistent=True) as tape:
            made = self.answers(x)
            true, false = self.judge(tf.concat([x, y], 1)), self.judge(tf.concat([x, made], 1))
            judged = tf.reduce_mean(tf.nn.softplus(-true) + tf.nn.softplus(false))
            missed = tf.reduce_mean(tf.nn.softplus(-false)) + tf.reduce_mean(tf.square(y - made) + tf.square(y - self.aside(x)))
        answering = self.answers.trainable_variables + self.aside.trainable_variables
        for optimizer, loss, own in ((self.judges, judged, self.judge.trainable_variables), (self.optimizer, missed, answering)):
            optimizer.apply_gradients(zip(tape.gradient(loss, own), own))
        self.gap.update_state(y, made)
        return {"judge_loss": judged, "answer_loss": missed, "gap": self.gap.result()}
    def test_step(self, data):
        self.gap.update_state(data[1][:, None], self.answers(data[0]))
        return {"gap": self.gap.result()}
def build_model(hp, facts, total_steps):
    model = Adversaries()
    model.compile(keras.optimizers.Adam(1e-2))
    return model
""",
    "two_outputs": """
EXACT = True
LABEL = ("churned", "target")
WEIGHT = "weight"
OBJECTIVE = "val_target_mae"
def preprocess(raw, hp, facts):
    return stacked(raw) / 50.0
def build_model(hp, facts, total_steps):
    x = keras.Input((5,))
    hidden = keras.layers.Dense(8, activation="tanh")(x)
    outputs = {"churned": keras.layers.Dense(2, name="churned")(hidden), "target": keras.layers.Dense(1, name="target")(hidden)}
    model = keras.Model(x, outputs)
    losses = {"churned": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "target": "mse"}
    metrics = {"target": [keras.metrics.MeanAbsoluteError(name="mae")]}
    model.compile("adam", losses, metrics=metrics, weighted_metrics={"churned": ["accuracy"]})
    return model
""",
    "half": """
def preprocess(raw, hp, facts):
    return stacked(raw) / 50.0
def build_model(hp, facts, total_steps):
    policy = keras.mixed_precision.DTypePolicy("mixed_float16")
    x = keras.Input((5,))
    hidden = keras.layers.Dense(16, activation="relu", dtype=policy)(x)
    hidden = keras.layers.Dropout(0.2, dtype=policy)(hidden)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2))
    return binary(keras.Model(x, keras.layers.Dense(1, dtype="float32")(hidden)), optimizer)
""",
    "accumulated": """
def preprocess(raw, hp, facts):
    return stacked(raw) / 50.0
def build_model(hp, facts, total_steps):
    x = keras.Input((5,))
    optimizer = keras.optimizers.Adam(1e-2, gradient_accumulation_steps=3)
    return binary(keras.Model(x, dense(x)), optimizer)
""",
    "normalised": """
EXACT = True
def preprocess(raw, hp, facts):
    return stacked(raw) / 50.0
def class_weight(hp, facts):
    return {0: 1.0, 1: 3.0}
def build_model(hp, facts, total_steps):
    x = keras.Input((5,))
    hidden = keras.layers.BatchNormalization(synchronized=True, momentum=0.8)(keras.layers.Dense(8, use_bias=False)(x))
    return binary(keras.Model(x, dense(hidden)))
""",
    "vector": """
EXACT = True
LABEL = "target"
def preprocess(raw, hp, facts):
    return {"x": stacked(raw) / 50.0, "plan": raw["plan"][:, None]}
def encode_labels(chunk, facts):
    return np.stack([chunk["target"], chunk["target"] ** 2], 1)
def weigh(chunk, hp, facts):
    return np.sqrt(chunk["weight"])
def build_model(hp, facts, total_steps):
    x, plan = keras.Input((5,), name="x"), keras.Input((1,), dtype="string", name="plan")
    hashed = keras.layers.Hashing(8, output_mode="multi_hot")(plan)
    model = keras.Model({"x": x, "plan": plan}, dense(keras.layers.Concatenate()([x, hashed]), 2))
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9), "mse", metrics=["mae"])
    return model
""",
    "images": """
COLUMNS, LABEL = (Image("image_bytes"), Category("label")), "label"
OBJECTIVE = "val_accuracy"
def preprocess(raw, hp, facts):
    return images.decode(raw["image_bytes"], 8, 8, 1)
def build_model(hp, facts, total_steps):
    x = keras.Input((8, 8, 1), dtype="uint8")
    hidden = keras.layers.RandomFlip("horizontal")(keras.layers.Rescaling(1 / 255)(x))
    hidden = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, activation="relu")(hidden))
    model = keras.Model(x, keras.layers.Dense(2)(hidden))
    model.compile(keras.optimizers.Adam(3e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model
""",
    "source": """
EXACT = True
del COLUMNS
LABEL = "digit"
OBJECTIVE = "val_accuracy"
class Pixels:
    def __init__(self, count, seed):
        self.random, self.count = np.random.default_rng(seed), count
        self.digits = self.random.integers(0, 3, count)
        self.pixels = (self.random.random((count, 28, 28)) + self.digits[:, None, None] / 3).astype(np.float32)
    def __len__(self):
        return self.count
    def __getitem__(self, i):
        return {"pixels": self.pixels[i], "digit": int(self.digits[i])}
def find(paths, flag):
    return list(paths)
def source(files, hp):
    return Pixels(300, len(files[0]))
def build_model(hp, facts, total_steps):
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model
""",
    "dataset": """
EXACT = True
del COLUMNS, LABEL
def find(paths, flag):
    return list(paths)
def dataset(files, hp, epoch):
    values = np.random.default_rng(1).random((300, 4)).astype(np.float32)
    labels = values.sum(1) > 2
    made = tf.data.Dataset.from_tensor_slices(({"x": values, "half": values[:, :2].astype(np.float16)}, labels.astype(np.int32)))
    return made if epoch is None else made.shuffle(300, seed=hp.seed + epoch).filter(lambda x, y: True)
def build_model(hp, facts, total_steps):
    x, half = keras.Input((4,), name="x"), keras.Input((2,), name="half", dtype="float16")
    return binary(keras.Model({"x": x, "half": half}, dense(keras.layers.Concatenate()([x, keras.layers.Dense(2)(half)]))))
""",
}
STEPS, BATCH, KILL = 24, 30, 13  # 1, 2 and 3 workers divide the batch


def rows(count: int, seed: int) -> str:
    """Return a CSV file of customers, missing cells among them."""
    random = np.random.default_rng(seed)
    lines = ["age,spend,visits,score,plan,city,joined,weight,target,churned"]
    for _ in range(count):
        age, spend, visits, score = random.integers(18, 90), random.normal(50, 20), random.integers(0, 30), random.normal()
        cells = [age, "" if random.random() < 0.1 else f"{spend:.2f}", "" if random.random() < 0.1 else visits, f"{score:.3f}"]
        cells += [random.choice(["basic", "plus", "pro"]), "" if random.random() < 0.1 else random.choice(["oslo", "lima", "rome"])]
        cells += [
            "" if random.random() < 0.1 else f"{random.integers(2001, 2024)}-0{random.integers(1, 9)}-11",
            f"{random.random() + 0.5:.2f}",
        ]
        cells += [f"{score + age / 50:.3f}", "yes" if score + age / 50 + random.normal() * 0.3 > 1 else "no"]
        lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"


def write_png(path: Path, pixels: np.ndarray) -> None:
    import tensorflow as tf

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(pixels).numpy())


def write_trainer(folder: Path, name: str, model: str, fields: str = "    pass\n") -> None:
    """Write a package of a trainer's three files into a folder."""
    package = folder / name / "trainer"
    package.mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "task.py").write_text((ROOT / "taxifare/trainer/task.py").read_text())
    (package / "hyperparameters.py").write_text(
        "from dataclasses import dataclass\nfrom vertex_runtime.arguments import CommonHyperparameters, option\n"
        f"@dataclass(frozen=True)\nclass Hyperparameters(CommonHyperparameters):\n{fields}"
    )
    (package / "model.py").write_text(model)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """A folder with every trainer of MODELS and the data they read."""
    folder = tmp_path_factory.mktemp("zoo")
    for name, text in MODELS.items():
        write_trainer(folder, f"zoo_{name}", HEAD + text)
    (folder / "train.csv").write_text(rows(500, 1))
    (folder / "valid.csv").write_text(rows(187, 2))
    random = np.random.default_rng(3)
    for part, count in (("train", 150), ("valid", 45)):
        for i in range(count):
            label = ("dark", "light")[i % 2]
            pixels = random.integers(0, 120, (8 + i % 3, 8, 1)) + 100 * (i % 2)
            write_png(folder / "pictures" / part / label / f"{i}.png", pixels.astype(np.uint8))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def flags(zoo: Path, name: str, output: Path, *more: str) -> list[str]:
    train, valid = ("pictures/train", "pictures/valid") if name == "images" else ("train.csv", "valid.csv")
    given = [f"--train_data_path={zoo / train}", f"--eval_data_path={zoo / valid}", f"--output_dir={output}", f"--batch_size={BATCH}"]
    return [*given, f"--num_examples_to_train_on={STEPS * BATCH}", "--num_evals=3", "--checkpoint_steps=5", "--steps_per_call=4", *more]


def train(zoo: Path, name: str, output: Path, *more: str) -> dict[str, float]:
    return importlib.import_module(f"zoo_{name}.trainer.task").main(flags(zoo, name, output, *more))


def process(zoo: Path, name: str, output: Path, *more: str, **env: str) -> subprocess.Popen:
    command = [sys.executable, "-m", f"zoo_{name}.trainer.task", *flags(zoo, name, output, *more)]
    path = f"{zoo}{os.pathsep}{ROOT}"
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def weights(output: Path, step: int = STEPS) -> dict[str, np.ndarray]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(output / "checkpoints" / f"ckpt-{step:09d}"))
    names = [name for name in reader.get_variable_to_shape_map() if name != "state_json"]
    return {"/".join(name.split("/")[:2]): reader.get_tensor(name) for name in names}  # Keras numbers layers anew in a process


def free_ports(count: int) -> list[int]:
    import socket

    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_killed_and_resumed_it_ends_with_the_same_weights_and_serves_them(name, zoo, tmp_path):
    whole = train(zoo, name, tmp_path / "whole")
    killed = process(zoo, name, tmp_path / "killed", TRAINER_KILL=f"step={KILL},signal=KILL")
    said = killed.communicate(timeout=300)[0]
    assert killed.returncode == -9, said
    resumed = train(zoo, name, tmp_path / "killed")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert one.keys() == other.keys() and len(one) > 3
    for key, values in one.items():
        np.testing.assert_array_equal(values, other[key], err_msg=key)
    assert {k: v for k, v in whole.items() if k.startswith("val_")} == {k: v for k, v in resumed.items() if k.startswith("val_")}
    record = json.loads((tmp_path / "killed" / "metrics.json").read_text())
    assert record["skew_gate"]["rows"] > 0 and record["skew_gate"]["largest_difference"] < 1e-2


@pytest.mark.slow
@pytest.mark.multiworker
@pytest.mark.parametrize(("name", "count"), [(n, 2) for n in MODELS] + [(n, 3) for n in ("functional", "two_outputs", "normalised")])
def test_several_workers_train_it(name, count, zoo, tmp_path):
    alone = train(zoo, name, tmp_path / "alone")
    hosts = [f"127.0.0.1:{port}" for port in free_ports(count)]
    cluster = {"chief": hosts[:1], "worker": hosts[1:]}
    tasks = [{"type": "chief", "index": 0}, *({"type": "worker", "index": i} for i in range(count - 1))]
    workers = [process(zoo, name, tmp_path / "both", TF_CONFIG=json.dumps({"cluster": cluster, "task": task})) for task in tasks]
    for worker in workers:
        said = worker.communicate(timeout=300)[0]
        if name == "accumulated":  # as Keras itself; said before the first step
            assert worker.returncode and f"gradient_accumulation_steps does not work on {count} replicas" in said, said
        else:
            assert worker.returncode == 0, said
    if name == "accumulated":
        return
    assert (tmp_path / "both" / "model" / "saved_model.pb").exists()
    together = json.loads((tmp_path / "both" / "metrics.json").read_text())
    if "EXACT = True" in MODELS[name]:
        one, other = weights(tmp_path / "alone"), weights(tmp_path / "both")
        for key in one:
            if key.startswith("model/") and one[key].dtype.kind == "f":
                np.testing.assert_allclose(other[key], one[key], atol=2e-4, rtol=2e-3, err_msg=key)
        for key, value in alone.items():
            assert together[key] == pytest.approx(value, rel=2e-3, abs=2e-4), key


@pytest.mark.parametrize("name", ["images", pytest.param("source", marks=pytest.mark.slow)])
def test_rows_that_are_prepared_as_needed_come_in_the_same_batches(name, zoo, tmp_path):
    results = []
    for memory in ("yes", "no"):
        metrics = train(zoo, name, tmp_path / memory, f"--in_memory={memory}", f"--ledger={tmp_path / memory}.ledger")
        lines = [json.loads(line) for line in Path(f"{tmp_path / memory}.ledger").read_text().splitlines()]
        results.append(([(line["step"], line["rows"]) for line in lines], {k: v for k, v in metrics.items() if k.startswith("val_")}))
    assert len(results[0][0]) == STEPS and results[0] == results[1]


@pytest.mark.slow
def test_a_dataset_is_counted_once_and_skipped_through_on_resume(zoo, tmp_path, capsys):
    train(zoo, "dataset", tmp_path / "out", "--num_evals=1")
    assert "dataset: its length is not known, so it was run through once to count 300 examples" in capsys.readouterr().out
    more = f"--num_examples_to_train_on={2 * STEPS * BATCH}"
    train(zoo, "dataset", tmp_path / "out", "--num_evals=1", more)
    assert f"dataset: skipping {STEPS * BATCH % 300} examples of epoch {STEPS * BATCH // 300}" in capsys.readouterr().out
