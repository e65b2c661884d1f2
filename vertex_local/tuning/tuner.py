"""One study from its start, or from where an earlier run was interrupted, to its end: starts, stops and finishes trials."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..job import buckets, times
from ..job.job_file import JobFile
from ..local import cluster, devices, jobs, plan
from ..local.plan import Paths, RunOptions
from ..local.report import Quiet
from . import measurements, trials, tuning_page, tuning_report
from .search import Search, grid_size
from .study import Study
from .trials import ACTIVE, INFEASIBLE, STOPPING, SUCCEEDED, Trial

CUT = "the job ended before this trial did; the same job id runs it again"
UNMEASURED = "stopped before its first report"
_TICK = 0.05
_NOTE_AFTER = 0.3  # seconds between two looks at a trial's reports


@dataclass
class Result(jobs.Result):
    """How a tuning job went: its trials in the API's form, the ids of the best, and the command of each of those."""

    trials: list[Trial] = field(default_factory=list)
    best: list[str] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    page: str | None = None
    log_dir: str | None = None


@dataclass
class _Running:
    """A trial under way: its job in a thread of its own, and what it has reported."""

    number: int
    source: measurements.Reports
    start: float
    slot: int  # among the trials that run at once
    cancel: threading.Event = field(default_factory=threading.Event)
    stopped: bool = False
    wrong: str = ""
    tags: set[str] = field(default_factory=set)
    reports: list[dict[str, Any]] = field(default_factory=list)
    noted: float = 0.0
    outcome: jobs.Result | BaseException | None = None


