"""The documents: they build into a site without a warning, no link leads to nowhere, and every flag in a command is one."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import ROOT
from document_blocks import PAGES, MarkError, blocks, commands
from markdown_it import MarkdownIt

import vertex_local.__main__
from vertex_runtime import arguments
from vertex_runtime.errors import UserError

SITE = ("README.md", "CHANGELOG.md", "docs", "pipelines", "jobs")
BLOCKS = [block for page in PAGES for block in blocks(page)]
REASONS = ("needs ", "takes ", "opens ", "installs ")
FLAGS_OF_OTHERS = {"--all", "--args", "--config", "--polling-interval"}  # of scripts/test and gcloud


def markdown_files() -> list[str]:
    """Every document of the checkout, whatever folder it lies in."""
    ours = {path.name for path in ROOT.iterdir() if path.is_dir() and re.fullmatch(r"[a-z_]+", path.name)} - {"build", "dist"}
    found = [*ROOT.glob("*.md"), *(path for name in ours for kind in ("md", "ipynb") for path in (ROOT / name).rglob(f"*.{kind}"))]
    assert len(found) > 20
    return sorted(str(path.relative_to(ROOT)) for path in found)


# ------------------------------------------------------------------ the site


def build(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("sphinx", reason="Sphinx is not installed: pip install '.[docs]'")
    words = ["--builder", "html", "--fail-on-warning", "--keep-going", "--quiet", "-c", source / "docs", "-d", output / "doctrees"]
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *words, source, output / "site"], capture_output=True, text=True, timeout=300, cwd=output
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_every_document_is_a_page(site):
    missing = [name for name in markdown_files() if not (site / name).with_suffix(".html").is_file()]
    assert not missing, f"not built: {missing}; docs/conf.py says what is"


def test_pages_fetch_nothing(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|link|img|source|iframe)\b[^>]*?\b(?:src|srcset|href)=\"((?:https?:)?//[^\"]+)", text)
        assert not fetched, f"{page.name} fetches {fetched}"
        assert "<picture" not in text, f"{page.name}: a picture that docs/conf.py does not know"


def test_pictures_come_light_and_dark(site):
    text = (site / "README.html").read_text(encoding="utf-8")
    sources = (ROOT / "README.md").read_text(encoding="utf-8").count("<picture>")
    for kind in ("light", "dark"):
        found = [tag for tag in re.findall(r"<img [^>]+>", text) if f"only-{kind}" in tag]
        assert sources and len(found) == sources
        for tag in found:
            (name,) = re.findall(r'src="(_images/[\w-]+\.png)"', tag)
            assert name.endswith(f"-{kind}.png") and (site / name).is_file()


def test_the_navigation_is_the_readmes_table(site):
    text = (site / "README.html").read_text(encoding="utf-8")
    captions = re.findall(r'<span class="caption-text">([^<]+)</span>', text)
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Where to go next")[2].partition("\n## ")[0]
    assert captions == re.findall(r"^\| ([^|]+?) \| .+\|$", table, re.MULTILINE) and len(captions) > 3


def test_files_that_pages_lead_to_come_along(site):
    linked = {path.name for path in (site / "_downloads").rglob("*") if path.is_file()}
    assert "taxifare.yaml" in linked


BROKEN = {
    "a file": ("[x](../jobs/no-such.yaml)", "no-such.yaml"),
    "a page": ("[x](no-such.md)", "no-such.md"),
    "a heading": ("[x](check.md#no-such-heading)", "no-such-heading"),
    "a heading of its own": ("[x](#nowhere)", "nowhere"),
    "a picture": (
        '<picture><source media="(prefers-color-scheme: dark)" srcset="pictures/no.png">\n<img src="pictures/no.png" alt="x"></picture>',
        "no.png",
    ),
}  # fmt: skip


@pytest.mark.slow
def test_links_to_nowhere_are_errors(tmp_path):
    """In one build, for each takes seconds."""
    for name in SITE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    # Whatever else the pages lead to.
    for name in ("vertex_runtime", "vertex_local", "taxifare", "stackoverflow", "benchmarks", "scripts", "tests", "templates"):
        (tmp_path / name).symlink_to(ROOT / name)
    page = tmp_path / "docs" / "house.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n\n" + "\n\n".join(text for text, _ in BROKEN.values()), encoding="utf-8")
    (tmp_path / "docs" / "lost.md").write_text("# In no table\n", encoding="utf-8")
    book = tmp_path / "docs" / "notebook.ipynb"
    cells = json.loads(book.read_text(encoding="utf-8"))
    cells["cells"][0]["source"] += ["\n\n[x](../nothing-here.yaml)"]
    book.write_text(json.dumps(cells), encoding="utf-8")
    output = tmp_path / "output"
    output.mkdir()
    done = build(tmp_path, output)
    assert done.returncode != 0
    for what in (*(name for _, name in BROKEN.values()), "nothing-here.yaml", "lost.md"):
        found = re.search(rf"WARNING.*{re.escape(what)}|{re.escape(what)}.*WARNING", done.stderr)
        assert found, f"{what} was not found wrong:\n{done.stderr}"


def test_addresses_are_well_formed():
    """Nobody is asked: a network is not part of the tests."""
    for name in markdown_files():
        for address in re.findall(r"\]\((https?:[^)\s]*)\)|<(https?:[^>]*)>", (ROOT / name).read_text(encoding="utf-8")):
            (url,) = filter(None, address)
            assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(:\d+)?(/[^\s<>\"]*)?", url), f"{name}: {url}"


# ------------------------------------------------------------------ commands


def test_what_is_not_run_says_why():
    for block in BLOCKS:
        assert not block.not_run or block.not_run.startswith(REASONS), f"{block.place}: {block.not_run!r} begins with none of {REASONS}"
        assert block.not_run or not re.search(r"^(gcloud|docker) ", block.code, re.MULTILINE), f"{block.place} needs Google Cloud or Docker"


def test_a_misspelt_mark_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("document_blocks.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n<!-- not run: needs a GPU -->\n\n```bash\ntrue\n```\n\n```bash\nfalse\n```\n", encoding="utf-8")
    assert [(block.line, block.not_run) for block in blocks(page)] == [(6, "needs a GPU"), (10, "")]
    page.write_text("<!-- notrun: needs a GPU -->\n```bash\ntrue\n```\n", encoding="utf-8")
    with pytest.raises(MarkError, match="page.md:3: 'notrun: needs a GPU' is no mark"):
        blocks(page)


class Parsed(Exception):
    """The command line is right; the command itself is not to run."""


@pytest.fixture
def parse_only(monkeypatch):
    """Let every program of the project end when it has read its command line."""
    for parser in (argparse.ArgumentParser, arguments._Parser):
        original = parser.parse_args

        def parse_args(self, args=None, namespace=None, original=original):
            original(self, args, namespace)
            raise Parsed

        monkeypatch.setattr(parser, "parse_args", parse_args)


def program(words: Sequence[str]) -> tuple[Callable[..., object], list[str]] | None:
    """Return the `main` of one of the project's programs and its arguments; None: it is somebody else's."""
    words = list(itertools.dropwhile(lambda word: re.match(r"[A-Za-z_]+=", word), words))
    if not words:
        return None
    redirected = next((place for place, word in enumerate(words) if word[:1] in "<>"), len(words))
    name, arguments_ = Path(words[0]).name, list(words[1:redirected])
    if words[0].startswith("scripts/"):
        return script(words[0], arguments_)
    if not name.startswith("python"):
        return None
    if arguments_[0] == "-m":
        return module(arguments_[1], arguments_[2:])
    if (folder := str((ROOT / arguments_[0]).parent)) not in sys.path:
        sys.path.append(folder)  # as Python does for a script
    return module(arguments_[0].removesuffix(".py").replace("/", "."), arguments_[1:])


def script(path: str, words: list[str]) -> tuple[Callable[..., object], list[str]] | None:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path == "scripts/train":
        trainer = words.pop(0) if words and not words[0].startswith("-") else "taxifare"
        return module(f"{trainer if (ROOT / trainer).is_dir() else 'taxifare'}.trainer.task", words)
    found = re.findall(r'(?:run_module|-m) ([\w.]+)((?: [\w-]+)*) "\$@"', text)
    if found:
        return module(found[-1][0], [*found[-1][1].split(), *words])
    found = re.findall(r'"\$root/([\w/]+)\.py" "\$@"', text)
    return program(["python", f"{found[-1]}.py", *words]) if found else None


def module(name: str, words: list[str]) -> tuple[Callable[..., object], list[str]] | None:
    if name in ("venv", "pip", "pytest", "trainer.task", "json.tool"):
        return None
    main = getattr(importlib.import_module("vertex_local.__main__" if name == "vertex_local" else name), "main", None)
    return (main, words) if main or words else None


def named() -> list[tuple[str, list[str]]]:
    return [(block.place, words) for block in BLOCKS for words in commands(block.code) if program(words)]


def test_every_command_names_flags_that_there_are(parse_only, capsys, monkeypatch):
    """Those, too, that no machine of ours can run."""
    found = named()
    assert len(found) > 40
    for place, words in found:
        main, arguments_ = program(words)
        monkeypatch.setattr(sys, "argv", [words[0], *arguments_])
        wrong = ""
        try:
            main() if main.__code__.co_argcount == 0 else main(arguments_)
        except Parsed:
            continue
        except UserError as error:
            wrong = str(error)
        except SystemExit:
            wrong = capsys.readouterr().err
        pytest.fail(f"{place}: {' '.join(words)}\n{wrong or 'its command line was never parsed'}")


def test_flags_after_two_dashes_are_the_trainers(parse_only):
    for _, words in named():
        if "--" in words:
            trainer = next((name for name in ("stackoverflow", "taxifare") if any(name in word for word in words)), "taxifare")
            task = importlib.import_module(f"{trainer}.trainer.task")
            with pytest.raises(Parsed):
                task.main(words[words.index("--") + 1 :])


def flags_of(main: Callable[..., object], words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the flags that a program's parser knows."""
    found: set[str] = set()

    def parse_args(self, args=None, namespace=None):
        found.update(self._option_string_actions)
        raise Parsed

    with monkeypatch.context() as patched:
        for parser in (argparse.ArgumentParser, arguments._Parser):
            patched.setattr(parser, "parse_args", parse_args)
        with pytest.raises(Parsed):
            main() if main.__code__.co_argcount == 0 else main(list(words))
    return found


