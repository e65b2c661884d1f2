"""What a job's Python package requires, against what the prebuilt image has that it will be installed into.

Only names and versions are compared: without an index nothing is resolved, and what a requirement requires in its turn is
not seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, quoted
from ..job.images import Image

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

# What the documents on supported frameworks list as installed in the images of TensorFlow 2.17; None: without a version.
LISTED = {
    "2.17": {
        "cloudml-hypertune": None, "python-json-logger": "3.2", "pandas": "2.2.3", "xgboost": "2.1", "sympy": None, "mock": None,
    }
}  # fmt: skip


def constraints(image: Image | None, freeze: Path | None) -> dict[str, str | None]:
    """Return name -> version (or its beginning) of what the image has, the freeze file's word going first.

    Raises:
        UserError: the freeze file's line that is none of pip's.
    """
    found: dict[str, str | None] = {}
    if image is not None and image.role == "training":
        found = {"tensorflow": image.tensorflow, **LISTED.get(image.tensorflow, {})}
    if freeze is not None:
        found |= read_freeze(freeze)
    return found


def read_freeze(path: Path) -> dict[str, str | None]:
    """Return name -> version of a file that `pip freeze` wrote; None where it names a file instead of a version."""
    from packaging.utils import canonicalize_name

    found: dict[str, str | None] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--freeze {path}: cannot be read: {error}; write it with scripts/image_freeze.") from None
    for number, line in enumerate(lines, 1):
        text = line.partition(" #")[0].strip()
        if not text or text.startswith(("#", "-")):
            continue
        match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)\s*(?:===?\s*([\w.+!-]+)|@ .+)", text)
        if match is None:
            raise UserError(f"--freeze {path}:{number}: takes lines of `pip freeze` such as numpy==1.26.4; got {quoted(text)}.")
        found[canonicalize_name(match[1])] = match[2]
    if not found:
        raise UserError(f"--freeze {path}: holds no package; write it with scripts/image_freeze.")
    return found


def clashes(required: list[str], wanted_python: str | None, has: Mapping[str, str | None], python: str | None) -> Iterator[tuple[str, str]]:
    """Yield (requirement, what the image has instead and the remedy) for each that the image does not meet.

    Args:
        wanted_python: the package's Requires-Python.
        has: what `constraints` returned.
        python: the image's Python, such as 3.10; None where it is not known.
    """
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name

    if python and wanted_python and not SpecifierSet(wanted_python).contains(f"{python}.99"):
        yield f"python_requires {wanted_python}", f"the image has Python {python}: the package would not install; lower it."
    for text in required:
        requirement = Requirement(text)
        marker, name = requirement.marker, canonicalize_name(requirement.name)
        place = {"extra": ""} | ({"python_version": python, "python_full_version": f"{python}.0"} if python else {})
        if name not in has or (marker is not None and not marker.evaluate(place)):
            continue
        if has[name] is not None and not _meets(requirement.specifier, has[name]):
            yield text, f"the image has {name} {has[name]}: pip would replace it; widen the requirement in setup.py."
        elif name == "tensorflow":
            yield text, "the image brings its own TensorFlow, which pip might replace; leave it out of install_requires."


def _meets(specifier: SpecifierSet, version: str) -> bool:
    """Tell whether a version, or with a beginning such as 2.17 any patch of it, meets a specifier."""
    if version.count(".") >= 2:
        return specifier.contains(version, prereleases=True)
    return any(specifier.contains(f"{version}.{patch}", prereleases=True) for patch in range(30))
