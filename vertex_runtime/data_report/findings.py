"""What a data report warns of, and the table that it prints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..environment import quoted
from .report import Finding, Report
from .sketches import DRIFT, RowSample, combine

RARE, MISSING = 0.01, 0.5  # a class's rows to those of the most frequent, warned of below; the share of missing cells, noted above
REPEATED, TORN = 0.01, 0.001  # shares of rows within a part, from which equal rows and several labels of the same inputs are warned of
FEW_VALUES = 50  # of a column, up to which equal rows may well come about by chance
CHANCE = 1e-6  # how likely a coincidence may be that is taken for a law
WARNING, NOTE = "warning", "note"


def judge(report: Report, sample: RowSample | None) -> list[Finding]:
    """Return what there is to say, warnings first; `sample` is that of the training rows."""
    found = [*_bad_rows(report), *_equal_rows(report), *_labels(report), *_drift(report), *_columns(report)]
    if sample is not None and sample.rows:
        found += _telling(report, sample)
    return sorted(found, key=lambda finding: finding.level != WARNING)


def _bad_rows(report: Report) -> Iterator[Finding]:
    for name, part in report.parts.items():
        bad = part["bad_rows"]
        if bad["count"]:
            reasons = "; ".join(f"{count:,} x {reason}" for reason, count in list(bad["reasons"].items())[:5])
            first = f"; the first: {bad['first'][0]['place']}, got {bad['first'][0]['value']!r}" if bad["first"] else ""
            yield Finding(
                WARNING,
                "bad rows",
                f"{name}: {bad['count']:,} bad {_rows(bad['count'])} ({reasons}){first}. Mend them, or train with --bad_rows=skip.",
            )
        if not part["rows"]:
            yield Finding(WARNING, "rows", f"{name} has no good rows: mend them.")
        if not part["complete"]:
            yield Finding(NOTE, "rows", f"{name}: only the first {part['rows']:,} rows were looked at, for want of time.")


def _counted(found: dict[str, Any]) -> str:
    return f"{'' if found['exact'] else 'about '}{found['count']:,}"


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _share(found: dict[str, Any]) -> str:
    """Return "(about) COUNT rows", to be followed by what they are."""
    return f"{_counted(found)} {_rows(found['count'])}"


def _few_combinations(report: Report) -> int | None:
    """Return how many different inputs there can be, where columns of few values make so few that equal ones mean nothing."""
    first = next(iter(report.parts), "")
    inputs = [said for said in report.columns.values() if said["role"] == "input"]
    values = [said["parts"].get(first, {}).get("different") for said in inputs if said["kind"] in ("number", "category")]
    if len(values) < len(inputs) or not values or any(value is None or value > FEW_VALUES for value in values):
        return None
    return math.prod(values) if math.prod(values) <= 10 * report.parts[first]["rows"] else None


def _equal_rows(report: Report) -> Iterator[Finding]:
    few = _few_combinations(report)
    why = f" The inputs have {few:,} combinations at most: some must be equal." if few else ""
    level = NOTE if few else WARNING
    for pair in report.pairs:
        among, equal, torn = pair["among"], pair["equal"], pair["conflicts"]
        if equal["count"]:
            (own, other), usual = equal["first"][0], report.parts[among]["repeated"]
            remedy = f"Remove them from {among} or {pair['of']}."
            if equal["share"] <= 2 * usual:
                remedy = f"So much was to be expected of the equal rows within {among}: remove those first, or split by groups."
            share = f"{_share(equal)} of {pair['of']} ({equal['share']:.2%}) {'is' if equal['count'] == 1 else 'are'} in {among}, too"
            yield Finding(level, "leaks", f"{share}; the first: {own} = {other}.{why or f' {remedy}'}")
        if torn["count"] and _has_classes(report):
            own, other = torn["first"][0]
            share = f"{_share(torn)} of {pair['of']} ({torn['share']:.2%}) with the inputs of other labels in {among}"
            yield Finding(level, "conflicts", f"{share}; the first: {own} and {other}.{why}")
    for name, part in report.parts.items():
        again, torn = part["duplicates"], part["conflicts"]
        if again["count"]:
            own, other = again["first"][0]
            serious = again["share"] >= REPEATED and not few
            problem = f"{name}: {_share(again)} ({again['share']:.2%}) equal to an earlier one; the first: {own} = {other}.{why}"
            yield Finding(WARNING if serious else NOTE, "duplicates", problem)
        if torn["count"]:
            own, other = torn["first"][0]
            serious = torn["share"] >= TORN and not few and _has_classes(report)
            problem = (
                f"{name}: {_share(torn)} ({torn['share']:.2%}) with inputs that have several labels; the first: {own} and {other}.{why}"
            )
            yield Finding(WARNING if serious else NOTE, "conflicts", problem)


def _has_classes(report: Report) -> bool:
    return any(said["role"] == "label" and _classes(said) for said in report.columns.values())


def _classes(said: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return the rows of each class by part, of a label that has classes."""
    return {name: dict(part["values"]) for name, part in said["parts"].items() if "values" in part}


