"""Copy files to Cloud Storage or from there, in parallel, resumed where they broke off, compared by CRC32C.

    python -m vertex_local copy gs://bucket/run ./run          # a run's outputs, once its manifest says that they are whole
    python -m vertex_local copy ./data gs://bucket/data

What is there with the same bytes is left alone; the same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from vertex_local import cli
from vertex_local.errors import UserError
from vertex_local.job import buckets

from . import transfer


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(prog="python -m vertex_local copy", description=__doc__)
    parser.add_argument("source", help="a file or folder, or gs://BUCKET/X")
    parser.add_argument("target", help="gs://BUCKET/X, or a folder; of one file: its place, or a folder with / at its end")
    parser.add_argument("--overwrite", action="store_true", help="replace what has the name and other bytes")
    parser.add_argument("--unfinished", action="store_true", help="take a run that its manifest does not call complete")
    parser.add_argument("--workers", metavar="N", type=cli.whole(1), default=transfer.WORKERS, help="files at once (default: %(default)s)")
    parser.add_argument("--project", help="the project that is billed, where the bucket's requester pays")
    return parser


def main(argv: Sequence[str]) -> int:
    """Copy, and return the exit code: 0 when all is there and equal, 1 if the service failed, 2 for a mistake in the command."""
    args = build_parser().parse_args(argv)
    return cli.supervised(lambda cancel: _copy(args, cancel))


def _copy(args: argparse.Namespace, cancel: threading.Event) -> int:
    remote = [text for text in (args.source, args.target) if text.startswith("gs://")]
    if len(remote) != 1:
        raise UserError(f"give one gs://… and one local path; got {args.source} and {args.target}.")
    buckets.check_name(remote[0][len("gs://") :].partition("/")[0])
    local = Path(args.target if args.source in remote else args.source)
    options = transfer.Options(args.overwrite, args.unfinished, args.workers, cancel)
    files = {} if args.source in remote else _to_upload(local, args.target)
    client = transfer.open_client(args.project or "", os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"))
    if args.source in remote:
        if args.target.endswith("/"):
            local.mkdir(parents=True, exist_ok=True)
        lines = transfer.download(client, args.source, local, options)
    else:
        lines = transfer.upload(client, files, options)
    print(f"{transfer.tell(lines)} files: {args.source} -> {args.target}")
    return 0


def _to_upload(local: Path, target: str) -> dict[Path, str]:
    if local.is_file():
        in_folder = target.endswith("/") or not target[len("gs://") :].partition("/")[2]
        return {local: f"{target.rstrip('/')}/{local.name}" if in_folder else target}
    files = transfer.files_of(local, target) if local.is_dir() else {}
    if not files:
        raise UserError(f"{local}: there is no such file, nor a folder with files. Name one.")
    return files
