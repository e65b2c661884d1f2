"""Replicas in real containers: the image of each worker pool, and what is mounted in it.

An image that the engine already has is used. An image of the project's own Dockerfile is built, any other is pulled.
Buckets are mounted at /gcs and, like the job's folder, at the path that they have outside. Containers use the host's
network, so that replicas reach each other on localhost.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..job.pools import Pool
from . import commands
from .engines import INSIDE, Engine, Image, Launcher

BUCKETS = "/gcs"
_TAG = "localhost/vertex-local"
# In a distribution's own Python, pip installs nothing without this flag, which older pips do not know.
_INSTALL = """\
FROM {base}
COPY {files} {folder}/
RUN flag=$(python3 -m pip install --help | grep -o -m1 -e --break-system-packages) ; \\
    python3 -m pip install --no-cache-dir --disable-pip-version-check $flag {paths}
"""


@dataclass(frozen=True)
class Containers:
    """How a job's replicas get their containers: the engine, and what the project's own images are built from."""

    engine: Engine
    project: Path
    build_args: Mapping[str, str] = field(default_factory=dict)

    def image(self, pool: Pool, packages: Sequence[Path]) -> Image:
        """Return the image of a pool's replicas: one that the engine has, one built from the checkout, or one pulled.

        Raises:
            ContainerError: the image can be neither built nor pulled.
        """
        if pool.is_package:
            return with_packages(self.engine, self.engine.pull(pool.image), packages)
        found = self.engine.find(pool.image)
        if found is not None:
            self.engine.say(f"image {pool.image}: taken as {self.engine.name} has it")
            return found
        trainer = commands.trainer_in(pool.image, commands.trainers(self.project))
        if trainer is not None and (self.project / "Dockerfile").is_file():
            return project_image(self.engine, self.project, trainer, self.build_args)
        return self.engine.pull(pool.image)

    def launcher(self, image: Image, folder: Path, bucket_root: Path, replica: str, readable: Sequence[Path] = ()) -> Launcher:
        """Return what starts a replica in a container with the buckets, the job's `folder` and, read-only, the files `readable`."""
        bucket_root.mkdir(parents=True, exist_ok=True)
        mounts: list[tuple[Path, str | Path]] = [(bucket_root, BUCKETS), (bucket_root, bucket_root), (folder, folder)]
        mounts += [(path, f"{path}:ro") for path in readable]
        return Launcher(self.engine, image, mounts, folder / "work" / f"{replica}.status")


def project_image(engine: Engine, project: Path, trainer: str, build_args: Mapping[str, str]) -> Image:
    """Return a trainer's image, built from the project's Dockerfile; it is built again only if its sources have changed."""
    every = {"TRAINER": trainer, **build_args}
    checksum = _checksum(_sources(project, trainer), project, json.dumps(sorted(every.items())))
    name = f"{_TAG}/{trainer}:{checksum}"
    return engine.find(name) or engine.build(project, every, name)


def with_packages(engine: Engine, base: Image, packages: Sequence[Path]) -> Image:
    """Return `base` with a job's Python packages installed in it, as the service's prebuilt containers install them."""
    name = f"{_TAG}/packages:{_checksum(packages, None, base.name)}"
    found = engine.find(name)
    if found is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="packages-") as scratch:
        for path in packages:
            shutil.copy(path, scratch)
        names = [path.name for path in packages]
        text = _INSTALL.format(
            base=base.name, files=" ".join(names), folder=INSIDE,
            paths=" ".join(f"{INSIDE}/{name}" for name in names),
        )  # fmt: skip
        Path(scratch, "Dockerfile").write_text(text)
        return engine.build(Path(scratch), {}, name)


def _sources(project: Path, trainer: str) -> Iterator[Path]:
    """Yield the files that the project's Dockerfile copies."""
    for name in ("Dockerfile", "setup.py"):
        yield project / name
    for folder in ("vertex_runtime", trainer):
        for path in sorted((project / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def _checksum(files: Iterator[Path] | Sequence[Path], root: Path | None, more: str) -> str:
    digest = hashlib.sha256(more.encode())
    for path in files:
        digest.update(f"\0{path.relative_to(root) if root else path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]
