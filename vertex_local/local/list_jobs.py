"""List the jobs of this machine, the newest first: id, kind, state, name, start and duration.

    python -m vertex_local list --filter 'state="JOB_STATE_FAILED" AND createTime>"2026-01-01T00:00:00Z"'

A filter is written as for the API's list calls, over the fields of jobs as the API shows them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from .. import cli
from ..errors import UserError
from ..job import times
from . import records

HEADINGS = ("ID", "KIND", "STATE", "NAME", "START", "DURATION")


def main(argv: Sequence[str]) -> int:
    """Print the jobs and return the exit code."""
    parser = records.parser("list", __doc__)
    parser.add_argument("--filter", metavar="TEXT", default="", help="only jobs that match it")
    parser.add_argument("--limit", metavar="N", type=cli.whole(1), default=20, help="at most N jobs (default: %(default)s)")
    args = parser.parse_args(argv)
    return cli.supervised(lambda cancel: _list(args.state_dir, args.filter, args.limit))


def _list(state_dir: str, text: str, limit: int) -> int:
    accepts = _filter(text)
    with records.opened(state_dir) as found:
        chosen = itertools.islice((record for record in found.all() if accepts(record.document)), limit)
        records.print_columns([HEADINGS, *map(_row, chosen)])
    return 0


def _filter(text: str) -> Any:
    from ..serve import filters

    try:
        return filters.parse(text, filters.lookup)
    except filters.FilterError as error:
        raise UserError(f"--filter: {str(error).removeprefix('filter: ')}") from None


def _row(record: records.Record) -> tuple[str, ...]:
    start, duration = record.document.get("startTime", ""), record.duration
    return (
        record.job_id,
        record.kind,
        record.state,
        record.document.get("displayName", ""),
        start[:19].replace("T", " "),
        "" if duration is None else times.describe(duration),
    )
