"""The processes from which pipelines and their steps are forked: started with the first pipeline, kept until the service ends.

Importing kfp takes seconds, and the SDK several more; a fork of a process that has imported them starts at once. There are
two such processes, so that steps without the SDK need not wait for its import.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path

from ..local import environment
from ..pipelines import python
from ..pipelines.forks import ForkServer

_KFP = ("kfp.local.orchestrator.orchestrator_utils", "kfp.local.importer_handler", "kfp.dsl.executor_main", "requests")
_LAUNCHERS = "google_cloud_pipeline_components.container.v1"
_GOOGLE = (
    "kfp.dsl.executor_main", f"{_LAUNCHERS}.custom_job.launcher", f"{_LAUNCHERS}.hyperparameter_tuning_job.launcher",
    f"{_LAUNCHERS}.batch_prediction_job.launcher", f"{_LAUNCHERS}.model.upload_model.launcher",
    f"{_LAUNCHERS}.endpoint.deploy_model.launcher", "google_cloud_pipeline_components.container.preview.custom_job.launcher",
)  # fmt: skip
_LONGEST = 80  # characters of the sockets' folder: a socket's path may have 104 on macOS
_MODULES = {"kfp": _KFP, "google": _GOOGLE}


class PipelineWorkers:
    """The processes by name; one that has ended is started again.

    Args:
        project: the checkout; the pipelines' virtual environment is looked for beside it.
        own: the service's folder, for the processes' sockets and output.
    """

    def __init__(self, project: Path, own: Path):
        self._project, self._own, self._lock = project, own, threading.Lock()
        self._servers: dict[str, ForkServer] = {}
        self._folder: Path | None = None  # for sockets, whose paths must be short

    @property
    def python(self) -> str:
        """The interpreter of the pipelines' environment; if there is none, a UserError says how to make it."""
        return python.find(self._project)

    def start(self, wanted: str | None) -> None:
        """Start the process for kfp's pipelines ("kfp"), or also that for Google's components ("google"), or none (None)."""
        for name in {None: (), "kfp": ("kfp",), "google": ("kfp", "google")}[wanted]:
            self.address(name)

    def address(self, name: str) -> str:
        """Return the address of the process `kfp` or `google`; start it if it does not run."""
        with self._lock:
            server = self._servers.get(name)
            if server is None or server.ended:
                if self._folder is None:
                    short = len(str(self._own)) < _LONGEST
                    self._folder = self._own if short else Path(tempfile.mkdtemp(prefix="vertex-local-"))
                (self._folder / f"{name}.socket").unlink(missing_ok=True)
                variables = python.variables(environment.inherited(os.environ))
                server = self._servers[name] = ForkServer(self.python, _MODULES[name], self._folder, variables, name, self._own)
            return server.address

    def stop_all(self) -> None:
        """End every process."""
        with self._lock:
            for server in self._servers.values():
                server.close()
            self._servers.clear()
            if self._folder not in (None, self._own):
                shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
