"""The sdist for the service's prebuilt containers: built, compared, stored (`scripts/build_package`)."""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from vertex_local import cli
from vertex_local.errors import UserError
from vertex_local.job import buckets, settings
from vertex_local.local import packages
from vertex_local.local.commands import trainers

from . import cloud, transfer
from .checkout import ROOT, SETTINGS


def store_locally(path: Path, uri: str, root: str | Path, overwrite: bool) -> str:
    """Copy a file to where `uri` lies under a local bucket root, and return what was done."""
    target = Path(buckets.to_path(uri, root))
    if target.is_file() and filecmp.cmp(path, target, shallow=False):
        return f"{target} is there already, the same bytes"
    if target.exists() and not overwrite:
        raise UserError(f"{target} holds something else: raise the version, or give --overwrite.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(path, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return f"copied to {target}"


def main(argv: Sequence[str]) -> int:
    """`scripts/build_package`: build the sdist, and upload or copy it if asked; return the exit code."""
    parser = cli.Parser(
        prog="scripts/build_package", description="Build the sdist for prebuilt containers; the same sources make the same bytes."
    )
    parser.add_argument("--trainer", choices=trainers(ROOT), help="narrow it to one trainer, which is then also the module trainer.task")
    parser.add_argument("--dist_dir", metavar="DIR", default="dist", help="where to put it, in a folder per trainer (default: %(default)s)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--upload", action="store_true", help="upload it with google-cloud-storage and compare checksums")
    where.add_argument("--bucket_root", metavar="DIR", help="copy it to DIR/BUCKET/… instead, for local runs (.vertex_local/buckets)")
    parser.add_argument("--to", metavar="gs://…/", type=cloud.folder, help="folder for it (default: gs://BUCKET/packages/TRAINER/)")
    parser.add_argument("--sample_data", action="store_true", help="its sample data, too, to gs://BUCKET/data/TRAINER/; needs --trainer")
    parser.add_argument("--overwrite", action="store_true", help="replace what has that name; jobs that restart will take the new one")
    cloud.add_flags(parser)
    args = parser.parse_args(argv)
    return cli.supervised(lambda cancel: _package(args, cancel))


def _package(args: argparse.Namespace, cancel: threading.Event) -> int:
    local = args.dry_run or args.bucket_root or not args.upload or cloud.is_local(os.environ.get("STORAGE_EMULATOR_HOST"))
    if args.sample_data and not (args.trainer and (args.upload or args.bucket_root)):
        raise UserError("--sample_data: give --trainer, and --upload or --bucket_root, too.")
    needed = ("project", "bucket") if (args.upload or args.bucket_root) and (args.sample_data or not args.to) else ()
    values = cloud.load_settings(SETTINGS, settings.from_flags(args), needed, bool(local))
    parts = [args.trainer] if args.trainer else []
    to = args.to or "/".join((f"gs://{values.get('bucket')}/packages", *parts))
    folder = Path(args.dist_dir, *parts)
    print(f"$ cd {ROOT} && {f'VERTEX_TRAINER={args.trainer} ' if args.trainer else ''}python setup.py sdist --formats=gztar")
    wanted = {}
    if args.sample_data:
        wanted = transfer.files_of(ROOT / args.trainer / "tests" / "data", f"gs://{values['bucket']}/data/{args.trainer}")
    if args.dry_run:
        storing = "upload" if args.upload else f"copy, under {args.bucket_root}," if args.bucket_root else "keep"
        print(f"{storing} {folder}/vertex_trainer-*.tar.gz" + (f" to {to.rstrip('/')}/" if args.upload or args.bucket_root else ""))
        for file, uri in wanted.items():
            print(f"{storing} {file} to {uri}")
        return 0
    path = packages.build(ROOT, folder, args.trainer)
    print(f"built {path}, {path.stat().st_size:,} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}…")
    stored = {path: f"{to.rstrip('/')}/{path.name}", **wanted}
    if args.upload:
        client = transfer.open_client(values.get("project", ""), os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"))  # as gcloud would
        transfer.tell(transfer.upload(client, stored, transfer.Options(args.overwrite, cancel=cancel)))
    elif args.bucket_root:
        for file, uri in stored.items():
            print(store_locally(file, uri, args.bucket_root, args.overwrite))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
