"""Remove the folders, logs and records of jobs that have ended. They are listed first; nothing is removed until you agree.

    python -m vertex_local clean --older_than 30

Outputs in buckets and jobs that still run are kept. Installed packages that no job has used in that time are removed, too;
they are installed again when a job needs them.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import cli
from ..job import times
from . import job_record, records

_DAY = 86400


@dataclass(frozen=True)
class _Garbage:
    """Something to be removed: what it is, its folders, and the job's record if there is one."""

    what: str
    folders: tuple[Path, ...]
    record: str | None = None

    @property
    def size(self) -> int:
        """How many bytes its files hold."""
        files = (path for folder in self.folders for path in folder.rglob("*"))
        return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())


def main(argv: Sequence[str]) -> int:
    """Remove jobs that have ended, and return the exit code."""
    parser = records.parser("clean", __doc__)
    parser.add_argument("--older_than", metavar="DAYS", type=cli.whole(0), default=0, help="only jobs that ended DAYS ago or before")
    parser.add_argument("--dry_run", action="store_true", help="show what would be removed, and remove nothing")
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    args = parser.parse_args(argv)
    return cli.supervised(lambda cancel: _clean(args.state_dir, args.older_than, args.dry_run, args.yes))


def _clean(state_dir: str, days: int, dry_run: bool, yes: bool) -> int:
    with records.opened(state_dir) as found:
        everything, before = found.all(), time.time() - days * _DAY
        garbage = [*_jobs(everything, before), *_packages(found.state, everything, before)]
        if not garbage:
            print("nothing to remove")
            return 0
        for each in garbage:
            print(f"{each.size / 1e6:10.2f} MB  {each.what}")
        if dry_run:
            print(f"{len(garbage)} would be removed")
            return 0
        if not (yes or _agreed(len(garbage))):
            print("nothing was removed")
            return 1
        for each in garbage:
            for folder in each.folders:
                shutil.rmtree(folder)
            if each.record:
                found.store.remove(each.record)
        print(f"{len(garbage)} removed")
    return 0


def _agreed(count: int) -> bool:
    if not sys.stdin.isatty():
        print("error: standard input is not a terminal to ask on: give --yes to remove them, or --dry_run to list them.", file=sys.stderr)
        return False
    return input(f"Remove these {count}? [y/N] ").strip().lower() in ("y", "yes")


def _jobs(everything: Sequence[records.Record], before: float) -> Iterator[_Garbage]:
    for record in everything:
        ended = record.document.get("endTime")
        if not record.is_over or not ended or times.seconds(ended) > before or job_record.is_held(record.folder):
            continue
        name = record.document.get("displayName", "")
        yield _Garbage(f"{record.job_id}  {record.state}  {ended[:10]}  {name}", tuple(record.folders), record.document["name"])


def _packages(state: Path, everything: Sequence[records.Record], before: float) -> Iterator[_Garbage]:
    """Yield installed packages; none while any job runs, because it may use them."""
    if not all(record.is_over for record in everything):
        return
    for folder in sorted(path for path in (state / "packages").glob("*") if path.is_dir()):
        if folder.stat().st_mtime <= before:
            yield _Garbage(f"packages {folder.name}", (folder,))
