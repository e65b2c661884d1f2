"""From REST requests to RPCs and back: paths, verbs and bodies by the SDK's own rules, values by protobuf's JSON."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from ..errors import quoted
from . import messages, rpc
from .filters import camel
from .rest import Answer, ApiError, Request

_VARIABLE = re.compile(r"\{([\w.]+)=([^{}]+)\}")
_INTEGER = re.compile("-?[0-9]{1,19}")
_HTTP_BODY = "google.api.HttpBody"
# Parameters that every method of Google's APIs accepts; they are no fields of its message.
_SYSTEM = {
    "alt", "$alt", "callback", "fields", "$fields", "key", "access_token", "oauth_token", "prettyPrint", "quotaUser", "userIp",
    "uploadType", "upload_protocol", "$.xgafv", "xgafv", "trace",
}  # fmt: skip


@dataclass(frozen=True)
class _Rule:
    """A REST rule of a method: a pattern of the path, the fields in the path, and the field that the body fills."""

    method: Any
    path: re.Pattern[str]
    fields: tuple[str, ...]
    body: str


# The beginnings of paths: the API's versions, and the prefix with which the SDK asks for operations over REST.
PREFIXES = (*rpc.VERSIONS, "ui")


class Rest:
    """The REST side of RPCs: `handle` answers any request to them."""

    def __init__(self, methods: Iterable[rpc.Method]):
        self._rules: dict[tuple, list[_Rule]] = {}
        for method in methods:
            for rule in method.http_rules():
                if rule["uri"].startswith("/v1/"):
                    path, fields = _pattern(rule["uri"])
                    key = (rule["method"].upper(), *_shape(rule["uri"]))
                    self._rules.setdefault(key, []).append(_Rule(method, path, fields, rule.get("body", "")))

    def handle(self, request: Request, **_: str) -> dict[str, Any] | Answer:
        """Answer a request to a path of the API, in either version."""
        version, rest = request.path.split("/", 2)[1:]
        path = f"/v1/{rest}"
        for rule in self._rules.get((request.method, *_shape(path)), ()):
            if match := rule.path.fullmatch(path):
                answered = rule.method.call(_request(rule, match, request))
                if isinstance(answered, rpc.WithHeaders):
                    body: Any = answered.message
                    return Answer(content=body.data, headers={"Content-Type": body.content_type, **answered.headers})
                return _answer(answered, version)
        raise _missing(request.method, path)


def _shape(path: str) -> tuple[int, str]:
    """Return a key that tells most paths apart: the number of parts, and the verb after a colon."""
    plain = _VARIABLE.sub(lambda match: match[2], path)
    return plain.count("/"), plain.rpartition("/")[2].partition(":")[2]


def _pattern(uri: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """Return the pattern of a path such as `/v1/{name=projects/*/locations/*}:wait`, and the fields in it."""
    pieces, fields, end = [], [], 0
    for match in _VARIABLE.finditer(uri):
        inner = re.escape(match[2]).replace(r"\*\*", "[^:]+").replace(r"\*", "[^/:]+")
        pieces += [re.escape(uri[end : match.start()]), f"({inner})"]
        fields.append(match[1])
        end = match.end()
    return re.compile("".join([*pieces, re.escape(uri[end:])])), tuple(fields)


def check_names(method: rpc.Method, request: Message) -> None:
    """Refuse a request that fits no path of the method, such as one that gets a custom job by a data set's name."""
    rules = _names(method)
    if not any(all(pattern.fullmatch(_text(request, field)) for field, _, pattern in rule) for rule in rules):
        field, wanted, _ = next(iter(rules[0]))
        got = _text(request, field)[:100]
        raise ApiError("INVALID_ARGUMENT", f"{camel(field)} takes {wanted}; got {quoted(got)}.", camel(field))


@functools.cache
def _names(method: rpc.Method) -> list[list[tuple[str, str, re.Pattern[str]]]]:
    """Return, for each path of a method, its fields as (name, what it takes as text, as a pattern)."""
    return [[(match[1], match[2], _pattern(match[0])[0]) for match in _VARIABLE.finditer(rule["uri"])] for rule in method.http_rules()]


