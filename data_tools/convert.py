"""Convert training data of any format into any other, sharded and, if asked, shuffled: see `scripts/convert_data --help`.

The rows are read and checked by the trainer's COLUMNS, as in training. The files are written to a folder beside the target,
which is renamed at the end: so the target is complete or does not exist. In a bucket, the manifest is written last.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from vertex_runtime import formats
from vertex_runtime.arguments import CommonHyperparameters
from vertex_runtime.columns import Column
from vertex_runtime.data import BadRows
from vertex_runtime.environment import quoted
from vertex_runtime.errors import FAILED, UserError, run_as_program
from vertex_runtime.reporting import log
from vertex_runtime.strategy import import_tensorflow

from . import ended_by_signals, manifest, reason, upload
from .dealing import Shuffle, in_turn
from .writers import WRITERS, check, schema_of, suffix

if TYPE_CHECKING:
    from vertex_runtime.contract import Contract

LARGEST_SHARDS = 900  # each is an open file, and a process may have 1,024 by default
GROUP_BYTES = 32 << 20  # a row group of a Parquet file
OPEN_BYTES = 256 << 20  # all row groups that are being filled at the same time
PIECE_BYTES = 4 << 20  # what a writer gets at a time
SECONDS = 30.0  # between log lines


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's flags."""
    parser = argparse.ArgumentParser(
        "convert_data", allow_abbrev=False,
        description="Convert training data of any format into any other. The rows are those of a trainer's COLUMNS, each checked.",
    )  # fmt: skip
    parser.add_argument("trainer", nargs="?", help="the trainer whose COLUMNS the data has, such as stackoverflow")
    parser.add_argument(
        "--from", nargs="+", dest="sources", metavar="PATH",
        help="files, wildcards, folders, archives, tables (bq://…); of one that holds train and test, --prefix says which",
    )  # fmt: skip
    parser.add_argument("--to", metavar="FOLDER", help="a folder that is empty or does not exist, here or in a bucket")
    parser.add_argument("--format", choices=sorted(WRITERS), help="what to write")
    parser.add_argument("--compress", choices=["none", "gzip", "zstd"], default="none", help="default: none")
    parser.add_argument("--shards", type=int, default=1, help=f"how many files, 1 to {LARGEST_SHARDS}; default: 1")
    parser.add_argument(
        "--shuffle", action="store_true", help="write rows in a random order, by --seed; else row i goes to file i modulo shards"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle; default: 0")
    parser.add_argument("--bad_rows", choices=["error", "skip"], default="error", help="default: error")
    parser.add_argument("--prefix", default="training", help="how the files' names start; default: training")
    parser.add_argument("--verify", metavar="FOLDER", help="do nothing but compare a folder's files with its manifest")
    options = parser.parse_args(argv)
    if options.verify is None:
        given = {"TRAINER": options.trainer, "--from": options.sources, "--to": options.to, "--format": options.format}
        if lacking := [name for name, value in given.items() if not value]:
            raise UserError(f"{', '.join(lacking)} must be given. See scripts/convert_data --help.")
        if not 1 <= options.shards <= LARGEST_SHARDS:
            raise UserError(f"--shards must be 1 to {LARGEST_SHARDS}; got {options.shards}.")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", options.prefix):
            raise UserError(f"--prefix must be the start of a file's name, letters, digits and . _ -; got {quoted(options.prefix)}.")
        if "://" in options.to and not options.to.startswith(upload.SCHEME):
            raise UserError(f"--to takes a folder, or gs://bucket/folder; got {options.to[:100]}.")
    return options


def hyperparameters_of(trainer: str) -> type:
    """Return the dataclass of a trainer's hyperparameters; TensorFlow is not imported.

    Raises:
        UserError: there is no such trainer.
    """
    try:
        task = importlib.import_module(f"{trainer.rstrip('/')}.trainer.task")
    except ModuleNotFoundError as error:
        if not f"{trainer.rstrip('/')}.trainer.task".startswith(error.name or "?"):
            raise UserError(f"{trainer} imports {error.name}, which is not installed. Install it.") from None
        raise UserError(f"there is no trainer {quoted(trainer)}: name a folder with a trainer/task.py in it.") from None
    own = [value for value in vars(task).values() if isinstance(value, type) and issubclass(value, CommonHyperparameters)]
    return next((value for value in own if value is not CommonHyperparameters), CommonHyperparameters)


def contract_of(trainer: str) -> Contract:
    """Return what a trainer's model.py offers, checked.

    Raises:
        UserError: there is no such trainer, or its model.py breaks the contract.
    """
    hyperparameters = hyperparameters_of(trainer)
    from vertex_runtime import contract

    return contract.load_module(f"{trainer.rstrip('/')}.trainer.model", hyperparameters)


def columns_of(trainer: str) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Return (COLUMNS, labels) of a trainer, with missing cells left missing instead of filled by the columns.

    Raises:
        UserError: there is no such trainer, or it reads its rows without COLUMNS.
    """
    model = contract_of(trainer)
    headers = {column.name: column.header or column.name for column in model.columns}
    labels = tuple(headers.get(label, label) for label in model.labels)
    # Names and gaps as in the files, so that the result suits a trainer whose COLUMNS change later.
    columns = tuple(column.keeping_gaps().in_files() for column in model.columns)
    if not columns or not model.labels:
        raise UserError(f"{trainer} reads its rows in a way of its own, not by COLUMNS and LABEL. Name a trainer that has them.")
    return columns, labels


def convert(options: argparse.Namespace) -> dict[str, Any]:
    """Write the files and return their manifest.

    Raises:
        UserError: the data does not fit the trainer's COLUMNS, or the target is not empty or cannot be written to.
    """
    import_tensorflow()
    import tensorflow as tf

    columns, labels = columns_of(options.trainer)
    kept = [column for column in columns if column.required]
    check(options.format, options.compress, kept)
    # From an archive or folder with train and test parts, the runtime takes the part that the flag's name says.
    paths = formats.find(options.sources, f"--from (for --prefix {options.prefix})", columns, labels)
    bad = BadRows(options.bad_rows)
    schema = schema_of(kept)
    with _staging(options.to) as stage:
        try:
            rows = _counted(_rows(paths, columns, labels, bad, schema))
            shards = _write(rows, options, stage, schema)
            total = sum(shard["rows"] for shard in shards)
            if not total:
                raise UserError(f"--from: {', '.join(paths)[:200]} holds no rows. Name other files.")
            if total < len(shards):
                raise UserError(f"--shards: there are {total} rows, too few for {len(shards)} files. Ask for {total} or fewer.")
            found = {
                "trainer": options.trainer, "from": paths, "format": options.format, "compress": options.compress,
                "columns": [{"name": column.name, "kind": type(column).__name__} for column in kept],
                "seed": options.seed if options.shuffle else None, "rows": total, "bad_rows": dict(bad.reasons), "shards": shards,
            }  # fmt: skip
            manifest.write(stage, found)
        except (OSError, pa.ArrowException, tf.errors.OpError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
            raise UserError(
                f"--to: cannot write to {options.to}: {reason}. Nothing was left there. Make room, or name another folder.", FAILED
            ) from None
    if bad.reasons:
        log("WARNING", str(bad))
    return found


def _rows(
    paths: Sequence[str], columns: Sequence[Column], labels: Sequence[str], bad: BadRows, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield the checked rows of all paths, null where a cell is missing."""
    kept = [column for column in columns if column.required]
    for path in paths:
        batches = formats.record_batches(path, columns, labels, bad)
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"--from: cannot read {path}: {reason(error)}. See whether it is still there.", FAILED) from None
            if batch is None:
                break
            arrays = [_with_gaps(batch.column(batch.schema.names.index(column.name)), column) for column in kept]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _with_gaps(array: pa.Array, column: Column) -> pa.Array:
    if column.missing is None:
        return array
    absent = pc.equal(pc.binary_length(array), 0) if column.is_text else pc.is_nan(array)
    return pc.if_else(absent, pa.scalar(None, array.type), array)


