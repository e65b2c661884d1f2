"""The local service's HTTP server: uvicorn reads requests and writes answers; handlers are plain functions in a thread pool.

A handler is `handler(request: rest.Request, **names_in_the_path) -> dict | rest.Answer`. It is called when all of a JSON body
has arrived. The handler of an upload reads the body itself while it arrives, in bounded memory.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import json
import logging
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette import requests
from starlette.responses import Response, StreamingResponse

from . import connections, guards
from .rest import Answer, ApiError, Request

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
MOST_REQUESTS = 512  # under way at once; more get 503
CALLS, UPLOADS = 32, 16  # threads for handlers, and for handlers of uploads
SECONDS, BYTES_PER_SECOND = 60.0, 1 << 20  # the time limit of a body or an answer: SECONDS + size / BYTES_PER_SECOND
_PIECE = 1 << 18  # bytes of a file that are sent at a time
_DRAIN_SECONDS = 1.0  # to read what a refused client still sends

Route = tuple[str, "re.Pattern[str]", Callable[..., Any]]


def route(method: str, pattern: str, handler: Callable[..., Any]) -> Route:
    """Return a route; in `pattern`, `{x}` matches one part of a path, `{x*}` one or more."""
    regex = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/:]+)", re.sub(r"\\\{(\w+)\\\*\\\}", r"(?P<\1>.+)", re.escape(pattern)))
    return method, re.compile(regex), handler


class Server:
    """Listens on loopback only, in a thread of its own.

    Args:
        port: 0 takes any free one.
        tls: None for plain HTTP, otherwise only TLS is answered.
        log: called with a line for each request.
        token, key: what clients must send; see `guards.Access`.

    Raises:
        OSError: the port cannot be used.
    """

    def __init__(
        self, port: int, routes: Sequence[Route], tls: ssl.SSLContext | None, log: Callable[[str], None], token: str = "",
        key: str = "",
    ):  # fmt: skip
        self._listener = connections.Listener(guards.ADDRESS, port)
        self.port: int = self._listener.getsockname()[1]
        self._app = App(routes, guards.Access(self.port, token, key), log)
        protocol: Any = partial(connections.Protocol, self._listener)
        config = uvicorn.Config(
            self._app, http=protocol, ws="none", lifespan="off", log_config=None, log_level="warning",
            access_log=False, proxy_headers=False, server_header=False, timeout_keep_alive=connections.IDLE_SECONDS,
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        config.load()
        config.ssl = tls
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        _send_log(log)

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()

    def refuse(self) -> None:
        """Answer UNAVAILABLE from now on: the service is being stopped."""
        self._app.closing = True

    def stop(self) -> None:
        """Close every connection; answers under way get two seconds."""
        self.refuse()
        self._uvicorn.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()
        self._app.close()

    def _run(self) -> None:
        loop = connections.Loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._uvicorn.serve(sockets=[self._listener]))
        finally:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:  # so that no thread waits for the rest of an upload
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()


def _send_log(log: Callable[[str], None]) -> None:
    """Send uvicorn's log to `log` instead of the terminal."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log(self.format(record))

    logger = logging.getLogger("uvicorn.error")
    logger.handlers, logger.propagate = [Handler()], False


