"""Why a program failed: the line of its output that says it best."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

_ERROR = re.compile(r"^([\w.]*(Error|Exception|Interrupt|Exit)\b|(fatal|error)\b)", re.IGNORECASE)
_SEVERE = ("ERROR", "CRITICAL", "ALERT", "EMERGENCY")


def last_error(lines: Sequence[str], otherwise: str = "") -> str:
    """Return the last line that reads like an error, plain or in JSON as Cloud Logging takes it; else the last plain one.

    Args:
        otherwise: what to return where no line says anything; of a line in JSON its message.
    """
    texts = [line.strip() for line in lines if line.strip()]
    for line in reversed(texts):
        if (message := _message(line)) is not None:
            return message
    plain = [line for line in texts if not line.startswith("{")]
    return plain[-1] if plain else _text(otherwise) or "it said nothing"


def _text(line: str) -> str:
    try:
        return str(json.loads(line)["message"])
    except (ValueError, LookupError, TypeError):
        return line


def _message(line: str) -> str | None:
    """Return the text of a line that reports an error; None for any other line."""
    if not line.startswith("{"):
        return line if _ERROR.match(line) else None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return str(entry.get("message", "")) if entry.get("severity") in _SEVERE else None
