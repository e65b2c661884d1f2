"""The local service's HTTP side: one port for plain HTTP and TLS, and the guards that every request has to pass.

Whoever may post here runs commands as its owner. A web page in a browser must not: hence no foreign Host, no request with
an Origin, no body but JSON (but for uploads, which run nothing), a token, and never a CORS header.
"""

from __future__ import annotations

import contextlib
import hmac
import http.server
import json
import os
import re
import socket
import ssl
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from .records import Taken
from .rest import Answer, ApiError, Request

ADDRESS = "127.0.0.1"
PATIENCE = 60.0  # seconds without a byte, after which a connection is given up
LARGEST_BODY = 10 << 20  # bytes of JSON
LARGEST_UPLOAD = 5 << 30  # bytes of one request to an upload path, which goes to disk
UPLOADS = re.compile("/(?:resumable/)?upload/storage/v1/")
_JSON = re.compile(r"application/json\s*(;.*)?", re.IGNORECASE)
_TLS_HANDSHAKE = b"\x16"

Route = tuple[str, "re.Pattern[str]", Callable[..., Any]]


def route(method: str, pattern: str, handler: Callable[..., Any]) -> Route:
    """Return a route; in `pattern`, `{x}` takes one part of a path, `{x*}` any number."""
    regex = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/:]+)", re.sub(r"\\\{(\w+)\\\*\\\}", r"(?P<\1>.+)", re.escape(pattern)))
    return method, re.compile(regex), handler


