"""The API's messages: as protobuf, for handlers, and in the JSON form that clients send and records hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message

from ..job import schema
from .filters import camel
from .rest import ApiError

# How protobuf's errors name the field at fault.
_PATH, _NAMED = re.compile(r'at "?\w+\.([\w.\[\]]+)'), re.compile(r'named "(\w+)"')
_WITHIN = re.compile(r"Failed to parse (\w+) field: ")
_NO_NUMBER = re.compile(r"invalid literal for int\(\) with base 10: ")
_LONGEST_TEXT = 400  # characters of protobuf's error, which repeats what was sent


def kind(name: str) -> type[Message]:
    """Return the protobuf class of the API's type `name`, such as CustomJob."""
    return getattr(schema.api_types(), name).pb()


def new(name: str, /, **fields: Any) -> Message:
    """Return a new message of the API's type `name`."""
    return kind(name)(**fields)


def parse(body: Any, message: Message, where: str = "") -> Message:
    """Parse a body in JSON form into `message` and return it.

    Args:
        where: the field of the request that `body` is, for the error.

    Raises:
        ApiError: INVALID_ARGUMENT, with the field at fault.
    """
    _refuse_no_replicas(body, where)
    try:
        return json_format.ParseDict(body, message, ignore_unknown_fields=False)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        text = str(error).partition(" Available Fields")[0].strip().rstrip(".")[:_LONGEST_TEXT] or type(error).__name__
        path = max((found[1].rstrip(".") if (found := _PATH.search(text)) else ""), ".".join(_WITHIN.findall(text)), key=len)
        name = ".".join(filter(None, (where, path, *_NAMED.findall(text))))
        text = _NO_NUMBER.sub("takes a whole number; got ", _WITHIN.sub("", text))
        raise ApiError("INVALID_ARGUMENT", f"{name or message.DESCRIPTOR.name}: {text}.", name or None) from None


def _refuse_no_replicas(body: Any, where: str) -> None:
    """Refuse `replicaCount: 0`: in a message it looks like a pool that leaves the count to the service."""
    for path, pool in _pools(body, where, 0):
        count = pool.get("replicaCount", pool.get("replica_count"))
        if count in (0, "0") and count is not False:
            text = f"{path}.replicaCount: takes 1 or more; got 0: an unused pool is written {{}}."
            raise ApiError("INVALID_ARGUMENT", text, f"{path}.replicaCount")


def _pools(body: Any, path: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(body, Mapping) or depth > 3:  # trainingTaskInputs.trialJobSpec.workerPoolSpecs lies deepest
        return
    for key, value in body.items():
        name = f"{path}.{key}".lstrip(".")
        if key in ("workerPoolSpecs", "worker_pool_specs") and isinstance(value, list):
            yield from ((f"{name}[{i}]", pool) for i, pool in enumerate(value) if isinstance(pool, Mapping))
        else:
            yield from _pools(value, name, depth + 1)


def read(document: Mapping[str, Any], name: str) -> Message:
    """Return a record as a message of the API's type `name`, without the fields that only records have."""
    return json_format.ParseDict(document, kind(name)(), ignore_unknown_fields=True)


def to_json(message: Message) -> dict[str, Any]:
    """Return a message in the API's JSON form: names in camelCase, enums by name, 64-bit numbers as text."""
    try:
        return json_format.MessageToDict(message)
    except (json_format.SerializeToJsonError, ValueError) as error:
        raise ApiError("INTERNAL", f"the answer has no JSON form: {error}") from None


def plain(value: Message) -> Any:
    """Return a google.protobuf.Value in Python's own types; JSON has one type of number, so a whole number becomes an int."""
    which = value.WhichOneof("kind")
    if which == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < 1 << 53 else number
    if which == "list_value":
        return [plain(each) for each in value.list_value.values]
    if which == "struct_value":
        return {key: plain(each) for key, each in value.struct_value.fields.items()}
    return getattr(value, which) if which and which != "null_value" else None


def value(content: Any) -> Message:
    """Return Python's own types as a google.protobuf.Value."""
    try:
        return json_format.ParseDict(content, struct_pb2.Value())
    except json_format.ParseError as error:
        raise ApiError("INTERNAL", f"the model's answer has no JSON form: {error}") from None


# ------------------------------------------------------------------ checks


def required(message: Message, *paths: str, where: str = "") -> None:
    """Raise INVALID_ARGUMENT for the first of the dotted fields `paths` that `message` lacks.

    Args:
        where: a prefix for the field's name in the error.
    """
    for path in paths:
        current: Any = message
        for part in path.split("."):
            if not _is_set(current, part):
                name = camel(f"{where}{path}")
                raise ApiError("INVALID_ARGUMENT", f"{name} is required and must not be empty.", name)
            current = getattr(current, part)


def unsupported(message: Message, names: Iterable[str], where: str = "") -> None:
    """Raise UNIMPLEMENTED for the first of the fields `names` that `message` sets."""
    for name in names:
        if _is_set(message, name):
            path = camel(f"{where}{name}")
            raise ApiError("UNIMPLEMENTED", f"{path} is not supported by the local service; leave it out.", path)


def _is_set(message: Message, name: str) -> bool:
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    return message.HasField(name) and value.ByteSize() > 0 if field.message_type and not _many(value) else bool(value)


def _many(value: Any) -> bool:
    return hasattr(value, "__len__")


def check_text(message: Message, path: str = "") -> None:
    """Raise INVALID_ARGUMENT for text with a NUL, which no name, argument or variable can hold."""
    for field, value in message.ListFields():
        kind, name = field.message_type, f"{path}.{field.json_name}".lstrip(".")
        if kind is None:
            texts = value if _many(value) and not isinstance(value, (str, bytes)) else (value,)
            if field.type == field.TYPE_STRING and any("\0" in text for text in texts):
                raise ApiError("INVALID_ARGUMENT", f"{name} holds a NUL character; leave it out.", name)
        elif kind.GetOptions().map_entry:
            if any("\0" in str(part) for key in value for part in (key, value[key]) if isinstance(part, str)):
                raise ApiError("INVALID_ARGUMENT", f"{name} holds a NUL character; leave it out.", name)
        elif not kind.full_name.startswith("google.protobuf."):
            for each in value if _many(value) else (value,):
                check_text(each, name)


# ------------------------------------------------------------------ changes


def changes(message: Message, mask: Message, changeable: Iterable[str]) -> dict[str, Any]:
    """Return the fields that an update changes (those of `mask`, or all that are set) in JSON form; None for a removed field."""
    names = [path.partition(".")[0] for path in mask.paths] or [field.name for field, _ in message.ListFields() if field.name != "name"]
    for name in names:
        if name not in changeable:
            known = ", ".join(map(camel, changeable))
            raise ApiError("UNIMPLEMENTED", f"{camel(name)} cannot be changed in the local service; it changes {known}.", camel(name))
    document = to_json(message)
    return {camel(name): document.get(camel(name)) for name in names}


def apply(document: dict[str, Any], changed: Mapping[str, Any]) -> None:
    """Put changes into a record; None removes a field."""
    for name, content in changed.items():
        if content is None:
            document.pop(name, None)
        else:
            document[name] = content
