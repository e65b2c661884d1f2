"""The tasks of a pipeline, run in the order of what they need: each step in a fork, the bodies of loops in threads.

kfp's own functions write what a step reads, and read what it writes. Runs in the pipelines' environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from google.protobuf import json_format
from kfp import local
from kfp.local import executor_input_utils, executor_output_utils, graph_utils, importer_handler, io, utils
from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils
from kfp.pipeline_spec import pipeline_spec_pb2

from ..job import buckets
from . import caching, conditions, forks, placeholders, steps
from .run import Request
from .service import Service
from .tasks import Task, Tasks, log_name

_AT_ONCE = 2  # bodies of a loop


class Scope(io.IOStore):
    """The values in one dag (its inputs, what its tasks have put out), and which of its tasks have failed or were not triggered."""

    def __init__(self, owner: Task, inputs: Mapping[str, Any]):
        super().__init__()
        self.owner = owner
        self.untriggered: set[str] = set()
        self.errors: dict[str, str] = {}
        for name, value in inputs.items():
            self.put_parent_input(name, value)


class PipelineRun:
    """One run; the bodies of its loops run in threads."""

    def __init__(self, request: Request, emit: Callable[[Any], None]):
        self.request = request
        self.tasks = Tasks(request.parent, request.job_id, lambda detail: emit({"task": detail}))
        self.cancelled = threading.Event()
        self._spec = json_format.ParseDict(request.spec, pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=True)
        executors = self._spec.deployment_spec["executors"].items()
        self._executors = {name: utils.struct_to_executor_spec(executor) for name, executor in executors}
        self._service = Service(*(request.service[each] for each in ("url", "token_file", "ca_file")))
        self._cache = caching.ContentCache(request, self._service)
        self._lock = threading.Lock()
        self._forks: set[forks.Fork] = set()
        self._failed = False

    def run(self) -> dict[str, Any]:
        """Run the pipeline to its end and return its state and error."""
        workspace = Path(self.request.folder, "workspace")
        workspace.mkdir(exist_ok=True)
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(workspace), workspace_root=str(workspace))
        root = self.tasks.begin(Task(self.request.job_id, "root", None, "root", inputs=dict(self.request.parameters)))
        try:
            root.outputs = self._dag(root, self._spec.root)
        except Exception as error:  # a failed task, or an output of the pipeline that no task has given
            root.error = str(error) or type(error).__name__
        return self._end(root)

    def _end(self, root: Task) -> dict[str, Any]:
        failed = [task for task in self.tasks.known if task.state == "FAILED"]
        steps = [task for task in failed if task.kind != "dag"] or failed[:1]
        state, error = "SUCCEEDED", ""
        if self.cancelled.is_set():
            state, error = "CANCELLED", "the pipeline was cancelled"
        elif steps:
            state, error = "FAILED", f"{steps[0].shown_name}: {steps[0].error}"
            if len(steps) > 1:
                error += f" (failed tasks: {', '.join(task.shown_name for task in steps)})"
        elif root.error:
            state, error = "FAILED", root.error
        self.tasks.to(root, state, error)
        return {"state": state, "error": error}

    def cancel(self) -> None:
        """End the steps that run, and start no others."""
        self.cancelled.set()
        for fork in list(self._forks):
            fork.terminate()

    # ------------------------------------------------------------------ the order of tasks

    def _dag(self, owner: Task, component: Any) -> dict[str, Any]:
        """Run the tasks of a dag with its owner's inputs, and return what it puts out.

        Raises:
            RuntimeError: a task has failed, or not all of them were run.
        """
        definitions, tasks = component.input_definitions, component.dag.tasks
        defaults = {
            name: executor_output_utils.pb2_value_to_python(known.default_value) if known.HasField("default_value") else None
            for name, known in definitions.parameters.items()
        }
        scope = Scope(owner, {**dict.fromkeys(definitions.artifacts), **defaults, **owner.inputs})
        for name in reversed(graph_utils.topological_sort_tasks(tasks)):
            self._task(name, tasks[name], scope)
        if scope.errors:
            name, error = next(iter(scope.errors.items()))
            raise RuntimeError(f"{name}: {error}")
        if self.cancelled.is_set() or (self._stops and scope.untriggered):
            raise RuntimeError("not all of its tasks were run, because another step has failed")
        outputs = OrchestratorUtils.get_dag_output_parameters(component.dag.outputs, scope)
        return {**outputs, **{name: _one_of(name, each, scope) for name, each in component.dag.outputs.artifacts.items()}}

    def _task(self, name: str, spec: Any, scope: Scope) -> None:
        """Run one task of a dag, if it is to be run, and keep in the scope how it has ended."""
        component = self._spec.components[spec.component_ref.name]
        is_dag = component.WhichOneof("implementation") == "dag"
        kind = "dag" if is_dag else self._executors[component.executor_label].WhichOneof("spec")
        title = spec.task_info.name if spec.task_info.name != name else ""
        task = Task(name, spec.component_ref.name, scope.owner, kind, sorted(spec.dependent_tasks), title)
        work: Callable[[], dict[str, Any]] = partial(self._outputs, task, spec, component)
        try:
            state = self._held_back(task, spec, scope)
        except Exception as error:  # a value that is missing
            state, work = None, partial(_raise, error)
        if state:
            scope.untriggered.add(name)
            self.tasks.begin(task, state)
            return
        self._carry_out(task, work)
        if task.error:
            scope.errors[name] = task.error
        for key, value in task.outputs.items():
            scope.put_task_output(name, key, value)

    @property
    def _stops(self) -> bool:
        return self._failed and self.request.fail_fast

    def _held_back(self, task: Task, spec: Any, scope: Scope) -> str | None:
        """Return the final state of a task that must not start; None if it may, with its inputs set."""
        if self.cancelled.is_set():
            return "CANCELLED"
        policy = spec.trigger_policy
        lacking = scope.untriggered | scope.errors.keys()
        if policy.strategy != policy.ALL_UPSTREAM_TASKS_COMPLETED and (self._stops or lacking.intersection(spec.dependent_tasks)):
            return "NOT_TRIGGERED"
        task.inputs = self._inputs(spec, scope)
        return "NOT_TRIGGERED" if policy.condition and not conditions.holds(policy.condition, task.inputs) else None

    def _inputs(self, spec: Any, scope: Scope) -> dict[str, Any]:
        """Return a task's arguments; what has no value is left out, so that a component's own default counts."""
        found = OrchestratorUtils.make_task_arguments(spec.inputs, scope)
        for name, source in spec.inputs.parameters.items():
            if source.HasField("task_final_status"):
                producer = source.task_final_status.producer_task
                error = scope.errors.get(producer)
                found[name] = {
                    "state": "FAILED" if error else "SUCCEEDED", "pipelineTaskName": producer,
                    "pipelineJobResourceName": f"{self.request.parent}/pipelineJobs/{self.request.job_id}",
                    "error": {"code": 9, "message": error} if error else {},
                }  # fmt: skip
        return {name: whole(value) for name, value in found.items() if value is not None}

    def _carry_out(self, task: Task, work: Callable[[], dict[str, Any]]) -> None:
        """Do a task's work, which returns its outputs, and record its start and its end."""
        self.tasks.begin(task)
        error = ""
        try:
            task.outputs = work()
        except Exception as problem:  # a bad output file, too, fails the task and not the runner
            error = task.error or str(problem) or type(problem).__name__
        if self.cancelled.is_set() and (error or task.kind == "container"):
            self.tasks.to(task, "CANCELLED", "the pipeline was cancelled")
        elif error:
            self._failed = True
            self.tasks.to(task, "FAILED", error)
        else:
            self.tasks.to(task, "SKIPPED" if task.cached else "SUCCEEDED")
        print(f"{task.unique_name}: {task.state}{f': {error}' if error else ''}", flush=True)

    def _outputs(self, task: Task, spec: Any, component: Any) -> dict[str, Any]:
        if spec.WhichOneof("iterator"):
            return self._loop(task, spec, component)
        return self._dag(task, component) if task.kind == "dag" else self._cached(task, spec, component)

    def _loop(self, task: Task, spec: Any, component: Any) -> dict[str, Any]:
        """Run the body of a loop for each item, and return lists of what the bodies put out."""
        iterator = getattr(spec, spec.WhichOneof("iterator"))
        source = iterator.items
        name = source.input_artifact if spec.HasField("artifact_iterator") else source.input_parameter
        items = task.inputs.get(name) if name else json.loads(source.raw)
        if not isinstance(items, list):
            raise ValueError(f"a loop takes a list; {name or 'it'} is {type(items).__name__}")

        def iterate(i: int) -> Task:
            one = Task(f"{task.name}-iteration-{i}", task.component, task, "dag", task.dependencies)
            one.inputs = {**task.inputs, iterator.item_input: items[i]}
            if self.cancelled.is_set() or self._stops:
                return self.tasks.begin(one, "CANCELLED" if self.cancelled.is_set() else "NOT_TRIGGERED")
            self._carry_out(one, partial(self._dag, one, component))
            return one

        with ThreadPoolExecutor(min(spec.iterator_policy.parallelism_limit or _AT_ONCE, _AT_ONCE)) as pool:
            ended = list(pool.map(iterate, range(len(items))))
        if failed := [one for one in ended if one.state != "SUCCEEDED"]:
            raise RuntimeError(f"{failed[0].name}: {failed[0].error or 'it was not run'}")
        names = [*component.output_definitions.parameters, *component.output_definitions.artifacts]
        return {name: [one.outputs[name] for one in ended] for name in names}

    # ------------------------------------------------------------------ one task

    def _cached(self, task: Task, spec: Any, component: Any) -> dict[str, Any]:
        """Return a step's outputs: from an earlier run if the cache has them, else from as many attempts as it may have."""
        container, key = self._executors[component.executor_label].container, None
        if task.kind == "container" and spec.caching_options.enable_cache:
            key = self._cache.compute_key(
                component_name=task.component, image=container.image, full_command=[*container.command, *container.args],
                arguments=task.inputs, env_vars={each.name: each.value for each in container.env},
                custom_cache_key=spec.caching_options.cache_key or None,
            )  # fmt: skip
            if (outputs := self._cache.get(key)) is not None:
                task.cached = True
                return outputs
        outputs = self._retried(task, spec.retry_policy, component)
        if key:
            self._cache.put(key, outputs)
        return outputs

    def _retried(self, task: Task, policy: Any, component: Any) -> dict[str, Any]:
        longest = policy.backoff_max_duration.seconds if policy.HasField("backoff_max_duration") else 3600
        for retry in range(policy.max_retry_count + 1):
            if retry:
                self.tasks.to(task, "RUNNING", task.error)  # a failed attempt, which is not the end
                task.error = ""
                wait = policy.backoff_duration.seconds * (policy.backoff_factor or 2.0) ** (retry - 1)
                if self.cancelled.wait(min(wait, longest)):
                    break
            task.attempts += 1
            outputs = self._attempt(task, component)
            if outputs is not None:
                return outputs
        raise RuntimeError("it failed without a message")  # else the task has one

    def _attempt(self, task: Task, component: Any) -> dict[str, Any] | None:
        """Run a step or an importer once; return its outputs, or None if it has failed, with the task's error set."""
        request, executor = self.request, self._executors[component.executor_label]
        retry = f"_{task.attempts - 1}" if task.attempts > 1 else ""
        root = f"{request.root.rstrip('/')}/{request.project_number}/{request.job_id}/{task.name}_{task.number}{retry}"
        given = executor_input_utils.construct_executor_input(component, task.inputs, root, block_input_artifact=False)
        folder = buckets.to_path(root, request.service["bucket_root"])  # output parameters are files on this machine
        os.makedirs(folder, exist_ok=True)
        for name, parameter in given.outputs.parameters.items():
            parameter.output_file = os.path.join(folder, name)
        given.outputs.output_file = os.path.join(folder, "executor_output.json")
        about = executor_input_utils.executor_input_to_dict(given, component)
        values = about.get("inputs", {}).get("parameterValues", {})
        values.update({name: whole(value) for name, value in values.items()})
        texts = placeholders.Placeholders(
            about, {**request.placeholders, "pipeline_task_uuid": str(task.number)}, request.service["bucket_root"],
            pipeline_resource_name=request.job_id, task_resource_name=task.name, pipeline_root=request.root,
            pipeline_job_id=request.job_id, pipeline_task_id=str(task.number),
        )  # fmt: skip
        if task.kind == "importer":
            return self._imported(task, component, executor, texts)
        command = texts.command([*executor.container.command, *executor.container.args])
        if self._run_step(task, command, {each.name: each.value for each in executor.container.env}):
            return None
        return self._put_out(given, component)

    def _imported(self, task: Task, component: Any, executor: Any, texts: placeholders.Placeholders) -> dict[str, Any]:
        filled = type(executor).FromString(executor.SerializeToString())
        metadata = texts.everywhere(json_format.MessageToDict(executor.importer.metadata))
        filled.importer.metadata.Clear()
        json_format.ParseDict(metadata, filled.importer.metadata)
        outputs, _ = importer_handler.run_importer(
            pipeline_resource_name=self.request.job_id, component_name=task.component, component_spec=component, executor_spec=filled,
            arguments=task.inputs, pipeline_root=self.request.root, unique_pipeline_id=self.request.job_id,
        )  # fmt: skip
        return {name: _with_type(artifact, executor.importer.type_schema) for name, artifact in outputs.items()}

    def _put_out(self, given: Any, component: Any) -> dict[str, Any]:
        """Return a step's outputs, with every artefact that it declares, and with gs:// URIs instead of paths."""
        output, root = executor_output_utils.load_executor_output(given.outputs.output_file), self.request.service["bucket_root"]
        for name, artifacts in given.outputs.artifacts.items():
            if name not in output.artifacts:  # no program reports those of a container component
                output.artifacts[name].CopyFrom(artifacts)
            for artifact in output.artifacts[name].artifacts:
                artifact.uri = re.sub(rf"^{re.escape(root.rstrip('/'))}/", "gs://", artifact.uri)
        outputs = executor_output_utils.get_outputs_from_executor_output(output, given, component)
        for name, artifacts in output.artifacts.items():
            made = outputs[name] if isinstance(outputs[name], list) else [outputs[name]]
            for artifact, reported in zip(made, artifacts.artifacts):
                _with_type(artifact, reported.type).metadata = whole(dict(artifact.metadata))
        return {name: whole(value) for name, value in outputs.items()}

    def _run_step(self, task: Task, command: list[str], env: Mapping[str, str]) -> int:
        """Run a task's command and return its exit code."""
        request = self.request
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


def _one_of(name: str, output: Any, scope: Scope) -> Any:
    """Return a dag's output artefact; `dsl.OneOf` compiles to a selector for each branch, and only one branch has run."""
    found = []
    for selector in output.artifact_selectors:
        with contextlib.suppress(ValueError):  # of a branch that was not triggered
            found.append(scope.get_task_output(selector.producer_subtask, selector.output_artifact_key))
    if len(found) != 1:
        raise ValueError(f"the output {name} is that of one branch of several; {len(found)} of them gave it")
    return found[0]


def _with_type(artifact: Any, schema: Any) -> Any:
    """Give an artefact the type that a message names, because kfp keeps its own types only, and return it."""
    artifact.schema_title = schema.schema_title or artifact.schema_title
    artifact.schema_version = schema.schema_version or artifact.schema_version
    return artifact


def _raise(error: Exception) -> NoReturn:
    raise error


def whole(value: Any) -> Any:
    """Return a JSON value with whole numbers as int, at any depth: JSON has one kind of number, and the service writes them so."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    if isinstance(value, list):
        return [whole(each) for each in value]
    return {key: whole(each) for key, each in value.items()} if isinstance(value, dict) else value
