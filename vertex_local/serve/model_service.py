"""google.cloud.aiplatform.v1.ModelService: models, their versions and aliases; evaluations are in evaluations.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..local import job_record
from . import evaluations, lists, messages, models
from .local import Local, location_of
from .operations import OperationPool
from .rest import ApiError

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2

_CHANGEABLE = ("display_name", "description", "labels", "version_description", "version_aliases")


class ModelService(evaluations.ModelEvaluations):
    """Models, their versions and aliases, and evaluations of them."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._operations = local, operations

    def upload_model(self, request: types.UploadModelRequest) -> operations_pb2.Operation:
        """Record a model, or a new version of `parent_model`; the operation is done at once."""
        messages.required(request, "model")
        model = models.upload(self._local, request.parent, request.model, request.model_id, request.parent_model)
        return self._made(request.parent, "UploadModel", model)

    def copy_model(self, request: types.CopyModelRequest) -> operations_pb2.Operation:
        """Copy a model's version, by default the default one, into a location: as a new model, or as a version of `parent_model`."""
        messages.required(request, "source_model")
        return self._made(request.parent, "CopyModel", models.copy(self._local, request))

    def _made(self, parent: str, rpc: str, version: dict[str, Any]) -> operations_pb2.Operation:
        response = {"model": version["name"], "modelVersionId": version["versionId"]}
        return self._operations.finished(parent, f"{rpc}OperationMetadata", (f"{rpc}Response", response))

    def get_model(self, request: types.GetModelRequest) -> types.Model:
        """Return a version of a model, by default the default one."""
        return messages.read(models.version(self._local, request.name), "Model")

    def list_models(self, request: types.ListModelsRequest) -> types.ListModelsResponse:
        """Return one page of models, each by its default version."""
        records, token = lists.page(self._local.records, "models", request, shown=models.default_version)
        found = [messages.read(models.default_version(record), "Model") for record in records]
        return messages.new("ListModelsResponse", models=found, next_page_token=token)

    def list_model_versions(self, request: types.ListModelVersionsRequest) -> types.ListModelVersionsResponse:
        """Return one page of a model's versions, the newest first."""
        record = self._local.known(request.name.partition("@")[0])
        accepts, size, token = lists.parsed_filter(request.filter), lists.size(request), request.page_token
        if token and token not in record["versions"]:
            text = f"pageToken: {token[:80]!r} is not a token of this list; start from the first page."
            raise ApiError("INVALID_ARGUMENT", text, "pageToken")
        found = sorted(filter(accepts, record["versions"].values()), key=lambda each: int(each["versionId"]), reverse=True)
        found = [each for each in found if not token or int(each["versionId"]) < int(token)]
        after = found[size - 1]["versionId"] if len(found) > size else ""
        shown = [messages.read(each, "Model") for each in found[:size]]
        return messages.new("ListModelVersionsResponse", models=shown, next_page_token=after)

    def update_model(self, request: types.UpdateModelRequest) -> types.Model:
        """Change a version's texts, labels and aliases."""
        version = models.version(self._local, request.model.name)
        changed = messages.changes(request.model, request.update_mask, _CHANGEABLE)
        models.check_aliases(request.model.version_aliases, "model.versionAliases")

        def change(record: dict[str, Any]) -> None:
            each = record["versions"][version["versionId"]]
            if "versionAliases" in changed:
                models.give_aliases(record, version["versionId"], request.model.version_aliases)
            messages.apply(each, {name: value for name, value in changed.items() if name != "versionAliases"})
            each["updateTime"] = job_record.now()

        record = models.change(self._local, version["name"], change)
        return messages.read(record["versions"][version["versionId"]], "Model")

    def merge_version_aliases(self, request: types.MergeVersionAliasesRequest) -> types.Model:
        """Add aliases to a version, and remove those with a leading '-'."""
        version = models.version(self._local, request.name)
        messages.required(request, "version_aliases")
        models.check_aliases((alias.removeprefix("-") for alias in request.version_aliases), "versionAliases")
        new = [alias for alias in request.version_aliases if not alias.startswith("-")]
        gone = {alias[1:] for alias in request.version_aliases if alias.startswith("-")}

        def merge(record: dict[str, Any]) -> None:
            before = record["versions"][version["versionId"]]["versionAliases"]
            kept = [alias for alias in before if alias not in gone]
            models.give_aliases(record, version["versionId"], list(dict.fromkeys([*kept, *new])))

        record = models.change(self._local, version["name"], merge)
        return messages.read(record["versions"][version["versionId"]], "Model")

    def delete_model(self, request: types.DeleteModelRequest) -> operations_pb2.Operation:
        """Forget a model with all its versions; its files stay."""
        name = self._local.known(request.name.partition("@")[0])["name"]
        models.check_not_deployed(self._local, name, None)
        self._local.records.remove(name)
        evaluations.forget(self._local, name)
        return self._operations.finished(location_of(name), "DeleteOperationMetadata", None)

    def delete_model_version(self, request: types.DeleteModelVersionRequest) -> operations_pb2.Operation:
        """Forget one version of a model; its files stay."""
        version = models.version(self._local, request.name)
        if "default" in version["versionAliases"]:
            text = f"version {version['versionId']} is the default one; give 'default' to another first, or delete the model."
            raise ApiError("FAILED_PRECONDITION", text)
        models.check_not_deployed(self._local, version["name"], version["versionId"])
        models.change(self._local, version["name"], lambda record: record["versions"].pop(version["versionId"], None))
        evaluations.forget(self._local, version["name"], version["versionId"])
        return self._operations.finished(location_of(version["name"]), "DeleteOperationMetadata", None)
