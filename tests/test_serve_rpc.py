"""The handlers of the local service called as RPCs, a message in and a message out, and as REST requests, in this process."""

from __future__ import annotations

import concurrent.futures
import fcntl
import io
import json
import shlex
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.datastructures import QueryParams
from test_local_support import wait_for
from test_serve_support import job_spec, pool

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")

from google.longrunning import operations_pb2  # noqa: E402

from vertex_local.job import times  # noqa: E402
from vertex_local.local import job_record, store  # noqa: E402
from vertex_local.local.plan import RunOptions
from vertex_local.serve import jobs, messages, operations, pipeline_service, predictor, routes, rpc  # noqa: E402
from vertex_local.serve.executor import Executor  # noqa: E402
from vertex_local.serve.local import Local  # noqa: E402
from vertex_local.serve.pipeline_workers import PipelineWorkers  # noqa: E402
from vertex_local.serve.rest import ApiError, Request  # noqa: E402
from vertex_local.serve.transcoding import Rest  # noqa: E402
from vertex_local.tuning import tune  # noqa: E402

PARENT = "projects/p/locations/us-central1"
SLEEP = "import time; time.sleep(300)"
IMAGE = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
# Stands in for the process that holds a SavedModel, which takes TensorFlow's time to start.
SERVES = f"""#!{sys.executable}
import json, sys, time
for line in sys.stdin:
    instances = json.loads(line)["instances"]
    if "never" in instances:
        time.sleep(300)
    if "dies" in instances:
        sys.exit()
    if "one" in instances:
        del instances[1:]
    print(json.dumps({{"predictions": instances}}), flush=True)
    if "deaf" in instances:
        time.sleep(300)
"""


class House:
    """The service's handlers and what they work with, without a server."""

    def __init__(self, folder, most: int = 2, waiting: int = 5000):
        program = folder / "serves"
        program.write_text(SERVES)
        program.chmod(0o755)
        state = store.private_folder(folder / "state")
        self.said: list[str] = []
        self.local = Local(
            state=state, buckets=folder / "buckets", project_dir=folder,
            options=RunOptions(state_dir=state, bucket_root=folder / "buckets", project_dir=folder), records=store.Store(state),
            executor=Executor(most, waiting), pipelines=Executor(most, waiting), workers=PipelineWorkers(folder, state / "serve"),
            predictors=predictor.Predictors(str(program), state / "models"), say=self.said.append,
        )  # fmt: skip
        self.pool = operations.OperationPool(self.local)
        self.methods = {method.name: method for method in routes.methods(self.local, self.pool)}
        self.rest = Rest(self.methods.values())

    def call(self, method: str, **fields):
        """Call an RPC with the fields of its request."""
        return self.methods[method].call(self.methods[method].request(**fields))

    def http(self, verb: str, path: str, body: object = None, **query: str) -> dict:
        data = b"" if body is None else json.dumps(body).encode()
        return self.rest.handle(Request(verb, f"/v1/{path}", QueryParams(query), {}, len(data), io.BytesIO(data)))

    def create(self, source: str, name: str = "x", **fields):
        job = messages.parse({"displayName": name, "jobSpec": job_spec(source), **fields}, messages.new("CustomJob"))
        return self.call("CreateCustomJob", parent=PARENT, custom_job=job)

    def state(self, name: str) -> str:
        return job_record.plain_state(self.local.known(name))

    def done(self, operation):
        found = self.call("WaitOperation", name=operation.name)
        assert found.done
        return found

    def close(self) -> None:
        self.local.executor.stop()
        self.local.predictors.stop_all()
        self.pool.stop()
        self.local.records.close()


@pytest.fixture
def house(tmp_path):
    opened = House(tmp_path)
    yield opened
    opened.close()


def refused(call, status: str, field: str | None = None) -> str:
    with pytest.raises(ApiError) as error:
        call()
    assert error.value.status == status and field in (None, error.value.field), (error.value.status, error.value.field, error.value)
    return error.value.message


# ------------------------------------------------------------------ jobs


