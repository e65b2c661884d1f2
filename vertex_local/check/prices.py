"""What machines cost by the hour: a table in which each price names its page and the day on which it was read there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, quoted

TABLE = Path(__file__).with_name("prices.yaml")
_NAMES = {"machine": "", "accelerator": "", "tpu": "chip", "disk": "GB"}  # what has a price, and for how much of it
_KEYS = {*_NAMES, "region", "strategy", "price", "spot", "includes_accelerators", "excludes_fee", "note", "source", "date"}


class PriceError(UserError):
    """A table of prices that cannot be used: file, entry and remedy."""


@dataclass(frozen=True)
class Price:
    """A price per hour of a machine, of one accelerator or TPU chip, or of one GB of a boot disk.

    Attributes:
        strategy: STANDARD, SPOT or FLEX_START.
        amount: in the table's currency.
        day: when it was read at `source`.
        unit: chip or GB where it is for one of them.
        includes_accelerators: a machine's price covers the GPUs that come with it.
        excludes_fee: it is Compute Engine's, and training's management fee comes on top.
    """

    name: str
    region: str
    strategy: str
    amount: float
    source: str
    day: date
    unit: str = ""
    includes_accelerators: bool = False
    excludes_fee: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Prices in one currency, and by name why one is unknown; `path` is the file they stand in."""

    path: Path
    currency: str
    prices: tuple[Price, ...]
    unknown: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str, region: str | None, strategy: str) -> Price | None:
        """Return a price; of several that of training itself before Compute Engine's, and the newest of those."""
        found = [price for price in self.prices if (price.name, price.region, price.strategy) == (name, region, strategy)]
        return min(found, key=lambda price: (price.excludes_fee, -price.day.toordinal()), default=None)

    def reason(self, name: str, region: str | None, strategy: str) -> str:
        """Return why there is no price, and for which regions and strategies there is one."""
        others = sorted({f"{price.region} {price.strategy}" for price in self.prices if price.name == name})
        why = self.unknown.get(name, f"{self.path.name} has none for {region} {strategy}")
        return why + (f"; it has {', '.join(others)}" if others else "")


def load(path: Path = TABLE) -> Table:
    """Return the table of a file.

    Raises:
        PriceError: a price without source or date, or the file is not of that form.
    """
    where = f"--prices {path}"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PriceError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}. Name a table of prices.") from None
    except yaml.YAMLError as error:
        raise PriceError(f"{where}: is no YAML: {' '.join(str(error).split())[:200]}; see {TABLE}.") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("currency"), str) or not isinstance(raw.get("prices"), list):
        raise PriceError(f"{where}: takes YAML with `currency: USD` and a list `prices`, as in {TABLE}.")
    prices = [price for number, entry in enumerate(raw["prices"], 1) for price in _prices(entry, f"{where}: entry {number}")]
    return Table(path, raw["currency"], tuple(prices), _reasons(raw.get("unknown") or [], where))


def _reasons(rows: Any, where: str) -> dict[str, str]:
    """Return why a price is unknown, by its name."""
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, dict) or not isinstance(row.get("names"), list) or not row.get("reason"):
            raise PriceError(f"{where}: unknown: takes a list of `{{names: [n1-standard-4], reason: …}}`; got {quoted(row)}.")
    return {str(name): str(row["reason"]) for row in rows for name in row["names"]}


def _prices(entry: Any, where: str) -> Iterator[Price]:
    """Yield the price of an entry and, if it has one, that of a Spot VM."""
    if not isinstance(entry, dict) or (unknown := sorted(entry.keys() - _KEYS)):
        raise PriceError(f"{where}: takes {', '.join(sorted(_KEYS))}; got {quoted(unknown if isinstance(entry, dict) else entry)}.")
    name, unit = next(((entry[key], unit) for key, unit in _NAMES.items() if entry.get(key)), (None, ""))
    strategies = {"price": entry.get("strategy", "STANDARD"), "spot": "SPOT"}
    amounts = {key: entry[key] for key in strategies if key in entry}
    wrong = [amount for amount in amounts.values() if type(amount) not in (int, float) or not 0 < amount < math.inf]
    texts = (name, entry.get("region"), entry.get("strategy", "STANDARD"))
    if not all(isinstance(text, str) and text for text in texts) or not amounts or wrong:
        raise PriceError(f"{where}: needs one of {', '.join(_NAMES)}, region, and a price above 0; got {quoted(entry)}.")
    if not entry.get("source") or type(entry.get("date")) is not date:
        raise PriceError(f"{where}: the price of {name} needs its source and the date (2026-10-07) on which it was read there.")
    flags = {key: bool(entry.get(key)) for key in ("includes_accelerators", "excludes_fee")}
    for key, amount in amounts.items():
        note, source = str(entry.get("note", "")), str(entry["source"])
        yield Price(name, entry["region"], strategies[key], float(amount), source, entry["date"], unit, **flags, note=note)
