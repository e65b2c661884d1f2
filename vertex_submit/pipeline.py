"""Run a custom job's file as a training pipeline: `scripts/submit_training_pipeline`.

A pipeline exports a managed dataset in three splits before the job and registers the model after it. Machines, image,
arguments and scheduling are those of the file that `scripts/submit_job` takes, whatever it says.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vertex_local import cli
from vertex_local.errors import UserError
from vertex_local.job import schema, settings
from vertex_local.local import packages

from . import checkout, cloud, jobs, sdk, submission, transfer

DATASETS = {"tabular": "TabularDataset", "text": "TextDataset", "image": "ImageDataset", "video": "VideoDataset"}
NEW_DATASET = "NEW_DATASET"  # stands for the dataset's number until it is made
PARTS = ("training", "validation", "test")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(prog="scripts/submit_training_pipeline", description=__doc__)
    parser.add_argument("spec", help="a custom job's file: machines, image, arguments, output directory and scheduling")
    parser.add_argument(
        "--kind", choices=("container", "package", "script"),
        help="default: container or package, as in the file; script: this checkout's trainer, packed and uploaded, in the prebuilt image",
    )  # fmt: skip
    parser.add_argument("--display_name", metavar="NAME", help="the pipeline's name in lists (default: the file's)")
    cloud.add_job_flags(parser)
    _add_dataset_flags(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--no_model", action="store_true", help="register no model afterwards")
    model.add_argument("--model_display_name", metavar="NAME", help="(default: the trainer's name)")
    model.add_argument("--parent_model", metavar="ID", help="make it a new version of this model")
    model.add_argument("--version_aliases", metavar="A,B", type=sdk.aliases, help="aliases of the new version")
    model.add_argument("--version_description", metavar="TEXT", help="of the new version")
    model.add_argument("--not_default", action="store_true", help="leave the alias `default` with the version that has it")
    cloud.add_wait_flags(parser)
    sdk.add_flags(parser)
    cloud.add_flags(parser)
    return parser


def _add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("managed dataset (takes the place of the file's --train_data_path and its siblings)")
    data.add_argument("--dataset", metavar="ID", help="number or resource name of a dataset in the same region")
    data.add_argument("--dataset_csv", metavar="gs://…", nargs="+", help="make a tabular dataset of these CSV files first")
    data.add_argument("--dataset_kind", choices=DATASETS, default="tabular", help="(default: %(default)s)")
    data.add_argument("--annotation_schema", metavar="gs://…", help="which annotations to export, for text, image and video")
    data.add_argument("--bigquery_destination", metavar="bq://PROJECT", help="export to BigQuery instead of CSV files")
    data.add_argument("--split", metavar="TRAIN,VALID,TEST", type=_fractions, help="such as 0.8,0.1,0.1 (default: the service's)")
    data.add_argument("--predefined_split", metavar="COLUMN", help="column with training, validation or test")
    data.add_argument("--timestamp_split", metavar="COLUMN", help="column with RFC 3339 times; --split by time, oldest first")
    data.add_argument("--filter_split", metavar="FILTER", nargs=3, help="three filters on data items; - matches none")


def _fractions(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3 or min(values) < 0 or not 0 < sum(values) <= 1 + 1e-9:
        raise argparse.ArgumentTypeError(f"takes three fractions with a sum of at most 1, such as 0.8,0.1,0.1; got {text[:100]!r}.")
    return values


def main(argv: Sequence[str]) -> int:
    """Submit one pipeline and return the exit code."""
    own, extra = cli.split(argv)
    args = build_parser().parse_args(own)
    return cli.supervised(lambda cancel: _submit(args, extra, cancel))


def _submit(args: argparse.Namespace, extra: Sequence[str], cancel: threading.Event) -> int:
    refuse_contradictions(args)
    job = jobs.read(jobs.CUSTOM, args.spec, settings.from_flags(args))
    refuse_other_kind(job, args.kind)
    values = submission.load_settings(job, args, ("project", "region", "bucket", "serving"))
    with tempfile.TemporaryDirectory(prefix="sdist-") as scratch:
        sdist = pack(job, args, values, Path(scratch)) if args.kind == "script" else None
        pipeline = build(job, args, extra, values)
        images = {job.pools[0].image, *([] if args.no_model else [values["serving"]])}
        submission.warn_about_images(images)
        if args.dry_run:
            return submission.show(pipeline, args, sdk.connect(values, args))
        path, service = submission.keep_and_connect(pipeline, args, values)
        if sdist:
            client = transfer.open_client(values["project"], args.token_file)
            transfer.tell(transfer.upload(client, sdist, transfer.Options(cancel=cancel)))
    if args.dataset or args.dataset_csv:
        _provide_dataset(pipeline, args, service, values)
        path.write_text(pipeline.file()[0], encoding="utf-8")
    code, last = submission.send(pipeline, args, service, path, cancel)
    if code == 0 and (model := last.get("modelToUpload", {}).get("name")):
        print(f"model {model}\n  deploy  $ scripts/deploy {shlex.quote(args.spec)} --model={model}")
    return code


# ------------------------------------------------------------------ the message


def build(job: jobs.Job, args: argparse.Namespace, extra: Sequence[str], values: Mapping[str, str]) -> jobs.Job:
    """Return the training pipeline around a custom job, whose message is edited by the flags and by the arguments `extra`."""
    trainer = None if args.no_model else checkout.trainer_of(job.pools[0], args.spec)
    managed = bool(args.dataset or args.dataset_csv)
    if managed:
        jobs.drop_data_arguments(job)
    jobs.append_arguments(job, extra)
    jobs.set_output(job, args.base_output_dir)
    if not job.spec.base_output_directory.output_uri_prefix:  # as the SDK's training classes have it
        jobs.set_output(job, f"gs://{values['bucket']}/aiplatform-custom-training-{time.strftime('%Y-%m-%d-%H:%M:%S')}")
    document: dict[str, Any] = {
        "displayName": args.display_name or job.message.display_name,
        "trainingTaskDefinition": schema.TASK,
        "trainingTaskInputs": schema.to_fields(job.spec),
    }
    document |= {key: value for key, value in schema.to_fields(job.message).items() if key in ("labels", "encryptionSpec")}
    if managed:
        document["inputDataConfig"] = input_data(args, job.spec.base_output_directory.output_uri_prefix)
    if trainer:
        document |= model(args, trainer, values)
    return jobs.Job(jobs.PIPELINE, job.path, job.text, schema.to_message(document, jobs.PIPELINE.type))


def input_data(args: argparse.Namespace, output: str) -> dict[str, Any]:
    """Return the InputDataConfig: which dataset, how it is split, and where it is exported to."""
    found: dict[str, Any] = {"datasetId": args.dataset.rpartition("/")[2] if args.dataset else NEW_DATASET}
    fractions = {f"{part}Fraction": value for part, value in zip(PARTS, args.split or ())}
    if args.timestamp_split:
        found["timestampSplit"] = {"key": args.timestamp_split, **fractions}
    elif fractions:
        found["fractionSplit"] = fractions
    if args.predefined_split:
        found["predefinedSplit"] = {"key": args.predefined_split}
    if args.filter_split:
        found["filterSplit"] = {f"{part}Filter": text for part, text in zip(PARTS, args.filter_split)}
    if args.annotation_schema:
        found["annotationSchemaUri"] = args.annotation_schema
    if args.bigquery_destination:
        found["bigqueryDestination"] = {"outputUri": args.bigquery_destination}
    else:
        found["gcsDestination"] = {"outputUriPrefix": output}
    return found


def model(args: argparse.Namespace, trainer: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Return what a pipeline says of the model that is registered when its job has succeeded."""
    versions = [*(args.version_aliases or []), *([] if args.not_default else ["default"])]
    about = {
        "displayName": args.model_display_name or trainer,
        "containerSpec": {"imageUri": values["serving"]},
        "versionAliases": list(dict.fromkeys(versions)),
        "versionDescription": args.version_description or "",
    }
    parent = args.parent_model or ""
    if parent and "/" not in parent:
        parent = f"projects/{values['project']}/locations/{values['region']}/models/{parent}"
    return {"modelToUpload": about, "parentModel": parent}


