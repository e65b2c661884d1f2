"""What many connections, slow ones and large bodies cost the service: no thread, little memory, and nobody is kept out."""

from __future__ import annotations

import http.client
import resource
import shutil
import socket
import threading
from functools import partial

import pytest
from test_local_support import wait_for

from vertex_local.serve import connections, server
from vertex_local.serve.rest import Answer, Request
from vertex_local.serve.server import Server, route

MIB = 1 << 20


def counted(request: Request) -> dict:
    """Read an upload in pieces and return how many bytes it had, and the longest piece."""
    sizes = []
    while piece := request.stream.read(MIB):
        sizes.append(len(piece))
    return {"bytes": sum(sizes), "piece": max(sizes, default=0)}


@pytest.fixture
def started(monkeypatch):
    """Start a server in this process with limits of its own."""
    running = []

    def start(routes=(), lines: list | None = None, **limits) -> Server:
        for name, value in limits.items():
            monkeypatch.setattr(connections if hasattr(connections, name) else server, name, value)
        small = route("GET", "/small", lambda request: {"ok": True})
        upload = route("POST", "/upload/storage/v1/b/x", counted)
        made = Server(0, [small, upload, *routes], None, [].append if lines is None else lines.append)
        running.append(made)
        made.start()
        return made

    yield start
    for each in running:
        each.stop()


