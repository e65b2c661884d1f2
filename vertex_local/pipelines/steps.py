"""One step of a pipeline: `plan` says what its container's command is on this machine, `main` runs it in a process.

A lightweight Python component, or a launcher of Google's components, runs in a fork that has imported what it needs. Any
other command runs unchanged, with the environment's Python. Images are not started.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, quoted
from ..job import buckets
from . import patches, spec
from .service import resource_name

_EXECUTOR = "kfp.dsl.executor_main"
_INSTALL = "pip install"
_TAKES_VALUE = ("--index-url", "--extra-index-url", "--trusted-host", "--find-links", "-i", "-f")
_GCS = re.compile(r"""(?<![^\s=,;:"'])/gcs/[^\s,;"']+""")


# ------------------------------------------------------------------ what a command is


def plan(command: Sequence[str], service: Mapping[str, str], packages: Path) -> dict[str, Any]:
    """Return the argument of `main` for a container's command, with the name of the server to fork from.

    Args:
        packages: folder for packages that components require and the environment does not have.
    """
    shared = {"service": dict(service), "packages": str(packages)}
    if module := spec.launcher(command):  # checked first: its arguments may contain a component's source
        args = list(command[command.index(module) + 1 :])
        return {**shared, "kind": "launcher", "server": "google", "module": module, "args": args}
    source = _component(command)
    if source is not None:
        server = "google" if spec.imports_google(source) else "kfp"
        words = [_local(word, service) for word in command[command.index(source) + 1 :]]
        return {**shared, "kind": "component", "server": server, "source": source, "args": words, "requirements": _wanted(command)}
    words = [buckets.localize(word, service["bucket_root"]) for word in command]  # a program gets local paths, as in jobs
    return {**shared, "kind": "command", "server": "kfp", "args": words}


def _component(command: Sequence[str]) -> str | None:
    """Return the source of a lightweight Python component, which is the word after the shell lines that start it."""
    for word, after in zip(command, command[1:]):
        if _EXECUTOR in word and "ephemeral_component.py" in word:
            return after
    return None


def _wanted(command: Sequence[str]) -> list[str]:
    """Return the requirements that a component's shell lines install, without kfp and build tools, which are here already."""
    found: list[str] = []
    for line in (line for word in command for line in word.splitlines() if _INSTALL in line and "executor_main" not in line):
        for part in line.split("&&"):
            words = iter(shlex.split(part.partition(_INSTALL)[2], comments=True)) if _INSTALL in part else iter(())
            for word in words:
                if word in _TAKES_VALUE:
                    next(words, None)
                elif not word.startswith("-") and not re.match(r"(kfp|typing-extensions|setuptools|wheel)\b", word):
                    found.append(word)
    return found


def _local(text: str, service: Mapping[str, str]) -> str:
    """Return a word with local paths for `/gcs/bucket/x`; `gs://` stays, because a component passes it on to the service."""
    return _GCS.sub(lambda match: buckets.to_path(match.group(), service["bucket_root"]), text)


def resource(command: Sequence[str]) -> str:
    """Return the name of the job or operation in a launcher's `gcp_resources`; "" if there is none."""
    for flag, path in zip(command, command[1:]):
        if flag == "--gcp_resources":
            with contextlib.suppress(OSError, ValueError, LookupError):
                return resource_name(json.loads(Path(path).read_text(encoding="utf-8"))["resources"][0]["resourceUri"])
    return ""


# ------------------------------------------------------------------ the process of a step


def main(argument: dict[str, Any]) -> Any:
    """Run the step that `plan` has returned."""
    service = argument["service"]
    token = ""
    with contextlib.suppress(OSError):  # no token is needed, or the service is being stopped
        token = Path(service["token_file"]).read_text()
    try:
        patches.for_step({**service, "token": token})
        if argument["kind"] == "component":
            return _run_component(argument)
        if argument["kind"] == "launcher":
            return _run_launcher(argument)
        return _run_command(argument["args"])
    except UserError as error:
        sys.exit(f"error: {error}")


def _run_component(argument: Mapping[str, Any]) -> None:
    from kfp.dsl import executor_main

    missing = [wanted for wanted in argument["requirements"] if not _has(wanted)]
    if missing:
        sys.path.insert(0, _installed(missing, Path(argument["packages"])))
    os.environ["_KFP_RUNTIME"] = "true"
    folder = tempfile.mkdtemp(prefix="component-")
    try:
        path = Path(folder, "ephemeral_component.py")
        path.write_text(argument["source"], encoding="utf-8")
        sys.argv = [executor_main.__file__, "--component_module_path", str(path), *argument["args"]]
        executor_main.executor_main()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_launcher(argument: Mapping[str, Any]) -> None:
    patches.for_launcher()
    sys.argv = [argument["module"], *argument["args"]]
    runpy.run_module(argument["module"], run_name="__main__", alter_sys=True)


def _run_command(words: list[str]) -> None:
    """Become the container's command, with this environment's Python for python and python3."""
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    try:
        os.execvp(words[0], words)
    except OSError as error:
        raise UserError(
            f"{quoted(words[0])} cannot be run on this machine ({error.strerror}); images are not started here: install the program."
        ) from None


def _has(wanted: str) -> bool:
    """Tell whether this environment meets a requirement; one for another platform or version of Python counts as met."""
    from importlib import metadata

    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(wanted)
    except InvalidRequirement:  # a path or an address
        return False
    if requirement.marker and not requirement.marker.evaluate():
        return True
    with contextlib.suppress(metadata.PackageNotFoundError):
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    return False


def _installed(wanted: Sequence[str], packages: Path) -> str:
    """Return a folder with these requirements installed, which is made once; the environment itself is not changed."""
    folder = packages / hashlib.sha256("\n".join(sorted(wanted)).encode()).hexdigest()[:16]
    if not (folder / "installed").exists():
        print(f"installing {', '.join(wanted)}, which the component wants and {sys.prefix} does not have", flush=True)
        packages.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=packages) as temporary:
            has_pip = importlib.util.find_spec("pip") is not None  # an environment that uv has made has none
            install = [sys.executable, "-m", "pip", "install"] if has_pip else ["uv", "pip", "install", "--python", sys.executable]
            command = [*install, "--quiet", "--target", f"{temporary}/site", *wanted]
            try:
                subprocess.run(command, check=True)
            except (OSError, subprocess.CalledProcessError):
                raise UserError(f"packages_to_install: {', '.join(wanted)} cannot be installed; add it to the environment.") from None
            Path(temporary, "site", "installed").touch()
            with contextlib.suppress(OSError):  # another step was faster
                os.replace(f"{temporary}/site", folder)
    return str(folder)
