"""Raw predictions: the container's own JSON in and out, by the SDK's dedicated endpoints over REST and by gRPC."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.datastructures import QueryParams

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("cryptography", reason="without cryptography the service has no TLS")

import grpc  # noqa: E402
from google.api import httpbody_pb2  # noqa: E402
from google.api_core import exceptions  # noqa: E402
from google.cloud import aiplatform  # noqa: E402
from google.cloud.aiplatform_v1 import PredictionServiceClient, RawPredictRequest  # noqa: E402
from google.cloud.aiplatform_v1.services.prediction_service.transports import PredictionServiceGrpcTransport  # noqa: E402
from test_local_support import environ  # noqa: E402
from test_serve_rpc import PARENT, House, deploy, endpoint, house, refused  # noqa: E402, F401
from test_serve_support import Service, write_object  # noqa: E402

from vertex_local.serve.rest import Request  # noqa: E402

IMAGE = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"
JSON = {"Content-Type": "application/json"}
# Stands in for the process that holds a SavedModel, which takes TensorFlow's time to start: it adds up each instance's inputs.
SUMS = f"""#!{sys.executable}
import json, sys
def answer(instance):
    if isinstance(instance, dict):
        return {{"sum": sum(instance.values()), "n": len(instance)}}
    return instance * 2
for line in sys.stdin:
    try:
        found = {{"predictions": [answer(each) for each in json.loads(line)["instances"]]}}
    except TypeError as error:
        found = {{"error": f"0: {{error}}"}}
    print(json.dumps(found), flush=True)