@pytest.mark.parametrize("metrics, best", [(["loss", "size"], "2"), (["loss"], "1"), (["size", "loss"], "2")])
def test_the_model_of_a_tuning_pipeline_is_that_of_the_trial_that_the_study_calls_the_best(house, metrics, best):
    """A trial on the wrong side of a metric's threshold is not, however good its objective is."""
    known = {name: {"metricId": name, "goal": "MINIMIZE"} for name in ("loss", "size")}
    known["size"]["safetyConfig"] = {"safetyThreshold": 10}
    inputs = {
        "studySpec": {"metrics": [known[name] for name in metrics]}, "maxTrialCount": 3, "parallelTrialCount": 1,
        "trialJobSpec": {**job_spec("pass"), "baseOutputDirectory": {"outputUriPrefix": "gs://bucket/out/"}},
    }  # fmt: skip
    definition = "gs://google-cloud-aiplatform/schema/trainingjob/definition/hyperparameter_tuning_task_1.0.0.yaml"
    pipeline = {"displayName": "p", "trainingTaskDefinition": definition, "trainingTaskInputs": inputs}
    task = pipeline_service._task(house.local, messages.parse(pipeline, messages.new("TrainingPipeline")))
    values = ({"loss": 0.1, "size": 20}, {"loss": 0.2, "size": 5}, {"loss": 0.3, "size": 1})
    measured = [[{"metricId": name, "value": found[name]} for name in metrics] for found in values]
    trials = [{"id": str(i), "state": "SUCCEEDED", "finalMeasurement": {"metrics": each}} for i, each in enumerate(measured, 1)]
    assert task.model_folder({"trials": [*trials, {"id": "4", "state": "INFEASIBLE"}]}) == f"gs://bucket/out/{best}/model"
    assert "no trial succeeded" in refused(lambda: task.model_folder({}), "FAILED_PRECONDITION")


def test_a_job_is_a_message_in_and_out(house):
    made = house.create("print('hello')", labels={"stage": "dev"})
    assert made.DESCRIPTOR.full_name == "google.cloud.aiplatform.v1.CustomJob" and messages.to_json(made)["state"] == "JOB_STATE_PENDING"
    got = wait_for(lambda: (job := house.call("GetCustomJob", name=made.name)).end_time.seconds and job)
    assert got.job_spec == made.job_spec and dict(got.labels) == {"stage": "dev"}
    assert house.state(made.name) == "SUCCEEDED"
    assert [job.name for job in house.call("ListCustomJobs", parent=PARENT).custom_jobs] == [made.name]


def test_a_job_is_held_until_its_end_is_recorded(house, monkeypatch):
    """Else `list`, in another process, could take it for one that was killed."""
    held, end = [], job_record.end

    def noted(records, name, *rest):
        held.append(job_record.is_held(house.local.state / "jobs" / name.rpartition("/")[2]))
        end(records, name, *rest)

    monkeypatch.setattr(job_record, "end", noted)
    made = house.create("pass")
    wait_for(lambda: house.state(made.name) == "SUCCEEDED")
    assert held == [True]


def test_jobs_that_wait_hold_no_thread_and_can_be_cancelled(house):
    before = threading.active_count()
    names = [house.create(SLEEP).name for _ in range(100)]
    assert threading.active_count() <= before + 2
    house.call("CancelCustomJob", name=names[50])
    assert house.state(names[50]) == "CANCELLED" and house.local.known(names[50])["error"] == jobs.CANCELED
    assert not (house.local.state / "jobs" / names[50].rpartition("/")[2]).exists(), "it never began"
    refused(lambda: house.call("CancelCustomJob", name=names[50]), "FAILED_PRECONDITION")
    house.local.executor.stop()
    ends = [house.local.known(name) for name in names]
    assert {job_record.plain_state(each) for each in ends} == {"FAILED", "CANCELLED"}
    assert sum(each["error"].get("message") == jobs.STOPPED for each in ends) == 99


def test_there_is_an_end_to_the_queue(tmp_path):
    house = House(tmp_path, most=1, waiting=2)
    try:
        for _ in range(3):
            house.create(SLEEP)
        assert "wait" in refused(lambda: house.create(SLEEP), "RESOURCE_EXHAUSTED")
        assert house.local.records.count("customJobs", PARENT) == 3, "what was refused left nothing"
    finally:
        house.close()


