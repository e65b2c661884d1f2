"""Batch predictions from and to BigQuery: the real SDK and clients against the local service and a stand-in of BigQuery."""

from __future__ import annotations

import datetime
import json
import re
import secrets

import pytest
from bigquery_rest import PROJECT, START, StandIn, serving
from test_batch_prediction import PARENT, echo_model, job_of, jsonl, predicted
from test_local_support import wait_for
from test_serve_support import echo_service, lead_sdk, write_object

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
bigquery = pytest.importorskip("google.cloud.bigquery", reason="google-cloud-bigquery is not installed")

import pyarrow as pa  # noqa: E402
from google.cloud import aiplatform  # noqa: E402

from vertex_local.datasets import bigquery as ours  # noqa: E402
from vertex_local.serve import batch_tables  # noqa: E402
from vertex_local.serve.rest import ApiError  # noqa: E402

COUNT = 450
FIELDS = [
    ("n", "INTEGER", "REQUIRED"), ("when", "TIMESTAMP", "NULLABLE"), ("x", "FLOAT", "NULLABLE"), ("name", "STRING", "NULLABLE"),
    ("parts", "INTEGER", "REPEATED"),
]  # fmt: skip


@pytest.fixture(scope="module")
def host():
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def echo(tmp_path_factory, host):
    """A service whose model answers with its instances, and refuses what is named "bad"."""
    refuse = "where = [i for i, each in enumerate(instances) if 'bad' in str(each)]"
    refuse += "; where and print(json.dumps({'error': f'{where[0]}: is bad'}), flush=True)"
    refuse += "\n    if where: continue"
    started = echo_service(tmp_path_factory.mktemp("tables"), refuse, **{ours.HOST: host})
    yield started, echo_model(started)
    started.stop()


@pytest.fixture
def client(host, monkeypatch):
    monkeypatch.setenv(ours.HOST, host)
    return ours.client("test", PROJECT)


@pytest.fixture
def table(client) -> str:
    """The URI of a table of 450 rows, some of them bad."""
    dataset = f"source_{secrets.token_hex(4)}"
    client.create_dataset(bigquery.Dataset(f"{PROJECT}.{dataset}"))
    numbers = range(COUNT)
    schema = [bigquery.SchemaField(name, kind, mode=mode) for name, kind, mode in FIELDS]
    StandIn.tables[f"{dataset}.rows"] = ([field.to_api_repr() for field in schema], pa.table({
        "n": list(numbers), "when": pa.array([START + datetime.timedelta(seconds=n) for n in numbers], pa.timestamp("us", "UTC")),
        "x": [n / 4 if n % 7 else None for n in numbers], "name": ["bad" if n % 100 == 5 else f"é{n}" for n in numbers],
        "parts": [[n, n + 1] for n in numbers],
    }))  # fmt: skip
    return f"bq://{PROJECT}.{dataset}.rows"


def from_table(model: str, uri: str, to: str, **fields) -> dict:
    source = {"instancesFormat": "bigquery", "bigquerySource": {"inputUri": uri}}
    destination = {"predictionsFormat": "bigquery", "bigqueryDestination": {"outputUri": to}}
    return {"displayName": "b", "model": model, "inputConfig": source, "outputConfig": destination, **fields}


def rows_of(client, name: str) -> list[dict]:
    return [dict(row) for row in client.list_rows(name.removeprefix("bq://"))]


@pytest.mark.slow
def test_the_sdk_predicts_from_a_table_into_a_new_dataset(echo, client, table, monkeypatch):
    service, model = echo
    lead_sdk(service, monkeypatch)
    job = aiplatform.Model(model).batch_predict(
        job_display_name="tables", bigquery_source=table, bigquery_destination_prefix=f"bq://{PROJECT}", machine_type="n1-standard-4",
        batch_size=100,
    )  # fmt: skip
    bad = [n for n in range(COUNT) if n % 100 == 5]
    assert (job.completion_stats.successful_count, job.completion_stats.failed_count) == (COUNT - len(bad), len(bad))
    assert [failure.message for failure in job.partial_failures] == [f"{table}: row {n + 1}: is bad" for n in bad]
    dataset = job.output_info.bigquery_output_dataset
    assert re.fullmatch(rf"bq://{PROJECT}\.prediction_echo_\d{{4}}_\d\d_\d\dT\d\d_\d\d_\d\d_\d{{3}}Z", dataset)
    assert job.output_info.bigquery_output_table == "predictions"
    found = [dict(row) for row in job.iter_outputs(bq_max_results=1000)]
    source = {row["n"]: row for row in rows_of(client, table)}
    assert [row["n"] for row in found] == [n for n in range(COUNT) if n not in bad]
    for row in found:
        assert {**source[row["n"]], "prediction": row["prediction"]} == row, "the table's own cells, in its own types"
        n, when, x, name, parts = json.loads(row["prediction"])
        assert (n, x, name, parts) == (row["n"], row["x"], row["name"], row["parts"]), "rows are sent as arrays"
        assert when == row["when"].strftime("%Y-%m-%d %H:%M:%S UTC")
    errors = rows_of(client, f"{dataset}.errors")
    assert [(row["n"], row["errors"]) for row in errors] == [(n, {"code": 3, "message": "is bad"}) for n in bad]
    kinds = [(field.name, field.field_type, field.mode) for field in client.get_table(f"{dataset[5:]}.predictions").schema]
    wanted = [(name, kind, mode.replace("REQUIRED", "NULLABLE")) for name, kind, mode in FIELDS]
    assert kinds == [*wanted, ("prediction", "STRING", "NULLABLE")]


