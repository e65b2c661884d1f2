"""The sdist for the service's prebuilt containers: built, compared, stored (`scripts/build_package`)."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from vertex_local import cli
from vertex_local.job import buckets, settings
from vertex_local.local.commands import trainers

from . import cloud, transfer
from .checkout import ROOT, SETTINGS, BuildError

EPOCH = 315532800  # 1 January 1980, the oldest time that every archive format knows
_NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "tests", "benchmarks", "*-run-*", "*-model*")  # at the top
_NOT_FILES = shutil.ignore_patterns("__pycache__", "*.egg-info")  # anywhere


def sdist(folder: Path, trainer: str | None = None, root: Path = ROOT) -> Path:
    """Build the sdist of the checkout `root` into `folder` and return its path; the same sources make the same bytes.

    Args:
        trainer: narrows it to one trainer; None takes all.
    """
    with tempfile.TemporaryDirectory(prefix="sdist-") as scratch:
        tree = Path(scratch) / "tree"  # in a copy: a build leaves folders behind, and two at once would mix
        shutil.copytree(root, tree, ignore=_left_out(root))
        words = [sys.executable, "setup.py", "--quiet", "sdist", "--formats=gztar", f"--dist-dir={scratch}"]
        variables = {name: value for name, value in os.environ.items() if name != "VERTEX_TRAINER"}
        if trainer:
            variables["VERTEX_TRAINER"] = trainer
        done = subprocess.run(words, cwd=tree, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise BuildError(f"setup.py sdist ended with {done.returncode}: {lines[-1].strip()}")
        (made,) = Path(scratch).glob("*.tar.gz")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / made.name.replace("-", "_", made.name.count("-") - 1)  # as newer setuptools write it
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(_without_times(made))
        os.replace(part, path)
    return path


def _left_out(root: Path) -> Callable[[str, list[str]], set[str]]:
    return lambda folder, names: _NOT_FILES(folder, names) | (_NOT_SOURCES(folder, names) if Path(folder) == root else set())


def _without_times(archive: Path) -> bytes:
    """Return a .tar.gz with its members sorted, and all that depends on when and by whom it was made taken out."""
    packed, when = io.BytesIO(), int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))
    with tarfile.open(archive) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = when, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return gzip.compress(packed.getvalue(), mtime=when)


def store_locally(path: Path, uri: str, root: str | Path, overwrite: bool) -> str:
    """Copy a file to where `uri` lies under a local bucket root, and return what was done."""
    target, data = Path(buckets.to_path(uri, root)), path.read_bytes()
    if target.is_file() and target.read_bytes() == data:
        return f"{target} is there already, the same bytes"
    if target.exists() and not overwrite:
        raise BuildError(f"{target} holds something else: raise the version, or give --overwrite.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(path, part)
        if part.read_bytes() != data:
            raise cloud.CloudError(f"{part}: differs from {path} after copying; is the disk full?")
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
    parser.add_argument("--to", metavar="gs://…/", help="folder for it (default: gs://BUCKET/packages/TRAINER/)")
    parser.add_argument("--sample_data", action="store_true", help="its sample data, too, to gs://BUCKET/data/TRAINER/; needs --trainer")
    parser.add_argument("--overwrite", action="store_true", help="replace what has that name; jobs that restart will take the new one")
    cloud.add_flags(parser)
    args = parser.parse_args(argv)
    return cli.supervised(lambda cancel: _package(args, cancel))


def _package(args: argparse.Namespace, cancel: threading.Event) -> int:
    local = args.dry_run or args.bucket_root or not args.upload or cloud.is_local(os.environ.get("STORAGE_EMULATOR_HOST"))
    if args.sample_data and not (args.trainer and (args.upload or args.bucket_root)):
        raise BuildError("--sample_data: give --trainer, and --upload or --bucket_root, too.")
    needed = ("project", "bucket") if (args.upload or args.bucket_root) and (args.sample_data or not args.to) else ()
    values = cloud.place(SETTINGS, settings.from_flags(args), needed, bool(local))
    parts = [args.trainer] if args.trainer else []
    to = args.to or "/".join((f"gs://{values.get('bucket')}/packages", *parts))
    if not to.startswith("gs://"):
        raise BuildError(f"--to: takes gs://bucket/folder; got {to!r}.")
    folder = Path(args.dist_dir, *parts)
    print(f"$ cd {ROOT} && {f'VERTEX_TRAINER={args.trainer} ' if args.trainer else ''}python setup.py sdist --formats=gztar")
    sample = ROOT / (args.trainer or "") / "tests" / "data"
    files = sorted(path for path in sample.rglob("*") if path.is_file()) if args.sample_data else []
    wanted = {file: f"gs://{values['bucket']}/data/{args.trainer}/{file.relative_to(sample).as_posix()}" for file in files}
    if args.dry_run:
        storing = "upload" if args.upload else f"copy, under {args.bucket_root}," if args.bucket_root else "keep"
        print(f"{storing} {folder}/vertex_trainer-*.tar.gz" + (f" to {to.rstrip('/')}/" if args.upload or args.bucket_root else ""))
        for file, uri in wanted.items():
            print(f"{storing} {file} to {uri}")
        return 0
    path = sdist(folder, args.trainer)
    print(f"built {path}, {path.stat().st_size:,} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}…")
    stored = {path: f"{to.rstrip('/')}/{path.name}", **wanted}
    if args.upload:
        client = transfer.open_client(values.get("project", ""), os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"))  # as gcloud would
        for line in transfer.upload(client, stored, args.overwrite, cancel=cancel):
            print(line, flush=True)
    elif args.bucket_root:
        for file, uri in stored.items():
            print(store_locally(file, uri, args.bucket_root, args.overwrite))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
