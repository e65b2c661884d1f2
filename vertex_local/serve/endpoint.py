"""The addresses of a running service, and the configuration of its clients: `serve` writes them, `env` and `testing` read them."""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import client
from ..errors import UserError
from ..local.environment import SERVICE_FILE
from . import guards
from .tls import write_private

FILE = "endpoint.json"
VARIABLES = SERVICE_FILE.name  # a file with the variables, for the replicas of jobs
FILES = (FILE, VARIABLES)
_PATIENCE = 10.0  # seconds for an answer
CONSOLE_TOKEN = "/console:address"  # answers a POST with an address that logs one browser in


class EndpointError(UserError):
    """There is no running service, or it does not answer."""


@dataclass(frozen=True)
class Endpoint:
    """A service's addresses, the files that its clients read, and the names that they use by default.

    Attributes:
        address: host and port of the REST API, over TLS.
        key: part of the path of storage URLs, for clients that send no token; "" if no token is needed.
        token_file: None if no token is needed.
        grpc: host and port of the same API over gRPC, with the same certificate; None if there is none.
    """

    address: str
    key: str
    token_file: str | None
    ca_file: str
    project: str
    region: str
    bucket: str
    grpc: str | None = None

    @property
    def url(self) -> str:
        """Return the REST API's URL, without a slash at its end."""
        return f"https://{self.address}"

    @property
    def storage_url(self) -> str:
        """Return the URL of Cloud Storage's API, which needs no token."""
        return f"{self.url}{guards.KEY_PATH}{self.key}" if self.key else self.url

    @property
    def token(self) -> str | None:
        """Return the bearer token of this start of the service."""
        return Path(self.token_file).read_text() if self.token_file else None

    def save(self, folder: Path) -> None:
        """Write it into the service's folder, for its owner only."""
        write_private(folder / VARIABLES, json.dumps(self.environment(), indent=1).encode())
        write_private(folder / FILE, json.dumps(dataclasses.asdict(self), indent=1).encode())

    def environment(self) -> dict[str, str]:
        """Return the variables that point gcloud, google-cloud-storage and the SDK's staging to the service."""
        values = {
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": f"{self.url}/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{self.url}/storage/v1/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_LOGGING": f"{self.url}/",
            "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": self.ca_file,
            "CLOUDSDK_CORE_PROJECT": self.project,
            "CLOUDSDK_AI_REGION": self.region,
            "GOOGLE_CLOUD_PROJECT": self.project,
            "STORAGE_EMULATOR_HOST": self.storage_url,
            "REQUESTS_CA_BUNDLE": self.ca_file,
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": self.ca_file,
        }
        if self.token_file:
            return {**values, "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": self.token_file}
        return {**values, "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true"}

    def exports(self) -> str:
        """Return the variables as lines for a shell."""
        return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in self.environment().items())

    def credentials(self) -> Any:
        """Return the credentials with which Google's Python clients call the service."""
        import google.auth.credentials
        import google.oauth2.credentials

        return google.oauth2.credentials.Credentials(self.token) if self.token_file else google.auth.credentials.AnonymousCredentials()

    def init_arguments(self) -> dict[str, Any]:
        """Return the arguments of `aiplatform.init`."""
        return {
            "project": self.project, "location": self.region, "staging_bucket": f"gs://{self.bucket}",
            "api_transport": "rest", "api_endpoint": self.address, "credentials": self.credentials(),
        }  # fmt: skip

    def snippet(self) -> str:
        """Return the Python statements that configure the SDK, in a process that has the variables."""
        module, made = "google.auth.credentials", "AnonymousCredentials()"
        if self.token_file:
            module, made = "google.oauth2.credentials", f"Credentials(open({self.token_file!r}).read())"
        return "\n".join([
            f"import {module}",
            "from google.cloud import aiplatform",
            f"aiplatform.init(project={self.project!r}, location={self.region!r}, staging_bucket={'gs://' + self.bucket!r},",
            f'    api_transport="rest", api_endpoint={self.address!r}, credentials={module}.{made})',
            *[f"# over gRPC, the SDK's default: leave api_transport out, and give api_endpoint={self.grpc!r}"] * bool(self.grpc),
        ])  # fmt: skip

    def is_ready(self) -> bool:
        """Return whether the service answers; another program cannot answer instead, because it lacks the certificate's key."""
        try:
            with client.send(self.url + guards.HEALTH, self.ca_file, timeout=_PATIENCE) as answer:
                return answer.status == 200
        except OSError:  # URLError is one
            return False

    def console_address(self) -> str:
        """Return an address of the console that logs one browser in.

        Raises:
            EndpointError: the service does not answer.
        """
        try:
            url = self.url + CONSOLE_TOKEN
            with client.send(url, self.ca_file, "POST", token=self.token or "", timeout=_PATIENCE) as answer:
                return json.load(answer)["address"]
        except (OSError, ValueError, KeyError) as error:
            raise EndpointError(f"the service at {self.url} gives no address of its console: {error}. End it and start it again.") from None


def find(state_dir: str | Path, wait: float = 0.0) -> Endpoint:
    """Return the service that runs in `state_dir` once it answers.

    Args:
        wait: seconds to wait for it.

    Raises:
        EndpointError: no service runs there.
    """
    path, end = Path(state_dir) / "serve" / FILE, time.monotonic() + wait
    while True:
        try:
            found = Endpoint(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            found = None
        except (OSError, ValueError, TypeError) as error:
            raise EndpointError(f"--state_dir: {path} cannot be read: {error}; end the service and start it again.") from None
        if found is not None and found.is_ready():
            return found
        if time.monotonic() >= end:
            remedy = f"start it with: python -m vertex_local serve --state_dir={shlex.quote(str(state_dir))}"
            raise EndpointError(f"--state_dir: no service runs in {str(state_dir)[:100]}; {remedy}.")
        time.sleep(0.1)
