"""What `learn` returned is kept by what it was learnt of, and is the same when it is taken from there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vertex_runtime.arguments import CommonHyperparameters, option

TAXI = "taxifare/tests/data/taxi-train.csv"


@dataclasses.dataclass(frozen=True)
class Hyperparameters(CommonHyperparameters):
    words: int = option(10, "words")
    sizes: tuple[int, ...] = option((32, 8), "sizes")


def same(one, other) -> bool:
    """Tell whether two values are the same in types, order and every byte."""
    import tensorflow as tf

    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, tf.Tensor):
        return one.dtype == other.dtype and same(one.numpy(), other.numpy())
    if isinstance(one, np.ndarray) and one.dtype == object:
        return one.shape == other.shape and same(one.ravel().tolist(), other.ravel().tolist())
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return repr(one) == repr(other)


def values():
    import tensorflow as tf

    words = np.array([b"a", "é".encode(), b"\0"], object)
    return {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::2], "scalar": np.float64(0.1), "nan": float("nan"), "minus": -0.0,
        "big": 2**80, "texts": ["é", "\ud800", ""], "pair": (1, (True, None)), "bytes": b"\xff\0", "words": words.reshape(3, 1),
        "empty": np.zeros((0, 4), np.int16), "names": np.array(["ab", "c"]),
        3: {"4": [], (1, 2): "key"}, "day": np.array(["2020-01-01"], "M8[D]"),
        "tensor": tf.constant([[1, 2]], tf.int64), "vocabulary": tf.constant([b"x", b"\xff"]), "flags": np.array([True, False]),
    }  # fmt: skip


def test_values_come_back_as_they_were(tmp_path):
    from vertex_runtime import learnt

    value = values()
    assert same(value, value) and not same(value, value | {"minus": 0.0})
    first = learnt.kept(str(tmp_path), "t", {}, Hyperparameters(), lambda hp: value, lambda: None)
    assert first is value
    again = learnt.kept(str(tmp_path), "t", {}, Hyperparameters(), lambda hp: pytest.fail("learnt again"), lambda: None)
    assert same(again, value)


@pytest.mark.parametrize("kind", ["layer", "set", "bfloat16", "lambda", "subclass"])
def test_what_no_file_holds_is_learnt_anew_and_said(kind, tmp_path, capsys):
    import collections

    import keras
    import tensorflow as tf

    from vertex_runtime import learnt

    odd = {
        "layer": keras.layers.Normalization(), "set": {1}, "bfloat16": tf.cast(tf.zeros(2), tf.bfloat16), "lambda": len,
        "subclass": collections.Counter("ab"),
    }[kind]  # fmt: skip
    times = []
    for _ in range(2):
        learnt.kept(str(tmp_path), "t", {}, Hyperparameters(), lambda hp: times.append(1) or {"a": [1, odd]}, lambda: None)
    assert len(times) == 2 and not list(tmp_path.glob("*.npz"))
    assert "it['a'][1], of type" in capsys.readouterr().out


def learner(times: list, read):
    from vertex_runtime import learnt

    def run(folder: Path, made_of: dict | None = None, **fields):
        hp = Hyperparameters(**fields)
        return learnt.kept(str(folder), "t", made_of or {}, hp, lambda seen: times.append(1) or [read(seen)], lambda: None)

    return run


def test_it_belongs_to_the_hyperparameters_that_learn_has_read(tmp_path):
    times: list[int] = []
    run = learner(times, lambda hp: hp.words * (hp.sizes[0] if hp.words > 5 else 1))
    assert run(tmp_path) == [320] and run(tmp_path, seed=7, batch_size=3) == [320] and len(times) == 1
    assert run(tmp_path, sizes=(16,)) == [160] and len(times) == 2
    assert run(tmp_path, words=2) == [2] and run(tmp_path, words=2, sizes=(9,)) == [2] and len(times) == 3  # sizes was not looked at
    assert run(tmp_path) == [320] and run(tmp_path, {"data": 1}) == [320] and len(times) == 4


@pytest.mark.parametrize("read", [lambda hp: sorted(dataclasses.asdict(hp)), lambda hp: sorted(vars(hp)), lambda hp: hash(hp) * 0])
def test_who_reads_all_hyperparameters_depends_on_all(read, tmp_path):
    times: list[int] = []
    run = learner(times, read)
    run(tmp_path), run(tmp_path, plateau=1), run(tmp_path)
    assert len(times) == 2


@pytest.mark.parametrize("kind", ["python", "numpy", "tensorflow", "keras"])
def test_random_draws_follow_the_seed(kind, tmp_path):
    import random

    import keras
    import tensorflow as tf

    draw = {
        "python": random.random, "numpy": np.random.rand, "tensorflow": lambda: float(tf.random.uniform([])),
        "keras": lambda: float(keras.random.uniform([])),
    }[kind]  # fmt: skip
    times: list[int] = []
    run = learner(times, lambda hp: draw())
    keras.utils.set_random_seed(0)
    assert run(tmp_path) == run(tmp_path)
    run(tmp_path, seed=1)
    assert len(times) == 2


def test_a_damaged_entry_is_learnt_anew(tmp_path):
    times: list[int] = []
    run = learner(times, lambda hp: hp.words)
    run(tmp_path)
    (entry,) = tmp_path.glob("*.npz")
    for damaged in (entry.read_bytes()[:-30], b"", entry.read_bytes().replace(b"10", b"11")):
        entry.write_bytes(damaged)
        assert run(tmp_path) == [10] and run(tmp_path) == [10]
    assert len(times) == 4


# ------------------------------------------------------------------ whole runs


@pytest.mark.slow
def test_runs_share_what_was_learnt(tmp_path, capsys):
    """A second run, or a trial with another learning rate or seed, does not read the rows for it; its weights are the same."""
    from benchmarks import drills
    from taxifare.trainer.task import main

    def run(name: str, *flags: str) -> str:
        common = ["--num_examples_to_train_on=640", "--num_evals=1", f"--ledger={tmp_path / name}.jsonl"]
        main([f"--output_dir={tmp_path / name}", *common, *flags])
        return capsys.readouterr().out

    taken, cache = "what an earlier run has learnt of the same rows is taken", f"--cache_dir={tmp_path / 'cache'}"
    assert taken not in run("without") + run("first", cache)
    assert taken in run("second", cache)
    # Keras numbers names anew in every run of a process; owner and place stay.
    found = [
        {"/".join(key.split("/")[:2]): value for key, value in drills.weights(tmp_path / name).items()} for name in ("second", "without")
    ]
    assert drills.largest_difference(*found) == 0.0
    assert (tmp_path / "second.jsonl").read_text() == (tmp_path / "without.jsonl").read_text()
    assert taken in run("trial", cache, "--lr=0.001", "--seed=3")
    assert taken not in run("lab", cache, "--features=lab")  # `learn` asks for it
    copy = tmp_path / "copy.csv"
    copy.write_text(Path(TAXI).read_text())
    files = [f"--train_data_path={copy}", "--eval_data_path=taxifare/tests/data/taxi-valid.csv"]
    assert taken in run("copy", cache, *files)  # the same content elsewhere
    copy.write_text("".join(copy.read_text().splitlines(keepends=True)[:-1]))
    assert taken not in run("other", cache, *files)


def inputs_of(trainer: str, values=(), trains: bool = True, **options):
    """Return the rows of a trainer on its sample data, as a run has them before it trains."""
    import importlib
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import ExitStack

    from vertex_runtime import contract
    from vertex_runtime.arguments import RunOptions
    from vertex_runtime.environment import Environment
    from vertex_runtime.inputs import Inputs

    kind = importlib.import_module(f"{trainer}.trainer.hyperparameters").Hyperparameters
    model = contract.load_module(f"{trainer}.trainer.model", kind)
    with ExitStack() as held, ThreadPoolExecutor(1) as background:
        return Inputs(model, kind(**dict(values)), RunOptions(**options), Environment(), background, held, trains=trains)


def test_classes_are_kept_too(tmp_path, capsys):
    """They are found in the rows where nobody says `learn`."""
    found = [inputs_of("stackoverflow", {"seed": seed}, cache_dir=str(tmp_path / "cache")).facts["class_names"] for seed in (0, 1)]
    assert "is taken from" in capsys.readouterr().out
    assert list(found[0]) == list(found[1]) and len(found[0]) > 1


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_shards_are_read_side_by_side_to_the_same_result(shards, tmp_path):
    """Whatever the number of files, and of the threads that read them, `learn` sees the same rows in the same chunks."""
    import threading

    from vertex_runtime import ahead, data
    from vertex_runtime.columns import Number

    lines = [f"{i * 0.1:.3f}" for i in range(5000)]
    paths = [tmp_path / f"part-{i}.csv" for i in range(shards)]
    for path, part in zip(paths, np.array_split(lines, shards)):
        path.write_text("x\n" + "\n".join(part) + "\n")
    names = set()

    def read(path):
        for chunk in data.read(str(path), (Number("x"),), (), data.BadRows()):
            names.add(threading.current_thread().name)
            yield chunk

    for threads in (1, 3):
        chunks = list(data.rechunk(ahead.one_after_another(read, paths, threads), 640))
        assert [len(chunk["x"]) for chunk in chunks] == [640] * 7 + [520]
        np.testing.assert_array_equal(np.concatenate([chunk["x"] for chunk in chunks]), np.array(lines, np.float32))
    assert len(names) >= min(2, shards)


def test_who_stops_early_opens_few_files_and_leaves_no_thread(tmp_path):
    import threading

    from vertex_runtime import ahead

    opened = []

    def read(path):
        opened.append(path)
        yield from range(3)

    before = threading.active_count()
    items = ahead.one_after_another(read, list(range(10)), 2)
    assert next(items) == 0 and opened == [0]
    assert [next(items) for _ in range(4)] == [1, 2, 0, 1]
    items.close()
    assert len(opened) <= 3 and threading.active_count() == before


def test_the_fault_of_a_later_file_is_raised_in_its_turn():
    from vertex_runtime import ahead

    def read(path):
        if path == 1:
            raise ValueError("bad")
        yield from range(3)

    items = ahead.one_after_another(read, [0, 1, 2], 3)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="bad"):
        next(items)


def test_an_evaluator_prepares_no_training_row(tmp_path, monkeypatch):
    """It reads those for what `learn` needs alone, and with --cache_dir not even for that."""
    from vertex_runtime import data, rows

    prepared, opened = [], []
    call, read = rows.Preparer.__call__, data.read
    noting = lambda self, chunk, training=False: prepared.append(training) or call(self, chunk, training)  # noqa: E731
    monkeypatch.setattr(rows.Preparer, "__call__", noting)
    monkeypatch.setattr(data, "read", lambda path, *args: opened.append(path) or read(path, *args))
    paths = {"train_data_path": (TAXI,), "eval_data_path": ("taxifare/tests/data/taxi-valid.csv",), "cache_dir": str(tmp_path)}

    def inputs(trains: bool):
        opened.clear(), prepared.clear()
        return inputs_of("taxifare", trains=trains, **paths)

    evaluator = inputs(False)
    assert opened.count(TAXI) == 1 and not any(prepared) and evaluator.train is None and evaluator.evaluation.count == 400
    again = inputs(False)
    assert TAXI not in opened and not any(prepared) and same(again.facts, evaluator.facts)
    assert inputs(True).train.count == 1600 and any(prepared)
