"""What the newest run of a pipeline on this machine left, by its file of ML Metadata."""

from __future__ import annotations

from dataclasses import dataclass

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2 as proto


@dataclass(frozen=True)
class Step:
    """A step of a run: its artifacts by the output's name, and whether TFX took them from an earlier run."""

    outputs: dict[str, list[proto.Artifact]]
    cached: bool

    def output(self, name: str) -> proto.Artifact:
        """Return the one artifact of an output."""
        return self.outputs[name][0]


def last_run(path: str) -> dict[str, Step]:
    """Return the steps of the newest run that a file of ML Metadata knows, by their name."""
    config = proto.ConnectionConfig(sqlite=proto.SqliteMetadataSourceConfig(filename_uri=path))
    store = mlmd.MetadataStore(config)
    newest = max(store.get_contexts_by_type("pipeline_run"), key=lambda context: context.id)
    executions = store.get_executions_by_context(newest.id)
    names = {each.id: each.name.rpartition(".")[2] for each in store.get_execution_types_by_id([each.type_id for each in executions])}
    return {names[each.type_id]: _step(store, each) for each in executions}


def _step(store: mlmd.MetadataStore, execution: proto.Execution) -> Step:
    events = store.get_events_by_execution_ids([execution.id])
    outputs: dict[str, list[proto.Artifact]] = {}
    for event in events:
        if event.type in (proto.Event.OUTPUT, proto.Event.DECLARED_OUTPUT, proto.Event.INTERNAL_OUTPUT):
            name = next((step.key for step in event.path.steps if step.HasField("key")), "")
            outputs.setdefault(name, []).extend(store.get_artifacts_by_id([event.artifact_id]))
    return Step(outputs, execution.last_known_state == proto.Execution.CACHED)
