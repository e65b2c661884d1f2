"""A job service on this machine that answers `gcloud` and the Python SDK as Vertex AI does.

    python -m vertex_local serve

It prints the lines to export for each client, and runs until Ctrl-C. Jobs run as `python -m vertex_local run` runs them,
with the rights of whoever starts it: it listens on 127.0.0.1 only and wants the token that it makes at each start. What it
keeps lies in STATE_DIR: records in serve/, jobs in jobs/, gs://BUCKET/X in buckets/BUCKET/X. Deleting removes records only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
import shlex
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import cli
from ..job import schema, settings
from . import certificate, job_life, operations, rest, routes
from .executor import Executor
from .local import Local
from .predictor import Predictors
from .records import Records
from .server import Server

PORT = 8787


class ServeError(ValueError):
    """A service that cannot be started as asked."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    serve = cli.Parser(
        prog="python -m vertex_local serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    serve.add_argument("--port", type=_port, default=PORT, help="port on 127.0.0.1; 0 takes any free one (default: %(default)s)")
    cli.add_place_flags(serve)
    serve.add_argument("--parallel_jobs", metavar="N", type=cli.whole(1), default=4, help="jobs at once, at most (default: %(default)s)")
    serve.add_argument("--no_token", action="store_true", help="let in everybody who can reach 127.0.0.1: for clients that send no token")
    for name in ("project", "region"):
        serve.add_argument(f"--{name}", help="for the lines to export (default: jobs/settings.yaml's); every other one is answered, too")
    return serve


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"takes 0 to 65535; got {text!r}.")
    return int(text)


def main(argv: Sequence[str]) -> int:
    """Serve until a signal comes and return the exit code: 0 after an orderly end, 2 if it cannot be started."""
    args = build_parser().parse_args(argv)
    return cli.supervised(lambda cancel: _serve(args, cancel))


def _serve(args: argparse.Namespace, cancel: threading.Event) -> int:
    state, own = _folders(args)
    with _locked(own, args.state_dir):
        for file in (own / "uploads").iterdir():
            if not file.with_suffix(".json").exists():
                file.unlink()  # half an object, left by a service that was killed; what has a .json can be resumed
        local = _local(args, state, own)
        token = None if args.no_token else secrets.token_urlsafe(32)
        certificate.private(own / "token", (token or "").encode())
        tls = certificate.context(own)
        with open(own / "access.log", "a", encoding="utf-8", errors="backslashreplace") as log:
            server = _listen(args.port, local, token, tls and tls[0], log)
            lost = job_life.settle(local)
            operations.settle(local.records)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
            try:
                print(_lines(args, server.port, own, local, tls is not None, lost), flush=True)
                cancel.wait()
            finally:
                _stop(server, local, own)
    return 0


def _folders(args: argparse.Namespace) -> tuple[Path, Path]:
    state = Path(os.path.realpath(args.state_dir))
    own = state / "serve"
    try:
        state.mkdir(parents=True, exist_ok=True)
        for folder in (own, own / "uploads"):
            if folder.is_symlink():
                raise ServeError(f"--state_dir: {folder} must be a folder of the service's own, not a link; remove it.")
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
    except OSError as error:
        raise ServeError(f"--state_dir: cannot make {own}: {error.strerror}.") from None
    return state, own


