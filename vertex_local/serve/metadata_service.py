"""google.cloud.aiplatform.v1.MetadataService: metadata stores, their artifacts, executions, contexts and events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..metadata import nodes
from . import messages
from .local import Local
from .metadata_nodes import Nodes
from .operations import OperationPool
from .rest import ApiError
from .standard_methods import Resources

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import types
    from google.longrunning import operations_pb2

_MOST_SHOWN = 1000  # nodes of each kind in a subgraph, by the API's reference
_TEXTS = ("display_name", "description", "labels", "metadata")


class MetadataService:
    """ML Metadata, as clients read and write it; `vertex_local.metadata` records what jobs leave there."""

    def __init__(self, local: Local, operations: OperationPool):
        self._local, self._records, self._operations = local, local.records, operations
        self._artifacts = Nodes(local, operations, "Artifact", nodes.ARTIFACTS, (*_TEXTS, "uri", "state"))
        executions = Nodes(local, operations, "Execution", nodes.EXECUTIONS, (*_TEXTS, "state"))
        contexts = Nodes(local, operations, "Context", nodes.CONTEXTS, _TEXTS)
        for each in (self._artifacts, executions, contexts):
            each.add_to(self, "create", "get", "list", "update", "delete", "purge")
        self._stores = Resources(local, operations, "MetadataStore", nodes.STORES, deletion="DeleteMetadataStoreOperationMetadata")
        self._stores.add_to(self, "get", "list", "delete")
        self._schemas = Resources(local, operations, "MetadataSchema", nodes.SCHEMAS)
        self._schemas.add_to(self, "get", "list")

    def create_metadata_store(self, request: types.CreateMetadataStoreRequest) -> operations_pb2.Operation:
        """Make a metadata store; the operation is done at once."""
        messages.unsupported(request.metadata_store, ("encryption_spec",), where="metadataStore.")
        kept = self._stores.add(request.parent, request.metadata_store, request.metadata_store_id)
        return self._operations.finished(request.parent, "CreateMetadataStoreOperationMetadata", ("MetadataStore", kept))

    # ------------------------------------------------------------------ artifacts and executions

    def query_artifact_lineage_subgraph(self, request: types.QueryArtifactLineageSubgraphRequest) -> types.LineageSubgraph:
        """Return what an artifact was made from and what was made from it."""
        self._local.known(request.artifact)
        if request.max_hops < 0:
            raise ApiError("INVALID_ARGUMENT", f"maxHops takes a whole number from 0 on; got {request.max_hops}.", "maxHops")
        accepts = self._artifacts.parsed(request.filter) if request.filter else None
        return _subgraph(nodes.around(self._records, request.artifact, request.max_hops or None, accepts))

    def add_execution_events(self, request: types.AddExecutionEventsRequest) -> types.AddExecutionEventsResponse:
        """Record which artifacts an execution has read and made."""
        self._local.known(request.execution)
        events = [messages.to_json(event) for event in request.events]
        for i, event in enumerate(request.events):
            kind, field = events[i].get("type"), f"events[{i}].type"
            if kind not in nodes.EVENTS:
                raise ApiError("INVALID_ARGUMENT", f"{field} takes {' or '.join(nodes.EVENTS)}; got {kind or 'nothing'}.", field)
            messages.required(event, "artifact", where=f"events[{i}].")
            self._local.known(event.artifact)
        for each in events:  # only now, when all of them are right
            artifact, kind = each["artifact"], each["type"]
            nodes.add_event(self._records, request.execution, artifact, kind, each.get("labels"), each.get("eventTime", ""))
        return messages.new("AddExecutionEventsResponse")

    def query_execution_inputs_and_outputs(self, request: types.QueryExecutionInputsAndOutputsRequest) -> types.LineageSubgraph:
        """Return an execution with its artifacts."""
        self._local.known(request.execution)
        return _subgraph(nodes.around(self._records, request.execution, hops=1))

    # ------------------------------------------------------------------ contexts

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
        return self._schemas.create(request)

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
