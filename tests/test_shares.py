"""Processes with a common folder share the work: each piece is done once, and the rows are those of one process."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from vertex_runtime.shares import Claims, Filling, Part, complete

HOLD = """
import sys, vertex_runtime.shares as shares
claims = shares.Claims(sys.argv[1])
print(claims.take(int(sys.argv[2])), flush=True)
sys.stdin.read()
"""


def holder(path: Path, piece: int) -> subprocess.Popen[str]:
    """Start a process that takes a piece and does nothing with it until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(piece)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def at_once(*works: Callable[[], object]) -> list[object]:
    """Run some functions in threads of their own; return what they return, or raise what the first to fail has raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(work) for work in works]
        for future in as_completed(futures, 600):
            future.result()
        return [future.result() for future in futures]


def test_a_piece_has_one_holder(tmp_path):
    one, other = Claims(str(tmp_path / "c")), Claims(str(tmp_path / "c"))
    assert one.take(3) and not other.take(3) and other.take(4) and not one.take(4)
    one.give_back(3)
    assert other.take(3)
    other.close()
    assert one.take(3) and one.take(4)


def test_who_is_killed_holds_nothing(tmp_path):
    mine = Claims(str(tmp_path / "c"))
    process = holder(tmp_path / "c", 7)
    try:
        assert not mine.take(7)
    finally:
        end(process)
    assert mine.take(7)


def test_without_locks_the_work_is_done_twice(tmp_path, monkeypatch):
    import errno
    import fcntl

    from vertex_runtime import shares

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    one, other = Claims(str(tmp_path / "c")), Claims(str(tmp_path / "c"))
    monkeypatch.setattr(shares.fcntl, "fcntl", none)
    monkeypatch.setattr(fcntl, "lockf", none)
    assert one.take(1) and other.take(1)
    one.give_back(1)


# ------------------------------------------------------------------ caches that several fill


ROWS, BLOCK, CHUNK, PIECE = 1030, 10, 20, 60


def cache_of(folder: Path, name: str | None = "rows"):
    from vertex_runtime.cache import Cache, Layout

    return Cache(Layout.of(numbers(0, 1)), str(folder), name)


def numbers(start: int, end: int):
    import tensorflow as tf

    return tf.constant(np.arange(start, end, dtype=np.int64)), tf.constant([str(i).encode() for i in range(start, end)])


class Work:
    """Fills a cache as a worker does, and notes what it prepared. It starts its first piece with all others."""

    def __init__(self, folder: Path, worker: int, workers: int, count: int | None, wait: Callable[[], None], barrier: threading.Barrier):
        self.cache, self.done, self.first = cache_of(folder), [], barrier
        part = Part(worker, workers, wait)
        self.filling = Filling(self.cache, self.rows, self.prepare, count, BLOCK, CHUNK, PIECE, part)

    def rows(self, row: int):
        for start in range(row, ROWS, 7):
            yield {"x": np.arange(start, min(start + 7, ROWS))}

    def prepare(self, chunks):
        for chunk in chunks:
            if not self.done:
                self.first.wait(300)
            self.done.append(int(chunk["x"][0]))
            yield [tensor.numpy() for tensor in numbers(int(chunk["x"][0]), int(chunk["x"][-1]) + 1)]

    def run(self) -> None:
        assert self.filling.run() == ROWS
        self.cache.finish()


def rows_in(cache) -> tuple[list[int], list[bytes]]:
    columns = cache.layout.empty(ROWS)
    cache.read(range(-(-ROWS // BLOCK)), columns, 0)
    return columns[0].tolist(), columns[1].tolist()


WHOLE = (list(range(ROWS)), [str(i).encode() for i in range(ROWS)])


def test_an_index_that_is_written_while_it_is_looked_for_stays(tmp_path, monkeypatch):
    """Who finds none must not remove the one that comes at that moment: all its blocks would be prepared again."""
    from vertex_runtime import cache

    one, other = cache_of(tmp_path), cache_of(tmp_path)
    one.write(0, [tensor.numpy() for tensor in numbers(0, BLOCK)])

    def late(path, *mode, **more):
        try:
            return open(path, *mode, **more)
        except FileNotFoundError:
            monkeypatch.undo()
            one.finish()
            raise

    monkeypatch.setattr(cache, "open", late, raising=False)
    other.refresh()
    assert one.finished and list(tmp_path.glob("*.json"))
    other.refresh()
    assert other.finished and 0 in other
    for each in (one, other):
        each.close()


def test_what_is_told_after_the_index_was_written_is_swept_too(tmp_path):
    """Both have prepared a block, and one finishes before the other has told of it."""
    one, other = cache_of(tmp_path), cache_of(tmp_path)
    for each in (one, other):
        each.write(0, [tensor.numpy() for tensor in numbers(0, BLOCK)])
    one.finish()
    other.publish()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".arrow", ".blocks", ".claims", ".json"]
    other.finish()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".arrow", ".claims", ".json"]
    for each in (one, other):
        assert 0 in each
        each.close()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_piece_is_prepared_once(workers, known, tmp_path):
    barrier = threading.Barrier(workers)
    works = [Work(tmp_path, i, workers, ROWS if known else None, lambda: None, barrier) for i in range(workers)]
    at_once(*(work.run for work in works))
    done, made = sorted(sum((work.done for work in works), [])), sum(work.filling.made for work in works)
    last = ROWS // PIECE * PIECE  # where only reading tells how many rows there are, nobody sees that a short last piece is whole
    assert sorted(set(done)) == list(range(0, ROWS, CHUNK)) and all(work.done for work in works)
    again = [start for start in set(done) if done.count(start) > 1]
    assert made - -(-ROWS // PIECE) <= (0 if known else workers - 1) and (not again or not known and min(again) >= last)
    for work in works:
        assert rows_in(work.cache) == WHOLE
        work.cache.close()
    names = sorted(path.suffix for path in tmp_path.iterdir())
    assert names == [".arrow"] * workers + [".claims", ".json"]
    from vertex_runtime.cache import Cache

    assert rows_in(Cache.open(works[0].cache.layout, str(tmp_path), "rows")) == WHOLE


@pytest.mark.parametrize("known", [True, False])
def test_what_a_dead_worker_leaves_is_taken_over(known, tmp_path):
    """It holds a piece until it is seen that nobody else goes on without it; then it is killed."""
    work = Work(tmp_path, 0, 1, ROWS if known else None, lambda: None, threading.Barrier(1))
    process = holder(tmp_path / "rows.claims", 4)
    waits = []

    def wait() -> None:
        waits.append(list(work.done))
        end(process)

    work.filling.part = Part(0, 1, wait)
    work.run()
    left = set(range(4 * PIECE, 5 * PIECE, CHUNK))
    assert len(waits) == 1 and set(waits[0]) == set(range(0, ROWS, CHUNK)) - left  # all else was done before
    assert rows_in(work.cache) == WHOLE


def test_a_killed_run_leaves_what_it_has_finished(tmp_path):
    first = Work(tmp_path, 0, 1, ROWS, lambda: None, threading.Barrier(1))
    rows = first.rows
    first.filling.rows = lambda row: (chunk if chunk["x"][0] < 500 else 1 / 0 for chunk in rows(row))
    with pytest.raises(ZeroDivisionError):
        first.run()
    first.cache.close()
    second = Work(tmp_path, 0, 1, ROWS, lambda: None, threading.Barrier(1))
    second.run()
    assert rows_in(second.cache) == WHOLE and not set(second.done) & set(range(0, 480, CHUNK))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_blocks_are_prepared_once_in_any_order(workers, tmp_path):
    caches = [cache_of(tmp_path) for _ in range(workers)]
    barrier = threading.Barrier(workers)
    blocks = np.random.default_rng(0).permutation(ROWS // BLOCK)
    done: list[list[int]] = [[] for _ in range(workers)]

    def work(worker: int) -> None:
        def prepared(wanted):
            if not done[worker]:
                barrier.wait(300)
            for block in wanted:
                done[worker].append(block)
                yield block, [tensor.numpy() for tensor in numbers(block * BLOCK, block * BLOCK + BLOCK)]

        for window in np.array_split(blocks, 4):
            wanted = np.sort(window).tolist()
            complete(caches[worker], wanted, prepared, Part(worker, workers))
            columns = caches[worker].layout.empty(len(wanted) * BLOCK)
            caches[worker].read(wanted, columns, 0)
            assert columns[0].tolist() == [block * BLOCK + i for block in wanted for i in range(BLOCK)]

    at_once(*(lambda i=i: work(i) for i in range(workers)))
    assert sorted(sum(done, [])) == sorted(blocks.tolist()) and all(done)


# ------------------------------------------------------------------ the rows of a run


@pytest.fixture
def small(monkeypatch):
    """Blocks, windows and pieces of a few rows."""
    from vertex_runtime import inputs, order

    # Threads stand for workers here, and Python 3.11's `ast` may fail in two of them at once.
    source = inputs.source_fingerprint(taxifare().module)
    monkeypatch.setattr(inputs, "source_fingerprint", lambda module: source)
    monkeypatch.setattr(order, "WINDOW_BYTES", 32 << 10)
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 4)
    monkeypatch.setattr(inputs, "PREPARED_ROWS", 64)
    monkeypatch.setattr(inputs, "PIECE_BYTES", 4 << 10)


def files_of(kind: str, folder: Path) -> list[str]:
    """Write taxifare's sample as three files of a kind."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from taxifare.trainer.model import COLUMNS

    kinds, names = {"key": pa.string(), "pickup_datetime": pa.string()}, [column.name for column in COLUMNS]
    options = pa.csv.ReadOptions(column_names=names), None, pa.csv.ConvertOptions(column_types=kinds)
    table = pa.csv.read_csv("taxifare/tests/data/taxi-train.csv", *options)
    paths = []
    for i, (start, end) in enumerate([(0, 700), (700, 1000), (1000, 1600)]):
        path, part = folder / f"part-{i}.{kind}", table.slice(start, end - start)
        if kind == "parquet":
            pa.parquet.write_table(part, path)
        elif kind == "csv":
            pa.csv.write_csv(part, path, pa.csv.WriteOptions(quoting_style="none"))
        else:
            with open(path, "w") as file:
                import json

                file.writelines(json.dumps(row) + "\n" for row in part.to_pylist())
        paths.append(str(path))
    return paths


