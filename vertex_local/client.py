"""One request to the local service, by the standard library alone: for its commands, its tests and the processes of its pipelines."""

from __future__ import annotations

import json
import ssl
import urllib.request
from typing import Any


def send(url: str, ca_file: str, method: str = "GET", body: Any = None, token: str = "", timeout: float = 60.0) -> Any:
    """Send a request, past every proxy, and return the answer as urllib gives it.

    Args:
        ca_file: by which the service's certificate is known, and no other.
        body: sent as JSON, unless it is None.
        token: the bearer token; "" where nobody needs one.
        timeout: seconds.

    Raises:
        OSError: there is no answer; urllib's HTTPError where it is an error.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = None
    if body is not None:
        data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), trust)
    return direct.open(urllib.request.Request(url, data, headers, method=method), timeout=timeout)
