"""One training run from files to served model: its stages, in their order."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import contract as contracts
from . import data, export
from .arguments import RunOptions, step_range
from .checkpoint import Checkpointer, compare_fingerprints, named_variables
from .cluster import agree
from .contract import Contract, blame
from .environment import Environment
from .errors import Preempted, UserError, first_line
from .inputs import Inputs
from .loop import Trainer, end_by_sigterm
from .network import check_network
from .outputs import Outputs, prepare, record, seal, versions, write_json
from .profile import NAME as PROFILE
from .reporting import Events, Hypertune, Progress, Scalars, format_metrics, log, row_ledger
from .rows import CachedRows, MemoryRows, Share
from .steps import Plan, Steps, optimizers
from .tracking import experiment
from .tracking.experiment import AT_THE_END, WHEN_STOPPED
from .tracking.record import Record
from .training_profile import texts_of, training_profile

Restored = tuple[dict[str, np.ndarray], dict[str, Any]]
SAME = 1e-4  # relative: evaluations of one model by two sources that differ in nothing that counts


@dataclass
class Run:
    """What the parts of a run share; `inputs`, `trainer` and `exporter` (the chief's alone) come as the run gets there."""

    contract: Contract
    hp: Any
    options: RunOptions
    env: Environment
    outputs: Outputs
    strategy: tf.distribute.Strategy
    started: float
    beat: Callable[[str], None]
    inputs: Inputs = dataclasses.field(init=False)
    trainer: Trainer = dataclasses.field(init=False)
    exporter: export.Exporter | None = None

    def __post_init__(self) -> None:
        self.events = Events(os.environ, self.beat)
        self.tuning = Hypertune(self.contract.objective, self.env.trial, self.env.metric_file, quiet=not self.env.is_chief)
        self.checkpointer = Checkpointer(self.outputs.checkpoints, self.outputs.records, self.events, self.env.is_chief)
        self.scalars = Scalars(self.outputs.logs if self.env.is_chief else None, partial(record, self.outputs.records))
        self.record = Record(self)
        self.reporter = experiment.Reporter(None, self.env)

    def agree(self, value: int) -> int:
        """Return the chief's value on every worker."""
        return agree(self.strategy, value, self.env)


def train_and_export(run: Run) -> dict[str, float]:
    """Train, export, check the export and write the records.

    Returns:
        The metrics of the exported model: training, `val_*` and, with test data, `test_*`.

    Raises:
        UserError: anything that the user can mend.
    """
    gc.disable()  # until the first step: collecting while graphs are traced takes as long as the tracing
    with ExitStack() as held:
        held.callback(gc.enable)
        background = held.enter_context(ThreadPoolExecutor(1))
        if run.env.is_chief:
            held.enter_context(prepare(run.outputs, run.options.start_over, run.env))  # the lock
        if not contracts.metric_is_mentioned(run.contract):
            try_on_example(run)
        run.events.enter("data", 0)
        run.inputs = Inputs(run.contract, run.hp, run.options, run.env, background, held, lambda: run.beat("data"))
        run.contract = run.inputs.contract
        restored = load(run)
        build(run, restored)
        changed = admit(run, restored)
        if run.env.is_chief:
            describe_run(run)
            begin_record(run, restored)
            held.callback(run.reporter.fail)
            if run.options.only != "evaluate":  # which changes nothing of the run
                write_run(run, "running")
        metrics = train(run, restored)
        if changed:
            see_that_nothing_changed(run.trainer, metrics, changed)
        if run.inputs.test is not None and run.options.only != "export":
            metrics |= {f"test_{name}": value for name, value in run.trainer.steps.evaluate(run.inputs.test).items()}
        if run.env.is_chief:
            finish(run, metrics)
        run.agree(0)  # a worker that left now would take the chief's export down with it
        run.events.enter("end", run.trainer.state["step"])
    return metrics


def train(run: Run, restored: Restored | None) -> dict[str, float]:
    """Train to the end, or only restore; return the metrics of the model to export. A signal ends the process, the state saved."""
    if restored:
        log("INFO", f"resuming from step {restored[1]['step']} of {run.trainer.plan.total_steps} ({run.outputs.checkpoints})")
    try:
        return run.trainer.run(restored, train=run.options.only == "all")
    except Preempted as stop:
        if run.env.is_chief:
            write_run(run, "interrupted")
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt from None
        end_by_sigterm()
        raise


def try_on_example(run: Run) -> None:
    """Build the model on made-up rows, where the source does not name the objective's metric: it may be misspelt.

    Raises:
        UserError: it is. What else goes wrong on made-up rows is left to the real ones.
    """
    contract, rows = run.contract, contracts.example_rows(run.contract)
    if rows is None:
        return
    from .learnt import learn
    from .rows import Preparer

    keras.utils.set_random_seed(run.hp.seed)
    try:
        facts = learn(contract, run.hp, lambda: iter([rows]))
        network = contract.build_model(run.hp, facts, 1)
        example = Preparer(contract, run.hp, facts)(rows)
        names = Steps(network, tf.distribute.get_strategy(), Plan(1, 2, 1, 1), example, False).metric_names()
    except Exception:  # noqa: BLE001 - see above
        return
    contracts.check_metrics(contract, names)


def load(run: Run) -> Restored | None:
    """Return the newest checkpoint that reads back whole, the same on all workers; None where there is none.

    Raises:
        UserError: --only needs one.
    """
    run.checkpointer.clean()
    restored = run.checkpointer.load() if run.env.is_chief else None
    step = run.agree(restored[1]["step"] if restored else 0)
    if step and not run.env.is_chief:
        restored = run.checkpointer.load(step)
    if restored is None and run.options.only != "all":
        where = run.outputs.checkpoints
        raise UserError(f"--only={run.options.only} needs a checkpoint, and {where} has none. Train first, or name its folder.")
    return restored


def build(run: Run, restored: Restored | None) -> None:
    """Build the network, its export, and the loop around it, with the reports that every run makes at each evaluation."""
    contract, env, inputs, options, outputs = run.contract, run.env, run.inputs, run.options, run.outputs
    plan = make_plan(contract, run.hp, options, env, run.strategy.num_replicas_in_sync, inputs.train.count, restored)
    steps = build_steps(run, plan)
    progress = Progress(plan.total_steps, plan.batch_size, quiet=not env.is_chief)

    def on_evaluation(step: int, metrics: dict[str, float]) -> None:
        progress.evaluated(step, metrics)
        run.scalars.write(step, metrics | rates(steps.model, progress))
        run.record.evaluated(step, metrics)
        run.reporter.evaluated(step, metrics)
        run.tuning.report(step, metrics[contract.objective])

    rehearsal = None
    if env.is_chief:
        run.exporter = export.Exporter(contract, steps.model, inputs.prepare)
        rehearsal = export.Rehearsal(run.exporter, inputs.sample) if options.only == "all" else None
    peers = (tf.errors.OpError,) if env.worker_count > 1 else ()  # it may be a peer's that went away
    fingerprint = inputs.fingerprint()
    run.record.source = fingerprint["source"]
    if env.is_chief and options.only == "all":
        run.scalars.hyperparameters(dataclasses.asdict(run.hp), contract.objective, run.record.made_of())
    run.trainer = Trainer(
        steps, steps.plan, inputs.train, inputs.evaluation, run.checkpointer, contract.callbacks(run.hp), fingerprint,
        run.events, progress, on_evaluation, partial(run.scalars.write, flush=False),
        profile_dir=outputs.logs if env.is_chief else None, objective=contract.objective, maximize=contract.maximize,
        keep=options.export, agree=run.agree, blame=lambda part: blame(contract.module, part, peers),
        deadline=run.started + 60 * options.max_minutes if options.max_minutes else math.inf,
        rehearsal=rehearsal, ledger=row_ledger(options.ledger, env.name) if options.ledger else None,
    )  # fmt: skip


def build_steps(run: Run, plan: Plan) -> Steps:
    """Build the network and its compiled calls, with XLA where that is faster and asked for.

    Raises:
        UserError: it is no model that can be trained here, or lacks the objective's metric.
    """
    contract = run.contract
    run.events.enter("build", 0)
    # Again: a thread of another library, such as a storage client that waits at random, may have drawn while data was read.
    keras.utils.set_random_seed(run.hp.seed)
    with run.strategy.scope():
        network = contract.build_model(run.hp, run.inputs.facts, plan.total_steps)
    check_network(network, run.strategy)
    example = run.inputs.example()
    with blame(contract.module, "the model"):
        if plan.jit_compile is None:
            plan = dataclasses.replace(plan, jit_compile=faster_with_xla(run, network, plan, example))
        steps = Steps(network, run.strategy, plan, example, bool(run.options.ledger))
        contracts.check_metrics(contract, steps.metric_names())
    return steps


def rates(network: keras.Model, progress: Progress) -> dict[str, float]:
    """Return the learning rate, where the model has one optimizer, the speed, and what there is to know of its limits."""
    found = {"examples_per_second": progress.rate}
    if limits := progress.limits:
        found |= {"waiting_for_rows": limits.waiting, "share_of_peak": limits.of_peak}
    if network.optimizer is not None:
        found["learning_rate"] = float(tf.convert_to_tensor(network.optimizer.learning_rate))
    return found


def faster_with_xla(run: Run, network: keras.Model, plan: Plan, example: Any) -> bool:
    """Time some calls with and without XLA (`--jit_compile=auto`) and put the weights back; say which won."""
    rows, order = next(iter(run.inputs.train.feed(plan.batch_size, run.hp.seed, 0, plan.share)))
    order = tf.constant(np.resize(order, (plan.call_steps, order.shape[1])))
    seconds = {True: math.inf}
    before: dict[str, np.ndarray] | None = None
    for jit in (False, True):
        steps = Steps(network, run.strategy, dataclasses.replace(plan, jit_compile=jit), example, False)
        owners = [variable for optimizer in optimizers(network) for variable in optimizer.variables]
        variables = named_variables(model=network.variables, optimizer=owners, metrics=network.metrics_variables)
        before = before or {name: variable.numpy() for name, variable in variables.items()}
        try:
            seconds[jit] = seconds_a_step(lambda: int(steps.train(rows, order, tf.constant(plan.call_steps))[0]), plan.call_steps)  # noqa: B023
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            log("INFO", f"--jit_compile=auto: XLA cannot compile this model ({first_line(error)})")
        for name, variable in variables.items():
            variable.assign(before[name])
    wins = seconds[True] < seconds[False]
    with_xla = f"{1e3 * seconds[True]:.3g} ms a step with XLA" if seconds[True] < math.inf else "XLA fails"
    won = "with it" if wins else "without it"
    log("INFO", f"--jit_compile=auto: {with_xla}, {1e3 * seconds[False]:.3g} ms without: {won}, and so will a resumed run")
    return wins


def seconds_a_step(call: Callable[[], object], steps: int) -> float:
    """Return how long a step takes in a call of so many, once it is traced."""
    call()
    start, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - start < 0.5:
        call()
        calls += 1
    return (time.perf_counter() - start) / calls / steps


def admit(run: Run, restored: Restored | None) -> str | None:
    """See that a checkpoint belongs to this very run; return what may have changed since and is to be proved harmless.

    Raises:
        UserError: it belongs to another run.
    """
    if not restored:
        return None
    state, total = restored[1], run.trainer.plan.total_steps
    published = tf.io.gfile.exists(f"{run.outputs.model}/saved_model.pb")
    trained = run.options.only != "all" or (state["finished"] and not published)  # an export that failed and is mended
    was = state["total_steps"]
    longer, changed = compare_fingerprints(state["fingerprint"], run.trainer.fingerprint, run.outputs.records, total > was, trained)
    if longer:
        examples = [steps * run.hp.batch_size for steps in (was, total)]
        log("WARNING", f"training goes on from {examples[0]} to {examples[1]} examples: the learning-rate schedule changes with it.")
        state.update(finished=False, stopped=False)
    return changed


def see_that_nothing_changed(trainer: Trainer, metrics: dict[str, float], changed: str) -> None:
    """Compare an evaluation by the source as it is now with the one that training made.

    Raises:
        UserError: they differ, so that the checkpoint is not this model's.
    """
    now = {f"val_{name}": value for name, value in trainer.steps.evaluate(trainer.eval_rows).items()}
    was, found = metrics[trainer.objective], now[trainer.objective]
    if not abs(found - was) <= SAME * max(1.0, abs(was)):
        raise UserError(
            f"{changed} has changed since training, and with it what the model answers: "
            f"{trainer.objective} was {was:.6g} and is {found:.6g} now. "
            "Undo the change, or train again: another --output_dir, or --start_over."
        )
    same = f"the model answers as before ({trainer.objective} {found:.6g})"
    log("WARNING", f"{changed} has changed since training; {same}, so it is exported.")


def finish(run: Run, metrics: dict[str, float]) -> None:
    """Export and check the model, write the final records, and say what was reached."""
    records, inputs, trainer, exporter = run.outputs.records, run.inputs, run.trainer, run.exporter
    state = trainer.state
    common = {"best": {k: v for k, v in state["best"].items() if k != "metrics"}, "exported_step": trainer.exported_step}
    common |= {"synthetic_sample_data": inputs.synthetic}
    if run.options.only == "evaluate":
        write_json(records, "evaluation.json", metrics | common)
        log("INFO", f"evaluated the checkpoint of step {trainer.exported_step}: {format_metrics(metrics)}")
        return
    if trainer.rehearsal is not None:
        trainer.rehearsal.check()
    profile = training_profile(inputs)
    extra = texts_of(inputs, profile, exporter.serve.structured_outputs)
    with blame(run.contract.module, "the export"):
        gate = export.publish(exporter, inputs.sample, run.outputs, tolerance(run), run.events, state["step"], extra)
    if profile:
        write_json(records, PROFILE, profile)
    write_json(records, "metrics.json", metrics | {"skew_gate": gate} | common)
    run.record.published(exporter, metrics)
    write_run(run, "out of time" if trainer.out_of_time else "finished")
    seal(records)
    say_end(run, metrics, gate)
    run.tuning.report(state["step"], metrics[run.contract.objective])  # what the exported model has


def tolerance(run: Run) -> float:
    """Return what served and trained answers may differ by: as --skew_tolerance says, else by what computes them."""
    types = {getattr(layer, "compute_dtype", "float32") for layer in run.trainer.model._flatten_layers()}
    coarse = tf.config.list_physical_devices("GPU") or types & {"float16", "bfloat16"}
    return run.options.skew_tolerance or (2e-2 if coarse else 1e-5)


def make_plan(
    contract: Contract, hp: Any, options: RunOptions, env: Environment, replicas: int, rows: int, restored: Restored | None = None
) -> Plan:
    """Turn examples into steps; a resumed run keeps to what was chosen about XLA.

    Raises:
        UserError: the batch does not fit the data, the examples to train on, or the replicas.
    """
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
    steps = total // batch
    jit: bool | None = {"yes": True, "no": False, "auto": None}.get(options.jit_compile)
    if replicas > 1:
        jit = False
    elif restored and options.jit_compile in ("auto", "model"):
        jit = restored[1]["jit_compile"]
    elif options.jit_compile == "model":
        jit = bool(contract.jit_compile(hp, steps))
    return Plan(
        steps,
        batch,
        hp.num_evals,
        options.checkpoint_steps,
        options.steps_per_call,
        jit,
        hp.seed,
        step_range(options.profile),
        Share(env.worker_index, env.worker_count),
        options.scalar_steps or max(1000, steps // 50),
    )


def describe_run(run: Run) -> None:
    """Say at the start what runs where on what."""
    inputs, plan, outputs = run.inputs, run.trainer.plan, run.outputs
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    log("INFO", f"{run.contract.name}: {run.env.name} of {run.env.worker_count} worker(s); {found}")
    kinds = {MemoryRows: "in memory", CachedRows: "in a cache on disk"}
    kind = kinds.get(type(inputs.train), "prepared as needed")
    log("INFO", f"rows: {inputs.train.count} to train on ({kind}), {inputs.evaluation.count} to evaluate on")
    replicas = run.strategy.num_replicas_in_sync
    compiled = ", compiled by XLA" if plan.jit_compile else ""
    log("INFO", f"steps: {plan.total_steps} of global batch {plan.batch_size} ({plan.batch_size // replicas} per replica){compiled}")
    if run.options.jit_compile == "yes" and not plan.jit_compile:
        log("WARNING", f"--jit_compile=yes: on {replicas} replicas the steps run without XLA. Leave it out.")
    if plan.share.workers > 1:
        part = "its part of each batch, which are those of one process"
        takes = f"each of {plan.share.workers} workers takes {part}; {plan.total_steps} steps for all"
        for line in (*inputs.each_worker(plan.share.workers), takes):
            log("INFO", f"plan: {line}")
    log("INFO", f"outputs: model {outputs.model}, checkpoints {outputs.checkpoints}, logs {outputs.logs}")


def begin_record(run: Run, restored: Restored | None) -> None:
    """Begin the record of the run, or go on with that of its earlier starts; find the experiment that it is in."""
    if restored:
        run.record.resume(restored[1]["step"])
    run.record.experiment = experiment.names(run.options.experiment, run.env, run.contract.name, run.record.id)
    run.reporter = experiment.Reporter(run.record.experiment, run.env)


def write_run(run: Run, state: str) -> None:
    """Write run.json, and tell the experiment that the run is in, if any, how it stands."""
    run.record.write(state)
    if state == "running":
        run.reporter.begin(run.record.written)
    else:
        run.reporter.end(run.record.written, AT_THE_END if state != "interrupted" else WHEN_STOPPED)


def say_end(run: Run, metrics: dict[str, float], gate: dict[str, Any]) -> None:
    """Print what was reached and what to do next."""
    outputs, on = run.outputs, " on synthetic sample data" if run.inputs.synthetic else ""
    log("INFO", f"done{on}: {format_metrics({k: v for k, v in metrics.items() if not k.endswith('loss') or k == run.contract.objective})}")
    if gate["compared"]:
        log("INFO", f"served and trained predictions agree on {gate['rows']} rows (largest difference {gate['largest_difference']:.1e})")
    log("INFO", f"model: {outputs.model}")
    python = sys.executable if not sys.executable.startswith(os.getcwd() + os.sep) else os.path.relpath(sys.executable)
    log("INFO", f"curves: {shlex.quote(python)} -m tensorboard.main --logdir {shlex.quote(outputs.logs)}")
    instance = json.dumps(export.instances_of(run.contract, data.take(run.inputs.sample, slice(0, 1)))[0])
    script = os.path.join(os.path.dirname(os.path.dirname(__file__)), "scripts", "predict")
    ask = os.path.relpath(script) if os.path.exists(script) else f"{python} {os.path.join(os.path.dirname(__file__), 'predict.py')}"
    given = f"echo {shlex.quote(instance)} | " if len(instance) <= 2000 else ""
    log("INFO", f"predict: {given}{ask} {shlex.quote(outputs.model)}{'' if given else ' < instances.jsonl'}")
