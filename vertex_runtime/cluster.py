"""What the workers of one run owe each other: to appear, to stay, to agree, and to leave together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time

from .environment import Environment
from .reporting import report_error

PROBE_SECONDS = 2.0
LOST_AFTER = 5  # probes without an answer


class Peers:
    """Watches the other workers of a cluster, from a process of its own: TensorFlow waits for them in C++ and lets no
    Python run meanwhile.

    A peer that does not appear, or that goes away, ends this replica by SIGABRT: the service takes that for a passing
    fault and starts the job again, where it would take an exit code for the user's mistake.
    """

    def __init__(self, env: Environment, startup_timeout: float):
        names = [f"chief-{i}" for i in range(len(env.cluster.get("chief", ())))]
        names += [f"worker-{i}" for i in range(len(env.cluster.get("worker", ())))]
        self.peers = {name: address for i, (name, address) in enumerate(zip(names, env.workers)) if i != env.worker_index}
        self.watched = env.role in ("chief", "worker") and env.worker_count > 1
        self.startup_timeout, self.trainer, self.watcher = startup_timeout, os.getpid(), 0

    def __enter__(self) -> Peers:
        """Start watching; must come before TensorFlow is imported, whose threads a fork would not take along."""
        if self.watched:
            self.watcher = os.fork()
            if not self.watcher:
                try:
                    self._watch()
                finally:
                    os._exit(0)
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if not self.watched:
            return
        os.kill(self.watcher, signal.SIGKILL)
        os.waitpid(self.watcher, 0)
        import tensorflow as tf

        if isinstance(error, tf.errors.OpError):
            # A collective fails when a peer goes away; wait until it is plain which.
            for _ in range(LOST_AFTER):
                if lost := self._unreachable():
                    self._abort(lost, f"disappeared ({type(error).__name__})")
                time.sleep(PROBE_SECONDS)
            self._abort([], f"a collective failed, though all peers answer: {str(error).splitlines()[0][:200]}")

    def _watch(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed trainer leaves no watcher behind
        started, waiting = time.monotonic(), set(self.peers)
        missed = dict.fromkeys(self.peers, 0)
        while os.getppid() == self.trainer:
            lost = self._unreachable()
            waiting &= set(lost)
            for name in self.peers:
                missed[name] = missed[name] + 1 if name in lost and name not in waiting else 0
            if waiting and time.monotonic() - started > self.startup_timeout:
                self._abort(sorted(waiting), f"did not appear within --startup_timeout {self.startup_timeout:g} s")
            if gone := [name for name, count in missed.items() if count >= LOST_AFTER]:
                self._abort(gone, "disappeared")
            time.sleep(PROBE_SECONDS)

    def _unreachable(self) -> list[str]:
        return [name for name, address in self.peers.items() if not _answers(address)]

    def _abort(self, names: list[str], what: str) -> None:
        who = ", ".join(f"{name} ({self.peers[name]})" for name in names)
        report_error(f"{who} {what}. Ending by SIGABRT, so that the job is started again.".strip())
        os.kill(self.trainer, signal.SIGABRT)
        time.sleep(10)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS):
        return True
    return False


def agree(strategy, value: int, env: Environment) -> int:
    """Return the chief's value on every worker; a collective, which every worker must join."""
    import tensorflow as tf

    if env.worker_count == 1:
        return value
    local = strategy.num_replicas_in_sync // env.worker_count
    mine = float(value if env.is_chief else 0)

    @tf.function(autograph=False)
    def total() -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(lambda: tf.constant(mine, tf.float64)), axis=None)

    return round(float(total()) / local)
