"""Time and price of a job: pinned prices give pinned numbers, and what has no source has no price."""

from __future__ import annotations

import json
import re
import socket
from datetime import date
from pathlib import Path

import pytest
from conftest import ROOT

from vertex_local.__main__ import main
from vertex_local.check import estimate
from vertex_local.check import rules as checks
from vertex_local.check.probe import Measured
from vertex_local.job import machines

PRICES = """\
currency: EUR
prices:
- {machine: n1-standard-8, region: here, price: 0.5, source: a page, date: 2026-01-02}
- {machine: n1-standard-8, region: here, strategy: SPOT, price: 0.1, source: another page, date: 2026-01-03}
- {machine: n1-highcpu-16, region: here, price: 0.25, source: a page, date: 2026-01-02}
- {accelerator: NVIDIA_TESLA_T4, region: here, price: 0.25, source: a page, date: 2026-01-02}
- {machine: g2-standard-4, region: here, price: 2, includes_accelerators: true, source: a page, date: 2026-01-02}
"""
T4 = {"machineType": "n1-standard-8", "acceleratorType": "NVIDIA_TESLA_T4", "acceleratorCount": 2}
MEASURED = Measured(
    startup=10.0, examples_per_second=1000.0, evaluation=2.0, finish=5.0, reading=3.0, read=1000, steps=100, on="its own data"
)
PLAN = {"total_steps": 3600, "batch_size": 100, "evaluations": 5, "bytes": 1000, "rows": 7200, "exact": True}


@pytest.fixture
def prices(tmp_path) -> tuple[str, list[estimate.Price]]:
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES)
    return estimate.load_prices(path)


def case(folder: Path, *pools: tuple[dict, int], study: dict | None = None, **scheduling: str) -> checks.Case:
    container = {"imageUri": "host/image:1", "args": ["--a=1"]}
    specs = [{"machineSpec": machine, "replicaCount": count, "containerSpec": container} if count else {} for machine, count in pools]
    job = {"workerPoolSpecs": specs, "scheduling": scheduling, "baseOutputDirectory": {"outputUriPrefix": "gs://bucket/x"}}
    path = folder / "job.yaml"
    path.write_text(json.dumps(job if study is None else {**study, "trialJobSpec": job}))
    return checks.load(str(path), {"region": "here"}, (), folder, folder / "buckets", "python", date(2026, 8, 22))


def report(*args: object) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for what, line in estimate.report(*args):
        said.setdefault(what, []).append(line)
    return said


def test_time_is_scaled_by_vcpus_except_for_what_runs_on_one(tmp_path):
    time = estimate.duration(case(tmp_path, ({"machineType": "n1-standard-8"}, 1)), PLAN, MEASURED, cpus=2)
    assert time.here == 10 + 5 + 360 + 5 * 2
    assert time.there == 10 + 5 + (360 + 5 * 2) * 2 / 8
    assert "x 2/8 (CPUs here / vCPUs there" in time.how and "1,000/s" in time.how and "over 100 steps" in time.how


def test_more_data_than_was_measured_with_takes_longer_to_read(tmp_path):
    time = estimate.duration(case(tmp_path, ({"machineType": "n1-standard-8"}, 1)), {**PLAN, "bytes": 11_000}, MEASURED, cpus=8)
    assert time.there == time.here == 10 + 5 + 10 * 3 + 360 + 10


def test_a_gpus_time_is_an_upper_bound_and_a_tpus_is_not_known(tmp_path):
    time = estimate.duration(case(tmp_path, (T4, 1), (T4, 3)), PLAN, MEASURED, cpus=8)
    assert time.there == time.here and "an upper bound" in time.how and "what 4 gain or lose" in time.how
    time = estimate.duration(case(tmp_path, ({"machineType": "ct5lp-hightpu-4t", "tpuTopology": "2x2"}, 1)), PLAN, MEASURED, cpus=8)
    assert time.there is None and "is not known" in time.how


def test_pinned_prices_give_pinned_numbers(tmp_path, prices):
    job = case(tmp_path, (T4, 1), (T4, 2), ({"machineType": "n1-highcpu-16"}, 4))
    # Three workers of 0.5 + 2 x 0.25 an hour and four machines of 0.25; half an hour of it.
    said = report(job, PLAN, estimate.Estimate(1800, 1800, "as measured"), *prices)
    assert said["steps"] == ["3,600 of global batch 100, 360,000 examples of 7,200 rows, 5 evaluations"]
    assert said["time"][0].startswith("about 30.0 min on n1-standard-8 with 2 NVIDIA_TESLA_T4, ")
    on_demand, spot = said["price"]
    assert on_demand.startswith("on demand (this job): 2.00 EUR: 4.00 EUR an hour for 7 machine(s) in here")
    assert on_demand.endswith("(a page, 2026-01-02).")
    assert spot == "Spot: price unknown: none with a source for NVIDIA_TESLA_T4, n1-highcpu-16 in here (prices.yaml)."


def test_spot_stands_beside_on_demand(tmp_path, prices):
    job = case(tmp_path, ({"machineType": "n1-standard-8"}, 1), strategy="SPOT")
    on_demand, spot = report(job, PLAN, estimate.Estimate(3600, 7200, ""), *prices)["price"]
    assert on_demand.startswith("on demand: 1.00 EUR: 0.5000 EUR an hour")
    assert spot.startswith("Spot (this job): 0.2000 EUR: 0.1000 EUR an hour") and spot.endswith("(another page, 2026-01-03).")


