"""The programs that run containers on this machine: docker, podman, or buildah's chroot isolation, which needs no daemon.

`supervise.py` is the first process in a container. It passes on signals and exit codes itself, because each engine loses
some of them.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError

ENGINES = ("docker", "podman", "buildah")
INSIDE = "/vertex_local"  # where supervise.py is mounted
_SUPERVISOR = Path(__file__).with_name("supervise.py")


class ContainerError(UserError):
    """An engine or image that cannot be used: which, what it said, and the remedy."""


@dataclass
class Image:
    """An image in an engine's store, or what a Dockerfile makes, and what it starts with."""

    name: str
    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    workdir: str = "/"
    env: dict[str, str] = field(default_factory=dict)

    def command(self, command: Sequence[str], args: Sequence[str]) -> list[str]:
        """Return what a containerSpec runs: `command` replaces ENTRYPOINT and CMD, `args` only CMD."""
        if command:
            return [*command, *args]
        return [*self.entrypoint, *(args or self.cmd)]


@dataclass(frozen=True)
class Engine:
    """One of the programs that run containers on this machine."""

    name: str
    say: Callable[[str], None] = print

    def _call(self, *words: str, quiet: bool = True) -> str:
        """Run the engine and return what it wrote to stdout; its output is shown unless `quiet`."""
        env = {"BUILDAH_ISOLATION": "chroot", **os.environ}  # chroot isolation lets buildah run without namespaces of its own
        stderr = subprocess.PIPE if quiet else None
        stdout = subprocess.PIPE if quiet else sys.stderr
        done = subprocess.run([self.name, *words], env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, text=True)
        if done.returncode:
            lines = [line for line in (done.stderr or "").splitlines() if line.strip()] or ["what it said is above"]
            raise ContainerError(f"{self.name} {words[0]} ended with {done.returncode}: {lines[-1].strip()[:500]}")
        return done.stdout or ""

    # ------------------------------------------------------------------ images

    def find(self, name: str) -> Image | None:
        """Return an image of the engine's own store; None if it is not there."""
        try:
            return self._inspect(name)
        except ContainerError:
            return None

    def _inspect(self, name: str) -> Image:
        words = ["inspect", "--type", "image", name] if self.name == "buildah" else ["image", "inspect", name]
        described = json.loads(self._call(*words))
        config = described["OCIv1"]["config"] if self.name == "buildah" else described[0]["Config"]
        return Image(name, config.get("Entrypoint") or (), config.get("Cmd") or (), config.get("WorkingDir") or "/")

    def pull(self, name: str) -> Image:
        """Return an image, fetched from its registry unless the engine has it."""
        if found := self.find(name):
            return found
        self.say(f"$ {self.name} pull {name}")
        try:
            self._call("pull", name, quiet=False)
            return self._inspect(name)
        except ContainerError as error:
            problem = f"image {name}: is not here, and cannot be pulled: {error}"
            raise ContainerError(f"{problem}. Build or pull it first, or name another.") from None

    def build(self, context: Path, build_args: Mapping[str, str], name: str) -> Image:
        """Build `context`'s Dockerfile as `name` and return the image; pip inside uses this machine's own settings."""
        options = [f"--build-arg={key}={value}" for key, value in build_args.items()]
        with tempfile.TemporaryDirectory(prefix="pip-settings-") as scratch:
            if self.name == "docker":  # its builder mounts nothing
                words = ["build", "--network=host", *options]
            else:
                mounts = [f"--volume={source}:{target}:ro" for source, target in pip_settings(Path(scratch))]
                words = ["build" if self.name == "podman" else "bud", "--layers", "--network=host", *mounts, *options]
            words += [f"--tag={name}", str(context)]
            self.say(f"$ {self.name} {' '.join(words)}")
            self._call(*words, quiet=False)
        return self._inspect(name)

    # ------------------------------------------------------------------ containers

    def create(self, image: Image) -> str:
        """Return what `run_command` runs: the image, or for buildah a container made from it, which `remove` removes."""
        return self._call("from", image.name).strip() if self.name == "buildah" else image.name

    def remove(self, container: str) -> None:
        """Remove what `create` made."""
        if self.name == "buildah":
            self._call("rm", container)

    def run_command(
        self, container: str, mounts: Sequence[tuple[Path, str | Path]], environment: Mapping[str, str], workdir: str
    ) -> list[str]:
        """Return the beginning of a command line that runs a program in a container, its standard input open."""
        words = [self.name, "run", "--network=host"]
        words += [f"--volume={source}:{target}" for source, target in mounts]
        words += [f"--env={name}={value}" for name, value in environment.items()]
        if self.name == "buildah":
            return [*words, f"--workingdir={workdir}", container, "--"]
        user = f"--user={os.getuid()}:{os.getgid()}"  # what it writes into buckets shall belong to the caller
        return [*words, "--rm", "--interactive", user, f"--workdir={workdir}", "--entrypoint=", container]


