"""Managed data sets that come from BigQuery, by the real client against a stand-in.

With BIGQUERY_EMULATOR_HOST set the same tests run against that emulator instead.
"""

from __future__ import annotations

import datetime
import glob
import io
import os
import re
import secrets
from pathlib import Path

import pytest
from bigquery_rest import PROJECT, START, StandIn, serving
from test_local_support import call, write_job, write_script
from test_serve_support import Service, job_spec

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
bigquery = pytest.importorskip("google.cloud.bigquery", reason="google-cloud-bigquery is not installed")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from vertex_local.datasets import bigquery as ours  # noqa: E402
from vertex_local.datasets import dataset, export  # noqa: E402

USES = ("training", "validation", "test", "other")
SCHEMA = [
    bigquery.SchemaField(name, kind)
    for name, kind in (("n", "INTEGER"), ("when", "TIMESTAMP"), ("use", "STRING"), ("x", "FLOAT"), ("ok", "BOOLEAN"))
]
COUNT = 500
EMULATOR = os.environ.get(ours.HOST)


def table() -> pa.Table:
    numbers = range(COUNT)
    times = pa.array([START + datetime.timedelta(days=n % 28, seconds=n) for n in numbers], pa.timestamp("us", "UTC"))
    floats = pa.array([n / 4 if n % 7 else None for n in numbers], pa.float64())
    uses, flags = [USES[n % 4] for n in numbers], [n % 2 == 0 for n in numbers]
    return pa.table({"n": list(numbers), "when": times, "use": uses, "x": floats, "ok": flags})


@pytest.fixture(scope="module")
def host():
    if EMULATOR:
        yield EMULATOR
        return
    with serving() as address:
        yield address


@pytest.fixture
def source(host, monkeypatch) -> str:
    """The URI of a table with 500 rows."""
    monkeypatch.setenv(ours.HOST, host)
    name, client = f"source_{secrets.token_hex(4)}", ours.client("test", PROJECT)
    client.create_dataset(bigquery.Dataset(f"{PROJECT}.{name}"))
    client.create_table(bigquery.Table(f"{PROJECT}.{name}.rows", schema=SCHEMA))
    content = io.BytesIO()
    pq.write_table(table(), content)
    content.seek(0)
    how = bigquery.LoadJobConfig(source_format="PARQUET", schema=SCHEMA, write_disposition="WRITE_APPEND")
    client.load_table_from_file(content, f"{PROJECT}.{name}.rows", job_config=how).result()
    return f"bq://{PROJECT}.{name}.rows"


def made(uri: str, root: Path) -> dataset.Dataset:
    schema = "gs://google-cloud-aiplatform/schema/dataset/metadata/tabular_1.0.0.yaml"
    message = {"displayName": "d", "metadataSchemaUri": schema, "metadata": {"inputConfig": {"bigquerySource": {"uri": uri}}}}
    return dataset.make("9", message, (), root)


def in_tables(variables: dict[str, str]) -> dict[str, list[dict]]:
    """Return the rows of the exported tables, in the order of `n`."""
    client, found = ours.client("test", PROJECT), {}
    for name in dataset.SETS:
        each = client.get_table(variables[f"AIP_{name.upper()}_DATA_URI"].removeprefix("bq://"))
        kinds = [field.field_type for field in each.schema]
        assert kinds == ["INTEGER", "TIMESTAMP", "STRING", "FLOAT", "BOOLEAN"], "the types stay"
        found[name] = sorted((dict(row) for row in client.list_rows(each)), key=lambda row: row["n"]) if each.num_rows else []
    return found


SPLITS = [
    {}, {"predefinedSplit": {"key": "use"}}, {"timestampSplit": {"key": "when", "trainingFraction": 0.6, "testFraction": 0.4}},
    {"stratifiedSplit": {"key": "use"}},
]  # fmt: skip


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: next(iter(split), "default"))
def test_tables_and_files_hold_the_same_rows(source, tmp_path, split):
    variables = export.Export(made(source, tmp_path), {**split, "bigqueryDestination": {"outputUri": f"bq://{PROJECT}"}}).run()
    name = variables["AIP_TRAINING_DATA_URI"].split(".")[1]
    assert re.fullmatch(r"dataset_9_tables_\d{4}_\d\d_\d\dT\d\d_\d\d_\d\d_\d{3}Z", name)
    assert variables == {
        "AIP_DATA_FORMAT": "bigquery", **{f"AIP_{each.upper()}_DATA_URI": f"bq://{PROJECT}.{name}.{each}" for each in dataset.SETS},
    }  # fmt: skip
    found, rows = in_tables(variables), table().to_pylist()
    numbers = {each: [row["n"] for row in found[each]] for each in dataset.SETS}
    assert all(row == rows[row["n"]] for each in found.values() for row in each), "the values stay"
    if "predefinedSplit" in split:
        assert numbers == {each: [n for n in range(COUNT) if n % 4 == i] for i, each in enumerate(dataset.SETS)}
    else:
        assert sorted(sum(numbers.values(), [])) == list(range(COUNT))
    if "timestampSplit" in split:
        assert [len(numbers[each]) for each in dataset.SETS] == [300, 0, 200]
        assert min(row["when"] for row in found["training"]) > max(row["when"] for row in found["test"])
    files = export.Export(made(source, tmp_path), split, tmp_path / "out").run()
    assert files["AIP_DATA_FORMAT"] == "csv"
    for each in dataset.SETS:
        lines = [line for file in glob.glob(files[f"AIP_{each.upper()}_DATA_URI"]) for line in Path(file).read_text().splitlines()[1:]]
        assert sorted(int(line.split(",")[0]) for line in lines) == numbers[each], "files are split as tables are"


