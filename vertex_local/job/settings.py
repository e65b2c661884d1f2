"""`settings.yaml`: project, region, bucket and images, written once for all job files of a folder.

A job file says `${BUCKET}`; the value is that of a flag, or of the `settings.yaml` beside the file. `${IMAGES}` is made of
them: the place of the project's own images. A file without `${…}` needs no settings.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

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
_PLACE = re.compile(r"\$\{(\w*)\}")


class SettingsError(ValueError):
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
            raise SettingsError(f"{path}: cannot be read: {error}") from None
        if not isinstance(values, dict):
            raise SettingsError(f"{path}: takes one `name: value` a line; names are {', '.join(NAMES)}.")
    for name, value in values.items():
        if name not in NAMES:
            raise SettingsError(f"{path}: {name!r} is not a setting; names are {', '.join(NAMES)}.")
        if not isinstance(value, str) or not value:
            raise SettingsError(f"{path}: {name}: takes text; got {value!r}: put it in quotes.")
    values |= given or {}
    if {"region", "project", "repository"} <= values.keys():
        values["images"] = f"{values['region']}-docker.pkg.dev/{values['project']}/{values['repository']}"
    return values


def render(text: str, name: str, given: Mapping[str, str] | None = None) -> str:
    """Return the job file's `text` with each `${NAME}` replaced; lines stay lines.

    Args:
        name: the file's path: its folder holds settings.yaml, and errors begin with it.
        given: settings that win over the file's.
    """
    if not _PLACE.search(text):
        return text
    values = load(Path(name).parent, given)
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("#"):
            continue
        for match in _PLACE.finditer(line):
            if match[1].lower() not in values:
                known = ", ".join(f"${{{key.upper()}}}" for key in values) or "none"
                problem = f"{name}:{number}: {match[0]} is not set; set are {known}"
                raise SettingsError(f"{problem}: put it into {Path(name).parent / 'settings.yaml'}, or give --{match[1].lower()}.")
        lines[number - 1] = _PLACE.sub(lambda match: values[match[1].lower()], line)
    return "\n".join(lines)


def fill(message: Any, folder: str | Path, given: Mapping[str, str]) -> Any:
    """Return a request's JSON value with the settings of `folder` in its texts; any other `${NAME}` is left as it is."""
    if not _PLACE.search(json.dumps(message)):
        return message
    values = {name.upper(): value for name, value in load(folder, given).items()}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item) for item in value]
        return _PLACE.sub(lambda match: values.get(match[1], match[0]), value) if isinstance(value, str) else value

    return filled(message)
