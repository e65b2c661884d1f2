"""A job service on this machine that answers `gcloud` and the Python SDK as Vertex AI does.

    python -m vertex_local serve

It runs until Ctrl-C. `eval "$(python -m vertex_local env)"` points a shell's clients to it. Jobs run as with `python -m
vertex_local run`, with the rights of the user who starts the service. It listens only on 127.0.0.1, with TLS, and asks
clients for a token that is new at each start. STATE_DIR holds records in records.sqlite, jobs in jobs/ and gs://BUCKET/X in
buckets/BUCKET/X. A client's request to delete something removes its record, and no files.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import logging.handlers
import os
import secrets
import shlex
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import cli
from ..console.app import Console
from ..errors import UserError
from ..job import schema, settings, times
from ..local import job_record
from ..local.store import FILE, Store
from . import endpoint, grpc_server, jobs, operations, pipeline_jobs, routes, schedules, storage_upload, tls
from .executor import Executor
from .guards import ADDRESS
from .local import Local
from .pipeline_workers import PipelineWorkers
from .predictor import Predictors
from .rpc import Method
from .server import Route, Server, route

PORT = 8787
LOG_BYTES = 10 << 20  # bytes of the access log before a new one begins
LOG_LINE = 2000  # characters


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    serve = cli.Parser(prog="python -m vertex_local serve", description=__doc__)
    serve.add_argument("--port", type=cli.whole(0, 65535), default=PORT, help="port on 127.0.0.1; 0: any free one (default: %(default)s)")
    serve.add_argument("--grpc_port", metavar="PORT", type=cli.whole(0, 65535), help="port for gRPC (default: the one after --port)")
    cli.add_place_flags(serve)
    serve.add_argument("--parallel_jobs", metavar="N", type=cli.whole(1), default=4, help="jobs at once, at most (default: %(default)s)")
    serve.add_argument("--no_token", action="store_true", help="answer without a token everybody who can reach 127.0.0.1")
    serve.add_argument(
        "--pipelines", choices=("kfp", "google"), nargs="?", const="google",
        help="import what pipelines need at the start, not with the first one: kfp, or (default) what Google's components need, too",
    )  # fmt: skip
    serve.add_argument("--testing", action="store_true", help="answer POST /reset, which removes all records and buckets")
    for name in ("project", "region"):
        serve.add_argument(f"--{name}", help="for the lines to export (default: jobs/settings.yaml's); every other one is answered, too")
    return serve


def main(argv: Sequence[str]) -> int:
    """Serve until a signal comes and return the exit code: 0 after an orderly end, 2 if it cannot be started."""
    args = build_parser().parse_args(argv)
    return cli.supervised(lambda cancel: _serve(args, cancel))


def _serve(args: argparse.Namespace, cancel: threading.Event) -> int:
    state, own = _folders(args)
    with _locked(args.state_dir, state):
        storage_upload.clear_uploads(own / "uploads")
        local = _local(args, state, own)
        local.workers.start(args.pipelines)
        files = tls.make(own)
        token, key = ("", "") if args.no_token else (secrets.token_urlsafe(32), secrets.token_urlsafe(32))
        tls.write_private(own / "token", token.encode())
        pool = operations.OperationPool(local)
        methods = routes.methods(local, pool)
        console = Console(local, methods, everybody=args.no_token)
        table = [*routes.table(local, methods), *console.routes()]
        if args.testing:
            table.append(route("POST", "/reset", lambda request: _reset(local)))
        with _access_log(own) as note, contextlib.ExitStack() as stack:
            server = _listen(args, table, files, note, token, key)
            local.address = f"{ADDRESS}:{server.port}"
            grpc = _listen_grpc(args, methods, token, files, note)
            stack.callback(_stop, server, grpc, local, pool, own)
            lost = jobs.settle(local)
            operations.settle(local.records)
            clock = schedules.Clock(local, next(each.call for each in methods if each.name == "CreatePipelineJob"))
            stack.callback(clock.stop)
            clock.start()
            server.start()
            found = _endpoint(args, local, server.port, grpc.port, key, files)
            found.save(own)
            console.opened(found)
            print(_lines(args, found, local, lost, console.address()), flush=True)
            cancel.wait()
    return 0


def _folders(args: argparse.Namespace) -> tuple[Path, Path]:
    state = Path(os.path.realpath(args.state_dir))
    own = state / "serve"
    try:
        state.mkdir(parents=True, exist_ok=True)
        for folder in (own, own / "uploads"):
            if folder.is_symlink():
                raise UserError(f"--state_dir: {folder} must be a folder of the service's own, not a link; remove it.")
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
    except OSError as error:
        raise UserError(f"--state_dir: cannot make {own}: {error.strerror}. Name another folder.") from None
    return state, own


@contextlib.contextmanager
def _locked(name: str, state: Path) -> Iterator[None]:
    try:
        with job_record.locked(state / job_record.SERVICE_LOCK):
            yield
    except job_record.InUse as error:
        text = f"--state_dir: another service (process {error.process}) uses {name}; end it, or choose another folder."
        raise UserError(text) from None


def _local(args: argparse.Namespace, state: Path, own: Path) -> Local:
    project = Path(os.path.abspath(args.project_dir))
    if not project.is_dir():
        raise UserError(f"--project_dir: there is no folder {project}. Name the checkout.")
    cli.check_interpreter(args.python)
    try:
        schema.api_types()
    except ImportError as error:
        raise UserError(f"serve checks requests with the package google-cloud-aiplatform: install it ({error}).") from None
    buckets = Path(os.path.realpath(args.bucket_root or state / "buckets"))
    try:
        buckets.mkdir(parents=True, exist_ok=True)
        records = Store(state)
    except OSError as error:
        raise UserError(f"--bucket_root: cannot make {buckets}: {error.strerror}. Name another folder.") from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{state / FILE}: cannot be read ({error}); move it away to start without records.") from None
    return Local(
        state=state, buckets=buckets, project_dir=project, options=cli.run_options(args), records=records,
        executor=Executor(args.parallel_jobs), pipelines=Executor(args.parallel_jobs), predictors=Predictors(args.python, own / "models"),
        workers=PipelineWorkers(project, own), say=_say,
    )  # fmt: skip


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed terminal must not make a job fail
        print(text, flush=True)


@contextlib.contextmanager
def _access_log(own: Path) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes one line to the access log; the log and one older file of LOG_BYTES are kept."""
    file = logging.handlers.RotatingFileHandler(
        own / "access.log", maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
    )

    file.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is no reason to fill the terminal

    def note(text: str) -> None:
        line = "".join(letter if letter.isprintable() else "?" for letter in text[:LOG_LINE])
        file.handle(logging.makeLogRecord({"msg": f"{times.now()} {line}"}))

    with contextlib.closing(file):
        yield note


