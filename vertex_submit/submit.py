"""Send job files to Vertex AI with gcloud: `scripts/submit_job` and `scripts/submit_tuning`.

The file is sent with its settings filled in and with what comes after `--` appended to the trainer's arguments; the very
text is kept under `.vertex_local/submitted`. (gcloud's own --args would replace the arguments of every pool.)
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from vertex_local import cli
from vertex_local.job import images, schema, settings, spec

from . import cloud, image_build

TUNING = {
    "maxTrialCount": ("max_trial_count", "trials in all"),
    "parallelTrialCount": ("parallel_trial_count", "trials at a time"),
    "maxFailedTrialCount": ("max_failed_trial_count", "failed trials that end the job; 0: the first one"),
}


@dataclass(frozen=True)
class Kind:
    """One kind of job: the script that sends it, gcloud's word for it, the API's, and ours."""

    script: str
    group: str
    collection: str
    title: str


KINDS = {
    "job": Kind("scripts/submit_job", "custom-jobs", "customJobs", "custom job"),
    "tuning": Kind("scripts/submit_tuning", "hp-tuning-jobs", "hyperparameterTuningJobs", "hyperparameter tuning job"),
}


@dataclass(frozen=True)
class Wish:
    """A job to be sent: its file's content, and what belongs to the job around it."""

    kind: Kind
    name: str
    message: dict[str, Any]
    job: spec.JobSpec
    display_name: str
    labels: dict[str, str]
    kms_key: str | None = None


def build_parser(which: str) -> argparse.ArgumentParser:
    """Return the parser of `scripts/submit_job` or `scripts/submit_tuning`."""
    kind = KINDS[which]
    parser = cli.Parser(
        prog=kind.script, formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Send a {kind.title}'s file to Vertex AI with gcloud; returns at once, unless --wait is given.\n"
        "Arguments after -- are appended to the trainer's.",
    )  # fmt: skip
    parser.add_argument("spec", help=f"the {kind.title}'s file, as gcloud's --config takes it")
    parser.add_argument("--display_name", metavar="NAME", help="the job's name in lists (default: the file's)")
    parser.add_argument("--labels", metavar="KEY=VALUE,…", type=_labels, default={}, help="labels of the job")
    cloud.add_job_flags(parser)
    if which == "job":
        parser.add_argument(
            "--autopackage", action="store_true",
            help="let gcloud build and push the image from this checkout (local-package-path); needs Docker",
        )  # fmt: skip
        parser.add_argument("--base", metavar="IMAGE", help="for --autopackage: the image to build on (default: the Dockerfile's)")
    else:
        for name, what in TUNING.values():
            parser.add_argument(f"--{name}", metavar="N", type=cli.whole(0), help=f"{what} (default: the file's)")
    cloud.add_wait_flags(parser)
    cloud.add_flags(parser)
    return parser