"""


def ask_raw(house: House, endpoint: str, content: object, kind: str = "application/json"):  # noqa: F811
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return house.call("RawPredict", endpoint=endpoint, http_body=httpbody_pb2.HttpBody(content_type=kind, data=data))


def test_rows_and_columns_are_answered_in_kind(house, endpoint):  # noqa: F811
    house.done(deploy(house, endpoint, "7", n7=100))
    answered = ask_raw(house, endpoint, {"instances": [1, {"a": 2}]})
    assert json.loads(answered.message.data) == {"predictions": [1, {"a": 2}]}
    assert answered.headers["X-Vertex-AI-Endpoint-Id"] == "e" and answered.headers["X-Vertex-AI-Deployed-Model-Id"] == "7"
    assert answered.headers["X-Vertex-AI-Model"].endswith("/models/m") and answered.headers["X-Vertex-AI-Model-Version-Id"] == "1"
    columns = ask_raw(house, endpoint, {"inputs": {"a": [1, 2], "b": [[3], [4]]}, "signature_name": "serving_default"})
    assert json.loads(columns.message.data) == {"outputs": {"a": [1, 2], "b": [[3], [4]]}}
    assert json.loads(ask_raw(house, endpoint, {"inputs": [5, 6]}).message.data) == {"outputs": [5, 6]}


@pytest.mark.parametrize(
    "content, says",
    [
        (b"{", "not JSON"), ([1], "takes"), ({}, "takes"), ({"instances": [1], "inputs": [1]}, "takes"),
        ({"instances": []}, "at least one"), ({"instances": {"a": 1}}, "at least one"),
        ({"inputs": {}}, "for each input"), ({"inputs": {"a": 1}}, "for each input"),
        ({"inputs": {"a": [1], "b": [1, 2]}}, "columns of one length"), ({"instances": [1], "signature_name": "x"}, "serving_default"),
        ({"instances": [1], "instance": 1}, "an unknown field instance"), (b"[" * 100_000, "not JSON"),
    ],
)  # fmt: skip
def test_a_body_that_the_container_would_refuse_is_named(house, endpoint, content, says):  # noqa: F811
    house.done(deploy(house, endpoint, "1", n1=100))
    assert says in refused(lambda: ask_raw(house, endpoint, content), "INVALID_ARGUMENT", "httpBody")


def test_only_json_and_only_so_much(house, endpoint):  # noqa: F811
    assert "text/csv" in refused(lambda: ask_raw(house, endpoint, b"1,2", "text/csv"), "INVALID_ARGUMENT", "httpBody.contentType")
    large = {"instances": ["x" * 1_500_000]}
    assert "1,500,000 bytes" in refused(lambda: ask_raw(house, endpoint, large), "INVALID_ARGUMENT")
    assert "traffic" in refused(lambda: ask_raw(house, endpoint, {"instances": [1]}), "FAILED_PRECONDITION")
    house.call("CreateEndpoint", parent=PARENT, endpoint={"display_name": "d", "dedicated_endpoint_enabled": True}, endpoint_id="d")
    dedicated = f"{PARENT}/endpoints/d"
    house.done(deploy(house, dedicated, "1", n1=100))
    assert json.loads(ask_raw(house, dedicated, large).message.data) == {"predictions": large["instances"]}


def test_over_http_the_body_and_the_answer_are_the_containers(house, endpoint):  # noqa: F811
    house.done(deploy(house, endpoint, "1", n1=100))
    for verb in ("rawPredict", "streamRawPredict"):
        data = b'{"instances": [null, "\\u00e9"]}'
        kind = {"content-type": "application/json"}
        answer = house.rest.handle(Request("POST", f"/v1/{endpoint}:{verb}", QueryParams(), kind, len(data), io.BytesIO(data)))
        assert answer.code == 200 and json.loads(answer.content) == {"predictions": [None, "é"]}
        assert answer.headers["Content-Type"] == "application/json" and answer.headers["X-Vertex-AI-Deployed-Model-Id"] == "1"


# ------------------------------------------------------------------ the SDK


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    program = folder / "sums"
    program.write_text(SUMS)
    program.chmod(0o755)
    started = Service(folder, f"--python={program}", "--project=my-project", "--region=us-central1")
    yield started
    assert started.stop() == 0


@pytest.fixture
def model(service, monkeypatch):
    for name, value in service.endpoint.environment().items():
        monkeypatch.setenv(name, value)
    aiplatform.init(**service.init_arguments)
    write_object(service, "bucket/model/saved_model.pb", b"")
    return aiplatform.Model.upload(display_name="m", artifact_uri="gs://bucket/model", serving_container_image_uri=IMAGE)


def test_the_sdk_asks_a_dedicated_endpoint_here(service, model):
    dedicated = aiplatform.Endpoint.create("d", dedicated_endpoint_enabled=True)
    assert dedicated.dedicated_endpoint_dns == service.endpoint.address
    model.deploy(dedicated, machine_type="n1-standard-2")
    response = dedicated.raw_predict(json.dumps({"instances": [{"a": 1, "b": 2}]}).encode(), JSON)
    assert response.status_code == 200 and response.json() == {"predictions": [{"sum": 3, "n": 2}]}
    assert response.headers["X-Vertex-AI-Endpoint-Id"] == dedicated.name
    lines = list(dedicated.stream_raw_predict(b'{"inputs": {"a": [1, 2], "b": [3, 4]}}', JSON))
    assert json.loads(b"".join(lines)) == {"outputs": {"sum": [4, 6], "n": [2, 2]}}
    assert dedicated.predict([4]).predictions == [8], "over its own address, too"
    answer = dedicated.predict([4], use_raw_predict=True)
    assert answer.predictions == [8] and answer.model_resource_name == model.resource_name and answer.model_version_id == "1"
    bad = dedicated.raw_predict(b'{"instances": [null]}', JSON)
    assert bad.status_code == 400 and "instances: 0: unsupported operand" in bad.json()["error"]["message"]
    assert dedicated.raw_predict(b"x", {"Content-Type": "text/plain"}).status_code == 415
    assert aiplatform.Endpoint.list(filter='display_name="d"')[0].dedicated_endpoint_dns == service.endpoint.address


def test_over_grpc_headers_are_metadata(service, model):
    shared = aiplatform.Endpoint.create("s")
    model.deploy(shared, machine_type="n1-standard-2")
    # gRPC reads the variable with the authorities once in a process, and another file of tests may have led it elsewhere.
    authority = grpc.ssl_channel_credentials(Path(service.endpoint.ca_file).read_bytes())
    transport = PredictionServiceGrpcTransport(
        host=service.endpoint.grpc, credentials=service.endpoint.credentials(), ssl_channel_credentials=authority
    )
    client = PredictionServiceClient(transport=transport)
    body = httpbody_pb2.HttpBody(content_type="application/json", data=b'{"instances": [1.5]}')
    answer = client.raw_predict(endpoint=shared.resource_name, http_body=body)
    assert answer.content_type == "application/json" and json.loads(answer.data) == {"predictions": [3.0]}
    request = {"endpoint": shared.resource_name, "http_body": body}
    assert [json.loads(each.data) for each in client.stream_raw_predict(request)] == [{"predictions": [3.0]}]
    with pytest.raises(exceptions.InvalidArgument, match="takes application/json"):
        list(client.stream_raw_predict({"endpoint": shared.resource_name, "http_body": {"content_type": "text/csv", "data": b"1"}}))
    call = client.transport.grpc_channel.unary_unary(
        "/google.cloud.aiplatform.v1.PredictionService/RawPredict", lambda message: message, httpbody_pb2.HttpBody.FromString
    )
    _, found = call.with_call(RawPredictRequest.serialize(RawPredictRequest(request)))
    assert ("x-vertex-ai-endpoint-id", shared.name) in [tuple(each) for each in found.initial_metadata()]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")
def test_gcloud_asks_any_endpoint_here(service, model, tmp_path):
    shared = aiplatform.Endpoint.create("g")
    model.deploy(shared, machine_type="n1-standard-2")
    body = '--request={"inputs": {"a": [1], "b": [2]}}'
    command = ["gcloud", "ai", "endpoints", "raw-predict", shared.name, "--region=us-central1", body]
    env = environ(**service.endpoint.environment(), CLOUDSDK_CONFIG=str(tmp_path), CLOUDSDK_CORE_DISABLE_PROMPTS="1")
    json_body = "--http-headers=content-type=application/json"
    done = subprocess.run([*command, json_body], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout) == {"outputs": {"sum": [3], "n": [2]}}, done.stderr
