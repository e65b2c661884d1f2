"""Run a custom job's file as a training pipeline with the SDK: `scripts/submit_training_pipeline`.

A pipeline exports a managed dataset in three splits before the job and registers the model after it. Machines, image,
arguments and scheduling are those of the file that `scripts/submit_job` takes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vertex_local import cli
from vertex_local.job import images, settings, spec

from . import checkout, cloud, pipeline_options, sdk

CLASSES = {"container": "CustomContainerTrainingJob", "package": "CustomPythonPackageTrainingJob", "script": "CustomTrainingJob"}
DATASETS = {"tabular": "TabularDataset", "text": "TextDataset", "image": "ImageDataset", "video": "VideoDataset"}


class Created(Exception):
    """Raised in the SDK's way out: the pipeline is created (or shown), and the SDK shall not wait for its end."""


class Door:
    """Stands where the SDK's client would: shows the request, and passes it on unless this is a dry run."""

    def __init__(self, client: Any, dry_run: bool):
        self.client, self.dry_run, self.answer = client, dry_run, None

    def create_training_pipeline(self, *, parent: str, training_pipeline: Any, timeout: float | None = None) -> None:
        """Print the request, send it, and end the SDK's call with `Created`."""
        from google.protobuf import json_format

        print(f"POST v1/{parent}/trainingPipelines\n{json_format.MessageToJson(training_pipeline._pb, indent=2)}", flush=True)
        if not self.dry_run:
            self.answer = self.client.create_training_pipeline(parent=parent, training_pipeline=training_pipeline, timeout=timeout)
        raise Created


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(
        prog="scripts/submit_training_pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", help="a custom job's file: machines, image, arguments, output directory and scheduling")
    parser.add_argument("--kind", choices=CLASSES, help="default: container or package, as in the file; script: one file made of it")
    parser.add_argument("--display_name", metavar="NAME", help="the pipeline's name in lists (default: the file's)")
    cloud.add_job_flags(parser)
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


