"""End a job in order, as Ctrl-C would: one of `run`, of `tune` or of the job service.

    python -m vertex_local stop 20261128120000

Replicas get SIGTERM and some seconds to save their state. A trainer that is started again goes on from its checkpoint;
`tune --job_id ID` continues a study.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from .. import cli
from ..errors import UserError
from . import job_record, jobs, records

_PAUSE = 0.1


def main(argv: Sequence[str]) -> int:
    """End one job and return the exit code."""
    parser = records.parser("stop", __doc__)
    parser.add_argument("job_id", metavar="ID", help="the job's id or its full name")
    parser.add_argument("--no_wait", action="store_true", help="return at once; do not wait for the job's end")
    args = parser.parse_args(argv)
    return cli.supervised(lambda cancel: _stop(args.state_dir, args.job_id, not args.no_wait, cancel))


def _stop(state_dir: str, job_id: str, wait: bool, cancel: threading.Event) -> int:
    with records.opened(state_dir) as found:
        record = found.get(job_id)
        if record.is_over:
            raise UserError(f"job {record.job_id} is over ({record.state}); there is nothing to stop.")
        record = found.backing(record)
        record.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (record.folder / jobs.STOP).touch()
        job_record.cancelling(found.store, record.document["name"])
        print(f"job {record.job_id} was asked to end", flush=True)
        while wait and not cancel.wait(_PAUSE):
            now = found.get(record.document["name"])
            if now.is_over:
                print(f"job {record.job_id}: {now.state}")
                break
    return 0
