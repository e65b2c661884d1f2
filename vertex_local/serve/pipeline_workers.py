"""The processes from which pipelines and their steps fork: started when the first pipeline comes, kept while the service runs.

Importing kfp takes seconds and the platform's SDK several more; a fork of a process that has done so starts at once. There
are two, so that steps without the SDK need not wait for it.
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

_KFP = ("kfp.local.orchestrator.enhanced_dag_orchestrator", "kfp.compiler.pipeline_spec_builder", "kfp.dsl.executor_main", "requests")
_LAUNCHERS = "google_cloud_pipeline_components.container.v1"
_GOOGLE = (
    "kfp.dsl.executor_main", f"{_LAUNCHERS}.custom_job.launcher", f"{_LAUNCHERS}.hyperparameter_tuning_job.launcher",
    f"{_LAUNCHERS}.batch_prediction_job.launcher", f"{_LAUNCHERS}.model.upload_model.launcher",
    f"{_LAUNCHERS}.endpoint.deploy_model.launcher", "google_cloud_pipeline_components.container.preview.custom_job.launcher",
)  # fmt: skip
_LONGEST = 80  # characters of a folder for sockets, whose paths may have 104 on macOS
_MODULES = {"kfp": _KFP, "google": _GOOGLE}


class PipelineWorkers:
    """The processes by name, each started again where it has ended.

    Args:
        project: the checkout, beside which the pipelines' environment is looked for.
        own: the service's folder, for sockets and what the processes say.
    """

    def __init__(self, project: Path, own: Path):
        self._project, self._own, self._lock = project, own, threading.Lock()
        self._servers: dict[str, ForkServer] = {}
        self._folder: Path | None = None  # of sockets, whose paths must be short

    @property
    def python(self) -> str:
        """The interpreter of the pipelines' environment; a UserError says how to get one."""
        return python.find(self._project)

    def start(self, wanted: str | None) -> None:
        """Start what pipelines of kfp need, or those with Google's components, too; nothing for None."""
        for name in {None: (), "kfp": ("kfp",), "google": ("kfp", "google")}[wanted]:
            self.address(name)

    def address(self, name: str) -> str:
        """Return the address of the process `kfp` or `google`, which is started if it does not run."""
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
