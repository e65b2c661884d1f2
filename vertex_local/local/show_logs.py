"""Show what a job's replicas printed, in the order in which they printed it; with -f, go on until the job ends.

python -m vertex_local logs 20261128120000 -f
"""

from __future__ import annotations

import heapq
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import cli
from ..errors import UserError, quoted
from . import job_record, records

_PAUSE = 0.2  # seconds between two looks at a job that runs
_LONGEST = 1 << 20  # bytes of a line that are shown


class _Log:
    """One replica's log, read as it grows; `lines` beside it says when each of its lines was printed."""

    def __init__(self, folder: Path, path: Path, name: str):
        self.name, self._log = name, path
        self._index = folder / "lines" / path.name
        self._log_at = self._index_at = 0

    def new(self) -> Iterator[tuple[float, str, str]]:
        """Yield (time, name, text) of the lines that came since the last call."""
        with open(self._index) as index, open(self._log, "rb") as log:
            index.seek(self._index_at)
            log.seek(self._log_at)
            while (entry := index.readline()).endswith("\n"):
                when, _, size = entry.split()
                text = log.read(int(size))
                self._index_at, self._log_at = index.tell(), log.tell()
                yield float(when), self.name, text[:_LONGEST].decode("utf-8", "replace").rstrip("\r\n")


def main(argv: Sequence[str]) -> int:
    """Print a job's logs and return the exit code."""
    parser = records.parser("logs", __doc__)
    parser.add_argument("job_id", metavar="ID", help="the job's id or its full name")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    parser.add_argument("--replica", metavar="NAME", help="only this one's, such as workerpool1-0; service is what was said of the job")
    args = parser.parse_args(argv)
    return cli.supervised(lambda cancel: _logs(args.state_dir, args.job_id, args.replica, args.follow, cancel))


def _logs(state_dir: str, job_id: str, replica: str | None, follow: bool, cancel: threading.Event) -> int:
    with records.opened(state_dir) as found:
        known: dict[Path, _Log] = {}
        while True:
            record = found.backing(found.get(job_id))
            running = follow and job_record.is_held(record.folder)  # asked before the last look
            _find(record, replica, known)
            for _, name, text in heapq.merge(*(log.new() for log in known.values()), key=lambda line: line[0]):
                print(f"[{name}] {text}")
            sys.stdout.flush()
            if not running or cancel.wait(_PAUSE):
                break
    if replica and not known:
        raise UserError(f"--replica: job {record.job_id} has no log of {quoted(replica)}; see {record.folder / 'logs'}.")
    return 0


def _find(record: records.Record, replica: str | None, known: dict[Path, _Log]) -> None:
    """Add the logs that have come since the last look."""
    for folder in record.folders:
        trial = folder.name.removeprefix(f"{record.job_id}-")
        for path in sorted(folder.glob("logs/*.log")):
            name = path.stem if folder == record.folder else f"{trial}/{path.stem}"
            wanted = replica in (None, name, path.stem)
            if wanted and path not in known and (folder / "lines" / path.name).exists():
                known[path] = _Log(folder, path, name)
