"""What is wrong with a trainer's own code is said in one line that names its place, whichever part of it fails, and when."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from test_any_model import HEAD, rows, write_trainer

from vertex_runtime.errors import UserError, cause

PLAIN = """
def preprocess(raw, hp, facts): return stacked(raw) / 50.0
def build_model(hp, facts, total_steps):
    return binary(keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)]))
"""
OTHER_ROWS = """
del COLUMNS
LABEL = "y"
def find(paths, flag): return list(paths)
def build_model(hp, facts, total_steps):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model
"""

# Name: the text of a model.py less its head, and what the line must say.
FAULTS = {
    "row_of_a_source": (
        OTHER_ROWS + "class Rows:\n    def __len__(self): return 300\n    def __getitem__(self, i):\n"
        "        if i == 250: raise KeyError('row is broken')\n        return {'x': np.zeros(1, np.float32), 'y': 1.0}\n"
        "def source(files, hp): return Rows()\n",
        ("model.py, line ", "[250] of what source returns: KeyError: 'row is broken'"),
    ),
    "example_of_a_dataset": (
        OTHER_ROWS + "def dataset(files, hp, epoch):\n    def bad(x):\n        tf.debugging.assert_less(x, 290.0)\n        return x, x\n"
        "    return tf.data.Dataset.from_tensor_slices(np.arange(300, dtype=np.float32)[:, None]).map(bad)\n",
        ("model.py", "in dataset: InvalidArgumentError: assertion failed", "290"),
    ),
    "generator_of_a_dataset": (
        OTHER_ROWS + "def dataset(files, hp, epoch):\n    def rows():\n        for i in range(300):\n"
        "            if i == 200: raise ValueError('row 200 is broken')\n            yield np.float32([i]), np.float32(i)\n"
        "    return tf.data.Dataset.from_generator(rows, output_signature=(tf.TensorSpec((1,)), tf.TensorSpec(())))\n",
        ("model.py, line ", "in dataset: InvalidArgumentError: ValueError: row 200 is broken"),
    ),
    "index_beyond_an_embedding": (
        "def preprocess(raw, hp, facts): return tf.cast(raw['age'], tf.int32)[:, None]\n"
        "def build_model(hp, facts, total_steps):\n    layers = [keras.layers.Embedding(50, 4, name='ages'), keras.layers.Flatten()]\n"
        "    return binary(keras.Sequential([keras.Input((1,), dtype='int32'), *layers, keras.layers.Dense(1)]))\n",
        ("in training: InvalidArgumentError: indices[", "is not in [0, 50) (operation ", "ages"),
    ),
    "a_step_of_its_own": (
        "def preprocess(raw, hp, facts): return stacked(raw) / 50.0\nclass Own(keras.Model):\n    def __init__(self):\n"
        "        super().__init__()\n        self.last, self.count = keras.layers.Dense(1), tf.Variable(0)\n"
        "    def call(self, x): return self.last(x)\n    def train_step(self, data):\n        self.count.assign_add(1)\n"
        "        tf.debugging.assert_less(self.count, 12, message='too far')\n        return super().train_step(data)\n"
        "def build_model(hp, facts, total_steps): return binary(Own())\n",
        ("model.py, line ", "in training: InvalidArgumentError: assertion failed: [too far]"),
    ),
    "a_callback": (
        PLAIN + "class Broken(keras.callbacks.Callback):\n    def on_epoch_end(self, epoch, logs=None): raise RuntimeError('it broke')\n"
        "def callbacks(hp): return [Broken()]\n",
        ("model.py, line ", "in on_epoch_end of a callback: RuntimeError: it broke"),
    ),
    "preprocess_of_values": (
        "def preprocess(raw, hp, facts): return tf.strings.to_number(raw['city'])[:, None]\n"
        "def build_model(hp, facts, total_steps):\n    return binary(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))\n",
        ("preprocess cannot take it (StringToNumberOp could not correctly convert string: ", "'age': "),
    ),
    "preprocess_of_rows": (
        PLAIN.replace("stacked(raw) / 50.0", "tf.reduce_mean(stacked(raw), 0, keepdims=True)"),
        ("preprocess must return a value for each row, [", "got the shape (1, 5). Correct it in ", "model.py"),
    ),
    "encode_labels": (
        PLAIN + "def encode_labels(chunk, facts): return np.ones(2 * len(chunk['age']), np.float32)\n",
        ("encode_labels must return a value for each row",),
    ),
    "weigh": (PLAIN + "def weigh(chunk, hp, facts): return np.ones(3, np.float32)\n", ("weigh must return a value", "got the shape (3,)")),
    "extra_files_elsewhere": (
        PLAIN + "def extra_files(facts): return {'../../x.txt': 'text'}\n",
        ("extra_files(facts) must return texts by the names of files in assets.extra; got '../../x.txt'",),
    ),
    "extra_files_of_bytes": (PLAIN + "def extra_files(facts): return {'x.txt': b'bytes'}\n", ("got 'x.txt': bytes",)),
}
FINE = {
    "call_without_training": (
        "def preprocess(raw, hp, facts): return stacked(raw) / 50.0\nclass Own(keras.Model):\n    def __init__(self):\n"
        "        super().__init__()\n        self.last = keras.layers.Dense(1)\n    def call(self, x): return self.last(x)\n"
        "def build_model(hp, facts, total_steps): return binary(Own())\ndef extra_files(facts): return {'notes/mine.txt': 'text'}\n",
        ("served and trained predictions agree on 60 rows",),
    ),
    "random_answers": (
        "def preprocess(raw, hp, facts): return stacked(raw) / 50.0\nclass Noise(keras.layers.Layer):\n    def __init__(self):\n"
        "        super().__init__()\n        self.seed_generator = keras.random.SeedGenerator(3)\n"
        "    def call(self, x): return x + keras.random.normal(tf.shape(x), seed=self.seed_generator)\n"
        "def build_model(hp, facts, total_steps):\n"
        "    return binary(keras.Sequential([keras.Input((5,)), keras.layers.Dense(1), Noise()]))\n",
        ("the model draws random numbers when it answers", "So served and trained predictions are not compared"),
    ),
    "arguments_of_fit": (
        PLAIN.replace("    return binary(", "    model = binary(")
        + "    model.compile('adam', 'mse', run_eagerly=True, steps_per_execution=7)\n"
        "    return model\n",
        ("compile(run_eagerly=True) is not looked at", "compile(steps_per_execution=7) is not looked at: --steps_per_call"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with every trainer and the data they read."""
    made = tmp_path_factory.mktemp("faults")
    for name, (text, _) in (FAULTS | FINE).items():
        write_trainer(made, f"fault_{name}", HEAD + text)
    (made / "train.csv").write_text(rows(300, 1))
    (made / "valid.csv").write_text(rows(60, 2))
    sys.path.insert(0, str(made))
    yield made
    sys.path.remove(str(made))


