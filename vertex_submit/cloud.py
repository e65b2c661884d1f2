"""What the submitting scripts share: their flags and settings, the check, programs, what is kept in files, following a job."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vertex_local import cli
from vertex_local.errors import UserError
from vertex_local.job import buckets, settings

from .checkout import ROOT

DONE = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED")  # after JOB_STATE_ or PIPELINE_STATE_
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PATIENCE = 5  # failed questions in a row before following is given up


class CloudError(OSError):
    """What a tool or the service answered instead of doing it, in one line."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all submitting scripts have, those of the settings among them."""
    parser.add_argument("--dry_run", action="store_true", help="print what would be sent, send and write nothing")
    parser.add_argument("--state_dir", metavar="DIR", default=".vertex_local", help="keep what is sent in it (default: %(default)s)")
    settings.add_flags(parser)


def add_job_flags(parser: argparse.ArgumentParser) -> None:
    """Add what can be said of any kind of job beside its file."""
    parser.add_argument("--base_output_dir", metavar="gs://…", type=folder, help="another place for its outputs than the file says")
    parser.add_argument("--no_check", action="store_true", help="do not run `python -m vertex_local check` before")


def folder(text: str) -> str:
    """Parse a folder in a bucket for argparse."""
    try:
        return buckets.check_folder(text)
    except buckets.BucketError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def labels(text: str) -> dict[str, str]:
    """Parse labels for argparse."""
    return {name.strip(): value.strip() for name, value in map(cli.pair, text.strip(",").split(","))}


def add_wait_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say whether to stay until the job has ended."""
    parser.add_argument("--wait", action="store_true", help="follow the job to its end; the exit code is 0 if it succeeded")
    seconds = cli.number("seconds above 0", lambda value: 0 < value < math.inf)
    parser.add_argument("--poll", metavar="SECONDS", type=seconds, default=15.0, help="for --wait: between polls (default: %(default)g)")


def is_local(endpoint: str | None) -> bool:
    """Tell whether an endpoint (URL or host:port) is a service on this machine, such as `python -m vertex_local serve`."""
    if not endpoint:
        return False
    return urllib.parse.urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").hostname in LOOPBACK


def gcloud_endpoint() -> str | None:
    """Return the service address that gcloud was given in place of Google's, if any."""
    return os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM")


def load_settings(folder: str | Path, given: Mapping[str, str], needed: Sequence[str], placeholders: bool) -> dict[str, str]:
    """Return all settings, of which those `needed` are there.

    Args:
        placeholders: take those that the project comes with, too: nothing will leave this machine.

    Raises:
        SettingsError: one is missing, or still the placeholder that the project comes with.
    """
    values = settings.load(folder, given)
    path = Path(folder) / "settings.yaml"
    for name in needed:
        if name not in values:
            raise settings.SettingsError(f"--{name}: not set: give it, or put it into {path}.")
        if values[name] in settings.PLACEHOLDERS and not placeholders:
            raise settings.SettingsError(f"--{name}: {values[name]} is a placeholder: put your own into {path}, or give --{name}.")
    return values


def check(file: Path, values: Mapping[str, str]) -> None:
    """Run `python -m vertex_local check` on the very file that will be sent; raise a UserError if it finds a reason not to.

    Args:
        values: the settings, which are those of the user's file: none lie beside this one.
    """
    given = [f"--{name}={values[name]}" for name in settings.NAMES if name in values]
    words = ["check", str(file), f"--project_dir={ROOT}", *given]
    print(command(["python", "-m", "vertex_local", *words]), flush=True)
    if subprocess.run([sys.executable, "-m", "vertex_local", *words], stdin=subprocess.DEVNULL).returncode:
        raise UserError("not submitted, for the reasons above; mend them, or give --no_check to send it all the same.")


def keep(text: str, name: str, state_dir: str | Path) -> Path:
    """Write what is sent to `<state_dir>/submitted/<time>-<name>`, a new file each time, and return its path."""
    folder, stamp, number = Path(state_dir) / "submitted", time.strftime("%Y%m%d-%H%M%S"), 1
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        path = folder / f"{stamp}{f'-{number}' if number > 1 else ''}-{name}"
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:  # of the same second
            file.write(text)
            return path
        number += 1


def command(words: Sequence[str]) -> str:
    """Return a command as a line for the shell, after a `$`."""
    return f"$ {shlex.join(words)}"


def run(words: Sequence[str], *, show: bool = True) -> str:
    """Print a command, run it, and return what it wrote to stdout.

    Raises:
        CloudError: the program is not there, or it failed; its own words are in the error.
    """
    if shutil.which(words[0]) is None:
        raise CloudError(f"{words[0]} is not on PATH: install it, or give --dry_run to see what would be sent.")
    if show:
        print(command(words), flush=True)
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        first = next((i for i, line in enumerate(lines) if line.startswith("ERROR")), max(0, len(lines) - 3))
        raise CloudError(f"{words[0]} ended with {done.returncode}: {' '.join(lines[first:]) or 'it said nothing.'}")
    return done.stdout


def plain_state(job: Mapping[str, Any]) -> str:
    """Return a job's state without the enum's prefix, such as RUNNING."""
    return str(job.get("state", "PENDING")).removeprefix("JOB_STATE_").removeprefix("PIPELINE_STATE_") or "PENDING"


def follow(
    get_job: Callable[[], Mapping[str, Any]], every: float, cancel: threading.Event, detail: Callable[[Mapping[str, Any]], str]
) -> int:  # fmt: skip
    """Ask for a job every so many seconds until it has ended, with one progress line; return 0 if it succeeded.

    On a terminal the line is rewritten, else there is a new one at each change. Ending this does not end the job.

    Raises:
        CloudError: PATIENCE questions in a row failed.
    """
    show, failures = _ProgressLine(), 0
    while True:
        try:
            job, failures = get_job(), 0
        except CloudError as error:
            failures += 1
            if failures >= PATIENCE:
                raise CloudError(f"gave up following, the job goes on: {error}") from None
        else:
            show(" ".join(filter(None, (plain_state(job).lower(), detail(job)))))
            if plain_state(job) in DONE:
                break
        if cancel.is_set() or cancel.wait(every):
            show.end()
            print("stopped following; the job goes on.", file=sys.stderr)
            return 1
    show.end()
    if plain_state(job) == "SUCCEEDED":
        return 0
    message = " ".join(job.get("error", {}).get("message", "no message; see its logs").split())
    print(f"error: the job ended as {plain_state(job)}: {message}", file=sys.stderr)
    return 1


class _ProgressLine:
    """A line that is rewritten on a terminal, and elsewhere printed anew when it changes; the seconds are since the start."""

    def __init__(self) -> None:
        self.start, self.last, self.live = time.monotonic(), "", sys.stdout.isatty()

    def __call__(self, line: str) -> None:
        seconds = f"{time.monotonic() - self.start:.0f} s"
        if self.live:
            print(f"\r\033[K{line}, {seconds}", end="", flush=True)
        elif line != self.last:
            print(f"{line}, {seconds}", flush=True)
        self.last = line

    def end(self) -> None:
        if self.live:
            print()
