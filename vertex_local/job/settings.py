"""`settings.yaml`: project, region, bucket and images, written once for all job files of a folder.

A job file says `${BUCKET}`; the value is that of a flag, or of the `settings.yaml` beside the file. `${IMAGES}` is made of
them: the place of the project's own images. A file without `${…}` needs no settings. `$${BUCKET}` stands for `${BUCKET}`
itself, for a shell to read; names that are none of a setting, such as `${HOME}`, stay as they are.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from ..errors import UserError, quoted

NAMES = {
    "project": "the Google Cloud project's id",
    "region": "the region of jobs",
    "bucket": "the bucket for packages and outputs, without gs://",
    "repository": "the Docker repository in Artifact Registry",
    "tag": "the images' tag",
    "prebuilt": "the prebuilt image that runs the project's sdist",
    "serving": "the image that serves the model",
}
PLACEHOLDERS = ("your-project", "your-bucket")  # as the file comes with the project: good for local runs only
_KNOWN = (*(name.upper() for name in NAMES), "IMAGES")
_PLACEHOLDER = re.compile(r"(\$?)\$\{(\w*)\}")
_NEAR = 0.75  # how alike a name must be to one of ours to be taken for a misspelling of it


class SettingsError(UserError):
    """Settings that are missing or misspelt: the file, the name and the remedy."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting."""
    group = parser.add_argument_group("settings (default: settings.yaml beside the job file)")
    for name, what in NAMES.items():
        group.add_argument(f"--{name}", metavar="NAME", help=what)


def from_flags(args: argparse.Namespace) -> dict[str, str]:
    """Return the settings that flags gave."""
    return {name: value for name in NAMES if (value := getattr(args, name))}


def load(folder: str | Path, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the settings of `folder/settings.yaml`, where there is one, and over them those `given`; `images` is made of them.

    Raises:
        SettingsError: the file is not a mapping of known names to text.
    """
    path, values = Path(folder) / "settings.yaml", {}
    if path.is_file():
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: cannot be read: {error}. Name a file of settings such as jobs/settings.yaml.") from None
        if not isinstance(values, dict):
            raise SettingsError(f"{path}: takes one `name: value` a line; names are {', '.join(NAMES)}.")
    for name, value in values.items():
        if name not in NAMES:
            raise SettingsError(f"{path}: {quoted(name)} is not a setting; known are {', '.join(NAMES)}.")
        if not isinstance(value, str) or not value:
            raise SettingsError(f"{path}: {name}: takes text; got {quoted(value)}: put it in quotes.")
    values |= given or {}
    if {"region", "project", "repository"} <= values.keys():
        values["images"] = f"{values['region']}-docker.pkg.dev/{values['project']}/{values['repository']}"
    return values


def render(text: str, name: str, given: Mapping[str, str] | None = None) -> str:
    """Return the job file's `text` with each `${NAME}` of a setting replaced; lines stay lines.

    Args:
        name: the file's path: its folder holds settings.yaml, and errors begin with it.
        given: settings that win over the file's.

    Raises:
        SettingsError: a setting has no value, or a name looks like a misspelt one.
    """
    if not _PLACEHOLDER.search(text):
        return text
    values, lines = {key.upper(): value for key, value in load(Path(name).parent, given).items()}, text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("#"):
            lines[number - 1] = _PLACEHOLDER.sub(lambda match, number=number: _value(match, values, f"{name}:{number}"), line)
    return "\n".join(lines)


def _value(match: re.Match[str], values: Mapping[str, str], where: str) -> str:
    """Return what stands for one `${NAME}` of a file."""
    escaped, name = match[1], match[2].upper()
    if escaped:
        return match[0][1:]
    if name in values:
        return values[name]
    if not _is_like_ours(name):
        return match[0]
    known = ", ".join(f"${{{key}}}" for key in values) or "none"
    folder, setting = Path(where.rpartition(":")[0]).parent, name.lower()
    remedy = f"put it into {folder / 'settings.yaml'}, or give --{setting}" if setting in NAMES else "see settings.yaml"
    raise SettingsError(
        f"{where}: {quoted(match[0])[1:-1]} is not set; set are {known}: {remedy}; write ${match[0][:50]} for the text itself."
    )


def _is_like_ours(name: str) -> bool:
    return bool(difflib.get_close_matches(name.upper(), _KNOWN, 1, _NEAR))


def escape(text: str) -> str:
    """Return text that `render` gives back as it is: `$` doubled before the names that it would replace or refuse."""

    def doubled(match: re.Match[str]) -> str:
        return f"${match[0]}" if match[1] or _is_like_ours(match[2]) else match[0]

    return "\n".join(line if line.lstrip().startswith("#") else _PLACEHOLDER.sub(doubled, line) for line in text.split("\n"))