def test_a_price_that_includes_the_gpus_is_not_added_to(tmp_path, prices):
    machine = {"machineType": "g2-standard-4", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
    assert estimate.hourly(case(tmp_path, (machine, 1)), prices[1], "here", "STANDARD")[0] == 2


def test_a_study_is_paid_for_by_the_trial(tmp_path, prices):
    parameter = {"parameterId": "lr", "doubleValueSpec": {"minValue": 0.1, "maxValue": 1}}
    study = {"maxTrialCount": 10, "parallelTrialCount": 4, "studySpec": {"metrics": [{"metricId": "m"}], "parameters": [parameter]}}
    job = case(tmp_path, ({"machineType": "n1-standard-8"}, 1), study=study)
    said = report(job, PLAN, estimate.Estimate(3600, 3600, ""), *prices)
    assert said["price"][0].startswith("on demand (this job): 0.5000 EUR x 10 trials = 5.00 EUR: 0.5000 EUR an hour")
    assert said["trials"] == ["10, 4 at a time: about 3.0 h in all, each as long as with the job's own arguments"]


def test_what_is_not_known_is_said_not_guessed(tmp_path, prices):
    job = case(tmp_path, ({"machineType": "n1-standard-16"}, 1))
    said = report(job, None, "it was not measured", *prices)
    assert said["steps"] == ["unknown: the data was not looked at"] and said["time"] == ["unknown: it was not measured"]
    assert said["price"][0] == "on demand (this job): price unknown: none with a source for n1-standard-16 in here (prices.yaml)."
    known = case(tmp_path, ({"machineType": "n1-standard-8"}, 1))
    assert "0.5000 EUR an hour for 1 machine(s) in here; in all unknown" in report(known, None, "no", *prices)["price"][0]
    assert estimate.hourly(known, prices[1], "elsewhere", "STANDARD")[0] is None


@pytest.mark.parametrize(
    "entry, said",
    [
        ("{machine: m, region: r, price: 1, date: 2026-01-01}", "needs its source and the date"),
        ("{machine: m, region: r, price: 1, source: s}", "needs its source and the date"),
        ("{machine: m, region: r, price: free, source: s, date: 2026-01-01}", "a price above 0"),
        ("{machine: m, region: r, cost: 1, source: s, date: 2026-01-01}", "got \\['cost'\\]"),
        ("just text", "got 'just text'"),
    ],
)
def test_a_table_without_sources_is_refused(tmp_path, capsys, entry, said):
    path = tmp_path / "prices.yaml"
    path.write_text(f"currency: USD\nprices:\n- {entry}\n")
    assert main(["check", str(ROOT / "jobs/taxifare.yaml"), "--file_only", f"--prices={path}"]) == 2
    assert re.fullmatch(f"error: --prices .*prices.yaml: entry 1: .*{said}.*\n", capsys.readouterr().err)


def test_the_projects_own_table_names_pages_and_days():
    currency, found = estimate.load_prices(estimate.PRICES)
    assert currency == "USD" and found
    for price in found:
        assert price.source.startswith("https://cloud.google.com/") and date(2026, 1, 1) <= price.day


def test_no_price_is_asked_for_over_the_network(monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert main(["check", str(ROOT / "jobs/taxifare.yaml"), "--file_only"]) == 0
    assert "0.2185 USD an hour for 1 machine(s) in us-central1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "machine, said",
    [
        ({"machineType": "n1-standard-4"}, None),
        (T4, None),
        ({"machineType": "a2-highgpu-8g", "acceleratorType": "NVIDIA_TESLA_A100", "acceleratorCount": 8}, None),
        ({"machineType": "ct5lp-hightpu-4t", "tpuTopology": "4x4"}, None),
        ({"machineType": "cloud-tpu", "acceleratorType": "TPU_V3", "acceleratorCount": 32}, None),
        ({}, "is required"),
        ({"machineType": "a2-highgpu-1g"}, "comes with 1 NVIDIA_TESLA_A100, and the job must say so; got none"),
        ({"machineType": "g2-standard-24", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}, "comes with 2 NVIDIA_L4"),
        ({"machineType": "e2-standard-4", "acceleratorType": "NVIDIA_TESLA_T4", "acceleratorCount": 1}, "n1 machines only"),
        ({"machineType": "n1-standard-16", "acceleratorType": "NVIDIA_TESLA_V100", "acceleratorCount": 1}, "take 2 or 4 or 8 of them"),
        ({"machineType": "n1-standard-8", "acceleratorType": "NVIDIA_TESLA_K80", "acceleratorCount": 1}, "end of support"),
        ({"machineType": "n1-standard-8", "acceleratorType": "NVIDIA_TESLA_T4"}, "needs how many"),
        ({"machineType": "n1-standard-8", "acceleratorCount": 1}, "of what is not said"),
        ({"machineType": "n1-standard-8", "tpuTopology": "2x2"}, "no TPU machine"),
        ({"machineType": "ct5lp-hightpu-1t", "tpuTopology": "2x2"}, "takes 1x1; got '2x2'"),
        ({"machineType": "ct5lp-hightpu-4t", "acceleratorType": "TPU_V5_LITEPOD", "acceleratorCount": 4}, "takes no acceleratorType"),
        ({"machineType": "cloud-tpu", "acceleratorType": "TPU_V2", "acceleratorCount": 4}, "comes in 8 cores"),
        ({"machineType": "tpu7x-standard-4t", "tpuTopology": "2x2x1"}, "JAX only"),
        ({"machineType": "ct9-hightpu-4t"}, "not among the TPU machines"),
    ],
)  # fmt: skip
def test_which_machines_take_which_accelerators(machine, said):
    problem = machines.problem(machine)
    assert problem is None if said is None else said in problem[1]
