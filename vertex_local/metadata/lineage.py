"""What this machine records in the default metadata store: executions with their inputs and outputs, runs, uploads.

    from vertex_local.metadata import lineage

    lineage.record_execution(
        records, "projects/p/locations/us-central1", "convert-17", display_name="convert", state="COMPLETE",
        inputs=[lineage.artifact("gs://b/raw.csv", "system.Dataset")],
        outputs=[lineage.artifact("gs://b/rows.parquet", "system.Dataset", rows=1000)],
    )

Nodes are dicts in the API's JSON form (schemaTitle, displayName, metadata; artifacts also uri) with an `id` added. Recording a
node with a known id updates that node and merges its metadata. Everything is written to the records directly, without a service.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vertex_runtime import checksums
from vertex_runtime.tracking import nodes as run_nodes

from ..job import buckets
from ..local.environment import number_of
from ..local.store import Store
from . import nodes

VERTEX_MODEL = "google.VertexModel"
RECORD = "run.json"
_MOST_STARTS = 100  # of one trial
Node = dict[str, Any]


@dataclass(frozen=True)
class Recorded:
    """The full names of what was recorded; artifacts in the order given."""

    execution: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def artifact(uri: str, schema: str = "system.Artifact", **metadata: Any) -> Node:
    """Return an artifact's node; its id comes from the address and the `checksum` in the metadata."""
    made_of = f"{uri} {metadata.get('checksum', '')}"
    number = f"artifact-{hashlib.sha256(made_of.encode()).hexdigest()[:40]}"
    name = uri.rstrip("/").rpartition("/")[2]
    return {"id": number, "schemaTitle": schema, "schemaVersion": "0.0.1", "displayName": name, "uri": uri, "metadata": metadata}


def record_execution(
    records: Store, location: str, number: str, *, schema: str = "system.ContainerExecution", display_name: str = "",
    state: str = "COMPLETE", metadata: Mapping[str, Any] | None = None, inputs: Iterable[Node] = (), outputs: Iterable[Node] = (),
    contexts: Iterable[str] = (),
) -> Recorded:  # fmt: skip
    """Record an execution with its artifacts in a location's default store, or update the execution of that id.

    Args:
        location: `projects/P/locations/L`.
        number: the execution's id: 1 to 128 of a-z, 0-9 and '-'.
        state: of the API's Execution: NEW, RUNNING, COMPLETE, FAILED, CACHED or CANCELLED.
        inputs, outputs: artifacts' nodes, as `artifact` returns them; a dict with a `name` is an artifact recorded before.
        contexts: full names of contexts that get the execution and its outputs.

    Raises:
        nodes.BadId: an id is not valid.
    """
    store = nodes.ensure_store(records, location)
    document = {
        "displayName": display_name or number, "schemaTitle": schema, "schemaVersion": "0.0.1", "state": state,
        "metadata": dict(metadata or {}),
    }  # fmt: skip
    execution = nodes.put(records, store, nodes.EXECUTIONS, document, number)["name"]
    read, made = (tuple(_artifact(records, store, node) for node in group) for group in (inputs, outputs))
    for kind, names in ((nodes.INPUT, read), (nodes.OUTPUT, made)):
        known = records.links_from(kind, execution)
        for name in names:
            if name not in known:
                nodes.add_event(records, execution, name, kind)
    for context in contexts:
        nodes.add_to_context(records, context, (execution, *made))
    return Recorded(execution, read, made)


def _artifact(records: Store, store: str, node: Node) -> str:
    if "name" in node:
        return node["name"]
    document = {"state": "LIVE", **{name: value for name, value in node.items() if name != "id"}}
    return nodes.put(records, store, nodes.ARTIFACTS, document, node["id"])["name"]


