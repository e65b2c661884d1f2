"""models: a model is one record with all its versions, each of them in the API's form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..job import buckets
from .local import Local
from .operations import done, new_name
from .rest import ApiError, Request, checked, page, required, stamp, unsupported

_ALIAS = re.compile("[a-z][a-z0-9-]{0,126}[a-z0-9]")
_MODEL_ID = re.compile("[a-z_][a-z0-9_-]{0,62}")
_CHANGEABLE = ("displayName", "description", "labels", "versionDescription", "versionAliases", "trafficSplit")


def _parent(project: str, location: str) -> str:
    return f"projects/{project}/locations/{location}"


def changed(body: dict[str, Any], request: Request) -> dict[str, Any]:
    """Return what a PATCH changes: the fields of `updateMask`, by default all that it names."""
    mask = [re.sub("_([a-z])", lambda m: m[1].upper(), name) for name in filter(None, request.query.get("updateMask", "").split(","))]
    wanted = mask or [name for name in body if name != "name"]
    for name in wanted:
        if name.partition(".")[0] not in _CHANGEABLE:
            raise ApiError("UNIMPLEMENTED", f"{name} cannot be changed in the local service; it changes {', '.join(_CHANGEABLE)}.", name)
    return {name: body.get(name) for name in (each.partition(".")[0] for each in wanted)}


def apply(document: dict[str, Any], changes: dict[str, Any]) -> None:
    """Put changes into a document; None takes a field out."""
    for name, value in changes.items():
        if value is None:
            document.pop(name, None)
        else:
            document[name] = value
    document["updateTime"] = stamp()


# ------------------------------------------------------------------ models


def check_upload(local: Local, parent: str, model: dict[str, Any], model_id: str | None, parent_model: str | None) -> None:
    """Check a Model that is to be uploaded, but not whether its files are there yet."""
    required({"model": model}, "model.displayName", "model.containerSpec.imageUri")
    unsupported(model, ("explanationSpec",), "model.")
    for alias in model.get("versionAliases", []):
        if not _ALIAS.fullmatch(alias):
            text = f"an alias has 2 to 128 small letters, digits and '-' and starts with a letter; got {alias!r}."
            raise ApiError("INVALID_ARGUMENT", text, "model.versionAliases")
    if model_id and not _MODEL_ID.fullmatch(model_id):
        text = f"modelId has up to 63 of a-z, 0-9, '_' and '-' and does not start with a digit or '-'; got {model_id!r}."
        raise ApiError("INVALID_ARGUMENT", text, "modelId")
    if parent_model:
        local.known(_full(parent, parent_model))
    elif model_id and local.records.get(f"{parent}/models/{model_id}"):
        raise ApiError("ALREADY_EXISTS", f"{parent}/models/{model_id} exists already; give parentModel for a new version of it.")


def upload(local: Local, parent: str, model: dict[str, Any], model_id: str | None, parent_model: str | None) -> dict[str, Any]:
    """Keep a model, or a new version of `parent_model`, and return it as the API shows it."""
    check_upload(local, parent, model, model_id, parent_model)
    _check_files(local, model)
    name = f"{parent}/models/{model_id}" if model_id else new_name(local.records, parent, "models")
    name = _full(parent, parent_model) if parent_model else name
    now = stamp()
    if not parent_model:
        local.records.add(name, "models", {"name": name, "versions": {}, "createTime": now, "updateTime": now})

    def add(record: dict[str, Any]) -> None:
        record["last"] = record.get("last", 0) + 1
        version = str(record["last"])
        aliases = list(dict.fromkeys([*(["default"] if not record["versions"] else []), *model.get("versionAliases", [])]))
        for other in record["versions"].values():  # an alias belongs to one version
            other["versionAliases"] = [alias for alias in other["versionAliases"] if alias not in aliases]
        kept = {key: value for key, value in model.items() if key not in ("name", "versionId")}
        record["versions"][version] = {
            **kept, "name": name, "versionId": version, "versionAliases": aliases, "createTime": record["createTime"],
            "updateTime": now, "versionCreateTime": now, "versionUpdateTime": now,
            "supportedDeploymentResourcesTypes": ["DEDICATED_RESOURCES"], "supportedInputStorageFormats": ["jsonl"],
            "supportedOutputStorageFormats": ["jsonl"],
        }  # fmt: skip
        record["updateTime"] = now

    record = local.records.change(name, add)
    return record["versions"][str(record["last"])]


def full_name(parent: str, model: str) -> str:
    """Return a model's name in full, given that or the id."""
    return model if "/" in model else f"{parent}/models/{model}"


def _full(parent: str, model: str) -> str:
    return full_name(parent, model).partition("@")[0]


def _check_files(local: Local, model: dict[str, Any]) -> None:
    required({"model": model}, "model.artifactUri")
    folder = model_folder(local, model)
    if not (folder / "saved_model.pb").is_file():
        text = f"there is no saved_model.pb directly in {model['artifactUri']} ({folder}); the trainer's chief must leave it there."
        raise ApiError("FAILED_PRECONDITION", text, "model.artifactUri")


