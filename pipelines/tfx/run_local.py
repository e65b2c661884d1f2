"""A run on this machine: steps and their seconds on the terminal, all else in a log, and at the end what came of it."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import absl.logging
import ml_metadata as mlmd
import tensorflow_model_analysis as tfma
from ml_metadata.proto import metadata_store_pb2 as proto
from tensorflow_metadata.proto.v0.anomalies_pb2 import Anomalies
from tfx import v1 as tfx

from vertex_runtime.errors import FAILED, UserError

from .evaluation import Goal
from .settings import Settings

STEP = re.compile(r"Component (\S+) is (running|finished)\.")
MESSAGE = re.compile(r'message: "((?:[^"\\]|\\.)*)"')  # of a job that failed, as TFX prints it


class Steps(logging.Handler):
    """Tells of each step when it begins and ends, by what LocalDagRunner logs."""

    def __init__(self, terminal: TextIO):
        super().__init__(logging.INFO)
        self.terminal, self.name_of_step, self.started = terminal, "", 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if not (found := STEP.fullmatch(record.getMessage())):
            return
        if found[2] == "running":
            self.name_of_step, self.started = found[1], time.monotonic()
            print(f"{found[1]:<22}", end="", file=self.terminal, flush=True)
        else:
            print(f"{time.monotonic() - self.started:6.1f} s", file=self.terminal, flush=True)


def run(pipeline: Any, goal: Goal, settings: Settings, terminal: TextIO) -> str:
    """Run the pipeline and say on the terminal what came of it.

    Returns:
        Why nothing was pushed; "" if the model was.

    Raises:
        UserError: a step failed.
    """
    steps = Steps(terminal)
    absl.logging.set_verbosity(absl.logging.INFO)
    absl.logging.get_absl_logger().addHandler(steps)
    try:
        tfx.orchestration.LocalDagRunner().run(pipeline)
    except Exception as error:
        print(file=terminal, flush=True)
        traceback.print_exc()
        raise UserError(f"{steps.name_of_step} failed: {_headline(error)} Nothing was pushed.", FAILED) from error
    finally:
        absl.logging.get_absl_logger().removeHandler(steps)
    lines, refusal = outcome(last_run(settings.metadata), goal, settings)
    print("\n".join(lines), file=terminal, flush=True)
    return refusal


def _headline(error: BaseException) -> str:
    """Return why a step failed as one sentence: our own words if they are in it, of a job the service's, else the first cause's."""
    causes = [error]
    while following := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(following)
    text = str(next((cause for cause in causes if isinstance(cause, UserError)), causes[-1]))
    if found := MESSAGE.search(str(error)):
        text = re.sub(r"\\(['\"\\])", r"\1", found[1])
    line = " ".join(text.split())[:500] or type(causes[-1]).__name__
    return line if line.endswith(".") else f"{line}."


def outcome(steps: dict[str, Step], goal: Goal, settings: Settings) -> tuple[list[str], str]:
    """Return (lines that say what the run's artifacts hold, why nothing was pushed or "")."""
    evaluation = steps["Evaluator"].output("evaluation")
    values, worst = measured(evaluation.uri, goal)
    limits = f"threshold {settings.threshold:g}, blessed model so far: "
    limits += "none" if values["baseline"] is None else f"{values['baseline']:.6g}"
    lines = [f"{goal.metric} {values['candidate']:.6g} on {values['rows']} rows; {limits}"]
    lines += [f"worst slice: {worst}"] * bool(worst)
    lines += [f"anomalies: {text}" for text in anomalies(steps["ExampleValidator"].output("anomalies").uri)]
    lines.append(f"evaluation: {evaluation.uri}, for tfma.load_eval_result")
    if steps["Evaluator"].output("blessing").custom_properties["blessed"].int_value != 1:
        return lines, _refusal(values, goal, settings)
    pushed = steps["Pusher"].output("pushed_model").custom_properties["pushed_destination"].string_value
    again = " (nothing has changed since)" * steps["Pusher"].cached
    return [*lines, f"pushed: {pushed}{again}"], ""


def measured(uri: str, goal: Goal) -> tuple[dict[str, Any], str]:
    """Return (the metric of the new and of the blessed model and the rows it stands for, the worst slice in words or "")."""
    result = tfma.load_eval_result(uri, model_name=tfma.CANDIDATE_KEY) if _has_baseline(uri) else tfma.load_eval_result(uri)
    found = {key: each[""][""] for key, each in result.slicing_metrics}
    whole = found[()]
    candidate = whole[goal.metric]["doubleValue"]
    change = whole.get(f"{goal.metric}_diff")
    values = {
        "candidate": candidate, "rows": int(whole["example_count"]["doubleValue"]),
        "baseline": candidate - change["doubleValue"] if change else None,
    }  # fmt: skip
    ranked = sorted((each[goal.metric]["doubleValue"], key) for key, each in found.items() if key)
    if not ranked:
        return values, ""
    value, key = ranked[0 if goal.maximize else -1]
    return values, f"{', '.join(f'{name} {value}' for name, value in key)}: {goal.metric} {value:.6g}"


def _has_baseline(uri: str) -> bool:
    specs = json.loads((Path(uri) / "eval_config.json").read_text())["evalConfig"]["modelSpecs"]
    return len(specs) > 1


def anomalies(uri: str) -> list[str]:
    """Return what ExampleValidator found, a line for each column of a split."""
    lines = []
    for split in ("train", "eval"):
        found = Anomalies.FromString(Path(f"{uri}/Split-{split}/SchemaDiff.pb").read_bytes())
        lines += [f"{split}, {name}: {each.description}" for name, each in sorted(found.anomaly_info.items())]
    return lines


def _refusal(values: dict[str, Any], goal: Goal, settings: Settings) -> str:
    side, metric = ("below" if goal.maximize else "above"), f"{goal.metric} {values['candidate']:.6g}"
    if (values["candidate"] < settings.threshold) == goal.maximize and values["candidate"] != settings.threshold:
        return f"not pushed: {metric} is {side} --threshold {settings.threshold:g}."
    return f"not pushed: {metric} is worse than the blessed model's {values['baseline']:.6g}, --tolerance {settings.tolerance:g}."


# ------------------------------------------------------------------ what a run left, by its file of ML Metadata


@dataclass(frozen=True)
class Step:
    """A step of a run: its artifacts by the output's name, and whether TFX took them from an earlier run."""

    outputs: dict[str, list[proto.Artifact]]
    cached: bool

    def output(self, name: str) -> proto.Artifact:
        """Return the one artifact of an output."""
        return self.outputs[name][0]


def last_run(path: str) -> dict[str, Step]:
    """Return the steps of the newest run that a file of ML Metadata knows, by their name."""
    config = proto.ConnectionConfig(sqlite=proto.SqliteMetadataSourceConfig(filename_uri=path))
    store = mlmd.MetadataStore(config)
    newest = max(store.get_contexts_by_type("pipeline_run"), key=lambda context: context.id)
    executions = store.get_executions_by_context(newest.id)
    names = {each.id: each.name.rpartition(".")[2] for each in store.get_execution_types_by_id([each.type_id for each in executions])}
    return {names[each.type_id]: _step(store, each) for each in executions}


def _step(store: mlmd.MetadataStore, execution: proto.Execution) -> Step:
    events = store.get_events_by_execution_ids([execution.id])
    outputs: dict[str, list[proto.Artifact]] = {}
    for event in events:
        if event.type in (proto.Event.OUTPUT, proto.Event.DECLARED_OUTPUT, proto.Event.INTERNAL_OUTPUT):
            name = next((step.key for step in event.path.steps if step.HasField("key")), "")
            outputs.setdefault(name, []).extend(store.get_artifacts_by_id([event.artifact_id]))
    return Step(outputs, execution.last_known_state == proto.Execution.CACHED)