def _fractions(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3 or min(values) < 0 or not 0 < sum(values) <= 1 + 1e-9:
        raise argparse.ArgumentTypeError(f"takes three fractions with a sum of at most 1, such as 0.8,0.1,0.1; got {text!r}.")
    return values


def main(argv: Sequence[str]) -> int:
    """Submit one pipeline and return the exit code."""
    own, extra = cli.split(argv)
    args = build_parser().parse_args(own)
    return cli.supervised(lambda cancel: _submit(args, extra, cancel))


def _submit(args: argparse.Namespace, extra: Sequence[str], cancel: threading.Event) -> int:
    given, free = settings.from_flags(args), args.dry_run or cloud.is_local(args.api_endpoint)
    job = spec.load(args.spec, extra, given)
    if args.base_output_dir:
        job.message["baseOutputDirectory"] = {"outputUriPrefix": args.base_output_dir}
    values = cloud.place(Path(args.spec).parent, given, ("project", "region", "bucket", "serving"), free)
    if not free:
        cloud.refuse_placeholders(spec.read(args.spec, given), args.spec)
    options = {**pipeline_options.run_options(job), **pipeline_options.data_options(args), **pipeline_options.model_options(args, job)}
    arguments = pipeline_options.own_arguments(job, bool(args.dataset or args.dataset_csv))
    warned = {images.warning(uri, date.today()) for uri in (job.pools[0].image, *([] if args.no_model else [values["serving"]]))}
    for warning in sorted(warned - {None}):
        print(f"warning: {warning}", file=sys.stderr)
    if not (args.dry_run or args.no_check):
        cloud.check(args.spec, given, extra)
    with sdk.errors():
        aiplatform = sdk.start(values, args)
        pipeline, said = construct(aiplatform, args, job, values)
        door = Door(pipeline.api_client, args.dry_run)
        pipeline.api_client = door
        shown = {name: value for name, value in options.items() if value is not None}
        print(f"{said}.run(args={arguments}, " + ", ".join(f"{name}={value!r}" for name, value in shown.items()) + ")", flush=True)
        try:
            pipeline.run(dataset=dataset(aiplatform, args), args=arguments, **options)
        except Created:
            pass
        return 0 if args.dry_run else _after(door, args, values, cancel)


def _after(door: Door, args: argparse.Namespace, values: Mapping[str, str], cancel: threading.Event) -> int:
    """Say what was created, and follow it if asked."""
    from google.protobuf import json_format

    created = door.answer
    url = f"{'https://' + args.api_endpoint + '/' if args.api_endpoint else cloud.api_url(values['region'])}v1/{created.name}:cancel"
    where = f"--project={values['project']} --region={values['region']}"
    newest = f"gcloud ai custom-jobs list {where} --filter=displayName:{shlex.quote(created.display_name)}"
    newest += " --sort-by=~createTime --limit=1 --format='value(name)'"
    logs = f"$ gcloud ai custom-jobs stream-logs {where} $({newest})"
    stop = f'$ curl -X POST -H "Authorization: Bearer $(gcloud auth print-access-token)" {url}'
    cloud.tell("training pipeline", created.name, values, created.state.name.removeprefix("PIPELINE_STATE_"), logs, stop)
    if not args.wait:
        return 0
    seen: dict[str, Any] = {}

    def look() -> Mapping[str, Any]:
        with sdk.errors():
            seen.update(json_format.MessageToDict(door.client.get_training_pipeline(name=created.name)._pb))
        return seen

    code = cloud.follow(look, args.poll, cancel, lambda job: job.get("trainingTaskMetadata", {}).get("backingCustomJob", ""))
    if code == 0 and (model := seen.get("modelToUpload", {}).get("name")):
        print(f"model {model}\n  deploy  $ scripts/deploy {shlex.quote(args.spec)} --model={model}")
    return code


# ------------------------------------------------------------------ what the SDK is told


def construct(aiplatform: Any, args: argparse.Namespace, job: spec.JobSpec, values: Mapping[str, str]) -> tuple[Any, str]:
    """Return the SDK's job object for the file's first pool, and how it is made, in words of Python."""
    pool = job.pools[0]
    kind = args.kind or ("package" if pool.module else "container")
    common: dict[str, Any] = {"display_name": args.display_name or Path(args.spec).stem}
    if not args.no_model:
        common["model_serving_container_image_uri"] = values["serving"]
    if kind == "container":
        if pool.module:
            raise pipeline_options.PipelineError(f"--kind: {args.spec} runs a Python package, not a container; give package or script.")
        own = {"container_uri": pool.image, "command": list(pool.command) or None}
    elif kind == "package":
        if not pool.module:
            raise pipeline_options.PipelineError(f"--kind: {args.spec} runs a container, not a Python package; give container or script.")
        own = {"container_uri": pool.image, "python_module_name": pool.module, "python_package_gcs_uri": list(pool.package_uris)}
    else:
        container = pool.image if pool.module else values.get("prebuilt", "")
        trainer = checkout.trainer_of(pool, args.spec)
        if args.dry_run:  # the SDK would upload the file before it asks for anything
            package = f"gs://{values['bucket']}/aiplatform-TIME-aiplatform_custom_trainer_script-0.1.tar.gz"
            print(f"the SDK packs one file made of {trainer} and uploads it as {package}")
            kind, module = "package", "aiplatform_custom_trainer_script.task"
            own = {"container_uri": container, "python_package_gcs_uri": [package], "python_module_name": module}
        else:
            script, requirements = pipeline_options.one_file(trainer)
            path = cloud.keep(script, f"{trainer}.py", args.state_dir)
            own = {"container_uri": container, "script_path": str(path), "requirements": requirements}
    arguments = {**common, **{name: value for name, value in own.items() if value}}
    said = f"aiplatform.{CLASSES[args.kind or kind]}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    return getattr(aiplatform, CLASSES[kind])(**arguments), said


def dataset(aiplatform: Any, args: argparse.Namespace) -> Any:
    """Return the SDK's dataset, made of CSV files if asked; in a dry run a stand-in with its id only."""
    kind = DATASETS[args.dataset_kind]
    if args.dataset_csv:
        name = Path(args.spec).stem
        print(f"aiplatform.TabularDataset.create(display_name={name!r}, gcs_source={args.dataset_csv})", flush=True)
        if args.dry_run:
            return SimpleNamespace(name="NEW_DATASET")
        return aiplatform.TabularDataset.create(display_name=name, gcs_source=args.dataset_csv)
    if not args.dataset:
        return None
    return SimpleNamespace(name=args.dataset.rpartition("/")[2]) if args.dry_run else getattr(aiplatform, kind)(args.dataset)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
