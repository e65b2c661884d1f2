"""The pictures of the documents: they are there, they are what their script draws, and their text fits and can be read."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from conftest import ROOT

PICTURES = ROOT / "docs" / "pictures"
sys.path.append(str(PICTURES))
drawing = pytest.importorskip("drawing", reason="drawsvg is not installed")
import how  # noqa: E402
import make  # noqa: E402
import resume  # noqa: E402

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DRAWN = sorted([*PICTURES.glob("how-*.svg"), PICTURES / "resume.svg"])
SVG = "{http://www.w3.org/2000/svg}"


def named(document: Path) -> list[Path]:
    """Return the pictures that a document shows."""
    text = document.read_text(encoding="utf-8")
    found = re.findall(r'(?:src|srcset)="([^"]+)"', text) + re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    return [document.parent / name for name in found if "://" not in name]


# ------------------------------------------------------------------ the documents


def test_every_picture_that_a_document_shows_is_there_and_every_picture_is_shown():
    shown = [path for document in DOCUMENTS for path in named(document)]
    assert shown and not [path for path in shown if not path.is_file()]
    kept = {path for path in PICTURES.iterdir() if path.suffix in (".png", ".svg")}
    assert kept == {path.resolve() for path in shown}


def test_every_picture_says_what_it_shows():
    for document in DOCUMENTS:
        for tag in re.findall(r"<img [^>]*>", document.read_text(encoding="utf-8")):
            assert len(re.search(r'alt="([^"]*)"', tag)[1]) > 20, f"{document.name}: {tag}"


def test_how_it_works_names_only_files_and_flags_that_exist():
    page = ROOT / "docs" / "how-it-works.md"
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\[([\w./]+)\]\(([^)#]+)\)", text)
    assert len(set(links)) > 30
    for shown, target in links:
        path = (page.parent / target).resolve()
        assert path.exists() and str(path).endswith(shown.rstrip("/")), target
    assert not re.findall(r"`[\w/]+\.py`", text), "a file is a link"
    arguments = (ROOT / "vertex_runtime" / "arguments.py").read_text(encoding="utf-8")
    for flag in set(re.findall(r"`--(\w+)", text)):
        assert re.search(rf"^    {flag}: ", arguments, re.MULTILINE), flag
    for variable in set(re.findall(r"`((?:AIP|CLUSTER)_\w+)`", text)):
        assert f'"{variable}"' in (ROOT / "vertex_runtime" / "environment.py").read_text(encoding="utf-8"), variable


# ------------------------------------------------------------------ what is drawn


def test_the_drawings_are_what_the_script_draws(tmp_path):
    (tmp_path / "resume.json").write_bytes((PICTURES / "resume.json").read_bytes())
    assert make.main(["how", "resume", "--redraw", f"--to={tmp_path}"]) == 0
    made = sorted(tmp_path.glob("*.svg"))
    assert [path.name for path in made] == [path.name for path in DRAWN] and len(made) == len(how.PICTURES) + 1
    for new, kept in zip(made, DRAWN):
        same = [ElementTree.canonicalize(path.read_text(encoding="utf-8"), strip_text=True) for path in (new, kept)]
        assert same[0] == same[1], f"{kept.name}: run docs/pictures/make.py how, or resume --redraw, again"


def test_every_drawing_follows_the_scheme_and_has_a_title():
    for path in DRAWN:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert len(root.find(f"{SVG}title").text) > 20, path.name
        assert "prefers-color-scheme:dark" in "".join(style.text or "" for style in root.iter(f"{SVG}style"))
        sizes = {float(text.get("font-size")) for text in root.iter(f"{SVG}text")}
        assert sizes <= {drawing.TEXT, drawing.CODE} and float(root.get("width")) in (drawing.WIDTH, resume.WIDTH), path.name


def test_text_that_may_not_fit_is_refused():
    picture = drawing.Picture("a title")
    with pytest.raises(drawing.TooLong, match="'much too long for a box'"):
        picture.card("", ["much too long for a box"], width=100)


def test_the_order_in_the_picture_is_the_real_one():
    cells = [element.text for element in ElementTree.fromstring(how.data().svg()).iter(f"{SVG}text") if (element.text or "").isdigit()]
    assert [int(cell) for cell in cells[:12]] == list(range(12)) and sorted(map(int, cells[12:24])) == list(range(12))
    assert cells[12:24] != cells[:12] and cells[24:] == cells[16:20]  # both workers' parts are step 2


def test_the_timeline_says_what_its_runs_left():
    record = json.loads((PICTURES / "resume.json").read_text(encoding="utf-8"))
    unbroken, killed, ended = record["runs"]
    assert unbroken["resumed"] is None and len(unbroken["attempts"]) == 1
    assert killed["attempts"][0]["step"] > killed["resumed"] > 0, "kill -9 takes what came after the checkpoint"
    assert ended["attempts"][0]["step"] == ended["resumed"], "SIGTERM saves first"
    text = resume.draw(record).svg()
    assert f"{killed['attempts'][0]['step'] - killed['resumed']:,} steps lost" in text and "nothing lost" in text
    assert f"sha256 {unbroken['weights'][:12]}" in text and "bit for bit" in text
    other = copy.deepcopy(record)
    other["runs"][1]["weights"] = "0" * 64
    assert "bit for bit" not in resume.draw(other).svg()


def test_a_wrong_word_is_one_line(capsys, tmp_path):
    for words, told in ((["how", "why"], "'why'"), (["how", f"--to={tmp_path / 'gone'}"], "there is no folder")):
        with pytest.raises(SystemExit) as stop:
            make.main(words)
        assert stop.value.code == 2 and told in capsys.readouterr().err
    assert make.main(["resume", "--redraw", f"--to={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"error: --redraw: there is no {tmp_path / 'resume.json'}. Leave --redraw out to measure it.\n"


# ------------------------------------------------------------------ as a browser shows it

OVERLAPS = """() => {
  const view = document.documentElement.getBoundingClientRect()
  const texts = [...document.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()])
  const found = texts.filter(([, b]) => b.left < 4 || b.right > view.width - 4 || b.bottom > view.height).map(([t]) => t)
  texts.forEach(([t, a], i) => texts.slice(i + 1).forEach(([u, b]) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left), high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)
    if (wide > 1 && high > 4) found.push(t + ' | ' + u)
  }))
  return found
}"""


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_no_text_overlaps_another_or_leaves_the_picture():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        for path in DRAWN:
            page.goto(path.as_uri())
            assert not page.evaluate(OVERLAPS), path.name
        colours = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(DRAWN[0].as_uri())
            colours.append(page.evaluate("getComputedStyle(document.querySelector('.page')).fill"))
        assert len(set(colours)) == 2
        browser.close()
