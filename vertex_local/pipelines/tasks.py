"""The tasks of a running pipeline: their states, and each task as the API's PipelineTaskDetail."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..job.times import now

OVER = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELLED", "NOT_TRIGGERED")
_EXECUTIONS = {"SUCCEEDED": "COMPLETE", "SKIPPED": "CACHED", "FAILED": "FAILED", "CANCELLED": "CANCELLED", "RUNNING": "RUNNING"}
_SCHEMAS = {"dag": "system.DagExecution", "importer": "system.ImporterExecution", "root": "system.Run"}


@dataclass
class Task:
    """One task: the task that contains it, its inputs and outputs, and its states so far."""

    name: str
    component: str
    parent: Task | None
    kind: str  # root, dag, container or importer
    dependencies: Sequence[str] = ()
    title: str = ""  # a display name that differs from `name`
    number: int = field(default_factory=lambda: secrets.randbits(62) | 1 << 61)
    created: str = field(default_factory=now)
    started: str = ""
    ended: str = ""
    state: str = "PENDING"
    error: str = ""
    attempts: int = 0
    cached: bool = False
    log: str = ""
    resource: str = ""  # the name of the job or other resource that the step made in the service
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def unique_name(self) -> str:
        """Its name after those of the tasks that contain it, without the pipeline's own."""
        above = self.parent.unique_name if self.parent and self.parent.kind != "root" else ""
        return f"{above}.{self.name}".lstrip(".")

    @property
    def shown_name(self) -> str:
        """Its unique name with its title, for people."""
        return f"{self.unique_name} ({self.title})" if self.title else self.unique_name


def log_name(unique_name: str, attempts: int) -> str:
    """Return the name of the log of a task's latest attempt, without its ending: short enough for a file system."""
    name = re.sub(r"[^\w.-]", "-", unique_name)
    name = name if len(name) < 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name if attempts < 2 else f"{name}-retry-{attempts - 1}"


class Tasks:
    """All tasks of one run; `changed` is called with a task's detail at each change of the task."""

    def __init__(self, parent: str, job_id: str, changed: Callable[[dict[str, Any]], None]):
        self._parent, self._job_id, self._changed = parent, job_id, changed
        self._lock = threading.Lock()
        self.known: list[Task] = []

    def begin(self, task: Task, state: str = "RUNNING") -> Task:
        """Record a task that starts, or one that gets its final state at once."""
        with self._lock:
            self.known.append(task)
        self.to(task, state)
        return task

    def to(self, task: Task, state: str, error: str = "") -> None:
        """Record a task's new state; an error with a state that is not final belongs to an attempt that is retried."""
        when = now()
        task.state = state
        task.started = task.started or ("" if state in ("PENDING", "NOT_TRIGGERED") else when)
        if state in OVER:
            task.ended, task.error = when, error
        status = {"code": 1 if state == "CANCELLED" else 9, "message": error}
        task.history.append({"updateTime": when, "state": state, **({"error": status} if error else {})})
        with self._lock:
            self._changed(self.detail(task))

    def detail(self, task: Task) -> dict[str, Any]:
        """Return a task in the API's form, with `dependencies` and `log` added."""
        detail = {
            "taskId": str(task.number), "taskName": task.name, "taskUniqueName": task.unique_name, "createTime": task.created,
            "startTime": task.started, "endTime": task.ended, "state": task.state, "pipelineTaskStatus": list(task.history),
            "execution": self._execution(task),
            "inputs": self._artifacts(task, task.inputs), "outputs": self._artifacts(task, task.outputs),
            "componentName": task.component, "dependencies": list(task.dependencies), "log": task.log,
        }  # fmt: skip
        if task.parent is not None:
            detail["parentTaskId"] = str(task.parent.number)
        if task.kind == "container":
            detail["executorDetail"] = {"containerDetail": {"mainJob": task.resource}}
        if task.error:
            detail["error"] = {"code": 1 if task.state == "CANCELLED" else 9, "message": task.error}
        return {key: value for key, value in detail.items() if value not in ("", {}, [])}

    def _execution(self, task: Task) -> dict[str, Any]:
        metadata = {
            f"{way}:{name}": _in_json(value)
            for way, values in (("input", task.inputs), ("output", task.outputs))
            for name, value in values.items()
            if not is_artifact(value)
        }
        return {
            "name": f"{self._parent}/metadataStores/default/executions/{task.number}", "displayName": task.title or task.name,
            "state": _EXECUTIONS.get(task.state, "NEW"), "schemaTitle": _SCHEMAS.get(task.kind, "system.ContainerExecution"),
            "schemaVersion": "0.0.1", "createTime": task.created, "updateTime": task.ended or task.started or task.created,
            "metadata": metadata,
        }  # fmt: skip

    def _artifacts(self, task: Task, values: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: value if isinstance(value, list) else [value] for name, value in values.items() if is_artifact(value)}
        return {name: {"artifacts": [self._artifact(task, name, each) for each in artifacts]} for name, artifacts in found.items()}

    def _artifact(self, task: Task, name: str, artifact: Any) -> dict[str, Any]:
        """Return an artefact in the API's form; the same URI gives the same artefact."""
        identity = artifact.uri or f"{self._job_id}/{task.number}/{name}"
        number = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
        return {
            "name": f"{self._parent}/metadataStores/default/artifacts/{number}", "displayName": name, "uri": artifact.uri,
            "schemaTitle": artifact.schema_title, "schemaVersion": artifact.schema_version, "metadata": _in_json(dict(artifact.metadata)),
            "state": "LIVE", "createTime": task.created, "updateTime": task.ended or task.created,
        }  # fmt: skip


def _in_json(value: Any) -> Any:
    """Return a value that protobuf's Struct can hold: numbers that are not finite become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _in_json(each) for key, each in value.items()}
    return [_in_json(each) for each in value] if isinstance(value, (list, tuple)) else value


def is_artifact(value: Any) -> bool:
    """Tell whether a value is one of kfp's artefacts, or a list of them, and not a parameter's value."""
    first = value[0] if isinstance(value, list) and value else value
    return hasattr(first, "uri") and hasattr(first, "schema_title")
