"""Pipeline jobs: checked, run by kfp's local runner in a process of the pipelines' environment, their tasks kept as they go."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..job import buckets, pipeline_spec
from ..local import environment, job_record
from ..local import jobs as local_jobs
from ..pipelines import forks, python, run, spec, tasks
from . import endpoint, jobs, messages, pipeline_lineage
from .local import Local
from .rest import ApiError

if TYPE_CHECKING:
    from google.protobuf.message import Message

KIND = "pipelineJobs"
LOG = "kfp.log"  # of the runner itself; every step has one of its own
CACHE = Path("pipelines", "cache")  # in the state folder
PIPELINE = "TRAINER_PIPELINE_JOB"  # the variable that names a job's pipeline to our trainers
_LABEL = "vertex-ai-pipelines-run-billing-id"
_PATIENCE = 0.2  # seconds between looks whether somebody wants a pipeline to end


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A checked pipeline job: its message, and what of it the runner needs."""

    job: Message
    job_id: str
    spec: dict[str, Any]
    parameters: dict[str, Any]
    root: str


def checked(local: Local, parent: str, job: Message, job_id: str) -> Pipeline:
    """Return a pipeline job that can run here; whatever is wrong with it is the API's error with its field."""
    if job_id and not pipeline_spec.JOB_ID.fullmatch(job_id):
        text = f"pipelineJobId has up to 128 small letters, digits and '-' and begins with a letter; got {job_id[:140]!r}."
        raise ApiError("INVALID_ARGUMENT", text, "pipelineJobId")
    if job.template_uri and not job.pipeline_spec.fields:
        raise ApiError("UNIMPLEMENTED", "templateUri is not fetched by the local service; give pipelineSpec.", "pipelineJob.templateUri")
    messages.required(job, "pipeline_spec", where="pipelineJob.")
    jobs.check_length_of_name(job, "pipelineJob.")
    messages.unsupported(job.runtime_config, ("parameters", "input_artifacts"), where="pipelineJob.runtimeConfig.")
    found = {name: messages.plain(value) for name, value in job.pipeline_spec.fields.items()}
    values = {name: messages.plain(value) for name, value in job.runtime_config.parameter_values.items()}
    root = job.runtime_config.gcs_output_directory or found.get("defaultPipelineRoot", "")
    try:
        spec.check(found)
        spec.check_parameters(found, values)
        buckets.check_folder(root)
        local.workers.python  # noqa: B018 - found, or an error that says how to get it
    except spec.PipelineError as error:
        raise ApiError("UNIMPLEMENTED" if error.unsupported else "INVALID_ARGUMENT", str(error), f"pipelineJob.{error.field}") from None
    except buckets.BucketError as error:
        field = "pipelineJob.runtimeConfig.gcsOutputDirectory"
        raise ApiError("INVALID_ARGUMENT", f"{field}: {error}", field) from None
    except UserError as error:
        raise ApiError("FAILED_PRECONDITION", str(error)) from None
    job_id = _free_id(local, parent, job_id)
    job.display_name = job.display_name or job_id
    return Pipeline(job, job_id, found, values, root)


def _free_id(local: Local, parent: str, job_id: str) -> str:
    """Return the id of a new pipeline job, which is that of its folder, too."""
    if not job_id:
        return local.new_name(parent, KIND).rpartition("/")[2]
    if local.records.get(f"{parent}/{KIND}/{job_id}") or (local.state / "jobs" / job_id).exists():
        raise ApiError("ALREADY_EXISTS", f"{parent}/{KIND}/{job_id} exists already, or has left a folder in {local.state / 'jobs'}.")
    return job_id


def create(local: Local, parent: str, pipeline: Pipeline) -> dict[str, Any]:
    """Keep a new pipeline job and let it run when it is its turn."""
    local.workers.start("google" if spec.uses_google(pipeline.spec) else "kfp")  # imports while the job is kept and waits its turn

    def work(name: str, cancel: threading.Event) -> jobs.End:
        return _run(local, name, pipeline, local.state / "jobs" / pipeline.job_id, cancel)

    return jobs.create(local, parent, KIND, pipeline.job, work, pipeline.job_id)


