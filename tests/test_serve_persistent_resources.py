"""Persistent resources, copies of models and the locations that are no regions, by the SDK and by the handlers."""

from __future__ import annotations

import shutil
import subprocess

import pytest

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("cryptography", reason="without cryptography the service has no TLS")

from google.api_core import exceptions  # noqa: E402
from google.cloud import aiplatform  # noqa: E402
from google.cloud.aiplatform.persistent_resource import PersistentResource  # noqa: E402
from google.cloud.aiplatform_v1.types import ResourcePool  # noqa: E402
from test_local_support import environ, wait_for  # noqa: E402
from test_serve_rpc import IMAGE, PARENT, SLEEP, deploy, endpoint, house, refused  # noqa: E402, F401
from test_serve_support import Service, pool, write_object  # noqa: E402

from vertex_local.serve import messages  # noqa: E402

MACHINE = {"machine_spec": {"machine_type": "n1-standard-4"}, "replica_count": 2}
NAME = f"{PARENT}/persistentResources/trainers"


def make(house, *pools: dict, **fields):  # noqa: F811
    resource = {"resource_pools": list(pools) or [MACHINE], **fields}
    made = house.call("CreatePersistentResource", parent=PARENT, persistent_resource=resource, persistent_resource_id="trainers")
    return messages.kind("PersistentResource").FromString(made.response.value)


def create(house, source: str, *pools: dict, persistent: str = "trainers"):  # noqa: F811
    spec = {"workerPoolSpecs": list(pools) or [pool(source)], "persistentResourceId": persistent}
    job = messages.parse({"displayName": "x", "jobSpec": spec}, messages.new("CustomJob"))
    return house.call("CreateCustomJob", parent=PARENT, custom_job=job)


def test_a_job_runs_on_the_resource_that_it_names(house):  # noqa: F811
    made = make(house)
    assert made.name == NAME and messages.to_json(made)["state"] == "RUNNING" and made.resource_pools[0].id == "pool-0"
    job = create(house, SLEEP)
    wait_for(lambda: house.state(job.name) == "RUNNING")
    found = house.call("GetPersistentResource", name=NAME)
    assert (found.resource_pools[0].replica_count, found.resource_pools[0].used_replica_count) == (2, 1)
    text = refused(lambda: house.call("RebootPersistentResource", name=NAME), "FAILED_PRECONDITION")
    assert job.name in text and "cancel" in text
    deleted = house.done(house.call("DeletePersistentResource", name=NAME))
    assert not deleted.HasField("error") and house.state(job.name) == "CANCELLED", "its jobs are cancelled before it goes"
    assert "does not exist" in refused(lambda: create(house, "pass"), "NOT_FOUND", "jobSpec.persistentResourceId")


def test_a_job_that_does_not_fit_is_refused_before_it_is_kept(house):  # noqa: F811
    gpu = {"machine_type": "n1-standard-8", "accelerator_type": "NVIDIA_TESLA_T4", "accelerator_count": 1}
    make(house, MACHINE, {"machine_spec": gpu, "autoscaling_spec": {"min_replica_count": 1, "max_replica_count": 3}})
    machines = {"machineSpec": {"machineType": "n1-standard-8"}}
    text = refused(lambda: create(house, "", {**pool("pass"), **machines}), "INVALID_ARGUMENT", "jobSpec.workerPoolSpecs[0].machineSpec")
    assert "n1-standard-8 (pd-ssd)" in text and "n1-standard-8 with 1 NVIDIA_TESLA_T4" in text
    disk = {"diskSpec": {"bootDiskType": "pd-standard", "bootDiskSizeGb": 200}}
    refused(lambda: create(house, "", {**pool("pass"), **disk}), "INVALID_ARGUMENT", "jobSpec.workerPoolSpecs[0].machineSpec")
    workers = [pool("pass"), {}, pool("pass", replicas=2)]
    text = refused(lambda: create(house, "", *workers), "INVALID_ARGUMENT", "jobSpec.workerPoolSpecs[2].replicaCount")
    assert "3 machines of pool pool-0, which has 2" in text
    assert not house.local.records.list("customJobs")
    fits = {"machineSpec": {"machineType": "n1-standard-8", "acceleratorType": "NVIDIA_TESLA_T4", "acceleratorCount": 1}}
    assert create(house, "", pool("pass"), {**pool("pass", replicas=3), **fits}).name


