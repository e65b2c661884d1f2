"""Cloud Storage's JSON API of the local service, asked by google-cloud-storage and byte by byte: one service for all cases."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import gzip
import hashlib
import itertools
import json
import os
import threading
import urllib.parse
from pathlib import Path

import pytest
from test_serve_support import Service

storage = pytest.importorskip("google.cloud.storage")

from google.api_core import exceptions  # noqa: E402
from google.cloud.storage import transfer_manager  # noqa: E402

from vertex_local.job import buckets  # noqa: E402
from vertex_local.serve import storage_files, storage_upload  # noqa: E402

NUMBERS = itertools.count(1)
JSON = {"Content_Type": "application/json"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("storage-api"), "--no_token", fresh=True)
    yield started
    started.stop()


@pytest.fixture
def client(service, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", service.endpoint.storage_url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", service.endpoint.ca_file)
    monkeypatch.setenv("NO_PROXY", "*")
    return storage.Client()


@pytest.fixture
def bucket(client):
    return client.create_bucket(f"api-test-{next(NUMBERS)}")


@pytest.fixture
def folder(service, bucket) -> Path:
    """Where the bucket lies, as a job sees it."""
    return service.state / "buckets" / bucket.name


def crc32c(content: bytes) -> str:
    import google_crc32c

    return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def write(folder: Path, name: str, content: str = "x") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def at_once(*calls) -> None:
    """Begin all calls at the same time and wait for their ends."""
    barrier, failed = threading.Barrier(len(calls)), []

    def one(call) -> None:
        try:
            barrier.wait()
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ------------------------------------------------------------------ content, both ways


@pytest.mark.parametrize("size", [0, 1, 1000, 3 << 20])
@pytest.mark.parametrize("chunk", [None, 1 << 18])
def test_content_comes_back_as_it_went(bucket, folder, size, chunk):
    content = os.urandom(size)
    blob = bucket.blob("folder/a b+ü#?%2f", chunk_size=chunk)
    blob.upload_from_string(content, content_type="text/x-test")
    assert (folder / blob.name).read_bytes() == content and blob.content_type == "text/x-test"
    assert (blob.size, blob.md5_hash, blob.crc32c) == (size, md5(content), crc32c(content))
    again = bucket.blob(blob.name, chunk_size=chunk)
    assert again.download_as_bytes() == content
    for checksum in ("md5", "crc32c"):
        assert bucket.blob(blob.name).download_as_bytes(checksum=checksum) == content
    with blob.open("rb", chunk_size=1 << 18) as file:
        assert file.read() == content


@pytest.mark.parametrize(
    "start, end, part", [(0, None, slice(0, None)), (5, 9, slice(5, 10)), (90, 500, slice(90, 100)), (-7, None, slice(-7, None))]
)
def test_parts_of_an_object(bucket, start, end, part):
    content = os.urandom(100)
    bucket.blob("x").upload_from_string(content)
    assert bucket.blob("x").download_as_bytes(start=start, end=end) == content[part]


def test_the_transfer_managers_ways(bucket, tmp_path):
    content = os.urandom(5 << 20)
    for name in ("a", "b/c"):
        write(tmp_path, name).write_bytes(content + name.encode())
    done = transfer_manager.upload_many_from_filenames(bucket, ["a", "b/c"], str(tmp_path), worker_type="thread")
    assert done == [None, None]
    (tmp_path / "down").mkdir()
    done = transfer_manager.download_many_to_path(bucket, ["a", "b/c"], str(tmp_path / "down"), worker_type="thread")
    assert done == [None, None] and (tmp_path / "down" / "b" / "c").read_bytes() == content + b"b/c"
    transfer_manager.download_chunks_concurrently(bucket.blob("a"), str(tmp_path / "chunks"), chunk_size=1 << 20, worker_type="thread")
    assert (tmp_path / "chunks").read_bytes() == content + b"a"


def test_what_is_packed_is_unpacked_by_its_client(bucket):
    blob = bucket.blob("x.gz")
    blob.content_encoding, blob.cache_control = "gzip", "no-store"
    blob.upload_from_string(gzip.compress(b"content"))
    assert bucket.blob("x.gz").download_as_bytes() == b"content"
    assert gzip.decompress(bucket.blob("x.gz").download_as_bytes(raw_download=True)) == b"content"


def test_copies_and_what_is_put_together(client, bucket):
    other = client.create_bucket(f"api-test-{next(NUMBERS)}")
    source = bucket.blob("a")
    source.metadata = {"k": "v"}
    source.upload_from_string(b"a" * 3_000_000, content_type="text/plain")
    bucket.copy_blob(source, other, "copied")
    token, done, size = other.blob("rewritten").rewrite(source)
    assert (token, done, size) == (None, 3_000_000, 3_000_000)
    for name in ("copied", "rewritten"):
        found = other.get_blob(name)
        assert (found.metadata, found.content_type, found.md5_hash) == ({"k": "v"}, "text/plain", source.md5_hash)
    bucket.blob("b").upload_from_string(b"b")
    both = bucket.blob("both")
    both.content_type = "text/both"
    both.compose([source, bucket.blob("b")])
    assert both.download_as_bytes() == b"a" * 3_000_000 + b"b" and both.component_count == 2 and both.content_type == "text/both"
    renamed = bucket.rename_blob(bucket.blob("b"), "c")
    assert renamed.download_as_bytes() == b"b" and not bucket.blob("b").exists()


# ------------------------------------------------------------------ conditions


def test_each_operation_keeps_its_conditions(bucket):
    blob = bucket.blob("x")
    blob.upload_from_string(b"1")
    now, other = blob.generation, blob.generation + 1
    target = bucket.blob("y")
    operations = {
        "upload": lambda **match: bucket.blob("x").upload_from_string(b"2", **match),
        "resumable": lambda **match: bucket.blob("x", chunk_size=1 << 18).upload_from_string(b"2" * (1 << 19), **match),
        "download": lambda **match: bucket.blob("x").download_as_bytes(**match),
        "reload": lambda **match: bucket.blob("x").reload(**match),
        "patch": lambda **match: bucket.blob("x").patch(**match),
        "delete": lambda **match: bucket.blob("x").delete(**match),
        "compose": lambda **match: bucket.blob("x").compose([blob], **match),
        "rewrite": lambda **match: bucket.blob("x").rewrite(blob, **match),
    }
    for name, operation in operations.items():
        for match in ({"if_generation_match": 0}, {"if_generation_match": other}, {"if_metageneration_match": 9}):
            with pytest.raises(exceptions.PreconditionFailed):
                operation(**match)
                pytest.fail(f"{name} with {match}")
    for match in ({"if_source_generation_match": other}, {"if_source_metageneration_match": 9}):
        with pytest.raises(exceptions.PreconditionFailed):
            target.rewrite(blob, **match)
    with pytest.raises(exceptions.PreconditionFailed):
        target.compose([blob], if_source_generation_match=[other])
    with pytest.raises(exceptions.NotFound):
        target.rewrite(bucket.blob("x", generation=other))
    assert not target.exists() and bucket.get_blob("x").generation == now
    assert blob.exists(if_generation_match=now) and not bucket.blob("x", generation=other).exists()
    target.rewrite(blob, if_generation_match=0, if_source_generation_match=now)
    bucket.blob("x").delete(if_generation_match=now, if_metageneration_match=1)
    assert not blob.exists()


def test_a_read_of_what_has_not_changed_sends_nothing(service, bucket):
    bucket.blob("x").upload_from_string(b"1")
    generation = bucket.get_blob("x").generation
    for media in ("", "&alt=media"):
        path = f"/storage/v1/b/{bucket.name}/o/x?ifGenerationNotMatch={generation}{media}"
        assert service.storage("GET", path, code=304)[1] == b""


def test_conditions_on_etags(bucket):
    bucket.blob("x").upload_from_string(b"1")
    etag = bucket.get_blob("x").etag
    assert bucket.get_blob("x", if_etag_match=etag).etag == etag and bucket.blob("x").exists(if_etag_match=[etag, "other"])
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.get_blob("x", if_etag_match="other")
    with pytest.raises(exceptions.NotModified):
        bucket.blob("x").download_as_bytes(if_etag_not_match=etag)


def test_what_is_read_while_it_is_replaced_is_of_one_piece(bucket):
    """Content and checksum of two generations would be taken for damage by the client."""
    bucket.blob("x").upload_from_string(b"0" * 1000)

    def write_often() -> None:
        for i in range(1, 40):
            bucket.blob("x").upload_from_string(f"{i % 10}".encode() * 1000 * i)

    def read_often() -> None:
        for _ in range(80):
            assert len(set(bucket.blob("x").download_as_bytes())) == 1

    at_once(write_often, read_often, read_often)


@pytest.mark.parametrize("size", [5, 3 << 20])
def test_what_is_copied_is_the_generation_that_was_asked_for(tmp_path, size):
    """A copy's conditions are checked before its source is read, and the source may be replaced in between."""
    path = tmp_path / "x"
    path.write_bytes(b"a" * size)
    source = storage_files.Stored("bucket", "x", path, size, storage_files.generation_of(path.stat()))
    assert b"".join(source.pieces()) == b"a" * size
    pieces = source.pieces()
    first = next(pieces)
    (tmp_path / "new").write_bytes(b"b" * size)
    os.utime(tmp_path / "new", (1, 1))
    os.replace(tmp_path / "new", path)
    assert first + b"".join(pieces) == b"a" * size, "it reads on what it has begun to read"
    for change in (lambda: None, lambda: path.write_bytes(b""), path.unlink):
        change()
        with pytest.raises(storage_files.Replaced, match="bucket/x was replaced while it was read; try again"):
            b"".join(source.pieces())


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["none", "the same"])
def test_of_two_writers_one_wins(client, bucket, generation):
    for i in range(50):
        name, match = f"lock-{i}", 0
        if generation == "the same":
            first = bucket.blob(name)
            first.upload_from_string(b"first")
            match = first.generation
        won = []

        def take(who: bytes, name=name, match=match, won=won) -> None:
            with contextlib.suppress(exceptions.PreconditionFailed):
                bucket.blob(name).upload_from_string(who, if_generation_match=match)
                won.append(who)

        at_once(lambda take=take: take(b"a"), lambda take=take: take(b"b"))
        assert len(won) == 1 and bucket.blob(name).download_as_bytes() == won[0]