def test_flags_in_the_text_are_flags(monkeypatch):
    """Whatever stands as code within a sentence or a table; of other programs' flags there is a list."""
    programs = [module("vertex_local", [name]) for name in vertex_local.__main__.COMMANDS]
    programs += [program([str(path.relative_to(ROOT))]) for path in sorted((ROOT / "scripts").iterdir()) if path.suffix != ".sh"]
    programs += [module(f"vertex_runtime.{name}", []) for name in ("profile", "explain", "predict")]
    programs += [module("pipelines.kfp.compile", []), module("stackoverflow.trainer.task", [])]
    known = set().union(*(flags_of(*each, monkeypatch) for each in programs if each)) | FLAGS_OF_OTHERS
    for path in (*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "pipelines" / "tfx").glob("*.py")):  # heavy to import
        known.update(re.findall(r'"(--[a-z][\w-]*)"', path.read_text(encoding="utf-8")))
    wrong = []
    for page in (page for page in PAGES if page.name != "messages.md"):  # which is written from the code, and cites parts of it
        for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
            for code in (child.content for child in token.children or () if child.type == "code_inline"):
                if not code.startswith(("gcloud ", "pip ", "apt")):
                    wrong += [f"{page.name}: {flag}" for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code) if flag not in known]
    assert not wrong