def _run(local: Local, name: str, pipeline: Pipeline, folder: Path, cancel: threading.Event) -> jobs.End:
    """Run a pipeline to its end, and keep what happens to its tasks."""
    for each in ("logs", "lines"):
        (folder / each).mkdir(exist_ok=True)
    (folder / "pipeline.json").write_text(json.dumps({"pipelineSpec": pipeline.spec, "parameters": pipeline.parameters}, indent=1) + "\n")
    job_record.running(local.records, name)
    detail = pipeline_lineage.begin(local.records, name, pipeline.spec["pipelineInfo"]["name"])
    job_record.update(local.records, name, lambda document: document.update(jobDetail=detail))
    request, variables = _request(local, name, pipeline, folder), _variables(local, folder)
    fork = forks.Fork(
        local.workers.address("kfp"), "vertex_local.pipelines.run:main", dataclasses.asdict(request), env=variables, cwd=local.project_dir,
        log=folder / "logs" / LOG,
    )  # fmt: skip

    def unwanted() -> bool:
        return cancel.is_set() or local_jobs.stop_asked(folder)

    with contextlib.closing(fork):
        end = _follow(local, name, fork, unwanted)
    if unwanted() and (end is None or end["state"] != "SUCCEEDED"):
        return "CANCELLED", None
    if end is None:
        return "FAILED", {"code": 13, "message": f"kfp's runner ended with code {fork.code}: {fork.last_error()}"}
    return end["state"], {"code": 9, "message": end["error"]} if end["state"] == "FAILED" else None


def _follow(local: Local, name: str, fork: forks.Fork, unwanted: Callable[[], bool]) -> dict[str, Any] | None:
    """Keep what a pipeline's process tells until it has ended, end it if it is unwanted, and return what it says of the pipeline's end."""
    end, asked = None, False
    for event in fork.lines(_PATIENCE):
        if not asked and unwanted():
            asked = True
            fork.terminate()
        if event and "task" in event:
            _note(local, name, event["task"])
        elif event:
            end = event["end"]
    return end


def _note(local: Local, name: str, detail: dict[str, Any]) -> None:
    """Keep a task's detail in the pipeline's record, and in ML Metadata once it has ended."""
    detail = pipeline_lineage.renamed(detail)

    def change(document: dict[str, Any]) -> None:
        details = document["jobDetail"].setdefault("taskDetails", [])
        at = next((i for i, each in enumerate(details) if each["taskId"] == detail["taskId"]), len(details))
        details[at : at + 1] = [detail]

    document = job_record.update(local.records, name, change)
    if detail["state"] in tasks.OVER:
        if document is not None:
            pipeline_lineage.ended(local.records, name, document["jobDetail"], detail)
        error = detail.get("error", {}).get("message", "")
        local.say(f"{name}: {detail['execution']['displayName']}: {detail['state']}{': ' * bool(error)}{error}")


def _request(local: Local, name: str, pipeline: Pipeline, folder: Path) -> run.Request:
    """Return what the runner is asked to do."""
    parent, job = name.partition(f"/{KIND}/")[0], pipeline.job
    project, location = parent.split("/")[1::2]
    found = endpoint.find(local.state)
    names = ["kfp", *["google"] * spec.uses_google(pipeline.spec)]
    number = project if project.isdecimal() else environment.PROJECT
    return run.Request(
        parent=parent, job_id=pipeline.job_id, spec=pipeline.spec, parameters=pipeline.parameters, root=pipeline.root,
        project_number=number, folder=str(folder), project_dir=str(local.project_dir), cache_dir=str(local.state / CACHE),
        fail_fast=job.runtime_config.failure_policy == 2,  # PIPELINE_FAILURE_POLICY_FAIL_FAST
        service={
            "url": found.url, "token_file": found.token_file or "", "ca_file": found.ca_file, "project": project, "location": location,
            "bucket_root": str(local.buckets),
        },
        placeholders={
            "pipeline_google_cloud_project_id": project, "pipeline_google_cloud_location": location,
            "pipeline_service_account": job.service_account or f"{number}-compute@developer.gserviceaccount.com",
            "pipeline_network": job.network, "pipeline_encryption_key_name": job.encryption_spec.kms_key_name,
            "pipeline_persistent_resource_id": "", "pipeline_job_resource_name": name,
            "pipeline_job_create_time_utc": local.known(name)["createTime"],
            "pipeline_job_schedule_time_utc": local.known(name)["createTime"],
        },
        labels={_LABEL: _number(name)}, servers={each: local.workers.address(each) for each in names},
    )  # fmt: skip


def _number(name: str) -> str:
    """Return the number by which the jobs that a pipeline's steps make know the pipeline."""
    return str(zlib.crc32(name.encode()))


def variables_of(local: Local, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a job with these labels: our trainers record the pipeline that made it."""
    number = labels.get(_LABEL)
    running = local.records.list(KIND, state="PIPELINE_STATE_RUNNING") if number else []
    return next(({PIPELINE: each["name"]} for each in running if _number(each["name"]) == number), {})


def _variables(local: Local, folder: Path) -> dict[str, str]:
    """Return the environment of a pipeline's processes: clients find this service, and no way to the cloud."""
    kept = environment.inherited(os.environ, local.options.cloud_credentials)
    led = {} if local.options.cloud_credentials else environment.client_variables(local.state, folder)
    proxies = {name: ",".join(filter(None, (os.environ.get(name), "127.0.0.1"))) for name in ("NO_PROXY", "no_proxy")}
    return python.variables({**kept, **led, **proxies})
