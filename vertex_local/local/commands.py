"""What to run for a pool: a Python module, a container's command, or what the project's own Dockerfile starts."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, quoted
from ..job import buckets
from ..job.pools import Pool
from .engines import Image

# These describe the image's own file system, not the program.
_IMAGE_ONLY = {"PATH", "HOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")


class CommandError(UserError):
    """A pool that cannot be started here, with what is missing."""


@dataclass(frozen=True)
class Command:
    """A program with its arguments; `env` is what its image and the spec set. `cwd` None: a folder of the job's own."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path | None


def for_pool(pool: Pool, python: str, project: Path, bucket_root: Path, image: Image | None = None) -> Command:
    """Return the command of a replica of `pool`, with local paths for `gs://…`.

    Args:
        python: the program for a module; without an `image`, for `python` and `python3`, too.
        image: what the replica's container is made from; None for a process, which starts in the checkout.

    Raises:
        CommandError: what the pool starts is not known.
    """
    args, command = ([buckets.localize(word, bucket_root) for word in words] for words in (pool.args, pool.command))
    env = {name: buckets.localize(value, bucket_root) for name, value in pool.env}
    if pool.module:
        return Command((python, "-m", pool.module, *args), env, None)
    if image is not None:
        argv = image.command(command, args)
        if not argv:
            raise CommandError(f"image {pool.image}: has neither ENTRYPOINT nor CMD: give containerSpec.command.")
        return Command(tuple(argv), env, None)
    if not command:
        image = _image(pool.image, project)
        env = {**_on_disk(image, project), **env}
    first, *others = [*command, *args] if image is None else image.command(command, args)
    return Command((python if first in ("python", "python3") else first, *others), env, project)


def _image(image: str, project: Path) -> Image:
    """Return the last stage of the project's Dockerfile, from which `image` must be built."""
    path, build_args = project / "Dockerfile", {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        problem = f"image {image} is not the project's own, because there is no {path}"
        raise CommandError(f"{problem}: give containerSpec.command, or --project_dir.") from None
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: is not UTF-8 text: {error}. Save it as UTF-8, or give containerSpec.command.") from None
    if re.search(r"^\s*ARG\s+TRAINER\b", text, re.MULTILINE | re.IGNORECASE):
        known = trainers(project)
        named = trainer_in(image, known)
        if named is None:
            problem = f"image {image} does not name one of this project's trainers ({', '.join(known)})"
            raise CommandError(f"{problem}: give containerSpec.command if the image is another's.")
        build_args["TRAINER"] = named
    try:
        stage = parse_dockerfile(text, build_args)
    except CommandError as error:
        raise CommandError(f"{path}: {error}") from None
    command = stage.entrypoint or stage.cmd
    if not command:
        raise CommandError(f"{path} ends without ENTRYPOINT and CMD: give containerSpec.command.")
    if os.path.basename(command[0]) not in ("sh", "bash") and any(map(_VARIABLE.search, command)):
        raise CommandError(f"{path}: Docker puts no variables into {json.dumps(command)}; use the shell form, or ENV.")
    return stage


def trainers(project: Path) -> list[str]:
    """Return the names of a checkout's trainers: its folders with a trainer/task.py that Python can import."""
    return sorted(name for path in project.glob("*/trainer/task.py") if (name := path.parts[-3]).isidentifier())


def trainer_in(image: str, known: Sequence[str]) -> str | None:
    """Return the trainer of `known` that an image's address names, as in …/taxifare-gpu:v1; None if it names none or several."""
    base = re.split("[:@]", image.rpartition("/")[2])[0]
    named = [name for name in known if re.search(rf"(^|[-_.]){re.escape(name)}([-_.]|$)", base)]
    # The longer name wins: taxifare_v2:latest belongs to taxifare_v2, even if taxifare is a trainer, too.
    named = [name for name in named if not any(name != other and name in other for other in named)]
    return named[0] if len(named) == 1 else None


def parse_dockerfile(text: str, build_args: Mapping[str, str]) -> Image:
    """Return the last stage of a Dockerfile: FROM, ARG, ENV, WORKDIR, ENTRYPOINT and CMD as Docker reads them.

    Raises:
        CommandError: an ENV has a quotation mark that is not closed.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Image] = {}
    stage, shared, args = Image(""), {}, {}
    started = has_own_cmd = False
    for line in re.sub(r"\\[ \t]*\n", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        word, rest = word.upper(), rest.strip()
        if word == "FROM":
            parts = [part for part in _expand(rest, shared).split() if not part.startswith("--")] or [""]
            args, started, has_own_cmd = {}, True, False
            stages[parts[-1]] = stage = copy.deepcopy(stages.get(parts[0], Image("")))
        elif word == "ARG":
            name, _, default = rest.partition("=")
            value = build_args.get(name, _expand(default.strip("\"'"), {**args, **stage.env}) or shared.get(name, ""))
            (args if started else shared)[name] = value
        elif word == "ENV":
            pairs, seen = _pairs(rest), {**args, **stage.env}
            stage.env.update((pair.partition("=")[0], _expand(pair.partition("=")[2], seen)) for pair in pairs)
        elif word == "WORKDIR":
            stage.workdir = _expand(rest, {**args, **stage.env})
        elif word == "CMD":
            stage.cmd, has_own_cmd = _words(rest), True
        elif word == "ENTRYPOINT":  # it clears a CMD that comes from the base image
            stage.entrypoint, stage.cmd = _words(rest), stage.cmd if has_own_cmd else []
    return stage


def _pairs(text: str) -> list[str]:
    """Return the NAME=VALUE words of an ENV, which may also be written `NAME VALUE`."""
    try:
        return shlex.split(text) if "=" in text.partition(" ")[0] else [text.replace(" ", "=", 1)]
    except ValueError as error:
        raise CommandError(f"ENV {quoted(text)}: {error}; mend the line, or give containerSpec.command.") from None


def _words(text: str) -> list[str]:
    try:
        words = json.loads(text)
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return words
    except ValueError:
        pass  # not the exec form, so it is the shell form
    return ["/bin/sh", "-c", text]


def _expand(text: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[3]) or match[2] or "", text)


def _on_disk(stage: Image, project: Path) -> dict[str, str]:
    """Return the image's ENV with the working directory, which holds a copy of the checkout, replaced by the checkout itself."""
    inside = rf"(^|(?<=:)){re.escape(stage.workdir.rstrip('/'))}(?=/|:|$)"
    found = {name: value for name, value in stage.env.items() if name not in _IMAGE_ONLY}
    if stage.workdir.rstrip("/"):
        found = {name: re.sub(inside, lambda _: str(project), value) for name, value in found.items()}
    return found
