"""Show how two runs differ: in parameters, data, code, environment, metrics with their spread and times; for jobs also in specs.

    python -m vertex_local compare 20261128120000 20261128130000
    python -m vertex_local compare taxifare-run-20261128-120000 my-experiment/my-run

A RUN is a job's id or full name, the folder of a run's outputs (or a gs://…), or EXPERIMENT/RUN of Vertex AI Experiments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import cli
from ..errors import UserError, quoted
from ..job import buckets, times
from ..metadata import lineage, runs
from . import records
from .events import Follower
from .plan import RunOptions

_OF_THE_RECORD = (
    "name", "createTime", "startTime", "endTime", "updateTime", "state", "error", "trials", "trainingTaskMetadata", "outputInfo",
    "completionStats", "partialFailures",
)  # fmt: skip
_LONGEST = 100  # characters of a value that are shown
_NONE = "-"


@dataclass
class Side:
    """One of the two runs: what it was asked to do, how it went and what it measured, as rows of name and value."""

    title: str
    asked: dict[str, str] = field(default_factory=dict)
    went: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)

    def take(self, found: Sequence[Mapping[str, Any]]) -> Side:
        """Add the rows of a run's record, or of the records of several trials."""
        if found:
            self.asked |= _common([runs.asked(record) for record in found])
            self.went = {**runs.went(found[0]), **self.went} if len(found) == 1 else self.went
            self.metrics = {**self.metrics, **runs.metrics(found)}
        return self


def main(argv: Sequence[str]) -> int:
    """Print what differs and return the exit code: 0, whether anything differs or not."""
    parser = records.parser("compare", __doc__)
    parser.add_argument("runs", metavar="RUN", nargs=2, help="a job's id or full name, a folder of outputs, or EXPERIMENT/RUN")
    parser.add_argument("--bucket_root", metavar="DIR", help="folder for gs://BUCKET/X as BUCKET/X (default: STATE_DIR/buckets)")
    args = parser.parse_args(argv)
    return cli.supervised(lambda cancel: _compare(args))


def _compare(args: argparse.Namespace) -> int:
    root = RunOptions(args.state_dir, args.bucket_root).paths().buckets
    one, other = (_side(args.state_dir, root, asked) for asked in args.runs)
    rows = [("", one.title, other.title)]
    for name in runs.differing(one.asked, other.asked):  # of the inputs, only those that differ
        rows.append((name, one.asked.get(name, _NONE), other.asked.get(name, _NONE)))
    rows += _equal(one, other)
    for mine, others in ((one.went, other.went), (one.metrics, other.metrics)):
        rows += [(name, mine.get(name, _NONE), others.get(name, _NONE)) for name in {**mine, **others}]
    records.print_columns([[_short(cell) for cell in row] for row in rows])
    return 0


def _common(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Merge the rows of several trials; where their values differ, say how many values there are."""
    values = {name: list(dict.fromkeys(each.get(name, _NONE) for each in rows)) for each in rows for name in each}
    return {name: found[0] if len(found) == 1 else f"{len(found)} values over the trials" for name, found in values.items()}


def _equal(one: Side, other: Side) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each kind of input that is the same in both runs: no row at all could also mean that it is not known."""
    for kind in ("parameters.", "data ", "code.", "environment."):
        mine, others = ({name for name in side.asked if name.startswith(kind)} for side in (one, other))
        if mine and others and not any(one.asked.get(name) != other.asked.get(name) for name in mine | others):
            yield (kind.strip(" ."), "the same", "the same")


def _side(state_dir: str, root: Path, asked: str) -> Side:
    """Return what is known of a run that is given by any of its names."""
    folder = Path(buckets.to_path(asked, root)) if asked.startswith("gs://") else Path(asked)
    if folder.is_dir() or asked.startswith("gs://"):
        folder = folder.parent if folder.name == "model" else folder
        found = runs.of_folder(folder)
        if not found:
            raise UserError(f"RUN: {quoted(asked)} holds no run.json of a run ({folder}), nor do its checkpoints and its trials.")
        return Side(asked).take(found)
    with records.opened(state_dir) as kept:
        if "/" in asked and not asked.startswith("projects/"):
            found, logged = runs.of_experiment_run(kept.store, root, asked)
            state, parameters = logged.pop("state"), [name for name in logged if name.startswith("parameters.")]
            metrics = {name: value for name, value in logged.items() if name not in parameters}
            side = Side(asked, {} if found else {name: logged[name] for name in parameters}, metrics=metrics).take(found)
            side.went.setdefault("state", state)
            return side
        return _job(kept.get(asked))


def _job(record: records.Record) -> Side:
    """Return what is known of a job, and of the run that its outputs hold."""
    side = Side(record.job_id, _fields(record), _how_it_went(record), _metrics(record))
    found = [each for folder in _bases(record.result) for each in runs.of_folder(folder)]
    return side.take([each for each in found if lineage.is_of_job(each, record.job_id)])


def _short(cell: str) -> str:
    return cell if len(cell) <= _LONGEST else f"{cell[: _LONGEST - 1]}…"


def _fields(record: records.Record) -> dict[str, str]:
    """Return what a job was asked to do: one entry for each field, and for each flag of its trainers."""
    return dict(_flat({key: value for key, value in record.document.items() if key not in _OF_THE_RECORD}, ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flags(item, f"{path}.{key}") if key == "args" else _flat(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _flat(item, f"{path}[{i}]")
    else:
        yield path, str(value)


def _flags(args: Sequence[str], path: str) -> Iterator[tuple[str, str]]:
    """Yield a trainer's flags with their values: the last of a repeated flag; a word without `--` is a value of the flag before it."""
    flags: dict[str, list[str]] = {}
    name = ""
    for word in args:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            flags[name] = [value] if value else []
        else:
            flags.setdefault(name, []).append(word)
    for name, values in flags.items():
        yield f"{path} {name}".rstrip(), " ".join(values) or "given"


def _how_it_went(record: records.Record) -> dict[str, str]:
    result, duration = record.result, record.duration
    return {
        "state": record.state,
        "start": record.document.get("startTime", _NONE)[:19],
        "duration": _NONE if duration is None else times.describe(duration),
        "restarts": str(result.get("restarts", _NONE)),
        "error": record.document.get("error", {}).get("message", _NONE),
    }


def _metrics(record: records.Record) -> dict[str, str]:
    """Return the final metrics, from the best trial or from the outputs' metrics.json, and the last step and speed."""
    result, found = record.result, {}
    for trial in (trial for trial in result.get("trials", ()) if trial["id"] in result["best"][:1]):
        found["best trial"] = trial["id"]
        found |= {item["metricId"]: f"{item['value']:.6g}" for item in trial["finalMeasurement"]["metrics"]}
    for folder in _outputs(result):
        with contextlib.suppress(OSError, ValueError):
            left = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            found |= {key: f"{value:.6g}" for key, value in left.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
            break
    last = Follower(record.folder / "events" / "workerpool0-0.jsonl").last()
    return found | {f"last {key}": f"{last[key]:,}" for key in ("step", "examples_per_second") if isinstance(last.get(key), (int, float))}


def _bases(result: Mapping[str, Any]) -> list[Path]:
    """Return the folder of a job's outputs, or of the outputs of a study's trials; nothing if it is not known."""
    return [Path(result["log_dir"])] if "log_dir" in result else [folder.parent for folder in _outputs(result)[:1]]


def _outputs(result: Mapping[str, Any]) -> list[Path]:
    outputs = result.get("outputs", {})
    return [Path(outputs[name]) for name in ("AIP_CHECKPOINT_DIR", "AIP_MODEL_DIR") if name in outputs]
