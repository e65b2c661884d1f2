"""A job's one form: what a file or a request says reaches the program as it is, edits included, and comes back from spec.yaml."""

from __future__ import annotations

import json

import pytest
from test_local_support import call, write_job

from vertex_local.job import buckets, job_file, schema, settings
from vertex_local.job.schema import SpecError
from vertex_local.tuning import study

AWKWARD = ["a\x85b", "\u2028", "1e5", "0x10", "yes", "null", "2026-01-01", "", " ", "a: b", "# c", "é\t", "${HOME}", "$${BUCKET}", "'\"\\"]


def spec_of(*args: str, **pool) -> dict:
    task = {"imageUri": "host/any:1", "command": ["python", "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"], "args": list(args)}
    return {"workerPoolSpecs": [{"replicaCount": 1, "containerSpec": task, **pool}]}


def message_of(fields: dict, kind: str = "CustomJob"):
    return schema.to_message(fields, kind)


def test_a_requests_message_is_run_as_it_is(tmp_path, monkeypatch):
    """Once it was written as JSON and read again as YAML 1.1, which knows other line ends."""
    from vertex_local.local import cluster

    monkeypatch.chdir(tmp_path)
    job = job_file.of_message(message_of({"jobSpec": spec_of(*AWKWARD, "${BUCKET}")}), "request")
    assert job.pools[0].args == (*AWKWARD, "${BUCKET}")
    done = cluster.run(job, job_id="a")
    assert json.loads((done.folder / "logs" / "workerpool0-0.log").read_text()) == [*AWKWARD, "${BUCKET}"]
    again = job_file.read(done.folder / "spec.yaml", {"bucket": "other"})
    assert again.message == job.message


def test_what_ran_is_what_is_kept(tmp_path):
    write_job(tmp_path, [spec_of("--a=1")["workerPoolSpecs"][0]], baseOutputDirectory={"outputUriPrefix": "gs://bucket/x"})
    assert call(tmp_path, "job.yaml", "--job_id=a", "--", "--b=2").returncode == 0
    kept = job_file.read(tmp_path / ".vertex_local/jobs/a/spec.yaml")
    assert kept.pools[0].args == ("--a=1", "--b=2") and kept.output == "gs://bucket/x" and kept.bare


def test_edits_make_copies():
    job = job_file.of_message(message_of({"jobSpec": spec_of("--train_data_path", "a", "--lr=1")}), "request")
    edited = job.with_args(["--x"]).without_data().with_output("gs://bucket/y")
    assert edited.pools[0].args == ("--lr=1", "--x") and edited.output == "gs://bucket/y"
    assert job.pools[0].args == ("--train_data_path", "a", "--lr=1") and job.output is None


def test_a_bare_spec_from_a_request_has_its_own_paths():
    with pytest.raises(SpecError) as caught:
        job_file.of_message(message_of({"workerPoolSpecs": [{}]}, "CustomJobSpec"), "request")
    assert caught.value.field == "workerPoolSpecs" and str(caught.value).startswith("request: workerPoolSpecs: ")