def test_each_write_has_a_generation_of_its_own(service, bucket):
    """The file system's clock ticks every few milliseconds; a generation that came twice would let two writers in."""
    path, seen = f"/upload/storage/v1/b/{bucket.name}/o?uploadType=media&name=x", []

    def write_often() -> None:
        for _ in range(100):
            seen.append(json.loads(service.storage("POST", path, b"x")[1])["generation"])

    at_once(*[write_often] * 4)
    assert len(set(seen)) == 400
    assert bucket.get_blob("x").generation == max(map(int, seen))


def test_a_generation_never_goes_back(bucket, folder):
    """Also not after a job whose clock goes ahead."""
    later = (write(folder, "x").stat().st_mtime + 3600,) * 2
    os.utime(folder / "x", later)
    before = bucket.get_blob("x").generation
    for _ in range(3):
        blob = bucket.blob("x")
        blob.upload_from_string(b"x", if_generation_match=before)
        assert blob.generation > before
        before = blob.generation


@pytest.mark.slow
def test_the_lock_holds_over_two_services(service, bucket, folder, tmp_path):
    other = Service(tmp_path, "--no_token", f"--bucket_root={folder.parent}")
    try:
        for i in range(100):
            path, codes = f"/upload/storage/v1/b/{bucket.name}/o?uploadType=media&name=x{i}&ifGenerationMatch=0", []
            at_once(*[lambda at=at, path=path, codes=codes: codes.append(at.raw("POST", path, b"x")[0]) for at in (service, other) * 2])
            assert sorted(codes) == [200, 412, 412, 412]
    finally:
        other.stop()


