"""The filter language of list calls, as far as clients use it: `a.b="x" AND (c>=1 OR NOT d:y)`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Lookup = Callable[[Mapping[str, Any], str], Any]
Accepts = Callable[[Mapping[str, Any]], bool]
_TOKEN = re.compile(
    r"""\s*(?:(?P<paren>[()])|(?P<op><=|>=|!=|=|<|>|:)|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<word>[^\s()=<>!:"']+))"""
)
_LONGEST = 20_000  # characters, as Logging's own limit
_DEEPEST = 50


class FilterError(ValueError):
    """A filter that cannot be read: what was expected, and where."""


def parse(text: str, lookup: Lookup) -> Accepts:
    """Return a function that says whether an item passes the filter `text`; an empty one lets everything pass.

    Args:
        lookup: returns the value of an item's field by the name that the filter gives it.
    """
    if len(text) > _LONGEST:
        raise FilterError(f"filter: at most {_LONGEST:,} characters; got {len(text):,}.")
    tokens, place = [], 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if not match:
            raise FilterError(f"filter: cannot be read at {text[place:].strip()[:40]!r}.")
        tokens.append((str(match.lastgroup), match[match.lastgroup or 0]))
        place = match.end()
    if not tokens:
        return lambda item: True
    reader = _Reader(tokens, lookup)
    accepts = reader.either(0)
    if reader.tokens:
        raise FilterError(f"filter: expected AND or OR before {reader.tokens[0][1]!r}.")
    return accepts


def camel(name: str) -> str:
    """Return `display_name` as `displayName`."""
    return re.sub("_([a-z])", lambda match: match[1].upper(), name)


class _Reader:
    def __init__(self, tokens: list[tuple[str, str]], lookup: Lookup):
        self.tokens, self.lookup = tokens, lookup

    def _next_is(self, *words: str) -> bool:
        return bool(self.tokens) and self.tokens[0][0] in ("word", "paren") and self.tokens[0][1] in words

    def either(self, depth: int) -> Accepts:
        parts = [self.all_of(depth)]
        while self._next_is("OR"):
            self.tokens.pop(0)
            parts.append(self.all_of(depth))
        return parts[0] if len(parts) == 1 else lambda item: any(part(item) for part in parts)

    def all_of(self, depth: int) -> Accepts:
        parts = [self.one(depth)]
        while self.tokens and not self._next_is("OR", ")"):
            if self._next_is("AND"):
                self.tokens.pop(0)
            parts.append(self.one(depth))  # two terms side by side are both wanted
        return parts[0] if len(parts) == 1 else lambda item: all(part(item) for part in parts)

    def one(self, depth: int) -> Accepts:
        if depth > _DEEPEST:
            raise FilterError(f"filter: at most {_DEEPEST} parentheses within each other.")
        if self._next_is("NOT"):
            self.tokens.pop(0)
            inner = self.one(depth + 1)
            return lambda item: not inner(item)
        if self._next_is("("):
            self.tokens.pop(0)
            inner = self.either(depth + 1)
            if not self._next_is(")"):
                raise FilterError("filter: a parenthesis is not closed.")
            self.tokens.pop(0)
            return inner
        return self._comparison()

    def _comparison(self) -> Accepts:
        kinds = [kind for kind, _ in self.tokens[:3]]
        if len(kinds) < 3 or kinds[0] != "word" or kinds[1] != "op" or kinds[2] not in ("word", "text"):
            got = " ".join(value for _, value in self.tokens[:3]) or "nothing"
            raise FilterError(f'filter: expected something like state="x"; got {got[:60]!r}.')
        name, op, value = (value for _, value in self.tokens[:3])
        del self.tokens[:3]
        if value[0] in "\"'":
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        return lambda item: _holds(self.lookup(item, name), op, value)


def _holds(found: Any, op: str, value: str) -> bool:
    if op == ":":
        return found not in (None, "") and (value == "*" or _has(found, value))
    if found is None:
        return op == "!="
    text = ("true" if found else "false") if isinstance(found, bool) else found if isinstance(found, str) else str(found)
    if op in ("=", "!="):
        return (text == value) == (op == "=")
    less, more = text < value, text > value
    try:
        less, more = float(text) < float(value), float(text) > float(value)
    except ValueError:
        pass  # text, such as times in RFC 3339, which sort as they stand
    return {"<": less, ">": more, "<=": not more, ">=": not less}[op]


def _has(found: Any, value: str) -> bool:
    if isinstance(found, (Mapping, list)):
        return value in found
    return value.lower() in str(found).lower()
