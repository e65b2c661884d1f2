"""What can be looked at on this machine, without a network: Python, packages, gcloud, an engine for containers, disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from .findings import MISSING, OK, WARNING, Check, Finding

# As in setup.py: what a command needs, and whether sending a job does.
EXTRAS = {
    "cloud": ("google-cloud-aiplatform", "google-cloud-storage", "packaging", "PyYAML"),
    "tune": ("google-cloud-aiplatform", "optuna", "plotly", "PyYAML", "rich"),
    "serve": (
        "certifi", "cronsim", "google-cloud-aiplatform", "google-cloud-storage", "h11", "jinja2", "optuna", "PyYAML", "rich",
        "starlette", "trustme", "uvicorn", "werkzeug",
    ),
}  # fmt: skip
TENSORFLOW = ("2.17", "2.21")  # the first and the last that the trainers are tested with
NEWEST_PYTHON = (3, 13)
LEAST_DISK = 10  # GB; an image with TensorFlow takes a few, its layers while it is built as many again
GCLOUD_SECONDS = 30.0


def checks(region: str | None) -> list[Check]:
    """Return the looks at this machine; `region` is where images will be pushed to, if that is known."""
    return [
        Check("python", python),
        Check("tensorflow", tensorflow),
        Check("packages", packages),
        Check("gcloud", gcloud),
        Check("containers", lambda: containers(region)),
        Check("disk", disk),
    ]


def python() -> Finding:
    """Tell whether there is a TensorFlow for this Python."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] > NEWEST_PYTHON:
        text = f"{version}; TensorFlow {TENSORFLOW[1]} is for 3.10 to {'.'.join(map(str, NEWEST_PYTHON))}"
        return Finding(WARNING, "python", text, "make .venv with one of these")
    return Finding(OK, "python", f"{version} ({sys.executable})")


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return None


def tensorflow() -> Finding:
    """Tell whether trainers run here; a job brings its own TensorFlow, so that one can be sent without."""
    found, (first, last) = _version("tensorflow", "tensorflow-cpu"), TENSORFLOW
    if found is None:
        return Finding(WARNING, "tensorflow", "not installed: nothing can be trained or checked here", "pip install '.[tf]'")
    pair = tuple(map(int, found.split(".")[:2]))
    if not tuple(map(int, first.split("."))) <= pair <= tuple(map(int, last.split("."))):
        text = f"{found}; the trainers are tested with {first} to {last}"
        return Finding(WARNING, "tensorflow", text, f"pip install 'tensorflow~={last}.0'")
    return Finding(OK, "tensorflow", found)


def packages() -> list[Finding]:
    """Tell which extras of setup.py are installed."""
    found = []
    for extra, names in EXTRAS.items():
        lacking = [name for name in names if _version(name) is None]
        level = OK if not lacking else MISSING if extra == "cloud" else WARNING
        text = f"extra [{extra}]" + (f" lacks {', '.join(lacking)}" if lacking else " is installed")
        found.append(Finding(level, "packages", text, f"pip install '.[{extra}]'" if lacking else ""))
    return found


def gcloud() -> Finding:
    """Tell whether gcloud is there and logged in: it makes buckets and repositories, and reads logs; the SDK sends the jobs."""
    if shutil.which("gcloud") is None:
        return Finding(WARNING, "gcloud", "not on PATH; the commands below need it", "https://cloud.google.com/sdk/docs/install")
    words = ["gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)"]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GCLOUD_SECONDS)
    except subprocess.TimeoutExpired:
        return Finding(WARNING, "gcloud", f"does not answer within {GCLOUD_SECONDS:g} s", "gcloud info --run-diagnostics")
    account = done.stdout.strip()
    if done.returncode or not account:
        return Finding(WARNING, "gcloud", "is there, and nobody is logged in", "gcloud auth login")
    return Finding(OK, "gcloud", f"logged in as {account}")


def containers(region: str | None) -> Finding:
    """Tell whether images can be built here, and whether Docker knows how to log in where they are pushed to."""
    from vertex_local.local import engines

    try:
        engine = engines.find_engine(say=lambda line: None)
    except engines.ContainerError as error:
        text = f"no image can be built here: {str(error).removeprefix('--containers: ')}"
        return Finding(WARNING, "containers", text, "install Docker, or send an sdist: docs/vertex-ai.md, Prebuilt containers")
    host = f"{region}-docker.pkg.dev"
    if region and engine.name == "docker" and host not in _docker_helpers():
        return Finding(WARNING, "containers", f"docker works, and may not log in to {host}", f"gcloud auth configure-docker {host}")
    return Finding(OK, "containers", f"{engine.name} works")


def _docker_helpers() -> set[str]:
    """Return the registries for which Docker's settings name a program or a login."""
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return {*settings.get("credHelpers", {}), *settings.get("auths", {})}
    except (OSError, ValueError, AttributeError, TypeError):
        return set()


def disk() -> Finding:
    """Tell how much is free where the commands are run."""
    free = shutil.disk_usage(".").free / 1e9
    if free < LEAST_DISK:
        return Finding(WARNING, "disk", f"{free:.1f} GB free here; building an image takes up to {LEAST_DISK} GB", "docker system df")
    return Finding(OK, "disk", f"{free:,.0f} GB free here")
