"""What limits a run is measured while it trains, and said in its log, its events and TensorBoard."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
from test_any_model import HEAD, write_trainer

from vertex_runtime import pace

MODEL = """
import os, time
del COLUMNS, LABEL
SLOW = {slow!r}
class Rows:
    def __init__(self, count):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, i):
        if SLOW == "input" and self.count > 32:
            time.sleep(0.02)
        return {{"x": np.float32([i % 7, 1.0]), "y": i % 2}}
LABEL = "y"
def find(paths, flag):
    return list(paths)
def source(files, hp):
    return Rows(320 if files == ["a"] else 32)
class Model(keras.Model):
    def train_step(self, data):
        if SLOW == "computing":
            tf.py_function(lambda: time.sleep(0.3), [], [])
        return super().train_step(data)
class Slow(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.3 if SLOW == "callbacks" else 0.0)
def callbacks(hp):
    return [Slow()]
def build_model(hp, facts, total_steps):
    x = keras.Input((2,))
    model = Model(x, keras.layers.Dense(1)(x))
    model.compile("adam", "mse")
    return model
OBJECTIVE = "val_loss"
"""


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""
    now = [100.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    return now


def test_shares_and_peak_of_a_window(clock):
    measured = pace.Pace()
    clock[0] += 10.0
    measured.waited(6.0)
    measured.stepped(3000, 3.0)
    found = measured.pause()
    assert found == pace.Limits(pace.INPUT, 0.6, 1000.0, 300.0, 0.6) and found.of_peak == 0.3
    assert str(found) == (
        "limited by: input (60 % of the time waiting for rows); computing could take 1,000 examples/s, 30 % of that reached"
    )
    clock[0] += 500.0  # an evaluation
    measured.resume()
    clock[0] += 4.0
    measured.stepped(2000, 3.5)
    slower = measured.pause()
    assert (slower.by, slower.peak, slower.reached) == (pace.COMPUTING, 1000.0, 500.0), "the best window's speed is the peak"
    assert slower.fields() == {
        "limited_by": "computing", "waiting_for_rows": 0.0, "share_of_peak": 0.5, "peak_examples_per_second": 1000,
    }  # fmt: skip


def test_moments_are_added_up_until_they_are_worth_a_word(clock):
    measured = pace.Pace()
    for _ in range(3):
        measured.resume()
        clock[0] += 0.3
        measured.stepped(30, 0.1)
        assert measured.pause() is None
        clock[0] += 60.0
    measured.resume()
    clock[0] += 0.3
    measured.stepped(30, 0.1)
    assert measured.pause() == pace.Limits(pace.REST, 0.0, pytest.approx(300.0), pytest.approx(100.0), pytest.approx(2 / 3))


@pytest.mark.slow
@pytest.mark.parametrize("slow, by", [("input", pace.INPUT), ("computing", pace.COMPUTING), ("callbacks", pace.REST)])
def test_a_run_says_what_limits_it(tmp_path, monkeypatch, capsys, slow, by):
    write_trainer(tmp_path, f"slow_{slow}", HEAD + MODEL.format(slow=slow))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TRAINER_EVENTS", str(tmp_path / "events"))
    flags = ["--train_data_path=a", "--eval_data_path=b", f"--output_dir={tmp_path}/out", "--batch_size=32", "--steps_per_call=1"]
    importlib.import_module(f"slow_{slow}.trainer.task").main([*flags, "--epochs=1", "--num_evals=2", "--in_memory=no"])
    out = capsys.readouterr().out
    assert out.count("limited by: ") == 1 and f"limited by: {by} (" in out, "once, for it does not change"
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    ends = [event for event in events if event["phase"] == "evaluation"]
    assert ends[-1]["limited_by"] == by and 0 < ends[-1]["share_of_peak"] <= 1.05 and ends[-1]["peak_examples_per_second"] > 0
    if slow == "input":
        assert ends[-1]["waiting_for_rows"] > 0.5 and ends[-1]["share_of_peak"] < 0.5
    assert {"waiting_for_rows", "share_of_peak"} <= _tags(tmp_path / "out" / "logs" / "train")
    del sys.modules[f"slow_{slow}"]


def _tags(folder) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return set(found.Tags()["tensors"]) | set(found.Tags()["scalars"])