@pytest.mark.parametrize("text, words", [
    ("replicaCount: !!timestamp x", "job.yaml:2: workerPoolSpecs[0].replicaCount: got 'x', which is no timestamp"),
    ("replicaCount: !!bool maybe", "job.yaml:2: workerPoolSpecs[0].replicaCount: got 'maybe', which is no bool"),
    ("replicaCount: !!int x", "job.yaml:2: workerPoolSpecs[0].replicaCount: got 'x'"),
    (f"replicaCount: {'9' * 5000}", "job.yaml:2: workerPoolSpecs[0].replicaCount: "),
    (f"replicaCount: '{'9' * 5000}'", "job.yaml:2: workerPoolSpecs[0].replicaCount: takes a whole number"),
    (f"replicaCount: 0x{'f' * 9000}", "job.yaml:2: workerPoolSpecs[0].replicaCount: takes a whole number; got a number of about 10,8"),
    (f"replicaCount: {'a' * 10_000}", "job.yaml:2: workerPoolSpecs[0].replicaCount: takes a whole number; got 'aaa"),
    ("replicaCount: !!float x", "job.yaml:2: workerPoolSpecs[0].replicaCount: got 'x'"),
    ("replicaCount: !!binary é", "job.yaml:2: "),
    (f"machineSpec: {{acceleratorType: {'b' * 10_000}}}", "job.yaml:2: workerPoolSpecs[0].machineSpec.acceleratorType: 'bbb"),
])  # fmt: skip
def test_values_that_are_none_of_their_kind(tmp_path, text, words):
    (tmp_path / "job.yaml").write_text(f"workerPoolSpecs:\n- {text}\n  containerSpec: {{imageUri: a}}\n")
    done = call(tmp_path, "job.yaml")
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 and len(done.stderr) < 4000, "a value is cut to 100 characters"


def test_long_values_are_cut_in_messages():
    with pytest.raises(buckets.BucketError) as caught:
        buckets.check_folder("x" * 10_000)
    assert len(str(caught.value)) < 200


# ------------------------------------------------------------------ settings


def test_a_shells_own_variables_are_left_to_the_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("ELSEWHERE", "from the shell")
    (tmp_path / "settings.yaml").write_text("bucket: my-bucket\n")
    script = "echo ${ELSEWHERE} $${BUCKET} ${BUCKET}"
    task = {"imageUri": "host/any:1", "command": ["sh", "-c", f"BUCKET=own; {script}"]}
    write_job(tmp_path, [{"replicaCount": 1, "containerSpec": task}])
    done = call(tmp_path, "job.yaml", "--job_id=a")
    assert done.returncode == 0, done.stderr
    assert "[workerpool0-0] from the shell own my-bucket\n" in done.stdout
    kept = job_file.read(tmp_path / ".vertex_local/jobs/a/spec.yaml")
    assert kept.pools[0].command[-1] == "BUCKET=own; echo ${ELSEWHERE} ${BUCKET} my-bucket"


@pytest.mark.parametrize("name, words", [
    ("BUKET", "job.yaml:1: ${BUKET} is not set; set are ${BUCKET}: see settings.yaml; write $${BUKET} for the text itself."),
    ("PROJECT", "or give --project"), ("images", "${images} is not set"),
])  # fmt: skip
def test_a_setting_that_is_misspelt_or_has_no_value(tmp_path, name, words):
    (tmp_path / "settings.yaml").write_text("bucket: my-bucket\n")
    with pytest.raises(settings.SettingsError) as caught:
        settings.render(f"a: ${{{name}}}", str(tmp_path / "job.yaml"))
    assert words in str(caught.value)


def test_what_is_escaped_is_given_back():
    text = "${HOME} ${BUCKET} $${BUCKET} ${BUKET} $$ ${} {x}"
    assert settings.render(settings.escape(text), "job.yaml", {"bucket": "b"}) == text


# ------------------------------------------------------------------ studies


def test_a_studys_counts_edit_its_message():
    parameter = {"parameterId": "x", "doubleValueSpec": {"minValue": 0, "maxValue": 1}}
    fields = {"studySpec": {"metrics": [{"metricId": "loss"}], "parameters": [parameter]}, "trialJobSpec": spec_of("--a=1")}
    found = study.of(job_file.of_message(message_of(fields, "HyperparameterTuningJob"), "request"))
    assert (found.max_trials, found.parallel) == (1, 1)
    job = found.job.with_output("gs://bucket/x").with_args(["--b=2"])
    job.message.max_trial_count = 5
    edited = study.of(job)
    assert edited.job.fields()["maxTrialCount"] == 5 and edited.job.pools[0].args == ("--a=1", "--b=2")
    assert edited.job.output == "gs://bucket/x" and found.job.output is None
    again = study.loads(edited.job.text(), "spec.yaml")
    assert again.message == edited.message
