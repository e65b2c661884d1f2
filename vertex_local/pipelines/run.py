"""Run one pipeline: kfp's local runner orders the tasks, each step runs in a fork, and events go to the local service.

The service sends a `Request`. It gets `{"task": detail}` for each change of a task's state, and `{"end": …}` with the
pipeline's state and error. Runs in the pipelines' environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..job import buckets
from . import caching, conditions, forks, patches, steps
from .service import Service
from .tasks import Task, Tasks, log_name

_ITERATION = re.compile(r"(.*)-iteration-\d+")


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
    run = PipelineRun(Request(**argument), forks.emit)
    signal.signal(signal.SIGTERM, lambda number, frame: run.cancel())
    try:
        end = run.run()
    except UserError as error:
        end = {"state": "FAILED", "error": str(error)}
    forks.emit({"end": end})
    return int(end["state"] != "SUCCEEDED")


class PipelineRun:
    """One run. The patched functions of kfp (see `patches`) call its methods, some of them from threads."""

    def __init__(self, request: Request, emit: Callable[[Any], None]):
        self.request = request
        self.tasks = Tasks(request.parent, request.job_id, lambda detail: emit({"task": detail}))
        self.cancelled = threading.Event()
        self.cache: caching.ContentCache | None = None
        self._service = Service(*(request.service[each] for each in ("url", "token_file", "ca_file")))
        self._here, self._lock = threading.local(), threading.Lock()
        self._forks: set[forks.Fork] = set()
        self._loops: dict[tuple[int, str], Task] = {}
        self._conditions: dict[tuple[str, str], str] = {}
        self._failed = False

    @property
    def current(self) -> Task:
        """The task that this thread runs."""
        return self._here.task

    @contextlib.contextmanager
    def _at(self, task: Task) -> Iterator[None]:
        before, self._here.task = getattr(self._here, "task", None), task
        try:
            yield
        finally:
            self._here.task = before

    def run(self) -> dict[str, Any]:
        """Run the pipeline to its end and return its state and error."""
        patches.for_runner(self)
        from google.protobuf import json_format
        from kfp import local
        from kfp.local import utils
        from kfp.local.orchestrator import enhanced_dag_orchestrator
        from kfp.pipeline_spec import pipeline_spec_pb2

        spec = json_format.ParseDict(self.request.spec, pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=True)
        workspace = Path(self.request.folder, "workspace")
        workspace.mkdir(exist_ok=True)
        runner = local.SubprocessRunner(use_venv=False)
        local.init(runner, pipeline_root=str(workspace), workspace_root=str(workspace), raise_on_error=False)
        self.cache = caching.ContentCache(self.request, self._service, self._used_cache)
        self._take_conditions({"root": spec.root, **spec.components})
        root = self.tasks.begin(Task(self.request.job_id, "root", None, "root", inputs=dict(self.request.parameters)))
        executors = {name: utils.struct_to_executor_spec(each) for name, each in spec.deployment_spec["executors"].items()}
        try:
            with self._at(root):
                root.outputs, _ = enhanced_dag_orchestrator.run_enhanced_dag(
                    pipeline_resource_name=self.request.job_id, dag_component_spec=spec.root, executors=executors,
                    components=dict(spec.components), dag_arguments=dict(self.request.parameters), pipeline_root=self.request.root,
                    runner=runner, unique_pipeline_id=self.request.job_id, fail_stack=[],
                )  # fmt: skip
        except Exception as error:  # such as an output of the pipeline that no task has given
            root.error = str(error) or type(error).__name__
        self._note_rest(root, spec.root.dag.tasks)
        return self._end(root)

    def _end(self, root: Task) -> dict[str, Any]:
        failed = [task for task in self.tasks.known if task.state == "FAILED" and task.kind not in ("root", "dag")]
        if self.cancelled.is_set():
            state, error = "CANCELLED", "the pipeline was cancelled"
        elif root.error:
            state, error = "FAILED", root.error
        elif any(task.state == "FAILED" for task in self.tasks.known):
            first = failed[0] if failed else next(task for task in self.tasks.known if task.state == "FAILED")
            state, error = "FAILED", f"{first.shown_name}: {first.error}"
            if len(failed) > 1:
                error += f" (failed tasks: {', '.join(task.shown_name for task in failed)})"
        else:
            state, error = "SUCCEEDED", ""
        self.tasks.to(root, state, error)
        return {"state": state, "error": error}

    def cancel(self) -> None:
        """End the steps that run, and start no others."""
        self.cancelled.set()
        for fork in list(self._forks):
            fork.terminate()

    def sleep(self, seconds: float) -> None:
        """Wait before a retry; a cancellation ends the wait."""
        self.cancelled.wait(seconds)

    # ------------------------------------------------------------------ the order of tasks

    def _take_conditions(self, components: Mapping[str, Any]) -> None:
        """Move the conditions out of the spec: kfp's runner would evaluate them by text, without the task's inputs."""
        for component, spec in components.items():
            for name, task in spec.dag.tasks.items():
                if task.trigger_policy.condition:
                    self._conditions[component, name] = task.trigger_policy.condition
                    task.trigger_policy.condition = ""

    def execute_task(self, original: Callable[..., Any], task_name: str, task_spec: Any, io_store: Any, **rest: Any) -> Any:
        """Run one task of a dag, instead of kfp's function of that name; return (outputs, status)."""
        from kfp.local import status

        task = self._task(task_name, task_spec, io_store, rest)
        try:
            state = self._held_back(task, task_spec, io_store)
            task.inputs = {} if state else self._inputs(task_spec, io_store)
            if state is None and not self._triggered(task, io_store):
                state = "NOT_TRIGGERED"
            if state:
                io_store.untriggered.add(task_name)
                self.tasks.begin(task, state)
                return {}, status.Status.FAILURE if self.cancelled.is_set() or self._stops else status.Status.SUCCESS
            self.tasks.begin(task)
            with self._at(task):
                outputs, ended = original(task_name=task_name, task_spec=task_spec, io_store=io_store, **rest)
        except Exception as error:  # a missing value or a bad output file fails the task and not the runner
            outputs, ended = {}, status.Status.FAILURE
            task.error = task.error or str(error) or type(error).__name__
            if task not in self.tasks.known:
                self.tasks.begin(task)
        task.outputs = outputs
        self._close(task, ended == status.Status.SUCCESS, io_store, rest["components"])
        return outputs, ended

    def run_loop(self, original: Callable[..., bool], task_name: str, task_spec: Any, io_store: Any, **rest: Any) -> bool:
        """Run a ParallelFor, instead of kfp's function, with its values already filled in; return whether it failed."""
        task = self._task(task_name, task_spec, io_store, rest)
        if (reason := self._held_back(task, task_spec, io_store)) is not None:
            io_store.untriggered.add(task_name)
            self.tasks.begin(task, reason)
            return self.cancelled.is_set() or self._stops
        self.tasks.begin(task)
        try:
            resolved, count = self._with_values(task, task_spec, io_store)
            self._loops[id(io_store), task_name] = task
            with self._at(task):
                failed = original(task_name=task_name, task_spec=resolved, io_store=io_store, **rest)
            if not count:
                for name in self._outputs_of(task_spec, rest["components"]):
                    io_store.put_task_output(task_name, name, [])
        except Exception as error:
            failed, task.error = True, str(error) or type(error).__name__
        self._close(task, not failed, io_store, rest["components"])
        return failed

    def _task(self, name: str, spec: Any, scope: Any, rest: Mapping[str, Any]) -> Task:
        component = rest["components"][spec.component_ref.name]
        kind = "dag"
        if component.WhichOneof("implementation") != "dag":
            kind = rest["executors"][component.executor_label].WhichOneof("spec")
        iteration = _ITERATION.fullmatch(name)
        loop = self._loops.get((id(scope), iteration[1])) if iteration else None
        title = "" if loop or spec.task_info.name == name else spec.task_info.name
        return Task(name, spec.component_ref.name, loop or scope.owner, kind, sorted(spec.dependent_tasks), title)

    @property
    def _stops(self) -> bool:
        return self._failed and self.request.fail_fast

    def _held_back(self, task: Task, spec: Any, scope: Any) -> str | None:
        """Return the final state of a task that must not start; None if it may."""
        if self.cancelled.is_set():
            return "CANCELLED"
        always = spec.trigger_policy.strategy == spec.trigger_policy.ALL_UPSTREAM_TASKS_COMPLETED
        untriggered = [name for name in spec.dependent_tasks if name in scope.untriggered]
        return "NOT_TRIGGERED" if not always and (self._stops or untriggered) else None

    def _triggered(self, task: Task, scope: Any) -> bool:
        condition = self._conditions.get((scope.owner.component, task.name))
        return condition is None or conditions.holds(condition, task.inputs)

    def _inputs(self, spec: Any, scope: Any) -> dict[str, Any]:
        from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils

        return OrchestratorUtils.make_task_arguments(spec.inputs, scope)

    def arguments(self, original: Callable[..., dict[str, Any]], cls: Any, task_inputs_spec: Any, io_store: Any) -> dict[str, Any]:
        """Return a task's arguments, without parameters that have no value, and with the final status of a task for exit handlers."""
        found = original(cls, task_inputs_spec=task_inputs_spec, io_store=io_store)
        for name, source in task_inputs_spec.parameters.items():
            if source.HasField("task_final_status"):
                producer = source.task_final_status.producer_task
                reason = io_store.reasons.get(producer)
                found[name] = {
                    "state": "FAILED" if reason else "SUCCEEDED", "pipelineTaskName": producer,
                    "pipelineJobResourceName": f"{self.request.parent}/pipelineJobs/{self.request.job_id}",
                    "error": {"code": 9, "message": reason} if reason else {},
                }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None or name in task_inputs_spec.artifacts}

    def _with_values(self, task: Task, spec: Any, scope: Any) -> tuple[Any, int]:
        """Return (the spec of a ParallelFor with constants as parameters and a list of items, the number of items)."""
        from kfp.compiler import pipeline_spec_builder

        task.inputs, copy = self._inputs(spec, scope), type(spec)()
        copy.CopyFrom(spec)
        for name in spec.inputs.parameters:
            copy.inputs.parameters[name].Clear()
            if name in task.inputs:
                constant = pipeline_spec_builder.to_protobuf_value(task.inputs[name])
                copy.inputs.parameters[name].runtime_value.constant.CopyFrom(constant)
            else:
                del copy.inputs.parameters[name]
        if spec.WhichOneof("iterator") == "artifact_iterator":
            items, key = task.inputs[spec.artifact_iterator.items.input_artifact], f"items of {task.number}"
            scope.put_parent_input(key, items)
            copy.artifact_iterator.items.input_artifact = key
        else:
            source = spec.parameter_iterator.items
            items = json.loads(source.raw) if source.HasField("raw") else task.inputs[source.input_parameter]
            if not isinstance(items, list):
                raise ValueError(f"a loop takes a list; {source.input_parameter} is {type(items).__name__}")
            copy.parameter_iterator.items.raw = json.dumps(items)
        return copy, len(items)

    def _outputs_of(self, spec: Any, components: Mapping[str, Any]) -> list[str]:
        definitions = components[spec.component_ref.name].output_definitions
        return [*definitions.parameters, *definitions.artifacts]

    def _close(self, task: Task, succeeded: bool, scope: Any, components: Mapping[str, Any]) -> None:
        """Record how a task ended."""
        if task.kind == "dag":
            self._note_rest(task, components[task.component].dag.tasks)
        if self.cancelled.is_set() and (not succeeded or task.kind == "container"):
            self.tasks.to(task, "CANCELLED", "the pipeline was cancelled")
        elif succeeded:
            self.tasks.to(task, "SKIPPED" if task.cached else "SUCCEEDED")
        else:
            self._failed = True
            inner = [f"{each.name}: {each.error}" for each in self.tasks.children(task) if each.state == "FAILED"]
            error = task.error or next(iter(inner), "it failed without a message")
            scope.reasons[task.name] = error
            self.tasks.to(task, "FAILED", error)

    def _note_rest(self, dag: Task, names: Any) -> None:
        """Record the tasks of a dag that kfp did not reach, because a task before them failed or the run was cancelled."""
        known = {task.name for task in self.tasks.children(dag)}
        for name, spec in names.items():
            iterations = any(_ITERATION.fullmatch(other) for other in known)
            if name not in known and not iterations:
                state = "CANCELLED" if self.cancelled.is_set() else "NOT_TRIGGERED"
                self.tasks.begin(Task(name, spec.component_ref.name, dag, "dag", sorted(spec.dependent_tasks)), state)

    # ------------------------------------------------------------------ one task

    def new_root(self) -> str:
        """Return the folder, a gs:// address, for the outputs of the next attempt of this thread's task."""
        task = self.current
        if task.attempts:
            self.tasks.to(task, "RUNNING", task.error)  # a failed attempt, which is not the end
            task.error = ""
        task.attempts += 1
        retry = f"_{task.attempts - 1}" if task.attempts > 1 else ""
        base = f"{self.request.root.rstrip('/')}/{self.request.project_number}/{self.request.job_id}"
        return f"{base}/{task.name}_{task.number}{retry}"

    def executor_input(self, original: Callable[..., Any], task_root: str, **rest: Any) -> Any:
        """Return a step's input: output artefacts by their URIs in the bucket, output parameters by files on this machine."""
        found = original(task_root=task_root, **rest)
        folder = buckets.to_path(task_root, self.request.service["bucket_root"])
        os.makedirs(folder, exist_ok=True)
        for name in found.outputs.parameters:
            found.outputs.parameters[name].output_file = os.path.join(folder, name)
        found.outputs.output_file = os.path.join(folder, "executor_output.json")
        return found

    def executor_output(self, original: Callable[..., Any], executor_input: Any, executor_output: Any) -> Any:
        """Return a step's output with every declared artefact, and with gs:// URIs instead of paths."""
        root = self.request.service["bucket_root"].rstrip("/") + "/"
        for name, artifacts in executor_input.outputs.artifacts.items():
            if name not in executor_output.artifacts:
                executor_output.artifacts[name].CopyFrom(artifacts)
            for artifact in executor_output.artifacts[name].artifacts:
                if artifact.uri.startswith(root):
                    artifact.uri = f"gs://{artifact.uri[len(root) :]}"
        return original(executor_input=executor_input, executor_output=executor_output)

    def resolve(self, original: Callable[..., Any], element: str, executor_input_dict: dict[str, Any], **rest: Any) -> Any:
        """Return a word of a step's command with its placeholders filled in."""

        def fill(text: Any) -> Any:
            known = isinstance(text, str) and "{{$." in text
            root = self.request.service["bucket_root"]
            return patches.resolve(text, executor_input_dict, self._placeholders(), root) if known else text

        return fill(original(element=fill(element), executor_input_dict=executor_input_dict, **rest))

    def _placeholders(self) -> dict[str, str]:
        return {**self.request.placeholders, "pipeline_task_uuid": str(self.current.number)}

    def _used_cache(self, details: str) -> None:
        self.current.cached = True
        print(f"{self.current.unique_name}: as before, {details}", flush=True)

    def step(self, command: list[str], env: Mapping[str, str]) -> int:
        """Run the step of this thread's task and return its exit code."""
        task, request = self.current, self.request
        if self.cancelled.is_set():
            return 1
        log = Path(request.folder, "logs", f"{log_name(task.unique_name, task.attempts)}.log")
        task.log = f"logs/{log.name}"
        argument = steps.plan(command, request.service, Path(request.cache_dir).parent / "packages")
        address = request.servers[argument["server"]]
        fork = forks.Fork(
            address, "vertex_local.pipelines.steps:main", argument, env=self._env(env), cwd=Path(request.project_dir), log=log
        )  # fmt: skip
        with self._lock:
            self._forks.add(fork)
        try:
            if self.cancelled.is_set():
                fork.terminate()
            code = fork.wait()
        finally:
            fork.close()
            with self._lock:
                self._forks.discard(fork)
        task.resource = steps.resource(command)
        if self.cancelled.is_set() and task.resource:  # the launcher may have been ended before it could cancel its job
            self._service.ask("POST", f"{task.resource}:cancel", {})
        if code:
            task.error = self._error_of_resource(task.resource) or fork.last_error()
        return code

    def _error_of_resource(self, name: str) -> str:
        """Return the error of the job or operation that a step has started, which says more than the step's own; "" without one."""
        made = self._service.get(name) if name else None
        return (made or {}).get("error", {}).get("message", "")

    def _env(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != forks.EVENTS}
        return {**kept, **more, "VERTEX_AI_PIPELINES_RUN_LABELS": json.dumps(self.request.labels)}


if __name__ == "__main__":
    sys.exit("this runs in the pipelines' environment, started by the local service")
