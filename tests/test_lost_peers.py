"""A peer that stops answering: told apart from a busy one, and named in the one line that says why a worker ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_multiworker import free_ports, replica

from vertex_runtime import cluster
from vertex_runtime.cluster import ANSWERS, GONE, HELLO, SILENT, Peers
from vertex_runtime.environment import Environment

SETTINGS = b"\0\0\0\4\0\0\0\0\0"
HEARTBEAT = """Graph execution error:

Detected at node while/adam_w/CollectiveReduceV2 defined at (most recent call last):
  File "/app/vertex_runtime/run.py", line 80, in train_and_export

Collective ops is aborted by: {}
The error could be from a previous operation. Restart your program to reset.
\t [[{{{{node while/adam_w/CollectiveReduceV2}}}}]] [Op:__inference__train_2630]"""
UNHEALTHY = """Error reported from /job:worker/task:0: The following tasks are unhealthy (stopped sending heartbeats):
/job:worker/replica:0/task:1
The tasks have crashed."""
RESTARTED = "/job:worker/replica:0/task:1 unexpectedly tried to connect with a different incarnation. It has likely restarted."
REPORTER = "Error reported from /job:worker/task:1: Socket closed"
NO_LEADER = "Deadline Exceeded\n\nRPC: /tensorflow.CoordinationService/Heartbeat"
REMOTE = "Additional GRPC error information from remote target /job:{}/replica:0/task:{} while calling /tensorflow.WorkerService/RecvBuf:"
DEVICE = "node placed on /job:worker/replica:0/task:1/device:CPU:0 failed"


@contextmanager
def server(serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """Listen on a port of this machine, hand every connection to `serve`, and give the address."""
    kept = []  # a connection that nobody holds is closed

    def accept() -> None:
        while True:
            try:
                kept.append(listening.accept()[0])
            except OSError:
                return
            serve(kept[-1])

    with socket.create_server(("localhost", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"localhost:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    for connection in kept:
        connection.close()


def silent(connection: socket.socket) -> None:
    """Do what the kernel does for a stopped process: nothing beyond accepting."""


def lively(connection: socket.socket) -> None:
    """Answer as a gRPC server does, and only a client that speaks HTTP/2."""
    if connection.recv(len(HELLO), socket.MSG_WAITALL) == HELLO:
        connection.sendall(SETTINGS)


def hanging_up(connection: socket.socket) -> None:
    connection.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PROBE_SECONDS", 0.2)


@pytest.mark.parametrize(("serve", "state"), [(silent, SILENT), (lively, ANSWERS), (hanging_up, GONE)])
def test_a_sign_of_life_comes_from_the_process(serve, state, quick):
    with server(serve) as address:
        assert cluster._state(address) == state


def test_a_port_where_nobody_listens(quick):
    assert cluster._state(f"localhost:{free_ports(1)[0]}") == GONE


def test_tensorflows_server_answers_at_once(quick):
    """With 0.2 s to do it in; over IPv6 too, where this machine has it."""
    import tensorflow as tf

    with socket.create_server(("localhost", 0)) as held:
        port = held.getsockname()[1]
    running = tf.distribute.Server({"worker": [f"localhost:{port}"]}, job_name="worker", task_index=0)
    assert running.target.startswith("grpc://")
    for _ in range(20):
        assert cluster._state(f"localhost:{port}") == ANSWERS
    if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6"):
        assert cluster._state(f"[::1]:{port}") == ANSWERS


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, quick: None) -> list[str]:
    """The lines that a worker ended with; it raises SystemExit here, where SIGABRT would end it."""
    lines: list[str] = []

    def abort(self: Peers, names: list[str], what: str) -> None:
        lines.append(" ".join([*(f"{name} ({self.peers[name]})" for name in names), what]))
        raise SystemExit

    monkeypatch.setattr(Peers, "_abort", abort)
    return lines


def peers(chief: str, *workers: str, index: int = 0) -> Peers:
    """Return what worker `index` has of its peers; -1 is the chief."""
    role = {"role": "worker", "index": index} if index >= 0 else {"role": "chief", "index": 0}
    return Peers(Environment(cluster={"chief": (chief,), "worker": workers}, **role), 300)


BLAMED = {
    "unhealthy": (UNHEALTHY, ["worker-1"]),
    "restarted": (RESTARTED, ["worker-1"]),
    "the reporter alone": (REPORTER, ["worker-1"]),
    "the remote side": ("Socket closed\n" + REMOTE.format("worker", 1), ["worker-1"]),
    "passed on by the chief": (UNHEALTHY + "\n" + REMOTE.format("chief", 0), ["worker-1"]),
    "the leader": (NO_LEADER, ["chief-0"]),
    "a device": (DEVICE, []),
    "itself": ("/job:worker/replica:0/task:0 is unhealthy", []),
    "nobody": ("Socket closed", []),
    "an unknown task": ("/job:worker/replica:0/task:7 is unhealthy", []),
    "two": ("unhealthy:\n/job:chief/replica:0/task:0\n/job:worker/replica:0/task:1", ["chief-0", "worker-1"]),
}


@pytest.mark.parametrize(("text", "names"), BLAMED.values(), ids=BLAMED)
def test_whom_tensorflow_blames(text, names):
    assert peers("a:1", "b:1", "c:1")._named(HEARTBEAT.format(text)) == names


def test_a_stopped_peer_is_named_after_one_probe(ended):
    with server(lively) as chief, server(silent) as stopped, pytest.raises(SystemExit):
        peers(chief, "me:1", stopped)._explain("UnavailableError", HEARTBEAT.format(UNHEALTHY))
    assert ended == [f"worker-1 ({stopped}) has disappeared (UnavailableError)"]


def test_silence_alone_takes_several_probes(ended, monkeypatch):
    probes: list[str] = []
    real = cluster._state
    monkeypatch.setattr(cluster, "_state", lambda address: probes.append(address) or real(address))
    with server(lively) as chief, server(silent) as stopped, pytest.raises(SystemExit):
        peers(chief, "me:1", stopped)._explain("UnavailableError", HEARTBEAT.format("Socket closed"))
    assert ended == [f"worker-1 ({stopped}) has disappeared (UnavailableError)"]
    assert probes.count(stopped) == cluster.LOST_AFTER


def test_a_peer_that_answers_again_is_named_with_tensorflows_reason(ended):
    with server(lively) as chief, server(lively) as again, pytest.raises(SystemExit):
        peers(chief, "me:1", again)._explain("UnavailableError", HEARTBEAT.format(UNHEALTHY))
    (line,) = ended
    assert line.startswith(f"worker-1 ({again}) dropped out, says TensorFlow") and "stopped sending heartbeats" in line
    assert "\n" not in line and "File" not in line and "Graph execution" not in line


def test_all_peers_answer_where_tensorflow_names_none(ended):
    with server(lively) as chief, server(lively) as other, pytest.raises(SystemExit):
        peers(chief, "me:1", other)._explain("InternalError", HEARTBEAT.format("Shape mismatch in the collective"))
    (line,) = ended
    assert line.startswith("a collective failed, though all peers answer: Collective ops is aborted by: Shape mismatch")


def test_the_watcher_gives_a_busy_peer_time(ended, monkeypatch):
    """One that misses all but the last probe of a row is not lost; one that misses them all is."""
    left = [ANSWERS] + [SILENT] * (cluster.LOST_AFTER - 1) + [ANSWERS] + [SILENT] * cluster.LOST_AFTER + [ANSWERS]
    monkeypatch.setattr(cluster, "_state", lambda address: left.pop(0))
    monkeypatch.setattr(cluster, "PROBE_SECONDS", 0)
    watching = peers("a:1", "me:1")
    watching.trainer = os.getppid()
    with pytest.raises(SystemExit):
        watching.watch()
    assert ended == ["chief-0 (a:1) has disappeared"] and left == [ANSWERS]


def wait_for_steps(*events: Path) -> None:
    for _ in range(900):
        if all(path.exists() and '"phase": "step"' in path.read_text() for path in events):
            return
        time.sleep(0.1)
    pytest.fail("the workers never took a step")


@pytest.mark.multiworker
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_peer_that_is_stopped_is_named(stopped, tmp_path):
    """SIGSTOP for five seconds is borne; after that, for good, it ends the other worker."""
    ports, events = free_ports(2), [tmp_path / f"events-{i}" for i in range(2)]
    flags = ["--epochs=100000", "--num_evals=1"]
    both = [replica(i, ports, tmp_path / "out", *flags, TRAINER_EVENTS=str(events[i])) for i in range(2)]
    other = both[1 - stopped]
    try:
        wait_for_steps(*events)
        both[stopped].send_signal(signal.SIGSTOP)
        time.sleep(5)
        both[stopped].send_signal(signal.SIGCONT)
        time.sleep(8)
        assert [process.poll() for process in both] == [None, None]
        both[stopped].send_signal(signal.SIGSTOP)
        _, err = other.communicate(timeout=90)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert other.returncode == -signal.SIGABRT, err[-2000:]
    said = [line for line in err.splitlines() if '"severity": "ERROR"' in line]
    assert len(said) == 1 and f"{['chief-0', 'worker-0'][stopped]} (localhost:{ports[stopped]}) has disappeared" in said[0], err[-2000:]
    assert "all peers answer" not in err
