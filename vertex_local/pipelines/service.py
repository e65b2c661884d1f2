"""What the local service says to the command and to a pipeline's processes, errors as text."""

from __future__ import annotations

import http
import json
import re
import urllib.error
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import client


@dataclass(frozen=True)
class Answer:
    """The service's answer: an object in the API's form, or an error.

    Attributes:
        exists: whether the error is that a resource of that name exists.
    """

    content: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    exists: bool = False


@dataclass(frozen=True)
class Service:
    """The address of the service, and what a client needs to call it.

    Attributes:
        token_file: "" if no token is needed.
    """

    url: str
    token_file: str
    ca_file: str

    @classmethod
    def of(cls, endpoint: Any) -> Service:
        """Return the service of an `serve.endpoint.Endpoint`."""
        return cls(endpoint.url, endpoint.token_file or "", endpoint.ca_file)

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """Send one request of the API's version 1."""
        try:
            token = Path(self.token_file).read_text() if self.token_file else ""
            with client.send(f"{self.url}/v1/{path}", self.ca_file, method, body, token) as answer:
                return Answer(json.loads(answer.read() or b"{}"))
        except urllib.error.HTTPError as error:
            return Answer(error=_message(error), exists=error.code == http.HTTPStatus.CONFLICT)
        except (OSError, ValueError) as error:
            return Answer(error=f"the local service does not answer: {error}")

    def get(self, name: str) -> dict[str, Any] | None:
        """Return a resource in the API's form; None if there is none of that name, or the service does not answer."""
        answer = self.ask("GET", name)
        return None if answer.error else answer.content


def resource_name(uri: str) -> str:
    """Return a resource's name, given its address in the API."""
    return re.sub(r"^https://[^/]+/v1(beta1)?/", "", uri)


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return json.loads(error.read())["error"]["message"]
    except (OSError, ValueError, LookupError, TypeError):
        return f"the local service answers {error.code} {error.reason}"
