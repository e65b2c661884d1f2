"""The gate that a model passes before it may serve: what speaks against it, by its `evaluation.json`.

Nothing is computed here again: a number that the evaluation lacks, and a rule needs, is a reason to refuse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

SIGNIFICANCE = 0.05
_PARTS = {"model": str, "kind": str, "objective": str, "maximize": bool, "metrics": dict, "signature": dict}
_MOST_NAMES = 5  # columns that a reason lists


def load(path: str | Path) -> dict[str, Any]:
    """Return what an `evaluation.json` holds.

    Raises:
        UserError: it cannot be read, or lacks a part that every evaluation has.
    """
    remedy = "make one with `python -m TRAINER.trainer.task --evaluate=MODEL --output_dir=DIR`"
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}.") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); {remedy}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {type(found).__name__}, not an object; {remedy}.")
    for name, kind in _PARTS.items():
        if not isinstance(found.get(name), kind):
            raise UserError(f"{path}: {name} must be of the type {kind.__name__}; got {str(found.get(name))[:80]!r}; {remedy}.")
    return found


def refusals(
    evaluation: Mapping[str, Any], *, threshold: float | None = None, most_skew: float | None = None, significance: float = SIGNIFICANCE
) -> list[str]:  # fmt: skip
    """Return the reasons why a model may not be promoted; [] if it may.

    Args:
        evaluation: the content of an `evaluation.json`.
        threshold: what the objective must reach: at least so much where it is maximized, at most where it is minimized.
        most_skew: the largest distance that a column of the rows evaluated may have from the training rows, 0 to 1.
        significance: from this p-value on, being worse than `against` on the same rows counts as chance.

    Raises:
        UserError: a limit is none.
    """
    _check_limits(threshold, most_skew, significance)
    found = [*_of_objective(evaluation, threshold)]
    if most_skew is not None:
        found += _of_skew(evaluation.get("skew"), most_skew)
    against = evaluation.get("against")
    if against:
        found += _of_pairs(against, significance)
        found += _of_signatures(evaluation["signature"], against)
    return found


def _check_limits(threshold: float | None, most_skew: float | None, significance: float) -> None:
    if threshold is not None and not math.isfinite(threshold):
        raise UserError(f"--threshold: takes a number; got {threshold}.")
    if most_skew is not None and not 0 <= most_skew <= 1:
        raise UserError(f"--most_skew: takes a distance from 0 to 1; got {most_skew}.")
    if not 0 < significance < 1:
        raise UserError(f"--significance: takes a probability between 0 and 1; got {significance}.")


def _of_objective(evaluation: Mapping[str, Any], threshold: float | None) -> list[str]:
    name, maximize = evaluation["objective"], evaluation["maximize"]
    value = evaluation["metrics"].get(name)
    if not _is_number(value):
        return [f"the objective {name} has no finite value; got {value!r}"]
    if threshold is None or (value >= threshold if maximize else value <= threshold):
        return []
    return [f"{name} is {value:.6g}, must be {threshold:.6g} or {'more' if maximize else 'less'}"]


def _of_skew(skew: Mapping[str, Any] | None, most: float) -> list[str]:
    if skew is None:
        return ["the skew is unknown: nothing was kept of the training rows beside the model"]
    unknown = sorted(name for name, value in skew.items() if not _is_number(value))
    over = sorted((name for name, value in skew.items() if _is_number(value) and value > most), key=lambda name: -skew[name])
    found = [f"the skew of {_listed(unknown)} is unknown"] if unknown else []
    if over:
        found.append(f"the rows differ from the training rows by more than {most:g}: {_listed(over, skew)}")
    return found


def _of_pairs(against: Mapping[str, Any], significance: float) -> list[str]:
    """Refuse what loses more on the same rows than `against` does, if that is hardly chance."""
    paired, other = against.get("paired") or {}, against.get("model", "the other model")
    difference, p_value = paired.get("difference"), paired.get("p_value")
    if not _is_number(difference) or not _is_number(p_value):
        return [f"it was not compared with {other} row by row"]
    if difference <= 0 or p_value >= significance:
        return []
    low, high = (*paired.get("interval", ()), math.nan, math.nan)[:2]
    rows = paired.get("rows", 0)
    return [f"its loss is {difference:.4g} a row [{low:.4g}..{high:.4g}] above that of {other} on the same {rows:,} rows (p {p_value:.2g})"]


def _of_signatures(own: Mapping[str, Any], against: Mapping[str, Any]) -> list[str]:
    """Refuse a model that takes or answers other things than `against`, whose clients it would fail."""
    theirs, found = against.get("signature"), []
    if not theirs:
        return [f"the signature of {against.get('model', 'the other model')} is unknown"]
    for side in ("inputs", "outputs"):
        mine, other = own.get(side, {}), theirs.get(side, {})
        gone, new = sorted(other.keys() - mine.keys()), sorted(mine.keys() - other.keys())
        changed = [name for name in sorted(mine.keys() & other.keys()) if _spec(mine[name]) != _spec(other[name])]
        differences = [f"lacks {_listed(gone)}"] * bool(gone) + [f"adds {_listed(new)}"] * bool(new)
        differences += [f"has {name} as {_text(mine[name])} instead of {_text(other[name])}" for name in changed[:_MOST_NAMES]]
        if differences:
            found.append(f"its {side} differ from those of {against.get('model', 'the other model')}: it {', '.join(differences)}")
    return found


def _spec(tensor: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    return tensor.get("dtype"), list(tensor.get("shape") or [])


def _text(tensor: Mapping[str, Any]) -> str:
    return f"{tensor.get('dtype')} {json.dumps(tensor.get('shape'))}"


def _listed(names: list[str], values: Mapping[str, float] | None = None) -> str:
    shown = [f"{name} {values[name]:.3g}" if values else name for name in names[:_MOST_NAMES]]
    return ", ".join(shown) + f" and {len(names) - _MOST_NAMES} more" * (len(names) > _MOST_NAMES)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
