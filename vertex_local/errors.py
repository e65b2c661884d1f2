"""Mistakes that a user can mend: one base for all of them, and how a value is quoted in their messages."""

from __future__ import annotations

LONGEST = 100  # characters of a user's value that a message repeats


class UserError(ValueError):
    """A mistake in a file, a flag or the surroundings. Its message is one line: the place, the value and the remedy.

    Everything else that is raised is a fault of this program and is reported as one.
    """


def quoted(value: object) -> str:
    """Return a value as Python writes it, cut to LONGEST characters."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python converts
        return f"a number of about {value.bit_length() * 3 // 10:,} digits" if isinstance(value, int) else "a value"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
