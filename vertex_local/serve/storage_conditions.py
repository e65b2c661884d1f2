"""The preconditions of a request about an object: its generation, the if…Match parameters, and ETags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .rest import ApiError

if TYPE_CHECKING:
    from .storage_files import Stored


class NotModified(Exception):
    """The client that reads already has this generation."""


@dataclass(frozen=True)
class Conditions:
    """The conditions of one request, by parameter; `generation` asks for one generation of the object."""

    parameters: Mapping[str, int] = field(default_factory=dict)
    generation: int | None = None
    reads: Mapping[str, str] | None = None  # the headers of a read, which may have conditions, too

    @classmethod
    def of(cls, query: Mapping[str, str], reads: Mapping[str, str] | None = None, *, source: bool = False) -> Conditions:
        """Return a request's conditions on its object, or (`source`) on the object that it copies."""
        prefix, generation = ("ifSource", "sourceGeneration") if source else ("if", "generation")
        names = [f"{prefix}{kind}{way}" for kind in ("Generation", "Metageneration") for way in ("Match", "NotMatch")]
        numbers = {name: _number(name, query[name]) for name in (*names, generation) if query.get(name)}
        return cls({name: numbers[name] for name in names if name in numbers}, numbers.get(generation), reads)

    def check(self, name: str, found: Stored | None) -> None:
        """Raise an error unless an object (None: it does not exist) meets the conditions.

        Raises:
            NotModified: a read asks for the object only if it has changed.
            ApiError: NOT_FOUND for another generation, 412 for any other condition.
        """
        now = {"Generation": found.generation if found else 0, "Metageneration": found.metageneration if found else 0}
        for key, wanted in self.parameters.items():
            kind, unlike = "Metageneration" if "Metageneration" in key else "Generation", key.endswith("NotMatch")
            if (wanted == now[kind]) == unlike:
                if unlike and self.reads is not None:
                    raise NotModified
                raise _unmet(f"{key}={wanted}, but {name} has {kind.lower()} {now[kind]}")
        if self.generation not in (None, now["Generation"]):
            raise ApiError("NOT_FOUND", f"No such object: {name}#{self.generation}")
        if self.reads is not None and found is not None:
            self._check_etags(self.reads, name, found.etag)

    @staticmethod
    def _check_etags(reads: Mapping[str, str], name: str, etag: str) -> None:
        wanted, unwanted = (_etags(reads.get(header, "")) for header in ("If-Match", "If-None-Match"))
        if {etag, "*"} & unwanted:
            raise NotModified
        if wanted and not {etag, "*"} & wanted:
            raise _unmet(f"If-Match names other ETags than {etag}, which {name} has")


def _unmet(what: str) -> ApiError:
    return ApiError("FAILED_PRECONDITION", f"{what}; read it again.", code=412)


def _number(key: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text):
        raise ApiError("INVALID_ARGUMENT", f"{key} takes a whole number from 0 on; got {text[:100]!r}.", key)
    return int(text)


def _etags(header: str) -> set[str]:
    return {word.strip().removeprefix("W/").strip('"') for word in header.split(",")} - {""}
