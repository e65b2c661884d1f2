"""Leads TFX's Trainer extension, which knows Google's own address only, to the service that the variables name.

These are the variables of `eval "$(python -m vertex_local env)"`. What is replaced is one method and one number of TFX, as they
are in the versions below.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from vertex_runtime.errors import UserError

ADDRESS = "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM"
TOKEN_FILE = "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"
TRIED = "1.21."  # versions of TFX that start so
POLLING = 2  # seconds between looks at the job; TFX's own 30 are for jobs of hours


def see_that_it_is_named() -> None:
    """See that the variables name a service that answers.

    Raises:
        UserError: they name none, or it does not answer.
    """
    address = os.environ.get(ADDRESS)
    if not address:
        raise UserError(
            f"--vertex sends the training step to the local service, and {ADDRESS} is not set. Start one: python -m vertex_local serve "
            '--python .venv-tfx/bin/python; then: eval "$(python -m vertex_local env)"'
        )
    import requests

    try:
        requests.get(f"{address.rstrip('/')}/healthz", timeout=10).raise_for_status()
    except (requests.RequestException, OSError) as error:
        raise UserError(
            f"{ADDRESS}={address} does not answer ({type(error).__name__}). Is the service still running? Start it: python -m vertex_local "
            'serve --python .venv-tfx/bin/python; then again: eval "$(python -m vertex_local env)"'
        ) from None


def lead_tfx_there() -> None:
    """Let TFX's client of jobs ask the service that `see_that_it_is_named` has found.

    Raises:
        UserError: this TFX is another than the one that the replacement was tried with.
    """
    from tfx import __version__ as version
    from tfx.extensions.google_cloud_ai_platform import runner, training_clients

    client = getattr(training_clients, "VertexJobClient", None)
    if not version.startswith(TRIED) or not hasattr(client, "create_client") or not hasattr(runner, "_POLLING_INTERVAL_IN_SECONDS"):
        raise UserError(f"--vertex: TFX {version} cannot be led to the local service, only {TRIED}x can. Install it: scripts/setup_tfx")
    client.create_client = _create_client
    runner._POLLING_INTERVAL_IN_SECONDS = POLLING


def _create_client(self: object) -> None:
    """Make the client of jobs of a `VertexJobClient`, over REST and with the service's token."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.aiplatform import gapic
    from google.oauth2.credentials import Credentials

    file = os.environ.get(TOKEN_FILE)
    if file:
        with open(file, encoding="utf-8") as opened:
            credentials = Credentials(opened.read().strip())
    else:
        credentials = AnonymousCredentials()
    options = {"api_endpoint": urlsplit(os.environ[ADDRESS]).netloc}
    self._client = gapic.JobServiceClient(transport="rest", client_options=options, credentials=credentials)
