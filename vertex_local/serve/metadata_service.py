"""google.cloud.aiplatform.v1.MetadataService: metadata stores, their artifacts, executions, contexts and events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..job.times import now
from ..metadata import nodes
from . import lists, messages
from .local import Local, location_of
from .metadata_nodes import Kind, Nodes, checked_id
from .operations import OperationPool
from .rest import ApiError

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2

_MOST_SHOWN = 1000  # nodes of each kind in a subgraph, by the API's reference
_TEXTS = ("display_name", "description", "labels", "metadata")


class MetadataService:
    """ML Metadata, as clients read and write it; `vertex_local.metadata` records what jobs leave there."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._records, self._operations = local, local.records, operations
        self._artifacts = Nodes(local, operations, Kind(nodes.ARTIFACTS, "Artifact", (*_TEXTS, "uri", "state")))
        self._executions = Nodes(local, operations, Kind(nodes.EXECUTIONS, "Execution", (*_TEXTS, "state")))
        self._contexts = Nodes(local, operations, Kind(nodes.CONTEXTS, "Context", _TEXTS))

    # ------------------------------------------------------------------ stores

    def create_metadata_store(self, request: types.CreateMetadataStoreRequest) -> operations_pb2.Operation:
        """Make a metadata store; the operation is done at once."""
        messages.unsupported(request.metadata_store, ("encryption_spec",), where="metadataStore.")
        name = f"{request.parent}/{nodes.STORES}/{checked_id(request.metadata_store_id, 'metadataStoreId')}"
        when = now()
        document = {**messages.to_json(request.metadata_store), "name": name, "createTime": when, "updateTime": when}
        kept = self._records.add(name, nodes.STORES, document)
        return self._operations.finished(request.parent, "CreateMetadataStoreOperationMetadata", ("MetadataStore", kept))

    def get_metadata_store(self, request: types.GetMetadataStoreRequest) -> types.MetadataStore:
        """Return a metadata store."""
        return messages.read(self._local.known(request.name), "MetadataStore")

    def list_metadata_stores(self, request: types.ListMetadataStoresRequest) -> types.ListMetadataStoresResponse:
        """Return one page of metadata stores."""
        return lists.answer(self._records, nodes.STORES, request, "MetadataStore", "metadata_stores")

    def delete_metadata_store(self, request: types.DeleteMetadataStoreRequest) -> operations_pb2.Operation:
        """Forget a metadata store with everything in it."""
        name = self._local.known(request.name)["name"]
        self._records.remove_below(name)
        self._records.remove(name)
        return self._operations.finished(location_of(name), "DeleteMetadataStoreOperationMetadata", None)

    # ------------------------------------------------------------------ artifacts

    def create_artifact(self, request: types.CreateArtifactRequest) -> types.Artifact:
        """Record a new artifact."""
        return self._artifacts.create(request.parent, request.artifact, request.artifact_id)

    def get_artifact(self, request: types.GetArtifactRequest) -> types.Artifact:
        """Return an artifact."""
        return self._artifacts.get(request.name)

    def list_artifacts(self, request: types.ListArtifactsRequest) -> types.ListArtifactsResponse:
        """Return one page of artifacts."""
        return self._artifacts.list(request)

    def update_artifact(self, request: types.UpdateArtifactRequest) -> types.Artifact:
        """Change an artifact, or make it if the request allows that."""
        return self._artifacts.update(request.artifact, request.update_mask, request.allow_missing)

    def delete_artifact(self, request: types.DeleteArtifactRequest) -> operations_pb2.Operation:
        """Forget an artifact; its file stays."""
        return self._artifacts.delete(request.name, request.etag)

    def purge_artifacts(self, request: types.PurgeArtifactsRequest) -> operations_pb2.Operation:
        """Forget the artifacts that match a filter, or only name them."""
        return self._artifacts.purge(request)

    def query_artifact_lineage_subgraph(self, request: types.QueryArtifactLineageSubgraphRequest) -> types.LineageSubgraph:
        """Return what an artifact was made from and what was made from it."""
        self._local.known(request.artifact)
        if request.max_hops < 0:
            raise ApiError("INVALID_ARGUMENT", f"maxHops takes a whole number from 0 on; got {request.max_hops}.", "maxHops")
        accepts = self._artifacts.filter(request.filter) if request.filter else None
        return _subgraph(nodes.of_artifact(self._records, request.artifact, request.max_hops or None, accepts))

    # ------------------------------------------------------------------ executions

    def create_execution(self, request: types.CreateExecutionRequest) -> types.Execution:
        """Record a new execution."""
        return self._executions.create(request.parent, request.execution, request.execution_id)

    def get_execution(self, request: types.GetExecutionRequest) -> types.Execution:
        """Return an execution."""
        return self._executions.get(request.name)

    def list_executions(self, request: types.ListExecutionsRequest) -> types.ListExecutionsResponse:
        """Return one page of executions."""
        return self._executions.list(request)

    def update_execution(self, request: types.UpdateExecutionRequest) -> types.Execution:
        """Change an execution, or make it if the request allows that."""
        return self._executions.update(request.execution, request.update_mask, request.allow_missing)

    def delete_execution(self, request: types.DeleteExecutionRequest) -> operations_pb2.Operation:
        """Forget an execution and its events."""
        return self._executions.delete(request.name, request.etag)

    def purge_executions(self, request: types.PurgeExecutionsRequest) -> operations_pb2.Operation:
        """Forget the executions that match a filter, or only name them."""
        return self._executions.purge(request)

    def add_execution_events(self, request: types.AddExecutionEventsRequest) -> types.AddExecutionEventsResponse:
        """Record which artifacts an execution has read and made."""
        self._local.known(request.execution)
        for i, event in enumerate(request.events):
            document = messages.to_json(event)
            kind, field = document.get("type"), f"events[{i}].type"
            if kind not in nodes.EVENTS:
                raise ApiError("INVALID_ARGUMENT", f"{field} takes {' or '.join(nodes.EVENTS)}; got {kind or 'nothing'}.", field)
            messages.required(event, "artifact", where=f"events[{i}].")
            self._local.known(event.artifact)
            nodes.add_event(self._records, request.execution, event.artifact, kind, document.get("labels"), document.get("eventTime", ""))
        return messages.new("AddExecutionEventsResponse")

    def query_execution_inputs_and_outputs(self, request: types.QueryExecutionInputsAndOutputsRequest) -> types.LineageSubgraph:
        """Return an execution with its artifacts."""
        self._local.known(request.execution)
        return _subgraph(nodes.of_execution(self._records, request.execution))

    # ------------------------------------------------------------------ contexts

    def create_context(self, request: types.CreateContextRequest) -> types.Context:
        """Record a new context, such as an experiment or a run of it."""
        return self._contexts.create(request.parent, request.context, request.context_id)

    def get_context(self, request: types.GetContextRequest) -> types.Context:
        """Return a context."""
        return self._contexts.get(request.name)

    def list_contexts(self, request: types.ListContextsRequest) -> types.ListContextsResponse:
        """Return one page of contexts."""
        return self._contexts.list(request)

    def update_context(self, request: types.UpdateContextRequest) -> types.Context:
        """Change a context, or make it if the request allows that."""
        return self._contexts.update(request.context, request.update_mask, request.allow_missing)

    def delete_context(self, request: types.DeleteContextRequest) -> operations_pb2.Operation:
        """Forget a context; its nodes stay."""
        return self._contexts.delete(request.name, request.etag)

    def purge_contexts(self, request: types.PurgeContextsRequest) -> operations_pb2.Operation:
        """Forget the contexts that match a filter, or only name them."""
        return self._contexts.purge(request)

    def add_context_artifacts_and_executions(
        self, request: types.AddContextArtifactsAndExecutionsRequest
    ) -> types.AddContextArtifactsAndExecutionsResponse:
        """Add artifacts and executions to a context."""
        self._know(request.context, *request.artifacts, *request.executions)
        nodes.add_to_context(self._records, request.context, (*request.artifacts, *request.executions))
        return messages.new("AddContextArtifactsAndExecutionsResponse")

    def add_context_children(self, request: types.AddContextChildrenRequest) -> types.AddContextChildrenResponse:
        """Make contexts the children of another one; refuse a cycle."""
        self._know(request.context, *request.child_contexts)
        above, queue = set(), [request.context]
        while queue:
            name = queue.pop()
            above.add(name)
            queue += [each for each in self._records.links_from(nodes.PARENT, name) if each not in above]
        for name in request.child_contexts:
            if name in above:
                text = f"{name} is already above {request.context}, or is the same; choose another."
                raise ApiError("INVALID_ARGUMENT", text, "childContexts")
        nodes.add_children(self._records, request.context, request.child_contexts)
        return messages.new("AddContextChildrenResponse")

    def remove_context_children(self, request: types.RemoveContextChildrenRequest) -> types.RemoveContextChildrenResponse:
        """Remove children from a context; the contexts themselves stay."""
        self._know(request.context, *request.child_contexts)
        for name in request.child_contexts:
            self._records.unlink(nodes.PARENT, name, request.context)
        return messages.new("RemoveContextChildrenResponse")

    def query_context_lineage_subgraph(self, request: types.QueryContextLineageSubgraphRequest) -> types.LineageSubgraph:
        """Return the nodes of a context and the events between them."""
        self._local.known(request.context)
        return _subgraph(nodes.of_context(self._records, request.context))

    # ------------------------------------------------------------------ schemas

    def create_metadata_schema(self, request: types.CreateMetadataSchemaRequest) -> types.MetadataSchema:
        """Record a schema; nodes are not checked against it."""
        messages.required(request, "metadata_schema.schema")
        self._local.known(request.parent)
        name = f"{request.parent}/{nodes.SCHEMAS}/{checked_id(request.metadata_schema_id, 'metadataSchemaId')}"
        document = {**messages.to_json(request.metadata_schema), "name": name, "createTime": now()}
        return messages.read(self._records.add(name, nodes.SCHEMAS, document), "MetadataSchema")

    def get_metadata_schema(self, request: types.GetMetadataSchemaRequest) -> types.MetadataSchema:
        """Return a schema that a client has made."""
        return messages.read(self._local.known(request.name), "MetadataSchema")

    def list_metadata_schemas(self, request: types.ListMetadataSchemasRequest) -> types.ListMetadataSchemasResponse:
        """Return one page of the schemas that clients have made."""
        return lists.answer(self._records, nodes.SCHEMAS, request, "MetadataSchema", "metadata_schemas")

    def _know(self, *names: str) -> None:
        for name in names:
            self._local.known(name)


def _subgraph(found: nodes.Subgraph) -> Any:
    """Return a subgraph as the API's message."""
    for what, count in (("artifacts", len(found.artifacts)), ("executions", len(found.executions)), ("events", len(found.events))):
        if count > _MOST_SHOWN:
            raise ApiError("FAILED_PRECONDITION", f"the subgraph has {count:,} {what}; at most {_MOST_SHOWN:,} are shown.")
    document = {"artifacts": [*found.artifacts.values()], "executions": [*found.executions.values()], "events": found.events}
    return messages.read(document, "LineageSubgraph")
