"""The RPCs over gRPC, the SDK's default transport: the same handlers as over REST, on another port, with TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from . import guards, rpc, tls, transcoding
from .rest import ApiError

THREADS = 16
MOST_AT_ONCE = 200  # calls; those beyond are refused with RESOURCE_EXHAUSTED
IDLE = 10 * 60_000  # milliseconds after which a connection without calls is closed
_GRACE = 1.0  # seconds for the calls under way at the server's end
_LONGEST_MESSAGE = 2_000  # characters: an error is sent in a header, and clients accept 8 KiB of headers


@dataclass
class GrpcServer:
    """A running server; `stop` ends it."""

    port: int
    _server: grpc.Server
    _threads: ThreadPoolExecutor

    def stop(self) -> None:
        """Take no more calls; after a moment, end those still under way."""
        self._server.stop(_GRACE).wait()
        self._threads.shutdown(wait=False)


def start(methods: Iterable[rpc.Method], port: int, token: str, files: tls.Files, log: Callable[[str], None]) -> GrpcServer:
    """Serve RPCs on loopback and return the server.

    Args:
        port: 0 takes any free one.
        token: what clients must send; "" to answer everybody on this machine.
        files: the certificate and its key.
        log: called with a line for each call.

    Raises:
        RuntimeError: the port cannot be used.
    """
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="grpc")
    options = [
        ("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", guards.LARGEST_BODY), ("grpc.max_connection_idle_ms", IDLE),
        ("grpc.max_concurrent_streams", MOST_AT_ONCE),
    ]  # fmt: skip
    server = grpc.server(threads, [_Handlers(methods, token, log)], options=options, maximum_concurrent_rpcs=MOST_AT_ONCE)
    credentials = grpc.ssl_server_credentials([(files.key.read_bytes(), files.certificate.read_bytes())])
    bound = server.add_secure_port(f"{guards.ADDRESS}:{port}", credentials)
    server.start()
    return GrpcServer(bound, server, threads)


class _Handlers(grpc.GenericRpcHandler):
    """Finds what answers a call."""

    def __init__(self, methods: Iterable[rpc.Method], token: str, log: Callable[[str], None]):
        self._methods = {name: method for method in methods for name in method.full_names()}
        self._token, self._log = token, log

    def service(self, details: Any) -> grpc.RpcMethodHandler | None:
        """Return the handler of a call; None if the name is not one of Google's."""
        try:
            guards.check_token([value for key, value in details.invocation_metadata if key == "authorization"], self._token)
            method = self._methods.get(details.method)
            service, _, name = details.method.strip("/").rpartition("/")
            if method is None and not service.startswith("google."):
                return None
            if method is None:
                raise rpc.not_answered(service.rpartition(".")[2], name[:100])
        except ApiError as error:
            return grpc.unary_unary_rpc_method_handler(lambda request, context, error=error: _abort(context, error))
        answer = partial(self._answer, method, details.method)
        if method.streams:
            stream = lambda request, context: iter([answer(request, context)])  # noqa: E731
            return grpc.unary_stream_rpc_method_handler(stream, method.request.FromString, _bytes)
        return grpc.unary_unary_rpc_method_handler(answer, method.request.FromString, _bytes)

    def _answer(self, method: rpc.Method, name: str, request: Message, context: grpc.ServicerContext) -> Message:
        try:
            transcoding.check_names(method, request)
            message = method.call(request)
            if isinstance(message, rpc.WithHeaders):
                context.send_initial_metadata(tuple((key.lower(), value) for key, value in message.headers.items()))
                message = message.message
        except ApiError as error:
            self._log(f"gRPC {name} {error.status}")
            return _abort(context, error)
        except Exception as error:  # a bug of ours must reach the client as an answer
            self._log(f"internal error at gRPC {name}: {type(error).__name__}: {error}")
            return _abort(context, ApiError("INTERNAL", f"{type(error).__name__}: {error}"))
        self._log(f"gRPC {name} OK")
        if ".v1beta1." in name and message.DESCRIPTOR.name == "Operation":
            for part in (getattr(message, field) for field in ("metadata", "response") if message.HasField(field)):
                part.type_url = part.type_url.replace(".v1.", ".v1beta1.")
        return message


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()


def _abort(context: grpc.ServicerContext, error: ApiError) -> Any:
    """End a call with the API's error: code, message and the field at fault."""
    message = error.message[:_LONGEST_MESSAGE]
    status = status_pb2.Status(code=error.rpc["code"], message=message)
    if error.field:
        detail = any_pb2.Any()
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field[:200], description=message)
        detail.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        status.details.append(detail)
    context.abort_with_status(rpc_status.to_status(status))
