"""How long a job will take and what it will cost, from one short training here and a table of prices with their sources."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, quoted
from ..job import machines, times
from .probe import Measured
from .rules import Case

PRICES = Path(__file__).with_name("prices.yaml")
_KEYS = {"machine", "accelerator", "region", "strategy", "price", "includes_accelerators", "source", "date"}


class PriceError(UserError):
    """A table of prices that cannot be used: file, entry and remedy."""


@dataclass(frozen=True)
class Price:
    """One price per hour of one machine or accelerator; `day` is when it was read at `source`."""

    name: str
    region: str
    strategy: str
    amount: float
    includes_accelerators: bool
    source: str
    day: date


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run here and there; `there` is None where the machine's speed is not known."""

    here: float
    there: float | None
    how: str


def load_prices(path: Path) -> tuple[str, list[Price]]:
    """Return (currency, prices) of a table.

    Raises:
        PriceError: a price without source or date, or the file is not of that form.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries, currency = raw["prices"], raw["currency"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise PriceError(f"--prices {path}: takes YAML with `currency` and a list `prices`: {error!r}.") from None
    return str(currency), [_price(entry, f"--prices {path}: entry {number}") for number, entry in enumerate(entries, 1)]


def _price(entry: Any, where: str) -> Price:
    if not isinstance(entry, dict) or (unknown := sorted(entry.keys() - _KEYS)):
        raise PriceError(f"{where}: takes {', '.join(sorted(_KEYS))}; got {quoted(unknown if isinstance(entry, dict) else entry)}.")
    name, amount = entry.get("machine") or entry.get("accelerator"), entry.get("price")
    if not name or not entry.get("region") or isinstance(amount, bool) or not isinstance(amount, (int, float)) or not amount > 0:
        raise PriceError(f"{where}: needs machine or accelerator, region, and a price above 0; got {entry}.")
    if not entry.get("source") or not isinstance(entry.get("date"), date):
        raise PriceError(f"{where}: the price of {name} needs its source and the date (2026-10-07) on which it was read there.")
    strategy = entry.get("strategy", "STANDARD")
    covers = bool(entry.get("includes_accelerators"))
    return Price(name, entry["region"], strategy, float(amount), covers, str(entry["source"]), entry["date"])


def hourly(
    case: Case, prices: list[Price], region: str | None, strategy: str
) -> tuple[float | None, list[Price], list[str]]:
    """Return (price per hour of all replicas, the prices it is made of, what has no price); the first is None with any of those."""
    total, used, missing = 0.0, [], []

    def find(name: str) -> Price | None:
        found = [price for price in prices if (price.name, price.region, price.strategy) == (name, region, strategy)]
        used.extend(found[:1])
        missing.extend([] if found or name in missing else [name])
        return found[0] if found else None

    for pool in case.pools:
        machine = pool.machine_fields
        price = find(machine.get("machineType", ""))
        each = price.amount if price else 0.0
        if machine.get("acceleratorCount") and not (price and price.includes_accelerators):
            extra = find(machine["acceleratorType"])
            each += extra.amount * machine["acceleratorCount"] if extra else 0.0
        total += each * pool.replicas
    return None if missing else total, list(dict.fromkeys(used)), missing


def duration(case: Case, plan: Mapping[str, Any], measured: Measured, cpus: int | None = None) -> Estimate:
    """Return how long one run takes, by the rates of the short training here.

    Training and evaluation are scaled by the machine's vCPUs; start-up and export run mostly on one and are not.
    """
    cpus = cpus or os.cpu_count() or 1
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
        return Estimate(fixed + busy, None, f"{summary}; how fast {machines.describe(machine)} is, is not known")
    there = fixed + busy * cpus / size
    scale = f"training and evaluation x {cpus}/{size} (CPUs here / vCPUs there, which is crude)"
    if kind == "gpu":
        scale += f"; the CPUs of {machine['machineType']} alone, so an upper bound as long as its GPUs help"
    if case.workers > 1:
        scale += f"; as of one worker, what {case.workers} gain or lose by talking to each other is not measured"
    return Estimate(fixed + busy, there, f"{summary}; {scale}")


def report(
    case: Case, plan: Mapping[str, Any] | None, time: Estimate | str, currency: str, prices: list[Price]
) -> Iterator[tuple[str, str]]:
    """Yield (what, one line) for steps, time, price and, for a study, its trials; `time` may be why there is none."""
    if plan and "total_steps" in plan:
        about = "" if plan["exact"] else "about "
        yield "steps", (
            f"{plan['total_steps']:,} of global batch {plan['batch_size']:,}, {plan['total_steps'] * plan['batch_size']:,} examples of "
            f"{about}{plan['rows']:,} rows, {plan['evaluations']} evaluations"
        )
    else:
        yield "steps", "unknown: the data was not looked at" + (", it is not on this machine" if plan else "")
    if isinstance(time, str):
        yield "time", f"unknown: {time}"
    else:
        machine = machines.describe(case.pools[0].machine_fields)
        there = "unknown there" if time.there is None else f"about {times.describe(time.there)} on {machine}"
        yield "time", f"{there}, without what the service takes to provide machines; {time.how}"
    seconds = None if isinstance(time, str) else time.there
    region = case.settings.get("region")
    strategy = case.job.strategy
    for name, kind in (("on demand", "STANDARD"), ("Spot", "SPOT")):
        chosen = " (this job)" if kind == strategy else ""
        yield "price", f"{name}{chosen}: {_cost(case, seconds, currency, prices, region, kind)}"
    if case.study:
        yield "trials", _trials(case, seconds)


def _cost(case: Case, seconds: float | None, currency: str, prices: list[Price], region: str | None, kind: str) -> str:
    rate, used, missing = hourly(case, prices, region, kind)
    if region is None:
        return "price unknown: no region; give --region, or write it into settings.yaml."
    if rate is None:
        return f"price unknown: none with a source for {', '.join(missing)} in {region} ({PRICES.name})."
    trials = case.study.max_trials if case.study else 1
    sources = "; ".join(dict.fromkeys(f"{price.source}, {price.day}" for price in used))
    each = f"{_money(rate, currency)} an hour for {sum(pool.replicas for pool in case.pools)} machine(s) in {region}"
    if seconds is None:
        return f"{each}; in all unknown, as the time is ({sources})."
    one = rate * seconds / 3600
    total = f" x {trials} trials = {_money(trials * one, currency)}" if case.study else ""
    return f"{_money(one, currency)}{total}: {each}, boot disks not included ({sources})."


def _trials(case: Case, seconds: float | None) -> str:
    rounds = math.ceil(case.study.max_trials / case.study.parallel)
    text = f"{case.study.max_trials}, {case.study.parallel} at a time"
    if seconds is None:
        return text
    return f"{text}: about {times.describe(rounds * seconds)} in all, each as long as with the job's own arguments"


def _money(amount: float, currency: str) -> str:
    return f"{amount:,.2f} {currency}" if amount >= 1 else f"{amount:.4f} {currency}"
