"""Job files: what is accepted, and that every mistake is named with file and line."""

from __future__ import annotations

import json
import re

import pytest
from test_local_support import ROOT, call, run

from vertex_local.job import buckets, job_file

GOOD = """\
workerPoolSpecs:
- machineSpec:
    machineType: n1-standard-8
    acceleratorType: NVIDIA_L4
    acceleratorCount: 1
  replicaCount: 1
  diskSpec: {bootDiskType: pd-ssd, bootDiskSizeGb: 100}
  containerSpec:
    imageUri: host/p/trainer:v1
    command: [python, -m, trainer.task]
    args: ["--epochs=3"]
    env: [{name: TF_CPP_MIN_LOG_LEVEL, value: "1"}]
- machineSpec: {machineType: n1-standard-8}
  replicaCount: "2"
  pythonPackageSpec:
    executorImageUri: host/tf:latest
    packageUris: [gs://bucket/t-0.1.tar.gz]
    pythonModule: trainer.task
- {}
- replicaCount: 1
  containerSpec: {imageUri: host/p/trainer:v1}
scheduling:
  timeout: 7200s
  restartJobOnWorkerRestart: true
  strategy: SPOT
baseOutputDirectory:
  outputUriPrefix: gs://bucket/run1
tensorboard: projects/1/locations/us-central1/tensorboards/2
"""


def change(old: str, new: str) -> str:
    assert GOOD.count(old) >= 1, old
    return GOOD.replace(old, new, 1)


def test_a_full_spec():
    job = job_file.parse(GOOD, "job.yaml").with_args(["--lr=1"])
    assert [pool.replicas for pool in job.pools] == [1, 2, 0, 1]
    assert job.pools[0].command == ("python", "-m", "trainer.task")
    assert job.pools[0].args == ("--epochs=3", "--lr=1") and job.pools[3].args == ("--lr=1",)
    assert job.pools[0].env == (("TF_CPP_MIN_LOG_LEVEL", "1"),)
    assert job.pools[1].module == "trainer.task" and job.pools[1].package_uris == ("gs://bucket/t-0.1.tar.gz",)
    assert (job.output, job.timeout, job.restart_together) == ("gs://bucket/run1", 7200.0, True)


def test_json_with_tabs_and_the_whole_custom_job_mean_the_same():
    plain = job_file.parse(GOOD, "job.yaml")
    whole = {"displayName": "x", "labels": {"team": "a"}, "jobSpec": plain.spec_fields()}
    assert job_file.parse(json.dumps(whole, indent="\t"), "job.json").pools == plain.pools


def test_aliases_merge_keys_and_unset_fields():
    text = """\
workerPoolSpecs:
- &pool
  replicaCount: 1
  containerSpec: &task {imageUri: host/a:1, args: }
- <<: *pool
  replicaCount: 2
  containerSpec: *task
"""
    assert [pool.replicas for pool in job_file.parse(text, "x").pools] == [1, 2]


