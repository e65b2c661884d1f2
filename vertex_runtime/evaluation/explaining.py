"""What a model's answers rest on, over some of the evaluated rows: see ../explain.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import export
from ..contract import Contract
from ..data import Chunk
from ..explain import Explainer, load_spec
from ..reporting import log
from ..rows import rows_of
from .served import Served

ROWS, IMAGES = 64, 12  # that are explained
PATHS = 25  # random orders of columns, which are fewer than words and parts of images
EXAMPLES, TEXTS = 6, 14  # that are shown


def rows_for(served: Served) -> int:
    """Return how many rows to explain: fewer images, each part of which is drawn anew."""
    return IMAGES if any(name.endswith("_bytes") for name in served.specs) else ROWS


def explained(contract: Contract, served: Served, rows: Chunk, seed: int) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Explain the answers to some raw rows.

    Returns:
        (what evaluation.json holds: {"output", "rows", "columns": {input: mean of the shares' sizes}, "mean_baseline",
        "largest_approximation_error", "largest_standard_error"}, or None where the model has no baselines, or refuses them;
        some of the explanations, with their instances, for the page).
    """
    try:
        explainer = Explainer(served.signature, load_spec(served.folder))
        pieces = any(explainer.modality(name) in ("text", "image") for name in served.specs)
        explainer.paths = explainer.paths if pieces else PATHS
        instances = export.instances_of(contract.with_inputs(served.specs), rows)
        found = explainer.explain(instances, seed)
    except ValueError as error:
        log("INFO", f"answers are not explained: {str(error).removeprefix('0: ')}")
        return None, []
    columns = {name: float(np.mean([abs(total(each["attributions"][name])) for each in found])) for name in found[0]["attributions"]}
    said = {
        "output": explainer.output, "rows": rows_of(rows), "columns": dict(sorted(columns.items(), key=lambda each: -each[1])),
        "mean_baseline": float(np.mean([each["baseline_output_value"] for each in found])),
        "largest_approximation_error": max(each["approximation_error"] for each in found),
        "largest_standard_error": max(each["standard_error"] for each in found),
    }  # fmt: skip
    moved = sorted(range(len(found)), key=lambda i: -abs(found[i]["instance_output_value"] - found[i]["baseline_output_value"]))
    chosen = moved[: TEXTS if pieces else EXAMPLES]
    kinds = {name: explainer.modality(name) for name in served.specs}
    return said, [{**found[i], "row": {name: rows[name][i] for name in served.specs}, "kinds": kinds} for i in chosen]


def total(attribution: Any) -> float:
    """Return the share of an input, whose words or parts may have shares of their own."""
    return sum(map(total, attribution)) if isinstance(attribution, list) else float(attribution)


def by_size(attributions: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the inputs with their shares, the largest first."""
    return sorted(((name, total(share)) for name, share in attributions.items()), key=lambda each: -abs(each[1]))