def _labels(report: Report) -> Iterator[Finding]:
    for label, said in report.columns.items():
        classes = _classes(said) if said["role"] == "label" else {}
        first, *others = report.parts
        counts = classes.get(first)
        if not counts:
            continue
        rarest, most = (choose(sorted(counts), key=lambda name: counts[name]) for choose in (min, max))
        several, rows = said["parts"][first]["different"], report.parts[first]["rows"]
        if several == 1:
            yield Finding(
                WARNING, "labels", f"all rows of {first} have {label} {quoted(most)}: there is nothing to tell apart. Add others."
            )
        elif several and counts[rarest] < RARE * counts[most] and (said["kind"] != "number" or several == 2):
            problem = f"{label} {rarest!r} stands in {counts[rarest]:,} of {rows:,} rows of {first}, {most!r} in {counts[most]:,}"
            yield Finding(WARNING, "labels", f"{problem}: weigh the classes (WEIGHT, class_weight) or measure more than accuracy.")
        elif several:
            share = f"{several:,} values of {label}, the rarest {rarest!r} in {counts[rarest]:,} of {rows:,} rows of {first}"
            yield Finding(NOTE, "labels", f"{share}, the most frequent {most!r} in {counts[most]:,}.")
        for other in others if several else ():
            theirs = classes.get(other) or {}
            if unseen := sorted(theirs.keys() - counts.keys()):
                count = sum(theirs[name] for name in unseen)
                problem = f"{count:,} {_rows(count)} of {other} with a {label} that {first} lacks"
                yield Finding(WARNING, "labels", f"{problem}: {', '.join(map(repr, unseen[:5]))}. Add such rows to {first}.")
            if theirs and (absent := sorted(counts.keys() - theirs.keys())):
                yield Finding(NOTE, "labels", f"{other} has no row with {label} {', '.join(map(repr, absent[:5]))}.")


def _drift(report: Report) -> Iterator[Finding]:
    first = next(iter(report.parts), "")
    for name, said in report.columns.items():
        for other, drift in said["drift"].items():
            if drift is None or not drift["drifts"]:
                continue
            parts = said["parts"]
            if not is_warned_of(said, other):
                ranges = " and ".join(f"{part} {parts[part].get('min')} to {parts[part].get('max')}" for part in (first, other))
                yield Finding(NOTE, "drift", f"{name} differs ({drift['distance']:.2f}): {ranges}.")
                continue
            how = _change(said, first, other)
            numbers = f"distance {drift['distance']:.2f}; warned of from {DRIFT:g} on, chance alone gives up to {drift['chance']:.2f}"
            yield Finding(
                WARNING, "drift", f"{name} differs between {first} and {other} ({numbers}): {how}. Split by chance, or train on newer rows."
            )


def is_warned_of(said: Mapping[str, Any], other: str) -> bool:
    """Tell whether a column's drift is a warning: not that of dates, for what is cut by time differs in time."""
    return said["kind"] != "date" and bool((said["drift"].get(other) or {}).get("drifts"))


def _change(said: dict[str, Any], first: str, other: str) -> str:
    """Say how a column differs, in one phrase: by what differs most."""
    one, two = said["parts"][first], said["parts"][other]
    plot = said["plot"]
    if plot and "values" in plot and plot["values"]:
        gaps = [b - a for a, b in zip(plot["shares"][first], plot["shares"][other])]
        place = max(range(len(gaps)), key=lambda i: abs(gaps[i]))
        before, after = (plot["shares"][part][place] for part in (first, other))
        return f"{plot['values'][place]!r} is {before:.1%} of {first} and {after:.1%} of {other}"
    what = "mean length" if said["kind"] == "text" else "mean"
    if "mean" not in one or "mean" not in two:
        return f"{one['missing']:,} and {two['missing']:,} cells are missing"
    spread = f"deviation {one['deviation']:.4g} and {two['deviation']:.4g}"
    return f"{what} {one['mean']:.4g} in {first} and {two['mean']:.4g} in {other}, {spread}"


def _columns(report: Report) -> Iterator[Finding]:
    first = next(iter(report.parts), "")
    for name, said in report.columns.items():
        figures, rows = said["parts"].get(first), report.parts[first]["rows"]
        if not figures or said["role"] != "input":
            continue
        if _is_constant(said["kind"], figures, rows):
            value = figures["values"][0][0] if figures.get("values") else figures.get("min")
            what = "missing" if figures["missing"] else repr(value)
            yield Finding(WARNING, "constant", f"{name} is {what} in every row of {first}: it teaches nothing. Leave the column out.")
        elif figures["missing"] > MISSING * rows:
            yield Finding(NOTE, "missing", f"{name} is missing in {figures['missing'] / rows:.0%} of the rows of {first}.")
        for other, theirs in said["parts"].items():
            if said["kind"] == "category" and other != first and figures["different"] is not None and "values" in theirs:
                known = {value for value, _ in figures["values"]}
                unseen = sum(count for value, count in theirs["values"] if value not in known) if figures["different"] <= 50 else 0
                if unseen > 0.01 * max(1, report.parts[other]["rows"]):
                    yield Finding(NOTE, "values", f"{unseen:,} rows of {other} with a {name} that {first} lacks.")


