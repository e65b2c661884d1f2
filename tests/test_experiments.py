"""Experiments and ML Metadata of the local service, asked by the real Python SDK: runs, artifacts, executions, contexts, filters."""

from __future__ import annotations

import pytest

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("cryptography", reason="without cryptography the service has no TLS")

from google.api_core import exceptions  # noqa: E402
from google.cloud import aiplatform  # noqa: E402
from google.cloud.aiplatform.metadata import metadata as sdk_metadata  # noqa: E402
from google.cloud.aiplatform_v1.types import metadata_service as messages  # noqa: E402

from vertex_local.testing import service, service_process  # noqa: E402, F401 - fixtures

STATE = aiplatform.gapic.Execution.State


@pytest.fixture
def sdk(service):  # noqa: F811
    """The SDK, led to an empty service, with no experiment of an earlier test in its memory."""
    sdk_metadata._experiment_tracker.reset()
    sdk_metadata._experiment_tracker._global_tensorboard = None
    aiplatform.init(**service.init_arguments)
    yield aiplatform
    sdk_metadata._experiment_tracker.reset()
    sdk_metadata._experiment_tracker._global_tensorboard = None


@pytest.fixture
def parent(sdk, service):  # noqa: F811
    """The default metadata store, by its full name."""
    sdk.Experiment.get_or_create("any")
    return f"projects/{service.endpoint.project}/locations/{service.endpoint.region}/metadataStores/default"


def client(sdk):
    """The API's own client, for what the SDK's classes do not offer."""
    return sdk.Context._instantiate_client()


# ------------------------------------------------------------------ experiments


def test_the_default_instance_backs_an_experiment(sdk, service):  # noqa: F811
    for name in ("first", "second"):  # what another program would find
        sdk_metadata._experiment_tracker.reset()
        sdk.init(**service.init_arguments, experiment=name)
        assert sdk.Experiment(name).get_backing_tensorboard_resource().gca_resource.is_default
    assert len(sdk.Tensorboard.list(filter="is_default=true")) == len(sdk.Tensorboard.list()) == 1


def test_the_state_of_a_run_and_what_belongs_to_it(sdk, parent):
    run = sdk.ExperimentRun.create("r", experiment=sdk.Experiment.create("e"))
    run.update_state(STATE.CANCELLED)
    execution = sdk.Execution.create("system.ContainerExecution", credentials=sdk.initializer.global_config.credentials)
    run.associate_execution(execution)
    assert sdk.ExperimentRun("r", "e").get_state() == "CANCELLED" and [each.name for each in run.get_executions()] == [execution.name]
    with pytest.raises(exceptions.Conflict, match="exists already"):
        client(sdk).create_context(parent=parent, context={"schema_title": "system.Experiment"}, context_id="e")
    run.delete()
    assert sdk.ExperimentRun.get("r", experiment="e") is None and sdk.Execution(execution.name).name == execution.name


# ------------------------------------------------------------------ artifacts, executions, contexts


def test_artifacts_are_found_by_what_they_are(sdk, parent):
    made = [
        sdk.Artifact.create("system.Dataset", uri=f"gs://b/{i}", display_name=f"rows {i}", metadata={"rows": i * 10, "a:b": {"c": "x"}})
        for i in range(4)
    ]
    other = sdk.Artifact.create("system.Model", uri="gs://b/0", metadata={"rows": "10", "ok": True})

    def found(text: str) -> set[str]:
        return {each.name for each in sdk.Artifact.list(filter=text)}

    names = [each.name for each in made]
    assert found('schema_title="system.Dataset"') == set(names) and found('uri="gs://b/0"') == {names[0], other.name}
    assert found("metadata.rows.number_value >= 20.0") == set(names[2:]) and found('metadata.rows.string_value="10"') == {other.name}
    assert found("metadata.ok.bool_value = true") == {other.name}
    assert found('display_name="rows 1" OR display_name="rows 2"') == set(names[1:3])
    assert found('schema_title="system.Dataset" AND NOT uri="gs://b/3"') == set(names[:3])
    assert found('metadata."a:b".struct_value:c') == set(names) and found('create_time > "2020-01-01T00:00:00Z"') == {*names, other.name}
    assert sdk.Artifact.get_with_uri("gs://b/3").name == names[3] and sdk.Artifact.get(names[0]).metadata["rows"] == 0
    with pytest.raises(exceptions.BadRequest, match="functions are not supported"):
        found("starts_with(uri)")