def refuse_contradictions(args: argparse.Namespace) -> None:
    """Raise a UserError for flags that say nothing together: no dataset to split, two kinds of split, no model to name."""
    splits = [name for name in ("predefined_split", "filter_split", "timestamp_split", "split") if getattr(args, name)]
    if args.dataset and args.dataset_csv:
        raise UserError("--dataset_csv: makes a dataset; leave --dataset out.")
    others = [name for name in ("annotation_schema", "bigquery_destination") if getattr(args, name)]
    if splits + others and not (args.dataset or args.dataset_csv):
        raise UserError(f"--{(splits + others)[0]}: is about a managed dataset; give --dataset or --dataset_csv.")
    if len(splits) > 1 and splits != ["timestamp_split", "split"]:
        raise UserError(f"--{splits[1]}: cannot stand beside --{splits[0]}; keep one of them.")
    if args.timestamp_split and not args.split:
        raise UserError("--timestamp_split: needs the fractions, too: --split=0.8,0.1,0.1.")
    about_model = [name for name in ("model_display_name", "parent_model", "version_aliases", "version_description") if getattr(args, name)]
    if args.no_model and about_model:
        raise UserError(f"--{about_model[0]}: there will be no model; leave --no_model out.")


def refuse_other_kind(job: jobs.Job, kind: str | None) -> None:
    """Raise a UserError where --kind says something else than the file."""
    is_package = job.pools[0].is_package
    if kind == "container" and is_package:
        raise UserError(f"--kind: {job.path} runs a Python package, not a container; give package or script.")
    if kind == "package" and not is_package:
        raise UserError(f"--kind: {job.path} runs a container, not a Python package; give container or script.")


