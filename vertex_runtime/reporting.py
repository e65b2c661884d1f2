"""What a run says while it works: log lines, a progress bar, TensorBoard scalars, hypertune reports, an event file.

On a terminal people read it, on the service Cloud Logging does: there every line is JSON with a severity. Only the
chief's reporters write; the others are built quiet, so that the loop never asks which replica it is.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .environment import quoted
from .errors import FAILED, UserError
from .pace import Limits, Pace


def log(severity: str, message: str, **fields: object) -> None:
    """Print one line: JSON with `severity` in a job (stdout: the service takes all of stderr for errors), else text."""
    with _beside_the_bar():
        if _in_job():
            print(json.dumps({"severity": severity, "message": message, **fields}), flush=True)
        elif severity == "INFO":
            print(message, flush=True)
        else:
            print(f"{severity.lower()}: {message}", file=sys.stderr, flush=True)


def _beside_the_bar() -> Any:
    """Take a progress bar off the terminal while a line is printed."""
    if not Progress.showing:
        return contextlib.nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode(file=sys.stderr)


def report_error(message: str) -> None:
    """Print the one line that says why the run ends, on stderr."""
    message = " ".join(message.split())
    print(json.dumps({"severity": "ERROR", "message": message}) if _in_job() else f"error: {message}", file=sys.stderr, flush=True)


def _in_job() -> bool:
    return any(os.environ.get(name) for name in ("CLOUD_ML_JOB_ID", "CLUSTER_SPEC", "TF_CONFIG", "AIP_MODEL_DIR"))


def format_metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())


class Progress:
    """A bar on a terminal with the last values, otherwise one line per evaluation."""

    showing = False

    def __init__(self, total_steps: int, batch_size: int, quiet: bool):
        self.quiet, self.batch_size, self.bar = quiet, batch_size, None
        self.total, self.rate, self.start, self.note = total_steps, 0.0, (0, time.perf_counter()), ""
        self.pace = Pace()
        self.limits: Limits | None = None  # of the last window
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            # The rate is ours, so that bar and lines say the same.
            form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} examples [{elapsed}<{remaining}{postfix}]"
            self.bar = tqdm(total=total_steps * batch_size, unit_scale=True, bar_format=form, dynamic_ncols=True)
            Progress.showing = True

    def begin(self, step: int) -> None:
        """Start the clock of a window: what came before it (tracing, an evaluation) is not counted."""
        self.start = (step, time.perf_counter())
        self.pace.resume()
        if self.bar is not None:
            self.bar.n = step * self.batch_size
            self.bar.refresh()

    def update(self, step: int, loss: float) -> None:
        first, since = self.start
        if step > first:
            self.rate = (step - first) * self.batch_size / (time.perf_counter() - since)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4g}{self.note}, {self.rate:,.0f} examples/s", refresh=False)
            self.bar.update(step * self.batch_size - self.bar.n)

    def fields(self) -> dict[str, object]:
        """Return the speed and what limits it, as far as that is known, for a line of an event file."""
        limits = self.pace.limits() or self.limits
        return {"examples_per_second": round(self.rate), **(limits.fields() if limits else {})}

    def pause(self) -> None:
        """End a window: say what limited it, where that has not been said yet."""
        before, self.limits = self.limits, self.pace.pause() or self.limits
        if self.limits and not self.quiet and (before is None or before.by != self.limits.by):
            log("INFO", str(self.limits), **self.limits.fields())

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = {name: value for name, value in metrics.items() if name.startswith("val_") and name != "val_loss"}
        self.note = "".join(f", {name} {value:.4g}" for name, value in shown.items())
        if self.quiet:
            return
        text = f"step {step}/{self.total}: {format_metrics(metrics)}, {self.rate:,.0f} examples/s"
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        log("INFO", text, step=step, metrics=finite, examples_per_second=round(self.rate))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            Progress.showing = False


class Scalars:
    """TensorBoard scalars: training values under logs/train, evaluation under logs/validation; without a directory, nothing.

    Args:
        note: is told the files that are made.
    """

    def __init__(self, directory: str | None, note: Callable[..., None] = lambda *paths: None):
        self.directory, self.note, self.writers = directory, note, {}

    def write(self, step: int, metrics: Mapping[str, float], flush: bool = True) -> None:
        """Write some values."""
        if self.directory is None:
            return
        import tensorflow as tf

        for name, value in metrics.items():
            run = "validation" if name.startswith("val_") else "train"
            if run not in self.writers:
                with self._noted(f"{self.directory}/{run}"):
                    self.writers[run] = tf.summary.create_file_writer(f"{self.directory}/{run}")
                    self.writers[run].flush()
            with self.writers[run].as_default():
                tf.summary.scalar(name.removeprefix("val_"), value, step=step)
        for writer in self.writers.values() if flush else ():
            writer.flush()

    def hyperparameters(self, values: Mapping[str, object], objective: str, about: Mapping[str, object]) -> None:
        """Write the run's hyperparameters for TensorBoard's HParams page, and for its Text page what else is known `about` it."""
        if self.directory is None:
            return
        import tensorflow as tf
        from tensorboard.plugins.hparams import summary_v2 as hparams

        plain = {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in values.items()}
        kinds = [hparams.HParam(name) for name in plain]
        metric = hparams.Metric(objective.removeprefix("val_"), group="validation", display_name=objective)
        with self._noted(self.directory), tf.summary.create_file_writer(self.directory).as_default():
            hparams.hparams_config(kinds, [metric])
            hparams.hparams(plain)
            tf.summary.text("run", f"```json\n{json.dumps(about, indent=1, default=str)}\n```", step=0)
            tf.summary.flush()

    @contextlib.contextmanager
    def _noted(self, folder: str) -> Iterator[None]:
        """Note the files that are made meanwhile in a folder."""
        import tensorflow as tf

        gfile = tf.io.gfile
        before = set(gfile.glob(f"{folder}/*"))
        yield
        self.note(*(path for path in gfile.glob(f"{folder}/*") if path not in before and not gfile.isdir(path)))


class Hypertune:
    """Reports the study's metric; quiet outside a trial. The library's file holds only the newest 100 reports."""

    def __init__(self, metric: str, trial: str | None, metric_file: str | None, quiet: bool):
        self.metric, self.client = metric, None
        self.last: tuple[int, float] | None = None
        if quiet or not (trial or metric_file):
            return
        if trial:
            os.environ.setdefault("CLOUD_ML_TRIAL_ID", trial)
        try:
            import hypertune
        except ImportError:
            raise UserError("a tuning trial needs the package cloudml-hypertune: pip install cloudml-hypertune.") from None
        self.client = hypertune.HyperTune()

    def report(self, step: int, value: float) -> None:
        """Report an evaluation, unless it is the one reported last.

        Raises:
            UserError: the value is not finite. Left unreported, an earlier one would count as the trial's.
        """
        if self.client is None or (step, value) == self.last:
            return
        if not math.isfinite(value):
            raise UserError(f"{self.metric} is {value} at step {step}: the trial is infeasible. Lower --lr or look at the data.", FAILED)
        self.last = (step, value)
        self.client.report_hyperparameter_tuning_metric(hyperparameter_metric_tag=self.metric, metric_value=value, global_step=step)


class Events:
    """The phases of this process, for whoever started it.

    `TRAINER_EVENTS` names a file that gets one JSON line per phase. `TRAINER_KILL`, such as `step=40,signal=KILL` or
    `checkpoint=2,signal=TERM`, makes the process signal itself at that step, or in the n-th phase of that name:
    a kill drill that hits the same place each time.
    """

    def __init__(self, variables: Mapping[str, str], beat: Callable[[str], None] = lambda phase: None):
        self.beat = beat  # tells the watchdog that something moves
        self.path = variables.get("TRAINER_EVENTS")
        self.place, self.at, self.signal = None, 0, signal.SIGKILL
        self.counts: dict[str, int] = {}
        self.seconds: dict[str, float] = {}  # spent in each phase so far
        self._entered = ("", time.monotonic())
        text = variables.get("TRAINER_KILL", "")
        try:
            for part in filter(None, text.split(",")):
                key, value = part.split("=")
                if key == "signal":
                    self.signal = signal.Signals[f"SIG{value}"]
                else:
                    self.place, self.at = key, int(value)
        except (ValueError, KeyError):
            raise UserError(f"TRAINER_KILL must look like step=40,signal=KILL or checkpoint=2; got {quoted(text)}.") from None

    @property
    def kill_step(self) -> int | None:
        return self.at if self.place == "step" else None

    def enter(self, phase: str, step: int, **fields: object) -> None:
        """Announce a phase: data, build, step, checkpoint, evaluation, export or end."""
        self.beat(f"{phase} at step {step}")
        before, since = self._entered
        self._entered = (phase, time.monotonic())
        if before:
            self.seconds[before] = self.seconds.get(before, 0.0) + self._entered[1] - since
        self.counts[phase] = self.counts.get(phase, 0) + 1
        if self.path:
            with open(self.path, "a") as file:
                file.write(json.dumps({"time": time.time(), "phase": phase, "step": step, **fields}) + "\n")
        if self.place == phase and self.at == (step if phase == "step" else self.counts[phase]):
            os.kill(os.getpid(), self.signal)


def row_ledger(path: str, replica: str) -> Callable[[int, Any], None]:
    """Return what appends the hashes [steps, rows, 8] of the rows fed from a step on to a file, a line a step.

    Each start of a replica is another attempt, from 1.
    """
    try:
        with open(path) as file:
            lines = [json.loads(line) for line in file if line.endswith("}\n")]
    except FileNotFoundError:
        lines = []
    attempt = 1 + max((line["attempt"] for line in lines if line["replica"] == replica), default=0)

    def write(step: int, hashes: Any) -> None:
        text = ""
        for i, rows in enumerate(hashes):
            kept = [row.tobytes().hex() for row in rows]
            text += json.dumps({"attempt": attempt, "replica": replica, "step": step + i + 1, "rows": kept}) + "\n"
        with open(path, "ab", buffering=0) as file:  # one write, which the replicas of a job cannot tear apart
            file.write(text.encode())

    return write
