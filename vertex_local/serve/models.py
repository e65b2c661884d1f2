"""Records of models: one record a model, with all its versions in the API's form; how they are checked, made and found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from ..job import buckets, images
from ..local import job_record
from ..metadata import lineage
from . import explanations, instances, messages
from .local import Local
from .rest import ApiError

# From the API's reference of `Model.version_aliases`.
_ALIAS = re.compile("[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")
_SERVES_SAVED_MODELS = re.compile(r"(tensorflow/serving|tf[-_]?serving|tensorflow-serving)[\w.-]*([:@].*)?")
_NOT_COPIED = (
    "name", "versionId", "versionAliases", "createTime", "updateTime", "versionCreateTime", "versionUpdateTime", "encryptionSpec",
    "deployedModels", "originalModelInfo", "etag",
)  # fmt: skip
_MODEL_ID = re.compile("[a-z_][a-z0-9_-]{0,62}")


def check_aliases(aliases: Iterable[str], field: str) -> None:
    """Refuse texts that cannot be a version's aliases."""
    for alias in aliases:
        if not _ALIAS.fullmatch(alias):
            text = "an alias has 2 to 128 letters, digits and '-', begins with a small letter and ends with that or a digit"
            raise ApiError("INVALID_ARGUMENT", f"{text}; got {alias[:130]!r}.", field)


def give_aliases(record: dict[str, Any], number: str, aliases: Sequence[str]) -> None:
    """Set the aliases of a version in its model's record; an alias belongs to one version, and 'default' always to one."""
    version = record["versions"][number]
    if "default" in version["versionAliases"] and "default" not in aliases:
        raise ApiError("INVALID_ARGUMENT", "'default' cannot be taken away; give it to another version.", "versionAliases")
    for other in record["versions"].values():
        other["versionAliases"] = [alias for alias in other["versionAliases"] if alias not in aliases]
    version["versionAliases"] = list(aliases)


def check_upload(local: Local, parent: str, model: Message, model_id: str, parent_model: str) -> None:
    """Check a Model for an upload, but not whether its files exist: a job may still have to make them."""
    messages.required(model, "display_name", "container_spec.image_uri", where="model.")
    if model.HasField("explanation_spec"):
        explanations.check(model.explanation_spec, "model.explanationSpec")
    check_aliases(model.version_aliases, "model.versionAliases")
    if model_id and not _MODEL_ID.fullmatch(model_id):
        text = f"modelId has up to 63 of a-z, 0-9, '_' and '-' and does not start with a digit or '-'; got {model_id[:80]!r}."
        raise ApiError("INVALID_ARGUMENT", text, "modelId")
    if parent_model:
        local.known(_base_name(parent, parent_model))
    elif model_id and local.records.get(f"{parent}/models/{model_id}"):
        raise ApiError("ALREADY_EXISTS", f"{parent}/models/{model_id} exists already; give parentModel for a new version of it.")


def upload(local: Local, parent: str, model: Message, model_id: str, parent_model: str) -> dict[str, Any]:
    """Record a model, or a new version of `parent_model`, and return the version as the API shows it."""
    check_upload(local, parent, model, model_id, parent_model)
    messages.required(model, "artifact_uri", where="model.")
    document, now = messages.to_json(model), job_record.now()
    _check_files(local, document)
    if parent_model:
        name = _base_name(parent, parent_model)
    else:
        name = f"{parent}/models/{model_id}" if model_id else local.new_name(parent, "models")
        local.records.add(name, "models", {"name": name, "versions": {}, "createTime": now, "updateTime": now})
    record = change(local, name, lambda record: _add_version(record, document, now))
    version = record["versions"][str(record["last"])]
    try:
        lineage.record_upload(local.records, version, folder(local, version))
    except OSError as error:  # the upload itself has succeeded
        local.say(f"note: {name}@{version['versionId']} is not in ML Metadata: {error}")
    return version


def copy(local: Local, request: Message) -> dict[str, Any]:
    """Record a copy of a model's version for a CopyModelRequest, and return it as the API shows it.

    Aliases, evaluations, deployments and encryption are not copied; the files are shared.
    """
    source = version(local, request.source_model)
    document = {key: value for key, value in source.items() if key not in _NOT_COPIED}
    model = messages.read(document, "Model")
    model.encryption_spec.CopyFrom(request.encryption_spec)
    model.model_source_info.copy = True
    model.original_model_info.model = f"{source['name']}@{source['versionId']}"
    return upload(local, request.parent, model, request.model_id, request.parent_model)