def model_folder(local: Local, model: dict[str, Any]) -> Path:
    """Return the folder of a model's artifactUri."""
    if not model["artifactUri"].startswith("gs://"):
        raise ApiError("INVALID_ARGUMENT", f"artifactUri takes gs://bucket/folder; got {model['artifactUri']!r}.", "model.artifactUri")
    try:
        return Path(buckets.to_path(model["artifactUri"], local.buckets))
    except buckets.BucketError as error:
        raise ApiError("INVALID_ARGUMENT", str(error), "model.artifactUri") from None


def version_of(local: Local, name: str) -> dict[str, Any]:
    """Return one version of a model: `…/models/ID` is the default one, `@` is followed by a version or an alias."""
    base, _, wish = name.partition("@")
    record = local.known(base)
    for version in record["versions"].values():
        if version["versionId"] == wish or (wish or "default") in version["versionAliases"]:
            return version
    raise ApiError("NOT_FOUND", f"{base} has no version {wish!r}; it has {', '.join(record['versions'])}.")


def upload_route(local: Local, request: Request, project: str, location: str) -> dict[str, Any]:
    """Upload a model; the operation is done at once."""
    parent = _parent(project, location)
    body = checked(request.json(), "UploadModelRequest")
    required(body, "model")
    model = upload(local, parent, body["model"], body.get("modelId"), body.get("parentModel"))
    response = {"model": model["name"], "modelVersionId": model["versionId"]}
    return done(local.records, parent, "UploadModelOperationMetadata", ("UploadModelResponse", response))


def get_model(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Return a model, by default its default version."""
    return version_of(local, f"{_parent(project, location)}/models/{id}")


def list_models(local: Local, request: Request, project: str, location: str) -> dict[str, Any]:
    """Return one page of models, each as its default version."""
    records = local.records.list("models", _parent(project, location))
    return page([version_of(local, record["name"]) for record in records], request, "models")


def list_versions(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Return one page of a model's versions."""
    record = local.known(f"{_parent(project, location)}/models/{id.partition('@')[0]}")
    return page(list(record["versions"].values()), request, "models")


def patch_model(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Change a version's texts and labels."""
    version = version_of(local, f"{_parent(project, location)}/models/{id}")
    changes = changed(checked(request.json(), "Model"), request)
    local.records.change(version["name"], lambda record: apply(record["versions"][version["versionId"]], changes))
    return get_model(local, request, project, location, id)


def merge_aliases(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Give a version aliases, and take from it those that are written with a leading '-'."""
    version = version_of(local, f"{_parent(project, location)}/models/{id}")
    body = checked(request.json(), "MergeVersionAliasesRequest")
    required(body, "versionAliases")
    new = [alias for alias in body["versionAliases"] if not alias.startswith("-")]
    gone = {alias[1:] for alias in body["versionAliases"] if alias.startswith("-")}
    for alias in (*new, *gone):
        if not _ALIAS.fullmatch(alias):
            raise ApiError("INVALID_ARGUMENT", f"{alias!r} is not an alias.", "versionAliases")
    if "default" in gone:
        raise ApiError("INVALID_ARGUMENT", "'default' can only be given to another version.", "versionAliases")

    def merge(record: dict[str, Any]) -> None:
        for each in record["versions"].values():
            mine = each["versionId"] == version["versionId"]
            kept = [alias for alias in each["versionAliases"] if alias not in (gone if mine else new)]
            each["versionAliases"] = list(dict.fromkeys([*kept, *new])) if mine else kept

    record = local.records.change(version["name"], merge)
    return record["versions"][version["versionId"]]


def delete_model(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Forget a model with all its versions; its files stay."""
    parent = _parent(project, location)
    record = local.known(f"{parent}/models/{id.partition('@')[0]}")
    _not_deployed(local, record["name"], None)
    local.records.remove(record["name"])
    return done(local.records, parent, "DeleteOperationMetadata", None)


def delete_version(local: Local, request: Request, project: str, location: str, id: str) -> dict[str, Any]:  # noqa: A002
    """Forget one version of a model; its files stay."""
    parent = _parent(project, location)
    version = version_of(local, f"{parent}/models/{id}")
    record = local.known(version["name"])
    if "default" in version["versionAliases"]:
        text = f"version {version['versionId']} is the default one; give 'default' to another first, or delete the model."
        raise ApiError("FAILED_PRECONDITION", text)
    _not_deployed(local, record["name"], version["versionId"])
    local.records.change(record["name"], lambda each: each["versions"].pop(version["versionId"], None))
    return done(local.records, parent, "DeleteOperationMetadata", None)


def _not_deployed(local: Local, name: str, version: str | None) -> None:
    for endpoint in local.records.list("endpoints"):
        for deployed in endpoint.get("deployedModels", []):
            if deployed["model"].partition("@")[0] == name and version in (None, deployed["modelVersionId"]):
                raise ApiError("FAILED_PRECONDITION", f"{name} is deployed on {endpoint['name']}; undeploy it first.")