# ------------------------------------------------------------------ what the service needs beside the message


def pack(job: jobs.Job, args: argparse.Namespace, values: Mapping[str, str], folder: Path) -> dict[Path, str]:
    """Build the sdist of the job's trainer, let every pool that runs the trainer run that, and return where it is to go.

    Its folder is named by its content, so that what another job uses is never replaced.
    """
    trainer = checkout.trainer_of(job.pools[0], args.spec)
    path = packages.build(checkout.ROOT, folder, trainer)
    uri = f"gs://{values['bucket']}/packages/{trainer}/{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}/{path.name}"
    for pool in job.trainer_pools:
        image = pool.image if pool.is_package else values.get("prebuilt", "")
        if not image:
            raise UserError("--prebuilt: not set: give it, --kind=script runs the trainer in a prebuilt image.")
        kind = type(pool.message.python_package_spec)
        packed = kind(executor_image_uri=image, python_module=f"{trainer}.trainer.task", package_uris=[uri])
        packed.args.extend(pool.args)
        packed.env.extend(pool.task.env)
        pool.message.python_package_spec.CopyFrom(packed)  # which takes a container's place
    return {path: uri}


def _provide_dataset(pipeline: jobs.Job, args: argparse.Namespace, service: sdk.Service, values: Mapping[str, str]) -> None:
    """See that the pipeline's dataset is there and of its kind, or make it, and write its number into the message."""
    aiplatform, name = sdk.start(service, values["bucket"]), Path(args.spec).stem
    with sdk.errors(service.project):
        if args.dataset_csv:
            print(f"aiplatform.TabularDataset.create(display_name={name!r}, gcs_source={args.dataset_csv})", flush=True)
            found = aiplatform.TabularDataset.create(display_name=name, gcs_source=args.dataset_csv)
            print(f"dataset {found.resource_name}", flush=True)
        else:
            found = sdk.existing(getattr(aiplatform, DATASETS[args.dataset_kind]), "--dataset", args.dataset)
    pipeline.message.input_data_config.dataset_id = found.name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