def test_events_are_recorded_together_or_not_at_all(sdk, parent):
    execution = client(sdk).create_execution(parent=parent, execution={"schema_title": "system.ContainerExecution"}).name
    made = sdk.Artifact.create("system.Dataset", uri="gs://b/0")
    right, wrong = {"artifact": made.resource_name, "type_": "OUTPUT"}, {"artifact": made.resource_name}
    with pytest.raises(exceptions.BadRequest, match=r"events\[1\].type takes INPUT or OUTPUT; got nothing"):
        client(sdk).add_execution_events(execution=execution, events=[right, wrong])
    assert not client(sdk).query_execution_inputs_and_outputs(execution=execution).events


def test_what_belongs_to_a_context_is_found_page_by_page(sdk, parent):
    context = sdk.Context.create("system.Experiment", resource_id="box")
    inside = [sdk.Artifact.create("system.Artifact", uri=f"gs://b/{i}") for i in range(5)]
    sdk.Artifact.create("system.Artifact", uri="gs://b/outside")
    context.add_artifacts_and_executions([each.resource_name for each in inside])
    request = {"parent": parent, "filter": f'in_context("{context.resource_name}") AND schema_title="system.Artifact"', "page_size": 2}
    pages = list(client(sdk).list_artifacts(request=request).pages)
    assert [len(page.artifacts) for page in pages] == [2, 2, 1]
    assert {each.name for page in pages for each in page.artifacts} == {each.resource_name for each in inside}
    assert [each.name for each in context.get_artifacts()] and context.query_lineage_subgraph().artifacts


def test_contexts_stand_below_each_other(sdk, parent):
    above, middle, below = (sdk.Context.create("system.Experiment", resource_id=name) for name in ("above", "middle", "below"))
    above.add_context_children([middle])
    middle.add_context_children([below])
    assert [each.name for each in sdk.Context.list(filter=f'parent_contexts:"{above.resource_name}"')] == ["middle"]
    assert [each.name for each in sdk.Context.list(filter=f'child_contexts:"{below.resource_name}"')] == ["middle"]
    assert list(sdk.Context("below").parent_contexts) == [middle.resource_name]
    with pytest.raises(exceptions.BadRequest, match="already above"):
        below.add_context_children([above])
    client(sdk).remove_context_children(request={"context": above.resource_name, "child_contexts": [middle.resource_name]})
    assert not sdk.Context("middle").parent_contexts


def test_lineage_goes_both_ways(sdk, parent):
    raw, rows, model, unused = (sdk.Artifact.create("system.Artifact", uri=f"gs://b/{name}") for name in ("raw", "rows", "model", "unused"))
    made = []
    for source, target in ((raw, rows), (rows, model)):
        step = sdk.Execution.create("system.ContainerExecution", credentials=sdk.initializer.global_config.credentials)
        step.assign_input_artifacts([source])
        step.assign_output_artifacts([target])
        made.append(step.resource_name)

    def asked(artifact, **fields):
        found = client(sdk).query_artifact_lineage_subgraph(
            messages.QueryArtifactLineageSubgraphRequest(artifact=artifact.resource_name, **fields)
        )
        return {each.uri for each in found.artifacts}, {each.name for each in found.executions}, len(found.events)

    assert asked(rows) == ({"gs://b/raw", "gs://b/rows", "gs://b/model"}, set(made), 4)
    assert asked(model, max_hops=2) == ({"gs://b/rows", "gs://b/model"}, {made[1]}, 2)
    assert asked(model, filter='uri != "gs://b/rows"') == ({"gs://b/model"}, {made[1]}, 1)
    assert asked(unused) == ({"gs://b/unused"}, set(), 0)
    rows.delete()
    assert asked(model) == ({"gs://b/model"}, {made[1]}, 1)


