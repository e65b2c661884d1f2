"""What a run would do, said without doing it (`--plan`): flags parsed, data looked at, steps counted, nothing written."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from types import ModuleType, SimpleNamespace
from typing import Any

from .arguments import RunOptions
from .environment import Environment
from .strategy import import_tensorflow

SECONDS = 10.0  # for each of training and evaluation data; what is not read by then is estimated


def say(model_name: str, hp: Any, options: RunOptions, env: Environment) -> dict[str, Any]:
    """Print `{"plan": {…}}` as one line and return what is in it: `--plan=flags` imports no model, `model` reads no data."""
    said = {"hyperparameters": dataclasses.asdict(hp), "options": dataclasses.asdict(options)}
    if options.plan != "flags":
        import_tensorflow()
        model = importlib.import_module(model_name)
        said |= {"metrics": [model.OBJECTIVE], "maximize": model.MAXIMIZE}
        said |= look(model, hp, options, env) if options.plan == "data" else {}
    print(json.dumps({"plan": said}), flush=True)
    return said


def look(model: ModuleType, hp: Any, options: RunOptions, env: Environment) -> dict[str, Any]:
    """Return what the data holds and the steps that come of it, each worker having `TRAINER_DEVICES` accelerators (or 1).

    Raises:
        UserError: what the run itself would end with.
    """
    from . import data, run
    from .rows import StreamedRows

    train, evaluation, _, synthetic = run.data_paths(model, options, env)
    bad = data.BadRows(options.bad_rows)
    found = [data.count(lambda path: model.read(path, bad), files, model.LABEL, SECONDS) for files in (train, evaluation)]
    (counts, labels, exact), (eval_counts, eval_labels, _) = found
    if labels and exact and (unseen := sorted(eval_labels.keys() - labels.keys())):
        raise data.unseen(evaluation, unseen[0].decode("utf-8", "replace"))
    streamed = run.is_streamed(options, train)
    by_files = run.is_dealt_by_files(options, len(train), env.worker_count)
    rows = StreamedRows(train, counts, None, None, by_files) if streamed else SimpleNamespace(count=sum(counts))
    replicas = env.worker_count * int(os.environ.get("TRAINER_DEVICES") or 1)
    wanted = SimpleNamespace(hp=hp, options=options, env=env, strategy=SimpleNamespace(num_replicas_in_sync=replicas))
    plan = run.make_plan(wanted, SimpleNamespace(train=rows))
    return {
        "files": train, "bytes": data.total_bytes(train), "rows": sum(counts), "evaluation_rows": sum(eval_counts), "exact": exact,
        "classes": {label.decode("utf-8", "replace"): number for label, number in sorted(labels.items())},
        "bad_rows": sum(bad.reasons.values()), "synthetic": synthetic, "streamed": streamed, "by_files": streamed and by_files,
        "replicas": replicas, "total_steps": plan.total_steps, "batch_size": plan.batch_size,
        "evaluations": len(plan.evaluation_steps()), "jit_compile": plan.jit_compile,
    }  # fmt: skip