def _add_version(record: dict[str, Any], document: Mapping[str, Any], now: str) -> None:
    record["last"] = record.get("last", 0) + 1
    version = str(record["last"])
    first = [] if record["versions"] else ["default"]
    aliases = list(dict.fromkeys([*first, *document.get("versionAliases", [])]))
    record["versions"][version] = {
        **document, "name": record["name"], "versionId": version, "versionAliases": [], "createTime": record["createTime"],
        "updateTime": now, "versionCreateTime": now, "versionUpdateTime": now,
        "supportedDeploymentResourcesTypes": ["DEDICATED_RESOURCES"], "supportedInputStorageFormats": list(instances.FORMATS),
        "supportedOutputStorageFormats": ["jsonl", "csv"],
    }  # fmt: skip
    give_aliases(record, version, aliases)


def change(local: Local, name: str, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Let `change` alter a model's record in one transaction, and return it."""

    def changed(record: dict[str, Any]) -> None:
        change(record)
        record["displayName"] = default_version(record).get("displayName", "")  # lists sort models by it

    record = job_record.update(local.records, name, changed)
    if record is None:
        raise ApiError("NOT_FOUND", f"{name} has been deleted meanwhile.")
    return record


def default_version(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default version of a model's record."""
    return next((each for each in record["versions"].values() if "default" in each["versionAliases"]), {})


def version(local: Local, name: str) -> dict[str, Any]:
    """Return one version of a model: `…/models/ID` is the default one, `…/models/ID@V` that with the id or alias V."""
    base, _, wanted = name.partition("@")
    record = local.known(base)
    for each in record["versions"].values():
        if each["versionId"] == wanted or (wanted or "default") in each["versionAliases"]:
            return each
    raise ApiError("NOT_FOUND", f"{base} has no version {wanted[:130]!r}; it has {', '.join(record['versions'])}.")


def full_name(parent: str, model: str) -> str:
    """Return a model's full name, given the full name or the id."""
    return model if "/" in model else f"{parent}/models/{model}"


def _base_name(parent: str, model: str) -> str:
    return full_name(parent, model).partition("@")[0]


def _check_files(local: Local, document: Mapping[str, Any]) -> None:
    path = folder(local, document)
    if not (path / "saved_model.pb").is_file():
        text = f"there is no saved_model.pb directly in {document['artifactUri']} ({path}); the trainer's chief must leave it there."
        raise ApiError("FAILED_PRECONDITION", text, "model.artifactUri")


def folder(local: Local, document: Mapping[str, Any]) -> Path:
    """Return the folder of a version's artifactUri."""
    uri = document["artifactUri"]
    if not uri.startswith("gs://"):
        raise ApiError("INVALID_ARGUMENT", f"artifactUri takes gs://bucket/folder; got {uri[:100]!r}.", "model.artifactUri")
    try:
        return Path(buckets.to_path(uri, local.buckets))
    except buckets.BucketError as error:
        raise ApiError("INVALID_ARGUMENT", str(error), "model.artifactUri") from None


def check_image(image: str) -> None:
    """Refuse a serving container other than TensorFlow's: here, only the SavedModel itself answers."""
    row = images.find(image)
    if not (row and row.role == "serving") and not _SERVES_SAVED_MODELS.search(image):
        text = f"the local service answers with the SavedModel, as prebuilt TensorFlow serving images do; it cannot run {image[:200]!r}."
        raise ApiError("UNIMPLEMENTED", text, "model.containerSpec.imageUri")


def check_not_deployed(local: Local, name: str, version: str | None) -> None:
    """Refuse to forget a model, or a version of it, that is deployed."""
    for endpoint in local.records.list("endpoints"):
        for deployed in endpoint.get("deployedModels", []):
            if deployed["model"].partition("@")[0] == name and version in (None, deployed["modelVersionId"]):
                raise ApiError("FAILED_PRECONDITION", f"{name} is deployed on {endpoint['name']}; undeploy it first.")
