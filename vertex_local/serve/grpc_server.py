"""The RPCs over gRPC, the SDK's default transport: the same handlers as over REST, on another port, with TLS."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import rpc, transcoding
from .rest import STATUSES, ApiError

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

ADDRESS = "127.0.0.1"
THREADS = 16
MOST_AT_ONCE = 200  # calls; those beyond are refused with RESOURCE_EXHAUSTED
LARGEST_REQUEST = 10 << 20  # bytes, as over HTTP
IDLE = 10 * 60_000  # milliseconds after which a connection without calls is closed
_LONGEST_MESSAGE = 2_000  # characters: an error is sent in a header, and clients accept 8 KiB of headers
_UNAUTHENTICATED = "send 'authorization: Bearer TOKEN' with the token of this start of the service."


@dataclass
class GrpcServer:
    """A running server; `stop` ends it."""

    port: int
    _server: grpc.Server
    _threads: ThreadPoolExecutor

    def stop(self, grace: float = 1.0) -> None:
        """Take no more calls; after `grace` seconds, end those still under way."""
        self._server.stop(grace).wait()
        self._threads.shutdown(wait=False)


def _silent(text: str) -> None:
    pass


def start(
    methods: Iterable[rpc.Method],
    port: int,
    token: str | None,
    tls_files: tuple[Path, Path],
    log: Callable[[str], None] = _silent,
) -> GrpcServer:
    """Serve RPCs on 127.0.0.1 and return the server.

    Args:
        port: 0 takes any free one.
        token: what clients must send; None to answer everybody on this machine.
        tls_files: the files of the certificate and of its key, both PEM.
        log: called with a line for each call.

    Raises:
        OSError: the port cannot be used.
    """
    import grpc

    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="grpc")
    options = [
        ("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", LARGEST_REQUEST), ("grpc.max_connection_idle_ms", IDLE),
        ("grpc.max_concurrent_streams", MOST_AT_ONCE),
    ]  # fmt: skip
    server = grpc.server(threads, [_Handlers(methods, log)], [_guard(token)] if token is not None else [], options, MOST_AT_ONCE)
    certificate, key = (path.read_bytes() for path in tls_files)
    try:
        bound = server.add_secure_port(f"{ADDRESS}:{port}", grpc.ssl_server_credentials([(key, certificate)]))
    except RuntimeError as error:
        raise OSError(f"{ADDRESS}:{port} cannot be used: {error}") from None
    server.start()
    return GrpcServer(bound, server, threads)


def _guard(token: str) -> Any:
    """Return an interceptor that refuses every call without the token."""
    import grpc

    wanted = f"Bearer {token}".encode()

    def refuse(request: bytes, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, _UNAUTHENTICATED)

    class Guard(grpc.ServerInterceptor):
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            given = [value for key, value in details.invocation_metadata if key == "authorization"]
            if len(given) == 1 and hmac.compare_digest(str(given[0]).encode(), wanted):
                return continuation(details)
            return grpc.unary_unary_rpc_method_handler(refuse)

    return Guard()


def _Handlers(methods: Iterable[rpc.Method], log: Callable[[str], None]) -> Any:  # noqa: N802 - it makes an object
    """Return the object by which gRPC finds the handler of a call."""
    import grpc

    known = {name: method for method in methods for name in method.full_names()}

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            name = details.method
            method = known.get(name)
            if method is not None:
                answer = _answer(method, name, log)
                if method.streams:
                    return grpc.unary_stream_rpc_method_handler(_stream(answer), method.request.FromString, _bytes)
                return grpc.unary_unary_rpc_method_handler(answer, method.request.FromString, _bytes)
            service, _, rest = name.strip("/").rpartition("/")
            if not service.startswith("google."):
                return None
            error = rpc.not_answered(service.rpartition(".")[2], rest[:100])
            return grpc.unary_unary_rpc_method_handler(lambda request, context: _abort(context, error))

    return Handlers()


def _answer(method: rpc.Method, name: str, log: Callable[[str], None]) -> Callable[[Message, Any], Message]:
    def answer(request: Message, context: Any) -> Message:
        try:
            transcoding.check_names(method, request)
            message = method.call(request)
            if isinstance(message, rpc.WithHeaders):
                context.send_initial_metadata(tuple((key.lower(), value) for key, value in message.headers.items()))
                message = message.message
        except ApiError as error:
            log(f"gRPC {name} {error.status}")
            return _abort(context, error)
        except Exception as error:  # a bug of ours must reach the client as an answer
            log(f"internal error at gRPC {name}: {type(error).__name__}: {error}")
            return _abort(context, ApiError("INTERNAL", f"{type(error).__name__}: {error}"))
        log(f"gRPC {name} OK")
        return _speaking(message, "v1beta1") if ".v1beta1." in name else message

    return answer


def _stream(answer: Callable[[Message, Any], Message]) -> Callable[[Message, Any], Iterator[Message]]:
    """Return a handler that answers with a stream of one message."""

    def stream(request: Message, context: Any) -> Iterator[Message]:
        yield answer(request, context)

    return stream


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()


def _speaking(message: Message, version: str) -> Message:
    """Return the message; in an operation, name the types as in the client's version of the API."""
    if message.DESCRIPTOR.name == "Operation":
        for name in ("metadata", "response"):
            if message.HasField(name):
                part = getattr(message, name)
                part.type_url = part.type_url.replace(".v1.", f".{version}.")
    return message


def _abort(context: Any, error: ApiError) -> Any:
    """End a call with the API's error: code, message and the field at fault."""
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2
    from grpc_status import rpc_status

    message = error.message[:_LONGEST_MESSAGE]
    status = status_pb2.Status(code=STATUSES[error.status][1], message=message)
    if error.field:
        detail = any_pb2.Any()
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field[:200], description=message)
        detail.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        status.details.append(detail)
    context.abort_with_status(rpc_status.to_status(status))