def test_fields_and_keys_of_a_table_into_a_dataset_that_is_there(echo, client, table):
    service, model = echo
    client.create_dataset(bigquery.Dataset(f"{PROJECT}.answers"))
    config = {"instanceType": "object", "keyField": "n", "includedFields": ["x", "name"]}
    job = from_table(model, table, f"bq://{PROJECT}.answers", instanceConfig=config)
    done = run(service, job)
    name = done["outputInfo"]["bigqueryOutputTable"]
    assert done["outputInfo"]["bigqueryOutputDataset"] == f"bq://{PROJECT}.answers"
    assert re.fullmatch(r"predictions_\d{4}_\d\d_\d\dT\d\d_\d\d_\d\d_\d{3}Z", name)
    found = rows_of(client, f"{PROJECT}.answers.{name}")
    assert list(found[3]) == ["key", "prediction"] and found[3]["key"] == 3
    assert json.loads(found[3]["prediction"]) == {"x": 0.75, "name": "é3"}
    errors = rows_of(client, f"{PROJECT}.answers.{name.replace('predictions', 'errors')}")
    assert [row["key"] for row in errors] == [n for n in range(COUNT) if n % 100 == 5]


def run(service, job: dict, state: str = "SUCCEEDED", seconds: float = 60) -> dict:
    """Run a job to its end, whose state must be `state`, and return it."""
    number = service.call("POST", "/batchPredictionJobs", job, base=PARENT)["name"].rpartition("/")[2]
    path = f"/batchPredictionJobs/{number}"
    done = wait_for(lambda: (got := service.call("GET", path, base=PARENT))["state"].endswith(("SUCCEEDED", "FAILED")) and got, seconds)
    assert done["state"] == f"JOB_STATE_{state}", done
    return done


def test_a_table_into_files_and_files_into_tables(echo, client, table):
    service, model = echo
    to_files = {**job_of(model, "gs://x/y"), "inputConfig": {"instancesFormat": "bigquery", "bigquerySource": {"inputUri": table}}}
    _, results, errors = predicted(service, {**to_files, "instanceConfig": {"instanceType": "object", "excludedFields": ["when", "parts"]}})
    assert results[1] == {"instance": results[1]["instance"], "prediction": {"n": 1, "x": 0.25, "name": "é1"}} and len(errors) == 5
    assert results[1]["instance"]["when"] == "2020-01-01 00:00:01 UTC"
    uri = write_object(service, "batch-bucket/t.jsonl", jsonl({"a": [1, "ü"]}, "bad", 7.5))
    to_tables = {"predictionsFormat": "bigquery", "bigqueryDestination": {"outputUri": f"bq://{PROJECT}"}}
    dataset = run(service, {**job_of(model, uri), "outputConfig": to_tables})["outputInfo"]["bigqueryOutputDataset"]
    answers = [tuple(map(json.loads, row.values())) for row in rows_of(client, f"{dataset}.predictions")]
    assert answers == [({"a": [1, "ü"]},) * 2, (7.5, 7.5)]
    assert [json.loads(row["instance"]) for row in rows_of(client, f"{dataset}.errors")] == ["bad"]


def test_a_table_without_rows_gives_tables_without_rows(echo, client):
    service, model = echo
    dataset = f"empty_{secrets.token_hex(4)}"
    client.create_dataset(bigquery.Dataset(f"{PROJECT}.{dataset}"))
    client.create_table(bigquery.Table(f"{PROJECT}.{dataset}.rows", schema=[bigquery.SchemaField("a", "STRING")]))
    done = run(service, from_table(model, f"bq://{PROJECT}.{dataset}.rows", f"bq://{PROJECT}.{dataset}"))
    made = client.get_table(f"{PROJECT}.{dataset}.{done['outputInfo']['bigqueryOutputTable']}")
    assert made.num_rows == 0 and [field.name for field in made.schema] == ["a", "prediction"]


def test_what_fails_is_said_before_or_as_the_jobs_error(echo, client, table, monkeypatch):
    service, model = echo

    def refused(code: int, text: str, job: dict) -> None:
        error = service.call("POST", "/batchPredictionJobs", job, code, base=PARENT)["error"]
        assert text in error["message"], error

    to = f"bq://{PROJECT}"
    refused(404, "bq://my-project.no.rows: http", from_table(model, "bq://my-project.no.rows", to))
    refused(400, "inputConfig.bigquerySource.inputUri takes bq://project.dataset.table", from_table(model, "bq://my-project", to))
    refused(400, "outputUri takes bq://project or bq://project.dataset; got 'bq://my-project.a.b'", from_table(model, table, f"{to}.a.b"))
    refused(404, "bq://my-project.nowhere", from_table(model, table, f"{to}.nowhere"))
    refused(400, "has no column 'k'", from_table(model, table, to, instanceConfig={"keyField": "k"}))
    StandIn.tables["odd.rows"] = ([{"name": "Prediction", "type": "STRING"}], pa.table({"Prediction": ["x"]}))
    refused(400, "has a column Prediction, as the predictions' tables have", from_table(model, "bq://my-project.odd.rows", to))
    monkeypatch.setattr(StandIn, "refuses", "predictions")
    error = run(service, from_table(model, table, to), "FAILED")["error"]
    assert "the disk is full" in error["message"] and error["message"].startswith("bq://my-project.prediction_echo_")


def test_cells_are_sent_as_json_has_them():
    row = {"b": b"\x00", "d": datetime.date(2020, 1, 2), "r": {"n": [1, None]}, "ok": True, "none": None}
    assert batch_tables.as_json(row) == {"b": {"b64": "AA=="}, "d": "2020-01-02", "r": {"n": [1, None]}, "ok": True, "none": None}
    with pytest.raises(ApiError, match="takes bq://project or"):
        batch_tables.Tables("bq://", "m", "2020-01-01T00:00:00.000000Z", None, batch_tables.Config())
