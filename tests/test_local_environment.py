"""The environment of every role, compared whole with what the service's documents and jobs show."""

from __future__ import annotations

import json
import os
import re

import pytest
from test_local_support import call, environ, run, write_job

from vertex_local.job import job_file
from vertex_local.local import cluster

OURS = re.compile("AIP_|CLOUD_ML_|TRAINER_|VERTEX_|TF_CONFIG|CLUSTER_SPEC|TPU_")
SHOW = """\
import json, os, sys, time
print(json.dumps([dict(os.environ), sys.argv, os.getcwd()]))
if '"ps"' in os.environ.get("TF_CONFIG", "") and '"chief", "index"' in os.environ["TF_CONFIG"]:
    time.sleep(1.5)  # parameter servers are ended as soon as the chief is done
"""
NO_JOB = {"python_module": "", "package_uris": [], "job_args": []}
LEFT_OVERS = {
    "AIP_MODEL_DIR": "gs://old/model", "AIP_DATA_FORMAT": "csv", "CLOUD_ML_TRIAL_ID": "9", "TF_CONFIG": "{}",
    "CLUSTER_SPEC": "{}", "TRAINER_KILL": "step=1", "TRAINER_EVENTS": "/old", "VERTEX_LOCAL_BUCKET_ROOT": "/old", "MINE": "kept",
}  # fmt: skip


def pool(replicas: int, image: str = "host/any:1", **more) -> dict:
    return {"replicaCount": replicas, "containerSpec": {"imageUri": image, "command": ["python", "show.py"], **more}}


def shown(folder, job_id: str) -> dict[str, dict[str, str]]:
    """Return the service's variables of every replica, JSON read and ports replaced by the replica's name."""
    jobs = folder / ".vertex_local" / "jobs" / job_id
    seen = {}
    for log in sorted((jobs / "logs").iterdir()):
        variables = json.loads(log.read_text())[0]
        text = json.dumps({name: value for name, value in variables.items() if OURS.match(name)})
        own = json.loads(variables["CLUSTER_SPEC"])["cluster"]
        for name, addresses in own.items():
            for index, address in enumerate(addresses):
                assert re.fullmatch(r"localhost:\d{4,5}", address)
                text = text.replace(address, f"{name}-{index}:P")
        found = json.loads(text)
        for name in ("CLUSTER_SPEC", "TF_CONFIG", "CLOUD_ML_JOB"):
            if name in found:
                found[name] = json.loads(found[name])
        found["CLUSTER_SPEC"]["job"] = json.loads(found["CLUSTER_SPEC"]["job"])
        if "open_ports" in found["CLUSTER_SPEC"]:
            assert all(isinstance(port, int) for port in found["CLUSTER_SPEC"].pop("open_ports"))
        seen[log.stem] = found
    return seen


def golden(folder, job_id: str, replica: str, prefix: str | None, cluster_spec: dict, tf_config: dict | None, **more) -> dict:
    number, index = replica.removeprefix("workerpool").split("-")
    extra = {"trial": more["CLOUD_ML_TRIAL_ID"]} if "CLOUD_ML_TRIAL_ID" in more else {}
    role = ["chief", "worker", "ps", "evaluator"][int(number)]
    task = {"type": f"workerpool{number}", "index": int(index), **extra}
    state = folder / ".vertex_local"
    variables = {
        "CLUSTER_SPEC": {"cluster": cluster_spec, "environment": "cloud", "task": task, "job": NO_JOB},
        "CLOUD_ML_PROJECT_ID": "123456789012",
        "CLOUD_ML_REGION": "us-central1",
        "CLOUD_ML_JOB_ID": job_id,
        "CLOUD_ML_JOB": NO_JOB,
        "TRAINER_EVENTS": f"{state}/jobs/{job_id}/events/{replica}.jsonl",
        "VERTEX_LOCAL_BUCKET_ROOT": f"{state}/buckets",
        **more,
    }
    if prefix:
        for name, last in (("MODEL", "model"), ("CHECKPOINT", "checkpoints"), ("TENSORBOARD_LOG", "logs")):
            variables[f"AIP_{name}_DIR"] = f"{state}/buckets/{prefix}/{last}/"
    if tf_config is not None:
        task = {"type": role, "index": int(index), **extra, "cloud": "local-tp"}
        variables["TF_CONFIG"] = {"cluster": tf_config, "task": task, "job": NO_JOB, "environment": "cloud"}
    return variables


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "show.py").write_text(SHOW)
    return tmp_path.resolve()


def test_a_single_replica(folder):
    write_job(folder, [pool(1)], baseOutputDirectory={"outputUriPrefix": "gs://bucket/run/"})
    done = run(folder, "job.yaml", "--job_id=12", env=environ(**LEFT_OVERS))
    assert done.returncode == 0, done.stderr
    want = golden(folder, "12", "workerpool0-0", "bucket/run", {"workerpool0": ["workerpool0-0:P"]}, None)
    assert shown(folder, "12") == {"workerpool0-0": want}
    assert json.loads((folder / ".vertex_local/jobs/12/logs/workerpool0-0.log").read_text())[0]["MINE"] == "kept"


