"""What others could send to the local job service, each of it tried: web pages, other users, crafted requests and names."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import ssl
import subprocess
import time

import pytest
from test_serve_support import PARENT, Service, job_spec, write_object

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("attacks"))
    yield started
    started.stop()


@pytest.fixture
def bait(service, tmp_path):
    """Return a job that leaves a file if it ever runs, and a check that it did not."""
    file = tmp_path / "it-ran"
    body = json.dumps({"displayName": "x", "jobSpec": job_spec(f"open({str(file)!r}, 'w')")}).encode()
    before = len(service.call("GET", "/customJobs").get("customJobs", []))

    def check() -> None:
        assert len(service.call("GET", "/customJobs").get("customJobs", [])) == before, "a job was created"
        assert not file.exists()

    return body, check


def token(service) -> dict[str, str]:
    return {"Authorization": f"Bearer {service.token}"}


def connected(service, tls: ssl.SSLContext | None = None, name: str = "localhost") -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    return (tls or service.tls).wrap_socket(plain, server_hostname=name)


def wire(service, data: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send bytes as they are and return all that comes back until the service closes."""
    with connected(service, tls) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except (ConnectionResetError, ssl.SSLEOFError):
            pass  # it closed with bytes of ours unread, as it should
        return answer


def request(service, *lines: str, method: str = "POST", path: str = f"{PARENT}/customJobs", body: bytes = b"") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body


def refused(answer: bytes, *codes: int) -> dict:
    """Check that the answer is one of the codes, in the API's form, that the connection is closed and no page may read it."""
    head, _, text = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) in codes, answer
    assert b"access-control" not in head.lower() and b"connection: close" in head.lower()
    return json.loads(text)["error"]


# ------------------------------------------------------------------ web pages


@pytest.mark.parametrize(
    "kind", ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_a_web_pages_post_creates_no_job(service, bait, kind):
    """A page can send these three types without asking first; with the token on top, were it to know it."""
    body, check = bait
    page = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Content-Type": kind}
    for headers in (page, {**page, **token(service)}, {"Content-Type": kind, **token(service)}):
        code, answered, text = service.raw("POST", f"{PARENT}/customJobs", body, headers)
        assert code in (403, 415) and json.loads(text)["error"]["code"] == code
        assert not [name for name in answered if name.lower().startswith("access-control")]
    check()


@pytest.mark.parametrize("path", ["..", "%2e%2e", "b/x/o/..", "..%2f..%2f..", "b/x/o/../../../../.."])
def test_a_path_that_looks_like_an_upload_runs_nothing(service, bait, path):
    """Uploads may have any type; no way leads from their paths to another."""
    body, check = bait
    for method in ("POST", "PUT"):
        full = f"/upload/storage/v1/{path}{PARENT}/customJobs"
        assert service.raw(method, full, body, {**token(service), "Content-Type": "text/plain"})[0] in (400, 404)
    check()


@pytest.mark.parametrize(
    "header",
    [
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:{port}"}, {"oRiGiN": ""},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Mode": "no-cors"},
    ],
)  # fmt: skip
def test_nothing_that_a_browser_sends_is_answered(service, bait, header):
    body, check = bait
    header = {name: value.replace("{port}", str(service.port)) for name, value in header.items()}
    for method, path, data in (
        ("POST", f"{PARENT}/customJobs", body), ("GET", f"{PARENT}/customJobs", None), ("GET", "/storage/v1/b", None),
    ):  # fmt: skip
        code, _, text = service.raw(method, path, data, {**token(service), **header, **(JSON if data else {})})
        assert code == 403 and json.loads(text)["error"]["status"] == "PERMISSION_DENIED"
    check()


