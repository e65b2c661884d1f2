"""The one order of rows: a pure function of seed, count and size, the same from memory and from a cache on disk."""

from __future__ import annotations

import os

import numpy as np
import pytest
from test_learnt import inputs_of

from vertex_runtime import order as orders
from vertex_runtime.errors import UserError
from vertex_runtime.order import Order

CASES = [(10, 1), (1000, 7), (4096, 64), (5001, 64), (131, 64)]


def taken(order: Order, batch: int, steps: int, step: int = 0) -> np.ndarray:
    found: list[np.ndarray] = []
    for places in order.steps(batch, step):
        found += list(places)
        if len(found) >= steps:
            return np.array(found[:steps])
    raise AssertionError


@pytest.mark.parametrize(("count", "block"), CASES)
def test_every_row_once_an_epoch_in_another_order_each(count, block):
    order = Order(3, count, block, 4)
    epochs = taken(order, 1, 3 * count).reshape(3, count)
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(count))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[0], np.arange(count))
    assert not np.array_equal(epochs[0], taken(Order(4, count, block, 4), 1, count).ravel())


@pytest.mark.parametrize(("count", "block"), CASES)
def test_neither_batch_nor_resume_changes_it(count, block):
    order = Order(3, count, block, 4)
    whole = taken(order, 1, 3 * count).ravel()
    for batch in (3, 10):
        steps = 3 * count // batch
        assert np.array_equal(taken(order, batch, steps).ravel(), whole[: steps * batch])
        for step in (1, steps // 2, steps - 1):
            assert np.array_equal(taken(order, batch, steps - step, step).ravel(), whole[step * batch : steps * batch])


def test_what_fits_a_window_is_shuffled_fully():
    order = Order.of(0, 100_000, 100.0)
    (window,) = order.windows(0)
    assert np.array_equal(order.places(window), orders.permutation(0, 0, 100_000))


def test_a_window_holds_rows_of_all_the_data():
    """Windows of many blocks from everywhere: of sorted rows, each one holds the classes nearly as the whole does."""
    order = Order.of(0, 5_000_000, 136.0)
    windows = list(order.windows(0))
    assert len(windows) > 4 and max(len(w.order) for w in windows) - min(len(w.order) for w in windows) <= 2 * order.block_rows
    for window in windows:
        shares = np.bincount(order.places(window) // 500_000, minlength=10) / len(window.order)
        assert np.abs(shares - 0.1).max() < 0.05


@pytest.mark.parametrize(("row_bytes", "rows"), [(1, 131072), (68, 1920), (2**17, 1), (2**24, 1)])
def test_blocks_and_windows_are_bounded(row_bytes, rows):
    order = Order.of(0, 10**7, row_bytes)
    assert order.block_rows == rows
    assert order.window_blocks * rows * row_bytes <= orders.WINDOW_BYTES


# ------------------------------------------------------------------ the cache


@pytest.fixture
def small_windows(monkeypatch):
    """Blocks of a few rows and windows of a few blocks, so that a small set has many."""
    monkeypatch.setattr(orders, "WINDOW_BYTES", 24 << 10)
    monkeypatch.setattr(orders, "WINDOW_BLOCKS", 2)


def rows_of_all_kinds(count: int):
    import tensorflow as tf

    place = np.arange(count)
    texts = np.array([f"é{i}".encode() * (i % 3) for i in place], object)
    features = {
        "numbers": np.stack([place, -place], 1).astype(np.float32), "scalar": place.astype(np.int64), "flag": place % 2 == 0,
        "text": texts, "texts": np.stack([texts, texts[::-1]], 1), "empty": np.zeros((count, 0), np.float32),
        "half": tf.cast(tf.constant(place % 100, tf.float32), tf.bfloat16),
        "cube": np.zeros((count, 2, 3), np.uint8) + (place % 9)[:, None, None].astype(np.uint8),
    }  # fmt: skip
    return tf.nest.map_structure(tf.convert_to_tensor, (features, place.astype(np.float32)))


def parts(rows, size: int):
    import tensorflow as tf

    count = len(tf.nest.flatten(rows)[0])
    for start in range(0, count, size):
        yield tf.nest.map_structure(lambda t: t[start : start + size], rows)  # noqa: B023 - used at once


def cached(rows, folder, name=None, size=100):
    from vertex_runtime.cache import Cache, Layout
    from vertex_runtime.rows import CachedRows, fill

    cache = Cache(Layout.of(rows), str(folder), name)
    fill(cache, parts(rows, size), orders.block_rows(64.0))
    cache.finish()
    return CachedRows(cache, cache.count, 64.0)


def fed(rows, batch: int, steps: int, step: int = 0, share=None):
    """Return the flat tensors of some steps, as arrays [steps, own part of the batch, ...]."""
    import tensorflow as tf

    from vertex_runtime.rows import Share

    found: list[list[np.ndarray]] = []
    for tensors, order in rows.feed(batch, 5, step, share or Share()):
        flat = [tensor.numpy() for tensor in tf.nest.flatten(tensors)]
        found += [[tensor[places] for tensor in flat] for places in order]
        if len(found) >= steps:
            return [np.stack(column) for column in zip(*found[:steps])]
    raise AssertionError


@pytest.mark.parametrize("chunk", [1, 100, 997])
def test_rows_from_disk_are_those_from_memory(chunk, small_windows, tmp_path):
    """Whatever the chunks they came in, from any step on, for each of several workers."""
    from vertex_runtime.rows import MemoryRows, Share

    rows = rows_of_all_kinds(997)
    memory, disk = MemoryRows(parts(rows, 50), 64.0), cached(rows, tmp_path, size=chunk)
    assert disk.count == memory.count == 997
    assert len(list(Order.of(5, 997, 64.0).windows(0))) > 2
    for step in (0, 1, 40, 99):
        for one, other in zip(fed(memory, 24, 60, step), fed(disk, 24, 60, step)):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    whole = fed(memory, 24, 60)
    for workers in (2, 3, 8):
        own = [fed(disk, 24, 60, 0, Share(worker, workers)) for worker in range(workers)]
        for i, column in enumerate(whole):
            np.testing.assert_array_equal(np.concatenate([part[i] for part in own], 1), column)
    chunks = [column for chunk in disk.chunks() for column in [chunk[1].numpy()]]
    np.testing.assert_array_equal(np.concatenate(chunks), np.arange(997))


def test_a_cache_without_a_name_leaves_nothing(small_windows, tmp_path):
    rows = cached(rows_of_all_kinds(300), tmp_path)
    assert not list(tmp_path.iterdir()) and fed(rows, 10, 30)


def test_a_named_cache_is_opened_again_and_half_a_one_is_not(small_windows, tmp_path):
    from vertex_runtime.cache import Cache, Layout
    from vertex_runtime.rows import CachedRows

    rows = rows_of_all_kinds(300)
    first = cached(rows, tmp_path, "kept")
    found = Cache.open(Layout.of(rows), str(tmp_path), "kept")
    for one, other in zip(fed(first, 10, 60), fed(CachedRows(found, found.count, 64.0), 10, 60)):
        np.testing.assert_array_equal(one, other)
    import pyarrow as pa

    (file,) = tmp_path.glob("kept.*.arrow")
    assert sum(len(batch) for batch in pa.ipc.open_stream(str(file))) == 300  # anyone can read it
    os.truncate(file, 1000)
    assert Cache.open(Layout.of(rows), str(tmp_path), "kept") is None
    with pytest.raises(UserError, match="was cut short by somebody"):
        fed(CachedRows(found, found.count, 64.0), 10, 60)


@pytest.mark.slow
@pytest.mark.parametrize("of_files", ["no", "yes"])
def test_whole_runs_are_fed_the_same(of_files, small_windows, tmp_path, monkeypatch):
    """With windows of few rows, taxifare's batches are the same from memory, from disk and from several files."""
    from taxifare.trainer.task import main

    lines = open("taxifare/tests/data/taxi-train.csv").read().splitlines(keepends=True)
    for i, (start, end) in enumerate([(0, 700), (700, 701), (701, 1600)]):
        (tmp_path / f"part-{i}.csv").write_text("".join(lines[start:end]))
    ledgers = []
    of_one = "no" if of_files == "yes" else "yes"  # whether the rows are in memory
    for name, path, memory in (("one", "taxifare/tests/data/taxi-train.csv", of_one), ("files", f"{tmp_path}/part-*.csv", of_files)):
        flags = [f"--output_dir={tmp_path / name}", f"--ledger={tmp_path / name}.jsonl", f"--in_memory={memory}", "--batch_size=64"]
        main([*flags, f"--train_data_path={path}", "--eval_data_path=taxifare/tests/data/taxi-valid.csv", "--epochs=2", "--features=lab"])
        ledgers.append((tmp_path / f"{name}.jsonl").read_text())
    assert ledgers[0] == ledgers[1]


# ------------------------------------------------------------------ files that change, disks that are full


@pytest.mark.slow
def test_runs_share_a_cache_by_its_key(tmp_path, capsys):
    from taxifare.trainer.task import main

    def said(**values):
        inputs_of("taxifare", values, in_memory="no", cache_dir=str(tmp_path / "cache"))
        return capsys.readouterr().out

    flags = ["--in_memory=no", f"--cache_dir={tmp_path / 'cache'}", "--num_examples_to_train_on=480", "--num_evals=1", "--epochs=1"]
    main([f"--output_dir={tmp_path / 'a'}", *flags])
    assert "cache: preparing the training rows once" in capsys.readouterr().out
    assert "cache: 1600 training rows, prepared by an earlier run" in said(lr=0.001)
    assert "cache: preparing the training rows once" in said(nbuckets=5)  # prepares other features


def test_a_disk_without_room_is_refused_before_anything_is_prepared(tmp_path, monkeypatch):
    from taxifare.trainer.task import main
    from vertex_runtime import inputs

    monkeypatch.setattr(inputs, "room", lambda folder: 1000)
    with pytest.raises(UserError, match="GiB left. Name a folder on a larger local disk: --cache_dir."):
        main([f"--output_dir={tmp_path / 'out'}", "--in_memory=no", f"--cache_dir={tmp_path / 'cache'}"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--cache_dir: cannot write to"):
        main([f"--output_dir={tmp_path / 'out'}", "--in_memory=no", f"--cache_dir={tmp_path / 'file'}"])


@pytest.mark.parametrize("what", ["shrinks", pytest.param("grows", marks=pytest.mark.slow), "goes"])
def test_a_file_that_changes_under_a_run_ends_it(what, small_windows, tmp_path, monkeypatch):
    """At the next window at the latest, in one line that names it; the newest checkpoint is from before."""
    from taxifare.trainer.task import main
    from vertex_runtime.reporting import Events

    path = tmp_path / "train.csv"
    text = open("taxifare/tests/data/taxi-train.csv").read()
    path.write_text(text)
    enter = Events.enter

    def change(self, phase, step, **facts):
        if phase == "step" and step >= 10 and path.exists() and path.stat().st_size == len(text):
            path.unlink() if what == "goes" else path.write_text(text[:30_000] if what == "shrinks" else text + text)
        return enter(self, phase, step, **facts)

    monkeypatch.setattr(Events, "enter", change)
    flags = ["--features=lab", "--in_memory=no", "--batch_size=64", "--epochs=4", "--num_evals=2", "--checkpoint_steps=5"]
    flags.append(f"--train_data_path={path}")
    with pytest.raises(UserError, match=f"{path} (is gone|has changed) since the run began to read it"):
        main([f"--output_dir={tmp_path / 'out'}", *flags, "--eval_data_path=taxifare/tests/data/taxi-valid.csv"])
    assert list((tmp_path / "out/checkpoints").iterdir()) and not (tmp_path / "out/model/saved_model.pb").exists()
