"""The filter language of list calls, as AIP-160 and Cloud Logging define it: `a.b="x" AND (c>=1 OR NOT d:y)`.

In both of them OR binds tighter than AND, and terms side by side are joined by AND. A function is refused unless the list
supports it, such as `in_context("…")` of metadata. Bare words are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import timestamp_pb2

from ..errors import quoted

Lookup = Callable[[Mapping[str, Any], str], Any]
_TEXT = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_WORD = rf"""(?:[^\s()=<>!:"',]|(?<=\.){_TEXT})+"""  # with what is in quotes after a dot: labels."a.com/b"
_TOKEN = re.compile(rf"(?:(?P<mark>[(),])|(?P<op><=|>=|!=|=|<|>|:)|(?P<text>{_TEXT}(?:(?=\.){_WORD})?)|(?P<word>{_WORD}))\s*", re.DOTALL)
_QUOTED = re.compile(_TEXT, re.DOTALL)
_NUMBER = re.compile(r"[-+]?[0-9]{1,300}(\.[0-9]{1,300})?([eE][-+]?[0-9]{1,3})?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[-+][0-9]{2}:[0-9]{2})")
_LONGEST = 20_000  # characters, which is Logging's limit
_DEEPEST = 50
_LISTS = ("parentContexts",)  # fields in which ":" looks for a whole value
CALL = "()"  # the operator of a function call: the field of the function's name must contain the argument


class FilterError(ValueError):
    """A filter cannot be read: what was expected, and where."""


class Filter:
    """A parsed filter: called with an item, it returns whether the item matches. This base class matches everything."""

    def __call__(self, item: Mapping[str, Any]) -> bool:
        return True

    def values(self, name: str) -> set[str] | None:
        """Return the only values that the field can have in a matching item; None if the filter does not restrict it."""
        return None

    def least(self, name: str) -> str | None:
        """Return a lower bound for the field in matching items; None if the filter does not give one."""
        return None


@dataclass
class _All(Filter):
    parts: list[Filter]

    def __call__(self, item: Mapping[str, Any]) -> bool:
        return all(part(item) for part in self.parts)

    def values(self, name: str) -> set[str] | None:
        known = [found for part in self.parts if (found := part.values(name)) is not None]
        return set.intersection(*known) if known else None

    def least(self, name: str) -> str | None:
        return next((found for part in self.parts if (found := part.least(name)) is not None), None)


@dataclass
class _Any(Filter):
    parts: list[Filter]

    def __call__(self, item: Mapping[str, Any]) -> bool:
        return any(part(item) for part in self.parts)

    def values(self, name: str) -> set[str] | None:
        known = [part.values(name) for part in self.parts]
        return set().union(*known) if None not in known else None

    def least(self, name: str) -> str | None:
        known = [part.least(name) for part in self.parts]
        return None if None in known else min(known, key=_sortable)


@dataclass
class _Not(Filter):
    part: Filter

    def __call__(self, item: Mapping[str, Any]) -> bool:
        return not self.part(item)


@dataclass
class _Comparison(Filter):
    lookup: Lookup
    name: str
    operator: str
    value: str

    def __call__(self, item: Mapping[str, Any]) -> bool:
        return _holds(self.lookup(item, self.name), self.operator, self.value)

    def values(self, name: str) -> set[str] | None:
        is_wanted = self.operator in ("=", CALL) or (self.operator == ":" and name in _LISTS)
        return {self.value} if is_wanted and camel(self.name) == name else None

    def least(self, name: str) -> str | None:
        return self.value if self.operator in ("=", ">", ">=") and camel(self.name) == name else None


def parse(text: str, lookup: Lookup, functions: Collection[str] = ()) -> Filter:
    """Parse the filter `text`; an empty one matches everything.

    Args:
        lookup: returns the value of an item's field by its dotted name, without quotes: `labels.a.com/b` for `labels."a.com/b"`.
        functions: names of functions with one argument; `lookup` returns, for such a name, the list that must contain it.

    Raises:
        FilterError: the text is not a filter.
    """
    if len(text) > _LONGEST:
        raise FilterError(f"filter: at most {_LONGEST:,} characters; got {len(text):,}.")
    tokens, position = [], len(text) - len(text.lstrip())
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            raise FilterError(f"filter: cannot be read at {text[position : position + 40].strip()!r}; put values in double quotes.")
        kind = str(match.lastgroup)
        tokens.append((kind, _QUOTED.sub(_unquoted, match[kind])))
        position = match.end()
    if not tokens:
        return Filter()
    reader = _Reader(tokens, lookup, functions)
    found = reader.expression(0)
    if reader.at < len(tokens):
        raise FilterError(f"filter: needs AND or OR before {tokens[reader.at][1][:40]!r}.")
    return found


def camel(name: str) -> str:
    """Return `display_name` as `displayName`, and `slice_.value` (`slice` is taken in Python) as `slice.value`."""
    return re.sub(r"_(?:([a-z])|(?=\.|$))", lambda match: (match[1] or "").upper(), name)


def lookup(item: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field in its JSON form such as `display_name`, `labels.stage` or `labels.ml.googleapis.com/trial_id`."""
    if name in item:
        return item[name]  # a map's key may have dots in it
    first, _, rest = name.partition(".")
    value = item.get(first, item.get(camel(first)))
    if not rest:
        return value
    if isinstance(value, list):
        return [lookup(each, rest) for each in value if isinstance(each, Mapping)]
    return lookup(value, rest) if isinstance(value, Mapping) else None


class _Reader:
    """A recursive-descent parser, with a method for each rule of the grammar; `at` is the index of the next token."""

    def __init__(self, tokens: list[tuple[str, str]], lookup: Lookup, functions: Collection[str]):
        self.tokens, self.lookup, self.functions, self.at = tokens, lookup, functions, 0
        self.subject: tuple[str, str] | None = None  # the field and operator of the values that are being read

    def _next(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "nothing")

    def _read(self) -> tuple[str, str]:
        """Consume the next token and return it."""
        found = self._next()
        self.at += 1
        return found

    def _takes(self, kind: str, text: str) -> bool:
        """Consume the next token if it is this one; return whether it was."""
        found = self._next() == (kind, text)
        self.at += found
        return found

    def expression(self, depth: int) -> Filter:
        """Read factors that must all hold, with AND or nothing between them."""
        parts = [self.factor(depth)]
        while self.at < len(self.tokens) and self._next() not in (("mark", ")"), ("word", "OR")):
            self._takes("word", "AND")
            parts.append(self.factor(depth))
        return parts[0] if len(parts) == 1 else _All(parts)

    def factor(self, depth: int) -> Filter:
        """Read terms of which one must hold."""
        parts = [self.term(depth)]
        while self._takes("word", "OR"):
            parts.append(self.term(depth))
        return parts[0] if len(parts) == 1 else _Any(parts)

    def term(self, depth: int) -> Filter:
        """Read a comparison or an expression in parentheses, perhaps negated by NOT or a minus sign."""
        kind, text = self._next()
        negated = self._takes("word", "NOT") or self._takes("word", "-")
        if not negated and not self.subject and kind == "word" and text.startswith("-"):
            self.tokens[self.at], negated = (kind, text[1:]), True
        found = self._group(depth) if self._takes("mark", "(") else self._comparison(depth)
        return _Not(found) if negated else found

    def _group(self, depth: int) -> Filter:
        """Read on to the end of a parenthesis."""
        if depth >= _DEEPEST:
            raise FilterError(f"filter: at most {_DEEPEST} parentheses within each other.")
        inner = self.expression(depth + 1)
        self._close()
        return inner

    def _close(self) -> None:
        if not self._takes("mark", ")"):
            raise FilterError("filter: a parenthesis is not closed; close it.")

    def _comparison(self, depth: int) -> Filter:
        start = self.at
        if self.subject:
            return self._value(*self.subject, start)
        kind, name = self._read()
        if name in self.functions and self._takes("mark", "("):
            return self._call(name)
        operation, operator = self._read()
        if kind not in ("word", "text") or operation != "op":
            raise self._expected(start)
        if not self._takes("mark", "("):
            return self._value(name, operator, start)
        self.subject = name, operator  # a=(x OR y): only values stand in these parentheses
        values = self._group(depth)
        self.subject = None
        return values

    def _call(self, name: str) -> Filter:
        kind, text = self._read()
        if kind not in ("word", "text"):
            raise FilterError(f"filter: {name}(…) takes one name in quotes; got {text[:40]!r}.")
        self._close()
        return _Comparison(self.lookup, name, CALL, text)

    def _value(self, name: str, operator: str, start: int) -> Filter:
        kind, text = self._read()
        if kind not in ("word", "text"):
            raise self._expected(start)
        if kind == "word" and self._next() == ("mark", "("):
            raise self._expected(self.at - 1)
        return _Comparison(self.lookup, name, operator, text)

    def _expected(self, start: int) -> FilterError:
        if self.tokens[start + 1 : start + 2] == [("mark", "(")]:
            return FilterError(f"filter: functions are not supported; leave out {self.tokens[start][1][:40]}(…).")
        got = " ".join(value for _, value in self.tokens[start : start + 3])[:60] or "nothing"
        return FilterError(f'filter: takes something like state="x"; got {quoted(got)}.')


def _unquoted(match: re.Match[str]) -> str:
    return re.sub(r"\\(.)", r"\1", match[0][1:-1], flags=re.DOTALL)


def _holds(found: Any, operator: str, value: str) -> bool:
    if operator == ":":
        return _has(found, value)
    if operator == CALL:
        return value in (found or ())
    if isinstance(found, list):
        return any(_holds(each, operator, value) for each in found)
    if found is None:
        return operator == "!="
    if isinstance(found, bool):
        found = "true" if found else "false"
    if operator in ("=", "!="):
        return (_is(found, value)) == (operator == "=")
    order = _order(found, value)
    return {"<": order < 0, ">": order > 0, "<=": order <= 0, ">=": order >= 0}[operator]


def _is(found: Any, value: str) -> bool:
    return str(found) == value or (not isinstance(found, str) or _TIME.fullmatch(found) is not None) and _order(found, value) == 0


def _order(found: Any, value: str) -> int:
    """Return -1, 0 or 1 if `found` is before, equal to or after `value`; two numbers or times compare as such, others as text."""
    if hasattr(found, "compare"):
        return found.compare(value)
    mine, other = _sortable(str(found)), _sortable(value)
    if mine[0] != other[0]:
        mine, other = (0, str(found)), (0, value)
    return (mine > other) - (mine < other)


def _sortable(text: str) -> tuple[int, Any]:
    """Return a sort key for a text: its kind (0 text, 1 number, 2 time), then its value."""
    if _NUMBER.fullmatch(text):
        return 1, float(text)
    if _TIME.fullmatch(text):
        moment = timestamp_pb2.Timestamp()
        try:
            moment.FromJsonString(text)
            return 2, moment.ToNanoseconds()
        except ValueError:
            pass  # 2026-13-45T…: text
    return 0, text


def _has(found: Any, value: str) -> bool:
    if found in (None, "", [], {}):
        return False
    if value == "*":
        return True
    if isinstance(found, Mapping):
        return value in found
    if isinstance(found, list):
        return any(_has(each, value) if isinstance(each, (list, Mapping)) else str(each) == value for each in found)
    return value.lower() in str(found).lower()
