"""Managed data sets on this machine: every kind of split, the files and variables of an export, and wrong input in one line."""

from __future__ import annotations

import csv
import glob
import json
import re
import tempfile
import threading
from pathlib import Path

import forked
import pytest
from conftest import ROOT
from test_local_support import call, result, write_job, write_script

from vertex_local.__main__ import main
from vertex_local.check import inspection
from vertex_local.datasets import dataset, export, flags, splits

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")

SCHEMAS = "gs://google-cloud-aiplatform/schema/dataset"
TABULAR, TEXT, IMAGE = (f"{SCHEMAS}/metadata/{kind}_1.0.0.yaml" for kind in ("tabular", "text", "image"))
SINGLE, MULTI = (f"{SCHEMAS}/ioformat/text_classification_{kind}_label_io_format_1.0.0.yaml" for kind in ("single", "multi"))
HEADER = "n,use,when,kind"
USES = ("training", "validation", "test", "other")
ROWS = [f"{n},{USES[n % 4]},2020-01-{1 + n % 28:02d}T00:00:{n % 60:02d}Z,{'abc'[n % 3]}" for n in range(400)]
FRACTIONS = {"trainingFraction": 0.6, "validationFraction": 0.3, "testFraction": 0.1}


def exported(found: dataset.Dataset, config: dict, destination: Path | None = None, **options) -> dict[str, str]:
    """Export a data set and return the variables that tell a trainer of it."""
    return export.Export(found, config, destination, **options).run()