def test_updates_keep_what_they_do_not_name_and_heed_etags(sdk, parent):
    artifact = sdk.Artifact.create("system.Model", uri="gs://b/m", display_name="m", metadata={"a": 1, "b": 2})
    api, name = client(sdk), artifact.resource_name
    api.update_artifact(request={"artifact": {"name": name, "display_name": "n"}, "update_mask": {"paths": ["display_name"]}})
    with pytest.raises(exceptions.GoogleAPICallError, match="has been changed since it was read"):
        artifact.update(metadata={"a": 3})
    artifact.sync_resource()
    artifact.update(metadata={"a": 3}, description="told")
    kept = sdk.Artifact(artifact.name)
    assert (kept.display_name, kept.uri, kept.metadata, kept.description) == ("n", "gs://b/m", {"a": 3.0, "b": 2.0}, "told")
    with pytest.raises(exceptions.NotFound):
        api.update_artifact(request={"artifact": {"name": f"{name}x"}})
    made = api.update_artifact(request={"artifact": {"name": f"{parent}/artifacts/new", "uri": "gs://b/n"}, "allow_missing": True})
    assert made.name.endswith("/new") and sdk.Artifact("new").uri == "gs://b/n"


def test_what_cannot_be_is_refused_with_its_field(sdk, parent):
    api = client(sdk)
    for ask, says in (
        (lambda: api.create_artifact(parent=parent, artifact={}, artifact_id="No_Id"), "artifactId has 1 to 128"),
        (lambda: api.create_context(parent=parent, context={}, context_id="-x"), "contextId has 1 to 128"),
        (lambda: api.list_artifacts(request={"parent": parent, "filter": 'in_context("'}), "filter"),
        (lambda: api.add_execution_events(execution=sdk.Execution.create("x", credentials=sdk.initializer.global_config.credentials)
                                          .resource_name, events=[{"artifact": f"{parent}/artifacts/a"}]), "type takes INPUT or OUTPUT"),
        (lambda: api.purge_artifacts(request={"parent": parent}), "filter is required"),
    ):  # fmt: skip
        with pytest.raises(exceptions.BadRequest, match=says):
            ask()
    for ask in (
        lambda: api.create_artifact(parent=f"{parent}x", artifact={}), lambda: api.get_context(name=f"{parent}/contexts/none"),
        lambda: api.add_context_artifacts_and_executions(context=f"{parent}/contexts/any", artifacts=[f"{parent}/artifacts/none"]),
    ):  # fmt: skip
        with pytest.raises(exceptions.NotFound):
            ask()


def test_purging_names_first_and_removes_when_forced(sdk, parent):
    for i in range(3):
        sdk.Artifact.create("system.Artifact", uri=f"gs://b/{i}")
    request = {"parent": parent, "filter": 'uri="gs://b/1" OR uri="gs://b/2"'}
    told = client(sdk).purge_artifacts(request=request).result()
    assert told.purge_count == 2 == len(told.purge_sample) and len(sdk.Artifact.list()) == 3
    assert client(sdk).purge_artifacts(request={**request, "force": True}).result().purge_count == 2
    assert [each.uri for each in sdk.Artifact.list()] == ["gs://b/0"]


def test_stores_and_schemas(sdk, parent):
    api, location = client(sdk), parent.rpartition("/metadataStores/")[0]
    store = api.create_metadata_store(parent=location, metadata_store={}, metadata_store_id="mine").result().name
    schema = api.create_metadata_schema(parent=store, metadata_schema={"schema": "title: x", "schema_version": "0.0.1"})
    assert [each.name for each in api.list_metadata_schemas(parent=store)] == [schema.name] and api.get_metadata_schema(name=schema.name)
    api.create_artifact(parent=store, artifact={"uri": "gs://b/x"})
    assert {each.name for each in api.list_metadata_stores(parent=location)} == {store, parent}
    api.delete_metadata_store(name=store).result()
    assert [each.name for each in api.list_metadata_stores(parent=location)] == [parent]
    with pytest.raises(exceptions.NotFound):
        api.list_artifacts(parent=store)