def train(folder: Path, name: str, output: Path) -> None:
    data = [f"--train_data_path={folder / 'train.csv'}", f"--eval_data_path={folder / 'valid.csv'}"]
    flags = [*data, f"--output_dir={output}", "--batch_size=20", "--epochs=1", "--num_evals=1"]
    importlib.import_module(f"fault_{name}.trainer.task").main(flags)


TRAINED = ("index_beyond_an_embedding", "a_step_of_its_own", "a_callback", "extra_files_elsewhere", "extra_files_of_bytes")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in TRAINED)) for name in FAULTS])
def test_one_line_says_what_is_wrong_and_where(name, folder, tmp_path):
    with pytest.raises(UserError) as caught:
        train(folder, name, tmp_path / "out")
    message = str(caught.value)
    for words in FAULTS[name][1]:
        assert words in message
    assert len(message.splitlines()) == 1 and len(message) < 700 and "task.py" not in message
    assert not (tmp_path / "out" / "model" / "saved_model.pb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", FINE)
def test_what_fit_would_train_is_trained_with_a_line_on_what_differs(name, folder, tmp_path, capfd):
    train(folder, name, tmp_path / "out")
    said = "".join(capfd.readouterr())
    for words in FINE[name][1]:
        assert words in said
    assert (tmp_path / "out" / "model" / "saved_model.pb").exists()


def test_the_cause_is_found_in_tensorflows_text():
    text = (
        "Graph execution error:\n\nDetected at node while/ages/GatherV2 defined at (most recent call last):\n"
        '  File "<frozen runpy>", line 198, in _run\n\n  File "a.py", line 3, in call\n\n'
        "indices[1,0] = 57 is not in [0, 50)\n\t [[{{node while/ages/GatherV2}}]] [Op:__inference_train_12]"
    )
    assert cause(ValueError(text)) == "indices[1,0] = 57 is not in [0, 50) (operation while/ages/GatherV2)"
    assert cause(ValueError("")) == "ValueError"
    layer = "Exception encountered when calling Own.call().\n\n\x1b[1mNot a tensor.\x1b[0m\n\nArguments received by Own.call():\n  • x=None"
    assert cause(TypeError(layer)).startswith("Exception encountered when calling Own.call(). Not a tensor.")
