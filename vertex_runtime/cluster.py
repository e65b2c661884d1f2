"""What the workers of one run owe each other: to appear, to stay, to agree, and to leave together."""

from __future__ import annotations

import math
import os
import re
import socket
import sys
import time

from .environment import Environment
from .watchdog import Watcher

PROBE_SECONDS = 2.0
LOST_AFTER = 5  # probes in a row without an answer: a peer may be merely busy
ANSWERS, SILENT, GONE = "answers", "silent", "gone"
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # HTTP/2's preface, and an empty SETTINGS frame
# A task in an error's text, but not as part of a device's name, which says where an operation ran.
TASK = re.compile(r"(Error reported from |remote target )?/job:(chief|worker)(?:/replica:\d+)?/task:(\d+)\b(?!/device)")
FRAME = re.compile(r'Graph execution error|Detected at node|File "|\[\[\{\{node')  # lines that say where, not why


class Peers(Watcher):
    """Watches the other workers of a cluster: one that does not appear, or that goes away, ends this replica."""

    def __init__(self, env: Environment, startup_timeout: float):
        super().__init__()
        names = [f"chief-{i}" for i in range(len(env.cluster.get("chief", ())))]
        names += [f"worker-{i}" for i in range(len(env.cluster.get("worker", ())))]
        self.leader = names[0] if names else ""
        self.peers = {name: address for i, (name, address) in enumerate(zip(names, env.workers)) if i != env.worker_index}
        self.watched = env.role in ("chief", "worker") and env.worker_count > 1
        self.patient = env.debugged is not None  # a replica that stands at a breakpoint is there, however long it is silent
        self.startup_timeout = math.inf if self.patient else startup_timeout

    def __enter__(self) -> Peers:
        if self.watched:
            self.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        self.stop()
        tf = sys.modules.get("tensorflow")  # there is none where its import failed
        if self.watched and tf is not None and isinstance(error, tf.errors.OpError):
            self._explain(type(error).__name__, str(error))

    def _explain(self, kind: str, text: str) -> None:
        """End after a failed collective: a peer has gone away or stopped; wait until it is plain which."""
        named = self._named(text)
        missed = dict.fromkeys(self.peers, 0)
        for _ in range(LOST_AFTER):
            states = {name: _state(address) for name, address in self.peers.items()}
            # A connection refused is proof. Silence is proof only where TensorFlow complains of that peer, too.
            if lost := [name for name, state in states.items() if state == GONE or (state == SILENT and name in named)]:
                self._abort(lost, f"has disappeared ({kind})")
            missed = {name: missed[name] + 1 if state == SILENT else 0 for name, state in states.items()}
            time.sleep(PROBE_SECONDS)
        if lost := [name for name, count in missed.items() if count == LOST_AFTER]:
            self._abort(lost, f"has disappeared ({kind})")
        if named:
            self._abort(named, f"dropped out, says TensorFlow, though all peers answer again: {_reason(text)}")
        self._abort([], f"a collective failed, though all peers answer: {_reason(text)}")

    def _named(self, text: str) -> list[str]:
        """Return the peers that the whole text of TensorFlow's error blames."""
        found = [(bool(reporter), f"{job}-{task}") for reporter, job, task in TASK.findall(text)]
        # Who reports an error, or passes it on, is to blame only where the report names nobody else.
        named = [name for reporter, name in found if not reporter] or [name for _, name in found]
        if not named and "/tensorflow.CoordinationService/" in text:
            named = [self.leader]  # a call to the service failed, which the first worker runs
        return [name for name in self.peers if name in named]

    def watch(self) -> None:
        """See that all peers appear, and stay."""
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
                self._abort(gone, "has disappeared")
            time.sleep(PROBE_SECONDS)

    def _unreachable(self) -> list[str]:
        there = (ANSWERS, SILENT) if self.patient else (ANSWERS,)
        return [name for name, address in self.peers.items() if _state(address) not in there]

    def _abort(self, names: list[str], what: str) -> None:
        who = ", ".join(f"{name} ({self.peers[name]})" for name in names)
        self.abort(f"{who} {what}".strip())


def _state(address: str) -> str:
    """Ask a peer's gRPC server for a sign of life: ANSWERS, SILENT (nothing came in PROBE_SECONDS) or GONE.

    The kernel accepts connections for a process that is stopped or hangs. The server's HTTP/2 settings come from the
    process itself, from a thread that neither Python nor a running step holds up. Any byte will do: a proxy may answer.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS) as connection:
            connection.sendall(HELLO)
            return ANSWERS if connection.recv(1) else GONE
    except TimeoutError:
        return SILENT
    except OSError:
        return GONE


def _reason(text: str) -> str:
    """Return what TensorFlow's error says beside the places in the program, on one line."""
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not FRAME.match(line))[:300] or "no reason given"


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
