"""What the submitting scripts share: real settings, gcloud and REST, what was sent kept in files, and following a job."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vertex_local.job import buckets, settings

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
    parser.add_argument("--base_output_dir", metavar="gs://…", type=_folder, help="another place for its outputs than the file says")
    parser.add_argument("--no_check", action="store_true", help="do not run `python -m vertex_local check` before")


def _folder(text: str) -> str:
    try:
        if not text.startswith("gs://"):
            raise ValueError("takes gs://bucket/folder")
        buckets.check_name(text[len("gs://") :].partition("/")[0])
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; got {text!r}") from None
    return text


def positive(text: str) -> float:
    """Parse a number of seconds above 0 for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"takes seconds above 0; got {text!r}.")
    return value


def add_wait_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say whether to stay until the job has ended."""
    parser.add_argument("--wait", action="store_true", help="follow the job to its end; the exit code is 0 if it succeeded")
    parser.add_argument("--poll", metavar="SECONDS", type=positive, default=15.0, help="for --wait: between looks (default: %(default)g)")


def is_local(endpoint: str | None) -> bool:
    """Tell whether an endpoint (URL or host:port) is a service on this machine, such as `python -m vertex_local serve`."""
    if not endpoint:
        return False
    return urllib.parse.urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").hostname in LOOPBACK


def gcloud_endpoint() -> str | None:
    """Return the service address that gcloud was given in place of Google's, if any."""
    return os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM")


def place(folder: str | Path, given: Mapping[str, str], needed: Sequence[str], free: bool) -> dict[str, str]:
    """Return all settings, of which those `needed` are there.

    Args:
        free: take the project's placeholders, too: nothing will leave this machine.

    Raises:
        SettingsError: one is missing, or still the placeholder that the project comes with.
    """
    values = settings.load(folder, given)
    path = Path(folder) / "settings.yaml"
    for name in needed:
        if name not in values:
            raise settings.SettingsError(f"--{name}: not set: give it, or put it into {path}.")
        if values[name] in settings.PLACEHOLDERS and not free:
            raise settings.SettingsError(f"--{name}: {values[name]} is a placeholder: put your own into {path}, or give --{name}.")
    return values


def refuse_placeholders(text: str, name: str) -> None:
    """Raise a SettingsError if what is to be sent still holds a placeholder."""
    for number, line in enumerate(text.splitlines(), 1):
        for placeholder in settings.PLACEHOLDERS:
            if placeholder in line.partition(" #")[0] and not line.lstrip().startswith("#"):
                remedy = f"put your own into {Path(name).parent / 'settings.yaml'}, or into the file"
                raise settings.SettingsError(f"{name}:{number}: {placeholder} is a placeholder: {remedy}.")


def check(path: str, given: Mapping[str, str], extra: Sequence[str]) -> None:
    """Run `python -m vertex_local check` before anything is paid for; raise a ValueError if it finds a reason not to submit."""
    words = ["check", path, f"--project_dir={Path(__file__).resolve().parents[1]}", *(f"--{name}={value}" for name, value in given.items())]
    words += ["--", *extra] if extra else []
    print(command(["python", "-m", "vertex_local", *words]), flush=True)
    if subprocess.run([sys.executable, "-m", "vertex_local", *words], stdin=subprocess.DEVNULL).returncode:
        raise ValueError("not submitted, for the reasons above; --no_check submits all the same.")


def keep(text: str, name: str, state_dir: str | Path) -> Path:
    """Write what is sent to `<state_dir>/submitted/<time>-<name>`, a new file each time, and return its path."""
    folder, stamp = Path(state_dir) / "submitted", time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = folder / f"{stamp}{f'-{number}' if number > 1 else ''}-{name}"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            return path
        except FileExistsError:
            pass  # of the same second


def command(words: Sequence[str]) -> str:
    """Return a command as a line for the shell, after a `$`."""
    return f"$ {shlex.join(words)}"