def write(root: Path, name: str, *lines: str) -> str:
    """Write an object and return its URI."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return f"gs://{name}"


def tabular(root: Path, *uris: str) -> dataset.Dataset:
    source = {"inputConfig": {"gcsSource": {"uri": list(uris)}}}
    return dataset.make("7", {"displayName": "d", "metadataSchemaUri": TABULAR, "metadata": source}, (), root)


def text(root: Path, *uris: str, schema: str = SINGLE, **fields) -> dataset.Dataset:
    one = {"gcsSource": {"uris": list(uris)}, "importSchemaUri": schema, **fields}
    return dataset.make("8", {"displayName": "d", "metadataSchemaUri": TEXT}, [one], root)


@pytest.fixture
def rows(tmp_path):
    """A data set of 400 rows in two files."""
    write(tmp_path, "data/rows-1.csv", HEADER, *ROWS[:150])
    write(tmp_path, "data/rows-2.csv", HEADER, *ROWS[150:])
    return tabular(tmp_path, "gs://data/rows-*.csv")


def sets(variables: dict[str, str]) -> dict[str, list[str]]:
    """Return the lines of the files that the variables name, headers left out."""
    found = {}
    for name in dataset.SETS:
        files = sorted(glob.glob(variables[f"AIP_{name.upper()}_DATA_URI"]))
        lines = [Path(file).read_text().splitlines() for file in files]
        if variables["AIP_DATA_FORMAT"] == "csv":
            assert all(each[0] == HEADER for each in lines), "every file begins with the columns' names"
            lines = [each[1:] for each in lines]
        found[name] = [line for each in lines for line in each]
    return found


def sizes(found: dict[str, list[str]]) -> list[int]:
    return [len(found[name]) for name in dataset.SETS]


# ------------------------------------------------------------------ files and variables


def test_files_and_variables_are_called_as_the_service_calls_them(rows, tmp_path):
    variables = exported(rows, {"gcsDestination": {"outputUriPrefix": "gs://out/data"}}, shard_bytes=2000)
    folder = Path(variables["AIP_TRAINING_DATA_URI"]).parent
    assert folder.parent == tmp_path / "out" / "data"
    assert re.fullmatch(r"dataset-7-tables-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", folder.name)
    assert variables == {
        "AIP_DATA_FORMAT": "csv", **{f"AIP_{name.upper()}_DATA_URI": f"{folder}/{name}-*.csv" for name in dataset.SETS},
    }  # fmt: skip
    training = [path.name for path in sorted(folder.glob("training-*.csv"))]
    assert len(training) > 1 and training == [f"training-{i:05d}-of-{len(training):05d}.csv" for i in range(len(training))]
    assert sorted(sum(sets(variables).values(), [])) == sorted(ROWS), "each row is in one set, as it was"
    assert not list(folder.glob(".*")), "no half-written file is left"


def test_a_set_without_rows_has_no_file(rows, tmp_path):
    variables = exported(rows, {"fractionSplit": {"trainingFraction": 1.0}}, tmp_path / "out")
    assert sizes(sets(variables)) == [400, 0, 0] and not glob.glob(variables["AIP_TEST_DATA_URI"])


def test_an_export_that_fails_or_is_stopped_leaves_nothing(rows, tmp_path):
    write(tmp_path, "data/rows-3.csv", HEADER, "1,training,,a")
    with open(tmp_path / "data" / "rows-3.csv", "ab") as file:
        file.write(b"\xff\xfe,x,y,z\n")
    with pytest.raises(dataset.DatasetError, match=r"gs://data/rows-3.csv:\d: is not UTF-8 text from here on"):
        exported(rows, {}, tmp_path / "out")
    (tmp_path / "data" / "rows-3.csv").unlink()
    write(tmp_path, "data/rows-4.csv", HEADER, *ROWS * 20)
    for config in ({}, {"timestampSplit": {"key": "when"}}, {"stratifiedSplit": {"key": "kind"}}):
        with pytest.raises(dataset.Stopped):
            exported(rows, config, tmp_path / "out", stop=lambda: True)
    with pytest.raises(dataset.Stopped):
        export.Export(rows, {}, tmp_path / "out", stop=lambda: True).to_files("of/two parts", whole=True)
    assert not list((tmp_path / "out").iterdir())


def test_a_long_export_tells_how_far_it_is(rows, tmp_path, monkeypatch):
    write(tmp_path, "data/rows-4.csv", HEADER, *ROWS * 20)
    monkeypatch.setattr(export, "EVERY", 0.0)
    said = []
    exported(rows, {}, tmp_path / "out", say=said.append)
    assert re.fullmatch(r"data set 7: 4,096 rows read in \d+ s", said[0]) and "training" in said[-1]


def test_files_after_the_first_may_leave_the_columns_out(tmp_path):
    write(tmp_path, "data/b.csv", *ROWS[:5])
    write(tmp_path, "data/a.csv", HEADER)
    found = sets(exported(tabular(tmp_path, "gs://data/b.csv", "gs://data/a.csv"), {}, tmp_path / "out"))
    assert sorted(sum(found.values(), [])) == ROWS[:5]


def test_wildcards_are_of_the_uri_alone(tmp_path):
    """The folder of all buckets may have a name that looks like one; a link leads to nothing outside of its bucket."""
    root = tmp_path / "[all] *"
    write(root, "data/a/x-1.csv", HEADER, *ROWS[:5])
    write(root, "data/b/x-2.csv", *ROWS[5:9])
    write(root, "data/y.csv", "other,columns")
    (root / "data" / "c").symlink_to(tmp_path)
    write(tmp_path, "x-3.csv", HEADER, *ROWS[9:12])
    found = tabular(root, "gs://data/*/x-?.csv")
    assert [name for name, _ in found.files()] == ["gs://data/a/x-1.csv", "gs://data/b/x-2.csv"]
    assert sorted(sum(sets(exported(found, {}, tmp_path / "out")).values(), [])) == sorted(ROWS[:9])
    with pytest.raises(dataset.DatasetError, match=r"gs://data/z\*.csv: there is no such object \(.*/\[all\] \*/data/z\*.csv\); put it"):
        tabular(root, "gs://data/z*.csv").files()


def test_quotes_and_line_breaks_survive_and_odd_rows_are_told_of(tmp_path):
    write(tmp_path, "data/a.csv", "a,b", '"x, ""y""', 'z",1', "3,4,5")
    said = []
    variables = exported(tabular(tmp_path, "gs://data/a.csv"), {"fractionSplit": {"trainingFraction": 1}}, tmp_path, say=said.append)
    with open(glob.glob(variables["AIP_TRAINING_DATA_URI"])[0], newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], ['x, "y"\nz', "1"], ["3", "4", "5"]]
    assert "1 row(s) exported as they stand" in said[0] and "gs://data/a.csv:4" in said[0]


# ------------------------------------------------------------------ splits


def test_fractions_by_content(rows, tmp_path):
    first = sets(exported(rows, {}, tmp_path / "a"))
    assert sizes(first)[0] == pytest.approx(320, abs=25) and sizes(first)[1] == pytest.approx(40, abs=20)
    assert sets(exported(rows, {}, tmp_path / "b")) == first, "the same each time"
    write(tmp_path, "other/all.csv", HEADER, *reversed(ROWS))
    again = sets(exported(tabular(tmp_path, "gs://other/all.csv"), {}, tmp_path / "c"))
    assert {name: sorted(lines) for name, lines in again.items()} == {name: sorted(lines) for name, lines in first.items()}
    scaled = sets(exported(rows, {"fractionSplit": {"trainingFraction": 0.4, "testFraction": 0.4}}, tmp_path / "d"))
    assert sum(sizes(scaled)) == 400 and sizes(scaled)[0] == pytest.approx(200, abs=40) and sizes(scaled)[1] == 0


def test_a_predefined_column_and_what_it_leaves_out(rows, tmp_path):
    said = []
    found = sets(exported(rows, {"predefinedSplit": {"key": "use"}}, tmp_path / "out", say=said.append))
    assert found == {"training": ROWS[0::4], "validation": ROWS[1::4], "test": ROWS[2::4]}
    remark = "warning: data set 7: 100 row(s) left out: use is none of training, validation and test"
    assert said[0] == f"{remark}; the first, gs://data/rows-1.csv:5 has 'other'."
    write(tmp_path, "data/upper.csv", "use,n", "TRAIN,1", "VALIDATE,2", "TEST,3")
    upper = exported(tabular(tmp_path, "gs://data/upper.csv"), {"predefinedSplit": {"key": "use"}}, tmp_path / "out")
    assert all(len(glob.glob(upper[f"AIP_{name.upper()}_DATA_URI"])) == 1 for name in dataset.SETS)


def test_times_youngest_first(rows, tmp_path):
    found = sets(exported(rows, {"timestampSplit": {"key": "when", **FRACTIONS}}, tmp_path / "out"))
    assert sizes(found) == [240, 120, 40]
    times = {name: [row.split(",")[2] for row in lines] for name, lines in found.items()}
    assert min(times["training"]) >= max(times["validation"]) and min(times["validation"]) >= max(times["test"])
    said = []
    write(tmp_path, "data/rows-3.csv", HEADER, "1,test,yesterday,a", *["2,test,2020-01-28T00:00:00Z,a"] * 200)
    found = sets(exported(rows, {"timestampSplit": {"key": "when", **FRACTIONS}}, tmp_path / "out", say=said.append))
    assert sizes(found) == [360, 180, 60], "rows of one time are divided, too"
    assert "1 row(s) left out: when is not a time in RFC 3339" in said[0] and "rows-3.csv:2 has 'yesterday'" in said[0]


@pytest.mark.parametrize("text, other", [
    ("1985-04-12T23:20:50.52Z", "1985-04-12T23:20:50.520000Z"), ("2020-01-01T01:00:00+01:00", "2020-01-01T00:00:00Z"),
    ("2013-11-02 23:27:00 UTC", "2013-11-02T23:27:00Z"), ("2020-02-30T00:00:00Z", None), ("2020-01-01", None), ("", None),
])  # fmt: skip
def test_times_are_those_of_rfc_3339(text, other):
    assert splits.parse_time(text) == splits.parse_time(other)
    assert (splits.parse_time(text) is None) == (other is None)


def test_strata_have_the_same_fractions_in_each_set(rows, tmp_path):
    write(tmp_path, "data/rows-3.csv", HEADER, "1,test,,rare", "2,test,,rare")
    config = {"stratifiedSplit": {"key": "kind", **FRACTIONS}}
    found = sets(exported(rows, config, tmp_path / "out"))
    for letter, count in (("a", 134), ("b", 133), ("c", 133)):
        got = [sum(row.endswith(letter) for row in found[name]) for name in dataset.SETS]
        assert got == [round(count * 0.6), round(count * 0.9) - round(count * 0.6), count - round(count * 0.9)]
    assert sum(sizes(found)) == 402, "a value with two rows falls by chance"
    assert sets(exported(rows, config, tmp_path / "out")) == found


# ------------------------------------------------------------------ text

ITEMS = [
    {
        "textContent": f"title {n}", "classificationAnnotation": {"displayName": "ab"[n % 2]},
        "dataItemResourceLabels": {dataset.ML_USE: ("training", "training", "validation", "test")[n % 4]},
    }
    for n in range(80)
]  # fmt: skip


@pytest.fixture
def titles(tmp_path):
    write(tmp_path, "text/titles.jsonl", *map(json.dumps, ITEMS))
    return text(tmp_path, "gs://text/titles.jsonl")


def test_text_becomes_lines_of_json(titles, tmp_path):
    variables = exported(titles, {"annotationSchemaUri": f"{SCHEMAS}/annotation/text_classification_1.0.0.yaml"}, tmp_path / "out")
    assert variables["AIP_DATA_FORMAT"] == "jsonl" and variables["AIP_TEST_DATA_URI"].endswith("Z/test-*.jsonl")
    assert "/dataset-8-text_classification-20" in variables["AIP_TEST_DATA_URI"]
    found = {name: [json.loads(line) for line in lines] for name, lines in sets(variables).items()}
    assert sorted(item["textContent"] for items in found.values() for item in items) == sorted(item["textContent"] for item in ITEMS)
    for name, items in found.items():
        assert items and all(item["dataItemResourceLabels"] == {dataset.ML_USE: name} for item in items), "an item names its set"


@pytest.mark.parametrize("config, counts", [
    ({"filterSplit": {f"{name}Filter": f"labels.{dataset.ML_USE}={name}" for name in dataset.SETS}}, [40, 20, 20]),
    ({"filterSplit": {"trainingFilter": f"labels.{dataset.ML_USE}!=test", "validationFilter": "-", "testFilter": ""}}, [60, 0, 0]),
    ({"predefinedSplit": {"key": dataset.ML_USE}}, [40, 20, 20]),
])  # fmt: skip
def test_text_is_split_by_ml_use(titles, tmp_path, config, counts):
    assert sizes(sets(exported(titles, config, tmp_path / "out"))) == counts


def test_text_from_csv_from_files_and_with_several_labels(tmp_path):
    write(tmp_path, "text/long.txt", "a long text")
    write(tmp_path, "text/items.csv", "training,gs://text/long.txt,x,y", 'validation,"short, text",y', ",no use,x", "neither")
    found = sets(exported(text(tmp_path, "gs://text/items.csv", schema=MULTI), {"predefinedSplit": {"key": "ml_use"}}, tmp_path / "o"))
    assert json.loads(found["training"][0]) == {
        "textGcsUri": str(tmp_path / "text" / "long.txt"), "classificationAnnotations": [{"displayName": "x"}, {"displayName": "y"}],
        "dataItemResourceLabels": {dataset.ML_USE: "training"},
    }, "a file is named as what runs here can read it"  # fmt: skip
    assert json.loads(found["validation"][0])["textContent"] == "short, text" and sizes(found) == [1, 1, 0]
    labelled = text(tmp_path, "gs://text/items.csv", schema=MULTI, dataItemLabels={dataset.ML_USE: "test", "team": "a"})
    assert sizes(sets(exported(labelled, {"predefinedSplit": {"key": "ml_use"}}, tmp_path / "p"))) == [1, 1, 2]


# ------------------------------------------------------------------ wrong input

GOOD = "{displayName: d, metadataSchemaUri: %s, metadata: {inputConfig: {gcsSource: {uri: [%s]}}}}"
TABLE = "{displayName: d, metadataSchemaUri: %s, metadata: {inputConfig: {bigquerySource: {uri: %s}}}}"


@pytest.mark.parametrize("config, says", [
    ({"predefinedSplit": {"key": "usage"}}, "predefinedSplit.key must be one of the columns n, use, when, kind; got 'usage'."),
    ({"fractionSplit": {"trainingFraction": 0.9, "testFraction": 0.2}}, "sum up to at most 1; got 0.9, 0, 0.2, which is 1.1."),
    ({"fractionSplit": {"trainingFraction": -0.1, "testFraction": 0.2}}, "fractions are from 0 on"),
    ({"fractionSplit": {}, "predefinedSplit": {"key": "n"}}, "takes one split; got fractionSplit and predefinedSplit."),
    ({"filterSplit": {"trainingFilter": "-"}}, "filterSplit is for data sets of text"),
    ({"timestampSplit": {"key": "use"}}, "has no time in RFC 3339 such as 1985-04-12T23:20:50.52Z; gs://data/rows-1.csv:2 has 'training'."),
    ({"predefinedSplit": {"key": "kind"}}, "there is no row to export; 400 row(s) left out: kind is none of training"),
    ({"fractionSplit": {"testFraction": 1.0}}, "the split leaves no row for training (validation 0, test 400)"),
    ({"bigqueryDestination": {"outputUri": "bq://my-project"}}, "bigqueryDestination is for tabular data sets with a BigQuery source"),
    ({"savedQueryId": "1"}, "savedQueryId is not known on this machine; leave it out."),
    ({"annotationSchemaUri": "gs://x"}, "annotationSchemaUri is for data sets of text"),
])  # fmt: skip
def test_a_wrong_split_is_one_line(rows, tmp_path, config, says):
    with pytest.raises(dataset.DatasetError) as caught:
        exported(rows, config, tmp_path / "out")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("line, says", [
    ("{", "gs://text/bad.jsonl:2: is no line of JSON"),
    ('{"text": "x"}', "gs://text/bad.jsonl:2: an item takes either textContent or textGcsUri"),
    (json.dumps({**ITEMS[0], "dataItemResourceLabels": {dataset.ML_USE: "train"}}), "takes one of training, validation, test; got 'train'"),
    ('{"textContent": "x", "classificationAnnotation": {"label": "a"}}', "gs://text/bad.jsonl:2: a label takes the form"),
    ('{"textGcsUri": "gs://text/none.txt"}', "gs://text/none.txt: there is no such object"),
    ('{"textContent": "x", "n": %s}' % ("1" * 5000), "gs://text/bad.jsonl:2: is no line of JSON (Exceeds the limit"),
    ('{"textContent": "x", "dataItemResourceLabels": ["a"]}', "bad.jsonl:2: dataItemResourceLabels takes values by label; got ['a']."),
])  # fmt: skip
def test_a_wrong_item_is_one_line_with_its_place(tmp_path, line, says):
    write(tmp_path, "text/bad.jsonl", json.dumps(ITEMS[0]), line)
    with pytest.raises(dataset.DatasetError, match=re.escape(says)):
        exported(text(tmp_path, "gs://text/bad.jsonl"), {}, tmp_path / "out")


@pytest.mark.parametrize("name, line, says", [
    ("bad.jsonl", '{"textContent": "x", "classificationAnnotations": 5}', "classificationAnnotations takes a list of labels; got 5."),
    ("bad.jsonl", '{"textContent": "x", "classificationAnnotations": [5]}', "a label takes the form {'displayName': 'name'}; got 5."),
    ("bad.csv", "training", "is no line of `ml_use,text,label`; got 'training'"),
    ("bad.csv", "a" * 200_000, "is not CSV: field larger than field limit"),
])  # fmt: skip
def test_a_wrong_item_with_several_labels_is_one_line(tmp_path, name, line, says):
    csv.field_size_limit(128 << 10)  # Python's own, which the trainers' runtime raises in the processes that it is in
    with pytest.raises(dataset.DatasetError, match=re.escape(f"gs://text/{name}:1: {says}")):
        exported(text(tmp_path, write(tmp_path, f"text/{name}", line), schema=MULTI), {}, tmp_path / "out")


def test_half_a_character_stays_what_it_was(tmp_path):
    """JSON can hold half of a surrogate pair, UTF-8 cannot."""
    found = text(tmp_path, write(tmp_path, "text/half.jsonl", '{"textContent": "\\ud83d \\ud83d\\ude00"}'))
    (line,) = sets(exported(found, {"fractionSplit": {"trainingFraction": 1}}, tmp_path / "out"))["training"]
    assert json.loads(line)["textContent"] == "\ud83d \U0001f600"


@pytest.mark.parametrize("config, says", [
    ({"timestampSplit": {"key": "when"}}, "a data set of text takes fractionSplit, filterSplit"),
    ({"filterSplit": {"trainingFilter": "labels.x="}}, "filterSplit.trainingFilter: filter: takes something like"),
    ({"filterSplit": {"trainingFilter": "name=x"}}, "a filter is about labels"),
    ({"annotationSchemaUri": f"{SCHEMAS}/annotation/text_sentiment_1.0.0.yaml"}, "annotations of, text_classification_1.0.0.yaml"),
])  # fmt: skip
def test_a_wrong_split_of_text_is_one_line(titles, tmp_path, config, says):
    with pytest.raises(dataset.DatasetError, match=re.escape(says)):
        exported(titles, config, tmp_path / "out")


@pytest.mark.parametrize("lines, says", [
    ((), "it is empty; its first line must hold the columns' names"),
    ((HEADER,), "there is no row to export"),
    (("a,a", "1,2"), "gs://data/x.csv:1: column 'a' appears twice"),
])  # fmt: skip
def test_a_file_without_rows_is_one_line(tmp_path, lines, says):
    write(tmp_path, "data/x.csv", *lines)
    with pytest.raises(dataset.DatasetError, match=re.escape(says)):
        exported(tabular(tmp_path, "gs://data/x.csv"), {}, tmp_path / "out")


def test_other_columns_in_another_file_are_refused(tmp_path):
    write(tmp_path, "data/a.csv", "a,b,c", "1,2,3")
    for header in ("a,c,b", "a,b"):
        write(tmp_path, "data/b.csv", header, "1,2,3")
        with pytest.raises(
            dataset.DatasetError, match=r"gs://data/b.csv:1: its first line .* does not go with the columns of gs://data/a.csv"
        ):
            exported(tabular(tmp_path, "gs://data/*.csv"), {}, tmp_path / "out")


@pytest.mark.parametrize("content, says", [
    (GOOD % (TABULAR, "gs://data/none.csv"), "gs://data/none.csv: there is no such object"),
    (GOOD % (TABULAR, "none.csv"), "none.csv: there is no such file"),
    (GOOD % (IMAGE, "gs://data/x.csv"), "data.yaml:1: metadataSchemaUri: on this machine it takes"),
    (f"displayName: d\nmetadataSchemaUri: {TABULAR}\nmetadata: {{inputConfig: {{}}}}", "data.yaml:3: metadata.inputConfig.gcsSource.uri"),
    (f"displayName: d\nmetadataSchemaUri: {TABULAR}\nmetadata: {{inputConfig: [x]}}", "data.yaml:3: metadata.inputConfig.gcsSource.uri"),
    ("displayName: d\nmetadataschemauri: x", "data.yaml:2: metadataschemauri: unknown field; did you mean metadataSchemaUri?"),
    (f"metadataSchemaUri: {TEXT}\nimportConfigs:\n- importSchemaUri: gs://x\n", "data.yaml:3: importConfigs[0].importSchemaUri: takes a"),
    (f"metadataSchemaUri: {TEXT}\nimportConfigs:\n- importschema: gs://x\n", "data.yaml:3: importConfigs[0].importschema: unknown field"),
    (f"metadataSchemaUri: {TEXT}\nimportConfigs: x\n", "data.yaml:2: importConfigs: takes a list"),
    (f"metadataSchemaUri: {TEXT}\n", "data set data is empty: import something first"),
    (TABLE % (TABULAR, "bq://p.d.t"), "BIGQUERY_EMULATOR_HOST names no"),
    (TABLE % (TABULAR, "p.d.t"), "takes bq://project.dataset.table"),
])  # fmt: skip
def test_a_wrong_file_ends_with_2_and_one_line(tmp_path, monkeypatch, content, says):
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST", raising=False)
    (tmp_path / "data.yaml").write_text(content)
    write_script(tmp_path, "task.py", "")
    write_job(tmp_path, [("task.py", 1)], baseOutputDirectory={"outputUriPrefix": "gs://out-bucket/x"})
    done = call(tmp_path, "job.yaml", "--dataset=data.yaml")
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / ".vertex_local" / "jobs").exists(), "no job was made"


def test_a_wrong_place_for_tables_is_the_flags(tmp_path):
    (tmp_path / "data.yaml").write_text(GOOD % (TABULAR, write(tmp_path / "buckets", "data-bucket/rows.csv", HEADER, *ROWS)))
    write_job(tmp_path, [("task.py", 1)])
    done = call(tmp_path, "job.yaml", "--bucket_root=buckets", "--dataset=data.yaml", "--bigquery_destination=my-project")
    says = "error: data.yaml (--bigquery_destination): bigqueryDestination.outputUri takes bq://project; got 'my-project'.\n"
    assert (done.returncode, done.stderr) == (2, says)


@pytest.mark.parametrize("split, says", [
    ("fractions=0.8,0.3,0.1", "three fractions that sum up to 1"), ("fractions=0.8", "three fractions"), ("column=", "takes fractions="),
    ("filter=a;b", "takes fractions="), ("time=when,x,y,z", "three fractions"),
])  # fmt: skip
def test_a_wrong_flag_is_one_line(tmp_path, split, says):
    done = call(tmp_path, "job.yaml", "--dataset=data.yaml", f"--data_split={split}")
    assert done.returncode == 2 and says in done.stderr and split in done.stderr and done.stderr.count("\n") == 1
    write_job(tmp_path, [("task.py", 1)])
    done = call(tmp_path, "job.yaml", "--data_split=column=use")
    assert done.returncode == 2 and done.stderr == "error: --data_split: is about a managed data set; give its file as --dataset.\n"


# ------------------------------------------------------------------ jobs

SHOW = (
    "import glob\nfor name in ('TRAINING', 'VALIDATION', 'TEST'):\n"
    "    files = glob.glob(os.environ[f'AIP_{name}_DATA_URI'])\n"
    "    print(me, os.environ['AIP_DATA_FORMAT'], name, sum(len(open(f).readlines()) - 1 for f in files), sys.argv[1:])\n"
)
DATA = GOOD % (TABULAR, "gs://data-bucket/rows.csv")


def test_a_cluster_gets_the_variables_and_loses_its_own_data_flags(tmp_path):
    write(tmp_path / "buckets", "data-bucket/rows.csv", HEADER, *ROWS)
    (tmp_path / "data.yaml").write_text(DATA)
    write_script(tmp_path, "task.py", SHOW + "time.sleep(0.3 * (task['type'] == 'workerpool0'))\n")
    container = {"imageUri": "host/any:1", "command": ["python", "task.py"], "args": ["--train_data_path=mine", "--lr=1"]}
    pool = {"replicaCount": 1, "containerSpec": container}
    write_job(tmp_path, [pool, pool], baseOutputDirectory={"outputUriPrefix": "gs://out-bucket/x"})
    flags = ("--bucket_root=buckets", "--job_id=a", "--dataset=data.yaml", "--data_split=time=when,0.6,0.3,0.1")
    done = call(tmp_path, "job.yaml", *flags, "--", "--n=1")
    assert done.returncode == 0, done.stderr
    assert "data set data: 240 training, 120 validation, 40 test rows in " in done.stdout
    for name in ("workerpool0-0", "workerpool1-0"):
        for use, count in (("TRAINING", 240), ("VALIDATION", 120), ("TEST", 40)):
            assert f"[{name}] {name} csv {use} {count} ['--lr=1', '--n=1']" in done.stdout
    assert [path.name.partition("-tables-")[0] for path in (tmp_path / "buckets/out-bucket/x").iterdir()] == ["dataset-data"]
    assert result(tmp_path, "a")["state"] == "JOB_STATE_SUCCEEDED"


def test_a_training_pipelines_file_runs_with_the_data_set_beside_it(tmp_path):
    write(tmp_path / "buckets", "data-bucket/rows.csv", HEADER, *ROWS)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "rows.yaml").write_text(DATA)
    write_script(tmp_path, "task.py", SHOW)
    container = {"imageUri": "host/any:1", "command": ["python", "task.py"]}
    body = {
        "displayName": "p", "inputDataConfig": {"datasetId": "rows", "predefinedSplit": {"key": "use"}},
        "trainingTaskDefinition": "gs://google-cloud-aiplatform/schema/trainingjob/definition/custom_task_1.0.0.yaml",
        "trainingTaskInputs": {
            "workerPoolSpecs": [{"replicaCount": 1, "containerSpec": container}],
            "baseOutputDirectory": {"outputUriPrefix": "gs://out-bucket/x"},
        },
    }  # fmt: skip

    def run(*flags: str, **changes):
        (tmp_path / "pipeline.yaml").write_text(json.dumps({**body, **changes}, indent=1))
        return call(tmp_path, "pipeline.yaml", "--bucket_root=buckets", *flags)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "workerpool0-0 csv TRAINING 100 []" in done.stdout and "warning: data set rows: 100 row(s) left out" in done.stdout
    assert "TRAINING 400 []" in run("--data_split=fractions=1,0,0").stdout, "a flag wins over the file"
    lost = run(inputDataConfig={"datasetId": "77"})
    assert lost.returncode == 2 and "no data set file for '77' (77.yaml or datasets/77.yaml); give one as --dataset." in lost.stderr
    wrong = run(trainingTaskInputs={"workerPoolSpecs": [{"replicacount": 1}]})
    assert "trainingTaskInputs.workerPoolSpecs[0].replicacount: unknown field" in wrong.stderr
    wrong = run(trainingTaskDefinition="gs://google-cloud-aiplatform/schema/trainingjob/definition/automl_tables_1.0.0.yaml")
    assert "pipeline.yaml:" in wrong.stderr and "custom_task_1.0.0.yaml; got" in wrong.stderr


def test_check_splits_the_data_set_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(inspection.Inspection, "left", lambda self, most: 10 * most)  # however busy the machine is
    data, state = ROOT / "jobs" / "datasets" / "taxifare.yaml", tmp_path / "state"
    command = ["check", str(ROOT / "jobs" / "taxifare.yaml"), f"--dataset={data}", "--no_measure", f"--state_dir={state}"]
    command.append(f"--python={forked.interpreter()}")
    assert main([*command, "--data_split=strata=passenger_count"]) == 0
    said = capsys.readouterr().out
    pattern = r"^ok +data set +data set taxifare: ([\d,]+) training, ([\d,]+) validation, [\d,]+ test rows$"
    counts = re.search(pattern, said, re.MULTILINE)
    assert f"{counts[1]} rows in 1 file(s) to train on, {counts[2]} to evaluate on" in said, "the trainer read that very split"
    assert not list(tmp_path.iterdir())
    assert main([*command, "--data_split=column=fare"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^error +data set .*\(--data_split\): predefinedSplit.key must be one", said, re.MULTILINE)
    assert "not looked at" in said


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "jobs" / "datasets").glob("*.yaml")))
def test_the_projects_own_data_sets_can_be_exported(tmp_path, name):
    found = dataset.load(ROOT / "jobs" / "datasets" / f"{name}.yaml", tmp_path, ROOT)
    variables = exported(found, {}, tmp_path / "out")
    assert len(glob.glob(variables["AIP_TRAINING_DATA_URI"])) == 1


def test_flags_and_the_api_say_the_same():
    assert flags._split("column=use") == {"predefinedSplit": {"key": "use"}}
    assert flags._split("strata=a,b") == {"stratifiedSplit": {"key": "a,b"}}
    assert flags._split("time=when,0.6,0.3,0.1") == {"timestampSplit": {"key": "when", **FRACTIONS}}
    assert flags._split("filter=a=1;-;-")["filterSplit"] == {"trainingFilter": "a=1", "validationFilter": "-", "testFilter": "-"}


def test_two_exports_at_once_share_nothing(rows, tmp_path):
    found = []

    def run(place: Path) -> None:
        found.append(sets(exported(rows, {}, place)))

    threads = [threading.Thread(target=run, args=(tmp_path / str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(each == found[0] for each in found)
