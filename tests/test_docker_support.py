"""Executes a Dockerfile without Docker: each stage is a folder, each step is done in it by this machine's tools.

What stands in for what: the base image is an empty environment of this interpreter that also sees the folder of packages
that the caller names; absolute paths in RUN, ENV and ENTRYPOINT are turned into paths of the stage's folder, which is not
isolated from the machine's own; the base's operating system, its Python's patch version and its users are not imitated.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BASE_PATH = "@BASE@"  # the PATH of the base image, in a stage's ENV
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass
class Stage:
    """What a stage holds so far; `steps` are those done."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    args: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)

    def path(self, inside: str) -> Path:
        return self.root / os.path.normpath(os.path.join("/", self.workdir, inside)).lstrip("/")


def instructions(text: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions: comments left out, continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\[ \t]*\n", " ", lines).splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.strip().partition(" ") for line in joined if line.strip())]


def ignored(patterns: str, name: str) -> bool:
    """Tell whether a .dockerignore leaves the file `name` out: the last pattern that fits it, or a folder of it, decides."""
    out = False
    for line in (line.strip() for line in patterns.splitlines() if line.strip() and not line.startswith("#")):
        pattern = line.lstrip("!").strip("/")
        parts = [part for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern) if part]
        known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        if re.fullmatch("".join(known.get(part, re.escape(part)) for part in parts) + "(?:/.*)?", name):
            out = not line.startswith("!")
    return out


def build(
    text: str, context: Path, scratch: Path, packages: Path, build_args: Mapping[str, str], index: bool = False
) -> Stage:
    """Do a Dockerfile's steps and return the last stage.

    Args:
        context: the folder that is sent to Docker; its .dockerignore is obeyed.
        packages: a site-packages folder that the base image has; pip is in it.
        index: let pip ask an index and build in isolation; else everything must be there.
    """
    sent = _sent(context, scratch / "context")
    base = scratch / "base"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", base], check=True)
    for name in ("pip", "pip3"):
        (base / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(str(base / "bin" / "python3"))} -m pip "$@"\n')
        (base / "bin" / name).chmod(0o755)
    pip = {} if index else {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    tools = {**pip, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": str(packages)}
    shared: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for word, rest in instructions(text):
        if word == "FROM":
            parts = [part for part in _expand(rest, {**shared, **build_args}).split() if not part.startswith("--")]
            assert parts[0] not in stages, "a stage on top of another is not imitated"
            stage = Stage(scratch / f"stage-{len(stages)}")
            stage.root.mkdir()
            stages[parts[-1] if len(parts) == 3 else f"stage-{len(stages)}"] = stage
        elif word == "ARG":
            name, _, default = rest.partition("=")
            known = {**shared, **(stage.args if stage else {})}
            value = build_args.get(name, _expand(default.strip("\"'"), known) or shared.get(name, ""))
            (shared if stage is None else stage.args)[name] = value
        else:
            _step(stage, word, rest, sent, stages, {**tools, "PATH": os.pathsep.join([str(base / "bin"), "/usr/bin", "/bin"])})
        if stage is not None:
            stage.steps.append((word, rest))
    return stage


def _sent(context: Path, target: Path) -> Path:
    patterns = context / ".dockerignore"
    text = patterns.read_text() if patterns.exists() else ""
    for folder, folders, names in os.walk(context):
        here = os.path.relpath(folder, context)
        folders[:] = [name for name in folders if not ignored(text, os.path.normpath(os.path.join(here, name)))]
        for name in names:
            inside = os.path.normpath(os.path.join(here, name))
            if not ignored(text, inside):
                (target / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(os.path.join(folder, name), target / inside)
    return target


def _expand(text: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def _step(stage: Stage, word: str, rest: str, sent: Path, stages: Mapping[str, Stage], tools: Mapping[str, str]) -> None:
    seen = {**stage.args, **stage.env}
    if word == "WORKDIR":
        stage.workdir = os.path.join(stage.workdir, _expand(rest, seen))
        stage.path(".").mkdir(parents=True, exist_ok=True)
    elif word in ("ENV", "LABEL"):
        pairs = (pair.partition("=") for pair in shlex.split(_expand(rest, seen)))
        (stage.env if word == "ENV" else stage.labels).update((name, value) for name, _, value in pairs)
    elif word == "ENTRYPOINT":
        stage.entrypoint = json.loads(rest)
    elif word == "COPY":
        words = json.loads(rest) if rest.startswith("[") else _expand(rest, seen).split()
        origin, stage_name = sent, None
        if words[0].startswith("--from="):
            stage_name = words.pop(0).partition("=")[2]
            origin = stages[stage_name].root
        _copy([origin / word.lstrip("/") for word in words[:-1]], stage.path(words[-1]), words[-1].endswith("/"))
    elif word == "RUN":
        command = re.sub(r"(?<![\w./}-])/(?=\w)", f"{stage.root}/", rest)
        environment = {**environ(stage, tools), **stage.args}
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=stage.path("."), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=1500,
        )  # fmt: skip
        assert done.returncode == 0, f"RUN {command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    else:
        raise AssertionError(f"{word} is not imitated")


def _copy(sources: list[Path], target: Path, into: bool) -> None:
    for source in sources:
        assert source.exists(), f"COPY: {source} is not in what was sent to Docker"
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            place = target / source.name if into or target.is_dir() else target
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place)


def environ(stage: Stage, tools: Mapping[str, str]) -> dict[str, str]:
    """Return a process's environment in a stage: its ENV with paths turned into the stage's, and the base's tools."""
    found = {name: re.sub(r"(^|(?<=:))/(?=\w)", f"{stage.root}/", value) for name, value in stage.env.items()}
    found["PATH"] = found["PATH"].replace(BASE_PATH, tools["PATH"])
    found["PYTHONPATH"] = os.pathsep.join(filter(None, (found.get("PYTHONPATH"), tools["PYTHONPATH"])))
    found.setdefault("HOME", str(stage.root))
    return {**{name: value for name, value in tools.items() if name not in found}, **found}


def start(stage: Stage, packages: Path, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the entry point with more arguments, as `docker run` does, and return how it ended."""
    base = stage.root.parent / "base" / "bin"
    tools = {"PATH": os.pathsep.join([str(base), "/usr/bin", "/bin"]), "PYTHONPATH": str(packages)}
    environment = {**environ(stage, tools), "TF_CPP_MIN_LOG_LEVEL": "3", **(env or {})}
    program = shutil.which(stage.entrypoint[0], path=environment["PATH"])
    assert program, f"{stage.entrypoint[0]} is not on the image's PATH {environment['PATH']}"
    return subprocess.run(
        [program, *stage.entrypoint[1:], *args], cwd=stage.path("."), env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
