"""Where a model comes from: finds it by any of its names, follows it back to its run, and checks every file again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vertex_runtime import checksums
from vertex_runtime.tracking import nodes as run_nodes

from ..errors import UserError, quoted
from ..local.store import Store
from . import lineage, nodes

SAME, CHANGED, MISSING, UNKNOWN = "same", "changed", "missing", "not looked at"


@dataclass
class Model:
    """A model that was asked for; `version` is None if only its files are known."""

    folder: Path
    uri: str
    version: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The version's full name, or where the files lie."""
        return f"{self.version['name']}@{self.version['versionId']}" if self.version else self.uri


@dataclass
class Origin:
    """Where a model comes from. `files` are dicts of uri, checksum, bytes, parts and `now`: SAME, CHANGED, MISSING or UNKNOWN."""

    model: Model
    checksum: str | None = None  # the model's when it was made, or uploaded
    now: str = UNKNOWN
    record: dict[str, Any] | None = None  # the run's
    job: dict[str, Any] | None = None
    files: list[dict[str, Any]] = field(default_factory=list)
    executions: list[dict[str, Any]] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Return everything as a dict for JSON."""
        record = self.record or {}
        version = self.model.version or {}
        return {
            "model": {
                "name": self.model.name, "uri": self.model.uri, "folder": str(self.model.folder), "checksum": self.checksum,
                "now": self.now, "displayName": version.get("displayName"), "aliases": version.get("versionAliases"),
            },
            "run": {
                name: record.get(name)
                for name in ("id", "trainer", "state", "started", "duration_seconds", "seed", "experiment", "step", "best", "metrics")
            } if record else None,
            "parameters": run_nodes.parameters(record) if record else None,
            "code": record.get("code"), "versions": record.get("versions"), "machine": record.get("machine"),
            "job": {key: self.job.get(key) for key in ("name", "displayName", "state", "createTime", "endTime")} if self.job else None,
            "data": self.files,
            "executions": [{key: each.get(key) for key in ("name", "displayName", "schemaTitle", "state")} for each in self.executions],
        }  # fmt: skip


def find(records: Store | None, root: Path, asked: str) -> Model:
    """Return the model of a resource name, an id, `ID@ALIAS`, a `gs://…`, a folder, or deployed to `endpoints/ID`.

    Raises:
        UserError: there is no such model, or several.
    """
    if asked.startswith("gs://"):
        return Model(_with_files(lineage.local_path(asked, root), asked), asked.rstrip("/"))
    if Path(asked).is_dir():
        folder = Path(asked).resolve()
        folder = folder / "model" if (folder / "model" / "saved_model.pb").is_file() else folder
        uri = f"gs://{folder.relative_to(root)}" if folder.is_relative_to(root) else str(folder)
        return Model(_with_files(folder, asked), uri)
    if records is None:
        raise UserError(
            f"MODEL: {quoted(asked)} is neither a folder nor a gs://…, and no job or model was recorded here yet; "
            "name where one was: --state_dir."
        )
    version = _version(records, _deployed(records, asked) if "endpoints/" in asked else asked)
    return Model(lineage.local_path(version["artifactUri"], root), version["artifactUri"].rstrip("/"), version)


def _with_files(folder: Path, asked: str) -> Path:
    if not (folder / "saved_model.pb").is_file():
        remedy = "give the folder of a model, or of a run that exported one"
        raise UserError(f"MODEL: {quoted(asked)} has no saved_model.pb ({folder}); {remedy}.")
    return folder


def _deployed(records: Store, asked: str) -> str:
    """Return the name of the model that is deployed to an endpoint."""
    number = asked.rstrip("/").rpartition("/")[2]
    found = [each for each in records.named(number, "endpoints") if asked in (each["name"], f"endpoints/{number}")]
    names = {f"{each['model'].partition('@')[0]}@{each['modelVersionId']}" for each in found[:1] for each in each.get("deployedModels", [])}
    if len(names) != 1:
        what = f"several models: {', '.join(sorted(names))}; name one" if names else "no model" if found else "no such endpoint"
        raise UserError(f"MODEL: {quoted(asked)} has {what}.")
    return names.pop()


def _version(records: Store, asked: str) -> dict[str, Any]:
    base, _, wanted = asked.partition("@")
    found = [records.get(base)] if "/models/" in base else records.named(base.removeprefix("models/"), "models")
    found = [each for each in found if each] or [
        each for each in records.list("models") if any(version.get("displayName") == base for version in each["versions"].values())
    ]
    if len(found) != 1:
        names = ", ".join(each["name"] for each in (found or records.list("models"))[:5]) or "none"
        what = "several models have that name" if found else "there is no such model"
        raise UserError(f"MODEL: {quoted(asked)}: {what}; give one of {names}, a gs://… or a folder.")
    for version in found[0]["versions"].values():
        if version["versionId"] == wanted or (wanted or "default") in version["versionAliases"]:
            return version
    raise UserError(f"MODEL: {found[0]['name']} has no version {quoted(wanted)}; it has {', '.join(found[0]['versions'])}.")


# ------------------------------------------------------------------ back to the run


def origin(records: Store | None, root: Path, model: Model) -> Origin:
    """Return where a model comes from, as far as that is recorded, and whether its files have changed."""
    found = Origin(model)
    artifact = _artifact(records, model) if records else None
    if artifact:
        found.checksum = artifact.get("metadata", {}).get("checksum")
        found.executions = lineage.above(records, artifact["name"])[0]
    found.record = _record(found, root)
    if found.checksum is None and found.record:
        found.checksum = (found.record.get("model") or {}).get("checksum")
    if model.folder.is_dir():
        found.now = UNKNOWN if found.checksum is None else SAME if checksums.of_folder(str(model.folder)) == found.checksum else CHANGED
    else:
        found.now = MISSING
    found.files = [{**file, "now": look_again(file, root)} for file in (found.record or {}).get("data", [])]
    found.job = _job(records, found) if records else None
    return found


def _artifact(records: Store, model: Model) -> dict[str, Any] | None:
    """Return the model's artifact: that of its version, or that of its present files."""
    if model.version:
        location = "/".join(model.version["name"].split("/")[:4])
        number = lineage.vertex_model_id(model.name)
        return records.get(f"{location}/{nodes.STORES}/{nodes.DEFAULT_STORE}/{nodes.ARTIFACTS}/{number}")
    found = [each for store in records.list(nodes.STORES) for each in records.artifacts_at(model.uri, store["name"])]
    found = [each for each in found if each.get("schemaTitle") == run_nodes.MODEL]
    now = checksums.of_folder(str(model.folder))
    return next((each for each in found if each.get("metadata", {}).get("checksum") == now), found[0] if found else None)


