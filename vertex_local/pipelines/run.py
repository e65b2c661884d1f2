"""Run one pipeline for the local service, in the pipelines' environment.

The service sends a `Request`. It gets `{"task": detail}` for each change of a task's state, and `{"end": …}` with the
pipeline's state and error.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from . import forks, patches


@dataclass(frozen=True)
class Request:
    """What to run; all paths are absolute.

    Attributes:
        parent: projects/P/locations/L.
        root: the pipeline root, gs://bucket/folder.
        service: url, token, ca_file, project, location and bucket_root, as steps and the cache use them.
        placeholders: values of placeholders that only the service knows.
        labels: for the jobs and models that Google's components make.
        servers: the addresses of the fork servers for steps, by name: kfp, google.
    """

    parent: str
    job_id: str
    spec: dict[str, Any]
    parameters: dict[str, Any]
    root: str
    project_number: str
    folder: str
    project_dir: str
    cache_dir: str
    fail_fast: bool
    service: dict[str, str]
    placeholders: dict[str, str]
    labels: dict[str, str]
    servers: dict[str, str]


def main(argument: dict[str, Any]) -> int:
    """Run the pipeline of a request and return 0 if it succeeded."""
    try:
        patches.check_runner()
        from .orchestrator import PipelineRun  # imports what has just been checked

        run = PipelineRun(Request(**argument), forks.emit)
        signal.signal(signal.SIGTERM, lambda number, frame: run.cancel())
        end = run.run()
    except UserError as error:
        end = {"state": "FAILED", "error": str(error)}
    forks.emit({"end": end})
    return int(end["state"] != "SUCCEEDED")