# ------------------------------------------------------------------ metadata


def test_metadata_changes_beside_the_content(bucket):
    blob = bucket.blob("x")
    blob.metadata = {"a": "1", "b": "2"}
    blob.upload_from_string(b"content")
    generation = blob.generation
    blob.metadata, blob.cache_control = {"a": "1", "c": "3"}, "no-store"
    blob.patch(if_metageneration_match=1)
    found = bucket.get_blob("x")
    assert found.metadata["a"] == "1" and found.metadata["c"] == "3" and found.cache_control == "no-store"
    assert (found.generation, found.metageneration, found.md5_hash) == (generation, 2, md5(b"content"))
    assert found.updated > found.time_created
    with pytest.raises(exceptions.PreconditionFailed):
        blob.patch(if_metageneration_match=1)
    found.metadata = None
    found.update()
    assert bucket.get_blob("x").metadata is None and bucket.get_blob("x").download_as_bytes() == b"content"


def test_what_a_job_writes_again_has_lost_its_metadata(bucket, folder):
    blob = bucket.blob("x")
    blob.metadata = {"a": "1"}
    blob.upload_from_string(b"content", content_type="text/plain")
    write(folder, "x", "written")
    found = bucket.get_blob("x")
    assert found.metadata is None and found.generation > blob.generation
    assert (found.size, found.crc32c) == (7, crc32c(b"written")) and found.download_as_bytes() == b"written"


