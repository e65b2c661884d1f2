"""The command line of the pipeline, and what it settles before anything is run or compiled."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools import convert
from vertex_local import cli
from vertex_local.job import job_file, settings
from vertex_local.local import commands
from vertex_runtime import arguments
from vertex_runtime.environment import quoted
from vertex_runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # the checkout
PARTS = {"train": "training", "eval": "validation"}  # TFX's splits and the folders of the data that hold them
# Flags of a trainer that would take it from the folders that TFX looks into, or let it do something else than train.
NOT_OURS = ("train_data_path", "eval_data_path", "output_dir", "start_over", "only", "plan", "data_report", "evaluate", "against")
ENDINGS = (".tfrecord", ".tfrecord.gz")  # what ImportExampleGen reads; it knows no zstd


@dataclass(frozen=True)
class Settings:
    """What a pipeline is made of.

    Attributes:
        flags: the trainer's own arguments, the job file's among them.
        data: a folder with `training` and `validation`, TFRecord of `tf.train.Example` in both.
        root: where TFX keeps artifacts; a folder, or gs:// for the cloud.
        serving_dir: where Pusher puts a blessed model, into a new folder.
        slice_by: columns by whose values the metric is told, too; None: by a class label's.
        metadata: the file of ML Metadata for a run here; "" for the cloud, which has its own.
        source: the fingerprint of the trainer's source.
    """

    trainer: str
    flags: tuple[str, ...]
    data: str
    root: str
    serving_dir: str
    threshold: float
    tolerance: float
    slice_by: tuple[str, ...] | None
    schema: str
    metadata: str
    source: str = ""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(
        prog="python -m pipelines.tfx", allow_abbrev=False, usage="%(prog)s --trainer NAME --threshold X [options] [-- TRAINER_FLAGS]",
        description="Run the TFX pipeline on this machine, or compile it for Vertex AI Pipelines. Arguments after -- are the trainer's.",
    )  # fmt: skip
    parser.add_argument("--trainer", metavar="NAME", default="stackoverflow", help="the trainer's folder (default: %(default)s)")
    parser.add_argument(
        "--threshold", metavar="X", type=_number, required=True,
        help="what the evaluation must reach to be pushed: accuracy at least, or an error such as rmse at most",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", metavar="X", type=_number, default=0.0,
        help="by how much it may be worse than the newest blessed model (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="DIR/training and DIR/validation hold TFRecord (default: the sample data, converted)")
    parser.add_argument("--root", metavar="DIR", help="for TFX's artifacts (default: .tfx/TRAINER; compiling: gs://BUCKET/tfx/TRAINER)")
    parser.add_argument("--serving_dir", metavar="DIR", help="where models are pushed to (default: ROOT/serving)")
    parser.add_argument(
        "--schema", metavar="FILE", default="", help="a schema.pbtxt to check by (default: inferred from the training rows)"
    )
    parser.add_argument(
        "--slice_by", metavar="COLUMN", nargs="*", help="tell the metric by this column's values, too (default: a class label's)"
    )
    parser.add_argument("--vertex", action="store_true", help="train as a custom job of Vertex AI: pipeline_vertex.py")
    parser.add_argument(
        "--job",
        metavar="FILE",
        help="whose arguments and, with --vertex, machines are used (default: the one in jobs/ with its name)",
    )
    parser.add_argument("--compile", metavar="FILE", help="write the pipeline's specification, *.json, and run nothing")
    parser.add_argument("--image", help="the image with TFX and the trainer (default: IMAGES/TRAINER-tfx:TAG of the settings)")
    settings.add_flags(parser)
    return parser


def _number(text: str) -> float:
    try:
        return arguments.number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"needs a finite number; got {quoted(text)}") from None


def check_trainer(name: str) -> None:
    """See that there is such a trainer.

    Raises:
        UserError: there is none; those that there are are named.
    """
    known = commands.trainers(ROOT)
    if name not in known:
        raise UserError(
            f"--trainer: there is no trainer {quoted(name)}; give one of {', '.join(known)} (a folder with a trainer/task.py in it)."
        )


def read_job(args: argparse.Namespace) -> job_file.JobFile | None:
    """Return the job whose arguments and pools are used; None where a trainer has none of its own and none is named.

    Raises:
        vertex_local.errors.UserError: it is not a custom job, or not one of containers.
    """
    path = args.job or str(ROOT / "jobs" / f"{args.trainer}.yaml")
    if args.job is None and not os.path.exists(path):
        if args.vertex:
            raise UserError(f"--vertex takes the job's machines from {path}, and there is no such file. Name one by --job.")
        return None
    job = job_file.read(path, settings.from_flags(args))
    if any(pool.is_package for pool in job.pools):
        raise UserError(f"{path}: this job installs a Python package; a job of containers is needed, such as jobs/{args.trainer}.yaml.")
    return job


def flags_of(job: job_file.JobFile | None, words: Sequence[str]) -> tuple[str, ...]:
    """Return the trainer's flags: the job file's without those that name data or outputs, then `words`."""
    kept = job_file.without_data_flags(job.pools[0].args) if job else []
    return (*(word for word in kept if not word.startswith("--output_dir=")), *words)


def check_flags(trainer: str, flags: Sequence[str]) -> None:
    """See that the trainer takes its flags, and trains with them into the folders that TFX names, before anything is run.

    Raises:
        UserError: a flag is misspelt or has a bad value, or says what TFX says.
    """
    _, options = arguments.parse(convert.hyperparameters_of(trainer), flags, "")
    given = [
        field.name for field in dataclasses.fields(options) if field.name in NOT_OURS and getattr(options, field.name) != field.default
    ]
    if given:
        raise UserError(f"--{given[0]} is none of the trainer's flags here: TFX says what is read, written and done. Leave it out.")


def check_data(folder: str) -> None:
    """See that a local folder holds what ImportExampleGen reads.

    Raises:
        UserError: a part is missing; the command that makes it is named.
    """
    for split, part in PARTS.items():
        found = [path for path in glob.glob(f"{glob.escape(folder)}/{part}/*.tfrecord*") if path.endswith(ENDINGS)]
        if not found:
            raise UserError(
                f"--data: {folder}/{part} holds no {' or '.join(f'*{ending}' for ending in ENDINGS)} files, the split {split}. Make them: "
                f"scripts/convert_data TRAINER --from FILES --to {folder}/{part} --format tfrecord --prefix {part}"
            )


def check_cloud(paths: dict[str, str], image: str) -> None:
    """See that all that a pipeline in the cloud reads and writes lies in a bucket, and that settings.yaml is filled in.

    Raises:
        UserError: a path is local, or a setting is the project's own placeholder.
    """
    for flag, path in paths.items():
        if path and not path.startswith("gs://"):
            raise UserError(f"--{flag} must lie in a bucket for --compile, as gs://…; got {quoted(path)}.")
    if "your-project/" in image:
        raise UserError(
            "--image is made of jobs/settings.yaml, whose project is still your-project. Fill it in, or give --project or --image."
        )