def test_cells_are_what_bigquery_writes_itself(source, tmp_path):
    variables = export.Export(made(source, tmp_path), {"fractionSplit": {"trainingFraction": 1}}, tmp_path / "out").run()
    lines = Path(glob.glob(variables["AIP_TRAINING_DATA_URI"])[0]).read_text().splitlines()
    assert lines[0] == "n,when,use,x,ok"
    assert {"0,2020-01-01 00:00:00 UTC,training,,true", "1,2020-01-02 00:00:01 UTC,validation,0.25,false"} <= set(lines)


def test_a_missing_table_is_one_line(source, tmp_path):
    with pytest.raises(dataset.DatasetError, match=r"bq://my-project.none.rows: http\S+ answered: .*404") as caught:
        export.Export(made(f"bq://{PROJECT}.none.rows", tmp_path), {}, tmp_path).run()
    assert caught.value.status == "NOT_FOUND" and "\n" not in str(caught.value)


def test_a_load_that_fails_takes_its_dataset_away(source, tmp_path, monkeypatch):
    if EMULATOR:
        pytest.skip("an emulator refuses no load")
    monkeypatch.setattr(StandIn, "refuses", "validation")
    before = [*StandIn.datasets, *StandIn.tables]
    with pytest.raises(dataset.DatasetError, match="the disk is full"):
        export.Export(made(source, tmp_path), {"bigqueryDestination": {"outputUri": f"bq://{PROJECT}"}}).run()
    assert [*StandIn.datasets, *StandIn.tables] == before


def test_a_job_gets_tables(source, tmp_path):
    text = "metadataSchemaUri: gs://google-cloud-aiplatform/schema/dataset/metadata/tabular_1.0.0.yaml\n"
    (tmp_path / "table.yaml").write_text(f"{text}metadata: {{inputConfig: {{bigquerySource: {{uri: '{source}'}}}}}}\n")
    write_script(tmp_path, "task.py", "print(*(os.environ[f'AIP_{n}'] for n in ('DATA_FORMAT', 'TRAINING_DATA_URI', 'TEST_DATA_URI')))\n")
    write_job(tmp_path, [("task.py", 1)])
    done = call(tmp_path, "job.yaml", "--dataset=table.yaml", f"--bigquery_destination=bq://{PROJECT}")
    assert done.returncode == 0, done.stderr
    prefix = rf"bq://{PROJECT}\.dataset_table_tables_\w+"
    assert re.search(rf"bigquery {prefix}\.training {prefix}\.test$", done.stdout, re.MULTILINE)


def test_a_pipeline_of_the_local_service_gets_tables(source, tmp_path):
    service = Service(tmp_path, **{ours.HOST: os.environ[ours.HOST]})
    try:
        schema = "gs://google-cloud-aiplatform/schema/dataset/metadata/tabular_1.0.0.yaml"
        body = {"displayName": "t", "metadataSchemaUri": schema, "metadata": {"inputConfig": {"bigquerySource": {"uri": source}}}}
        number = service.call("POST", "/datasets", body)["response"]["name"].rpartition("/")[2]
        config = {"datasetId": number, "bigqueryDestination": {"outputUri": f"bq://{PROJECT}"}, "predefinedSplit": {"key": "use"}}
        show = "import os; print(os.environ['AIP_DATA_FORMAT'], os.environ['AIP_TRAINING_DATA_URI'])"
        task = "gs://google-cloud-aiplatform/schema/trainingjob/definition/custom_task_1.0.0.yaml"
        body = {"displayName": "p", "trainingTaskDefinition": task, "trainingTaskInputs": job_spec(show), "inputDataConfig": config}
        pipeline = service.ended(service.call("POST", "/trainingPipelines", body)["name"].rpartition("/")[2], "trainingPipelines")
        assert pipeline["state"] == "PIPELINE_STATE_SUCCEEDED", pipeline
        form, uri = service.log(pipeline["trainingTaskMetadata"]["backingCustomJob"].rpartition("/")[2]).split()
        assert form == "bigquery" and uri.startswith(f"bq://{PROJECT}.dataset_{number}_tables_")
        assert ours.client("test", PROJECT).get_table(uri.removeprefix("bq://")).num_rows == COUNT / 4
    finally:
        service.stop()
