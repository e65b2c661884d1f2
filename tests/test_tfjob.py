"""Kubernetes' TFJob: the `TF_CONFIG` that its operator sends, and the manifest in `jobs/`."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from conftest import ROOT

from taxifare.trainer.hyperparameters import Hyperparameters
from vertex_local.job import job_file
from vertex_runtime.arguments import parse
from vertex_runtime.environment import Environment
from vertex_runtime.outputs import resolve_outputs

MANIFEST = ROOT / "jobs" / "kubernetes-tfjob.yaml"
CHIEF = "taxifare-chief-0.trainers.svc:2222"
WORKERS = ("taxifare-worker-0.trainers.svc:2222", "taxifare-worker-1.trainers.svc:2222")
CLUSTER = {"chief": [CHIEF], "worker": list(WORKERS)}


def sent(cluster: dict[str, list[str]], kind: str, index: int = 0) -> Environment:
    """Return what a pod makes of the variable; the operator writes just these three keys, in this order."""
    config = {"cluster": cluster, "task": {"type": kind, "index": index}, "environment": "cloud"}
    return Environment.from_mapping({"TF_CONFIG": json.dumps(config, separators=(",", ":"))})


def manifest() -> dict:
    return yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("kind", "index", "place", "writes"), [("chief", 0, 0, True), ("worker", 0, 1, False), ("worker", 1, 2, False)]
)
def test_chief_and_workers(kind, index, place, writes):
    env = sent(CLUSTER, kind, index)
    assert (env.role, env.index, env.name) == (kind, index, f"{kind}-{index}")
    assert (env.worker_index, env.worker_count, env.is_chief) == (place, 3, writes)
    assert env.workers == (CHIEF, *WORKERS)
    assert json.loads(env.tf_config()) == {"cluster": CLUSTER, "task": {"type": kind, "index": index}}
    assert env.in_job and not env.tpu and env.trial is None and env.reduction_servers == 0


def test_an_evaluator_is_not_in_the_cluster_and_trains_nothing():
    env = sent(CLUSTER, "evaluator")
    assert (env.role, env.name, env.is_chief) == ("evaluator", "evaluator-0", False)
    assert env.tf_config() is None and env.workers == (CHIEF, *WORKERS)


def test_the_operators_older_name_for_the_chief():
    env = sent({"master": [CHIEF], "worker": list(WORKERS)}, "master")
    assert (env.role, env.is_chief, env.worker_count) == ("chief", True, 3)
    assert json.loads(env.tf_config()) == {"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}


@pytest.mark.parametrize("index", [0, 1])
def test_workers_only(index):
    env = sent({"worker": list(WORKERS)}, "worker", index)
    assert (env.role, env.worker_index, env.worker_count, env.is_chief) == ("worker", index, 2, index == 0)
    assert json.loads(env.tf_config()) == {"cluster": {"worker": list(WORKERS)}, "task": {"type": "worker", "index": index}}


def test_one_worker_trains_alone():
    env = sent({"worker": list(WORKERS[:1])}, "worker")
    assert env.is_chief and env.worker_count == 1 and env.tf_config() is None


def test_a_cluster_domain_is_a_part_of_the_addresses():
    """The operator appends CUSTOM_CLUSTER_DOMAIN where its cluster has one."""
    hosts = [f"job-worker-{i}.team-a.svc.cluster.local:2222" for i in range(2)]
    assert sent({"worker": hosts}, "worker", 1).workers == tuple(hosts)


def test_parameter_servers_are_left_out():
    env = sent({**CLUSTER, "ps": ["taxifare-ps-0.trainers.svc:2222"]}, "worker", 1)
    assert env.worker_count == 3 and env.reduction_servers == 1 and "ps" not in json.loads(env.tf_config())["cluster"]


def test_the_manifest_is_a_tfjob():
    job = manifest()
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "TFJob")
    replicas = job["spec"]["tfReplicaSpecs"]
    assert {kind: spec["replicas"] for kind, spec in replicas.items()} == {"Chief": 1, "Worker": 2, "Evaluator": 1}
    assert all(spec["restartPolicy"] in ("OnFailure", "ExitCode", "Always", "Never") for spec in replicas.values())
    for spec in replicas.values():
        (container,) = spec["template"]["spec"]["containers"]
        assert container["name"] == "tensorflow", "the operator sets TF_CONFIG for the container of this name only"


def test_the_manifest_runs_the_custom_jobs_image_and_arguments():
    custom = yaml.safe_load(job_file.read_text(ROOT / "jobs" / "taxifare-2-workers.yaml"))
    theirs = custom["workerPoolSpecs"][0]["containerSpec"]
    for spec in manifest()["spec"]["tfReplicaSpecs"].values():
        (container,) = spec["template"]["spec"]["containers"]
        assert container["image"] == theirs["imageUri"] and "command" not in container
        assert [arg for arg in container["args"] if not arg.startswith("--output_dir=")] == theirs["args"]


def test_the_trainer_takes_the_manifests_arguments():
    replicas = manifest()["spec"]["tfReplicaSpecs"]
    (container,) = replicas["Chief"]["template"]["spec"]["containers"]
    hp, options = parse(Hyperparameters, container["args"], "")
    assert hp.num_evals == 2 and hp.batch_size % (replicas["Chief"]["replicas"] + replicas["Worker"]["replicas"]) == 0
    for path in (*options.train_data_path, *options.eval_data_path):
        assert (ROOT / path).is_file()
    for kind, index in (("chief", 0), ("worker", 1), ("evaluator", 0)):
        outputs = resolve_outputs(options.output_dir, sent(CLUSTER, kind, index), "taxifare")
        assert outputs.checkpoints == "gs://your-bucket/taxifare-tfjob/checkpoints", "one place for all of them"


def test_the_comment_shows_what_the_operator_sends():
    """The variable in the manifest's comment is the form that these tests send."""
    shown = re.search(r"^#   (\{\"cluster\".*?\"cloud\"\})$", MANIFEST.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    config = json.loads(re.sub(r"\n#", "\n", shown[1]))
    job = manifest()
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    replicas = {kind.lower(): spec["replicas"] for kind, spec in job["spec"]["tfReplicaSpecs"].items() if kind != "Evaluator"}
    expected = {kind: [f"{name}-{kind}-{i}.{namespace}.svc:2222" for i in range(n)] for kind, n in replicas.items()}
    assert config == {"cluster": expected, "task": {"type": "worker", "index": 1}, "environment": "cloud"}
    assert config["cluster"] == CLUSTER
