"""One training run from files to served model; `task.py` decides its parts, this does the work in their order."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import data, export
from .arguments import RunOptions, step_range
from .checkpoint import Checkpointer, compare_fingerprints, source_fingerprint
from .cluster import agree
from .environment import Environment
from .errors import UserError
from .loop import Trainer, end_by_sigterm
from .outputs import Outputs, prepare, record, versions, write_json
from .reporting import Events, Hypertune, Progress, Scalars, format_metrics, log
from .rows import MemoryRows, Preparer, Share, StreamedRows, deal_files
from .steps import Plan, Preempted, Steps

IN_MEMORY_BYTES = 2 << 30
JIT_STEPS, JIT_EXAMPLES = 5_000, 8_000_000  # XLA repays its compilation (about half a second) in runs of this length


@dataclass
class Run:
    """What the parts of a run share."""

    model: ModuleType
    hp: Any
    options: RunOptions
    env: Environment
    outputs: Outputs
    strategy: tf.distribute.Strategy

    def __post_init__(self) -> None:
        self.events = Events(os.environ)
        self.tuning = Hypertune(self.model.OBJECTIVE, self.env.trial, self.env.metric_file, quiet=not self.env.is_chief)


def train_and_export(
    model: ModuleType, hp: Any, options: RunOptions, env: Environment, outputs: Outputs, strategy: tf.distribute.Strategy
) -> dict[str, float]:
    """Train `model` (a trainer's module `model`), export it, check the export and write the records.

    Returns:
        The final metrics: training, `val_*` and, with test data, `test_*`.

    Raises:
        UserError: anything that the user can mend.
    """
    run = Run(model, hp, options, env, outputs, strategy)
    gc.disable()  # until the first step: collecting while graphs are traced takes as long as the tracing
    with ExitStack() as held:
        held.callback(gc.enable)
        background = held.enter_context(ThreadPoolExecutor(1))
        if env.is_chief:
            held.enter_context(prepare(outputs, options.start_over, env) or nullcontext())  # the lock
        run.events.enter("data", 0)
        inputs = Inputs(model, hp, options, env, background)
        plan = make_plan(run, inputs)
        trainer = build(run, inputs, plan)
        try:
            metrics = trainer.run(restore(run, inputs, plan, trainer))
        except Preempted:
            end_by_sigterm()
        if inputs.test is not None:
            metrics |= {f"test_{name}": value for name, value in trainer.steps.evaluate(inputs.test).items()}
        if env.is_chief:
            publish(run, inputs, plan, trainer.model, metrics)
            run.tuning.report(trainer.state["step"], metrics[model.OBJECTIVE])  # what the exported model has
        agree(strategy, 0, env)  # a worker that left now would take the chief's export down with it
        run.events.enter("end", plan.total_steps)
    return metrics


def build(run: Run, inputs: Inputs, plan: Plan) -> Trainer:
    """Build the network and the loop around it, with the reports that every run makes at each evaluation."""
    model, env, outputs, options = run.model, run.env, run.outputs, run.options
    run.events.enter("build", 0)
    # Again: a thread of another library, such as a storage client that waits at random, may have drawn while data was read.
    keras.utils.set_random_seed(run.hp.seed)
    with run.strategy.scope():
        network = model.build_model(run.hp, inputs.facts, plan.total_steps)
    steps = Steps(network, run.strategy, plan, inputs.example(), bool(options.ledger))
    progress = Progress(plan.total_steps, plan.batch_size, quiet=not env.is_chief)
    scalars = Scalars(outputs.logs if env.is_chief else None)

    def on_evaluation(step: int, metrics: dict[str, float]) -> None:
        progress.evaluated(step, metrics)
        rates = {"learning_rate": float(tf.convert_to_tensor(network.optimizer.learning_rate)), "examples_per_second": progress.rate}
        if written := scalars.write(step, metrics | rates):
            record(outputs.records, *written)
        run.tuning.report(step, metrics[model.OBJECTIVE])

    return Trainer(
        steps, plan, inputs.train, inputs.evaluation, Checkpointer(outputs.checkpoints, outputs.records, run.events, env.is_chief),
        model.callbacks(run.hp), inputs.fingerprint(), run.events, progress, on_evaluation,
        profile_dir=outputs.logs if env.is_chief else None, objective=model.OBJECTIVE, maximize=model.MAXIMIZE,
        ledger=partial(write_ledger, options.ledger, env.name, next_attempt(options.ledger, env.name)) if options.ledger else None,
    )


def restore(run: Run, inputs: Inputs, plan: Plan, trainer: Trainer) -> Any:
    """Return the state to resume from, if any, after checking that it belongs to this very run; say how the run starts."""
    checkpointer, env = trainer.checkpointer, run.env
    checkpointer.clean()
    restored = checkpointer.load() if env.is_chief else None
    step = agree(run.strategy, restored[1]["step"] if restored else 0, env)
    if step and not env.is_chief:
        restored = checkpointer.load(step)
    if restored and (remark := compare_fingerprints(restored[1]["fingerprint"], trainer.fingerprint, run.outputs.records)):
        log("WARNING", remark)
        restored[1].update(finished=False, stopped=False)
    if env.is_chief:
        describe_run(run, inputs, plan)
        write_json(run.outputs.records, "run.json", run_record(run, inputs, plan))
    if restored:
        log("INFO", f"resuming from step {restored[1]['step']} of {plan.total_steps} ({run.outputs.checkpoints})")
    return restored


def publish(run: Run, inputs: Inputs, plan: Plan, network: Any, metrics: dict[str, float]) -> None:
    """Export and check the model, write the final records, and say what was reached."""
    tolerance = run.options.skew_tolerance or (2e-2 if tf.config.list_physical_devices("GPU") else 1e-5)
    gate = export.export(
        run.model, network, run.hp, inputs.prepare, inputs.sample, run.outputs, tolerance, run.events, plan.total_steps
    )
    write_json(run.outputs.records, "metrics.json", metrics | {"skew_gate": gate, "synthetic_sample_data": inputs.synthetic})
    say_end(inputs, metrics, gate, run.outputs)


class Inputs:
    """The rows of a run: training, evaluation and test data, found, read, preprocessed and described."""

    def __init__(self, model: ModuleType, hp: Any, options: RunOptions, env: Environment, background: ThreadPoolExecutor):
        self.model, self.hp, self.options, self.workers = model, hp, options, env.worker_count
        if env.data_format not in (None, "csv"):
            raise UserError(f"AIP_DATA_FORMAT={env.data_format} is not read yet: only csv is. Export the data set to CSV files.")
        train, evaluation, test, self.synthetic = data_paths(model, options, env)
        streams = is_streamed(options, train)
        self.descriptions: list[Future] = [
            background.submit(data.fingerprint, path, not streams) for path in dict.fromkeys([*train, *evaluation])
        ]
        self.reported: set[str] = set()
        self.facts = model.learn(self._read(train), hp)
        self.prepare = Preparer(model, hp, self.facts)
        sampler = export.Sampler(hp.seed, model.INPUTS)
        self.train = self._rows(train, streams)
        self.evaluation = self._rows(evaluation, streams, sampler)
        self.test = self._rows(test, streams) if test else None
        self.sample = sampler.sample()

    def _read(self, paths: Sequence[str], sampler: export.Sampler | None = None) -> Iterator[data.Chunk]:
        bad = data.BadRows(self.options.bad_rows)
        for path in paths:
            for chunk in self.model.read(path, bad):
                if sampler is not None:
                    sampler.add(chunk)
                yield chunk
        if bad.reasons and (key := "|".join(paths)) not in self.reported:
            self.reported.add(key)
            log("WARNING", f"{bad} in {paths[0]}" + (f" and {len(paths) - 1} more files" if len(paths) > 1 else ""))

    def _rows(self, paths: Sequence[str], streams: bool, sampler: export.Sampler | None = None) -> MemoryRows | StreamedRows:
        try:
            if not streams:
                return MemoryRows(self._read(paths, sampler), self.prepare)
            counts = [sum(len(next(iter(chunk.values()))) for chunk in self._read([path], sampler)) for path in paths]
            by_files = is_dealt_by_files(self.options, len(paths), self.workers)
            return StreamedRows(paths, counts, self._read, self.prepare, by_files)
        except data.UnknownLabel as error:
            raise data.unseen(paths, error.label) from None

    def described(self) -> list[dict[str, Any]]:
        return [description.result() for description in self.descriptions]

    def fingerprint(self) -> dict[str, Any]:
        """Return what a run must have in common with a checkpoint to go on from it."""
        found = {"hyperparameters": dataclasses.asdict(self.hp), "source": source_fingerprint(self.model), "data": self.described()}
        return json.loads(json.dumps(found))

    def example(self) -> Any:
        """Return some preprocessed rows, for their shapes."""
        return self.prepare(data.take(self.sample, slice(0, 1)))


def data_paths(model: ModuleType, options: RunOptions, env: Environment) -> tuple[list[str], list[str], list[str], bool]:
    """Return the files (training, evaluation, test) and whether they are the bundled sample: flag, then variable, then that.

    Raises:
        UserError: a path matches nothing, or a job names no data.
    """
    if not (options.train_data_path or env.training_data or env.in_job):
        train, evaluation = sample_paths(model)
        log("INFO", "training on synthetic sample data, which ships with the project (no --train_data_path given)")
        return train, list(options.eval_data_path) or evaluation, list(options.test_data_path), True
    chosen = []
    for flag, variable, given, uri in (
        ("--train_data_path", "AIP_TRAINING_DATA_URI", options.train_data_path, env.training_data),
        ("--eval_data_path", "AIP_VALIDATION_DATA_URI", options.eval_data_path, env.validation_data),
        ("--test_data_path", "AIP_TEST_DATA_URI", options.test_data_path, env.test_data),
    ):
        if not given and not uri and not flag.startswith("--test"):
            raise UserError(f"no data: give {flag}, or let the service set {variable}.")
        try:
            chosen.append(model.find(given or (uri,), flag if given else variable) if given or uri else [])
        except UserError as error:
            if given or not flag.startswith("--test"):
                raise
            log("WARNING", f"no test metrics: {error}")  # the service names a split even if no file came of it
            chosen.append([])
    return chosen[0], chosen[1], chosen[2], False


def is_streamed(options: RunOptions, paths: Sequence[str]) -> bool:
    """Tell whether training data is read anew in every epoch rather than held in memory."""
    return options.in_memory == "no" or (options.in_memory == "auto" and data.total_bytes(paths) > IN_MEMORY_BYTES)


def is_dealt_by_files(options: RunOptions, files: int, workers: int) -> bool:
    """Tell whether each worker reads files of its own, where data is streamed."""
    return workers > 1 and (options.shard == "files" or (options.shard == "auto" and files >= workers))


def sample_paths(model: ModuleType) -> tuple[list[str], list[str]]:
    """Return the bundled synthetic (training, evaluation) files of a trainer, wherever it is installed."""
    package = importlib.util.find_spec(model.NAME)
    folders = list(package.submodule_search_locations) if package else [os.path.dirname(os.path.dirname(model.__file__))]
    found = [os.path.join(folders[0], "tests", "data", name) for name in model.SAMPLE_FILES]
    if missing := [path for path in found if not os.path.exists(path)]:
        raise UserError(f"the sample data is not installed ({missing[0]}). Give --train_data_path and --eval_data_path.")
    return found[:1], found[1:]


def make_plan(run: Run, inputs: Inputs) -> Plan:
    """Turn examples into steps.

    Raises:
        UserError: the batch does not fit the data, the examples to train on, or the replicas.
    """
    hp, options, replicas, rows = run.hp, run.options, run.strategy.num_replicas_in_sync, inputs.train.count
    padded = isinstance(inputs.train, StreamedRows) and inputs.train.by_files
    if padded:  # an epoch ends for all workers when the one with the most rows has fed its last
        rows = deal_files(inputs.train.counts, hp.batch_size, run.env.worker_count)[1] * hp.batch_size
    total = hp.num_examples_to_train_on or round(hp.epochs * rows)
    batch = hp.batch_size
    if batch > rows:
        raise UserError(f"--batch_size {batch} is larger than the training data, which has {rows} rows. Lower it.")
    if batch > total:
        raise UserError(f"--num_examples_to_train_on {total} is less than one batch of --batch_size {batch}. Raise it or lower the batch.")
    if batch % replicas:
        near = [size for size in (batch // replicas * replicas, (batch // replicas + 1) * replicas) if size]
        listed = " and ".join(map(str, near))
        raise UserError(f"--batch_size {batch} must divide by the {replicas} replicas; the nearest that do are {listed}.")
    long = total >= JIT_EXAMPLES or total // batch >= JIT_STEPS
    jit = replicas == 1 and (options.jit_compile == "yes" or (options.jit_compile == "auto" and long))
    return Plan(
        total // batch, batch, hp.num_evals, options.checkpoint_steps, options.steps_per_call, jit, hp.seed,
        step_range(options.profile), Share(run.env.worker_index, run.env.worker_count), padded,
    )


def next_attempt(path: str, replica: str) -> int:
    """Return the number of this process among those of the same replica that wrote to a ledger, from 1."""
    try:
        with open(path) as file:
            lines = [json.loads(line) for line in file if line.endswith("}\n")]
    except FileNotFoundError:
        lines = []
    return 1 + max((line["attempt"] for line in lines if line["replica"] == replica), default=0)


def write_ledger(path: str, replica: str, attempt: int, step: int, hashes: np.ndarray, fed: np.ndarray) -> None:
    """Append the hashes [steps, rows, 8] of the rows fed from `step` on, a line a step; `fed` is false for padding."""
    text = ""
    for i, rows in enumerate(hashes):
        kept = [row.tobytes().hex() for row in rows[fed[i]]]
        text += json.dumps({"attempt": attempt, "replica": replica, "step": step + i + 1, "rows": kept}) + "\n"
    with open(path, "ab", buffering=0) as file:  # one write, which the replicas of a job cannot tear apart
        file.write(text.encode())


def describe_run(run: Run, inputs: Inputs, plan: Plan) -> None:
    """Say at the start what runs where on what."""
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    log("INFO", f"{run.model.NAME}: {run.env.name} of {run.env.worker_count} worker(s); {found}")
    kind = "in memory" if isinstance(inputs.train, MemoryRows) else "streamed"
    log("INFO", f"rows: {inputs.train.count} to train on ({kind}), {inputs.evaluation.count} to evaluate on")
    replicas = run.strategy.num_replicas_in_sync
    compiled = ", compiled by XLA" if plan.jit_compile else ""
    log("INFO", f"steps: {plan.total_steps} of global batch {plan.batch_size} ({plan.batch_size // replicas} per replica){compiled}")
    if plan.share.workers > 1:
        how = "its own files; the batches differ from one process's" if plan.padded else "its part of each batch, the same as one process's"
        log("INFO", f"plan: each of {plan.share.workers} workers takes {how}; {plan.total_steps} steps for all")
    log("INFO", f"outputs: model {run.outputs.model}, checkpoints {run.outputs.checkpoints}, logs {run.outputs.logs}")


def run_record(run: Run, inputs: Inputs, plan: Plan) -> dict[str, Any]:
    """Return what run.json holds: enough to tell later what this run was."""
    return {
        "command": sys.argv,
        "hyperparameters": dataclasses.asdict(run.hp),
        "options": dataclasses.asdict(run.options),
        "environment": dataclasses.asdict(run.env),
        "versions": versions(),
        "data": inputs.described(),
        "rows": {"train": inputs.train.count, "evaluation": inputs.evaluation.count},
        "synthetic_sample_data": inputs.synthetic,
        "total_steps": plan.total_steps,
        "outputs": dataclasses.asdict(run.outputs),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def say_end(inputs: Inputs, metrics: dict[str, float], gate: dict[str, float], outputs: Outputs) -> None:
    """Print what was reached and what to do next."""
    on = " on synthetic sample data" if inputs.synthetic else ""
    log("INFO", f"done{on}: {format_metrics({k: v for k, v in metrics.items() if not k.endswith('loss')})}")
    log("INFO", f"served and trained predictions agree on {gate['rows']} rows (largest difference {gate['largest_difference']:.1e})")
    log("INFO", f"model: {outputs.model}")
    python = sys.executable if not sys.executable.startswith(os.getcwd() + os.sep) else os.path.relpath(sys.executable)
    log("INFO", f"curves: {shlex.quote(python)} -m tensorboard.main --logdir {shlex.quote(outputs.logs)}")
    instance = export._instances(inputs.model, data.take(inputs.sample, slice(0, 1)))[0]
    script = os.path.join(os.path.dirname(os.path.dirname(__file__)), "scripts", "predict")
    ask = os.path.relpath(script) if os.path.exists(script) else f"{python} {os.path.join(os.path.dirname(__file__), 'predict.py')}"
    log("INFO", f"predict: echo {shlex.quote(json.dumps(instance))} | {ask} {shlex.quote(outputs.model)}")
