"""Connections that nobody can use up: how many there may be, how long a client may take for a request's head.

uvicorn reads requests and knows neither limit. A client that only connects, or sends a byte now and then, costs no thread
and is dropped after HEAD_SECONDS; when there are too many, the one that has waited for its request longest makes room.
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
HEAD_SECONDS = 20.0  # for the handshake, then for all of a request's head
IDLE_SECONDS = 75  # between two requests
_TLS_BUFFER = 1 << 15  # bytes held for each connection, where asyncio takes 256 KiB: a record of TLS has at most 16 KiB
_FILES_WANTED = 65_536  # more would slow down programs that close every file they may have


def raise_file_limit() -> int:
    """Let this process open as many files as it may, and return how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has a limit of its own below the one it tells
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Listener(socket.socket):
    """A listening socket of loopback that has at most `most` connections open.

    Raises:
        OSError: the port cannot be used.
    """

    def __init__(self, address: str, port: int, most: int = MOST_CONNECTIONS):
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.most = most
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
        """Accept a connection as asyncio asks for it."""
        connection, address = super().accept()
        if len(self._open) >= self.most and not self._make_room():
            connection.close()
            raise ConnectionAbortedError("too many connections with a request under way")
        self._open[address] = connection
        return connection, address

    def _make_room(self) -> bool:
        self._open = {address: each for address, each in self._open.items() if each.fileno() >= 0}
        if len(self._open) < self.most:
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
    """uvicorn's HTTP/1.1, with a limit of time for each request's head and errors in the API's form.

    h11 reads at most 64 KiB of head and refuses what could be read in two ways.
    """

    def __init__(self, listener: Listener, **kwargs: Any):
        super().__init__(**kwargs)
        self._listener, self._address = listener, None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._address = transport.get_extra_info("peername")
        self.app_state = {"abort": transport.abort}  # which the application finds in its scope
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        self._listener.forget(self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; a request's head that is not complete yet has to be so in time."""
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
        """Answer what h11 refuses, and close."""
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
    """An event loop whose servers hold little for each TLS connection and wait for no client's part of its begin and end for long."""

    def create_server(self, *args: Any, **kwargs: Any) -> Any:
        """Begin to listen as asyncio does."""
        if kwargs.get("ssl"):
            asyncio.sslproto.SSLProtocol.max_size = _TLS_BUFFER  # type: ignore[attr-defined]
            kwargs["ssl_handshake_timeout"] = HEAD_SECONDS
            if sys.version_info >= (3, 11):
                kwargs["ssl_shutdown_timeout"] = 5.0
        return super().create_server(*args, **kwargs)
