"""A job's Python packages: built from a checkout, installed once per content, and what they require.

The prebuilt containers install a job's packages before they start it. Here the packages are installed in the state folder,
where all replicas, trials and jobs that need the same files with the same interpreter share one installation.
"""

from __future__ import annotations

import fcntl
import functools
import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from email import message_from_string
from pathlib import Path

from ..errors import UserError
from ..job import buckets
from . import output
from .store import private_folder

EPOCH = 315532800  # 1 January 1980, the oldest time that every archive format knows
_MISSING = re.compile(r"(\S+) \S+ (?:requires|has requirement) (.+?), (?:which is not installed|but you have .+)\.")
_NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "tests", "benchmarks", "*-run-*", "*-model*")  # at the top
_NOT_FILES = shutil.ignore_patterns("__pycache__", "*.egg-info")  # anywhere
_IDENTITY = "import sys, sysconfig; print(sys.version, sys.executable, sys.prefix, sysconfig.get_platform())"


class PackageError(UserError):
    """A package that cannot be built or installed, or lacks what it requires, and what to do about it."""


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


# ------------------------------------------------------------------ installed


def site(files: Sequence[Path], state: Path, python: str, with_index: bool, say: Callable[[str], None]) -> Path:
    """Return a folder for PYTHONPATH in which `files` are installed; an earlier installation of the same files is used again.

    They are installed without an index. Then their requirements are compared with what the interpreter has. With
    `with_index`, missing ones are installed from the index, as the container would do it.

    Args:
        state: the state folder, whose `packages` holds the installations.
        say: called with each command that is run.

    Raises:
        PackageError: a file cannot be installed, or something that it requires is missing.
    """
    base = private_folder(state / "packages")
    key = _key(files, python, with_index)
    folder = base / key
    with open(base / f"{key}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits here, and finds it installed
        if (folder / "site").is_dir():
            os.utime(folder)
            return folder / "site"
        scratch = Path(tempfile.mkdtemp(prefix="installing-", dir=base))
        try:
            _install(files, scratch / "site", python, with_index, say)
            _describe(files, python, scratch)
            shutil.rmtree(scratch / "tmp")
            scratch.rename(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return folder / "site"


def _key(files: Sequence[Path], python: str, with_index: bool) -> str:
    """Return an installation's name: a digest of the files' content, in their order, and of the interpreter."""
    digest = hashlib.sha256(_identity(python))
    for file in files:
        digest.update(f"\0{file.name}\0{with_index}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:24]


@functools.cache
def _identity(python: str) -> bytes:
    """Return the version, path and platform of an interpreter, which tell it from any other."""
    return subprocess.run([python, "-c", _IDENTITY], capture_output=True, stdin=subprocess.DEVNULL).stdout


def _describe(files: Sequence[Path], python: str, folder: Path) -> None:
    (folder / "packages.json").write_text(json.dumps({"files": [str(file) for file in files], "python": python}, indent=1) + "\n")


def install(file: Path, target: Path, python: str, say: Callable[[str], None] = lambda text: None) -> None:
    """Install one built package, without what it requires and without an index, into a folder."""
    _pip(python, target, say, "--no-deps", "--no-index", "--no-build-isolation", str(file))


def _install(files: Sequence[Path], target: Path, python: str, with_index: bool, say: Callable[[str], None]) -> None:
    for file in files:
        install(file, target, python, say)
    missing = _missing(python, target)
    if missing and with_index:
        _pip(python, target, say, *missing)
        missing = _missing(python, target)
    if missing:
        raise PackageError(
            f"{', '.join(file.name for file in files)} requires {', '.join(missing)}, which {python} does not have: "
            "install it there, or give --with_index to install it for this job as the container would."
        )


def _pip(python: str, target: Path, say: Callable[[str], None], *args: str) -> None:
    scratch = target.parent / "tmp"
    for folder in (scratch, target):
        folder.mkdir(parents=True, exist_ok=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--upgrade", "--target", str(target), *args]
    say("$ " + " ".join(command))
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(scratch)}, capture_output=True, text=True, cwd=scratch, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines
        problem = output.last_error(errors, "no message").rstrip(".")
        raise PackageError(
            f"pip could not install {args[-1]} (exit code {done.returncode}): {problem}. Mend what it names, or install it yourself."
        )


def _missing(python: str, target: Path) -> list[str]:
    """Return the requirements, with their versions, of the packages in `target` that `python` cannot meet."""
    owned = {_plain(found.metadata["Name"]): found for found in importlib.metadata.distributions(path=[str(target)])}
    path = os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))
    command = [python, "-m", "pip", "check", "--disable-pip-version-check"]
    checked = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=target)
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


# ------------------------------------------------------------------ built


def build(project: Path, folder: Path, trainer: str | None = None, python: str = sys.executable) -> Path:
    """Build the sdist of a checkout into `folder` and return its path; the same sources make the same bytes.

    It is built in a copy of the checkout, because a build leaves folders behind, and two builds at once would mix them.

    Args:
        trainer: the only trainer to pack; None packs all.

    Raises:
        PackageError: setup.py is missing or failed.
    """
    if not (project / "setup.py").is_file():
        raise PackageError(f"there is no {project / 'setup.py'} to build the package with; give --project_dir.")
    with tempfile.TemporaryDirectory(prefix="sdist-") as scratch:
        tree = Path(scratch) / "tree"
        shutil.copytree(project, tree, ignore=_left_out(project), ignore_dangling_symlinks=True)  # an editor's locks
        variables = {name: value for name, value in os.environ.items() if name != "VERTEX_TRAINER"}
        variables |= {"VERTEX_TRAINER": trainer} if trainer else {}
        words = [python, "setup.py", "--quiet", "sdist", "--formats=gztar", f"--dist-dir={scratch}"]
        done = subprocess.run(words, cwd=tree, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        made = sorted(Path(scratch).glob("*.tar.gz"))
        if done.returncode or not made:
            problem = output.last_error(done.stderr.splitlines(), "no message")
            raise PackageError(f"setup.py sdist ended with {done.returncode} in {project}: {problem}. Mend setup.py there.")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / made[0].name.replace("-", "_", made[0].name.count("-") - 1)  # as newer setuptools write it
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(_without_times(made[0]))
        os.replace(part, path)
    return path


def _left_out(root: Path) -> Callable[[str, list[str]], set[str]]:
    return lambda folder, names: _NOT_FILES(folder, names) | (_NOT_SOURCES(folder, names) if Path(folder) == root else set())


def _without_times(archive: Path) -> bytes:
    """Return a .tar.gz with its members sorted, and without anything that depends on who made it, and when."""
    packed, when = io.BytesIO(), int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))
    with tarfile.open(archive) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = when, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return gzip.compress(packed.getvalue(), mtime=when)


def requirements(package: Path) -> tuple[list[str], str | None]:
    """Return (what an sdist requires without its extras, the Python that it requires)."""
    with tarfile.open(package) as packed:
        texts = dict(_metadata(packed))
    plain = texts.get("requires.txt", "").partition("\n[")[0]  # a section for each extra follows the plain ones
    lines = [] if plain.startswith("[") else [line.strip() for line in plain.splitlines()]
    return [line for line in lines if line], message_from_string(texts["PKG-INFO"]).get("Requires-Python")


def _metadata(packed: tarfile.TarFile) -> Iterator[tuple[str, str]]:
    for member in packed.getmembers():
        folder, _, name = member.name.rpartition("/")
        if folder.endswith(".egg-info") and name in ("requires.txt", "PKG-INFO"):
            yield name, packed.extractfile(member).read().decode()  # type: ignore[union-attr]
