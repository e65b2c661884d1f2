"""YAML or JSON text as one of the API's messages, read field by field, so that every mistake has a line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ..errors import UserError, quoted

TASK = "gs://google-cloud-aiplatform/schema/trainingjob/definition/custom_task_1.0.0.yaml"  # of a training pipeline's custom job
_DURATION = re.compile(r"\d{1,12}(\.\d{1,9})?s")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # a number in JSON, but text in YAML 1.1
_BITS = {"INT32": 31, "INT64": 63, "UINT32": 32, "UINT64": 64}
_MOST_DIGITS = 20  # of a 64-bit number
_BROKEN = (yaml.YAMLError, RecursionError)  # the latter on text nested thousands deep
# What PyYAML's constructors raise for `!!timestamp x`, `!!bool maybe`, 2020-13-45 or too many digits.
_NO_VALUE = (ValueError, KeyError, AttributeError, TypeError, OverflowError)


class SpecError(UserError):
    """A job that cannot run as it stands: file, line, field, the value and the remedy.

    `field` is the field's dotted path and `problem` what is wrong with it, for those who have no file to point to.
    """

    def __init__(self, message: str, field: str = "", problem: str = ""):
        super().__init__(message)
        self.field, self.problem = field, problem or message


@dataclass(frozen=True)
class Source:
    """Where a message came from: a file's name and the line of each of its fields; a request has no lines."""

    name: str
    lines: dict[tuple, int] | None

    def error(self, path: tuple, problem: str) -> SpecError:
        """Return the error for the field at `path`; its line is that of the nearest thing around it that has one."""
        dotted = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
        where = self.name
        if self.lines is not None:
            known = path
            while known and known not in self.lines:
                known = known[:-1]
            where += f":{self.lines.get(known, 1)}"
        return SpecError(f"{where}: {dotted or 'the file'}: {problem}", dotted, problem)


def to_message(fields: Mapping[str, Any], kind: str) -> Any:
    """Return fields in JSON form as a message of the API's type `kind`.

    Raises:
        google.protobuf.json_format.ParseError: it is none.
    """
    from google.protobuf import json_format

    return json_format.ParseDict(fields, getattr(api_types(), kind).pb()())


def to_fields(message: Any) -> dict[str, Any]:
    """Return a protobuf message in JSON form, whole numbers of 64 bits as numbers, where REST answers have text."""
    from google.protobuf import json_format

    return _with_numbers(json_format.MessageToDict(message), message.DESCRIPTOR)


