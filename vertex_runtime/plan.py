"""What a run would do, said without doing it (`--plan`): flags parsed, data looked at, steps counted, nothing written."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from .arguments import RunOptions
from .environment import Environment
from .strategy import import_tensorflow

if TYPE_CHECKING:
    from .contract import Contract

SECONDS = 10.0  # for each of training and evaluation data; what is not read by then is estimated


def say(model_name: str, hp: Any, options: RunOptions, env: Environment) -> dict[str, Any]:
    """Print `{"plan": {…}}` as one line and return what is in it: `--plan=flags` imports no model, `model` reads no data."""
    said: dict[str, Any] = {"hyperparameters": dataclasses.asdict(hp), "options": dataclasses.asdict(options)}
    if options.plan != "flags":
        import_tensorflow()
        from .contract import load_module

        contract = load_module(model_name, type(hp))
        said |= {"metrics": [contract.objective], "maximize": contract.maximize}
        if options.plan == "report":  # said first, so that a bad row that ends the plan is not all that is known
            from .data_report.run import findings

            print(json.dumps({"findings": findings(contract, hp, options, env)}), flush=True)
        said |= look(contract, hp, options, env) if options.plan in ("data", "report") else {}
    print(json.dumps({"plan": said}), flush=True)
    return said


def look(contract: Contract, hp: Any, options: RunOptions, env: Environment) -> dict[str, Any]:
    """Return what the data holds and the steps that come of it, each worker having `TRAINER_DEVICES` accelerators (or 1).

    Raises:
        UserError: what the run itself would end with.
    """
    from . import data, locations, run
    from .formats import Reading

    contract = contract.with_reading(Reading(env.data_format, options.row_filter))
    train, evaluation, _, synthetic = locations.data_paths(contract, hp, options, env)
    bad = data.BadRows(options.bad_rows)
    label = contract.labels[0] if contract.labels else None
    if {"source", "dataset"} & contract.given:
        counts, eval_counts, labels, eval_labels, exact = *_lengths(contract, hp, train, evaluation), {}, {}, True
    else:
        found = [data.count(lambda path: contract.read(path, bad), files, label, SECONDS) for files in (train, evaluation)]
        (counts, labels, exact), (eval_counts, eval_labels, _) = found
    if labels and exact and (unseen := sorted(eval_labels.keys() - labels.keys())):
        raise data.unseen(evaluation, unseen[0].decode("utf-8", "replace"))
    if hp.eval_fraction and not evaluation:
        kept = round(sum(counts) * hp.eval_fraction)
        eval_counts, counts, exact = [kept], [sum(counts) - kept], False
    replicas = env.worker_count * int(os.environ.get("TRAINER_DEVICES") or 1)
    plan = run.make_plan(contract, hp, options, env, replicas, sum(counts))
    return {
        "files": train, "bytes": data.total_bytes(train), "rows": sum(counts), "evaluation_rows": sum(eval_counts), "exact": exact,
        "classes": {name.decode("utf-8", "replace"): number for name, number in sorted(labels.items())},
        "bad_rows": sum(bad.reasons.values()), "synthetic": synthetic,
        "replicas": replicas, "total_steps": plan.total_steps, "batch_size": plan.batch_size,
        "evaluations": len(plan.evaluation_steps()), "jit_compile": bool(plan.jit_compile),
    }  # fmt: skip


def _lengths(contract: Contract, hp: Any, train: list[str], evaluation: list[str]) -> tuple[list[int], list[int]]:
    """Return the rows of a source or dataset, as lists of one."""
    from . import data, sources

    counts = []
    for files, training in ((train, True), (evaluation, False)):
        if not files:
            counts.append([0])
        else:
            source = sources.source_of(contract, files, hp, training, data.BadRows())
            counts.append([source.count if source is not None else 0])
    return counts[0], counts[1]