def run(words: Sequence[str], *, say: bool = True) -> str:
    """Print a command, run it, and return what it wrote to stdout.

    Raises:
        CloudError: the program is not there, or it failed; its own words are in the error.
    """
    if shutil.which(words[0]) is None:
        raise CloudError(f"{words[0]} is not on PATH: install it, or give --dry_run to see what would be sent.")
    if say:
        print(command(words), flush=True)
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        first = next((i for i, line in enumerate(lines) if line.startswith("ERROR")), max(0, len(lines) - 3))
        raise CloudError(f"{words[0]} ended with {done.returncode}: {' '.join(lines[first:]) or 'it said nothing.'}")
    return done.stdout


def token() -> str | None:
    """Return the access token that gcloud would send; None where gcloud is told to send none."""
    if os.environ.get("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "").lower() in ("1", "true", "yes", "on"):
        return None
    file = os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE")
    return Path(file).read_text(encoding="utf-8").strip() if file else run(["gcloud", "auth", "print-access-token"], say=False).strip()


def post(url: str, body: str, bearer: str | None) -> dict[str, Any]:
    """POST JSON text and return the answer; raise a CloudError with the service's own message."""
    if bearer and not url.startswith("https://") and not is_local(url):
        raise CloudError(f"{url}: an access token is not sent over plain HTTP; use https://.")
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {bearer}"} if bearer else {})}
    request = urllib.request.Request(url, body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        try:
            text = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            pass  # not the API's form: shown as it is
        raise CloudError(f"{url} answered {error.code}: {' '.join(text.split())[:2000]}") from None
    except ValueError as error:
        raise CloudError(f"{url} answered with something else than JSON: {error}") from None


def api_url(region: str) -> str:
    """Return the service's address for a region, with a slash at its end: gcloud's override, else Google's."""
    return (gcloud_endpoint() or f"https://{region}-aiplatform.googleapis.com").rstrip("/") + "/"


def console(values: Mapping[str, str], number: str) -> str:
    """Return the console's page of a training job, tuning job or pipeline."""
    return f"https://console.cloud.google.com/agent-platform/locations/{values['region']}/training/{number}?project={values['project']}"


def tell(what: str, name: str, values: Mapping[str, str], state: str, logs: str, cancel: str) -> None:
    """Print what was submitted under which name, where to see it, and the commands for its logs and its end."""
    print(f"submitted {what} {name}")
    for label, text in (("state", state), ("console", console(values, name.rpartition("/")[2])), ("logs", logs), ("cancel", cancel)):
        if text:
            print(f"  {label:8s}{text}")
    sys.stdout.flush()


def plain_state(job: Mapping[str, Any]) -> str:
    """Return a job's state without the enum's prefix, such as RUNNING."""
    return str(job.get("state", "PENDING")).removeprefix("JOB_STATE_").removeprefix("PIPELINE_STATE_")


def follow(look: Callable[[], Mapping[str, Any]], every: float, cancel: threading.Event, detail: Callable[[Mapping[str, Any]], str]) -> int:
    """Look at a job every so many seconds until it has ended, with one progress line; return 0 if it succeeded.

    On a terminal the line is rewritten, else there is a new one at each change. Ending this does not end the job.
    """
    start, last, failures, job, live = time.monotonic(), "", 0, {}, sys.stdout.isatty()
    while True:
        try:
            job, failures = look(), 0
        except CloudError as error:
            failures += 1
            if failures >= PATIENCE:
                raise CloudError(f"gave up following, the job goes on: {error}") from None
        state = plain_state(job)
        line = " ".join(filter(None, (state.lower(), detail(job))))
        if live:
            print(f"\r\033[K{line}, {time.monotonic() - start:.0f} s", end="", flush=True)
        elif line != last:
            print(f"{line}, {time.monotonic() - start:.0f} s", flush=True)
        last = line
        if state in DONE or cancel.is_set() or cancel.wait(every):
            break
    if live:
        print()
    if state not in DONE:
        print("stopped following; the job goes on.", file=sys.stderr)
        return 1
    if state != "SUCCEEDED":
        print(f"error: the job ended as {state}: {job.get('error', {}).get('message', 'no message; see its logs')}", file=sys.stderr)
    return int(state != "SUCCEEDED")
