"""Install a job's own packages as the prebuilt containers do, but into a folder of the job."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from ..job import buckets

_MISSING = re.compile(r"(\S+) \S+ (?:requires|has requirement) (.+?), (?:which is not installed|but you have .+)\.")


class PackageError(ValueError):
    """A package that cannot be installed or lacks what it requires, and what to do about it."""


def locate(uris: Sequence[str], project: Path, bucket_root: Path) -> list[Path]:
    """Return the files that `packageUris` name: local paths, or `gs://…` under the bucket root."""
    found = []
    for uri in uris:
        path = Path(buckets.localize(uri, bucket_root))
        path = path if path.is_absolute() else project / path
        if not path.name.endswith((".tar.gz", ".whl")):
            raise PackageError(f"packageUris: {uri} must be a .tar.gz or .whl file.")
        if not path.is_file():
            raise PackageError(f"packageUris: there is no {path} (for {uri}); build it, or copy it there.")
        found.append(path)
    return found


def install(files: Sequence[Path], site: Path, python: str, with_index: bool, say: Callable[[str], None]) -> None:
    """Install `files` into `site` without an index, then see whether the environment has what they require.

    With `with_index`, what is missing is installed into `site` too, as the container would do it.
    """
    for file in files:
        _pip(python, site, say, "--no-deps", "--no-index", "--no-build-isolation", str(file))
    missing = _missing(python, site)
    if missing and with_index:
        _pip(python, site, say, *missing)
        missing = _missing(python, site)
    if missing:
        raise PackageError(
            f"{', '.join(file.name for file in files)} requires {', '.join(missing)}, which {python} does not have: "
            "install it there, or give --with_index to install it for this job as the container would."
        )


def _pip(python: str, site: Path, say: Callable[[str], None], *args: str) -> None:
    scratch = site.parent / "tmp"
    scratch.mkdir(exist_ok=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--upgrade", "--target", str(site), *args]
    say("$ " + " ".join(command))
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(scratch)}, capture_output=True, text=True, cwd=scratch)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise PackageError(f"pip could not install {args[-1]} (exit code {done.returncode}): {errors[-1].strip()}")


def _missing(python: str, site: Path) -> list[str]:
    """Return the requirements, with their versions, of the packages in `site` that `python` cannot meet."""
    owned = {_plain(found.metadata["Name"]): found for found in importlib.metadata.distributions(path=[str(site)])}
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    command = [python, "-m", "pip", "check", "--disable-pip-version-check"]
    checked = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=site)
    found = []
    for line in checked.stdout.splitlines():
        match = _MISSING.fullmatch(line.strip())
        if match and _plain(match[1]) in owned:
            name = _plain(re.split(r"[^\w.-]", match[2])[0])
            wanted = owned[_plain(match[1])].requires or []
            stated = [text.partition(";")[0].strip() for text in wanted if _plain(re.split(r"[^\w.-]", text)[0]) == name]
            found += stated[:1] or [match[2]]
    return sorted(set(found))


def _plain(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()
