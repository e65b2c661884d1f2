"""Time and price of a job: pinned prices give pinned numbers, and what has no source has no price."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
from datetime import date
from pathlib import Path

import pytest
from conftest import ROOT

from vertex_local.__main__ import main
from vertex_local.check import estimate, prices, probe
from vertex_local.check import rules as checks
from vertex_local.check.estimate import Estimate
from vertex_local.check.probe import Measured
from vertex_local.job import job_file, machines
from vertex_local.local.plan import Paths

PRICES = """\
currency: EUR
prices:
- {machine: n1-standard-8, region: here, price: 0.5, source: a page, date: 2026-01-02}
- {machine: n1-standard-8, region: here, strategy: SPOT, price: 0.1, excludes_fee: true, source: another page, date: 2026-01-03}
- {machine: n1-highcpu-16, region: here, price: 0.25, source: a page, date: 2026-01-02}
- {accelerator: NVIDIA_TESLA_T4, region: here, price: 0.25, source: a page, date: 2026-01-02}
- {machine: g2-standard-4, region: here, price: 2, spot: 1, includes_accelerators: true, source: a page, date: 2026-01-02}
- {tpu: ct5lp, region: here, price: 1.5, excludes_fee: true, source: a page, date: 2026-01-02}
- {disk: pd-ssd, region: here, price: 0.001, source: a bill, date: 2025-12-31}
unknown:
- {names: [NVIDIA_TESLA_V100], reason: nobody says it}
"""
T4 = {"machineType": "n1-standard-8", "acceleratorType": "NVIDIA_TESLA_T4", "acceleratorCount": 2}
MEASURED = Measured(
    startup=10.0, examples_per_second=1000.0, evaluation=2.0, finish=5.0, reading=3.0, read=1000, steps=100, on="its own data"
)
TPU = {"machineType": "ct5lp-hightpu-4t", "tpuTopology": "2x2"}
PLAN = {"total_steps": 3600, "batch_size": 100, "evaluations": 5, "bytes": 1000, "rows": 7200, "exact": True}


TODAY = date(2026, 8, 22)


@pytest.fixture
def table(tmp_path) -> prices.Table:
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES)
    return prices.load(path)


def case(folder: Path, *pools: tuple[dict, int], study: dict | None = None, disk: dict | None = None, **scheduling: str) -> checks.Case:
    container = {"imageUri": "host/image:1", "args": ["--a=1"]}
    about = {"containerSpec": container, **({"diskSpec": disk} if disk else {})}
    specs = [{"machineSpec": machine, "replicaCount": count, **about} if count else {} for machine, count in pools]
    job = {"workerPoolSpecs": specs, "scheduling": scheduling, "baseOutputDirectory": {"outputUriPrefix": "gs://bucket/x"}}
    path = folder / "job.yaml"
    path.write_text(json.dumps(job if study is None else {**study, "trialJobSpec": job}))
    paths = Paths(folder / "state", folder / "buckets", folder, "python")
    return checks.load(str(path), {"region": "here"}, (), paths, TODAY)


def report(*args: object) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for what, line in estimate.report(*args):
        said.setdefault(what, []).append(line)
    return said


def hour(seconds: float = 3600) -> Estimate:
    return Estimate(seconds, seconds, 2 * seconds, "as measured")


# ------------------------------------------------------------------ time


def test_time_is_a_range_from_perfect_sharing_to_none(tmp_path):
    time = estimate.duration(case(tmp_path, ({"machineType": "n1-standard-8"}, 1)), PLAN, MEASURED, cpus=2)
    assert time.here == 10 + 5 + 360 + 5 * 2
    assert time.low == 10 + 5 + (360 + 5 * 2) * 2 / 8 and time.high == 2 * time.here
    assert "1,000/s" in time.how and "over 100 steps" in time.how
    assert "half as fast as a CPU here, and more of them gain nothing" in time.how


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells which CPUs a process may use")
def test_the_cpus_here_are_those_that_the_training_could_use(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    time = estimate.duration(case(tmp_path, ({"machineType": "n1-standard-8"}, 1)), PLAN, MEASURED)
    assert time.low == 15 + 370 / 8 and "with 1 CPUs" in time.how


def test_fewer_cpus_there_cost_in_proportion_or_nothing(tmp_path):
    time = estimate.duration(case(tmp_path, ({"machineType": "n1-standard-8"}, 1)), PLAN, MEASURED, cpus=32)
    assert time.low == time.here and time.high == 2 * (15 + 370 * 32 / 8) and "and there are 8" in time.how


def test_workers_share_the_work_at_best(tmp_path):
    pool = {"machineType": "n1-standard-8"}
    time = estimate.duration(case(tmp_path, (pool, 1), (pool, 3)), PLAN, MEASURED, cpus=8)
    assert time.low == 15 + 370 / 4 and time.high == 2 * (15 + 370) and "4 workers do 4 times the work of one" in time.how


def test_more_data_than_was_measured_with_takes_longer_to_read(tmp_path):
    time = estimate.duration(case(tmp_path, ({"machineType": "n1-standard-8"}, 1)), {**PLAN, "bytes": 11_000}, MEASURED, cpus=8)
    assert time.low == time.here == 10 + 5 + 10 * 3 + 360 + 10


def test_a_gpu_has_no_least_time_and_a_tpu_none_at_all(tmp_path, table):
    job = case(tmp_path, (T4, 1), (T4, 3))
    time = estimate.duration(job, PLAN, MEASURED, cpus=8)
    assert time.low is None and time.high == 2 * time.here and "how much its GPUs gain is not known" in time.how
    said = report(job, PLAN, time, table)
    assert said["time"][0].startswith("at most 12.8 min on n1-standard-8 with 2 NVIDIA_TESLA_T4, from when its machines run. ")
    assert said["price"][0].startswith("on demand (this job): at most 0.9411 EUR; 4.40 EUR an hour for 4 machines in here.")
    time = estimate.duration(case(tmp_path, (TPU, 1)), PLAN, MEASURED, cpus=8)
    assert time.low is None and time.high is None and "is not known" in time.how


SLOW = """
import json, os, time
for step in range(1, {calls} * 10, 10):
    time.sleep(1)
    with open(os.environ["TRAINER_EVENTS"], "a") as file:
        file.write(json.dumps({{"phase": "step", "step": step, "time": time.time()}}) + "\\n")
