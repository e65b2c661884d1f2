"""Convert training data of any format into any other, sharded and, if asked, shuffled: see `scripts/convert_data --help`.

The rows are read and checked by the trainer's COLUMNS, as in training. The files are written to a folder beside the target,
which is renamed at the end: so the target is complete or does not exist. In a bucket, the manifest is written last.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import sys
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
from vertex_runtime.errors import FAILED, UserError, first_line, run_as_program
from vertex_runtime.reporting import log
from vertex_runtime.strategy import import_tensorflow

from . import ended_by_signals, manifest
from .dealing import in_turn, shuffled
from .staging import SCHEME, staging
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
        if "://" in options.to and not options.to.startswith(SCHEME):
            raise UserError(f"--to takes a folder, or gs://bucket/folder; got {options.to[:100]}.")
    return options


def hyperparameters_of(trainer: str) -> type:
    """Return the dataclass of a trainer's hyperparameters; TensorFlow is not imported.

    Raises:
        UserError: there is no such trainer.
    """
    module = f"{_package(trainer)}.task"
    try:
        task = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not module.startswith(error.name or "?"):
            raise UserError(f"{trainer} imports {error.name}, which is not installed. Install it.") from None
        raise _no_trainer(trainer) from None
    own = [value for value in vars(task).values() if isinstance(value, type) and issubclass(value, CommonHyperparameters)]
    return next((value for value in own if value is not CommonHyperparameters), CommonHyperparameters)


def _package(trainer: str) -> str:
    name = os.path.normpath(trainer)  # as a shell completes it: ./taxifare/
    if name.startswith("."):  # in a folder from which nothing can be imported
        raise _no_trainer(trainer)
    return f"{name}.trainer"


def _no_trainer(trainer: str) -> UserError:
    return UserError(f"there is no trainer {quoted(trainer)}: name a folder with a trainer/task.py in it.")


def contract_of(trainer: str) -> Contract:
    """Return what a trainer's model.py offers, checked.

    Raises:
        UserError: there is no such trainer, or its model.py breaks the contract.
    """
    hyperparameters = hyperparameters_of(trainer)
    from vertex_runtime import contract

    return contract.load_module(f"{_package(trainer)}.model", hyperparameters)


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
    with staging(options.to) as stage:
        try:
            rows_of = _write(_counted(_rows(paths, columns, labels, bad, schema)), options, stage, schema)
            total = sum(rows_of.values())
            if not total:
                raise UserError(f"--from: {', '.join(paths)[:200]} holds no rows. Name other files.")
            if total < len(rows_of):
                raise UserError(f"--shards: there are {total} rows, too few for {len(rows_of)} files. Ask for {total} or fewer.")
            found = {
                "trainer": options.trainer, "from": paths, "format": options.format, "compress": options.compress,
                "columns": [{"name": column.name, "kind": type(column).__name__} for column in kept],
                "seed": options.seed if options.shuffle else None, "rows": total, "bad_rows": dict(bad.reasons),
                "shards": [{"name": name, "rows": rows, **manifest.fingerprint(f"{stage}/{name}")} for name, rows in rows_of.items()],
            }  # fmt: skip
            manifest.write(stage, found)
        except (OSError, pa.ArrowException, tf.errors.OpError) as error:
            problem = f"cannot write to {options.to}: {first_line(error)}. Nothing was left there"
            raise UserError(f"--to: {problem}. Make room, or name another folder.", FAILED) from None
    if bad.reasons:
        log("WARNING", str(bad))
    return found


def _rows(
    paths: Sequence[str], columns: Sequence[Column], labels: Sequence[str], bad: BadRows, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield the checked rows of all paths, null where a cell is missing."""
    kept = [column for column in columns if column.required]
    for path in paths:
        try:
            for batch in formats.record_batches(path, columns, labels, bad):
                arrays = [_with_gaps(batch.column(batch.schema.names.index(column.name)), column) for column in kept]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"--from: cannot read {path}: {first_line(error)}. See whether it is still there.", FAILED) from None


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


def _write(rows: Iterable[pa.RecordBatch], options: argparse.Namespace, stage: str, schema: pa.Schema) -> dict[str, int]:
    """Write the shards and return how many rows each file has."""
    ending = suffix(options.format, options.compress)
    names = [f"{options.prefix}-{i + 1:05d}-of-{options.shards:05d}{ending}" for i in range(options.shards)]
    rows_of, writers = dict.fromkeys(names, 0), {}
    dealt = shuffled(rows, options.shards, options.seed, stage) if options.shuffle else in_turn(rows, options.shards)
    group = GROUP_BYTES if options.shuffle else min(GROUP_BYTES, OPEN_BYTES // options.shards)
    with contextlib.ExitStack() as opened:
        for shard, batch in dealt:
            name = names[shard]
            if name not in writers:
                if options.shuffle:  # one shard comes after the other
                    opened.close()
                writer = WRITERS[options.format](os.path.join(stage, name), schema, options.compress, group)
                writers[name] = opened.enter_context(contextlib.closing(writer))
            for piece in _pieces(batch):
                writers[name].write(piece)
            rows_of[name] += batch.num_rows
    return rows_of


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch into pieces, because a writer needs several times a batch's memory."""
    rows = max(1, PIECE_BYTES * batch.num_rows // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


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
    with ended_by_signals(f"nothing was left in {options.to}"):
        found = convert(options)
    size = sum(shard["bytes"] for shard in found["shards"])
    log("INFO", f"{options.to}: {found['rows']:,} rows in {len(found['shards'])} {options.format} files, {size:,} bytes, {manifest.NAME}")
    return found


if __name__ == "__main__":
    run_as_program(main)