def _record(found: Origin, root: Path) -> dict[str, Any] | None:
    """Return the run's record: from the path in its execution, else from the execution itself; without one, from beside the model."""
    for execution in found.executions:
        metadata = execution.get("metadata", {})
        if "run" not in metadata:
            continue
        path = metadata.get("record", "")
        record = lineage.read_record(lineage.local_path(path, root))
        if record and record["id"] == metadata["run"]:
            return record
        return _of_execution(metadata)
    record = lineage.record_of_model(found.model.folder)
    return record if record and record.get("model") else None


def _of_execution(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return what an execution records of a run whose run.json is gone, or now is another run's."""
    code = {name: metadata.get(name) for name in ("commit", "changed", "source_sha256")} | {"version": metadata.get("package_version")}
    return {
        "id": metadata["run"], "trainer": metadata["trainer"], "state": "its run.json is gone", "started": metadata.get("started"),
        "hyperparameters": metadata.get("parameters", {}), "metrics": metadata.get("metrics"), "seed": metadata.get("seed"), "code": code,
        "experiment": metadata.get("experiment"), "versions": metadata.get("versions"), "data": [],
        "job": {"id": metadata.get("job"), "trial": metadata.get("trial"), "pipeline": metadata.get("pipeline")},
    }  # fmt: skip


def _job(records: Store, found: Origin) -> dict[str, Any] | None:
    for execution in found.executions:
        name = execution.get("metadata", {}).get("job_name")
        if name:
            return records.get(name) or {"name": name, "state": "its record was deleted"}
    number = ((found.record or {}).get("job") or {}).get("id")
    kept = records.named(number, "customJobs", "hyperparameterTuningJobs") if number else []
    return kept[0] if len(kept) == 1 else None


def look_again(file: dict[str, Any], root: Path) -> str:
    """Return whether a file of a run's data is still the same, by the kind of checksum that was recorded."""
    kind = file["checksum"].partition(":")[0]
    if kind not in (checksums.WHOLE, checksums.ENDS):
        return UNKNOWN  # a table, or rows that a trainer makes itself
    now = checksums.of_local(str(lineage.local_path(file["uri"], root)), kind)
    return MISSING if now is None else SAME if now == file["checksum"] else CHANGED
