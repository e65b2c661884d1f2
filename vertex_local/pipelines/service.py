"""What a pipeline's processes ask the local service: whether it has a resource, and what became of it."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def get(service: Mapping[str, str], name: str) -> dict[str, Any] | None:
    """Return a resource in the API's form; None if there is none of that name, or the service does not answer.

    Args:
        service: url, token_file ("" if nobody needs a token) and ca_file.
    """
    request = urllib.request.Request(f"{service['url']}/v1/{name}")
    if service.get("token_file"):
        request.add_header("Authorization", f"Bearer {Path(service['token_file']).read_text()}")
    trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=service["ca_file"]))
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), trust)
    try:
        with direct.open(request, timeout=60) as answer:
            return json.loads(answer.read())
    except (OSError, ValueError, urllib.error.URLError):
        return None
