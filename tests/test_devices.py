"""What a job asks for and this machine cannot give, and how GPUs are dealt to trials that run at once."""

from __future__ import annotations

import pytest
import yaml

from vertex_local.job import job_file
from vertex_local.local import devices

POOL = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "containerSpec": {"imageUri": "host/any:1"}}


@pytest.fixture
def no_gpus(monkeypatch):
    monkeypatch.setenv(devices.VISIBLE, "")


def missing(**fields):
    spec = {"workerPoolSpecs": [POOL], **fields}
    return list(devices.not_imitated(job_file.parse(yaml.safe_dump(spec), "job.yaml")))


def test_what_is_not_imitated_is_named(no_gpus):
    assert missing() == []
    machine = {"machineType": "n1-standard-4", "acceleratorType": "NVIDIA_TESLA_T4", "acceleratorCount": 2}
    pool = {**POOL, "machineSpec": machine, "diskSpec": {"bootDiskType": "pd-ssd"}}
    found = missing(workerPoolSpecs=[pool], network="projects/1/global/networks/x", serviceAccount="a@b")
    assert found[0] == "workerpool0: 2 x NVIDIA_TESLA_T4 for each of 1; this machine has no GPU(s)"
    assert [line.partition(":")[0] for line in found[1:]] == ["workerpool0", "the VPC network", "the service account"]
    assert missing(workerPoolSpecs=[{**POOL, "machineSpec": {"machineType": "cloud-tpu", "tpuTopology": "2x2"}}]) == ["workerpool0: a TPU"]


def test_gpus_that_are_there_are_no_note(monkeypatch):
    monkeypatch.setenv(devices.VISIBLE, "0, 3")
    assert devices.gpus() == ["0", "3"]
    machine = {"machineType": "n1-standard-4", "acceleratorType": "NVIDIA_TESLA_T4", "acceleratorCount": 2}
    assert missing(workerPoolSpecs=[{**POOL, "machineSpec": machine}]) == []


@pytest.mark.parametrize("count, slots, expected", [
    (4, 2, ["0,2", "1,3"]), (2, 2, ["0", "1"]), (1, 3, ["0", "0", "0"]), (2, 3, ["0", "1", "0"]), (0, 2, [None, None]), (2, 1, [None]),
])  # fmt: skip
def test_gpus_are_dealt(count, slots, expected):
    found = [devices.dealt(slot, slots, list(map(str, range(count)))).get(devices.VISIBLE) for slot in range(slots)]
    assert found == expected
