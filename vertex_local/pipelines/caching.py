"""A cache of steps' outputs, by component, arguments, content of input artefacts and the checkout's sources.

The key is kfp's own, with the parts that kfp leaves out. An entry is used only while all that it names still exists: files
in the bucket root, and resources (models, endpoints, jobs) in the local service. Runs in the pipelines' environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfp.local import cache

from vertex_runtime import checksums

from ..job import buckets
from .service import Service, resource_name
from .tasks import is_artifact

if TYPE_CHECKING:
    from .run import Request

_SOURCES = (".py", ".yaml", ".yml", "Dockerfile")
_NOT_SOURCES = ("tests", "docs", "benchmarks", "build", "dist", "__pycache__", "node_modules")
_TYPES = "types of artifacts"  # beside the outputs, none of which can have this name
_RESOURCE = re.compile(r"projects/[^/]+/locations/[^/]+/.+")


class ContentCache(cache.LocalCache):
    """kfp's cache of one run's project and location."""

    def __init__(self, request: Request, service: Service):
        super().__init__(str(Path(request.cache_dir, "outputs", hashlib.sha256(request.parent.encode()).hexdigest()[:16])))
        self._bucket_root, self._service = request.service["bucket_root"], service
        self._sources = sources(Path(request.project_dir))

    def compute_key(self, *args: Any, **names: Any) -> str:
        """Return a task's key: kfp's, with the content of its input artefacts and the checkout's sources."""
        digest = hashlib.sha256(super().compute_key(*args, **names).encode())
        digest.update(self._sources.encode())
        for name, value in sorted(names["arguments"].items()):
            for artifact in _artifacts(value):
                digest.update(f"{name} {self._files(artifact.uri)}\n".encode())
        return digest.hexdigest()

    def _files(self, uri: str) -> str:
        """Return a checksum of the files at an artefact's address; "" if there are none."""
        path = self._path(uri)
        return checksums.of_folder(path) if path and os.path.exists(path) else ""

    def _path(self, uri: str) -> str:
        return buckets.to_path(uri, self._bucket_root) if uri.startswith("gs://") else ""

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the outputs under a key; None if there are none, or if something that they name is gone."""
        outputs = super().get(key)
        for name, types in (outputs or {}).pop(_TYPES, {}).items():
            for artifact, (title, version) in zip(_artifacts(outputs[name]), types):
                artifact.schema_title, artifact.schema_version = title, version
        return outputs if outputs is not None and all(map(self._is_there, outputs.values())) else None

    def put(self, key: str, outputs: dict[str, Any]) -> None:
        """Keep a task's outputs, with the types of artefacts, of which kfp keeps its own types only."""
        made = {name: [(each.schema_title, each.schema_version) for each in _artifacts(value)] for name, value in outputs.items()}
        super().put(key, {**outputs, _TYPES: made})

    def _is_there(self, value: Any) -> bool:
        for artifact in _artifacts(value):
            if (name := artifact.metadata.get("resourceName")) and not self._answers(name):
                return False
            path = self._path(artifact.uri)
            if path and not os.path.exists(path) and not artifact.schema_title.startswith("google."):
                return False
        return all(map(self._answers, _resources(value)))

    def _answers(self, name: str) -> bool:
        return self._service.get(name) is not None


def _artifacts(value: Any) -> list[Any]:
    """Return the artefacts that a value is; none for a parameter's."""
    return (value if isinstance(value, list) else [value]) if is_artifact(value) else []


def _resources(value: Any) -> Iterator[str]:
    """Yield the names of resources in the text of a `gcp_resources` output."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        for each in json.loads(value)["resources"] if isinstance(value, str) and "resourceUri" in value else ():
            name = resource_name(each["resourceUri"])
            if _RESOURCE.fullmatch(name):
                yield name


def sources(project: Path) -> str:
    """Return a checksum of a checkout's modules, job files and Dockerfile, which jobs and components run; "" for another folder."""
    if not (project / "setup.py").is_file():
        return ""
    digest = hashlib.sha256()
    for folder, names, files in os.walk(project):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in _NOT_SOURCES)
        names[:] = [name for name in names if not Path(folder, name, "pyvenv.cfg").exists()]
        for file in sorted(name for name in files if name.endswith(_SOURCES)):
            path = Path(folder, file)
            if path.is_file():  # an editor's lock is a link to nothing
                digest.update(f"{path.relative_to(project)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
