"""Show in what two jobs differ: fields of their specs, arguments of their trainers, last measurements, state and times.

    python -m vertex_local compare 20261128120000 20261128130000
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import cli
from ..job import times
from . import records
from .report import Follower

_OF_THE_RECORD = (
    "name", "createTime", "startTime", "endTime", "updateTime", "state", "error", "trials", "trainingTaskMetadata", "outputInfo",
    "completionStats", "partialFailures",
)  # fmt: skip
_LONGEST = 100  # characters of a value that are shown
_NONE = "-"


def main(argv: Sequence[str]) -> int:
    """Print what differs and return the exit code: 0, whether anything differs or not."""
    parser = records.parser("compare", __doc__)
    parser.add_argument("job_ids", metavar="ID", nargs=2, help="the jobs' ids or full names")
    args = parser.parse_args(argv)
    return cli.supervised(lambda cancel: _compare(args.state_dir, *args.job_ids))


def _compare(state_dir: str, first: str, second: str) -> int:
    with records.opened(state_dir) as found:
        pair = (found.get(first), found.get(second))
    rows = [("", *(record.job_id for record in pair))]
    for look in (_fields, _how_it_went, _metrics):
        one, other = map(look, pair)
        always = look is not _fields  # of what went in, only what differs
        rows += [(key, one.get(key, _NONE), other.get(key, _NONE)) for key in {**one, **other} if always or one.get(key) != other.get(key)]
    widths = [max(len(_short(row[i])) for row in rows) for i in range(3)]
    for row in rows:
        print("  ".join(_short(cell).ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0


def _short(cell: str) -> str:
    return cell if len(cell) <= _LONGEST else f"{cell[: _LONGEST - 1]}…"


def _fields(record: records.Record) -> dict[str, str]:
    """Return what a job was asked to do: one entry for each field, and for each flag of its trainers."""
    asked = {key: value for key, value in record.document.items() if key not in _OF_THE_RECORD}
    return dict(_flat(asked, ""))


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
    """Yield a trainer's flags; the later of two equal ones counts, and what is no flag belongs to the one before it."""
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
    """Return the last measurements: of the best trial, or those that the trainer left with its outputs; and its speed."""
    result, found = record.result, {}
    best = next(iter(result.get("best", ())), None)
    for trial in (trial for trial in result.get("trials", ()) if trial["id"] == best):
        found["best trial"] = best
        found |= {item["metricId"]: f"{item['value']:.6g}" for item in trial["finalMeasurement"]["metrics"]}
    for folder in _output_folders(result):
        with contextlib.suppress(OSError, ValueError):
            left = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            found |= {key: f"{value:.6g}" for key, value in left.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
            break
    last = Follower(record.folder / "events" / "workerpool0-0.jsonl").last()
    return found | {f"last {key}": f"{last[key]:,}" for key in ("step", "examples_per_second") if isinstance(last.get(key), (int, float))}


def _output_folders(result: Mapping[str, Any]) -> Iterator[Path]:
    outputs = result.get("outputs", {})
    for name in ("AIP_CHECKPOINT_DIR", "AIP_MODEL_DIR"):
        if name in outputs:
            yield Path(outputs[name])
