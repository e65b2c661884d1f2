"""What `python -m pipelines.tfx` does once it runs with TFX: settle, then run here or compile."""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools import convert
from vertex_local.cli import split
from vertex_local.job import settings as job_settings
from vertex_local.job.job_file import JobFile
from vertex_runtime.errors import FAILED, UserError
from vertex_runtime.reporting import log
from vertex_runtime.strategy import import_tensorflow

from . import local_service, quiet
from .settings import PARTS, ROOT, Settings, build_parser, check_cloud, check_data, check_trainer, flags_of, read_job


def main(argv: Sequence[str]) -> None:
    """Run the pipeline on this machine, or compile it.

    Raises:
        UserError: anything that the user can mend, and that a model was not good enough to be pushed.
    """
    own, words = split(argv)
    args = build_parser().parse_args(own)
    check_trainer(args.trainer)
    job = read_job(args)
    if args.vertex and not args.compile:
        local_service.see_that_it_is_named()
    known = job_settings.load(ROOT / "jobs", job_settings.from_flags(args))
    image = args.image or f"{known.get('images', '')}/{args.trainer}-tfx:{known.get('tag', 'latest')}"
    import_tensorflow()
    if args.compile:
        _compile(args, job, words, known, image)
    else:
        _run(args, job, words, known, image)


def _run(args: argparse.Namespace, job: JobFile | None, words: Sequence[str], known: dict[str, str], image: str) -> None:
    root = os.path.abspath(args.root or f".tfx/{args.trainer}")
    if args.data:
        check_data(args.data)
    try:
        os.makedirs(root, exist_ok=True)
    except OSError as error:
        raise UserError(f"--root: cannot make {root}: {error.strerror}. Name another folder.") from None
    log_file = f"{root}/run-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        with quiet.to_file(log_file) as terminal:
            print(f"all that TFX says: {log_file}", file=terminal, flush=True)
            data = os.path.abspath(args.data or _sample_data(args.trainer, root))
            settings = _settle(args, job, words, data, root, f"{root}/metadata.sqlite")
            from . import run_local  # brings TFX, which takes its time

            if args.vertex:
                local_service.lead_tfx_there()
            refusal = run_local.run(*_pipeline(args, settings, job, known, image), settings, terminal)
    except UserError as error:
        raise UserError(f"{error} All that was said: {log_file}" if error.code == FAILED else str(error), error.code) from None
    if refusal:
        raise UserError(refusal, FAILED)


def _compile(args: argparse.Namespace, job: JobFile | None, words: Sequence[str], known: dict[str, str], image: str) -> None:
    if not args.data:
        raise UserError("--compile needs --data gs://…, where the cloud finds the examples: copy yours there with gcloud storage.")
    root = args.root or f"gs://{known.get('bucket', '')}/tfx/{args.trainer}"
    if not args.root and known.get("bucket", "your-bucket") == "your-bucket":
        raise UserError("--root is made of jobs/settings.yaml, whose bucket is still your-bucket. Fill it in, or give --bucket or --root.")
    settings = _settle(args, job, words, args.data.rstrip("/"), root.rstrip("/"), "")
    check_cloud({"data": settings.data, "root": settings.root, "serving_dir": settings.serving_dir, "schema": settings.schema}, image)
    if not args.compile.endswith(".json"):
        raise UserError(f"--compile must name a .json file; got {args.compile!r}.")
    if os.path.lexists(args.compile):
        raise UserError(f"--compile: {args.compile} is there already. Nothing was overwritten: name another file, or remove it.")
    from tfx import v1 as tfx

    pipeline, _ = _pipeline(args, settings, job, known, image)
    config = tfx.orchestration.experimental.KubeflowV2DagRunnerConfig(default_image=image)
    runner = tfx.orchestration.experimental.KubeflowV2DagRunner(config, output_dir=os.path.dirname(args.compile) or ".",
                                                               output_filename=os.path.basename(args.compile))
    runner.run(pipeline)
    log("INFO", f"{args.compile}: {pipeline.pipeline_info.pipeline_name}, {len(pipeline.components)} steps, for the image {image}")


def _settle(args: argparse.Namespace, job: JobFile | None, words: Sequence[str], data: str, root: str, metadata: str) -> Settings:
    from vertex_runtime.contract import source_fingerprint

    contract = convert.contract_of(args.trainer)
    headers = {column.header or column.name for column in contract.columns}
    if unknown := sorted(set(args.slice_by or ()) - headers):
        raise UserError(f"--slice_by: {args.trainer} has no column {', '.join(unknown)}; there are {', '.join(sorted(headers))}.")
    return Settings(
        trainer=args.trainer, flags=flags_of(job, words), data=data, root=root, serving_dir=args.serving_dir or f"{root}/serving",
        threshold=args.threshold, tolerance=args.tolerance, slice_by=args.slice_by and tuple(args.slice_by), schema=args.schema, metadata=metadata,
        source=source_fingerprint(contract.module),
    )  # fmt: skip


def _pipeline(args: argparse.Namespace, settings: Settings, job: JobFile | None, known: dict[str, str], image: str) -> tuple[Any, Any]:
    """Return (the pipeline, what it evaluates)."""
    from . import pipeline, pipeline_vertex
    from .evaluation import goal_of

    goal = goal_of(settings.trainer)
    if args.vertex:
        return pipeline_vertex.create_pipeline(settings, goal, job, known, image), goal
    return pipeline.create_pipeline(settings, goal), goal


def _sample_data(trainer: str, root: str) -> str:
    """Return a folder with the trainer's sample data as TFRecord, converted unless an earlier run has done it."""
    from vertex_runtime.locations import sample_paths

    paths = [each[0] for each in sample_paths(convert.contract_of(trainer))]
    target = f"{root}/sample-{_content(paths)}"
    for part, path in zip(PARTS.values(), paths):
        if not os.path.exists(f"{target}/{part}"):
            os.makedirs(target, exist_ok=True)
            convert.main([trainer, "--from", path, "--to", f"{target}/{part}", "--format", "tfrecord", "--prefix", part])
    return target


def _content(paths: Sequence[str]) -> str:
    """Return a short name for the content of files and folders."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            digest.update(file.name.encode() + (file.read_bytes() if file.is_file() else b""))
    return digest.hexdigest()[:12]
