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
from collections.abc import Callable, Iterator
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
_RESOURCE = re.compile(r"projects/[^/]+/locations/[^/]+/.+")


class ContentCache(cache.LocalCache):
    """kfp's cache of one run's project and location.

    Args:
        used: called with a line about an entry that is used.
    """

    def __init__(self, request: Request, service: Service, used: Callable[[str], None]):
        super().__init__(str(Path(request.cache_dir, "outputs", hashlib.sha256(request.parent.encode()).hexdigest()[:16])))
        self._bucket_root, self._service, self._used = request.service["bucket_root"], service, used
        self._sources = sources(Path(request.project_dir))

    def compute_key(self, *args: Any, **names: Any) -> str:
        """Return a task's key: kfp's, with the content of its input artefacts and the checkout's sources."""
        digest = hashlib.sha256(super().compute_key(*args, **names).encode())
        digest.update(self._sources.encode())
        for name, value in sorted(names["arguments"].items()):
            if is_artifact(value):
                for artifact in value if isinstance(value, list) else [value]:
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
        if outputs is None or not all(map(self._is_there, outputs.values())):
            return None
        self._used(f"entry {key[:12]}")
        return outputs

    def _is_there(self, value: Any) -> bool:
        if isinstance(value, list) and is_artifact(value):
            return all(map(self._is_there, value))
        if is_artifact(value):
            if (name := value.metadata.get("resourceName")) and not self._answers(name):
                return False
            path = self._path(value.uri)
            return not path or os.path.exists(path) or value.schema_title.startswith("google.")
        return all(map(self._answers, _resources(value)))

    def _answers(self, name: str) -> bool:
        return self._service.get(name) is not None


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
