"""Batch predictions: the real SDK against the local service, with a trained model, and their files read and written."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re
import shutil
import struct
import threading
import tracemalloc

import pytest
from conftest import ROOT
from test_cloud_support import call
from test_local_support import alive, wait_for
from test_serve_support import Service, echo_service, mark_of, write_object

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")

from google.cloud import aiplatform  # noqa: E402

from vertex_local.__main__ import main  # noqa: E402
from vertex_local.serve import batch, instances  # noqa: E402
from vertex_local.serve.instances import Config, Unreadable  # noqa: E402
from vertex_local.serve.rest import ApiError  # noqa: E402

SERVING = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
PARENT = "/v1/projects/your-project/locations/us-central1"
RIDE = {
    "pickup_datetime": "2010-03-23 06:49:00+00:00", "pickup_longitude": -73.98, "pickup_latitude": 40.75, "dropoff_longitude": -73.96,
    "dropoff_latitude": 40.78, "passenger_count": 1,
}  # fmt: skip


def rides(count: int) -> list[dict]:
    return [{**RIDE, "pickup_longitude": -73.99 + i / 10_000, "passenger_count": 1 + i % 6} for i in range(count)]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("batch"), f"--project_dir={ROOT}")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def in_bucket(service, trained) -> str:
    """A taxifare model in a bucket of the service."""
    shutil.copytree(trained("taxifare") / "model", service.state / "buckets" / "batch-bucket" / "model")
    return "gs://batch-bucket/model"


@pytest.fixture(autouse=True)
def sdk(service, monkeypatch):
    for name, value in service.endpoint.environment().items():
        monkeypatch.setenv(name, value)
    aiplatform.init(**service.init_arguments)


@pytest.fixture(scope="module")
def model(service, in_bucket):
    body = {"model": {"displayName": "taxi fares", "artifactUri": in_bucket, "containerSpec": {"imageUri": SERVING}}}
    return service.call("POST", "/models:upload", body, base=PARENT)["response"]["model"]


def jsonl(*content: object) -> str:
    return "".join(f"{json.dumps(each)}\n" for each in content)


def job_of(model: str, *uris: str, form: str = "jsonl", output: str = "jsonl", **fields) -> dict:
    return {
        "displayName": "b", "model": model, "inputConfig": {"instancesFormat": form, "gcsSource": {"uris": list(uris)}},
        "outputConfig": {"predictionsFormat": output, "gcsDestination": {"outputUriPrefix": "gs://batch-bucket/out"}}, **fields,
    }  # fmt: skip


def predicted(service: Service, job: dict, state: str = "SUCCEEDED") -> tuple[dict, list, list]:
    """Run a job; return it, and the lines of its two files, parsed if they are JSON."""
    made = service.call("POST", "/batchPredictionJobs", job, base=PARENT)
    path = "/batchPredictionJobs/" + made["name"].rpartition("/")[2]
    is_over = lambda found: found["state"].endswith(("SUCCEEDED", "FAILED", "CANCELLED"))  # noqa: E731
    found = wait_for(lambda: is_over(got := service.call("GET", path, base=PARENT)) and got, 120)
    assert found["state"] == f"JOB_STATE_{state}", found
    folder = service.state / "buckets" / found["outputInfo"]["gcsOutputDirectory"].removeprefix("gs://")
    results, errors = (sorted(folder.glob(f"prediction.{kind}-00000-of-00001*"))[0] for kind in ("results", "errors_stats"))
    if results.suffix == ".csv":
        return found, list(csv.DictReader(results.open())), list(csv.DictReader(errors.open()))
    return found, *([json.loads(line) for line in path.read_text().splitlines()] for path in (results, errors))


# ------------------------------------------------------------------ with a trained model


@pytest.mark.slow
def test_the_sdk_gets_what_the_endpoint_answers(service, model):
    asked = rides(700)  # two batches, in two files behind a wildcard
    write_object(service, "batch-bucket/in/a.jsonl", jsonl(*asked[:600]))
    write_object(service, "batch-bucket/in/b.jsonl", jsonl(*asked[600:]))
    registered = aiplatform.Model(model)
    job = registered.batch_predict(
        job_display_name="all of it", gcs_source="gs://batch-bucket/in/*.jsonl", gcs_destination_prefix="gs://batch-bucket/sdk",
        machine_type="n1-standard-4", batch_size=512,
    )  # fmt: skip
    assert job.state.name == "JOB_STATE_SUCCEEDED" and job.completion_stats.successful_count == 700 and not job.partial_failures
    blobs = {blob.name.rpartition("/")[2]: blob for blob in job.iter_outputs()}
    assert set(blobs) == {"prediction.results-00000-of-00001", "prediction.errors_stats-00000-of-00001"}
    folder = job.output_info.gcs_output_directory
    assert re.fullmatch(r"gs://batch-bucket/sdk/prediction-taxi_fares-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", folder)
    lines = [json.loads(line) for line in blobs["prediction.results-00000-of-00001"].download_as_text().splitlines()]
    assert [line["instance"] for line in lines] == asked
    endpoint = registered.deploy(machine_type="n1-standard-2")
    expected = [answer for start in (0, 350) for answer in endpoint.predict(asked[start : start + 350]).predictions]
    assert [line["prediction"] for line in lines] == pytest.approx(expected, rel=1e-5)
    endpoint.delete(force=True)
    assert [each.resource_name for each in aiplatform.BatchPredictionJob.list(filter='display_name="all of it"')] == [job.resource_name]
    assert job.gca_resource.model_version_id == "1"
    log = (service.state / "jobs" / job.name / "logs" / "service.log").read_text()
    assert "2 file(s)" in log and "700 predicted, 0 failed in" in log
    job.delete()
    assert not aiplatform.BatchPredictionJob.list(filter='display_name="all of it"')


def test_bad_instances_are_counted_and_told_with_their_place(service, model):
    good = rides(4)
    far, lacking = {**RIDE, "pickup_latitude": 4.0}, {"pickup_longitude": 1}
    lines = [*map(json.dumps, good[:2]), json.dumps(far), "{no json", "", json.dumps(lacking), *map(json.dumps, good[2:]), '"text"']
    uri = write_object(service, "batch-bucket/bad.jsonl", "\n".join(lines))
    job, results, errors = predicted(service, job_of(model, uri))
    assert [each["instance"] for each in results] == good
    assert job["completionStats"] == {"successfulCount": "4", "failedCount": "4"}
    assert [each["instance"] for each in errors] == [far, "{no json", lacking, "text"]
    assert {each["error"]["code"] for each in errors} == {3}
    texts = [each["error"]["message"] for each in errors]
    assert texts[0].startswith("pickup_latitude must be") and texts[1].startswith("is not JSON") and texts[2].startswith("lacks dropoff")
    places = [failure["message"].partition(": ")[0] for failure in job["partialFailures"]]
    assert places == [f"{uri}:{number}" for number in (3, 4, 6, 9)]


# ------------------------------------------------------------------ what the model says does not matter here


def echo_model(service: Service) -> str:
    uri = write_object(service, "batch-bucket/echo/saved_model.pb", "x").rpartition("/")[0]
    body = {"model": {"displayName": "echo", "artifactUri": uri, "containerSpec": {"imageUri": SERVING}}}
    return service.call("POST", "/models:upload", body, base=PARENT)["response"]["model"]


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    started = echo_service(tmp_path_factory.mktemp("echo"))
    yield started, echo_model(started)
    started.stop()


def tfrecord(*records: bytes) -> bytes:
    return b"".join(
        (head := struct.pack("<Q", len(each))) + instances._masked(head) + each + instances._masked(each) for each in records
    )  # fmt: skip


def test_tfrecords_and_file_lists_are_sent_as_base64(echo):
    service, model = echo
    records = [b"one", b"", b"\0\xff" * 5000]
    encoded = [{"b64": base64.b64encode(each).decode()} for each in records]
    uri = write_object(service, "batch-bucket/r.tfrecord", tfrecord(*records))
    assert [each["prediction"] for each in predicted(service, job_of(model, uri, form="tf-record"))[1]] == encoded
    uri = write_object(service, "batch-bucket/r.tfrecord.gz", gzip.compress(tfrecord(*records)))
    assert [each["prediction"] for each in predicted(service, job_of(model, uri, form="tf-record-gzip"))[1]] == encoded
    names = [write_object(service, f"batch-bucket/images/{i}.png", record) for i, record in enumerate(records)]
    uri = write_object(service, "batch-bucket/list.txt", "\n".join([*names, "gs://batch-bucket/images/gone.png", "gs://../x"]))
    job, results, errors = predicted(service, job_of(model, uri, form="file-list"))
    assert [each["prediction"] for each in results] == encoded and len(errors) == 2
    assert "No such file" in errors[0]["error"]["message"]


def test_the_records_that_tensorflow_writes_are_read(tmp_path):
    """What tf.io.TFRecordWriter made of b"abc" and b""."""
    (tmp_path / "r").write_bytes(bytes.fromhex("0300000000000000b099490e6162636e57f121000000000000000029039807d8ea82a2"))
    found = list(instances.read(tmp_path / "r", "gs://b/r", "tf-record", str))
    assert [base64.b64decode(each.content["b64"]) for each in found] == [b"abc", b""] and found[1].where == "gs://b/r: record 2"


def test_a_damaged_file_is_a_partial_failure(echo):
    service, model = echo
    whole = tfrecord(b"one", b"two")
    for number, damaged in enumerate([whole[:-1], whole[:20] + b"!" + whole[21:], b"no tfrecord at all"]):
        write_object(service, f"batch-bucket/damaged{number}/a", damaged)
        write_object(service, f"batch-bucket/damaged{number}/b", tfrecord(b"three"))
        job, results, _ = predicted(service, job_of(model, f"gs://batch-bucket/damaged{number}/*", form="tf-record"))
        (failure,) = job["partialFailures"]
        assert f"gs://batch-bucket/damaged{number}/a: record" in failure["message"] and "is left out" in failure["message"]
        assert results[-1]["prediction"] == {"b64": base64.b64encode(b"three").decode()}, "the other file is read"


def test_keys_and_fields_left_out(echo):
    service, model = echo
    asked = [{"a": i, "fare": 7.5, "id": f"r{i}"} for i in range(3)]
    uri = write_object(service, "batch-bucket/keys.jsonl", jsonl(*asked, {"a": 1}, [1]))
    _, results, errors = predicted(service, job_of(model, uri, instanceConfig={"keyField": "id", "excludedFields": ["fare"]}))
    assert results == [{"key": f"r{i}", "prediction": {"a": i}} for i in range(3)]
    assert [each["instance"] for each in errors] == [{"a": 1}, [1]] and "lacks the field id" in errors[0]["error"]["message"]
    _, results, _ = predicted(service, job_of(model, uri, instanceConfig={"includedFields": ["fare", "a"], "instanceType": "array"}))
    assert [each["prediction"] for each in results] == [[7.5, 0], [7.5, 1], [7.5, 2]]
    assert [each["instance"] for each in results] == asked, "what was left out is in the output"


def test_a_job_that_predicts_nothing_has_failed(echo):
    service, model = echo
    uri = write_object(service, "batch-bucket/worse.jsonl", jsonl({"a": 1}) * 30)
    job, results, errors = predicted(service, job_of(model, uri, instanceConfig={"keyField": "id"}), "FAILED")
    assert not results and len(errors) == 30 and len(job["partialFailures"]) == 20
    assert f"nothing was predicted: 30 instance(s) failed; the first: {uri}:1: lacks the field id" in job["error"]["message"]
    uri = write_object(service, "batch-bucket/empty.jsonl", "\n")
    job, results, errors = predicted(service, job_of(model, uri))
    assert results == errors == [] and job["completionStats"] == {}, "JSON leaves noughts out"


def test_csv_in_and_out(echo):
    service, model = echo
    uri = write_object(service, "batch-bucket/r.csv", 'when,count,note\n"2010",1,"one ""note"",\nin two lines"\nnow,2.5,\nx\nnow,3,"3"\n')
    config = {"instanceType": "object", "excludedFields": ["note"]}
    job, results, errors = predicted(service, job_of(model, uri, form="csv", output="csv", instanceConfig=config))
    assert [row["note"] for row in results] == ['one "note",\nin two lines', "", "3"]
    assert [(row["prediction_when"], row["prediction_count"]) for row in results] == [("2010", "1"), ("now", "2.5"), ("now", "3")]
    assert list(results[0]) == ["when", "count", "note", "prediction_when", "prediction_count"]
    assert [(row["instance"], row["error_message"]) for row in errors] == [("x", "has 1 cells, the header 3")]
    number = job["name"].rpartition("/")[2]
    assert "Vertex AI sends rows of csv as arrays" in (service.state / "jobs" / number / "logs" / "service.log").read_text()


def test_csv_is_sent_as_arrays(echo):
    service, model = echo
    uri = write_object(service, "batch-bucket/x.csv", '\ufeffa,b,"c"\n1,"1",\n-2.5e3,x,"a,""b"\n')
    job, results, _ = predicted(service, job_of(model, uri, form="csv"))
    assert [each["prediction"] for each in results] == [[1, "1", None], [-2500.0, "x", 'a,"b']]
    assert [each["instance"] for each in results] == [[1, "1", None], [-2500.0, "x", 'a,"b']]
    config = {"keyField": "b", "includedFields": ["c", "a"]}
    _, results, _ = predicted(service, job_of(model, uri, form="csv", instanceConfig=config))
    assert [(each["key"], each["prediction"]) for each in results] == [("1", [None, 1]), ("x", ['a,"b', -2500.0])]


def test_predictions_with_several_outputs_and_odd_instances_as_csv(echo):
    service, model = echo
    uri = write_object(service, "batch-bucket/odd.jsonl", jsonl({"a": 1, "b": [1, 2]}, {"a": 2}, {"a": 3, "c": 4}))
    _, results, errors = predicted(service, job_of(model, uri, output="csv"))
    assert results[0] == {"a": "1", "b": "[1, 2]", "prediction_a": "1", "prediction_b": "[1, 2]"}
    assert results[2] == {"a": "3", "b": "", "prediction_a": "3", "prediction_b": ""} and errors == []


def test_odd_characters_come_out_as_they_went_in(echo):
    service, model = echo
    odd = ['"\\ud800"', '"é \\u2028"', '"\\u0000"', '{"a": NaN}']
    uri = write_object(service, "batch-bucket/characters.jsonl", "\ufeff" + "\n".join(odd) + "\n")
    _, results, errors = predicted(service, job_of(model, uri))
    assert [json.dumps(each["prediction"]) for each in results] == [json.dumps(json.loads(each)) for each in odd] and not errors


@pytest.mark.parametrize("form, head", [("jsonl", b""), ("csv", b"a\n")])
def test_bytes_that_are_no_text_are_not_guessed_at(echo, form, head):
    service, model = echo
    uri = write_object(service, f"batch-bucket/bytes.{form}", head + '"é"\n'.encode() + '"é"\n'.encode("latin-1") + b'"e"\n')
    job, results, errors = predicted(service, job_of(model, uri, form=form))
    assert [each["prediction"] for each in results] == (["é", "e"] if form == "jsonl" else [["é"], ["e"]])
    assert len(errors) == 1 and errors[0]["error"]["message"].startswith("is not UTF-8")


def test_what_cannot_be_run_is_refused_at_once(echo):
    service, model = echo
    uri = write_object(service, "batch-bucket/ok.jsonl", jsonl(1))

    def refused(code: int, text: str, job: dict) -> None:
        error = service.call("POST", "/batchPredictionJobs", job, code, base=PARENT)["error"]
        assert text in error["message"], error

    good = job_of(model, uri)
    refused(400, "displayName is required", {**good, "displayName": ""})
    refused(400, "model is required", {**good, "model": ""})
    refused(404, "does not exist here", {**good, "model": "12345"})
    refused(404, "has no version 'golden'", {**good, "model": f"{model}@golden"})
    refused(400, "inputConfig.instancesFormat takes jsonl, csv", job_of(model, uri, form="xml"))
    refused(400, "outputConfig.predictionsFormat takes jsonl, csv", job_of(model, uri, output="tf-record"))
    refused(404, "matches no object", job_of(model, "gs://batch-bucket/gone-*.jsonl"))
    refused(400, "takes gs://bucket/object", job_of(model, "/etc/passwd"))
    refused(400, "leaves the folder of its bucket", job_of(model, "gs://batch-bucket/../../../x"))
    refused(400, "exclude each other", job_of(model, uri, instanceConfig={"includedFields": ["a"], "excludedFields": ["b"]}))
    refused(400, "tf-record has none", job_of(model, uri, form="tf-record", instanceConfig={"keyField": "a"}))
    refused(400, "instanceConfig.instanceType takes object, array", job_of(model, uri, instanceConfig={"instanceType": "row"}))
    refused(501, "generateExplanation is not supported", job_of(model, uri, generateExplanation=True))
    refused(501, "modelParameters are not supported", job_of(model, uri, modelParameters={"top": 3}))
    table = {**good, "inputConfig": {"instancesFormat": "bigquery", "bigquerySource": {"inputUri": "bq://p.d.t"}}}
    refused(501, "bq://p.d.t: needs BigQuery, and BIGQUERY_EMULATOR_HOST names no emulator of it", table)
    refused(400, "inputConfig.bigquerySource.inputUri is required", job_of(model, uri, form="bigquery"))
    refused(400, "outputConfig.bigqueryDestination.outputUri is required", job_of(model, uri, output="bigquery"))
    tables = {"predictionsFormat": "bigquery", "bigqueryDestination": {"outputUri": "bq://my-project"}}
    refused(501, "my-project.prediction_echo_", {**good, "outputConfig": tables})
    prefix = {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "/tmp/x"}}
    refused(400, "takes gs://bucket/folder", {**good, "outputConfig": prefix})
    assert not (service.state / "buckets" / "batch-bucket" / "out" / "x").exists()


@pytest.mark.parametrize("way", ["cancel", "stop"])
def test_cancelled_it_ends_at_once_and_keeps_what_it_has(tmp_path, way):
    service = echo_service(tmp_path, "time.sleep(0.05)", fresh=True)
    try:
        model = echo_model(service)
        uri = write_object(service, "batch-bucket/long.jsonl", jsonl(*range(20_000)))
        job = job_of(model, uri, manualBatchTuningParameters={"batchSize": 2})
        number = service.call("POST", "/batchPredictionJobs", job, base=PARENT)["name"].rpartition("/")[2]
        folder = wait_for(lambda: service.call("GET", f"/batchPredictionJobs/{number}", base=PARENT).get("outputInfo"))
        bucket = service.state / "buckets" / folder["gcsOutputDirectory"].removeprefix("gs://")
        wait_for(lambda: len(mark_of(service.process)) > 0 and bucket.exists())
        workers = mark_of(service.process)
        if way == "cancel":
            service.call("POST", f"/batchPredictionJobs/{number}:cancel", {}, base=PARENT)
        else:
            assert f"job {number}: CANCELLED" in call(main, "stop", number, cwd=tmp_path).stdout
        done = wait_for(lambda: (got := service.call("GET", f"/batchPredictionJobs/{number}", base=PARENT))["state"].endswith("D") and got)
        assert done["state"] == "JOB_STATE_CANCELLED" and int(done["completionStats"].get("successfulCount", 0)) < 20_000
        assert {path.name for path in bucket.iterdir()} == {f"prediction.{kind}-00000-of-00001" for kind in ("errors_stats", "results")}
        wait_for(lambda: not any(map(alive, workers)))
    finally:
        service.stop()


def test_a_service_that_is_killed_leaves_no_job_running(tmp_path):
    service = echo_service(tmp_path, "time.sleep(0.05)", fresh=True)
    model = echo_model(service)
    uri = write_object(service, "batch-bucket/long.jsonl", jsonl(*range(20_000)))
    job = job_of(model, uri, manualBatchTuningParameters={"batchSize": 2})
    number = service.call("POST", "/batchPredictionJobs", job, base=PARENT)["name"].rpartition("/")[2]
    wait_for(lambda: "RUNNING" in service.call("GET", f"/batchPredictionJobs/{number}", base=PARENT)["state"] and mark_of(service.process))
    workers = mark_of(service.process)
    service.process.kill()
    service.process.wait()
    wait_for(lambda: not any(map(alive, workers)))
    again = Service(tmp_path, f"--project_dir={ROOT}")
    try:
        found = again.call("GET", f"/batchPredictionJobs/{number}", base=PARENT)
        assert found["state"] == "JOB_STATE_FAILED" and "was killed" in found["error"]["message"]
    finally:
        again.stop()


# ------------------------------------------------------------------ parts


def test_a_batch_is_asked_in_parts_until_it_fits():
    calls = []

    def ask(some: list) -> list:
        calls.append(len(some))
        for place, each in enumerate(some):
            if each < 0:
                raise ApiError("INVALID_ARGUMENT", f"instances: {place}: is negative")
        return [each * 2 for each in some]

    asked = list(range(100))
    for place in (0, 50, 51, 99):
        asked[place] = -1
    found = batch.answered(ask, asked)
    assert found == [batch.Refused("is negative") if each < 0 else each * 2 for each in asked]
    assert len(calls) <= 1 + 3 * 4, "three questions for each bad one"
    assert all(isinstance(found[place], batch.Refused) for place in (0, 50, 51, 99))

    def vague(some: list) -> list:
        if min(some) < 0:
            raise ApiError("INVALID_ARGUMENT", "instances: 0: the model refuses the instances: shape")
        return some

    assert [type(each) is batch.Refused for each in batch.answered(vague, asked)] == [each < 0 for each in asked]
    assert batch.answered(vague, []) == []

    def gone(some: list) -> list:
        raise ApiError("UNAVAILABLE", "no answer")

    with pytest.raises(ApiError, match="no answer"):
        batch.answered(gone, asked)


def test_instances_are_converted():
    content = {"a": 1, "b": 2, "k": 3}
    assert Config().asked(content) == content and Config().asked([1]) == [1]
    assert Config("array", "k").asked(content) == [1, 2]
    assert Config("array", included=("b", "a")).asked(content) == [2, 1]
    assert Config(excluded=("a",)).asked(content) == {"b": 2, "k": 3}
    assert Config("array").asked([1, 2]) == [1, 2]
    with pytest.raises(Unreadable, match="lacks the field x"):
        Config(included=("x",)).asked(content)
    with pytest.raises(Unreadable, match="must be an object"):
        Config("object").asked([1])


@pytest.mark.parametrize("text, text_of_error", [("a,a\n1,2\n", "each once"), ("a,\n1,2\n", "must name"), ('a,b"\n"\n1,2\n', "must name")])
def test_a_header_that_is_none(tmp_path, text, text_of_error):
    (tmp_path / "x").write_text(text)
    with pytest.raises(Unreadable, match=text_of_error):
        list(instances.read(tmp_path / "x", "gs://b/x", "csv", str))


def test_a_quotation_mark_that_is_not_closed_ends_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(instances, "_LONGEST_ROW", 1000)
    (tmp_path / "x").write_text('a,b\n1,2\n3,"4\n' + "5,6\n" * 1000)
    found = []
    with pytest.raises(Unreadable, match="gs://b/x:3: a quotation mark is not closed within 1,000 characters"):
        found.extend(each.content for each in instances.read(tmp_path / "x", "gs://b/x", "csv", str))
    (tmp_path / "x").write_text('a,b\n1,2\n3,"4\n')
    assert [bool(each.problem) for each in instances.read(tmp_path / "x", "gs://b/x", "csv", str)] == [False, True]


def test_cells_are_what_the_csv_module_reads(tmp_path):
    """Apart from the types, which that module does not tell apart by quotation marks."""
    rows = [["a", "b", "c"], ["1", 'x "y"', ""], ["two\nlines", ",,", "3"], ["", "", "é"]]
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows(rows)
    (tmp_path / "x").write_text(buffer.getvalue(), encoding="utf-8", newline="")
    found = [list(each.content.values()) for each in instances.read(tmp_path / "x", "gs://b/x", "csv", str)]
    assert found == rows[1:]
    (tmp_path / "x").write_text('a,b\n"1"x,2\nx"1",2\n3,4\n')
    found = list(instances.read(tmp_path / "x", "gs://b/x", "csv", str))
    assert [bool(each.problem) for each in found] == [True, True, False] and found[2].where == "gs://b/x:4"


def test_names_of_columns_are_as_written_and_no_number_is_too_long(tmp_path):
    (tmp_path / "x").write_text(f"007,2.50\n{'9' * 5000},1e999\n08,2\n")
    found = [each.content for each in instances.read(tmp_path / "x", "gs://b/x", "csv", str)]
    assert found == [{"007": "9" * 5000, "2.50": "1e999"}, {"007": 8, "2.50": 2}]


def test_memory_stays_bounded(tmp_path):
    """A file much larger than a batch is read and written in pieces."""
    path = tmp_path / "buckets" / "big-bucket" / "x.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(jsonl({"text": "x" * 50_000}) * 600)
    found = batch.files(["gs://big-bucket/x.jsonl"], tmp_path / "buckets")
    job = batch.Batch(batch.sources(found, "jsonl", tmp_path / "buckets"), Config(), 512, list, print, lambda counts: None)
    tracemalloc.start()
    counts = job.run(batch.Files(tmp_path / "out", "jsonl", Config()), threading.Event())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts.succeeded == 600 and path.stat().st_size > 30e6 and peak < 3 * batch.BATCH_BYTES, peak
