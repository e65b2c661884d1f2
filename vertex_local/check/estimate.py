"""How long a job will take and what it will cost, as ranges: from one short training here and a table of prices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..job import machines, times
from ..job.pools import Pool
from ..local import devices
from .prices import Price, Table
from .probe import Measured
from .rules import Case

SLOWER = 2  # times: a vCPU is one of the two threads of a core
FEE = "the management fee"
_NO_FEE = "training charges it beside Compute Engine's price, Spot or not; no page was found that has it by machine"
_LEFT_OUT = "waiting for machines, restarts, storage, network, images, logs, what is registered or deployed afterwards, taxes"
_STRATEGIES = {"STANDARD": "on demand", "SPOT": "Spot"}


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run here, and at least and at most there; None where the machine's speed is not known."""

    here: float
    low: float | None
    high: float | None
    how: str


@dataclass(frozen=True)
class Rate:
    """What all replicas cost an hour, without what is `unknown`: its names, each with the reason."""

    amount: float
    used: tuple[Price, ...]
    unknown: Mapping[str, str]

    @property
    def beside(self) -> list[str]:
        """What is to be paid beside `amount`."""
        return [*([FEE] if any(price.excludes_fee for price in self.used) else []), *self.unknown]


# ------------------------------------------------------------------ time


def duration(case: Case, plan: Mapping[str, Any], measured: Measured, cpus: int | None = None) -> Estimate:
    """Return how long one run takes, by the rates of the short training here.

    At least: the vCPUs there are as fast as the CPUs here and share training and evaluation perfectly, and so do workers.
    At most: more vCPUs and workers gain nothing, fewer cost in proportion, and each is half as fast. Start-up and export run
    mostly on one. GPUs have no least time; their most is that of the CPUs beside them.
    """
    cpus = cpus or devices.cpus()
    examples = plan["total_steps"] * plan["batch_size"]
    fixed = measured.startup + measured.finish
    if measured.read and plan["bytes"] > measured.read:
        fixed += measured.reading * (plan["bytes"] / measured.read - 1)
    busy = examples / measured.examples_per_second + plan["evaluations"] * measured.evaluation
    machine = case.pools[0].machine_fields
    kind, size = machines.kind(machine), machines.vcpus(machine)
    summary = (
        f"{times.describe(fixed + busy)} here: {fixed:.1f} s of start-up and export, {examples:,} examples at "
        f"{measured.examples_per_second:,.0f}/s, {plan['evaluations']} evaluations of {measured.evaluation:.2f} s; "
        f"measured over {measured.steps} steps on {measured.on} with {cpus} CPUs"
    )
    if kind == "tpu" or size is None:
        return Estimate(fixed + busy, None, None, f"{summary}; how fast {machines.describe(machine)} is, is not known")
    low = fixed + busy * min(cpus / size, 1) / case.workers
    high = SLOWER * (fixed + busy * max(cpus / size, 1))
    return Estimate(fixed + busy, None if kind == "gpu" else low, high, f"{summary}. {_why(kind, cpus, size, case.workers)}")


def _why(kind: str, cpus: int, size: int, workers: int) -> str:
    """Return what the two ends of a range stand for."""
    most = f"a vCPU is half as fast as a CPU here, and {'more of them gain nothing' if size > cpus else f'there are {size}'}"
    if kind == "gpu":
        return f"At most: its {size} vCPUs work alone, and {most}; how much its GPUs gain is not known"
    together = f", and {workers} workers do {workers} times the work of one" if workers > 1 else ""
    return f"At least: its {size} vCPUs are as fast as the CPUs here and all busy{together}; at most: {most}"


# ------------------------------------------------------------------ price


def hourly(case: Case, table: Table, region: str | None, strategy: str) -> Rate:
    """Return what all replicas of all pools cost an hour: machines, their accelerators or TPU chips, their boot disks."""
    amount, used, unknown = 0.0, [], {}
    for pool in case.pools:
        covered = False
        for name, count, kind in parts(pool, strategy):
            if covered and name == pool.machine_fields.get("acceleratorType"):
                continue
            price = table.find(name, region, kind)
            if price is None:
                unknown[name] = table.reason(name, region, kind)
                continue
            covered = covered or price.includes_accelerators
            used.append(price)
            amount += price.amount * count * pool.replicas
    return Rate(amount, tuple(dict.fromkeys(used)), unknown)


def parts(pool: Pool, strategy: str) -> Iterator[tuple[str, int, str]]:
    """Yield (name in the table, how many, strategy) of what a replica is made of, the machine before its accelerators."""
    machine, disk = pool.machine_fields, pool.disk
    if machines.kind(machine) == "tpu" and machine.get("tpuTopology"):
        yield machines.family(machine), machines.devices(machine), strategy
    elif machines.kind(machine) != "tpu":
        yield machine.get("machineType", ""), 1, strategy
    if machine.get("acceleratorCount"):
        yield machine["acceleratorType"], machine["acceleratorCount"], strategy
    yield disk[0], disk[1], "STANDARD"


# ------------------------------------------------------------------ in words


