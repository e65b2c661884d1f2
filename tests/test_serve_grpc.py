"""The local job service asked by the real Python SDK over gRPC, its default transport: nothing but the endpoint is changed."""

from __future__ import annotations

import json
import textwrap

import forked
import pytest
from test_local_support import environ
from test_serve_support import Service

pytest.importorskip("google.cloud.aiplatform", reason="google-cloud-aiplatform is not installed")
pytest.importorskip("cryptography", reason="without cryptography the service has no TLS")
pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")

IMAGE = "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    started = Service(tmp_path_factory.mktemp("grpc"), "--project=my-project", "--region=us-central1")
    yield started
    assert started.stop() == 0


@pytest.fixture
def run(service, tmp_path):
    """Run a program of a user as it is written for the cloud, with what `env` prints exported; return what it prints as JSON."""
    exported = service.endpoint.environment()
    head = f"""
        import json, google.oauth2.credentials
        from google.cloud import aiplatform
        credentials = google.oauth2.credentials.Credentials(open({str(service.state / "serve" / "token")!r}).read())
        aiplatform.init(project="my-project", location="us-central1", staging_bucket="gs://staging", credentials=credentials,
                        api_endpoint="{service.endpoint.grpc}")
    """

    def run(source: str) -> object:
        program = textwrap.dedent(head) + textwrap.dedent(source)
        (tmp_path / "program.py").write_text(program)
        done = forked.run("", ["program.py"], environ(**exported), tmp_path, 120, forked.shared("google"))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_jobs_are_created_awaited_and_listed(service, run):
    answer = run("""
        pool = {"machine_spec": {"machine_type": "n1-standard-4"}, "replica_count": 1}
        task = {"image_uri": "host/any:1", "command": ["python", "-c", "import sys; print(ascii(sys.argv[1:]))"]}
        args = ["--x=${BUCKET}", "a\\x85b\\u2028c\\U0001f600", "yes", "1e3", "${HOME}"]
        job = aiplatform.CustomJob("over-grpc", worker_pool_specs=[{**pool, "container_spec": {**task, "args": args}}])
        job.run(sync=False)
        job.wait_for_resource_creation()
        job.wait()
        found = aiplatform.CustomJob.list(filter='display_name="over-grpc" AND (state=JOB_STATE_FAILED OR state=JOB_STATE_SUCCEEDED)')
        print(json.dumps([job.state.name, job.name, [each.name for each in found]]))
    """)
    assert answer[0] == "JOB_STATE_SUCCEEDED" and answer[2] == [answer[1]]
    kept = service.call("GET", f"/customJobs/{answer[1]}", base="/v1/projects/my-project/locations/us-central1")
    args = ["--x=${BUCKET}", "a\x85b\u2028c\U0001f600", "yes", "1e3", "${HOME}"]
    assert kept["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["args"] == args
    assert service.log(answer[1]) == ascii(args) + "\n", "a request's texts reach the process as they are"


def test_what_is_wrong_comes_with_its_code_and_field(service, run):
    answer = run("""
        from google.api_core import exceptions
        from google.cloud.aiplatform_v1 import JobServiceClient, MetadataServiceClient, VizierServiceClient
        from google.rpc import error_details_pb2
        options = {"credentials": credentials, "client_options": {"api_endpoint": aiplatform.initializer.global_config.api_endpoint}}
        client, parent = JobServiceClient(**options), "projects/my-project/locations/us-central1"
        found = []
        for ask in (
            lambda: client.create_custom_job(parent=parent, custom_job={"display_name": "x"}),
            lambda: client.create_custom_job(parent=parent, custom_job={"display_name": "a\\0b"}),
            lambda: client.get_custom_job(name=f"{parent}/customJobs/1"),
            lambda: client.delete_custom_job(name=f"{parent}/datasets/1"),
            lambda: client.list_custom_jobs(parent="somewhere"),
            lambda: client.list_nas_jobs(parent=parent),
            lambda: MetadataServiceClient(**options).list_contexts(parent=f"{parent}/metadataStores/default"),
            lambda: VizierServiceClient(**options).list_studies(parent=parent),
        ):
            try:
                ask()
            except exceptions.GoogleAPICallError as error:
                fields = [each.field_violations[0].field for each in error.details if hasattr(each, "field_violations")]
                found.append([error.grpc_status_code.name, fields, error.message])
        print(json.dumps(found))
    """)
    assert [each[:2] for each in answer] == [
        ["INVALID_ARGUMENT", ["jobSpec.workerPoolSpecs"]], ["INVALID_ARGUMENT", ["customJob.displayName"]], ["NOT_FOUND", []],
        ["INVALID_ARGUMENT", ["name"]], ["INVALID_ARGUMENT", ["parent"]],
        ["UNIMPLEMENTED", []], ["NOT_FOUND", []], ["UNIMPLEMENTED", []],
    ]  # fmt: skip
    assert "projects/*/locations/*/customJobs/*; got" in answer[3][2]
    assert "Neural architecture search" in answer[5][2] and "does not imitate Vizier studies" in answer[7][2]


def test_without_the_token_there_is_no_answer(service, run):
    answer = run("""
        from google.api_core import exceptions
        from google.cloud.aiplatform_v1 import JobServiceClient
        options = {"api_endpoint": aiplatform.initializer.global_config.api_endpoint}
        found = []
        for token in ("", "x", credentials.token[:-1], credentials.token + "x"):
            client = JobServiceClient(credentials=google.oauth2.credentials.Credentials(token or " "), client_options=options)
            try:
                client.list_custom_jobs(parent="projects/my-project/locations/us-central1")
            except exceptions.GoogleAPICallError as error:
                found.append(error.grpc_status_code.name)
        print(json.dumps(found))
    """)
    assert answer == ["UNAUTHENTICATED"] * 4


def test_v1beta1_is_answered_too(service, run):
    answer = run("""
        from google.cloud import aiplatform_v1beta1 as beta
        options = {"credentials": credentials, "client_options": {"api_endpoint": aiplatform.initializer.global_config.api_endpoint}}
        client, parent = beta.EndpointServiceClient(**options), "projects/my-project/locations/us-central1"
        made = client.create_endpoint(parent=parent, endpoint={"display_name": "beta"}).result()
        names = [each.display_name for each in client.list_endpoints(parent=parent)]
        client.delete_endpoint(name=made.name).result()
        print(json.dumps([type(made).__module__, names, len(list(client.list_endpoints(parent=parent)))]))
    """)
    assert answer == ["google.cloud.aiplatform_v1beta1.types.endpoint", ["beta"], 0]
