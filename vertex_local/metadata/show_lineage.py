"""Show where a model comes from: its run, job, parameters, commit and every data file.

    python -m vertex_local lineage 1234567890@champion
    python -m vertex_local lineage gs://bucket/run/model
    python -m vertex_local lineage taxifare-run-20261128-120000/model

MODEL is a resource name, an id or a display name, optionally with @ALIAS or @VERSION; or `endpoints/ID`, a gs://… or a
folder. For each file it says whether the file is still the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vertex_runtime.tracking import nodes as run_nodes

from .. import cli
from ..local.store import FILE, Store
from . import sources

_WIDTH = 11  # characters of the first column


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(prog="python -m vertex_local lineage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="the model; see above")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.add_argument("--state_dir", metavar="DIR", default=".vertex_local", help="folder for jobs (default: %(default)s)")
    parser.add_argument("--bucket_root", metavar="DIR", help="folder for gs://BUCKET/X as BUCKET/X (default: STATE_DIR/buckets)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print where a model comes from and return the exit code: 0, whether its files have changed or not."""
    args = build_parser().parse_args(argv)
    return cli.supervised(lambda cancel: _show(args))


def _show(args: argparse.Namespace) -> int:
    root = Path(os.path.realpath(args.bucket_root or Path(args.state_dir) / "buckets"))
    with opened(Path(args.state_dir)) as records:
        found = sources.origin(records, root, sources.find(records, root, args.model))
    print(json.dumps(found.json(), indent=1) if args.json else "\n".join(_lines(found)))
    return 0


@contextlib.contextmanager
def opened(state: Path) -> Iterator[Store | None]:
    """Open the records of a state folder; None if there are none yet."""
    if not (state / FILE).is_file():
        yield None
        return
    with contextlib.closing(Store(state.resolve())) as records:
        yield records


def _lines(found: sources.Origin) -> Iterator[str]:
    version = found.model.version
    aliases = f" ({', '.join(version['versionAliases'])})" if version and version.get("versionAliases") else ""
    yield _line("model", f"{found.model.name}{aliases}")
    what = {
        sources.SAME: "as they were made", sources.CHANGED: "CHANGED since they were made", sources.MISSING: "MISSING",
        sources.UNKNOWN: "not known from before",
    }  # fmt: skip
    yield _line("files", f"{found.model.uri}: {what[found.now]}{f', {found.checksum}' if found.checksum else ''}")
    if found.record is None:
        yield _line("run", "not recorded: no execution here has made these files, and there is no run.json beside them")
        return
    yield from _run(found.record)
    if found.job:
        yield _line("job", f"{found.job['name']}: {found.job.get('state', '?')}")
    yield from _data(found.files, found.record)


def _run(record: Mapping[str, Any]) -> Iterator[str]:
    experiment, job, code = record.get("experiment"), record.get("job") or {}, record.get("code") or {}
    about = f"{record['trainer']}, {record['state']}, started {record.get('started')}, seed {record.get('seed')}"
    yield _line("run", f"{record['id']}: {about}")
    for name in ("trial", "pipeline"):
        if job.get(name):
            yield _line(name, str(job[name]))
    if experiment:
        yield _line("experiment", f"{experiment['name'].rpartition('/')[2]}/{experiment['run']}")
    changed = ", with changes that are in no commit" if code.get("changed") else ""
    package = f", package version {code['version']}" if code.get("version") else ""
    yield _line("code", f"{code.get('commit') or 'no commit'}{changed}; sources {str(code.get('source_sha256'))[:16]}…{package}")
    yield _line("with", ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items()))
    yield _line("parameters", ", ".join(f"{name}={value}" for name, value in run_nodes.parameters(record).items()))
    metrics = (record.get("metrics") or {}).items()
    yield _line("metrics", ", ".join(f"{name} {value:.5g}" for name, value in metrics if isinstance(value, (int, float))) or "none yet")


def _data(files: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> Iterator[str]:
    if record.get("synthetic_sample_data"):
        yield _line("data", "the bundled synthetic sample")
    for i, file in enumerate(files):
        now = file["now"] if file["now"] == sources.SAME else file["now"].upper()
        text = f"{now}: {file['uri']} ({', '.join(file['parts'])}; {file['bytes']:,} bytes; {file['checksum']})"
        yield _line("" if i or record.get("synthetic_sample_data") else "data", text)
    if not files:
        yield _line("data", "the list of files is gone with the run.json")


def _line(name: str, text: str) -> str:
    return f"{name:{_WIDTH}}{text}"
