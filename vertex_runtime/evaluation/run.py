"""`--evaluate`: ask an exported model about rows, judge its answers, and write evaluation.json and evaluation.html."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..arguments import RunOptions
from ..data_report.report import plain
from ..environment import Environment
from ..errors import UserError
from ..outputs import resolve_outputs
from ..report_files import is_ours, write
from ..reporting import format_metrics, log
from ..strategy import import_tensorflow

NAME = "evaluation"
KIND = "vertex_runtime evaluation"  # by which the page is known to be ours
RECORDS = ('"model"', '"exported_step"')  # what such a file holds, and that of --only=evaluate
SHOWN_SECONDS = 10.0  # between lines of progress, where there is no terminal
HASHED_BYTES = 512 << 20  # of larger data only the ends are hashed, as a run does it


def say(package: str, trainer: str, hyperparameters: type, hp: Any, options: RunOptions, env: Environment) -> dict[str, Any]:
    """Evaluate a model, write the report and return what its JSON file holds; other replicas than the chief do nothing.

    Raises:
        UserError: no such model, rows that cannot be read or that the model refuses, a place that is not to be written.
    """
    if not options.evaluate:
        raise UserError("--against is a second model: name the first by --evaluate=MODEL.")
    if options.plan != "no" or options.data_report:
        raise UserError("--evaluate, --data_report and --plan each end with a word of their own: give one of them.")
    if not env.is_chief:
        log("INFO", f"{env.name}: the chief evaluates.")
        return {}
    outputs = resolve_outputs(options.output_dir, env, trainer)
    folder = outputs.records if outputs.given else "."
    replaced = is_ours(f"{folder}/{NAME}.html", KIND, "--output_dir")
    is_ours(f"{folder}/{NAME}.json", RECORDS, "--output_dir")
    import_tensorflow()
    from ..contract import load_module
    from .page import page

    started = time.monotonic()
    found, plots = evaluate(load_module(f"{package}.model", hyperparameters), hp, options, env)
    found["about"] |= {"trainer": trainer, "seconds": round(time.monotonic() - started, 2)}
    said = plain(found)
    write(f"{folder}/{NAME}.json", json.dumps(said, indent=1) + "\n", "--output_dir")
    write(f"{folder}/{NAME}.html", page(said, plots), "--output_dir")
    _write_summary(f"{outputs.logs if outputs.given else folder + '/logs'}/{NAME}", found)
    _tell(found)
    log("INFO", f"evaluation: {folder}/{NAME}.html and {NAME}.json{' (in place of earlier ones)' if replaced else ''}")
    return said


def _tell(found: dict[str, Any]) -> None:
    """Print what was found, in a few lines."""
    metrics = {name: value for name, value in found["metrics"].items() if name != "loss" or found["objective"] == "loss"}
    log("INFO", f"{found['kind']} on {found['data']['rows']:,} rows: {format_metrics(metrics)}", metrics=plain(metrics))
    for said in [each for each in found["slices"] if not each["few"]][:3]:
        value = said["metrics"].get(found["objective"])
        name = found["objective"] if value is not None else "loss"
        log("INFO", f"worst: {said['column']} {said['value']}, {said['rows']:,} rows: {name} {said['metrics'][name]:.5g}")
    if drifted := sorted(found["about"]["drifted"], key=lambda name: -found["skew"][name]):
        listed = ", ".join(f"{name} {found['skew'][name]:.2f}" for name in drifted[:5])
        log("WARNING", f"skew: these rows differ from the training rows in {listed} (0: alike, 1: nothing in common): train on such rows")
    if found["against"]:
        log("INFO", verdict(found))


def verdict(found: Mapping[str, Any]) -> str:
    """Return in one sentence how the model stands to the other one."""
    objective, other = found["objective"], found["against"]
    values = f"{objective} {found['metrics'][objective]:.5g} and {other['metrics'].get(objective, math.nan):.5g}"
    paired = other["paired"]
    if paired is None:
        return f"against {other['model']}: {values}; the losses of the rows cannot be compared"
    low, high = paired["interval"]
    certain = "better" if high < 0 else "worse" if low > 0 else "neither better nor worse for certain"
    numbers = f"mean {paired['loss']} differs by {paired['difference']:.4g} [{low:.4g}, {high:.4g}], p = {paired['p_value']:.2g}"
    return f"against {other['model']}: {values}; {certain} on the same {paired['rows']:,} rows: {numbers}"


def _write_summary(logs: str, found: dict[str, Any]) -> None:
    """Put the figures into TensorBoard: scalars, and the metrics and worst slices as a table of text."""
    import tensorflow as tf

    rows = [f"| {name} | {value:.6g} |" for name, value in found["metrics"].items()]
    slices = [
        f"| {each['column']} | {each['value']} | {each['rows']} | {each['metrics'].get(found['objective'], math.nan):.5g} |"
        for each in found["slices"][:10]
    ]
    text = "\n".join(
        [f"{found['model']}, {found['data']['rows']:,} rows", "", "| metric | value |", "|---|---|", *rows, ""]
        + [f"| slice | value | rows | {found['objective']} |", "|---|---|---|---|", *slices]
    )
    with tf.summary.create_file_writer(logs).as_default():
        tf.summary.text("evaluation", text, step=0)
        for name, value in found["metrics"].items():
            tf.summary.scalar(f"evaluation/{name}", value, step=0)


# ------------------------------------------------------------------ the rows


def evaluate(contract: Any, hp: Any, options: RunOptions, env: Environment) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (what evaluation.json holds, what the page draws beside it)."""
    from .judging import Judging
    from .served import Served

    served = Served(options.evaluate)
    other = Served(options.against, "--against") if options.against else None
    contract, files, reading, chunks = rows_to_judge(contract, hp, options, env)
    judging = Judging(contract, hp, served, other, files)
    for chunk in shown(chunks):
        judging.add(chunk)
    found, plots = judging.result()
    found["data"]["files"] = described(files, reading)
    return found, plots