# ------------------------------------------------------------------ lists

NAMES = ("a", "a.b", "a/b", "a/b.c", "a/b/c", "a/b/d", "a0", "b/c/d/e", "z", "ü/ü")


@pytest.mark.parametrize("delimiter", [None, "/", "b"])
@pytest.mark.parametrize("prefix", [None, "a", "a/", "a/b", "a/b/", "b/c/", "ü", "none/"])
@pytest.mark.parametrize("size", [None, 1, 3])
def test_a_list_is_what_the_names_say(client, service, delimiter, prefix, size):
    """Against the rule written down: names in the order of their bytes, what the delimiter cuts off as one prefix."""
    bucket = client.bucket("list-test")
    names = [name for name in NAMES if name not in ("a", "a/b")]  # of which a folder has the name
    for name in names:
        write(service.state / "buckets" / "list-test", name)
    (service.state / "buckets" / "list-test" / "a" / "empty" / "folder").mkdir(parents=True, exist_ok=True)
    items, prefixes = [], []
    for name in sorted(names, key=str.encode):
        if name.startswith(prefix or ""):
            cut = name.find(delimiter, len(prefix or "")) if delimiter else -1
            (items if cut < 0 else prefixes).append(name if cut < 0 else name[: cut + 1])
    found = client.list_blobs(bucket, prefix=prefix, delimiter=delimiter, page_size=size)
    assert [blob.name for blob in found] == items
    assert found.prefixes == set(prefixes)


def test_offsets_and_pages(client, bucket, folder):
    for i in range(25):
        write(folder, f"d{i % 3}/n{i:02}")
    everything = [blob.name for blob in bucket.list_blobs()]
    assert everything == sorted(everything) and len(everything) == 25
    assert [blob.name for blob in bucket.list_blobs(start_offset="d0/n12", end_offset="d1/n04", page_size=2)] == everything[4:10]
    assert [blob.name for blob in bucket.list_blobs(max_results=7)] == everything[:7]
    first = bucket.list_blobs(page_size=10)
    page = next(first.pages)
    assert [blob.name for blob in page] == everything[:10]
    write(folder, "d0/n00a")
    (folder / everything[3]).unlink()
    rest = bucket.list_blobs(page_token=first.next_page_token)
    assert [blob.name for blob in rest] == everything[10:], "what comes and goes before it moves no page"