def _counted(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Pass the batches on and show how many rows were read: by a bar on a terminal, else by a line now and then."""
    from tqdm import tqdm

    rows, next_line = 0, time.monotonic() + SECONDS
    with tqdm(unit=" rows", unit_scale=True, desc="reading", disable=not sys.stderr.isatty()) as bar:
        for batch in batches:
            rows += batch.num_rows
            bar.update(batch.num_rows)
            if bar.disable and time.monotonic() > next_line:
                log("INFO", f"{rows:,} rows read")
                next_line = time.monotonic() + SECONDS
            yield batch


def _write(rows: Iterable[pa.RecordBatch], options: argparse.Namespace, stage: str, schema: pa.Schema) -> list[dict[str, Any]]:
    """Write the shards and return the manifest's entry for each."""
    ending = suffix(options.format, options.compress)
    names = [f"{options.prefix}-{i + 1:05d}-of-{options.shards:05d}{ending}" for i in range(options.shards)]
    counts = [0] * options.shards
    if options.shuffle:
        shuffle = Shuffle(stage, options.seed)
        shuffle.take_in(rows)
        parts = shuffle.parts(options.shards)
    else:
        parts = in_turn(rows, options.shards)
    make, writers = WRITERS[options.format], {}
    group = GROUP_BYTES if options.shuffle else min(GROUP_BYTES, OPEN_BYTES // options.shards)
    try:
        for shard, batch in parts:
            if shard not in writers:
                if options.shuffle:  # one shard comes after the other
                    _close(writers)
                writers[shard] = make(os.path.join(stage, names[shard]), schema, options.compress, group)
            for piece in _pieces(batch):
                writers[shard].write(piece)
            counts[shard] += batch.num_rows
    finally:
        _close(writers)
    return [
        {"name": name, "rows": count, **manifest.fingerprint(os.path.join(stage, name))} if count else {"name": name, "rows": 0}
        for name, count in zip(names, counts)
    ]


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch into pieces, because a writer needs several times a batch's memory."""
    rows = max(1, PIECE_BYTES * batch.num_rows // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _close(writers: dict[int, Any]) -> None:
    while writers:
        writers.popitem()[1].close()


@contextlib.contextmanager
def _staging(named: str) -> Iterator[str]:
    """Yield a folder whose files go to the target at the end of the block, unless it raises an error.

    Raises:
        UserError: the target has files, or cannot be written.
    """
    if not named.startswith(upload.SCHEME):
        with _beside(os.path.realpath(named), named) as stage:
            yield stage
        return
    upload.check_free(named)
    with tempfile.TemporaryDirectory(prefix="converting-") as stage:
        yield stage
        upload.upload(stage, named)


@contextlib.contextmanager
def _beside(target: str, named: str) -> Iterator[str]:
    """Yield a folder beside the target; at the end of the block it becomes the target, after an error it is removed.

    Raises:
        UserError: the target has files, or another conversion is writing it.
    """
    stage = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.converting")
    try:
        if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
            raise UserError(f"--to must be an empty folder or a new one; got {named}, which holds files. Nothing was overwritten.")
        os.makedirs(stage, exist_ok=True)
        lock = open(os.path.join(stage, ".lock"), "a")  # noqa: SIM115 - held until the end
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in set(os.listdir(stage)) - {".lock"}:  # left by a killed conversion
            os.remove(os.path.join(stage, name))
    except BlockingIOError:
        raise UserError(f"--to: another conversion writes {named}. Wait for it, or name another folder.") from None
    except OSError as error:
        raise UserError(f"--to: cannot write to {named}: {error.strerror}. Name another folder.") from None
    try:
        yield stage
        os.remove(os.path.join(stage, ".lock"))
        os.rename(stage, target)  # replaces an empty folder, and fails on any other
    except OSError as error:
        raise UserError(f"--to: cannot make {named}: {error.strerror}. Name a folder that does not exist yet.", FAILED) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        lock.close()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Convert, or verify; return the manifest.

    Raises:
        UserError: anything that the user can correct.
    """
    options = parse(argv)
    if options.verify is not None:
        found = manifest.verify(options.verify)
        log("INFO", f"{options.verify}: {found['rows']:,} rows in {len(found['shards'])} files, all as {manifest.NAME} says")
        return found
    left = f"nothing was left in {options.to}."
    with ended_by_signals(f"ended by SIGTERM; {left}", f"interrupted; {left}"):
        found = convert(options)
    size = sum(shard["bytes"] for shard in found["shards"])
    log("INFO", f"{options.to}: {found['rows']:,} rows in {len(found['shards'])} {options.format} files, {size:,} bytes, {manifest.NAME}")
    return found


if __name__ == "__main__":
    run_as_program(main)
