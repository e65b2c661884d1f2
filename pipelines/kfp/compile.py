"""Compile the pipeline of a trainer: `python -m pipelines.kfp.compile --job=jobs/taxifare.yaml --output=taxifare-pipeline.yaml`.

Machines, image, arguments, scheduling, accounts and networks are those of the job's file; data, threshold, endpoint and the
like are parameters, with the file's own as defaults. The same files compile to the same text. Runs in the environment that
`scripts/setup_kfp` makes; the compiled file is sent by `scripts/submit_pipeline`, or run by `python -m vertex_local pipeline`.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import re
import sys
import tarfile
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vertex_local import cli
from vertex_local.errors import UserError
from vertex_local.job import settings

ROOT = Path(__file__).resolve().parents[2]
_ARCHIVE = re.compile(r"(__KFP_EMBEDDED_ARCHIVE_B64 = ')([A-Za-z0-9+/=]+)(')")
ENDINGS = (".yaml", ".yml", ".json")
FORMATS = ("csv", "jsonl", "parquet", "tfrecord")  # as scripts/convert_data has them


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(prog="python -m pipelines.kfp.compile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", metavar="FILE", required=True, help="the custom job that trains")
    parser.add_argument("--output", metavar="FILE", required=True, help="what to write, *.yaml or *.json; an earlier one is replaced")
    parser.add_argument("--trainer", metavar="NAME", help="only compile if this is the job's trainer")
    parser.add_argument("--tuning", metavar="FILE", help="a tuning job, whose best trial's hyperparameters are trained with")
    parser.add_argument("--convert", choices=FORMATS, help="convert the training rows first, shuffled, to as many files as convert_shards")
    parser.add_argument("--output_root", metavar="gs://…", help="default of the parameter output_root (default: the job's own output)")
    parser.add_argument("--no_validate", action="store_true", help="without the report on the data")
    parser.add_argument("--no_deploy", action="store_true", help="register the model, deploy nothing")
    parser.add_argument("--no_batch_predict", action="store_true", help="without the batch prediction, which batch_instances asks for")
    settings.add_flags(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Compile one pipeline and return the exit code."""
    args = build_parser().parse_args(argv)
    return cli.supervised(lambda cancel: _compile(args, cancel))


def _compile(args: argparse.Namespace, cancel: threading.Event) -> int:
    start = time.monotonic()
    output = Path(args.output)
    _refuse_output(output)
    found = steps(args)
    text = compile_steps(found, output.suffix)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: {output}: cannot be written: {error.strerror}. Name another file.") from None
    for note in found.tuning.notes if found.tuning else ():
        print(f"note: {note}", file=sys.stderr)
    print(f"{output}: the pipeline of {found.job.trainer}, {time.monotonic() - start:.1f} s")
    print(f"  send    $ scripts/submit_pipeline {output} --parameter threshold=NUMBER")
    print(f"  here    $ python -m vertex_local pipeline {output}")
    return 0


def _refuse_output(path: Path) -> None:
    """Raise a UserError where the file cannot be written, or is something else than a pipeline that was compiled earlier."""
    if path.suffix not in ENDINGS:
        raise UserError(f"--output: takes a file *.yaml or *.json; got {str(path)[:100]!r}.")
    if not path.parent.is_dir():
        raise UserError(f"--output: {path.parent} is no folder; make it first.")
    if path.exists():
        head = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if "pipelineInfo" not in head or "deploymentSpec" not in head:
            raise UserError(f"--output: {path} is no compiled pipeline and is kept; name another file.")


def steps(args: argparse.Namespace) -> Any:
    """Return the `Steps` that the flags ask for.

    Raises:
        UserError: files that do not go together, or that the components cannot pass on.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of Google's, about the Python at hand
        _refuse_other_python()
        from . import job_files, pipeline
    given = settings.from_flags(args)
    job = job_files.training_job(args.job, given, ROOT)
    tuning = job_files.tuning_job(args.tuning, given, ROOT) if args.tuning else None
    if args.trainer not in (None, job.trainer):
        raise UserError(f"--trainer: {args.job} runs {job.trainer}, not {args.trainer[:100]}. Give that, or another job file.")
    if tuning and tuning.trainer != job.trainer:
        raise UserError(
            f"--tuning: {args.tuning} tunes {tuning.trainer}, and {args.job} trains {job.trainer}. Give two files of one trainer."
        )
    if args.convert and "container_spec" not in job.pools[0]:
        remedy = "convert by scripts/convert_data beforehand, or train in the project's own image"
        raise UserError(f"--convert: {args.job} runs a Python package, which has no data_tools in it: {remedy}.")
    root = (args.output_root or job.output).rstrip("/")
    if not root.startswith("gs://"):
        raise UserError(f"--output_root: takes gs://bucket/folder; got {root[:100]!r} ({args.job} may name it as baseOutputDirectory).")
    location = settings.load(Path(args.job).parent, given).get("region", "us-central1")
    return pipeline.Steps(
        job, tuning, location, root, job_files.serving_image(args.job, given),
        convert_to=args.convert or "", validate=not args.no_validate, deploy=not args.no_deploy, batch_predict=not args.no_batch_predict,
    )  # fmt: skip


def _refuse_other_python() -> None:
    """Raise a UserError where KFP or Google's components are not installed."""
    try:
        import google_cloud_pipeline_components  # noqa: F401
        import kfp  # noqa: F401
    except ImportError as error:
        remedy = "make the environment with scripts/setup_kfp and use its interpreter: .venv-kfp/bin/python -m pipelines.kfp.compile"
        raise UserError(f"{error.name} is not installed: {remedy}.") from None


def compile_steps(steps: Any, suffix: str = ".yaml") -> str:
    """Return the compiled pipeline as text, the same for the same steps."""
    from kfp import compiler

    from .pipeline import define

    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # KFP's, about its own deprecations
        path = Path(folder) / f"pipeline{suffix}"
        compiler.Compiler().compile(define(steps), str(path))
        text = path.read_text(encoding="utf-8")
    return _ARCHIVE.sub(lambda match: f"{match[1]}{_timeless(match[2])}{match[3]}", text)


def _timeless(archive: str) -> str:
    """Return a packed archive without the times and owners of its files, in base64 as KFP has it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(archive)), mode="r:gz") as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in sorted(old.getmembers(), key=lambda found: found.name):
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.mode, plain.size = member.type, 0o755 if member.isdir() else 0o644, member.size
            new.addfile(plain, old.extractfile(member) if member.isfile() else None)
    return base64.b64encode(gzip.compress(out.getvalue(), mtime=0)).decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