def rows_to_judge(contract: Any, hp: Any, options: RunOptions, env: Environment) -> tuple[Any, list[str], Any, Iterator[Any]]:
    """Return (contract, files, reading, raw chunks) of the rows that a run would evaluate on; training data is not needed.

    Raises:
        UserError: there are none.
    """
    from .. import data, locations, sources
    from ..ahead import FILES, ahead, one_after_another
    from ..formats import Reading
    from ..splits import make_split

    reading = Reading(env.data_format, options.row_filter)
    contract = contract.with_reading(reading)
    given, named = options.eval_data_path or env.validation_data, options.train_data_path or env.training_data
    split = hp.eval_fraction and not given
    if given:
        flag = "--eval_data_path" if options.eval_data_path else "AIP_VALIDATION_DATA_URI"
        files = contract.find(options.eval_data_path or (env.validation_data,), flag)
    elif not named and env.in_job:
        raise UserError("no data: give --eval_data_path, or let the service set AIP_VALIDATION_DATA_URI.")
    elif not named and not split:
        files = locations.sample_paths(contract)[1]
        log("INFO", "evaluating on the sample data, which ships with the project (no --eval_data_path given)")
    else:
        train, evaluation, _, _ = locations.data_paths(contract, hp, options, env)
        files = train if split else evaluation
    bad = data.BadRows(options.bad_rows)

    def read() -> Iterator[Any]:
        if (source := sources.source_of(contract, files, hp, False, bad, counted=False)) is not None:
            return source.chunks()
        threads = 1 if "read" in contract.given or any(map(data.is_table, files)) else FILES
        return one_after_another(lambda path: contract.read(path, bad), files, threads)

    chunks = read()
    if split:
        chunks = make_split(hp.eval_fraction, hp.split_by, hp.seed, read()).part(chunks, True)
    return contract, files, reading, _counted(ahead(chunks), files, bad)


def _counted(chunks: Iterable[Any], files: list[str], bad: Any) -> Iterator[Any]:
    """Yield the chunks; say what was left out, and raise where nothing came."""
    some = False
    for chunk in chunks:
        if len(next(iter(chunk.values()))):
            some = True
            yield chunk
    if bad.reasons:
        log("WARNING", f"{bad} in {', '.join(files[:3])}")
    if not some:
        raise UserError(f"--eval_data_path: {', '.join(files[:3])} holds no rows. Name files with rows.")


def shown(chunks: Iterable[Any]) -> Iterator[Any]:
    """Yield chunks, and show how many rows have been judged: a bar on a terminal, else a line every ten seconds."""
    rows, last, bar = 0, time.monotonic(), None
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(unit=" rows", unit_scale=True, desc="evaluating", leave=False)
    try:
        for chunk in chunks:
            yield chunk
            count = len(next(iter(chunk.values())))
            rows += count
            if bar is not None:
                bar.update(count)
            elif time.monotonic() > last + SHOWN_SECONDS:
                last = time.monotonic()
                log("INFO", f"evaluated {rows:,} rows so far")
    finally:
        if bar is not None:
            bar.close()


def described(files: list[str], reading: Any) -> list[dict[str, Any]]:
    """Return the files with their sizes and checksums, for the record."""
    from .. import data

    whole = data.total_bytes(files) <= HASHED_BYTES
    found = []
    for path in files:
        one = data.fingerprint(path, whole, reading)
        kind = "sha256-of-metadata" if data.is_table(path) else "sha256" if whole else "sha256-of-ends"
        found.append({"path": one["path"], "bytes": one["bytes"], "checksum": f"{kind}:{one['sha256']}"})
    return found
