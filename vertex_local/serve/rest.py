"""What the REST routes of the local service share: requests, answers, errors in the API's form, times."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from starlette.datastructures import QueryParams

STATUSES = {  # google.rpc.Code's names: (HTTP code, number)
    "CANCELLED": (499, 1),
    "INVALID_ARGUMENT": (400, 3),
    "NOT_FOUND": (404, 5),
    "ALREADY_EXISTS": (409, 6),
    "PERMISSION_DENIED": (403, 7),
    "RESOURCE_EXHAUSTED": (429, 8),
    "FAILED_PRECONDITION": (400, 9),
    "UNIMPLEMENTED": (501, 12),
    "INTERNAL": (500, 13),
    "UNAVAILABLE": (503, 14),
    "UNAUTHENTICATED": (401, 16),
}
_REASONS = {401: "required", 403: "forbidden", 404: "notFound", 409: "conflict", 412: "conditionNotMet"}  # Storage's


class ApiError(Exception):
    """An error in the API's form: `field` is the request's field at fault, `code` an HTTP code other than the status's."""

    def __init__(self, status: str, message: str, field: str | None = None, code: int | None = None):
        super().__init__(message)
        self.status, self.message, self.field = status, message, field
        self.code = code or STATUSES[status][0]

    @property
    def rpc(self) -> dict[str, Any]:
        """The error as a google.rpc.Status."""
        return {"code": STATUSES[self.status][1], "message": self.message}

    def body(self) -> dict[str, Any]:
        """Return the error as REST answers hold it."""
        reason = {"message": self.message, "domain": "global", "reason": _REASONS.get(self.code, "invalid")}
        error = {"code": self.code, "message": self.message, "status": self.status, "errors": [reason]}
        if self.field:
            violations = [{"field": self.field, "description": self.message}]
            error["details"] = [{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations}]
        return {"error": error}


class Stream(Protocol):
    """What a body is read from."""

    def read(self, size: int) -> bytes: ...


@dataclass
class Request:
    """One request that the guards have admitted. `stream` has `length` bytes of body, read by `json` or by the route itself."""

    method: str
    path: str
    query: QueryParams
    headers: Mapping[str, str]
    length: int
    stream: Stream
    base: str = ""  # scheme and host, for links

    def json(self) -> dict[str, Any]:
        """Return the body, which must be a JSON object; an empty body counts as an empty object."""
        text = self.stream.read(self.length) if self.length else b"{}"
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ApiError("INVALID_ARGUMENT", f"the body must be JSON: {error}.") from None
        if not isinstance(value, dict):
            raise ApiError("INVALID_ARGUMENT", f"the body must be a JSON object; got {type(value).__name__}.")
        return value

    def number(self, name: str, default: int, most: int) -> int:
        """Return a query parameter that is a whole number, at most `most`; `default` if it is missing or 0."""
        text = self.query.get(name) or str(default)
        if not re.fullmatch("[0-9]{1,18}", text):
            raise ApiError("INVALID_ARGUMENT", f"{name} takes a whole number from 0 on; got {text[:100]!r}.", name)
        return min(int(text), most) or default


@dataclass
class Answer:
    """What a route returns instead of a plain JSON object; of a `file`, the bytes from `part[0]` to `part[1]` are sent."""

    code: int = 200
    content: dict[str, Any] | bytes = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    part: tuple[int, int] = (0, 0)