def report(case: Case, plan: Mapping[str, Any] | None, time: Estimate | str, table: Table) -> Iterator[tuple[str, str]]:
    """Yield (what, one line) for steps, time, price with its sources, and, for a study, its trials.

    `time` may be why there is none.
    """
    yield "steps", _steps(plan)
    yield "time", f"unknown: {time}" if isinstance(time, str) else _time(case, time)
    span = None if isinstance(time, str) else time
    if case.study:
        yield "trials", _trials(case, span)
    region = case.settings.get("region")
    if region is None:
        yield "price", "unknown: no region; give --region, or write it into settings.yaml."
        return
    rates = {kind: hourly(case, table, region, kind) for kind in dict.fromkeys((*_STRATEGIES, case.job.strategy))}
    for kind, rate in rates.items():
        chosen = " (this job)" if kind == case.job.strategy else ""
        yield "price", f"{_STRATEGIES.get(kind, kind)}{chosen}: {_cost(case, span, table.currency, region, rate)}"
    yield from _doubts(case, table, rates.values())


def _steps(plan: Mapping[str, Any] | None) -> str:
    if not plan or "total_steps" not in plan:
        return "unknown: the data was not looked at" + (", it is not on this machine" if plan else "")
    about = "" if plan["exact"] else "about "
    return (
        f"{plan['total_steps']:,} of global batch {plan['batch_size']:,}, {plan['total_steps'] * plan['batch_size']:,} examples of "
        f"{about}{plan['rows']:,} rows, {plan['evaluations']} evaluations"
    )


def _time(case: Case, time: Estimate) -> str:
    if time.high is None:
        return f"unknown there; {time.how}."
    machine = machines.describe(case.pools[0].machine_fields)
    return f"{_span(times.describe, time.low, time.high)} on {machine}, from when its machines run. {time.how}."


def _trials(case: Case, time: Estimate | None) -> str:
    rounds = math.ceil(case.study.max_trials / case.study.parallel)
    text = f"{case.study.max_trials}, {case.study.parallel} at a time"
    if time is None or time.high is None:
        return text
    low = None if time.low is None else rounds * time.low
    return f"{text}: {_span(times.describe, low, rounds * time.high)} in all, each as long as with the job's own arguments"


def _cost(case: Case, time: Estimate | None, currency: str, region: str, rate: Rate) -> str:
    """Return what a job costs in all and by the hour, and what comes on top."""
    if all(price.name in {pool.disk[0] for pool in case.pools} for price in rate.used):
        return f"unknown: {', '.join(rate.unknown)}."
    count = sum(pool.replicas for pool in case.pools)
    hour = f"{_money(rate.amount, currency)} an hour for {count} machine{'s' if count > 1 else ''} in {region}"
    on_top = "".join(f" + {name}" for name in rate.beside)
    trials = case.study.max_trials if case.study else 1
    known = time is not None and time.high is not None
    ends = (time.low, time.high) if known else (None, case.job.timeout)
    low, high = (None if end is None else rate.amount * trials * end / 3600 for end in ends)
    total = _span(lambda amount: _money(amount, currency), low, high) + on_top
    total += f" for {trials} trials" if case.study else ""
    total += "" if known else f", as its timeout of {times.describe(case.job.timeout)} ends it"
    return f"{total}; {hour}{on_top}."


def _doubts(case: Case, table: Table, rates: Iterable[Rate]) -> Iterator[tuple[str, str]]:
    """Yield what is not known, where each price stands and how old it is, and what no price is in for."""
    used, unknown = {}, {}
    for rate in rates:
        unknown = {**({FEE: _NO_FEE} if FEE in rate.beside else {}), **rate.unknown} | unknown
        for price in rate.used:
            used.setdefault((price.source, price.day), []).append(price)
    for name, reason in unknown.items():
        yield "unknown", f"{name}: {reason}."
    for (source, day), prices in used.items():
        said = ", ".join(dict.fromkeys(_priced(price, table.currency) for price in prices))
        age = f", {(case.today - day).days} days before {case.today}" if day <= case.today else ""
        yield "source", f"{said}: {source}, read {day}{age}."
    yield "not counted", f"{_LEFT_OUT}."


def _priced(price: Price, currency: str) -> str:
    kind = "" if price.strategy == "STANDARD" else f" {_STRATEGIES.get(price.strategy, price.strategy)}"
    amount = _money(price.amount, currency) + (f" a {price.unit}" if price.unit else "")
    return f"{price.name}{kind} {amount}{f' ({price.note})' if price.note else ''}"


def _span(describe: Callable[[float], str], low: float | None, high: float) -> str:
    """Return a range in words; without a lower end its upper one."""
    return f"at most {describe(high)}" if low is None else f"{describe(low)} to {describe(high)}"


def _money(amount: float, currency: str) -> str:
    """Return an amount above 0 with its currency: to the cent, below 1 with four decimals or three figures that count."""
    digits = 2 if amount >= 1 else max(4, 2 - math.floor(math.log10(amount)))
    return f"{amount:,.{digits}f} {currency}"