class Server(http.server.ThreadingHTTPServer):
    """Listens on loopback only; `token` None lets everybody on this machine in, `tls` None takes plain HTTP only."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    closing = False  # set at the end: connections that are still open are refused then

    def __init__(self, port: int, routes: Sequence[Route], token: str | None, tls: ssl.SSLContext | None, log: Callable[[str], None]):
        self.routes, self.token, self.tls, self.log = routes, token, tls, log
        super().__init__((ADDRESS, port), _Handler)

    @property
    def port(self) -> int:
        return self.server_address[1]

    def server_bind(self) -> None:
        """Bind without looking up this machine's name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def finish_request(self, request: socket.socket, client_address: Any) -> None:
        """Serve one connection in its own thread; its first byte tells TLS from plain HTTP."""
        request.settimeout(PATIENCE)
        if self.tls is None or request.recv(1, socket.MSG_PEEK) != _TLS_HANDSHAKE:
            return super().finish_request(request, client_address)
        with self.tls.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is nobody's fault; anything else is named in the log."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self.log(f"connection failed: {type(error).__name__}: {error}")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vertex_local", ""
    timeout = PATIENCE
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        self.server.log(f"{self.command} {self.path} {format % args}" if self.command else format % args)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        self.log_message("%s", code)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses (a broken request line, an unknown method) gets the API's error form, too."""
        self.close_connection = True
        self._send(Answer(code, ApiError("INVALID_ARGUMENT", message or "bad request", code=code).body()))

    def _serve(self) -> None:
        body, length = None, 0
        try:
            if self.server.closing:
                raise ApiError("UNAVAILABLE", "the local service is being stopped.")
            length = self._length()
            self._admit(length)
            body = _Body(self.rfile, length)
            answer = self._answer(body)
        except ApiError as error:
            answer = Answer(error.code, error.body())
        except Taken as error:
            answer = Answer(409, ApiError("ALREADY_EXISTS", f"{error} exists already.").body())
        except (ConnectionError, TimeoutError, ssl.SSLError):
            self.close_connection = True
            return
        except Exception as error:  # a fault of ours must reach the client as an answer, not as a broken connection
            self.server.log(f"internal error at {self.command} {self.path}: {type(error).__name__}: {error}")
            answer = Answer(500, ApiError("INTERNAL", f"{type(error).__name__}: {error}").body())
        unread = length if body is None else body.left
        if body is None or unread:
            self.close_connection = True  # what is unread would be taken for the next request
        self._send(answer)
        if 0 < unread <= LARGEST_BODY:
            self._drop(unread)

    def _drop(self, size: int) -> None:
        """Read what a refused client still sends: closing at once would break its connection before it sees the answer."""
        with contextlib.suppress(OSError):
            self.connection.settimeout(1.0)
            while size and (data := self.rfile.read1(min(size, 1 << 16))):
                size -= len(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the base class looks for these names

    def _length(self) -> int:
        """Return the body's length, which must be said once and plainly."""
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get_all("Transfer-Encoding"):
            raise ApiError("INVALID_ARGUMENT", "Transfer-Encoding is not taken; send Content-Length.", code=411)
        if len(lengths) > 1 or (lengths and not re.fullmatch(r"[0-9]{1,18}", lengths[0])):
            raise ApiError("INVALID_ARGUMENT", f"Content-Length takes one number; got {', '.join(lengths)!r}.")
        return int(lengths[0]) if lengths else 0

    def _admit(self, length: int) -> None:
        """Refuse whatever a web page, or another user of this machine, could send."""
        hosts = self.headers.get_all("Host", [])
        own = [f"{name}:{self.server.port}" for name in ("localhost", ADDRESS)]
        if len(hosts) != 1 or hosts[0].lower() not in own:
            raise ApiError("PERMISSION_DENIED", f"Host must be {' or '.join(own)}; got {', '.join(hosts) or 'none'!r}.")
        for name in self.headers:
            if name.lower() == "origin" or name.lower().startswith("sec-fetch-"):
                raise ApiError("PERMISSION_DENIED", f"a request with {name} comes from a web page; none is answered.")
        upload = UPLOADS.match(self.path) is not None
        kinds = self.headers.get_all("Content-Type", [])
        if (kinds or length) and not upload and (len(kinds) != 1 or not _JSON.fullmatch(kinds[0])):
            text = f"Content-Type must be application/json; got {', '.join(kinds) or 'none'!r}."
            raise ApiError("INVALID_ARGUMENT", text, code=415)
        most = LARGEST_UPLOAD if upload else LARGEST_BODY
        if length > most:
            raise ApiError("INVALID_ARGUMENT", f"a body may have {most:,} bytes here; got {length:,}.", code=413)
        given = self.headers.get_all("Authorization", [])
        wanted = self.server.token
        if wanted is not None and not (len(given) == 1 and hmac.compare_digest(given[0].encode(), f"Bearer {wanted}".encode())):
            raise ApiError("UNAUTHENTICATED", "send 'Authorization: Bearer TOKEN' with the token of this start of the service.")

    def _answer(self, body: _Body) -> Answer:
        path, _, query = self.path.partition("?")
        path = urllib.parse.unquote(path) if not UPLOADS.match(path) and "/storage/v1/" not in path else path
        matches = [(method, regex.fullmatch(path), handler) for method, regex, handler in self.server.routes]
        matches = [(method, match, handler) for method, match, handler in matches if match]
        for method, match, handler in matches:
            if method == self.command:
                values = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
                scheme = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
                base = f"{scheme}://{self.headers['Host']}"
                version = "v1beta1" if path.startswith("/v1beta1/") else "v1"
                request = Request(self.command, path, values, self.headers, body.left, body, base, version)
                answer = handler(request, **match.groupdict())
                return answer if isinstance(answer, Answer) else Answer(content=answer)
        if matches:
            raise ApiError("UNIMPLEMENTED", f"{self.command} is not supported at {path} by the local service.")
        known = path.startswith(("/v1/projects/", "/v1beta1/projects/"))
        raise ApiError("UNIMPLEMENTED" if known else "NOT_FOUND", f"{path} is not supported by the local service.")

    def _send(self, answer: Answer) -> None:
        data = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode() + b"\n"
        empty = answer.code in (204, 308)
        size = answer.part[1] - answer.part[0] if answer.file else 0 if empty else len(data)
        headers = {"Content-Type": "application/json; charset=UTF-8", "X-Content-Type-Options": "nosniff", **answer.headers}
        if answer.code == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.close_connection:
            headers["Connection"] = "close"
        with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError):
            self.send_response(answer.code, "Resume Incomplete" if answer.code == 308 else None)
            for name, value in {**headers, "Content-Length": str(size)}.items():
                self.send_header(name, value)
            self.end_headers()
            if answer.file:
                _copy(answer.file, answer.part, self.wfile)
            elif not empty:
                self.wfile.write(data)


class _Body:
    """The bytes of one body: no read goes beyond them."""

    def __init__(self, stream: BinaryIO, length: int):
        self.stream, self.left = stream, length

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, by default all that is left; a client that leaves early is a ConnectionError."""
        wanted = self.left if size < 0 else min(size, self.left)
        data = self.stream.read(wanted) if wanted else b""
        if len(data) < wanted:
            raise ConnectionError("the client left in the middle of its request")
        self.left -= len(data)
        return data


def _copy(path: str | os.PathLike, part: tuple[int, int], out: BinaryIO) -> None:
    with open(path, "rb") as file:
        file.seek(part[0])
        left = part[1] - part[0]
        while left and (data := file.read(min(left, 1 << 20))):
            out.write(data)
            left -= len(data)
        if left:
            raise ConnectionError("the file became shorter while it was sent")
