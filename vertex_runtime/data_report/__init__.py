"""What the rows of a run hold, in one pass over each part: ranges, missing cells, balance, equal rows, drift between the parts.

Memory is bounded whatever the number of rows (see sketches.py): moments, counts and missing cells are exact, as long as a column
has no more than `MOST_VALUES` values to count; quantiles, plots and the drift of numbers go by a seeded sample; equal rows are
found by 64-bit hashes, beyond `MOST_ROWS` different rows exactly among a share of them, and then it says so.

`collect` makes a report of any chunks; run.py makes that of a run's data, and writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..columns import Column
from ..data import BadRows, Chunk
from .compare import columns_of, common
from .findings import judge
from .parts import Limits, Part
from .report import Finding, Report

__all__ = ["Finding", "Limits", "Report", "collect"]


def collect(
    parts: Mapping[str, Iterable[Chunk]], columns: Sequence[Column] = (), labels: Sequence[str] = (), *, weight: str | None = None,
    bad: Mapping[str, BadRows] | None = None, seed: int = 0, limits: Limits | None = None,
) -> Report:  # fmt: skip
    """Read each part once and compare them.

    Args:
        parts: chunks by name, training first: columns [rows, ...]; `_path` and `_row` (see data.py) say where rows are. Columns
            whose names begin with `_label` are labels, other ones with `_` are not looked at.
        columns: what is known of the columns; of others the kind follows from the first chunk.
        bad: what the readers of the parts collect meanwhile.
        seed: of the samples.
        limits: see `Limits`, whose defaults they are.

    Returns:
        The report, with its findings.
    """
    read = {name: Part(name, columns, labels, weight, seed, limits or Limits()) for name in parts}
    for name, chunks in parts.items():
        read[name].read(chunks)
    order = list(read)
    pairs = [common(read[other], read[name]) for i, name in enumerate(order) for other in order[i + 1 :]]
    described = {name: part.described((bad or {}).get(name)) for name, part in read.items()}
    found = Report(described, columns_of(read), [pair for pair in pairs if pair])
    found.findings = judge(found, next(iter(read.values())).sample if read else None)
    return found
