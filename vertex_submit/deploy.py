"""Put a model behind an endpoint and ask it something: `scripts/deploy`.

A custom job leaves a SavedModel in its output directory and registers nothing, so without --model it is uploaded to the
model registry first. A deployed model costs money until it is undeployed; the command for that is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from vertex_local import cli
from vertex_local.errors import UserError
from vertex_local.job import deprecations, settings

from . import checkout, cloud, explanation, jobs, registry, sdk, submission

SAMPLE = """
import json, sys
from vertex_runtime import strategy
strategy.import_tensorflow()
from vertex_runtime.locations import sample_instances
print(json.dumps(sample_instances(sys.argv[1] + ".trainer", 2)))
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.Parser(prog="scripts/deploy", description=__doc__)
    parser.add_argument("spec", help="the job's file: its output directory, its trainer, and its settings")
    parser.add_argument("--model", metavar="ID[@VERSION]", help="a registered model (default: upload the job's output)")
    parser.add_argument("--artifact_uri", metavar="gs://…", help="folder of the SavedModel (default: model/ in the job's output directory)")
    parser.add_argument("--model_display_name", metavar="NAME", help="for the upload (default: the trainer's name)")
    parser.add_argument("--parent_model", metavar="ID", help="for the upload: make it a new version of this model")
    parser.add_argument("--version_aliases", metavar="A,B", type=sdk.aliases, help="for the upload (a new version's default: challenger)")
    parser.add_argument("--explain", action="store_true", help="for the upload: explanations, too, which Vertex AI ends")
    text = "how --explain does it: %(choices)s (default: the first)"
    parser.add_argument("--explain_method", metavar="METHOD", choices=explanation.METHODS, help=text)
    parser.add_argument("--endpoint", metavar="NAME", help="its name in lists; made if there is none (default: the trainer's name)")
    parser.add_argument("--machine_type", metavar="TYPE", default="n1-standard-2", help="(default: %(default)s)")
    parser.add_argument("--replicas", metavar="N", type=int, default=1, help="how many machines at least (default: %(default)s)")
    parser.add_argument("--max_replicas", metavar="N", type=int, help="how many at most (default: as many as --replicas)")
    parser.add_argument("--traffic", metavar="PERCENT", type=int, default=100, help="the new model's share (default: %(default)s)")
    parser.add_argument("--instances", metavar="FILE", help="what to ask: JSON lines (default: rows of the trainer's sample data)")
    sdk.add_flags(parser)
    cloud.add_flags(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Deploy one model, ask it, and return the exit code."""
    args = build_parser().parse_args(argv)
    return cli.supervised(lambda cancel: _deploy(args))


def _deploy(args: argparse.Namespace) -> int:
    refuse_contradictions(args)
    job = jobs.read(jobs.CUSTOM, args.spec, settings.from_flags(args))
    needed = ("project", "region", "bucket", "serving")
    values = cloud.load_settings(Path(args.spec).parent, settings.from_flags(args), needed, submission.stays_here(args))
    trainer = checkout.trainer_of(job.pools[0], args.spec)
    instances = read_instances(args.instances) if args.instances else sample_instances(trainer)
    upload = None if args.model else upload_options(args, job, trainer, values)
    if args.explain:
        print(f"warning: --explain: {deprecations.explanations(date.today())}", file=sys.stderr)
    if upload:
        submission.warn_about_images({values["serving"]})
    name = args.endpoint or trainer
    _show_calls(args, upload, name, instances)
    if args.dry_run:
        return 0
    service = sdk.connect(values, args)
    if args.explain:
        spec = explanation.read(upload["artifact_uri"], values["project"], args.token_file)
        upload |= explanation.options(spec, args.explain_method or explanation.METHODS[0])
    aiplatform = sdk.start(service, values["bucket"])
    with sdk.errors(service.project):
        model = aiplatform.Model.upload(**upload) if upload else sdk.existing(aiplatform.Model, "--model", args.model)
        print(f"model {model.versioned_resource_name}", flush=True)
        endpoint = find_endpoint(aiplatform, name)
        show("Model.deploy", deployment(args), "takes ten minutes or more: ")
        model.deploy(endpoint=endpoint, **deployment(args))
        show("Endpoint.predict", {"instances": instances})
        answer = endpoint.predict(instances=instances)
    return _report(endpoint, answer, instances, values)


def _show_calls(args: argparse.Namespace, upload: Mapping[str, Any] | None, name: str, instances: list[Any]) -> None:
    """Print the calls of the SDK that come first, in a dry run all of them."""
    if upload:
        show("Model.upload", {**upload, **({"explanation": explanation.FILE} if args.explain else {})})
    else:
        show("Model", {"model_name": args.model})
    show("Endpoint.list", {"filter": f'display_name="{name}"', "order_by": "create_time desc"})
    if args.dry_run:
        show("Endpoint.create", {"display_name": name}, "where there is none: ")
        show("Model.deploy", deployment(args))
        show("Endpoint.predict", {"instances": instances})


def deployment(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of the SDK's `Model.deploy`."""
    return {
        "machine_type": args.machine_type,
        "min_replica_count": args.replicas,
        "traffic_percentage": args.traffic,
        "max_replica_count": args.max_replicas or args.replicas,
    }


def show(call: str, options: Mapping[str, Any], before: str = "") -> None:
    """Print a call of the SDK as Python would have it."""
    print(f"{before}aiplatform.{call}({', '.join(f'{name}={value!r}' for name, value in options.items())})", flush=True)


def refuse_contradictions(args: argparse.Namespace) -> None:
    """Raise a UserError for numbers that the service would refuse after minutes, and for flags that say nothing together."""
    if not 0 <= args.traffic <= 100:
        raise UserError(f"--traffic: takes a percentage from 0 to 100; got {args.traffic}.")
    if args.replicas < 1:
        raise UserError(f"--replicas: takes 1 or more; got {args.replicas}.")
    if args.max_replicas is not None and args.max_replicas < args.replicas:
        raise UserError(f"--max_replicas: takes {args.replicas} (--replicas) or more; got {args.max_replicas}.")
    for name in ("artifact_uri", "parent_model", "version_aliases", "model_display_name", "explain"):
        if args.model and getattr(args, name):
            raise UserError(f"--{name}: is for an upload; leave it or --model out.")
    if args.explain_method and not args.explain:
        raise UserError("--explain_method: is for explanations; give --explain, too, or leave it out.")


def upload_options(args: argparse.Namespace, job: jobs.Job, trainer: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of the SDK's `Model.upload`."""
    output = job.spec.base_output_directory.output_uri_prefix
    uri = args.artifact_uri or (output and f"{output.rstrip('/')}/model")
    if not uri:
        raise UserError(f"{args.spec}: has no baseOutputDirectory: give --artifact_uri, or --model.")
    options = {
        "display_name": args.model_display_name or trainer,
        "artifact_uri": uri,
        "serving_container_image_uri": values["serving"],
        "parent_model": args.parent_model,
        "version_aliases": args.version_aliases or ([registry.CHALLENGER] if args.parent_model else None),
    }
    return {name: value for name, value in options.items() if value}


def read_instances(path: str) -> list[Any]:
    """Return the JSON values of a file, one a line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--instances: {path}: cannot be read: {error}. Name a file of JSON lines.") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: must be JSON: {error}.") from None
    if not found:
        raise UserError(f"--instances: {path} is empty; it takes one JSON value a line.")
    return found


def sample_instances(trainer: str) -> list[Any]:
    """Return two rows of a trainer's sample data, as requests hold them; another process reads them with TensorFlow."""
    path = os.pathsep.join(filter(None, (str(checkout.ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", SAMPLE, trainer], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"--instances: the sample data of {trainer} cannot be read here ({reason}); give a file of JSON lines.")
    return json.loads(done.stdout.splitlines()[-1])


def find_endpoint(aiplatform: Any, name: str) -> Any:
    """Return the newest endpoint of that name, made if there is none."""
    found = aiplatform.Endpoint.list(filter=f'display_name="{name}"', order_by="create_time desc")
    if found:
        print(f"endpoint {found[0].resource_name}, which was there")
        return found[0]
    show("Endpoint.create", {"display_name": name})
    endpoint = aiplatform.Endpoint.create(display_name=name)
    print(f"endpoint {endpoint.resource_name}", flush=True)
    return endpoint


def _report(endpoint: Any, answer: Any, instances: list[Any], values: Mapping[str, str]) -> int:
    """Print what the model answered and how to go on; return 1 if it did not answer every instance."""
    for instance, prediction in zip(instances, answer.predictions):
        print(f"  {json.dumps(instance)} -> {json.dumps(prediction)}")
    number = re.sub(".*/", "", endpoint.resource_name)
    where = f"{number} --project={values['project']} --region={values['region']}"
    print(f"  ask     $ gcloud ai endpoints predict {where} --json-request=REQUEST.json")
    print(f"  undo    $ gcloud ai endpoints undeploy-model {where} --deployed-model-id={answer.deployed_model_id}", flush=True)
    if len(answer.predictions) != len(instances):
        print(f"error: {len(answer.predictions)} answers to {len(instances)} instances.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
