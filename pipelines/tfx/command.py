"""What `python -m pipelines.tfx` does once it runs with TFX: settle, then run here or compile."""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_tools import convert
from vertex_local.cli import split
from vertex_local.job import settings as job_settings
from vertex_local.job.job_file import JobFile
from vertex_runtime import checksums
from vertex_runtime.environment import quoted
from vertex_runtime.errors import FAILED, UserError
from vertex_runtime.reporting import log
from vertex_runtime.strategy import import_tensorflow

from . import local_service, quiet
from .settings import PARTS, ROOT, Settings, build_parser, check_cloud, check_data, check_flags, check_trainer, flags_of, read_job

if TYPE_CHECKING:
    from tfx import v1 as tfx

    from .evaluation import Goal


@dataclass(frozen=True)
class Command:
    """A command line that has been looked at: its flags, the trainer's, the job file and the settings beside it."""

    args: argparse.Namespace
    flags: tuple[str, ...]
    job: JobFile | None
    known: Mapping[str, str]

    @property
    def image(self) -> str:
        """The image of the cloud's steps and jobs."""
        return self.args.image or f"{self.known.get('images', '')}/{self.args.trainer}-tfx:{self.known.get('tag', 'latest')}"

    def settings(self, data: str, root: str, metadata: str) -> Settings:
        """Return what a pipeline is made of, the trainer's own source among it.

        Raises:
            UserError: the trainer's model.py is not what the contract says, or it has no column to slice by.
        """
        from vertex_runtime.contract import source_fingerprint

        args, contract = self.args, convert.contract_of(self.args.trainer)
        headers = {column.header or column.name for column in contract.columns}
        if unknown := sorted(set(args.slice_by or ()) - headers):
            raise UserError(f"--slice_by: {args.trainer} has no column {', '.join(unknown)}; there are {', '.join(sorted(headers))}.")
        return Settings(
            trainer=args.trainer, flags=self.flags, data=data, root=root, serving_dir=args.serving_dir or f"{root}/serving",
            threshold=args.threshold, tolerance=args.tolerance, slice_by=None if args.slice_by is None else tuple(args.slice_by),
            schema=args.schema, metadata=metadata, source=source_fingerprint(contract.module),
        )  # fmt: skip

    def pipeline(self, settings: Settings) -> tuple[tfx.dsl.Pipeline, Goal]:
        """Return (the pipeline, what it evaluates)."""
        from . import pipeline, pipeline_vertex
        from .evaluation import goal_of

        goal = goal_of(settings.trainer)
        if self.args.vertex:
            return pipeline_vertex.create_pipeline(settings, goal, self.job, self.known, self.image), goal
        return pipeline.create_pipeline(settings, goal), goal


def main(argv: Sequence[str]) -> None:
    """Run the pipeline on this machine, or compile it.

    Raises:
        UserError: anything that the user can mend, and that a model was not good enough to be pushed.
    """
    own, words = split(argv)
    args = build_parser().parse_args(own)
    check_trainer(args.trainer)
    job = read_job(args)
    flags = flags_of(job, words)
    check_flags(args.trainer, flags)
    command = Command(args, flags, job, job_settings.load(ROOT / "jobs", job_settings.from_flags(args)))
    if args.compile:
        compile_(command)
    else:
        run(command)


# ------------------------------------------------------------------ here


def run(command: Command) -> None:
    """Run the pipeline on this machine; its training step, with --vertex, on the local service.

    Raises:
        UserError: a step failed, or the model was not good enough to be pushed; or what it needs is not there.
    """
    args = command.args
    root = os.path.abspath(args.root or f".tfx/{args.trainer}")
    _check(args, root)
    log_file = f"{root}/run-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        with quiet.to_file(log_file) as terminal:
            print(f"all that TFX says: {log_file}", file=terminal, flush=True)
            import_tensorflow()
            data = os.path.abspath(args.data or sample_data(args.trainer, root))
            settings = command.settings(data, root, f"{root}/metadata.sqlite")
            from . import run_local  # brings TFX, which takes its time

            if args.vertex:
                local_service.lead_tfx_there()
            refusal = run_local.run(*command.pipeline(settings), settings, terminal)
    except UserError as error:
        raise UserError(f"{error} All that was said: {log_file}" if error.code == FAILED else str(error), error.code) from None
    if refusal:
        raise UserError(refusal, FAILED)


def _check(args: argparse.Namespace, root: str) -> None:
    if args.vertex:
        local_service.see_that_it_is_named()
    if args.data:
        check_data(args.data)
    if args.schema and not os.path.isfile(args.schema):
        raise UserError(f"--schema: there is no file {args.schema}. Take the one that a run leaves in ROOT/SchemaGen.")
    if args.serving_dir:
        args.serving_dir = os.path.abspath(args.serving_dir)
    for flag, folder in (("--root", root), ("--serving_dir", args.serving_dir)):
        try:
            os.makedirs(folder or root, exist_ok=True)
        except OSError as error:
            raise UserError(f"{flag}: cannot make {folder}: {error.strerror}. Name another folder.") from None


def sample_data(trainer: str, root: str) -> str:
    """Return a folder with the trainer's sample data as TFRecord, converted unless an earlier run has done it."""
    from vertex_runtime.locations import sample_paths

    paths = [each[0] for each in sample_paths(convert.contract_of(trainer))]
    content = hashlib.sha256(" ".join(map(checksums.of_folder, paths)).encode()).hexdigest()
    target = f"{root}/sample-{content[:12]}"
    for part, path in zip(PARTS.values(), paths):
        if not os.path.exists(f"{target}/{part}"):
            os.makedirs(target, exist_ok=True)
            convert.main([trainer, "--from", path, "--to", f"{target}/{part}", "--format", "tfrecord", "--prefix", part])
    return target


# ------------------------------------------------------------------ for the cloud


def compile_(command: Command) -> None:
    """Write the specification that Vertex AI Pipelines takes.

    Raises:
        UserError: a path is no gs://…, a setting is missing, or the file is there already.
    """
    args = command.args
    folder, name = os.path.split(args.compile)
    if not name.endswith(".json"):
        raise UserError(f"--compile must name a .json file; got {quoted(args.compile)}.")
    if os.path.lexists(args.compile):
        raise UserError(f"--compile: {args.compile} is there already. Nothing was overwritten: name another file, or remove it.")
    if not args.data:
        raise UserError("--compile needs --data gs://…, where the cloud finds the examples: copy yours there with gcloud storage.")
    if not args.root and command.known.get("bucket", "your-bucket") == "your-bucket":
        raise UserError("--root is made of jobs/settings.yaml, whose bucket is still your-bucket. Fill it in, or give --bucket or --root.")
    root = (args.root or f"gs://{command.known['bucket']}/tfx/{args.trainer}").rstrip("/")
    check_cloud({"data": args.data, "root": root, "serving_dir": args.serving_dir, "schema": args.schema}, command.image)
    import_tensorflow()
    from tfx import v1 as tfx

    pipeline, _ = command.pipeline(command.settings(args.data.rstrip("/"), root, ""))
    config = tfx.orchestration.experimental.KubeflowV2DagRunnerConfig(default_image=command.image)
    tfx.orchestration.experimental.KubeflowV2DagRunner(config, output_dir=folder or ".", output_filename=name).run(pipeline)
    log("INFO", f"{args.compile}: {pipeline.pipeline_info.pipeline_name}, {len(pipeline.components)} steps, all in {command.image}")
