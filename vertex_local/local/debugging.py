"""One replica of a job under debugpy: `run --debug REPLICA[:PORT]`. It waits until an editor attaches to it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, quoted
from . import ports
from .store import replace_text

PORT = 5678  # the port that editors propose; another free one is taken if it is in use
ADDRESS = "127.0.0.1"
# Set for every replica of the job: our trainers then wait for each other, and for the next step, without a time limit.
VARIABLE = "TRAINER_DEBUG"
VARIABLES = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # of the debugged replica: silences debugpy's warnings about frozen modules
INSIDE = Path("/vertex_local/debug/debugpy")  # where this interpreter's debugpy is mounted in a container
WORKSPACE = "${workspaceFolder}"  # an editor's name for the folder that it has opened: the checkout
_FORM = re.compile(r"(workerpool[0-3]-\d+)(?::(\d{1,5}))?")
_PYTHON = re.compile(r"python(3(\.\d+)?)?")
_WITH_VALUE = ("-W", "-X")  # Python's own options whose value may stand in the next word


@dataclass(frozen=True)
class Debug:
    """Which replica is debugged, and the port on 127.0.0.1 that it listens on; 0 takes a free one."""

    replica: str
    port: int = 0

    def __str__(self) -> str:
        return f"--debug {self.replica}{f':{self.port}' if self.port else ''}"


def parse(text: str) -> Debug:
    """Read `workerpool1-0` or `workerpool1-0:5678`."""
    match = _FORM.fullmatch(text)
    port = int(match[2] or 0) if match else 0
    if match is None or (match[2] and not 1024 <= port <= 65535):
        raise UserError(f"--debug takes REPLICA or REPLICA:PORT, such as workerpool1-0:{PORT} (ports 1024 to 65535); got {quoted(text)}.")
    return Debug(match[1], port)


def check(debug: Debug, known: Sequence[str], python: str | None) -> None:
    """Check that the replica can be debugged, before the job has a folder.

    Args:
        known: the replicas that are started.
        python: the interpreter of replicas that are processes; None where they run in containers, with this one's debugpy.

    Raises:
        UserError: there is no such replica, no debugpy, or the port is in use.
    """
    if debug.replica not in known:
        raise UserError(f"{debug}: no such replica is started; there are {', '.join(known)}.")
    if python is None:
        found = importlib.util.find_spec("debugpy") is not None
    else:
        command = [python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('debugpy') is None)"]
        found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    if not found:
        raise UserError(f"{debug}: {python or sys.executable} has no debugpy: pip install debugpy.")
    if debug.port and not ports.is_free(debug.port, reuse=True):  # as debugpy takes it
        raise _in_use(debug)


def choose_port(debug: Debug, take: Callable[[int], int]) -> int:
    """Return the port to listen on: the one asked for, else the usual one, else a free one.

    Args:
        take: reserves the port that it is given, or another one if that is taken, and returns it.

    Raises:
        UserError: the port asked for is in use, be it by a job whose replica does not listen yet.
    """
    port = take(debug.port or PORT)
    if debug.port and port != debug.port:
        raise _in_use(debug)
    return port


def _in_use(debug: Debug) -> UserError:
    return UserError(f"{debug}: {ADDRESS}:{debug.port} is in use; give another port, or none for a free one.")


def wrap(argv: Sequence[str], port: int, debugpy: Sequence[str] = ("-m", "debugpy")) -> tuple[str, ...]:
    """Return the command line that runs a Python program under debugpy, in the same process.

    Args:
        argv: the program: an interpreter with `-m MODULE`, a script or `-c CODE`.
        debugpy: how that interpreter finds debugpy: as a module, or the path of its folder.

    Raises:
        UserError: the program is not Python's.
    """
    if not _PYTHON.fullmatch(os.path.basename(argv[0])):
        raise UserError(f"--debug takes a replica whose command is python; this one's is {quoted(argv[0])}: write it without a shell.")
    start = 1
    while start < len(argv) and argv[start].startswith("-") and argv[start] not in ("-m", "-c", "-"):
        start += 2 if argv[start] in _WITH_VALUE else 1
    if start >= len(argv) or argv[start] == "-":
        raise UserError("--debug takes a replica whose command runs a module or a script; this one's only starts Python.")
    # Watchers that a trainer forks are not to be debugged, and the editor is not asked about them.
    listen = ["--listen", f"{ADDRESS}:{port}", "--wait-for-client", "--configure-subProcess", "False"]
    return (*argv[:start], *debugpy, *listen, *argv[start:])


def mount() -> tuple[Path, str]:
    """Return the mount that gives a container this interpreter's debugpy, which `check` has found.

    Under another version of Python, debugpy works without its compiled parts.
    """
    import debugpy

    return Path(debugpy.__file__).parent, f"{INSIDE}:ro"


def launch_configuration(name: str, port: int, mappings: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of an editor's launch.json that attaches to the replica.

    Args:
        mappings: from a folder as the replica sees it to the same folder here.
    """
    paths = [{"localRoot": here, "remoteRoot": there} for there, here in mappings.items()]
    attach = {
        "name": f"{name} (vertex_local)", "type": "debugpy", "request": "attach", "connect": {"host": ADDRESS, "port": port},
        "pathMappings": paths, "justMyCode": True, "subProcess": False,
    }  # fmt: skip
    return {"version": "0.2.0", "configurations": [attach]}


def in_process(project: Path, site: Path | None) -> dict[str, str]:
    """Return the mappings of a replica that runs as a process; `site` holds its job's packages, installed from the checkout."""
    packages = sorted(site.iterdir()) if site is not None else []
    found = {str(path): f"{WORKSPACE}/{path.name}" for path in packages if path.is_dir() and (project / path.name).is_dir()}
    return {**found, str(project): WORKSPACE}


def in_container(workdir: str, bucket_root: Path) -> dict[str, str]:
    """Return the mappings of a replica in a container: the image's working folder holds a copy of the checkout.

    Buckets have the same path inside and outside; a job's gs:// addresses become that path.
    """
    return {str(bucket_root): str(bucket_root), **({workdir: WORKSPACE} if workdir.strip("/") else {})}


def instructions(replica: str, content: Mapping[str, Any], kept: Path, project: Path) -> list[str]:
    """Write launch.json to `kept` and return the lines that say what to do."""
    text = json.dumps(content, indent=2)
    replace_text(kept, text + "\n")
    where = project / ".vscode" / "launch.json"
    verb = "add its configuration to" if where.exists() else "copy it to"
    connect = content["configurations"][0]["connect"]
    return [
        f"debug: {replica} waits on {connect['host']}:{connect['port']} for an editor, and the job with it, as long as it takes.",
        f"debug: in VS Code, {verb} {where}, set breakpoints, press F5; the file is {kept}:",
        *text.splitlines(),
    ]