def test_a_list_computes_no_checksum_that_nobody_wants(bucket, folder):
    """Of a file of a tebibyte no checksum is computed in a test's time: a list before it would not have come to its end."""
    write(folder, "small", "content")
    with open(folder / "large", "wb") as file:
        file.truncate(1 << 40)
    found = {blob.name: blob for blob in bucket.list_blobs(fields="items(name,size),nextPageToken")}
    assert found["large"].size == 1 << 40 and found["small"].crc32c is None
    found = {blob.name: blob for blob in bucket.list_blobs()}
    assert found["small"].crc32c == crc32c(b"content") and found["large"].crc32c is None and found["large"].size == 1 << 40
    assert bucket.blob("large").exists()
    (folder / "large").unlink()
    found = {blob.name: blob for blob in bucket.list_blobs(fields="items(name,crc32c,md5Hash),nextPageToken")}
    assert (found["small"].md5_hash, found["small"].crc32c) == (md5(b"content"), crc32c(b"content"))


def test_buckets_are_listed_in_pages(client):
    names = sorted(client.create_bucket(f"pages-{next(NUMBERS)}").name for _ in range(5))
    assert [found.name for found in client.list_buckets(prefix="pages-", page_size=2)] == names


# ------------------------------------------------------------------ folders


def test_a_name_is_free_again_after_what_lay_below_it(bucket, folder):
    bucket.blob("a/b/c").upload_from_string(b"1")
    write(folder, "j/ob/wrote", "2")
    bucket.blob("a/b/c").delete()
    bucket.blob("j/ob/wrote").delete()
    for name in ("a", "j/ob"):
        bucket.blob(name).upload_from_string(b"3")
    assert (folder / "a").read_bytes() == b"3" and folder.is_dir()


def test_a_folder_with_something_in_it_stays(bucket, folder):
    bucket.blob("a/b/c").upload_from_string(b"1")
    (folder / "a" / "made-by-a-job").mkdir()
    bucket.blob("a/b/c").delete()
    assert (folder / "a" / "made-by-a-job").is_dir() and not (folder / "a" / "b").exists()


def test_a_placeholder_is_an_object_without_content(service, client, bucket, folder):
    (folder / "a-jobs" / "empty").mkdir(parents=True)
    write(folder, "b/x")
    assert not bucket.blob("a-jobs/").exists() and not bucket.blob("b/").exists(), "folders are no objects"
    bucket.blob("c/").upload_from_string(b"")
    assert (folder / "c").is_dir()
    bucket.blob("c/x").upload_from_string(b"1")
    assert {blob.name: blob.size for blob in bucket.list_blobs()} == {"b/x": 1, "c/": 0, "c/x": 1}
    found = bucket.get_blob("c/")
    assert found.size == 0 and found.generation > 10**15 and found.download_as_bytes() == b""
    bucket.blob("c/x").delete()
    assert bucket.blob("c/").exists(), "the placeholder stays where the last object goes"
    bucket.blob("c/").delete()
    assert not (folder / "c").exists() and not bucket.blob("c/").exists()


def test_a_bucket_goes_when_it_is_empty(client, bucket, folder):
    bucket.blob("a/b").upload_from_string(b"1")
    (folder / "empty").mkdir()
    with pytest.raises(exceptions.Conflict):
        bucket.delete()
    bucket.delete(force=True)
    assert not folder.exists() and not client.bucket(bucket.name).exists()


# ------------------------------------------------------------------ resumable uploads


def begin(service, bucket, name: str = "x", **about) -> str:
    path, body = f"/upload/storage/v1/b/{bucket.name}/o?uploadType=resumable", json.dumps({"name": name, **about}).encode()
    location = service.storage("POST", path, body, **JSON)[0]["Location"]
    assert location.startswith(f"{service.endpoint.url}/"), "as the request's base says"
    return location.partition(f":{service.port}")[2]


