"""Asking Google's APIs over REST with the user's credentials: every question only reads, once, and for a bounded time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from google.auth.exceptions import GoogleAuthError, RefreshError
from google.auth.transport.requests import AuthorizedSession
from requests.exceptions import RequestException

from .. import cloud

SECONDS = 10.0  # for one answer
# Each API's address as gcloud has it; CLOUDSDK_API_ENDPOINT_OVERRIDES_<NAME> leads elsewhere, for gcloud as for us.
ADDRESSES = {
    "aiplatform": "https://{region}-aiplatform.googleapis.com/",
    "artifactregistry": "https://artifactregistry.googleapis.com/",
    "cloudbilling": "https://cloudbilling.googleapis.com/",
    "cloudresourcemanager": "https://cloudresourcemanager.googleapis.com/",
    "iam": "https://iam.googleapis.com/",
    "serviceusage": "https://serviceusage.googleapis.com/",
    "storage": "https://storage.googleapis.com/storage/v1/",
}


class Refused(Exception):
    """An API's own error: its code, its message in one line, and its reason, such as SERVICE_DISABLED."""

    def __init__(self, code: int, message: str, reason: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.reason = code, reason


class Silent(Exception):
    """No answer came, or none of an API."""


def override(api: str) -> str | None:
    """Return the address that stands in for an API's own, if there is one."""
    return os.environ.get(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{api.upper()}")


class Google:
    """The APIs as one user sees them, for one region."""

    def __init__(self, credentials: Any, region: str) -> None:
        self.credentials, self.region = credentials, region

    @property
    def local(self) -> str | None:
        """The address of the service on this machine that stands in for Vertex AI, if one does."""
        address = override("aiplatform")
        return address if cloud.is_local(address) else None

    def reaches(self, api: str) -> bool:
        """Tell whether an API can be asked: beside a service on this machine only those that are led somewhere, too."""
        return not self.local or override(api) is not None

    def find(self, api: str, path: str, **query: Any) -> dict[str, Any] | None:
        """Return an API's answer, None where there is no such thing; errors as for `ask`."""
        try:
            return self.ask(api, path, **query)
        except Refused as error:
            if error.code != 404:
                raise
            return None

    def ask(self, api: str, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> dict[str, Any]:
        """Return an API's answer; with a body it is asked by POST, which none of our questions changes anything by.

        Raises:
            Refused: the API answered with an error. Silent: it did not answer.
        """
        address = (override(api) or ADDRESSES[api].format(region=self.region)).rstrip("/")
        if address.startswith("http://") and not cloud.is_local(address):
            raise Silent(f"{address}: an access token is not sent over plain HTTP")
        try:
            with AuthorizedSession(self.credentials, refresh_status_codes=(), refresh_timeout=SECONDS) as session:
                method, limits = "GET" if body is None else "POST", {"timeout": SECONDS, "max_allowed_time": SECONDS}
                answer = session.request(method, f"{address}/{path}", json=body, params=query, **limits)
                content = answer.json()
        except RefreshError as error:
            raise Refused(401, f"the credentials give no token: {' '.join(str(error).split())[:200]}") from None
        except (RequestException, GoogleAuthError, ValueError) as error:
            raise Silent(f"{address} does not answer: {' '.join(str(error).split())[:200]}") from None
        if answer.ok:
            return content if isinstance(content, dict) else {}
        raise _refusal(answer.status_code, content)


def _refusal(code: int, content: Any) -> Refused:
    error = content.get("error", {}) if isinstance(content, dict) else {}
    error = error if isinstance(error, dict) else {"message": str(error)}
    reasons = [detail.get("reason") for detail in error.get("details", ()) if isinstance(detail, dict)]
    return Refused(code, " ".join(str(error.get("message", "no message")).split())[:300], next(filter(None, reasons), ""))