@contextlib.contextmanager
def _locked(own: Path, name: str) -> Iterator[None]:
    with open(own / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            pid = file.read().strip()
            raise ServeError(f"--state_dir: another service (process {pid}) uses {name}; end it, or choose another folder.") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _local(args: argparse.Namespace, state: Path, own: Path) -> Local:
    project = Path(os.path.abspath(args.project_dir))
    if not project.is_dir():
        raise ServeError(f"--project_dir: there is no folder {project}.")
    if args.python and not shutil.which(args.python):
        raise ServeError(f"--python: {args.python} is not a program that can be run.")
    try:
        schema.api_types()
    except ImportError as error:
        raise ServeError(f"serve checks requests with the package google-cloud-aiplatform: install it ({error}).") from None
    buckets = Path(os.path.realpath(args.bucket_root or state / "buckets"))
    try:
        buckets.mkdir(parents=True, exist_ok=True)
        records = Records(own / "records.sqlite")
    except OSError as error:
        raise ServeError(f"--bucket_root: cannot make {buckets}: {error.strerror}.") from None
    except sqlite3.DatabaseError as error:
        raise ServeError(f"{own / 'records.sqlite'}: cannot be read ({error}); move it away to start without records.") from None
    return Local(
        state=state, buckets=buckets, project_dir=project, python=args.python and shutil.which(args.python), with_index=args.with_index,
        records=records, executor=Executor(args.parallel_jobs),
        predictors=Predictors(args.python, own / "models"), say=_say,
    )  # fmt: skip


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more: no reason for a job to fail
        print(text, flush=True)


def _listen(port: int, local: Local, token: str | None, tls: object, log: object) -> Server:
    lock = threading.Lock()

    def note(text: str) -> None:
        with lock, contextlib.suppress(ValueError):  # closed: the service has ended
            print(rest.stamp(), "".join(letter if letter.isprintable() else "?" for letter in text), file=log, flush=True)

    try:
        return Server(port, routes.table(local), token, tls, note)
    except OSError as error:
        raise ServeError(f"--port: 127.0.0.1:{port} cannot be used: {error.strerror}; choose another, or 0 for any free one.") from None


def _stop(server: Server, local: Local, own: Path) -> None:
    server.closing = True
    server.shutdown()
    server.server_close()
    local.executor.stop()
    local.predictors.stop_all()
    local.records.close()
    (own / "token").unlink(missing_ok=True)


def _lines(args: argparse.Namespace, port: int, own: Path, local: Local, tls: bool, lost: int) -> str:
    """Return what each client has to be told."""
    given = {name: value for name in ("project", "region") if (value := getattr(args, name))}
    known = {"project": "your-project", "region": "us-central1", "bucket": "your-bucket"} | settings.load(local.project_dir / "jobs", given)
    base, token = f"http://localhost:{port}", shlex.quote(str(own / "token"))
    auth = "CLOUDSDK_AUTH_DISABLE_CREDENTIALS=true" if args.no_token else f"CLOUDSDK_AUTH_ACCESS_TOKEN_FILE={token}"
    credentials = "google.auth.credentials.AnonymousCredentials()"
    if not args.no_token:
        credentials = f"google.oauth2.credentials.Credentials(open({str(own / 'token')!r}).read())"
    lines = [
        f"serving on {base}{f' and https://localhost:{port}' if tls else ''}; state in {local.state}, gs:// in {local.buckets}",
        *["WARNING: --no_token: every program of every user on this machine can run commands as you."] * args.no_token,
        *[f"{lost} job(s) of a service that was killed are marked as failed."] * bool(lost),
        "", "# gcloud",
        f"export CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM={base}/",
        f"export CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE={base}/storage/v1/",
        f"export CLOUDSDK_API_ENDPOINT_OVERRIDES_LOGGING={base}/",
        f"export {auth}",
        f"export CLOUDSDK_CORE_PROJECT={shlex.quote(known['project'])} CLOUDSDK_AI_REGION={shlex.quote(known['region'])}",
        "", "# google-cloud-storage, and what the SDK stages with it",
        f"export STORAGE_EMULATOR_HOST={base}",
    ]  # fmt: skip
    if not tls:
        return "\n".join([*lines, "", "# the Python SDK needs TLS, and that the package cryptography: install it", "", "Ctrl-C ends it."])
    return "\n".join([
        *lines,
        f"export REQUESTS_CA_BUNDLE={shlex.quote(str(own / 'cert.pem'))}",
        "", "# the Python SDK",
        "import google.auth.credentials, google.oauth2.credentials",
        "from google.cloud import aiplatform",
        f"aiplatform.init(project={known['project']!r}, location={known['region']!r}, staging_bucket={'gs://' + known['bucket']!r},",
        f'    api_transport="rest", api_endpoint="localhost:{port}",',
        f"    credentials={credentials})",
        "", "Ctrl-C ends it, and the jobs with it.",
    ])  # fmt: skip