def _with_numbers(fields: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    for field in descriptor.fields:
        value = fields.get(field.json_name)
        if value is None:
            continue
        kind = field.message_type
        if kind is None and field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
            fields[field.json_name] = [int(item) for item in value] if isinstance(value, list) else int(value)
        elif kind is not None and not kind.full_name.startswith("google.protobuf.") and not kind.GetOptions().map_entry:
            for item in value if isinstance(value, list) else [value]:
                _with_numbers(item, kind)
    return fields


def camel_case(name: str) -> str:
    """Return a field's name as JSON has it."""
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


@functools.cache  # catch_warnings is not for threads, of which the service answers requests in many
def api_types() -> Any:
    """Return the module of the API's proto types; importing it takes a second or two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of Google's, about the Python at hand
        from google.cloud.aiplatform_v1 import types
    return types


# ------------------------------------------------------------------ from text


@dataclass(frozen=True)
class Document(Source):
    """YAML or JSON text, and once it has been read as a message, the fields of that in JSON form."""

    loader: Any
    root: Any
    message: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The names at its top: they tell one kind of job from another."""
        return [str(key.value) for key, _ in self.root.value] if isinstance(self.root, yaml.MappingNode) else []

    def read(self, kind: str, others: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Read it as a message of the API's type `kind` and return that; raise a SpecError with file and line if it is none.

        Args:
            others: names at the top that are messages of a type of their own, or a list of them, as `{"importConfigs": "[Type]"}`.
        """
        try:
            descriptor = _descriptor(kind)
            from google.protobuf import json_format
        except ImportError as error:
            raise SpecError(f"{self.name}: checking it needs the package google-cloud-aiplatform: install it ({error}).") from None
        others = others or {}
        with _placed(self.name, self.loader):
            self.message.update(self._message(self.root, descriptor, (), (), others))
        try:
            to_message({name: value for name, value in self.message.items() if name not in others}, kind)
        except json_format.ParseError as error:  # whatever the walk does not know about
            raise SpecError(f"{self.name}: {error}") from None
        return self.message

    def _message(self, node: Any, descriptor: Any, path: tuple, parents: tuple, others: Mapping[str, str]) -> dict[str, Any]:
        fields = {field.json_name: field for field in descriptor.fields}
        if not isinstance(node, yaml.MappingNode):
            raise self.error(path, f"takes a mapping of fields ({', '.join((*fields, *others))}).")
        if id(node) in parents:
            raise self.error(path, "a YAML alias refers to itself; write the value out.")
        self._refuse_twice(node, path)
        self.loader.flatten_mapping(node)  # puts what `<<: *other` merges in first, so that the mapping's own fields win
        result: dict[str, Any] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            where, within = (*path, name), (*parents, id(node))
            self.lines[where] = key.start_mark.line + 1
            if name in others:
                result[name] = self._other(value, others[name], where, within)
                continue
            if name not in fields:
                raise self.error(where, _unknown(name, descriptor))
            item = self._field(value, fields[name], where, within)
            if item is None:
                continue
            oneof = fields[name].containing_oneof
            rivals = [other.json_name for other in oneof.fields if other.json_name in result.keys() - {name}] if oneof else []
            if rivals:
                raise self.error(where, f"cannot stand beside {rivals[0]}; keep one of them.")
            result[name] = item
        return result

    def _refuse_twice(self, node: Any, path: tuple) -> None:
        own: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in own:
                again = (*path, key.value)
                self.lines[again] = key.start_mark.line + 1
                raise self.error(again, "is given twice; keep one.")
            own.add(key.value)

    def _other(self, node: Any, kind: str, path: tuple, parents: tuple) -> Any:
        """Return what a field holds that is a message of the type `kind`, or for `[kind]` a list of them."""
        descriptor = _descriptor(kind.strip("[]"))
        if kind.startswith("["):
            return self._list(node, path, lambda item, at: self._message(item, descriptor, at, parents, {}))
        return self._message(node, descriptor, path, parents, {})

    def _field(self, node: Any, field: Any, path: tuple, parents: tuple) -> Any:
        if isinstance(node, yaml.ScalarNode) and self._plain(node, path) is None:
            return None  # "args:" with nothing after it: unset, as in JSON
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            if not isinstance(node, yaml.MappingNode):
                raise self.error(path, "takes a mapping of names to values.")
            value = kind.fields_by_name["value"]
            return {str(k.value): self._value(v, value, (*path, str(k.value)), parents) for k, v in node.value}
        repeated = getattr(field, "is_repeated", None)  # protobuf from 6.31 on; before it, a label
        if not (field.label == field.LABEL_REPEATED if repeated is None else repeated):
            return self._value(node, field, path, parents)
        return self._list(node, path, lambda item, at: self._value(item, field, at, parents))

    def _list(self, node: Any, path: tuple, read: Callable[[Any, tuple], Any]) -> list[Any]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(path, "takes a list: write `- ` before each item, or [a, b].")
        places = [(*path, i) for i in range(len(node.value))]
        self.lines.update((place, item.start_mark.line + 1) for place, item in zip(places, node.value))
        return [read(item, place) for place, item in zip(places, node.value)]

    def _value(self, node: Any, field: Any, path: tuple, parents: tuple) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        kind = field.message_type
        if kind is not None and not kind.full_name.startswith("google.protobuf."):
            return self._message(node, kind, path, parents, {})
        value = self._plain(node, path)
        if kind is None:
            return self._scalar(value, field, path)
        if kind.name == "Duration" and not (isinstance(value, str) and _DURATION.fullmatch(value)):
            raise self.error(path, f"takes seconds as text such as 3600s; got {quoted(value)}.")
        if kind.name == "Timestamp" and not (isinstance(value, str) and _TIME.fullmatch(value)):
            raise self.error(path, f'takes a quoted time such as "2026-01-31T18:00:00Z"; got {quoted(value)}.')
        return value

    def _plain(self, node: Any, path: tuple) -> Any:
        try:
            return self.loader.construct_object(node, deep=True)
        except _NO_VALUE as error:
            reason = f": {error}" if isinstance(error, ValueError) else f", which is no {node.tag.rpartition(':')[2]}"
            raise self.error(path, f"got {quoted(node.value)}{reason}; put text in quotes.") from None

    def _scalar(self, value: Any, field: Any, path: tuple) -> Any:
        if field.enum_type is not None:
            names = list(field.enum_type.values_by_name)
            if value not in names:
                near = difflib.get_close_matches(str(value).upper().replace("-", "_"), names, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}."
                raise self.error(path, f"{quoted(value)} is not one of its values; {hint}")
        elif field.type == field.TYPE_STRING and not isinstance(value, str):
            raise self.error(path, f"takes text; got {quoted(value)} ({type(value).__name__}): put it in quotes.")
        elif field.type == field.TYPE_BOOL and not isinstance(value, bool):
            raise self.error(path, f"takes true or false; got {quoted(value)}.")
        elif field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT):
            if isinstance(value, str) and _EXPONENT.fullmatch(value):
                return float(value)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise self.error(path, f"takes a number; got {quoted(value)}.")
        for name, bits in _BITS.items():
            if field.type == getattr(field, f"TYPE_{name}"):
                # REST answers show 64-bit numbers as text, and ParseDict takes both.
                digits = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _MOST_DIGITS
                number = isinstance(value, int) and not isinstance(value, bool)
                if not (number or digits) or not -(2**bits) <= int(value) < 2**bits:
                    raise self.error(path, f"takes a whole number; got {quoted(value)}.")
                return int(value)
        return value


def opened(text: str, name: str) -> Document:
    """Return YAML or JSON text whose form is right; `name` stands for the file in messages.

    Raises:
        SpecError: it has another form; file, line and what is wrong there.
    """
    try:  # JSON may be indented with tabs, YAML may not; a JSON string holds no raw tab, so no value changes
        loader = yaml.SafeLoader(text.replace("\t", " ") if text.lstrip().startswith("{") else text)
    except yaml.YAMLError as error:
        raise SpecError(f"{name}:1: {error}") from None
    with _placed(name, loader):
        return Document(name, {}, loader, loader.get_single_node())


def top_keys(text: str, name: str) -> list[str]:
    """Return the names at the top of a text."""
    return opened(text, name).keys


def parse(text: str, name: str, kind: str, others: Mapping[str, str] | None = None) -> Document:
    """Return text that was read as a message of the API's type `kind`: `opened`, then `read`."""
    document = opened(text, name)
    document.read(kind, others)
    return document


@contextlib.contextmanager
def _placed(name: str, loader: Any) -> Iterator[None]:
    """Turn PyYAML's errors into a SpecError with file and line."""
    try:
        yield
    except _BROKEN as error:
        mark = getattr(error, "problem_mark", None) or loader.get_mark()
        raise SpecError(f"{name}:{mark.line + 1}: {getattr(error, 'problem', None) or error}") from None


def _descriptor(kind: str) -> Any:
    return getattr(api_types(), kind).pb().DESCRIPTOR


def _unknown(key: str, descriptor: Any) -> str:
    names = [field.json_name for field in descriptor.fields]
    if key in descriptor.fields_by_name:
        return f"unknown field; job files use camelCase: write {descriptor.fields_by_name[key].json_name}."
    near = difflib.get_close_matches(key, names, 1, 0.5)
    return f"unknown field; {f'did you mean {near[0]}?' if near else 'known are ' + ', '.join(names) + '.'}"