def _text(message: Message, path: str) -> str:
    *within, last = path.split(".")
    for name in within:
        message = getattr(message, name)
    return getattr(message, last)


def _request(rule: _Rule, match: re.Match[str], request: Request) -> Message:
    """Return the message of a REST request."""
    message = rule.method.request()
    raw = _raw_field(message) if rule.body == "*" else None
    if raw is not None:
        raw.data = request.stream.read(request.length)
        raw.content_type = request.headers.get("content-type", "")
    body = {} if raw is not None else request.json()
    if rule.body and rule.body != "*":
        member = getattr(message, rule.body)
        member.SetInParent()
        messages.parse(body, member)
    elif body:
        messages.parse(body, message)
    for name, text in request.query.multi_items():
        if name not in _SYSTEM:
            _set(message, name, text)
    for name, text in zip(rule.fields, match.groups(), strict=True):
        _set(message, name, text)
    return message


def _raw_field(message: Message) -> Any:
    """Return the message's google.api.HttpBody, which takes the body unchanged; None if the body is the message's JSON."""
    names = [field.name for field in message.DESCRIPTOR.fields if field.message_type and field.message_type.full_name == _HTTP_BODY]
    return getattr(message, names[0]) if names else None


def _set(message: Message, name: str, text: str) -> None:
    """Put the text of a parameter, or of a part of the path, into its field; a dotted name is a field of an inner message."""
    first, _, rest = name.partition(".")
    field = next((each for each in message.DESCRIPTOR.fields if first in (each.name, each.json_name)), None)
    if field is None:
        raise ApiError("INVALID_ARGUMENT", f"{name[:100]}: {message.DESCRIPTOR.name} has no such field; leave it out.", name[:100])
    if rest:
        inner = getattr(message, field.name)
        if not isinstance(inner, Message):
            raise ApiError("INVALID_ARGUMENT", f"{name[:100]}: no parameter sets a part of {first[:60]}; put it into the body.", name[:100])
        return _set(inner, rest, text)
    if field.message_type and field.message_type.full_name == "google.protobuf.FieldMask":
        getattr(message, field.name).paths[:] = [re.sub("([A-Z])", r"_\1", part).lower() for part in text.split(",") if part]
        return None
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        if text and not _INTEGER.fullmatch(text):
            raise ApiError("INVALID_ARGUMENT", f"{name} takes a whole number; got {text[:100]!r}.", name)
    if text:
        value: Any = {"true": True, "false": False}.get(text, text) if field.cpp_type == field.CPPTYPE_BOOL else text
        before = getattr(message, field.name)
        messages.parse({field.json_name: [*before, value] if hasattr(before, "append") else value}, message)
    return None


def _answer(message: Message, version: str) -> dict[str, Any]:
    """Return a message as JSON; an operation names its types as in the client's version of the API."""
    document = messages.to_json(message)
    if message.DESCRIPTOR.name == "Operation":
        document.setdefault("done", False)
    if version == "v1beta1":
        for operation in (document, *document.get("operations", ())):
            for part in (operation.get("metadata"), operation.get("response")):
                if isinstance(part, dict) and "@type" in part:
                    part["@type"] = part["@type"].replace(".v1.", ".v1beta1.")
    return document


# ------------------------------------------------------------------ what is not answered


def _missing(verb: str, path: str) -> ApiError:
    """Return the error for a path that is not answered; it names the feature if the SDK knows the path."""
    for service, name, wanted, pattern in _known():
        if wanted == verb and pattern.fullmatch(path):
            return rpc.not_answered(service, name)
    last = next((part for part in reversed(path.split("/")[::2][1:]) if part), "") or path
    return ApiError("UNIMPLEMENTED", f"{camel(last)[:60]}: {verb} is not imitated by the local service.")


@functools.cache
def _known() -> list[tuple[str, str, str, re.Pattern[str]]]:
    return [
        (service, name, rule["method"].upper(), _pattern(rule["uri"])[0])
        for service, name, rule in rpc.every_rule()
        if rule["uri"].startswith("/v1/")
    ]