time.sleep(600)
"""


def slow(folder: Path, calls: int, most: float) -> Measured:
    """Measure a trainer that calls its compiled steps so often, once a second, in half a second or, if need be, in `most`."""
    script = folder / "slow.py"
    script.write_text(SLOW.format(calls=calls))
    program = probe.Program((sys.executable, str(script)), 2, dict(os.environ), folder, script, True)
    plan = {"total_steps": 1000, "batch_size": 10, "bytes": 100, "jit_compile": False}
    return probe.measure(program, plan, folder, 1000, 0.5, most, threading.Event())


def test_a_training_that_is_slow_is_waited_for_until_there_is_something_to_time(tmp_path):
    measured = slow(tmp_path, 5, 120)
    assert measured.steps == 11 and measured.finish == 0 and 10 < measured.examples_per_second <= 100 and measured.startup >= 1


@pytest.mark.slow
def test_a_training_that_is_too_slow_to_be_timed_gets_a_line_with_what_was_seen_and_the_remedy(tmp_path):
    said = r"not two calls of the compiled steps were done within \d+ s, the first after \d+\.\d s: try again when .* --no_measure"
    with pytest.raises(probe.ProbeError, match=said):
        slow(tmp_path, 1, 10)


# ------------------------------------------------------------------ price


def test_pinned_prices_give_pinned_numbers(tmp_path, table):
    job = case(tmp_path, (T4, 1), (T4, 2), ({"machineType": "n1-highcpu-16"}, 4), disk={"bootDiskSizeGb": 200})
    # Three workers of 0.5 + 2 x 0.25 an hour, four machines of 0.25, and 7 disks of 200 x 0.001; half an hour of it, or one.
    said = report(job, PLAN, hour(1800), table)
    assert said["steps"] == ["3,600 of global batch 100, 360,000 examples of 7,200 rows, 5 evaluations"]
    assert said["time"] == ["30.0 min to 60.0 min on n1-standard-8 with 2 NVIDIA_TESLA_T4, from when its machines run. as measured."]
    on_demand, spot = said["price"]
    assert on_demand == "on demand (this job): 2.70 EUR to 5.40 EUR; 5.40 EUR an hour for 7 machines in here."
    assert spot.startswith("Spot: 0.8500 EUR to 1.70 EUR + the management fee + NVIDIA_TESLA_T4 + n1-highcpu-16; 1.70 EUR an hour ")
    assert said["unknown"][0].startswith("the management fee: ")
    assert "NVIDIA_TESLA_T4: prices.yaml has none for here SPOT; it has here STANDARD." in said["unknown"]
    machines_and_gpus = "n1-standard-8 0.5000 EUR, NVIDIA_TESLA_T4 0.2500 EUR, n1-highcpu-16 0.2500 EUR"
    assert said["source"][0] == f"{machines_and_gpus}: a page, read 2026-01-02, 232 days before 2026-08-22."
    assert said["source"][1:] == [
        "pd-ssd 0.00100 EUR a GB: a bill, read 2025-12-31, 234 days before 2026-08-22.",
        "n1-standard-8 Spot 0.1000 EUR: another page, read 2026-01-03, 231 days before 2026-08-22.",
    ]
    assert "taxes" in said["not counted"][0]


def test_spot_stands_beside_on_demand(tmp_path, table):
    job = case(tmp_path, ({"machineType": "n1-standard-8"}, 1), strategy="SPOT")
    on_demand, spot = report(job, PLAN, hour(7200), table)["price"]
    assert on_demand == "on demand: 1.20 EUR to 2.40 EUR; 0.6000 EUR an hour for 1 machine in here."
    assert spot.startswith("Spot (this job): 0.4000 EUR to 0.8000 EUR + the management fee; 0.2000 EUR an hour for 1 machine in here + ")


def test_another_strategy_has_a_line_of_its_own(tmp_path, table):
    machine = {"machineType": "g2-standard-4", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
    said = report(case(tmp_path, (machine, 1), strategy="FLEX_START"), PLAN, hour(), table)["price"]
    assert [line.partition(":")[0] for line in said] == ["on demand", "Spot", "FLEX_START (this job)"]
    assert said[2] == "FLEX_START (this job): unknown: g2-standard-4, NVIDIA_L4."


def test_a_price_that_includes_the_gpus_is_not_added_to(tmp_path, table):
    machine = {"machineType": "g2-standard-4", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
    job = case(tmp_path, (machine, 1))
    assert estimate.hourly(job, table, "here", "STANDARD").amount == pytest.approx(2.1)
    assert estimate.hourly(job, table, "here", "SPOT").amount == pytest.approx(1.1)


def test_a_tpu_is_paid_for_by_the_chip(tmp_path, table):
    rate = estimate.hourly(case(tmp_path, ({**TPU, "tpuTopology": "4x4"}, 1)), table, "here", "STANDARD")
    assert rate.amount == pytest.approx(16 * 1.5 + 0.1) and rate.beside == [estimate.FEE] and not rate.unknown


def test_a_study_is_paid_for_by_the_trial(tmp_path, table):
    parameter = {"parameterId": "lr", "doubleValueSpec": {"minValue": 0.1, "maxValue": 1}}
    study = {"maxTrialCount": 10, "parallelTrialCount": 4, "studySpec": {"metrics": [{"metricId": "m"}], "parameters": [parameter]}}
    job = case(tmp_path, ({"machineType": "n1-standard-8"}, 1), study=study)
    said = report(job, PLAN, hour(), table)
    assert said["price"][0] == "on demand (this job): 6.00 EUR to 12.00 EUR for 10 trials; 0.6000 EUR an hour for 1 machine in here."
    assert said["trials"] == ["10, 4 at a time: 3.0 h to 6.0 h in all, each as long as with the job's own arguments"]


def test_what_is_not_known_is_said_not_guessed(tmp_path, table):
    machine = {"machineType": "n1-standard-16", "acceleratorType": "NVIDIA_TESLA_V100", "acceleratorCount": 2}
    said = report(case(tmp_path, (machine, 1)), None, "it was not measured", table)
    assert said["steps"] == ["unknown: the data was not looked at"] and said["time"] == ["unknown: it was not measured"]
    assert said["price"][0] == "on demand (this job): unknown: n1-standard-16, NVIDIA_TESLA_V100."
    assert said["unknown"] == ["n1-standard-16: prices.yaml has none for here STANDARD.", "NVIDIA_TESLA_V100: nobody says it."]
    known = case(tmp_path, ({"machineType": "n1-standard-8"}, 1), timeout="7200s")
    (on_demand, _) = report(known, None, "no", table)["price"]
    said = "at most 1.20 EUR, as its timeout of 2.0 h ends it; 0.6000 EUR an hour for 1 machine in here."
    assert on_demand == f"on demand (this job): {said}"
    assert list(estimate.hourly(known, table, "elsewhere", "STANDARD").unknown) == ["n1-standard-8", "pd-ssd"]


def test_training_prices_go_before_compute_engines_and_new_ones_before_old(tmp_path):
    path = tmp_path / "prices.yaml"
    rows = [("2026-01-01", 1, "false"), ("2026-03-01", 2, "false"), ("2026-05-01", 3, "true")]
    entries = [f"- {{machine: m, region: r, price: {price}, excludes_fee: {bare}, source: s, date: {day}}}" for day, price, bare in rows]
    path.write_text("currency: EUR\nprices:\n" + "\n".join(entries))
    assert prices.load(path).find("m", "r", "STANDARD").amount == 2


# ------------------------------------------------------------------ tables


@pytest.mark.parametrize(
    "entry, said",
    [
        ("{machine: m, region: r, price: 1, date: 2026-01-01}", "needs its source and the date"),
        ("{machine: m, region: r, price: 1, source: s}", "needs its source and the date"),
        ("{machine: m, region: r, price: free, source: s, date: 2026-01-01}", "a price above 0"),
        ("{machine: m, region: r, price: .inf, source: s, date: 2026-01-01}", "a price above 0"),
        ("{machine: m, region: r, cost: 1, source: s, date: 2026-01-01}", "got \\['cost'\\]"),
        ("{machine: m, region: r, price: 1, source: s, date: 2026-01-01 10:00:00}", "needs its source and the date"),
        ("{machine: [m], region: r, price: 1, source: s, date: 2026-01-01}", "needs one of machine"),
        ("just text", "got 'just text'"),
        ("{machine: m, region: r, spot: 0, source: s, date: 2026-01-01}", "a price above 0"),
    ],
)
def test_a_table_without_sources_is_refused(tmp_path, capsys, entry, said):
    path = tmp_path / "prices.yaml"
    path.write_text(f"currency: USD\nprices:\n- {entry}\n")
    assert main(["check", str(ROOT / "jobs/taxifare.yaml"), "--file_only", f"--prices={path}"]) == 2
    assert re.fullmatch(f"error: --prices .*prices.yaml: entry 1: .*{said}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "cannot be read: No such file or directory."),
        ("a: [", "is no YAML: "),
        ("prices: []", "takes YAML with `currency: USD` and a list `prices`"),
        ("{currency: USD, prices: {a: 1}}", "takes YAML with `currency: USD` and a list `prices`"),
        ("{currency: USD, prices: [], unknown: [x]}", "unknown: takes a list of `{names: "),
    ],
)
def test_a_file_that_is_no_table(tmp_path, text, said):
    path = tmp_path / "prices.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(prices.PriceError, match=re.escape(f"--prices {path}: {said}")):
        prices.load(path)


def test_the_projects_own_table_names_pages_and_days():
    found = prices.load()
    assert found.currency == "USD" and found.prices
    for price in found.prices:
        assert "https://" in price.source and date(2025, 8, 1) <= price.day
        assert price.strategy == "STANDARD" or price.excludes_fee or price.strategy == "FLEX_START"  # Spot has Compute Engine's prices
    assert all(found.unknown.values())


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "jobs").glob("*.yaml")))
def test_every_machine_of_the_job_files_is_priced_or_unknown_for_a_reason(file):
    if file in ("settings.yaml", "kubernetes-tfjob.yaml"):
        return
    job, table = job_file.read(ROOT / "jobs" / file, kinds=tuple(job_file.COLLECTIONS)), prices.load()
    for pool in (pool for pool in job.pools if pool.replicas):
        for name, _, _ in estimate.parts(pool, "STANDARD"):
            assert table.find(name, "us-central1", "STANDARD") or name in table.unknown, f"{file}: {name}"


def test_no_price_is_asked_for_over_the_network(monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert main(["check", str(ROOT / "jobs/taxifare.yaml"), "--file_only", "--today=2026-11-29"]) == 0
    said = capsys.readouterr().out
    price = "on demand (this job): at most 0.4906 USD, as its timeout of 2.0 h ends it; 0.2453 USD an hour"  # with 100 GB of disk
    assert f"{price} for 1 machine in us-central1." in said
    assert re.search(r"n1-standard-4 0.2185 USD: https://cloud.google.com/\S+ .*, read 2026-10-07, 53 days before 2026-11-29", said)


def test_the_example_of_the_documents_is_what_the_tool_prints(capsys):
    text = (ROOT / "docs" / "first-job.md").read_text(encoding="utf-8")
    shown = [line.rstrip("…") for line in text.splitlines() if line.startswith("estimate  ")]
    assert main(["check", str(ROOT / "jobs/taxifare.yaml"), "--file_only", "--today=2026-11-29"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for line in shown:
        assert any(each.startswith(line) for each in printed), line
    assert len(shown) == sum(line.startswith("estimate") for line in printed) - 2  # all but steps and time


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
