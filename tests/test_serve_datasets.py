"""Managed data sets through the real Python SDK: TabularDataset and TextDataset, exported for training and by themselves."""

from __future__ import annotations

import base64
import csv
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("cryptography", reason="without cryptography the service has no TLS")
pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")

from conftest import ROOT  # noqa: E402
from google.api_core import exceptions  # noqa: E402
from google.cloud import aiplatform  # noqa: E402
from test_serve_sdk import BUCKET, SERVING, TRAINING, sdk, service  # noqa: E402, F401

from vertex_local.local import packages

ML_USE = "aiplatform.googleapis.com/ml_use"
SINGLE = aiplatform.schema.dataset.ioformat.text.single_label_classification
CLASSIFICATION = aiplatform.schema.dataset.annotation.text.classification
SHOW = "import os; print({name: value for name, value in os.environ.items() if name.startswith('AIP_')})"
FILTERS = {f"{name}_filter_split": f"labels.{ML_USE}={name}" for name in ("training", "validation", "test")}


def titles(count: int = 400) -> str:
    """Return stackoverflow's sample rows as an import file: every tenth is for tests, the one before it for validation."""
    with open(ROOT / "stackoverflow" / "tests" / "data" / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    uses = ["training"] * 8 + ["validation", "test"]
    items = [
        {
            "textContent": row["text"], "classificationAnnotation": {"displayName": row["label"]},
            "dataItemResourceLabels": {ML_USE: uses[i % 10]},
        }
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return "".join(json.dumps(item) + "\n" for item in items)


ONE_FILE = """\
import base64, glob, io, runpy, sys, tarfile, tempfile

folder = tempfile.mkdtemp()
with tarfile.open(fileobj=io.BytesIO(base64.b64decode({content!r}))) as packed:
    packed.extractall(folder)
sys.path.insert(0, glob.glob(folder + "/*")[0])
runpy.run_module("{trainer}.trainer.task", run_name="__main__", alter_sys=True)
"""


def trainer_job(name: str, folder: Path) -> aiplatform.CustomTrainingJob:
    """Return a CustomTrainingJob of a trainer of this project as one script, its sdist inside."""
    content = base64.b64encode(packages.build(ROOT, folder, name).read_bytes()).decode()
    (folder / "task.py").write_text(ONE_FILE.format(trainer=name, content=content))
    return aiplatform.CustomTrainingJob(
        name, script_path=str(folder / "task.py"), container_uri=TRAINING, model_serving_container_image_uri=SERVING
    )


def log_of(service, job) -> str:  # noqa: F811
    return service.log(job._gca_resource.training_task_metadata["backingCustomJob"].rpartition("/")[2])


def exports(service, prefix: str) -> dict[str, list[str]]:  # noqa: F811
    """Return the lines of the files that were exported below a prefix of the bucket, by set."""
    found: dict[str, list[str]] = {}
    for path in sorted((service.state / "buckets" / BUCKET / prefix).glob("dataset-*/*")):
        found.setdefault(path.name.partition("-")[0], []).extend(path.read_text().splitlines())
    return found


@pytest.mark.slow
def test_taxifare_trains_from_a_tabular_data_set(service, sdk, tmp_path):  # noqa: F811
    names = (ROOT / "jobs" / "datasets" / "taxifare-columns.csv").read_text()
    for name in ("taxi-train", "taxi-valid"):
        text = names + (ROOT / "taxifare" / "tests" / "data" / f"{name}.csv").read_text()
        sdk.bucket(BUCKET).blob(f"taxi/{name}.csv").upload_from_string(text)
    uris = [f"gs://{BUCKET}/taxi/taxi-train.csv", f"gs://{BUCKET}/taxi/taxi-valid.csv"]
    data = aiplatform.TabularDataset.create("trips", gcs_source=uris)
    job = trainer_job("taxifare", tmp_path)
    model = job.run(
        dataset=data, base_output_dir=f"gs://{BUCKET}/trips", args=["--num_evals=1"], model_display_name="trips",
        training_fraction_split=0.7, validation_fraction_split=0.2, test_fraction_split=0.1,
    )  # fmt: skip
    counts = {name: len(lines) - 1 for name, lines in exports(service, "trips").items()}
    assert sum(counts.values()) == 2000 and counts["training"] == pytest.approx(1400, abs=80)
    log = log_of(service, job)
    assert f"rows: {counts['training']} to train on (in memory), {counts['validation']} to evaluate on" in log
    assert re.search(r"done: rmse .*val_rmse .*test_rmse", log)
    assert model.uri == f"gs://{BUCKET}/trips/model"
    assert (service.state / "buckets" / BUCKET / "trips" / "model" / "saved_model.pb").is_file()


def test_a_text_data_set_is_imported_and_exported(service, sdk):  # noqa: F811
    sdk.bucket(BUCKET).blob("titles.jsonl").upload_from_string(titles())
    data = aiplatform.TextDataset.create("titles", gcs_source=f"gs://{BUCKET}/titles.jsonl", import_schema_uri=SINGLE)
    assert aiplatform.TextDataset(data.resource_name).to_dict()["dataItemCount"] == "400"
    job = aiplatform.CustomContainerTrainingJob("show", container_uri="host/any:1", command=["python", "-c", SHOW])
    job.run(dataset=data, annotation_schema_uri=CLASSIFICATION, base_output_dir=f"gs://{BUCKET}/shown", **FILTERS)
    log = log_of(service, job)
    folder = re.search(r"'AIP_TRAINING_DATA_URI': '(\S+)/training-\*\.jsonl'", log)[1]
    assert re.search(rf"/{BUCKET}/shown/dataset-{data.name}-text_classification-\d{{4}}-\d\d-\d\dT", folder)
    for text in ("'AIP_DATA_FORMAT': 'jsonl'", f"'{folder}/validation-*.jsonl'", f"'{folder}/test-*.jsonl'"):
        assert text in log
    found = exports(service, "shown")
    assert {name: len(lines) for name, lines in found.items()} == {"training": 320, "validation": 40, "test": 40}
    assert json.loads(found["test"][0])["dataItemResourceLabels"] == {ML_USE: "test"}
    assert sorted(sum(found.values(), [])) == sorted(json.dumps(json.loads(line), ensure_ascii=False) for line in titles().splitlines())
    files = data.export_data(f"gs://{BUCKET}/whole")
    assert [re.sub(r"-\d{4}-.*Z", "", uri) for uri in files] == [
        f"gs://{BUCKET}/whole/export-data-titles/text_classification/data-00000-of-00001.jsonl"
    ]
    answer = data.export_data_for_custom_training(
        f"gs://{BUCKET}/split", split={"training_fraction": 0.5, "validation_fraction": 0.5, "test_fraction": 0.0}
    )
    assert len(answer["exportedFiles"]) == 2
    assert sum(int(answer["dataStats"][f"{name}DataItemsCount"]) for name in ("training", "validation")) == 400
    data.import_data(f"gs://{BUCKET}/titles.jsonl", SINGLE)
    assert aiplatform.TextDataset(data.resource_name).to_dict()["dataItemCount"] == "800"
    assert [each.name for each in aiplatform.TextDataset.list(filter='display_name="titles"')] == [data.name]
    data.delete()
    with pytest.raises(exceptions.NotFound):
        aiplatform.TextDataset(data.resource_name)


def test_what_is_wrong_with_a_data_set_is_told(service, sdk):  # noqa: F811
    sdk.bucket(BUCKET).blob("bad.jsonl").upload_from_string('{"textContent": "x"}\n{"text": "y"}\n')
    with pytest.raises(Exception, match=rf"gs://{BUCKET}/bad.jsonl:2: an item takes either textContent or textGcsUri"):
        aiplatform.TextDataset.create("bad", gcs_source=f"gs://{BUCKET}/bad.jsonl", import_schema_uri=SINGLE)
    with pytest.raises(exceptions.NotFound, match="there is no such object"):
        aiplatform.TabularDataset.create("none", gcs_source=f"gs://{BUCKET}/none.csv")
    with pytest.raises(Exception, match="BIGQUERY_EMULATOR_HOST names no emulator"):
        aiplatform.TabularDataset.create("table", bq_source="bq://my-project.d.t")
    empty = aiplatform.TextDataset.create("empty")
    job = aiplatform.CustomContainerTrainingJob("show", container_uri="host/any:1", command=["python", "-c", SHOW])
    with pytest.raises(exceptions.BadRequest, match="is empty: import something first"):
        job.run(dataset=empty, base_output_dir=f"gs://{BUCKET}/none", **FILTERS)
    sdk.bucket(BUCKET).blob("few.csv").upload_from_string("a,use\n1,x\n")
    few = aiplatform.TabularDataset.create("few", gcs_source=f"gs://{BUCKET}/few.csv")
    with pytest.raises(RuntimeError, match="there is no row to export; 1 row.s. left out: use is none of training"):
        job.run(dataset=few, base_output_dir=f"gs://{BUCKET}/none", predefined_split_column_name="use")
    with pytest.raises(exceptions.BadRequest, match="must be one of the columns a, use; got 'c'"):
        aiplatform.CustomContainerTrainingJob("show", container_uri="host/any:1", command=["python", "-c", SHOW]).run(
            dataset=few, base_output_dir=f"gs://{BUCKET}/none", predefined_split_column_name="c"
        )
    assert not list((service.state / "buckets" / BUCKET).glob("none/dataset-*"))


@pytest.mark.slow
def test_stackoverflow_trains_from_a_text_data_set(service, sdk, tmp_path):  # noqa: F811
    sdk.bucket(BUCKET).blob("all.jsonl").upload_from_string(titles(1600))
    data = aiplatform.TextDataset.create("all", gcs_source=f"gs://{BUCKET}/all.jsonl", import_schema_uri=SINGLE)
    job = trainer_job("stackoverflow", tmp_path)
    try:
        job.run(
            dataset=data, annotation_schema_uri=CLASSIFICATION, base_output_dir=f"gs://{BUCKET}/titles", args=["--num_evals=1"],
            model_display_name="titles", **FILTERS,
        )  # fmt: skip
    except RuntimeError as error:
        if "AIP_DATA_FORMAT=jsonl is not read yet" in str(error):
            pytest.xfail("the runtime in this tree does not read jsonl; everything up to the trainer was done")
        raise
    log = log_of(service, job)
    assert "rows: 1280 to train on" in log and "done: " in log
