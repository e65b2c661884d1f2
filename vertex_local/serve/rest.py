"""What the routes of the local service share: requests, answers, the API's error form, proto checks, pages, times."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..job import schema
from . import filters

STATUSES = {  # of google.rpc.Code: the HTTP code and the number
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
# Where protobuf's messages name the field at fault.
_PATH, _NAMED = re.compile(r'at "?\w+\.([\w.\[\]]+)'), re.compile(r'named "(\w+)"')
_WITHIN = re.compile(r"Failed to parse (\w+) field: ")
MOST_ITEMS = 1000


class ApiError(Exception):
    """An answer in the API's error form; `field` is the request's field at fault, `code` an HTTP code of its own."""

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


@dataclass
class Request:
    """One request past the guards. `stream` holds `length` bytes of body; a route reads it through `json`, or itself."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    length: int
    stream: BinaryIO
    base: str = ""  # scheme and host, for links
    version: str = "v1"

    def json(self) -> dict[str, Any]:
        """Return the body, an object; nothing at all counts as an empty one."""
        text = self.stream.read(self.length) if self.length else b"{}"
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ApiError("INVALID_ARGUMENT", f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ApiError("INVALID_ARGUMENT", f"the body must be a JSON object; got {type(value).__name__}.")
        return value

    def number(self, name: str, default: int, most: int) -> int:
        """Return a query parameter that is a whole number from 0 on, at most `most`."""
        text = self.query.get(name) or str(default)
        if not re.fullmatch(r"\d{1,18}", text):
            raise ApiError("INVALID_ARGUMENT", f"{name} takes a whole number from 0 on; got {text!r}.", name)
        return min(int(text), most) or default


@dataclass
class Answer:
    """What a route returns if not simply an object to be sent as JSON; a file's `part` is sent from it."""

    code: int = 200
    content: dict[str, Any] | bytes = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    part: tuple[int, int] = (0, 0)


def checked(body: Mapping[str, Any], kind: str, where: str = "") -> dict[str, Any]:
    """Return `body` in its JSON form if it is a message of the API's type `kind`, else raise INVALID_ARGUMENT.

    Args:
        where: the request's field that `body` is, for the error.
    """
    from google.protobuf import json_format

    empty = getattr(schema.api_types(), kind).pb()()
    try:
        message = json_format.ParseDict(body, empty, ignore_unknown_fields=False)
        return json_format.MessageToDict(message)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        text = str(error).partition(" Available Fields")[0].strip().rstrip(".") or type(error).__name__
        path = max((found[1].rstrip(".") if (found := _PATH.search(text)) else ""), ".".join(_WITHIN.findall(text)), key=len)
        name = ".".join(filter(None, (where, path, *_NAMED.findall(text))))
        text = _WITHIN.sub("", text)
        raise ApiError("INVALID_ARGUMENT", f"{name or kind}: {text}.", name or None) from None


def required(body: Mapping[str, Any], *names: str) -> None:
    """Raise INVALID_ARGUMENT for the first of the dotted `names` that `body` lacks."""
    for name in names:
        value: Any = body
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value in (None, "", [], {}):
            raise ApiError("INVALID_ARGUMENT", f"{name} is required and must not be empty.", name)


def unsupported(body: Mapping[str, Any], names: Iterable[str], where: str = "") -> None:
    """Raise UNIMPLEMENTED for the first of the fields `names` that `body` sets."""
    for name in names:
        if body.get(name):
            raise ApiError("UNIMPLEMENTED", f"{where}{name} is not supported by the local service; leave it out.", f"{where}{name}")


def page(items: list[dict[str, Any]], request: Request, key: str) -> dict[str, Any]:
    """Return one page of `items`, newest first unless `orderBy` says otherwise, after `filter`, with a `nextPageToken`."""
    accepts = parsed_filter(request.query.get("filter", ""), lookup)
    items = [item for item in items if accepts(item)]
    order, _, way = (request.query.get("orderBy") or "create_time desc").partition(" ")
    field_name = filters.camel(order)
    if field_name not in ("createTime", "updateTime", "displayName", "endTime", "startTime", "name") or way not in ("", "asc", "desc"):
        raise ApiError("INVALID_ARGUMENT", f"orderBy takes create_time, update_time or display_name [desc]; got {order!r}.", "orderBy")
    items.sort(key=lambda item: (item.get(field_name, ""), _mark(item)), reverse=way == "desc")
    start, token = 0, request.query.get("pageToken", "")
    if token:
        places = [i for i, item in enumerate(items) if _mark(item) == token]
        if not places:
            raise ApiError("INVALID_ARGUMENT", f"pageToken {token!r} is not one of this list's.", "pageToken")
        start = places[0]
    size = request.number("pageSize", 100, MOST_ITEMS)
    answer: dict[str, Any] = {key: items[start : start + size]} if items[start:] else {}
    if items[start + size :]:
        answer["nextPageToken"] = _mark(items[start + size])
    return answer


def _mark(item: Mapping[str, Any]) -> str:
    """Return what tells one item of a list from the others: its id, with a model's the version."""
    return f"{item['name'].rpartition('/')[2]}-{item.get('versionId', ''):>06}"


def lookup(item: Mapping[str, Any], name: str) -> Any:
    """Return the value of a filter's field such as `display_name` or `labels.stage`."""
    value: Any = item
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part, value.get(filters.camel(part)))
    return value


def parsed_filter(text: str, look: filters.Lookup) -> filters.Accepts:
    """Return what the filter `text` accepts; one that cannot be read is INVALID_ARGUMENT."""
    try:
        return filters.parse(text, look)
    except filters.FilterError as error:
        raise ApiError("INVALID_ARGUMENT", str(error), "filter") from None


def stamp(seconds: float | None = None) -> str:
    """Return a time, by default now, as the API writes it: RFC 3339 in UTC with microseconds."""
    when = datetime.datetime.now(datetime.timezone.utc) if seconds is None else _utc(seconds)
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