def _is_constant(kind: str, figures: dict[str, Any], rows: int) -> bool:
    if rows < 2 or kind == "image" or figures["missing"] not in (0, rows):
        return False
    if figures["missing"] == rows or figures.get("different") is not None:
        return figures["missing"] == rows or figures["different"] == 1
    return kind != "text" and "min" in figures and figures["min"] == figures["max"]


# ------------------------------------------------------------------ columns that give the label away


def _telling(report: Report, sample: RowSample) -> Iterator[Finding]:
    """Columns that tell the label alone, in the sampled training rows, each different row taken once."""
    inputs = [name for name, said in report.columns.items() if said["role"] == "input" and name in sample.rows]
    once = np.unique(sample.rows["#"], return_index=True)[1]
    if len(inputs) < 2 or len(once) < 20:
        return
    for label in [name for name, said in report.columns.items() if said["role"] == "label" and name in sample.rows]:
        answer, key = sample.rows[label][once], sample.rows[f"{label}#"][once]
        for name in inputs:
            kind = report.columns[name]["kind"]
            said = tells(sample.rows[name][once], sample.rows[f"{name}#"][once], answer, key, kind in ("number", "date"))
            if said:
                problem = f"{name} alone tells {label}: {said}. Leave it out if it is not known when the model is asked."
                yield Finding(WARNING, "label leak", problem)


def tells(numbers: np.ndarray, cells: np.ndarray, answers: np.ndarray, labels: np.ndarray, ordered: bool) -> str | None:
    """Return how a column tells the label; None where it does not, or where chance could do it.

    Args:
        numbers, answers: column and label as numbers, [rows], NaN where they are none.
        cells, labels: both as hashes, [rows].
        ordered: whether the numbers have an order that means something.
    """
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2:
        return None
    known = ~np.isnan(numbers) & ~np.isnan(answers)
    if np.array_equal(cells, labels) or (ordered and known.all() and np.array_equal(numbers, answers)):
        return "they are equal"
    surprise = math.log(CHANCE) / math.log(counts.max() / len(labels))  # so many rows can agree by chance, but not more
    values = len(np.unique(cells))
    if len(np.unique(combine(cells, labels))) == values:
        if len(cells) - values > max(20.0, surprise):
            return f"each of its {values:,} values goes with one label"
        if ordered and np.isfinite(numbers).all() and len(counts) <= 20 and len(labels) - len(counts) > max(20.0, surprise):
            sequence = labels[np.argsort(numbers)]
            if int((sequence[1:] != sequence[:-1]).sum()) == len(counts) - 1:
                return "each label has a range of its own"
    if (
        ordered
        and len(counts) > 20
        and known.all()
        and numbers.std()
        and answers.std()
        and abs(np.corrcoef(numbers, answers)[0, 1]) > 0.999
    ):
        return "they are all but proportional"
    return None


# ------------------------------------------------------------------ the table


def table(report: Report) -> Iterator[str]:
    """Yield the lines that a terminal shows: parts, then columns."""
    rows = [["part", "rows", "bad", "repeated", "conflicts"]]
    for name, part in report.parts.items():
        whole = "" if part["complete"] else "+"
        bad = f"{part['bad_rows']['count']:,}"
        rows.append([name, f"{part['rows']:,}{whole}", bad, _counted(part["duplicates"]), _counted(part["conflicts"])])
    yield from _aligned(rows)
    yield ""
    first, *others = report.parts or [""]
    rows = [["column", "kind", "missing", f"in {first}", *(f"drift, {other}" for other in others)]]
    for name, said in report.columns.items():
        figures = said["parts"].get(first, {})
        kind = said["kind"] if said["role"] == "input" else f"{said['kind']} ({said['role']})"
        drifts = {other: said["drift"].get(other) for other in others}
        cells = [f"{drift['distance']:.3f}{' !' * is_warned_of(said, other)}" if drift else "-" for other, drift in drifts.items()]
        rows.append([name, kind, f"{figures.get('missing', 0):,}", summary(said["kind"], figures), *cells])
    yield from _aligned(rows)


def summary(kind: str, figures: dict[str, Any]) -> str:
    """Return the figures of a column in a few words."""
    if "values" in figures and kind != "number":
        several = figures["different"] if figures["different"] is not None else "many"
        most = f"{figures['values'][0][0][:20]!r} most often" if figures["values"] else "none"
        return f"{several} {'sizes' if kind == 'image' else 'values'}, {most}"
    if kind == "date" and "min" in figures:
        return f"{figures['min'][:10]} .. {figures['max'][:10]}"
    if "min" not in figures:
        return ""
    unit = " bytes" if kind in ("text", "image") else ""
    return f"{figures['min']:.6g} .. {figures['max']:.6g}{unit}, mean {figures['mean']:.5g}"


def _aligned(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
