"""How scripts/docs builds the documents with Sphinx: sources are the Markdown files where they lie, links lead to files as on GitHub.

The navigation is the table "Where to go next" of the README: a page that it does not name is an error.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

project = "Trainers for Vertex AI"
html_title = project
root_doc = "README"
include_patterns = ["*.md", "*/README.md", "docs/*.md", "pipelines/**/*.md"]
exclude_patterns = [".*", "**/.*", "build", "dist"]
source_suffix = {".md": "markdown"}
nitpicky = True

extensions = ["myst_parser"]
myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4  # as GitHub names them

html_theme = "furo"
html_copy_source = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]

_PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">\s*<img src="([^"]+)"([^>]*)>\s*</picture>'
)
_PAGE = re.compile(r"\]\(([\w./-]+)\.md\)")
_LINK = re.compile(r"\]\(([\w./-]+)\)")


def setup(app: Any) -> None:
    """Change sources before they are parsed, and let the site begin with index.html."""
    app.connect("source-read", _prepare)
    app.connect("build-finished", _write_index)


def _prepare(app: Any, name: str, source: list[str]) -> None:
    notebook = Path(app.srcdir, f"{name}.ipynb")
    if notebook.is_file():
        app.env.note_dependency(str(notebook))
        source[0] += _cells(json.loads(notebook.read_text(encoding="utf-8")))
    if name == root_doc:
        source[0] += _navigation(source[0])
    folder = Path(app.env.doc2path(name)).parent
    source[0] = _LINK.sub(lambda link: f"]({_file(folder, link[1])})", source[0])
    # The theme's own switch decides, which begins as the system says.
    source[0] = _PICTURE.sub(r'<img src="\1" class="only-dark"\3><img src="\2" class="only-light"\3>', source[0])


def _file(folder: Path, link: str) -> str:
    """Return the file that stands for what a link leads to: a package's first one says what is in it."""
    return f"{link.rstrip('/')}/__init__.py" if (folder / link / "__init__.py").is_file() else link


def _cells(book: dict[str, Any]) -> str:
    """Return a notebook, which is committed without outputs, as the end of the page of its name."""
    parts = [""]
    for cell in book["cells"]:
        text = "".join(cell["source"])
        language, code = ("bash", text.removeprefix("%%bash").strip()) if text.startswith("%%bash") else ("python", text)
        parts.append(text.replace("# ", "## ", 1) if cell["cell_type"] == "markdown" else f"```{language}\n{code}\n```")
    return "\n\n".join(parts)


def _navigation(readme: str) -> str:
    """Return a tree of pages for each row of the table "Where to go next", each page where it is named first."""
    (table,) = re.findall(r"^## Where to go next\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    trees, seen = [], set()
    for title, cells in re.findall(r"^\| ([^|]+) \| (.*) \|$", table, re.MULTILINE):
        pages = [page for page in _PAGE.findall(cells) if page not in seen]
        seen.update(pages)
        trees.append("\n".join(["```{toctree}", ":hidden:", ":titlesonly:", f":caption: {title}", "", *pages, "```"]))
    return "\n\n" + "\n\n".join(trees)


def _write_index(app: Any, error: Exception | None) -> None:
    if not error and app.builder.name == "html":
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html"><a href="{root_doc}.html">{project}</a>\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")