def connect(own: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", own.port), timeout=30)


def ask(own: Server, method: str = "GET", path: str = "/small", body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", own.port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_an_answer_does_not_wait_for_the_clients_acknowledgement(started, monkeypatch):
    """An answer is written as head and body, and the second would wait for the acknowledgement of the first: 40 ms."""
    sockets = []
    made = connections.Protocol.connection_made

    def noted(self, transport):
        sockets.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(connections.Protocol, "connection_made", noted)
    assert ask(started())[0] == 200 and sockets == [1]


def test_slow_heads_cost_no_thread_and_are_dropped(started):
    own = started(HEAD_SECONDS=1.0)
    before = threading.active_count()
    slow = [connect(own) for _ in range(300)]
    for each in slow:
        each.sendall(b"GET /small HTTP/1.1\r\nX: ")
    assert ask(own)[0] == 200 and threading.active_count() <= before + 2
    stop = threading.Event()

    def trickle() -> None:  # a byte now and then does not help: the limit is one of the whole head
        while not stop.wait(0.1):
            try:
                slow[0].sendall(b"y")
            except OSError:
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        assert all(closed(each) for each in slow)
    finally:
        stop.set()
        thread.join()


def closed(connection: socket.socket) -> bool:
    """Wait until the other side has closed."""
    try:
        while connection.recv(65536):
            pass
        return True
    except ConnectionResetError:
        return True
    finally:
        connection.close()


def test_a_slow_second_head_is_dropped_too(started):
    own = started(HEAD_SECONDS=0.5)
    with connect(own) as connection:
        connection.sendall(f"GET /small HTTP/1.1\r\nHost: 127.0.0.1:{own.port}\r\n\r\n".encode())
        assert b" 200 " in connection.recv(65536)
        connection.sendall(b"GET /sm")
        assert closed(connection)


def test_a_slow_body_gets_an_answer_and_the_thread_back(started):
    own = started(SECONDS=0.5, UPLOADS=1)
    head = f"POST %s HTTP/1.1\r\nHost: 127.0.0.1:{own.port}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\nx"
    for path in ("/small", "/upload/storage/v1/b/x"):
        with connect(own) as connection:
            connection.sendall((head % path).encode())
            first = connection.recv(65536)
            assert first.startswith(b"HTTP/1.1 501" if path == "/small" else b"HTTP/1.1 408"), first
    assert ask(own, "POST", "/upload/storage/v1/b/x", b"x" * 10)[0] == 200


def test_too_many_connections_push_out_the_one_that_waits_longest(started):
    own = started(MOST_CONNECTIONS=20)
    idle = [connect(own) for _ in range(100)]
    assert [ask(own)[0] for _ in range(5)] == [200] * 5
    assert closed(idle[0])
    for each in idle:
        each.close()


def test_too_many_requests_get_503_and_a_remedy(started):
    go, begun = threading.Event(), threading.Semaphore(0)

    def wait(request: Request) -> dict:
        begun.release()
        go.wait(60)
        return {}

    own = started([route("GET", "/wait", wait)], MOST_REQUESTS=3)
    waiting = [threading.Thread(target=partial(ask, own, path="/wait")) for _ in range(3)]
    for each in waiting:
        each.start()
    for _ in waiting:
        assert begun.acquire(timeout=30)
    code, text = ask(own)
    assert code == 503 and b"3 requests are under way already" in text
    go.set()
    for each in waiting:
        each.join()
    assert ask(own)[0] == 200


def test_handlers_run_in_a_bounded_number_of_threads(started):
    own = started([route("GET", "/thread", lambda request: {"name": threading.current_thread().name})], CALLS=2)
    clients = [threading.Thread(target=ask, args=(own, "GET", "/thread")) for _ in range(40)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert len([each for each in threading.enumerate() if each.name.startswith("handler")]) <= 2 * 2  # of earlier servers, too


def test_an_upload_is_read_in_pieces_and_memory_stays(started):
    own = started()
    size = 256 * MIB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connection = http.client.HTTPConnection("127.0.0.1", own.port, timeout=120)
    connection.request("POST", "/upload/storage/v1/b/x", (b"x" * MIB for _ in range(256)), {"Content-Length": str(size)})
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read() == b'{"bytes": %d, "piece": %d}\n' % (size, MIB)
    connection.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "KiB more"


def test_a_file_is_sent_in_pieces_and_one_that_shrinks_breaks_the_connection(started, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 100_000)
    own = started([
        route("GET", "/file", lambda request: Answer(206, b"", {}, path, (10, 900_000))),
        route("GET", "/short", lambda request: Answer(200, b"", {}, path, (0, 2_000_000))),
    ])  # fmt: skip
    code, data = ask(own, path="/file")
    assert code == 206 and data == path.read_bytes()[10:900_000]
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask(own, path="/short")
    assert ask(own)[0] == 200


def test_a_client_that_does_not_read_is_dropped(started, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * MIB))
    lines: list[str] = []
    part = (0, 64 * MIB)
    own = started([route("GET", "/file", lambda request: Answer(200, b"", {}, path, part))], lines, SECONDS=0.2, BYTES_PER_SECOND=1 << 40)
    with connect(own) as connection:
        connection.sendall(f"GET /file HTTP/1.1\r\nHost: 127.0.0.1:{own.port}\r\n\r\n".encode())
        wait_for(lambda: not own._app._under_way and lines)
        got = 0
        try:
            while piece := connection.recv(MIB):
                got += len(piece)
        except ConnectionResetError:
            pass
        assert got < 64 * MIB


def test_the_end_waits_for_no_client(started):
    left = threading.Event()

    def take(request: Request) -> dict:
        try:
            return counted(request)
        finally:
            left.set()

    own = started([route("PUT", "/upload/storage/v1/b/x", take)])
    with connect(own) as upload, connect(own):
        head = f"PUT /upload/storage/v1/b/x HTTP/1.1\r\nHost: 127.0.0.1:{own.port}\r\nContent-Length: 100000000\r\n\r\nx"
        upload.sendall(head.encode())
        wait_for(lambda: own._app._under_way)
        own.stop()
        assert left.wait(120), "its thread is free again, long before the body's time is over"


def test_every_file_that_may_be_opened_may_be_opened():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
        assert connections.raise_file_limit() == min(hard, 65_536) or hard == resource.RLIM_INFINITY
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_access_log_is_rotated(tmp_path, monkeypatch):
    from vertex_local.serve import command

    monkeypatch.setattr(command, "LOG_BYTES", 10_000)
    with command._access_log(tmp_path) as note:
        for i in range(1000):
            note(f"GET /{i} \x1b[31m" + "y" * 5000)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["access.log", "access.log.1"] and all(path.stat().st_size <= 10_000 for path in tmp_path.iterdir())
    assert all(line.isprintable() for path in tmp_path.iterdir() for line in path.read_text().splitlines())


def test_a_log_that_cannot_be_written_leaves_the_terminal_alone(tmp_path, monkeypatch, capfd):
    from vertex_local.serve import command

    monkeypatch.setattr(command, "LOG_BYTES", 100)
    (tmp_path / "own").mkdir()
    with command._access_log(tmp_path / "own") as note:
        note("GET /")
        shutil.rmtree(tmp_path / "own")  # as a full disk: the next file cannot be begun
        note("GET /" + "x" * 100)
    assert capfd.readouterr() == ("", "")