@dataclass
class Launcher:
    """Starts the attempts of one replica, each in a fresh container.

    Attributes:
        mounts: pairs of a file or folder here and its place in the container.
        status: a file, at the same path inside and outside, to which the supervisor writes how an attempt ended.
    """

    engine: Engine
    image: Image
    mounts: Sequence[tuple[Path, str | Path]]
    status: Path
    _container: str | None = None

    def command(self, argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """Make a new container and return the command line that runs `argv` in it under the supervisor."""
        self.close()
        self.status.unlink(missing_ok=True)
        self._container = self.engine.create(self.image)
        mounts = [(_SUPERVISOR, f"{INSIDE}/supervise.py:ro"), *self.mounts]
        words = self.engine.run_command(self._container, mounts, environment, self.image.workdir)
        return [*words, "python3", "-I", "-S", f"{INSIDE}/supervise.py", str(self.status), *argv]

    def ended(self) -> list[bytes]:
        """Return the lines that the supervisor wrote about the attempt; none if the container did not start."""
        try:
            return self.status.read_bytes().splitlines()
        except FileNotFoundError:
            return []

    def close(self) -> None:
        """Remove the container."""
        if self._container is not None:
            container, self._container = self._container, None
            self.engine.remove(container)


def find_engine(wanted: str | None = None, say: Callable[[str], None] = print) -> Engine:
    """Return the engine `wanted`, or the first that works here.

    Raises:
        ContainerError: none works; the message says why, for each of them.
    """
    problems = []
    for name in (wanted,) if wanted else ENGINES:
        problem = _problem(name)
        if problem is None:
            return Engine(name, say)
        problems.append(f"{name}: {problem}")
    raise ContainerError(f"--containers: no engine works here ({'; '.join(problems)}). Install Docker, podman or buildah.")


@functools.cache
def _problem(name: str) -> str | None:
    """Return why an engine cannot be used; None if it can."""
    if name not in ENGINES:
        return f"is not one of {', '.join(ENGINES)}"
    if shutil.which(name) is None:
        return "is not on PATH"
    tried = [[name, "images" if name == "buildah" else "info"]]
    if name == "podman" and os.getuid():  # where it may not raise limits, it can build images but not run them
        tried.append(["podman", "unshare", "true"])
    for words in tried:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"`{' '.join(words)}` ended with {done.returncode}"])[-1][:200]
    return None


def pip_settings(scratch: Path) -> list[tuple[str, str]]:
    """Return mounts, as (path here, path in a container), that make pip inside use this machine's index and certificates.

    pip's settings here, from files and variables, are written to one file in `scratch`, which is mounted as /etc/pip.conf.
    The local files and folders that they name are mounted at the same paths.
    """
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    found = re.findall(r"^(global|install|:env:)\.([\w-]+)=(.*)$", listed.stdout, re.MULTILINE)
    found.sort(key=lambda setting: setting[0] == ":env:")  # variables win, as they do in pip
    settings = {name: ast.literal_eval(quoted).split() for _, name, quoted in found}
    mounts = set()
    for name, values in settings.items():
        for value in values:
            path = Path(value.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                path = path.parent if "index" in name else path  # an index's pages link to files beside them
                mounts.add((str(path), str(path)))
    lines = ["[global]", *(f"{name} = " + "\n    ".join(values) for name, values in settings.items())]
    own = scratch / "pip.conf"
    own.write_text("\n".join(lines) + "\n")
    return [(str(own), "/etc/pip.conf"), *sorted(mounts)]