def _labels(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    if not pairs or any(not (name and equals) for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"takes key=value,key=value; got {text!r}.")
    return {name.strip(): value.strip() for name, _, value in pairs}


def main(argv: Sequence[str]) -> int:
    """Submit what `argv` says, `job` or `tuning` first, and return the exit code."""
    which, own, extra = argv[0], *cli.split(argv[1:])
    args = build_parser(which).parse_args(own)
    return cli.supervised(lambda cancel: _submit(KINDS[which], args, extra, cancel))


def _submit(kind: Kind, args: argparse.Namespace, extra: Sequence[str], cancel: threading.Event) -> int:
    given, local = settings.from_flags(args), cloud.is_local(cloud.gcloud_endpoint())
    wish = load(kind, args, given, extra)
    values = cloud.place(Path(args.spec).parent, given, ("project", "region"), args.dry_run or local)
    text = yaml.safe_dump(wish.message, sort_keys=False, allow_unicode=True, width=1000)
    if not (args.dry_run or local):
        cloud.refuse_placeholders(spec.read(args.spec, given), args.spec)
    by_rest = not getattr(args, "autopackage", False) and any(not pool.replicas for pool in wish.job.pools) and kind is KINDS["job"]
    if not (args.dry_run or args.no_check):
        cloud.check(args.spec, given, extra)
    else:
        for warning in {images.warning(pool.image, date.today()) for pool in wish.job.pools} - {None}:
            print(f"warning: {warning}", file=sys.stderr)
    if by_rest:
        answer = _post(wish, args, values)
    else:
        answer = _create(wish, args, values, text)
    if args.dry_run:
        return 0
    name, number = answer["name"], answer["name"].rpartition("/")[2]
    verb = ["gcloud", "ai", kind.group]
    where = [number, f"--project={values['project']}", f"--region={values['region']}"]
    commands = (cloud.command([*verb, word, *where]) for word in ("stream-logs", "cancel"))
    cloud.tell(kind.title, name, values, cloud.plain_state(answer), *commands)
    if not args.wait:
        return 0
    look = [*verb, "describe", *where, "--format=json"]
    return cloud.follow(lambda: json.loads(cloud.run(look, say=False)), args.poll, cancel, _trials)


def load(kind: Kind, args: argparse.Namespace, given: Mapping[str, str], extra: Sequence[str]) -> Wish:
    """Read and check the job's file; `extra` is put after the arguments of every pool that runs the trainer."""
    name, labels, kms = Path(args.spec).stem, dict(args.labels), None
    if kind is KINDS["tuning"]:
        from vertex_local.tuning import study

        found = study.load(args.spec, given)
        message, job, inner = found.message, found.job, found.message["trialJobSpec"]
        shown = message.get("displayName")
        counts = {field: getattr(args, flag) for field, (flag, _) in TUNING.items() if getattr(args, flag) is not None}
        message |= counts
        if "maxFailedTrialCount" in message and "maxFailedTrialCount" not in counts:  # the service takes no more than trials
            message["maxFailedTrialCount"] = min(message["maxFailedTrialCount"], message.get("maxTrialCount", 1))
    else:
        text = spec.read(args.spec, given)
        job, shown = spec.loads(text, args.spec), None
        message = inner = job.message
        if "jobSpec" in schema.top_keys(text, args.spec):  # the whole CustomJob: gcloud has flags for what is around the spec
            whole = schema.parse(text, args.spec, "CustomJob").message
            shown, kms = whole.get("displayName"), whole.get("encryptionSpec", {}).get("kmsKeyName")
            labels = {**whole.get("labels", {}), **labels}
    if args.base_output_dir:
        inner["baseOutputDirectory"] = {"outputUriPrefix": args.base_output_dir}
    for pool, raw in zip(job.pools, inner["workerPoolSpecs"]):
        if extra and pool.replicas and not pool.is_reduction_server:
            task = raw.get("containerSpec") or raw["pythonPackageSpec"]
            task["args"] = [*task.get("args", []), *extra]
    return Wish(kind, name, message, job.with_args(extra), args.display_name or shown or name, labels, kms)


def _create(wish: Wish, args: argparse.Namespace, values: Mapping[str, str], text: str) -> dict[str, Any]:
    """Create the job with gcloud and return its name; in a dry run, print the file and the command."""
    name = f"{wish.name}.yaml"
    if args.dry_run:
        path = Path(args.state_dir) / "submitted" / f"TIME-{name}"
        print(f"# {path}\n{text}", end="")
    else:
        path = cloud.keep(text, name, args.state_dir)
    words = ["gcloud", "ai", wish.kind.group, "create", f"--project={values['project']}", f"--region={values['region']}"]
    words += [f"--display-name={wish.display_name}", f"--config={path}"]
    if wish.labels:
        words.append("--labels=" + ",".join(f"{key}={value}" for key, value in wish.labels.items()))
    if wish.kms_key:
        words.append(f"--kms-key={wish.kms_key}")
    if getattr(args, "autopackage", False):
        words += image_build.autopackage(wish.job, args.base, values)
    if args.dry_run:
        print(cloud.command(words))
        return {}
    return json.loads(cloud.run([*words, "--format=json"]))


def _post(wish: Wish, args: argparse.Namespace, values: Mapping[str, str]) -> dict[str, Any]:
    """Create the job by REST, for gcloud takes no empty pool; in a dry run, print the request."""
    encryption = {"encryptionSpec": {"kmsKeyName": wish.kms_key}} if wish.kms_key else {}
    labels = {"labels": wish.labels} if wish.labels else {}
    body = json.dumps({"displayName": wish.display_name, "jobSpec": wish.message, **labels, **encryption}, indent=2)
    url = f"{cloud.api_url(values['region'])}v1/projects/{values['project']}/locations/{values['region']}/{wish.kind.collection}"
    print("by REST: the file has an empty pool, which gcloud's --config refuses")
    if args.dry_run:
        print(f"POST {url}\n{body}")
        return {}
    bearer = cloud.token()
    print(f"POST {url}\n  body {cloud.keep(body, f'{wish.name}.json', args.state_dir)}", flush=True)
    return cloud.post(url, body, bearer)


def _trials(job: Mapping[str, Any]) -> str:
    """Return how many trials have ended, of a tuning job."""
    if "maxTrialCount" not in job:
        return ""
    ended = [trial for trial in job.get("trials", []) if trial.get("state") in ("SUCCEEDED", "INFEASIBLE")]
    return f"{len(ended)} of {job['maxTrialCount']} trials"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