def test_an_upload_that_is_sent_again_shorter_keeps_no_tail(service, bucket, folder):
    session = begin(service, bucket)
    service.storage("PUT", session, b"a long first try", 308, Content_Range="bytes 0-15/*")
    made = json.loads(service.storage("PUT", session, b"short", Content_Range="bytes 0-4/5")[1])
    assert (folder / "x").read_bytes() == b"short" and made["size"] == "5" and made["md5Hash"] == md5(b"short")


def test_the_last_answer_can_be_asked_for_again(service, bucket):
    session = begin(service, bucket)
    first = service.storage("PUT", session, b"abc", Content_Range="bytes 0-2/3")[1]
    assert service.storage("PUT", session, b"", Content_Range="bytes */3")[1] == first
    assert service.storage("PUT", session, b"abc", Content_Range="bytes 0-2/3")[1] == first
    assert bucket.get_blob("x").generation == int(json.loads(first)["generation"])


def test_content_that_is_not_what_was_sent_is_refused(service, bucket):
    session = begin(service, bucket)
    _, text = service.storage("PUT", session, b"abc", 400, Content_Range="bytes 0-2/3", X_Goog_Hash="crc32c=AAAAAA==")
    assert "crc32c" in json.loads(text)["error"]["message"] and not bucket.blob("x").exists()
    path = f"/upload/storage/v1/b/{bucket.name}/o?uploadType=media&name=x"
    service.storage("POST", path, b"abc", 400, X_Goog_Hash="crc32c=AAAAAA==,md5=AAAAAAAAAAAAAAAAAAAAAA==")


def test_uploads_expire_and_are_limited(tmp_path, monkeypatch):
    old, new, half = (tmp_path / (letter * 32) for letter in "abc")
    for path in (old, new, half):
        path.write_text("content")
    for path in (old, new):
        path.with_suffix(".json").write_text("{}")
    long_ago = os.stat(new).st_mtime - storage_upload.EXPIRY - 1
    for path in (old, old.with_suffix(".json")):
        os.utime(path, (long_ago, long_ago))
    storage_upload.clear_uploads(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new.name, f"{new.name}.json"}

    class Local:
        state = tmp_path

    monkeypatch.setattr(storage_upload, "MOST_SESSIONS", 2)
    for _ in range(2):
        storage_upload.Session.begin(Local, {})
    with pytest.raises(storage_upload.ApiError, match="2 resumable uploads are open") as refused:
        storage_upload.Session.begin(Local, {})
    assert refused.value.code == 429


def test_two_requests_do_not_write_one_upload_at_once(service, bucket):
    session = begin(service, bucket)
    key = urllib.parse.parse_qs(session.partition("?")[2])["upload_id"][0]
    with open(service.state / "serve" / "uploads" / key, "r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        service.storage("PUT", session, b"abc", 503, Content_Range="bytes 0-2/3")
    service.storage("PUT", session, b"abc", Content_Range="bytes 0-2/3")


# ------------------------------------------------------------------ what a client may send

EVIL = {
    "lines of a header": b"--m\n" + b"a\n" * 2_000_000,
    "empty lines": b"\n" * 4_000_000,
    "headers": b"--m\n" + b"a:b\n" * 1_000_000,
    "marks": b"--m\n\n" + b"--m " * 1_000_000,
    "line ends": b"--m\r\n\r\n" + b"\r\n" * 2_000_000,
    "beginnings of a mark": b'--m\n\n{"name": "x"}\n--m\n\n' + b"\n-" * 2_000_000,
    "one line": b"--m\n" + b"a" * 4_000_000,
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_body_takes_time_in_proportion(service, bucket, kind):
    """42 kB of them once took seconds, and one MiB an hour: four of them have to be answered within a client's patience."""
    path = f"/upload/storage/v1/b/{bucket.name}/o?uploadType=multipart"
    code, _, _ = service.raw("POST", path, EVIL[kind], {"Content-Type": "multipart/related; boundary=m"})
    assert code in (400, 413)


@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
@pytest.mark.parametrize("content", [b"", b"x", b"\r\n", b"\n--m\n", b"\r\n--m--\r\n", b"y" * ((1 << 20) - 30), b"z" * ((2 << 20) + 5)])
def test_a_multipart_body_holds_any_content(service, bucket, folder, newline, content):
    about = json.dumps({"name": "multi", "metadata": {"long": "v" * 500}}).encode()
    parts = [b"", b"--m", b"Content-Type: application/json", b"", about, b"--m", b"content-type: a/b", b"", content, b"--m--", b""]
    path, kind = f"/upload/storage/v1/b/{bucket.name}/o?uploadType=multipart", "multipart/related; boundary='m'"
    made = json.loads(service.storage("POST", path, newline.join(parts), Content_Type=kind)[1])
    assert (folder / "multi").read_bytes() == content and made["contentType"] == "a/b" and made["md5Hash"] == md5(content)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "a/../b", "/a", "a//b", "."])
