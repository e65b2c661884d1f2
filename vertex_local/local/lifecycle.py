"""The replicas of one running job, and what happens when one ends: the service's rules, applied and named."""

from __future__ import annotations

import math
import selectors
import signal
import threading
import time
from collections.abc import Callable, Sequence

from ..job.job_file import JobFile
from . import jobs, restarts
from .process import Replica
from .report import Quiet

KILL_AFTER = 6.0  # seconds between SIGTERM and SIGKILL: our trainers take at most 5 to save a checkpoint
RESTART_AFTER = 2.0  # the same for the peers of a lost replica, who mostly wait for it and can save nothing
SETTLE = 0.3  # seconds to wait for further failures before deciding: replicas that fail together are one incident
_TICK = 0.1


class Cluster:
    """One job from its start to its end; all of it happens in the thread that calls `run`."""

    def __init__(self, job: JobFile, replicas: list[Replica], result: jobs.Result, report: Quiet, cancel: threading.Event, grace: float):
        self.job, self.replicas, self.result = job, replicas, result
        self.report, self.cancel, self.grace = report, cancel, grace
        self.selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Start everything and see it to the end; nothing is left running, whatever happens."""
        try:
            self._start(self.replicas)
            patience = math.inf if any(replica.debugged for replica in self.replicas) else self.job.timeout
            self._watch(self.replicas[0], time.time() + patience)
        finally:
            for replica in self.replicas:
                replica.abandon()
            self.selector.close()
            self._record()
            self.report.close(self.replicas)

    def _watch(self, chief: Replica, deadline: float) -> None:
        while self.result.state == jobs.RUNNING:
            self._pump(_TICK)
            self._kill_by_clock()
            if jobs.stop_asked(self.result.folder):
                self.cancel.set()
            if self._failed() and not chief.succeeded:
                self._pump_until(time.time() + SETTLE)
            if self.cancel.is_set():
                self._end(jobs.CANCELLED, "the job was cancelled")
            elif chief.succeeded:
                self._succeed()
            elif time.time() > deadline:
                self._rule(f"scheduling.timeout of {self.job.timeout:g} s is over: the job fails")
                self._end(jobs.FAILED, f"the job ran longer than scheduling.timeout, {self.job.timeout:g} s")
            elif self._failed():
                self._handle(self._failed())

    def _succeed(self) -> None:
        """End a job whose chief has succeeded: stop parameter servers, which never end by themselves, and let the others finish."""
        self._stop([r for r in self.replicas if r.member.role == "ps"])
        self._pump_until(math.inf, lambda: self.cancel.is_set() or not any(r.debugged for r in self._running()))
        self._pump_until(time.time() + self.grace, lambda: self.cancel.is_set() or not self._running())
        if self._running():
            names = ", ".join(r.name for r in self._running())
            self._rule(f"the chief is done and the grace of {self.grace:g} s is over: {names} shut down")
        self._end(jobs.SUCCEEDED, None)

    def _handle(self, failed: list[Replica]) -> None:
        """Apply the service's rules to the replicas that have just failed, given in the order in which they failed."""
        verdicts = {r.name: self._verdict(r) for r in failed}
        order = (restarts.FAIL, restarts.RETRY_JOB, restarts.RESTART_ALL, restarts.RESTART)
        worst = min(failed, key=lambda r: order.index(verdicts[r.name][0]))
        action, headline = verdicts[worst.name][0], _headline(failed[0])
        again = failed if action == restarts.RESTART else [worst]
        self.report.say(headline)
        for replica in again:
            replica.restarts_in_try += 1
            self._rule(f"{replica.name}: {verdicts[replica.name][1]}")
        if action == restarts.FAIL:
            self._end(jobs.FAILED, headline)
        elif action == restarts.RESTART:
            self._start(again)
        else:
            self._restart_all(action == restarts.RETRY_JOB)

    def _verdict(self, replica: Replica) -> tuple[str, str]:
        together, disabled = self.job.restart_together, self.job.disable_retries
        last = replica.attempts[-1]
        return restarts.decide(
            last.code, replica.restarts_in_try, self.result.retries, together=together, disabled=disabled, out_of_memory=last.out_of_memory
        )

    def _restart_all(self, is_retry: bool) -> None:
        self._stop(self.replicas, RESTART_AFTER)
        if self.replicas[0].succeeded or self.cancel.is_set():
            return  # the chief had succeeded before it was told to stop, or the job was cancelled
        if is_retry:
            self.result.retries += 1
            for replica in self.replicas:
                replica.restarts_in_try = 0
        self._start(self.replicas)

    def _end(self, state: str, error: str | None) -> None:
        self._stop(self.replicas)
        self.result.state, self.result.error = state, error

    def _start(self, replicas: Sequence[Replica]) -> None:
        for replica in replicas:
            replica.start(self.selector)
            for note in replica.plan.notes if len(replica.attempts) == 1 else replica.plan.notes[:1]:
                self.report.say(note)
        self._note()
        self.result.write()  # so that others can see the job's progress

    def _stop(self, replicas: Sequence[Replica], kill_after: float = KILL_AFTER) -> None:
        """Send SIGTERM, and after `kill_after` seconds SIGKILL to the replicas that still run."""
        for number, patience in ((signal.SIGTERM, kill_after), (signal.SIGKILL, 60.0)):
            running = [r for r in replicas if r.running]
            for replica in running:
                replica.stop(number)
            self._pump_until(time.time() + patience, lambda: not any(r.running for r in running))

    def _running(self) -> list[Replica]:
        return [r for r in self.replicas if r.running]

    def _failed(self) -> list[Replica]:
        return sorted((r for r in self.replicas if not r.running and not r.succeeded), key=lambda r: r.attempts[-1].end)

    def _pump_until(self, deadline: float, done: Callable[[], bool] = lambda: False) -> None:
        while time.time() < deadline and not done():
            self._pump(min(_TICK, max(0.0, deadline - time.time())))

    def _pump(self, patience: float) -> None:
        """Wait up to `patience` seconds for output of the replicas, and report it."""
        if self.selector.get_map():
            for key, _ in self.selector.select(patience):
                replica, kind = key.data
                for text in replica.read(self.selector, kind):
                    self.report.line(replica.name, text)
        else:
            time.sleep(min(patience, 0.01))
        self.report.update(self.replicas)

    def _kill_by_clock(self) -> None:
        for replica in self._running():
            kill, first = replica.kill, replica.attempts[0]
            due = kill and kill.place == "seconds" and time.time() - first.start >= kill.at
            if due and len(replica.attempts) == 1 and not replica.kill_sent:
                replica.kill_sent = True
                replica.signal(kill.signal)

    def _rule(self, text: str) -> None:
        self.result.rules.append(text)
        self.report.say(f"rule: {text}")

    def _note(self) -> None:
        for replica in self.replicas:
            self.result.replicas[replica.name] = {
                "role": replica.member.role,
                "index": replica.member.index,
                "command": list(replica.plan.argv),
                "log": str(replica.log),
                "attempts": [vars(attempt) for attempt in replica.attempts],
            }

    def _record(self) -> None:
        self._note()
        for replica in self.replicas:
            if replica.kill:
                codes = (-replica.kill.signal, 128 + replica.kill.signal)
                hit = any(not attempt.stopped and attempt.code in codes for attempt in replica.attempts[:1])
                self.result.kills[str(replica.kill)] = hit
                if not hit:
                    self.report.say(f"warning: --kill {replica.kill} did not happen: its place was not reached.")


def _headline(replica: Replica) -> str:
    code = restarts.describe(replica.attempts[-1].code)
    return f"{replica.name} ({replica.member.role} {replica.member.index}) failed first: {code}: {replica.last_error()}"