MISTAKES = {
    "an unknown field": (change("imageUri: host/p", "imageURL: host/p"), 9, "did you mean imageUri?"),
    "snake case": (change("replicaCount: 1", "replica_count: 1"), 6, "write replicaCount"),
    "a field of nobody": (change("tensorboard:", "zzz:"), 28, "known are persistentResourceId"),
    "a bad enum": (change("NVIDIA_L4", "NVIDIA_L5"), 4, "did you mean NVIDIA_L4?"),
    "an enum in lower case": (change("SPOT", "spot"), 25, "did you mean SPOT?"),
    "a number for text": (change('"1"', "1"), 12, "put it in quotes"),
    "text for a number": (change("acceleratorCount: 1", "acceleratorCount: one"), 5, "takes a whole number; got 'one'"),
    "a fraction": (change("acceleratorCount: 1", "acceleratorCount: 1.5"), 5, "got 1.5"),
    "a number too big": (change("acceleratorCount: 1", "acceleratorCount: 3000000000"), 5, "whole number"),
    "text for a bool": (change("Restart: true", 'Restart: "true"'), 24, "takes true or false; got 'true'"),
    "a bare number of seconds": (change("7200s", "7200"), 23, "such as 3600s; got 7200"),
    "a list for a mapping": (change("scheduling:\n", "scheduling: []\nx:\n"), 22, "takes a mapping"),
    "text for a list": (change('args: ["--epochs=3"]', "args: --epochs=3"), 11, "takes a list"),
    "a mapping for a list": (change("args: [", "args: {a: [").replace('3"]', '3"]}'), 11, "takes a list"),
    "a field given twice": (change("  replicaCount: 1\n", "  replicaCount: 1\n  replicaCount: 1\n"), 7, "twice"),
    "both kinds of task": (change("  diskSpec", "  pythonPackageSpec: {pythonModule: a}\n  diskSpec"), 9, "beside"),
    "no task": (change("  containerSpec: {imageUri: host/p/trainer:v1}\n", ""), 20, "containerSpec or pythonPackageSpec"),
    "no image": (change("imageUri: host/p/trainer:v1}", "command: [a]}"), 21, "imageUri: is required"),
    "no module": (change("    pythonModule: trainer.task\n", ""), 15, "pythonModule: is required"),
    "two chiefs": (change("replicaCount: 1", "replicaCount: 2"), 6, "the chief's pool takes 1 replica; got 2"),
    "no replica": (change('"2"', "0"), 14, "takes 1 or more; got 0"),
    "five pools": (change("scheduling:", "- {}\nscheduling:"), 22, "at most 4 pools"),
    "an output that is no bucket": (change("gs://bucket/run1", "/tmp/run1"), 27, "takes gs://bucket/folder"),
    "a bad bucket name": (change("gs://bucket/run1", "gs://Bucket/run1"), 27, "lower-case"),
    "broken YAML": (change("scheduling:", "scheduling: ["), 24, "expected"),
    "a date that is none": (change("7200s", "2020-13-45"), 23, "month must be in 1..12"),
    "an alias of itself": (change("scheduling:\n", "scheduling: &a\n  maxWaitDuration: *a\n"), 22, "recursive"),
    "a message inside itself": (change("- {}", "- &a\n  machineSpec: *a"), 20, "refers to itself"),
    "an unknown tag": (change("strategy: SPOT", "strategy: !python/name:os.system x"), 25, "could not determine a constructor"),
    "a variable without a name": (change("name: TF_CPP_MIN_LOG_LEVEL, ", ""), 12, "needs a name"),
    "an empty first pool": ("workerPoolSpecs: [{}]\n", 1, "the first pool holds the chief"),
    "an empty file": ("", 1, "takes a mapping"),
    "two documents": (GOOD + "---\na: 1\n", 29, "another document"),
    "a tuning job": ("studySpec: {}\ntrialJobSpec: {}\n", 1, "HyperparameterTuningJob"),
    "nesting without end": ("[" * 5000, 1, ""),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_line(name):
    text, line, words = MISTAKES[name]
    with pytest.raises(job_file.SpecError) as caught:
        job_file.parse(text, "jobs/x.yaml")
    assert str(caught.value).startswith(f"jobs/x.yaml:{line}: "), caught.value
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_line_ends_with_one_line(tmp_path):
    (tmp_path / "x.yaml").write_text(change("imageUri: host/p", "imageURL: host/p"))
    done = run(tmp_path, "x.yaml")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: x.yaml:9: workerPoolSpecs[0].containerSpec.imageURL: unknown field; did you mean imageUri?\n"
    assert not (tmp_path / ".vertex_local").exists()
    missing = run(tmp_path, "none.yaml")
    assert missing.returncode == 2 and missing.stderr.startswith("error: none.yaml: cannot be read")


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--state_dir=afile", r"/afile: cannot be made a folder: .*\. Name another --state_dir\.\n"),
        ("--state_dir=afile/x", r"/afile/x: cannot be made a folder: .*\. Name another --state_dir\.\n"),
        ("--bucket_root=afile", r"--bucket_root: .*/afile is a file\. Name a folder\.\n"),
        ("--grace=nan", r"argument --grace: takes seconds such as 15; got 'nan'\. See .* --help\.\n"),
        ("--grace=-1", r"argument --grace: takes seconds such as 15; got '-1'\. See .* --help\.\n"),
        ("--project_dir=.", r"x\.yaml:2: workerPoolSpecs\[0\]: bucket name 'B': it must have .*; rename it\.\n"),
    ],
)
def test_a_flag_or_an_argument_that_is_wrong_is_named(tmp_path, flag, said):
    (tmp_path / "afile").write_text("mine")
    (tmp_path / "x.yaml").write_text("workerPoolSpecs:\n- {replicaCount: 1, containerSpec: {imageUri: x, command: [cat, gs://B/x]}}\n")
    if "project_dir" not in flag:
        (tmp_path / "x.yaml").write_text("workerPoolSpecs: [{replicaCount: 1, containerSpec: {imageUri: x, command: ['true']}}]\n")
    done = run(tmp_path, "x.yaml", flag)
    assert done.returncode == 2 and re.fullmatch(f"error: .*{said}", done.stderr), done.stderr
    assert (tmp_path / "afile").read_text() == "mine"


