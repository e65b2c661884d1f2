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
from pathlib import Path

from vertex_local import cli
from vertex_local.job import images, settings
from vertex_local.job.spec import JobSpec
from vertex_local.local.commands import trainers

from . import cloud
from .checkout import ROOT, SETTINGS, BuildError, dockerfile_default, trainer_of

_SEPARATORS = ";|~#"  # of gcloud's --args, in whose own form a comma parts arguments


def image_commands(args: argparse.Namespace, values: Mapping[str, str], root: Path = ROOT) -> list[list[str]]:
    """Return the docker commands that build, and if asked push, the image."""
    tensorflow = args.tensorflow or dockerfile_default("TENSORFLOW", root)
    if args.gpu and not args.tensorflow:
        tensorflow = "tensorflow[and-cuda]" + re.sub(r"^[\w-]+", "", tensorflow)
    base = values["prebuilt"] if args.base == "prebuilt" else args.base
    if base and images.find(base) and not args.tensorflow:
        tensorflow = "tensorflow"  # what the image brings does
    build_args = {"TRAINER": args.trainer, "TENSORFLOW": tensorflow, **({"BASE_IMAGE": base} if base else {})}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    if commit.returncode == 0:
        build_args["REVISION"] = commit.stdout.strip()
    build_args["CREATED"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    tag = f"{values['images']}/{args.name or args.trainer + ('-gpu' if args.gpu else '')}:{values['tag']}"
    words = ["docker", "build", "--platform=linux/amd64"]
    words += [f"--build-arg={name}={value}" for name, value in build_args.items()]
    return [[*words, f"--tag={tag}", str(root)], *([["docker", "push", tag]] if args.push else [])]


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
    values = cloud.place(SETTINGS, settings.from_flags(args), needed, args.dry_run or not args.push)
    base = values["prebuilt"] if args.base == "prebuilt" else args.base
    if base and (warning := images.warning(base, date.today())):
        print(f"warning: {warning}", file=sys.stderr)
    if base and args.gpu and (found := images.find(base)) and found.accelerator != "gpu":
        raise BuildError(f"--gpu: {base} is for the {found.accelerator}; give its tf-gpu sibling as --base.")
    for words in image_commands(args, values):
        print(cloud.command(words), flush=True)
        if args.dry_run:
            continue
        if shutil.which(words[0]) is None:
            raise cloud.CloudError(f"{words[0]} is not on PATH: install Docker, or run the command above where it is.")
        code = subprocess.run(words).returncode
        if code:
            raise cloud.CloudError(f"{' '.join(words[:2])} ended with {code}; what it said is above.")
    return 0


def autopackage(job: JobSpec, base: str | None, values: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """Return the flags by which gcloud builds the image of all pools itself (local-package-path) and pushes it.

    They replace the file's pools; what else the file says stays. gcloud has no flags for disks and variables.
    """
    used = [pool for pool in job.pools if pool.replicas]
    if any(pool.args != used[0].args or pool.is_reduction_server for pool in used):
        raise BuildError(f"{job.name}: --autopackage gives all pools one image and one list of arguments; build an image instead.")
    trainer, words = trainer_of(used[0], job.name, root), []
    base = base or dockerfile_default("BASE_IMAGE", root)
    software = [f"executor-image-uri={base}", f"local-package-path={root}", f"python-module={trainer}.trainer.task"]
    # gcloud copies the folder of the module, nothing beside it: the runtime and the sample data are named.
    software.append(f"extra-dirs=vertex_runtime;{trainer}/tests")
    if images.find(base) is None:
        software.append(f"requirements={dockerfile_default('TENSORFLOW', root)}")
    software.append(f"output-image-uri={values['images']}/{trainer}-autopackaged:{values['tag']}")
    for i, (pool, raw) in enumerate(zip(job.pools, job.message["workerPoolSpecs"])):
        unsaid = [key for key in raw if key not in ("machineSpec", "replicaCount", "containerSpec", "pythonPackageSpec")]
        unsaid += [key for key in raw.get("machineSpec", {}) if key not in ("machineType", "acceleratorType", "acceleratorCount")]
        if unsaid or pool.env:
            raise BuildError(f"{job.name}: --autopackage: gcloud has no flag for {unsaid[0] if unsaid else 'env'}; build an image instead.")
        keys = [f"replica-count={pool.replicas}", f"machine-type={pool.machine}"]
        if kind := raw.get("machineSpec", {}).get("acceleratorType"):
            keys += [f"accelerator-type={kind}", f"accelerator-count={raw['machineSpec'].get('acceleratorCount', 1)}"]
        words.append("--worker-pool-spec=" + ",".join(keys + (software if i == 0 else []) if pool.replicas else []))
    if used[0].args:
        separator = next((mark for mark in _SEPARATORS if not any(mark in arg for arg in used[0].args)), None)
        if separator is None or len(set(used[0].args)) < len(used[0].args):
            raise BuildError(f"{job.name}: --autopackage: gcloud's --args takes no argument twice; write them as --name=value.")
        words.append(f"--args=^{separator}^{separator.join(used[0].args)}")
    return words


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