def test_names_that_are_no_paths(service, bucket, name):
    quoted = urllib.parse.quote(name, safe="")
    service.storage("POST", f"/upload/storage/v1/b/{bucket.name}/o?uploadType=media&name={quoted}", b"x", 400)
    service.storage("GET", f"/storage/v1/b/{bucket.name}/o/{quoted}", code=400)
    found = json.loads(service.storage("GET", f"/storage/v1/b/{bucket.name}/o?prefix={quoted}%2F")[1])
    assert "items" not in found


@pytest.mark.parametrize("name", ["your-bucket%2fdata", "your-bucket%2f", "%00", "your-bucket%00", "..%2fserve"])
def test_names_that_are_no_buckets(service, name):
    write(service.state / "buckets", "your-bucket/data/x")
    _, text = service.storage("GET", f"/storage/v1/b/{name}/o", code=400)
    assert "bucket name" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize(
    "query", ["maxResults=%D9%A3", "maxResults=-1", "maxResults=x", "pageToken=%C3%BC", "ifGenerationMatch=%D9%A3", "generation=x"]
)
def test_numbers_that_are_none(service, bucket, query):
    bucket.blob("x").upload_from_string(b"x")
    path = f"/storage/v1/b/{bucket.name}/o" + ("/x" if "eneration" in query else "")
    service.storage("GET", f"{path}?{query}", code=400)


@pytest.mark.parametrize("uri", ["gs://bucket/../../x", "gs://bucket/a/../..", "gs://bucket/a\0b", "/gcs/bucket", "gs://UPPER/x", "gs://"])
def test_a_folder_for_outputs_stays_in_its_bucket(uri):
    with pytest.raises(buckets.BucketError):
        buckets.check_folder(uri)


def test_a_job_whose_outputs_would_leave_their_bucket_is_refused(service):
    pool = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "containerSpec": {"imageUri": "i"}}
    for prefix in ("gs://b-ucket/../../x", "gs://b-ucket/x\0"):
        spec = {"workerPoolSpecs": [pool], "baseOutputDirectory": {"outputUriPrefix": prefix}}
        answer = service.call("POST", "/customJobs", {"displayName": "x", "jobSpec": spec}, code=400)
        assert "outputUriPrefix" in answer["error"]["message"]


def test_a_prefix_that_no_object_can_have_lists_nothing(client, bucket):
    """It once was asked of the file system, which has no such long names."""
    bucket.blob("x").upload_from_string(b"x")
    for prefix in ("a" * 300 + "/", "a/" * 600, "x//"):
        assert not list(bucket.list_blobs(prefix=prefix))


def test_a_pipe_is_no_object(bucket, folder):
    """To read it would wait for whoever writes to it."""
    bucket.blob("x").upload_from_string(b"x")
    os.mkfifo(folder / "pipe")
    assert [blob.name for blob in bucket.list_blobs()] == ["x"] and not bucket.blob("pipe").exists()
    with pytest.raises(exceptions.BadRequest, match="pipe is in the way"):
        bucket.blob("pipe").upload_from_string(b"x")
    assert (folder / "pipe").is_fifo()
    (folder / "pipe").unlink()