class App:
    """The ASGI application: checks a request by the guards, runs the route's handler in a thread, sends the answer."""

    def __init__(self, routes: Sequence[Route], access: guards.Access, log: Callable[[str], None]):
        self.routes, self.access, self._log = routes, access, log
        self.closing = False
        self._calls = ThreadPoolExecutor(CALLS, "handler")
        self._uploads = ThreadPoolExecutor(UPLOADS, "upload")
        self._under_way = 0

    def log(self, text: str) -> None:
        """Write a line to the log, without the key that a path may hold."""
        self._log(text.replace(self.access.key, "KEY") if self.access.key else text)

    def close(self) -> None:
        """Shut the thread pools down, without waiting for handlers that still run."""
        for pool in (self._calls, self._uploads):
            pool.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        call = _Call(scope, receive)
        self._under_way += 1
        try:
            answer = await self._answered(call)
            if answer is not None:
                await self._send(call, answer, send)
        finally:
            self._under_way -= 1

    async def _answered(self, call: _Call) -> Answer | None:
        """Return the answer to a request, or its error as an answer; None if the client has left."""
        try:
            return await self._answer(call)
        except ApiError as error:
            return Answer(error.code, error.body(), {"Retry-After": "1"} if error.code == 503 else {})
        except ConnectionError:
            return None
        except Exception as error:  # a bug of ours must reach the client as an answer, not as a broken connection
            self.log(f"internal error at {call.method} {call.path}: {type(error).__name__}: {error}")
            return Answer(500, ApiError("INTERNAL", f"{type(error).__name__}: {error}").body())

    async def _answer(self, call: _Call) -> Answer:
        if call.method not in METHODS:
            raise ApiError("UNIMPLEMENTED", f"the method {call.method[:20]} is not supported.")
        call.path, prefix = guards.without_key(call.path, self.access)
        length = guards.body_length(call.headers)
        guards.admit(call.method, call.path, call.headers, length, self.access, keyed=bool(prefix))
        call.length = call.left = length
        if self.closing:
            raise ApiError("UNAVAILABLE", "the local service is being stopped.")
        if call.path == guards.HEALTH:
            return Answer(content={"status": "ok"})
        if self._under_way > MOST_REQUESTS:
            raise ApiError("UNAVAILABLE", f"{MOST_REQUESTS} requests are under way already; try again.")
        upload = guards.UPLOADS.match(call.path) is not None
        # The path of an upload or an object may have encoded slashes in an object's name, so it is not decoded here.
        path = call.path if upload or "/storage/v1/" in call.path else urllib.parse.unquote(call.path)
        handler, names = self._route(call.method, path)
        loop = asyncio.get_running_loop()
        stream = _Upload(call, loop) if upload else io.BytesIO(await call.whole_body())
        base = f"{call.scope['scheme']}://{call.headers['Host']}{prefix}"
        request = Request(call.method, path, call.query_params, call.headers, call.length, stream, base)
        answer = await loop.run_in_executor(self._uploads if upload else self._calls, partial(handler, request, **names))
        return answer if isinstance(answer, Answer) else Answer(content=answer)

    def _route(self, method: str, path: str) -> tuple[Callable[..., Any], dict[str, str]]:
        """Return the handler of a path and the names in it."""
        known = False
        for kind, regex, handler in self.routes:
            if match := regex.fullmatch(path):
                if kind == method:
                    return handler, match.groupdict()
                known = True
        if known:
            raise ApiError("UNIMPLEMENTED", f"{method} is not supported at {path[:100]} by the local service.")
        raise ApiError("NOT_FOUND", f"{path[:100]} is not supported by the local service.")

    async def _send(self, call: _Call, answer: Answer, send: Any) -> None:
        headers = {"Content-Type": "application/json; charset=UTF-8", "X-Content-Type-Options": "nosniff", **answer.headers}
        if answer.code == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if call.left:
            headers["Connection"] = "close"  # unread bytes would be taken for the next request
            await call.drain()
        size = answer.part[1] - answer.part[0]
        if answer.file:
            headers["Content-Length"] = str(size)
            response: Response = StreamingResponse(self._pieces(answer.file, answer.part), answer.code, headers)
        elif answer.code in (204, 308):
            response = Response(b"", answer.code, headers)
        else:
            data = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode() + b"\n"
            response = Response(data, answer.code, headers)
        query = call.scope["query_string"].decode("latin-1")
        self.log(f"{call.method} {call.path}{'?' * bool(query)}{query} {answer.code}")
        abort = call.scope["state"]["abort"]
        timer = asyncio.get_running_loop().call_later(SECONDS + size / BYTES_PER_SECOND, abort)  # for a client that does not read
        try:
            await response(call.scope, call.receive, send)
        except OSError:  # the file became shorter
            abort()
        finally:
            timer.cancel()

    async def _pieces(self, path: Path, part: tuple[int, int]) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        with open(path, "rb") as file:
            file.seek(part[0])
            left = part[1] - part[0]
            while left:
                data = await loop.run_in_executor(self._calls, file.read, min(left, _PIECE))
                if not data:
                    raise OSError("the file became shorter while it was sent")
                yield data
                left -= len(data)


class _Call(requests.Request):
    """One request from the network, and how much of its body has been read."""

    def __init__(self, scope: Any, receive: Any):
        super().__init__(scope, receive)
        self.path = scope["raw_path"].decode("ascii", "replace")
        self.length = self.left = guards.LARGEST_BODY  # bytes of body, all and unread ones; unknown until admitted

    async def read(self, size: int) -> bytearray:
        """Return at least `size` bytes of the body, fewer only at its end; raise a ConnectionError if the client leaves."""
        data = bytearray()
        while len(data) < size:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client left in the middle of its request")
            data += message["body"]
            self.left -= len(message["body"])
            if not message.get("more_body"):
                break
        return data

    async def whole_body(self) -> bytearray:
        """Return all of a JSON body; raise an ApiError if it does not arrive in time."""
        if not self.length:
            return bytearray()
        try:
            return await asyncio.wait_for(self.read(self.length), self.seconds())
        except asyncio.TimeoutError:
            raise self.too_slow() from None

    def seconds(self) -> float:
        return SECONDS + self.length / BYTES_PER_SECOND

    def too_slow(self) -> ApiError:
        return ApiError(
            "INVALID_ARGUMENT", f"the body's {self.length:,} bytes did not arrive within {self.seconds():.0f} s; send it again.", code=408
        )

    async def drain(self) -> None:
        """Read what a refused client still sends: if the connection closed at once, the client might not see the answer."""
        if self.left <= guards.LARGEST_BODY and "expect" not in self.headers:
            with contextlib.suppress(asyncio.TimeoutError, ConnectionError):  # the connection closes anyway
                await asyncio.wait_for(self.read(self.left), _DRAIN_SECONDS)


class _Upload:
    """An upload's body, read by a handler in a thread; memory holds no more than one read."""

    def __init__(self, call: _Call, loop: asyncio.AbstractEventLoop):
        self._call, self._loop = call, loop
        self._left, self._held = call.length, bytearray()
        self._deadline = time.monotonic() + call.seconds()

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, by default all that is left; fewer only at the end."""
        wanted = self._left if size < 0 else min(size, self._left)
        if len(self._held) < wanted:
            self._held += self._receive(wanted - len(self._held))
        data = bytes(self._held[:wanted])
        del self._held[:wanted]
        self._left -= len(data)
        return data

    def _receive(self, size: int) -> bytearray:
        future = asyncio.run_coroutine_threadsafe(self._call.read(size), self._loop)
        try:
            data = future.result(max(0.0, self._deadline - time.monotonic()))
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise self._call.too_slow() from None
        if len(data) < size:
            raise ConnectionError("the client left in the middle of its request")
        return data
