#!/usr/bin/env python3
"""Write docs/messages.md: every message that the code gives a user, by area, each with its remedy.

    python docs/messages.py    # ends with 1 where a message has no remedy

A message carries its remedy where it says what to do ("Name another file.") or what is accepted ("takes …; got …").
docs/messages.yaml holds the remedies of the others, what makes a remedy, and which files make an area.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from messages_in_code import Code, Message

PAGE, TABLE = Path(__file__).with_name("messages.md"), Path(__file__).with_name("messages.yaml")


class Page:
    """The page, from the messages and the table of what they do not say themselves."""

    def __init__(self, messages: Sequence[Message], table: Mapping[str, Any]):
        self.messages, self.table = messages, table
        self.remedies = {compiled(pattern): remedy for pattern, remedy in table["remedies"].items()}
        areas = [(area, compiled(pattern)) for area, patterns in table["areas"].items() for pattern in patterns]
        self.areas = {path: next((area for area, pattern in areas if pattern.match(path)), "") for path in {each.path for each in messages}}
        verbs = "|".join(table["imperatives"].split())
        self.says = re.compile(rf"(?:^|[.:;,(|?] |\b(?:or|and|then|to|first) |-> )(?i:{verbs})\b|{'|'.join(table['accepted'])}")

    def faults(self) -> list[str]:
        """Return what is missing: remedies, areas, and messages for the table's patterns."""
        has = [self.says.search(each.text) or each.kind in self.table["kinds"] or self.remedy(each) for each in self.messages]
        faults = [f"no remedy: {each.path}: {each.text}" for each, said in zip(self.messages, has) if not said]
        faults += [f"no area: {path}" for path, area in self.areas.items() if not area]
        idle = [pattern for pattern in self.table["remedies"] if not any(compiled(pattern).match(each.text) for each in self.messages)]
        return faults + [f"no such message: {pattern}" for pattern in idle]

    def remedy(self, message: Message) -> str:
        """Return what the table says to do about a message, or an empty text."""
        return next((remedy for pattern, remedy in self.remedies.items() if pattern.match(message.text)), "")

    def entry(self, message: Message) -> str:
        """Return a message's line."""
        shown = f"`` {message.text} ``" if "`" in message.text else f"`{message.text}`"
        return f"- {shown}{f'<br>{self.remedy(message)}' if self.remedy(message) else ''}"

    def __str__(self) -> str:
        parts = [self.table["opening"].strip()]
        for area in self.table["areas"]:
            here = [message for message in self.messages if self.areas[message.path] == area]
            parts += [f"## {area}"] if here else []
            for kind in sorted({message.kind for message in here}, key=lambda kind: ("error warning".find(kind) % 99, kind)):
                parts += [f"### {kind[0].upper()}{kind[1:]}", self.table["kinds"].get(kind, "").strip()]
                parts.append("\n".join(dict.fromkeys(self.entry(message) for message in here if message.kind == kind)))
        return "\n\n".join(filter(None, parts)) + "\n"


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern of the table, in which * is anything, as an expression."""
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))


def make() -> Page:
    """Return the page as the code and the table make it now."""
    return Page(Code().messages(), yaml.safe_load(TABLE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    made = make()
    PAGE.write_text(str(made), encoding="utf-8")
    sys.exit("\n".join(made.faults()) or print(f"docs/messages.md: {len(made.messages)} messages"))
