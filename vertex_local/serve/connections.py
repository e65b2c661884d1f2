"""Limits that uvicorn lacks: how many connections there may be, and how long a client may take for a request's head.

A client that only connects, or sends a byte now and then, uses no thread and is dropped after HEAD_SECONDS. When there are
too many connections, the oldest one without a request under way is closed.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import json
import resource
import socket
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from .rest import ApiError

MOST_CONNECTIONS = 2048
HEAD_SECONDS = 20.0  # for the handshake, and again for each request's whole head
IDLE_SECONDS = 75  # between two requests
_TLS_BUFFER = 1 << 15  # bytes held for each connection instead of asyncio's 256 KiB: a TLS record has at most 16 KiB
_FILES_WANTED = 65_536  # a higher limit slows down programs that close every possible descriptor


def raise_file_limit() -> int:
    """Raise this process's limit of open files as far as it may, and return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than the one it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Listener(socket.socket):
    """A listening socket with a limit of open connections.

    Raises:
        OSError: the port cannot be used.
    """

    def __init__(self, address: str, port: int):
        # With its protocol's number, because asyncio sets TCP_NODELAY only then: answers would wait 40 ms for the client's
        # delayed acknowledgement.
        super().__init__(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._most = min(MOST_CONNECTIONS, raise_file_limit() // 2)
        self._open: dict[Any, socket.socket] = {}  # by the client's address, the oldest first
        self._busy: set[Any] = set()  # those with a request under way
        try:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind((address, port))
            self.listen(1024)
        except OSError:
            self.close()
            raise

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, for asyncio; close another one first if there are too many."""
        connection, address = super().accept()
        if len(self._open) >= self._most and not self._make_room():
            connection.close()
            raise ConnectionAbortedError("too many connections with a request under way")
        self._open[address] = connection
        return connection, address

    def _make_room(self) -> bool:
        self._open = {address: each for address, each in self._open.items() if each.fileno() >= 0}
        if len(self._open) < self._most:
            return True
        oldest = next((address for address in self._open if address not in self._busy), None)
        if oldest is None:
            return False
        with contextlib.suppress(OSError):
            self._open.pop(oldest).shutdown(socket.SHUT_RDWR)
        return True

    def set_busy(self, address: Any, busy: bool) -> None:
        """Note whether a request is under way on the connection from that address."""
        (self._busy.add if busy else self._busy.discard)(address)

    def forget(self, address: Any) -> None:
        """Note that the connection from that address has ended."""
        self._busy.discard(address)
        self._open.pop(address, None)


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, with a time limit for each request's head and errors in the API's form.

    h11 reads at most 64 KiB of a head and refuses ambiguous requests.
    """

    def __init__(self, listener: Listener, **kwargs: Any):
        super().__init__(**kwargs)
        self._listener, self._address = listener, None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._address = transport.get_extra_info("peername")
        self.app_state = {"abort": transport.abort}  # the application finds this in its scope
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        self._listener.forget(self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; run the timer while a request's head is incomplete."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
            self._listener.set_busy(self._address, True)
        elif self._head_timer is None and not self.transport.is_closing():
            self._start_timer()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._listener.set_busy(self._address, False)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that h11 refuses, and close the connection."""
        error = sys.exc_info()[1]
        code = getattr(error, "error_status_hint", 400)
        body = json.dumps(ApiError("INVALID_ARGUMENT", str(error or msg)[:200], code=code).body()).encode() + b"\n"
        headers = [(b"content-type", b"application/json; charset=UTF-8"), (b"x-content-type-options", b"nosniff")]
        headers += [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is under way already
            for event in (
                h11.Response(status_code=code, headers=headers, reason=STATUS_PHRASES[code]), h11.Data(data=body), h11.EndOfMessage(),
            ):  # fmt: skip
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose servers have small TLS buffers and time limits for a connection's TLS handshake and shutdown."""

    def create_server(self, *args: Any, **kwargs: Any) -> Any:
        """Begin to listen as asyncio does."""
        if kwargs.get("ssl"):
            asyncio.sslproto.SSLProtocol.max_size = _TLS_BUFFER  # type: ignore[attr-defined]
            kwargs["ssl_handshake_timeout"] = HEAD_SECONDS
            if sys.version_info >= (3, 11):
                kwargs["ssl_shutdown_timeout"] = 5.0
        return super().create_server(*args, **kwargs)