def test_a_study_and_a_training_pipeline_are_checked_as_well(house):  # noqa: F811
    spec = {"workerPoolSpecs": [pool("pass")], "persistentResourceId": "trainers"}
    study = {
        "displayName": "s", "maxTrialCount": 1, "parallelTrialCount": 1, "trialJobSpec": spec,
        "studySpec": {
            "metrics": [{"metricId": "loss", "goal": "MINIMIZE"}],
            "parameters": [{"parameterId": "x", "doubleValueSpec": {"minValue": 1, "maxValue": 2}}],
        },
    }  # fmt: skip
    job = messages.parse(study, messages.new("HyperparameterTuningJob"))
    ask = {"parent": PARENT, "hyperparameter_tuning_job": job}
    refused(lambda: house.call("CreateHyperparameterTuningJob", **ask), "NOT_FOUND", "trialJobSpec.persistentResourceId")
    definition = "gs://google-cloud-aiplatform/schema/trainingjob/definition/custom_task_1.0.0.yaml"
    pipeline = {"displayName": "p", "trainingTaskDefinition": definition, "trainingTaskInputs": spec}
    made = messages.parse(pipeline, messages.new("TrainingPipeline"))
    ask = {"parent": PARENT, "training_pipeline": made}
    refused(lambda: house.call("CreateTrainingPipeline", **ask), "NOT_FOUND", "trainingTaskInputs.persistentResourceId")


@pytest.mark.parametrize(
    "resource, name, field",
    [
        ({}, "ok", "persistentResource.resourcePools"), ({"resource_pools": [MACHINE]}, "Bad", "persistentResourceId"),
        ({"resource_pools": [{"machine_spec": {}}]}, "ok", "persistentResource.resourcePools[0].machineSpec.machineType"),
        ({"resource_pools": [{"machine_spec": MACHINE["machine_spec"]}]}, "ok", "persistentResource.resourcePools[0].replicaCount"),
        ({"resource_pools": [{**MACHINE, "autoscaling_spec": {"min_replica_count": 3, "max_replica_count": 4}}]}, "ok",
         "persistentResource.resourcePools[0].autoscalingSpec"),
        ({"resource_pools": [{**MACHINE, "id": "a"}, {**MACHINE, "id": "a"}]}, "ok", "persistentResource.resourcePools"),
    ],
)  # fmt: skip
def test_a_resource_that_cannot_be_is_named(house, resource, name, field):  # noqa: F811
    ask = {"parent": PARENT, "persistent_resource": resource, "persistent_resource_id": name}
    refused(lambda: house.call("CreatePersistentResource", **ask), "INVALID_ARGUMENT", field)


def test_only_the_number_of_machines_changes(house):  # noqa: F811
    kept = make(house, {**MACHINE, "id": "a"}, {**MACHINE, "machine_spec": {"machine_type": "n1-standard-8"}})

    def update(*pools, **more):
        resource = {"name": NAME, "resource_pools": list(pools), **more}
        mask = {"paths": ["resource_pools.replica_count", *more]}
        return house.call("UpdatePersistentResource", persistent_resource=resource, update_mask=mask)

    one, two = kept.resource_pools
    one.replica_count = 5
    update(one, two, labels={"team": "x"})
    found = house.call("GetPersistentResource", name=NAME)
    assert [each.replica_count for each in found.resource_pools] == [5, 2] and dict(found.labels) == {"team": "x"}
    refused(lambda: update(one), "INVALID_ARGUMENT", "persistentResource.resourcePools")
    two.machine_spec.machine_type = "n1-standard-16"
    assert "n1" not in refused(lambda: update(one, two), "INVALID_ARGUMENT", "persistentResource.resourcePools.machineSpec")
    house.call("RebootPersistentResource", name=NAME)
    house.local.records.change(NAME, lambda document: document.update(state="ERROR"))
    assert "ERROR" in refused(lambda: create(house, "pass"), "FAILED_PRECONDITION", "jobSpec.persistentResourceId")
    refused(lambda: update(one, found.resource_pools[1]), "FAILED_PRECONDITION")
    assert not house.call("RebootPersistentResource", name=NAME).HasField("error")
    assert messages.to_json(house.call("GetPersistentResource", name=NAME))["state"] == "RUNNING", "a reboot mends it"