@functools.cache
def taxifare():
    from taxifare.trainer.hyperparameters import Hyperparameters
    from vertex_runtime import contract

    return contract.load_module("taxifare.trainer.model", Hyperparameters)


def inputs_of(paths: list[str], held: ExitStack, worker: int = 0, workers: int = 1, **options: object):
    """Return the rows of a run as one of some workers has them."""
    from taxifare.trainer.hyperparameters import Hyperparameters
    from vertex_runtime.arguments import RunOptions
    from vertex_runtime.environment import Environment
    from vertex_runtime.inputs import Inputs

    cluster = {"chief": ("h:1",), "worker": tuple(f"h:{i + 2}" for i in range(workers - 1))} if workers > 1 else {}
    env = Environment(role="worker" if worker else "chief", index=max(0, worker - 1), cluster=cluster)
    chosen = RunOptions(
        train_data_path=tuple(paths), eval_data_path=("taxifare/tests/data/taxi-valid.csv",), in_memory="no", **options
    )
    return Inputs(taxifare(), Hyperparameters(), chosen, env, held.enter_context(ThreadPoolExecutor(1)), held)


def fed(rows, steps: int = 60) -> list[np.ndarray]:
    import tensorflow as tf

    from vertex_runtime.rows import Share

    found: list[list[np.ndarray]] = []
    for tensors, order in rows.feed(64, 5, 0, Share()):
        flat = [tensor.numpy() for tensor in tf.nest.flatten(tensors)]
        found += [[tensor[places] for tensor in flat] for places in order]
        if len(found) >= steps:
            return [np.stack(column) for column in zip(*found[:steps])]
    raise AssertionError


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_two_workers_prepare_a_share_each(kind, small, tmp_path, monkeypatch):
    """And are fed the rows of one, bit by bit; each row is prepared by one of them."""
    from vertex_runtime.rows import Preparer

    with ExitStack() as held:
        paths = files_of(kind, tmp_path)
        alone = fed(inputs_of(paths, held).train)
        prepared: dict[int, int] = {}
        call = Preparer.__call__

        def count(self, chunk, training=False):
            rows = len(next(iter(chunk.values())))
            if training and rows > 1:
                prepared[id(self)] = prepared.get(id(self), 0) + rows
            return call(self, chunk, training)

        monkeypatch.setattr(Preparer, "__call__", count)
        barrier = threading.Barrier(2)
        meet = {id(barrier): Filling.run}
        monkeypatch.setattr(Filling, "run", lambda self: (barrier.wait(300), meet[id(barrier)](self))[1])

        def work(worker: int):
            try:
                rows = inputs_of(paths, held, worker, 2, cache_dir=str(tmp_path / "cache")).train
                barrier.wait(300)
                return fed(rows)
            except BaseException:
                barrier.abort()  # nobody waits for one that has failed
                raise

        for found in at_once(lambda: work(0), lambda: work(1)):
            for one, other in zip(alone, found):
                np.testing.assert_array_equal(one, other)
    assert len(prepared) == 2 and sum(prepared.values()) == 1600
    assert len(list((tmp_path / "cache").glob("taxifare-training-*.json"))) == 1