def record_context(records: Store, location: str, number: str, schema: str, *, display_name: str = "", **metadata: Any) -> str:
    """Record a context, such as a pipeline's run (system.PipelineRun), and return its full name."""
    store = nodes.ensure_store(records, location)
    document = {"displayName": display_name or number, "schemaTitle": schema, "schemaVersion": "0.0.1", "metadata": metadata}
    return nodes.put(records, store, nodes.CONTEXTS, document, number)["name"]


# ------------------------------------------------------------------ runs and jobs


def record_run(records: Store, location: str, record: Mapping[str, Any], job: str = "") -> Recorded:
    """Record a run of one of our trainers.

    Args:
        record: the content of its `run.json`.
        job: the full name of its job.
    """
    found = run_nodes.of_run(record)
    execution = found["execution"]
    metadata = {**execution["metadata"], **({"job_name": job} if job else {})}
    contexts = _experiment_runs(records, location, record.get("experiment"))
    return record_execution(
        records, location, execution["id"], schema=execution["schemaTitle"], display_name=execution["displayName"],
        state=execution["state"], metadata=metadata, inputs=found["inputs"], outputs=found["outputs"], contexts=contexts,
    )  # fmt: skip


def _experiment_runs(records: Store, location: str, experiment: Mapping[str, str] | None) -> list[str]:
    """Return the context of the run in its experiment, if the trainer has made one."""
    if not experiment:
        return []
    number = f"{experiment['name'].rpartition('/')[2]}-{experiment['run']}"
    name = f"{location}/{nodes.STORES}/{nodes.DEFAULT_STORE}/{nodes.CONTEXTS}/{number}"
    return [name] if records.get(name) is not None else []


def record_job(records: Store, job: str, display_name: str, output: str | None, root: Path) -> list[Recorded]:
    """Record what an ended job has left: its run or its trials' runs; for trainers without a run.json, only the model.

    Args:
        job: its full name.
        output: its baseOutputDirectory, `gs://…`; without one, nothing can be found.
        root: where buckets lie.
    """
    if output is None:
        return []
    location, number = "/".join(job.split("/")[:4]), job.rpartition("/")[2]
    base = local_path(output, root)
    found = [record for path in records_in(base) if (record := read_record(path))]
    runs = [record for record in found if is_of_job(record, number)]
    if runs:  # the job is over, so a run that is recorded as running has failed
        runs = [{**record, "state": "failed"} if record["state"] == "running" else record for record in runs]
        return [record_run(records, location, record, job) for record in runs]
    if not (base / "model" / "saved_model.pb").is_file():
        return []
    model = artifact(f"{output.rstrip('/')}/model", run_nodes.MODEL, checksum=checksums.of_folder(str(base / "model")))
    return [
        record_execution(
            records, location, f"job-{number_of(number)}", schema=run_nodes.JOB, display_name=display_name, metadata={"job_name": job},
            outputs=[model],
        )  # fmt: skip
    ]


def is_of_job(record: Mapping[str, Any], number: str) -> bool:
    """Tell whether a run belongs to the job with this id, or to one of its trials."""
    job = record.get("job") or {}
    trial = f"{number}-trial-{job.get('trial')}"  # a trial is a job of its own; a continued study numbers further ones
    return job.get("id") in {number_of(each) for each in (number, trial, *(f"{trial}-{n}" for n in range(2, _MOST_STARTS)))}


