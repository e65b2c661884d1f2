"""The preconditions of a request about an object: its generation, the if…Match parameters, and ETags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .rest import ApiError

_NUMBER = re.compile("[0-9]{1,19}")


class NotModified(Exception):
    """The client that reads already has this generation."""


class Versioned(Protocol):
    """What conditions are compared with."""

    @property
    def generation(self) -> int: ...

    @property
    def metageneration(self) -> int: ...

    @property
    def etag(self) -> str: ...


@dataclass(frozen=True)
class Conditions:
    """The conditions of one request, by parameter; `generation` asks for one generation of the object."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    generation: str | None = None
    reads: Mapping[str, str] | None = None  # the headers of a read, which may have conditions, too

    @classmethod
    def of(cls, query: Mapping[str, str], reads: Mapping[str, str] | None = None, *, source: bool = False) -> Conditions:
        """Return a request's conditions on its object, or (`source`) on the object that it copies."""
        prefix, generation = ("ifSource", "sourceGeneration") if source else ("if", "generation")
        names = [f"{prefix}{kind}{way}" for kind in ("Generation", "Metageneration") for way in ("Match", "NotMatch")]
        return cls({name: query[name] for name in names if query.get(name)}, query.get(generation) or None, reads)

    def check(self, name: str, found: Versioned | None) -> None:
        """Raise an error unless an object (None: it does not exist) meets the conditions.

        Raises:
            NotModified: a read asks for the object only if it has changed.
            ApiError: NOT_FOUND for another generation, 412 for any other condition.
        """
        now = {"Generation": found.generation if found else 0, "Metageneration": found.metageneration if found else 0}
        for key, text in self.parameters.items():
            kind, unlike = "Metageneration" if "Metageneration" in key else "Generation", key.endswith("NotMatch")
            if (_parsed(key, text) == now[kind]) == unlike:
                if unlike and self.reads is not None:
                    raise NotModified
                raise ApiError("FAILED_PRECONDITION", f"{key}={text}, but {name} has {kind.lower()} {now[kind]}; read it again.", code=412)
        if self.generation and _parsed("generation", self.generation) != now["Generation"]:
            raise ApiError("NOT_FOUND", f"No such object: {name}#{self.generation}")
        if self.reads is not None and found is not None:
            self._check_etags(name, found.etag)

    def _check_etags(self, name: str, etag: str) -> None:
        wanted, unwanted = (_etags((self.reads or {}).get(header)) for header in ("If-Match", "If-None-Match"))
        if {etag, "*"} & unwanted:
            raise NotModified
        if wanted and not {etag, "*"} & wanted:
            raise ApiError("FAILED_PRECONDITION", f"If-Match names other ETags than {etag}, which {name} has; read it again.", code=412)

    def to_json(self) -> dict[str, Any]:
        """Return the conditions that a resumable upload keeps until it ends."""
        return dict(self.parameters)


NONE = Conditions()


def _parsed(key: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ApiError("INVALID_ARGUMENT", f"{key} takes a whole number from 0 on; got {text[:100]!r}.", key)
    return int(text)


def _etags(header: str | None) -> set[str]:
    return {word.strip().removeprefix("W/").strip('"') for word in (header or "").split(",")} - {""}