def _listen(
    args: argparse.Namespace, table: Sequence[Route], files: tls.Files, note: Callable[[str], None], token: str, key: str
) -> Server:  # fmt: skip
    try:
        return Server(args.port, table, files.context(), note, token, key)
    except OSError as error:
        text = f"--port: 127.0.0.1:{args.port} cannot be used: {error.strerror}; choose another, or 0 for any free one."
        raise UserError(text) from None


def _listen_grpc(
    args: argparse.Namespace, methods: Sequence[Method], token: str, files: tls.Files, note: Callable[[str], None]
) -> grpc_server.GrpcServer:  # fmt: skip
    port = args.grpc_port if args.grpc_port is not None else args.port and args.port + 1
    try:
        return grpc_server.start(methods, port, token, files, note)
    except RuntimeError:
        raise UserError(f"--grpc_port: 127.0.0.1:{port} cannot be used; choose another, or 0 for any free one.") from None


def _reset(local: Local) -> dict[str, Any]:
    """End every job and remove all records; also all buckets, if they lie in the service's state folder."""
    local.pipelines.cancel_all()
    local.executor.cancel_all()
    local.predictors.stop_all()
    local.records.clear()
    if local.state in local.buckets.parents:
        for bucket in local.buckets.iterdir():
            shutil.rmtree(bucket)
    shutil.rmtree(local.state / pipeline_jobs.CACHE, ignore_errors=True)
    return {}


def _stop(server: Server, grpc: grpc_server.GrpcServer, local: Local, pool: operations.OperationPool, own: Path) -> None:
    for name in ("token", *endpoint.FILES):
        (own / name).unlink(missing_ok=True)
    server.refuse()
    grpc.stop()
    local.pipelines.stop()
    local.executor.stop()
    local.workers.stop_all()
    local.predictors.stop_all()
    pool.stop()
    server.stop()
    local.records.close()


def _endpoint(args: argparse.Namespace, local: Local, port: int, grpc_port: int, key: str, files: tls.Files) -> endpoint.Endpoint:
    given = {name: value for name in ("project", "region") if (value := getattr(args, name))}
    defaults = {"project": "your-project", "region": "us-central1", "bucket": "your-bucket"}
    known = {**defaults, **settings.load(local.project_dir / "jobs", given)}
    token_file = None if args.no_token else str(local.state / "serve" / "token")
    names = {name: known[name] for name in defaults}
    return endpoint.Endpoint(f"{ADDRESS}:{port}", key, token_file, str(files.bundle), grpc=f"{ADDRESS}:{grpc_port}", **names)


def _lines(args: argparse.Namespace, found: endpoint.Endpoint, local: Local, lost: int, console: str) -> str:
    """Return what the service prints at its start."""
    where = "" if args.state_dir == ".vertex_local" else f" --state_dir={shlex.quote(args.state_dir)}"
    return "\n".join([
        f"serving on {found.url}; state in {local.state}, gs:// in {local.buckets}",
        *["WARNING: --no_token: every program of every user on this machine can run commands as you."] * args.no_token,
        *[f"{lost} job(s) of a service that was killed are marked as failed."] * bool(lost),
        "", "The console, in a browser, which asks once whether to trust the service's certificate; the address lets one browser in:", "",
        console,
        "", "In the shell of gcloud and of Python programs:", "",
        f'eval "$(python -m vertex_local env{where})"',
        "", "In a Python program that uses the SDK:", "",
        found.snippet(), "",
        "Not to be redirected: raw_predict and stream_raw_predict of a shared Endpoint ask Google's own servers; create it with",
        "dedicated_endpoint_enabled=True, or use Endpoint.predict.",
        "", "Ctrl-C ends it, and the jobs with it.",
    ])  # fmt: skip
