"""The fenced blocks of shell commands in the documents, and the marks that say how they are run.

A mark is an HTML comment right before the block, which no reader of the page sees:

    <!-- not run: REASON -->    it cannot be run here: needs Google Cloud, Docker, a GPU, the internet, a person
    <!-- slow -->               it is run with the slow tests only
    <!-- needs KFP -->          it is run where the environment of scripts/setup_kfp is
    <!-- prints: TEXT -->       what it prints has TEXT in it
    <!-- until: TEXT -->        it does not end: the next block begins when this one has printed TEXT
    <!-- exit code: N -->       it ends with N
    <!-- where: NAME=VALUE -->  stands for the word NAME in the block; VALUE is a word of the shell, such as $(ls -d taxifare-run-*)
    <!-- before: COMMANDS -->   run first

Without a mark a block is run by the default tests, in a copy of the checkout, after the blocks before it on the page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conftest import ROOT
from markdown_it import MarkdownIt

PAGES = (ROOT / "README.md", *(ROOT / name / "README.md" for name in ("taxifare", "stackoverflow")), *sorted((ROOT / "docs").glob("*.md")))
SHELL = ("bash", "sh", "shell", "console")
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
_MARK = re.compile(r"(not run|prints|until|exit code|where|before): (.+)|(slow|needs KFP)", re.DOTALL)


class MarkError(ValueError):
    """A mark that is none of the above."""


@dataclass(frozen=True)
class Block:
    """A block of commands.

    Args:
        page: the file.
        line: where its first command stands, from 1.
        code: the commands.
        not_run: why it is not run; empty: it is.
        slow: whether only the slow tests run it; kfp: whether it needs KFP's environment.
        prints: a text that it prints; empty: any.
        until: the text after which it is left running; empty: it ends.
        exit_code: what it ends with.
        where: what stands for the placeholders in it, as words of the shell.
        before: commands that are run first.
    """

    page: Path
    line: int
    code: str
    not_run: str = ""
    slow: bool = False
    kfp: bool = False
    prints: str = ""
    until: str = ""
    exit_code: int = 0
    where: dict[str, str] = field(default_factory=dict)
    before: str = ""

    @property
    def place(self) -> str:
        """Its file and line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def filled(self, values: Mapping[str, str]) -> str:
        """Return the commands with values in the place of the placeholders.

        Raises:
            MarkError: a placeholder that the block does not have.
        """
        code = self.code
        for name, value in values.items():
            code, count = re.subn(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", lambda _: value, code)
            if not count:
                raise MarkError(f"{self.place}: where: the block has no {name}")
        return code


def blocks(page: Path) -> list[Block]:
    """Return a page's blocks of commands in order.

    Raises:
        MarkError: a comment before a block is no mark.
    """
    found: list[Block] = []
    comments: list[str] = []
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            comments += _COMMENT.findall(token.content)
        elif token.type == "fence" and token.info.split(" ")[0] in SHELL:
            found.append(_block(page, token.map[0] + 2, token.content, comments))
            comments = []
        elif token.type not in ("list_item_open", "list_item_close", "paragraph_close"):
            comments = []
    return found


def _block(page: Path, line: int, code: str, marks: list[str]) -> Block:
    values: dict[str, object] = {}
    where: dict[str, str] = {}
    for mark in marks:
        match = _MARK.fullmatch(mark)
        if not match:
            raise MarkError(f"{page.relative_to(ROOT)}:{line}: {mark!r} is no mark of a block: see {Path(__file__).name}")
        kind, value, flag = match.groups()
        if kind == "where":
            name, _, word = value.partition("=")
            where[name] = word
        elif flag:
            values["slow" if flag == "slow" else "kfp"] = True
        else:
            values[kind.replace(" ", "_")] = int(value) if kind == "exit code" else value
    return Block(page, line, code, where=where, **values)


def commands(code: str) -> Iterator[list[str]]:
    """Yield the words of each simple command of a block, those within `$(…)` as well."""
    text = re.sub(r"<<'?(\w+)'?\n.*?\n\1\n", "\n", code.replace("\\\n", " "), flags=re.DOTALL)
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|()"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)
        for inner in re.findall(r"\$\(([^()]+)\)", line):
            yield from commands(inner)