def test_a_preflight_gets_no_leave(service):
    ask = ("Origin: https://evil.example", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization")
    answer = wire(service, request(service, f"Host: localhost:{service.port}", *ask, method="OPTIONS"))
    refused(answer, 501)


def test_no_answer_at_all_has_a_cors_header(service):
    asked = (("GET", f"{PARENT}/customJobs"), ("GET", "/"), ("GET", "/nothing"), ("PUT", "/"), ("DELETE", f"{PARENT}/models/1"))
    for method, path in asked:
        _, headers, _ = service.raw(method, path, None, token(service))
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "hosts",
    [
        ("evil.example:{port}",), ("evil.example",), ("localhost",), ("localhost:1",), ("localhost:{port}.evil.example",),
        ("evil.example", "localhost:{port}"), ("localhost:{port}", "localhost:{port}"), ("127.0.0.2:{port}",), ("[::1]:{port}",), ("",), (),
    ],
)  # fmt: skip
def test_a_foreign_host_is_refused(service, bait, hosts):
    """A name that a page's owner points at 127.0.0.1 (DNS rebinding) comes with that name in Host."""
    body, check = bait
    names = [f"Host: {host}".replace("{port}", str(service.port)) for host in hosts]
    lines = [*names, f"Authorization: Bearer {service.token}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    code = 403 if len(hosts) == 1 and hosts[0] else 400  # none, or two of them, is no HTTP
    assert "Host" in refused(wire(service, request(service, *lines, body=body)), code, 403)["message"]
    check()


def test_a_host_in_the_request_line_helps_nobody(service, bait):
    body, check = bait
    lines = [f"Host: localhost:{service.port}", f"Authorization: Bearer {service.token}", "Content-Type: application/json"]
    lines += ["Connection: close", f"Content-Length: {len(body)}"]
    data = request(service, *lines, path=f"http://evil.example{PARENT}/customJobs", body=body)
    assert b" 404 " in wire(service, data).partition(b"\r\n")[0]
    check()


# ------------------------------------------------------------------ the token


def test_without_the_token_there_is_no_answer(service, bait):
    body, check = bait
    good = service.token
    wrong = [
        {}, {"X-Goog-Api-Key": good}, {"Cookie": f"token={good}"},
        *({"Authorization": f"Bearer {value}"} for value in ("", good[:-1], f"{good}x", good.swapcase(), "\u00e4")),
        {"Authorization": good}, {"Authorization": f"Basic {good}"},
    ]  # fmt: skip
    for headers in wrong:
        headers = {name: value.encode("latin-1") for name, value in headers.items()}
        for path, data in ((f"{PARENT}/customJobs", body), (f"{PARENT}/customJobs?access_token={good}", None), ("/storage/v1/b", None)):
            code, answered, text = service.raw("POST" if data else "GET", path, data, {**headers, **(JSON if data else {})})
            assert code == 401 and answered["WWW-Authenticate"] == "Bearer" and good not in text.decode()
            assert json.loads(text)["error"]["status"] == "UNAUTHENTICATED"
    twice = request(service, f"Host: localhost:{service.port}", f"Authorization: Bearer {good}", "Authorization: Bearer x", method="GET")
    refused(wire(service, twice), 401)
    check()


def test_uploads_want_the_token_too(service):
    (service.state / "buckets" / "up-load").mkdir(parents=True, exist_ok=True)
    for way in ("media", "multipart", "resumable"):
        path = f"/upload/storage/v1/b/up-load/o?uploadType={way}&name=x"
        assert service.raw("POST", path, b"x", {"Content-Type": "text/plain"})[0] == 401
        assert service.raw("POST", path, b"x", {**token(service), "Content-Type": "text/plain", "Origin": "https://evil.example"})[0] == 403
    assert not list((service.state / "buckets" / "up-load").iterdir())


def test_without_a_token_by_wish_it_is_said_loudly_and_pages_are_refused_still(tmp_path):
    service = Service(tmp_path, "--no_token")
    try:
        assert service.token == "" and "WARNING: --no_token" in "\n".join(service.out)
        assert "CLOUDSDK_AUTH_DISABLE_CREDENTIALS=true" in service.endpoint.exports()
        assert service.raw("GET", f"{PARENT}/customJobs")[0] == 200
        body = json.dumps({"displayName": "x", "jobSpec": job_spec("pass")}).encode()
        assert service.raw("POST", f"{PARENT}/customJobs", body, {"Content-Type": "text/plain"})[0] == 415
        assert service.raw("POST", f"{PARENT}/customJobs", body, {**JSON, "Origin": "https://evil.example"})[0] == 403
        assert service.raw("GET", f"{PARENT}/customJobs", None, {"Host": f"evil.example:{service.port}"})[0] == 403
        assert json.loads(service.raw("GET", f"{PARENT}/customJobs")[2]) == {}, "nothing was created"
    finally:
        service.stop()


def test_it_listens_on_loopback_only(service):
    listening = []
    for name in ("tcp", "tcp6"):
        with open(f"/proc/net/{name}") as table:
            fields = [line.split() for line in table.readlines()[1:]]
        listening += [each[1] for each in fields if each[3] == "0A" and int(each[1].rpartition(":")[2], 16) == service.port]
    assert [address.rpartition(":")[0] for address in listening] == ["0100007F"]


# ------------------------------------------------------------------ crafted requests


@pytest.mark.parametrize(
    "length, code",
    [(str(10 * 2**20 + 1), 413), ("9" * 18, 413), ("9" * 50, 400), ("-1", 400), ("+5", 400), ("1e3", 400), ("5, 6", 400), ("0x10", 400)],
)
def test_a_length_that_cannot_be_is_refused_before_anything_is_read(service, bait, length, code):
    body, check = bait
    lines = [f"Host: localhost:{service.port}", f"Authorization: Bearer {service.token}", "Content-Type: application/json"]
    refused(wire(service, request(service, *lines, f"Content-Length: {length}", body=body)), code)
    check()


def test_a_body_without_one_plain_length_is_refused(service, bait):
    body, check = bait
    lines = [f"Host: localhost:{service.port}", f"Authorization: Bearer {service.token}", "Content-Type: application/json"]
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    refused(wire(service, request(service, *lines, "Transfer-Encoding: chunked", body=chunked)), 411)
    refused(wire(service, request(service, *lines, "Transfer-Encoding: chunked", f"Content-Length: {len(body)}", body=chunked)), 411)
    refused(wire(service, request(service, *lines, f"Content-Length: {len(body)}", "Content-Length: 2", body=body)), 400)
    missing = wire(service, request(service, *lines, "Connection: close", body=body))
    assert b" 400 " in missing.partition(b"\r\n")[0], "without a length there is no body"
    check()


def test_an_upload_has_a_limit_too(service):
    (service.state / "buckets" / "up-load").mkdir(parents=True, exist_ok=True)
    lines = [f"Host: localhost:{service.port}", f"Authorization: Bearer {service.token}", f"Content-Length: {6 << 30}"]
    refused(wire(service, request(service, *lines, path="/upload/storage/v1/b/up-load/o?uploadType=media&name=x")), 413)


def test_a_second_request_hidden_in_a_refused_body_is_not_run(service, bait):
    body, check = bait
    good = [f"Host: localhost:{service.port}", f"Authorization: Bearer {service.token}", "Content-Type: application/json"]
    hidden = request(service, *good, f"Content-Length: {len(body)}", body=body)
    outer = [f"Host: localhost:{service.port}", "Content-Type: text/plain", f"Content-Length: {len(hidden)}"]
    answer = wire(service, request(service, *outer, body=hidden))
    refused(answer, 415)
    assert answer.count(b"HTTP/1.1 ") == 1
    check()


def test_garbage_gets_an_error_and_the_service_goes_on(service):
    host = f"Host: localhost:{service.port}"
    for data in (
        b"\x00\xff\xfe\r\n\r\n", b"GET\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        request(service, host, *[f"X-{i}: y" for i in range(200)]), request(service, host, "X: " + "y" * 70_000), b"\x16\x03\x01garbage",
        request(service, host, method="BREW"), request(service, host, "Content-Length: 100", *["X: y"], body=b"short")[:20],
    ):  # fmt: skip
        try:
            with connected(service) as connection:
                connection.sendall(data)
                connection.settimeout(2)
                answer = connection.recv(100)
        except OSError:
            continue  # it has closed already
        assert b" 200 " not in answer
    assert service.call("GET", "/customJobs") is not None
    assert "Traceback" not in "\n".join(service.out)


def test_idle_connections_do_not_keep_others_out(service):
    idle = [connected(service) for _ in range(100)]
    try:
        assert service.call("GET", "/customJobs") is not None
    finally:
        for connection in idle:
            connection.close()


def test_a_client_that_leaves_in_the_middle_leaves_nothing(service):
    (service.state / "buckets" / "up-load").mkdir(parents=True, exist_ok=True)
    lines = [f"Host: localhost:{service.port}", f"Authorization: Bearer {service.token}", "Content-Length: 1000000"]
    with connected(service) as connection:
        path = "/upload/storage/v1/b/up-load/o?uploadType=media&name=half"
        connection.sendall(request(service, *lines, path=path, body=b"x" * 1000))
    end = time.time() + 20
    while any((service.state / "serve" / "uploads").iterdir()) and time.time() < end:
        time.sleep(0.05)
    assert not any((service.state / "serve" / "uploads").iterdir())
    assert not (service.state / "buckets" / "up-load" / "half").exists()


def test_the_guards_hold_over_tls(service):
    trust = ssl.create_default_context(cafile=str(service.state / "serve" / "ca.pem"))
    connection = http.client.HTTPSConnection("localhost", service.port, context=trust, timeout=20)
    mine = token(service)
    for headers, code in ((mine, 200), ({}, 401), ({**mine, "Origin": "x"}, 403), ({**mine, "Host": "x"}, 403)):
        connection.request("GET", f"{PARENT}/customJobs", headers=headers)
        response = connection.getresponse()
        response.read()
        assert response.status == code
    with pytest.raises(ssl.SSLCertVerificationError):
        wire(service, b"", ssl.create_default_context())


# ------------------------------------------------------------------ names that lead elsewhere

ESCAPES = ("..", "../x", "../../x", "a/../../x", "/etc/passwd", "a//b", "./x", "a/./x", "x\0y", "x\ny", "a/" + "b" * 300, "c" * 1100, "")


def quoted(name: str) -> str:
    return "".join(f"%{byte:02x}" for byte in name.encode())


@pytest.mark.parametrize("name", ESCAPES)
def test_an_objects_name_does_not_leave_its_bucket(service, name):
    (service.state / "buckets" / "safe-one").mkdir(parents=True, exist_ok=True)
    before = sorted(path for path in service.folder.rglob("*") if "serve/" not in str(path))
    upload = "/upload/storage/v1/b/safe-one/o?uploadType="
    about = json.dumps({"name": name}).encode()
    multi = b"--m\r\n\r\n" + about + b"\r\n--m\r\n\r\nevil\r\n--m--"
    json_type = {"Content_Type": "application/json"}
    service.storage("POST", f"{upload}media&name={quoted(name)}", b"evil", 400)
    service.storage("POST", f"{upload}multipart", multi, 400, Content_Type="multipart/related; boundary=m")
    service.storage("POST", f"{upload}resumable", about, 400, **json_type)
    write_object(service, "safe-one/a.txt", "a")
    if name:
        path = f"/storage/v1/b/safe-one/o/{quoted(name)}"
        service.storage("GET", f"{path}?alt=media", code=400)
        service.storage("DELETE", path, code=400)
        service.storage("POST", f"/storage/v1/b/safe-one/o/a.txt/copyTo/b/safe-one/o/{quoted(name)}", b"{}", 400, **json_type)
    parts = json.dumps({"sourceObjects": [{"name": name}]}).encode()
    service.storage("POST", "/storage/v1/b/safe-one/o/new/compose", parts, 400, **json_type)
    (service.state / "buckets" / "safe-one" / "a.txt").unlink()
    assert sorted(path for path in service.folder.rglob("*") if "serve/" not in str(path)) == before


@pytest.mark.parametrize("bucket", ["..", "%2e%2e", "%2e%2e%2fserve", ".uploads", "serve", "%2Fetc", "UPPER", "a%00b"])
def test_a_buckets_name_does_not_leave_the_root(service, bucket):
    for path in (f"/storage/v1/b/{bucket}", f"/storage/v1/b/{bucket}/o", f"/storage/v1/b/{bucket}/o/token?alt=media"):
        code, _, text = service.raw("GET", path, None, token(service))
        assert code in (400, 404) and service.token not in text.decode()
    name = json.dumps({"name": bucket}).encode()
    code, _, _ = service.raw("POST", "/storage/v1/b", name, {**token(service), **JSON})
    assert code == (200 if bucket == "serve" else 400)
    if bucket == "serve":  # a bucket of that name, not the service's own folder
        (service.state / "buckets" / "serve").rmdir()


def test_links_lead_nowhere(service, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("the secret")
    bucket = service.state / "buckets" / "linked-one"
    bucket.mkdir(parents=True)
    (bucket / "file").symlink_to(secret / "key")
    (bucket / "folder").symlink_to(secret)
    (service.state / "buckets" / "linked-two").symlink_to(secret)
    for name in ("file", "folder%2Fkey"):
        path = f"/storage/v1/b/linked-one/o/{name}"
        for method, query in (("GET", "?alt=media"), ("GET", ""), ("DELETE", "")):
            _, text = service.storage(method, path + query, code=403)
            assert b"the secret" not in text
        service.storage("POST", f"/upload/storage/v1/b/linked-one/o?uploadType=media&name={name}", b"evil", 403)
    service.storage("POST", "/upload/storage/v1/b/linked-one/o?uploadType=media&name=folder%2Fnew", b"evil", 403)
    service.storage("GET", "/storage/v1/b/linked-two/o/key?alt=media", code=400)
    assert json.loads(service.storage("GET", "/storage/v1/b/linked-one/o")[1]) == {"kind": "storage#objects"}
    service.storage("GET", "/storage/v1/b/linked-one/o?prefix=folder/", code=403)
    for name in ("linked-one/file", "linked-two/key"):
        model = {"displayName": "m", "artifactUri": f"gs://{name}", "containerSpec": {"imageUri": "i"}}
        service.call("POST", "/models:upload", {"model": model}, code=400)
        source = {"inputConfig": {"gcsSource": {"uri": [f"gs://{name}"]}}}
        schema = "gs://google-cloud-aiplatform/schema/dataset/metadata/tabular_1.0.0.yaml"
        service.call("POST", "/datasets", {"displayName": "d", "metadataSchemaUri": schema, "metadata": source}, code=400)
    assert (secret / "key").read_text() == "the secret" and sorted(os.listdir(secret)) == ["key"]


def test_deleting_a_record_that_was_tampered_with_touches_no_file(service, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "x").touch()
    number = service.create("pass")
    service.ended(number)
    elsewhere = os.path.relpath(victim, service.state / "jobs")
    with sqlite3.connect(service.state / "records.sqlite") as base:
        ((name, text),) = base.execute("SELECT name, document FROM resources WHERE name LIKE ?", (f"%/{number}",)).fetchall()
        document = {**json.loads(text), "name": f"{name.rpartition('/')[0]}/{elsewhere}", "folder": str(victim)}
        base.execute("UPDATE resources SET document = ? WHERE name = ?", (json.dumps(document), name))
    base.close()
    (service.state / "jobs" / "linked").symlink_to(victim)
    query = {"resourceNames": ["projects/p"], "filter": ""}
    assert service.call("POST", "/v2/entries:list", query, base="") is not None
    service.call("DELETE", f"/customJobs/{number}")
    service.call("DELETE", "/customJobs/linked", code=404)
    for path in ("..%2F..%2Fserve", "..", f"{quoted(elsewhere)}", "%2e%2e"):
        assert service.raw("DELETE", f"{PARENT}/customJobs/{path}", None, token(service))[0] in (404, 501)
    assert (victim / "x").exists() and (service.state / "jobs" / number).is_dir()


def test_a_header_cannot_be_smuggled_through_metadata(service):
    (service.state / "buckets" / "safe-one").mkdir(parents=True, exist_ok=True)
    about = json.dumps({"name": "h", "contentType": "text/plain\r\nAccess-Control-Allow-Origin: *"}).encode()
    body = b"--m\r\n\r\n" + about + b"\r\n--m\r\n\r\nx\r\n--m--"
    service.storage("POST", "/upload/storage/v1/b/safe-one/o?uploadType=multipart", body, 400, Content_Type="multipart/related; boundary=m")
    assert not (service.state / "buckets" / "safe-one" / "h").exists()


def test_the_access_log_is_one_line_a_request(service):
    service.raw("GET", "/x%0d%0ainjected", None, token(service))
    wire(service, b"GET /\x1b[31m HTTP/1.1\r\nHost: x\r\n\r\n")
    lines = (service.state / "serve" / "access.log").read_text().splitlines()
    assert all(line[:2] == "20" and line.isprintable() for line in lines)


def test_nobody_else_reads_the_token_from_the_process_list(service):
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True)
    assert listed.returncode == 0 and service.token not in listed.stdout
