"""What the workers of one run owe each other: to appear, to stay, to agree, and to leave together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time

from .environment import Environment
from .reporting import report_error

PROBE_SECONDS = 2.0
LOST_AFTER = 5  # probes without an answer


class Peers:
    """Watches the other workers of a cluster from a thread of its own, while TensorFlow waits for them in C++.

    A peer that does not appear, or that goes away, ends this process by SIGABRT: the service takes that for a passing
    fault and starts the job again, where it would take an exit code for the user's mistake.
    """

    def __init__(self, env: Environment, startup_timeout: float):
        own = env.worker_index
        names = [f"chief-{i}" for i in range(len(env.cluster.get("chief", ())))]
        names += [f"worker-{i}" for i in range(len(env.cluster.get("worker", ())))]
        self.peers = {name: address for i, (name, address) in enumerate(zip(names, env.workers)) if i != own}
        self.watched = env.role in ("chief", "worker") and env.worker_count > 1
        self.startup_timeout, self.over = startup_timeout, threading.Event()

    def __enter__(self) -> Peers:
        if self.watched:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        import tensorflow as tf

        if self.watched and isinstance(error, tf.errors.OpError):
            # A collective failed. It does so when a peer goes away; wait until it is plain which.
            for _ in range(int(LOST_AFTER)):
                if lost := self._unreachable():
                    self._abort(lost, f"disappeared ({type(error).__name__})")
                time.sleep(PROBE_SECONDS)
            self._abort([], f"a collective failed, though all peers answer: {str(error).splitlines()[0][:200]}")
        self.over.set()

    def _watch(self) -> None:
        started, missed = time.monotonic(), dict.fromkeys(self.peers, 0)
        waiting = set(self.peers)
        while not self.over.wait(PROBE_SECONDS):
            lost = self._unreachable()
            waiting -= set(self.peers) - set(lost)
            for name in self.peers:
                missed[name] = missed[name] + 1 if name in lost and name not in waiting else 0
            if waiting and time.monotonic() - started > self.startup_timeout:
                self._abort(sorted(waiting), f"did not appear within --startup_timeout {self.startup_timeout:g} s")
            if gone := [name for name, count in missed.items() if count >= LOST_AFTER]:
                self._abort(gone, "disappeared")

    def _unreachable(self) -> list[str]:
        return [name for name, address in self.peers.items() if not _answers(address)]

    def _abort(self, names: list[str], what: str) -> None:
        if self.over.is_set():
            return
        who = ", ".join(f"{name} ({self.peers[name]})" for name in names)
        report_error(f"{who} {what}. Ending by SIGABRT, so that the job is started again.".strip())
        signal.signal(signal.SIGABRT, signal.SIG_DFL) if threading.current_thread() is threading.main_thread() else None
        os.kill(os.getpid(), signal.SIGABRT)
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