def test_a_copy_keeps_neither_aliases_nor_deployments(house, endpoint):  # noqa: F811
    house.call("MergeVersionAliases", name=f"{PARENT}/models/m", version_aliases=["good"])
    there = "projects/other/locations/europe-west4"
    house.done(house.call("CopyModel", parent=there, source_model=f"{PARENT}/models/m@good", model_id="copied"))
    found = house.call("GetModel", name=f"{there}/models/copied")
    assert found.display_name == "m" and list(found.version_aliases) == ["default"] and found.model_source_info.copy
    assert found.original_model_info.model == f"{PARENT}/models/m@1" and found.artifact_uri == "gs://bucket/model"
    house.call("CopyModel", parent=PARENT, source_model=f"{there}/models/copied", parent_model=f"{PARENT}/models/m")
    assert house.call("GetModel", name=f"{PARENT}/models/m@2").original_model_info.model == f"{there}/models/copied@1"
    assert list(house.call("GetModel", name=f"{PARENT}/models/m").version_aliases) == ["default", "good"]
    refused(lambda: house.call("CopyModel", parent=there, source_model=f"{PARENT}/models/n"), "NOT_FOUND")
    refused(lambda: house.call("CopyModel", parent=there), "INVALID_ARGUMENT", "sourceModel")
    refused(lambda: house.call("CopyModel", parent=there, source_model=f"{PARENT}/models/m", model_id="copied"), "ALREADY_EXISTS")


@pytest.mark.parametrize("location", ["us", "global"])
def test_locations_that_are_no_regions_hold_models_and_endpoints(house, endpoint, location):  # noqa: F811
    there = f"projects/p/locations/{location}"
    house.call("CopyModel", parent=there, source_model=f"{PARENT}/models/m", model_id="m")
    house.call("CreateEndpoint", parent=there, endpoint={"display_name": "e"}, endpoint_id="e")
    house.done(deploy(house, f"{there}/endpoints/e", "1", n1=100))
    answer = house.http("POST", f"{there}/endpoints/e:predict", {"instances": [3]})
    assert answer["predictions"] == [3.0] and answer["model"] == f"{there}/models/m"


# ------------------------------------------------------------------ the SDK


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("persistent"), "--project=my-project", "--region=us-central1")
    yield started
    assert started.stop() == 0


def test_the_sdk_makes_one_trains_on_it_and_deletes_it(service, monkeypatch):
    for name, value in service.endpoint.environment().items():
        monkeypatch.setenv(name, value)
    aiplatform.init(**service.init_arguments)
    resource = PersistentResource.create("mine", resource_pools=[ResourcePool(MACHINE)])
    assert resource.state.name == "RUNNING" and resource.name == "mine"
    container = {"image_uri": "host/any:1", "command": ["python", "-c", "print('here')"]}
    spec = [{"machine_spec": {"machine_type": "n1-standard-4"}, "replica_count": 1, "container_spec": container}]
    job = aiplatform.CustomJob("on-mine", worker_pool_specs=spec)
    job.run(persistent_resource_id="mine")
    assert job.state.name == "JOB_STATE_SUCCEEDED"
    with pytest.raises(exceptions.NotFound, match="persistentResources/other does not exist"):
        aiplatform.CustomJob("on-other", worker_pool_specs=spec).submit(persistent_resource_id="other")
    assert [each.name for each in PersistentResource.list()] == ["mine"]
    resource.reboot()
    resource.delete()
    assert not PersistentResource.list()


def test_the_sdk_copies_a_model(service, monkeypatch):
    for name, value in service.endpoint.environment().items():
        monkeypatch.setenv(name, value)
    aiplatform.init(**service.init_arguments)
    write_object(service, "bucket/model/saved_model.pb", b"")
    model = aiplatform.Model.upload(display_name="m", artifact_uri="gs://bucket/model", serving_container_image_uri=IMAGE)
    copied = model.copy(destination_location="europe-west4", destination_model_id="there")
    assert copied.resource_name == "projects/my-project/locations/europe-west4/models/there" and copied.uri == model.uri


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")
def test_gcloud_makes_lists_and_deletes_one(service, tmp_path):
    env = environ(**service.endpoint.environment(), CLOUDSDK_CONFIG=str(tmp_path), CLOUDSDK_CORE_DISABLE_PROMPTS="1")

    def gcloud(verb: str, *words: str) -> str:
        command = ["gcloud", "ai", "persistent-resources", verb, *words, "--region=us-central1"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    gcloud("create", "--persistent-resource-id=by-gcloud", "--resource-pool-spec=machine-type=n1-standard-4,replica-count=2")
    assert gcloud("list", "--format=value(resourcePools[0].replicaCount)").split() == ["2"]
    gcloud("delete", "by-gcloud")
    base = "/v1/projects/my-project/locations/us-central1"
    wait_for(lambda: not service.call("GET", "/persistentResources", base=base).get("persistentResources"))