PLACES = {"P": "my-project-1", "R": "europe-west4", "B": "my-bucket-1", "YOU": "me@example.org"}


@pytest.mark.slow
def test_commands_of_gcloud_are_such(tmp_path):
    """By gcloud's own parsers, which ask nobody."""
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not on PATH")
    found = [shlex.join(words) for block in BLOCKS for words in commands(block.code) if words[0] == "gcloud"]
    assert len(found) > 15
    for name, value in PLACES.items():
        found = [re.sub(rf"\b{name}\b", value, command) for command in found]
    wrong = [*found, "gcloud storage buckets create gs://my-bucket-1 --no-such-flag"]
    answers = lint(tmp_path, wrong)
    assert len(answers) == len(wrong)
    failed = [f"{each['command_string']}: {each['error_message']}" for each in answers if not each["success"]]
    assert len(failed) == 1 and "--no-such-flag" in failed[0], "\n".join(failed)


def lint(folder: Path, lines: Sequence[str]) -> list[dict]:
    text = folder / "commands.md"
    text.write_text("\n".join(["```bash", *lines, "```", ""]), encoding="utf-8")
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-text-file={text}"],
        env={**os.environ, "CLOUDSDK_CONFIG": str(folder)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_flag_that_is_none_is_found(parse_only, capsys):
    main, words = program(["python", "-m", "vertex_local", "run", "jobs/taxifare.yaml", "--no_such_flag"])
    with pytest.raises(SystemExit):
        main(words)
    assert "--no_such_flag" in capsys.readouterr().err
