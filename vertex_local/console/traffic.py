"""Shares of an endpoint's traffic, as forms give them and as the service takes them: 100 percent in all."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..serve.rest import ApiError


def percent(text: str) -> int:
    """Return a share that a form gives, 0 to 100."""
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > 100:
        raise ApiError("INVALID_ARGUMENT", f"a share takes 0 to 100 percent; got {text[:20]!r}.")
    return int(text)


def scaled(shares: Mapping[str, int], total: int) -> dict[str, int]:
    """Return shares in the same proportions that are `total` in all; what rounding leaves goes to the first."""
    before = sum(shares.values())
    found = {key: share * total // before for key, share in shares.items()}
    found[next(iter(found))] += total - sum(found.values())
    return found