def test_a_command_without_a_name_says_so(tmp_path):
    (tmp_path / "x.yaml").write_text("workerPoolSpecs: [{replicaCount: 1, containerSpec: {imageUri: x, command: ['']}}]\n")
    assert "exit code 127: error: cannot start ''" in run(tmp_path, "x.yaml").stderr


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_custom_job_file_of_the_project_is_right(path):
    text = path.read_text()
    if "workerPoolSpecs:" not in text.splitlines() or "studySpec:" in text:
        pytest.skip("not a custom job")
    job = job_file.read(path)
    together = sum(pool.replicas for pool in job.pools[:2])
    assert job.restart_together or together == 1, "peers of a lost worker fail too: restart them together"
    assert path.read_text().startswith("#"), "a job file opens with a comment that shows how to run it"


@pytest.mark.parametrize("name", ["abc", "a-b_c.d", "1x9", "a" * 63, ".".join(["a" * 63] * 3)])
def test_bucket_names(name):
    assert buckets.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "ab", "a" * 64, "Abc", "-abc", "abc-", "a b", "a/b", "..", "a..b", "1.2.3.4", "goog-x", "my-google-x", "g00gle", "ä-b"],
)
def test_bucket_names_that_the_service_refuses(name):
    with pytest.raises(buckets.BucketError, match="bucket name"):
        buckets.check_name(name)


def test_references_become_paths(tmp_path):
    root = tmp_path.resolve()
    assert buckets.to_path("gs://bucket/a/b/", root) == f"{root}/bucket/a/b/"
    assert buckets.to_path("gs://bucket", root) == f"{root}/bucket"
    text = "--data=gs://bucket/a-*.csv,/gcs/other/b --note=/some/gcs/x"
    assert buckets.localize(text, root) == f"--data={root}/bucket/a-*.csv,{root}/other/b --note=/some/gcs/x"


@pytest.mark.parametrize("uri", ["gs://bucket/../../x", "gs://bucket/../other/x", "/gcs/bucket/a/../../../x", "gs://bucket/link/x"])
def test_a_path_that_leaves_the_bucket_is_refused(tmp_path, uri):
    (tmp_path / "root" / "bucket").mkdir(parents=True)
    (tmp_path / "root" / "bucket" / "link").symlink_to(tmp_path)
    with pytest.raises(buckets.BucketError, match="leaves the folder of its bucket"):
        buckets.localize(f"--data={uri}", tmp_path / "root")


@pytest.mark.parametrize("text", [change("gs://bucket/run1", "gs://bucket/../../x"), change("--epochs=3", "--d=gs://bucket/../x")])
def test_the_job_is_refused_then(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    done = call(tmp_path, "x.yaml")
    assert done.returncode == 2 and " folder of its bucket" in done.stderr
    assert not (tmp_path / ".vertex_local").exists()