@pytest.mark.parametrize("method, path, body, says", [
    ("PATCH", "x", {"metadata": "text"}, "metadata takes lines of text by name; got 'text'"),
    ("PATCH", "x", {"metadata": {"a": 1}}, "metadata takes lines of text by name"),
    ("PATCH", "x", {"contentType": "a\x01b"}, "contentType takes one line of text"),
    ("PATCH", "x", {"contentType": "\ud800"}, "contentType takes one line of text"),
    ("POST", "y/compose", {"sourceObjects": [{"name": "x"}], "destination": ["a"]}, "metadata must be a JSON object; got list"),
    ("POST", "y/compose", {"sourceObjects": [{"name": 5}]}, "object name '5'"),
])  # fmt: skip
def test_wrong_metadata_is_the_clients_mistake(service, bucket, method, path, body, says):
    bucket.blob("x").upload_from_string(b"x")
    _, text = service.storage(method, f"/storage/v1/b/{bucket.name}/o/{path}", json.dumps(body).encode(), 400, **JSON)
    assert says in json.loads(text)["error"]["message"]
    assert bucket.blob("x").download_as_bytes() == b"x"


def test_a_header_of_any_language_comes_back(service, bucket):
    blob = bucket.blob("x")
    blob.content_disposition = "attachment; filename=\u2603.csv"
    blob.upload_from_string(b"x")
    headers, content = service.storage("GET", f"/storage/v1/b/{bucket.name}/o/x?alt=media")
    assert headers["Content-Disposition"].encode("latin-1").decode() == blob.content_disposition and content == b"x"


# ------------------------------------------------------------------ what is missing


@pytest.mark.parametrize(
    "method, path, body, feature",
    [
        ("GET", "/o?softDeleted=true", None, "Soft delete"),
        ("GET", "/o?matchGlob=*", None, "matchGlob"),
        ("GET", "/iam", None, "IAM"),
        ("POST", "/o/x/restore", {}, "Soft delete"),
        ("POST", "/o/x/moveTo/o/y", {}, "Moving"),
        ("GET", "/o/x/acl", None, "Access control lists"),
        ("GET", "/notificationConfigs", None, "Pub/Sub"),
        ("POST", "/lockRetentionPolicy", {}, "Bucket Lock"),
        ("PATCH", "", {"versioning": {"enabled": True}}, "Object versioning"),
        ("PATCH", "", {"lifecycle": {"rule": [{}]}}, "lifecycle"),
        ("PATCH", "/o/x", {"retention": {"mode": "Locked"}}, "Retention"),
    ],
)
def test_a_missing_feature_is_named(service, bucket, method, path, body, feature):
    bucket.blob("x").upload_from_string(b"x")
    data = None if body is None else json.dumps(body).encode()
    _, text = service.storage(method, f"/storage/v1/b/{bucket.name}{path}", data, 501, **(JSON if data else {}))
    assert feature in json.loads(text)["error"]["message"]


def test_labels_of_a_bucket(client, bucket):
    bucket.labels = {"a": "1"}
    bucket.patch()
    assert client.get_bucket(bucket.name).labels == {"a": "1"} and client.get_bucket(bucket.name).metageneration == 2


# ------------------------------------------------------------------ memory


def resident(service) -> int:
    """Return the most bytes that the service has had in memory."""
    text = Path("/proc", str(service.process.pid), "status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) << 10


@pytest.mark.slow
def test_a_large_object_takes_no_memory(service, bucket, folder, tmp_path):
    size = 1 << 30
    with open(folder / "large", "wb") as file:
        file.truncate(size)
    before = resident(service)
    bucket.blob("copy").rewrite(bucket.blob("large"))
    bucket.blob("copy").download_to_filename(str(tmp_path / "down"))
    bucket.blob("up").upload_from_filename(str(tmp_path / "down"))
    bucket.blob("both").compose([bucket.blob("copy"), bucket.blob("up")])
    assert (folder / "both").stat().st_size == 2 * size and resident(service) - before < 64 << 20
    for path in folder.iterdir():
        path.unlink()