@dataclass
class Tuner:
    """Runs one study; all of it happens in the thread that calls `run`, except the trials' jobs."""

    study: Study
    search: Search
    result: Result
    options: RunOptions
    paths: Paths
    report: Quiet
    cancel: threading.Event
    on_trial: Callable[[Trial], None] | None
    running: dict[int, _Running] = field(default_factory=dict)
    trials: dict[int, Trial] = field(default_factory=dict)

    def run(self) -> None:
        """Run the trials that remain; when this ends, in whatever way, no trial is running."""
        self.variables = {**trials.thread_limits(self.study), **(self.options.variables or {})}
        own = {name for pool in self.study.job.pools for name, _ in pool.env}
        self.gpus = [] if devices.VISIBLE in own else devices.gpus()
        output = self.study.job.output
        base = self.result.folder / "tensorboard" if output is None else buckets.to_path(output, self.paths.buckets)
        self.result.log_dir = str(base).rstrip("/")
        try:
            self._loop(self._take_up())
        except Exception:
            for each in self.running.values():
                each.cancel.set()
            self._wait(quietly=True)
            raise
        finally:
            self.report.close(self.result.trials)
        self._write_report()

    def _take_up(self) -> list[int]:
        """Take over an earlier run's trials, print what will run, and return the numbers of the trials to run again."""
        study, say = self.study, self.report.say
        cut = self.search.cut()
        for trial in self.search.trials():
            number = int(trial["id"]) - 1
            self.trials[number] = trial
            if number in cut and trial["state"] in (SUCCEEDED, INFEASIBLE):  # over, but the search had not been told
                self.search.values(number)
                self.search.tell(number, trials.final_values(trial), pruned=False)
                cut.remove(number)
        say(f"job {self.result.job_id}: {study.name}, in {self.result.folder}")
        names = {"RANDOM_SEARCH": "random search", "GRID_SEARCH": "grid search"}
        say(f"{study.max_trials} trials, {study.parallel} at a time, {names.get(study.algorithm, 'Bayesian search (TPE)')}")
        for note in study.notes:
            say(f"note: {note}")
        if self.trials:
            say(f"going on: {len(self.trials.keys() - set(cut))} trials are done, {len(cut)} were cut and run again")
        if study.algorithm == "GRID_SEARCH" and (size := grid_size(study.parameters)) != study.max_trials:
            say(f"note: the grid has {size} points, maxTrialCount is {study.max_trials}")
        if limits := trials.thread_limits(study):
            say(f"threads of each replica: {', '.join(f'{name}={value}' for name, value in limits.items())}")
        return cut

    def _loop(self, again: list[int]) -> None:
        stopping, exhausted = "", False
        while True:
            self._pump()
            if failure := self._failure():
                return self._end(jobs.FAILED, failure)
            if jobs.stop_asked(self.result.folder):
                self.cancel.set()
            if self.cancel.is_set():
                return self._end(jobs.CANCELLED, f"the job was cancelled; --job_id {self.result.job_id} goes on with it")
            if not stopping and (stopping := self._stopping_rule()):
                self.report.say(f"rule: {stopping}: no further trials start")
                for each in self.running.values() if self.study.stopping.get("shouldStopAsap") else ():
                    self._stop(each)
            while len(self.running) < self.study.parallel and not stopping and not exhausted:
                number = again.pop(0) if again else self._next()
                exhausted = number is None
                if number is not None:
                    self._start(number)
            if not self.running:
                return self._end(jobs.SUCCEEDED, None)
            time.sleep(_TICK)

    def _next(self) -> int | None:
        return self.search.next() if len(self.trials) < self.study.max_trials else None

    def _failure(self) -> str | None:
        """Return why the job has failed, if it has."""
        failed = [t for t in self.trials.values() if t["state"] == INFEASIBLE and t["infeasibleReason"] != UNMEASURED]
        if len(failed) < max(1, self.study.max_failed):
            return None
        last = max(failed, key=lambda trial: trial["endTime"])
        limit = f"maxFailedTrialCount is {self.study.max_failed}{'' if self.study.max_failed else ': the first failure ends the job'}"
        return f"{len(failed)} of {len(self.trials)} trials failed ({limit}); trial {last['id']}: {last['infeasibleReason']}"

    def _stopping_rule(self) -> str:
        """Return the rule of studyStoppingConfig that ends the study now, the first in the service's order; "" for none."""
        rules, now, start = self.study.stopping, time.time(), self.result.start
        done = sorted((t for t in self.trials.values() if t["state"] == SUCCEEDED), key=lambda trial: trial["endTime"])

        def over(constraint: dict[str, float]) -> bool:
            return now >= constraint.get("endTime", start + constraint.get("maxDuration", 0.0))

        earliest, latest = rules.get("minimumRuntimeConstraint"), rules.get("maximumRuntimeConstraint")
        if earliest and not over(earliest) or len(done) < rules.get("minNumTrials", 0):
            return ""
        if latest and over(latest):
            return f"maximumRuntimeConstraint: {now - start:.1f} s have passed since the study's start"
        if len(self.trials) >= rules.get("maxNumTrials", len(self.trials) + 1):
            return f"maxNumTrials: {rules['maxNumTrials']} trials have begun"
        if len(self.study.objectives) > 1 or not done:
            return ""
        best = measurements.best(self.study, done)[0]
        since, idle = len(done) - 1 - done.index(best), now - times.seconds(best["endTime"])
        if since >= rules.get("maxNumTrialsNoProgress", since + 1):
            return f"maxNumTrialsNoProgress: {since} trials since the best, trial {best['id']}"
        if idle >= rules.get("maxDurationNoProgress", idle + 1):
            return f"maxDurationNoProgress: {idle:.1f} s since the best, trial {best['id']}"
        return ""

    # ------------------------------------------------------------------ one trial

    def _start(self, number: int) -> None:
        values, trial_id = self.search.values(number), str(number + 1)
        before = self.trials.get(number, {})
        job_id, earlier = f"{self.result.job_id}-trial-{trial_id}", []
        while (self.paths.state / "jobs" / job_id).exists():
            earlier.append(job_id)
            job_id = f"{earlier[0]}-{len(earlier) + 1}"
        trial = {
            "id": trial_id, "state": ACTIVE, "parameters": [{"parameterId": k, "value": v} for k, v in values.items()],
            "measurements": before.get("measurements", []), "startTime": before.get("startTime", times.now()), "customJob": job_id,
        }  # fmt: skip
        slot = min(set(range(self.study.parallel)) - {other.slot for other in self.running.values()}, default=0)
        running = _Running(number, measurements.Reports(self._metric_file(job_id)), times.seconds(trial["startTime"]), slot)
        for name in earlier if before else ():  # a trainer that resumes from a checkpoint does not repeat its reports
            trial["measurements"] = self._merged(running, trial, measurements.Reports(self._metric_file(name)).new())
        if before:  # the time between the two runs does not count
            running.start = time.time() - max(map(measurements.seconds, trial["measurements"]), default=0.0)
        self.running[number] = running
        self.trials.pop(number, None)
        self._change(number, **trial)
        job = trials.job_for(self.study.job, values)
        threading.Thread(target=self._work, args=(running, job, job_id), daemon=True).start()

    def _metric_file(self, job_id: str) -> Path:
        return plan.metric_file(self.paths.state / "jobs" / job_id, "workerpool0-0")

    def _work(self, running: _Running, job: JobFile, job_id: str) -> None:
        """Run a trial's job; in a thread of its own."""
        variables = {**self.variables, **devices.dealt(running.slot, self.study.parallel, self.gpus)}
        try:
            outcome: jobs.Result | BaseException = cluster.run(
                job, self.options, job_id=job_id, trial=str(running.number + 1), variables=variables, record=False, cancel=running.cancel
            )
        except BaseException as error:  # for the thread that waits for this one
            outcome = error
        running.outcome = outcome

    def _pump(self) -> None:
        """Read the trials' reports, finish trials whose job has ended, and stop those that the pruner gives up."""
        prunes = self.study.median_stopping and len(self.study.objectives) == 1
        for number, running in list(self.running.items()):
            over = running.outcome is not None  # read before the reports, of which there are no more after it
            running.reports += running.source.new()
            # Some trainers report faster than each report could be handled by itself.
            if running.reports and (over or time.monotonic() - running.noted > _NOTE_AFTER):
                measured = self._merged(running, self.trials[number], running.reports)
                running.reports, running.noted = [], time.monotonic()
                self._change(number, measurements=measured)
                if prunes and self.search.should_stop(number, measured) and not (over or running.stopped):
                    self._stop(running)
            if over:
                self._finish(running)
        self.report.update([self.trials[number] for number in sorted(self.trials)])

    def _merged(self, running: _Running, trial: Trial, reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a trial's measurements with further reports, and note what is wrong with these."""
        for report in reports:
            running.tags |= set(report["values"])
            for metric in self.study.metrics:
                value = report["values"].get(metric.id, 0.0)
                if not math.isfinite(value):
                    running.wrong = running.wrong or f"{metric.id} was {value} at step {report['step']}"
        return measurements.merge(trial["measurements"], reports, self.study.metrics, running.start)

    def _stop(self, running: _Running) -> None:
        running.stopped = True
        self._change(running.number, state=STOPPING)
        running.cancel.set()

    def _finish(self, running: _Running) -> None:
        """Record the outcome of a trial whose job has ended."""
        del self.running[running.number]
        outcome, number, trial = running.outcome, running.number, self.trials[running.number]
        if isinstance(outcome, BaseException):
            raise outcome
        if running.source.lost:
            self.report.say(f"warning: trial {trial['id']} reported faster than its metric file can be read: some reports may be missing.")
        final = measurements.final(self.study, trial["measurements"])
        if outcome.state == jobs.CANCELLED and not running.stopped:
            return self._cut(number)
        why = (outcome.error or "its job failed") if outcome.state == jobs.FAILED else running.wrong
        if not why and final is None:
            why = UNMEASURED if running.stopped else self._unmeasured(running)
        end = {"state": INFEASIBLE, "infeasibleReason": why} if why else {"state": SUCCEEDED, "finalMeasurement": final}
        trial = self._change(number, endTime=times.now(), **end)
        self.search.tell(number, trials.final_values(trial), pruned=running.stopped)
        tuning_page.write_events(self.study, trial, self._log_dir(trial))

    def _cut(self, number: int) -> None:
        """Record a trial that did not end by itself; for the search, which begins it again, it still runs."""
        self._change(number, saved=False, state=INFEASIBLE, infeasibleReason=CUT, endTime=times.now())

    def _unmeasured(self, running: _Running) -> str:
        wanted, got = ", ".join(metric.id for metric in self.study.metrics), ", ".join(sorted(running.tags))
        return f"it ended without a final measurement: the study wants {wanted}, the trial reported {got or 'nothing'}"

    def _log_dir(self, trial: Trial) -> Path:
        """Return the folder of a trial's event files, in which TensorBoard also finds the study."""
        folders = (trial["id"],) if self.study.job.output is None else (trial["id"], "logs")
        return Path(str(self.result.log_dir), *folders)

    def _change(self, number: int, saved: bool = True, **fields: Any) -> Trial:
        """Give a trial these fields and return it: in the search, if it is to be `saved` there, in the result, in what is shown."""
        before = self.trials.get(number, {})
        self.trials[number] = trial = {**before, **fields}
        if saved:
            self.search.save(number, trial)
        self.result.trials = [self.trials[number] for number in sorted(self.trials)]
        self.result.best = [trial["id"] for trial in measurements.best(self.study, self.result.trials)]
        self.result.write()
        if before.get("state") != trial["state"]:
            said = tuning_report.describe(self.study, trial, self.result.trials)
            self.report.change(said, in_table=trial["state"] != INFEASIBLE)  # a table has no room for the reason
        if self.on_trial:
            self.on_trial(trial)
        return trial

    # ------------------------------------------------------------------ the end

    def _end(self, state: str, error: str | None) -> None:
        for each in self.running.values() if state != jobs.SUCCEEDED else ():
            each.cancel.set()
        self._wait()
        for number, trial in self.trials.items():
            if trial["state"] in (ACTIVE, STOPPING):  # interrupted earlier, and not run again
                self._cut(number)
        self.result.state, self.result.error = state, error

    def _wait(self, quietly: bool = False) -> None:
        while self.running:
            with contextlib.suppress(Exception) if quietly else contextlib.nullcontext():
                self._pump()
            time.sleep(_TICK)

    def _write_report(self) -> None:
        by_id = {trial["id"]: trial for trial in self.result.trials}
        self.result.commands = {trial_id: trials.command(self.study, by_id[trial_id], self.paths) for trial_id in self.result.best}
        path = self.result.folder / "report.html"
        if problem := tuning_page.write_report(self.study, self.result, path):
            self.report.say(f"note: no report.html: {problem}")
        else:
            self.result.page = str(path)
