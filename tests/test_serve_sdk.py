"""The local job service as `serve` says that it is asked, over TLS: the snippet, storage, the certificate; the SDK: sdk_program.py."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from conftest import ROOT
from test_serve_support import Service

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")

from google.cloud import aiplatform, storage  # noqa: E402

BUCKET = "sdk-bucket"
SERVING = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
TRAINING = "us-docker.pkg.dev/vertex-ai/training/tf-cpu.2-17.py310:latest"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("sdk"), f"--project_dir={ROOT}", "--project=my-project", "--region=us-central1")
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def sdk(service, monkeypatch):
    """Do what `serve` prints: export the lines of `env`, run the snippet."""
    for name, value in service.endpoint.environment().items():
        monkeypatch.setenv(name, value)
    text = "\n".join(service.out)
    snippet = text[text.index("import google.oauth2.credentials") : text.index("\n\nNot to be redirected")]
    exec(snippet.replace("gs://your-bucket", f"gs://{BUCKET}"), {})
    client = storage.Client("my-project", credentials=aiplatform.initializer.global_config.credentials)
    if client.lookup_bucket(BUCKET) is None:
        client.create_bucket(BUCKET)
    return client


def test_storage_with_sums_in_both_directions(service, sdk, tmp_path):
    bucket = sdk.bucket(BUCKET)
    (tmp_path / "big").write_bytes(b"0123456789" * 1_000_000)
    for chunk in (None, 1 << 20):  # in one request, and as a resumable upload in pieces
        blob = bucket.blob("folder/big", chunk_size=chunk)
        blob.upload_from_filename(str(tmp_path / "big"), checksum="crc32c")
        blob.reload()
        assert blob.size == 10_000_000 and blob.md5_hash and blob.crc32c
        assert blob.download_as_bytes(checksum="md5") == (tmp_path / "big").read_bytes()
    assert [blob.name for blob in sdk.list_blobs(BUCKET, prefix="folder/")] == ["folder/big"]
    bucket.copy_blob(blob, bucket, "copy")
    bucket.blob("copy").delete()
    assert not (service.state / "buckets" / BUCKET / "copy").exists()
    assert not bucket.blob("nothing").exists()


def test_openssl_agrees_on_the_certificate(service):
    """Made for localhost, by nobody else, and not for long."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["openssl", "x509", "-noout", "-text", "-in", str(service.state / "serve" / "cert.pem")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "DNS:localhost, IP Address:127.0.0.1" in text and "CN" in text
