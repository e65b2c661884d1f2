"""The rows of a run: training, evaluation and test data, found, read, split, prepared and described."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from . import data, formats, sources
from .ahead import FILES, one_after_another
from .arguments import RunOptions
from .blocks import CsvBlocks, csv_blocks, is_plain_csv
from .cache import FORMAT, Cache, Layout, content_key, content_of, only_one, room
from .columns import Image
from .contract import Contract, source_fingerprint
from .environment import Environment
from .errors import UserError
from .formats import Reading
from .learnt import kept, learn, learns_classes
from .locations import data_paths
from .order import block_rows
from .outputs import versions
from .profile import Profile
from .reporting import log
from .rows import (
    AnyRows,
    CachedRows,
    DatasetRows,
    IndexedRows,
    MemoryRows,
    Preparer,
    Rows,
    count_rows,
    each_worker,
    fill,
    flat,
    prepared_bytes,
)  # fmt: skip
from .sampler import Sampler, bytes_of
from .shares import Filling, Part
from .splits import Split, make_split

IN_MEMORY_BYTES = 2 << 30
WINDOWS_BYTES = 256 << 20  # what training from disk holds in memory anyway
HASHED_BYTES = 512 << 20  # of larger data only the ends are hashed
LEARN_ROWS, LEARN_IMAGES = 32_768, 256  # rows of the chunks that `learn` gets
PREPARED_ROWS = 16_384  # prepared at a time, about
PIECE_BYTES = 64 << 20  # of prepared rows that one process prepares, before it looks what others have done
SIZE_ROWS = 256  # from which the size of a prepared row is told


class Inputs:
    """The rows of a run, and what was learnt of the training rows."""

    def __init__(
        self, contract: Contract, hp: Any, options: RunOptions, env: Environment, background: ThreadPoolExecutor, held: ExitStack,
        beat: Callable[[], None] = lambda: None, trains: bool = True,
    ):  # fmt: skip
        """Find and prepare the rows; those to train and to test on only where this replica `trains`."""
        self.hp, self.options, self.env, self.beat = hp, options, env, beat
        folder = os.path.abspath(options.cache_dir) if options.cache_dir else ""
        self.reading = Reading(env.data_format, options.row_filter, folder=folder, part=self._share(0.2), job=env.job)
        contract = contract.with_reading(self.reading)
        train, evaluation, test, self.synthetic = data_paths(contract, hp, options, env)
        self.whole = data.total_bytes(train) <= HASHED_BYTES
        self.descriptions: dict[str, Future] = {
            path: background.submit(data.fingerprint, path, self.whole, self.reading)
            for path in dict.fromkeys([*train, *evaluation, *test])
        }
        self.watch = data.Watch([*train, *evaluation, *test])
        self.held = held
        self.reported: set[str] = set()
        self.bad = data.BadRows(options.bad_rows)
        self.contract, self.paths = contract, {"training": train, "evaluation": evaluation, "test": test}
        self.sources: dict[str, Any] = {}
        self.kinds: dict[str, np.dtype] = {}  # of the columns of sources, which all parts of the data have in common
        self.places: dict[str, np.ndarray] = {}
        self.counts: dict[str, list[int] | None] = {}
        self.split: Split | None = None
        if hp.eval_fraction and not evaluation:
            self.split = make_split(hp.eval_fraction, hp.split_by, hp.seed, self._read("training"))
        self._infer_inputs()
        self.of_images = any(isinstance(column, Image) for column in self.contract.columns)  # large, and decoded one by one
        rows = LEARN_IMAGES if self.of_images else LEARN_ROWS
        self.facts = self._facts(lambda: data.rechunk(self._part("training"), rows))
        self.prepare = Preparer(self.contract, hp, self.facts, self.bad)
        self.profile = Profile(self.contract.columns, self.contract.labels, hp.seed) if trains else None
        self.blocks: CsvBlocks | None = None
        self._prepare_all(trains)

    def _prepare_all(self, trains: bool) -> None:
        sampler = Sampler(self.hp.seed, self.contract.inputs)
        self.train = self._rows("training") if trains else None
        self.evaluation = self._rows("evaluation", sampler)
        self.test = self._rows("test") if self.paths["test"] and trains else None
        self.sample = sampler.sample()
        self.watch.see()
        if self.bad.reasons:
            log("WARNING", str(self.bad))
            self.bad.reasons.clear()

    def _source(self, name: str) -> Any:
        """Return the random-access source, or the dataset, of a part of the data; None where files are read in order."""
        part = "training" if name == "evaluation" and self.split else name
        if part not in self.sources:
            training = part == "training"
            self.sources[part] = made = sources.source_of(self.contract, self.paths[part], self.hp, training, self.bad)
            if isinstance(made, sources.IndexedSource):
                made.kinds = self.kinds
        return self.sources[part]

    def _paths(self, name: str) -> list[str]:
        """Return the files that a part's rows come from."""
        return self.paths["training" if name == "evaluation" and self.split else name]

    def _read(self, name: str, first: int = 0) -> Generator[data.Chunk, None, None]:
        """Yield the raw chunks of a part, before any split, of files from the `first` on."""
        source, paths, rows = self._source(name), self._paths(name)[first:], 0
        bad = self.bad if source is not None else data.BadRows(self.options.bad_rows)
        threads = 1 if "read" in self.contract.given or any(map(data.is_table, paths)) else FILES  # a reader of one's own may not bear it
        read = one_after_another(lambda path: self.contract.read(path, bad), paths, threads)
        for chunk in source.chunks() if source is not None else read:
            self.beat()
            rows += data.rows_of(chunk)
            yield chunk
        where = paths[0] + (f" and {len(paths) - 1} more files" if len(paths) > 1 else "") if paths else ""
        if paths and not rows and not first:
            found = f"{bad} and no others" if bad.reasons else "no rows"
            raise UserError(f"the {name} data holds {found}: {where}. Name files with rows.")
        if bad is not self.bad and bad.reasons and (key := "|".join(paths)) not in self.reported:
            self.reported.add(key)
            log("WARNING", f"{bad} in {where}")

    def _part(self, name: str, first: int = 0) -> Iterator[data.Chunk]:
        """Yield a part's raw chunks, of files from the `first` on."""
        chunks = self._read(name, first)
        return self.split.part(chunks, name == "evaluation", not first) if self.split and name != "test" else chunks

    def _infer_inputs(self) -> None:
        """Find what a request holds in the first row of a source or dataset, where the module does not say it."""
        if self.contract.inputs is None:
            chunk = next(self._read("training"), None)
            if chunk is None:
                raise UserError("the training data has no rows. Name files with rows: --train_data_path.")
            self.contract = sources.with_inferred_inputs(self.contract, chunk)
        if "dataset" in self.contract.given:
            own: dict[str, Callable[..., Any]] = {"encode_labels": sources.dataset_labels, "weigh": sources.dataset_weights}
            kept = {name: part for name, part in own.items() if name not in self.contract.given}
            self.contract = dataclasses.replace(self.contract, functions={**self.contract.functions, **kept})

    def _facts(self, chunks: Callable[[], Iterator[data.Chunk]]) -> Any:
        """Return what is learnt of the training rows; with --cache_dir, what an earlier run has learnt of the same ones."""
        contract, labels = self.contract, self._label_chunks()
        if not self.options.cache_dir or ("learn" not in contract.given and (labels or not learns_classes(contract))):
            return learn(contract, self.hp, chunks, labels)
        folder = os.path.abspath(self.options.cache_dir)

        def learn_now(hp: Any) -> Any:
            found = learn(contract, hp, chunks, labels)
            self.watch.see()  # what is kept belongs to the files as they were hashed
            return found

        return kept(folder, contract.name, self._made_of("training") | {"versions": versions()}, self.hp, learn_now, self.beat)

    def _label_chunks(self) -> Callable[[], Iterable[data.Chunk]] | None:
        """Return a cheap way to the labels of all training rows, where there is one."""
        source = self._source("training")
        return (lambda: [source.labels()]) if isinstance(source, sources.FolderSource) and not self.split else None

    def _rows(self, name: str, sampler: Sampler | None = None) -> AnyRows:
        try:
            return self._made_rows(name, sampler)
        except data.UnknownLabel as error:
            raise data.unseen(self.paths[name] or self.paths["training"], error.label) from None

    def _made_rows(self, name: str, sampler: Sampler | None) -> AnyRows:
        training, source = name == "training", self._source(name)
        each, size = self._prepared_size(name, source)
        if not self._too_large(name, size):
            return MemoryRows(self.prepare.ahead(self._whole(name, each, sampler), training), each)
        if isinstance(source, sources.DatasetSource):
            self._sample(self._part(name), sampler)
            return DatasetRows(source, self.prepare)
        if source is not None and not self.options.cache_dir:
            self._sample(self._part(name), sampler)
            return IndexedRows(source, self._places(name, source), self.prepare, each)
        return self._cached(name, each, size, sampler)

    def _whole(self, name: str, each: float, sampler: Sampler | None) -> Iterator[data.Chunk]:
        """Yield all raw rows of a part in chunks that do not depend on the files they come in.

        Where a row lies in a chunk may decide the last bit of a feature: vectorised and single operations round differently.
        """
        chunks = self._sampled(self._part(name), self.profile if name == "training" else sampler)
        if self.of_images:
            return chunks
        block = block_rows(each)
        return data.rechunk(chunks, block * -(-PREPARED_ROWS // block))

    def _cached(self, name: str, each: float, size: float, sampler: Sampler | None) -> CachedRows:
        """Return rows that are prepared once into a cache on disk, or taken from one that an earlier run left there.

        Raises:
            UserError: the disk has no room.
        """
        folder = os.path.abspath(self.options.cache_dir or tempfile.gettempdir())
        key = self._cache_key(name, each) if self.options.cache_dir else None
        layout = Layout.of(self.example(next(self._read(name))))
        self._sample(self._part(name), sampler)
        # With --bad_rows=skip only reading tells which row is which: one process prepares them, and the others wait.
        alone = self.options.bad_rows == "skip"
        with only_one(folder, key, self.beat) if key and alone else nullcontext():
            if key and (found := Cache.open(layout, folder, key)):
                log("INFO", f"cache: {found.count} {name} rows, prepared by an earlier run, are taken from {folder}")
                self.held.callback(found.close)
                return CachedRows(found, found.count, each, see=self.watch.see)
            _see_room(folder, name, size)
            log("INFO", f"cache: preparing the {name} rows once, about {size / 2**30:.2f} GiB, in {folder}")
            cache = Cache(layout, folder, key)
            self.held.callback(cache.close)
            if (source := self._blocks(name, each)) is not None:
                self.blocks = source
                return CachedRows(cache, source.index.count, each, source, self.watch.see, self._share(0.05))
            started = time.monotonic()
            if alone:
                fill(cache, self.prepare.ahead(self._whole(name, each, None), name == "training"), block_rows(each))
            else:
                self._fill(cache, name, each)
            if not cache.count:
                raise UserError(f"the {name} data has no rows. Name files with rows.")
            self.watch.see()
            cache.finish()
            log("INFO", f"cache: {cache.count} rows in {cache.bytes / 2**30:.2f} GiB, {time.monotonic() - started:.1f} s")
        return CachedRows(cache, cache.count, each, see=self.watch.see)

    def _share(self, seconds: float) -> Part:
        """Return this process's part of work that is shared by way of --cache_dir."""
        if not self.options.cache_dir:
            return Part()

        def wait() -> None:
            self.beat()
            time.sleep(seconds)

        return Part(self.env.worker_index, self.env.worker_count, wait)

    def _fill(self, cache: Cache, name: str, each: float) -> None:
        """Prepare the rows of a part, but for those that other processes prepare in the same folder."""
        block, training = block_rows(each), name == "training"
        chunk = block * -(-(LEARN_IMAGES if self.of_images else PREPARED_ROWS) // block)
        piece = chunk * max(1, int(PIECE_BYTES // (chunk * max(1.0, each))))

        def prepare(chunks: Iterable[data.Chunk]) -> Iterator[list[np.ndarray]]:
            return (flat(rows) for rows in self.prepare.ahead(chunks, training, whole=True))

        filling = Filling(
            cache, lambda row: self._rows_from(name, row), prepare, self._known_count(name), block, chunk, piece, self._share(0.2)
        )
        filling.run()
        if cache.name is not None:
            log("INFO", f"cache: of {filling.pieces} pieces of the {name} rows this process prepared {filling.made}")

    def _known_count(self, name: str) -> int | None:
        """Return how many rows a part has, None where only reading tells."""
        source = self._source(name)
        if source is not None:
            return None if isinstance(source, sources.DatasetSource) else len(self._places(name, source))
        counts = self._counts(name)
        return None if counts is None else sum(counts)

    def _counts(self, name: str) -> list[int] | None:
        """Return the rows of each file, where all say so themselves."""
        if self.split or "read" in self.contract.given:
            return None
        if name not in self.counts:
            counts = [formats.rows_of_file(path, self.reading) for path in self._paths(name)]
            self.counts[name] = None if None in counts else counts
        return self.counts[name]

    def _rows_from(self, name: str, row: int) -> Iterator[data.Chunk]:
        """Yield the raw rows of a part from a given one on, in chunks of any size."""
        source, file = self._source(name), 0
        if isinstance(source, (sources.IndexedSource, sources.FolderSource)):
            places = self._places(name, source)[row:]
            yield from (source.take(places[start : start + LEARN_IMAGES]) for start in range(0, len(places), LEARN_IMAGES))
            return
        for count in self._counts(name) or () if row else ():
            if row < count:
                break
            row, file = row - count, file + 1
        for chunk in self._part(name, file):
            rows = data.rows_of(chunk)
            if row < rows:
                yield data.take(chunk, slice(row, None)) if row else chunk
            row = max(0, row - rows)

    def _blocks(self, name: str, each: float) -> CsvBlocks | None:
        """Return a way to prepare rows block by block, while training goes on; None where all must be read beforehand."""
        contract, paths = self.contract, self._paths(name)
        simple = not contract.given & {"read", "source", "dataset"} and not self.split and self.options.bad_rows == "error"
        if name != "training" or not simple or not all(map(is_plain_csv, paths)) or block_rows(each) % 64:
            return None

        def name_fault() -> None:
            self.watch.see()
            for _ in self._read(name):
                pass

        def prepare(chunk: data.Chunk) -> list[np.ndarray]:
            return flat(self.prepare(chunk, True))

        started = time.monotonic()
        found = csv_blocks(paths, contract.columns, block_rows(each), PREPARED_ROWS, prepare, name_fault, self.beat)
        if found is not None:
            took = f"{time.monotonic() - started:.1f} s"
            log("INFO", f"cache: {found.index.count} {name} rows found in {took}; the first epoch prepares them")
        return found

    def _cache_key(self, name: str, each: float) -> str:
        """Name the rows by all that they are made of: data, columns, the graph that prepares them, and what was learnt."""
        made_of = self._made_of(name) | {
            "part": name, "blocks": [FORMAT, block_rows(each)], "facts": content_key(self.facts), "class_weight": self.prepare.class_weight,
            "graph": hashlib.sha256(self.prepare.run.graph.as_graph_def().SerializeToString(deterministic=True)).hexdigest(),
            "weighed by": dataclasses.asdict(self.hp) if "weigh" in self.contract.given else {},
            "versions": [tf.__version__, np.__version__],
        }  # fmt: skip
        text = json.dumps(made_of, sort_keys=True, default=str)
        return f"{self.contract.name}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def _made_of(self, name: str) -> dict[str, Any]:
        """Return all that the raw rows of a part follow from, and what the trainer's source makes of them."""
        contract = self.contract
        own = bool(contract.given & {"read", "source", "dataset", "find"})
        return {
            "data": [content_of(self.descriptions[path].result(), self.whole, own) for path in self._paths(name)],
            "split": str(self.split), "bad_rows": self.options.bad_rows, "format": self.reading.format,
            "columns": str(contract.columns), "labels": contract.labels, "weight": contract.weight,
            "source": source_fingerprint(contract.module),
            "hyperparameters": dataclasses.asdict(self.hp) if contract.given & {"read", "source", "dataset"} else {},
        }  # fmt: skip

    def _places(self, name: str, source: Any) -> np.ndarray:
        """Return which rows of a source belong to a part."""
        if name not in self.places:
            self.places[name] = np.arange(source.count)
            if self.split and name != "test":
                masks = [self.split.evaluates(chunk) == (name == "evaluation") for chunk in source.chunks()]
                self.places[name] = np.flatnonzero(np.concatenate(masks))
        return self.places[name]

    def _sampled(self, chunks: Iterable[data.Chunk], sampler: Sampler | Profile | None) -> Iterator[data.Chunk]:
        for chunk in chunks:
            if sampler is not None:
                sampler.add(chunk)
            yield chunk

    def _sample(self, chunks: Iterable[data.Chunk], sampler: Sampler | None) -> None:
        """Look at the first rows of what is not read whole beforehand."""
        for chunk in chunks if sampler is not None else ():
            sampler.add(chunk)
            if sum(data.rows_of(kept) for _, kept in sampler.kept) >= 1000:
                return

    def _prepared_size(self, name: str, source: Any) -> tuple[float, float]:
        """Estimate the memory of a prepared row, and of all rows of a part of the data, from its first rows.

        The former is a pure function of the rows, which the order of training rests on; the latter may go by the size of files.
        """
        held: list[data.Chunk] = []
        with closing(self._read(name)) as chunks:
            for chunk in chunks:
                held.append(chunk)
                if sum(map(data.rows_of, held)) >= SIZE_ROWS:
                    break
        if not held:
            return 1.0, 0.0
        chunk, paths = data.concatenate(held), self._paths(name)
        rows = self.prepare(data.take(chunk, slice(0, SIZE_ROWS)))
        each = prepared_bytes(rows) / max(1, count_rows(rows))
        if source is not None:
            return each, each * source.count
        if tables := [path for path in paths if data.is_table(path)]:
            counts = [formats.table(path).count(path, self.reading) for path in tables]
            return each, each * max(data.rows_of(chunk), sum(count or 0 for count in counts))
        total = data.total_bytes(paths)
        own = "read" in self.contract.given
        block = sum(bytes_of(values) for values in chunk.values()) if own else data.block_bytes(paths[0], data.rows_of(held[0]))
        return each, each * data.rows_of(held[0]) * max(1.0, total / max(1, min(total, block)))

    def _too_large(self, name: str, size: float) -> bool:
        if isinstance(self._source(name), sources.DatasetSource) and name == "training":
            return True  # its own order is kept to
        if self.options.in_memory != "auto":
            return self.options.in_memory == "no"
        if size <= WINDOWS_BYTES or size > IN_MEMORY_BYTES:
            return size > IN_MEMORY_BYTES
        # Training starts at once where blocks can be found, and rows on disk are fed as fast.
        return self._source(name) is None and all(map(is_plain_csv, self._paths(name))) and name == "training" and not self.split

    def described(self) -> list[dict[str, Any]]:
        """Return what the training and evaluation data are, file by file."""
        return [self.descriptions[path].result() for path in dict.fromkeys([*self.paths["training"], *self.paths["evaluation"]])]

    def fingerprint(self) -> dict[str, Any]:
        """Return what a run must have in common with a checkpoint to go on from it."""
        source = source_fingerprint(self.contract.module)
        found = {"hyperparameters": dataclasses.asdict(self.hp), "source": source, "data": self.described()}
        return json.loads(json.dumps(found))

    def each_worker(self, workers: int) -> list[str]:
        """Return what each of several workers reads and keeps, in a line or two."""
        tables = any(map(data.is_table, self.paths["training"]))
        return each_worker(workers, self.options, tables, type(self.train), self._source("training") is not None)

    def example(self, chunk: data.Chunk | None = None) -> Rows:
        """Return a prepared row, for its shapes."""
        return self.prepare(data.take(self.sample if chunk is None else chunk, slice(0, 1)))


def _see_room(folder: str, name: str, size: float) -> None:
    """See that the disk of a folder takes so many bytes of prepared rows."""
    if size > (free := room(folder)):
        raise UserError(
            f"the prepared {name} rows take about {size / 2**30:.1f} GiB, and {folder} has {max(0, free) / 2**30:.1f} GiB left. "
            "Name a folder on a larger local disk: --cache_dir."
        )
