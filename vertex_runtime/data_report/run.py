"""`--data_report`: read the data that a run would read, write what it holds as JSON and as a page, and train nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import BESIDE, RunOptions
from ..data import PATH, ROW, BadRows, Chunk, read, take
from ..environment import Environment, quoted, resolve_uri
from ..errors import UserError
from ..outputs import resolve_outputs
from ..report_files import is_ours, write
from ..reporting import log
from ..strategy import import_tensorflow
from . import Limits, Report, collect
from .report import KIND
from .sketches import DRIFT

if TYPE_CHECKING:
    from ..contract import Contract

NAME, FLAG = "data_report", "--data_report"
BRIEF = 4.0  # seconds for each part, where `check` asks


def say(package: str, trainer: str, hyperparameters: type, hp: Any, options: RunOptions, env: Environment) -> dict[str, Any]:
    """Write the report, print its table and its warnings, and return it as JSON holds it; other replicas than the chief do nothing.

    Raises:
        UserError: the place is not to be written, or the data is not to be read at all. A bad row is no error.
    """
    if options.plan != "no":
        raise UserError("--data_report and --plan each end with a word of their own: give one of them.")
    if not env.is_chief:
        log("INFO", f"{env.name}: the chief writes the data report.")
        return {}
    stem = _stem(options, env, trainer)
    before = [path for path in (f"{stem}.json", f"{stem}.html") if is_ours(path, KIND, FLAG)]
    import_tensorflow()
    from ..contract import load_module
    from .findings import table
    from .page import page

    report = gather(load_module(f"{package}.model", hyperparameters), hp, options, env)
    found = report.as_json()
    write(f"{stem}.json", json.dumps(found, indent=1) + "\n", FLAG)
    write(f"{stem}.html", page(found), FLAG)
    for line in table(report):
        log("INFO", line)
    for finding in report.findings:
        log("WARNING" if finding.level == "warning" else "INFO", f"{finding.check}: {finding.message}")
    replaced = " (in place of an earlier one)" if before else ""
    log("INFO", f"data report: {stem}.html and {stem}.json{replaced}, {len(report.warnings)} warning(s)")
    return found


def findings(contract: Contract, hp: Any, options: RunOptions, env: Environment) -> list[dict[str, str]]:
    """Return what a brief look at the data finds, as plain values; nothing where the data cannot be read, which the plan says."""
    try:
        found = gather(contract, hp, options, env, BRIEF).findings
    except UserError:
        return []
    return [dataclasses.asdict(finding) for finding in found]


# ------------------------------------------------------------------ the rows


def gather(contract: Contract, hp: Any, options: RunOptions, env: Environment, seconds: float | None = None) -> Report:
    """Return the report on a run's training, evaluation and test rows.

    Args:
        seconds: for each part; what is not read by then is left out.

    Raises:
        UserError: what the run itself would end with, but for bad rows.
    """
    from .. import locations
    from ..formats import Reading
    from ..splits import make_split

    reading = Reading(env.data_format, options.row_filter)
    contract = contract.with_reading(reading)
    train, evaluation, test, synthetic = locations.data_paths(contract, hp, options, env)
    files = {"training": train, "evaluation": evaluation, **({"test": test} if test else {})}
    bad = {name: BadRows("collect") for name in files}
    parts = {name: _chunks(contract, hp, paths, name == "training", bad[name], reading) for name, paths in files.items()}
    if hp.eval_fraction and not evaluation:
        chunks = _within(_chunks(contract, hp, train, True, BadRows("skip"), reading), seconds)
        plain = (_bare(chunk, contract) for chunk in chunks)
        split = make_split(hp.eval_fraction, hp.split_by, hp.seed, plain)
        parts["training"] = _split(split, parts["training"], False, contract)
        # The same files once more, whose bad rows are counted already.
        parts["evaluation"] = _split(split, _chunks(contract, hp, train, True, BadRows("collect"), reading), True, contract)
        files["evaluation"] = [f"{hp.eval_fraction:g} of the training data, by {hp.split_by}"]
    report = collect(
        parts, contract.columns, contract.labels, weight=contract.weight, bad=bad, seed=hp.seed, limits=Limits(seconds=seconds)
    )
    report.about = {
        "trainer": contract.name, "synthetic": synthetic, "files": files, "seed": hp.seed, "drift_threshold": DRIFT,
        "limits": dataclasses.asdict(Limits()),
    }  # fmt: skip
    return report


def _chunks(contract: Contract, hp: Any, files: Sequence[str], training: bool, bad: BadRows, reading: Any) -> Iterator[Chunk]:
    """Yield the raw chunks of some files, with each row's place; missing cells stay missing where the reader is the runtime's."""
    from .. import sources

    if contract.given & {"dataset", "source"}:
        source = sources.source_of(contract, files, hp, training, bad, counted=False) if files else None
        yield from source.chunks() if source is not None else ()
        return
    columns = [column.keeping_gaps() for column in contract.columns]
    for path in files:
        own, count = "read" in contract.given, 0
        for chunk in contract.read(path, bad) if own else read(path, columns, contract.labels, bad, reading):
            rows = len(next(iter(chunk.values())))
            if ROW not in chunk and PATH not in chunk:
                chunk = {**chunk, ROW: np.arange(count + 1, count + rows + 1)}  # as the reader counts: without bad rows
            if PATH not in chunk:
                chunk = {**chunk, PATH: np.full(rows, os.fsencode(path), object)}
            count += rows
            yield chunk


def _within(chunks: Iterator[Chunk], seconds: float | None) -> Iterator[Chunk]:
    """Yield chunks, for so many seconds at most."""
    start = time.monotonic()
    for chunk in chunks:
        yield chunk
        if seconds is not None and time.monotonic() > start + seconds:
            return


def _bare(chunk: Chunk, contract: Contract) -> Chunk:
    """Return a chunk as a run sees it, by whose cells it is split: missing cells filled in, no places."""
    found = {name: values for name, values in chunk.items() if name not in (PATH, ROW)}
    for column in contract.columns if not contract.given & {"read", "source", "dataset"} else ():
        if column.missing is None or column.name not in found:
            continue
        values = found[column.name]
        absent = values == b"" if column.is_text else np.isnan(values)
        if absent.any():
            found[column.name] = values = values.copy()
            values[absent] = str(column.missing).encode() if column.is_text else column.missing
    return found


def _split(split: Any, chunks: Iterable[Chunk], evaluation: bool, contract: Contract) -> Iterator[Chunk]:
    for chunk in chunks:
        mask = split.evaluates(_bare(chunk, contract)) == evaluation
        if mask.any():
            yield take(chunk, mask)


# ------------------------------------------------------------------ the files


def _stem(options: RunOptions, env: Environment, trainer: str) -> str:
    """Return where the report goes, without its endings."""
    given = options.data_report
    if given == BESIDE:
        outputs = resolve_outputs(options.output_dir, env, trainer)
        return f"{outputs.records}/{NAME}" if outputs.given else NAME
    stem, ending = os.path.splitext(given)
    if ending in (".html", ".json"):
        return resolve_uri(stem)
    if not given.endswith("/") and os.path.isfile(resolve_uri(given)):
        raise UserError(
            f"--data_report is the place to write to, a folder or a file *.html; {quoted(given)} is a file of another kind. Name another."
        )
    return f"{resolve_uri(given.rstrip('/') or '/').rstrip('/')}/{NAME}"