def test_every_role_of_a_cluster(folder, monkeypatch):
    for name, value in LEFT_OVERS.items():
        monkeypatch.setenv(name, value)
    write_job(folder, [pool(1), pool(2), pool(1), pool(1)], baseOutputDirectory={"outputUriPrefix": "gs://bucket/run"})
    assert call(folder, "job.yaml", "--job_id=34").returncode == 0
    names = ["workerpool0-0", "workerpool1-0", "workerpool1-1", "workerpool2-0", "workerpool3-0"]
    at = [f"{name}:P" for name in names]
    pools = {"workerpool0": at[:1], "workerpool1": at[1:3], "workerpool2": at[3:4], "workerpool3": at[4:]}
    config = {"chief": at[:1], "worker": at[1:3], "ps": at[3:4]}
    assert shown(folder, "34") == {name: golden(folder, "34", name, "bucket/run", pools, config) for name in names}


def test_a_reduction_server_is_announced_and_empty_pools_are_not(folder):
    reducer = {"replicaCount": 3, "containerSpec": {"imageUri": "us-docker.pkg.dev/x/training/reductionserver:latest"}}
    write_job(folder, [pool(1), {}, reducer, pool(1)])
    done = call(folder, "job.yaml", "--job_id=5")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^workerpool2-\d \(ps \d, \S+\): announced to the others, not started$", done.stdout, re.MULTILINE)) == 3
    reducers = [f"workerpool2-{i}:P" for i in range(3)]
    pools = {"workerpool0": ["workerpool0-0:P"], "workerpool2": reducers, "workerpool3": ["workerpool3-0:P"]}
    config = {"chief": ["workerpool0-0:P"], "ps": reducers}
    names = ["workerpool0-0", "workerpool3-0"]
    assert shown(folder, "5") == {name: golden(folder, "5", name, None, pools, config) for name in names}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_trial(folder, workers, monkeypatch):
    monkeypatch.chdir(folder)
    path = write_job(folder, [pool(1)] + [pool(1)] * workers, baseOutputDirectory={"outputUriPrefix": "gs://bucket/hp"})
    job = job_file.read(path).with_args(["--lr", "0.1"])
    result = cluster.run(job, job_id="77", trial="3", variables={"AIP_DATA_FORMAT": "csv"})
    assert result.succeeded and result.outputs["AIP_MODEL_DIR"] == f"{folder}/.vertex_local/buckets/bucket/hp/3/model/"
    names = ["workerpool0-0", "workerpool1-0"][: workers + 1]
    pools = {name[:-2]: [f"{name}:P"] for name in names}
    config = {"chief": ["workerpool0-0:P"], "worker": ["workerpool1-0:P"]} if workers else None
    seen = shown(folder, "77")
    for name in names:
        more = {"CLOUD_ML_TRIAL_ID": "3", "AIP_DATA_FORMAT": "csv"}
        more["CLOUD_ML_HP_METRIC_FILE"] = f"{folder}/.vertex_local/jobs/77/metrics/{name}/output.metrics"
        assert seen[name] == golden(folder, "77", name, "bucket/hp/3", pools, config, **more)
        assert os.path.isdir(os.path.dirname(more["CLOUD_ML_HP_METRIC_FILE"]))
        log = folder / ".vertex_local/jobs/77/logs" / f"{name}.log"
        assert json.loads(log.read_text())[1] == ["show.py", "--lr", "0.1"]


def test_env_and_arguments_of_the_spec(folder):
    more = {"env": [{"name": "MINE", "value": "/gcs/data/x"}, {"name": "CLOUD_ML_LOG_LEVEL", "value": "DEBUG"}]}
    more["env"].append({"name": "AIP_MODEL_DIR", "value": "the service's wins"})
    fields = {"tensorboard": "projects/1/locations/europe-west4/tensorboards/2", "experiment": "projects/1/contexts/e"}
    fields["baseOutputDirectory"] = {"outputUriPrefix": "gs://bucket/run"}
    path = write_job(folder, [pool(1, args=["--data=gs://data/a-*.csv"], **more)], **fields)
    done = call(folder, path.name, "--job_id=my-job", "--bucket_root=store", "--", "--flag=v", "--data=/gcs/data/b")
    assert done.returncode == 0, done.stderr
    log = folder / ".vertex_local/jobs/my-job/logs/workerpool0-0.log"
    variables, argv, cwd = json.loads(log.read_text())
    assert argv == ["show.py", f"--data={folder}/store/data/a-*.csv", "--flag=v", f"--data={folder}/store/data/b"]
    assert cwd == str(folder)
    assert variables["MINE"] == f"{folder}/store/data/x" and variables["CLOUD_ML_LOG_LEVEL"] == "DEBUG"
    assert variables["AIP_MODEL_DIR"] == f"{folder}/store/bucket/run/model/"
    assert variables["CLOUD_ML_JOB_ID"].isdecimal()
    assert variables["AIP_TENSORBOARD_RESOURCE_NAME"] == fields["tensorboard"]
    assert variables["AIP_TENSORBOARD_API_URI"] == "https://europe-west4-aiplatform.googleapis.com"
    assert variables["AIP_EXPERIMENT_NAME"] == fields["experiment"]
    assert "show.py" in done.stdout.splitlines()[1] and "--flag=v" in done.stdout.splitlines()[1], "commands come first"
