"""A trainer's container image: built here with Docker (`scripts/build_image`), or by gcloud while it submits a job."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date

from vertex_local import cli
from vertex_local.errors import UserError
from vertex_local.job import images, schema, settings
from vertex_local.job.pools import Pool
from vertex_local.local.commands import trainers

from . import checkout, cloud, jobs
from .checkout import ROOT, SETTINGS, dockerfile_default

_SEPARATORS = ";|~#"  # of gcloud's --args, in whose own form a comma parts arguments


def image_commands(args: argparse.Namespace, values: Mapping[str, str]) -> list[list[str]]:
    """Return the docker commands that build, and if asked push, the image."""
    tensorflow = args.tensorflow or dockerfile_default("TENSORFLOW")
    if args.gpu and not args.tensorflow:
        tensorflow = "tensorflow[and-cuda]" + re.sub(r"^[\w-]+", "", tensorflow)
    if args.base and images.find(args.base) and not args.tensorflow:
        tensorflow = "tensorflow"  # what the image brings does
    build_args = {"TRAINER": args.trainer, "TENSORFLOW": tensorflow, **({"BASE_IMAGE": args.base} if args.base else {})}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if commit.returncode == 0:
        build_args["REVISION"] = commit.stdout.strip()
    build_args["CREATED"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    tag = f"{values['images']}/{args.name or args.trainer + ('-gpu' if args.gpu else '')}:{values['tag']}"
    words = ["docker", "build", "--platform=linux/amd64"]
    words += [f"--build-arg={name}={value}" for name, value in build_args.items()]
    return [[*words, f"--tag={tag}", str(ROOT)], *([["docker", "push", tag]] if args.push else [])]


def main(argv: Sequence[str]) -> int:
    """`scripts/build_image`: build the container image with Docker, and push it if asked; return the exit code."""
    parser = cli.Parser(prog="scripts/build_image", description="Build a trainer's image from the Dockerfile, with Docker.")
    parser.add_argument("--trainer", choices=trainers(ROOT), required=True, help="the trainer that it starts")
    parser.add_argument("--gpu", action="store_true", help="TensorFlow with CUDA; the image is called TRAINER-gpu")
    parser.add_argument("--base", metavar="IMAGE", help="image to build on; prebuilt: that of the settings (default: a slim Python)")
    parser.add_argument("--tensorflow", metavar="REQUIREMENT", help="what pip installs of it (default: what the Dockerfile says)")
    parser.add_argument("--name", metavar="NAME", help="the image's own name (default: TRAINER or TRAINER-gpu)")
    parser.add_argument("--push", action="store_true", help="push it to the settings' repository")
    cloud.add_flags(parser)
    args = parser.parse_args(argv)
    return cli.supervised(lambda cancel: _image(args))


def _image(args: argparse.Namespace) -> int:
    needed = ("project", "region", "repository", "tag", *(("prebuilt",) if args.base == "prebuilt" else ()))
    values = cloud.load_settings(SETTINGS, settings.from_flags(args), needed, args.dry_run or not args.push)
    base = args.base = values["prebuilt"] if args.base == "prebuilt" else args.base
    if base and (warning := images.warning(base, date.today())):
        print(f"warning: {warning}", file=sys.stderr)
    if base and args.gpu and (found := images.find(base)) and found.accelerator != "gpu":
        raise UserError(f"--gpu: {base} is for the {found.accelerator}; give its tf-gpu sibling as --base.")
    for words in image_commands(args, values):
        print(cloud.command(words), flush=True)
        if args.dry_run:
            continue
        if shutil.which(words[0]) is None:
            raise cloud.CloudError(f"{words[0]} is not on PATH: install Docker, or run the command above where it is.")
        code = subprocess.run(words).returncode
        if code:
            raise cloud.CloudError(f"{' '.join(words[:2])} ended with {code}; see above what it said.")
    return 0


def autopackage(job: jobs.Job, base: str | None, values: Mapping[str, str]) -> list[str]:
    """Return the flags by which gcloud builds the image of all pools itself (local-package-path) and pushes it.

    They replace the file's pools; what else the file says stays. gcloud has no flags for disks and variables.

    Raises:
        UserError: gcloud's flags cannot say what the file says.
    """
    used = [pool for pool in job.pools if pool.replicas]
    arguments = used[0].args
    if any(not pool.trains or pool.args != arguments for pool in used):
        raise UserError(f"{job.path}: --autopackage gives all pools one image and one list of arguments; build an image instead.")
    software = _software(job, base, values)
    words = []
    for pool in job.pools:
        pairs = [*_machine(job, pool), *(software if pool.index == 0 else [])] if pool.replicas else []
        words.append("--worker-pool-spec=" + ",".join(pairs))
    if arguments:
        separator = next((mark for mark in _SEPARATORS if not any(mark in argument for argument in arguments)), None)
        if separator is None or len(set(arguments)) < len(arguments):
            raise UserError(f"{job.path}: --autopackage: gcloud's --args takes no argument twice; write them as --name=value.")
        words.append(f"--args=^{separator}^{separator.join(arguments)}")
    return words


def _software(job: jobs.Job, base: str | None, values: Mapping[str, str]) -> list[str]:
    """Return what gcloud's --worker-pool-spec is told of the image."""
    trainer, base = checkout.trainer_of(job.pools[0], job.path), base or dockerfile_default("BASE_IMAGE")
    found = [f"executor-image-uri={base}", f"local-package-path={ROOT}", f"python-module={trainer}.trainer.task"]
    # gcloud copies the folder of the module, nothing beside it: the runtime and the sample data are named.
    found.append(f"extra-dirs=vertex_runtime;{trainer}/tests")
    if images.find(base) is None:
        found.append(f"requirements={dockerfile_default('TENSORFLOW')}")
    return [*found, f"output-image-uri={values['images']}/{trainer}-autopackaged:{values['tag']}"]


def _machine(job: jobs.Job, pool: Pool) -> list[str]:
    """Return what gcloud's --worker-pool-spec is told of a pool's machines."""
    document = schema.to_fields(pool.message)
    machine = document.pop("machineSpec", {})
    unsupported = [key for key in document if key not in ("replicaCount", "containerSpec", "pythonPackageSpec")]
    unsupported += [key for key in machine if key not in ("machineType", "acceleratorType", "acceleratorCount")]
    unsupported = sorted(unsupported) + (["env"] if pool.env else [])
    if unsupported:
        raise UserError(f"{job.path}: --autopackage: gcloud has no flag for {', '.join(unsupported)}; build an image instead.")
    found = [f"replica-count={document.get('replicaCount', 1)}", f"machine-type={machine.get('machineType', '')}"]
    if "acceleratorType" in machine:
        found += [f"accelerator-type={machine['acceleratorType']}", f"accelerator-count={machine.get('acceleratorCount', 1)}"]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