def test_a_job_that_waits_is_not_lost_while_its_service_is_there(house):
    name = f"{PARENT}/customJobs/1"
    job_record.add(house.local.records, name, "customJobs", {"displayName": "x"})
    own = store.private_folder(house.local.state / "serve")
    with open(own / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert job_record.settle(house.local.records, house.local.state) == []
        assert job_record.settle(house.local.records, house.local.state, queued=True) == [name]
    assert house.local.known(name)["error"]["code"] == 14


def test_a_study_whose_service_was_killed_is_continued_by_the_command_that_its_error_names(house, capsys):
    report = (
        "import hypertune,sys\nx = float(sys.argv[-1].partition('=')[2])\n"
        "hypertune.HyperTune().report_hyperparameter_tuning_metric('loss', x, 1)"
    )
    parameter = {"parameterId": "x", "scaleType": "UNIT_LINEAR_SCALE", "doubleValueSpec": {"minValue": 0, "maxValue": 1}}
    study = {"metrics": [{"metricId": "loss", "goal": "MINIMIZE"}], "parameters": [parameter], "algorithm": "RANDOM_SEARCH"}
    body = {"displayName": "hp", "studySpec": study, "maxTrialCount": 1, "parallelTrialCount": 1, "trialJobSpec": job_spec(report)}
    name = house.http("POST", f"{PARENT}/hyperparameterTuningJobs", body)["name"]
    wait_for(lambda: house.state(name) == "SUCCEEDED")
    house.local.records.change(name, lambda document: document.update(state="JOB_STATE_RUNNING"))  # as a kill leaves it
    assert jobs.settle(house.local) == 1
    message = house.local.known(name)["error"]["message"]
    assert "create it again" in message
    words = shlex.split(message.partition("continue it: ")[2])
    assert words[:4] == ["python", "-m", "vertex_local", "tune"]
    assert tune.main(words[4:]) == 0


def test_pages_go_on_where_they_were_though_the_states_change(house):
    for i in range(9):
        job_record.add(house.local.records, f"{PARENT}/customJobs/{i}", "customJobs", {"displayName": f"job-{i}"})
    page = house.call("ListCustomJobs", parent=PARENT, filter="state=JOB_STATE_PENDING", page_size=4)
    seen = [job.display_name for job in page.custom_jobs]
    for i in (8, 5, 1):
        job_record.running(house.local.records, f"{PARENT}/customJobs/{i}")
    while page.next_page_token:
        page = house.call(
            "ListCustomJobs", parent=PARENT, filter="state=JOB_STATE_PENDING", page_size=4, page_token=page.next_page_token
        )
        seen += [job.display_name for job in page.custom_jobs]
    assert seen == [f"job-{i}" for i in (8, 7, 6, 5, 4, 3, 2, 0)]
    refused(lambda: house.call("ListCustomJobs", parent=PARENT, page_token="x"), "INVALID_ARGUMENT", "pageToken")


def test_what_runs_is_not_lost_for_another_process(house):
    task = "gs://google-cloud-aiplatform/schema/trainingjob/definition/custom_task_1.0.0.yaml"
    body = {"displayName": "x", "trainingTaskDefinition": task, "trainingTaskInputs": job_spec(SLEEP)}
    pipeline = house.http("POST", f"{PARENT}/trainingPipelines", body)["name"]
    backing = wait_for(lambda: house.local.known(pipeline).get("trainingTaskMetadata", {}).get("backingCustomJob"))
    wait_for(lambda: house.state(backing) == "RUNNING")
    assert job_record.settle(house.local.records, house.local.state) == []
    house.call("CancelTrainingPipeline", name=pipeline)
    wait_for(lambda: house.state(pipeline) == house.state(backing) == "CANCELLED")


@pytest.mark.parametrize("count", [0, "0"])
def test_no_replicas_are_none(house, count):
    """A message cannot tell 0 from nothing, but a request's text can."""
    pools = [pool("pass"), {**pool("pass"), "replicaCount": count}]
    body = {"displayName": "x", "jobSpec": {"workerPoolSpecs": pools}}
    field = "jobSpec.workerPoolSpecs[1].replicaCount"
    assert "{}" in refused(lambda: house.http("POST", f"{PARENT}/customJobs", body), "INVALID_ARGUMENT", field)
    task = "gs://google-cloud-aiplatform/schema/trainingjob/definition/custom_task_1.0.0.yaml"
    body = {"displayName": "x", "trainingTaskDefinition": task, "trainingTaskInputs": {"workerPoolSpecs": pools}}
    field = "trainingTaskInputs.workerPoolSpecs[1].replicaCount"
    refused(lambda: house.http("POST", f"{PARENT}/trainingPipelines", body), "INVALID_ARGUMENT", field)


def test_a_requests_texts_are_kept_as_they_are(house):
    texts = ["--bucket=${BUCKET}", "\x85", "a\u2028b", "\ufeff", "yes", "0x10", "${HOME}"]
    body = {"displayName": "${BUCKET}", "jobSpec": job_spec("import sys; print(ascii(sys.argv[1:]))", *texts)}
    made = house.http("POST", f"{PARENT}/customJobs", body)
    assert made["displayName"] == "${BUCKET}" and made["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["args"] == texts
    wait_for(lambda: house.state(made["name"]) == "SUCCEEDED")
    log = house.local.state / "jobs" / made["name"].rpartition("/")[2] / "logs" / "workerpool0-0.log"
    assert log.read_text() == ascii(texts) + "\n"


# ------------------------------------------------------------------ REST


@pytest.mark.parametrize(
    "query, field",
    [({"pageSize": "٣"}, "pageSize"), ({"pageSize": "1_0"}, "pageSize"), ({"pageSize": "-1"}, "pageSize"), ({"orderBy": "x"}, "orderBy")],
)
def test_a_parameter_that_does_not_fit_is_named(house, query, field):
    refused(lambda: house.http("GET", f"{PARENT}/customJobs", **query), "INVALID_ARGUMENT", field)


@pytest.mark.parametrize("name", ["customJob.labels.a", "customJob.jobSpec.workerPoolSpecs.replicaCount", "parent.x", "customJob.name.x"])
def test_a_parameter_for_a_part_of_what_has_none_is_refused(house, name):
    body = {"displayName": "x", "jobSpec": job_spec("pass")}
    told = refused(lambda: house.http("POST", f"{PARENT}/customJobs", body, **{name: "1"}), "INVALID_ARGUMENT")
    assert "no parameter sets a part of" in told and not house.local.records.list("customJobs")


def test_parameters_of_every_google_api_say_nothing(house):
    system = {"$alt": "json;enum-encoding=int", "prettyPrint": "false", "key": "k", "fields": "*"}
    assert house.http("GET", f"{PARENT}/customJobs", **{"page_size": "5", **system}) == {}


def test_a_name_with_a_nul_is_refused(house):
    refused(lambda: house.create("pass", "a\0b"), "INVALID_ARGUMENT", "customJob.displayName")
    refused(lambda: house.create("pass\0"), "INVALID_ARGUMENT", "customJob.jobSpec.workerPoolSpecs.containerSpec.command")
    refused(lambda: house.create("pass", labels={"a": "\0"}), "INVALID_ARGUMENT", "customJob.labels")
    refused(lambda: house.http("GET", f"{PARENT}/customJobs/1\0"), "INVALID_ARGUMENT", "name")
    assert not house.local.records.count("customJobs")


@pytest.mark.parametrize(
    "verb, path, says",
    [
        ("GET", "tensorboards/1/experiments/e/runs/r/timeSeries/1:readBlobData", "does not imitate Blobs of TensorBoard"),
        ("GET", "tensorboards/1:readSize", "does not imitate Figures on TensorBoard's size"),
        ("POST", "modelDeploymentMonitoringJobs", "does not imitate Model monitoring"),
        ("GET", "featurestores", "does not imitate Feature Store"),
        ("GET", "nothings", "nothings: GET is not imitated"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_as_a_feature(house, verb, path, says):
    assert says in refused(lambda: house.http(verb, f"{PARENT}/{path}"), "UNIMPLEMENTED")


def test_every_rpc_is_reached_by_rest_and_by_grpc(house):
    for method in house.methods.values():
        assert any(rule["uri"].startswith("/v1/") for rule in method.http_rules()), method.name
    assert "/google.cloud.aiplatform.v1.JobService/CreateCustomJob" in house.methods["CreateCustomJob"].full_names()
    assert len(house.methods) >= 40 and rpc.pascal("create_custom_job") == "CreateCustomJob"


# ------------------------------------------------------------------ models and endpoints


@pytest.fixture
def endpoint(house):
    folder = house.local.buckets / "bucket" / "model"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").touch()
    model = {"display_name": "m", "artifact_uri": "gs://bucket/model", "container_spec": {"image_uri": IMAGE}}
    house.done(house.call("UploadModel", parent=PARENT, model=model, model_id="m"))
    house.call("CreateEndpoint", parent=PARENT, endpoint={"display_name": "e"}, endpoint_id="e")
    return f"{PARENT}/endpoints/e"


def deploy(house, endpoint: str, number: str, **split: int):
    split = {key.removeprefix("n"): share for key, share in split.items()}
    return house.call("DeployModel", endpoint=endpoint, deployed_model={"model": "m", "id": number}, traffic_split=split)


def ask(house, endpoint: str, *instances: object):
    return house.call("Predict", endpoint=endpoint, instances=[messages.value(each) for each in instances])


def test_a_model_gets_no_traffic_but_what_it_is_given(house, endpoint):
    assert not house.done(deploy(house, endpoint, "1")).HasField("error")
    assert not house.call("GetEndpoint", name=endpoint).traffic_split
    assert "trafficSplit" in refused(lambda: ask(house, endpoint, 1), "FAILED_PRECONDITION")
    house.call("UpdateEndpoint", endpoint={"name": endpoint, "traffic_split": {"1": 100}}, update_mask={"paths": ["traffic_split"]})
    answer = ask(house, endpoint, 1, 2.5, {"a": [True, None]})
    assert [messages.plain(each) for each in answer.predictions] == [1, 2.5, {"a": [True, None]}] and answer.deployed_model_id == "1"


def test_of_two_deployments_at_once_one_gets_the_traffic(house, endpoint, monkeypatch):
    made = [deploy(house, endpoint, number, n0=100) for number in ("1", "2")]
    ends = [house.done(operation) for operation in made]
    found = house.call("GetEndpoint", name=endpoint)
    succeeded = [end for end in ends if not end.HasField("error")]
    assert len(found.deployed_models) == len(succeeded) >= 1
    assert sum(found.traffic_split.values()) == 100
    stopped: list[str] = []
    monkeypatch.setattr(house.local.predictors, "stop", stopped.append)
    same = [deploy(house, endpoint, "3", n3=100) for _ in range(2)]
    errors = [end.error.code for end in map(house.done, same)]
    assert sorted(errors) == [0, 6] and not stopped, "of two with one id, one is there already and keeps its process"
    monkeypatch.undo()


def test_requests_that_wait_for_a_model_that_hangs_are_answered(house, endpoint, monkeypatch):
    house.done(deploy(house, endpoint, "1", n0=100))
    monkeypatch.setattr(predictor, "ANSWER", 1.0)

    def outcome(instance: object) -> str:
        try:
            return ask(house, endpoint, instance).deployed_model_id
        except ApiError as error:
            return error.status

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(outcome, ["never", 1, 2, 3, 4, 5]))
    assert found[0] == "UNAVAILABLE" and set(found) <= {"1", "UNAVAILABLE"}
    monkeypatch.setattr(predictor, "ANSWER", 60.0)
    assert outcome(1) == "1", "it is started again"


def test_a_model_that_gives_one_prediction_for_several_instances_is_told(house, endpoint):
    house.done(deploy(house, endpoint, "1", n0=100))
    assert "gives 1 predictions for 2 instances" in refused(lambda: ask(house, endpoint, "one", "two"), "FAILED_PRECONDITION")


def test_a_models_process_is_not_blamed_for_what_an_earlier_one_said(house, endpoint):
    house.done(deploy(house, endpoint, "1", n0=100))
    (log,) = (house.local.state / "models").glob("*.log")
    log.write_text("error: the disk was full, long ago\n")
    assert "the model's process ended: it said nothing" in refused(lambda: ask(house, endpoint, "dies"), "FAILED_PRECONDITION")


def test_a_model_that_reads_no_requests_is_started_again(house, endpoint, monkeypatch):
    """The time limit is also that of writing: a request may be larger than what lies between two processes."""
    house.done(deploy(house, endpoint, "1", n0=100))
    ask(house, endpoint, "deaf")
    monkeypatch.setattr(predictor, "ANSWER", 1.0)
    late = threading.Timer(20, house.local.predictors.stop_all)
    late.start()
    assert "did not answer within 1 s" in refused(lambda: ask(house, endpoint, "x" * 1_000_000), "UNAVAILABLE")
    late.cancel()
    assert ask(house, endpoint, 1).deployed_model_id == "1"


def test_only_so_many_requests_wait_for_one_model(house, endpoint, monkeypatch):
    house.done(deploy(house, endpoint, "1", n0=100))
    monkeypatch.setattr(predictor, "ANSWER", 2.0)
    ready = threading.Barrier(20)

    def outcome(instance: object) -> str:
        ready.wait()
        try:
            return ask(house, endpoint, instance).deployed_model_id
        except ApiError as error:
            return error.status

    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(outcome, ["never"] * 20))
    assert found.count("RESOURCE_EXHAUSTED") >= 1 and set(found) <= {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}


def test_an_alias_may_have_capitals(house, endpoint):
    merged = house.call("MergeVersionAliases", name=f"{PARENT}/models/m", version_aliases=["newBest", "v2"])
    assert list(merged.version_aliases) == ["default", "newBest", "v2"]
    assert house.call("GetModel", name=f"{PARENT}/models/m@newBest").version_id == "1"


def test_an_update_of_aliases_keeps_their_rules(house, endpoint):
    model = {"display_name": "m", "artifact_uri": "gs://bucket/model", "container_spec": {"image_uri": IMAGE}, "version_aliases": ["two"]}
    house.done(house.call("UploadModel", parent=PARENT, model=model, parent_model="m"))
    name = f"{PARENT}/models/m"

    def update(version: str, *aliases: str):
        changed = {"name": f"{name}@{version}", "version_aliases": aliases}
        return house.call("UpdateModel", model=changed, update_mask={"paths": ["version_aliases"]})

    assert "cannot be taken away" in refused(lambda: update("1", "one"), "INVALID_ARGUMENT", "versionAliases")
    refused(lambda: update("1", "default", "No"), "INVALID_ARGUMENT", "model.versionAliases")
    assert list(update("1", "default", "two").version_aliases) == ["default", "two"]
    assert list(house.call("GetModel", name=f"{name}@2").version_aliases) == [], "an alias belongs to one version"
    assert list(update("2", "default").version_aliases) == ["default"] and house.call("GetModel", name=name).version_id == "2"
    assert "cannot be taken away" in refused(
        lambda: house.call("MergeVersionAliases", name=name, version_aliases=["-default"]), "INVALID_ARGUMENT"
    )
    for wrong in ("New", "a", "a-", "1a", "a_b", "aB"):
        refused(lambda: house.call("MergeVersionAliases", name=f"{PARENT}/models/m", version_aliases=[wrong]), "INVALID_ARGUMENT")


# ------------------------------------------------------------------ operations


def test_whoever_waits_for_an_operation_is_told_at_once(house):
    go = threading.Event()

    def work() -> tuple[str, dict]:
        go.wait(60)
        return "ExportDataResponse", {"exportedFiles": ["gs://a/b"]}

    operation = house.pool.begin(PARENT, "ExportDataOperationMetadata", work)
    assert not operation.done and operation.metadata.type_url.endswith(".v1.ExportDataOperationMetadata")
    early = operations_pb2.WaitOperationRequest(name=operation.name, timeout={"nanos": 1000})
    assert not house.methods["WaitOperation"].call(early).done
    with ThreadPoolExecutor(1) as threads:  # more seconds than a datetime holds, which gRPC lets through
        long = operations_pb2.WaitOperationRequest(name=operation.name, timeout={"seconds": 1 << 62})
        waiting = threads.submit(house.methods["WaitOperation"].call, long)
        assert concurrent.futures.wait([waiting], 0.2).not_done
        go.set()
        assert waiting.result().done
    go.clear()
    operation = house.pool.begin(PARENT, "ExportDataOperationMetadata", work)
    refused(lambda: house.call("DeleteOperation", name=operation.name), "FAILED_PRECONDITION")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(house.call, "WaitOperation", name=operation.name)
        go.set()
        assert waiting.result().response.type_url.endswith(".v1.ExportDataResponse")
    assert house.call("ListOperations", name=PARENT).operations[0].done
    house.call("DeleteOperation", name=operation.name)
    refused(lambda: house.call("GetOperation", name=operation.name), "NOT_FOUND")


def test_operations_of_a_service_that_was_killed_have_failed(house):
    days = {"1": (0, False), "2": (0, True), "3": (operations.KEPT_DAYS + 1, True), "4": (operations.KEPT_DAYS + 1, False)}
    for number, (age, done) in days.items():
        name, made = f"{PARENT}/operations/{number}", times.text(time.time() - age * 86_400)
        house.local.records.add(name, "operations", {"name": name, "done": done, "createTime": made})
    operations.settle(house.local.records)
    for number in ("1", "4"):
        found = house.call("GetOperation", name=f"{PARENT}/operations/{number}")
        assert found.done and found.error.code == 14
    assert house.call("GetOperation", name=f"{PARENT}/operations/2").done
    refused(lambda: house.call("GetOperation", name=f"{PARENT}/operations/3"), "NOT_FOUND")