@contextlib.contextmanager
def kept(records: Store, job: str, display_name: str, output: str | None, root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Record what a job has left when the block ends; an error in that is reported, but does not fail the job."""
    try:
        yield
    finally:
        try:
            record_job(records, job, display_name, output, root)
        except (OSError, ValueError, KeyError, TypeError, sqlite3.Error) as error:
            say(f"note: {job} is not in ML Metadata: {type(error).__name__}: {error}")


def records_in(base: Path) -> list[Path]:
    """Return the paths at which a run, or its trials' runs, may have left records below an output folder."""
    folders = [base, *(path for path in sorted(base.glob("*")) if path.is_dir() and path.name.isdecimal())]
    return [folder / within / RECORD for folder in folders for within in ("checkpoints", ".")]


def local_path(uri: str, root: Path) -> Path:
    """Return where a `gs://…` lies below the buckets' root; a path stays what it is."""
    return Path(buckets.to_path(uri.rstrip("/"), root) if uri.startswith("gs://") else uri)


def record_of_model(folder: Path) -> dict[str, Any] | None:
    """Return the record, beside a model's folder, of the run that made the model; None if there is none."""
    return next((found for within in ("checkpoints", ".") if (found := read_record(folder.parent / within / RECORD))), None)


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a run's record; None if there is none, or if an older version wrote it with fewer fields."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and "id" in found and "hyperparameters" in found:
            return found
    return None


# ------------------------------------------------------------------ models


def record_upload(records: Store, version: Mapping[str, Any], folder: Path) -> Recorded:
    """Record an uploaded version of a model, and link it to the run that made its files.

    Args:
        version: the Model as the API shows it.
        folder: where its artifactUri lies.
    """
    name, uri = f"{version['name']}@{version['versionId']}", version["artifactUri"].rstrip("/")
    location = "/".join(name.split("/")[:4])
    store = nodes.ensure_store(records, location)
    checksum = checksums.of_folder(str(folder))
    source = _made(records, store, uri, checksum)
    record = record_of_model(folder)
    if source is None and record and (record.get("model") or {}).get("checksum") == checksum:
        record = {**record, "model": {**record["model"], "uri": uri}}  # an uploaded copy has another address
        source = {"name": record_run(records, location, record).outputs[0]}
    source = source or artifact(uri, run_nodes.MODEL, checksum=checksum)
    metadata = {"artifactUri": uri, "checksum": checksum}
    if version.get("trainingPipeline"):
        metadata["trainingPipeline"] = version["trainingPipeline"]
    number = hashlib.sha256(name.encode()).hexdigest()[:40]
    made = {
        "id": vertex_model_id(name), "schemaTitle": VERTEX_MODEL, "schemaVersion": "0.0.1", "displayName": version["displayName"],
        "uri": f"https://{location.rpartition('/')[2]}-aiplatform.googleapis.com/v1/{name}", "metadata": {"resourceName": name, **metadata},
    }  # fmt: skip
    return record_execution(
        records, location, f"upload-{number}", display_name=f"upload of {version['displayName']}", inputs=[source], outputs=[made],
        metadata=metadata,
    )  # fmt: skip


def vertex_model_id(name: str) -> str:
    """Return the id of the artifact that stands for a version of a model, `projects/…/models/M@V`."""
    return f"vertex-model-{hashlib.sha256(name.encode()).hexdigest()[:40]}"


def _made(records: Store, store: str, uri: str, checksum: str) -> dict[str, Any] | None:
    """Return the artifact of the present files at an address; one that an execution made is preferred."""
    same = [
        each
        for each in records.artifacts_at(uri, store)
        if each.get("schemaTitle") == run_nodes.MODEL and each.get("metadata", {}).get("checksum") == checksum
    ]
    return max(same, key=lambda each: bool(records.links_to(nodes.OUTPUT, each["name"])), default=None)


def above(records: Store, artifact: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the executions that an artifact comes from and the artifacts that they read, the nearest first."""
    executions: dict[str, dict[str, Any]] = {}
    read: dict[str, dict[str, Any]] = {}
    queue: Sequence[str] = [artifact]
    while queue:
        found: list[str] = []
        for name in queue:
            for execution in records.links_to(nodes.OUTPUT, name):
                document = records.get(execution)
                if execution in executions or document is None:
                    continue
                executions[execution] = document
                for source in records.links_from(nodes.INPUT, execution):
                    if source not in read and (kept := records.get(source)):
                        read[source] = kept
                        found.append(source)
        queue = found
    return list(executions.values()), list(read.values())
